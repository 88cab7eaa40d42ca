"""Products with a matrix, a linear operator in the manner of lineax (`mv`, `transpose`), or a linear function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Linear: TypeAlias = Callable[[jax.Array], jax.Array]  # such as jnp.diff


def times(a: Any, x: jax.Array) -> jax.Array:
    """Return A x."""
    product: jax.Array = a.mv(x) if hasattr(a, "mv") else a @ x
    return product


def adjoint(a: Any, v: jax.Array) -> jax.Array:
    """Return A^H v, the conjugate transpose's product."""
    product: jax.Array = jnp.conj(times(a.transpose() if hasattr(a, "mv") else a.T, jnp.conj(v)))
    return product


def parts(w: jax.Array) -> jax.Array:
    """Return a matrix as real numbers: as it is, or its real and imaginary parts, `[2, ...]`, as params are real."""
    return jnp.stack([w.real, w.imag]) if jnp.iscomplexobj(w) else w


def whole(w: jax.Array) -> jax.Array:
    """Return the matrix `[m, n]` of what `parts` gave, or of a matrix."""
    return jax.lax.complex(w[0], w[1]) if w.ndim == 3 else w


def apply(k: Linear | None, x: jax.Array) -> jax.Array:
    """Return K x for a linear function K, x for none."""
    return x if k is None else k(x)


def apply_adjoint(k: Linear | None, v: jax.Array, x: jax.Array) -> jax.Array:
    """Return K^H v for a linear function K of what has the shape and dtype of x, v for none."""
    if k is None:
        return v
    (product,) = jax.linear_transpose(k, x)(jnp.conj(v))
    return jnp.conj(product)


def matrix_of(k: Linear, x: jax.Array) -> jax.Array:
    """Return the matrix of a linear function of a vector that has the shape and dtype of x."""
    return jax.vmap(k, in_axes=1, out_axes=1)(jnp.eye(x.shape[0], dtype=x.dtype))
