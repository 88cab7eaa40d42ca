"""The engine of the kernels: a recurrent layer over a whole sequence, with its backward pass derived by hand.

Autodiff of a scan accumulates the gradients of the weights step by step, and keeps every value that a step computed. Here
the backward pass runs only the recurrence of the cotangents, from coefficients that the forward pass has left, and forms the
gradients of the weights in one matrix product for each piece of the sequence. A piece is short enough for its values to stay
in cache.

    forward   z = project(x)                    a piece at a time, one product
              carry, kept = forward(carry, z)   step by step; kept is all that the derivative of the step needs
    backward  carry', dz = backward(carry', kept, h)
              weights', x' = gradients(dz)      a piece at a time, one product each

The same coefficients give forward mode: see `unrollax._linear`. All of this is JAX code, so second derivatives go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._linear import linear_by_transpose
from unrollax._tree import where

Weights: TypeAlias = dict[str, jax.Array]
Carry: TypeAlias = tuple[jax.Array, ...]  # (h, ...), leaves [N, H]

PIECE_BYTES = 2_000_000  # of coefficients: about what a core's cache holds
SHORTEST, LONGEST = 16, 64  # steps of a piece


class Layer(NamedTuple):
    """A recurrent layer by hand; its output is `h`, the first part of the carry.

    Attributes:
        gates: how many times H the pre-activations are wide.
        prepare: `prepare(params)` returns what the other functions need of the parameters.
        project: `project(weights, x)` is the part of the pre-activations that doesn't depend on the carry, for many steps.
        forward: `forward(weights, carry, z)` returns the next carry, and the coefficients of its derivative.
        backward: `backward(weights, cotangent of the next carry, coefficients, next h)` returns the carry's, and dz.
        gradients: `gradients(params, x, before, dz)` returns the gradients of the parameters, summed over a piece, and of x;
            `before` is h before each step.
    """

    gates: int
    prepare: Callable[[Weights], Any]
    project: Callable[[Any, jax.Array], jax.Array]
    forward: Callable[[Any, Carry, jax.Array], tuple[Carry, Any]]
    backward: Callable[[Any, Carry, Any, jax.Array], tuple[Carry, Any]]
    gradients: Callable[[Weights, jax.Array, jax.Array, Any], tuple[Weights, jax.Array]]


class Pieces(NamedTuple):
    """A sequence that is cut: `full` has leaves `[count, piece, ...]`, `rest` the remaining steps, `[steps, ...]`."""

    full: Any
    rest: Any


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return `a @ b` for a matrix b, accumulated in at least float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the sum over steps and examples of the outer products of two sequences, as one matrix product.

    Not by `einsum`: contracting two axes took 2.5 times as long on a CPU.
    """
    return product(a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]))


def with_transposed(params: Weights) -> Weights:
    """Add the transpose of wh, which every step of the backward pass multiplies with."""
    return {**params, "wh_transposed": params["wh"].T}


def project(weights: Weights, x: jax.Array) -> jax.Array:
    """Return x wx + b for many steps, as one product."""
    flat = product(x.reshape(-1, x.shape[-1]), weights["wx"]) + weights["b"][None]
    return flat.reshape(*x.shape[:-1], -1)


def affine_gradients(params: Weights, x: jax.Array, before: jax.Array, dz: jax.Array) -> tuple[Weights, jax.Array]:
    """Return the gradients of wx, wh, b and x of z = x wx + h wh + b."""
    narrow = dz.astype(x.dtype)
    weights = {"wx": outer(x, narrow), "wh": outer(before, narrow), "b": dz.sum((0, 1))}
    return weights, product(narrow, params["wx"].T)


def wide(dtype: Any) -> Any:
    """Return the dtype of sums and of the recurrence itself."""
    return jnp.promote_types(dtype, jnp.float32)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def recur(
    layer: Layer, piece: int, params: Weights, x: jax.Array, carry: Carry, mask: jax.Array | None
) -> tuple[Carry, jax.Array]:
    """Run a layer over `x [T, N, D]`; return the last carry and the outputs `[T, N, H]`. All arrays have one dtype."""
    carry, parts = _forward(layer, piece, params, x, carry, mask, keep=False)
    return carry, _outputs(parts)


