"""Products of a system's step Jacobians along its trajectory, as an orthonormal basis and the logarithms of its growth."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._system import checked_step, is_repeat
from unrollax._tree import Static, combine, is_inexact, partition, ravel, strong
from unrollax._types import Data, Key, Params, State, System


class Plan(NamedTuple):
    """What a run measures, known before it is compiled.

    Attributes:
        owner: whom messages name.
        steps: steps of the trajectory.
        burn_in: the steps before the growth counts: there is a QR after the last of them.
        every: steps from one QR to the next.
        points: how many step Jacobians to return.
        product: whether to keep the product of all steps too.
    """

    owner: str
    steps: int
    burn_in: int = 0
    every: int = 1
    points: int = 0
    product: bool = False

    @property
    def stride(self) -> int:
        """Steps from one returned Jacobian to the next."""
        return -(-self.steps // max(self.points, 1))


class Paths(NamedTuple):
    """What is pushed along: one row an example.

    Attributes:
        states: leaves `[m, ...]`, the states to start from.
        data: leaves `[m, steps, ...]`, `repeat(x)` with leaves `[m, ...]`, or `None`.
        keys: `[m, steps]`.
        basis: `[n, k]`, the orthonormal columns that all examples start with.
        read: `[h, n]`, h >= k, what the product is multiplied by from the left; `None` for the identity.
    """

    states: State
    data: Data
    keys: Key
    basis: jax.Array
    read: jax.Array | None = None


class Product(NamedTuple):
    """The singular values of a product, in the upper triangular matrix exp(`logs`)[:, None] * `unit`.

    Attributes:
        logs: `[k]`, which may be far outside of what exp could return.
        unit: `[k, k]`, upper triangular with 1 or -1 on the diagonal.
    """

    logs: Any  # JAX's arrays inside of the loop, NumPy's outside
    unit: Any


class Track(NamedTuple):
    """What came of it.

    Attributes:
        logs: `[m, steps, k]`, log |R_ii| of the QR after that step; 0 where there was none.
        finite: `[m, steps]`, whether the state and the columns were finite after that step.
        product: of all steps from the basis on, leaves `[m, ...]`; `None` unless it was asked for.
        jacobians: `[m, points, n, n]`, of single steps; `None` unless they were asked for.
    """

    logs: Any
    finite: Any
    product: Product | None
    jacobians: Any


def floats(state: State) -> tuple[jax.Array, Callable[[jax.Array], State]]:
    """Return the floating numbers of a state as one vector, complex ones as two, and what puts such a vector back.

    All else, such as counters and keys, is a constant of the step.
    """
    leaves, treedef = jax.tree.flatten(state)
    split = [(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf for leaf in leaves if is_inexact(leaf)]
    vector, unravel = ravel(split)

    def rebuild(vector: jax.Array) -> State:
        parts = iter(unravel(vector))
        whole = [next(parts) if is_inexact(leaf) else leaf for leaf in leaves]
        return jax.tree.unflatten(treedef, [jax.lax.complex(*p) if isinstance(p, tuple) else p for p in whole])

    return vector, rebuild


def lengths(columns: jax.Array) -> jax.Array:
    """Return the lengths of columns, whose squares may be no floating numbers."""
    largest = jnp.abs(columns).max(0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.linalg.norm(columns / scale[None], axis=0)


def orthonormal(columns: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return Q and R of a QR factorization, and log |R_ii|.

    An R_ii that is nothing but the rounding of its column is 0, and its logarithm -inf: that direction is forgotten. Q has
    orthonormal columns all the same.
    """
    sizes = lengths(columns)
    if columns.shape[1] == 1:
        length = sizes[None]
        unit = jnp.zeros_like(columns).at[0].set(1)
        return jnp.where(length > 0, columns / jnp.where(length > 0, length, 1), unit), length, jnp.log(sizes)
    q, r = jnp.linalg.qr(columns)
    diagonal = jnp.abs(jnp.diagonal(r))
    noise = 4 * math.sqrt(len(columns)) * np.finfo(columns.dtype).eps * sizes
    return q, r, jnp.log(jnp.where(diagonal <= noise, 0, diagonal))


def multiply(product: Product, r: jax.Array) -> Product:
    """Multiply by an upper triangular matrix from the left. A 0 on its diagonal counts as the rounding of its column."""
    diagonal, kind = jnp.diagonal(r), np.finfo(r.dtype)
    least = kind.eps * lengths(r) + kind.tiny
    signs, sizes = jnp.where(diagonal < 0, -1, 1), jnp.maximum(jnp.abs(diagonal), least)
    apart = jnp.minimum(product.logs[None, :] - product.logs[:, None], 0.5 * math.log(kind.max))
    scaled = jnp.triu(r / sizes[:, None], 1) * jnp.exp(apart) + jnp.diag(signs.astype(r.dtype))
    return Product(product.logs + jnp.log(sizes), scaled @ product.unit)


