"""Samples of estimators: the mean of the estimates over one horizon's windows, for many keys, timed side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_like
from unrollax._system import Repeat
from unrollax._tree import Static, combine, partition, ravel, strong
from unrollax._types import Data, Key
from unrollax.diagnosis._costs import anywhere, temporary_bytes, timed
from unrollax.diagnosis._gradients import Problem

OWNER = "compare"
ROUNDS = 4  # blocks of samples that estimators take in turn, so that a busy machine slows all of them


class Plan(NamedTuple):
    """What is fixed for one estimator.

    Attributes:
        windows: calls a horizon.
        window: steps of a call.
        warm: horizons that are run first and not looked at.
    """

    windows: int
    window: int
    warm: int


class Sampled(NamedTuple):
    """What was seen of one estimator.

    Attributes:
        grads: `[samples, d]` in float64.
        seconds: wall time of one sample, the median over blocks.
        bytes: temporary memory of the compiled program.
        plan: what was run.
    """

    grads: np.ndarray
    seconds: float
    bytes: int
    plan: Plan


def plan_of(estimator: Any, horizon: int) -> Plan:
    """Return how a horizon is run; staggered pairs are out of step only after a first one."""
    window = int(getattr(estimator, "window", None) or horizon)
    return Plan(horizon // window, window, int(any(anywhere(estimator, "stagger"))))


def piece_of(data: Data, begin: Any, steps: int) -> Data:
    """Return `steps` steps of data from a traced one on."""

    def take(leaf: Any) -> Any:
        return leaf if isinstance(leaf, Repeat) else jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), begin, steps)

    return jax.tree.map(take, data, is_leaf=lambda leaf: isinstance(leaf, Repeat))


def sample_all(
    estimators: dict[str, Any], problem: Problem, samples: int, key: Key, observe: Callable[[str], None]
) -> dict[str, Sampled]:
    """Take samples of all estimators, in turn."""
    rounds = next(count for count in range(min(ROUNDS, samples), 0, -1) if samples % count == 0)
    keys = jax.random.split(key, samples).reshape(rounds, -1)
    programs: dict[Any, Any] = {}
    compiled = {}
    for name, estimator in estimators.items():
        observe(f"compiling {name}")
        arrays, rest = partition((estimator, problem.params, problem.data))
        plan = plan_of(estimator, problem.steps)
        same = (rest, plan, tuple(None if leaf is None else jax.typeof(leaf) for leaf in arrays))
        if same not in programs:
            programs[same] = _sample.lower(arrays, rest, keys[0], plan, name).compile()
        compiled[name] = (programs[same], arrays, plan)
    blocks: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in estimators}
    for number, block in enumerate(keys):
        for name, (program, arrays, _) in compiled.items():
            observe(f"{name}: {number * len(block)} of {samples} samples")
            grads, seconds = timed(program, arrays, block)
            blocks[name].append((np.asarray(grads, np.float64), seconds / len(block)))
    return {name: _gathered(blocks[name], program, plan) for name, (program, _, plan) in compiled.items()}


def _gathered(blocks: list[tuple[np.ndarray, float]], program: Any, plan: Plan) -> Sampled:
    seconds = float(np.median([seconds for _, seconds in blocks])) / (1 + plan.warm)
    return Sampled(np.concatenate([grads for grads, _ in blocks]), seconds, temporary_bytes(program), plan)


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _sample(arrays: list[Any], rest: Static, keys: Key, plan: Plan, name: str) -> jax.Array:
    """Return for each key the mean gradient over the windows of one horizon, `[keys, d]`."""
    estimator, params, data = combine(arrays, rest)

    def window(carry: Any, index: jax.Array) -> tuple[Any, None]:
        state, total = carry
        piece = piece_of(data, index * plan.window, plan.window)
        state, estimate = estimator.estimate(params, state, piece)
        check_like(
            OWNER, f"the gradient of {name},", estimate.grad, params, "An estimate's grad is a tree like params."
        )
        return (strong(state), total + ravel(estimate.grad)[0]), None

    def run(state: Any) -> Any:
        start = (state, jnp.zeros_like(ravel(params)[0]))
        return jax.lax.scan(window, start, jnp.arange(plan.windows))[0]

    def one(key: Key) -> jax.Array:
        state = strong(estimator.init(key, params))
        for _ in range(plan.warm):
            state, _ = run(state)
        return run(state)[1] / plan.windows

    return jax.lax.map(one, keys)
