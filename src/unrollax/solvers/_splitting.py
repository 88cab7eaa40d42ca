"""Methods that take a smooth and a non-smooth part in turn: ADMM, half-quadratic splitting, Douglas and Rachford's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from unrollax._value import static, value
from unrollax.prox import soft
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._inner import solve_inner
from unrollax.solvers._least_squares import answer_of, bounds, numbers, weight, zeros
from unrollax.solvers._linear import Linear, adjoint, apply, apply_adjoint

Prox: TypeAlias = Callable[[Any, Any], Any]  # (v, scale) -> x


class Split(NamedTuple):
    """Where ADMM stands.

    Attributes:
        x: the iterate, in the shape of A^H y.
        z: what stands for K x, in its shape.
        dual: the multiplier of K x = z, not scaled by the penalty.
    """

    x: jax.Array
    z: jax.Array
    dual: jax.Array


class Halves(NamedTuple):
    """Where half-quadratic splitting or Douglas and Rachford's method stands.

    Attributes:
        x: the iterate, in the shape of A^H y.
        z: its companion: what stands for K x, or what is reflected.
    """

    x: jax.Array
    z: jax.Array


def admm(prox: Prox = soft, K: Linear | None = None, solver: Any = None) -> Algorithm:
    """The alternating direction method of multipliers for min_x |A x - y|^2 / 2 + lam g(K x).

    x <- (A^H A + penalty K^H K)^-1 (A^H y + K^H (penalty z - dual));
    k = relax K x + (1 - relax) z; z <- prox(k + dual / penalty, lam / penalty); dual <- dual + penalty (k - z).
    The multiplier is kept unscaled, so that the penalty may differ from iteration to iteration. With `jnp.diff` as K and
    `soft` it is total variation denoising, deblurring, ...; with a denoiser as prox it is plug-and-play.

    theta: `penalty`, positive: does not move the solution, only how soon it is found; `relax`, in (0, 2), above 1
    over-relaxed; `lam`, the weight of g, the problem's where it is not in theta.

    `params(A, lam=0.1, gram=(1.0, 1.0))` or `params((L, mu), ...)`: relax = 1 and penalty = sqrt(L mu / (high low)), with the
    eigenvalues of A^H A in [mu, L] and gram = (high, low) those of K K^H. Without K, for A of full column rank, the error in
    z + dual / penalty falls by 1 / (1 + sqrt(mu / L)) or more an iteration, whatever the convex g.

    Cost: an inner solve an iteration. For a matrix it is by Cholesky, or cheaper where A is `factored`; for an operator by
    lineax (extra `solvers`), or by its own `solve(right, shift)`, (A^H A + shift K^H K)^-1 right, where it has one.

    Args:
        prox: `prox(v, scale)`, that of g: one of `unrollax.prox`, a projection as `lambda v, scale: ...`, your own.
        K: a linear function such as `jnp.diff`, or `None` for the identity.
        solver: lineax's solver for operators; default conjugate gradients to ten units of rounding.

    Returns:
        An `Algorithm` whose state is `Split(x, z, dual)`, and whose answer is x. z is sparse before x is.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.
        InvalidArgument: when run, if A was factored with another K, or is an operator without lineax being there.

    Example:
        >>> import jax.numpy as jnp
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import admm
        >>> problem = SimpleNamespace(A=jnp.eye(4), y=jnp.array([1.0, 3.0, 9.0, 11.0]))
        >>> method = admm(K=jnp.diff)
        >>> theta = method.params(problem.A, lam=2.0)
        >>> method.run(theta, problem, steps=100)[-1].round()
        Array([3., 3., 9., 9.], dtype=float32)

    References: Boyd, Parikh, Chu, Peleato and Eckstein, Foundations and Trends in Machine Learning 2011; Ghadimi, Teixeira,
    Shames and Johansson, IEEE Transactions on Automatic Control 2015 (the penalty); Yang, Sun, Li and Xu, NIPS 2016
    (unfolded).
    """
    return Algorithm(_ADMM(prox, K, solver), _SplitStart(K), _admm_params, answer_of)


def half_quadratic_splitting(prox: Prox = soft, K: Linear | None = None, solver: Any = None) -> Algorithm:
    """Half-quadratic splitting, for min_(x, z) |A x - y|^2 / 2 + lam g(z) + penalty |K x - z|^2 / 2.

    z <- prox(K x, lam / penalty); x <- (A^H A + penalty K^H K)^-1 (A^H y + penalty K^H z).
    With a constant penalty its solution is not that of the problem with z = K x, but comes near it as 1 / penalty; a penalty
    that grows from iteration to iteration leads there. That schedule is what one trains, or the denoiser in the prox's place.

    theta: `penalty`, positive; `lam`, the weight of g, the problem's where it is not in theta.

    `params(A, lam=0.1, gram=(1.0, 1.0))`: penalty as in `admm`. Without K the error falls by penalty / (penalty + mu) or more
    an iteration, mu the smallest eigenvalue of A^H A.

    Cost: an inner solve an iteration, as in `admm`.

    Args:
        prox: `prox(v, scale)`, that of g.
        K: a linear function such as `jnp.diff`, or `None` for the identity.
        solver: lineax's solver for operators; see `admm`.

    Returns:
        An `Algorithm` whose state is `Halves(x, z)`, and whose answer is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.
        InvalidArgument: when run, if A was factored with another K, or is an operator without lineax being there.

    Example:
        >>> import jax.numpy as jnp
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import half_quadratic_splitting
        >>> problem = SimpleNamespace(A=jnp.eye(2), y=jnp.array([0.5, 3.0]))
        >>> method = half_quadratic_splitting()
        >>> method.run({"penalty": jnp.float32(9.0), "lam": jnp.float32(1.0)}, problem, steps=100)[-1].round(3)
        Array([0.05, 2.  ], dtype=float32)

    References: Geman and Yang, IEEE Transactions on Image Processing 1995; Zhang, Zuo, Gu and Zhang, CVPR 2017 (denoisers).
    """
    return Algorithm(_HalfQuadratic(prox, K, solver), _HalvesStart(K), _penalty_params, answer_of)


def douglas_rachford(prox: Prox = soft, solver: Any = None) -> Algorithm:
    """Douglas and Rachford's splitting for min_x |A x - y|^2 / 2 + lam g(x).

    u = (A^H A + 1 / step)^-1 (A^H y + z / step), the proximal operator of the first part;
    x <- prox(2 u - z, step lam); z <- z + relax (x - u).

    theta: `step`, positive: does not move the solution; `relax`, in (0, 2]; `lam`, the problem's where it is not in theta.

    `params(A, lam=0.1)` or `params((L, mu), ...)`: step = 1 / sqrt(L mu) and relax = 1; the error in z falls by
    1 / (1 + sqrt(mu / L)) or more an iteration where A has full column rank, whatever the convex g. relax = 2 (Peaceman and
    Rachford) has the bound (sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu)).

    Cost: an inner solve an iteration, as in `admm`.

    Args:
        prox: `prox(v, scale)`, that of g.
        solver: lineax's solver for operators; see `admm`.

    Returns:
        An `Algorithm` whose state is `Halves(x, z)`, and whose answer is x, what the prox gave.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.
        InvalidArgument: when run, if A was factored with a K, or is an operator without lineax being there.

    Example:
        >>> import jax.numpy as jnp
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import douglas_rachford
        >>> problem = SimpleNamespace(A=jnp.eye(2), y=jnp.array([0.5, 3.0]))
        >>> method = douglas_rachford()
        >>> method.run(method.params(problem.A, lam=1.0), problem, steps=50)[-1].round(3)
        Array([0., 2.], dtype=float32)

    References: Lions and Mercier, SIAM Journal on Numerical Analysis 1979; Giselsson and Boyd, IEEE Transactions on Automatic
    Control 2017 (the rate).
    """
    return Algorithm(
        _DouglasRachford(prox, solver), _HalvesStart(None, "douglas_rachford"), _reflected_params, answer_of
    )


@value
class _SplitStart:
    K: Linear | None = static()

    def __call__(self, problem: Any) -> Split:
        x = zeros("admm", problem)
        z = apply(self.K, x)
        return Split(x, z, z)


@value
class _HalvesStart:
    K: Linear | None = static()
    owner: str = static(default="half_quadratic_splitting")

    def __call__(self, problem: Any) -> Halves:
        x = zeros(self.owner, problem)
        return Halves(x, apply(self.K, x))


@value
class _ADMM:
    prox: Prox = static()
    K: Linear | None = static()
    solver: Any = static()

    def __call__(self, theta: Any, state: Split, problem: Any) -> Split:
        penalty, relax = theta["penalty"], theta["relax"]
        right = adjoint(problem.A, problem.y) + apply_adjoint(self.K, penalty * state.z - state.dual, state.x)
        x = solve_inner("admm", problem.A, self.K, right, penalty, self.solver)
        k = relax * apply(self.K, x) + (1 - relax) * state.z
        z = self.prox(k + state.dual / penalty, weight(theta, problem) / penalty)
        return Split(x, z, state.dual + penalty * (k - z))


@value
class _HalfQuadratic:
    prox: Prox = static()
    K: Linear | None = static()
    solver: Any = static()

    def __call__(self, theta: Any, state: Halves, problem: Any) -> Halves:
        penalty = theta["penalty"]
        z = self.prox(apply(self.K, state.x), weight(theta, problem) / penalty)
        right = adjoint(problem.A, problem.y) + penalty * apply_adjoint(self.K, z, state.x)
        return Halves(solve_inner("half_quadratic_splitting", problem.A, self.K, right, penalty, self.solver), z)


@value
class _DouglasRachford:
    prox: Prox = static()
    solver: Any = static()

    def __call__(self, theta: Any, state: Halves, problem: Any) -> Halves:
        step, z = theta["step"], state.z
        right = adjoint(problem.A, problem.y) + z / step
        u = solve_inner("douglas_rachford", problem.A, None, right, 1 / step, self.solver)
        x = self.prox(2 * u - z, step * weight(theta, problem))
        return Halves(x, z + theta["relax"] * (x - u))


def _penalty(owner: str, A: Any, gram: tuple[float, float]) -> Any:
    high, low = bounds(owner, A)
    return (high * low / (gram[0] * gram[1])) ** 0.5


def _admm_params(A: Any, lam: float = 0.1, *, gram: tuple[float, float] = (1.0, 1.0)) -> dict[str, Any]:
    return numbers(A, penalty=_penalty("admm", A, gram), relax=1.0, lam=lam)


def _penalty_params(A: Any, lam: float = 0.1, *, gram: tuple[float, float] = (1.0, 1.0)) -> dict[str, Any]:
    return numbers(A, penalty=_penalty("half_quadratic_splitting", A, gram), lam=lam)


def _reflected_params(A: Any, lam: float = 0.1) -> dict[str, Any]:
    high, low = bounds("douglas_rachford", A)
    return numbers(A, step=1 / (high * low) ** 0.5, relax=1.0, lam=lam)
