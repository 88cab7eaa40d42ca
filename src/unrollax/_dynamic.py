"""A loop whose trip count is data: one compiled program for every depth, with a gradient in reverse mode.

JAX differentiates a `scan`, whose length is fixed when it is compiled, but no `while_loop`. Here the forward loop writes
into buffers as long as the longest loop: what each iteration's pullback needs that changes from one to the next, or only what
each iteration starts from. The backward loop runs from the last to the first and pulls the cotangent back through one
iteration at a time, which it runs again in the second case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core

from unrollax._tree import is_inexact, is_key, strong

Body: TypeAlias = Callable[[Any, Any, Any], tuple[Any, jax.Array]]  # (params, fixed, x) -> (x, loss)
Leaves: TypeAlias = list[Any]
Memory: TypeAlias = Literal["full", "states"]
MEMORIES: tuple[Memory, ...] = ("full", "states")


class Split(NamedTuple):
    """A tree in two: the leaves that have a derivative, and the others."""

    floats: Leaves
    others: Leaves


def loop(
    body: Body, params: Any, fixed: Any, x: Any, *, depth: Any, longest: int, memory: Memory = "full"
) -> tuple[Any, jax.Array]:
    """Run `x, loss = body(params, fixed, x)` for `depth` iterations; return the last x and the sum of the losses.

    The derivative in reverse mode is with respect to params and the first x. Time is that of `depth` iterations and their
    pullbacks, memory that of `longest` times what a pullback needs and params and `fixed` don't tell. With `memory="states"`
    it is that of `longest` x and of one iteration, and all iterations run twice.

    Args:
        body: one iteration, which keeps x's structure, shapes and dtypes, and returns a floating scalar.
        params: what is trained.
        fixed: what all iterations share and nothing is derived by.
        x: what the first iteration starts from.
        depth: the number of iterations, which may be traced; at most `longest`, or the gradient is wrong.
        longest: rows of the buffers.
        memory: what they hold, `"full"` or `"states"`.

    Example:
        >>> from unrollax._dynamic import loop
        >>> body = lambda params, fixed, x: (params * x, fixed * x)
        >>> power = lambda params, depth: loop(body, params, 0.0, jnp.ones(()), depth=depth, longest=9)[0]
        >>> [float(jax.jit(jax.grad(power))(2.0, depth)) for depth in (0, 1, 3)]
        [0.0, 1.0, 12.0]
    """
    params, x = strong(params), strong(x)
    first, rest, layout = split(params)
    now, state, shape = split(x)
    return _loop(
        _Parts(body, layout, shape, memory), longest, first, rest, jax.lax.stop_gradient(fixed), now, state, depth
    )


class Layout(NamedTuple):
    """How a tree was put apart into the leaves that have a derivative and the others."""

    treedef: Any
    floats: tuple[bool, ...]

    def join(self, floats: Leaves, others: Leaves) -> Any:
        """Undo `split`."""
        first, second = iter(floats), iter(others)
        return jax.tree.unflatten(self.treedef, [next(first if here else second) for here in self.floats])


def split(tree: Any) -> tuple[Leaves, Leaves, Layout]:
    """Return the floating leaves of a tree, the others, and how to join them."""
    leaves, treedef = jax.tree.flatten(tree)
    layout = Layout(treedef, tuple(map(is_inexact, leaves)))
    floats = [leaf for leaf, here in zip(leaves, layout.floats, strict=True) if here]
    return floats, [leaf for leaf, here in zip(leaves, layout.floats, strict=True) if not here], layout


class _Parts(NamedTuple):
    """What all iterations do, as the loop's one static argument."""

    body: Body
    params: Layout
    x: Layout
    memory: Memory

    def run(self, params: Leaves, rest: Leaves, fixed: Any, x: Leaves, state: Leaves) -> Any:
        """Run one iteration; return the new floats of x with the loss, and the new others."""
        whole, loss = self.body(self.params.join(params, rest), fixed, self.x.join(x, state))
        floats, others, _ = split(strong(whole))
        return (floats, strong(loss)), others


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop(
    parts: _Parts, longest: int, params: Leaves, rest: Leaves, fixed: Any, x: Leaves, state: Leaves, depth: Any
) -> tuple[Any, jax.Array]:
    def iterate(_: Any, carry: Any) -> Any:
        x, state, total = carry
        (x, loss), state = parts.run(params, rest, fixed, x, state)
        return x, state, total + loss

    x, state, total = jax.lax.fori_loop(0, depth, iterate, (x, state, _zero(parts, params, rest, fixed, x, state)))
    return parts.x.join(x, state), total


