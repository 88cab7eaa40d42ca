"""Reverse mode in less memory: a scan in nested pieces, of which only the starts are kept.

A plain scan keeps what every step computed. With lengths (m_1, ..., m_k) of the inner levels, T steps are cut into pieces
of m_1 ... m_k steps, these into pieces of m_2 ... m_k, and so on: the backward pass holds the states at the starts of one
piece's parts on each level and the values of m_k steps, and runs each step once more for each inner level.

The steps of an innermost piece keep what they computed. To run these again too, by `remat(system)`, would halve the memory
of two levels for a tenth to a fifth more time; a third level does more for less.

Not equinox's checkpointed loop: it is private (`equinox.internal`), and it is made for loops whose length is not known
beforehand. A window's is known, and nested scans took a quarter of its time for the same memory (T = 100,000, batch 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument
from unrollax._types import Params, State

Memory: TypeAlias = Literal["full", "sqrt", "log"] | int
Step: TypeAlias = Callable[[Params, State, Any], tuple[State, jax.Array]]  # (params, state, row): a scan's body

NAMES = ("full", "sqrt", "log")
SHORT = 8  # steps of a piece on every level of "log"
NEAR = 1.5  # a length this much off the best one is as good, if it divides what it cuts


class Sizes(NamedTuple):
    """Bytes of a step.

    Attributes:
        state: of the state, which is kept at the start of each piece.
        inside: of what the backward pass of one step needs.
        always: of what every step keeps at any rate: its key and its loss.
    """

    state: int
    inside: int
    always: int


def check_memory(owner: str, memory: Memory) -> None:
    """Raise unless `memory` is one of the names or a positive number of bytes."""
    named = isinstance(memory, str) and memory in NAMES
    counted = isinstance(memory, (int, np.integer)) and not isinstance(memory, bool) and memory > 0
    if not (named or counted):
        raise InvalidArgument(
            f'{owner}: memory must be "full", "sqrt", "log" or a positive whole number of bytes, got memory={memory!r}.'
        )


def scan(
    owner: str,
    step: Step,
    params: Params,
    state: State,
    xs: Any,
    steps: int,
    memory: Memory,
    whole: Step | None = None,
) -> tuple[State, jax.Array]:
    """Return what `lax.scan` of `step` returns, with a backward pass within `memory`.

    `whole(params, state, rows)` does as many steps as there are rows at once; `None` runs `step` for each.

    The pieces take their rows out of the whole `xs` by index: to reshape `xs` would copy it.
    """

    def body(carry: State, row: Any) -> tuple[State, jax.Array]:
        return step(params, carry, row)

    def straight(carry: State, rows: Any) -> tuple[State, jax.Array]:
        return jax.lax.scan(body, carry, rows) if whole is None else whole(params, carry, rows)

    def run(carry: State, begin: jax.Array, count: int, inner: Sequence[int]) -> tuple[State, jax.Array]:
        if not inner:
            rows = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, begin, count), xs)
            return straight(carry, rows)
        size = math.prod(inner)

        def piece(carry: State, begin: jax.Array) -> tuple[State, jax.Array]:
            return run(carry, begin, size, inner[1:])

        many, rest = divmod(count, size)
        losses = []
        if many:
            begins = begin + size * jnp.arange(many, dtype=jnp.int32)
            carry, some = jax.lax.scan(jax.checkpoint(piece, prevent_cse=False), carry, begins)
            losses.append(some.reshape(-1))
        if rest:
            carry, some = run(carry, begin + many * size, rest, inner[1:])
            losses.append(some)
        return carry, losses[0] if len(losses) == 1 else jnp.concatenate(losses)

    inner = inner_lengths(owner, memory, steps, lambda: sizes_of(step, params, state, xs))
    return run(state, jnp.zeros((), jnp.int32), steps, inner) if inner else straight(state, xs)


def inner_lengths(owner: str, memory: Memory, steps: int, sizes: Callable[[], Sizes]) -> tuple[int, ...]:
    """Return the lengths of the levels inside the outermost one, outer first; none for a plain scan."""
    if memory == "full":
        return ()
    if memory == "sqrt":
        return _cut(steps, 2, 1.0)
    if memory == "log":
        return _cut(steps, max(1, math.ceil(math.log(steps) / math.log(SHORT) - 1e-9)), 1.0)
    known = sizes()
    choices = [_cut(steps, levels, known.inside / max(1, known.state)) for levels in range(1, 2 + steps.bit_length())]
    needs = [need(steps, inner, known) for inner in choices]
    for inner, least in zip(choices, needs, strict=True):
        if least <= int(memory):
            return inner
    raise InvalidArgument(
        f"{owner}: memory must be at least {min(needs)} bytes for {steps} steps, each with {known.state} bytes of "
        f"state and {known.inside} inside, got memory={memory}. Give more, or make the state smaller."
    )


def _cut(steps: int, levels: int, ratio: float) -> tuple[int, ...]:
    """Return inner lengths for the least memory when an innermost step takes `ratio` times that of a state.

    The least sum of lengths, the innermost times ratio, whose product is `steps`, has all its terms equal.
    """
    ratio = max(ratio, 1e-9)
    equal = (steps * ratio) ** (1 / levels)
    lengths: list[int] = []
    left = steps
    for level in range(levels - 1):
        best = equal if level else equal / ratio  # the innermost comes first here
        length = _divisor_near(left, min(max(best, 1.0), left))
        if length > 1:
            lengths.insert(0, length)
        left = max(1, left // length)
    return tuple(lengths)


def _divisor_near(number: int, best: float) -> int:
    """Return the divisor that is nearest to `best`, or `best` rounded up where none is near: a rest costs a copy more."""
    low, high = math.ceil(best / NEAR), math.floor(best * NEAR)
    near = [length for length in range(max(low, 1), min(high, number) + 1) if number % length == 0]
    return min(near, key=lambda length: round(max(length / best, best / length), 6)) if near else math.ceil(best)


def need(steps: int, inner: Sequence[int], sizes: Sizes) -> int:
    """Return the bytes that the backward pass holds at once."""
    lengths = (-(-steps // math.prod(inner)), *inner)
    return sizes.always * steps + sizes.state * sum(lengths[:-1]) + sizes.inside * lengths[-1]


def sizes_of(step: Step, params: Params, state: State, xs: Any) -> Sizes:
    """Return the bytes that a step keeps, from its traced derivative: nothing is run."""
    row = jax.tree.map(lambda leaf: jax.eval_shape(lambda a: a[0], leaf), xs)

    def residuals(params: Params, state: State, row: Any) -> list[Any]:
        _, pull, loss = jax.vjp(lambda p, s: _aside(step(p, s, row)), params, state, has_aux=True)
        return [*jax.tree.leaves(pull), loss]

    jaxpr = jax.make_jaxpr(residuals)(params, state, row).jaxpr
    *kept, loss = jaxpr.outvars
    moving = jaxpr.invars[len(jax.tree.leaves(params)) :]
    states = moving[: len(jax.tree.leaves(state))]
    rows = moving[len(states) :]
    varying = depending(jaxpr, moving)
    inside = {id(var): var for var in kept if id(var) in varying}  # what depends on params alone is kept once
    inside |= {id(var): var for var in rows}
    return Sizes(_bytes(states), _bytes(inside.values()), _bytes([rows[-1], loss]))  # a row ends with its key


def _aside(returned: tuple[State, jax.Array]) -> tuple[Any, jax.Array]:
    return returned, returned[1]


def depending(jaxpr: Any, inputs: Sequence[Any]) -> set[int]:
    """Return the ids of the variables that depend on some inputs."""
    found = {id(var) for var in inputs}
    for equation in jaxpr.eqns:
        if any(id(var) in found for var in equation.invars):
            found |= {id(var) for var in equation.outvars}
    return found


def _bytes(variables: Any) -> int:
    return sum(var.aval.size * var.aval.dtype.itemsize for var in variables)
