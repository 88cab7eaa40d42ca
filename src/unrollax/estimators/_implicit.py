"""The implicit function theorem: the gradient at a fixed point, without the way there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import bicgstab, gmres

from unrollax._check import (
    NOT_NEGATIVE,
    check_choice,
    check_counts,
    check_key,
    check_number,
    check_params,
    check_window,
)
from unrollax._estimate import share_nonfinite, tick
from unrollax._system import as_system, is_repeat, rows_of, unroll_for
from unrollax._tree import strong
from unrollax._types import Cost, Data, Estimate, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._moving import moving_of, vector_of, with_vector

OWNER = "Implicit"
SOLVERS = ("gmres", "bicgstab", "neumann", "one-step", "dense")
VJPS = {
    "gmres": None,
    "bicgstab": None,
    "neumann": "terms / window",
    "one-step": "1 / window",
    "dense": "(states + 2) / window",
}

FAINT = 10.0  # how many times what is left of the way a gradient must be to count

Transpose: TypeAlias = Callable[[jax.Array], jax.Array]  # u to D^T u


class ImplicitState(NamedTuple):
    """The key, the steps left of the episode (int32 scalar), and the system's state."""

    key: Key
    left: jax.Array
    inner: State


class ImplicitInfo(NamedTuple):
    """Whether the theorem applies.

    Attributes:
        nonfinite: 1 if the mean loss over the window was NaN or infinite, else 0.
        residual: |s' - s| / |s'| of the last step, over the state's floating numbers: 0 at a fixed point. Where it is large,
            the gradient is that of no fixed point.
        solve: |b + D^T u - u| / |b|, what the linear solve left over: 0 where u is right, above 1 where it diverged.
        faint: share of the leaves of params whose |leaf| |grad| is at most 10 |u| (|s' - s| + eps |s'|), about what the loss
            still changes on the way to the fixed point: above 0 once the steps have settled, the fixed point does not
            depend on some of them; `fixed_point_depends` names it.
    """

    nonfinite: Scalar
    residual: Scalar
    solve: Scalar
    faint: Scalar


