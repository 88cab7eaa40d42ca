"""How norms change with the distance to what they are the gradient of."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

FEWEST = 4  # lags of a fit
SKIPPED = 0.1  # share of the lags before the fit: what a direction needs to turn into the one that lasts longest


class Decay(NamedTuple):
    """How the norm of a gradient falls or grows from step to step, going back from the loss.

    Attributes:
        rate: nats a step: the slope of log norm over lag. Negative: the gradient vanishes; positive: it explodes.
        error: the rate's standard error, from the scatter of its change along time in about sqrt(T) blocks.
        half_life: steps in which the norm halves (or doubles), ln 2 / |rate|.
        lags: `[k]`, steps from where the gradient is taken to its loss.
        norms: `[k]`, the geometric mean of the norms at each lag, of those that are neither 0 nor NaN.
        fitted: the first and the last lag of the fit.
        intercept: of the fitted line: log norm = intercept + rate lag.
        underflow: the first lag at which a norm is below the smallest normal number of the losses' dtype, and not 0 by the
            system's own doing: backpropagation loses it there. `None`: none is.
        overflow: the first lag at which a norm is above the dtype's largest number, or none at all.
    """

    rate: float
    error: float
    half_life: float
    lags: np.ndarray
    norms: np.ndarray
    fitted: tuple[int, int]
    intercept: float
    underflow: int | None
    overflow: int | None

    def __str__(self) -> str:
        if math.isnan(self.rate):
            return "too few steps with a gradient to fit a rate"
        if abs(self.rate) < 1e-9:
            return "neither shrinks nor grows"
        if abs(self.rate) <= 2 * self.error:
            return f"changes by {self.rate:.1g} +- {self.error:.1g} nats a step, which can't be told from 0"
        way, factor = ("shrinks", "half") if self.rate < 0 else ("grows", "double")
        text = f"{way} by {abs(self.rate):.3g} +- {self.error:.1g} nats a step"
        return text + ("" if math.isinf(self.half_life) else f": {factor} in {self.half_life:.3g} steps")

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {name: item.tolist() if isinstance(item, np.ndarray) else item for name, item in self._asdict().items()}


def decay_of(logs: np.ndarray, at: np.ndarray, dtype: Any) -> Decay:
    """Fit the decay of a table.

    Args:
        logs: `[n, T]`, natural logarithms of the norms of n losses at each step, -inf for 0.
        at: `[n]`, the losses' steps.
        dtype: of the numbers that backpropagation would hold.
    """
    distance = at[:, None] - np.arange(logs.shape[1])
    logs = np.where(distance >= 0, logs, -np.inf)
    lags, means = _means(logs, distance)
    first = max(1, math.ceil(SKIPPED * (at.max() + 1)))
    rate, error = _rate(logs, distance, first)
    chosen = lags >= first
    intercept = float(np.mean((means - rate * lags)[chosen])) if chosen.any() else math.nan
    begun = np.isfinite(logs).any(1)[:, None] & (distance >= 0)
    info: Any = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    return Decay(
        rate=rate,
        error=error,
        half_life=math.log(2) / abs(rate) if rate else math.inf,
        lags=lags,
        norms=np.exp(means),
        fitted=(first, int(lags.max(initial=first))),
        intercept=intercept,
        underflow=_least(distance[begun & np.isfinite(logs) & (logs < math.log(float(info.tiny)))]),
        overflow=_least(distance[begun & ~(logs <= math.log(float(info.max)))]),
    )


def _means(logs: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lags that have a norm, and the mean of its logarithm at each."""
    finite = np.isfinite(logs)
    count = np.bincount(distance[finite])
    total = np.bincount(distance[finite], weights=logs[finite])
    lags = np.flatnonzero(count)
    return lags, total[lags] / count[lags]


def _rate(logs: np.ndarray, distance: np.ndarray, first: int) -> tuple[float, float]:
    """Return the mean change of log norm at a step, and its standard error by the means of blocks of steps.

    All losses pass the same steps, so their changes at a step are no independent draws: they are averaged first.
    """
    with np.errstate(invalid="ignore"):
        change = logs[:, :-1] - logs[:, 1:]
    used = np.isfinite(change) & (distance[:, 1:] >= first)
    steps = used.any(0)
    if steps.sum() < FEWEST:
        return math.nan, math.nan
    means = np.where(used, change, 0).sum(0)[steps] / used.sum(0)[steps]
    blocks = [block.mean() for block in np.array_split(means, max(FEWEST, math.isqrt(len(means))))]
    return float(means.mean()), float(np.std(blocks, ddof=1) / math.sqrt(len(blocks)))


def _least(lags: np.ndarray) -> int | None:
    return int(lags.min()) if lags.size else None
