"""Small helpers on pytrees: paths for messages, arrays that cross a boundary, leading axes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import StructureError

Unravel = Callable[[jax.Array], Any]


def leaves_with_names(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Return (path, leaf) for each leaf, with paths such as `['cell']['wx']`; a lone leaf is called `(root)`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return [(jax.tree_util.keystr(path) or "(root)", leaf) for path, leaf in flat]


def describe(leaf: Any) -> str:
    """Return `float32[3,4]` for a number or an array, and the type's name for anything else."""
    if not is_numeric(leaf) and not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype if hasattr(leaf, 'dtype') else jnp.result_type(leaf)}{list(jnp.shape(leaf))}".replace(" ", "")


def is_numeric(leaf: Any) -> bool:
    """Whether a leaf is an array or a Python number, and so can be traced."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key array."""
    return isinstance(leaf, jax.Array) and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf carries real or complex floating numbers."""
    return is_numeric(leaf) and not is_key(leaf) and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def strong(tree: Any) -> Any:
    """Make every leaf an array of its own dtype without JAX's weak type, so that a state is a fixed point."""
    return jax.tree.map(
        lambda leaf: leaf if is_key(leaf) else jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree
    )


def where(flag: jax.Array, new: Any, old: Any) -> Any:
    """Choose between two trees by a boolean whose axes are leading axes of every leaf."""

    def choose(a: Any, b: Any) -> Any:
        return jnp.where(flag.reshape(flag.shape + (1,) * (jnp.ndim(a) - flag.ndim)), a, b)

    return jax.tree.map(choose, new, old)


def ravel(tree: Any) -> tuple[jax.Array, Unravel]:
    """Return the numbers of a tree of real arrays as one vector, of at least float32, and what turns such a vector back."""
    leaves, treedef = jax.tree.flatten(tree)
    dtype = jnp.result_type(jnp.float32, *leaves)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]

    def unravel(vector: jax.Array) -> Any:
        parts = jnp.split(vector, ends)
        return jax.tree.unflatten(
            treedef,
            [part.reshape(shape).astype(kind) for part, (shape, kind) in zip(parts, shapes, strict=True)],
        )

    return jnp.concatenate([leaf.ravel().astype(dtype) for leaf in leaves]), unravel


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of every floating leaf is finite, as a scalar boolean."""
    checks = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return jnp.stack(checks).all() if checks else jnp.array(True)


class Static(NamedTuple):
    """The part of a tree that no array holds: its structure and its other leaves. Hashable, so `jit` can key on it."""

    treedef: Any
    others: tuple[Hashable, ...]


def partition(tree: Any) -> tuple[list[Any], Static]:
    """Split a tree into what can be traced and what must stay: Python's whole numbers too, as they may be shapes."""
    leaves, treedef = jax.tree.flatten(tree)
    moves = [is_numeric(leaf) and not isinstance(leaf, (bool, int)) for leaf in leaves]
    arrays = [leaf if move else None for leaf, move in zip(leaves, moves, strict=True)]
    others = tuple(None if move else leaf for leaf, move in zip(leaves, moves, strict=True))
    return arrays, Static(treedef, others)


def combine(arrays: list[Any], rest: Static) -> Any:
    """Undo `partition`."""
    leaves = [other if array is None else array for array, other in zip(arrays, rest.others, strict=True)]
    return jax.tree.unflatten(rest.treedef, leaves)


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Flatten a tree to plain NumPy arrays by path (`cell/wx`); keys become their raw words.

    Raises:
        StructureError: two leaves have the same path, as in `{"a": {"b": 1}, "a/b": 2}`.

    Example:
        >>> to_arrays({"w": jnp.ones(2)})
        {'w': array([1., 1.], dtype=float32)}
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in flat:
        name, numbers = _slash(path), jax.random.key_data(leaf) if is_key(leaf) else leaf
        if name in arrays:
            raise StructureError(f"to_arrays: every leaf must have a path of its own, got {name} twice. Rename one.")
        arrays[name] = np.asarray(numbers, jnp.result_type(numbers))
    return arrays


def from_arrays(like: Any, arrays: dict[str, np.ndarray], owner: str = "from_arrays") -> Any:
    """Rebuild a tree with the structure, shapes and dtypes of `like` from `to_arrays`' result.

    Raises:
        StructureError: a leaf is missing, left over, or has another shape or dtype.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [_slash(path) for path, _ in flat]
    if set(names) != set(arrays):
        missing, extra = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        raise StructureError(f"{owner}: the saved leaves don't match, missing {missing}, left over {extra}.")
    return jax.tree.unflatten(
        treedef,
        [_restore(owner, name, leaf, arrays[name]) for name, (_, leaf) in zip(names, flat, strict=True)],
    )


def _restore(owner: str, name: str, like: Any, array: np.ndarray) -> Any:
    if is_key(like):
        words = _restore(owner, name, jax.random.key_data(like), array)
        return jax.random.wrap_key_data(words, impl=cast(Any, jax.random.key_impl(like)))
    if jnp.shape(like) != array.shape or jnp.result_type(like) != array.dtype:
        raise StructureError(f"{owner}: leaf {name} must be {describe(like)}, got {describe(array)}.")
    return jnp.asarray(array)


def _slash(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"