@value
class Implicit:
    """The implicit function theorem: the exact gradient of the loss at a fixed point, whatever the way there.

    A call runs `window` steps from where the last call ended, and differentiates the last of them, (s', loss) =
    step(params, s, x, key), as if s were a fixed point, s' = s, and so a function of the parameters. With D = ds'/ds and
    b = (dloss/ds)^T,

        grad = dloss/dparams + u^T ds'/dparams,    u = (I - D^T)^-1 b.

    | solver     | u                                                       | right when            | products with D^T   |
    |------------|---------------------------------------------------------|-----------------------|---------------------|
    | `gmres`    | the best one in b, D^T b, ..., (D^T)^(terms - 1) b      | I - D is regular      | at most `terms` + 3 |
    | `bicgstab` | `terms` corrections of u by stabilised biconjugate grads. | I - D is regular      | 2 `terms` + 3       |
    | `neumann`  | b + D^T b + ... + (D^T)^(terms - 2) b                   | D's powers vanish     | `terms` - 1         |
    | `one-step` | 0, which is `neumann` with `terms=1`                    | D is small            | 0                   |
    | `dense`    | by elimination, from D as a matrix                      | I - D is regular      | numbers in the state|

    At a fixed point `neumann` is backpropagation through the last `terms` steps, all at that point, of the last step's
    loss; with D's spectral radius r < 1 its error falls as r^terms. `loss` is the mean over the window, as everywhere:
    at a fixed point all steps have the same. Elsewhere it isn't the number whose gradient `grad` is; see `info.residual`.

    Target: exact, at a fixed point. Needs `vjp`. Cost of a call: `window` steps, and the products with D^T of the table.
    Memory does not grow with `window`: one step's backward pass, and `terms` states for `gmres`, 8 for `bicgstab`, states^2
    for `dense`.
    State: a key, a clock and one state of the system. Its floating leaves make up s, complex ones as two real numbers;
    others (counts, keys), and those that a step hands on as they are, are left aside. The gradient through `system.init` is
    0, as the fixed point forgets its start.
    Use it for equilibrium networks, inner problems that are solved to the end, and solvers, for what moves their solution: a
    regulariser's weight, an operator, a prior. A step size moves the way there alone and has the gradient 0: check with
    `fixed_point_depends`. An `Unfold` takes `loss="anytime"`. Avoid it where steps don't converge: on sequences, under noise
    in each step, and on an inner problem that is stopped early on purpose.

    Args:
        system: what is unrolled towards its fixed point. Its data usually are the same at every step, `repeat(x)`.
        window: steps of a call. As the state is kept, a few are enough once the parameters move slowly.
        horizon: steps between resets, a multiple of `window`; `None` to go on from the last state for ever.
        solver: how u is found; see the table.
        terms: for `gmres` and `neumann`, how many powers of D^T are tried, for `bicgstab` the corrections; larger values are
            more exact and cost more.
        tol: `gmres` and `bicgstab` stop early when |b + D^T u - u| <= tol |b|.

    Raises:
        InvalidArgument: horizon is no multiple of window, terms is no positive whole number, solver is none of these, or
            tol is negative.

    Example:
        >>> import unrollax as ux
        >>> halve = ux.system(init=lambda k, p: jnp.zeros(()), step=lambda p, s, x, k: (0.5 * s + p, (0.5 * s + p) ** 2))
        >>> implicit = ux.Implicit(halve, window=50)
        >>> state, estimate = implicit.estimate(1.0, implicit.init(jax.random.key(0), 1.0), None)
        >>> print(f"{estimate.grad:.3f}")  # the fixed point is 2 p, its loss 4 p^2
        8.000

    References: Bai, Kolter and Koltun, NeurIPS 2019; Lorraine, Vicol and Duvenaud, AISTATS 2020 (`neumann`); Bolte, Pauwels
    and Vaiter, NeurIPS 2023 (`one-step`). Deviations: the linear system is at the state before the last step, not after it,
    so that no further step is run.
    """

    system: System
    window: int = static()
    horizon: int | None = static(default=None)
    solver: Literal["gmres", "bicgstab", "neumann", "one-step", "dense"] = static(default="gmres")
    terms: int = static(default=20)
    tol: float = 1e-6

    def __post_init__(self) -> None:
        check_window(OWNER, self.window, self.horizon)
        check_counts(OWNER, terms=self.terms)
        check_choice(OWNER, "solver", self.solver, SOLVERS)
        check_number(OWNER, "tol", self.tol, NOT_NEGATIVE)
        object.__setattr__(self, "system", as_system(OWNER, self.system))

    @property
    def traits(self) -> Traits:
        """What it estimates, what it needs and what it costs; how many steps `gmres` takes isn't known beforehand."""
        vjp = VJPS[self.solver]
        return Traits(target="exact", needs="vjp", cost=None if vjp is None else Cost(forward="1", vjp=vjp))

    def init(self, key: Key, params: Params) -> ImplicitState:
        """Return the state before the first window, which will start with a reset."""
        check_number(OWNER, "tol", self.tol, NOT_NEGATIVE, used=True)
        params = check_params(OWNER, params)
        key, start = jax.random.split(check_key(OWNER, key))
        return ImplicitState(key, jnp.zeros((), jnp.int32), strong(self.system.init(start, params)))

    def estimate(self, params: Params, state: ImplicitState, data: Data) -> tuple[ImplicitState, Estimate]:
        """Return the state after one window, and the gradient of the last step's loss at a fixed point."""
        params = check_params(OWNER, params)
        key, start, run, end = jax.random.split(state.key, 4)
        inner = self._begin(start, params, state)
        early, late = self._cut(params, inner, data, run)
        losses = jnp.zeros(0)
        if self.window > 1:
            inner, losses = unroll_for(OWNER, self.system, params, inner, early, run, self.window - 1)

        moving = moving_of(self.system, params, inner, jax.tree.map(lambda row: row[0], rows_of(OWNER, late, 1)), end)

        def last(params: Params, here: jax.Array) -> tuple[tuple[jax.Array, jax.Array], State]:
            after, losses = unroll_for(OWNER, self.system, params, with_vector(inner, moving, here), late, end, 1)
            return (vector_of(after, moving), losses), after

        here = vector_of(inner, moving)
        (there, loss), pull, after = jax.vjp(last, params, here, has_aux=True)
        grad, u, left_over = self._gradient(pull, there, loss)
        mean = jnp.concatenate([losses.astype(loss.dtype), loss]).mean()
        faint = _faint(params, grad, FAINT * jnp.linalg.norm(u) * _left(there, here))
        info = ImplicitInfo(share_nonfinite(mean), _ratio(there - here, there), left_over, faint)
        return ImplicitState(key, tick(state.left, self.window, self.horizon), after), Estimate(mean, grad, info)

    def _begin(self, key: Key, params: Params, state: ImplicitState) -> State:
        def reset() -> State:
            return strong(self.system.init(key, params))

        return reset() if self.window == self.horizon else jax.lax.cond(state.left <= 0, reset, lambda: state.inner)

    def _cut(self, params: Params, inner: State, data: Data, key: Key) -> tuple[Data, Data]:
        """Split the data before the last step; data that don't fit the whole window are refused first."""
        jax.eval_shape(lambda: unroll_for(OWNER, self.system, params, inner, data, key, self.window))

        return _rows(data, slice(None, -1)), _rows(data, slice(-1, None))

    def _gradient(
        self, pull: Callable[..., Any], there: jax.Array, loss: jax.Array
    ) -> tuple[Params, jax.Array, Scalar]:
        """Return the gradient, u, and what the linear solve left over, given the last step's pullback."""
        direct, b = pull((jnp.zeros_like(there), jnp.ones_like(loss)))
        if b.size == 0 or self.solver == "one-step" or (self.solver == "neumann" and self.terms == 1):
            return direct, jnp.zeros_like(b), _ratio(b, b)

        def back(u: jax.Array) -> tuple[Params, jax.Array]:
            return pull((u, jnp.zeros_like(loss)))

        u = self._solve(lambda u: back(u)[1], b)
        through, product = back(u)
        return jax.tree.map(jnp.add, direct, through), u, _ratio(b + product - u, b)

    def _solve(self, transpose: Transpose, b: jax.Array) -> jax.Array:
        """Return u = b + D^T u, given u to D^T u."""
        if self.solver == "neumann":
            return _neumann(transpose, b, self.terms - 2)
        if self.solver == "dense":
            eye = jnp.eye(b.size, dtype=b.dtype)
            return jnp.linalg.solve(eye - jax.vmap(transpose, out_axes=1)(eye), b)

        def matrix(u: jax.Array) -> jax.Array:
            return u - transpose(u)

        if self.solver == "bicgstab":
            return bicgstab(matrix, b, tol=self.tol, maxiter=self.terms)[0]
        return gmres(matrix, b, tol=self.tol, restart=self.terms, maxiter=1, solve_method="incremental")[0]


