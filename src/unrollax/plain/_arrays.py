"""Primitives that move, reduce and sort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unrollax.plain._block import Block, Rule
from unrollax.plain._program import Op, Value
from unrollax.plain._text import ATOM, UNARY, Text, kind, tuple_of

Write = Callable[[Block, Op, list[Text]], Text]


def whole(write: Write) -> Rule:
    """Return the rule of a primitive that needs its operands in their own shapes."""

    def rule(block: Block, op: Op) -> Text:
        made = write(block, op, [block.full(value) for value in op.ins])
        return made._replace(shape=op.outs[0].shape)

    return rule


def broadcast(block: Block, op: Op) -> Text:
    """Put in axes of size 1 only: what reads the value broadcasts."""
    value, text = op.ins[0], block.thin(op.ins[0])
    if text.shape == ():
        return text
    left = len(value.shape) - len(text.shape)  # axes that are left out, as NumPy puts them in
    dims = [int(dim) for dim in op.params["broadcast_dimensions"]][left:]
    first, rank = dims[0], len(op.params["shape"])
    marks = [":" if axis in dims else "None" for axis in range(first, rank)]
    shape = tuple(text.shape[dims.index(axis)] if axis in dims else 1 for axis in range(first, rank))
    if "None" not in marks:
        return text
    return Text(f"{text.at(ATOM)}[{', '.join(marks)}]", ATOM, shape)


def _iota(block: Block, op: Op) -> Text:
    shape, axis, dtype = op.params["shape"], op.params["dimension"], op.params["dtype"]
    tail = len(shape) - axis - 1
    text = f"np.arange({shape[axis]}, dtype={kind(dtype)})" + (f"[:{', None' * tail}]" if tail else "")
    return Text(text, ATOM, (shape[axis],) + (1,) * tail)


def _transpose(block: Block, op: Op, texts: list[Text]) -> Text:
    order = tuple(int(axis) for axis in op.params["permutation"])
    if order == (1, 0):
        return Text(f"{texts[0].at(ATOM)}.T")
    return Text(f"np.transpose({texts[0].text}, {order})")


def _reshape(block: Block, op: Op, texts: list[Text]) -> Text:
    return Text(f"{texts[0].at(ATOM)}.reshape({tuple_of(op.outs[0].shape)})")


def _concatenate(block: Block, op: Op, texts: list[Text]) -> Text:
    axis = op.params["dimension"]
    return Text(f"np.concatenate([{', '.join(text.text for text in texts)}]{f', axis={axis}' if axis else ''})")


def _stack(block: Block, op: Op, texts: list[Text]) -> Text:
    axis = op.params["axis"]
    return Text(f"np.stack([{', '.join(text.text for text in texts)}]{f', axis={axis}' if axis else ''})")


def _split(block: Block, op: Op) -> list[Text]:
    if op.ins[0] in block.waiting:
        block.name(op.ins[0])
    text, axis, start, parts = block.full(op.ins[0]), op.params["axis"], 0, []
    for size, out in zip(op.params["sizes"], op.outs, strict=True):
        parts.append(Text(f"{text.at(ATOM)}[{':, ' * axis}{start}:{start + size}]", ATOM, out.shape))
        start += size
    return parts


def _pad(block: Block, op: Op, texts: list[Text]) -> Text:
    config = [tuple(int(size) for size in axis) for axis in op.params["padding_config"]]
    number = block.thin(op.ins[1]).text
    if all(a >= 0 and b >= 0 and between == 0 for a, b, between in config):
        around = [(a, b) for a, b, _ in config]
        return Text(f"np.pad({texts[0].text}, {around}, constant_values={number})")
    return Text(f"{block.writer.helper('_pad')}({texts[0].text}, {texts[1].text}, {config})")


def _reverse(block: Block, op: Op, texts: list[Text]) -> Text:
    if len(op.outs[0].shape) == 1:
        return Text(f"{texts[0].at(ATOM)}[::-1]")
    return Text(f"np.flip({texts[0].text}, {tuple_of(op.params['dimensions'])})")


def _axes(op: Op) -> str:
    axes = tuple(int(axis) for axis in op.params["axes"])
    if len(axes) == len(op.ins[0].shape):
        return ""
    return f", axis={axes[0] if len(axes) == 1 else axes}"


def reduction(name: str, empty: str = "") -> Rule:
    """Return the rule of a reduction; sums and products of small whole numbers keep their dtype."""

    def write(block: Block, op: Op, texts: list[Text]) -> Text:
        dtype = op.outs[0].dtype
        if name in ("np.all", "np.any") and dtype.kind != "b":  # bits of whole numbers
            bits = "np.bitwise_and" if name == "np.all" else "np.bitwise_or"
            return Text(f"{bits}.reduce({texts[0].text}, axis={tuple(map(int, op.params['axes']))})")
        kept = f", dtype={kind(dtype)}" if dtype.kind in "iu" and name in ("np.sum", "np.prod") else ""
        if name in ("np.max", "np.min") and 0 in op.ins[0].shape:
            kept = f", initial={empty}"
        return Text(f"{name}({texts[0].text}{_axes(op)}{kept})")

    return whole(write)


def _as(out: Value) -> str:
    """Return what turns NumPy's own index type to another."""
    return "" if out.dtype == np.int64 else f".astype({kind(out.dtype)})"


