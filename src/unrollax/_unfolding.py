"""Deep unfolding in two calls: an algorithm and its problems as a system, and its training by a plan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrollax._check import check_counts
from unrollax._dynamic import Memory
from unrollax._errors import InvalidArgument, StructureError
from unrollax._plans import Plan, RandomHorizon, Stage
from unrollax._schedule import Schedule, is_schedule
from unrollax._train import Fit, Progress, TrainState, fit
from unrollax._tree import describe, is_numeric, strong
from unrollax._types import Key, Params, Scalar
from unrollax._value import static, value
from unrollax.estimators import UnfoldBPTT
from unrollax.systems import Unfold


def mean_squared_error(x: jax.Array, problem: Any) -> Scalar:
    """Return the mean of |x - problem.x|^2 over the entries of x: the default error of `unfold`."""
    truth = getattr(problem, "x", None)
    if truth is None:
        raise StructureError(
            f"unfold: problem must hold the answer x for the default error, got {type(problem).__name__} without it. Pass "
            "error=, such as lambda x, problem: ((problem.A @ x - problem.y) ** 2).mean()."
        )
    if not is_numeric(x) or jnp.shape(x) != jnp.shape(truth):
        raise StructureError(
            f"unfold: the answer must have the shape of problem.x, {describe(truth)}, for the default error, got "
            f"{describe(x)}. Let the algorithm's answer(x) return that part, or pass error=."
        )
    return jnp.mean(jnp.abs(x - truth) ** 2)


@value
class _AnswerError:
    """The error of an algorithm's answer. A value, so that equal ones compile once."""

    answer: Callable[[Any], Any] = static()
    error: Callable[[Any, Any], Any] = static()

    def __call__(self, x: Any, problem: Any) -> Any:
        return self.error(self.answer(x), problem)


