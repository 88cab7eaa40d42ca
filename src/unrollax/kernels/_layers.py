"""What the kernels share around the engine: layouts, dtypes, masks, checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unrollax._errors import StructureError
from unrollax._tree import describe, where
from unrollax.kernels._sequence import LONGEST, PIECE_BYTES, SHORTEST, Carry, Layer, Weights, recur, wide


def apply(
    owner: str,
    layer: Layer,
    params: Weights,
    x: Any,
    state: Sequence[Any],
    mask: Any,
    *,
    batch_major: bool,
) -> tuple[Carry, jax.Array]:
    """Run a layer over sequences in any layout; return the last state and the outputs.

    `state` has leaves that broadcast to `[*batch, H]`, their dtype is kept.
    """
    x, mask = sequences(owner, params["wx"].shape[0], x, mask, batch_major=batch_major)
    steps, *batch, size = x.shape
    dtype = jnp.result_type(x, *params.values(), *state)
    carry = tuple(broadcast(owner, leaf, batch).astype(dtype) for leaf in state)
    hidden = carry[0].shape[-1]
    flat = tuple(leaf.reshape(-1, hidden) for leaf in carry)
    if steps and flat[0].size:
        weights = {name: leaf.astype(dtype) for name, leaf in params.items()}
        rows = x.astype(dtype).reshape(steps, -1, size)
        on = None if mask is None else mask.reshape(steps, -1)
        after, outputs = recur(layer, _piece(layer, weights, rows, flat), weights, rows, flat, on)
    else:
        after, outputs = flat, jnp.zeros((steps, flat[0].shape[0], hidden), dtype)
    outputs = outputs.reshape(steps, *batch, hidden)
    last = tuple(
        leaf.reshape(*batch, hidden).astype(jnp.result_type(was)) for leaf, was in zip(after, state, strict=True)
    )
    return last, jnp.moveaxis(outputs, 0, -2) if batch_major else outputs


def sequences(owner: str, size: int, x: Any, mask: Any, *, batch_major: bool) -> tuple[jax.Array, jax.Array | None]:
    """Return x time-major and with zeros where the mask is false, and the mask as booleans."""
    x = jnp.asarray(x)
    layout = "[*batch, T, " if batch_major else "[T, *batch, "
    if x.ndim < 2 or x.shape[-1] != size:
        raise StructureError(f"{owner}: x must be {layout}{size}], as wx has {size} rows, got {describe(x)}.")
    if mask is None:
        return jnp.moveaxis(x, -2, 0) if batch_major else x, None
    mask = jnp.asarray(mask).astype(bool)
    if mask.shape != x.shape[:-1]:
        raise StructureError(
            f"{owner}: mask must be {layout[:-2]}] like x, {list(x.shape[:-1])}, got {list(mask.shape)}. "
            "Give one boolean for each step of each sequence."
        )
    if batch_major:
        x, mask = jnp.moveaxis(x, -2, 0), jnp.moveaxis(mask, -1, 0)
    return where(mask, x, jnp.zeros_like(x)), mask


def broadcast(owner: str, leaf: Any, batch: Sequence[int]) -> jax.Array:
    """Return a state for every sequence, `[*batch, H]`."""
    leaf = jnp.asarray(leaf)
    wanted = (*batch, leaf.shape[-1])
    if leaf.shape not in (wanted, leaf.shape[-1:]):
        raise StructureError(
            f"{owner}: state must be {list(wanted)}, one for each sequence, or {list(leaf.shape[-1:])}, the same for all, "
            f"got {describe(leaf)}."
        )
    return jnp.broadcast_to(leaf.reshape((1,) * (len(wanted) - leaf.ndim) + leaf.shape), wanted)


def _piece(layer: Layer, params: Weights, x: jax.Array, carry: Carry) -> int:
    """Return the steps of a piece: as many as keep their coefficients in cache."""

    def kept(params: Weights, row: jax.Array, carry: Carry) -> Any:
        weights = layer.prepare(params)
        return layer.forward(weights, carry, layer.project(weights, row))[1]

    wider = [jax.ShapeDtypeStruct(leaf.shape, wide(leaf.dtype)) for leaf in carry]
    shapes = jax.tree.leaves(jax.eval_shape(kept, params, jax.eval_shape(lambda x: x[0], x), tuple(wider)))
    outputs = carry[0].size
    bytes_of_step = (outputs + sum(leaf.size for leaf in shapes)) * x.dtype.itemsize
    steps = x.shape[0]
    most = min(max(PIECE_BYTES // bytes_of_step, SHORTEST), LONGEST, steps)
    divisors = [length for length in range(most // 2, most + 1) if length and steps % length == 0]
    return max(divisors, default=most)  # without a rest, which would be copied
