"""What iterations for one A compute once: weights, and constants from its largest eigenvalue; and what its residual tells."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, UP_TO_ONE, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._value import static, value
from unrollax.prox import bernoulli_gauss
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
        StructureError: A is no matrix, or has more rows than columns.
        InvalidArgument: A has a lower rank than m.

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
    check_wide("analytic_weights", a)
    exact = a.astype(np.result_type(a.dtype, np.float64))  # normal equations square the condition number
    try:
        seen = np.linalg.solve(exact @ exact.conj().T, exact)
    except np.linalg.LinAlgError as error:
        raise InvalidArgument(
            f"analytic_weights: A must have rank m, rows that do not depend on each other, got {describe(a)} of a lower "
            "rank. Leave out rows that say the same."
        ) from error
    return jnp.asarray(seen / (exact.conj() * seen).sum(0), a.dtype)


def check_wide(owner: str, a: Any) -> None:
    """Raise unless a matrix has at most as many rows as columns: A A^H of another has no inverse."""
    if a.shape[0] > a.shape[1]:
        raise StructureError(
            f"{owner}: A must be [m, n] with m <= n, fewer measurements than unknowns, got {describe(a)}. Take a method "
            "for least squares, such as gradient_descent."
        )


def check_matrix(owner: str, A: Any) -> jax.Array:
    """Return A as an array; raise unless it is a matrix."""
    if hasattr(A, "mv") or jnp.ndim(A) != 2:
        raise StructureError(
            f"{owner}: A must be a matrix [m, n], got {describe(A)}. Of an operator, pass the matrix of its columns."
        )
    return jnp.asarray(A)


def pseudoinverse(a: jax.Array) -> jax.Array:
    """Return A^H (A A^H)^-1, `[n, m]`, of a matrix `[m, n]` of rank m."""
    check_wide("pseudoinverse", a)
    return jnp.linalg.solve(a @ a.conj().T, a).conj().T


def error_variance(step: Any, residual: jax.Array, problem: Any, w: jax.Array) -> jax.Array:
    """Return the mean squared error of x + step W (y - A x), W the pseudoinverse, as the residual y - A x tells.

    That of x is v = max((|y - A x|^2 - m noise^2) / tr(A^H A), 1e-9); step W A leaves v (1 + (step^2 - 2 step) m / n) of it,
    as W A is a projection to m of n dimensions, and the noise adds step^2 noise^2 tr(W W^H) / n. Of complex numbers, errors
    and noise^2 are means of |.|^2.
    """
    n, m = w.shape
    power = squares(residual)
    noise2 = jnp.asarray(problem.noise, power.dtype) ** 2
    error = jnp.maximum((power.sum() - m * noise2) / squares(problem.A).sum(), FLOOR)
    return error * (1 + (step**2 - 2 * step) * m / n) + step**2 * noise2 * squares(w).sum() / n


def squares(v: jax.Array) -> jax.Array:
    """Return |v_i|^2, real, without the magnitudes."""
    return (v.conj() * v).real if jnp.iscomplexobj(v) else v**2


@dataclasses.dataclass(frozen=True, repr=False)
class Held:
    """An array in a static field: equal to another whose source has the same shape, dtype and bytes.

    Compiled programs are found by the equality of static fields, so that an algorithm that is made again from equal numbers
    compiles nothing.

    Attributes:
        array: what is held.
        source: what stands for the array that it was computed from.
    """

    array: jax.Array = dataclasses.field(compare=False)
    source: Hashable

    def __repr__(self) -> str:
        return describe(self.array)


def held(array: Any, source: Any) -> Held:
    """Hold an array that was computed from another; of tracers there are no bytes, and each equals only itself."""
    if isinstance(array, jax.core.Tracer) or isinstance(source, jax.core.Tracer):
        return Held(array, object())
    exact = np.asarray(source)
    return Held(jnp.asarray(array), (exact.shape, str(exact.dtype), hashlib.sha256(exact.tobytes()).digest()))


@value
class Known:
    """What TISTA and OAMP know: the pseudoinverse of the A that problems share, and the prior. Made by `known`.

    Attributes:
        inverse: A^H (A A^H)^-1, or `None` where each problem has its own A.
        rate: share of x that is not 0.
        variance: of these entries.
    """

    inverse: Held | None = static()
    rate: Any = static()
    variance: Any = static()

    def weights(self, problem: Any) -> jax.Array:
        """Return W, the pseudoinverse, `[n, m]`."""
        return pseudoinverse(problem.A) if self.inverse is None else self.inverse.array

    def mean(self, r: jax.Array, tau2: Any) -> jax.Array:
        """Return the posterior mean of x given r = x + noise of variance tau2."""
        rate, variance = (each.array if isinstance(each, Held) else each for each in (self.rate, self.variance))
        return bernoulli_gauss(r, tau2, rate=rate, variance=variance)


def known(owner: str, A: Any, rate: Any, variance: Any) -> Known:
    """Check what an algorithm is told, and invert A once."""
    check_number(owner, "rate", rate, UP_TO_ONE, used=True)
    check_number(owner, "variance", variance, POSITIVE, used=True)
    inverse = None
    if A is not None:
        a = check_matrix(owner, A)
        inverse = held(pseudoinverse(a), a)
    return Known(
        inverse, *(held(each, each) if isinstance(each, (jax.Array, np.ndarray)) else each for each in (rate, variance))
    )
