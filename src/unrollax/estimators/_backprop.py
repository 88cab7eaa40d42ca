"""Reverse mode: backpropagation through a window, whole or truncated."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_counts, check_key, check_params, check_window
from unrollax._estimate import Info, name_of, share_nonfinite, tick, window_loss
from unrollax._system import as_system
from unrollax._tree import strong
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value


class BackpropState(NamedTuple):
    """The key, the steps left of the episode (int32 scalar), and the system's state."""

    key: Key
    left: jax.Array
    inner: State


class _Backprop(abc.ABC):
    """The gradient of one window by reverse mode, from a state that is a constant unless the window starts an episode."""

    system: System
    window: int
    horizon: int | None

    def init(self, key: Key, params: Params) -> BackpropState:
        """Return the state before the first window, which will start with a reset."""
        params = check_params(name_of(self), params)
        key, start = jax.random.split(check_key(name_of(self), key))
        return BackpropState(key, jnp.zeros((), jnp.int32), strong(self.system.init(start, params)))

    def estimate(self, params: Params, state: BackpropState, data: Data) -> tuple[BackpropState, Estimate]:
        """Return the state after one window and the gradient of its mean step loss."""
        params = check_params(name_of(self), params)
        key, start, steps = jax.random.split(state.key, 3)

        def loss(params: Params) -> tuple[Scalar, State]:
            inner = self._begin(start, params, state)
            return window_loss(name_of(self), self.system, params, inner, data, steps, self.window)

        (mean, inner), grad = jax.value_and_grad(loss, has_aux=True)(params)
        state = BackpropState(key, tick(state.left, self.window, self.horizon), inner)
        return state, Estimate(mean, grad, Info(share_nonfinite(mean)))

    def _begin(self, key: Key, params: Params, state: BackpropState) -> State:
        def reset(params: Params) -> State:
            return strong(self.system.init(key, params))

        if self.window == self.horizon:
            return reset(params)
        return jax.lax.cond(state.left <= 0, reset, lambda _: state.inner, params)


@value
class BPTT(_Backprop):
    """Backpropagation through time: the exact gradient of a whole horizon.

    Every call starts the system anew, runs `horizon` steps and differentiates the mean step loss in reverse.

    Target: exact. Needs `vjp`. Cost of a call: `horizon` steps forward and about twice that backward; memory grows with
    `horizon` times what one step keeps (`unrollax.remat(system)` keeps the states only). State: a key.
    Use it when the horizon fits in memory and the gradient neither vanishes nor explodes; it is the reference for all
    others. Avoid it on chaotic systems and on endless streams.

    Args:
        system: what is unrolled.
        horizon: steps of an episode; the data of a call have that many.

    Raises:
        InvalidArgument: horizon is no positive whole number, or system lacks a method.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> bptt = ux.BPTT(decay, horizon=2)
        >>> state, estimate = bptt.estimate(0.5, bptt.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad  # of (p + p^2) / 2
        Array(1., dtype=float32)

    References: Werbos, Proceedings of the IEEE 1990.
    """

    system: System
    horizon: int = static()

    traits: ClassVar[Traits] = Traits(target="exact", needs="vjp")

    def __post_init__(self) -> None:
        check_counts("BPTT", horizon=self.horizon)
        object.__setattr__(self, "system", as_system("BPTT", self.system))

    @property
    def window(self) -> int:  # type: ignore[override]
        """Steps of a call: the whole horizon."""
        return self.horizon


@value
class TBPTT(_Backprop):
    """Truncated backpropagation through time: exact inside a window, blind across its start.

    The state is carried from window to window as a constant, so the influence of the parameters through it is left out.

    Target: truncated; exact when `window = horizon`. Needs `vjp`. Cost of a call: `window` steps forward and about twice
    that backward, memory for `window` steps. State: a key, a clock and one state of the system.
    Use it on long sequences whose memory is shorter than the window. Avoid it where early steps decide late losses: the
    bias can even reverse the sign.

    Args:
        system: what is unrolled.
        window: steps of a call (K); larger values have less bias and cost more memory.
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.

    Raises:
        InvalidArgument: horizon is no multiple of window, or system lacks a method.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> tbptt = ux.TBPTT(decay, window=1, horizon=2)
        >>> state = tbptt.init(jax.random.key(0), 0.5)
        >>> for _ in range(2):
        ...     state, estimate = tbptt.estimate(0.5, state, None)
        ...     print(estimate.grad)  # the second window sees 0.5 * p, not p^2
        1.0
        0.5

    References: Williams and Peng, Neural Computation 1990.
    """

    system: System
    window: int = static()
    horizon: int | None = static(default=None)

    traits: ClassVar[Traits] = Traits(target="truncated", needs="vjp")

    def __post_init__(self) -> None:
        check_window("TBPTT", self.window, self.horizon)
        object.__setattr__(self, "system", as_system("TBPTT", self.system))
