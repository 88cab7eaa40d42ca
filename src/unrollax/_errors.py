"""Every error that unrollax raises, and the words they share.

Exception
└─ UnrollaxError
   ├─ InvalidArgument (ValueError)   a field or an argument that can't be used: raised at construction
   ├─ StructureError (TypeError)     a pytree, shape or dtype that doesn't fit: raised while tracing
   └─ Diverged (ArithmeticError)     parameters became non-finite: raised by `fit`, between two blocks

A message reads *Owner: expected, got. What to do.* Nothing is raised inside a compiled program.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnrollaxError(Exception):
    """Base of every error that unrollax raises."""


class InvalidArgument(UnrollaxError, ValueError):
    """A field or an argument that can't be used."""


class StructureError(UnrollaxError, TypeError):
    """A pytree whose structure, shape or dtype doesn't fit."""


class Diverged(UnrollaxError, ArithmeticError):
    """Training made a parameter non-finite.

    Attributes:
        step: the update after which a parameter was first non-finite (the first update is 1).
        nonfinite: share of the estimator's particles whose loss was non-finite then, or `None` if it doesn't say.
    """

    def __init__(self, message: str, *, step: int, nonfinite: float | None) -> None:
        super().__init__(message)
        self.step = step
        self.nonfinite = nonfinite


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a sentence that names the choices nearest to `name`, or all of them when none is near.

    Example:
        >>> nearest("pse", ["bptt", "es", "pes"])
        'Did you mean pes?'
    """
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"Did you mean {', '.join(near)}?" if near else f"The choices are {', '.join(names)}."


def nearest_multiple(number: int, of: int) -> int:
    """Return the positive multiple of `of` that is nearest to `number`, the smaller of two.

    Example:
        >>> nearest_multiple(110, 20)
        100
    """
    below = number - number % of
    return max(of, below if 2 * (number - below) <= of else below + of)
