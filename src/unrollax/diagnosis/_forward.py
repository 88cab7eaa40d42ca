"""A forward pass that is kept, and its steps as functions of what has a derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from unrollax._system import checked_step
from unrollax._tree import Static, combine, is_inexact, partition, strong
from unrollax._types import Key, Params, State, System

Floats: TypeAlias = list[Any]  # the leaves of a state that have a derivative
Run: TypeAlias = Callable[
    [Floats, Floats, Any], tuple[Floats, jax.Array]
]  # (leaves of params, floats, s) -> (floats, loss)


class Path(NamedTuple):
    """A forward pass.

    Attributes:
        states: the states before each step, leaves `[T, ...]`.
        losses: the step losses `[T]`.
        rows: what each step sees of the data, leaves `[T, ...]`.
        keys: the steps' keys `[T]`.
        start: the key of `init`.
    """

    states: State
    losses: jax.Array
    rows: Any
    keys: Key
    start: Key


def floats_of(state: State) -> Floats:
    """Return the floating leaves of a state."""
    return [leaf for leaf in jax.tree.leaves(state) if is_inexact(leaf)]


def follow(system: System, params: Params, rows: Any, key: Key, steps: int) -> Path:
    """Run the forward pass: `init` gets the first of two keys split from `key`, the steps those split from the second."""
    arrays, rest = partition((system, params))
    return _follow(arrays, rest, rows, key, steps)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _follow(arrays: list[Any], rest: Static, rows: Any, key: Key, steps: int) -> Path:
    system, params = combine(arrays, rest)
    start, run = jax.random.split(key)
    keys = jax.random.split(run, steps)

    def body(state: State, now: tuple[Any, Key]) -> tuple[State, tuple[State, jax.Array]]:
        after, loss = checked_step("gradient_flow", system, params, state, *now)
        return after, (state, loss)

    _, (states, losses) = jax.lax.scan(body, strong(system.init(start, params)), (rows, keys))
    return Path(states, losses, rows, keys, start)


def run_of(system: System, params: Params, path: Path) -> Run:
    """Return step s of a path as a function of what has a derivative."""
    structure = jax.tree.structure(params)

    def run(leaves: Floats, floats: Floats, s: Any) -> tuple[Floats, jax.Array]:
        state, row, key = jax.tree.map(lambda leaf: leaf[s], (path.states, path.rows, path.keys))
        flat, tree = jax.tree.flatten(state)
        new = iter(floats)
        state = jax.tree.unflatten(tree, [next(new) if is_inexact(leaf) else leaf for leaf in flat])
        after, loss = checked_step("gradient_flow", system, jax.tree.unflatten(structure, leaves), state, row, key)
        return floats_of(after), loss

    return run
