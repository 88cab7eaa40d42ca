"""The four shapes that everything in unrollax has: a pair of pure functions with explicit state, and what they exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax

Params: TypeAlias = Any  # a pytree of floating arrays: what is trained
State: TypeAlias = Any  # a pytree that keeps its structure, shapes and dtypes from call to call
Data: TypeAlias = Any  # a pytree with leaves [window, ...], `repeat(x)` leaves, or None
Scalar: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # from jax.random.key(seed)
Whole: TypeAlias = Callable[..., tuple[State, jax.Array]]  # (params, state, data, keys) -> (state, losses), of a window


@runtime_checkable
class System(Protocol):
    """What is unrolled: the body of a `lax.scan`, with parameters.

    Any object with these two methods is a system; `unrollax.system(init=, step=)` makes one from two functions. It may also
    offer `unroll(params, state, data, keys)` for a whole window at once; see there.
    """

    def init(self, key: Key, params: Params, /) -> State:
        """Return the state at time 0. It may depend on `params`; the gradient through it is counted."""
        ...

    def step(self, params: Params, state: State, x: Any, key: Key, /) -> tuple[State, Scalar]:
        """Return the next state, with the same structure, shapes and dtypes, and the scalar loss of this step."""
        ...


class Estimate(NamedTuple):
    """What a gradient estimator says about one window.

    Attributes:
        loss: the mean step loss over the window, a scalar (for evolution strategies, averaged over the particles).
        grad: the estimate of ITS gradient, with the structure, shapes and dtypes of `params`.
        info: a NamedTuple of arrays to look at; never needed by the next call.
    """

    loss: Scalar
    grad: Params
    info: Any = ()


class Cost(NamedTuple):
    """Passes of `window` steps through the system that one call makes, on average over a horizon.

    Each is a formula in the estimator's fields, `params` (numbers in params) and `states` (floating numbers in the system's
    state), such as `"2 * pairs"`. The test kit counts them.

    Attributes:
        forward: passes that run `step`.
        jvp: passes that push one tangent through it.
        vjp: passes that pull one cotangent back.
    """

    forward: str
    jvp: str = "0"
    vjp: str = "0"


class Traits(NamedTuple):
    """What an estimator estimates, what it needs of a system and what it costs; the test kit and the docs read it.

    Attributes:
        target: what the mean of the estimates over a horizon equals: `exact`, the gradient of the mean step loss;
            `smoothed`, that of the loss under perturbed parameters; `truncated`, a gradient that leaves out what
            crosses windows; `pseudo`, a direction that is no gradient.
        needs: what `step` must support: `forward` (it is only run), `jvp` or `vjp`.
        cost: passes through the system a call; `None` if it is not known beforehand.
    """

    target: Literal["exact", "smoothed", "truncated", "pseudo"]
    needs: Literal["forward", "jvp", "vjp"]
    cost: Cost | None = None


@runtime_checkable
class GradientEstimator(Protocol):
    """A gradient for one window of an unroll, with the state that the next window continues from.

    Any object with these two methods is an estimator.
    """

    def init(self, key: Key, params: Params, /) -> State:
        """Return the state before the first window. The key lives in the state from here on."""
        ...

    def estimate(self, params: Params, state: State, data: Data, /) -> tuple[State, Estimate]:
        """Return the state for the next window and the estimate for this one."""
        ...
