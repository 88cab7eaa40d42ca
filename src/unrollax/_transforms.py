"""Between what is trained and the number that it stands for: the range of a schedule's numbers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument

Transform: TypeAlias = Literal["log", "softplus"] | tuple[float, float] | None


class Range(NamedTuple):
    """The numbers that a transform can stand for, in words and by their ends."""

    says: str
    low: float
    high: float


def as_transform(owner: str, transform: Any) -> Transform:
    """Return a transform in a form that can be hashed; raise if it is none."""
    if transform is None or isinstance(transform, str):
        known: dict[str | None, Transform] = {None: None, "log": "log", "softplus": "softplus"}
        if transform in known:
            return known[transform]
    if isinstance(transform, (tuple, list)) and len(transform) == 2 and all(map(_is_number, transform)):
        low, high = map(float, transform)
        if low < high and np.isfinite([low, high]).all():
            return low, high
    raise InvalidArgument(
        f"{owner}: transform must be None, 'log', 'softplus' or an interval (low, high) with low < high, got "
        f"transform={transform!r}. Take 'log' for step sizes, None for numbers of any sign."
    )


def _is_number(end: Any) -> bool:
    return isinstance(end, (int, float, np.number)) and not isinstance(end, bool)


def range_of(transform: Transform) -> Range:
    """Return the numbers that a transform can stand for: those strictly between the ends."""
    if transform is None:
        return Range("finite numbers", -np.inf, np.inf)
    if isinstance(transform, str):
        return Range("positive finite numbers", 0.0, np.inf)
    return Range(f"numbers strictly between {transform[0]:g} and {transform[1]:g}", *transform)


def to_raw(number: jax.Array, transform: Transform) -> jax.Array:
    """Return the raw numbers that stand for `number`: the inverse of `from_raw`."""
    if transform is None:
        return number
    if transform == "log":
        return jnp.log(number)
    if transform == "softplus":
        return number + jnp.log(-jnp.expm1(-number))  # log(e^n - 1) without overflow
    low, high = transform
    return jnp.log((number - low) / (high - number))


def from_raw(raw: jax.Array, transform: Transform) -> jax.Array:
    """Return the numbers: raw, exp(raw), log(1 + exp(raw)) or low + (high - low) / (1 + exp(-raw))."""
    if transform is None:
        return raw
    if transform == "log":
        return jnp.exp(raw)
    if transform == "softplus":
        return jax.nn.softplus(raw)
    low, high = transform
    return low + (high - low) * jax.nn.sigmoid(raw)
