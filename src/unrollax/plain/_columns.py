"""The whole numbers by which `gather` and `scatter` find their places, one array for each axis that they choose on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unrollax.plain._program import Op, Value


def with_columns(name: str, params: dict[str, Any], ins: list[Value]) -> tuple[str, dict[str, Any], list[Value]]:
    """Return a gather or scatter whose inputs are its operand, its updates if any, and one index an axis, if it can be."""
    operand, indices, *updates = ins
    found = _columns(indices)
    if found is None:
        return name, params, [operand, *updates, indices]
    dims = params["dimension_numbers"]
    axes = dims.start_index_map if name == "gather" else dims.scatter_dims_to_operand_dims
    promised = "FILL" not in str(params["mode"]) and "CLIP" not in str(params["mode"])
    if promised or all(_from_below(value, operand.shape[axis]) for value, axis in zip(found, axes, strict=True)):
        found = [_as_in_python(value, operand.shape[axis]) for value, axis in zip(found, axes, strict=True)]
    return name, {**params, "columns": True}, [operand, *updates, *found]


def _columns(indices: Value) -> list[Value] | None:
    maker, count = indices.maker, indices.shape[-1]
    if indices.known is not None:
        return [Value.of(indices.known[..., place]) for place in range(count)]
    if maker is None:
        return None
    if maker.name == "concatenate" and maker.params["dimension"] == len(indices.shape) - 1:
        parts = [_columns(part) if part.shape[-1] == 1 else None for part in maker.ins]
        return None if any(part is None for part in parts) else [part[0] for part in parts if part]
    base = maker.ins[0] if maker.ins else None
    if base is None or count != 1 or base.shape != indices.shape[:-1]:
        return None
    if maker.name == "broadcast_in_dim":
        return [base] if list(maker.params["broadcast_dimensions"]) == list(range(len(base.shape))) else None
    return [base] if maker.name == "reshape" else None


def _unconverted(value: Value) -> Value:
    maker = value.maker
    whole = maker is not None and maker.name == "convert_element_type" and maker.ins[0].dtype.kind in "iu"
    return maker.ins[0] if whole and maker is not None else value


def _from_below(value: Value, size: int) -> bool:
    base = _as_in_python(value, size)
    return base is not value and base.bounds is not None and base.bounds[0] >= -size and base.bounds[1] < size


def _as_in_python(value: Value, size: int) -> Value:
    """Return `i` for `i + size where i < 0 else i`: NumPy, too, counts negative numbers from the end."""
    select = _unconverted(value).maker
    if select is None or select.name != "select_n" or len(select.ins) != 3:
        return value
    test, plain, shifted = select.ins[0].maker, _unconverted(select.ins[1]), select.ins[2].maker
    if test is None or shifted is None or test.name != "lt" or shifted.name != "add":
        return value
    same = _unconverted(test.ins[0]) is plain and _unconverted(shifted.ins[0]) is plain
    return plain if same and test.ins[1].uniform == 0 and shifted.ins[1].uniform == size else value


def inside(value: Value, last: int) -> bool:
    """Whether all of an index is known to be in [0, last]."""
    known = value.known
    if known is not None:
        return bool(np.all((known >= 0) & (known <= last)))
    return value.bounds is not None and value.bounds[0] >= 0 and value.bounds[1] <= last


class Places(NamedTuple):
    """How a gather or scatter finds its places: see their dimension numbers in XLA's documentation."""

    windows: tuple[int, ...]  # axes of the result along a window
    dropped: tuple[int, ...]  # axes of the operand where a window is 1 wide and left out
    chosen: tuple[int, ...]  # axes of the operand that the columns choose on
    batch: tuple[int, ...]  # axes of the operand that go along with those of the columns
    batch_of_columns: tuple[int, ...]
    sizes: tuple[int, ...]  # of a window, along each axis of the operand
    rank: int  # of the result, or of the updates


def places_of(op: Op, shape: tuple[int, ...], rank: int) -> Places:
    dims = op.params["dimension_numbers"]
    if op.name == "gather":
        names, sizes = (
            ("offset_dims", "collapsed_slice_dims", "start_index_map"),
            tuple(map(int, op.params["slice_sizes"])),
        )
        batch = dims.start_indices_batching_dims
    else:
        names, sizes = ("update_window_dims", "inserted_window_dims", "scatter_dims_to_operand_dims"), ()
        batch = dims.scatter_indices_batching_dims
    windows, dropped, chosen = (tuple(int(axis) for axis in getattr(dims, name)) for name in names)
    own = tuple(int(axis) for axis in dims.operand_batching_dims)
    if not sizes:
        left = [axis for axis in range(len(shape)) if axis not in dropped and axis not in own]
        updates = op.ins[1].shape
        sizes = tuple(updates[windows[left.index(axis)]] if axis in left else 1 for axis in range(len(shape)))
    return Places(windows, dropped, chosen, own, tuple(int(axis) for axis in batch), sizes, rank)
