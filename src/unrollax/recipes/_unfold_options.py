"""What can be set on each unfolding. Imports no JAX, so that a wrong option is answered at once."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from unrollax.recipes._options import Options, Recipe


class Problems(Options):
    """Base: the algorithms that suit a kind of problem, the first one by default, and how deep they are unfolded."""

    algorithms: ClassVar[tuple[str, ...]] = ()
    depth: ClassVar[int] = 50


class Ridge(Problems):
    """Ridge regression with one random matrix; beside the methods whose errors are known in closed form."""

    algorithms: ClassVar[tuple[str, ...]] = ("gradient-descent", "heavy-ball", "nesterov")
    rows: int = Field(100, ge=1, description="rows of A, measurements")
    columns: int = Field(50, ge=1, description="columns of A, unknowns")
    lam: float = Field(3.0, gt=0, description="weight of the regulariser")
    matrix: int = Field(0, ge=0, description="seed of A")


class Linear(Problems):
    """Your own A and y, from .npz or CSV files; the answers are in x, or else those of least squares."""

    algorithms: ClassVar[tuple[str, ...]] = ("gradient-descent", "heavy-ball", "nesterov", "ista", "fista")
    path: str = Field(
        "",
        validate_default=True,
        description="a .npz file with A, y and, if known, x; or a folder of A.csv, y.csv and x.csv",
    )
    lam: float = Field(0.0, ge=0, description="weight of the regulariser, of |x|^2 / 2; of |x|_1 for ista and fista")

    @field_validator("path")
    @classmethod
    def _is_there(cls, path: str) -> str:
        if not Path(path).exists() or not path:
            raise ValueError("there must be such a file or folder; give it with --set path=mine.npz")
        return path


class Sparse(Problems):
    """Sparse vectors (Bernoulli-Gauss) from fewer measurements than unknowns; error in dB."""

    algorithms: ClassVar[tuple[str, ...]] = ("tista", "ista", "fista", "lista", "lista-cpss", "tilista", "alista")
    depth: ClassVar[int] = 12
    rows: int = Field(250, ge=1, description="rows of A, measurements")
    columns: int = Field(500, ge=1, description="columns of A, unknowns")
    p: float = Field(0.1, gt=0, le=1, description="share of the unknowns that are not 0")
    snr: float = Field(40.0, description="signal to noise in dB")
    matrix: int = Field(0, ge=0, description="seed of A")


class Mimo(Problems):
    """QPSK symbols through a random channel, more of them than receivers; bit error rate beside LMMSE's."""

    algorithms: ClassVar[tuple[str, ...]] = ("tpg",)
    depth: ClassVar[int] = 10
    transmit: int = Field(50, ge=1, description="antennas that send, n")
    receive: int = Field(32, ge=1, description="antennas that receive, m")
    snr: float = Field(15.0, description="signal to noise in dB")


class Settings(Options):
    """What can be set on every unfolding.

    The command line has an option for each.
    """

    algorithm: str = ""
    depth: int = Field(0, ge=0)
    period: int | None = Field(None, ge=1)
    plan: Literal["one-shot", "incremental", "random"] = "one-shot"
    steps: int = Field(2000, ge=1)
    batch: int = Field(100, ge=1)
    lr: float = Field(0.03, gt=0)
    loss: Literal["final", "anytime"] = "final"
    init: Literal["usual", "chebyshev"] = "usual"


UNFOLDINGS = {
    "linear": Recipe(Linear, "unrollax.recipes._unfold_linear"),
    "mimo": Recipe(Mimo, "unrollax.recipes._unfold_mimo"),
    "ridge": Recipe(Ridge, "unrollax.recipes._unfold_linear"),
    "sparse": Recipe(Sparse, "unrollax.recipes._unfold_sparse"),
}
