"""Figures of growth, on the host: means with their errors, and the singular values of a product of any size."""

from __future__ import annotations

import math

import numpy as np

SWEEPS, ENOUGH = 60, 1e-13  # turns of every pair at most, and the cosine at which two rows count as orthogonal
FACTOR = math.log(10)  # by which a window changes a gradient that vanishes or explodes
SURE = 0.95  # the probability that a verdict needs


def mean_and_error(logs: list[np.ndarray], spans: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return growth a step `[k]` and its standard error.

    The mean is over all steps of all examples. The error is that of the means over 2 to 32 consecutive stretches of each
    example, inside of which steps may be correlated, or, if larger, what the spread between examples says. It is infinite for
    one example of less than 4 increments, and 0 where the mean is -inf.

    Args:
        logs: of each example, its increments `[n, k]`.
        spans: of each example, the steps `[n]` that they stand for.
    """
    totals = np.array([span.sum() for span in spans], float)
    shares = (totals / totals.sum())[:, None]
    rates = np.stack([log.sum(0) for log in logs]) / totals[:, None]
    mean = (shares * rates).sum(0)
    with np.errstate(invalid="ignore"):
        each = np.stack([_within(log, span) for log, span in zip(logs, spans, strict=True)])
        if len(logs) == 1:
            return mean, np.where(np.isneginf(mean), 0.0, each[0])
        between = np.square(shares * (rates - mean)).sum(0) * len(logs) / (len(logs) - 1)
        within = np.square(shares * np.where(np.isinf(each), 0, each)).sum(0)
    return mean, np.where(np.isneginf(mean), 0.0, np.sqrt(np.maximum(between, within)))


def _within(logs: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean from one example, by the means of consecutive stretches."""
    if len(spans) < 4:
        return np.full(logs.shape[1], np.inf)
    batches = min(32, math.isqrt(len(spans)))
    size = len(spans) // batches
    used = slice(len(spans) - batches * size, None)
    sums = logs[used].reshape(batches, size, -1).sum(1)
    rates = sums / spans[used].reshape(batches, size).sum(1)[:, None]
    error: np.ndarray = rates.std(0, ddof=1) / math.sqrt(batches)
    return error


def log_singular_values(logs: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the logarithms of the singular values of exp(logs)[:, None] * unit, descending.

    By one-sided Jacobi rotations, which turn two rows at a time until all are orthogonal. A row is held as a unit vector
    and the logarithm of its length, and a rotation needs only the ratio of two lengths: every value, however small beside the
    largest, keeps its digits (Demmel and Veselic, SIAM J. Matrix Analysis 1992).

    Args:
        logs: `[m, k]`.
        unit: `[m, k, k]`, of moderate condition.
    """
    count = logs.shape[1]
    if count == 1:
        return logs + np.log(np.abs(unit[..., 0]))
    lengths = np.linalg.norm(unit, axis=2)
    rows, logs = unit / lengths[..., None], logs + np.log(lengths)
    rounds = _rounds(count)
    for _ in range(SWEEPS):
        worst = max(_rotate(rows, logs, *pairs) for pairs in rounds)
        if not worst > ENOUGH:
            break
    return -np.sort(-logs, axis=1)


def log_largest(logs: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the first of `log_singular_values` alone, `[m]`, by NumPy's of the matrix with its largest row near 1."""
    largest = logs.max(1)
    scaled = np.exp(logs - largest[:, None])[..., None] * unit
    out: np.ndarray = largest + np.log(np.linalg.norm(scaled, 2, axis=(1, 2)))
    return out


def _rounds(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rounds of disjoint pairs in which each of `count` rows meets every other once, as in a tournament."""
    players = np.arange(count + count % 2)
    half, rounds = len(players) // 2, []
    for _ in range(len(players) - 1):
        first, second = players[:half], players[: half - 1 : -1]
        there = np.maximum(first, second) < count
        rounds.append((first[there], second[there]))
        players = np.concatenate([players[:1], np.roll(players[1:], 1)])
    return rounds


def _rotate(rows: np.ndarray, logs: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Make disjoint pairs of rows orthogonal, in place, and return the largest cosine between two of them before."""
    example = np.arange(len(rows))[:, None]
    longer = np.where(logs[:, first] >= logs[:, second], first, second)
    shorter = first + second - longer
    a, b = rows[example, longer], rows[example, shorter]
    ratio, cosine = np.exp(logs[example, shorter] - logs[example, longer]), (a * b).sum(2)
    far = (1 - ratio) * (1 + ratio)
    twice = 2 * np.abs(cosine)
    turn = -np.sign(cosine) * twice / (far + np.sqrt(far**2 + (twice * ratio) ** 2) + (twice == 0))  # tangent / ratio
    scale = 1 / np.sqrt(1 + (turn * ratio) ** 2)
    after = (scale[..., None] * (a - (turn * ratio**2)[..., None] * b), scale[..., None] * (b + turn[..., None] * a))
    for index, row in zip((longer, shorter), after, strict=True):
        length = np.linalg.norm(row, axis=2)
        rows[example, index] = row / length[..., None]
        logs[example, index] += np.log(length)
    return float(np.abs(cosine).max())


def spectral_radius(jacobians: np.ndarray | None, points: int) -> float:
    """Return the geometric mean of the spectral radii of the first matrices `[m, points, n, n]`; NaN if there are none."""
    if jacobians is None or not points:
        return math.nan
    with np.errstate(divide="ignore"):
        radii: np.ndarray = np.log(np.abs(np.linalg.eigvals(jacobians[:, :points])).max(-1))
    return float(np.exp(radii.mean()))


def verdict_of(exponent: float, error: float, steps: int) -> tuple[str, float]:
    """Return what a window does to the direction that grows fastest, and how likely that is; see `lyapunov`."""
    exploding = _beyond(exponent * steps - FACTOR, error * steps)
    vanishing = _beyond(-exponent * steps - FACTOR, error * steps)
    chances = {"exploding": exploding, "vanishing": vanishing, "neutral": max(0.0, 1 - exploding - vanishing)}
    likeliest = max(chances, key=lambda name: chances[name])
    return likeliest if chances[likeliest] >= SURE else "unresolved", chances[likeliest]


def _beyond(excess: float, error: float) -> float:
    """Return the probability that a normal number of this mean and deviation is positive."""
    if error == 0 or math.isinf(excess):
        return float(excess > 0)
    return 0.5 * math.erfc(-excess / error / math.sqrt(2))
