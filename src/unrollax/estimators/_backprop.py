"""Reverse mode: backpropagation through a window, whole or truncated."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_counts, check_key, check_params, check_window
from unrollax._checkpointed import Memory, check_memory
from unrollax._errors import InvalidArgument
from unrollax._estimate import Info, name_of, share_nonfinite, tick, window_loss
from unrollax._system import as_system
from unrollax._tree import strong
from unrollax._types import Cost, Data, Estimate, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._reverse import advance, check_rows, forget, no_past, overlapping_loss

PASSES = "2 if memory == 'sqrt' else 1"  # "log" and bytes: one for each level, whose number the horizon decides


class BackpropState(NamedTuple):
    """What the next window needs.

    Attributes:
        key: the key of all later draws.
        left: int32 scalar, the steps left of the episode; 0 or less means a reset comes first.
        inner: the system's state, before the past if there is one.
        past: with `overlap`, the steps between `inner` and the next window; else `()`.
    """

    key: Key
    left: jax.Array
    inner: State
    past: Any = ()


class _Backprop(abc.ABC):
    """The gradient of one window by reverse mode, from a state that is a constant unless the window starts an episode."""

    system: System
    window: int
    horizon: int | None
    memory: Memory

    def init(self, key: Key, params: Params) -> BackpropState:
        """Return the state before the first window, which will start with a reset."""
        params = check_params(name_of(self), params)
        key, start = jax.random.split(check_key(name_of(self), key))
        inner = strong(self.system.init(start, params))
        return BackpropState(key, jnp.zeros((), jnp.int32), inner, self._no_past(start))

    def estimate(self, params: Params, state: BackpropState, data: Data) -> tuple[BackpropState, Estimate]:
        """Return the state after one window and the gradient of its mean step loss."""
        params = check_params(name_of(self), params)
        key, start, steps = jax.random.split(state.key, 3)
        (mean, (inner, past)), grad = self._grad(params, state, data, start, steps)
        after = BackpropState(key, tick(state.left, self.window, self.horizon), inner, past)
        return after, Estimate(mean, grad, Info(share_nonfinite(mean)))

    def _grad(self, params: Params, state: BackpropState, data: Data, start: Key, steps: Key) -> Any:
        """Return the mean loss, the next `inner` and `past`, and the gradient, as `jax.value_and_grad(has_aux)` does."""
        return self._one_window(params, state, data, start, steps)

    def _one_window(self, params: Params, state: BackpropState, data: Data, start: Key, steps: Key) -> Any:
        def loss(params: Params) -> tuple[Scalar, tuple[State, Any]]:
            inner = self._begin(start, params, state)
            mean, inner = window_loss(
                name_of(self), self.system, params, inner, data, steps, self.window, self.memory, whole=True
            )
            return mean, (inner, ())

        return jax.value_and_grad(loss, has_aux=True)(params)

    def _begin(self, key: Key, params: Params, state: BackpropState) -> State:
        if self.window == self.horizon:
            return self._reset(key, params)
        return jax.lax.cond(state.left <= 0, lambda p: self._reset(key, p), lambda _: state.inner, params)

    def _reset(self, key: Key, params: Params) -> State:
        return strong(self.system.init(key, params))

    def _no_past(self, key: Key) -> Any:
        return ()


@value
class BPTT(_Backprop):
    """Backpropagation through time: the exact gradient of a whole horizon.

    Every call starts the system anew, runs `horizon` steps and differentiates the mean step loss in reverse.

    Target: exact. Needs `vjp`. Cost of a call: `horizon` steps forward and about twice that backward. State: a key.
    Use it when the gradient neither vanishes nor explodes; it is the reference for all others. Avoid it on chaotic systems
    and on endless streams.

    Memory: `horizon` times what one step keeps for the backward pass, with `memory="full"`. Anything else cuts the horizon
    into pieces, keeps the states where they start and runs each piece again when its gradient is taken; the gradient is the
    same. `"sqrt"` has one level of pieces, of about `sqrt(horizon)` steps; `"log"` as many as make each at most about 8 long.
    A level costs one more pass forward, and `"sqrt"` is still no slower than `"full"` where that does not fit in cache.
    A number of bytes takes the fewest levels that fit, by an estimate for one gradient (many under `vmap` need as many times
    that) which leaves out the gradient itself and the data. In all cases a step keeps its key and its loss (12 bytes).
    `unrollax.remat(system)` keeps the state of every step, and no more. A derivative with respect to the *data* costs extra
    time with pieces, as each adds to a whole array.

    Args:
        system: what is unrolled.
        horizon: steps of an episode; the data of a call have that many.
        memory: `"full"`, `"sqrt"`, `"log"` or bytes, what the backward pass may keep.

    Raises:
        InvalidArgument: horizon is no positive whole number, memory is none of these, or system lacks a method; when
            traced, bytes that are too few.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> bptt = ux.BPTT(decay, horizon=2)
        >>> state, estimate = bptt.estimate(0.5, bptt.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad  # of (p + p^2) / 2
        Array(1., dtype=float32)

    References: Werbos, Proceedings of the IEEE 1990; Chen et al., arXiv 2016 (`"sqrt"`, and `"log"` by recursion);
    Griewank and Walther, ACM Transactions on Mathematical Software 2000, whose binomial schedule needs fewer steps than equal
    pieces for the same states, but no loop that XLA compiles well.
    """

    system: System
    horizon: int = static()
    memory: Memory = static(default="full")

    traits: ClassVar[Traits] = Traits(target="exact", needs="vjp", cost=Cost(forward=PASSES, vjp="1"))

    def __post_init__(self) -> None:
        check_counts("BPTT", horizon=self.horizon)
        check_memory("BPTT", self.memory)
        object.__setattr__(self, "system", as_system("BPTT", self.system))

    @property
    def window(self) -> int:  # type: ignore[override]
        """Steps of a call: the whole horizon."""
        return self.horizon


@value
class TBPTT(_Backprop):
    """Truncated backpropagation through time: exact inside a window, blind across its start.

    The state is carried from window to window as a constant, so the influence of the parameters through it is left out.
    With `overlap`, the gradient of a window's losses also flows through that many steps before it, never across a reset
    (K1 = `window` new steps a call, K2 = `window + overlap` steps of gradient). What these steps need is kept and they are
    run again with the present parameters, so that the window starts from the state that these lead to.

    Target: truncated; exact when `overlap >= horizon - window`. Needs `vjp`. Cost of a call: `window + overlap` steps forward
    and about twice that backward, memory for as many (see `BPTT` for `memory`; bytes are shared out by steps). State: a
    key, a clock and one state of the system; with `overlap` also as many steps of data, with their keys.
    Use it on long sequences whose memory is shorter than `window + overlap`. Avoid it where early steps decide late losses:
    the bias can even reverse the sign.

    Args:
        system: what is unrolled.
        window: steps of a call (K); larger values have less bias and cost more memory.
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        overlap: steps before the window that the gradient goes through; larger values have less bias and cost more time.
        x: with `overlap`, any one step of the data, of which only structure, shapes and dtypes count; `None` where the
            system reads none.
        memory: `"full"`, `"sqrt"`, `"log"` or bytes, what the backward pass may keep.

    Raises:
        InvalidArgument: horizon is no multiple of window, overlap is no whole number of at least 0 (or not 0 for a system
            that reads ahead), memory is none of these, or system lacks a method.
        StructureError: with `overlap`, the data of a step are not like `x`.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> for overlap in (0, 1):
        ...     tbptt = ux.TBPTT(decay, window=1, horizon=2, overlap=overlap)
        ...     state = tbptt.init(jax.random.key(0), 0.5)
        ...     for _ in range(2):
        ...         state, estimate = tbptt.estimate(0.5, state, None)
        ...         print(estimate.grad)  # without overlap the second window sees 0.5 * p, not p^2
        1.0
        0.5
        1.0
        1.0

    References: Williams and Peng, Neural Computation 1990 (their BPTT(h; h') has h = `window + overlap`, h' = `window`).
    Deviation: they keep the activations of the old parameters; the steps are run again instead.
    """

    system: System
    window: int = static()
    horizon: int | None = static(default=None)
    overlap: int = static(default=0)
    x: Any = None
    memory: Memory = static(default="full")

    traits: ClassVar[Traits] = Traits(
        target="truncated",
        needs="vjp",
        cost=Cost(forward=f"(window + overlap) / window * ({PASSES})", vjp="(window + overlap) / window"),
    )

    def __post_init__(self) -> None:
        check_window("TBPTT", self.window, self.horizon)
        check_memory("TBPTT", self.memory)
        overlap: Any = self.overlap
        if isinstance(overlap, bool) or not isinstance(overlap, (int, np.integer)) or overlap < 0:
            raise InvalidArgument(f"TBPTT: overlap must be a whole number of at least 0, got overlap={overlap!r}.")
        if overlap and not getattr(self.system, "causal", True):
            raise InvalidArgument(
                f"TBPTT: overlap must be 0 for a system that reads ahead (bidirectional), got overlap={overlap}. Its steps "
                "can't be run again one by one: take a longer window, or BPTT."
            )
        object.__setattr__(self, "system", as_system("TBPTT", self.system))

    def _no_past(self, key: Key) -> Any:
        return no_past(self.overlap, self.x, key) if self.overlap else ()

    def _grad(self, params: Params, state: BackpropState, data: Data, start: Key, steps: Key) -> Any:
        if not self.overlap:
            return self._one_window(params, state, data, start, steps)
        rows = check_rows("TBPTT", data, self.x, self.window)
        keys = jax.random.split(steps, self.window)
        past = forget(state.past, state.left <= 0, start, rows)

        def loss(params: Params) -> tuple[Scalar, State]:
            inner = jax.lax.cond(
                past.since <= self.overlap, lambda p: self._reset(past.start, p), lambda _: state.inner, params
            )
            return overlapping_loss("TBPTT", self.system, params, inner, past, data, keys, self.memory)

        (mean, inner), grad = jax.value_and_grad(loss, has_aux=True)(params)
        return (mean, (inner, advance(past, rows, keys))), grad
