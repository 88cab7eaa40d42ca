"""Estimators side by side: bias, noise and cost, and which one pays."""

from __future__ import annotations

import math
from typing import Any

from unrollax._figures import Figure, Plot, Scatter, Table
from unrollax._report import Section
from unrollax.readings._words import paragraphs, short

LINES = 8
HEAD = (
    "estimator", "bias", "standard deviation", "cosine", "signal to noise", "steps", "ms", "kB", "updates", "cost",
)  # fmt: skip


def read_comparison(found: Any) -> list[Section]:
    """Return what a `Comparison` says."""
    reference, notes = found.reference, [f"{row.name}: {row.note}." for row in found.rows if row.note]
    text = paragraphs(
        f"Recommended: {found.recommended}. {found.reason}",
        f"Bias and standard deviation are those of the gradient of one horizon, in units of the reference's norm. The "
        f"reference: {reference}. A bias that can't be told from noise is given as what it is below, and "
        "the cost takes it for none, but of an estimator that may be biased only where that is below the tolerance.",
        f"Cost: {found.unit} until the mean of so many horizons has a relative error of {found.tolerance:g}. Steps, time and "
        "memory are of one horizon. An error of 0 is drawn where it is known to be below.",
        " ".join(notes),
    )
    rows = [_row(row, found.unit) for row in found.rows]
    points = {row.name: (found.cost(row), _drawn(row, math.hypot(_bias(row), row.std))) for row in found.rows}
    figures: list[Figure] = [
        Scatter("Error against cost of one horizon", f"{found.unit} for one horizon", "relative error", points),
        _curves(found),
    ]
    return [Section("Estimators", text, figures, {"": Table((*HEAD[:-1], f"{found.unit} to reach it"), rows)})]


def _bias(row: Any) -> float:
    return float(row.bias) if row.resolved else 0.0


def _drawn(row: Any, error: float) -> float:
    """Return an error for a logarithmic axis: none at all is drawn where it is known to be below."""
    return error if error > 0 else float(row.limit)


def _row(row: Any, unit: str) -> tuple[str, ...]:
    bias = f"{row.bias:.2g} +- {row.bias_error:.1g}" if row.resolved else f"below {row.limit:.2g}"
    needed = "never" if math.isinf(row.cost_to) else short(row.cost_to)
    return (
        row.name, bias, f"{row.std:.3g}", f"{row.cosine:.3f}", short(row.snr), short(row.steps),
        f"{1e3 * row.seconds:.3g}", f"{row.bytes / 1e3:,.1f}", str(row.updates), needed,
    )  # fmt: skip


def _curves(found: Any) -> Plot:
    """Return error against cost, of those on the frontier first, then of the cheapest."""
    curves, rows = found.curves(), {row.name: row for row in found.rows}
    cheapest = [row.name for row in sorted(found.rows, key=lambda row: row.cost_to)]
    names = list(dict.fromkeys([*found.frontier(), *cheapest]))[:LINES]
    lines = {
        name: [_drawn(rows[name], y) if math.isfinite(y) else math.nan for y in curves["error"][name]] for name in names
    }
    title = "Error of the mean of many horizons"
    return Plot(title, f"{found.unit} in all", curves["compute"], lines, "relative error", "xy")
