"""Primitives that act number by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unrollax.plain._block import Block, Rule
from unrollax.plain._program import Op
from unrollax.plain._text import ADD, AND, ATOM, COMPARE, MUL, OR, POWER, SHIFT, UNARY, XOR, Text, kind

Write = Callable[[Block, Op, list[Text]], Text]


def elementwise(write: Write) -> Rule:
    """Return the rule of a primitive whose operands NumPy broadcasts by itself."""

    def rule(block: Block, op: Op) -> Text:
        texts = [block.thin(value) for value in op.ins]
        if all(text.weak for text in texts):  # Python numbers alone would be of Python's own types
            texts = _typed(op, texts)
        shape = np.broadcast_shapes(*(text.shape for text in texts))
        return write(block, op, texts)._replace(shape=shape, weak=False)

    return rule


def _typed(op: Op, texts: list[Text]) -> list[Text]:
    """Return the operands with numbers of NumPy in the place of Python's."""
    pairs = zip(op.ins, texts, strict=True)
    return [Text(f"{kind(value.dtype)}({text.text})") if text.weak else text for value, text in pairs]


def infix(sign: str, level: int) -> Rule:
    def write(block: Block, op: Op, texts: list[Text]) -> Text:
        a, b = texts
        if level == COMPARE:
            return Text(f"{a.at(COMPARE + 1)} {sign} {b.at(COMPARE + 1)}", level)
        return Text(f"{a.at(level)} {sign} {b.at(level + 1)}", level)

    return elementwise(write)


def call(name: str) -> Rule:
    """Return the rule of a function of NumPy, or of a helper."""

    def write(block: Block, op: Op, texts: list[Text]) -> Text:
        function = name if "." in name else block.writer.helper(name)
        texts = texts if "." in name else _typed(op, texts)
        return Text(f"{function}({', '.join(text.text for text in texts)})")

    return elementwise(write)


def prefix(sign: str) -> Rule:
    return elementwise(lambda _block, _op, texts: Text(f"{sign}{texts[0].at(UNARY)}", UNARY))


def extremum(name: str) -> Rule:
    """Return the rule of a maximum or minimum, with the number, if one is, second."""

    def write(block: Block, op: Op, texts: list[Text]) -> Text:
        a, b = texts if not texts[0].weak else texts[::-1]
        return Text(f"{name}({a.text}, {b.text})")

    return elementwise(write)


def _divide(block: Block, op: Op, texts: list[Text]) -> Text:
    a, b = texts
    whole = op.outs[0].dtype.kind in "iu"
    if not whole:
        return Text(f"{a.at(MUL)} / {b.at(MUL + 1)}", MUL)
    if all(value.dtype.kind == "u" or (value.bounds and value.bounds[0] >= 0) for value in op.ins):
        return Text(f"{a.at(MUL)} // {b.at(MUL + 1)}", MUL)
    a, b = _typed(op, texts)
    return Text(f"{block.writer.helper('_quotient')}({a.text}, {b.text})")


def _power(block: Block, op: Op, texts: list[Text]) -> Text:
    a, b = texts
    exponent = b.at(UNARY)
    if not b.weak and op.ins[1].dtype != op.outs[0].dtype:
        exponent = f"{b.at(ATOM)}.astype({kind(op.outs[0].dtype)})"
    return Text(f"{a.at(ATOM)} ** {exponent}", POWER)


def _integer_power(block: Block, op: Op, texts: list[Text]) -> Text:
    exponent, dtype = op.params["y"], op.outs[0].dtype
    if exponent == -1:
        return Text(f"1 / {texts[0].at(MUL + 1)}", MUL)
    if exponent < 0 and dtype.kind in "fc":
        return Text(f"1 / {texts[0].at(ATOM)} ** {-exponent}", MUL)
    return Text(f"{texts[0].at(ATOM)} ** {exponent}", POWER)


def _select(block: Block, op: Op, texts: list[Text]) -> Text:
    which, *cases = texts
    if all(case.weak for case in cases):
        cases[0] = Text(f"{kind(op.outs[0].dtype)}({cases[0].text})")
    if op.ins[0].dtype.kind == "b":
        return Text(f"np.where({which.text}, {cases[1].text}, {cases[0].text})")
    return Text(f"np.choose({which.text}, [{', '.join(case.text for case in cases)}])")


def _clamp(block: Block, op: Op, texts: list[Text]) -> Text:
    low, x, high = texts
    return Text(f"np.clip({x.text}, {low.text}, {high.text})")


def _convert(block: Block, op: Op, texts: list[Text]) -> Text:
    (value,), out, (text,) = op.ins, op.outs[0], texts
    if value.dtype.kind == "c" and out.dtype.kind != "c":
        return Text(f"{text.at(ATOM)}.real.astype({kind(out.dtype)})")
    return Text(f"{text.at(ATOM)}.astype({kind(out.dtype)})")


