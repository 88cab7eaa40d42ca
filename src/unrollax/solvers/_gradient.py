"""First-order methods for smooth functions: gradient descent, the heavy ball and Nesterov's method."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._value import static, value
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import Begin, Grad, Start, add, answer_of, bounds, numbers, slope
from unrollax.theory._constants import gradient_step, heavy_ball_constants, nesterov_constants


class Moving(NamedTuple):
    """Where a method with momentum stands.

    Attributes:
        x: the iterate, any tree.
        before: the one before it.
    """

    x: Any
    before: Any


def gradient_descent(grad: Grad | None = None, start: Begin | None = None) -> Algorithm:
    """Gradient descent: x <- x - step grad f(x).

    Without `grad`, f(x) = |A x - y|^2 / 2 + lam |x|^2 / 2 for `problem.A` and `problem.y`; lam is theta's if it is there,
    else the problem's, else 0. Unfolded, with a step of its own for each iteration, its optimum on quadratics is known: the
    reciprocals of a Chebyshev polynomial's roots (`unrollax.theory.chebyshev_steps`).

    theta: `step`, the step size, below 2 / L; and `lam`, if it is to be trained: add it to what `params` gives.

    `params(A, lam=0.0)` or `params((L, mu))`: step = 2 / (L + mu), L and mu the largest and the smallest eigenvalue of
    A^H A + lam (of those above 0, for nothing ever moves along the others). The error falls by (L - mu) / (L + mu) or more
    an iteration.

    Args:
        grad: `grad(x, problem)`, the gradient of another smooth function, such as `jax.grad(f)`, a tree like x. For complex
            x take `jnp.conj` of what `jax.grad` gives. Give the bounds (L, mu) of its curvature to `params`.
        start: `start(problem) -> x`, if not 0 in the shape of A^H y.

    Returns:
        An `Algorithm` whose state is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import gradient_descent
        >>> problem = SimpleNamespace(A=jnp.diag(jnp.array([1.0, 2.0])), y=jnp.array([1.0, 2.0]))
        >>> method = gradient_descent()
        >>> xs = method.run(method.params((4.0, 1.0)), problem, steps=20)
        >>> xs.shape, xs[-1].round(3).tolist()
        ((21, 2), [1.0, 1.0])

    References: Cauchy, Comptes rendus 1847; Polyak, Introduction to Optimization, 1987.
    """
    return Algorithm(_GradientDescent(grad), Start("gradient_descent", start), _gradient_params)


def heavy_ball(grad: Grad | None = None, start: Begin | None = None) -> Algorithm:
    """The heavy ball: x <- x - step grad f(x) + momentum (x - before), `before` the iterate before x.

    f as in `gradient_descent`. On quadratics its asymptotic rate is the best of all methods that have no limit of memory,
    but errors may first grow, by a factor of about the number of iterations. On other functions it can fail to converge.

    theta: `step`, the step size; `momentum`, in [0, 1); `lam`, if it is to be trained.

    `params(A, lam=0.0)` or `params((L, mu))`: step = 4 / (sqrt(L) + sqrt(mu))^2 and
    momentum = ((sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu)))^2, at the rate sqrt(momentum).

    Args:
        grad: the gradient of another smooth function; see `gradient_descent`.
        start: `start(problem) -> x`, if not 0 in the shape of A^H y.

    Returns:
        An `Algorithm` whose state is `Moving(x, before)`, and whose answer is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import heavy_ball
        >>> problem = SimpleNamespace(A=jnp.diag(jnp.array([1.0, 2.0])), y=jnp.array([1.0, 2.0]))
        >>> method = heavy_ball()
        >>> method.run(method.params(problem.A), problem, steps=20)[-1].round(3)
        Array([1., 1.], dtype=float32)

    References: Polyak, USSR Computational Mathematics and Mathematical Physics 1964.
    """
    return Algorithm(_HeavyBall(grad), _MovingStart(Start("heavy_ball", start)), _heavy_params, answer_of)


def nesterov(grad: Grad | None = None, start: Begin | None = None) -> Algorithm:
    """Nesterov's method: z = x + momentum (x - before); x <- z - step grad f(z), `before` the iterate before x.

    f as in `gradient_descent`; it converges on any convex smooth function.

    theta: `step`, the step size, at most 1 / L in general; `momentum`, in [0, 1); `lam`, if it is to be trained.

    `params(A, lam=0.0)`: what is best on quadratics, step = 4 / (3 L + mu) and momentum = (r - 2) / (r + 2) with r =
    sqrt(3 L / mu + 1), at the rate 1 - 2 / r. `params((L, mu), quadratic=False)`: step = 1 / L and momentum = (sqrt(L) -
    sqrt(mu)) / (sqrt(L) + sqrt(mu)), for any f of these bounds. `params((L, mu), depth=N)`: step = 1 / L and an array of N
    momenta t / (t + 3), t = 0, 1, ..., for convex f, the entries of a per-step schedule.

    Args:
        grad: the gradient of another smooth function; see `gradient_descent`.
        start: `start(problem) -> x`, if not 0 in the shape of A^H y.

    Returns:
        An `Algorithm` whose state is `Moving(x, before)`, and whose answer is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import nesterov
        >>> problem = SimpleNamespace(A=jnp.diag(jnp.array([1.0, 2.0])), y=jnp.array([1.0, 2.0]))
        >>> method = nesterov()
        >>> method.run(method.params(problem.A), problem, steps=30)[-1].round(3)
        Array([1., 1.], dtype=float32)

    References: Nesterov, Soviet Mathematics Doklady 1983; Nesterov, Introductory Lectures on Convex Optimization, 2004;
    Lessard, Recht and Packard, SIAM Journal on Optimization 2016 (quadratics).
    """
    return Algorithm(_Nesterov(grad), _MovingStart(Start("nesterov", start)), _nesterov_params, answer_of)


@value
class _MovingStart:
    start: Start = static()

    def __call__(self, problem: Any) -> Moving:
        x = self.start(problem)
        return Moving(x, x)


@value
class _GradientDescent:
    grad: Grad | None = static()

    def __call__(self, theta: Any, x: Any, problem: Any) -> Any:
        return add(x, -theta["step"], slope(self.grad, theta, x, problem))


@value
class _HeavyBall:
    grad: Grad | None = static()

    def __call__(self, theta: Any, state: Moving, problem: Any) -> Moving:
        x, before = state
        down = add(x, -theta["step"], slope(self.grad, theta, x, problem))
        return Moving(add(down, theta["momentum"], jax.tree.map(jnp.subtract, x, before)), x)


@value
class _Nesterov:
    grad: Grad | None = static()

    def __call__(self, theta: Any, state: Moving, problem: Any) -> Moving:
        x, before = state
        ahead = add(x, theta["momentum"], jax.tree.map(jnp.subtract, x, before))
        return Moving(add(ahead, -theta["step"], slope(self.grad, theta, ahead, problem)), x)


def _gradient_params(A: Any, lam: float = 0.0) -> dict[str, Any]:
    return numbers(A, step=gradient_step(*bounds("gradient_descent", A, lam)))


def _heavy_params(A: Any, lam: float = 0.0) -> dict[str, Any]:
    constants = heavy_ball_constants(*bounds("heavy_ball", A, lam))
    return numbers(A, step=constants.eta, momentum=constants.beta)


def _nesterov_params(A: Any, lam: float = 0.0, *, quadratic: bool = True, depth: int | None = None) -> dict[str, Any]:
    high, low = bounds("nesterov", A, lam)
    if depth is not None:
        check_counts("nesterov", depth=depth)
        t = jnp.arange(depth)
        return numbers(A, step=1 / high, momentum=t / (t + 3))
    if quadratic:
        constants = nesterov_constants(high, low)
        return numbers(A, step=constants.eta, momentum=constants.beta)
    high, low = high**0.5, low**0.5
    return numbers(A, step=1 / high**2, momentum=(high - low) / (high + low))
