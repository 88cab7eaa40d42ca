"""What `watch` runs: an estimator with half of its pairs, directions, copies or examples, and the data of both halves."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import StructureError
from unrollax._system import Repeat, is_repeat
from unrollax._tree import describe, leaves_with_names
from unrollax._types import Data
from unrollax._wrap import Batched, batched

COUNTS = ("pairs", "directions", "repeats")  # fields of which half as many make an estimate of twice the variance


def halved_by(estimator: Any) -> str | None:
    """Return what can be halved with the mean of both halves distributed as the whole."""
    if not dataclasses.is_dataclass(estimator):
        return None
    names = {field.name for field in dataclasses.fields(estimator)}
    target = getattr(getattr(estimator, "traits", None), "target", None)
    # A pseudo-gradient, and the baseline of a learned width, depend on all draws at once.
    if target == "pseudo" or getattr(estimator, "std", 0.0) is None:
        return None
    counts = [name for name in COUNTS if name in names]
    if counts:
        return next((name for name in counts if _is_even(getattr(estimator, name))), None)
    system = getattr(estimator, "system", None) if "system" in names else None
    return "examples" if isinstance(system, Batched) and _is_even(system.count) else None


def _is_even(count: Any) -> bool:
    return isinstance(count, (int, np.integer)) and bool(count >= 2) and bool(count % 2 == 0)


def half_of(estimator: Any, by: str) -> Any:
    """Return the estimator with half of what it has of something."""
    if by != "examples":
        return dataclasses.replace(estimator, **{by: getattr(estimator, by) // 2})
    count = estimator.system.count // 2
    changed: dict[str, Any] = {"system": batched(estimator.system.system, count)}
    if hasattr(estimator, "x"):  # one step of the data, as an example
        changed["x"] = jax.tree.map(lambda leaf: leaf[:count], estimator.x)
    if isinstance(getattr(estimator, "memory", None), int):  # bytes
        changed["memory"] = max(1, estimator.memory // 2)
    return dataclasses.replace(estimator, **changed)


def halves_of(data: Data, count: int) -> Data:
    """Return both halves of the examples, leaves `[2, ...]`, `count` examples each."""

    def split(leaf: Any, axis: int, name: str) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if leaf.shape[axis : axis + 1] != (2 * count,):
            raise StructureError(
                f"watch: data leaf {name} must have {2 * count} examples on axis {axis}, got {describe(leaf)}. "
                "Lay it out as [window, examples, ...], or [examples, ...] inside repeat."
            )
        pieces = leaf.reshape(*leaf.shape[:axis], 2, count, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(pieces, axis, 0)

    leaves = [
        Repeat(jax.tree.map(lambda x, name=name: split(x, 0, name), leaf.x))
        if is_repeat(leaf)
        else split(leaf, 1, name)
        for name, leaf in leaves_with_names(data, is_leaf=is_repeat)
    ]
    return jax.tree.unflatten(jax.tree.structure(data, is_leaf=is_repeat), leaves)


def stack(first: Any, second: Any) -> Any:
    """Return both halves of a tree as leaves `[2, ...]`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
