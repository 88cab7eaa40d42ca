"""A linear layer's problem as matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax.local._problem import Problem


class Rows(NamedTuple):
    """A linear layer's problem as matrices: features X `[rows, n]`, and X^T move and X^T slope over the batch, `[n, m]`."""

    features: jax.Array
    towards: jax.Array
    gradient: jax.Array
    batch: int


def gained(moves: list[jax.Array], seen: list[Rows]) -> jax.Array:
    """Return the decrease of the loss that the gradient foretells for moves of all layers."""
    return jnp.stack([(u * rows.gradient).sum() for u, rows in zip(moves, seen, strict=True)]).sum()


def tiny(like: jax.Array) -> float:
    """Return the smallest normal number of a dtype."""
    return float(jnp.finfo(like.dtype).tiny)  # type: ignore[no-untyped-call]


def wide(kind: Any) -> Any:
    """Return a dtype, but at least float32."""
    return jnp.promote_types(kind, jnp.float32)


def matrices_of(problem: Problem) -> Rows:
    """Return the problem as matrices; the units' scales are put on the product with their slopes, not on all rows of them."""
    features, slope = problem.layer.features(problem.inputs), problem.slope
    x, batch = features.astype(wide(features.dtype)), len(slope)
    gradient = x.T @ slope.reshape(-1, slope.shape[-1]).astype(x.dtype) / batch
    towards = gradient
    for scale in problem.scales:
        towards = towards * scale[None].astype(x.dtype)
    return Rows(x, towards, gradient, batch)
