"""Proximal operators that act on each entry by itself, or keep the largest."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax.prox._shrink import shrink


def soft(v: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Soft thresholding, the proximal operator of g(x) = sum_i |x_i|.

    x_i = v_i max(1 - scale / |v_i|, 0): the magnitude shrinks by scale, the sign or phase stays.

    Args:
        v: real or complex numbers of any shape.
        scale: how far magnitudes shrink, at least 0; one number, or of a shape that broadcasts to that of v.

    Example:
        >>> soft(jnp.array([-3.0, 0.5, 2.0]), 1.0)
        Array([-2.,  0.,  1.], dtype=float32)
        >>> soft(jnp.array([3.0 + 4.0j]), 2.5)
        Array([1.5+2.j], dtype=complex64)

    References: Donoho, IEEE Transactions on Information Theory 1995.
    """
    return shrink(v, scale, ())


def hard(v: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Hard thresholding, a proximal operator of g(x) = the number of entries that are not 0.

    x_i = v_i where |v_i|^2 > 2 scale, and 0 elsewhere. g is not convex: on the border 0 and v_i both are minimisers. The
    derivative with respect to scale is 0, so that it can't be trained by gradients.

    Args:
        v: real or complex numbers of any shape.
        scale: half the square of the threshold, at least 0.

    Example:
        >>> hard(jnp.array([-3.0, 0.5, 2.0]), 1.0)
        Array([-3.,  0.,  2.], dtype=float32)

    References: Blumensath and Davies, Journal of Fourier Analysis and Applications 2008.
    """
    size = jnp.abs(v)
    return jnp.where(size > jnp.sqrt(2 * jax.lax.stop_gradient(scale)), v, 0)


def elastic_net(v: jax.Array, scale: jax.Array | float, *, ridge: jax.Array | float = 1.0) -> jax.Array:
    """Shrink and scale: the proximal operator of g(x) = sum_i |x_i| + ridge |x_i|^2 / 2.

    x = soft(v, scale) / (1 + scale ridge).

    Args:
        v: real or complex numbers of any shape.
        scale: how far magnitudes shrink, at least 0.
        ridge: the weight of the squares, at least 0; 0 is `soft`.

    Example:
        >>> elastic_net(jnp.array([-3.0, 0.5, 2.0]), 1.0)
        Array([-1. ,  0. ,  0.5], dtype=float32)

    References: Zou and Hastie, Journal of the Royal Statistical Society B 2005.
    """
    return soft(v, scale) / (1 + scale * ridge)


def squared_l2(v: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Scale towards 0: the proximal operator of g(x) = sum_i |x_i|^2 / 2, the ridge penalty; x = v / (1 + scale).

    Args:
        v: real or complex numbers of any shape.
        scale: the weight of the squares, at least 0.

    Example:
        >>> squared_l2(jnp.array([-3.0, 2.0]), 1.0)
        Array([-1.5,  1. ], dtype=float32)

    References: Parikh and Boyd, Foundations and Trends in Optimization 2014, section 6.1.
    """
    return v / (1 + scale)


def huber(v: jax.Array, scale: jax.Array | float, *, delta: jax.Array | float = 1.0) -> jax.Array:
    """Scale what is small and shift what is large: the proximal operator of Huber's function.

    g(x) = sum_i |x_i|^2 / 2 where |x_i| <= delta, and delta |x_i| - delta^2 / 2 beyond.
    x_i = v_i / (1 + scale) where |v_i| <= delta (1 + scale), and v_i - scale delta v_i / |v_i| beyond.

    Args:
        v: real or complex numbers of any shape.
        scale: the weight of g, at least 0.
        delta: where the square becomes a line, positive.

    Example:
        >>> huber(jnp.array([-3.0, 0.5, 2.0]), 1.0)
        Array([-2.  ,  0.25,  1.  ], dtype=float32)

    References: Huber, Annals of Mathematical Statistics 1964; Beck, First-Order Methods in Optimization 2017, chapter 6.
    """
    most = jnp.maximum(1 + scale, jnp.abs(v) / delta)
    return v * ((most - scale) / most)


def top_k(v: jax.Array, scale: jax.Array | float = 1.0, *, k: int) -> jax.Array:
    """Keep the k entries of largest magnitude along the last axis, and put 0 in the places of the others.

    It is a nearest point with at most k entries that are not 0, whatever the scale, which is there so that it may stand where
    a proximal operator does. Of equal magnitudes the first are kept. The kept entries have derivative 1.

    Args:
        v: real or complex numbers `[..., n]`.
        scale: not used.
        k: how many are kept, from 1 to n.

    Raises:
        InvalidArgument: k is no whole number from 1 to n.

    Example:
        >>> top_k(jnp.array([-3.0, 0.5, 2.0, 1.0]), k=2)
        Array([-3.,  0.,  2.,  0.], dtype=float32)

    References: Blumensath and Davies, Applied and Computational Harmonic Analysis 2009.
    """
    check_counts("top_k", k=k)
    if jnp.ndim(v) == 0 or k > v.shape[-1]:
        raise InvalidArgument(
            f"top_k: k must be at most the length of v's last axis, got k={k}, v {list(v.shape)}. Lower k."
        )
    places = jax.lax.top_k(jnp.abs(v), k)[1]
    kept = jnp.put_along_axis(jnp.zeros(v.shape, bool), places, True, axis=-1, inplace=False)
    return jnp.where(kept, v, 0)
