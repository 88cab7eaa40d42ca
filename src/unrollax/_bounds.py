"""Parameters that must stay in a range: a wrapper under which optimizers and noise move freely."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument, StructureError
from unrollax._system import as_system
from unrollax._tree import leaves_with_names
from unrollax._types import Key, Params, State, System
from unrollax._value import static, value

Bound = str | tuple[float, float] | None


class Transform(NamedTuple):
    """A map from all real numbers into a range, its inverse, and the range."""

    into: Callable[[jax.Array], jax.Array]
    out: Callable[[jax.Array], jax.Array]
    low: float
    high: float


NAMED = {
    "log": Transform(jnp.exp, jnp.log, 0.0, np.inf),
    "softplus": Transform(jax.nn.softplus, lambda p: p + jnp.log(-jnp.expm1(-p)), 0.0, np.inf),
}


def transform_of(bound: Bound) -> Transform:
    """Return the transform that a bound names."""
    if bound is None:
        return Transform(jnp.asarray, jnp.asarray, -np.inf, np.inf)
    if isinstance(bound, str) and bound in NAMED:
        return NAMED[bound]
    if _is_range(bound) and len(bound) == 2 and bound[0] < bound[1]:
        low, high = float(bound[0]), float(bound[1])
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InvalidArgument(
                f"bounded: a range must have finite ends, got {bound!r}. Take 'log' or 'softplus' for positive numbers."
            )
        return Transform(
            lambda u: low + (high - low) * jax.nn.sigmoid(u), lambda p: jnp.log(p - low) - jnp.log(high - p), low, high
        )
    raise InvalidArgument(
        f"bounded: a bound must be 'log', 'softplus', a range (low, high) with low < high, or None, got {bound!r}. "
        "Give one for each leaf or part of params."
    )


def _is_range(bound: Any) -> TypeGuard[tuple[float, ...]]:
    """Whether a tuple holds numbers alone: any other one is structure, as is a named one."""
    return type(bound) is tuple and bool(bound) and all(isinstance(end, numbers.Real) for end in bound)


class Bounds(NamedTuple):
    """Bounds as something hashable: the structure of the prefix and what stands at its leaves."""

    prefix: Any
    kinds: tuple[Bound, ...]


@value
class Bounded:
    """A system whose parameters are held in ranges; see `bounded`."""

    system: System
    bounds: Bounds = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "system", as_system("bounded", self.system))

    def free(self, params: Params) -> Params:
        """Return the free numbers that stand for parameters inside their bounds: where training starts."""
        return self._map(_leave, params)

    def params(self, free: Params) -> Params:
        """Return the parameters that free numbers stand for: what was learned."""
        return self._map(_enter, free)

    def init(self, key: Key, free: Params) -> State:
        """Return the system's own state, for the parameters that the free numbers stand for."""
        return self.system.init(key, self.params(free))

    def step(self, free: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        """Step the system with the parameters that the free numbers stand for."""
        return self.system.step(self.params(free), state, x, key)

    def _map(self, function: Callable[[Bound, str, Any], Any], tree: Params) -> Params:
        bounds = jax.tree.unflatten(self.bounds.prefix, [_Leaf(kind) for kind in self.bounds.kinds])
        names = jax.tree.unflatten(jax.tree.structure(tree), [name for name, _ in leaves_with_names(tree)])

        def below(bound: _Leaf, names: Any, part: Any) -> Any:
            return jax.tree.map(lambda name, leaf: function(bound.kind, name, leaf), names, part)

        try:
            return jax.tree.map(below, bounds, names, tree)
        except InvalidArgument:
            raise
        except ValueError as error:
            raise StructureError(
                f"bounded: bounds must be a prefix of params, got {self.bounds.prefix} for {jax.tree.structure(tree)}. "
                "Give one bound for each leaf or for a part of the tree, None where there is none."
            ) from error


class _Leaf:
    """A bound inside a tree: neither a tuple nor None, which JAX would take for structure."""

    def __init__(self, kind: Bound) -> None:
        self.kind = kind


def _enter(bound: Bound, name: str, leaf: Any) -> jax.Array:
    return transform_of(bound).into(jnp.asarray(leaf))


def _leave(bound: Bound, name: str, leaf: Any) -> jax.Array:
    transform = transform_of(bound)
    if (
        not isinstance(leaf, jax.core.Tracer)
        and not ((np.asarray(leaf) > transform.low) & (leaf < transform.high)).all()
    ):
        raise InvalidArgument(
            f"bounded: params leaf {name} must lie between {transform.low} and {transform.high}, got {np.asarray(leaf)}."
        )
    return transform.out(jnp.asarray(leaf))


def bounded(system: System, bounds: Any) -> Bounded:
    """Hold parameters in ranges: what is trained, and what evolution strategies perturb, are free numbers.

    A system that divides by a learning rate or takes a square root never sees a parameter outside its range, however wide
    the noise is. `std` is then in units of the free numbers: for `"log"` a relative width.

    Args:
        system: the system whose parameters are bounded.
        bounds: a prefix of params with, for each leaf or part: `"log"` (positive, through exp), `"softplus"` (positive,
            linear where large), `(low, high)` with finite ends (through a sigmoid), or `None`. A tuple of two numbers is a
            range, any other tuple is structure: `((0, 1), None)` is for params that are a tuple of two.

    Returns:
        A system with two more methods: `free(params)`, where training starts, and `params(free)`, what was learned.

    Raises:
        InvalidArgument: an unknown bound, a range without two finite ends, or `free` of parameters outside their bounds.

    Example:
        >>> import unrollax as ux
        >>> def step(params, state, x, key):
        ...     return state - params["lr"] * state, state**2
        >>> descent = ux.system(init=lambda k, p: jnp.ones(()), step=step)
        >>> positive = ux.bounded(descent, {"lr": "log"})
        >>> free = positive.free({"lr": 0.5})
        >>> ux.unroll(positive, free, jnp.ones(()), None, jax.random.key(0), steps=3)[1]
        Array([1.    , 0.25  , 0.0625], dtype=float32)
    """
    kinds, prefix = jax.tree.flatten(bounds, is_leaf=lambda leaf: leaf is None or _is_range(leaf))
    for kind in kinds:
        transform_of(kind)
    return Bounded(system, Bounds(prefix, tuple(kinds)))
