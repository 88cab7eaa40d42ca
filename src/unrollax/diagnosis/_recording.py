"""One layer of a recurrent network on its own: what it meets in a sequence, and the layer as a system of that."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._errors import StructureError
from unrollax._tree import Static, combine, partition, strong, where
from unrollax._types import Key, Params, State
from unrollax._value import value
from unrollax.diagnosis._jacobians import seer
from unrollax.diagnosis._paths import Examples
from unrollax.systems._stack import Stacked


class Record(NamedTuple):
    """What one layer meets on its way: leaves `[m, steps, ...]`, and its first state `[m, ...]`."""

    gates: dict[str, jax.Array]
    inputs: Any
    mask: jax.Array
    start: State


class Spy:
    """A cell that keeps what its last step was given."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell
        self.init = cell.init

    def step(self, params: Params, state: State, x: Any) -> tuple[State, Any]:
        """Step the cell."""
        self.given = params, state, x
        out: tuple[State, Any] = self.cell.step(params, state, x)
        return out


def record(found: Examples, params: Params, layer: int) -> Record:
    """Run every example of a recurrent network, and note what one layer of its cell meets."""
    arrays, rest = partition((found.system, params, found))
    out: Record = _recorded(arrays, rest, layer)
    return out


@functools.partial(jax.jit, static_argnums=(1, 2))
def _recorded(arrays: list[Any], rest: Static, layer: int) -> Record:
    network, params, found = combine(arrays, rest)

    def one(state: State, data: Any, keys: Key) -> Record:
        moving, see = seer(data)
        cell = network.cell.cells[layer] if isinstance(network.cell, Stacked) else network.cell
        spied = _with_spy(network, layer, spy := Spy(cell))

        def body(state: State, now: tuple[Any, Key]) -> tuple[State, tuple[Any, ...]]:
            x = see(now[0])
            after, _ = spied.step(params, state, x, now[1])
            return strong(after), (_gates(cell, *spy.given), spy.given[2], jnp.asarray(x.mask).astype(bool))

        gates, inputs, mask = jax.lax.scan(body, state, (moving, keys))[1]
        return Record(gates, inputs, mask, state[layer] if isinstance(network.cell, Stacked) else state)

    out: Record = jax.vmap(one)(found.states, found.data, found.keys)
    return out


def _with_spy(network: Any, layer: int, spy: Any) -> Any:
    if not isinstance(network.cell, Stacked):
        return dataclasses.replace(network, cell=spy)
    cells: Any = network.cell.cells
    spied = dataclasses.replace(network.cell, cells=(*cells[:layer], spy, *cells[layer + 1 :]))
    return dataclasses.replace(network, cell=spied)


def _gates(cell: Any, params: Params, state: State, x: Any) -> dict[str, jax.Array]:
    gates = cell.gates(params, state, x)
    if not isinstance(gates, dict) or cell.keep not in gates:
        got = list(gates) if isinstance(gates, dict) else type(gates).__name__
        raise StructureError(
            f"gate_statistics: gates of {type(cell).__name__} must return a dict with its keep, {cell.keep!r}, got {got}. "
            "Name it so."
        )
    return {name: jnp.ravel(gate) for name, gate in gates.items()}


@value
class Layer:
    """One cell as a system, whose data are its inputs and whether each step is real."""

    cell: Any

    def init(self, key: Key, params: Params) -> State:
        """Return the cell's state before the first step."""
        return self.cell.init(params)

    def step(self, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        """Advance by one step, if it is real."""
        after = strong(self.cell.step(params, state, x[0])[0])
        return where(x[1], after, state), jnp.zeros(())
