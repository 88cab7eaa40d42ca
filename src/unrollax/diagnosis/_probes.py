"""Norms of the gradients of many losses with respect to weights, by what goes into and comes out of their products.

Where a weight W enters a function by one product, y = x W, the gradient of a loss with respect to it is x^T d, with d the
gradient with respect to y: [N, D]^T [N, F]. For one example its norm is ||x|| ||d||, without the D F numbers; for more, the
losses share one product of matrices, where `vmap` would make a small one for each.

The products are found in the traced function; a weight that is used otherwise, or twice, gets its gradient in full. To
reshape or transpose a weight first does not matter to a norm. (The same idea gives norms by example in differentially
private training: Goodfellow, 2015, Efficient per-example gradient computations.)

Not by the triangular factor of x^T = Q R, which would make ||x^T d|| = ||R d|| cheaper for 1 < N < D: in jax 0.10.2 on the
CPU, a product of R with a constant 0 is now and then NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

Leaves = Sequence[Any]
CALLS = ("jit", "pjit", "closed_call", "core_call")
SAME_NORM = ("reshape", "transpose")


class Weight(NamedTuple):
    """A leaf of params on its way through a program, whole: its index, and its numbers in some order."""

    leaf: int
    numbers: Any


class Product(NamedTuple):
    """What a probe saw: the axes of the other factor and of the product, to turn both to matrices.

    Attributes:
        x: the other factor, whose last axes are contracted, `[N, D]`.
        first: whether the weight's own axes come first in the product.
        rows: N.
    """

    x: jax.Array
    first: bool
    rows: int

    def norms(self, cotangents: jax.Array) -> jax.Array:
        """Return the norms `[B]` of the gradients for cotangents `[B, ...]` of the product."""
        count = len(cotangents)
        if self.rows == 1:
            return norm(self.x)[0] * norm(cotangents)
        others = cotangents[0].size // self.rows
        shape = (count, others, self.rows) if self.first else (count, self.rows, others)
        product = jnp.tensordot(self.x, cotangents.reshape(shape), ((0,), (2 if self.first else 1,)))  # [D, B, F]
        return norm(product.swapaxes(0, 1))


def norm(rows: jax.Array) -> jax.Array:
    """Return the Euclidean norms of rows `[B, ...]`, whose squares may under- and overflow."""
    flat = jnp.abs(rows.reshape(len(rows), -1))
    largest = flat.max(-1, initial=0)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.sqrt(jnp.square(flat / unit[:, None]).sum(-1))


class Probed(NamedTuple):
    """A function of params whose products with weights carry probes; see `probe`.

    Attributes:
        leaves: indices of the leaves of params that have a probe.
        probes: shapes of the probes, in the same order.
        call: `call(probes, leaves, *args) -> (outputs, products)`.
    """

    leaves: tuple[int, ...]
    probes: tuple[jax.ShapeDtypeStruct, ...]
    call: Callable[..., Any]


def probe(function: Callable[..., Any], leaves: Leaves, *args: Any) -> Probed:
    """Find in `function(leaves, *args)` where a leaf is used once, in a product, and return it with zeros added there.

    Args:
        function: a traceable function of a list of arrays and more, that returns a tree.
        leaves: the list, or its shapes.
        args: its other arguments, or their shapes.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(leaves, *args)
    tree = jax.tree.structure(shape)
    walk = _Walk(None)
    jax.eval_shape(lambda *flat: walk.run(closed, _start(flat, len(leaves))), *jax.tree.leaves((leaves, args)))
    found = tuple(sorted(leaf for leaf, uses in walk.uses.items() if uses == 1 and leaf in walk.shapes))

    def call(probes: Leaves, leaves: Leaves, *args: Any) -> tuple[Any, list[Product]]:
        walk = _Walk(dict(zip(found, probes, strict=True)))
        out = walk.run(closed, _start(jax.tree.leaves((leaves, args)), len(leaves)))
        return jax.tree.unflatten(tree, out), [walk.products[leaf] for leaf in found]

    return Probed(found, tuple(walk.shapes[leaf] for leaf in found), call)


def _start(flat: Leaves, count: int) -> list[Any]:
    return [Weight(i, leaf) for i, leaf in enumerate(flat[:count])] + list(flat[count:])


class _Walk:
    """One run through a program: with probes to add, or `None` to find out where they can be."""

    def __init__(self, probes: dict[int, Any] | None) -> None:
        self.probes = probes
        self.uses: Counter[int] = Counter()
        self.shapes: dict[int, jax.ShapeDtypeStruct] = {}
        self.products: dict[int, Product] = {}

    def run(self, closed: Any, args: Leaves) -> list[Any]:
        """Return the outputs of a program, whose weights are followed from `args`."""
        jaxpr = closed.jaxpr
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else env[atom]

        for equation in jaxpr.eqns:
            results = self._step(equation, [read(atom) for atom in equation.invars])
            env |= dict(zip(equation.outvars, results, strict=True))
        return [self._plain(read(atom)) for atom in jaxpr.outvars]

    def _step(self, equation: Any, args: list[Any]) -> list[Any]:
        name = equation.primitive.name
        weights = [arg for arg in args if isinstance(arg, Weight)]
        if name in CALLS and weights:
            return self.run(equation.params["jaxpr"], args)
        if name in SAME_NORM and len(args) == 1 and weights:
            return [Weight(weights[0].leaf, _bind(equation, [weights[0].numbers])[0])]
        if name == "dot_general" and len(weights) == 1 and _fits(equation, weights[0]):
            return [self._multiply(equation, args, weights[0])]
        return _bind(equation, [self._plain(arg) for arg in args])

    def _plain(self, arg: Any) -> Any:
        """Use a weight in another way than in a product."""
        if not isinstance(arg, Weight):
            return arg
        self.uses[arg.leaf] += 2  # more than the one that a probe can stand for
        return arg.numbers

    def _multiply(self, equation: Any, args: list[Any], weight: Weight) -> Any:
        first = isinstance(args[0], Weight)
        x = args[1] if first else args[0]
        (out,) = _bind(equation, [weight.numbers, x] if first else [x, weight.numbers])
        self.uses[weight.leaf] += 1
        self.shapes[weight.leaf] = jax.ShapeDtypeStruct(out.shape, out.dtype)
        if self.probes is None or weight.leaf not in self.probes:
            return out
        contracted = equation.params["dimension_numbers"][0][1 if first else 0]
        free = [axis for axis in range(x.ndim) if axis not in contracted]
        rows = math.prod(x.shape[axis] for axis in free)
        matrix = x.transpose(*free, *contracted).reshape(rows, -1)
        self.products[weight.leaf] = Product(matrix, first, rows)
        return out + self.probes[weight.leaf]


def _fits(equation: Any, weight: Weight) -> bool:
    """Whether the gradient by the weight is all of x^T d: for a real weight in a complex product it is the real part."""
    complex_product = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.complexfloating)
    batch = any(equation.params["dimension_numbers"][1])
    return not batch and complex_product == jnp.iscomplexobj(weight.numbers)


def _bind(equation: Any, args: list[Any]) -> list[Any]:
    with equation.ctx.manager:
        out = equation.primitive.bind(*args, **equation.primitive.get_bind_params(equation.params))
    return list(out) if equation.primitive.multiple_results else [out]