@recur.defjvp
def _recur_jvp(layer: Layer, piece: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    params, x, carry, mask = primals
    after, parts = _forward(layer, piece, params, x, carry, mask, keep=True)
    out = (after, _outputs(parts))
    residuals = (params, x, mask, parts)
    return out, linear_by_transpose(partial(_pull, layer, piece), residuals, tangents[:3], out)


def _forward(
    layer: Layer, piece: int, params: Weights, x: jax.Array, carry: Carry, mask: Any, *, keep: bool
) -> tuple[Carry, Pieces]:
    """Return the last carry, and for each piece its outputs, the coefficients, and h before it."""
    weights, dtype = layer.prepare(params), x.dtype
    narrow = partial(_cast, dtype=dtype)

    def step(carry: Carry, row: Any) -> tuple[Carry, Any]:
        z, on = row
        after, kept = layer.forward(weights, carry, z)
        after = after if on is None else where(on, after, carry)
        return after, narrow((after[0], kept if keep else ()))

    def run(carry: Carry, rows: Any) -> tuple[Carry, Any]:
        x, on = rows
        after, (outputs, kept) = jax.lax.scan(step, carry, (layer.project(weights, x), on))
        return after, (outputs, kept, narrow(carry[0]))

    after, parts = _scan(run, _cast(carry, wide(dtype)), _cut((x, mask), piece))
    return narrow(after), parts


def _pull(layer: Layer, piece: int, residuals: Any, cotangents: Any) -> Any:
    """Return the cotangents of params, x and the carry: the backward pass."""
    params, x, mask, parts = residuals
    weights = layer.prepare(params)
    last, outputs = _cast(cotangents, wide(x.dtype))

    def step(after: Carry, row: Any) -> tuple[Carry, Any]:
        out, kept, h, on = row
        after = (after[0] + out, *after[1:])
        before, dz = layer.backward(weights, after, kept, h)
        if on is not None:
            before, dz = where(on, (before, dz), (after, jax.tree.map(jnp.zeros_like, dz)))
        return before, dz

    def run(carry: Any, rows: Any) -> tuple[Any, jax.Array]:
        (after, sums), (x, on, out, (h, kept, start)) = carry, rows
        before, dz = jax.lax.scan(step, after, (out, kept, h, on), reverse=True)
        some, dx = layer.gradients(params, x, jnp.concatenate([start[None], h[:-1]]), dz)
        return (before, jax.tree.map(jnp.add, sums, some)), dx.astype(x.dtype)

    rows = [_cut(leaf, piece) for leaf in (x, mask, outputs)]
    together = Pieces(*(None if each[0] is None else each for each in zip(*rows, parts, strict=True)))
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), params)
    (before, sums), dx = _scan(run, (last, sums), together, reverse=True)
    return _cast(sums, x.dtype), _join(dx), _cast(before, x.dtype)


def _outputs(parts: Pieces) -> jax.Array:
    return _join(Pieces(*(None if part is None else part[0] for part in parts)))


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _cut(tree: Any, piece: int) -> Pieces:
    """Cut leaves `[T, ...]`."""
    if tree is None:
        return Pieces(None, None)
    steps = jax.tree.leaves(tree)[0].shape[0]
    count, rest = divmod(steps, piece)
    end = count * piece

    def full(leaf: jax.Array) -> jax.Array:
        return leaf[:end].reshape(count, piece, *leaf.shape[1:])

    return Pieces(jax.tree.map(full, tree) if count else None, jax.tree.map(lambda a: a[end:], tree) if rest else None)


def _join(parts: Pieces) -> Any:
    """Undo `_cut`."""
    full = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts.full)
    if full is None or parts.rest is None:
        return parts.rest if full is None else full
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), full, parts.rest)


def _scan(
    run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Pieces, *, reverse: bool = False
) -> tuple[Any, Pieces]:
    """Run every piece in the order of time, or against it."""
    done: dict[str, Any] = {}
    for name in ("rest", "full") if reverse else ("full", "rest"):
        part = getattr(rows, name)
        if part is None:
            done[name] = None
        elif name == "full":
            carry, done[name] = jax.lax.scan(run, carry, part, reverse=reverse)
        else:
            carry, done[name] = run(carry, part)
    return carry, Pieces(**done)
