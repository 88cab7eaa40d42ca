"""What a schedule is: the numbers of an iterative algorithm as trained parameters, and which of them an iteration takes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice, check_counts
from unrollax._errors import InvalidArgument
from unrollax._transforms import Transform, as_transform, from_raw
from unrollax._tree import leaves_with_names
from unrollax._types import Params
from unrollax._value import static, value

Kind: TypeAlias = Literal["shared", "periodic", "per_step", "knots"]


@value
class Schedule:
    """A number for each iteration t = 0, 1, ...: what `shared`, `periodic`, `per_step` and `knots` make.

    | kind | raw | the number at iteration t |
    |---|---|---|
    | `"shared"` | `[...]` | f(raw) |
    | `"periodic"` | `[period, ...]` | f(raw[t mod period]) |
    | `"per_step"` | `[depth, ...]` | f(raw[t]), from there on the last entry |
    | `"knots"` | `[knots, ...]` | f(linear interpolation of raw between the iterations of `at`, constant outside) |

    with f(raw) = raw, exp(raw) (`"log"`), log(1 + exp(raw)) (`"softplus"`) or low + (high - low) sigmoid(raw) (an interval).
    It is a pytree with one leaf, so optimizers, `optax.partition` by labels and saved parameters take it as it is.

    Attributes:
        raw: what is trained, real floating numbers.
        kind: one of the four.
        transform: `None`, `"log"`, `"softplus"` or the ends of an interval.
        at: the iterations of the knots, ascending; `()` for the other kinds.

    Raises:
        InvalidArgument: there is no such kind or transform, or `at` does not ascend.

    Example:
        >>> from unrollax import Schedule
        >>> step_size = Schedule(jnp.log(jnp.array([0.5, 0.25])), kind="periodic", transform="log")
        >>> step_size
        Schedule(raw=float32[2], kind='periodic', transform='log', at=())
        >>> [round(float(step_size.number(t)), 4) for t in range(4)]
        [0.5, 0.25, 0.5, 0.25]
    """

    raw: jax.Array
    kind: Kind = static(default="shared")
    transform: Transform = static(default=None)
    at: tuple[int, ...] = static(default=())

    def __post_init__(self) -> None:
        check_choice("Schedule", "kind", self.kind, get_args(Kind))
        object.__setattr__(self, "transform", as_transform("Schedule", self.transform))
        object.__setattr__(self, "at", as_knots("Schedule", self.at) if self.kind == "knots" else ())

    @property
    def values(self) -> jax.Array:
        """The numbers of the entries, shaped as `raw`."""
        return from_raw(self.raw, self.transform)

    @property
    def entries(self) -> int | None:
        """How many entries there are along the first axis; `None` for a shared number."""
        return None if self.kind == "shared" else int(jnp.shape(self.raw)[0])

    def number(self, t: Any) -> jax.Array:
        """Return the number at iteration t, which may be traced; only the entries that it takes get a gradient."""
        return from_raw(self._raw_at(t), self.transform)

    def _raw_at(self, t: Any) -> jax.Array:
        if self.kind == "shared":
            return jnp.asarray(self.raw)
        last = jnp.shape(self.raw)[0] - 1
        if self.kind == "periodic":
            return self._entry(t % (last + 1))
        if self.kind == "per_step":
            return self._entry(jnp.minimum(t, last))
        at = jnp.asarray(self.at)
        left = jnp.clip(jnp.searchsorted(at, t, side="right") - 1, 0, max(last - 1, 0))
        right = jnp.minimum(left + 1, last)
        weight = jnp.clip((t - at[left]) / jnp.maximum(at[right] - at[left], 1), 0, 1).astype(self.raw.dtype)
        return (1 - weight) * self._entry(left) + weight * self._entry(right)

    def _entry(self, index: Any) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(jnp.asarray(self.raw), index, keepdims=False)


def is_schedule(leaf: Any) -> bool:
    """Whether a part of params is a schedule."""
    return isinstance(leaf, Schedule)


def schedules_of(params: Params) -> list[tuple[str, Schedule]]:
    """Return (path, schedule) for each schedule in params."""
    return [(name, leaf) for name, leaf in leaves_with_names(params, is_leaf=is_schedule) if is_schedule(leaf)]


def as_knots(owner: str, at: Any) -> tuple[int, ...]:
    """Return the iterations of knots as a tuple; raise unless they are whole numbers of at least 0 that ascend."""
    iterations = tuple(np.asarray(at).tolist()) if isinstance(at, (tuple, list, range, np.ndarray, jax.Array)) else ()
    whole = all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in iterations)
    if not iterations or not whole or any(a >= b for a, b in pairwise(iterations)):
        raise InvalidArgument(
            f"{owner}: at must be ascending iterations, whole numbers of at least 0, got at={at!r}. Give a list such as "
            "[0, 4, 16]."
        )
    return iterations


def resolve(params: Params, t: Any) -> Any:
    """Return params with each schedule replaced by its number at iteration t; other leaves are returned as they are.

    Args:
        params: a pytree with schedules among its leaves.
        t: the iteration, counted from 0; it may be traced.

    Example:
        >>> from unrollax import periodic, resolve
        >>> theta = resolve({"eta": periodic(jnp.array([1.0, 2.0]), 2), "w": jnp.eye(2)}, t=3)
        >>> theta["eta"], theta["w"].shape
        (Array(2., dtype=float32), (2, 2))
    """
    return jax.tree.map(lambda leaf: leaf.number(t) if is_schedule(leaf) else leaf, params, is_leaf=is_schedule)


def values_of(params: Params, steps: int) -> Any:
    """Return params with each schedule replaced by its numbers at iterations 0 to `steps - 1`, `[steps, ...]`.

    Args:
        params: a pytree with schedules among its leaves; the other leaves are returned as they are.
        steps: how many iterations.

    Raises:
        InvalidArgument: steps is no positive whole number.

    Example:
        >>> from unrollax import shared, values_of
        >>> values_of(shared(0.5), 3)
        Array([0.5, 0.5, 0.5], dtype=float32)
    """
    check_counts("values_of", steps=steps)
    all_of = lambda leaf: jax.vmap(leaf.number)(jnp.arange(steps)) if is_schedule(leaf) else leaf
    return jax.tree.map(all_of, params, is_leaf=is_schedule)


def check_depth(owner: str, params: Params, depth: int, *, periods: bool = True) -> None:
    """Raise unless every schedule has an entry for each of `depth` iterations, and, if `periods`, each entry has a use."""
    for name, schedule in schedules_of(params):
        entries = schedule.entries
        if schedule.kind == "per_step" and entries is not None and entries < depth:
            raise InvalidArgument(
                f"{owner}: per-step schedule {name} must have an entry for each of the {depth} iterations, got {entries}. "
                f"Make it with per_step(..., depth={depth}), or unfold at most {entries}."
            )
        if periods and schedule.kind == "periodic" and entries is not None and entries > depth:
            raise InvalidArgument(
                f"{owner}: the period of schedule {name} must be at most the depth, or entries have no use, got "
                f"period={entries} for depth={depth}. Take period={depth} or less, or unfold deeper."
            )