def push(system: System, params: Params, paths: Paths, plan: Plan) -> Track:
    """Push the columns along every example's trajectory, by one compiled loop a structure; the result is NumPy's."""
    arrays, rest = partition((system, params, paths))
    out: Track = jax.tree.map(np.asarray, _push(arrays, rest, plan))
    return out


@functools.partial(jax.jit, static_argnums=(1, 2))
def _push(arrays: list[Any], rest: Static, plan: Plan) -> Track:
    system, params, paths = combine(arrays, rest)

    def one(state: State, data: Data, keys: Key) -> Track:
        return _follow(system, params, paths._replace(states=strong(state), data=data, keys=keys), plan)

    return jax.vmap(one)(paths.states, paths.data, paths.keys)


def _follow(system: System, params: Params, paths: Paths, plan: Plan) -> Track:
    """Run one example. Of each stretch of `stride` steps the last state stays, as the point of a Jacobian."""
    moving, see = seer(paths.data)

    def advance(state: State, now: tuple[Any, Key]) -> tuple[jax.Array, Callable[..., Any], State]:
        """Return the next state, and what pushes a column there."""
        vector, rebuild = floats(state)

        def function(vector: jax.Array) -> tuple[jax.Array, State]:
            after = checked_step(plan.owner, system, params, rebuild(vector), see(now[0]), now[1])[0]
            return floats(after)[0], after

        out: tuple[jax.Array, Callable[..., Any], State] = jax.linearize(function, vector, has_aux=True)
        return out

    def body(carry: tuple[Any, ...], now: tuple[Any, Any, Key]) -> tuple[tuple[Any, ...], tuple[jax.Array, jax.Array]]:
        t, row, key = now
        state, columns, product, kept = carry
        kept = jax.tree.map(
            lambda rows, leaf: put(rows, leaf, t // plan.stride, 0), kept, state if plan.points else None
        )
        vector, tangent, state = advance(state, (row, key))
        columns = jax.vmap(tangent, 1, 1)(columns)
        finite = jnp.isfinite(vector).all() & jnp.isfinite(columns).all()
        columns, product, logs = _factor(columns, product, t, plan)
        return (state, columns, product, kept), (logs, finite)

    put, (last, kept) = jax.lax.dynamic_update_index_in_dim, _places(paths.states, plan)
    rows, empty = (jnp.arange(plan.steps), moving, paths.keys), _empty(paths.basis, plan)
    (_, basis, product, kept), (logs, finite) = jax.lax.scan(body, (paths.states, paths.basis, empty, kept), rows)
    if product is not None and paths.read is not None:
        product = multiply(product, jnp.linalg.qr(paths.read @ basis)[1])
    if not plan.points:
        return Track(logs, finite, product, None)

    def jacobian(point: tuple[State, Any]) -> jax.Array:
        vector, tangent, _ = advance(*point)
        out: jax.Array = jax.vmap(tangent, 1, 1)(jnp.eye(vector.size, dtype=vector.dtype))
        return out

    seen = jax.tree.map(lambda leaf: leaf[last], (moving, paths.keys))
    return Track(logs, finite, product, jax.lax.map(jacobian, (kept, seen)))


def _empty(basis: jax.Array, plan: Plan) -> Product | None:
    """Return the product of no step."""
    count, dtype = basis.shape[1], basis.dtype
    return Product(jnp.zeros(count, dtype), jnp.eye(count, dtype=dtype)) if plan.product else None


def _places(state: State, plan: Plan) -> tuple[np.ndarray, State]:
    """Return the last step of each stretch, and room for the state before it."""
    last = np.minimum(np.arange(plan.stride, plan.steps + plan.stride, plan.stride), plan.steps) - 1
    room = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(last), *leaf.shape)), state)
    return last, room if plan.points else None


def _factor(
    columns: jax.Array, product: Product | None, t: jax.Array, plan: Plan
) -> tuple[jax.Array, Product | None, jax.Array]:
    """Make the columns orthonormal again, where it is due, and return by how much they had grown."""

    def factor(columns: jax.Array, product: Product | None) -> tuple[jax.Array, Product | None, jax.Array]:
        q, r, logs = orthonormal(columns)
        return q, product if product is None else multiply(product, r), logs

    if plan.every == 1:
        return factor(columns, product)
    due = ((t + 1) % plan.every == 0) | (t == plan.burn_in - 1) | (t == plan.steps - 1)
    none = jnp.zeros(columns.shape[1], columns.dtype)
    out: tuple[jax.Array, Product | None, jax.Array]
    out = jax.lax.cond(due, factor, lambda columns, product: (columns, product, none), columns, product)
    return out


def seer(data: Data) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Return the leaves with a time axis, and what makes one step's x of a row of them."""
    leaves, treedef = jax.tree.flatten(data, is_leaf=is_repeat)
    moving = [None if is_repeat(leaf) else leaf for leaf in leaves]

    def see(row: list[Any]) -> Any:
        seen = [leaf.x if is_repeat(leaf) else part for leaf, part in zip(leaves, row, strict=True)]
        return jax.tree.unflatten(treedef, seen)

    return moving, see
