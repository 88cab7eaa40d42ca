"""What was found of the schedules of an unfolded algorithm, in figures and in words."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from unrollax.diagnosis._text import aligned, plain

DIFFERS = 0.1  # relative difference of the errors in float32 and float64 that is worth a word
HALF = 1 / math.sqrt(np.finfo(np.float32).eps)  # growth of rounding errors that costs half of float32's digits
SHOWN = 8  # entries that a line names


class ScheduleEntries(NamedTuple):
    """The entries of one schedule; see `diagnose_schedules`.

    Attributes:
        kind: `shared`, `periodic`, `per_step` or `knots`.
        values: the numbers of the entries, `[entries, ...]`; one entry for a shared number.
        grad: `[entries]`, the norm of the gradient of the mean step loss with respect to each entry's raw numbers.
        by_iteration: `[horizon]`, the norm of the gradient with respect to the number that each iteration takes, as if each
            had one of its own: in units of loss over units of the number.
        unused: entries with a gradient of exactly 0 that also change no error when they are moved.
        flat: entries with a gradient of exactly 0 that do change errors when they are moved.
        tied: groups of entries with equal numbers and, to rounding, equal gradients.
    """

    kind: str
    values: np.ndarray
    grad: np.ndarray
    by_iteration: np.ndarray
    unused: tuple[int, ...]
    flat: tuple[int, ...]
    tied: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, for JSON."""
        out: dict[str, Any] = plain(self)
        return out


class Theory(NamedTuple):
    """What `unrollax.theory` says of gradient descent's steps on a quadratic, after 0 to N iterations: each `[N + 1]`.

    Attributes:
        error: `schedule_error`, without rounding.
        amplification: of the products up to each iteration, over the whole interval.
        floor: `rounding_floor` in float32.
        stable: `rounding_floor` of the same steps in `stable_order`.
    """

    error: np.ndarray
    amplification: np.ndarray
    floor: np.ndarray
    stable: np.ndarray


class Finding(NamedTuple):
    """One thing to know, and what to do about it.

    Attributes:
        kind: `not finite`, `unused`, `flat`, `tied`, `rounding`, `growth` or `floor`.
        where: the schedule's path in params, or `""`.
        what: what was measured.
        remedy: what to do.
    """

    kind: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where + ': ' if self.where else ''}{self.what}. {self.remedy}"


