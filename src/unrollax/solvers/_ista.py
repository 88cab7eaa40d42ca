"""Iterative shrinkage-thresholding for the lasso, and its accelerated form."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax.prox import soft
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import Start, answer_of, zeros
from unrollax.solvers._linear import adjoint, times
from unrollax.solvers._weights import step_and_threshold


class Accelerated(NamedTuple):
    """Where FISTA stands.

    Attributes:
        x: the iterate.
        before: the one before it.
        weight: what the momentum is computed from, a number.
    """

    x: jax.Array
    before: jax.Array
    weight: jax.Array


def ista() -> Algorithm:
    """Iterative shrinkage-thresholding: a step along the gradient of ``|A x - y|^2 / 2``, then soft thresholding.

    x' = soft(x - step A^H (A x - y), threshold), from x = 0. With constants it finds the lasso's solution, the least
    ``|A x - y|^2 / 2 + lam |x|_1`` with ``lam = threshold / step``, at the rate 1 / t. With a step and a threshold for each
    iteration, trained, it is a learned ISTA of few parameters (the book's DU-ISTA).

    theta: `step`, below 2 / L; `threshold`.

    `params(A, lam=0.1)` or `params((L, mu), lam=0.1)`: step = 1 / L and threshold = lam / L, L the largest eigenvalue of
    A^H A.

    Returns:
        An `Algorithm` whose state is x. A may be complex, or an operator.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import ista
        >>> problems = sparse_recovery(m=50, n=100)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> xs = ista().run(ista().params(problem.A, lam=0.03), problem, steps=500)
        >>> bool(((xs[500] - problem.x) ** 2).sum() < 0.01 * (problem.x**2).sum())
        True

    References: Daubechies, Defrise and De Mol, Communications on Pure and Applied Mathematics 2004.
    """
    return Algorithm(_ista_step, Start("ista", None), _ista_params)


def fista() -> Algorithm:
    """ISTA with Nesterov's momentum, whose strength is a parameter.

    z = x + momentum (w - 1) / w' (x - before), with w' = (1 + sqrt(1 + 4 w^2)) / 2 from w = 0;
    x' = soft(z - step A^H (A z - y), threshold).
    With momentum = 1 this is FISTA, at the rate 1 / t^2. Trained, `momentum` scales what FISTA would use at each iteration;
    the first two iterations have none, so their entries have no influence.

    theta: `step`, `threshold`, `momentum`.

    `params(A, lam=0.1)` or `params((L, mu), lam=0.1)`: step = 1 / L, threshold = lam / L and momentum = 1.

    Returns:
        An `Algorithm` whose state is `Accelerated(x, before, weight)`, and whose answer is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import fista, ista
        >>> problems = sparse_recovery(m=50, n=100)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> theta = fista().params(problem.A, lam=0.003)
        >>> fast, slow = (method.run(theta, problem, steps=100)[100] for method in (fista(), ista()))
        >>> bool(((fast - problem.x) ** 2).sum() < ((slow - problem.x) ** 2).sum())
        True

    References: Beck and Teboulle, SIAM Journal on Imaging Sciences 2009. Deviation: the iterate before is kept, in place of
    the point between, so that the momentum may be trained.
    """
    return Algorithm(_fista_step, _fista_start, _fista_params, answer_of)


def _ista_step(theta: Any, x: jax.Array, problem: Any) -> jax.Array:
    slope = adjoint(problem.A, times(problem.A, x) - problem.y)
    return soft(x - theta["step"] * slope, theta["threshold"])


def _ista_params(A: Any, lam: float = 0.1) -> dict[str, Any]:
    return step_and_threshold("ista", A, lam)


def _fista_start(problem: Any) -> Accelerated:
    x = zeros("fista", problem)
    return Accelerated(x, x, jnp.zeros((), jnp.abs(x).dtype))


def _fista_step(theta: Any, state: Accelerated, problem: Any) -> Accelerated:
    weight = (1 + jnp.sqrt(1 + 4 * state.weight**2)) / 2
    ahead = state.x + theta["momentum"] * (state.weight - 1) / weight * (state.x - state.before)
    return Accelerated(_ista_step(theta, ahead, problem), state.x, weight)


def _fista_params(A: Any, lam: float = 0.1) -> dict[str, Any]:
    theta = step_and_threshold("fista", A, lam)
    return {**theta, "momentum": jnp.ones_like(theta["step"])}