def _rows(data: Data, keep: slice) -> Data:
    return jax.tree.map(lambda leaf: leaf if is_repeat(leaf) else leaf[keep], data, is_leaf=is_repeat)


def _neumann(transpose: Transpose, b: jax.Array, powers: int) -> jax.Array:
    """Return b + D^T b + ... + (D^T)^powers b."""

    def add(_: int, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, power = now
        power = transpose(power)
        return total + power, power

    return jax.lax.fori_loop(0, powers, add, (b, b))[0]


def _ratio(part: jax.Array, whole: jax.Array) -> Scalar:
    """Return |part| / |whole|, and |part| where the whole is 0."""
    size = jnp.linalg.norm(whole)
    return jnp.linalg.norm(part) / jnp.where(size == 0, 1, size)


def _left(there: jax.Array, here: jax.Array) -> Scalar:
    """Return how far the state still is from a fixed point, rounding included."""
    return jnp.linalg.norm(there - here) + float(np.finfo(there.dtype).eps) * jnp.linalg.norm(there)


def _faint(params: Params, grad: Params, least: Scalar) -> Scalar:
    """Return the share of leaves whose gradient, by the size of the leaf, is at most `least`."""

    def is_faint(leaf: jax.Array, slope: jax.Array) -> jax.Array:
        size = jnp.linalg.norm(leaf)
        return jnp.where(size == 0, 1, size) * jnp.linalg.norm(slope) <= least

    flags = jax.tree.leaves(jax.tree.map(is_faint, params, grad))
    return jnp.stack(flags).mean(dtype=least.dtype)
