"""Wrappers from a system to a system: a batch of it, a bound on its loss, less memory in reverse mode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import NOT_NAN, check_counts, check_number
from unrollax._cores import over_cores
from unrollax._errors import InvalidArgument, StructureError
from unrollax._system import as_system, whole_form
from unrollax._tree import describe, leaves_with_names
from unrollax._types import Key, Params, State, System, Whole
from unrollax._value import static, value


@value
class Batched:
    """`count` copies of a system that share parameters; see `batched`."""

    system: System
    count: int = static()

    def __post_init__(self) -> None:
        check_counts("batched", n=self.count)
        object.__setattr__(self, "system", as_system("batched", self.system))

    def init(self, key: Key, params: Params) -> State:
        """Return the states of all examples, leaves `[n, ...]`."""
        return jax.vmap(self.system.init, (0, None))(jax.random.split(key, self.count), params)

    def step(self, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        """Step every example with its own `x` and key; the loss is the mean over examples."""
        _check_examples(self.count, 0, "state", state)
        _check_examples(self.count, 0, "data", x)
        keys = jax.random.split(key, self.count)
        after, losses = jax.vmap(self.system.step, (None, 0, 0, 0))(params, state, x, keys)
        return after, losses.mean()

    @property
    def unroll(self) -> Whole | None:
        """Whole windows of all examples at once, where the system offers it."""
        own = whole_form(self.system)

        def run(params: Params, state: State, data: Any, keys: Key) -> tuple[State, jax.Array]:
            _check_examples(self.count, keys.ndim - 1, "state", state)
            _check_examples(self.count, keys.ndim, "data", data)
            keys = _split(keys, self.count)
            assert own is not None
            outermost = keys.ndim == 2
            after, losses = (over_cores(own) if outermost else own)(params, state, data, keys)
            return after, losses.mean(-1)

        return run if own else None

    @property
    def causal(self) -> bool:
        """Whether a step reads nothing that comes later."""
        return getattr(self.system, "causal", True)


def _split(keys: Key, count: int) -> Key:
    """Split each of many keys, `[...]` to `[..., count]`."""
    many: Key = jax.vmap(lambda key: jax.random.split(key, count))(keys.reshape(-1))
    return many.reshape(*keys.shape, count)


def _check_examples(count: int, axis: int, name: str, tree: Any) -> None:
    """Raise unless every leaf has so many examples on that axis."""
    for path, leaf in leaves_with_names(tree):
        if jnp.shape(leaf)[axis : axis + 1] != (count,):
            where = "its first axis" if axis == 0 else f"axis {axis}"
            layout = f"[window, {count}, ...]" if name == "data" else f"[{count}, ...], as init makes them"
            raise StructureError(
                f"batched: {name} leaf {path} must have {count} examples on {where}, as in batched(system, {count}), got "
                f"{describe(leaf)}. The leaves of {name} are {layout}."
            )


def batched(system: System, n: int) -> Batched:
    """Make a batch of a system that was written for one example.

    Args:
        system: a system for one example.
        n: examples. Data leaves get an axis of n after the time axis, `[window, n, ...]` (`[n, ...]` inside `repeat`).

    Returns:
        A system whose state leaves are `[n, ...]` and whose step loss is the mean over the examples.

    Raises:
        InvalidArgument: n is no positive whole number, or system lacks a method.
        StructureError: when traced, a leaf of data or state has another number of examples.

    Example:
        >>> import unrollax as ux
        >>> add = ux.system(init=lambda k, p: jnp.zeros(()), step=lambda p, s, x, k: (s + x, p * s))
        >>> many = ux.batched(add, 3)
        >>> many.init(jax.random.key(0), 1.0).shape
        (3,)
    """
    return Batched(system, n)


def _check_steps(owner: str, system: Any, remedy: str) -> None:
    """Raise if a system can be run by whole windows alone."""
    if not getattr(system, "causal", True):
        raise InvalidArgument(
            f"{owner}: system must be one that runs step by step, got one that reads ahead (bidirectional). {remedy}"
        )


@value
class ClippedLoss:
    """A system with bounded step losses; see `clip_loss`."""

    system: System
    at: float

    def __post_init__(self) -> None:
        _check_steps(
            "clip_loss", self.system, "Bound the loss of recurrent itself, as in jnp.minimum(loss(y, target), at)."
        )
        object.__setattr__(self, "system", as_system("clip_loss", self.system))

    def init(self, key: Key, params: Params) -> State:
        """Return the system's own state."""
        return self.system.init(key, params)

    def step(self, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        """Step the system and bound the loss."""
        state, loss = self.system.step(params, state, x, key)
        return state, jnp.where(
            jnp.isfinite(loss) & (loss < self.at), loss, jnp.asarray(self.at, jnp.result_type(loss))
        )


def clip_loss(system: System, *, at: float) -> ClippedLoss:
    """Bound every step loss from above; a NaN or infinite one counts as `at`.

    Evolution strategies then survive particles that leave the domain of the simulator. A reverse-mode gradient through a
    step that made a NaN stays NaN: there the step itself must be mended.

    Args:
        system: the system whose loss is bounded.
        at: the largest loss of a step.

    Raises:
        InvalidArgument: at is no number, or the system reads ahead (`bidirectional`) and so has no steps.

    Example:
        >>> import unrollax as ux
        >>> wild = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, jnp.log(p * s)))
        >>> tame = ux.clip_loss(wild, at=10.0)
        >>> ux.unroll(tame, -1.0, tame.init(None, -1.0), None, jax.random.key(0), steps=2)[1]
        Array([10.,  0.], dtype=float32)
    """
    check_number("clip_loss", "at", at, NOT_NAN, used=True)
    return ClippedLoss(system, at)


@value
class Remat:
    """A system whose step keeps nothing for the backward pass; see `remat`."""

    system: System

    def __post_init__(self) -> None:
        _check_steps("remat", self.system, "For less memory take shorter windows, as TBPTT has, or a smaller batch.")
        object.__setattr__(self, "system", as_system("remat", self.system))

    def init(self, key: Key, params: Params) -> State:
        """Return the system's own state."""
        return self.system.init(key, params)

    def step(self, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        """Step the system under `jax.checkpoint`."""
        out: tuple[State, jax.Array] = jax.checkpoint(self.system.step)(params, state, x, key)
        return out


def remat(system: System) -> Remat:
    """Keep only the states for the backward pass and run each step again when its gradient is taken.

    Memory of reverse mode falls from all that a step computes to its state; time grows by at most one forward pass. The
    gradient is the same.

    Raises:
        InvalidArgument: the system reads ahead (`bidirectional`) and so has no steps.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> ux.BPTT(ux.remat(decay), horizon=100)
        BPTT(system=Remat(system=FunctionSystem(init=<lambda>, step=<lambda>)), horizon=100, memory='full')
    """
    return Remat(system)
