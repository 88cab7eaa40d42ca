"""Schedules of an unfolded algorithm: what to do about them, what each entry does, and what rounding does."""

from __future__ import annotations

import math
import re
from itertools import groupby
from typing import Any

import numpy as np

from unrollax._figures import Figure, Plot, Table
from unrollax._report import Section
from unrollax.readings._words import paragraphs, short

DRAWN = 6  # schedules with lines of their own
PIECES = 8  # runs of entries that a cell names
NONE, FLAT, TIED = "no influence", "gradient 0, errors change", "tied"
READ = (
    "A gradient is that of the mean step loss with respect to the number that an iteration takes, as if each iteration had "
    "one of its own: how much the loss changes per unit of that number. Compare the iterations of a schedule rather than "
    "schedules, which have units of their own. Gradients of 0 are not drawn: such an iteration has no say in its number."
)
NAMES = {"shared": "one for all", "periodic": "entry, taken in turn", "per_step": "iteration", "knots": "knot"}


def read_schedules(report: Any) -> list[Section]:
    """Return what a `ScheduleReport` says: the findings with what to do first, then the measurements."""
    text = paragraphs(
        f"Measured on one batch of problems, over {_count(len(report.errors) - 1, 'iteration')}. {_course(report.errors)}",
        _rounding(report),
        _growth(report),
        _theory(report),
        READ,
        f"Of {len(report.schedules)} schedules the first {DRAWN} are drawn." if len(report.schedules) > DRAWN else "",
    )
    return [
        _to_do(report),
        Section("Schedules: what was measured", text, _figures(report), {"By schedule": _table(report)}),
    ]


def _to_do(report: Any) -> Section:
    heading = "Schedules: what to do"
    if not report.findings:
        return Section(heading, "Nothing to mend was found.")
    names = _names(report)
    rows = [
        (names.get(each.where, each.where) or "all iterations", _sentence(each.what), each.remedy)
        for each in report.findings
    ]
    text = "What was found, and what to do about it. Entries and iterations are counted from 0."
    return Section(heading, text, (), {"": Table(("where", "what was found", "what to do"), rows)})


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _names(report: Any) -> dict[str, str]:
    """Return names to read by path, `step` for `['step']`; the paths themselves where such names are not unique."""
    names = {path: ".".join(re.findall(r"[^\[\]'\".]+", path)) or path for path in report.schedules}
    names |= {"(root)": "the schedule"} if "(root)" in names else {}
    return names if len(set(names.values())) == len(names) else {path: path for path in names}


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


def _course(errors: Any) -> str:
    """Say where the mean error begins and ends, or where it stops being a number."""
    errors = np.asarray(errors, float)
    fine = np.isfinite(errors)
    if not fine.all():
        at = int(np.argmin(fine))
        since = f"after {_count(at, 'iteration')}" if at else "from the start"
        return f"The mean error is NaN or infinite {since}."
    way = "falls" if errors[-1] < errors[0] else "grows" if errors[-1] > errors[0] else "goes"
    return f"The mean error {way} from {errors[0]:.3g} to {errors[-1]:.3g}."


def _rounding(report: Any) -> str:
    single, double = report.float32, report.float64
    if single is not None and double is not None:
        return (
            f"From the same numbers the error ends at {single[-1]:.3g} in float32 and at {double[-1]:.3g} in float64."
        )
    if single is None and double is None:
        return "What float32 does to it was not measured: the iteration can't be run in another dtype than its own."
    here, there = ("float32", "float64") if double is None else ("float64", "float32")
    end = (single if double is None else double)[-1]
    return f"In {here} the error ends at {end:.3g}; in {there} the iteration can't be run."


def _growth(report: Any) -> str:
    first, way = report.amplification, report.accumulation
    if first is None or way is None:
        return "How small changes of x grow was not measured: the iteration has no forward derivative."
    top = np.max(first)
    grows = "and never grows above its own size" if top < 1.005 else f"and by {top:.3g} where it is largest"
    return (
        f"A small random change of the start is multiplied by {first[-1]:.3g} in the end, {grows}, on the problem on which "
        "it grows most. Small random changes after each iteration, such as rounding, come to at most "
        f"{np.max(way):.3g} times the size of one of them."
    )


def _theory(report: Any) -> str:
    theory = report.theory
    if theory is None:
        return ""
    return (
        f"In theory gradient descent with these steps takes the error on the quadratic that was given from "
        f"{theory.error[0]:.3g} to {theory.error[-1]:.3g}. Rounding in float32 leaves about {theory.floor[-1]:.3g}, "
        f"and {theory.stable[-1]:.3g} if the same steps are taken in stable order. In the picture of the errors theory is "
        f"multiplied by {short(_scale(report))}, so that it begins where the batch does."
    )


