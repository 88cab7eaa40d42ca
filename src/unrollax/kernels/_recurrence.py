"""A linear recurrence h' = a h + b, elementwise, with its backward pass by hand."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from unrollax._check import check_choice
from unrollax._errors import StructureError
from unrollax._linear import linear_by_transpose
from unrollax._tree import where

METHODS = ("scan", "associative")


def linear_recurrence(
    a: Any, b: Any, start: Any, *, mask: Any = None, method: Literal["scan", "associative"] = "scan"
) -> tuple[jax.Array, jax.Array]:
    """Return the last and all h of h' = a h + b, elementwise, real or complex.

    The backward pass is the same recurrence against the time, and keeps a and h alone.

    Args:
        a: factors `[T, ...]`.
        b: what is added, `[T, ...]` like a.
        start: h before the first step, `[...]`.
        mask: booleans `[T]` and any of the leading axes after it; a step where it is false leaves h as it was.
        method: "scan" goes step by step, the faster way on a CPU; "associative" computes all steps in a tree of depth
            log2 T, for accelerators that a step would not fill.

    Raises:
        InvalidArgument: method is neither.
        StructureError: the shapes of a, b, start and mask don't agree.

    Example:
        >>> linear_recurrence(jnp.full(3, 0.5), jnp.ones(3), jnp.zeros(()))[1]
        Array([1.  , 1.5 , 1.75], dtype=float32)

    References: Blelloch, CMU-CS-90-190, 1990 (as a scan); Martin and Cundy, ICLR 2018.
    """
    check_choice("linear_recurrence", "method", method, METHODS)
    a, b, start = (jnp.asarray(leaf) for leaf in (a, b, start))
    if a.shape != b.shape or a.shape[1:] != start.shape or not a.ndim:
        raise StructureError(
            "linear_recurrence: a and b must be [T, ...] and start [...], got "
            f"{list(a.shape)}, {list(b.shape)} and {list(start.shape)}. Broadcast them first."
        )
    dtype = jnp.result_type(a, b, start)
    a, b, start = (leaf.astype(dtype) for leaf in (a, b, start))
    if mask is not None:
        mask = jnp.asarray(mask).astype(bool)
        if not mask.ndim or mask.shape != a.shape[: mask.ndim]:
            raise StructureError(
                f"linear_recurrence: mask must be [T] and leading axes of a, {list(a.shape)}, got {list(mask.shape)}. Give "
                "one boolean for each step."
            )
        a, b = where(mask, (a, b), (jnp.ones_like(a), jnp.zeros_like(b)))
    return _recur(method, a, b, start)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recur(method: str, a: jax.Array, b: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    outputs = _run(method, a, b, start)
    return jnp.concatenate([start[None], outputs])[-1], outputs


@_recur.defjvp
def _recur_jvp(method: str, primals: Any, tangents: Any) -> tuple[Any, Any]:
    a, _, start = primals
    last, outputs = _recur(method, *primals)
    before = jnp.concatenate([start[None], outputs])[:-1]
    return (last, outputs), linear_by_transpose(partial(_pull, method), (a, before), tangents, (last, outputs))


def _pull(method: str, residuals: Any, cotangents: Any) -> Any:
    """Return the cotangents of a, b and start: g = out + a' g', where ' is the step after."""
    (a, before), (last, outputs) = residuals, cotangents
    following = jnp.concatenate([a, jnp.ones_like(last)[None]])[1:]
    g = _run(method, following, outputs, last, reverse=True)
    first = jnp.concatenate([a * g, last[None]])[0]
    return g * before, g, first


def _run(method: str, a: jax.Array, b: jax.Array, start: jax.Array, *, reverse: bool = False) -> jax.Array:
    if method == "associative" and a.shape[0]:
        end = -1 if reverse else 0
        b = b.at[end].add(a[end] * start)
        return jax.lax.associative_scan(_compose, (a, b), reverse=reverse)[1]

    def step(h: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h = row[0] * h + row[1]
        return h, h

    return jax.lax.scan(step, start, (a, b), reverse=reverse)[1]


def _compose(early: Any, late: Any) -> Any:
    """Return the map that runs `early`, then `late`."""
    return early[0] * late[0], late[0] * early[1] + late[1]
