"""From samples to figures and a recommendation: bias with its error, noise, and the cost of a given accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESOLVED = 2.0  # standard errors
NEAR = 1.5  # costs within this factor count as equal
LIGHT = 1.1  # and so does memory
CACHE = 2**20  # bytes: what fits in a core's cache is no reason to choose
ROUNDING = 8.0  # units in the last place that say nothing


class Row(NamedTuple):
    """What a comparison says of one estimator. Norms are relative to the reference's.

    Attributes:
        name: what the caller calls it.
        bias: norm of the mean's distance from the reference, without what the errors of both add to it.
        bias_error: its standard error.
        resolved: whether the squared bias is above two of its standard errors.
        std: root of the summed variances of one sample, a horizon.
        cosine: mean cosine of a sample and the reference.
        snr: squared norm of the mean over the summed variances, infinite if nothing is random.
        steps: cost of a horizon in steps forward; a tangent counts as one more, a cotangent as two.
        seconds: wall time of a horizon, compiled.
        bytes: temporary memory of the compiled estimator, with its state.
        updates: estimates a horizon.
        cost_to: cost of a relative error of `tolerance`, in the comparison's unit; infinite if the bias forbids it.
        nonfinite: share of the samples with a NaN or an infinity; they are left out of the other figures.
        note: what else there is to know.
        unbiased: whether its traits say that it averages to the exact or the smoothed gradient.
    """

    name: str
    bias: float
    bias_error: float
    resolved: bool
    std: float
    cosine: float
    snr: float
    steps: float
    seconds: float
    bytes: int
    updates: int
    cost_to: float
    nonfinite: float
    note: str
    unbiased: bool = False

    @property
    def limit(self) -> float:
        """What the bias is below, at two standard errors of its square."""
        if math.isinf(self.bias):
            return math.inf
        return math.sqrt(self.bias**2 + RESOLVED * ((self.bias + self.bias_error) ** 2 - self.bias**2))

    @property
    def floor(self) -> float:
        """The relative error that no number of samples gets below: the bias, where there is one."""
        return self.bias if self.resolved else 0.0


class Bias(NamedTuple):
    """The squared norm of a bias, unbiased and so sometimes negative, and its standard error."""

    square: float
    error: float

    @property
    def resolved(self) -> bool:
        return self.square > RESOLVED * self.error

    @property
    def size(self) -> float:
        return math.sqrt(max(self.square, 0.0))

    @property
    def size_error(self) -> float:
        return math.sqrt(max(self.square, 0.0) + self.error) - self.size if self.square < math.inf else 0.0


class Moments(NamedTuple):
    """Figures of one estimator's samples; see `Row`."""

    bias: Bias
    std: float
    cosine: float
    snr: float
    nonfinite: float


def moments(samples: np.ndarray, mean: np.ndarray, roots: np.ndarray, eps: float) -> Moments:
    """Return the figures of samples `[n, d]`, in units of the reference's norm.

    With d = m - r, m the samples' mean and r the reference, |d|^2 exceeds |bias|^2 on average by tr C, where C is the sum of
    both covariances; the rest is unbiased, and its variance is 4 bias' C bias + 2 tr C^2 for normal errors.

    Args:
        samples: finite or not.
        mean: the reference.
        roots: rows whose outer products sum to the covariance of the reference.
        eps: the rounding of the samples' dtype.
    """
    fine = samples[np.isfinite(samples).all(1)]
    nonfinite = 1 - len(fine) / len(samples)
    if len(fine) < 2:
        return Moments(Bias(math.inf, 0.0), math.nan, math.nan, math.nan, nonfinite)
    with np.errstate(over="ignore", invalid="ignore"):
        found = _of_finite(fine, mean, roots, eps)._replace(nonfinite=nonfinite)
    return found if math.isfinite(found.bias.square + found.bias.error) else found._replace(bias=Bias(math.inf, 0.0))


def _of_finite(fine: np.ndarray, mean: np.ndarray, roots: np.ndarray, eps: float) -> Moments:
    count, center = len(fine), fine[0] if (fine == fine[0]).all() else fine.mean(0)  # whose rounding is no variance
    around = fine - center
    variance = float(np.square(around).sum() / (count - 1))
    away = center - mean
    every = np.concatenate([around / math.sqrt(count * (count - 1)), roots])
    square = float(np.square(away).sum() - np.square(every).sum())
    spread = float(np.square(every @ every.T).sum())
    error = max(4 * float(np.square(every @ away).sum()) - 2 * spread, 2 * spread)
    floor = ROUNDING * eps * max(1.0, float(np.linalg.norm(center)))
    bias = Bias(square, math.sqrt(error + floor**4))
    signal = max(float(np.square(center).sum()) - variance / count, 0.0)
    snr = signal / variance if variance else math.inf
    return Moments(bias, math.sqrt(variance), _cosine(fine, mean), snr, 0.0)


