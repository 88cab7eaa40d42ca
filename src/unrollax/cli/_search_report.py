"""What a search says: a table on the terminal, `search.csv`, a section of the report and a part of the JSON."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unrollax._figures import Plot, Table
from unrollax._report import Section
from unrollax.cli._search_config import Choices, Ranges

SHOWN = 10  # rows of the table


class Trial(NamedTuple):
    """One setting that was tried.

    Attributes:
        number: from 1 on.
        values: what was set, by name.
        state: "done", "stopped early", "diverged", "impossible", "interrupted" or "failed".
        error: after the last iteration, if it was done.
        updates: made.
        seconds: all of it took.
    """

    number: int
    values: dict[str, Any]
    state: str
    error: float | None
    updates: int
    seconds: float

    @property
    def rank(self) -> tuple[float, int]:
        """Its place, the smallest for the best."""
        return float("inf") if self.error is None else self.error, self.number

    def cells(self) -> dict[str, str]:
        """Return it as a row."""
        says = self.state if self.error is None else f"{self.error:.4g}"
        return {"trial": str(self.number), "error": says, **{name: shown(item) for name, item in self.values.items()}}


def shown(item: Any) -> str:
    """Return a value as it is shown, a number with four digits."""
    return f"{item:.4g}" if isinstance(item, float) else "none" if item is None else str(item)


def say_values(values: dict[str, Any]) -> str:
    """Return values in a line."""
    return " ".join(f"{name}={shown(item)}" for name, item in values.items())


def text(trials: Sequence[Trial], path: Path) -> str:
    """Return the best trials as text, best first."""
    rows = [trial.cells() for trial in sorted(trials, key=lambda trial: trial.rank)[:SHOWN]]
    names = list(rows[0])
    widths = {name: max(len(row[name]) for row in [*rows, {name: name}]) for name in names}
    lines = ["  ".join(f"{row[name]:>{widths[name]}}" for name in names) for row in [{n: n for n in names}, *rows]]
    return "\n".join([*lines, f"{counted(trials)}. All of them: {path}"])


def counted(trials: Sequence[Trial]) -> str:
    """Return how many there were, what became of them, and how long they took."""
    counts = Counter(trial.state for trial in trials if trial.state != "done")
    others = "".join(f", {count} {state}" for state, count in counts.items())
    plural = "s" if len(trials) > 1 else ""
    return f"{len(trials)} trial{plural} in {sum(trial.seconds for trial in trials):.0f} s{others}"


def write_csv(path: Path, trials: Sequence[Trial]) -> None:
    """Write all trials, with all digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", *trials[0].values, "error", "state", "updates", "seconds"])
        for each in trials:
            values = ("none" if item is None else item for item in each.values.values())
            error = "" if each.error is None else each.error
            writer.writerow([each.number, *values, error, each.state, each.updates, f"{each.seconds:.2f}"])


def as_json(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return all trials."""
    return [
        {
            "trial": trial.number,
            "settings": trial.values,
            "error": trial.error,
            "state": trial.state,
            "updates": trial.updates,
            "seconds": round(trial.seconds, 2),
        }
        for trial in trials
    ]


def section(trials: Sequence[Trial], ranges: Ranges, unit: str) -> Section:
    """Return the error against each setting that was searched, and a table of all trials."""
    done = sorted((trial for trial in trials if trial.error is not None), key=lambda trial: trial.rank)
    numbers = [name for name, found in ranges.items() if not isinstance(found, Choices) and done]
    tables = {f"By {name}": _by(name, done, unit) for name in ranges if name not in numbers and done}
    rows = [list(trial.cells().values()) for trial in sorted(trials, key=lambda trial: trial.rank)]
    tables["Trials"] = Table(list(trials[0].cells()), rows)
    says = (
        f"{counted(trials)}. Each was judged by its {unit} after the last iteration, on problems that served for nothing "
        "else: neither for training nor for the errors above."
    )
    return Section("Search", says, [_plot(name, done, ranges, unit) for name in numbers], tables)


def _plot(name: str, done: Sequence[Trial], ranges: Ranges, unit: str) -> Plot:
    """Return the error against a number; `done` has the best one first."""
    found = ranges[name]
    points = sorted((trial.values[name], trial.error or 0.0) for trial in done)
    x, errors = zip(*points, strict=True)
    axes = ("" if isinstance(found, Choices) or not found.log else "x") + (
        "y" if max(errors) > 3 * min(errors) > 0 else ""
    )
    marks = {"best": done[0].values[name]}
    return Plot(f"Error by {name}", name, x, {"trials": errors}, up=unit, log=axes, points={"trials"}, marks=marks)


def _by(name: str, done: Sequence[Trial], unit: str) -> Table:
    """Return the best and the median error of each choice."""
    groups: dict[str, list[float]] = {}
    for trial in done:
        groups.setdefault(shown(trial.values[name]), []).append(trial.error or 0.0)
    rows = [
        (choice, str(len(errors)), f"{errors[0]:.4g}", f"{statistics.median(errors):.4g}")
        for choice, errors in groups.items()
    ]
    return Table((name, "trials", f"best {unit}", "median"), rows)
