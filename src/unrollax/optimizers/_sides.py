"""The two sides of a matrix, cut into blocks: their Gram matrices, and products with one factor a block.

A parameter of three axes or more counts as a matrix `[all but the last, last]`; one of fewer as a column that has no
factors. A side of `length` is cut into `blocks` of `size` rows; the last is filled up with zeros. A factor is
`[blocks, size, size]`: a block-diagonal matrix without its zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Side(NamedTuple):
    """Blocks of one side."""

    blocks: int
    size: int


def kind(leaf: Any) -> Any:
    """Return the dtype to reckon in: that of the leaf, but at least float32."""
    return jnp.promote_types(jnp.float32, jnp.result_type(leaf))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the matrix that a parameter counts as."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)


def cut(length: int, block: int, longest: int) -> Side:
    """Cut a side into as few equal blocks as keep to `block`; one longer than `longest` into single entries."""
    if length > longest:
        return Side(length, 1)
    blocks = -(-length // block)
    return Side(blocks, -(-length // blocks))


def to_blocks(x: jax.Array, side: Side) -> jax.Array:
    """Cut the rows of `[m, n]` into `[blocks, size, n]`, filled up with zeros."""
    missing = side.blocks * side.size - x.shape[0]
    return jnp.pad(x, ((0, missing), (0, 0))).reshape(side.blocks, side.size, x.shape[1])


def gram(x: jax.Array, side: Side) -> jax.Array:
    """Return the diagonal blocks of x x^T: `[blocks, size, size]`."""
    if side.size == 1:
        return (x * x).sum(1)[:, None, None]
    rows = to_blocks(x, side)
    return rows @ rows.mT


def multiply(factor: jax.Array | None, x: jax.Array) -> jax.Array:
    """Return factor x, `[blocks * size, n]`, of a matrix `[m, n]` that is filled up with zeros; x itself without one."""
    if factor is None:
        return x
    if factor.shape[-1] == 1:
        return factor[:, 0] * x
    product = factor @ to_blocks(x, Side(*factor.shape[:2]))
    return product.reshape(-1, x.shape[1])


def multiply_both(factors: tuple[Any, Any], x: jax.Array) -> jax.Array:
    """Return left x right^T, filled up with zeros."""
    left, right = factors
    return multiply(left, x) if right is None else multiply(right, multiply(left, x).T).T


def in_turn(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Return `jax.tree.map(function, tree, *rest)`, one leaf after the other.

    Under jaxlib 0.10.2 decompositions on a CPU that run at the same time wait for ever: each holds a thread of XLA's pool
    while it waits for another thread to do its blocks. They also fight for the threads of LAPACK.
    """
    leaves = jax.tree.leaves(tree)
    treedef: Any = jax.tree.structure(tree)
    done: list[Any] = []
    for leaf, *others in zip(leaves, *map(treedef.flatten_up_to, rest), strict=True):
        done.append(function(_after(done[-1], leaf) if done else leaf, *others))
    return jax.tree.unflatten(treedef, done)


def _after(before: Any, leaf: jax.Array) -> jax.Array:
    """Return `leaf`, once `before` is there.

    XLA drops `optimization_barrier` on a CPU before it puts work in order, so it is told of a dependence that it can't see
    through: no number is both NaN and infinite.
    """
    number = jnp.ravel(jax.tree.leaves(before)[0])[0]
    return jnp.where(jnp.isnan(number) & jnp.isinf(number), jnp.zeros_like(leaf), leaf)


def moving(old: jax.Array, new: jax.Array, decay: float | None) -> jax.Array:
    """Return the moving average of old and new, or their sum without a decay."""
    return old + new if decay is None else decay * old + (1 - decay) * new
