"""Slices of all kinds as one operation, `index`, whose entries are written between square brackets."""

from __future__ import annotations

from typing import Any, NamedTuple

from unrollax.plain._columns import with_columns
from unrollax.plain._program import Value


class Entry(NamedTuple):
    """One axis of an index.

    `size` entries from `start` on, every `step`-th; where `start` is None it is a whole number at run time, of which the
    operation's input number `place` tells, moved into [0, last]. `alone` drops the axis, whose size is 1.
    """

    start: int | None
    size: int
    step: int = 1
    alone: bool = False
    place: int = 0
    last: int = 0


def indexed(name: str, params: dict[str, Any], ins: list[Value]) -> tuple[str, dict[str, Any], list[Value]]:
    """Return a slice, or a squeezed one, as an index; any other operation as it is."""
    if name.startswith(("gather", "scatter")):
        return with_columns(name, params, ins)
    if name == "slice":
        return "index", {"entries": _entries(params)}, ins
    if name == "dynamic_slice":
        return "index", *_dynamic(params, ins)
    if name == "squeeze":
        maker = ins[0].maker
        if maker is not None and maker.name == "triangular_solve":
            return _of_one_column(params, ins)
        if maker is not None and maker.name == "index" and not any(entry.alone for entry in maker.params["entries"]):
            entries = [
                entry._replace(alone=axis in params["dimensions"]) for axis, entry in enumerate(maker.params["entries"])
            ]
            return "index", {"entries": tuple(entries)}, maker.ins
    return name, params, ins


def _of_one_column(params: dict[str, Any], ins: list[Value]) -> tuple[str, dict[str, Any], list[Value]]:
    """Return a solve for one vector, which JAX writes as a matrix of one column, as that."""
    solve = ins[0].maker
    assert solve is not None
    matrix, column = solve.ins
    wide = column.maker
    one = wide is not None and wide.name == "broadcast_in_dim" and wide.ins[0].shape == column.shape[:1]
    if wide is None or not one or len(column.shape) != 2 or column.shape[1] != 1 or not solve.params["left_side"]:
        return "squeeze", params, ins
    if list(params["dimensions"]) != [1] or list(wide.params["broadcast_dimensions"]) != [0]:
        return "squeeze", params, ins
    return "triangular_solve", solve.params, [matrix, wide.ins[0]]


def _entries(params: dict[str, Any]) -> tuple[Entry, ...]:
    steps = params["strides"] or (1,) * len(params["start_indices"])
    limits = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return tuple(Entry(int(start), -(-(int(end) - int(start)) // int(step)), int(step)) for start, end, step in limits)


def _dynamic(params: dict[str, Any], ins: list[Value]) -> tuple[dict[str, Any], list[Value]]:
    operand, starts = ins[0], ins[1:]
    entries, used = [], [operand]
    for start, size, whole in zip(starts, params["slice_sizes"], operand.shape, strict=True):
        last = whole - int(size)
        if start.known is not None or last == 0:
            entries.append(Entry(0 if last == 0 else min(max(int(start.known), 0), last), int(size)))  # type: ignore[arg-type]
        else:
            entries.append(Entry(None, int(size), place=len(used), last=last))
            used.append(start)
    return {"entries": tuple(entries)}, used
