"""From measurements to advice: what to change, what it should bring, and whether it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from unrollax._types import Data, Key, Params, System
from unrollax.diagnosis import Comparison, Flow, Gates, Lyapunov

MOST = 5  # pieces of advice: more are no advice


class Case(NamedTuple):
    """What advice is given on: a system, one horizon of its data, and what was measured of them."""

    system: System
    params: Params
    data: Data
    key: Key
    flow: Flow
    dynamics: Lyapunov | None
    gates: tuple[Gates, ...]
    comparison: Comparison | None

    @property
    def horizon(self) -> int:
        """Steps of the unroll."""
        return self.flow.table.shape[1]


class Finding(NamedTuple):
    """What a rule found.

    Attributes:
        weight: how much it matters, from 0 to 1.
        title: what to do.
        why: what was measured.
        effect: what it should bring, in words.
        predicted: the same as a number.
        option: Python that applies it.
        command: options of the command line that do, or `""`.
        measure: measures that number with the advice applied; `None` where that is another comparison.
        holds: whether a measured number is what was predicted.
        exact: it rests on the exact gradient of the whole horizon.
        distrusts: that gradient is of no use, so what rests on it is no advice.
    """

    weight: float
    title: str
    why: str
    effect: str
    predicted: float
    option: str
    command: str
    measure: Callable[[], float] | None
    holds: Callable[[float], bool]
    exact: bool = False
    distrusts: bool = False


class Advice(NamedTuple):
    """One piece of advice; see `diagnose`.

    Attributes:
        rank: 1 is the first to try.
        title: what to do.
        why: what was measured.
        effect: what it should bring, in words.
        predicted: the same as a number.
        measured: that number with the advice applied; `None` unless it was verified, NaN if it is below what can be measured.
        held: whether the prediction held; `None` unless it was measured.
        option: Python that applies it, or the name of the estimator that was compared; `""` if there is none.
        command: options of `unrollax train` that do, or `""`.
    """

    rank: int
    title: str
    why: str
    effect: str
    predicted: float
    measured: float | None
    held: bool | None
    option: str
    command: str

    def __str__(self) -> str:
        lines = [f"{self.rank}. {self.title}", f"   {self.why}", f"   {self.effect}"]
        if self.measured is not None and math.isnan(self.measured):
            lines.append(f"   Predicted {self.predicted:.3g}: below what can be measured.")
        elif self.measured is not None:
            verdict = "the prediction held" if self.held else "the prediction did not hold"
            lines.append(f"   Predicted {self.predicted:.3g}, measured {self.measured:.3g}: {verdict}.")
        return "\n".join([*lines, *(f"   {text}" for text in (self.option, self.command) if text)])

    def to_dict(self) -> dict[str, Any]:
        """Return it by field."""
        return self._asdict()


Rule = Callable[[Case], Finding | None]


def ranked(case: Case, rules: Sequence[Rule], *, verify: bool, observe: Callable[[str], None]) -> list[Advice]:
    """Return what the rules say of a case, at most five pieces, what matters most first."""
    found = sorted((each for rule in rules if (each := rule(case))), key=lambda each: -each.weight)
    if any(each.distrusts for each in found):
        found = [each for each in found if not each.exact]
    pieces = []
    for rank, each in enumerate(found[:MOST], 1):
        if verify and each.measure is not None:
            observe(f"verifying: {each.title}")
        measured = each.measure() if verify and each.measure is not None else None
        held = None if measured is None or math.isnan(measured) else each.holds(measured)
        pieces.append(
            Advice(rank, each.title, each.why, each.effect, each.predicted, measured, held, each.option, each.command)
        )
    return pieces
