"""What can be set on each recipe. Imports no JAX, so that a wrong option is answered at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Options(BaseModel):
    """Base: strict types, no unknown names."""

    model_config = ConfigDict(strict=True, extra="forbid")


class SequentialDigits(Options):
    """Handwritten digits (scikit-learn's 1,797), read as a sequence by an LSTM; reports test accuracy."""

    rows: bool = Field(False, description="read 8 rows of 8 pixels, rather than 64 pixels one at a time")
    hidden: int = Field(64, ge=1, description="units of the LSTM")
    batch: int = Field(64, ge=1, description="digits to an update")
    lr: float = Field(5e-3, gt=0, description="peak learning rate of Adam, decayed to 0 by a cosine")


class Text(Options):
    """A character model of any text file; reports bits per character on its held-out end."""

    path: str = Field("", description="a UTF-8 text file; the default is the Book of Genesis, King James version")
    hidden: int = Field(128, ge=1, description="units of the LSTM")
    batch: int = Field(32, ge=1, description="places in the text that are read side by side")
    window: int = Field(50, ge=1, description="characters to an update")
    lr: float = Field(5e-3, gt=0, description="peak learning rate of Adam, decayed to 0 by a cosine")

    @field_validator("path")
    @classmethod
    def path_is_a_file(cls, path: str) -> str:
        """Answer a wrong path before JAX is imported."""
        if path and not Path(path).is_file():
            raise ValueError("there must be such a file")
        return path


class Recipe(NamedTuple):
    """A recipe: what can be set, and the module whose `build(options, seed, steps)` makes the experiment."""

    options: type[Options]
    module: str


RECIPES = {
    "sequential-digits": Recipe(SequentialDigits, "unrollax.recipes._digits"),
    "text": Recipe(Text, "unrollax.recipes._text"),
}