def _forward(
    parts: _Parts, longest: int, params: Leaves, rest: Leaves, fixed: Any, x: Leaves, state: Leaves, depth: Any
) -> Any:
    step = _Step(parts, params, rest, fixed)
    changes = step.changes(x, state)

    def iterate(t: Any, carry: Any) -> Any:
        x, state, total, rows = carry
        (floats, loss), others, kept = step.run(x, state)
        kept = [leaf for leaf, here in zip(kept, changes, strict=True) if here]
        rows = jax.tree.map(lambda row, leaf: row.at[t].set(leaf), rows, kept)
        return floats, others, total + loss, rows

    kept = [leaf for leaf, here in zip(step.run(x, state)[2], changes, strict=True) if here]
    rows = [_rows(leaf, longest) for leaf in kept]
    begin = (x, state, _zero(parts, params, rest, fixed, x, state), rows)
    after, others, total, rows = jax.lax.fori_loop(0, depth, iterate, begin)
    return (parts.x.join(after, others), total), (params, rest, fixed, x, state, rows, depth)


def _backward(parts: _Parts, longest: int, kept: Any, cotangent: Any) -> Any:
    params, rest, fixed, x, state, rows, depth = kept
    step = _Step(parts, params, rest, fixed)
    same, changes = step.run(x, state)[2], step.changes(x, state)
    after, loss = cotangent
    ends = [leaf for leaf, here in zip(jax.tree.leaves(after), parts.x.floats, strict=True) if here]

    def iterate(done: Any, carry: Any) -> Any:
        x, grad = carry
        now = iter(jax.tree.map(lambda row: row[depth - 1 - done], rows))
        part, x = step.pull([next(now) if here else leaf for leaf, here in zip(same, changes, strict=True)], (x, loss))
        return x, jax.tree.map(jnp.add, grad, part)

    start, grad = jax.lax.fori_loop(0, depth, iterate, (ends, jax.tree.map(jnp.zeros_like, params)))
    return grad, None, None, start, None, None


_loop.defvjp(_forward, _backward)


def _zero(parts: _Parts, params: Leaves, rest: Leaves, fixed: Any, x: Leaves, state: Leaves) -> jax.Array:
    loss = jax.eval_shape(parts.run, params, rest, fixed, x, state)[0][1]
    return jnp.zeros(loss.shape, loss.dtype)


def _rows(leaf: jax.Array, count: int) -> jax.Array:
    """Return room for so many of an array; only its shape counts, so that what computes it is never run."""
    room = leaf if is_key(leaf) else jnp.zeros_like(leaf)
    return jnp.broadcast_to(room[None], (count, *leaf.shape))


class _Step:
    """One iteration, and its pullback as arrays: those that change from one iteration to the next go into the buffers."""

    def __init__(self, parts: _Parts, params: Leaves, rest: Leaves, fixed: Any) -> None:
        self.parts, self.shared = parts, (params, rest, fixed)

    def run(self, x: Leaves, state: Leaves) -> tuple[Any, Leaves, Leaves]:
        """Return the floats of the next x with the loss, its others, and what the pullback is made of."""
        if self.parts.memory == "states":
            return *self.parts.run(*self.shared, x, state), [*x, *state]
        out, pull, others = self._vjp(x, state)
        leaves, self._layout = jax.tree.flatten(pull)
        return out, others, leaves

    def pull(self, kept: Leaves, cotangent: Any) -> tuple[Leaves, Leaves]:
        """Return the cotangents of params and of the floats of x; `run` must have been called before."""
        if self.parts.memory == "full":
            found: tuple[Leaves, Leaves] = jax.tree.unflatten(self._layout, kept)(cotangent)
            return found
        count = sum(self.parts.x.floats)
        return self._vjp(kept[:count], kept[count:])[1](cotangent)

    def changes(self, x: Leaves, state: Leaves) -> list[bool]:
        """Return which of the arrays that `run` keeps depend on x: the others are the same in all iterations."""
        program = jax.make_jaxpr(lambda shared, moving: _Step(self.parts, *shared).run(*moving)[2])
        jaxpr = program(self.shared, (x, state)).jaxpr
        moving = set(jaxpr.invars[len(jax.tree.leaves(self.shared)) :])
        for line in jaxpr.eqns:
            if any(each in moving for each in line.invars if not isinstance(each, core.Literal)):
                moving.update(line.outvars)
        return [not isinstance(each, core.Literal) and each in moving for each in jaxpr.outvars]

    def _vjp(self, x: Leaves, state: Leaves) -> Any:
        params, rest, fixed = self.shared
        return jax.vjp(lambda params, x: self.parts.run(params, rest, fixed, x, state), params, x, has_aux=True)
