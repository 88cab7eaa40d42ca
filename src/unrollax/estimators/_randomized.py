"""Reverse mode through a random number of windows, weighted so that the mean is exact."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import UP_TO_ONE, check_key, check_number, check_params, check_window
from unrollax._errors import InvalidArgument
from unrollax._estimate import Info, share_nonfinite, tick, window_loss
from unrollax._system import as_system
from unrollax._tree import is_inexact, strong
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._reverse import Floats, check_rows, floats_of, repeat_rows, with_floats

OWNER = "RandomizedTBPTT"


class Window(NamedTuple):
    """What a window is run again from; in a state of `RandomizedTBPTT`, leaves have an axis of windows in front.

    Attributes:
        inner: the system's state at its start.
        rows: what each of its steps saw of the data, leaves `[window, ...]`.
        key: the key that its step keys are split from.
    """

    inner: State
    rows: Any
    key: Key


class RandomizedState(NamedTuple):
    """What the next window needs.

    Attributes:
        key: the key of all later draws.
        left: int32 scalar, the steps left of the episode; 0 or less means a reset comes first.
        inner: one state of the system.
        start: the key of the episode's `init`.
        past: the windows of the episode, each leaf `[horizon / window, ...]`.
    """

    key: Key
    left: jax.Array
    inner: State
    start: Key
    past: Window


@value
class RandomizedTBPTT:
    """Backpropagation of each window's loss through a random number of earlier windows: exact in the mean.

    The gradient of window n's loss is a sum over the windows n, n - 1, ... back to the reset that it goes through, g_0 + g_1
    + ... A call draws N with P(N >= i) = survival^i and takes the first N + 1 of them, each weighted by 1 / P(N >= i):

        grad = sum_{i <= min(N, n)} g_i / survival^i.

    Earlier windows are run again from the states that they started from, with the present parameters.

    Target: exact, in the mean. Needs `vjp`. Cost of a call: `window` steps forward and about twice that backward, times
    1 + survival + ... + survival^n on average, at most 1 / (1 - survival); memory for the backward pass of one window. State:
    for each window of an episode its data, a key and one state of the system.
    The tails are heavy. If what comes back through a window is `a` times what went in, the variance stays bounded only while
    a^2 < survival; else it grows like (a^2 / survival)^n over an episode, up to its end. A larger window makes `a` smaller.
    Use it where `TBPTT` is biased but the gradient decays, so that few windows matter and rarely many. Avoid it where the
    gradient hardly decays (`BPTT` with less `memory` is then exact for less), and where one large gradient does harm.

    Args:
        system: what is unrolled.
        window: steps of a call (K); larger values have less variance and cost more memory.
        horizon: steps between resets (T), a multiple of `window`.
        survival: the probability to go on through each further window, in (0, 1]; larger values have less variance and cost
            more time. With 1 every call goes back to the reset and nothing is random.
        x: any one step of the data, of which only structure, shapes and dtypes count; `None` where the system reads none.

    Raises:
        InvalidArgument: horizon is no multiple of window, survival is not in (0, 1], or system lacks a method.
        StructureError: the data of a step are not like `x`.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> randomized = ux.RandomizedTBPTT(decay, window=1, horizon=2, survival=1.0)
        >>> state = randomized.init(jax.random.key(0), 0.5)
        >>> for _ in range(2):
        ...     state, estimate = randomized.estimate(0.5, state, None)
        ...     print(estimate.grad)  # of p, then of p^2
        1.0
        1.0

    References: Beatson and Adams, ICML 2019 (the randomized telescope, "Russian roulette" form, on the length of truncation);
    Tallec and Ollivier, arXiv 2017 (ARTBP). Deviations: lengths are whole windows, and those of two calls are drawn apart,
    whereas ARTBP cuts the sequence into pieces that all later losses share.
    """

    system: System
    window: int = static()
    horizon: int = static()
    survival: float = 0.5
    x: Any = None

    traits: ClassVar[Traits] = Traits(target="exact", needs="vjp")  # the cost is random

    def __post_init__(self) -> None:
        if self.horizon is None:
            raise InvalidArgument(
                f"{OWNER}: horizon must be a multiple of window, as all windows since a reset are kept, got horizon=None. "
                "Give a horizon, or use TBPTT."
            )
        check_window(OWNER, self.window, self.horizon)
        check_number(OWNER, "survival", self.survival, UP_TO_ONE)
        object.__setattr__(self, "system", as_system(OWNER, self.system))

    def init(self, key: Key, params: Params) -> RandomizedState:
        """Return the state before the first window, which will start with a reset."""
        check_number(OWNER, "survival", self.survival, UP_TO_ONE, used=True)
        params = check_params(OWNER, params)
        key, start = jax.random.split(check_key(OWNER, key))
        inner = self._reset(start, params)
        one = Window(inner, repeat_rows(strong(self.x), self.window), start)
        return RandomizedState(key, jnp.zeros((), jnp.int32), inner, start, repeat_rows(one, self._windows()))

    def estimate(self, params: Params, state: RandomizedState, data: Data) -> tuple[RandomizedState, Estimate]:
        """Return the state after one window and the gradient estimate of its mean step loss."""
        params = check_params(OWNER, params)
        key, start, run, draw = jax.random.split(state.key, 4)
        # One coin a boundary: a single number could not be drawn finely enough for the deepest windows to be reached.
        heads = jax.random.bernoulli(draw, jnp.asarray(self.survival, float), (self._windows(),))
        return self._estimate(params, state, data, (key, start, run), jnp.cumprod(heads).sum())

    def _estimate(
        self, params: Params, state: RandomizedState, data: Data, keys: tuple[Key, Key, Key], deep: jax.Array
    ) -> tuple[RandomizedState, Estimate]:
        """Go back through `deep` earlier windows, or as many as there are since the reset."""
        key, start, run = keys
        reset = state.left <= 0
        start = jnp.where(reset, start, state.start)
        inner = jax.lax.cond(reset, lambda: self._reset(start, params), lambda: state.inner)
        index = jnp.where(reset, 0, (self.horizon - state.left) // self.window)
        past = jax.lax.cond(reset, lambda: _without_numbers(state.past), lambda: state.past)
        past = _put(past, index, Window(inner, check_rows(OWNER, data, self.x, self.window), run))

        def now(params: Params, floats: Floats) -> tuple[tuple[Scalar, Floats], State]:
            mean, after = window_loss(OWNER, self.system, params, with_floats(inner, floats), data, run, self.window)
            return (mean, floats_of(after)), after

        (mean, ends), pull, after = jax.vjp(now, params, floats_of(inner), has_aux=True)
        grad, back = pull((jnp.ones_like(mean), [jnp.zeros_like(leaf) for leaf in ends]))
        grad = self._back(params, past, start, index, jnp.minimum(deep, index), (grad, back))
        state = RandomizedState(key, tick(state.left, self.window, self.horizon), after, start, past)
        return state, Estimate(mean, grad, Info(share_nonfinite(mean)))

    def _back(
        self, params: Params, past: Window, start: Key, index: jax.Array, count: jax.Array, now: tuple[Params, Floats]
    ) -> Params:
        """Pull the cotangent of a window's start through `count` windows before it, and through `init` if it is reached."""

        def one(i: jax.Array, carry: tuple[Params, Floats]) -> tuple[Params, Floats]:
            grad, back = carry
            window = _take(past, index - 1 - i)
            back = [(leaf / self.survival).astype(leaf.dtype) for leaf in back]
            more, back = jax.vjp(lambda *at: self._ends(window, *at), params, floats_of(window.inner))[1](back)
            return jax.tree.map(jnp.add, grad, more), back

        grad, back = jax.lax.fori_loop(0, count, one, now)
        begin = lambda params: floats_of(self._reset(start, params))
        return jax.lax.cond(
            count == index,
            lambda: jax.tree.map(jnp.add, grad, jax.vjp(begin, params)[1](back)[0]),
            lambda: grad,
        )

    def _ends(self, window: Window, params: Params, floats: Floats) -> Floats:
        """Run a window again and return where it ends."""
        inner = with_floats(window.inner, floats)
        return floats_of(window_loss(OWNER, self.system, params, inner, window.rows, window.key, self.window)[1])

    def _reset(self, key: Key, params: Params) -> State:
        return strong(self.system.init(key, params))

    def _windows(self) -> int:
        return self.horizon // self.window


def _put(past: Window, index: jax.Array, window: Window) -> Window:
    return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, index, 0), past, window)


def _take(past: Window, index: jax.Array) -> Window:
    """Return a window; under `vmap` loops run on after some are done, with an index that is then clamped."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, jnp.maximum(index, 0), keepdims=False), past)


def _without_numbers(past: Window) -> Window:
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if is_inexact(leaf) else leaf, past)
