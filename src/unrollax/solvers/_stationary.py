"""Stationary iterations for square systems A x = y: Jacobi's and successive over-relaxation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import measurements, numbers


def jacobi() -> Algorithm:
    """Jacobi's method, relaxed, for a square system A x = y: x <- x + relax D^-1 (y - A x), D the diagonal of A.

    It converges where A is diagonally dominant with relax = 1, and for a positive definite A where relax is below 2 divided
    by the largest eigenvalue of D^-1 A. Unfolded, with a relax of its own for each iteration, it is gradient descent for
    the matrix D^-1/2 A D^-1/2, and its optimum are Chebyshev's steps.

    theta: `relax`, the share of Jacobi's own step that is made, positive.

    `params()`: relax = 1. `params(A)`, for a positive definite matrix, or `params((high, low))`: relax = 2 / (high + low),
    with the largest and the smallest eigenvalue of D^-1 A; the error in the norm of D^1/2 falls by (high - low) / (high +
    low) or more an iteration.

    Returns:
        An `Algorithm` whose state is x.

    Raises:
        StructureError: when run, if A is no square matrix or y does not fit.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import jacobi
        >>> problem = SimpleNamespace(A=jnp.array([[2.0, 1.0], [1.0, 2.0]]), y=jnp.array([3.0, 3.0]))
        >>> jacobi().run(jacobi().params(problem.A), problem, steps=20)[-1].round(3)
        Array([1., 1.], dtype=float32)

    References: Jacobi, Astronomische Nachrichten 1845; Saad, Iterative Methods for Sparse Linear Systems 2003, chapter 4.
    """
    return Algorithm(_jacobi_step, _jacobi_start, _jacobi_params)


def sor() -> Algorithm:
    """Successive over-relaxation for a square system A x = y: one sweep over the unknowns, each solved for with the newest.

    x <- x + (D / relax + E)^-1 (y - A x), D the diagonal of A and E what is below it; relax = 1 is Gauss and Seidel's
    method. It converges for a positive definite A and any relax in (0, 2).

    theta: `relax`, in (0, 2).

    `params()`: relax = 1. `params(A)` or `params(radius)`: Young's optimum 2 / (1 + sqrt(1 - radius^2)), with the spectral
    radius of Jacobi's iteration I - D^-1 A, which must be below 1; where A is consistently ordered (a chain, a grid), the
    rate is relax - 1.

    Cost: a product with A and a solve with a triangular matrix an iteration, one unknown after the other.

    Returns:
        An `Algorithm` whose state is x.

    Raises:
        StructureError: when run, if A is no square matrix or y does not fit.
        InvalidArgument: the radius is 1 or more.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import sor
        >>> problem = SimpleNamespace(A=jnp.array([[2.0, 1.0], [1.0, 2.0]]), y=jnp.array([3.0, 3.0]))
        >>> sor().run(sor().params(problem.A), problem, steps=20)[-1].round(3)
        Array([1., 1.], dtype=float32)

    References: Young, Transactions of the American Mathematical Society 1954.
    """
    return Algorithm(_sor_step, _sor_start, _sor_params)


def _jacobi_step(theta: Any, x: jax.Array, problem: Any) -> jax.Array:
    a = problem.A
    return x + theta["relax"] * _over(problem.y - a @ x, jnp.diagonal(a))


def _over(residual: jax.Array, diagonal: jax.Array) -> jax.Array:
    return residual / diagonal.reshape(diagonal.shape + (1,) * (residual.ndim - 1))


def _sor_step(theta: Any, x: jax.Array, problem: Any) -> jax.Array:
    a = problem.A
    lower = jnp.tril(a, -1) + jnp.diag(jnp.diagonal(a) / theta["relax"])
    return x + jax.scipy.linalg.solve_triangular(lower, problem.y - a @ x, lower=True)


def _jacobi_start(problem: Any) -> jax.Array:
    return _zeros("jacobi", problem)


def _sor_start(problem: Any) -> jax.Array:
    return _zeros("sor", problem)


def _zeros(owner: str, problem: Any) -> jax.Array:
    a, y = measurements(owner, problem)
    if hasattr(a, "mv") or a.shape[0] != a.shape[1]:
        raise StructureError(f"{owner}: problem.A must be a square matrix, got {describe(a)}. Take A^H A and A^H y.")
    return jnp.zeros(y.shape, jnp.result_type(a, y))


def _scaled(owner: str, A: Any) -> np.ndarray:
    """Return the eigenvalues of D^-1 A, ascending by their real parts."""
    a = np.asarray(A)
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise StructureError(f"{owner}: A must be a square matrix, got {describe(a)}. Take A^H A and A^H y.")
    return np.sort_complex(np.linalg.eigvals(a / np.diagonal(a)[:, None]))


def _jacobi_params(A: Any = None) -> dict[str, Any]:
    if A is None:
        return numbers(A, relax=1.0)
    if isinstance(A, tuple):
        high, low = A
    else:
        values = _scaled("jacobi", A).real
        high, low = values[-1], values[0]
    check_number("jacobi", "the smallest eigenvalue of D^-1 A", low, POSITIVE, used=True)
    return numbers(A, relax=2 / (high + low))


def _sor_params(A: Any = None) -> dict[str, Any]:
    if A is None:
        return numbers(A, relax=1.0)
    radius = A if np.ndim(A) == 0 else np.abs(1 - _scaled("sor", A)).max()
    if not 0 <= radius < 1:
        raise InvalidArgument(
            f"sor: the spectral radius of I - D^-1 A must be below 1, got {float(radius):.4g}. "
            "Give relax yourself, in (0, 2)."
        )
    return numbers(A if np.ndim(A) else None, relax=2 / (1 + np.sqrt(1 - radius**2)))
