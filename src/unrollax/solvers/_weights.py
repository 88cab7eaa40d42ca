"""What iterations for one A compute once: weights, and constants from its largest eigenvalue; and what its residual tells."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, check_number
from unrollax._errors import StructureError
from unrollax._tree import describe
from unrollax.solvers._least_squares import bounds, numbers

FLOOR = 1e-9  # of the estimated variance of x's error, as in the program of TISTA's authors


def step_and_threshold(owner: str, A: Any, lam: Any) -> dict[str, jax.Array]:
    """Return the step 1 / L and the threshold lam / L, for which iterations with A go to the lasso's solution."""
    check_number(owner, "lam", lam, POSITIVE, used=True)
    high = bounds(owner, A)[0]
    return numbers(A, step=1 / high, threshold=lam / high)


def analytic_weights(A: Any) -> jax.Array:
    """Return the matrix W of ALISTA, whose columns see the other columns of A as little as they can.

    Column i minimises ``sum_j |w_i^H a_j|^2``, its generalised coherence with A, among the vectors with ``w_i^H a_i = 1``. In
    closed form ``w_i = G a_i / (a_i^H G a_i)`` with ``G = (A A^H)^-1``, so that no optimisation is needed.

    Args:
        A: `[m, n]`, of rank m, with m <= n.

    Returns:
        W, `[m, n]`.

    Raises:
        StructureError: A is no matrix.

    Example:
        >>> import numpy as np
        >>> from unrollax.solvers import analytic_weights
        >>> A = np.random.RandomState(0).randn(20, 40)
        >>> A = A / np.linalg.norm(A, axis=0)
        >>> W = analytic_weights(A)
        >>> [round(float(((each.T @ A) ** 2).sum()), 2) for each in (A, W)]
        [121.45, 81.66]

    References: Liu, Chen, Wang and Yin, ALISTA, ICLR 2019. Deviation: they find W by projected gradient descent.
    """
    a = np.asarray(check_matrix("analytic_weights", A))
    exact = a.astype(np.result_type(a.dtype, np.float64))  # normal equations square the condition number
    seen = np.linalg.solve(exact @ exact.conj().T, exact)
    return jnp.asarray(seen / (exact.conj() * seen).sum(0), a.dtype)


def check_matrix(owner: str, A: Any) -> jax.Array:
    """Return A as an array; raise unless it is a matrix."""
    if hasattr(A, "mv") or jnp.ndim(A) != 2:
        raise StructureError(
            f"{owner}: A must be a matrix [m, n], got {describe(A)}. Of an operator, pass the matrix of its columns."
        )
    return jnp.asarray(A)


def pseudoinverse(a: jax.Array) -> jax.Array:
    """Return A^H (A A^H)^-1, `[n, m]`, of a matrix `[m, n]` of rank m."""
    return jnp.linalg.solve(a @ a.conj().T, a).conj().T


def error_variance(step: Any, residual: jax.Array, problem: Any, w: jax.Array) -> jax.Array:
    """Return the mean squared error of x + step W (y - A x), W the pseudoinverse, as the residual y - A x tells.

    That of x is v = max((|y - A x|^2 - m noise^2) / tr(A^T A), 1e-9); step W A leaves v (1 + (step^2 - 2 step) m / n) of it,
    as W A is a projection to m of n dimensions, and the noise adds step^2 noise^2 tr(W W^T) / n.
    """
    n, m = w.shape
    noise2 = jnp.asarray(problem.noise, residual.dtype) ** 2
    error = jnp.maximum(((residual**2).sum() - m * noise2) / (problem.A**2).sum(), FLOOR)
    return error * (1 + (step**2 - 2 * step) * m / n) + step**2 * noise2 * (w**2).sum() / n
