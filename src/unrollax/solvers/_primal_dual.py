"""Methods without inner solves: Chambolle and Pock's primal-dual method, and projected gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._value import static, value
from unrollax.prox import soft
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import Begin, Grad, Start, add, answer_of, bounds, numbers, slope, weight, zeros
from unrollax.solvers._linear import Linear, adjoint, apply, apply_adjoint, times
from unrollax.theory._constants import gradient_step

Prox: TypeAlias = Callable[[Any, Any], Any]  # (v, scale) -> x


class PrimalDual(NamedTuple):
    """Where Chambolle and Pock's method stands.

    Attributes:
        x: the iterate, in the shape of A^H y.
        ahead: where it is extrapolated to, in the same shape.
        data: the dual variable of A x, in the shape of y.
        prior: that of K x, in its shape; `None` without K.
    """

    x: jax.Array
    ahead: jax.Array
    data: jax.Array
    prior: Any


def chambolle_pock(prox: Prox = soft, K: Linear | None = None) -> Algorithm:
    """Chambolle and Pock's primal-dual method for min_x |A x - y|^2 / 2 + lam g(K x), without inner solves.

    data <- (data + sigma (A ahead - y)) / (1 + sigma);
    prior <- v - sigma prox(v / sigma, lam / sigma) with v = prior + sigma K ahead;
    x' = prox(x - tau A^H data, tau lam) without K, and x - tau (A^H data + K^H prior) with it;
    ahead = x' + momentum (x' - x).
    It converges for momentum = 1 and tau sigma |[A; K]|^2 <= 1, for every convex g and every A, also one of low rank.

    theta: `tau`, the primal step; `sigma`, the dual one; `momentum`; `lam`, the problem's where it is not in theta.

    `params(A, lam=0.1, gram=0.0, convexity=0.0)` or `params((L, mu), ...)`: tau = sigma = 1 / sqrt(L + gram), momentum = 1, L
    the largest eigenvalue of A^H A and gram that of K^H K (4 for `jnp.diff`). With a convexity c of lam g, without K (that of
    lam |x|^2 / 2 is lam): r = 2 sqrt(c / L), tau = r / (2 c), sigma = r / 2, momentum = 1 / (1 + r), with which the squared
    error falls by (1 + momentum) / (2 + r) or more an iteration.

    Cost: a product with A, A^H, K and K^H each an iteration.

    Args:
        prox: `prox(v, scale)`, that of g.
        K: a linear function such as `jnp.diff`, or `None` for the identity.

    Returns:
        An `Algorithm` whose state is `PrimalDual(x, ahead, data, prior)`, and whose answer is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import chambolle_pock
        >>> problem = SimpleNamespace(A=jnp.eye(4), y=jnp.array([1.0, 3.0, 9.0, 11.0]))
        >>> method = chambolle_pock(K=jnp.diff)
        >>> theta = method.params(problem.A, lam=2.0, gram=4.0)
        >>> method.run(theta, problem, steps=300)[-1].round()
        Array([3., 3., 9., 9.], dtype=float32)

    References: Chambolle and Pock, Journal of Mathematical Imaging and Vision 2011; Adler and Öktem, IEEE Transactions on
    Medical Imaging 2018 (unfolded).
    """
    return Algorithm(_ChambollePock(prox, K), _PrimalDualStart(K), _primal_dual_params, answer_of)


def projected_gradient(project: Callable[..., Any], grad: Grad | None = None, start: Begin | None = None) -> Algorithm:
    """Projected gradient descent: x <- project(x - step grad f(x)).

    f is |A x - y|^2 / 2 + lam |x|^2 / 2 as in `gradient_descent`, or any smooth function by its gradient.

    theta: `step`, below 2 / L; `radius`, if it is there, is handed on as `project(v, radius)`: the radius of a ball or the
    sum of a simplex, to be trained; `lam`, if it is to be trained.

    `params(A, lam=0.0)` or `params((L, mu))`: step = 2 / (L + mu), with which the error falls by (L - mu) / (L + mu) or more
    an iteration if A has full column rank; `full_rank=False`: step = 1 / L, which is safe for any A.

    Args:
        project: `project(v)` or `project(v, radius)`, the nearest point of a set, such as those of `optax.projections`.
        grad: `grad(x, problem)`, the gradient of another smooth function, a tree like x.
        start: `start(problem) -> x`, if not 0 in the shape of A^H y.

    Returns:
        An `Algorithm` whose state is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import projected_gradient
        >>> problem = SimpleNamespace(A=jnp.eye(2), y=jnp.array([-1.0, 2.0]))
        >>> method = projected_gradient(optax.projections.projection_non_negative)
        >>> method.run(method.params(problem.A), problem, steps=10)[-1].tolist()
        [0.0, 2.0]

    References: Goldstein, Bulletin of the American Mathematical Society 1964; Levitin and Polyak, USSR Computational
    Mathematics and Mathematical Physics 1966.
    """
    return Algorithm(_Projected(project, grad), Start("projected_gradient", start), _projected_params)


@value
class _PrimalDualStart:
    K: Linear | None = static()

    def __call__(self, problem: Any) -> PrimalDual:
        x = zeros("chambolle_pock", problem)
        data = jnp.zeros(problem.y.shape, jnp.result_type(x, problem.y))
        return PrimalDual(x, x, data, None if self.K is None else self.K(x))


@value
class _ChambollePock:
    prox: Prox = static()
    K: Linear | None = static()

    def __call__(self, theta: Any, state: PrimalDual, problem: Any) -> PrimalDual:
        tau, sigma, lam = theta["tau"], theta["sigma"], weight(theta, problem)
        data = (state.data + sigma * (times(problem.A, state.ahead) - problem.y)) / (1 + sigma)
        down = state.x - tau * adjoint(problem.A, data)
        if self.K is None:
            prior, x = None, self.prox(down, tau * lam)
        else:
            v = state.prior + sigma * apply(self.K, state.ahead)
            prior = v - sigma * self.prox(v / sigma, lam / sigma)
            x = down - tau * apply_adjoint(self.K, prior, state.x)
        return PrimalDual(x, x + theta["momentum"] * (x - state.x), data, prior)


@value
class _Projected:
    project: Callable[..., Any] = static()
    grad: Grad | None = static()

    def __call__(self, theta: Any, x: Any, problem: Any) -> Any:
        down = add(x, -theta["step"], slope(self.grad, theta, x, problem))
        return self.project(down, theta["radius"]) if "radius" in theta else self.project(down)


def _primal_dual_params(A: Any, lam: float = 0.1, *, gram: float = 0.0, convexity: float = 0.0) -> dict[str, Any]:
    largest = bounds("chambolle_pock", A)[0] + gram
    if convexity == 0:
        return numbers(A, tau=largest**-0.5, sigma=largest**-0.5, momentum=1.0, lam=lam)
    rate = 2 * (convexity / largest) ** 0.5
    return numbers(A, tau=rate / (2 * convexity), sigma=rate / 2, momentum=1 / (1 + rate), lam=lam)


def _projected_params(A: Any, lam: float = 0.0, *, full_rank: bool = True) -> dict[str, Any]:
    high, low = bounds("projected_gradient", A, lam)
    return numbers(A, step=gradient_step(high, low) if full_rank else 1 / high)
