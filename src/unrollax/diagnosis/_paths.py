"""The examples of a system one by one: where each starts, what it sees, and the keys of its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_counts, check_key
from unrollax._errors import StructureError
from unrollax._system import Repeat, as_system, is_repeat, unroll_for
from unrollax._tree import combine, describe, is_key, is_numeric, leaves_with_names, partition, strong
from unrollax._types import Data, Key, Params, State, System
from unrollax._wrap import Batched, ClippedLoss, Remat


class Examples(NamedTuple):
    """Some examples of a system, whose dynamics are independent.

    Attributes:
        system: of one example.
        steps: steps of each.
        states: leaves `[m, ...]`, the states that they start from.
        data: leaves `[m, steps, ...]`, `repeat(x)` with leaves `[m, ...]`, or `None`.
        keys: `[m, steps]`, those that `unroll` gives them.
    """

    system: System
    steps: int
    states: State
    data: Data
    keys: Key


def examples_of(
    owner: str, system: Any, params: Params, data: Data, key: Any, steps: int | None, examples: int | None
) -> Examples:
    """Take a batch apart into at most `examples` of its examples; any other system is the only one.

    Key and data are those of `system.init(start, params)` and `unroll(system, params, state, data, run)`, where start and run
    are the halves of the key.
    """
    if steps is not None:
        check_counts(owner, steps=steps)
    system, key = _inside(as_system(owner, system)), check_key(owner, key)
    for name, leaf in leaves_with_names(params):
        if not is_numeric(leaf):
            raise StructureError(f"{owner}: params leaf {name} must be an array, got {describe(leaf)}. Pass arrays.")
    if isinstance(system, Batched):
        _check_rows(owner, data, system.count)
    steps = _steps(owner, system, params, data, steps)
    start, run = jax.random.split(key)
    keys = jax.random.split(run, steps)
    if not isinstance(system, Batched):
        return Examples(system, steps, _started(system, params, start[None]), _add_axis(data), keys[None])
    count = system.count if examples is None else min(examples, system.count)
    starts = jax.random.split(start, system.count)[:count]
    own = jax.vmap(lambda key: jax.random.split(key, system.count)[:count], out_axes=1)(keys)
    return Examples(system.system, steps, _started(system.system, params, starts), _cut(data, count), own)


def _inside(system: System) -> System:
    """Take off what changes only the loss or the backward pass."""
    while isinstance(system, (ClippedLoss, Remat)):
        system = system.system
    if isinstance(system, Batched):
        return Batched(_inside(system.system), system.count)
    return system


def _steps(owner: str, system: System, params: Params, data: Data, steps: int | None) -> int:
    """Trace the system once: everything that does not fit is named before anything runs."""
    arrays, rest = partition((system, params, data))

    def run(arrays: Any, key: Key) -> jax.Array:
        system, params, data = combine(arrays, rest)
        return unroll_for(owner, system, params, system.init(key, params), data, key, steps)[1]

    return len(jax.eval_shape(run, arrays, jax.random.key(0)))


def _started(system: System, params: Params, keys: Key) -> State:
    return jax.vmap(lambda key: strong(system.init(key, params)))(keys)


def _check_rows(owner: str, data: Data, count: int) -> None:
    for name, leaf in leaves_with_names(data, is_leaf=is_repeat):
        rows = leaf.x if is_repeat(leaf) else leaf
        axis = 0 if is_repeat(leaf) else 1
        for part in jax.tree.leaves(rows):
            if jnp.shape(part)[axis : axis + 1] != (count,):
                raise StructureError(
                    f"{owner}: data leaf {name} must have the {count} examples of the batch on axis {axis}, got "
                    f"{describe(part)}. Put the time axis first and the batch second."
                )


def _add_axis(data: Data) -> Data:
    return jax.tree.map(lambda leaf: leaf[None] if is_key(leaf) else jnp.asarray(leaf)[None], data)


def _cut(data: Data, count: int) -> Data:
    """Return the first examples, with their axis in front of that of time."""

    def part(leaf: Any) -> Any:
        if is_repeat(leaf):
            return Repeat(jax.tree.map(lambda x: jnp.asarray(x)[:count], leaf.x))
        return jnp.moveaxis(jnp.asarray(leaf), 1, 0)[:count]

    return jax.tree.map(part, data, is_leaf=is_repeat)
