"""Forward mode: directional derivatives carried along the trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_choice, check_counts, check_key, check_params, check_sampler, check_window
from unrollax._estimate import Info, Noise, Sampler, draw_noise, share_nonfinite, tick, weigh
from unrollax._sample import normal
from unrollax._system import as_system
from unrollax._tree import strong
from unrollax._types import Cost, Data, Estimate, Key, Params, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._influence import Floats, first, floats, leafwise

OWNER = "ForwardGradient"


class ForwardState(NamedTuple):
    """What the next window needs.

    Attributes:
        key: the key of all later draws.
        left: int32 scalar, the steps left of the episode; 0 or less means a reset comes first.
        inner: one state of the system.
        tangents: its derivative along each direction, `[directions, ...]` for each floating leaf.
        noise: what losses are credited to, `[directions, ...]` for each leaf of params: the directions of the reset, or
            with `resample` the sum of those since.
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

    With `resample` each window w pushes params along directions v_w of its own. The tangents are then those of a
    trajectory whose params were pushed along v_1 in the first window since the reset, along v_2 in the second, and
    grad = mean over directions of (v_1 + ... + v_w) (d loss / d v). As the directions of different windows are unrelated,
    each derivative is left in the mean with its own direction only.

    Target: exact, in the mean. Needs `jvp`. Cost of a call: about `1 + directions` times `window` steps, memory that grows
    with neither window nor horizon but for one number a step and direction. State: one state of the system, and a tangent
    and a direction each. The variance is that of `NRES` with `std -> 0`: (number of parameters + 1) / directions times the
    squared gradient. With `resample` it is that of `PES` with `std -> 0`: it grows with the number of windows in a horizon
    when their losses are unrelated, and falls when all windows have about the same gradient.
    Use it for few parameters and long horizons. Avoid it where the exact gradient explodes.

    Args:
        system: what is unrolled; its step must support `jax.jvp`.
        window: steps of a call (K).
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        directions: directions a call; variance falls as 1 / directions.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I.
        resample: draw new directions each window, rather than at resets only. With `horizon=None` their sum grows without
            bound.

    Raises:
        InvalidArgument: a count is no positive whole number, horizon is no multiple of window, resample is no bool, or
            sampler can't be called.

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
    resample: bool = static(default=False)

    traits: ClassVar[Traits] = Traits(target="exact", needs="jvp", cost=Cost(forward="1", jvp="directions"))

    def __post_init__(self) -> None:
        check_window(OWNER, self.window, self.horizon)
        check_counts(OWNER, directions=self.directions)
        check_choice(OWNER, "resample", self.resample, (True, False))
        check_sampler(OWNER, self.sampler)
        object.__setattr__(self, "system", as_system(OWNER, self.system))

    def init(self, key: Key, params: Params) -> ForwardState:
        """Return the state before the first window, which will start with a reset."""
        params = check_params(OWNER, params)
        key, start = jax.random.split(check_key(OWNER, key))
        inner = strong(self.system.init(start, params))
        return ForwardState(key, jnp.zeros((), jnp.int32), inner, self._zeros(floats(inner)), self._zeros(params))

    def estimate(self, params: Params, state: ForwardState, data: Data) -> tuple[ForwardState, Estimate]:
        """Return the state after one window and the gradient estimate of its mean step loss."""
        params = check_params(OWNER, params)
        key, draw, start, run = jax.random.split(state.key, 4)
        reset = state.left <= 0
        push, credit = self._directions(reset, draw, params, state.noise)

        def begin(params: Params) -> tuple[Floats, State]:
            inner = strong(self.system.init(start, params))
            return floats(inner), inner

        def fresh() -> tuple[Floats, State]:
            _, tangents, inner = _along(begin, params)(push)
            return tangents, first(inner)

        tangents, inner = jax.lax.cond(reset, fresh, lambda: (state.tangents, state.inner))
        window = leafwise(OWNER, self.system, inner, data, run, self.window)
        (losses, _), (slopes, tangents), inner = _along(window, params, floats(inner))(push, tangents)
        grad = weigh(slopes / self.directions, credit)
        state = ForwardState(key, tick(state.left, self.window, self.horizon), first(inner), tangents, credit)
        return state, Estimate(losses[0], grad, Info(share_nonfinite(losses[0])))

    def _directions(self, reset: jax.Array, draw: Key, params: Params, kept: Noise) -> tuple[Noise, Noise]:
        """Return the directions along which params are pushed in this window, and those that its loss is credited to."""
        if not self.resample:
            held = jax.lax.cond(reset, lambda: self._draw(draw, params), lambda: kept)
            return held, held
        new = self._draw(draw, params)
        return new, jax.tree.map(lambda v, k: v + jnp.where(reset, jnp.zeros_like(k), k), new, kept)

    def _draw(self, key: Key, params: Params) -> Noise:
        return draw_noise(OWNER, self.sampler, key, self.directions, params)

    def _zeros(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((self.directions, *leaf.shape), leaf.dtype), tree)


def _along(function: Callable[..., Any], *at: Any) -> Callable[..., tuple[Any, Any, Any]]:
    """Map tangents `[directions, ...]` to function(*at), its derivative along each, and what it says aside."""

    def push(*tangents: Any) -> Any:
        return jax.jvp(function, at, tangents, has_aux=True)

    return jax.vmap(push)
