"""What cells, readouts and losses check of their arguments while they are traced: shapes and dtypes, never numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe


def check_part(owner: str, role: str, part: Any, methods: dict[str, str], remedy: str) -> None:
    """Raise unless a part of a network is an object with the methods, `{name: how it is called}`."""
    lacking = [name for name in methods if not callable(getattr(part, name, None))]
    if not lacking and not isinstance(part, type):
        return
    lack = f"{type(part).__name__} without {' and '.join(lacking)}"
    got = f"the class {part.__name__} and no object of it" if isinstance(part, type) else lack
    *most, last = methods.values()
    raise InvalidArgument(f"{owner}: {role} must have {', '.join(most)} and {last}, got {got}. {remedy}")


def check_cell(owner: str, cell: Any, role: str = "a cell") -> None:
    """Raise unless something is a cell."""
    methods = {"params": "params(key)", "init": "init(params)", "step": "step(params, state, x)"}
    remedy = "Take LSTMCell(inputs, hidden), or wrap a module by equinox_cell or flax_cell."
    check_part(owner, role, cell, methods, remedy)


def check_array(owner: str, name: str, got: Any) -> jax.Array:
    """Return an array; raise if it is a list, a dict or another tree."""
    if not jax.tree_util.all_leaves([got]) or not (hasattr(got, "shape") or isinstance(got, (bool, int, float))):
        raise StructureError(f"{owner}: {name} must be one array, got {describe(got)}. Pass jnp.asarray of it.")
    return jnp.asarray(got)


def check_x(owner: str, size: int, x: Any) -> jax.Array:
    """Return one step of one example as an array; raise unless it is `[size]`."""
    x = check_array(owner, "x", x)
    if x.shape == (size,):
        return x
    if x.ndim > 1 and x.shape[-1] == size:
        remedy = "A step is that of one example: for many take unrollax.batched(system, n), or jax.vmap the step."
    elif jnp.issubdtype(x.dtype, jnp.integer) and size > 1:
        remedy = (
            "For codes pass recurrent an encode, such as functools.partial(jax.nn.one_hot, num_classes="
            f"{size}); for many examples take unrollax.batched(system, n)."
        )
    elif not x.ndim:
        remedy = "Give it an axis of features: x[..., None]."
    else:
        remedy = f"Make inputs={x.shape[-1]}, or for many examples take unrollax.batched(system, n)."
    raise StructureError(f"{owner}: x must be one step of one example, [{size}], got {describe(x)}. {remedy}")


def check_output(owner: str, size: int, h: Any) -> jax.Array:
    """Return what a readout reads as an array; raise unless its last axis is `size`."""
    h = check_array(owner, "h", h)
    if h.shape[-1:] != (size,):
        fits = h.shape[-1] if h.ndim else 1
        raise StructureError(
            f"{owner}: h must have the {size} components of inputs={size}, got {describe(h)}. "
            f"Take {owner}(inputs={fits}, ...), the size of what the cell gives out."
        )
    return h


def as_state(after: Any, before: Any) -> Any:
    """Return a state with the dtypes of the one before it: what a step reads may be wider, the state must not become so."""

    def narrow(new: jax.Array, old: Any) -> jax.Array:
        kind = jnp.result_type(old)
        return new.astype(kind) if jnp.issubdtype(kind, jnp.floating) else new

    return jax.tree.map(narrow, after, before)
