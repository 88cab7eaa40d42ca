"""Forward mode: directional derivatives carried along the trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_counts, check_key, check_params, check_window
from unrollax._estimate import Info, Sampler, draw_noise, share_nonfinite, tick, weigh, window_loss
from unrollax._sample import normal
from unrollax._system import as_system
from unrollax._tree import is_inexact, strong
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value

OWNER = "ForwardGradient"
Floats = list[Any]  # the leaves of a system's state that have a derivative


class ForwardState(NamedTuple):
    """What the next window needs.

    Attributes:
        key: the key of all later draws.
        left: int32 scalar, the steps left of the episode; 0 or less means a reset comes first.
        inner: one state of the system.
        tangents: its derivative along each direction, `[directions, ...]` for each floating leaf.
        noise: the directions, `[directions, ...]` for each leaf of params.
    """

    key: Key
    left: jax.Array
    inner: State
    tangents: Floats
    noise: Any


@value
class ForwardGradient:
    """The forward gradient: exact derivatives along random directions, times these directions.

    Directions v are drawn at a reset and kept to the next, with the derivative of the state along each of them, so that
    nothing is truncated: grad = mean over directions of v (d loss / d v).

    Target: exact, in the mean. Needs `jvp`. Cost of a call: about `1 + directions` times `window` steps, memory that does
    not grow with window or horizon. State: one state of the system, and a tangent and a direction each. The variance is
    that of `NRES` with `std -> 0`: (number of parameters + 1) / directions times the squared gradient.
    Use it for few parameters and long horizons. Avoid it where the exact gradient explodes.

    Args:
        system: what is unrolled; its step must support `jax.jvp`.
        window: steps of a call (K).
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        directions: directions a call; variance falls as 1 / directions.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I.

    Raises:
        InvalidArgument: a count is no positive whole number, or horizon is no multiple of window.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> forward = ux.ForwardGradient(decay, window=2, directions=3, sampler=jax.random.rademacher)
        >>> state, estimate = forward.estimate(0.5, forward.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad  # exact, as a single parameter has only one direction and its negative
        Array(1., dtype=float32)

    References: Baydin et al., arXiv 2022; Silver et al., ICLR 2022.
    """

    system: System
    window: int = static()
    horizon: int | None = static(default=None)
    directions: int = static(default=1)
    sampler: Sampler = static(default=normal)

    traits: ClassVar[Traits] = Traits(target="exact", needs="jvp")

    def __post_init__(self) -> None:
        check_window(OWNER, self.window, self.horizon)
        check_counts(OWNER, directions=self.directions)
        object.__setattr__(self, "system", as_system(OWNER, self.system))

    def init(self, key: Key, params: Params) -> ForwardState:
        """Return the state before the first window, which will start with a reset."""
        params = check_params(OWNER, params)
        key, start = jax.random.split(check_key(OWNER, key))
        inner = strong(self.system.init(start, params))
        return ForwardState(key, jnp.zeros((), jnp.int32), inner, self._zeros(_floats(inner)), self._zeros(params))

    def estimate(self, params: Params, state: ForwardState, data: Data) -> tuple[ForwardState, Estimate]:
        """Return the state after one window and the gradient estimate of its mean step loss."""
        params = check_params(OWNER, params)
        key, draw, start, run = jax.random.split(state.key, 4)

        def fresh() -> tuple[Any, Floats, State]:
            noise = draw_noise(self.sampler, draw, self.directions, params)
            _, tangents, inner = _along(self._begin(start), params)(noise)
            return noise, tangents, _first(inner)

        noise, tangents, inner = jax.lax.cond(
            state.left <= 0, fresh, lambda: (state.noise, state.tangents, state.inner)
        )
        rest = self._rest(inner, data, run)
        (losses, _), (slopes, tangents), inner = _along(rest, params, _floats(inner))(noise, tangents)
        grad = weigh(slopes / self.directions, noise)
        state = ForwardState(key, tick(state.left, self.window, self.horizon), _first(inner), tangents, noise)
        return state, Estimate(losses[0], grad, Info(share_nonfinite(losses[0])))

    def _begin(self, key: Key) -> Callable[..., tuple[Floats, State]]:
        def begin(params: Params) -> tuple[Floats, State]:
            inner = strong(self.system.init(key, params))
            return _floats(inner), inner

        return begin

    def _rest(self, inner: State, data: Data, key: Key) -> Callable[..., tuple[tuple[Scalar, Floats], State]]:
        """Return the window as a function of the parameters and the state's floating leaves, with the whole state aside."""

        def rest(params: Params, floats: Floats) -> tuple[tuple[Scalar, Floats], State]:
            loss, after = window_loss(OWNER, self.system, params, _with(inner, floats), data, key, self.window)
            return (loss, _floats(after)), after

        return rest

    def _zeros(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((self.directions, *leaf.shape), leaf.dtype), tree)


def _along(function: Callable[..., Any], *at: Any) -> Callable[..., tuple[Any, Any, Any]]:
    """Map tangents `[directions, ...]` to function(*at), its derivative along each, and what it says aside."""

    def push(*tangents: Any) -> Any:
        return jax.jvp(function, at, tangents, has_aux=True)

    return jax.vmap(push)


def _floats(state: State) -> Floats:
    return [leaf for leaf in jax.tree.leaves(state) if is_inexact(leaf)]


def _with(state: State, floats: Floats) -> State:
    """Put new floating leaves into a state."""
    leaves, treedef = jax.tree.flatten(state)
    new = iter(floats)
    return jax.tree.unflatten(treedef, [next(new) if is_inexact(leaf) else leaf for leaf in leaves])


def _first(tree: Any) -> Any:
    """Drop the axis of the directions from what none of them changes."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
