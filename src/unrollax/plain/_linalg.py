"""Products, convolutions, transforms, factorisations and solves."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from unrollax._errors import InvalidArgument
from unrollax.plain._arrays import whole
from unrollax.plain._block import Block
from unrollax.plain._fold import triangle
from unrollax.plain._frames import describe
from unrollax.plain._program import Op, Value
from unrollax.plain._text import ATOM, MUL, Text, kind


def _dot(block: Block, op: Op, texts: list[Text]) -> Text:
    (left, right), out = op.ins, op.outs[0]
    texts = [_cast(text, value, out) for text, value in zip(texts, op.ins, strict=True)]
    (contract_left, contract_right), (batch_left, batch_right) = op.params["dimension_numbers"]
    plain = _matrix_product(texts, left, right, op.params["dimension_numbers"])
    if plain is not None:
        return plain
    names = iter(string.ascii_letters)
    a = [next(names) for _ in left.shape]
    b = [next(names) for _ in right.shape]
    for i, j in [*zip(contract_left, contract_right, strict=True), *zip(batch_left, batch_right, strict=True)]:
        b[j] = a[i]
    batch = [a[i] for i in batch_left]
    free = [n for i, n in enumerate(a) if i not in contract_left and i not in batch_left]
    free += [n for j, n in enumerate(b) if j not in contract_right and j not in batch_right]
    return Text(f'np.einsum("{"".join(a)},{"".join(b)}->{"".join(batch + free)}", {texts[0].text}, {texts[1].text})')


def _cast(text: Text, value: Value, out: Value) -> Text:
    return text if value.dtype == out.dtype else Text(f"{text.at(ATOM)}.astype({kind(out.dtype)})", ATOM, text.shape)


def _matrix_product(texts: list[Text], left: Value, right: Value, numbers: Any) -> Text | None:
    """Return `a @ b`, with the operands turned where that makes it one."""
    (contract_left, contract_right), (batch_left, batch_right) = numbers
    ranks, batch = (len(left.shape), len(right.shape)), len(batch_left)
    if (len(contract_left), len(contract_right)) != (1, 1) or 0 in left.shape or 0 in right.shape:
        return None
    leading = list(range(batch))
    if list(batch_left) != leading or list(batch_right) != leading:
        return None
    if batch and ranks != (batch + 2, batch + 2):
        return None
    if not batch and (
        ranks[1] > 2 or ranks[0] < 1 or ranks[1] < 1 or (ranks[0] > 2 and contract_left[0] != ranks[0] - 1)
    ):
        return None
    a, b = texts
    if contract_left[0] != ranks[0] - 1:
        a = _turned(a, batch)
    if ranks[1] > 1 and contract_right[0] != ranks[1] - 2:
        b = _turned(b, batch)
    return Text(f"{a.at(MUL)} @ {b.at(MUL + 1)}", MUL)


def _turned(text: Text, batch: int) -> Text:
    if batch:
        return Text(f"np.swapaxes({text.text}, -1, -2)")
    return Text(text.text[:-2]) if text.text.endswith(".T") and text.level == ATOM else Text(f"{text.at(ATOM)}.T")


def _fft(block: Block, op: Op, texts: list[Text]) -> Text:
    name = ("fft", "ifft", "rfft", "irfft")[int(op.params["fft_type"])]
    lengths = tuple(int(length) for length in op.params["fft_lengths"])
    sized = name == "irfft"
    if len(lengths) == 1:
        return Text(f"np.fft.{name}({texts[0].text}{f', {lengths[0]}' if sized else ''})")
    axes = tuple(range(-len(lengths), 0))
    return Text(f"np.fft.{name}n({texts[0].text}{f', {lengths}' if sized else ''}, axes={axes})")


def _triangular_solve(block: Block, op: Op, texts: list[Text]) -> Text:
    p, a = op.params, op.ins[0]
    lower = p["lower"]
    known = triangle(a) == ("lower" if lower else "upper")
    matrix = texts[0].at(ATOM) if known else f"np.tri{'l' if lower else 'u'}({texts[0].text})"
    if p["unit_diagonal"]:
        matrix = f"np.tri{'l' if lower else 'u'}({texts[0].text})"
        ones = f"np.eye({a.shape[-1]}, dtype={kind(a.dtype)})"
        matrix = f"({matrix[:-1]}, {-1 if lower else 1}) + {ones})"
    if p["conjugate_a"] and a.dtype.kind == "c":
        matrix = f"np.conj({matrix})"
    turn = _transposed if len(a.shape) == 2 else _swapped
    if bool(p["transpose_a"]) == bool(p["left_side"]):
        matrix = turn(matrix)
    if p["left_side"]:
        return Text(f"np.linalg.solve({matrix}, {texts[1].text})")
    return Text(turn(f"np.linalg.solve({matrix}, {turn(texts[1].at(ATOM))})"))


def _transposed(text: str) -> str:
    return text[:-2] if text.endswith(".T") else f"{text}.T"


def _swapped(text: str) -> str:
    return f"np.swapaxes({text}, -1, -2)"


def _parts(block: Block, op: Op, line: str, names: tuple[str, ...], order: tuple[int, ...]) -> list[Text]:
    """Write a call that gives several arrays; `order` says which is which output."""
    made = [block.writer.fresh(name) for name in names]
    block.write(f"{', '.join(made)} = {line}")
    return [Text(made[place], ATOM, out.shape) for place, out in zip(order, op.outs, strict=True)]


def _eigh(block: Block, op: Op) -> list[Text]:
    side = "" if op.params["lower"] else ', UPLO="U"'
    line = f"np.linalg.eigh({block.full(op.ins[0]).text}{side})"
    return _parts(block, op, line, ("eigenvalues", "eigenvectors"), (1, 0))


def _svd(block: Block, op: Op) -> Any:
    text = block.full(op.ins[0]).text
    if not op.params["compute_uv"]:
        return Text(f"np.linalg.svd({text}, compute_uv=False)", ATOM, op.outs[0].shape)
    line = f"np.linalg.svd({text}, full_matrices={bool(op.params['full_matrices'])})"
    return _parts(block, op, line, ("left", "singular_values", "right"), (1, 0, 2))


def _qr(block: Block, op: Op) -> list[Text]:
    mode = ', "complete"' if op.params["full_matrices"] else ""
    if op.params.get("pivoting"):
        raise InvalidArgument(
            f"numpy_source: a QR factorisation must be without pivots, got one with them at {describe(op.frames)}. "
            "Use jnp.linalg.qr."
        )
    return _parts(block, op, f"np.linalg.qr({block.full(op.ins[0]).text}{mode})", ("q", "r"), (0, 1))


def _lu(block: Block, op: Op) -> list[Text]:
    if len(op.ins[0].shape) != 2 or op.ins[0].shape[0] != op.ins[0].shape[1]:
        raise InvalidArgument(
            f"numpy_source: an LU factorisation must be of one square matrix, got {op.ins[0].shape} at "
            f"{describe(op.frames)}. Use jnp.linalg.solve, which takes several."
        )
    line = f"{block.writer.helper('_lu')}({block.full(op.ins[0]).text})"
    return _parts(block, op, line, ("lu", "swaps", "order"), (0, 1, 2))


def _conv(block: Block, op: Op, texts: list[Text]) -> Text:
    p, helper = op.params, block.writer.helper("_conv")
    _refuse(op, p["batch_group_count"] != 1, "a convolution must have one batch group", "Write it as several.")
    x_axes, w_axes, out_axes = (tuple(map(int, spec)) for spec in p["dimension_numbers"])
    x, w = (_moved(text, axes) for text, axes in zip(texts, (x_axes, w_axes), strict=True))
    padding = [tuple(int(size) for size in pair) for pair in p["padding"]]
    settings = [p["window_strides"], padding, p["lhs_dilation"], p["rhs_dilation"], p["feature_group_count"]]
    text = Text(f"{helper}({x}, {w}, {', '.join(map(_plain, settings))})")
    return Text(_moved(text, tuple(int(axis) for axis in np.argsort(out_axes))))


def _plain(setting: Any) -> str:
    return str(tuple(int(n) for n in setting) if isinstance(setting, tuple) else setting)


def _moved(text: Text, axes: tuple[int, ...]) -> str:
    return text.text if axes == tuple(range(len(axes))) else f"np.transpose({text.text}, {axes})"


def _helper(name: str) -> Any:
    return whole(
        lambda block, _op, texts: Text(f"{block.writer.helper(name)}({', '.join(text.text for text in texts)})")
    )


def _tridiagonal(block: Block, op: Op) -> Text:
    _refuse(op, len(op.ins[0].shape) != 1, "a tridiagonal solve must be of one matrix", "Call it for each.")
    made: Text = _helper("_tridiagonal_solve")(block, op)
    return made


def _refuse(op: Op, wrong: bool, must: str, remedy: str) -> None:
    if wrong:
        raise InvalidArgument(f"numpy_source: {must}, got several at {describe(op.frames)}. {remedy}")


RULES: dict[str, Any] = {
    "dot_general": whole(_dot),
    "fft": whole(_fft),
    "cholesky": whole(lambda _block, _op, texts: Text(f"np.linalg.cholesky({texts[0].text})")),
    "triangular_solve": whole(_triangular_solve),
    "solve": whole(lambda _block, _op, texts: Text(f"np.linalg.solve({texts[0].text}, {texts[1].text})")),
    "eigh": _eigh,
    "svd": _svd,
    "qr": _qr,
    "lu": _lu,
    "conv_general_dilated": whole(_conv),
    "lu_pivots_to_permutation": _helper("_order"),
    "tridiagonal_solve": _tridiagonal,
}
