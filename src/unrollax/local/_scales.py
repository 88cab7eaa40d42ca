"""Natural and normalized targets: each unit's gradient over its mean square or its root, however small it has become."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

DECAY = 0.95  # of the averages, a batch
FLOOR = 0.1  # of the layer's mean square, added to that of a unit
LOOK = 8  # examples that say how large the numbers are
POWERS = {"gradient": 0, "natural": 2, "normalized": 1}  # of the scale, by the targets


def scale_of(slope: Any, rms: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
    """Return the scale of the units' gradients, and their root mean squares after this batch, the `t`-th.

    It is `1 / sqrt(v + v.mean() / 10)`, v the averaged square of a unit's gradient g. Normalized targets are multiplied by
    it, natural ones twice: with the loss a negative log-likelihood, v is its Fisher information for the unit's
    pre-activation. Squares are taken of ratios to numbers of like size, so that gradients far below the root of the
    smallest float still count; hence a root is returned, too, whose square would overflow there.

    Args:
        slope: g, `[batch, ..., m]`.
        rms: `[m]` root mean squares, biased to their start at 0.
        t: batches in them, this one included.
    """
    rows = slope.reshape(-1, slope.shape[-1]).astype(rms.dtype)
    quick = _root_mean_square(rows, jnp.abs(rows[:LOOK]).max())
    misled = ~jnp.isfinite(quick).all() | (quick.max() == 0)  # by examples that are not like the others
    now = jax.lax.cond(misled, lambda: _root_mean_square(rows, jnp.abs(rows).max()), lambda: quick)
    larger = _or_one(jnp.maximum(rms.max(), now.max()))
    rms = larger * jnp.sqrt(DECAY * jnp.square(rms / larger) + (1 - DECAY) * jnp.square(now / larger))
    fair = rms / jnp.sqrt(1 - DECAY ** t.astype(rms.dtype))
    unit = _or_one(fair.max())
    squares = jnp.square(fair / unit)
    scale = jax.lax.rsqrt(jnp.maximum(squares + FLOOR * squares.mean(), _tiny(rms.dtype))) / unit
    return jnp.minimum(scale, 1 / _tiny(rms.dtype)), rms  # infinity times a gradient of 0 would be NaN


def _root_mean_square(rows: jax.Array, size: jax.Array) -> jax.Array:
    """Return that of each unit, by squares of ratios to `size`."""
    unit = _or_one(size)
    return unit * jnp.sqrt(jnp.square(rows / unit).mean(axis=0))


def _tiny(kind: Any) -> float:
    return float(jnp.finfo(kind).tiny)  # type: ignore[no-untyped-call]


def _or_one(number: jax.Array) -> jax.Array:
    """Return a number to divide by; those that are not normal count as 0, as their reciprocals may be infinite."""
    return jnp.where(number >= _tiny(number.dtype), number, 1)
