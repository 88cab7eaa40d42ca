"""The learning rate range test: a short run in which the rate grows, and what its losses say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrollax._check import POSITIVE, Rule, check_counts, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._feed import Stacked, Traced, feeds_of
from unrollax._train import Training, TrainState
from unrollax._tree import Static, combine, is_key, partition
from unrollax._types import Data, GradientEstimator, Key, Params, Scalar
from unrollax.diagnosis._lr_reading import LRRange, Plan, end_of, read

EVERY = 20  # updates to a dispatch: what may be made in vain after the loss has gone
BELOW_ONE = Rule("a number of at least 0 and below 1", lambda number: (number >= 0) & (number < 1))
ABOVE_ONE = Rule("a number above 1", lambda number: (number > 1) & np.isfinite(number))

Optimizer = Callable[[Any], optax.GradientTransformation]


def lr_range_test(
    estimator: GradientEstimator,
    optimizer: Optimizer,
    params: Params,
    data: Iterable[Data] | Callable[[Any], Data] | None,
    *,
    key: Key,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    smoothing: float = 0.8,
    stop: float = 4.0,
    observe: Callable[[str], None] | None = None,
) -> LRRange:
    """Find out which learning rates train, by one short run in which the rate grows at every update.

    Update i is made with the rate `low (high / low)**(i / (steps - 1))`, all by one compiled program. The run ends where the
    average loss exceeds `stop` times its best value, and that by more than its noise, or a number is not finite. (Averages
    are those of logarithms as long as losses are positive.) Of the fall of the smoothed loss, from its first to its best
    value, `low` is where 5 % is done, `high` where 95 % is, and `best` the steepest point between them. A fall counts where
    it exceeds six standard deviations of the noise that smoothing leaves.

    Use `high` as the largest rate of a schedule, `low` as its smallest, or `best` as one rate for all. What it finds holds
    for the start of training and for this estimator's noise; `high` also depends on `steps`, since each rate has but a few
    updates to show what it does. Where one direction alone is unstable, the loss shows it some updates late. Losses that
    are mostly noise need more steps and more smoothing, or larger batches.

    Args:
        estimator: where gradients come from, as for `fit`.
        optimizer: makes an optax optimizer from a rate, such as `optax.adam`, or
            `lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))`. The rate is a traced scalar.
        params: the parameters to start from; they are not changed.
        data: as for `fit`: a callable of the update's number, an iterable of windows, or `None`.
        key: a PRNG key; all randomness comes from it.
        low: the first rate.
        high: the last rate.
        steps: updates, and so rates.
        smoothing: weight of a neighbour's loss in the smoothed loss, and of one twice as far its square; 0 for none.
        stop: multiple of the best average loss at which the run ends. Where losses are negative, the average may rise above
            its best by `stop - 1` times that one's size, or the fall so far.
        observe: called with a line of progress every 20 updates.

    Raises:
        InvalidArgument: an argument out of range, an optimizer that is no function of a rate, or data that end early.

    Example:
        >>> import jax, optax, unrollax as ux
        >>> bowl = ux.system(init=lambda k, p: (), step=lambda p, s, x, k: (s, 5.0 * (p**2).sum()))  # curvature 10
        >>> estimator = ux.BPTT(bowl, horizon=1)
        >>> found = ux.lr_range_test(
        ...     estimator, optax.sgd, jax.numpy.ones(2), None, key=jax.random.key(0), low=1e-4, steps=50, smoothing=0.0
        ... )
        >>> print(f"{found.diverged:.1f}")  # 2 / curvature
        0.2

    References: Smith, WACV 2017, Cyclical learning rates for training neural networks (section 3.3). There the range is
        read off a plot of the accuracy; the thresholds here are ours.
    """
    check_counts("lr_range_test", steps=steps)
    for name, number, rule in (
        ("low", low, POSITIVE),
        ("high", high, POSITIVE),
        ("smoothing", smoothing, BELOW_ONE),
        ("stop", stop, ABOVE_ONE),
    ):
        check_number("lr_range_test", name, number, rule, used=True)
    if not low < high or steps < 3:
        raise InvalidArgument(
            f"lr_range_test: rates must grow over at least 3 steps, got low={low}, high={high}, steps={steps}. "
            "Put low below high."
        )
    _check_parts(estimator, optimizer)
    plan = Plan(np.geomspace(low, high, steps), float(smoothing), float(stop))
    state = Training(estimator, optimizer(low)).init(key, params)
    _check_stateless(optimizer, state.params, low, high)
    losses, ended = _run(state, estimator, optimizer, data, plan, observe)
    return read(losses, plan, ended=ended)


def _check_parts(estimator: Any, optimizer: Any) -> None:
    if not all(callable(getattr(estimator, name, None)) for name in ("init", "estimate")):
        raise InvalidArgument(
            f"lr_range_test: estimator must have init and estimate, got {type(estimator).__name__}. Pass one such as "
            "unrollax.BPTT(system, horizon=)."
        )
    if not callable(optimizer) or hasattr(optimizer, "update"):
        raise InvalidArgument(
            f"lr_range_test: optimizer must be a function of the learning rate, got {type(optimizer).__name__}. Pass "
            "optax.adam, not optax.adam(1e-3), or lambda rate: optax.chain(..., optax.sgd(rate))."
        )


def _check_stateless(optimizer: Optimizer, params: Params, low: float, high: float) -> None:
    """Raise if an optimizer keeps its rate in its state, where it would stay what it was at first."""
    first, last = (jax.tree.leaves(optimizer(rate).init(params)) for rate in (low, high))
    if not all(np.array_equal(a, b) for a, b in zip(first, last, strict=True)):
        raise InvalidArgument(
            "lr_range_test: the optimizer's state must not hold the rate, got one that does. Pass optax.adam, not "
            "optax.inject_hyperparams(optax.adam)."
        )


def _run(
    state: TrainState,
    estimator: Any,
    optimizer: Optimizer,
    data: Any,
    plan: Plan,
    observe: Callable[[str], None] | None,
) -> tuple[np.ndarray, bool]:
    """Return the losses before each update, up to the one at which the run is to end, and whether it did."""
    steps = len(plan.rates)
    every = min(EVERY, steps)
    feeds, losses = feeds_of(data, every, steps), np.zeros(0)
    for done in range(0, steps, every):
        rates = np.full(every, plan.rates[-1])
        rates[: min(every, steps - done)] = plan.rates[done : done + every]
        arrays, rest = partition((estimator, _next(feeds)))
        state, block = _block(arrays, rest, optimizer, state, jnp.asarray(rates, float))
        losses = np.append(losses, np.asarray(block, np.float64)[: steps - done])
        end = end_of(losses, plan)
        if observe is not None:
            observe(f"learning rate {plan.rates[len(losses) - 1]:.3g}  loss {losses[-1]:.4g}")
        if end is not None:
            return losses[: end + 1], True
    return losses, False


def _next(feeds: Iterator[Traced | Stacked]) -> Traced | Stacked:
    """Return the next block's data; errors name this test."""
    try:
        return next(feeds)
    except (InvalidArgument, StructureError) as error:
        raise type(error)(str(error).replace("fit:", "lr_range_test:", 1)) from error


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=(3,))
def _block(
    arrays: list[Any], rest: Static, optimizer: Optimizer, state: TrainState, rates: Any
) -> tuple[TrainState, Any]:
    """Make an update with each of the rates. The optimizer is made anew for each: its state does not hold the rate."""
    estimator, feed = combine(arrays, rest)

    def update(state: TrainState, now: tuple[Scalar, Scalar]) -> tuple[TrainState, Scalar]:
        rate, index = now
        after, metrics = Training(estimator, optimizer(rate)).step(state, feed.window(state.step, index))
        return jax.tree.map(lambda new, old: new if is_key(old) else new.astype(old.dtype), after, state), metrics.loss

    return jax.lax.scan(update, state, (rates, jnp.arange(len(rates), dtype=jnp.int32)))