def _cosine(samples: np.ndarray, mean: np.ndarray) -> float:
    norms = np.linalg.norm(samples, axis=1) * np.linalg.norm(mean)
    return float(np.mean(np.divide(samples @ mean, norms, out=np.zeros_like(norms), where=norms > 0)))


def cost_to(row: Row, cost: float, tolerance: float) -> float:
    """Return the cost of samples whose mean has a relative root-mean-square error of `tolerance`.

    Of an estimator that may be biased, a bias that the samples can't tell from the tolerance is no proof that it gets there.
    """
    doubtful = not row.resolved and not row.unbiased and row.limit > tolerance
    if row.nonfinite or math.isnan(cost) or doubtful or not row.floor < tolerance:
        return math.inf
    return max(1.0, row.std**2 / (tolerance**2 - row.floor**2)) * cost


def error_at(row: Row, cost: float, compute: float) -> float:
    """Return the relative root-mean-square error of the samples that `compute` buys; infinite if it buys none."""
    if row.nonfinite or not compute >= cost:
        return math.inf
    return math.sqrt(row.floor**2 + row.std**2 * cost / compute)


def recommend(rows: Sequence[Row], unit: str, tolerance: float) -> tuple[str, str]:
    """Return the name of the estimator that pays, and why.

    The least cost of the tolerance wins. Of those within a factor of 1.5 of it, those with the least memory, where 10 % or
    what fits in a cache makes no difference; of these the one that updates most often, then the cheapest.
    """
    least = min(row.cost_to for row in rows)
    if math.isinf(least):
        return _nearest(rows, unit, tolerance)
    near = [row for row in rows if row.cost_to <= NEAR * least]
    memory = max(LIGHT * min(row.bytes for row in near), CACHE)
    light = [row for row in near if row.bytes <= memory]
    best = min(light, key=lambda row: (-row.updates, row.cost_to))
    return best.name, _reason(best, rows, near, unit, tolerance)


def cost_of(row: Row, unit: str) -> float:
    """Return the cost of one horizon, NaN where it is unknown."""
    return row.steps if unit == "steps" else row.seconds


def _nearest(rows: Sequence[Row], unit: str, tolerance: float) -> tuple[str, str]:
    unknown = [
        row for row in rows if math.isnan(cost_of(row, unit)) and math.isfinite(cost_to(row, row.seconds, tolerance))
    ]
    if unknown:
        best = min(unknown, key=lambda row: cost_to(row, row.seconds, tolerance))
        time = amount(cost_to(best, best.seconds, tolerance), "seconds")
        return best.name, (
            f"{best.name} reaches a relative error of {tolerance:g} in the least time, {time}; what it costs in {unit} is "
            "unknown."
        )
    best = min(rows, key=lambda row: (row.nonfinite > 0, row.bias, row.std))
    if best.nonfinite:
        return (
            best.name,
            f"no estimator is finite in all samples; {best.name} is so in {1 - best.nonfinite:.0%} of them.",
        )
    return best.name, (
        f"none reaches a relative error of {tolerance:g}; {best.name} comes nearest, with a {_bias(best, ' of')}."
    )


def _reason(best: Row, rows: Sequence[Row], near: Sequence[Row], unit: str, tolerance: float) -> str:
    said = f"{best.name} reaches a relative error of {tolerance:g} for {amount(best.cost_to, unit)}"
    said += f" ({_bias(best)}, deviation {best.std:.2g} a horizon)"
    rivals = [row.name for row in near if row is not best]
    if rivals:
        more = f"{best.updates} update{'s' if best.updates > 1 else ''} a horizon and {best.bytes:,} bytes"
        said += f", with {more}, before {_listed(rivals)} at about the same cost"
    others = sorted((row for row in rows if row not in near), key=lambda row: row.cost_to)
    if others and math.isfinite(others[0].cost_to):
        said += f"; next is {others[0].name} for {amount(others[0].cost_to, unit)}"
    unknown = [row.name for row in others if math.isnan(cost_of(row, unit))]
    if unknown:
        said += f"; what {_listed(unknown)} cost{'s' if len(unknown) == 1 else ''} in {unit} is unknown"
    never = (row for row in others if math.isinf(row.cost_to) and not row.nonfinite and row.name not in unknown)
    biased = sorted(never, key=lambda row: row.bias)
    if biased and biased[0].resolved:
        said += f"; {biased[0].name} is too biased ({biased[0].bias:.2g})"
    elif biased:
        said += f"; {biased[0].name} may be too biased (below {biased[0].limit:.2g}: more samples would tell)"
    return said + "."


def _bias(row: Row, of: str = "") -> str:
    return f"bias{of} {row.bias:.2g}" if row.resolved else f"bias below {row.limit:.1g}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def amount(cost: float, unit: str) -> str:
    """Return a cost with its unit, such as `1,920 steps` or `0.0031 seconds`."""
    return f"{cost:,.0f} steps" if unit == "steps" else f"{cost:.3g} seconds"
