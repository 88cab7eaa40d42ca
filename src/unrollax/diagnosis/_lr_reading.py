"""What the losses of a learning rate range test say: where the run ends, where the loss falls and where it grows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from unrollax.diagnosis._text import aligned, plain

EDGE = 0.05  # share of the whole fall at which the loss has started to fall, and has all but stopped
FALL, RISE = (
    6.0,
    10.0,
)  # standard deviations of the averaged noise that a fall from the first, a rise from the best exceeds
ENOUGH = 12  # losses from which noise can be told
ROUNDING = 1e-5  # of the loss: a smaller fall is none


class Plan(NamedTuple):
    """How a test is made: the rate of each update, the weight of a neighbour in a mean, and the rise that ends it."""

    rates: np.ndarray
    smoothing: float
    stop: float

    @property
    def memory(self) -> int:
        """Updates that a moving average remembers."""
        return math.ceil(1 / (1 - self.smoothing))


class LRRange(NamedTuple):
    """What a learning rate range test found; see `lr_range_test`. n is the number of updates until it was stopped.

    Attributes:
        rates: `[n]` learning rate of each update.
        losses: `[n]` loss before that update.
        smoothed: `[n]` the losses, smoothed without delay, before and after `diverged` apart.
        low: the rate at which the loss starts to fall; NaN if no range was found.
        best: the rate at which the smoothed loss falls most steeply, by the logarithm of the rate; NaN as above.
        high: the rate at which it has all but stopped falling; NaN as above.
        diverged: the first rate whose update made the loss grow for good; None if it never did.
        note: what was found, in words.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    low: float
    best: float
    high: float
    diverged: float | None
    note: str

    @property
    def found(self) -> bool:
        """Whether there is a range to suggest."""
        return math.isfinite(self.low)

    def __str__(self) -> str:
        rows = [("updates", f"{len(self.rates)}, rates {self.rates[0]:.3g} to {self.rates[-1]:.3g}")]
        rows.append(("loss", f"{self.losses[0]:.4g} at first, {np.nanmin(self.smoothed):.4g} at best (smoothed)"))
        if self.found:
            rows.append(("range", f"{self.low:.3g} to {self.high:.3g}"))
            rows.append(("steepest", f"{self.best:.3g}"))
        if self.diverged is not None:
            rows.append(("diverges from", f"{self.diverged:.3g}"))
        width = max(len(text) for _, text in rows)
        return f"Learning rates: {self.note}\n{aligned([(name, text.ljust(width)) for name, text in rows])}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python numbers and lists, by field."""
        return plain(self)


def _averages(series: np.ndarray, smoothing: float) -> np.ndarray:
    """Return the usual moving average, corrected for its start."""
    average = weight = 0.0
    averages = np.zeros(len(series))
    for index, number in enumerate(series):
        average = smoothing * average + (1 - smoothing) * float(number)
        weight = smoothing * weight + (1 - smoothing)
        averages[index] = average / weight
    return averages


def _series(losses: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the logarithms of positive losses, else the losses, and whether they are logarithms.

    A loss that falls by decades and then grows by decades turns at once in a mean of logarithms.
    """
    logs = bool((losses[np.isfinite(losses)] > 0).all())
    return (np.log(losses) if logs else losses), logs


def end_of(losses: np.ndarray, plan: Plan) -> int | None:
    """Return the update at which a run is to end: of a rise that noise can't explain, or a number that is not finite."""
    series, logs = _series(losses)
    averages = _averages(series, plan.smoothing)
    for index, now in enumerate(averages):
        if not math.isfinite(now):
            return index
        if index < max(plan.memory, ENOUGH):
            continue
        best = float(averages[plan.memory - 1 : index + 1].min())
        size = best if best > 0 else max(-best, averages[0] - best)
        rise = math.log(plan.stop) if logs else (plan.stop - 1) * size
        if now - best > max(rise, RISE * _noise(series[: index + 1], plan.smoothing)):
            return index
    return None


def _smooth(losses: np.ndarray, smoothing: float) -> np.ndarray:
    """Return means with weights `smoothing**distance`, to both sides; what is not finite stays as it is."""
    smoothed, finite = losses.copy(), np.isfinite(losses)
    index = np.arange(finite.sum())
    weights = smoothing ** np.abs(index[:, None] - index)
    smoothed[finite] = weights @ losses[finite] / weights.sum(1)
    return smoothed


def _turn(losses: np.ndarray, plan: Plan) -> int:
    """Return the update that made the loss grow for good, in a run that ended early.

    It is near the last average that noise can't tell from the lowest; the delay is taken back by the losses themselves.
    """
    series, _ = _series(losses)
    averages = _averages(series, plan.smoothing)
    averages[: plan.memory - 1] = np.inf
    averages[~np.isfinite(averages)] = np.inf
    margin = 3 * _noise(series[np.isfinite(series)], plan.smoothing)
    lowest = int(np.flatnonzero(averages <= averages.min() + margin)[-1]) if np.isfinite(averages).any() else 0
    usable = np.where(np.isfinite(losses), losses, np.inf)[max(0, lowest - 2 * plan.memory) :]
    return (
        len(losses) - 1 - int(np.argmin(usable[::-1]))
    )  # of equal ones the last: a loss that rounding holds at its floor


def read(losses: np.ndarray, plan: Plan, *, ended: bool) -> LRRange:
    """Find the range in the losses of a run, that ended early or not."""
    rates = plan.rates[: len(losses)]
    turn = _turn(losses, plan) if ended else len(losses) - 1
    smoothed = np.concatenate(
        [_smooth(losses[: turn + 1], plan.smoothing), _smooth(losses[turn + 1 :], plan.smoothing)]
    )
    diverged = float(rates[turn]) if ended else None
    before = smoothed[: turn + 1]
    fall = before[0] - before.min()
    if not fall > FALL * _noise(losses[np.isfinite(losses)], plan.smoothing) + ROUNDING * abs(losses[0]):
        note = _why_not(turn, diverged, rates)
        return LRRange(rates, losses, smoothed, math.nan, math.nan, math.nan, diverged, note)
    begin = int(np.argmax(before <= before[0] - EDGE * fall))
    end = int(np.argmax(before <= before.min() + EDGE * fall))
    end = max(begin, min(end, turn - 1)) if ended else end
    steepest = begin + int(np.argmin(np.gradient(before)[begin : end + 1]))
    low, best, high = (float(rates[index]) for index in (begin, steepest, end))
    note = f"the loss falls between {low:.2g} and {high:.2g}, most steeply at {best:.2g}."
    return LRRange(rates, losses, smoothed, low, best, high, diverged, note)


def _noise(series: np.ndarray, smoothing: float) -> float:
    """Return the standard deviation that noise leaves in the average of a series.

    It is read off fourth differences, in which noise has sqrt(70) times its size and a smooth curve next to none.
    """
    spread = float(np.median(np.abs(np.diff(series, 4)))) / (0.6745 * math.sqrt(70)) if len(series) > 4 else 0.0
    return spread * math.sqrt((1 - smoothing) / (1 + smoothing))


def _why_not(turn: int, diverged: float | None, rates: np.ndarray) -> str:
    if diverged is not None and turn < 2:
        return f"no range found: the loss grows from the first rate on. Put low far below {rates[0]:.3g}."
    never = "no range found: the loss never fell by more than its noise"
    if diverged is not None:
        return f"{never} before it grew at {diverged:.2g}. Give more steps or smoothing."
    return f"{never}. Put high above {rates[-1]:.3g}, or give more steps or smoothing."
