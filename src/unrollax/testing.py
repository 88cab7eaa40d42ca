"""What correct means: the checks that every gradient estimator passes. Public, for estimators of your own too.

    from unrollax.testing import parametrize_with_checks

    @parametrize_with_checks({"Mine": lambda system, *, window, horizon: Mine(system, window=window, horizon=horizon)})
    def test_conformance(check):
        check()

An entry makes an estimator for a system, a window and a horizon (an estimator with a `window` of its own, such as BPTT, may
ignore the one given). One that draws noise should have the fields `sampler` and `pairs` or `directions`: the kit then
replaces chance by all sign patterns, as draws of the sampler `deal(rows)`, and compares means to 1e-9; without them it falls
back on a statistical test (|z| < 5). A sampler is called under `vmap`, once a draw, for all parameters as one vector.
Make it without staggered resets: the kit expects all of an estimator to start anew when a horizon is over.

| check | oracle |
|---|---|
| `check_mean_is_exact` | all Rademacher sign patterns on a quadratic system, against the analytic gradient |
| `check_any_window_adds_up` | the same for windows of one step and of half a horizon |
| `check_window_is_horizon` | the limit: a window as long as the horizon leaves nothing out |
| `check_loss_is_the_mean` | a system whose losses are its data |
| `check_common_random_numbers` | a loss that is pure noise has gradient exactly 0 |
| `check_state_is_a_fixed_point` | structure, shapes, dtypes, weak types, on arbitrary pytrees |
| `check_traces_once` | the number of traces over windows and rebuilt values |
| `check_keys_advance` | no key recurs, in steps, in resets or in noise |
| `check_reset_forgets` | NaN in every float before a reset leaves no trace |
| `check_resume_is_bitwise` | the same bits through plain arrays |
| `check_sharding_invariance` | all devices against one, 1e-12 |
| `check_cost_is_documented` | marks counted in the traced program, against `traits.cost` |
| `check_scale_equivariance` | three times the loss gives three times the gradient |
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._count import count_marks
from unrollax._kit import (
    HORIZON,
    MIXED,
    WINDOW,
    WINDOWS,
    analytic,
    build,
    clock,
    close,
    count_of,
    documented,
    enumerated,
    equal,
    has_field,
    length,
    marked,
    mean_grad,
    mixed,
    noise_only,
    quadratic,
    recorder,
    recording,
    run,
    shard,
    signature,
    some_data,
    start,
    vector,
)
from unrollax._kit import deal as deal
from unrollax._tree import from_arrays, is_inexact, leaves_with_names, to_arrays
from unrollax._types import Data, Estimate, GradientEstimator, Key, Params, State
from unrollax._wrap import batched

Make = Callable[..., GradientEstimator]
ROW = np.zeros(3)  # one step of the data of `quadratic`
Check = Callable[[Make], None]


def parametrize_with_checks(cases: Mapping[str, Make], *, expected_failures: Mapping[str, str] | None = None) -> Any:
    """Return a pytest decorator that calls a test once for each estimator and check, with the argument `check`.

    Args:
        cases: name to `make(system, *, window, horizon)`.
        expected_failures: `"name-check_name"` to the reason why this one must fail; it is strict.

    Example:
        >>> from unrollax import BPTT
        >>> mark = parametrize_with_checks({"BPTT": lambda system, *, window, horizon: BPTT(system, horizon)})
        >>> len(mark.args[1])
        13
    """
    import pytest

    reasons = expected_failures or {}
    rows = []
    for name, make in cases.items():
        for check in checks_for(make):
            label = f"{name}-{check.__name__}"
            marks = [pytest.mark.xfail(reason=reasons[label], strict=True)] if label in reasons else []
            rows.append(pytest.param(functools.partial(check, make), id=label, marks=marks))
    return pytest.mark.parametrize("check", rows)


def checks_for(make: Make) -> list[Check]:
    """Return the checks that apply: a `pseudo` target is no gradient to be compared with, and costs may be unknown."""
    traits = getattr(make(quadratic(), window=WINDOW, horizon=HORIZON), "traits", None)
    pseudo = traits is not None and traits.target == "pseudo"
    unknown = traits is None or traits.cost is None
    skipped = [*(MEANS if pseudo else ()), *([check_cost_is_documented] if unknown else ())]
    return [check for check in CHECKS if check not in skipped]


def in_float64(check: Check) -> Check:
    """Run a check in double precision, whatever the caller's setting is."""

    @functools.wraps(check)
    def run(make: Make) -> None:
        with jax.enable_x64(True):
            check(make)

    return run


def _check_mean(make: Make, window: int) -> None:
    estimator = build(make, quadratic(), ROW, window)
    windows, data = HORIZON // length(estimator), some_data(WINDOWS)
    truncated = hasattr(estimator, "traits") and estimator.traits.target == "truncated"
    expected = analytic(quadratic(), window if truncated else None, data)
    rows = enumerated(estimator, windows)
    if rows is None:
        return _check_mean_by_chance(estimator, windows, data, expected)
    twice = (np.concatenate([part, part]) for part in (data, rows))
    _, estimates = run(estimator, 2 * windows, start(), next(twice), jax.random.key(1), next(twice))
    for name, part in (("first", estimates[:windows]), ("second", estimates[windows:])):
        close(f"mean gradient over the {name} episode", mean_grad(part), expected, 1e-9)
    return None


