"""Primitives that read and write at places."""

from __future__ import annotations

from typing import Any

import numpy as np

from unrollax._errors import InvalidArgument
from unrollax.plain._block import Block, Rule
from unrollax.plain._columns import Places, inside, places_of
from unrollax.plain._frames import describe
from unrollax.plain._index import Entry
from unrollax.plain._program import Op, Value
from unrollax.plain._text import ADD, ATOM, Text, kind, number


def _index(block: Block, op: Op) -> Text:
    base, out = op.ins[0], op.outs[0]
    if base.known is not None and base.uniform is not None:
        return block.thin(base)
    marks = [_mark(block, op, entry, size) for entry, size in zip(op.params["entries"], base.shape, strict=True)]
    return Text(f"{block.full(base).at(ATOM)}{_brackets(marks)}", ATOM, out.shape)


def _brackets(marks: list[str]) -> str:
    while marks and marks[-1] == ":":
        marks = marks[:-1]
    return f"[{', '.join(marks)}]" if marks else ""


def _mark(block: Block, op: Op, entry: Entry, size: int) -> str:
    if entry.start is not None:
        return _span(entry.start, entry.size, size, entry.step, alone=entry.alone)
    start = op.ins[entry.place]
    text = block.full(start)
    if not inside(start, entry.last):
        text = Text(f"np.clip({text.text}, 0, {entry.last})")
    if entry.alone:
        return text.text
    if len(text.text) > 12:
        name = block.writer.fresh("start")
        block.write(f"{name} = {text.text}")
        text = Text(name)
    return f"{text.text}:{text.at(ADD)} + {entry.size}"


def _span(start: int, count: int, size: int, step: int = 1, *, alone: bool = False) -> str:
    if alone:
        return str(start)
    end = start + (count - 1) * step + 1 if count else start
    first, last = (str(start) if start else ""), (str(end) if end < size else "")
    return f"{first}:{last}" + (f":{step}" if step != 1 else "")


def _update(block: Block, op: Op) -> Text:
    """Write `dynamic_update_slice`: a copy, changed in one part."""
    operand, update, *starts = op.ins
    marks = []
    for start, count, size in zip(starts, update.shape, operand.shape, strict=True):
        entry = Entry(None, count, alone=False, place=op.ins.index(start), last=size - count)
        if size == count:
            marks.append(":")
        elif start.known is not None:
            marks.append(_span(min(max(int(start.known), 0), size - count), count, size))
        else:
            marks.append(_mark(block, op, entry, size))
    return _changed(block, op, operand, f"{_brackets(marks) or '[:]'} = {block.thin(update).text}")


def _changed(block: Block, op: Op, operand: Value, change: str) -> Text:
    name = block.writer.fresh(block.hint(op.outs[0]))
    text = block.own(operand)
    fresh = text.text.startswith(("np.full(", "np.zeros(")) or text.text.endswith(".copy()")
    block.write(f"{name} = {text.text if fresh else f'{text.at(ATOM)}.copy()'}")
    block.write(f"{name}{change}" if change.startswith("[") else change.replace("{name}", name))
    return Text(name, ATOM, operand.shape)


def _columns(block: Block, op: Op, first: int) -> tuple[list[Text], list[Value]]:
    """Return the columns as texts and, for their bounds, as values."""
    if op.params.get("columns"):
        for value in op.ins[first:]:
            if value in block.waiting and len(block.texts[value].text) > 24:
                block.name(value)
        return [_whole(block, value) for value in op.ins[first:]], op.ins[first:]
    indices = op.ins[first]
    if indices in block.waiting:
        block.name(indices)
    text, shape = block.full(indices), indices.shape[:-1]
    values = [Value(shape, indices.dtype) for _ in range(indices.shape[-1])]
    return [Text(f"{text.at(ATOM)}[..., {place}]", ATOM, shape) for place in range(len(values))], values


def _whole(block: Block, value: Value) -> Text:
    if value.known is not None and value.shape == ():
        return Text(number(value.known))
    if value.known is not None and len(value.shape) == 1 and value.known.size <= 8:
        return Text(str(value.known.tolist()), ATOM, value.shape)
    return block.full(value)


def _marks(shape: tuple[int, ...], p: Places, columns: list[Text]) -> list[str]:
    """Return what stands between the brackets, one for each axis of the operand, as short as can be."""
    batch = [axis for axis in range(p.rank) if axis not in p.windows]
    full = [axis for axis in range(len(shape)) if axis not in p.chosen and p.sizes[axis] == shape[axis]]
    if not batch:
        return [
            _slice(columns[p.chosen.index(axis)], p.sizes[axis], alone=axis in p.dropped) if axis in p.chosen else ":"
            for axis in range(len(shape))
        ]
    chosen = sorted(p.chosen)
    near = not p.batch and chosen == list(range(chosen[0], chosen[0] + len(chosen))) and set(p.chosen) <= set(p.dropped)
    if near and batch == list(range(chosen[0], chosen[0] + len(batch))) and len(full) + len(chosen) == len(shape):
        return [columns[p.chosen.index(axis)].text if axis in chosen else ":" for axis in range(len(shape))]
    return _spread_marks(shape, p, columns)


