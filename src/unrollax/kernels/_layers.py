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

    `params` are those that `check_weights` has seen. `state` has leaves that broadcast to `[*batch, H]`, their dtype is kept.
    """
    x, mask = sequences(owner, params["wx"].shape[0], x, mask, batch_major=batch_major)
    steps, *batch, size = x.shape
    hidden = params["b"].shape[0] // layer.gates
    state = [check_floating(owner, leaf) for leaf in state]
    dtype = jnp.result_type(x, *params.values(), *state)
    carry = tuple(broadcast(owner, leaf, batch, hidden).astype(dtype) for leaf in state)
    flat = tuple(leaf.reshape(-1, hidden) for leaf in carry)
    if steps and flat[0].size:
        weights = {name: leaf.astype(dtype) for name, leaf in params.items()}
        rows = x.astype(dtype).reshape(steps, -1, size)
        on = None if mask is None else mask.reshape(steps, -1)
        after, outputs = recur(layer, _piece(layer, weights, rows, flat), weights, rows, flat, on)
    else:
        after, outputs = flat, jnp.zeros((steps, flat[0].shape[0], hidden), dtype)
    outputs = outputs.reshape(steps, *batch, hidden)
    last = tuple(leaf.reshape(*batch, hidden).astype(was.dtype) for leaf, was in zip(after, state, strict=True))
    return last, jnp.moveaxis(outputs, 0, -2) if batch_major else outputs


def check_weights(owner: str, params: Weights, shapes: dict[str, tuple[Any, ...]], sizes: dict[str, int]) -> None:
    """Raise unless params have the names and shapes: a wx of another width would broadcast where a size is 1."""
    got = {name: jnp.shape(leaf) for name, leaf in params.items()}
    if got != {name: tuple(_times(axis, sizes) for axis in shape) for name, shape in shapes.items()}:
        wanted = ", ".join(f"{name} [{', '.join(shape)}]" for name, shape in shapes.items())
        raise StructureError(
            f"{owner}: params must have the shapes {wanted}, got "
            f"{', '.join(f'{name} {list(shape)}' for name, shape in got.items())}. Draw them with the cell's params(key)."
        )


def _times(axis: str, sizes: dict[str, int]) -> int:
    """Return the length that `"H"` or `"4H"` stands for."""
    return int(axis[:-1] or 1) * sizes[axis[-1]]


def check_gates(owner: str, params: Weights, gates: int, *, more: tuple[str, ...] = ("wh",)) -> int:
    """Raise unless params are those of a layer of so many gates; return H."""
    wide = f"{gates}H" if gates > 1 else "H"
    known = {"wx": ("D", wide), "wh": ("H", wide), "b": (wide,), "bn": ("H",)}
    shapes = {name: shape for name, shape in known.items() if name in ("wx", "b", *more)}
    rows, width = (next(iter(jnp.shape(params.get(name, 0))), 0) for name in ("wx", "b"))
    check_weights(owner, params, shapes, {"D": rows, "H": width // gates})
    return width // gates


def check_pair(owner: str, names: str, state: Any) -> tuple[Any, Any]:
    """Return the two parts of a state."""
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise StructureError(
            f"{owner}: state must be the pair {names}, got "
            f"{len(state) if isinstance(state, (tuple, list)) else describe(state)}"
            f"{' parts' if isinstance(state, (tuple, list)) else ''}. Pass both, or None for zeros."
        )
    return state[0], state[1]


def check_floating(owner: str, leaf: Any) -> jax.Array:
    """Return a part of a state as an array; raise unless it is real floating: whole numbers would cut what comes after."""
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError):  # no numbers
        array = None
    if array is None or not jnp.issubdtype(array.dtype, jnp.floating):
        raise StructureError(
            f"{owner}: state must be real floating numbers, got {describe(leaf if array is None else array)}. "
            "Convert it by .astype(float), or pass None for zeros."
        )
    return array


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


def broadcast(owner: str, leaf: Any, batch: Sequence[int], hidden: int) -> jax.Array:
    """Return a state for every sequence, `[*batch, H]`."""
    leaf = check_floating(owner, leaf)
    wanted = (*batch, hidden)
    if leaf.shape not in (wanted, (hidden,)):
        raise StructureError(
            f"{owner}: state must be {list(wanted)}, one for each sequence, or {[hidden]}, the same for all, "
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
