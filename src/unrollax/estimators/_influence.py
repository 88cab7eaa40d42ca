"""What forward mode shares: the numbers of a state that have a derivative, and the estimators that carry an influence."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._check import check_key, check_params
from unrollax._estimate import Info, name_of, share_nonfinite, tick, window_loss
from unrollax._tree import is_inexact, strong
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, System

Floats: TypeAlias = list[Any]  # the leaves of a system's state that have a derivative
Influence: TypeAlias = Any  # what an estimator keeps of d floats / d params
Window: TypeAlias = Callable[[Params, Any], tuple[tuple[Scalar, Any], State]]


class InfluenceState(NamedTuple):
    """What the next window needs.

    Attributes:
        key: the key of all later draws.
        left: int32 scalar, the steps left of the episode; 0 or less means a reset comes first.
        inner: one state of the system.
        influence: what is kept of the derivative of that state by the parameters; see the estimator.
    """

    key: Key
    left: jax.Array
    inner: State
    influence: Influence


class Online(abc.ABC):
    """An estimator that carries the influence of the parameters on the state from window to window."""

    system: System
    window: int
    horizon: int | None

    @abc.abstractmethod
    def _nothing(self, params: Params, inner: State) -> Influence:
        """Return an influence of zeros."""

    @abc.abstractmethod
    def _restart(self, params: Params, start: Key, draw: Key) -> tuple[Influence, State]:
        """Return a new state of the system and the influence of the parameters through `init`."""

    @abc.abstractmethod
    def _advance(
        self, params: Params, influence: Influence, inner: State, data: Data, run: Key, draw: Key
    ) -> tuple[Scalar, Params, Influence, State]:
        """Return the loss and the gradient of one window, and the influence and the state after it."""

    def init(self, key: Key, params: Params) -> InfluenceState:
        """Return the state before the first window, which will start with a reset."""
        params = check_params(name_of(self), params)
        key, start = jax.random.split(check_key(name_of(self), key))
        inner = strong(self.system.init(start, params))
        return InfluenceState(key, jnp.zeros((), jnp.int32), inner, self._nothing(params, inner))

    def estimate(self, params: Params, state: InfluenceState, data: Data) -> tuple[InfluenceState, Estimate]:
        """Return the state after one window and the gradient of its mean step loss."""
        params = check_params(name_of(self), params)
        key, draw, start, run = jax.random.split(state.key, 4)
        first, then = jax.random.split(draw)
        influence, inner = jax.lax.cond(
            state.left <= 0,
            lambda: self._restart(params, start, first),
            lambda: (state.influence, state.inner),
        )
        loss, grad, influence, inner = self._advance(params, influence, inner, data, run, then)
        state = InfluenceState(key, tick(state.left, self.window, self.horizon), inner, influence)
        return state, Estimate(loss, grad, Info(share_nonfinite(loss)))


def leafwise(owner: str, system: System, inner: State, data: Data, key: Key, window: int) -> Window:
    """Return a window as a function of the parameters and the state's floating leaves, with the whole state aside."""

    def run(params: Params, leaves: Floats) -> tuple[tuple[Scalar, Floats], State]:
        loss, after = window_loss(owner, system, params, with_floats(inner, leaves), data, key, window)
        return (loss, floats(after)), after

    return run


def flat(owner: str, system: System, inner: State, data: Data, key: Key, window: int) -> Window:
    """Return a window as a function of the parameters and the state's numbers, with the whole state aside."""

    def run(params: Params, vector: jax.Array) -> tuple[tuple[Scalar, jax.Array], State]:
        loss, after = window_loss(owner, system, params, with_numbers(inner, vector), data, key, window)
        return (loss, numbers(after)), after

    return run


def floats(state: State) -> Floats:
    """Return the leaves of a state that have a derivative."""
    return [leaf for leaf in jax.tree.leaves(state) if is_inexact(leaf)]


def with_floats(state: State, leaves: Floats) -> State:
    """Put new floating leaves into a state."""
    every, treedef = jax.tree.flatten(state)
    new = iter(leaves)
    return jax.tree.unflatten(treedef, [next(new) if is_inexact(leaf) else leaf for leaf in every])


def numbers(tree: Any) -> jax.Array:
    """Return the real numbers in a tree's floating leaves as one vector of at least float32; a complex number is two."""
    parts = [part for leaf in floats(tree) for part in _reals(leaf)]
    dtype = jnp.result_type(jnp.float32, *parts)
    return jnp.concatenate([jnp.zeros(0, dtype), *(part.ravel().astype(dtype) for part in parts)])


def with_numbers(tree: Any, vector: jax.Array) -> Any:
    """Undo `numbers`: put the numbers of a vector into a tree's floating leaves."""
    leaves, at = [], 0
    for leaf in floats(tree):
        parts = []
        for part in _reals(leaf):
            parts.append(vector[at : at + part.size].reshape(part.shape).astype(part.dtype))
            at += part.size
        leaves.append(parts[0] if len(parts) == 1 else jax.lax.complex(*parts))
    return with_floats(tree, leaves)


def _reals(leaf: jax.Array) -> tuple[jax.Array, ...]:
    return (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)


def wide(leaf: jax.Array) -> Any:
    """Return the dtype in which what belongs to a leaf of params is summed: at least float32."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def first(tree: Any) -> Any:
    """Drop the leading axis of what no direction changes."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
