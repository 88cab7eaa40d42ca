import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(4)
PARAMS = {"w": jnp.array([0.8, -0.5]), "b": jnp.array(0.3)}
DATA = jax.random.normal(jax.random.key(9), (12,))


def start(key, params):
    return params["b"] * jnp.array([1.0, 2.0])


def noisy_start(key, params):
    return start(key, params) + jax.random.normal(key, (2,))


def step(params, state, x, key):
    state = jnp.tanh(params["w"] * state + x + params["b"])
    return state, (state[0] * state[1] - x) ** 2


def noisy_step(params, state, x, key):
    return step(params, state, x + 0.1 * jax.random.normal(key, ()), key)


net = ux.system(init=start, step=step)
noisy = ux.system(init=noisy_start, step=noisy_step)
CASES = [(1, 4), (2, 6), (3, 3), (2, None)]


def windows(estimator, params, data, count, update=lambda params, grad: params):
    state, run, out = estimator.init(KEY, params), jax.jit(estimator.estimate), []
    for rows in jnp.split(data, count):
        state, estimate = run(params, state, rows)
        out.append(estimate)
        params = update(params, estimate.grad)
    return state, out


def close(a, b, rtol=1e-11):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-13), a, b)


def test_bptt_is_the_gradient_of_a_python_loop():
    def loss(params):
        state, total = start(None, params), 0.0
        for x in DATA:
            state, loss = step(params, state, x, None)
            total = total + loss
        return total / len(DATA)

    expected, grad = jax.jit(jax.value_and_grad(loss))(PARAMS)
    _, (first, second) = windows(ux.BPTT(net, horizon=12), PARAMS, jnp.tile(DATA, 2), 2)
    close(first.grad, grad)
    close(first.loss, expected)
    close(second, first, rtol=0)


@pytest.mark.parametrize(("window", "horizon"), CASES)
def test_tbptt_stops_the_gradient_between_windows(window, horizon):
    def loss(params, state, rows, reset):
        state = start(None, params) if reset else jax.lax.stop_gradient(state)
        total = 0.0
        for x in rows:
            state, loss = step(params, state, x, None)
            total = total + loss
        return total / len(rows), state

    descend = lambda params, grad: jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)
    count = len(DATA) // window
    _, estimates = windows(ux.TBPTT(net, window, horizon), PARAMS, DATA, count, descend)
    literal = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=3)
    params, state = PARAMS, jnp.zeros(2)
    for index, (rows, estimate) in enumerate(zip(jnp.split(DATA, count), estimates, strict=True)):
        reset = index * window % horizon == 0 if horizon else index == 0
        (expected, state), grad = literal(params, state, rows, reset)
        close((estimate.loss, estimate.grad), (expected, grad))
        params = descend(params, grad)


def test_tbptt_with_one_window_a_horizon_is_bptt_to_the_bit():
    runs = [windows(e, PARAMS, DATA, 3) for e in (ux.TBPTT(noisy, window=4, horizon=4), ux.BPTT(noisy, horizon=4))]
    jax.tree.map(np.testing.assert_array_equal, runs[0][1], runs[1][1])
    assert len({float(estimate.loss) for estimate in runs[0][1]}) == 3  # every episode has a start of its own


def test_windows_of_an_episode_average_to_bptt_when_nothing_crosses_them():
    forgetful = ux.system(init=start, step=lambda p, s, x, key: step(p, jnp.ones(2), x, key))
    _, parts = windows(ux.TBPTT(forgetful, window=3, horizon=12), PARAMS, DATA, 4)
    _, (whole,) = windows(ux.BPTT(forgetful, horizon=12), PARAMS, DATA, 1)
    close(jax.tree.map(lambda *leaves: sum(leaves) / 4, *[part.grad for part in parts]), whole.grad)


# --- every estimator, where backpropagation tells what is right --------------------------------------------------------

SIGNS = {"std": 0.25, "pairs": 1, "sampler": jax.random.rademacher}
EVERY = {
    "BPTT": lambda system: ux.BPTT(system, horizon=1),
    "TBPTT": lambda system: ux.TBPTT(system, window=1, horizon=2),
    "ForwardGradient": lambda system: ux.ForwardGradient(system, window=1, horizon=2, sampler=jax.random.rademacher),
    "ES": lambda system: ux.ES(system, window=1, horizon=2, **SIGNS),
    "PES": lambda system: ux.PES(system, window=1, horizon=2, **SIGNS),
    "NRES": lambda system: ux.NRES(system, window=1, horizon=2, **SIGNS),
}
every = pytest.mark.parametrize("name", EVERY)


def mixed_start(key, params):
    return {"h": params, "n": 0, "on": True, "key": key, "half": jnp.bfloat16(0), "z": 1j, "none": None, "gone": {}}


def mixed_step(params, state, x, key):
    """A gradient that is exact for every estimator, under noise that is the same for all."""
    carried, drawn = jax.random.split(state["key"])
    noise = jax.random.normal(drawn, ()) + jax.random.normal(key, ())
    after = {"h": state["h"] + x, "n": state["n"] + 1, "on": ~state["on"], "half": state["half"] + 1, "key": carried}
    return state | after | {"z": state["z"] * params}, params**2 + noise


@every
def test_a_state_may_hold_leaves_of_every_kind_and_be_scanned(name):
    estimator = EVERY[name](ux.system(init=mixed_start, step=mixed_step))
    before = estimator.init(KEY, 1.5)
    scan = lambda state, rows: jax.lax.scan(lambda s, x: estimator.estimate(1.5, s, x), state, rows)
    after, estimates = jax.jit(scan)(before, DATA[:3, None])
    grads = (
        np.delete(estimates.grad, 1) if name == "PES" else estimates.grad
    )  # PES credits old noise: exact in the mean
    np.testing.assert_allclose(grads, np.full(len(grads), 3.0), rtol=1e-13)
    assert len(np.unique(estimates.loss)) == 3
    assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), after) == jax.tree.map(
        lambda leaf: (leaf.dtype, leaf.shape), before
    )
    assert (after.inner["n"] == 1).all()
    assert (after.inner["half"] == 1).all()
    assert not after.inner["on"].any()


@every
def test_params_in_bfloat16_have_a_gradient_in_bfloat16(name):
    square = ux.system(init=lambda key, p: jnp.float32(0), step=lambda p, s, x, key: (s + 1, p * p))
    _, (estimate,) = windows(EVERY[name](square), jnp.bfloat16(1), DATA[:1], 1)
    assert (estimate.grad, estimate.grad.dtype) == (2, jnp.bfloat16)
    assert estimate.loss == (1.0625 if "ES" in name else 1)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "BPTT"])
def test_an_endless_stream_never_resets(name):
    counting = ux.system(init=lambda key, p: 0, step=lambda p, s, x, key: (s + 1, p * x))
    endless = dataclasses.replace(EVERY[name](counting), horizon=None)
    state = endless.init(KEY, 1.0)
    scan = lambda s: jax.lax.scan(lambda s, x: endless.estimate(1.0, s, x), s, jnp.ones((50, 1)))[0]
    state = jax.jit(scan)(state)
    assert (state.inner == 50).all()
    assert (state.left == 1).all()


@pytest.mark.parametrize(("x", "share"), [(np.nan, 1), (np.inf, 1), (0.5, 0)])
@pytest.mark.parametrize("name", ["BPTT", "TBPTT", "ForwardGradient"])
def test_a_trajectory_with_a_loss_that_is_not_finite_is_reported(name, x, share):
    _, (estimate,) = windows(EVERY[name](net), PARAMS, jnp.array([x]), 1)
    assert estimate.info.nonfinite == share
