"""Natural targets: each unit's gradient divided by its mean square, however small it has become."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

DECAY = 0.95  # of the averages, a batch
FLOOR = 0.1  # of the layer's mean square, added to that of a unit


def natural(slope: Any, rms: jax.Array, t: Any) -> tuple[Any, jax.Array]:
    """Return a layer's move and the units' root mean squares after this batch, the one that makes it `t`.

    move = g / (v + v.mean() / 10), v the averaged square of the unit's g. With the loss a negative log-likelihood v is the
    unit's Fisher information for its pre-activation. Squares are taken of ratios, so that what is representable as g is as v.

    Args:
        slope: g, `[batch, ..., m]`.
        rms: `[m]` root mean squares, biased to their start at 0.
        t: batches in them, this one included.
    """
    rows = slope.reshape(-1, slope.shape[-1]).astype(rms.dtype)
    top = _or_one(jnp.abs(rows).max(axis=0))
    now = top * jnp.sqrt(jnp.square(rows / top[None]).mean(axis=0))
    larger = _or_one(jnp.maximum(rms, now))
    rms = larger * jnp.sqrt(DECAY * jnp.square(rms / larger) + (1 - DECAY) * jnp.square(now / larger))
    fair = rms / jnp.sqrt(1 - DECAY ** t.astype(rms.dtype))
    unit = _or_one(fair.max())
    squares = jnp.square(fair / unit)
    scale = 1 / jnp.maximum(squares + FLOOR * squares.mean(), _tiny(rms.dtype))
    move = (rows / unit) * (scale / unit)[None]
    return move.reshape(slope.shape).astype(slope.dtype), rms


def _tiny(kind: Any) -> float:
    return float(jnp.finfo(kind).tiny)  # type: ignore[no-untyped-call]


def _or_one(number: jax.Array) -> jax.Array:
    return jnp.where(number > 0, number, 1)
