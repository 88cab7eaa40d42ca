"""Shrinking by magnitude, which soft thresholding and the Euclidean norms share."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def shrink(v: jax.Array, scale: jax.Array | float, axis: tuple[int, ...]) -> jax.Array:
    """Return `v max(1 - scale / size, 0)`, with the Euclidean norm along some axes, or none, as size.

    Its derivative is written in what stays bounded, the direction v / size and scale / size, so that it is finite and precise
    where squares or inverses of a size are not, and where the size is 0.
    """
    size = _size(v, axis)
    return _shrink(v, jnp.asarray(scale, jnp.result_type(scale, size)), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shrink(v: jax.Array, scale: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    return v * _share(_size(v, axis), scale)


@_shrink.defjvp
def _shrink_jvp(
    axis: tuple[int, ...], primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    (v, scale), (moved, by) = primals, tangents
    size = _size(v, axis)
    share, direction = _share(size, scale), v / jnp.where(size > 0, size, 1)
    along = (
        jnp.sum((direction.conj() * moved).real, axis=axis, keepdims=True) if axis else (direction.conj() * moved).real
    )
    tangent = share * moved + direction * ((1 - share) * along - by)
    return v * share, jnp.where(size >= scale, tangent, 0)


def _share(size: jax.Array, scale: jax.Array) -> jax.Array:
    """Return what is left of one: (size - scale) / size, which is precise near the threshold too."""
    some = size > 0
    return jnp.where(some, jnp.maximum(size - scale, 0) / jnp.where(some, size, 1), scale <= 0)


def _size(v: jax.Array, axis: tuple[int, ...]) -> jax.Array:
    """Return the norm along axes that stay, scaled so that no square over- or underflows."""
    size = jnp.abs(v)
    if not axis:
        return size
    largest = jnp.max(size, axis=axis, keepdims=True, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(jnp.sum((size / unit) ** 2, axis=axis, keepdims=True))
