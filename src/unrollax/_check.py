"""Checks of fields, keys and parameters that any owner may need; the messages name it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument, StructureError, nearest_multiple
from unrollax._tree import describe, is_inexact, is_key, leaves_with_names, strong
from unrollax._types import Key, Params


def check_counts(owner: str, **counts: Any) -> None:
    """Raise unless each of the named fields is a positive whole number."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise InvalidArgument(f"{owner}: {name} must be a positive whole number, got {name}={count!r}.")


def check_choice(owner: str, name: str, got: Any, choices: tuple[Any, ...]) -> None:
    """Raise unless a field is one of its choices."""
    if not any(got is choice or got == choice for choice in choices):
        known = ", ".join(map(repr, choices))
        raise InvalidArgument(f"{owner}: {name} must be one of {known}, got {name}={got!r}.")


def check_window(owner: str, window: int, horizon: int | None) -> None:
    """Raise unless `horizon` is a multiple of `window`, or `None` for an endless stream."""
    check_counts(owner, window=window)
    if horizon is None:
        return
    check_counts(owner, horizon=horizon)
    if horizon % window:
        raise InvalidArgument(
            f"{owner}: horizon must be a multiple of window, got horizon={horizon}, window={window}. "
            f"The nearest is horizon={nearest_multiple(horizon, window)}."
        )


def check_params(owner: str, params: Params) -> Params:
    """Return `params` as arrays; raise unless each leaf is real, floating and non-empty."""
    named = leaves_with_names(params)
    if not named:
        raise StructureError(f"{owner}: params must hold at least one array, got {params!r}.")
    for name, leaf in named:
        if not is_inexact(leaf) or jnp.iscomplexobj(leaf):
            raise StructureError(
                f"{owner}: params leaf {name} must be real floating numbers, got {describe(leaf)}. "
                "Keep what is not trained in the system or its state."
            )
        if jnp.size(leaf) == 0:
            raise StructureError(f"{owner}: params leaf {name} must not be empty, got {describe(leaf)}. Leave it out.")
    return strong(params)


def check_key(owner: str, key: Any) -> Key:
    """Return a typed key; raise if it is none."""
    if is_key(key) and key.shape == ():
        return key
    if isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim == 1:  # the older raw keys
        return jax.random.wrap_key_data(key)
    got = describe(key) if hasattr(key, "dtype") else repr(key)
    raise InvalidArgument(f"{owner}: key must be a single PRNG key, got {got}. Make one with jax.random.key(seed).")