def unfold(
    algorithm: Any,
    problems: Any,
    *,
    error: Callable[[Any, Any], Any] = mean_squared_error,
    horizon: int,
    batch: int = 100,
    loss: Any = "final",
    scale: Literal["log", "raw"] = "log",
) -> Unfold:
    """Make a system of an iterative algorithm and the problems that it is to solve.

    Args:
        algorithm: an object with `step(theta, x, problem) -> x` and `start(problem) -> x`, one of `unrollax.solvers`, say;
            its `answer(x)`, where it has one, is what the error sees.
        problems: an object with `draw(key)` and `whole(own)`, one of `unrollax.problems`, say, or a function
            `key -> problem`.
        error: `error(answer, problem) -> e >= 0`, a real scalar; by default the mean of |answer - problem.x|^2.
        horizon: iterations.
        batch: problems that are drawn at each reset.
        loss: `"final"`, `"anytime"` or a function `weight(t, horizon)`; see `Unfold`.
        scale: `"log"` for the logarithm of the batch mean of the errors, `"raw"` for the mean itself.

    Returns:
        An `Unfold`.

    Raises:
        InvalidArgument: algorithm lacks a function, or what `Unfold` raises.

    Example:
        >>> from typing import NamedTuple
        >>> from unrollax import unfold
        >>> from unrollax.solvers import Algorithm
        >>> class Problem(NamedTuple):
        ...     x: jax.Array
        >>> descent = Algorithm(step=lambda theta, x, problem: x - theta["eta"] * (x - problem.x),
        ...                     start=lambda problem: jnp.zeros(3), params=lambda: {"eta": 0.5})
        >>> net = unfold(descent, lambda key: Problem(jax.random.normal(key, (3,))), horizon=4)
        >>> errors = net.errors(descent.params(), jax.random.key(0))
        >>> (errors[1:] / errors[:-1]).round(4)
        Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    for name in ("step", "start"):
        if isinstance(algorithm, type) or not callable(getattr(algorithm, name, None)):
            got = f"the class {algorithm.__name__}" if isinstance(algorithm, type) else describe(algorithm)
            raise InvalidArgument(
                f"unfold: algorithm must have step(theta, x, problem) and start(problem), got {got}. Take one such as "
                "unrollax.solvers.ista(), or make one with unrollax.solvers.Algorithm(step=, start=, params=)."
            )
    answer = getattr(algorithm, "answer", None)
    for name, part, says in (("answer", answer, "answer(x)"), ("error", error, "error(answer, problem)")):
        if not callable(part) and (part is not None or name == "error"):
            raise InvalidArgument(f"unfold: {name} must be a function {says}, got {describe(part)}. Pass one.")
    if problems is None:
        raise InvalidArgument(
            "unfold: problems must have draw(key) and whole(own), or be a function key -> problem, got None. Take some such "
            "as unrollax.problems.ridge()."
        )
    judge = error if answer is None else _AnswerError(answer, error)
    return Unfold(algorithm.step, algorithm.start, judge, problems, horizon, batch, loss, scale)


def fit_unfold(
    net: Unfold,
    params: Params,
    plan: Plan | RandomHorizon,
    optimizer: optax.GradientTransformation,
    *,
    key: Key,
    every: int = 100,
    observe: Callable[[Progress], None] | None = None,
    steps: int | None = None,
    state: TrainState | None = None,
    memory: Memory = "full",
) -> Fit:
    """Train an unfolded algorithm by a plan: `fit` with `UnfoldBPTT`, in one compiled program for all depths.

    Where the plan says `reset`, the optimizer starts anew with each generation. Where it says `freeze`, the entries of
    schedules that none of a generation's new iterations reads get no gradient and no update, and keep their bits.

    Args:
        net: what `unfold` makes; the plan's depth takes the place of its horizon.
        params: schedules and whatever else the iterations read.
        plan: `one_shot`, `incremental` or `random_horizon`.
        optimizer: any `optax.GradientTransformation`. Different learning rates: `optax.partition`.
        key: a PRNG key; all randomness comes from it.
        every: updates between two calls of `observe`.
        observe: called with a `Progress` after each block; `print` will do.
        steps: updates to make in this call; `None` for all of the plan.
        state: a `TrainState` to continue from, of an earlier call with the same plan and optimizer.
        memory: `"full"`, or `"states"` for deep unfoldings of large x: a quarter more time, and x alone is kept.

    Returns:
        What `fit` returns: `.params`, `.state` and `.metrics`, whose `info` has the depth of every update and the level that
        it reached.

    Raises:
        Diverged: a parameter became NaN or infinite.
        InvalidArgument: what `fit` and `UnfoldBPTT` raise, or plan is no plan.
        StructureError: what `fit` and `Unfold` raise.

    Example:
        >>> import optax
        >>> from unrollax import incremental
        >>> from unrollax import per_step
        >>> from unrollax import fit_unfold
        >>> from unrollax import Unfold
        >>> h = jnp.array([1.0, 4.0])
        >>> net = Unfold(lambda theta, x, problem: x - theta * h * (x - problem), lambda problem: jnp.zeros(2),
        ...              lambda x, problem: ((x - problem) ** 2).sum(), lambda key: jax.random.normal(key, (2,)), 3, 10)
        >>> plan = incremental([1, 2, 3], steps=20)
        >>> run = fit_unfold(net, per_step(0.2, 3, transform="log"), plan, optax.adam(0.02), key=jax.random.key(0))
        >>> run.metrics.info.depth[::20].tolist(), bool(run.metrics.info.level[-1] < run.metrics.info.level[0])
        ([1, 2, 3], True)
    """
    if isinstance(plan, type) or not callable(plan) or not all(hasattr(plan, n) for n in ("steps", "longest")):
        raise InvalidArgument(
            f"fit_unfold: plan must be callable and have steps and longest, got {describe(plan)}. Take one such as "
            "unrollax.one_shot(depth, steps)."
        )
    if net is None:  # which `UnfoldBPTT` leaves alone, for `vmap`
        raise InvalidArgument("fit_unfold: net must be an Unfold, got None. Make one with unrollax.unfold.")
    estimator = UnfoldBPTT(net, plan.longest, memory)
    steps = plan.steps if steps is None else steps
    check_counts("fit_unfold", steps=steps)
    staged = _staged(optimizer, plan) if plan.reset or plan.freeze else optimizer
    return fit(estimator, staged, params, plan, key=key, steps=steps, every=every, observe=observe, state=state)


class StagedState(NamedTuple):
    """An optimizer's state that knows where it is in a plan.

    Attributes:
        step: int32 scalar, the updates made.
        inner: the optimizer's own state.
    """

    step: Scalar
    inner: Any


@functools.lru_cache(maxsize=64)  # `fit` compiles once for equal optimizers, and functions equal only themselves
def _staged(optimizer: optax.GradientTransformation, plan: Plan) -> optax.GradientTransformation:
    """Return an optimizer that starts anew and holds entries as a plan says."""

    def init(params: Params) -> StagedState:
        return StagedState(jnp.zeros((), jnp.int32), strong(optimizer.init(params)))

    def update(grad: Params, state: StagedState, params: Params | None = None) -> tuple[Params, StagedState]:
        stage, inner = plan(state.step), state.inner
        if plan.reset:
            inner = jax.lax.cond(stage.first, lambda: strong(optimizer.init(params)), lambda: inner)
        if plan.freeze:
            grad = _held(grad, stage)
        updates, inner = optimizer.update(grad, inner, params)
        if plan.freeze:
            updates = _held(updates, stage)
        return updates, StagedState(state.step + 1, inner)

    return optax.GradientTransformation(init, update)


def _held(updates: Params, stage: Stage) -> Params:
    """Put 0 in the place of the entries that no iteration from `stage.before` to `stage.depth - 1` reads."""

    def hold(leaf: Any) -> Any:
        if not is_schedule(leaf) or leaf.kind == "shared":
            return leaf
        read = _read(leaf, stage.before, stage.depth)
        raw = jnp.where(read.reshape(-1, *[1] * (leaf.raw.ndim - 1)), leaf.raw, 0)
        return Schedule(raw, leaf.kind, leaf.transform, leaf.at)

    return jax.tree.map(hold, updates, is_leaf=is_schedule)


def _read(schedule: Schedule, begin: Scalar, end: Scalar) -> jax.Array:
    """Return which entries of a schedule the iterations begin, ..., end - 1 read, `[entries]`."""
    index = jnp.arange(schedule.entries)
    if schedule.kind == "periodic":
        return (index - begin) % len(index) < end - begin
    if schedule.kind == "per_step":
        return (index >= begin) & (index < end)
    far = np.iinfo(np.int32).max
    before = np.array([-far, *schedule.at[:-1]], np.int32)  # a knot weighs strictly between its neighbours
    after = np.array([*schedule.at[1:], far], np.int32)
    return jnp.maximum(begin, before + 1) < jnp.minimum(end, after)
