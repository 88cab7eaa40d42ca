"""Loops and branches."""

from __future__ import annotations

from typing import Any

from unrollax.plain._block import Block, pairs
from unrollax.plain._program import Op, Value
from unrollax.plain._text import ATOM, Text, kind, tuple_of


def _carry(block: Block, op: Op, inits: list[Value], states: list[Value]) -> list[str]:
    """Start the carried values; return their names."""
    names = []
    for init, state in zip(inits, states, strict=True):
        text = block.full(init).text
        name = block.writer.fresh(_word(block, op, text))
        block.write(f"{name} = {text}")
        block.waiting.discard(init)
        block.texts[state] = Text(name, ATOM, state.shape)
        names.append(name)
    return names


def _word(block: Block, op: Op, start: str) -> str:
    found = block.hint(op.outs[0]) if len(op.outs) == 1 else "carry"
    return start if start.isidentifier() else found


def _next(block: Block, names: list[str], outs: list[Value]) -> None:
    """Pass the carried values on, all at once."""
    statement = pairs(names, [block.full(out).text for out in outs])
    if statement:
        block.write(statement)


def _scan(block: Block, op: Op) -> list[Text]:
    (body,), carried, length = op.inner, op.params["carried"], op.params["length"]
    for value in op.ins[carried:]:
        if value in block.waiting:
            block.name(value)
    names = _carry(block, op, op.ins[:carried], body.ins[:carried])
    rows = [block.writer.fresh("rows") for _ in op.outs[carried:]]
    for row, out in zip(rows, op.outs[carried:], strict=True):
        block.write(f"{row} = np.empty({tuple_of(out.shape)}, {kind(out.dtype)})")
    index = block.writer.fresh("i")
    block.write(f"for {index} in {_range(op, length)}:")
    inside = block.child()
    _counters(inside, op, index)
    for each, xs in zip(body.ins[carried:], op.ins[carried:], strict=True):
        inside.texts[each] = Text(f"{inside.full(xs).at(ATOM)}[{index}]", ATOM, each.shape)
        if body.uses()[each] > 1:
            inside.name(each, "row" if each.shape else "entry")
    inside.run(body)
    for row, out in zip(rows, body.outs[carried:], strict=True):
        inside.write(f"{row}[{index}] = {inside.thin(out).text}")
    _next(inside, names, body.outs[:carried])
    block.lines += inside.lines or [f"{inside.indent}pass"]
    made = zip([*names, *rows], op.outs, strict=True)
    return [Text(name, ATOM, out.shape) for name, out in made]


def _range(op: Op, length: int) -> str:
    counters = op.params["counters"]
    if (
        counters
        and not op.params["reverse"]
        and not op.ins[op.params["carried"] :]
        and not op.outs[op.params["carried"] :]
    ):
        state, first = counters[0]
        ends = f"{first}, {first + length}" if first else f"{length}"
        return f"np.arange({ends}, dtype={kind(state.dtype)})"
    return f"reversed(range({length}))" if op.params["reverse"] else f"range({length})"


def _counters(block: Block, op: Op, index: str) -> None:
    """Say what a loop's counters are in terms of its index."""
    plain = not _range(op, op.params["length"]).startswith("np.")
    base = None if plain else op.params["counters"][0]
    for state, first in op.params["counters"]:
        dtype = kind(state.dtype)
        if base is not None and (first, state.dtype) == (base[1], base[0].dtype):
            text = index
        else:
            at = f"{op.params['length'] - 1} - {index}" if op.params["reverse"] else index
            shift = first - (base[1] if base is not None else 0)
            text = f"{dtype}({at}{f' + {shift}' if shift else ''})"
        block.texts[state] = Text(text)


def _while(block: Block, op: Op) -> list[Text]:
    test, body = op.inner
    names = _carry(block, op, op.ins, body.ins)
    check = block.child()
    check.run(test)
    inside = block.child()
    verdict = check.full(test.outs[0])
    if check.lines:
        block.write("while True:")
        inside.lines += check.lines
        inside.write(f"if not {verdict.at(ATOM)}:")
        inside.lines.append(f"{inside.indent}    break")
    else:
        block.write(f"while {verdict.text}:")
    inside.run(body)
    _next(inside, names, body.outs)
    block.lines += inside.lines if len(inside.lines) else [f"{inside.indent}pass"]
    return [Text(name, ATOM, out.shape) for name, out in zip(names, op.outs, strict=True)]


def _cond(block: Block, op: Op) -> list[Text]:
    """Write branches; the last of them is for all greater numbers."""
    index, count = op.ins[0], len(op.inner)
    truth = index.dtype.kind == "b"
    if not truth and index in block.waiting:
        block.name(index, "branch")
    words = [block.writer.fresh(block.hint(out)) for out in op.outs]
    at = block.full(index)
    for place, branch in enumerate(reversed(op.inner) if truth else op.inner):
        test = at.text if truth else f"{at.text} {'<=' if place == 0 else '=='} {place}"
        block.write("else:" if place == count - 1 else f"{'elif' if place else 'if'} {test}:")
        inside = block.child()
        inside.run(branch)
        for word, out in zip(words, branch.outs, strict=True):
            inside.write(f"{word} = {inside.full(out).text}")
        block.lines += inside.lines
    return [Text(word, ATOM, out.shape) for word, out in zip(words, op.outs, strict=True)]


RULES: dict[str, Any] = {"scan": _scan, "while": _while, "cond": _cond}
