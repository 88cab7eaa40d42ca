"""A traced function as a flat list of operations, without calls, aliases and dead code."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, NamedTuple

import numpy as np


class Frame(NamedTuple):
    """A line of somebody's code."""

    file: str
    function: str
    line: int


class Value:
    """One array of a program; two values are the same only if they are one object.

    Attributes:
        shape, dtype: what it is.
        known: its numbers, when they are known while the source is written.
        bounds: the least and the greatest of a whole number, when known.
        maker: the operation that makes it.
    """

    __slots__ = ("bounds", "dtype", "known", "maker", "shape")

    def __init__(self, shape: Any, dtype: Any, known: np.ndarray | None = None) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        self.known = known
        self.bounds: tuple[int, int] | None = None
        self.maker: Op | None = None
        if known is not None and known.size and self.dtype.kind in "iu":
            self.bounds = int(known.min()), int(known.max())

    @classmethod
    def of(cls, numbers: Any, dtype: Any = None) -> Value:
        """Return a value whose numbers are known."""
        known = np.asarray(numbers, dtype)
        return cls(known.shape, known.dtype, known)

    @property
    def uniform(self) -> Any:
        """Return the one number that all entries are, or None."""
        if self.known is None or not self.known.size:
            return None
        first = self.known.reshape(-1)[0]
        same = (self.known == first).all() or (first != first and (self.known != self.known).all())
        return first if same and not (first == 0 and np.signbit(self.known.real).any()) else None


@dataclasses.dataclass(eq=False)
class Op:
    """One primitive: its inputs and outputs, the programs inside it, and the user's lines that it comes from."""

    name: str
    params: dict[str, Any]
    ins: list[Value]
    outs: list[Value]
    frames: tuple[Frame, ...] = ()
    inner: tuple[Program, ...] = ()


@dataclasses.dataclass(eq=False)
class Program:
    """Operations in order; what they read that is no input is captured from the program around."""

    ins: list[Value]
    ops: list[Op]
    outs: list[Value]

    def uses(self) -> Counter[Value]:
        """Count how often each value is read; one that an inner program reads counts twice, as it may run often."""
        counts = Counter(self.outs)
        for op in self.ops:
            counts.update(op.ins)
            for inner in op.inner:
                for value in inner.uses():
                    counts[value] += 2
        return counts

    def prune(self) -> None:
        """Drop what no output depends on."""
        live, kept = set(self.outs), []
        for op in reversed(self.ops):
            if live.intersection(op.outs):
                kept.append(op)
                live.update(op.ins)
                for inner in op.inner:
                    live.update(inner.uses())
        self.ops = kept[::-1]