def _arg(name: str) -> Rule:
    def write(block: Block, op: Op, texts: list[Text]) -> Text:
        return Text(f"np.{name}({texts[0].text}{_axes(op)}){_as(op.outs[0])}")

    return whole(write)


def accumulation(name: str) -> Rule:
    def write(block: Block, op: Op, texts: list[Text]) -> Text:
        axis, dtype = op.params["axis"], op.outs[0].dtype
        flip = (lambda text: f"np.flip({text}, {axis})") if op.params["reverse"] else (lambda text: text)
        kept = f", dtype={kind(dtype)}" if dtype.kind in "iu" and "accumulate" not in name else ""
        return Text(flip(f"{name}({flip(texts[0].text)}, axis={axis}{kept})"))

    return whole(write)


def _sort(block: Block, op: Op) -> Any:
    axis, keys = int(op.params["dimension"]), op.params["num_keys"]
    if len(op.ins) == 1:
        tail = "" if axis == len(op.ins[0].shape) - 1 else f", axis={axis}"
        return Text(f"np.sort({block.full(op.ins[0]).text}{tail})", ATOM, op.outs[0].shape)
    for value in op.ins:
        if value in block.waiting:
            block.name(value)
    texts = [block.full(value).text for value in op.ins]
    order = block.writer.fresh("order")
    if keys == 1:
        block.write(f'{order} = np.argsort({texts[0]}, axis={axis}, kind="stable")')
    else:
        block.write(f"{order} = np.lexsort({tuple_of(reversed(texts[:keys]))}, axis={axis})")
    rank = len(op.ins[0].shape)
    return [
        Text(f"{text}[{order}]" if rank == 1 else f"np.take_along_axis({text}, {order}, {axis})", ATOM, out.shape)
        if not _counts_up(value, axis)
        else Text(f"{order}{_as(out)}", ATOM, out.shape)
        for text, value, out in zip(texts, op.ins, op.outs, strict=True)
    ]


def _counts_up(value: Any, axis: int) -> bool:
    """Whether a value is 0, 1, 2, ... along an axis."""
    if value.maker is not None and value.maker.name == "iota":
        return bool(value.maker.params["dimension"] == axis)
    if value.known is None:
        return False
    shape = [1] * value.known.ndim
    shape[axis] = -1
    return bool((value.known == np.arange(value.shape[axis]).reshape(shape)).all())


def _top(block: Block, op: Op) -> list[Text]:
    if op.ins[0] in block.waiting:
        block.name(op.ins[0])
    value, axis, count = op.ins[0], int(op.params.get("axis", -1)), op.params["k"]
    axis %= len(value.shape)
    text, order = block.full(value), block.writer.fresh("order")
    key = f"-{text.at(UNARY)}" if value.dtype.kind == "f" else f"~{text.at(UNARY)}"  # ~ turns whole numbers around, too
    block.write(f'{order} = np.argsort({key}, axis={axis}, kind="stable")[{":, " * axis}:{count}]')
    values = (
        f"{text.at(ATOM)}[{order}]" if len(value.shape) == 1 else f"np.take_along_axis({text.text}, {order}, {axis})"
    )
    return [
        Text(values, ATOM, op.outs[0].shape),
        Text(f"{order}{_as(op.outs[1])}", ATOM, op.outs[1].shape),
    ]


RULES: dict[str, Any] = {
    "broadcast_in_dim": broadcast,
    "iota": _iota,
    "transpose": whole(_transpose),
    "reshape": whole(_reshape),
    "squeeze": whole(_reshape),
    "concatenate": whole(_concatenate),
    "split": _split,
    "stack": whole(_stack),
    "tile": whole(lambda _block, op, texts: Text(f"np.tile({texts[0].text}, {tuple_of(op.params['reps'])})")),
    "pad": whole(_pad),
    "rev": whole(_reverse),
    "reduce_sum": reduction("np.sum"),
    "reduce_prod": reduction("np.prod"),
    "reduce_max": reduction("np.max", "-np.inf"),
    "reduce_min": reduction("np.min", "np.inf"),
    "reduce_and": reduction("np.all"),
    "reduce_or": reduction("np.any"),
    "argmax": _arg("argmax"),
    "argmin": _arg("argmin"),
    "cumsum": accumulation("np.cumsum"),
    "cumprod": accumulation("np.cumprod"),
    "cummax": accumulation("np.maximum.accumulate"),
    "cummin": accumulation("np.minimum.accumulate"),
    "cumlogsumexp": accumulation("np.logaddexp.accumulate"),
    "sort": _sort,
    "top_k": _top,
}
