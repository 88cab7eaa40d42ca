"""Inner solves (A^H A + shift K^H K) x = r: factored once, by Cholesky, or by lineax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._value import static, value
from unrollax.solvers._linear import Linear, adjoint, apply, apply_adjoint, matrix_of, times


@value
class Factored:
    """A matrix with a basis in which A^H A and K^H K are diagonal; made by `factored`.

    It has `mv` and `transpose` and so stands wherever a matrix A does; `solve` is what saves the time.

    Attributes:
        matrix: A, `[m, n]`.
        basis: W, `[n, n]`, with W^H A^H A W = diag(data) and W^H K^H K W = diag(prior).
        data: `[n]`.
        prior: `[n]`.
        K: the linear function, or `None` for the identity.
    """

    matrix: jax.Array
    basis: jax.Array
    data: jax.Array
    prior: jax.Array
    K: Linear | None = static(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of A."""
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        """That of A."""
        return self.matrix.dtype

    def __matmul__(self, x: jax.Array) -> jax.Array:
        return self.matrix @ x

    def mv(self, x: jax.Array) -> jax.Array:
        """Return A x."""
        return self.matrix @ x

    def transpose(self) -> Any:
        """Return the transpose of A, an operator with `mv`."""
        return _Matrix(self.matrix.T)

    def as_matrix(self) -> jax.Array:
        """Return A."""
        return self.matrix

    def solve(self, right: jax.Array, shift: Any) -> jax.Array:
        """Return (A^H A + shift K^H K)^-1 right, two products with a matrix `[n, n]`, for any shift, also a trained one."""
        scaled = (self.basis.conj().T @ right).T / (self.data + shift * self.prior)
        return self.basis @ scaled.T


@value
class _Matrix:
    matrix: jax.Array

    def mv(self, x: jax.Array) -> jax.Array:
        return self.matrix @ x


def factored(A: Any, K: Linear | None = None) -> Factored:
    """Decompose A once, so that each inner solve costs O(n^2).

    Put it in the place of the A of a problem for `admm`, `half_quadratic_splitting` or `douglas_rachford`. Without it
    each iteration makes a Cholesky factorisation, O(n^3).

    Args:
        A: a matrix `[m, n]`, real or complex.
        K: the linear function of the algorithm, such as `jnp.diff`, or `None` where it has none. A x and K x may not both be
            0 for an x that isn't.

    Returns:
        A `Factored` matrix.

    Raises:
        StructureError: A is no matrix.

    Example:
        >>> from unrollax.solvers import factored
        >>> A = factored(jnp.array([[1.0, 0.0], [0.0, 3.0]]))
        >>> A.solve(jnp.array([2.0, 10.0]), 1.0).round(3)
        Array([1., 1.], dtype=float32)

    References: Golub and Van Loan, Matrix Computations 2013, section 8.7.
    """
    if hasattr(A, "as_matrix"):
        A = A.as_matrix()
    if jnp.ndim(A) != 2:
        raise StructureError(f"factored: A must be a matrix [m, n], got {describe(A)}. Operators are solved by lineax.")
    a = jnp.asarray(A)
    gram = a.conj().T @ a
    if K is None:
        data, basis = jnp.linalg.eigh(gram)
        return Factored(a, basis, jnp.maximum(data, 0), jnp.ones_like(data))
    k = matrix_of(K, jnp.zeros(a.shape[1], a.dtype))
    root = jnp.linalg.cholesky(gram + k.conj().T @ k)
    inner = jax.scipy.linalg.solve_triangular(root, a.conj().T, lower=True)
    turn = jnp.linalg.eigh(inner @ inner.conj().T)[1]
    basis = jax.scipy.linalg.solve_triangular(root.conj().T, turn, lower=False)
    data, prior = (jnp.sum(jnp.abs(each @ basis) ** 2, 0) for each in (a, k))
    return Factored(a, basis, data, prior, K)


def solve_inner(owner: str, a: Any, k: Linear | None, right: jax.Array, shift: Any, solver: Any = None) -> jax.Array:
    """Return (A^H A + shift K^H K)^-1 right."""
    if isinstance(a, Factored):
        if k != a.K:
            raise InvalidArgument(
                f"{owner}: problem.A must be factored with the algorithm's K, got K={a.K!r} and {k!r}. "
                "Make it by factored(A, K)."
            )
        return a.solve(right, shift)
    if hasattr(a, "solve"):  # an operator that is diagonal in some basis, such as that of an FFT, knows better
        own: jax.Array = a.solve(right, shift)
        return own
    if hasattr(a, "mv"):
        return _iterate(owner, a, k, right, shift, solver)
    m, n = a.shape
    if k is None and m < n:  # by the smaller matrix A A^H + shift, as (A^H A + shift)^-1 A^H = A^H (A A^H + shift)^-1
        small = cho_factor(a @ a.conj().T + shift * jnp.eye(m, dtype=a.dtype), lower=True)
        return (right - a.conj().T @ cho_solve(small, a @ right)) / shift
    prior = jnp.eye(n, dtype=a.dtype) if k is None else _gram(matrix_of(k, jnp.zeros(n, a.dtype)))
    solved: jax.Array = cho_solve(cho_factor(_gram(a) + shift * prior, lower=True), right)
    return solved


def _gram(a: jax.Array) -> jax.Array:
    return a.conj().T @ a


def _iterate(owner: str, a: Any, k: Linear | None, right: jax.Array, shift: Any, solver: Any) -> jax.Array:
    """Solve by an iterative solver of lineax, whose derivative is another solve."""
    try:
        import lineax
    except ImportError:
        raise InvalidArgument(
            f"{owner}: an operator in problem.A needs lineax, which is not installed. "
            "Install unrollax[solvers], or give a matrix."
        ) from None

    def normal(x: jax.Array) -> jax.Array:
        prior = apply_adjoint(k, apply(k, x), x)
        return (adjoint(a, times(a, x)) + shift * prior).astype(right.dtype)

    shape = jax.ShapeDtypeStruct(right.shape, right.dtype)
    operator = lineax.FunctionLinearOperator(normal, shape, lineax.positive_semidefinite_tag)
    if solver is None:
        fine = 10 * float(jnp.finfo(right.dtype).eps)  # type: ignore[no-untyped-call]
        solver = lineax.CG(rtol=fine, atol=0.0)
    solved: jax.Array = lineax.linear_solve(operator, right, solver, throw=False).value
    return solved
