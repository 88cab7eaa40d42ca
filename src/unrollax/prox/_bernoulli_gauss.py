"""The best estimate of sparse Gaussian numbers in Gaussian noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def bernoulli_gauss(
    v: jax.Array, scale: jax.Array | float, *, rate: jax.Array | float = 0.1, variance: jax.Array | float = 1.0
) -> jax.Array:
    """Posterior mean of x given v = x + noise, for x that is 0 but for a share `rate`, and there Gaussian.

    x = q v variance / (variance + scale), q the probability that x is not 0 given v:
    logit q = logit rate + b log(scale / (variance + scale)) + b |v|^2 (1 / scale - 1 / (variance + scale)),
    b = 1/2 for real numbers and 1 for complex ones. All is reckoned in logarithms, so that values and derivatives are finite
    for any v and any scale, where the quotient of densities is 0 / 0 for large v or small scale.

    A proximal operator is the most probable x for noise of variance scale and a prior of density exp(-g); this is the mean
    instead, which has the least squared error. It has a slope above 1, and so isn't the proximal operator of a convex g.

    Args:
        v: real or complex numbers of any shape.
        scale: variance of the noise, at least 0 (for complex numbers, E|noise|^2).
        rate: share of the numbers that are not 0, in (0, 1).
        variance: of those that are not 0.

    Example:
        >>> (100 * bernoulli_gauss(jnp.array([0.1, 0.4, 3.0]), 0.01)).round()
        Array([  0.,  38., 297.], dtype=float32)

    References: Ito, Takabe and Wadayama, IEEE Transactions on Signal Processing 2019 (TISTA, equation 11).
    """
    size = jnp.abs(v)
    fine = float(jnp.finfo(size.dtype).eps)  # type: ignore[no-untyped-call]
    noise = jnp.maximum(scale, fine**1.5 * variance)  # so that even the squares of its inverse stay finite
    both = noise + variance
    share = variance / both
    # 1 / noise - 1 / both = share / noise, without the difference.
    logit = jnp.log(rate) - jnp.log1p(-rate) + _half(v) * (jnp.log(noise / both) + size**2 * share / noise)
    return v * share * jax.nn.sigmoid(logit)


def _half(v: jax.Array) -> float:
    """Return what a real Gaussian density's exponent is divided by in comparison with a complex one's."""
    return 1.0 if jnp.iscomplexobj(v) else 0.5
