"""What reverse mode shares: steps that are run again from what is kept of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._checkpointed import Memory
from unrollax._errors import StructureError
from unrollax._system import checked_step, cut, rows_of, unroll_keys
from unrollax._tree import describe, is_inexact, leaves_with_names, strong
from unrollax._types import Data, Key, Params, Scalar, State, System
from unrollax._value import static, value

Floats = list[Any]  # the leaves of a system's state that have a derivative


class Past(NamedTuple):
    """The last steps before a window, to be run again.

    Attributes:
        rows: what each of them saw of the data, leaves `[overlap, ...]`.
        keys: their keys, `[overlap]`.
        start: the key of the episode's `init`.
        since: int32 scalar, the steps since the reset, at most `overlap + 1`.
    """

    rows: Any
    keys: Key
    start: Key
    since: jax.Array


def no_past(overlap: int, x: Any, key: Key) -> Past:
    """Return a past of the right shapes, which the first reset will forget."""
    rows = repeat_rows(strong(x), overlap)
    return Past(rows, jnp.broadcast_to(key, (overlap,)), key, jnp.zeros((), jnp.int32))


def forget(past: Past, reset: jax.Array, start: Key, rows: Any) -> Past:
    """At a reset, put the window's first row wherever nothing has happened: a row that a step can always bear."""
    overlap = len(past.keys)
    kept = jax.lax.cond(
        reset, lambda: repeat_rows(jax.tree.map(lambda leaf: leaf[0], rows), overlap), lambda: past.rows
    )
    return Past(kept, past.keys, jnp.where(reset, start, past.start), jnp.where(reset, 0, past.since))


def repeat_rows(x: Any, count: int) -> Any:
    """Return `count` copies of one step of data."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), x)


def advance(past: Past, rows: Any, keys: Key) -> Past:
    """Return the past of the next window."""
    overlap, window = len(past.keys), len(keys)

    def last(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.concatenate([old, new])[window:]

    since = jnp.minimum(past.since + window, overlap + 1)
    return Past(jax.tree.map(last, past.rows, rows), last(past.keys, keys), past.start, since)


def overlapping_loss(
    owner: str, system: System, params: Params, inner: State, past: Past, data: Data, keys: Key, memory: Memory
) -> tuple[Scalar, State]:
    """Run the past and then the window; return its mean step loss, and the state where the next past begins."""
    overlap, window = len(past.keys), len(keys)
    happened = jnp.arange(overlap) >= overlap - past.since
    state, next_inner, losses = strong(inner), inner, []
    for begin, end in pairwise(sorted({0, overlap, window, overlap + window})):
        share = memory if isinstance(memory, str) else max(1, int(memory) * (end - begin) // (overlap + window))
        if begin == window:
            next_inner = state
        if end <= overlap:
            again = (jax.tree.map(lambda leaf, b=begin, e=end: leaf[b:e], past.rows), happened[begin:end])
            state, _ = unroll_keys(owner, _Happened(system, owner), params, state, again, past.keys[begin:end], share)
        else:
            now = slice(begin - overlap, end - overlap)
            state, some = unroll_keys(owner, system, params, state, cut(data, now.start, now.stop), keys[now], share)
            losses.append(some)
    return jnp.concatenate(losses).mean(), next_inner


@value
class _Happened:
    """A system whose data say which of the steps happened; the others leave the state alone."""

    system: System
    owner: str = static()

    def init(self, key: Key, params: Params) -> State:
        return self.system.init(key, params)

    def step(self, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        row, on = x
        after = jax.lax.cond(
            on, lambda: checked_step(self.owner, self.system, params, state, row, key)[0], lambda: state
        )
        return after, jnp.zeros(())


def check_rows(owner: str, data: Data, x: Any, window: int) -> Any:
    """Return what the steps of a window see, leaves `[window, ...]`; raise unless each sees something like `x`."""
    rows = rows_of(owner, data, window)
    got = [(name, leaf.shape[1:], leaf.dtype, leaf) for name, leaf in leaves_with_names(rows)]
    told = [(name, jnp.shape(leaf), jnp.result_type(leaf), leaf) for name, leaf in leaves_with_names(x)]
    if [leaf[:3] for leaf in got] != [leaf[:3] for leaf in told] or str(jax.tree.structure(rows)) != str(
        jax.tree.structure(x)
    ):
        seen = _say([(name, jax.eval_shape(lambda leaf: leaf[0], leaf)) for name, *_, leaf in got])
        raise StructureError(
            f"{owner}: x= must be like one step of the data, which is {seen}, got {_say([(t[0], t[3]) for t in told])}. "
            "Pass any one step as x=: it says what to keep of earlier steps."
        )
    return rows


def _say(named: list[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {describe(leaf)}" for name, leaf in named) or "None"


def floats_of(state: State) -> Floats:
    """Return the leaves that have a derivative."""
    return [leaf for leaf in jax.tree.leaves(state) if is_inexact(leaf)]


def with_floats(state: State, floats: Floats) -> State:
    """Put new floating leaves into a state."""
    leaves, treedef = jax.tree.flatten(state)
    new = iter(floats)
    return jax.tree.unflatten(treedef, [next(new) if is_inexact(leaf) else leaf for leaf in leaves])
