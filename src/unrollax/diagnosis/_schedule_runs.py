"""Runs of an unfolded algorithm on one batch: its levels, its gradient by iteration, and how small changes grow."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._schedule import Schedule, is_schedule, values_of
from unrollax._tree import is_inexact
from unrollax._types import Key, Params

UNPUSHED = (TypeError, NotImplementedError)  # what JAX raises where there is no forward derivative


@jax.jit
def start_of(net: Any, params: Params, key: Key) -> Any:
    """Return a batch of problems at its start; compiled, which takes half the time of many small programs."""
    return net.init(key, params)


@jax.jit
def levels_of(net: Any, params: Params, state: Any) -> jax.Array:
    """Return the level, the batch's mean error or its logarithm, after 0, 1, ..., horizon iterations, `[horizon + 1]`."""

    def body(state: Any, _: None) -> tuple[Any, jax.Array]:
        after = net.step(params, state, None, jax.random.key(0))[0]
        return after, after.level

    levels = jax.lax.scan(body, state, None, length=net.horizon)[1]
    return jnp.concatenate([state.level[None], levels])


def errors_of(net: Any, levels: Any) -> np.ndarray:
    """Return errors in float64 from levels."""
    wide = np.asarray(levels, np.float64)
    with np.errstate(over="ignore"):
        return np.exp(wide) if net.scale == "log" else wide


@jax.jit
def grads_of(net: Any, params: Params, state: Any) -> tuple[Any, Any]:
    """Return the gradient of the mean step loss by params, and by the number that each iteration takes.

    For the second each schedule has a number of its own at each iteration, `[horizon, ...]`; the first is what the chain
    rule makes of it.
    """

    def loss(numbers: Any, params: Params) -> jax.Array:
        untied = jax.tree.map(
            lambda leaf, row: Schedule(row, "per_step") if is_schedule(leaf) else row,
            params,
            numbers,
            is_leaf=is_schedule,
        )
        return net.run(untied, state)[1]

    numbers, pull = jax.vjp(lambda params: values_of(params, net.horizon), params)
    by_iteration = jax.grad(loss)(numbers, params)
    return pull(by_iteration)[0], by_iteration


def growth_of(net: Any, params: Params, state: Any, key: Key) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return how a small change of the start grows, and what changes after each iteration come to, each `[horizon + 1]`.

    In float64 where the iteration takes that: rounding grows in the derivatives, too.
    """
    if not any(is_inexact(leaf) for leaf in jax.tree.leaves(state.x)):
        return None, None
    try:
        with jax.enable_x64(True):
            first, all_the_way = jax.device_get(_growth(*_promoted((net, params, state)), key))
    except Exception:
        try:
            first, all_the_way = jax.device_get(_growth(net, params, state, key))
        except UNPUSHED:
            return None, None
    return first.astype(np.float64).max(1), np.sqrt(np.square(all_the_way.astype(np.float64)).mean(1))


@jax.jit
def _growth(net: Any, params: Params, state: Any, key: Key) -> tuple[jax.Array, jax.Array]:
    """Return the norms of both changes by problem, `[horizon + 1, batch]`."""

    def body(carry: Any, key: Key) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        state, first, noise = carry
        leaves, treedef = jax.tree.flatten(state.x)
        there = [is_inexact(leaf) for leaf in leaves]

        def move(floats: list[Any]) -> tuple[list[Any], Any]:
            parts = iter(floats)
            x = [next(parts) if here else leaf for leaf, here in zip(leaves, there, strict=True)]
            moved = state._replace(x=jax.tree.unflatten(treedef, x))
            after = net.step(params, moved, None, key)[0]
            return [leaf for leaf in jax.tree.leaves(after.x) if is_inexact(leaf)], after

        floats = [leaf for leaf, here in zip(leaves, there, strict=True) if here]
        _, push, after = jax.linearize(move, floats, has_aux=True)
        first = push(first)
        noise = jax.tree.map(jnp.add, push(noise), _unit(key, floats))
        return (after, first, noise), (_norms(first), _norms(noise))

    start = _unit(key, [leaf for leaf in jax.tree.leaves(state.x) if is_inexact(leaf)])
    keys = jax.random.split(jax.random.fold_in(key, 1), net.horizon)
    rows = jax.lax.scan(body, (state, start, start), keys)[1]
    return tuple(jnp.concatenate([_norms(start)[None], row]) for row in rows)  # type: ignore[return-value]


def _unit(key: Key, like: list[Any]) -> list[Any]:
    """Return random directions of norm 1, one for each problem."""
    keys = jax.random.split(key, len(like))
    drawn = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, like, strict=True)]
    size = _norms(drawn)
    return [leaf / size.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype) for leaf in drawn]


def _norms(leaves: list[Any]) -> jax.Array:
    """Return the norm of each problem's part, `[batch]`."""
    squares = [jnp.square(jnp.abs(leaf)).reshape(leaf.shape[0], -1).sum(1) for leaf in leaves]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def in_both(net: Any, params: Params, state: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the errors in float32, and in float64 of the same rounded numbers; `None` where dtypes don't allow it."""
    single = jax.tree.map(lambda leaf: _cast(leaf, np.float32, np.complex64), (net, params, state))
    return _in("float32", *single), _in("float64", *_promoted(single))


def _promoted(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _cast(leaf, np.float64, np.complex128), tree)


def _in(dtype: str, net: Any, params: Params, state: Any) -> np.ndarray | None:
    with jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Explicitly requested dtype", UserWarning
        )  # as it asks for: constants are cut
        try:  # an iteration may fix dtypes anywhere, and constants of its own may not fit, so any error counts
            levels = levels_of(net, params, state)
        except Exception:
            return None
    return errors_of(net, levels) if levels.dtype == dtype else None


def _cast(leaf: Any, real: Any, complex_: Any) -> Any:
    """Return an array in another dtype, on the host; Python's numbers adapt by themselves."""
    if not is_inexact(leaf) or isinstance(leaf, (float, complex)):
        return leaf
    return np.asarray(leaf).astype(complex_ if np.iscomplexobj(leaf) else real)
