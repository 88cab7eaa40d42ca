"""TISTA: an estimate of the error's variance sets the shrinkage, so that one number an iteration is left to train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._value import static, value
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import Start
from unrollax.solvers._linear import times
from unrollax.solvers._weights import Known, error_variance, known


def tista(A: Any = None, *, rate: float = 0.1, variance: float = 1.0) -> Algorithm:
    """Trainable ISTA for Bernoulli-Gauss signals, with the posterior mean in the place of soft thresholding.

    r = x + step W (y - A x), with W = A^H (A A^H)^-1 the pseudoinverse;
    v = max((|y - A x|^2 - m noise^2) / tr(A^H A), 1e-9), the mean squared error of x, as the residual tells;
    tau^2 = v (1 + (step^2 - 2 step) m / n) + step^2 noise^2 tr(W W^H) / n, that of r;
    x' = E[x | r = x + tau e], by `unrollax.prox.bernoulli_gauss`. All may be complex: then e and the entries of x that are
    not 0 are circularly symmetric, and variances are means of |.|^2.

    theta: `step`, by `per_step`. Its optimum zigzags between about 1 and 4, and equal steps part from each other late: start
    from 1, 2, 1, 2, ... or jitter them.

    `params()`: step = 1. The problem gives `A`, `y` and `noise`, the standard deviation, the root of E |noise_i|^2.

    Args:
        A: the matrix that all problems share, whose pseudoinverse is computed once; `None`: each step computes that of
            `problem.A`, which may then differ from problem to problem.
        rate: share of x that is not 0.
        variance: of these entries, E |x_i|^2.

    Returns:
        An `Algorithm` whose state is x. Made again with an equal A it is equal, and compiles nothing.

    Raises:
        InvalidArgument: rate is outside (0, 1], or variance is not positive.
        StructureError: A is no matrix; or when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import tista
        >>> problems = sparse_recovery()
        >>> method = tista(problems.A)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> answer = method.run(method.params(), problem, steps=20)[20]
        >>> bool(((answer - problem.x) ** 2).sum() < 1e-3 * (problem.x**2).sum())
        True

    References: Ito, Takabe and Wadayama, IEEE Transactions on Signal Processing 2019.
    """
    return Algorithm(_TISTA(known("tista", A, rate, variance)), Start("tista", None), _tista_params)


@value
class _TISTA:
    known: Known = static()

    def __call__(self, theta: Any, x: jax.Array, problem: Any) -> jax.Array:
        w = self.known.weights(problem)
        residual = problem.y - times(problem.A, x)
        tau2 = error_variance(theta["step"], residual, problem, w)
        return self.known.mean(x + theta["step"] * (w @ residual), tau2)


def _tista_params() -> dict[str, Any]:
    return {"step": jnp.ones(())}