def _check_mean_by_chance(estimator: Any, windows: int, data: np.ndarray, expected: np.ndarray) -> None:
    pieces = np.concatenate([data, data]).reshape(2 * windows, -1, *data.shape[1:])

    def two_episodes(key: Key) -> jax.Array:
        def one(state: State, piece: Data) -> tuple[State, jax.Array]:
            state, estimate = estimator.estimate(start(), state, piece)
            return state, vector(estimate.grad)

        grads = jax.lax.scan(one, estimator.init(key, start()), pieces)[1]
        return grads.reshape(2, windows, -1).mean(1)

    grads = np.asarray(jax.jit(jax.vmap(two_episodes))(jax.random.split(jax.random.key(1), 4096)))
    error, scale = grads.mean(0) - expected, grads.std(0) / np.sqrt(len(grads))
    assert (np.abs(error) <= 5 * scale + 1e-9).all(), (
        f"mean gradient is off by {error / (scale + 1e-12)} standard errors"
    )


@in_float64
def check_mean_is_exact(make: Make) -> None:
    """The windows of a horizon average to the analytic gradient of the estimator's target, in two episodes on end."""
    _check_mean(make, WINDOW)


@in_float64
def check_any_window_adds_up(make: Make) -> None:
    """However a horizon is cut, its windows average to the gradient of the target: one step each, or two halves."""
    for window in (1, HORIZON // 2):
        _check_mean(make, window)


@in_float64
def check_window_is_horizon(make: Make) -> None:
    """With one window a horizon nothing can be truncated: the mean is the exact gradient."""
    _check_mean(make, HORIZON)


@in_float64
def check_loss_is_the_mean(make: Make) -> None:
    """The loss of an estimate is the mean step loss of its window."""
    estimator = build(make, clock(), jnp.zeros(()))
    data, size = np.arange(float(HORIZON)), length(estimator)
    for index, estimate in enumerate(run(estimator, HORIZON // size, start(), data, jax.random.key(2))[1]):
        close("loss", estimate.loss, data[index * size : (index + 1) * size].mean(), 1e-12)


@in_float64
def check_common_random_numbers(make: Make) -> None:
    """A loss that is all noise has gradient exactly 0: what is compared shares every random number."""
    estimator = build(make, noise_only(), None)
    for estimate in run(estimator, 4, start(), None, jax.random.key(2))[1]:
        assert (vector(estimate.grad) == 0).all(), f"a loss of pure noise gave the gradient {estimate.grad}"


@in_float64
def check_state_is_a_fixed_point(make: Make) -> None:
    """The state keeps structure, shapes, dtypes and weak types; the gradient has those of the parameters."""
    estimator = build(make, mixed(), None)
    states, estimates = run(estimator, 4, MIXED, None, jax.random.key(3))
    first = signature(states[0])
    for state in states[1:]:
        assert signature(state) == first, f"the state changed from {first} to {signature(state)}"
    expected = [(name, np.shape(leaf), jnp.result_type(leaf)) for name, leaf in leaves_with_names(MIXED)]
    for estimate in estimates:
        got = [(name, leaf.shape, leaf.dtype) for name, leaf in leaves_with_names(estimate.grad)]
        assert got == expected, f"grad must have the leaves of params {expected}, got {got}"
        assert estimate.loss.shape == (), f"loss must be a scalar, got shape {estimate.loss.shape}"


@in_float64
def check_traces_once(make: Make) -> None:
    """One trace serves every window, every key and every value rebuilt with other numbers."""
    count = 0

    @jax.jit
    def estimate(estimator: Any, params: Params, state: State, data: Data) -> tuple[State, Estimate]:
        nonlocal count
        count += 1
        out: tuple[State, Estimate] = estimator.estimate(params, state, data)
        return out

    body = quadratic()
    first = build(make, body, ROW)
    data = some_data(WINDOWS)[: length(first)]
    for estimator in (
        first,
        jax.tree.map(lambda number: number * 1.5, first),
        build(make, body, ROW),
    ):
        state = estimator.init(jax.random.key(4), start())
        for scale in (1.0, 2.0):
            state, _ = estimate(estimator, jax.tree.map(lambda leaf, by=scale: by * leaf, start()), state, data)
    assert count == 1, f"estimate was traced {count} times over windows and rebuilt values"


@in_float64
def check_keys_advance(make: Make) -> None:
    """No key recurs: each step, each reset and each draw of noise has a new one, and pairs do not share theirs."""
    steps: list[tuple[int, bytes]] = []
    draws: list[bytes] = []
    estimator: Any = build(make, recorder(steps), None)
    if has_field(estimator, "sampler"):
        estimator = dataclasses.replace(estimator, sampler=recording(estimator.sampler, draws))
    state = estimator.init(jax.random.key(5), start())
    jax.effects_barrier()
    steps.clear()
    seen: set[bytes] = set()
    call = jax.jit(estimator.estimate)
    for _ in range(2 * WINDOWS):
        state, _estimate = call(start(), state, None)
        jax.effects_barrier()
        times = defaultdict(set)
        for now, key in steps:
            times[key].add(now)
        assert times, "no step was run"
        assert not seen & set(times), "a step or a reset saw the key of an earlier window"
        assert all(len(when) == 1 for when in times.values()), "one key was used at two different steps"
        at_once = sum(0 in when for when in times.values()) or len(times) // length(estimator)
        pairs = getattr(estimator, "pairs", 1)
        assert at_once >= pairs, f"{pairs} pairs shared {at_once} keys at one step"
        seen |= set(times)
        steps.clear()
    assert len(draws) == len(set(draws)), "a key drew noise twice"
    assert not seen & set(draws), "noise and the system shared a key"


@in_float64
def check_reset_forgets(make: Make) -> None:
    """NaN in every float of the state at the end of a horizon leaves no trace in the next one."""
    estimator = build(make, quadratic(), ROW)
    windows = HORIZON // length(estimator)
    data, params = some_data(WINDOWS), start()
    state = run(estimator, windows, params, data, jax.random.key(6))[0][-1]
    poisoned = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan) if is_inexact(leaf) else leaf, state)
    call = jax.jit(estimator.estimate)
    equal(
        "after a reset",
        call(params, poisoned, data[: length(estimator)]),
        call(params, state, data[: length(estimator)]),
    )


@in_float64
def check_resume_is_bitwise(make: Make) -> None:
    """A state that was written out as plain arrays and read back goes on with the same bits."""
    estimator = build(make, quadratic(), ROW)
    data, params = some_data(WINDOWS), start()
    piece, call = data[: length(estimator)], jax.jit(estimator.estimate)
    state, _ = call(params, estimator.init(jax.random.key(7), params), piece)
    restored = from_arrays(state, to_arrays(state))
    equal("resumed", call(params, restored, piece), call(params, state, piece))
    elsewhere = jax.jit(lambda *now: estimator.estimate(*now))  # traced anew, as in another process
    fresh = from_arrays(estimator.init(jax.random.key(8), params), to_arrays(state))
    equal("resumed in a new process", elsewhere(params, fresh, piece), call(params, state, piece))


@in_float64
def check_sharding_invariance(make: Make) -> None:
    """A state spread over all devices gives the estimate of one device, to 1e-12."""
    devices = len(jax.devices())
    if devices < 2:
        raise RuntimeError(
            "check_sharding_invariance needs several devices, got 1. Set the environment variable "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 before jax is imported."
        )
    estimator: Any = build(make, batched(quadratic(), devices), jnp.zeros((devices, 3)))
    count = count_of(estimator)
    if count is not None:
        estimator = dataclasses.replace(estimator, **{count: devices})
    data = np.random.default_rng(0).normal(size=(length(estimator), devices, 3))
    params, call = start(), jax.jit(estimator.estimate)
    state, _ = call(params, estimator.init(jax.random.key(9), params), data)
    _, alone = call(params, state, data)
    _, spread = call(params, jax.tree.map(shard, state), data)
    close("gradient", vector(spread.grad), vector(alone.grad), 1e-12)
    close("loss", spread.loss, alone.loss, 1e-12)


@in_float64
def check_scale_equivariance(make: Make) -> None:
    """Three times the loss gives three times the gradient: swapping losses or estimators never rescales a learning rate."""
    grads = []
    for scale in (1.0, 3.0):
        estimator = build(make, quadratic(scale), ROW)
        windows = HORIZON // length(estimator)
        estimates = run(estimator, windows, start(), some_data(WINDOWS), jax.random.key(10))[1]
        grads.append(np.stack([vector(estimate.grad) for estimate in estimates]))
    close("gradient of three times the loss", grads[1], 3 * grads[0], 1e-9)


@in_float64
def check_cost_is_documented(make: Make) -> None:
    """The passes through the system that `traits.cost` promises are those that a call makes, on part of a horizon or all."""
    for window in (WINDOW, HORIZON):
        estimator: Any = build(make, marked(), ROW, window)
        steps = length(estimator)
        state = estimator.init(jax.random.key(11), start())
        counts = count_marks(estimator.estimate, start(), state, some_data(WINDOWS)[:steps])
        if counts is None:
            raise AssertionError("the passes depend on a loop whose length is known at run time only: document no cost")
        for kind, passes in documented(estimator).items():
            close(f"{kind} passes with a window of {steps} steps", counts[kind] / steps, passes, 1e-9)


MEANS: tuple[Check, ...] = (
    check_mean_is_exact,
    check_any_window_adds_up,
    check_window_is_horizon,
    check_scale_equivariance,
)
CHECKS: tuple[Check, ...] = (
    check_mean_is_exact,
    check_any_window_adds_up,
    check_window_is_horizon,
    check_loss_is_the_mean,
    check_common_random_numbers,
    check_state_is_a_fixed_point,
    check_traces_once,
    check_keys_advance,
    check_reset_forgets,
    check_resume_is_bitwise,
    check_sharding_invariance,
    check_cost_is_documented,
    check_scale_equivariance,
)