def _spread_marks(shape: tuple[int, ...], p: Places, columns: list[Text]) -> list[str]:
    """Return one array for each axis of the operand; together they broadcast to the shape of the result."""
    batch = [axis for axis in range(p.rank) if axis not in p.windows]
    left = [axis for axis in range(len(shape)) if axis not in p.dropped and axis not in p.batch]
    marks = []
    for axis in range(len(shape)):
        parts = []
        if axis in p.chosen:
            parts.append(_spread(columns[p.chosen.index(axis)], batch, p.rank))
        if axis in p.batch:
            place = batch[p.batch_of_columns[p.batch.index(axis)]]
            parts.append(_spread(Text(f"np.arange({shape[axis]})"), [place], p.rank))
        if axis in left and (p.sizes[axis] > 1 or axis not in p.chosen):
            parts.append(_spread(Text(f"np.arange({p.sizes[axis]})"), [p.windows[left.index(axis)]], p.rank))
        marks.append(" + ".join(parts) or "0")
    return marks


def _slice(start: Text, size: int, *, alone: bool) -> str:
    return start.text if alone else f"{start.text}:{start.at(ADD)} + {size}"


def _spread(text: Text, axes: list[int], rank: int) -> str:
    """Return an array whose axes are laid out along some of a result's."""
    marks = [":" if axis in axes else "None" for axis in range(axes[0], rank)] if axes else []
    if "None" not in marks:
        return text.text
    array = f"np.array({text.text})" if text.text.startswith("[") else text.at(ATOM)
    return f"{array}[{', '.join(marks)}]"


def _gather(block: Block, op: Op) -> Text:
    operand, out, mode = op.ins[0], op.outs[0], str(op.params["mode"])
    places = places_of(op, operand.shape, len(out.shape))
    columns, values = _columns(block, op, 1)
    last = [operand.shape[axis] - places.sizes[axis] for axis in places.chosen]
    kept = "CLIP" not in mode and "FILL" not in mode
    loose = [
        n for n, value in enumerate(values) if not kept and not inside(value, last[n]) and not _wraps(value, last[n])
    ]
    for n in loose:
        columns[n] = block.full(values[n]) if columns[n].text.startswith("[") else columns[n]
    fit = list(columns)
    for n in loose:
        fit[n] = Text(f"np.clip({columns[n].text}, 0, {last[n]})", ATOM, columns[n].shape)
    text = f"{block.full(operand).at(ATOM)}{_brackets(_marks(operand.shape, places, fit))}"
    if not loose or "FILL" not in mode:
        return Text(text, ATOM, out.shape)
    batch = [axis for axis in range(places.rank) if axis not in places.windows]
    tests = [f"({columns[n].text} >= 0) & ({columns[n].text} <= {last[n]})" for n in loose]
    valid = _spread(Text(" & ".join(tests), 0, columns[0].shape), batch, places.rank)
    return Text(f"np.where({valid}, {text}, {_fill(op, out)})", ATOM, out.shape)


def _wraps(value: Value, last: int) -> bool:
    return value.bounds is not None and value.bounds[0] >= -last - 1 and value.bounds[1] <= last


def _fill(op: Op, out: Value) -> str:
    given = op.params.get("fill_value")
    if given is None and out.dtype.kind in "iu":
        info = np.iinfo(out.dtype)
        given = info.min if out.dtype.kind == "i" else info.max
    if given is None:
        given = np.nan if out.dtype.kind in "fc" else True
    return f"{kind(out.dtype)}({number(np.asarray(given, out.dtype))})"


_AT = {"scatter-add": "np.add", "scatter-mul": "np.multiply", "scatter-min": "np.minimum", "scatter-max": "np.maximum"}
_AT |= {name.replace("-", "_"): function for name, function in _AT.items()}


def scatter(block: Block, op: Op) -> Text:
    """Write a scatter: a copy, changed at places; those outside are dropped."""
    operand, updates = op.ins[:2]
    places = places_of(op, operand.shape, len(updates.shape))
    columns, values = _columns(block, op, 2)
    last = [operand.shape[axis] - places.sizes[axis] for axis in places.chosen]
    sure = all(inside(value, end) or _wraps(value, end) for value, end in zip(values, last, strict=True))
    marks, new = _marks(operand.shape, places, columns), block.thin(updates).text
    if sure and op.name == "scatter":
        return _changed(block, op, operand, f"{_brackets(marks) or '[:]'} = {new}")
    loose = [not inside(value, end) for value, end in zip(values, last, strict=True)]
    if any(loose[n] and places.sizes[axis] > 1 for n, axis in enumerate(places.chosen)) and not sure:
        raise InvalidArgument(
            f"numpy_source: a scatter of windows must stay inside, got {op.name} at {describe(op.frames)}. "
            "Use dynamic_update_slice, or an index that is known."
        )
    function = _AT.get(op.name, "None")
    if sure:
        index = f"({', '.join('slice(None)' if mark == ':' else _sliced(mark) for mark in marks)},)"
        return _changed(block, op, operand, f"{function}.at({{name}}, {index}, {new})")
    index, update = f"({', '.join(_spread_marks(operand.shape, places, columns))},)", block.full(updates).text
    helper = block.writer.helper("_scatter")
    return Text(f"{helper}({block.full(operand).text}, {index}, {update}, {function})", ATOM, operand.shape)


def _sliced(mark: str) -> str:
    ends = mark.split(":")
    return mark if len(ends) == 1 or "[" in mark else f"slice({ends[0]}, {ends[1]})"


RULES: dict[str, Rule | Any] = {
    "index": _index,
    "dynamic_update_slice": _update,
    "gather": _gather,
    "scatter": scatter,
    **dict.fromkeys(_AT, scatter),
}
