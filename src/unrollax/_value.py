"""Values: frozen dataclasses that are pytrees, print well and are changed with `dataclasses.replace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")


def static(**options: Any) -> Any:
    """Mark a field of a `value` as no array: a shape, a name, a function. Changing it compiles anew.

    Args:
        options: passed to `dataclasses.field`, such as `default=`.

    Example:
        >>> @value
        ... class Decay:
        ...     rate: float
        ...     order: int = static(default=1)
        >>> Decay(0.5)
        Decay(rate=0.5, order=1)
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def value(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree whose leaves are its fields, except the `static` ones.

    A value can be passed through `jax.jit`, vmapped over a field, and rebuilt with other numbers without retracing.
    Validate static fields only in `__post_init__`: it also runs with tracers.

    Example:
        >>> import dataclasses, jax
        >>> @value
        ... class Line:
        ...     slope: float
        ...     name: str = static(default="line")
        >>> jax.tree.leaves(dataclasses.replace(Line(1.0), slope=2.0))
        [2.0]
    """
    data = dataclasses.dataclass(frozen=True, repr=False)(cls)
    data.__repr__ = _repr  # type: ignore[method-assign]
    _register(data)
    return data


def _register(cls: type[Any]) -> None:
    """Make a dataclass a pytree.

    Not by `jax.tree_util.register_dataclass`: in jax 0.10 its structures of two classes compare equal when their static
    fields do, so that `jit` would now and then, when hashes collide, run one estimator's program for another's.
    """
    fields = dataclasses.fields(cls)
    moving = [f.name for f in fields if not f.metadata.get("static")]
    fixed = [f.name for f in fields if f.metadata.get("static")]
    paths = [jax.tree_util.GetAttrKey(name) for name in moving]

    def flatten(item: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(item, name) for name in moving], tuple(getattr(item, name) for name in fixed)

    def flatten_with_keys(item: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children, rest = flatten(item)
        return list(zip(paths, children, strict=True)), rest

    def unflatten(rest: tuple[Any, ...], children: Iterable[Any]) -> Any:
        return cls(**dict(zip(moving, children, strict=True)), **dict(zip(fixed, rest, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def _repr(self: Any) -> str:
    fields = (f"{f.name}={_show(getattr(self, f.name))}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__name__}({', '.join(fields)})"


def _show(item: Any) -> str:
    """Show arrays by dtype and shape and functions by name: a value prints on one line whatever it holds."""
    if isinstance(item, (jax.Array, np.ndarray)) and item.ndim:
        return f"{item.dtype}{list(item.shape)}"
    return getattr(item, "__qualname__", None) or repr(item)
