"""A state as one real vector of what moves: its floating numbers, without what a step hands on as it is."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._tree import is_inexact, ravel
from unrollax._types import Key, Params, State, System

Moving: TypeAlias = tuple[bool, ...]  # by leaf of the state


def moving_of(system: System, params: Params, state: State, x: Any, key: Key) -> Moving:
    """Return which leaves of a state are floating numbers that a step computes anew.

    A leaf that comes out of the trace as it went in, such as the problem that is being solved, is a constant; were it part of
    s, then ds'/ds would have the eigenvalue 1.
    """
    traced = jax.make_jaxpr(lambda state: system.step(params, state, x, key)[0])(state).jaxpr
    pairs = zip(jax.tree.leaves(state), traced.invars, traced.outvars, strict=True)
    return tuple(is_inexact(leaf) and before is not after for leaf, before, after in pairs)


def vector_of(state: State, moving: Moving) -> jax.Array:
    """Return the numbers that move as one real vector, complex ones as two."""
    return ravel(_reals(state, moving))[0]


def with_vector(state: State, moving: Moving, vector: jax.Array) -> State:
    """Put new numbers into a state."""
    parts = iter(ravel(_reals(state, moving))[1](vector)[1:])
    leaves, treedef = jax.tree.flatten(state)

    def renew(leaf: Any) -> Any:
        return jax.lax.complex(next(parts), next(parts)) if jnp.iscomplexobj(leaf) else next(parts)

    new = [renew(leaf) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)]
    return jax.tree.unflatten(treedef, new)


def _reals(state: State, moving: Moving) -> list[jax.Array]:
    leaves = [leaf for leaf, moves in zip(jax.tree.leaves(state), moving, strict=True) if moves]
    parts = [[leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf] for leaf in leaves]
    return [jnp.zeros(0, jnp.float32), *(part for pair in parts for part in pair)]
