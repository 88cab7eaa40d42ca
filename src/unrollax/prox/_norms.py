"""Proximal operators of Euclidean norms and of the nuclear norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._errors import StructureError
from unrollax._tree import describe
from unrollax.prox._shrink import shrink


def group(v: jax.Array, scale: jax.Array | float, *, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Block soft thresholding, the proximal operator of g(x) = the sum of the groups' Euclidean norms.

    x_G = v_G max(1 - scale / |v_G|, 0): a group shrinks as one, or is 0 as one.

    Args:
        v: real or complex numbers, `[..., group]` with the default axis.
        scale: how far the norm of a group shrinks, at least 0.
        axis: the axis, or axes, along which the members of a group lie.

    Example:
        >>> group(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 2.5)
        Array([[1.5, 2. ],
               [0. , 0. ]], dtype=float32)

    References: Yuan and Lin, Journal of the Royal Statistical Society B 2006.
    """
    return shrink(v, scale, (axis,) if isinstance(axis, int) else axis)


def l2(v: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Shrink the whole as one: the proximal operator of g(x) = |x|_2, not squared; all of v is one group.

    Args:
        v: real or complex numbers of any shape.
        scale: how far the norm shrinks, at least 0.

    Example:
        >>> l2(jnp.array([3.0, 4.0]), 2.5)
        Array([1.5, 2. ], dtype=float32)

    References: Parikh and Boyd, Foundations and Trends in Optimization 2014, section 6.5.
    """
    return shrink(v, scale, tuple(range(jnp.ndim(v))))


def nuclear(v: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Soft thresholding of singular values, the proximal operator of g(x) = the sum of the singular values.

    x = U max(S - scale, 0) V^H with v = U S V^H. Its derivative is written out in divided differences, so that it is finite
    where singular values are equal or 0, where that of the decomposition itself is not.

    Cost: one singular value decomposition.

    Args:
        v: real or complex matrices `[..., m, n]`.
        scale: how far singular values shrink, one number of at least 0.

    Raises:
        StructureError: v has fewer than two axes.

    Example:
        >>> nuclear(jnp.diag(jnp.array([3.0, 1.0, 1.0])), 1.0).round(4)
        Array([[2., 0., 0.],
               [0., 0., 0.],
               [0., 0., 0.]], dtype=float32)

    References: Cai, Candès and Shen, SIAM Journal on Optimization 2010; Candès, Sing-Long and Trzasko, IEEE Transactions on
    Signal Processing 2013 (its derivative).
    """
    if jnp.ndim(v) < 2:
        raise StructureError(f"nuclear: v must be a matrix [..., m, n], got {describe(v)}. Reshape it.")
    return _nuclear(v, jnp.asarray(scale, jnp.abs(v).dtype))


@jax.custom_jvp
def _nuclear(v: jax.Array, scale: jax.Array) -> jax.Array:
    left, values, right = jnp.linalg.svd(v, full_matrices=False)
    return (left * jnp.maximum(values - scale, 0)[..., None, :]) @ right


@_nuclear.defjvp
def _nuclear_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (v, scale), (moved, by) = primals, tangents
    left, values, right = jnp.linalg.svd(v, full_matrices=False)
    ratio, same, mixed = _differences(values, scale)
    inner = left.mT.conj() @ moved @ right.mT.conj()
    turned = inner.mT.conj()
    core = same * (inner + turned) / 2 + mixed * (inner - turned) / 2
    # What of the tangent leaves the two ranges; without a remainder these are rounding errors.
    above = (moved @ right.mT.conj() - left @ inner) * ratio[..., None, :]
    beside = ratio[..., :, None] * (left.mT.conj() @ moved - inner @ right)
    kept = (values > scale).astype(values.dtype)
    tangent = left @ core @ right + above @ right + left @ beside - (left * (by * kept)[..., None, :]) @ right
    return (left * (ratio * values)[..., None, :]) @ right, tangent


def _differences(values: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return f(s) / s, (f(s) - f(t)) / (s - t) and (f(s) + f(t)) / (s + t) of f(s) = max(s - scale, 0), without 0 / 0."""
    kept = jnp.maximum(values - scale, 0)
    one, other = values[..., :, None], values[..., None, :]
    up, down = jnp.maximum(one, other), jnp.minimum(one, other)
    straddles = (up > scale) & (down < scale)
    same = jnp.where(straddles, (up - scale) / jnp.where(straddles, up - down, 1), (down >= scale).astype(values.dtype))
    total = one + other
    slope = (scale <= 0).astype(values.dtype)  # at 0
    mixed = jnp.where(total > 0, (kept[..., :, None] + kept[..., None, :]) / jnp.where(total > 0, total, 1), slope)
    return jnp.where(values > 0, kept / jnp.where(values > 0, values, 1), slope), same, mixed
