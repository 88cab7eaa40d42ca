"""Chebyshev's semi-iteration."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._value import static, value
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import Begin, Grad, Start, add, answer_of, bounds, numbers, slope


class Chebyshev(NamedTuple):
    """Where Chebyshev's semi-iteration stands.

    Attributes:
        x: the iterate.
        before: the one before it.
        ratio: T_{t-1}(c / d) / T_t(c / d) of the iteration made last, a scalar; 0 before the first.
    """

    x: Any
    before: Any
    ratio: jax.Array


def chebyshev(grad: Grad | None = None, start: Begin | None = None) -> Algorithm:
    """Chebyshev's semi-iteration in its three-term form, the best method for a known interval, at every iteration.

    With c = (upper + lower) / 2, d = (upper - lower) / 2 and `ratio` r: r <- 1 / (2 c / d - r), and 1 / (c / d) first;
    x <- x + (2 r / d) (-grad f(x)) + r r_before (x - before); the first step is x - grad f(x) / c.
    After t iterations the error along an eigenvector of eigenvalue h is T_t((c - h) / d) / T_t(c / d) of that at the start,
    T_t the Chebyshev polynomial: what `chebyshev_steps(t, L, mu)` reach in gradient descent at t only, without their order
    to care for. f as in `gradient_descent`; quadratic.

    theta: `upper` and `lower`, the ends of the interval, upper > lower > 0: two numbers to train, whatever the depth; and
    `lam`, if it is to be trained.

    `params(A, lam=0.0)` or `params((L, mu))`: upper = L, lower = mu.

    Args:
        grad: the gradient of another quadratic; see `gradient_descent`.
        start: `start(problem) -> x`, if not 0 in the shape of A^H y.

    Returns:
        An `Algorithm` whose state is `Chebyshev(x, before, ratio)`, and whose answer is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import chebyshev
        >>> problem = SimpleNamespace(A=jnp.diag(jnp.array([1.0, 2.0])), y=jnp.array([1.0, 2.0]))
        >>> method = chebyshev()
        >>> method.run(method.params(problem.A), problem, steps=10)[-1].round(3)
        Array([1., 1.], dtype=float32)

    References: Golub and Varga, Numerische Mathematik 1961; Saad, Iterative Methods for Sparse Linear Systems 2003, 12.3.
    """
    return Algorithm(_Chebyshev(grad), _ChebyshevStart(Start("chebyshev", start)), _chebyshev_params, answer_of)


@value
class _ChebyshevStart:
    start: Start = static()

    def __call__(self, problem: Any) -> Chebyshev:
        x = self.start(problem)
        kind = jnp.abs(jnp.zeros((), jnp.result_type(float, *jax.tree.leaves(x)))).dtype
        return Chebyshev(x, x, jnp.zeros((), kind))


@value
class _Chebyshev:
    grad: Grad | None = static()

    def __call__(self, theta: Any, state: Chebyshev, problem: Any) -> Chebyshev:
        x, before, last = state
        middle, half = (theta["upper"] + theta["lower"]) / 2, (theta["upper"] - theta["lower"]) / 2
        # T_{t+1} = 2 (c / d) T_t - T_{t-1}, and T_1 = c / d; nothing is divided by d, which may be 0.
        ratio = jnp.where(last == 0, half / middle, half / (2 * middle - half * last))
        step = jnp.where(last == 0, 1 / middle, 2 / (2 * middle - half * last))
        down = add(x, -step, slope(self.grad, theta, x, problem))
        moved = jax.tree.map(jnp.subtract, x, before)
        return Chebyshev(add(down, ratio * last, moved), x, ratio.astype(last.dtype))


def _chebyshev_params(A: Any, lam: float = 0.0) -> dict[str, Any]:
    high, low = bounds("chebyshev", A, lam)
    return numbers(A, upper=high, lower=low)
