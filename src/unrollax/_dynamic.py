"""A loop whose trip count is data: one compiled program for every depth, with a gradient in reverse mode.

JAX differentiates a `scan`, whose length is fixed when it is compiled, but no `while_loop`. Here the forward loop writes
what each iteration starts from into a buffer as long as the longest loop; the backward loop runs from the last to the first
and pulls the cotangent back through one iteration at a time, which it runs again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._tree import is_inexact, strong

Body: TypeAlias = Callable[[Any, Any, Any], tuple[Any, jax.Array]]  # (params, fixed, x) -> (x, loss)
Leaves: TypeAlias = list[Any]


class Split(NamedTuple):
    """A tree in two: the leaves that have a derivative, and the others."""

    floats: Leaves
    others: Leaves


def loop(body: Body, params: Any, fixed: Any, x: Any, *, depth: Any, longest: int) -> tuple[Any, jax.Array]:
    """Run `x, loss = body(params, fixed, x)` for `depth` iterations; return the last x and the sum of the losses.

    The derivative in reverse mode is with respect to params and the first x. Time is that of `depth` iterations, and as many
    again with their pullback; memory that of `longest` x and of one iteration.

    Args:
        body: one iteration, which keeps x's structure, shapes and dtypes, and returns a floating scalar.
        params: what is trained.
        fixed: what all iterations share and nothing is derived by.
        x: what the first iteration starts from.
        depth: the number of iterations, which may be traced; at most `longest`, or the gradient is wrong.
        longest: rows of the buffer.

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
    return _loop(_Parts(body, layout, shape), longest, first, rest, jax.lax.stop_gradient(fixed), now, state, depth)


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
    def iterate(t: Any, carry: Any) -> Any:
        x, state, total, rows = carry
        rows = jax.tree.map(lambda row, leaf: row.at[t].set(leaf), rows, (x, state))
        (x, loss), state = parts.run(params, rest, fixed, x, state)
        return x, state, total + loss, rows

    rows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (longest, *leaf.shape)), (x, state))
    begin = (x, state, _zero(parts, params, rest, fixed, x, state), rows)
    x, state, total, rows = jax.lax.fori_loop(0, depth, iterate, begin)
    return (parts.x.join(x, state), total), (params, rest, fixed, rows, depth)


def _backward(parts: _Parts, longest: int, kept: Any, cotangent: Any) -> Any:
    params, rest, fixed, rows, depth = kept
    after, loss = cotangent
    x = [leaf for leaf, here in zip(jax.tree.leaves(after), parts.x.floats, strict=True) if here]

    def iterate(done: Any, carry: Any) -> Any:
        x, grad = carry
        before, state = jax.tree.map(lambda row: row[depth - 1 - done], rows)
        run = lambda params, x: parts.run(params, rest, fixed, x, state)[0]
        part, x = jax.vjp(run, params, before)[1]((x, loss))
        return x, jax.tree.map(jnp.add, grad, part)

    x, grad = jax.lax.fori_loop(0, depth, iterate, (x, jax.tree.map(jnp.zeros_like, params)))
    return grad, None, None, x, None, None


_loop.defvjp(_forward, _backward)


def _zero(parts: _Parts, params: Leaves, rest: Leaves, fixed: Any, x: Leaves, state: Leaves) -> jax.Array:
    loss = jax.eval_shape(parts.run, params, rest, fixed, x, state)[0][1]
    return jnp.zeros(loss.shape, loss.dtype)
