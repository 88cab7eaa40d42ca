"""Quadratics as theory sees them: a spectrum with weights, or an interval."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from unrollax._check import NOT_NEGATIVE, check_counts, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._value import value
from unrollax.theory._arrays import check_bounds, lobatto


@value
class Quadratic:
    """What the error of a first-order method on a quadratic depends on; made by `quadratic`.

    After t iterations the part of the error along eigenvector j is multiplied by p(h_j), where p is a polynomial of degree t
    with p(0) = 1, and the mean squared error is sum_j w_j p(h_j)^2.

    Attributes:
        h: eigenvalues of the Hessian, `[n]`, ascending; for an interval, points that cover it.
        w: the mean squared error at the start along each eigenvector, `[n]`; `None` for an interval, of which errors are the
            worst, max_h p(h)^2.
        L: the largest eigenvalue.
        mu: the smallest.
    """

    h: Any
    w: Any
    L: Any
    mu: Any

    @property
    def condition(self) -> Any:
        """The condition number L / mu."""
        return self.L / self.mu


def quadratic(A: Any = None, lam: float = 0.0, *, L: Any = None, mu: Any = None, points: int = 1025) -> Quadratic:
    """Return the quadratic of a ridge problem, or of all whose eigenvalues lie in [mu, L].

    For the problem min_x |A x - y|^2 / 2 + lam |x|^2 / 2 with y ~ N(0, I), started at x = 0, h are the eigenvalues of
    A^H A + lam and w = (h - lam) / h^2. Directions that A doesn't see are left out: nothing ever moves along them.

    Args:
        A: a real or complex matrix `[m, n]`; or leave it out and give the bounds.
        lam: the weight of the ridge, at least 0.
        L: the largest eigenvalue, in place of A.
        mu: the smallest, positive.
        points: how many points stand for an interval.

    Raises:
        StructureError: A is no matrix.
        InvalidArgument: neither A nor both bounds, or bounds that are no interval of positive numbers.

    Example:
        >>> import numpy as np
        >>> from unrollax.theory import quadratic
        >>> ridge = quadratic(np.random.RandomState(0).randn(100, 50), lam=3.0)
        >>> ridge.h.shape, round(float(ridge.condition), 1), round(float(ridge.w.sum()), 4)
        ((50,), 24.5, 0.8294)
    """
    if (A is None) == (L is None or mu is None) or (A is not None and (L is not None or mu is not None)):
        raise InvalidArgument("quadratic: give a matrix A, or both bounds L and mu, and not all. Leave one out.")
    if A is None:
        check_bounds("quadratic", L, mu)
        check_counts("quadratic", points=points)
        return Quadratic(h=lobatto(float(mu), float(L), points), w=None, L=float(L), mu=float(mu))
    check_number("quadratic", "lam", lam, NOT_NEGATIVE, used=True)
    matrix = np.asarray(A)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiuc":
        raise StructureError(f"quadratic: A must be a matrix of numbers, got {describe(matrix)}. Give one.")
    wrong = int((~np.isfinite(matrix)).sum())
    if wrong:
        raise InvalidArgument(f"quadratic: A must hold finite numbers, got {wrong} that are not. Mend them.")
    return _ridge(matrix.astype(np.complex128 if matrix.dtype.kind == "c" else np.float64), float(lam))


def _ridge(A: np.ndarray, lam: float) -> Quadratic:
    # singular values, not eigenvalues of A^H A: small ones keep their digits
    sigma = np.linalg.svd(A, compute_uv=False)[::-1]
    seen = sigma[sigma > sigma[-1] * max(A.shape) * np.finfo(float).eps]
    if not seen.size:
        raise InvalidArgument("quadratic: A must not be zero, got a matrix of zeros. Give one that sees something.")
    h = seen**2 + lam
    return Quadratic(h=h, w=seen**2 / h**2, L=float(h[-1]), mu=float(h[0]))


def as_quadratic(owner: str, given: Any, lam: float = 0.0) -> Quadratic:
    """Return a quadratic from one, a matrix or a pair (L, mu)."""
    if isinstance(given, Quadratic):
        return given
    if isinstance(given, tuple):
        if len(given) != 2:
            raise InvalidArgument(f"{owner}: bounds must be a pair (L, mu), got {len(given)} numbers. Give both.")
        return quadratic(L=given[0], mu=given[1])
    if isinstance(given, (np.ndarray, jax.Array, list)):
        return quadratic(np.asarray(given), lam)
    raise InvalidArgument(
        f"{owner}: expected a matrix, a pair (L, mu) or a quadratic, got {type(given).__name__}. Give one of them."
    )
