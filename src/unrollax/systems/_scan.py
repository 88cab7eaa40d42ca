"""Cells over whole sequences: what a cell is, and how one without `unroll` is run step by step."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from unrollax._tree import strong, where
from unrollax._types import Key, Params, State


class Cell(Protocol):
    """What `recurrent` needs of a cell; the sizes are the cell's own. All is written for one example.

    A cell may also offer `unroll(params, state, xs, mask) -> (state, outputs)` for a whole sequence, with the result of as
    many steps: leaves of xs and outputs `[steps, *batch, ...]`, of the states `[*batch, ...]`, and mask `[steps, *batch]` or
    `None`. A masked step leaves the state as it was, and its output does not count.
    """

    def params(self, key: Key) -> Params:
        """Draw parameters."""
        ...

    def init(self, params: Params) -> State:
        """Return the state before the first step."""
        ...

    def step(self, params: Params, state: State, x: Any) -> tuple[State, Any]:
        """Return the next state and the output that the readout sees."""
        ...


def unroll_cell(cell: Cell, params: Params, state: State, xs: Any, mask: jax.Array | None = None) -> tuple[State, Any]:
    """Run a cell over a sequence, by its own `unroll` where it offers one.

    Args:
        cell: a cell, or anything else that offers `params`, `init` and `unroll`.
        params: its parameters.
        state: the state before the first step, leaves `[*batch, ...]`.
        xs: leaves `[steps, *batch, ...]`.
        mask: booleans `[steps, *batch]`, true at real steps; `None` if all are.

    Returns:
        The state after the last step, and the outputs `[steps, *batch, ...]`.
    """
    if callable(getattr(cell, "unroll", None)):
        out: tuple[State, Any] = cell.unroll(params, state, xs, mask)  # type: ignore[attr-defined]
        return out
    return scan_cell(cell, params, state, xs, mask)


def scan_cell(cell: Cell, params: Params, state: State, xs: Any, mask: jax.Array | None = None) -> tuple[State, Any]:
    """Run a cell over a sequence step by step: `unroll_cell` for a cell that has no `unroll`."""
    step = over_batch(lambda state, x: cell.step(params, state, x), batch_axes(cell, params, state, xs, mask))

    def body(state: State, now: tuple[Any, jax.Array | None]) -> tuple[State, Any]:
        x, real = now
        if real is None:
            after, output = step(state, x)
            return strong(after), output
        after, output = step(state, where(real, x, jax.tree.map(jnp.zeros_like, x)))  # no NaN of a padding
        return where(real, strong(after), state), output

    mask = None if mask is None else jnp.asarray(mask).astype(bool)
    return jax.lax.scan(body, strong(state), (xs, mask))


def over_batch(function: Any, axes: int) -> Any:
    """Map a function of one example over so many leading axes of all its arguments."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def batch_axes(cell: Cell, params: Params, state: State, xs: Any, mask: jax.Array | None) -> int:
    """How many axes of examples a sequence has, by its mask, else by the state, else by features on one last axis."""
    if mask is not None:
        return jnp.ndim(mask) - 1
    one, many = jax.tree.leaves(jax.eval_shape(cell.init, params)), jax.tree.leaves(state)
    if one:
        return jnp.ndim(many[0]) - one[0].ndim
    return jnp.ndim(jax.tree.leaves(xs)[0]) - 2