def _scale(report: Any) -> float:
    """Return what takes the errors of theory to those of the batch: each has units of its own."""
    begins, theory = float(report.errors[0]), float(report.theory.error[0])
    scale = begins / theory if theory else math.nan
    return scale if math.isfinite(scale) and scale > 0 else 1.0


def _figures(report: Any) -> list[Figure]:
    names = _names(report)
    drawn = {names[path]: each for path, each in list(report.schedules.items())[:DRAWN]}
    horizon = len(report.errors) - 1
    every = np.arange(horizon + 1)
    slopes = {name: each.by_iteration for name, each in drawn.items()}
    figures: list[Figure] = [
        Plot("Error by precision", "iterations done", every, _errors(report), "mean error", "y"),
        Plot("Gradient by iteration", "iteration", np.arange(horizon), slopes, "|d loss / d number|", "y"),
        *(_numbers(name, each) for name, each in drawn.items() if len(each.values) > 1),
    ]
    if growth := _growths(report):
        figures.append(Plot("Growth of small changes", "iterations done", every, growth, "factor", "y"))
    return figures


def _errors(report: Any) -> dict[str, Any]:
    both = {"in float32": report.float32, "in float64": report.float64}
    lines = {name: errors for name, errors in both.items() if errors is not None}
    if len(lines) < 2:  # the batch's own dtype is neither of both, or not known to be one
        lines = {"in its own dtype": report.errors, **lines}
    if report.theory is None:
        return lines
    scale = _scale(report)
    return lines | {
        "theory: no rounding": scale * report.theory.error,
        "theory: float32 rounding": scale * report.theory.floor,
        "theory: the same, stable order": scale * report.theory.stable,
    }


def _growths(report: Any) -> dict[str, Any]:
    lines = {"a change of the start": report.amplification, "changes all the way": report.accumulation}
    if report.theory is not None:
        lines["theory: a change of the start, at most"] = report.theory.amplification
    return {name: growth for name, growth in lines.items() if growth is not None}


def _numbers(name: str, each: Any) -> Plot:
    """Return the numbers of a schedule by entry, with those pointed out that training can't move or part."""
    values = np.asarray(each.values, float)
    flat = values.reshape(len(values), -1)
    called = "number" if flat.shape[1] == 1 else f"root mean square of {flat.shape[1]} numbers"
    shown = flat[:, 0] if flat.shape[1] == 1 else np.sqrt(np.square(flat).mean(1))
    tied = tuple(entry for group in each.tied for entry in group)
    marked = {NONE: each.unused, FLAT: each.flat, TIED: tied}
    points = {label: _only(shown, entries) for label, entries in marked.items() if entries}
    wide = bool((shown > 0).all() and shown.max() > 20 * shown.min())
    over = NAMES.get(each.kind, "entry")
    log = "y" if wide else ""
    return Plot(f"Numbers of {name}", over, np.arange(len(shown)), {called: shown, **points}, name, log, tuple(points))


def _only(shown: np.ndarray, entries: tuple[int, ...]) -> np.ndarray:
    return np.where(np.isin(np.arange(len(shown)), entries), shown, np.nan)


def _table(report: Any) -> Table:
    columns = {
        "schedule": list(_names(report).values()),
        "kind": [each.kind for each in report.schedules.values()],
        "entries": [str(len(each.values)) for each in report.schedules.values()],
        "numbers": [_range(each.values) for each in report.schedules.values()],
        NONE: [_places(each.unused) for each in report.schedules.values()],
        FLAT: [_places(each.flat) for each in report.schedules.values()],
        TIED: ["; ".join(map(_places, each.tied)) for each in report.schedules.values()],
        "gradient by iteration": [_range(each.by_iteration) for each in report.schedules.values()],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def _range(numbers: Any) -> str:
    """Return the least and the largest number that is finite, and how many are not."""
    numbers = np.asarray(numbers, float).ravel()
    fine = numbers[np.isfinite(numbers)]
    rest = len(numbers) - len(fine)
    low, high = (short(fine.min()), short(fine.max())) if len(fine) else ("", "")
    said = low if low == high else f"{low} to {high}"
    return ", ".join(text for text in (said, f"{rest} NaN or infinite" if rest else "") if text)


def _places(entries: tuple[int, ...]) -> str:
    """Name entries, neighbours by the first and the last.

    Example:
        >>> _places((0, 1, 2, 5))
        '0 to 2, 5'
    """
    runs = [[entry for _, entry in run] for _, run in groupby(enumerate(entries), lambda pair: pair[1] - pair[0])]
    named = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(named[:PIECES]) + (f" and {len(named) - PIECES} more" if len(named) > PIECES else "")
