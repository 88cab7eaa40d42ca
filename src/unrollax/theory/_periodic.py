"""The best periodic schedule for a quadratic, by Newton's method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax.theory._constants import chebyshev_steps, stable_order
from unrollax.theory._error import log_size
from unrollax.theory._spectrum import Quadratic, as_quadratic

STARTS = 70  # all choices of the steps that are used once more, if there are no more than this
ITERATIONS = 200
LARGEST = 0.3  # change of the log of a step
CLOSE = 1e-10  # gradient at which it stops


class _Fit(NamedTuple):
    """The logarithm of the error, and its gradient and Hessian in the logarithms of the steps."""

    log_error: float
    grad: np.ndarray
    hessian: np.ndarray


def best_periodic(problem: Any, period: int, n: int, *, lam: float = 0.0) -> np.ndarray:
    """Return the `period` steps that, repeated, give the smallest error after n iterations.

    The error is sum_j w_j prod_k (1 - eta_k h_j)^(2 m_k), where m_k is how often step k is used in n iterations: it depends
    on the order only when n is no multiple of the period, by which of the steps are used once more. Newton's method, damped,
    on its logarithm as a function of log eta, from Chebyshev steps; for every choice of those that are used once more if
    there are at most 70, and for neighbours otherwise. The best of these local optima is returned.

    Args:
        problem: a matrix or a `Quadratic` with weights.
        period: the number of steps.
        n: the iteration to be best at, at least `period`.
        lam: the weight of the ridge, for a matrix.

    Returns:
        `[period]`, positive; those that are used once more first, and both parts in a stable order.

    Raises:
        InvalidArgument: counts that aren't positive, a period above n, or an interval (take `chebyshev_steps`).

    Example:
        >>> from unrollax.theory import quadratic, schedule_error
        >>> ridge = quadratic(np.random.RandomState(0).randn(100, 50), lam=3.0)
        >>> steps = best_periodic(ridge, 4, 50)
        >>> bool(schedule_error(np.resize(steps, 50), ridge.h, ridge.w)[-1] < 2.05e-12)
        True
    """
    check_counts("best_periodic", period=period, n=n)
    quadratic = as_quadratic("best_periodic", problem, lam)
    if period > n:
        raise InvalidArgument(f"best_periodic: period must be at most n, got period={period}, n={n}. Take period={n}.")
    if quadratic.w is None:
        raise InvalidArgument("best_periodic: the problem must have weights, got an interval. Take chebyshev_steps.")
    start = chebyshev_steps(period, quadratic.L, quadratic.mu, order="ascending")
    found = []
    for more in _choices(period, n % period):
        uses = np.full(period, n // period)
        uses[more] += 1
        log_error, steps = _newton(start, uses, quadratic)
        found.append((log_error, more, steps))
    _, more, steps = min(found, key=lambda item: item[0])
    parts = [part for part in (steps[more], np.delete(steps, more)) if part.size]
    return np.concatenate([stable_order(part) for part in parts])


def _choices(period: int, rest: int) -> Iterable[list[int]]:
    """Return which steps, in ascending order, are used once more."""
    if math.comb(period, rest) <= STARTS:
        return [list(choice) for choice in itertools.combinations(range(period), rest)]
    return [list(range(first, first + rest)) for first in range(period - rest + 1)]


def _newton(steps: np.ndarray, uses: np.ndarray, quadratic: Quadratic) -> tuple[float, np.ndarray]:
    now, damping = _fit(steps, uses, quadratic), 1e-3
    for _ in range(ITERATIONS):
        if np.abs(now.grad).max() < CLOSE or damping > 1e8:
            break
        curvature, axes = np.linalg.eigh(now.hessian)
        # saddle points are left: away from them along directions of negative curvature
        change = -axes @ ((axes.T @ now.grad) / (np.abs(curvature) + damping))
        tried = steps * np.exp(change * min(1.0, LARGEST / np.abs(change).max()))
        after = _fit(tried, uses, quadratic)
        if after.log_error <= now.log_error:
            steps, now, damping = tried, after, max(damping / 10, 1e-12)
        else:
            damping *= 4
    return now.log_error, steps


def _fit(steps: np.ndarray, uses: np.ndarray, quadratic: Quadratic) -> _Fit:
    h, w = np.asarray(quadratic.h), np.asarray(quadratic.w)
    factors = 1 - steps[:, None] * h
    terms = np.log(w) + 2 * uses @ log_size(factors, np)
    shares = np.exp(terms - terms.max())
    log_error = terms.max() + np.log(shares.sum())
    shares /= shares.sum()
    # d log(1 - eta h)^(2 m) / d log eta, and once more; where a factor is 0, so is its share
    ratios = np.divide(steps[:, None] * h, factors, out=np.zeros_like(factors), where=factors != 0)
    slopes = -2 * uses[:, None] * ratios
    bends = slopes - 2 * uses[:, None] * ratios**2
    grad = slopes @ shares
    hessian = (slopes * shares) @ slopes.T + np.diag(bends @ shares) - np.outer(grad, grad)
    return _Fit(float(log_error), grad, hessian)
