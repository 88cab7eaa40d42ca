"""The mean squared error of conjugate gradients, which choose a polynomial for each y."""

from __future__ import annotations

from typing import Any

import numpy as np

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax.theory._spectrum import as_quadratic


def conjugate_gradient_error(problem: Any, n: int, *, lam: float = 0.0, draws: int = 64, seed: int = 0) -> np.ndarray:
    """Return the mean squared error of conjugate gradients after 0 .. n iterations.

    For one y, with the error c_j along eigenvector j at the start, they choose the polynomial with p(0) = 1 that is smallest
    in the norm of the Hessian, sum_j h_j c_j^2 p(h_j)^2, of each degree; this is the mean over y of sum_j c_j^2 p(h_j)^2.
    Since p depends on y they are no schedule, and can be better than `oracle`. The mean over y ~ N(0, I) has no closed form:
    it is taken over seeded draws c_j = sqrt(w_j) g_j, g ~ N(0, I), by the method itself in the eigenvectors' coordinates with
    every residual orthogonalised against all before it, which is what it does without rounding errors.

    Args:
        problem: a matrix or a `Quadratic` with weights.
        n: the number of iterations.
        lam: the weight of the ridge, for a matrix.
        draws: over how many y to average; the mean's relative standard error is about 3 / sqrt(draws).
        seed: of the draws.

    Returns:
        `[n + 1]`.

    Raises:
        InvalidArgument: n or draws isn't positive, or the problem is an interval, over which y isn't defined.

    Example:
        >>> A = np.random.RandomState(0).randn(100, 50)
        >>> bool(conjugate_gradient_error(A, 8, lam=3.0)[8] < 2e-3)
        True

    References: Hestenes and Stiefel, Journal of Research of the National Bureau of Standards 1952.
    """
    owner = "conjugate_gradient_error"
    check_counts(owner, n=n, draws=draws)
    quadratic = as_quadratic(owner, problem, lam)
    if quadratic.w is None:
        raise InvalidArgument(f"{owner}: the problem must have weights, got an interval. Give a matrix.")
    h, w = np.asarray(quadratic.h, float), np.asarray(quadratic.w, float)
    errors = np.sqrt(w) * np.random.RandomState(seed).randn(draws, len(h))
    return np.concatenate([[w.sum()], _iterate(errors, h, n)])


def _iterate(errors: np.ndarray, h: np.ndarray, n: int) -> np.ndarray:
    """Return the mean over draws of |e_t|^2 for t = 1 .. n, from errors `[draws, n]`, relative to that of the weights."""
    residuals = h * errors
    direction, basis, means = residuals, np.zeros((0, *errors.shape)), []
    for _ in range(n):
        size = (residuals**2).sum(1, keepdims=True)
        basis = np.concatenate([basis, (residuals / np.sqrt(_positive(size)))[None]])
        alpha = size / _positive((direction * h * direction).sum(1, keepdims=True))
        errors = errors - alpha * direction
        residuals = _orthogonal(residuals - alpha * h * direction, basis)
        direction = residuals + (residuals**2).sum(1, keepdims=True) / _positive(size) * direction
        means.append((errors**2).sum(1).mean())
    return np.array(means)


def _orthogonal(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    for _ in range(2):  # twice is enough
        vectors = vectors - np.einsum("kd,kdn->dn", np.einsum("kdn,dn->kd", basis, vectors), basis)
    return vectors


def _positive(numbers: np.ndarray) -> np.ndarray:
    """Return numbers to divide by: after the solution is found, 0 / 1 in place of 0 / 0."""
    return np.where(numbers > 0, numbers, 1.0)
