"""Pieces of Python source: expressions with their precedence, numbers, lines."""

from __future__ import annotations

import re
import textwrap
from typing import Any, NamedTuple

import numpy as np

WIDTH = 112
TERNARY, COMPARE, OR, XOR, AND, SHIFT, ADD, MUL, UNARY, POWER, ATOM = range(11)


class Text(NamedTuple):
    """An expression: its source, how tightly it binds, and the shape of its value, which broadcasts to what it stands for.

    `weak` says that it is a Python number, which takes the dtype of what it meets.
    """

    text: str
    level: int = ATOM
    shape: tuple[int, ...] = ()
    weak: bool = False

    def at(self, level: int) -> str:
        """Return the source, in parentheses where it binds less tightly than what is around it."""
        return self.text if self.level >= level else f"({self.text})"


def kind(dtype: Any) -> str:
    """Return the source of a dtype."""
    name = np.dtype(dtype).name
    return "np.bool_" if name == "bool" else f"np.{name}"


def number(item: Any) -> str:
    """Return the shortest source of a number that gives back its bits."""
    item = np.asarray(item)[()]
    if isinstance(item, (np.bool_, np.integer)):
        return str(item)
    if isinstance(item, np.complexfloating):
        if item.imag == 0 and not np.signbit(item.imag):
            return number(item.real)
        return f"complex({number(item.real)}, {number(item.imag)})"
    if not np.isfinite(item):
        return "np.nan" if np.isnan(item) else ("np.inf" if item > 0 else "-np.inf")
    short = repr(float(str(item)))
    return short if item.dtype.type(float(short)) == item else repr(float(item))


def literal(item: Any) -> Text:
    """Return a Python number."""
    text = number(item)
    return Text(text, UNARY if text.startswith("-") else ATOM, (), True)


def numbers(array: np.ndarray) -> str:
    """Return the source of an array of any rank as nested lists."""
    return f"[{', '.join(map(numbers, array))}]" if array.ndim else number(array)


def constant(array: np.ndarray) -> str:
    """Return the source of an array, as a pattern where it is one."""
    pattern = _pattern(array)
    if pattern:
        return pattern
    nested = numbers(array) if array.size else f"np.zeros({array.shape})"
    return f"np.array({nested}, {kind(array.dtype)})"


def _pattern(array: np.ndarray) -> str | None:
    name, shape = kind(array.dtype), array.shape
    if array.ndim == 0:
        return f"{name}({number(array)})"
    first = array.reshape(-1)[0] if array.size else 0
    signed = array.dtype.kind in "fc" and np.signbit(array.real).any()
    if array.size and ((array == first).all() and not (first == 0 and signed)):
        return filled(shape, number(first), array.dtype)
    if array.ndim == 2 and array.shape[0] == array.shape[1] and not signed and (array == np.eye(shape[0])).all():
        return f"np.eye({shape[0]}, dtype={name})"
    if array.ndim == 2 and array.size and array.dtype.kind == "b" and (array == np.tri(*shape)).all():
        return f"np.tri({', '.join(map(str, shape))}, dtype=np.bool_)"
    if array.ndim == 1 and array.size > 2 and array.dtype.kind == "i" and (np.diff(array) == 1).all():
        ends = f"{array[0]}, {array[-1] + 1}" if array[0] else f"{array.size}"
        return f"np.arange({ends}, dtype={name})"
    return None


def filled(shape: tuple[int, ...], text: str, dtype: Any) -> str:
    """Return the source of an array of equal numbers."""
    if text in ("0.0", "0", "False"):
        return f"np.zeros({tuple_of(shape)}, {kind(dtype)})"
    return f"np.full({tuple_of(shape)}, {text}, {kind(dtype)})"


def is_short(array: np.ndarray) -> bool:
    """Whether an array's source is short: few numbers, or a pattern."""
    return array.size <= 64 or _pattern(array) is not None


def tuple_of(items: Any) -> str:
    """Return the source of a tuple."""
    items = [str(item) for item in items]
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def broken(line: str) -> list[str]:
    """Return a statement, broken inside of its brackets where it is too long."""
    if len(line) <= WIDTH:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    head, expression, tail = _parts(line[len(indent) :])
    at = expression.find("(")
    if at < 0 or _closing(expression, at) != len(expression) - 1:
        at, expression = 0, f"({expression})"
    inner = _filled(expression[at + 1 : -1], indent + "    ")
    return [f"{indent}{head}{expression[: at + 1]}", *inner, f"{indent}){tail}"]


def _parts(statement: str) -> tuple[str, str, str]:
    """Return what is before an expression, the expression, and what is after it."""
    tail = ":" if statement.endswith(":") else ""
    statement = statement.removesuffix(":")
    for word in ("return ", "while ", "if ", "elif "):
        if statement.startswith(word):
            return word, statement.removeprefix(word), tail
    head, sign, expression = statement.partition(" = ")
    return (head + sign, expression, tail) if sign else ("", head, tail)


def _filled(text: str, indent: str) -> list[str]:
    """Return lines, broken at spaces that are in no string."""
    kept = re.sub(r"\"[^\"]*\"|'[^']*'", lambda found: found[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        kept, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in lines]


def _closing(text: str, at: int) -> int:
    """Return the place of the bracket that closes the one at a place."""
    depth = 0
    for place, mark in enumerate(text[at:], at):
        depth += (mark in "([{") - (mark in ")]}")
        if depth == 0:
            return place
    return -1
