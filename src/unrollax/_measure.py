"""What advice predicts, measured with the advice applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax import _checkpointed
from unrollax._advise import Case
from unrollax._system import Repeat, checked_step, cut, rows_of, unroll_keys
from unrollax._tree import ravel, strong
from unrollax._types import Params, State
from unrollax._wrap import clip_loss
from unrollax.diagnosis import lyapunov
from unrollax.diagnosis._gradients import Problem, widest
from unrollax.estimators import BPTT

DRAWS = 16  # gradients near the params
NEAR = 0.01  # how near, relative to the params' norm
FINEST = 40  # halvings of a distance
DIRECTIONS, EXPLAINED = 8, 0.5  # random ones, and the share of the rises in them that a gradient is to explain
PAIRS = 128  # of perturbations, for a gradient of the averaged loss


def mean_loss(case: Case, params: Params, window: int | None = None, key: Any = None) -> jax.Array:
    """Return the mean step loss of a case; if a window is given, no derivative crosses from one to the next."""
    start, run = jax.random.split(case.key if key is None else key)
    state, keys = strong(case.system.init(start, params)), jax.random.split(run, case.horizon)
    window = min(window or case.horizon, case.horizon)
    many = case.horizon // window

    def part(state: State, data: Any, keys: Any) -> tuple[State, jax.Array]:
        after, losses = unroll_keys("diagnose", case.system, params, state, data, keys, whole=True)
        return jax.lax.stop_gradient(strong(after)), losses.sum()

    def at(state: State, index: jax.Array) -> tuple[State, jax.Array]:
        def some(leaf: Any) -> Any:
            is_repeat = isinstance(leaf, Repeat)
            return leaf if is_repeat else jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), index * window, window)

        data = jax.tree.map(some, case.data, is_leaf=lambda leaf: isinstance(leaf, Repeat))
        return part(state, data, some(keys))

    state, sums = jax.lax.scan(at, state, jnp.arange(many))
    rest = many * window
    if rest == case.horizon:
        return sums.sum() / case.horizon
    return (sums.sum() + part(state, cut(case.data, rest, case.horizon), keys[rest:])[1]) / case.horizon


def truncated_grad(case: Case, window: int) -> float:
    """Return the relative error of a gradient that crosses no window, by `jax.grad`, for another key."""
    key = jax.random.fold_in(case.key, 3)
    cut_short, whole = (
        ravel(jax.jit(jax.grad(lambda params, w=size: mean_loss(case, params, w, key)))(case.params))[0]
        for size in (window, None)
    )
    return float(jnp.linalg.norm(cut_short - whole) / jnp.linalg.norm(whole))


def radius(case: Case, largest: float) -> float:
    """Return the distance along the gradient up to which it predicts the loss' change to a factor of two.

    NaN if it does so at none of those that were tried, or can't be followed.
    """
    vector, unravel = ravel(case.params)
    loss = jax.jit(lambda vector: mean_loss(case, unravel(vector)))
    grad = jax.grad(lambda vector: mean_loss(case, unravel(vector)))(vector)
    norm, rounding = float(jnp.linalg.norm(grad)), 4 * _eps(vector) * abs(float(loss(vector)))
    if not math.isfinite(norm):
        return math.nan
    for size in largest * 0.5 ** np.arange(FINEST):
        if size * norm <= rounding:
            break
        step = size * grad / norm
        rise = float(loss(vector + step) - loss(vector - step)) / (2 * size)
        if 0.5 * norm <= rise <= 2 * norm:
            return float(size)
    return math.nan


class Foresight(NamedTuple):
    """What the exact gradient says of the loss at a distance.

    Attributes:
        distance: in units of params.
        norm: of the gradient.
        ratio: the rise of the loss along the gradient over what that says.
        along: whether it is 1 to a factor of two, as far as rounding lets one see.
        explained: share of the squared rises in random directions that it explains.
        changed: the largest change of the loss, 0 if that is within rounding; NaN if a loss is not finite.
    """

    distance: float
    norm: float
    ratio: float
    along: bool
    explained: float
    changed: float

    @property
    def good(self) -> bool:
        """Whether it predicts the loss, as `compare` asks of its reference."""
        return self.along and self.explained >= EXPLAINED


def foresight(case: Case, distances: Sequence[float], key: Any = None) -> Foresight:
    """Compare what the gradient says with what the loss does, in float64 where the system takes that.

    At the first distance; where the gradient is 0, at the first of them at which the loss changes.
    """
    with widest(Problem(case.system, case.params, case.data, case.horizon)) as (problem, _), np.errstate(all="ignore"):
        wide = case._replace(system=problem.system, params=problem.params, data=problem.data)
        vector, unravel = ravel(wide.params)
        grad = np.asarray(jax.jit(jax.grad(lambda v: mean_loss(wide, unravel(v))))(vector), np.float64)
        losses = jax.jit(lambda vs: jax.lax.map(lambda v: mean_loss(wide, unravel(v)), vs))
        draw = jax.random.normal(jax.random.fold_in(case.key, 4) if key is None else key, (DIRECTIONS, grad.size))
        random = np.asarray(draw, np.float64)
        norm = float(np.linalg.norm(grad))
        along = grad[None] / norm if norm and math.isfinite(norm) else np.zeros((1, grad.size))
        units = np.concatenate([along, random / np.linalg.norm(random, axis=1, keepdims=True)])
        for distance in distances:
            moves = np.concatenate([np.zeros((1, grad.size)), distance * units, -distance * units])
            values = np.asarray(losses(jnp.asarray(np.asarray(vector, np.float64) + moves, vector.dtype)), np.float64)
            seen = _seen(values, units, grad, distance, 4 * _eps(vector) * float(np.abs(values).max()))
            if norm or seen.changed:
                break
    return seen


def _seen(values: np.ndarray, units: np.ndarray, grad: np.ndarray, distance: float, rounding: float) -> Foresight:
    """Return what the losses at the params, and at a distance from them to either side, say of a gradient."""
    norm, unsure = float(np.linalg.norm(grad)), rounding / distance
    up, down = np.split(values[1:], 2)
    slopes, predicted = (up - down) / (2 * distance), units @ grad
    left = np.square(np.maximum(np.abs(slopes - predicted) - unsure, 0))[1:].sum()
    whole = np.square(slopes[1:]).sum()
    explained = 1.0 if left == 0 else float(1 - left / whole) if whole else -math.inf
    fits = bool(0.5 * norm - unsure <= slopes[0] <= 2 * norm + unsure)
    change = float(np.abs(values - values[0]).max())
    ratio = float(slopes[0]) / norm if norm else math.nan
    return Foresight(distance, norm, ratio, fits, explained, 0.0 if change <= rounding else change)


def smoothed_ratio(case: Case, std: float) -> float:
    """Return the rise of the averaged loss along an evolution strategy's gradient over what such a gradient says.

    The average is over noise of this std; the gradient that is followed and the one that says are of different noise.
    """
    vector, unravel = ravel(case.params)
    first, second = jax.random.normal(jax.random.fold_in(case.key, 6), (2, PAIRS, vector.size), vector.dtype)

    @jax.jit
    def rises(ahead: jax.Array, around: jax.Array) -> jax.Array:
        def rise(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            up, down = (mean_loss(case, unravel(vector + pair[1] + sign * pair[0])) for sign in (1, -1))
            return (up - down) / (2 * std)

        return jax.lax.map(rise, (ahead, around))

    grad = rises(std * first, 0 * first) @ first
    unit = grad / jnp.linalg.norm(grad)
    says = (rises(std * second, 0 * second) * (second @ unit)).mean()
    does = rises(jnp.broadcast_to(std * unit, second.shape), std * second).mean()
    return float(does / says)


def _eps(vector: jax.Array) -> float:
    return float(jnp.finfo(vector.dtype).eps)  # type: ignore[no-untyped-call]


def growth_over(case: Case, horizon: int) -> float:
    """Return what the fastest direction grows by over fewer steps, in nats."""
    data = cut(case.data, 0, horizon)
    found = lyapunov(case.system, case.params, data, key=case.key, steps=horizon, exponents=1)
    return horizon * float(found.exponents[0])


def backward_needs(case: Case) -> tuple[int, int]:
    """Return the bytes that a backward pass holds by the count of what steps keep: of a plain one, and with `"sqrt"`."""
    rows = (rows_of("diagnose", case.data, case.horizon), jax.random.split(case.key, case.horizon))
    state = strong(case.system.init(case.key, case.params))

    def step(params: Params, state: State, row: Any) -> tuple[State, jax.Array]:
        return checked_step("diagnose", case.system, params, state, *row)

    sizes = _checkpointed.sizes_of(step, case.params, state, rows)
    inner = _checkpointed.inner_lengths("diagnose", "sqrt", case.horizon, lambda: sizes)
    return _checkpointed.need(case.horizon, (), sizes), _checkpointed.need(case.horizon, inner, sizes)


def backward_bytes(case: Case) -> float:
    """Return the temporary bytes of the compiled gradient with `memory="sqrt"`."""
    bptt = BPTT(case.system, horizon=case.horizon, memory="sqrt")
    state = bptt.init(case.key, case.params)
    compiled = jax.jit(bptt.estimate).lower(case.params, state, case.data).compile()
    analysis: Any = compiled.memory_analysis()
    return float(analysis.temp_size_in_bytes)


def gradient_norms(case: Case, key: Any) -> np.ndarray:
    """Return the norms of some gradients at params near those of the case."""
    vector, unravel = ravel(case.params)
    width = NEAR * float(jnp.linalg.norm(vector)) / math.sqrt(vector.size)

    def norm(key: Any) -> jax.Array:
        noise, run = jax.random.split(key)
        near = vector + width * jax.random.normal(noise, vector.shape, vector.dtype)
        return jnp.linalg.norm(jax.grad(lambda v: mean_loss(case, unravel(v), key=run))(near))

    return np.asarray(jax.jit(lambda keys: jax.lax.map(norm, keys))(jax.random.split(key, DRAWS)))


def clipped_loss(case: Case, at: float) -> float:
    """Return the mean loss with the step losses bounded, for another key."""
    clipped = case._replace(system=clip_loss(case.system, at=at))
    return float(mean_loss(clipped, case.params, key=jax.random.fold_in(case.key, 3)))
