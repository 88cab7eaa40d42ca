"""Training: an estimator and an optimizer, in the same shape as everything else, and the loop that drives them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrollax._check import check_counts, check_like, check_params
from unrollax._cores import freed
from unrollax._errors import Diverged, InvalidArgument
from unrollax._feed import Stacked, Traced, feeds_of, gather
from unrollax._tree import Static, all_finite, combine, is_inexact, leaves_with_names, partition, strong
from unrollax._types import Data, GradientEstimator, Key, Params, Scalar, State
from unrollax._value import static, value


class TrainState(NamedTuple):
    """All that the next update needs.

    Attributes:
        step: int32 scalar, the updates made so far.
        params: what is trained.
        estimator: the estimator's state.
        optimizer: the optimizer's state.
    """

    step: Scalar
    params: Params
    estimator: State
    optimizer: State


class Metrics(NamedTuple):
    """What one update says; `fit` stacks them along a first axis.

    Attributes:
        loss: mean step loss over the window, before the update.
        grad_norm: Euclidean norm of the gradient estimate.
        finite: whether every parameter is finite after the update.
        info: the estimator's `info`.
    """

    loss: Scalar
    grad_norm: Scalar
    finite: Scalar
    info: Any


class Progress(NamedTuple):
    """What `observe` is called with after each block of updates; `observe=print` prints one line of it.

    Attributes:
        step: updates made so far, of this and earlier calls of `fit` on the same state.
        end: `step` when this call will be done.
        done: updates made so far in this call.
        metrics: `Metrics` of NumPy arrays, `[updates of the block, ...]`.
        state: the `TrainState`; its buffers are reused by the next block, so copy what you keep.
        seconds: wall time of the updates so far in this call, without what `observe` took.
        compile_seconds: wall time of compilation, which `seconds` leaves out.
    """

    step: int
    end: int
    done: int
    metrics: Metrics
    state: TrainState
    seconds: float
    compile_seconds: float

    def __str__(self) -> str:
        rate = self.done / max(self.seconds, 1e-9)
        return (
            f"update {self.step}/{self.end}  loss {self.metrics.loss.mean():.4g}  "
            f"gradient norm {self.metrics.grad_norm.mean():.3g}  {rate:.3g} updates/s  "
            f"{_clock((self.end - self.step) / rate)} left"
        )


class Fit(NamedTuple):
    """What `fit` returns: the last `TrainState`, and `Metrics` of NumPy arrays `[steps, ...]`."""

    state: TrainState
    metrics: Metrics

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return self.state.params


@value
class Training:
    """An estimator and an optax optimizer: one update is one window.

    Args:
        estimator: any object with `init` and `estimate`.
        optimizer: an `optax.GradientTransformation`.

    Example:
        >>> import optax, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> training = ux.Training(ux.BPTT(decay, horizon=3), optax.sgd(0.1))
        >>> state, metrics = jax.jit(training.step)(training.init(jax.random.key(0), 0.5), None)
        >>> metrics.loss
        Array(0.109375, dtype=float32)
    """

    estimator: GradientEstimator
    optimizer: optax.GradientTransformation = static()

    def init(self, key: Key, params: Params) -> TrainState:
        """Return the state before the first update, a copy throughout: it may be donated and `params` still used."""
        params = check_params("Training", params)
        optimizer = strong(self.optimizer.init(params))
        state = TrainState(jnp.zeros((), jnp.int32), params, self.estimator.init(key, params), optimizer)
        return jax.tree.map(jnp.copy, state)

    def step(self, state: TrainState, data: Data) -> tuple[TrainState, Metrics]:
        """Estimate the gradient on one window and make one update."""
        estimator, (loss, grad, info) = self.estimator.estimate(state.params, state.estimator, data)
        updates, optimizer = self.optimizer.update(grad, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = Metrics(loss, optax.tree.norm(grad), all_finite(params), info)
        return TrainState(state.step + 1, params, estimator, optimizer), metrics


def fit(
    estimator: GradientEstimator,
    optimizer: optax.GradientTransformation,
    params: Params,
    data: Iterable[Data] | Callable[[Any], Data] | None,
    *,
    key: Key,
    steps: int,
    every: int = 100,
    observe: Callable[[Progress], None] | None = None,
    state: TrainState | None = None,
) -> Fit:
    """Train: make `steps` updates, many to one compiled program.

    A block of `every` updates is one dispatch without a word from the host; buffers are donated from block to block. The
    result does not depend on `every`, and continuing from a returned state gives the same bits as one longer call.

    Args:
        estimator: where gradients come from; one window of data an update.
        optimizer: any `optax.GradientTransformation`.
        params: the parameters to start from; they are copied.
        data: a callable of the update's number (a traced int32, counted from 0 over all calls) that returns a window; or
            an iterable of windows, made on the host (to continue a run, pass an iterator that stands where it ended); or
            `None` for systems without data.
        key: a PRNG key; all randomness comes from it.
        steps: updates to make in this call.
        every: updates between two calls of `observe`, and to a dispatch.
        observe: called with a `Progress` after each block; `print` will do.
        state: a `TrainState` to continue from; `params` and `key` are then not used.

    Returns:
        The last state (`.params` are the parameters) and the metrics of every update.

    Raises:
        Diverged: a parameter became NaN or infinite.
        InvalidArgument: a count is no positive whole number, state is no `TrainState`, or the iterable ended early.
        StructureError: data, parameters, the system's state or the state to continue from don't fit.

    Example:
        >>> import optax, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> run = ux.fit(ux.BPTT(decay, horizon=3), optax.sgd(0.5), 0.5, None, key=jax.random.key(0), steps=50)
        >>> run.metrics.loss.shape
        (50,)
    """
    check_counts("fit", steps=steps, every=every)
    _check_parts(estimator, optimizer, observe)
    training = Training(freed(estimator), optimizer)
    state = freed(training.init(key, params) if state is None else _continued(training, state))
    every = min(every, steps)
    feeds = feeds_of(freed(data), every, steps)
    feed, start, seconds = next(feeds), int(state.step), 0.0
    collected: list[Metrics] = []
    began = time.perf_counter()
    state, _ = freed(jax.block_until_ready(_run(training, feed, state, 0, every)))  # compiles, and makes no update
    compile_seconds = time.perf_counter() - began
    for done in range(0, steps, every):
        count, began = min(every, steps - done), time.perf_counter()
        state, metrics = _run(training, feed, state, count, every)
        upcoming = gather(feeds, feed)  # on the host, while the device works
        metrics = jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:n], metrics)
        state = freed(state)
        seconds += time.perf_counter() - began
        _raise_if_diverged(metrics, feed, start + done)
        collected.append(metrics)
        if observe is not None:
            now = done + count
            observe(Progress(start + now, start + steps, now, metrics, state, seconds, compile_seconds))
        if isinstance(upcoming, Exception):
            raise upcoming
        feed = upcoming
    return Fit(state, jax.tree.map(lambda *parts: np.concatenate(parts), *collected))


def _clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss.

    Example:
        >>> _clock(3725)
        '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _check_parts(estimator: Any, optimizer: Any, observe: Any) -> None:
    for owner, part, names, remedy in (
        ("estimator", estimator, ("init", "estimate"), "Pass one such as unrollax.PES(system, ...)."),
        ("optimizer", optimizer, ("init", "update"), "Pass an optax optimizer such as optax.adam(1e-3)."),
    ):
        if isinstance(part, type) or not all(callable(getattr(part, name, None)) for name in names):
            got = f"the class {part.__name__}" if isinstance(part, type) else type(part).__name__
            raise InvalidArgument(f"fit: {owner} must have {' and '.join(names)}, got {got}. {remedy}")
    if observe is not None and not callable(observe):
        raise InvalidArgument(
            f"fit: observe must be a function of a Progress, got {type(observe).__name__}. Try print."
        )


def _continued(training: Training, state: Any) -> TrainState:
    """Return a copy of a state; raise unless it is one of this training."""
    if not isinstance(state, TrainState):
        remedy = "Pass run.state." if isinstance(state, Fit) else "Pass the state of what an earlier fit returned."
        raise InvalidArgument(f"fit: state must be a TrainState, got {type(state).__name__}. {remedy}")
    state = jax.tree.map(jnp.copy, state)
    like = jax.eval_shape(training.init, jax.random.key(0), state.params)
    check_like("fit", "state", state, like, "Continue with the estimator, optimizer and system that it comes from.")
    return state


def _run(training: Training, feed: Any, state: TrainState, count: int, size: int) -> tuple[TrainState, Metrics]:
    arrays, rest = partition((training, feed))
    out: tuple[TrainState, Metrics] = _block(arrays, rest, state, count, size)
    return out


@functools.partial(jax.jit, static_argnums=(1, 4), donate_argnums=(2,))
def _block(arrays: list[Any], rest: Static, state: TrainState, count: Any, size: int) -> tuple[TrainState, Metrics]:
    """Make `count` updates. The count is traced: one program serves every block, the last one and the empty one too."""
    training, feed = combine(arrays, rest)

    def update(index: Scalar, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, collected = carry
        state, metrics = training.step(state, feed.window(state.step, index))
        return state, jax.tree.map(lambda rows, row: rows.at[index].set(row), collected, metrics)

    shapes = jax.eval_shape(lambda s: training.step(s, feed.window(s.step, jnp.int32(0)))[1], state)
    empty = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, update, (state, empty))


def _raise_if_diverged(metrics: Metrics, feed: Traced | Stacked, done: int) -> None:
    if metrics.finite.all():
        return
    bad = int(np.argmin(metrics.finite))
    share = getattr(metrics.info, "nonfinite", None)
    nonfinite = None if share is None else float(share[bad])
    particles = "" if nonfinite is None else f", {100 * nonfinite:.3g} % of the trajectories non-finite"
    raise Diverged(
        f"fit: parameters must stay finite, got NaN or infinity at step {done + bad + 1} (loss {metrics.loss[bad]:.4g}, "
        f"gradient norm {metrics.grad_norm[bad]:.4g}{particles}). {_remedy(feed, done, bad)}",
        step=done + bad + 1,
        nonfinite=nonfinite,
    )


def _remedy(feed: Traced | Stacked, done: int, bad: int) -> str:
    """Say what to do: mend the data if that window holds non-finite numbers, else tame the updates."""
    window = feed.window(jnp.int32(done + bad), jnp.int32(bad))
    named = leaves_with_names(window)
    names = [name for name, leaf in named if is_inexact(leaf) and not np.isfinite(np.asarray(leaf, np.float64)).all()]
    if names:
        return f"The data of that window hold NaN or infinity in {', '.join(names)}: mend them there."
    return (
        "Lower the learning rate, bound the updates with optax.clip_by_global_norm, or bound the step losses with "
        "unrollax.clip_loss(system, at=)."
    )
