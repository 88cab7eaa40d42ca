"""What a comparison of estimators found: a table, plain data, and curves of error against cost."""

from __future__ import annotations

import math
import textwrap
from typing import Any, NamedTuple

import numpy as np

from unrollax.diagnosis._reference import Reference
from unrollax.diagnosis._text import aligned, plain
from unrollax.diagnosis._verdict import Row, amount, cost_of, error_at

POINTS = 25  # of the curves of error against cost
DECADES = 3  # by which the curves go on after the dearest estimator's first sample
WIDTH = 120  # of all that is printed
NAME = 28  # letters of a name in the table
SURE = 1e-3  # of a bias, below which its error is not shown


class Comparison(NamedTuple):
    """What `compare` returns.

    Attributes:
        rows: one for each estimator, in the caller's order; norms are relative to the reference's.
        reference: what they are compared with.
        recommended: name of the estimator that reaches the tolerance for the least.
        reason: why, with figures.
        unit: of costs, `seconds` or `steps`.
        tolerance: the relative error that is asked for.
        horizon: steps of a sample.
        samples: horizons that each estimator was run for.
    """

    rows: list[Row]
    reference: Reference
    recommended: str
    reason: str
    unit: str
    tolerance: float
    horizon: int
    samples: int

    def cost(self, row: Row) -> float:
        """Return the cost of one horizon, NaN where it is unknown."""
        return cost_of(row, self.unit)

    def error_at(self, compute: float) -> dict[str, float]:
        """Return each estimator's relative root-mean-square error when `compute` goes into its samples' mean.

        It is the root of bias^2 + std^2 / n, with n the samples that `compute` (in `unit`) buys, and infinite where it
        doesn't buy one. An unresolved bias counts as none.
        """
        return {row.name: error_at(row, self.cost(row), compute) for row in self.rows}

    def curves(self) -> dict[str, Any]:
        """Return `error_at` on a logarithmic grid of costs, `{"compute": [...], "error": {name: [...]}}`."""
        costs = [self.cost(row) for row in self.rows if self.cost(row) > 0] or [1.0]
        grid = np.geomspace(min(costs), 10**DECADES * max(costs), POINTS)
        errors = [self.error_at(float(compute)) for compute in grid]
        return {"compute": grid.tolist(), "error": {row.name: [at[row.name] for at in errors] for row in self.rows}}

    def frontier(self) -> list[str]:
        """Return who has the least error at some cost of `curves`, the cheapest first."""
        curves = self.curves()["error"]
        best = [min(curves, key=lambda name: curves[name][i]) for i in range(POINTS)]
        return list(dict.fromkeys(name for i, name in enumerate(best) if math.isfinite(curves[name][i])))

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python, with the curves and the frontier of a cost-error plot, without the gradient itself."""
        found = plain({**self._asdict(), "reference": self.reference._replace(grad=None)})
        del found["reference"]["grad"]
        limits = [{**row, "limit": of.limit} for row, of in zip(found["rows"], self.rows, strict=True)]
        return {**found, "rows": limits, "curves": self.curves(), "frontier": self.frontier()}

    def __str__(self) -> str:
        head = (
            "estimator",
            "bias",
            "std",
            "cosine",
            "snr",
            "steps",
            "ms",
            "kB",
            "updates",
            f"{self.unit} to {self.tolerance:g}",
        )
        body = [_cells(row, self.unit) for row in self.rows]
        notes = [f"{row.name}: {row.note}" for row in self.rows if row.note]
        return "\n".join(
            [
                f"Of a horizon of {self.horizon} steps, {self.samples} samples each; bias and std over the reference's norm.",
                _wrapped(f"Reference: {self.reference}"),
                aligned([head, *body]),
                *map(_wrapped, notes),
                _wrapped(f"Recommended: {self.recommended}. {self.reason}"),
            ]
        )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _cells(row: Row, unit: str) -> tuple[str, ...]:
    bias = f"{row.bias:.2g} +-{row.bias_error:.1g}" if row.resolved else f"< {row.limit:.2g}"
    if row.resolved and row.bias_error < SURE * row.bias:
        bias = f"{row.bias:.3g}"
    never = "unknown" if math.isnan(cost_of(row, unit)) else "never"
    needed = never if math.isinf(row.cost_to) else amount(row.cost_to, unit).split()[0]
    return (
        row.name[:NAME],
        bias,
        f"{row.std:.3g}",
        f"{row.cosine:.3f}",
        f"{row.snr:.2g}",
        f"{row.steps:,.0f}",
        f"{1e3 * row.seconds:.3g}",
        f"{row.bytes / 1e3:,.1f}",
        str(row.updates),
        needed,
    )
