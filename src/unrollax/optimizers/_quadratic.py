"""A quadratic model in two directions, and its minimum."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Matrices = list[jax.Array]  # one [n, m] for each trained layer


class Quadratic(NamedTuple):
    """M(w) = 1/2 w^T Q w + b^T w, for multiples w `[2]` of two directions.

    Attributes:
        curvature: Q, `[2, 2]`.
        slope: b, `[2]`.
    """

    curvature: jax.Array
    slope: jax.Array

    def at(self, weights: jax.Array) -> jax.Array:
        """Return M(w)."""
        return 0.5 * weights @ self.curvature @ weights + self.slope @ weights


def minimum(model: Quadratic, fixed: tuple[Any, Any]) -> jax.Array:
    """Return the w `[2]` that minimises M, where some of its numbers may be fixed.

    Example:
        >>> minimum(Quadratic(jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.array([-2.0, -2.0])), (None, None))
        Array([1. , 0.5], dtype=float32)
    """
    (a, c), (_, d) = model.curvature
    p, q = model.slope
    kind = model.slope.dtype
    if fixed[0] is not None and fixed[1] is not None:
        return jnp.array([fixed[0], fixed[1]], kind)
    if fixed[0] is not None:
        return jnp.array([fixed[0], _divided(-q - c * fixed[0], d)], kind)
    if fixed[1] is not None:
        return jnp.array([_divided(-p - c * fixed[1], a), fixed[1]], kind)
    share = _divided(c, a)  # take the first out of the second
    rest = d - share * c
    second = jnp.where(rest > 1e-6 * d, _divided(-q + share * p, rest), 0.0)  # parallel: the first does it all
    return jnp.stack([_divided(-p - c * second, a), second])


def _divided(top: Any, bottom: Any) -> jax.Array:
    """Divide, and return 0 where there is no curvature: the direction is 0 then."""
    return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1.0), 0.0)


def dot(a: Matrices, b: Matrices) -> jax.Array:
    """Return the inner product of two lists of matrices."""
    return jnp.stack([jnp.vdot(x, y) for x, y in zip(a, b, strict=True)]).sum()
