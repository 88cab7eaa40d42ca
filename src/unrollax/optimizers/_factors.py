"""Kronecker factors of a layer's curvature: their averages, and the inverse with damping shared between them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from unrollax._inverse import damped_inverse
from unrollax._types import Scalar


class Factors(NamedTuple):
    """A and G of one layer, or their damped inverses.

    Attributes:
        inputs: A, the second moment of the features, `[n, n]`.
        outputs: G, that of what is pulled back to the pre-activations, `[m, m]`; its diagonal `[m]` where it has no more.
    """

    inputs: jax.Array
    outputs: jax.Array


def zero_factors(matrix: jax.Array, diagonal: bool) -> Factors:
    """Return the empty factors of a layer's matrix `[n, m]`."""
    n, m = matrix.shape
    return Factors(jnp.zeros((n, n), matrix.dtype), jnp.zeros((m,) if diagonal else (m, m), matrix.dtype))


def factors_of(features: jax.Array, pulled: jax.Array, batch: int, diagonal: bool = False) -> Factors:
    """Return the factors of one batch, from rows `[rows, n]` and `[rows, m]`: several rows an example for shared weights.

    A is a mean over rows and G a sum over an example's rows, so that the product is exact up to correlations.
    """
    outputs = (pulled**2).sum(axis=0) if diagonal else pulled.T @ pulled
    return Factors(features.T @ features / len(features), outputs / batch)


def averaged(old: Factors, new: Factors, keep: Scalar) -> Factors:
    """Return the moving average."""
    return Factors(*(keep.astype(a.dtype) * a + (1 - keep).astype(a.dtype) * b for a, b in zip(old, new, strict=True)))


def inverted(factors: Factors, gamma: Scalar) -> Factors:
    """Return (A + pi gamma I)^-1 and (G + gamma / pi I)^-1, pi^2 = mean diag A / mean diag G (Martens and Grosse, 6.3)."""
    means = [jnp.mean(factor if factor.ndim == 1 else jnp.diagonal(factor)) for factor in factors]
    pi = jnp.sqrt(means[0] / means[1])
    pi = jnp.where((pi > 0) & jnp.isfinite(pi), pi, 1.0).astype(pi.dtype)  # nothing comes in, or goes back
    return Factors(_inverse(factors.inputs, pi * gamma), _inverse(factors.outputs, gamma / pi))


def apply_inverse(inverse: Factors, grad: jax.Array) -> jax.Array:
    """Return A^-1 grad G^-1."""
    halfway = inverse.inputs @ grad
    return halfway * inverse.outputs[None] if inverse.outputs.ndim == 1 else halfway @ inverse.outputs


def _inverse(factor: jax.Array, more: Scalar) -> jax.Array:
    return 1 / (factor + more.astype(factor.dtype)) if factor.ndim == 1 else damped_inverse(factor, more)
