"""Writing a program as statements: names, what is written into what, inner blocks."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from unrollax.plain._frames import assigned
from unrollax.plain._helpers import HELPERS
from unrollax.plain._program import Op, Program, Value
from unrollax.plain._text import ATOM, Text, broken, constant, filled, kind, literal, tuple_of

INLINE = 60  # characters of an expression that is used once, to be written where it is used
TOGETHER = 76  # characters of all such expressions in one
LAST = 96  # characters of what a program gives
VIEWS = {"transpose", "broadcast_in_dim", "real", "imag", "squeeze", "reshape"}
NOUNS = {
    "dot_general": "product",
    "reduce_sum": "total",
    "reduce_max": "largest",
    "reduce_min": "smallest",
    "sort": "ordered",
    "top_k": "top",
    "scan": "carry",
    "while": "carry",
    "cond": "chosen",
    "cumsum": "sums",
    "select_n": "selected",
    "cholesky": "factor",
    "triangular_solve": "solved",
    "solve": "solved",
    "abs": "magnitude",
    "sign": "signs",
    "exp": "power",
    "log": "log",
    "fft": "spectrum",
    "iota": "index",
    "scatter": "updated",
}
Rule = Callable[["Block", Op], Any]


class Writer:
    """What a whole source shares: names, constants, helper functions, the rules of the primitives."""

    def __init__(self, rules: dict[str, Rule], inline: int, holder: str = "arrays") -> None:
        self.rules, self.inline, self.holder = rules, inline, holder
        self.taken = {"np", "math", holder, *keyword.kwlist, *HELPERS}
        self.constants: dict[str, np.ndarray] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.helpers: set[str] = set()
        self.placed: dict[Value, Text] = {}
        self.reads: dict[str, str] = {}  # what is read from arguments, and its dtype and shape

    def fresh(self, hint: str) -> str:
        """Return a name that nothing has yet."""
        base = re.sub(r"\W+", "_", hint).strip("_") or "v"
        base = f"v_{base}" if base[0].isdigit() else base
        name, count = base, 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def helper(self, name: str) -> str:
        """Ask for a helper function; return its name."""
        self.helpers.add(name)
        return name

    def constant(self, value: Value) -> Text:
        """Return a known array: in place if short, else by a name."""
        assert value.known is not None
        if value not in self.placed:
            short = value.known.size <= self.inline or len(constant(value.known)) <= INLINE
            text = constant(value.known) if short else ""
            if len(text) > INLINE // 2 or not short:
                name = self.fresh("CONSTANT" if short else "array")
                (self.constants if short else self.arrays)[name] = value.known
                text = name if short else f'{self.holder}["{name}"]'
            self.placed[value] = Text(text, ATOM, value.shape)
        return self.placed[value]


class Block:
    """The statements of one program."""

    def __init__(self, writer: Writer, texts: dict[Value, Text], indent: str = "    ") -> None:
        self.writer, self.texts, self.indent = writer, texts, indent
        self.lines: list[str] = []
        self.waiting: set[Value] = set()
        self.labels: dict[int, str] = {}

    def run(self, program: Program) -> None:
        """Write the operations of a program."""
        uses, outs = program.uses(), set(program.outs)
        self.labels = _labels(program)
        for at, op in enumerate(program.ops):
            self.shorten(op.ins)
            made = self.writer.rules[op.name](self, op)
            if isinstance(made, Text):
                self.settle(op, made, uses[op.outs[0]], at, LAST if op.outs[0] in outs else INLINE)
            elif made is not None:
                self.texts.update(zip(op.outs, made, strict=True))
        self.shorten(program.outs, LAST)

    def settle(self, op: Op, made: Text, uses: int, at: int, room: int) -> None:
        """Keep an expression to be written where it is used, or give it a name."""
        out = op.outs[0]
        self.texts[out] = made
        once = uses <= 1 and at not in self.labels and len(made.text) <= room
        view = op.name in VIEWS and len(made.text) <= INLINE // 2 and at not in self.labels
        if once or (view and not any(value in self.waiting for value in op.ins)):
            self.waiting.add(out)
        else:
            self.name(out, self.labels.get(at))

    def shorten(self, values: list[Value], room: int = TOGETHER) -> None:
        """Give names to the longest expressions among some values until the rest fits in one line."""
        waiting = sorted({v for v in values if v in self.waiting}, key=lambda v: (len(self.texts[v].text), v.shape))
        while waiting and sum(len(self.texts[value].text) for value in waiting) > room:
            self.name(waiting.pop())

    def name(self, value: Value, label: str | None = None) -> str:
        """Assign a value to a name."""
        text = self.texts[value]
        name = self.writer.fresh(label or self.hint(value))
        self.write(f"{name} = {text.text}")
        self.texts[value] = Text(name, ATOM, text.shape)
        self.waiting.discard(value)
        return name

    def hint(self, value: Value) -> str:
        """Return a word for a value: what its statement assigns to, or what its operation makes."""
        op = value.maker
        if op is None:
            return "v"
        inner = [found for found in (assigned(op.frames[depth:]) for depth in range(len(op.frames))) if found]
        noun = NOUNS.get(op.name, "v")
        return noun if noun != "v" or not inner else f"{inner[-1][1]}_part"

    def write(self, line: str) -> None:
        self.lines += broken(self.indent + line)

    def child(self) -> Block:
        """Return a block that is one level deeper; names and values are shared."""
        return Block(self.writer, self.texts, self.indent + "    ")

    def thin(self, value: Value) -> Text:
        """Return an expression that broadcasts to a value, a Python number for a uniform constant."""
        if value.known is None or value in self.texts:
            return self.texts[value]
        uniform = value.uniform
        return self.writer.constant(value) if uniform is None else literal(uniform)

    def full(self, value: Value) -> Text:
        """Return an expression of a value's own shape and dtype."""
        text = self.thin(value)
        if text.weak:
            if value.shape == ():
                return Text(f"{kind(value.dtype)}({text.text})")
            return Text(filled(value.shape, text.text, value.dtype), ATOM, value.shape)
        if text.shape == value.shape:
            return text
        return Text(f"np.broadcast_to({text.text}, {tuple_of(value.shape)})", ATOM, value.shape)

    def own(self, value: Value) -> Text:
        """Return an expression of a value that may be changed or given away: no read-only view."""
        text = self.full(value)
        if text.text.startswith("np.broadcast_to("):
            thin = self.texts[value]
            full = filled(value.shape, thin.text, value.dtype)
            return text._replace(text=full if thin.shape == () else f"{text.text}.copy()")
        return text


def _labels(program: Program) -> dict[int, str]:
    """Return, for each operation that completes a statement `name = ...` of the user's, the name."""
    labels: dict[int, str] = {}
    statements = [assigned(op.frames) for op in program.ops]
    for at, found in enumerate(statements):
        after = statements[at + 1] if at + 1 < len(statements) else None
        if found and len(program.ops[at].outs) == 1 and (after is None or after[0] != found[0]):
            labels[at] = found[1]
    return labels


def pairs(names: list[str], texts: list[str]) -> str | None:
    """Return one statement that assigns all at once, without those that stay as they are."""
    kept: list[tuple[str, str]] = [(name, text) for name, text in zip(names, texts, strict=True) if name != text]
    if not kept:
        return None
    return f"{', '.join(name for name, _ in kept)} = {', '.join(text for _, text in kept)}"
