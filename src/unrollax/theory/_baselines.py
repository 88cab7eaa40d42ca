"""What the classical methods reach on a quadratic, and the lower bound, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unrollax._check import check_counts
from unrollax._value import value
from unrollax.theory._conjugate import conjugate_gradient_error
from unrollax.theory._constants import chebyshev_steps, gradient_step, heavy_ball_constants, nesterov_constants
from unrollax.theory._error import momentum_error, schedule_error
from unrollax.theory._oracle import oracle, oracle_steps
from unrollax.theory._spectrum import Quadratic, as_quadratic

SHOWN = (4, 8, 16, 32, 50)  # iterations in a table


@value
class Baselines:
    """Errors of the classical methods by name; made by `baselines`. `print` shows a table of it.

    Attributes:
        errors: mean squared error after 0 .. N iterations, `[N + 1]`, by method.
        steps: the steps `[N]` of the methods that are schedules.
        quadratic: what they were computed for.
    """

    errors: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]
    quadratic: Quadratic

    def __getitem__(self, method: str) -> np.ndarray:
        """Return the errors of a method."""
        return self.errors[method]

    def to_dict(self) -> dict[str, list[float]]:
        """Return the errors as lists, by method, ready for JSON."""
        return {method: [float(error) for error in errors] for method, errors in self.errors.items()}

    def table(self, at: Sequence[int] | None = None) -> str:
        """Return the errors at some iterations as text, by default at 4, 8, 16, 32 and 50, as far as they go."""
        last = len(next(iter(self.errors.values()))) - 1
        at = [t for t in SHOWN if t <= last] or [last] if at is None else at
        width = max(len(method) for method in self.errors)
        rows = ["  ".join([f"{'iterations':{width}}", *(f"{t:>9}" for t in at)])]
        for method, errors in self.errors.items():
            rows.append("  ".join([f"{method:{width}}", *(f"{errors[t]:9.2e}" for t in at)]))
        return "\n".join(row.rstrip() for row in rows)

    def __str__(self) -> str:
        return self.table()


def baselines(problem: Any, n: int, *, lam: float = 0.0, periods: Sequence[int] = (4, 8)) -> Baselines:
    """Return what the classical methods reach on a quadratic in n iterations, and what no schedule can beat.

    gd: gradient descent with 2/(L + mu). nesterov, heavy_ball: with their optimal constants. chebyshev_T: Chebyshev steps of
    period T, in ascending order, which is the better one where a period is cut off. semi_iteration: the best polynomial of
    each degree for the worst eigenvalue. cg: conjugate gradients, see `conjugate_gradient_error`; they see y, and so are no
    schedule. oracle: see `oracle`.

    Args:
        problem: a matrix, a pair (L, mu), of which all errors are the worst (and there is no cg), or a `Quadratic`.
        n: iterations.
        lam: the weight of the ridge, for a matrix.
        periods: of the Chebyshev schedules.

    Returns:
        `Baselines`.

    Raises:
        InvalidArgument: counts that aren't positive, or a problem that is none of these.

    Example:
        >>> print(baselines((24.5, 1.0), 8, periods=[4]))
        iterations              4          8
        ...

    References: those of the methods.
    """
    check_counts("baselines", n=n)
    for period in periods:
        check_counts("baselines", period=period)
    quadratic = as_quadratic("baselines", problem, lam)
    L, mu = quadratic.L, quadratic.mu
    steps = {"gd": np.full(n, gradient_step(L, mu))}
    for period in periods:
        steps[f"chebyshev_{period}"] = np.resize(chebyshev_steps(period, L, mu, order="ascending"), n)
    errors = {method: schedule_error(eta, quadratic.h, quadratic.w) for method, eta in steps.items()}
    for method, constants in (("nesterov", nesterov_constants(L, mu)), ("heavy_ball", heavy_ball_constants(L, mu))):
        errors[method] = momentum_error(method, *constants, quadratic.h, quadratic.w, iterations=n)
    errors["semi_iteration"] = _semi_iteration(quadratic, n)
    if quadratic.w is not None:
        errors["cg"] = conjugate_gradient_error(quadratic, n)
    errors["oracle"] = oracle(quadratic, n)
    steps["oracle"] = oracle_steps(quadratic, n)
    return Baselines(errors, steps, quadratic)


def _semi_iteration(quadratic: Quadratic, n: int) -> np.ndarray:
    """Return the error with p_t(h) = T_t(x(h)) / T_t(x(0)), for t = 0 .. n; x takes [mu, L] to [-1, 1]."""
    L, mu, h = quadratic.L, quadratic.mu, np.asarray(quadratic.h)
    if mu == L:
        return oracle(quadratic, n)
    t = np.arange(n + 1)[:, None]
    inside = np.cos(t * np.arccos(np.clip((L + mu - 2 * h) / (L - mu), -1, 1)))
    squares = (inside / np.cosh(t * np.arccosh((L + mu) / (L - mu)))) ** 2
    return np.asarray(squares.max(1) if quadratic.w is None else squares @ quadratic.w)
