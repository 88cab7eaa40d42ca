"""NumPy, in float64 whatever JAX's setting, for plain numbers; jax.numpy for what is traced or on a device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe


def module_of(*numbers: Any) -> Any:
    """Return the module to compute with: `jax.numpy` if any of the numbers is a JAX array, else `numpy`."""
    return jnp if any(isinstance(number, jax.Array) for number in numbers) else np


def vector(owner: str, name: str, got: Any, xp: Any = np) -> Any:
    """Return a list of real numbers as a floating vector; raise unless it is one with at least one entry."""
    found = got if isinstance(got, jax.Array) and xp is jnp else np.asarray(got)
    if found.ndim != 1 or not found.shape[0] or found.dtype.kind not in "fiu":
        raise StructureError(
            f"{owner}: {name} must be a vector of real numbers, got {describe(found)}. Give such a list."
        )
    return xp.asarray(found, found.dtype if found.dtype.kind == "f" and xp is jnp else float)


def same_length(owner: str, name: str, got: Any, other: str, like: Any) -> None:
    """Raise unless two vectors have as many entries."""
    if got.shape != like.shape:
        raise StructureError(
            f"{owner}: {name} must have one entry for each of {other}, got {describe(got)} and {describe(like)}. "
            "Give as many."
        )


def check_bounds(owner: str, L: Any, mu: Any) -> None:
    """Raise unless 0 < mu <= L, as far as they are numbers."""
    check_number(owner, "L", L, POSITIVE, used=True)
    check_number(owner, "mu", mu, POSITIVE, used=True)
    if not any(isinstance(bound, jax.core.Tracer) for bound in (L, mu)) and not np.all(np.asarray(mu) <= np.asarray(L)):
        raise InvalidArgument(f"{owner}: mu must be at most L, got mu={mu!r}, L={L!r}. Exchange them.")


def lobatto(low: Any, high: Any, points: int, xp: Any = np) -> Any:
    """Return the extrema of a Chebyshev polynomial on an interval, `[points]`, from low to high, both ends included."""
    unit = np.sin(np.linspace(-np.pi / 2, np.pi / 2, points))
    return (low + high) / 2 + (high - low) / 2 * xp.asarray(unit)