class ScheduleReport(NamedTuple):
    """What the schedules of an unfolded algorithm do; see `diagnose_schedules`. N is the horizon.

    Attributes:
        schedules: by path in params.
        errors: `[N + 1]`, the batch mean of the errors.
        amplification: `[N + 1]`, by how much a small random change of the start has grown, the largest of the batch; `None`
            if the iteration has no forward derivative.
        accumulation: `[N + 1]`, what random changes of size 1 after each iteration have come to, the root mean square
            over the batch: times the size of x and the dtype's epsilon, about what rounding does. `None` as above.
        float32: `[N + 1]`, the errors of the batch, rounded to float32, in float32; `None` if the iteration fixes its dtype.
        float64: `[N + 1]`, those of the same rounded batch in float64; `None` as above.
        theory: for gradient descent on a quadratic, if one was given.
        findings: what needs attention, and what to do.
    """

    schedules: dict[str, ScheduleEntries]
    errors: np.ndarray
    amplification: np.ndarray | None
    accumulation: np.ndarray | None
    float32: np.ndarray | None
    float64: np.ndarray | None
    theory: Theory | None
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        horizon = len(self.errors) - 1
        rows: list[tuple[str, ...]] = [
            ("schedule", "kind", "entries", "unused", "tied", "gradient by iteration, least", "largest")
        ]
        for name, each in self.schedules.items():
            low, high = each.by_iteration.min(), each.by_iteration.max()
            counts = (len(each.grad), len(each.unused), sum(map(len, each.tied)))
            rows.append((name, each.kind, *map(str, counts), f"{low:.3g}", f"{high:.3g}"))
        shown = sorted({0, horizon // 4, horizon // 2, horizon})
        curves = [(name, curve) for name, curve in self._curves() if curve is not None]
        table = [("after iteration", *map(str, shown)), *((n, *(f"{c[t]:.3g}" for t in shown)) for n, c in curves)]
        said = [f"- {finding}" for finding in self.findings] or ["Nothing to mend."]
        return "\n".join([aligned(rows), "", aligned(table), "", *said])

    def _curves(self) -> list[tuple[str, np.ndarray | None]]:
        theory = self.theory
        return [
            ("error", self.errors),
            ("error in float32", self.float32),
            ("error in float64", self.float64),
            ("growth of a change at the start", self.amplification),
            ("growth of changes all the way", self.accumulation),
            ("theory: largest growth from the start", None if theory is None else theory.amplification),
            ("theory: float32 rounding floor", None if theory is None else theory.floor),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON; NaN and infinities stay floats."""
        out: dict[str, Any] = plain(self)
        return out


def findings_of(report: ScheduleReport) -> tuple[Finding, ...]:
    """Say what the figures mean."""
    found = [finding for name, each in report.schedules.items() for finding in _of_entries(name, each)]
    return (*found, *_of_rounding(report), *_of_theory(report.theory))


def _of_entries(name: str, each: ScheduleEntries) -> list[Finding]:
    found = []
    if not np.isfinite(each.by_iteration).all():
        first = int(np.argmin(np.isfinite(each.by_iteration)))
        what = f"the gradient is NaN or infinite, at iteration {first} first"
        found.append(Finding("not finite", name, what, "Start from smaller steps, or unfold fewer iterations."))
    if each.unused:
        what = f"{_entries(each.unused)} no influence on the loss"
        remedy = "Training never moves it: drop the entry, share it with a neighbour, or take another start for x."
        found.append(Finding("unused", name, what, remedy))
    if each.flat:
        what = f"{_entries(each.flat)} a gradient of exactly 0, but errors change when it is moved"
        remedy = "Reverse mode doesn't train it: look for rounding, thresholds or clipping, or take ux.PES."
        found.append(Finding("flat", name, what, remedy))
    for group in each.tied:
        what = f"{_entries(group)} equal numbers and equal gradients, and no update parts them"
        remedy = "Start apart: ux.jitter(params, key, std=0.1), or Chebyshev steps."
        found.append(Finding("tied", name, what, remedy))
    return found


def _of_rounding(report: ScheduleReport) -> list[Finding]:
    found = []
    if report.float32 is not None and report.float64 is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = ~(np.abs(report.float32 - report.float64) <= DIFFERS * np.abs(report.float64))
        apart &= ~((report.float32 == report.float64) | (np.isnan(report.float32) & np.isnan(report.float64)))
        if apart.any():
            what = (
                f"float32 is not enough beyond {max(int(np.argmax(apart)) - 1, 0)} iterations: the error at the end is "
                f"{report.float32[-1]:.2g}, in float64 {report.float64[-1]:.2g}"
            )
            remedy = 'Set jax.config.update("jax_enable_x64", True), or order the steps by ux.theory.stable_order.'
            found.append(Finding("rounding", "", what, remedy))
    if report.accumulation is not None and not report.accumulation.max() <= HALF:
        what = f"small changes on the way, such as rounding, grow to {report.accumulation.max():.2g} times their size"
        found.append(Finding("growth", "", what, "Order the steps by ux.theory.stable_order, or take smaller ones."))
    return found


def _of_theory(theory: Theory | None) -> list[Finding]:
    if theory is None or not theory.floor[-1] > theory.error[-1]:
        return []
    what = f"rounding in float32 leaves about {theory.floor[-1]:.2g}, and the steps alone {theory.error[-1]:.2g}"
    better = theory.stable[-1] < theory.floor[-1] / 10
    order = f"ux.theory.stable_order of the steps leaves {theory.stable[-1]:.2g}" if better else "No order helps"
    return [Finding("floor", "", what, f"{order}; float64 is the other remedy.")]


def _entries(places: tuple[int, ...]) -> str:
    """Name entries, with the verb.

    Example:
        >>> _entries((0,)), _entries((1, 3))
        ('entry 0 has', 'entries 1, 3 have')
    """
    named = ", ".join(map(str, places[:SHOWN])) + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
    return f"entry {named} has" if len(places) == 1 else f"entries {named} have"