def _round(block: Block, op: Op, texts: list[Text]) -> Text:
    if int(op.params["rounding_method"]) == 1:
        return Text(f"np.round({texts[0].text})")
    return Text(f"{block.writer.helper('_round_away')}({texts[0].text})")


def _attribute(name: str) -> Rule:
    return elementwise(lambda _block, _op, texts: Text(f"{texts[0].at(ATOM)}.{name}"))


def _conjugate(block: Block, op: Op, texts: list[Text]) -> Text:
    if op.ins[0].dtype == op.outs[0].dtype:
        return Text(f"np.conj({texts[0].text})")
    return Text(f"{texts[0].at(ATOM)}.astype({kind(op.outs[0].dtype)})")


def _bits(block: Block, op: Op, texts: list[Text]) -> Text:
    return Text(f"{texts[0].at(ATOM)}.view({kind(op.outs[0].dtype)})")


def _count_bits(block: Block, op: Op, texts: list[Text]) -> Text:
    unsigned = np.dtype(
        f"u{op.ins[0].dtype.name.removeprefix('u')}"
    )  # of a negative number NumPy counts the magnitude's
    text = texts[0].text if op.ins[0].dtype == unsigned else f"{texts[0].at(ATOM)}.view({kind(unsigned)})"
    return Text(f"np.bitwise_count({text}).astype({kind(op.outs[0].dtype)})")


def _square(block: Block, op: Op, texts: list[Text]) -> Text:
    return Text(f"{texts[0].at(ATOM)} ** 2", POWER)


def _over(text: str) -> Write:
    return lambda _block, _op, texts: Text(text.format(texts[0].text, texts[0].at(UNARY)), MUL)


def _total_order(sign: str) -> Write:
    """Compare as in a sort: NaN after all else."""

    def write(block: Block, op: Op, texts: list[Text]) -> Text:
        a, b = texts
        if op.ins[0].dtype.kind != "f":
            return Text(f"{a.at(COMPARE + 1)} {sign} {b.at(COMPARE + 1)}", COMPARE)
        plain = f"({a.at(COMPARE + 1)} {sign} {b.at(COMPARE + 1)})"
        missing = f"np.isnan({b.text})" if sign == "<=" else f"np.isnan({b.text}) & ~np.isnan({a.text})"
        return Text(f"{plain} | {missing}", OR)

    return write


def _shift(block: Block, op: Op, texts: list[Text]) -> Text:
    a, b = texts
    return Text(f"{a.at(SHIFT)} >> {b.at(SHIFT + 1)}", SHIFT)


_UFUNCS = {
    **{name: name for name in ("exp", "exp2", "expm1", "log", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{name: name for name in ("sqrt", "cbrt", "floor", "ceil", "sign", "abs", "nextafter")},
    **{f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "atan2": "arctan2",
    "is_finite": "isfinite",
    "rem": "fmod",
}

RULES: dict[str, Any] = {
    **{name: call(f"np.{numpy}") for name, numpy in _UFUNCS.items()},
    **{name: infix(sign, ADD) for name, sign in {"add": "+", "add_any": "+", "sub": "-"}.items()},
    **{name: infix(s, COMPARE) for name, s in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">"}.items()},
    "ge": infix(">=", COMPARE),
    "mul": infix("*", MUL),
    "and": infix("&", AND),
    "or": infix("|", OR),
    "xor": infix("^", XOR),
    "shift_left": infix("<<", SHIFT),
    "shift_right_arithmetic": elementwise(_shift),
    "shift_right_logical": elementwise(_shift),
    "not": prefix("~"),
    "neg": prefix("-"),
    "max": extremum("np.maximum"),
    "min": extremum("np.minimum"),
    "div": elementwise(_divide),
    "pow": elementwise(_power),
    "integer_pow": elementwise(_integer_power),
    "square": elementwise(_square),
    "population_count": elementwise(_count_bits),
    "rsqrt": elementwise(_over("1 / np.sqrt({0})")),
    "logistic": elementwise(_over("1 / (1 + np.exp(-{1}))")),
    "select_n": elementwise(_select),
    "clamp": elementwise(_clamp),
    "round": elementwise(_round),
    "convert_element_type": elementwise(_convert),
    "bitcast_convert_type": elementwise(_bits),
    "real": _attribute("real"),
    "imag": _attribute("imag"),
    "conj": elementwise(_conjugate),
    "complex": call("_complex"),
    "erf": call("_erf"),
    "erfc": call("_erfc"),
    "lgamma": call("_lgamma"),
    "lt_to": elementwise(_total_order("<")),
    "le_to": elementwise(_total_order("<=")),
}
