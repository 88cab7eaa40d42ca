"""Schedules: the numbers of an iterative algorithm as trained parameters, one for each iteration or shared by some."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import NOT_NEGATIVE, check_counts, check_key, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._schedule import Kind, Schedule, as_knots, is_schedule
from unrollax._schedule import check_depth as check_depth
from unrollax._schedule import resolve as resolve
from unrollax._schedule import schedules_of as schedules_of
from unrollax._schedule import values_of as values_of
from unrollax._transforms import Transform, as_transform, range_of, to_raw
from unrollax._tree import describe, is_inexact, is_numeric, leaves_with_names, strong
from unrollax._types import Key, Params, Scalar


def shared(tree: Any, transform: Any = None) -> Any:
    """Make schedules of one number for all iterations.

    Args:
        tree: a pytree of numbers or arrays, each of which all iterations share; schedules in it stay what they are.
        transform: how the numbers are kept in range while they are trained. `None`: any; `"log"`, `"softplus"`: positive;
            `(low, high)`: between them. With `"log"` an update is relative, which suits step sizes.

    Returns:
        The tree with a `Schedule` in the place of each number.

    Raises:
        InvalidArgument: no such transform, or a number that it can't stand for.
        StructureError: a leaf is no real number or array.

    Example:
        >>> from unrollax import resolve, shared
        >>> params = shared({"eta": 0.1, "lam": 2.0}, transform="log")
        >>> round(float(resolve(params, t=7)["lam"]), 5)
        2.0
    """
    return _make("shared", tree, None, transform)


def periodic(tree: Any, period: int, transform: Any = None) -> Any:
    """Make schedules that repeat: iteration t takes entry t mod period.

    Few parameters, and a schedule that goes on beyond the depth that it was trained for. Entries that start equal get
    different gradients as they stand at different iterations, but entries that stay equal by symmetry never split: see
    `jitter`.

    Args:
        tree: a pytree of numbers, tied over all entries, or arrays `[period, ...]`, the entries themselves.
        period: how many entries there are; at most the depth that is unfolded, or some would have no use.
        transform: as for `shared`.

    Returns:
        The tree with a `Schedule` in the place of each leaf.

    Raises:
        InvalidArgument: period is no positive whole number, no such transform, or a number that it can't stand for.
        StructureError: a leaf is no real number or array, or an array whose first axis is not `period`.

    Example:
        >>> from unrollax import periodic, values_of
        >>> values_of(periodic({"eta": jnp.array([1.0, 2.0])}, 2), 5)["eta"]
        Array([1., 2., 1., 2., 1.], dtype=float32)
    """
    check_counts("periodic", period=period)
    return _make("periodic", tree, int(period), transform)


def per_step(tree: Any, depth: int, transform: Any = None) -> Any:
    """Make schedules with an entry for each iteration.

    Args:
        tree: a pytree of numbers, tied over all entries, or arrays `[depth, ...]`, the entries themselves.
        depth: how many entries there are; at least the depth that is unfolded.
        transform: as for `shared`.

    Returns:
        The tree with a `Schedule` in the place of each leaf.

    Raises:
        InvalidArgument: depth is no positive whole number, no such transform, or a number that it can't stand for.
        StructureError: a leaf is no real number or array, or an array whose first axis is not `depth`.

    Example:
        >>> from unrollax import per_step
        >>> per_step({"eta": 0.1, "lam": jnp.ones(16)}, 16, transform="softplus")["eta"]
        Schedule(raw=float32[16], kind='per_step', transform='softplus', at=())
    """
    check_counts("per_step", depth=depth)
    return _make("per_step", tree, int(depth), transform)


def knots(tree: Any, at: Any, transform: Any = None) -> Any:
    """Make schedules that are interpolated between a few iterations.

    Raw numbers are interpolated linearly, so numbers with `transform="log"` geometrically; before the first and after the
    last knot the schedule is constant.

    Args:
        tree: a pytree of numbers, tied over all knots, or arrays `[len(at), ...]`, the knots' own.
        at: the iterations of the knots, ascending.
        transform: as for `shared`.

    Returns:
        The tree with a `Schedule` in the place of each leaf.

    Raises:
        InvalidArgument: `at` does not ascend, no such transform, or a number that it can't stand for.
        StructureError: a leaf is no real number or array, or an array whose first axis is not `len(at)`.

    Example:
        >>> from unrollax import knots, values_of
        >>> values_of(knots(jnp.array([0.0, 1.0, 5.0]), at=[0, 2, 4]), 6)
        Array([0. , 0.5, 1. , 3. , 5. , 5. ], dtype=float32)
    """
    at = as_knots("knots", at)
    return _make("knots", tree, len(at), transform, at)


def _make(kind: Kind, tree: Any, entries: int | None, transform: Any, at: tuple[int, ...] = ()) -> Any:
    transform = as_transform(kind, transform)
    named = leaves_with_names(tree, is_leaf=is_schedule)
    made = [
        leaf if is_schedule(leaf) else Schedule(_raw(kind, name, leaf, entries, transform), kind, transform, at)
        for name, leaf in named
    ]
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=is_schedule), made)


def _raw(kind: str, name: str, leaf: Any, entries: int | None, transform: Transform) -> jax.Array:
    if not is_numeric(leaf) or jnp.iscomplexobj(leaf) or isinstance(leaf, bool):
        raise StructureError(
            f"{kind}: leaf {name} must be a real number or array, got {describe(leaf)}. Split a complex one into its real "
            "and its imaginary part."
        )
    numbers = strong(leaf if is_inexact(leaf) else jnp.asarray(leaf, jnp.result_type(float)))
    if entries is not None and numbers.shape[:1] not in ((), (entries,)):
        raise StructureError(
            f"{kind}: leaf {name} must be a number, which is tied over the entries, or [{entries}, ...], one for each of "
            f"the {entries} entries, got {describe(leaf)}. Repeat an array by jnp.broadcast_to(a, ({entries}, *a.shape))."
        )
    allowed = range_of(transform)
    if not isinstance(numbers, jax.core.Tracer):
        inside = (np.asarray(numbers) > allowed.low) & (np.asarray(numbers) < allowed.high)
        if not inside.all():
            bad = float(np.asarray(numbers)[~inside].flat[0])
            remedy = "" if transform is None else f" with transform={transform!r}"
            raise InvalidArgument(
                f"{kind}: leaf {name} must hold {allowed.says}{remedy}, got {bad:g}. Start elsewhere, or take another "
                "transform: None allows every finite number."
            )
    raw = to_raw(numbers, transform)
    return raw if entries is None or raw.ndim else jnp.full((entries,), raw)


def jitter(params: Params, key: Key, *, std: float) -> Params:
    """Perturb the entries of schedules, so that equal ones part.

    Entries that start equal and are tied by a symmetry of the problem get equal gradients, and every optimizer moves them
    together: the factors (1 - eta_1 h)(1 - eta_2 h) of gradient descent on a quadratic do not change when eta_1 and eta_2
    change places, so their training never leaves eta_1 = eta_2. A little noise does.

    Args:
        params: a pytree with schedules among its leaves; shared numbers and other leaves stay.
        key: a PRNG key; equal keys give equal bits.
        std: standard deviation of the noise z ~ N(0, std^2): number x exp(z) for `"log"` and `"softplus"`, which is relative,
            number + z without a transform, and raw + z for an interval.

    Raises:
        InvalidArgument: std is no finite number of at least 0, or key is no key.

    Example:
        >>> from unrollax import jitter, periodic
        >>> params = periodic({"eta": 0.1}, 4, transform="log")
        >>> apart = jitter(params, jax.random.key(0), std=0.01)["eta"].values
        >>> len(set(apart.tolist())), bool(jnp.allclose(apart, 0.1, rtol=0.05))
        (4, True)
    """
    check_number("jitter", "std", std, NOT_NEGATIVE, used=True)
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_schedule)
    keys = jax.random.split(check_key("jitter", key), max(len(leaves), 1))
    return jax.tree.unflatten(treedef, [_jittered(leaf, one, std) for leaf, one in zip(leaves, keys, strict=False)])


def _jittered(leaf: Any, key: Key, std: float) -> Any:
    if not is_schedule(leaf) or leaf.kind == "shared":
        return leaf
    z: Scalar = std * jax.random.normal(key, leaf.raw.shape, leaf.raw.dtype)
    raw = to_raw(leaf.values * jnp.exp(z), "softplus") if leaf.transform == "softplus" else leaf.raw + z
    return Schedule(raw, leaf.kind, leaf.transform, leaf.at)
