import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.testing import deal

KEY = jax.random.key(8)
THETA = np.array([0.7, -0.4])
ROWS = np.array([0.3, -1.2, 0.8, 0.1, -0.5, 1.1, 0.4, -0.9])


def step(params, state, x, key):
    h = jnp.tanh(params[0] * state["h"] + x)
    return {"h": h, "n": state["n"] + 1}, (h - params[1]) ** 2 * jnp.cos(params[0])


net = ux.system(init=lambda key, params: {"h": 0.5 * params[1], "n": 0}, step=step)


@jax.jit
def estimate(estimator, table, params, state, data):
    """One window of an estimator that draws from a table, `[directions or pairs, ...]`."""
    return replace(estimator, sampler=deal(table)).estimate(params, state, data)


def over_windows(estimator, tables, rows, count, params=THETA):
    state, out = estimator.init(KEY, params), []
    for table, data in zip(tables, np.split(rows, count), strict=True):
        state, got = estimate(estimator, table, params, state, data)
        out.append(got)
    return state, out


def mean_loss(params, steps):
    """The mean loss of the first steps, by a Python loop."""
    state, total = net.init(None, params), 0.0
    for x in ROWS[:steps]:
        state, loss = step(params, state, x, None)
        total = total + loss
    return total / steps


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_mean_over_all_signs_is_the_exact_gradient_of_an_episode(window):
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=2)))
    estimator = ux.ForwardGradient(net, window=window, horizon=4, directions=4)
    count = 8 // window
    _, estimates = over_windows(estimator, [signs] * count, np.tile(ROWS[:4], 2), count)
    expected = jax.jit(jax.grad(mean_loss), static_argnums=1)(THETA, 4)
    for episode in (estimates[: count // 2], estimates[count // 2 :]):
        np.testing.assert_allclose(np.mean([e.grad for e in episode], axis=0), expected, rtol=1e-12)
        np.testing.assert_allclose(np.mean([e.loss for e in episode]), mean_loss(THETA, 4), rtol=1e-13)


def test_a_direction_carries_its_derivative_across_windows():
    directions = np.random.default_rng(0).normal(size=(3, 2))
    state, estimates = over_windows(ux.ForwardGradient(net, window=2, directions=3), [directions] * 4, ROWS, 4)
    for windows in range(1, 5):
        slopes = directions @ np.asarray(jax.grad(mean_loss)(THETA, 2 * windows))
        expected = directions.T @ slopes / 3
        np.testing.assert_allclose(np.mean([e.grad for e in estimates[:windows]], axis=0), expected, rtol=1e-11)
    h = lambda params: ux.unroll(net, params, net.init(None, params), ROWS, KEY)[0]["h"]
    np.testing.assert_allclose(state.tangents[0], directions @ jax.jacobian(h)(THETA), rtol=1e-11)
    assert state.inner["n"] == 8


@pytest.mark.parametrize("window", [2, 4])
def test_nres_with_a_vanishing_std_is_the_forward_gradient_of_the_same_directions(window):
    tables = np.random.default_rng(1).normal(size=(8 // window, 3, 2))
    forward = ux.ForwardGradient(net, window=window, horizon=4, directions=3)
    _, expected = over_windows(forward, tables, ROWS, len(tables))
    errors = []
    for std in (1e-2, 1e-4):
        nres = ux.NRES(net, std=std, window=window, horizon=4, pairs=3)
        _, got = over_windows(nres, tables, ROWS, len(tables))
        errors.append(max(np.abs(a.grad - b.grad).max() for a, b in zip(got, expected, strict=True)))
    assert errors[1] < 1e-7
    assert errors[0] / errors[1] > 1e3  # of second order in std


def test_fresh_directions_are_credited_with_what_each_did_since_the_reset():
    """With J_a the derivative of the mean loss so far by what the params were in window a: the literal sum."""
    tables = np.random.default_rng(2).normal(size=(6, 2, 2))
    _, got = over_windows(ux.ForwardGradient(net, 1, 3, directions=2, resample=True), tables, ROWS[:6], 6)

    def losses(each, rows):  # the params of every window apart
        state, out = net.init(None, each[0]), []
        for params, x in zip(each, rows, strict=True):
            state, loss = step(params, state, x, None)
            out.append(loss)
        return jnp.stack(out)

    for episode in range(2):
        here = slice(3 * episode, 3 * episode + 3)
        slopes = np.asarray(jax.jacobian(losses)(jnp.tile(THETA, (3, 1)), ROWS[here]))  # [window, a, params]
        for window, estimate_ in enumerate(got[here]):
            expected = sum(
                tables[here][: window + 1, d].sum(0) * (slopes[window] * tables[here][:, d]).sum() for d in range(2)
            )
            np.testing.assert_allclose(estimate_.grad, expected / 2, rtol=1e-11)


def test_the_mean_over_all_signs_of_fresh_directions_is_the_exact_gradient():
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=4))).reshape(16, 2, 2)  # [draw, window, params]
    estimator = ux.ForwardGradient(net, window=2, horizon=4, directions=16, resample=True)
    _, estimates = over_windows(estimator, [*signs.swapaxes(0, 1)] * 2, np.tile(ROWS[:4], 2), 4)
    expected = jax.jit(jax.grad(mean_loss), static_argnums=1)(THETA, 4)
    for episode in (estimates[:2], estimates[2:]):
        np.testing.assert_allclose(np.mean([e.grad for e in episode], axis=0), expected, rtol=1e-12)


@pytest.mark.parametrize("window", [1, 2])
def test_pes_with_a_vanishing_std_is_the_forward_gradient_along_the_same_fresh_directions(window):
    tables = np.random.default_rng(1).normal(size=(8 // window, 3, 2))
    forward = ux.ForwardGradient(net, window=window, horizon=4, directions=3, resample=True)
    _, expected = over_windows(forward, tables, ROWS, len(tables))
    errors = []
    for std in (1e-2, 1e-4):
        _, got = over_windows(ux.PES(net, std=std, window=window, horizon=4, pairs=3), tables, ROWS, len(tables))
        errors.append(max(np.abs(a.grad - b.grad).max() for a, b in zip(got, expected, strict=True)))
    assert errors[1] < 1e-6
    assert errors[0] / errors[1] > 1e3  # of second order in std


def test_with_one_window_a_horizon_fresh_directions_are_those_of_the_reset():
    runs = []
    for resample in (False, True):
        estimator = ux.ForwardGradient(net, window=4, horizon=4, directions=2, resample=resample)
        scan = jax.jit(lambda s, e=estimator: jax.lax.scan(lambda s, x: e.estimate(THETA, s, x), s, ROWS.reshape(2, 4)))
        runs.append(scan(estimator.init(KEY, THETA))[1].grad)
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-13)


def test_resample_must_be_a_bool():
    with pytest.raises(
        ux.InvalidArgument, match=r"ForwardGradient: resample must be one of True, False, got resample=2"
    ):
        ux.ForwardGradient(net, window=1, resample=2)


def test_directions_are_drawn_at_a_reset_and_kept_to_the_next():
    estimator = ux.ForwardGradient(net, window=1, horizon=3, directions=2)
    scan = jax.jit(lambda s: jax.lax.scan(lambda s, x: (estimator.estimate(THETA, s, x)[0],) * 2, s, ROWS[:, None]))
    states = scan(estimator.init(KEY, THETA))[1]
    changed = (np.diff(states.noise, axis=0) != 0).all((1, 2))
    kept = (np.diff(states.noise, axis=0) == 0).all((1, 2))
    np.testing.assert_array_equal(changed, [False, False, True, False, False, True, False])
    np.testing.assert_array_equal(kept, ~changed)
    np.testing.assert_array_equal(states.inner["n"], [1, 2, 3, 1, 2, 3, 1, 2])


@pytest.mark.parametrize("directions", [1, 5])
def test_a_single_parameter_needs_one_sign_for_the_exact_gradient(directions):
    decay = ux.system(init=lambda key, p: 1.0, step=lambda p, s, x, key: (p * s, p * s))
    estimator = ux.ForwardGradient(decay, window=3, directions=directions, sampler=jax.random.rademacher)
    _, got = jax.jit(estimator.estimate)(0.5, estimator.init(KEY, 0.5), None)
    np.testing.assert_allclose(got.grad, (1 + 2 * 0.5 + 3 * 0.25) / 3, rtol=1e-15)


@pytest.mark.parametrize("window", [1, 4])
def test_a_complex_state_has_a_derivative(window):
    turn = ux.system(
        init=lambda key, p: 1 + 0j, step=lambda p, s, x, key: (s * jnp.exp(1j * p), (s * jnp.exp(1j * p)).real)
    )
    estimator = ux.ForwardGradient(turn, window=window, horizon=4, sampler=jax.random.rademacher)
    state, grads = estimator.init(KEY, 0.3), []
    for _ in range(4 // window):
        state, got = estimator.estimate(0.3, state, None)
        grads.append(got.grad)
    t = np.arange(1, 5)
    expected = (-t * np.sin(0.3 * t)).mean()
    np.testing.assert_allclose(np.mean(grads), expected, rtol=1e-13)
    bptt = ux.BPTT(turn, horizon=4)
    np.testing.assert_allclose(bptt.estimate(0.3, bptt.init(KEY, 0.3), None)[1].grad, expected, rtol=1e-13)


def test_memory_does_not_grow_with_the_window():
    wide = ux.system(
        init=lambda key, p: jnp.zeros(4096), step=lambda p, s, x, key: (jnp.tanh(p * s + jnp.sin(s) + x), (s**2).mean())
    )
    sizes = []
    for window in (8, 256):
        estimator = ux.ForwardGradient(wide, window=window)
        args = 0.5, estimator.init(KEY, 0.5), jnp.ones(window)
        sizes.append(jax.jit(estimator.estimate).lower(*args).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] + 4096 * 8  # less than one state more
