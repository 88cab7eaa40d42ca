"""Pairs, a chunk at a time: what one chunk needs stays in cache, and what pairs keep is changed in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

CACHE = 2**20  # bytes of parameters and states that run at once on a CPU: half of what a core's L2 usually holds
FEWEST = 4  # pairs, below which products are too small to be fast
NO_LIMIT = 2**31

Run = Callable[[Any, Any], tuple[Any, Any, jax.Array]]


def in_chunks(run: Run, fixed: Any, kept: Any, total: jax.Array, pairs: int, chunk: int) -> tuple[Any, Any, jax.Array]:
    """Apply `run(fixed, kept) -> (kept, out, part)` to pairs, leaves `[pairs, ...]`, at most `chunk` at a time.

    Returns what is kept (a buffer that is donated is changed in place), the `out` of all pairs, and `total` with the sum
    of the parts.
    """
    if chunk >= pairs:
        kept, out, part = run(fixed, kept)
        return kept, out, total + part
    size = _divisor(pairs, chunk)

    def some(carry: tuple[Any, jax.Array], first: jax.Array, size: int) -> tuple[tuple[Any, jax.Array], Any]:
        kept, total = carry
        part_fixed, part_kept = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size), (fixed, kept)
        )
        changed, out, part = run(part_fixed, part_kept)
        kept = jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, first, 0), kept, changed)
        return (kept, total + part), out

    count, rest = divmod(pairs, size)
    firsts = jnp.arange(count, dtype=jnp.int32) * size
    carry, out = jax.lax.scan(lambda carry, first: some(carry, first, size), (kept, total), firsts)
    out = jax.tree.map(lambda leaf: leaf.reshape(count * size, *leaf.shape[2:]), out)
    if rest:
        carry, last = some(carry, jnp.int32(count * size), rest)
        out = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, last)
    return carry[0], out, carry[1]


def pairs_in_cache(pair: Any) -> int:
    """Return how many pairs to run at once, given the arrays of one: on a CPU what its cache holds, elsewhere all."""
    if jax.default_backend() != "cpu":
        return NO_LIMIT
    sizes = (leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pair))
    return max(FEWEST, CACHE // max(1, sum(sizes)))


def _divisor(pairs: int, chunk: int) -> int:
    """Return the size of a chunk: a divisor of `pairs` not far below `chunk`, so that none is left over, or `chunk`."""
    return next((size for size in range(chunk, chunk // 2, -1) if pairs % size == 0), chunk)
