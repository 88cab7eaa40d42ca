"""What an estimator's call costs: steps of the system, by formula, by counting or by the clock, and temporary memory.

A step forward is the unit. A tangent pushed through a step counts as one more, a cotangent pulled back as two.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._count import count_marks, mark
from unrollax._system import as_system, unroll_for
from unrollax._tree import combine, is_inexact, partition, strong
from unrollax._types import Data, Key, Params, State, System
from unrollax._value import value

OWNER = "compare"
WEIGHTS = {"forward": 1.0, "jvp": 1.0, "vjp": 2.0}  # in steps forward
BY_TIME = "steps by the clock, as they can't be counted beforehand"
BY_OTHERS = (
    "steps by the clock, as they can't be counted beforehand: its seconds over those that a step takes the others"
)
UNKNOWN = "steps unknown: it has no field system"
REPEATS = 5  # timed runs of a horizon without an estimator


class Steps(NamedTuple):
    """Steps forward that a step of the horizon costs, and how they were found where it is not by formula."""

    each: float
    note: str = ""


@value
class Marked:
    """A system that leaves a mark in each step, for counting."""

    system: System

    def __post_init__(self) -> None:
        object.__setattr__(self, "system", as_system(OWNER, self.system))

    def init(self, key: Key, params: Params) -> State:
        """Return the system's own state."""
        return self.system.init(key, params)

    def step(self, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        """Mark the first floating number of the state, made to depend on all parameters; without one, the loss."""
        touch = 0 * sum(leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(params))
        leaves, treedef = jax.tree.flatten(state)
        real = [i for i, leaf in enumerate(leaves) if is_inexact(leaf) and not jnp.iscomplexobj(leaf) and leaf.size]
        if not real:
            after, loss = self.system.step(params, state, x, key)
            return after, mark(loss + touch.astype(loss.dtype))
        flat = leaves[real[0]].ravel()
        flat = flat.at[0].set(mark(flat[0] + touch.astype(flat.dtype)))
        leaves[real[0]] = flat.reshape(leaves[real[0]].shape)
        return self.system.step(params, jax.tree.unflatten(treedef, leaves), x, key)


def parts_of(estimator: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of an estimator that are estimators themselves."""
    if dataclasses.is_dataclass(estimator):
        for field in dataclasses.fields(estimator):
            part = getattr(estimator, field.name, None)
            if callable(getattr(part, "estimate", None)) and callable(getattr(part, "init", None)):
                yield field.name, part


def anywhere(estimator: Any, name: str) -> list[Any]:
    """Return what an estimator and its parts have under a name, its own first."""
    own = [getattr(estimator, name)] if hasattr(estimator, name) else []
    return own + [found for _, part in parts_of(estimator) for found in anywhere(part, name)]


def temporary_bytes(compiled: Any) -> int:
    """Return the temporary memory of a compiled program, 0 where the backend doesn't say."""
    analysis = compiled.memory_analysis()
    return int(getattr(analysis, "temp_size_in_bytes", 0) or 0)


def steps_of(estimator: Any, params: Params, piece: Data, key: Key) -> Steps | None:
    """Return what a step of the horizon costs by the estimator's traits, else by counting; `None` if neither says.

    Args:
        estimator: what is called.
        params: its parameters.
        piece: one window of data.
        key: any key.
    """
    cost = getattr(getattr(estimator, "traits", None), "cost", None)
    window = getattr(estimator, "window", None)
    if cost is not None and dataclasses.is_dataclass(estimator):
        return Steps(_weighed(_by_formula(estimator, cost, params, key)))
    if window is None or not anywhere(estimator, "system"):
        return None
    counted = _marked(estimator)
    try:
        state = jax.eval_shape(counted.init, key, params)
        counts = count_marks(counted.estimate, params, state, piece)
    except NotImplementedError:  # the marks can be traced, not run or transposed twice
        counts = None
    if counts is None:
        return None
    return Steps(_weighed({kind: marks / window for kind, marks in counts.items()}), "steps counted")


def _weighed(passes: dict[str, float]) -> float:
    return float(sum(WEIGHTS[kind] * times for kind, times in passes.items()))


def _by_formula(estimator: Any, cost: Any, params: Params, key: Key) -> dict[str, float]:
    """Evaluate the formulas of `traits.cost`, which are the estimator's own code."""
    systems = anywhere(estimator, "system")
    states = jax.tree.leaves(jax.eval_shape(systems[0].init, key, params)) if systems else []
    floating = [leaf for leaf in states if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    names: dict[str, Any] = {"min": min, "max": max}
    names |= {name: getattr(estimator, name, None) for name in ("window", "horizon")}
    names |= {field.name: getattr(estimator, field.name) for field in dataclasses.fields(estimator)}
    names |= {"params": _size(jax.tree.leaves(params)), "states": _size(floating)}
    return {kind: float(eval(text, {"__builtins__": {}}, names)) for kind, text in cost._asdict().items()}


def _size(leaves: list[Any]) -> int:
    """Return how many real numbers there are."""
    return sum(
        int(np.prod(leaf.shape)) * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1) for leaf in leaves
    )


def _marked(estimator: Any) -> Any:
    """Return an estimator, and its parts, on marked systems."""
    own = {field.name for field in dataclasses.fields(estimator)} if dataclasses.is_dataclass(estimator) else set()
    changed = {name: _marked(part) for name, part in parts_of(estimator)}
    if "system" in own:
        changed["system"] = Marked(estimator.system)
    return dataclasses.replace(estimator, **changed) if changed else estimator


def seconds_forward(system: System, params: Params, data: Data, steps: int, key: Key) -> float:
    """Return the seconds of `steps` steps forward without an estimator, the median of some runs after compilation."""
    arrays, rest = partition((system, params, data))

    @jax.jit
    def run(arrays: list[Any], key: Key) -> jax.Array:
        system, params, data = combine(arrays, rest)
        begin, keys = jax.random.split(key)
        return unroll_for(OWNER, system, params, strong(system.init(begin, params)), data, keys, steps)[1].mean()

    compiled = run.lower(arrays, key).compile()
    return float(np.median([timed(compiled, arrays, key)[1] for _ in range(REPEATS)]))


def timed(call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Return what a call returns, and the seconds of wall time until it is there."""
    began = time.perf_counter()
    out = jax.block_until_ready(call(*args))
    return out, time.perf_counter() - began
