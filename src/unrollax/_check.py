"""Checks of fields, keys and parameters that any owner may need; the messages name it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument, StructureError, nearest_multiple
from unrollax._tree import describe, is_inexact, is_key, is_numeric, leaves_with_names, strong
from unrollax._types import Key, Params


def check_counts(owner: str, **counts: Any) -> None:
    """Raise unless each of the named fields is a positive whole number."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise InvalidArgument(
                f"{owner}: {name} must be a positive whole number, got {name}={count!r}. Give 1 or more."
            )


def check_choice(owner: str, name: str, got: Any, choices: tuple[Any, ...]) -> None:
    """Raise unless a field is one of its choices."""
    if not any(got is choice or got == choice for choice in choices):
        known = ", ".join(map(repr, choices))
        raise InvalidArgument(f"{owner}: {name} must be one of {known}, got {name}={got!r}. Choose one of them.")


def check_sampler(owner: str, sampler: Any) -> None:
    """Raise unless a sampler can be called."""
    if not callable(sampler):
        raise InvalidArgument(
            f"{owner}: sampler must be callable as sampler(key, shape, dtype), got sampler={sampler!r}. Pass one such as "
            "unrollax.normal or jax.random.rademacher."
        )


class Rule(NamedTuple):
    """What a number may be, in words and as a function of an array."""

    says: str
    fits: Callable[[Any], Any]


POSITIVE = Rule("a positive number", lambda number: (number > 0) & np.isfinite(number))
NOT_NEGATIVE = Rule("a finite number of at least 0", lambda number: (number >= 0) & np.isfinite(number))
UP_TO_ONE = Rule("a number in (0, 1]", lambda number: (number > 0) & (number <= 1))
FROM_ZERO_TO_ONE = Rule("a number in [0, 1]", lambda number: (number >= 0) & (number <= 1))
FINITE = Rule("a finite number", np.isfinite)
NOT_NAN = Rule("a number", lambda number: ~np.isnan(number))


def check_number(owner: str, name: str, got: Any, rule: Rule, *, used: bool = False) -> None:
    """Raise unless a field that is no static one keeps a rule.

    JAX rebuilds values with tracers, `None` and objects of its own in the place of numbers, and `vmap` is told of axes by
    whole numbers, so at construction only what is surely a number is judged. Where it is `used`, all but tracers are.
    """
    if isinstance(got, jax.core.Tracer) or not (used or isinstance(got, (str, float, np.number))):
        return
    kind = jnp.result_type(got) if is_numeric(got) else bool
    real = jnp.issubdtype(kind, np.integer) or jnp.issubdtype(kind, np.floating)
    if not real or not np.all(rule.fits(np.asarray(got))):
        raise InvalidArgument(f"{owner}: {name} must be {rule.says}, got {name}={got!r}. Give one.")


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
        raise StructureError(f"{owner}: params must hold at least one array, got {params!r}. Put in what is trained.")
    for name, leaf in named:
        if not is_inexact(leaf) or jnp.iscomplexobj(leaf):
            raise StructureError(
                f"{owner}: params leaf {name} must be real floating numbers, got {describe(leaf)}. "
                "Keep what is not trained in the system or its state."
            )
        if jnp.size(leaf) == 0:
            raise StructureError(f"{owner}: params leaf {name} must not be empty, got {describe(leaf)}. Leave it out.")
    return strong(params)


def check_like(owner: str, name: str, got: Any, like: Any, remedy: str) -> None:
    """Raise unless a tree has the structure, shapes and dtypes of another; all kinds of keys count as one."""
    kinds, expected = _kinds_of(got), _kinds_of(like)
    for leaf in {**expected, **kinds}:
        if kinds.get(leaf) != expected.get(leaf):
            must, found = expected.get(leaf, "nothing"), kinds.get(leaf, "nothing")
            raise StructureError(f"{owner}: {name} leaf {leaf} must be {must}, got {found}. {remedy}")
    needs, has = str(jax.tree.structure(like)), str(jax.tree.structure(got))
    if needs != has:
        raise StructureError(f"{owner}: {name} must be {needs}, got {has}. {remedy}")


def _kinds_of(tree: Any) -> dict[str, str]:
    keys = jax.dtypes.prng_key

    def kind(leaf: Any) -> str:
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, keys)
        return f"key{list(leaf.shape)}" if is_key else describe(leaf)

    return {name: kind(leaf) for name, leaf in leaves_with_names(tree)}


def check_key(owner: str, key: Any) -> Key:
    """Return a typed key; raise if it is none."""
    if is_key(key) and key.shape == ():
        return key
    if isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim == 1:  # the older raw keys
        return jax.random.wrap_key_data(key)
    got = describe(key) if hasattr(key, "dtype") else repr(key)
    raise InvalidArgument(f"{owner}: key must be a single PRNG key, got {got}. Make one with jax.random.key(seed).")
