"""What can be set on each recipe. Imports no JAX, so that a wrong option is answered at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from unrollax.recipes._idx import ENDS, PARTS, Fault, shapes

ALPHABET = "alphabet.json"  # in the run folder of `text`: its characters by their codes, as one string
Cell = Literal["lstm", "gru", "rnn", "mingru"]


class Options(BaseModel):
    """Base: strict types, no unknown names."""

    model_config = ConfigDict(strict=True, extra="forbid")


class SequentialDigits(Options):
    """Handwritten digits (scikit-learn's 1,797), read as a sequence pixel by pixel; reports test accuracy."""

    rows: bool = Field(False, description="read 8 rows of 8 pixels, rather than 64 pixels one at a time")
    augment: bool = Field(True, description="train on images that are shifted, turned, resized, slanted and noisy")
    score: Literal["test", "validation"] = Field(
        "test", description="validation: leave the test out, and score on a fifth of the training digits"
    )
    cell: Cell = Field("gru", description="lstm, gru, rnn or mingru")
    hidden: int = Field(64, ge=1, description="units of the cell")
    batch: int = Field(64, ge=1, description="digits to an update")
    lr: float = Field(1e-2, gt=0, description="peak learning rate of Adam, decayed to 0 by a cosine")


def _is_file(path: str) -> str:
    """Answer a wrong path before JAX is imported."""
    if path and not Path(path).is_file():
        raise ValueError("there must be such a file")
    return path


FilePath = Annotated[str, AfterValidator(_is_file)]


class Text(Options):
    """A character model of any text file; reports bits per character on its held-out end."""

    path: FilePath = Field("", description="a UTF-8 text file; the default is the Book of Genesis, King James version")
    cell: Cell = Field("lstm", description="lstm, gru, rnn or mingru")
    layers: int = Field(1, ge=1, description="cells one above the other")
    hidden: int = Field(128, ge=1, description="units of each layer")
    batch: int = Field(32, ge=1, description="places in the text that are read side by side")
    window: int = Field(50, ge=1, description="characters to an update")
    lr: float = Field(5e-3, gt=0, description="peak learning rate of Adam, decayed to 0 by a cosine")


class Forecast(Options):
    """Forecasts of a column of any CSV file, beside an autoregression's; reports RMSE on its end."""

    path: FilePath = Field("", description="a CSV file with a header; the default is the yearly sunspots 1700 to 2008")
    target: str = Field("", description="the column to forecast")
    ahead: int = Field(1, ge=1, description="steps from the last value that is read to the one that is forecast")
    test: int = Field(0, ge=0, description="values at the end to test on; 0: a fifth (of the sunspots the last 100)")
    score: Literal["test", "validation"] = Field(
        "test", description="validation: leave the test out, and forecast the last quarter of the rest"
    )
    ar: int = Field(0, ge=0, description="order of the autoregression; 0: by AIC on the training values")
    scale: Literal["auto", "linear", "root", "log"] = Field(
        "auto", description="learn the values, roots or logarithms; auto: where AR forecasts training values best"
    )
    cell: Cell = Field("lstm", description="lstm, gru, rnn or mingru")
    hidden: int = Field(8, ge=1, description="units of each network")
    members: int = Field(8, ge=1, description="networks whose forecasts are averaged")
    noise: float = Field(0.3, ge=0, description="noise on the inputs in training, in standard deviations of the series")
    length: int = Field(256, ge=1, description="steps of a training stretch, at most")
    batch: int = Field(1, ge=1, description="stretches to an update of each network")
    lr: float = Field(1e-2, gt=0, description="peak learning rate of Adam, decayed to 0 by a cosine")


class _Task(Options):
    length: int = Field(100, ge=10, description="steps of a sequence")
    cell: Cell = Field("lstm", description="lstm, gru, rnn or mingru")
    layers: int = Field(1, ge=1, description="cells one above the other")
    hidden: int = Field(64, ge=1, description="units of each layer")
    batch: int = Field(64, ge=1, description="sequences to an update")
    lr: float = Field(5e-3, gt=0, description="peak learning rate of Adam, decayed to 0 by a cosine")


class Adding(_Task):
    """The sum of two marked values in a long sequence; reports mean squared error beside that of no memory, 1/6."""


class Copy(_Task):
    """Ten symbols said again after a long wait; reports accuracy and cross-entropy beside those of no memory."""

    length: int = Field(30, ge=1, description="steps between the ten symbols and the place to say them")
    lr: float = Field(1.5e-2, gt=0, description="peak learning rate of Adam, decayed to 0 by a cosine")


class TemporalOrder(_Task):
    """The order of two symbols far apart among others; reports accuracy."""


def _is_images(data: str) -> str:
    """Answer wrong files before JAX is imported, as far as their headers tell."""
    if data in PIXELS:
        return data
    if not Path(data).is_dir():
        names = " and ".join(part + ENDS[0] for part in PARTS)
        got = f"{data!r}, {'a file' if Path(data).exists() else 'where nothing is'}"
        raise Fault(f"it must be {', '.join(PIXELS)} or a folder that holds {names}", got, "Give one of these.")
    shapes(data)  # a fault is a ValueError
    return data


PIXELS = {"curves": 784, "digits": 64}
ImageData = Annotated[str, AfterValidator(_is_images)]


class Autoencoder(Options):
    """A deep autoencoder of generated curves, digits or MNIST's files; reports cross-entropy and squared error."""

    data: ImageData = Field("curves", description="curves, digits, or a folder of IDX files, such as MNIST's")
    sizes: str = Field(
        "", description="units from the pixels to the code, mirrored behind it; 784-250-125-60-15, of digits 64-48-24-8"
    )
    transfer: Literal["tanh", "relu"] = Field("tanh", description="tanh or relu; the code and the pixels are linear")
    initial: Literal["auto", "glorot", "he", "sparse"] = Field(
        "auto", description="how weights start: glorot, he or sparse (15 to a unit); auto: he before relu, else glorot"
    )
    batch: int = Field(500, ge=1, description="images to an update")
    lr: float = Field(1.0, gt=0, description="share of LocoProp's steps that is made at first, decayed to 0 in a line")

    @field_validator("sizes")
    @classmethod
    def _are_sizes(cls, sizes: str, info: ValidationInfo) -> str:
        if not sizes or "data" not in info.data:
            return sizes
        if not all(part.isdecimal() and int(part) for part in sizes.split("-")) or "-" not in sizes:
            raise ValueError("sizes must be two or more whole numbers from 1 with dashes between, as 784-250-125-60-15")
        pixels = pixels_of(info.data["data"])
        if int(sizes.split("-")[0]) != pixels:
            raise ValueError(f"sizes must begin with the {pixels} pixels of an image")
        return sizes

    def widths(self) -> tuple[int, ...]:
        """Return the units of each layer from the pixels to the code."""
        pixels = pixels_of(self.data)
        default = "64-48-24-8" if pixels == PIXELS["digits"] else f"{pixels}-250-125-60-15"
        return tuple(map(int, (self.sizes or default).split("-")))


def pixels_of(data: str) -> int:
    """Return the pixels of an image of the data that an option names."""
    if data in PIXELS:
        return PIXELS[data]
    _, rows, columns = shapes(data)[0]
    return rows * columns


class Recipe(NamedTuple):
    """A recipe: what can be set, and the module whose `build(options, seed, steps)` makes the experiment.

    `layerwise` says that its own estimator is one of layers, such as LocoProp, whose rates are none for gradients.
    """

    options: type[Options]
    module: str
    layerwise: bool = False


RECIPES = {
    "adding": Recipe(Adding, "unrollax.recipes._tasks"),
    "autoencoder": Recipe(Autoencoder, "unrollax.recipes._autoencoder", layerwise=True),
    "copy": Recipe(Copy, "unrollax.recipes._tasks"),
    "forecast": Recipe(Forecast, "unrollax.recipes._forecast"),
    "sequential-digits": Recipe(SequentialDigits, "unrollax.recipes._digits"),
    "temporal-order": Recipe(TemporalOrder, "unrollax.recipes._tasks"),
    "text": Recipe(Text, "unrollax.recipes._text"),
}
