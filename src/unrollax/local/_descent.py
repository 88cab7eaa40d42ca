"""Local problems solved by steps of any optax optimizer, or by the filter that many gradient steps amount to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from unrollax._check import POSITIVE, check_number
from unrollax._errors import InvalidArgument
from unrollax._types import Params, State
from unrollax._value import static, value
from unrollax.local._problem import (
    How,
    Problem,
    Solution,
    first_gradient,
    gram_gradient,
    gram_pays,
    in_kinds_of,
    local_gradient,
    rows_of,
    side_by_side,
)


@value
class Descent:
    """`steps` updates of an optax optimizer, whose state starts anew at each batch."""

    optimizer: optax.GradientTransformation = static()

    def init(self, layers: list[Any], params: list[Params]) -> State:
        """Return nothing: each batch starts anew."""
        return ()

    def solve(self, problems: list[Problem], state: State, how: How) -> Solution:
        """Solve all layers' problems; see `Solver`."""
        moved = side_by_side(lambda problem: self._one(problem, how), problems)
        return moved, state, jnp.asarray(how.reach)

    def _one(self, problem: Problem, how: How) -> Params:
        """Return W_0 - W after all steps. The first gradient costs no pass: at W_0 the residual is `reach move`."""
        grad = first_gradient(problem, how.reach)
        params, inner = self._update(problem.params, self.optimizer.init(problem.params), grad)
        if how.steps > 1:
            form = gram_gradient if gram_pays(problem, how) else local_gradient
            gradient = form(problem, how, how.reach)

            def step(_: Any, now: tuple[Params, State]) -> tuple[Params, State]:
                return self._update(now[0], now[1], gradient(now[0]))

            params, _ = jax.lax.fori_loop(1, how.steps, step, (params, inner))
        return jax.tree.map(jnp.subtract, problem.params, params)

    def _update(self, params: Params, state: State, grad: Params) -> tuple[Params, State]:
        try:
            updates, state = self.optimizer.update(grad, state, params)
        except TypeError as error:
            if "keyword-only" not in str(error):
                raise
            raise InvalidArgument(
                f"LocoProp: inner must update params from their gradient alone, got an optimizer that also needs losses: "
                f"{error}. Take one without a line search, such as optax.rmsprop(1e-3)."
            ) from error
        return optax.apply_updates(params, updates), state


@value
class SpectralFilter:
    """What `steps` gradient steps come to in LocoProp-S, by doubling: for `LocoProp(inner=)`.

    T steps of rate eta on a squared local loss are one linear map of its gradient G at the start,

        W_0 - W_T = reach F_T G,    F_T = eta (I + R + ... + R^(T-1)),    R = I - eta (C + pull I),

    a filter on the spectrum of the inputs' covariance C = X^T X / batch: directions with many steps' worth of curvature are
    solved, the others moved as by the gradient. F_2T = (I + R^T) F_T, so that T steps take log2 T products of matrices and no
    factorisation. 2,048 steps cost what 11 would.

    Layers must be linear in their params; without `pull`, F_T is `[I - R^T] C^-1`.
    Cost of a batch: X^T X, and 2 to 3 products `[n, n] [n, n]` for each bit of `steps`; nothing is kept. It diverges where lr
    is above 2 / (largest eigenvalue of C + pull).

    Args:
        lr: rate eta of the local steps.

    Raises:
        InvalidArgument: lr is not positive.

    Example:
        >>> import unrollax as ux
        >>> layers = ux.dense_layers([4, 8, 2], "tanh")
        >>> loss = lambda y, target: ((y - target) ** 2).sum(-1)
        >>> loco = ux.LocoProp(layers, loss, variant="S", inner=ux.SpectralFilter(0.05), steps=64)
        >>> params = ux.layered(layers, loss).params(jax.random.key(0))
        >>> state = loco.init(jax.random.key(1), params)
        >>> state, estimate = jax.jit(loco.estimate)(params, state, (jnp.ones((16, 4)), jnp.zeros((16, 2))))
        >>> estimate.grad[0]["w"].shape
        (4, 8)

    References: the geometric sum of Landweber's iteration, American Journal of Mathematics 1951.
    """

    lr: Any

    def __post_init__(self) -> None:
        check_number("SpectralFilter", "lr", self.lr, POSITIVE)

    def init(self, layers: list[Any], params: list[Params]) -> State:
        """Return nothing: each batch starts anew."""
        check_number("SpectralFilter", "lr", self.lr, POSITIVE, used=True)
        return ()

    def solve(self, problems: list[Problem], state: State, how: How) -> Solution:
        """Solve all layers' problems; see `Solver`."""
        moved = side_by_side(lambda problem: self._one(problem, how), problems)
        return moved, state, jnp.asarray(how.reach)

    def _one(self, problem: Problem, how: How) -> Params:
        features, move, batch = rows_of(problem)
        curvature = features.T @ features / batch + how.pull * jnp.eye(features.shape[1], dtype=features.dtype)
        moved = how.reach * (spectral_filter(curvature, self.lr, how.steps) @ (features.T @ move / batch))
        return in_kinds_of(problem.params, problem.layer.from_matrix(moved))


def spectral_filter(curvature: jax.Array, lr: Any, steps: int) -> jax.Array:
    """Return `lr (I + R + ... + R^(steps-1))`, R = I - lr curvature, by doubling and adding one along the bits of steps.

    Example:
        >>> spectral_filter(jnp.array([[0.5]]), 1.0, 3)
        Array([[1.75]], dtype=float32)
    """
    eye = jnp.eye(len(curvature), dtype=curvature.dtype)
    one = eye - lr * curvature
    found, power = lr * eye, one  # F_T and R^T, for T = 1
    for bit in bin(steps)[3:]:
        found, power = found + power @ found, power @ power
        if bit == "1":
            found, power = found + lr * power, power @ one
    return found
