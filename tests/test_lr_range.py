from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux

KEY = jax.random.key(0)


def bowl(curvature, *, noise=0.0, offset=0.0):
    """Loss curvature / 2 |params - noise z|^2 + offset, z drawn anew at each step."""

    def step(params, state, x, key):
        z = jax.random.normal(key, jnp.shape(params))
        return state, offset + (curvature * (params - noise * z) ** 2).sum() / 2

    return ux.BPTT(ux.system(init=lambda key, params: (), step=step), horizon=1)


run = partial(ux.lr_range_test, data=None, key=KEY)


@pytest.mark.parametrize("curvature", [0.5, 10.0, 300.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_sgd_on_a_quadratic_diverges_at_two_over_its_curvature(curvature, smoothing):
    edge = 2 / curvature
    options = {"low": 1e-3 * edge, "high": 50 * edge, "steps": 80, "smoothing": smoothing}
    found = run(bowl(curvature), optax.sgd, jnp.array([3.0, -1.0]), **options)
    grid = found.rates[1] / found.rates[0]
    assert edge <= found.diverged * (1 + 1e-12) < edge * grid * (1 + 1e-9)  # the first rate of the grid above the edge
    assert found.low < found.best < found.high < found.diverged
    assert len(found.rates) < 80  # the run was stopped


@pytest.mark.parametrize("offset", [-50.0, -5.0])
def test_losses_below_zero_diverge_there_too(offset):
    """Near the edge from the start: a loss that has fallen below its rounding shows only later that it grows."""
    found = run(bowl(10.0, offset=offset), optax.sgd, jnp.ones(2), low=0.18, high=1.0, steps=60, smoothing=0.0)
    assert 0.2 <= found.diverged < 0.2 * found.rates[1] / found.rates[0]
    assert len(found.rates) < 60


def test_the_losses_are_those_of_a_loop_in_numpy():
    found = run(bowl(4.0), optax.sgd, jnp.array([3.0, -1.0]), low=1e-3, high=0.4, steps=45)  # blocks of 20, 20 and 5
    theta, losses = np.array([3.0, -1.0]), []
    for rate in 1e-3 * 400.0 ** (np.arange(45) / 44):
        losses.append(2 * (theta**2).sum())
        theta = theta - rate * 4 * theta
    np.testing.assert_allclose(found.losses, losses, rtol=1e-11)
    np.testing.assert_allclose(found.rates[[0, -1]], [1e-3, 0.4], rtol=1e-12)
    assert found.diverged is None


def test_adam_makes_the_updates_of_adam_with_a_growing_rate():
    found = run(bowl(4.0), optax.adam, jnp.array([3.0, -1.0]), low=1e-3, high=3.0, steps=60)
    theta, v, w, losses = np.array([3.0, -1.0]), 0.0, 0.0, []
    for t, rate in enumerate(found.rates, 1):
        losses.append(2 * (theta**2).sum())
        v, w = 0.9 * v + 0.1 * 4 * theta, 0.999 * w + 0.001 * (4 * theta) ** 2
        theta = theta - rate * (v / (1 - 0.9**t)) / (np.sqrt(w / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-9)
    assert found.found
    assert 1e-3 < found.low < found.best <= found.high < 3.0


def test_low_and_high_are_where_the_fall_begins_and_ends():
    found = run(bowl(1.0), optax.sgd, jnp.array([2.0]), low=1e-4, high=1.0, steps=200, smoothing=0.0)
    share = (found.losses[0] - found.losses) / (found.losses[0] - found.losses.min())
    begin, end = np.searchsorted(found.rates, [found.low, found.high])
    assert share[begin - 1] < 0.05 <= share[begin]
    assert share[end - 1] < 0.95 <= share[end]
    slope = np.diff(found.losses)
    assert abs(int(np.argmin(slope)) - np.searchsorted(found.rates, found.best)) <= 1


@pytest.mark.parametrize(("curvature", "offset"), [(0.0, 0.0), (0.0, 3.0), (1e-9, 1.0)])
def test_a_flat_loss_has_no_range(curvature, offset):
    found = run(bowl(curvature, offset=offset), optax.sgd, jnp.ones(2))
    assert not found.found
    assert np.isnan([found.low, found.best, found.high]).all()
    assert found.diverged is None
    assert "no range found: the loss never fell by more than its noise" in str(found)


def test_noise_alone_is_no_range():
    """Forty runs of pure noise: none claims a fall of six standard deviations."""

    def step(params, state, x, key):
        return state, 1.0 + jax.random.normal(key) + 0 * params

    noise = ux.BPTT(ux.system(init=lambda key, params: (), step=step), horizon=1)
    found = [ux.lr_range_test(noise, optax.sgd, 0.0, None, key=jax.random.key(seed)) for seed in range(40)]
    assert not any(each.found for each in found)


def test_a_fall_that_noise_does_not_hide_is_found_and_so_is_its_end():
    found = run(bowl(10.0, noise=0.3), optax.sgd, 3 * jnp.ones(50), low=1e-5, high=2.0, steps=120)
    assert found.low < found.best < found.high < 0.2
    assert found.high < found.diverged <= 0.3  # noise grows with the rate, and so the loss before it diverges at 0.2


def test_a_loss_that_grows_from_the_first_rate_on_says_so():
    found = run(bowl(1e7), optax.sgd, jnp.ones(2))
    assert not found.found
    assert found.diverged == found.rates[0]
    assert "Put low far below 1e-06" in str(found)


def test_a_loss_that_becomes_nan_ends_the_run():
    def step(params, state, x, key):
        return state, jnp.sqrt(params)  # SGD steps below 0

    root = ux.BPTT(ux.system(init=lambda key, params: (), step=step), horizon=1)
    found = run(root, optax.sgd, 1.0, low=1e-2, high=10.0, steps=50)
    assert np.isnan(found.losses[-1])
    assert np.isfinite(found.losses[:-1]).all()
    assert found.diverged == found.rates[-2]  # whose update went below 0
    assert found.found


def test_it_compiles_once_and_again_not_for_other_numbers():
    traces = []

    def step(params, state, x, key):
        traces.append(1)
        return state, x * (params**2).sum()

    estimator = ux.BPTT(ux.system(init=lambda key, params: (), step=step), horizon=1)
    data = lambda number: jnp.ones(1)
    ux.lr_range_test(estimator, optax.sgd, jnp.ones(2), data, key=KEY, steps=100)
    before = len(traces)
    ux.lr_range_test(estimator, optax.sgd, 2 * jnp.ones(2), data, key=KEY, low=1e-5, high=0.1, steps=60)
    assert len(traces) == before


def test_data_and_optimizers_are_as_for_fit():
    def step(params, state, x, key):
        return state, ((params - x) ** 2).sum()

    estimator = ux.BPTT(ux.system(init=lambda key, params: (), step=step), horizon=2)
    rows = np.random.default_rng(0).normal(size=(30, 2, 3))
    clipped = lambda rate: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate, momentum=0.9))
    options = {"key": KEY, "low": 1e-4, "high": 1e-2, "steps": 30}
    listed = ux.lr_range_test(estimator, clipped, jnp.zeros(3, jnp.float32), list(rows), **options)
    traced = ux.lr_range_test(estimator, clipped, jnp.zeros(3, jnp.float32), lambda i: jnp.asarray(rows)[i], **options)
    np.testing.assert_allclose(listed.losses, traced.losses, rtol=1e-6)
    assert len(listed.losses) == 30


def test_progress_is_told_and_the_result_is_plain():
    lines = []
    found = run(bowl(1.0), optax.sgd, jnp.ones(2), high=1e-3, steps=50, observe=lines.append)
    assert len(lines) == 3
    assert lines[-1].startswith("learning rate 0.001  loss ")
    plain = found.to_dict()
    assert len(plain["rates"]) == len(plain["smoothed"]) == 50
    assert plain["diverged"] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"low": 0.0}, "low must be a positive number"),
        ({"high": np.inf}, "high must be a positive number"),
        ({"low": 1.0, "high": 0.1}, "rates must grow"),
        ({"steps": 2}, "at least 3 steps"),
        ({"smoothing": 1.0}, "smoothing must be"),
        ({"stop": 1.0}, "stop must be a number above 1"),
        ({"optimizer": optax.adam(1e-3)}, "must be a function of the learning rate"),
        ({"optimizer": optax.inject_hyperparams(optax.sgd)}, "state must not hold the rate"),
        ({"data": [jnp.ones(1)] * 3}, "data must hold one window for each update, got 3"),
        ({"estimator": "BPTT"}, "estimator must have init and estimate"),
    ],
)
def test_it_says_what_does_not_fit(change, says):
    options = {"estimator": bowl(1.0), "optimizer": optax.sgd, "params": jnp.ones(2), **change}
    with pytest.raises(ux.InvalidArgument, match=f"lr_range_test: .*{says}"):
        run(**options)
