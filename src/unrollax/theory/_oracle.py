"""The lower bound of every schedule: the best polynomial of each degree, and the steps that are its roots' reciprocals."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import numpy as np

from unrollax._check import check_counts
from unrollax.theory._constants import chebyshev_steps, stable_order
from unrollax.theory._spectrum import Quadratic, as_quadratic

NEWTON = 3  # steps from a root to 16 digits to one that is exact


class _Recurrence(NamedTuple):
    """p_{k+1}(x) = (x - alpha_k) p_k(x) - beta_k p_{k-1}(x), the monic polynomials that are orthogonal for a measure."""

    alpha: list[Decimal]
    beta: list[Decimal]


def oracle(problem: Any, n: int, *, lam: float = 0.0) -> np.ndarray:
    """Return the smallest error that any schedule of t steps can have, for each t = 0 .. n.

    It is the minimum of sum_j w_j p(h_j)^2 over all polynomials of degree t with p(0) = 1, so it bounds gradient descent with
    any steps and any momentum that doesn't look at y. The best p is the orthogonal polynomial for the weights h_j w_j,
    scaled to 1 at 0. They are computed by their three-term recurrence in decimal numbers of 40 + 4 n digits, so that the
    loss of orthogonality doesn't matter: 1e-33 has as many digits right as 1. From as many steps as there are different
    eigenvalues on, the error is exactly 0. For an interval it is the square of 1 / T_t((L + mu) / (L - mu)).

    Args:
        problem: a matrix, a pair (L, mu) or a `Quadratic`.
        n: the largest number of steps.
        lam: the weight of the ridge, for a matrix.

    Returns:
        `[n + 1]`. Conjugate gradients see y, and can be below.

    Raises:
        InvalidArgument: n isn't positive, or the problem is none of these.

    Example:
        >>> import numpy as np
        >>> oracle(np.random.RandomState(0).randn(100, 50), 8, lam=3.0)[[4, 8]].round(6).tolist()
        [0.040992, 0.001822]

    References: Stiefel, Commentarii Mathematici Helvetici 1958 (kernel polynomials). Gautschi, Orthogonal Polynomials:
    Computation and Approximation, 2004.
    """
    check_counts("oracle", n=n)
    quadratic = as_quadratic("oracle", problem, lam)
    if quadratic.w is None:
        return _chebyshev_errors(quadratic, n)
    with localcontext() as context:
        context.prec = 40 + 4 * n
        h, w = _decimals(quadratic.h), _decimals(quadratic.w)
        known = _recurrence(h, h * w, min(n, _distinct(quadratic)))
        errors = _errors(known, h, w)
    return np.array(errors + [0.0] * (n + 1 - len(errors)))


def oracle_steps(problem: Any, n: int, *, lam: float = 0.0) -> np.ndarray:
    """Return the n steps that reach `oracle` after n iterations, in a stable order.

    They are the reciprocals of the best polynomial's roots, which are positive, different and within the spectrum; the bound
    itself is computed without them. Many roots lie closer and closer to the largest eigenvalues, where the other factors are
    large, so that rounding the steps to float64 is felt: for a 100 x 50 ridge with condition number 24.5 they reach the bound
    to 9 digits at n = 32, where it is 5.8e-15, and no longer at n = 40.

    Args:
        problem: a matrix, a pair (L, mu) or a `Quadratic`.
        n: how many. At most as many as there are different eigenvalues.
        lam: the weight of the ridge, for a matrix.

    Returns:
        `[n]`.

    Raises:
        InvalidArgument: n isn't positive, or the problem is none of these.

    Example:
        >>> from unrollax.theory import Quadratic, oracle_steps
        >>> oracle_steps(Quadratic(h=[1.0, 3.0], w=[0.5, 0.5], L=3.0, mu=1.0), 2).round(3).tolist()
        [0.333, 1.0]
    """
    check_counts("oracle_steps", n=n)
    quadratic = as_quadratic("oracle_steps", problem, lam)
    if quadratic.w is None:
        return np.asarray(chebyshev_steps(n, quadratic.L, quadratic.mu))
    many = min(n, _distinct(quadratic))
    with localcontext() as context:
        context.prec = 40 + 4 * many
        h, w = _decimals(quadratic.h), _decimals(quadratic.w)
        steps = [float(1 / root) for root in _roots(_recurrence(h, h * w, many))]
    # a polynomial of lower degree that is 0 on the whole spectrum needs no more steps
    return np.asarray(stable_order(steps + [steps[0]] * (n - many)))


def _decimals(numbers: Any) -> np.ndarray:
    return np.array([Decimal(float(number)) for number in np.asarray(numbers)], dtype=object)


def _distinct(quadratic: Quadratic) -> int:
    return len(np.unique(np.asarray(quadratic.h)[np.asarray(quadratic.w) > 0]))


def _recurrence(h: np.ndarray, weights: np.ndarray, degree: int) -> _Recurrence:
    """Return the coefficients for the measure with `weights` at h, up to a degree (Stieltjes' procedure)."""
    alpha, beta = [], [Decimal(0)]
    before, now = 0 * h, 0 * h + 1
    norm = weights.sum()
    for _ in range(degree):
        alpha.append((weights * h * now * now).sum() / norm)
        before, now = now, (h - alpha[-1]) * now - beta[-1] * before
        last, norm = norm, (weights * now * now).sum()
        beta.append(norm / last)
    return _Recurrence(alpha, beta)


def _errors(known: _Recurrence, h: np.ndarray, w: np.ndarray) -> list[float]:
    """Return sum_j w_j (p_k(h_j) / p_k(0))^2 for each degree k; what no longer has a digit is 0."""
    zero, one = Decimal(0), Decimal(1)
    before, now, zero_before, zero_now = 0 * h, 0 * h + 1, zero, one
    errors = [float(w.sum())]
    for alpha, beta in zip(known.alpha, known.beta, strict=False):
        before, now = now, (h - alpha) * now - beta * before
        zero_before, zero_now = zero_now, -alpha * zero_now - beta * zero_before
        errors.append(float((w * (now / zero_now) ** 2).sum()))
    if len(known.alpha) == len(np.unique(h[w > 0].astype(float))):
        errors[-1] = 0.0
    return errors


def _roots(known: _Recurrence) -> list[Decimal]:
    """Return the roots of the last polynomial: eigenvalues of the Jacobi matrix, polished by Newton's method."""
    sides = np.sqrt(np.array(known.beta[1:-1], float))
    jacobi = np.diag(np.array(known.alpha, float)) + np.diag(sides, 1) + np.diag(sides, -1)
    roots = []
    for found in np.linalg.eigvalsh(jacobi):
        root = Decimal(float(found))
        for _ in range(NEWTON):
            root -= _ratio(known, root)
        roots.append(root)
    return roots


def _ratio(known: _Recurrence, x: Decimal) -> Decimal:
    """Return p(x) / p'(x) of the last polynomial."""
    zero, one = Decimal(0), Decimal(1)
    before, now, slope_before, slope = zero, one, zero, zero
    for alpha, beta in zip(known.alpha, known.beta, strict=False):
        slope_before, slope = slope, now + (x - alpha) * slope - beta * slope_before
        before, now = now, (x - alpha) * now - beta * before
    return now / slope


def _chebyshev_errors(quadratic: Quadratic, n: int) -> np.ndarray:
    """Return 1 / T_t(x)^2 with x = (L + mu) / (L - mu), for t = 0 .. n."""
    if quadratic.mu == quadratic.L:
        return np.array([1.0] + [0.0] * n)
    x = (quadratic.L + quadratic.mu) / (quadratic.L - quadratic.mu)
    return np.asarray(np.cosh(np.arange(n + 1) * np.arccosh(x)) ** -2.0)
