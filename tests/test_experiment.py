"""Streams of data: whatever the window, every step of every episode is seen once, in order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax._experiment import Windows

HORIZON, EPISODES = 12, 4


def make(number):
    steps = jnp.arange(HORIZON)
    return {"step": 100 * number + steps, "pair": jnp.stack([steps, -steps], 1) + number}


EXPECTED = {
    "step": [100 * number + step for number in range(EPISODES) for step in range(HORIZON)],
    "pair": [[step + number, number - step] for number in range(EPISODES) for step in range(HORIZON)],
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 6, 12])
def test_windows_hold_every_step_of_every_episode_once(window, traced):
    windows = Windows(ux.episodes(make, HORIZON), window)
    get = jax.jit(lambda step: windows(step)) if traced else windows
    seen = [get(jnp.int32(step)) for step in range(EPISODES * HORIZON // window)]
    for name, expected in EXPECTED.items():
        assert all(len(part[name]) == window for part in seen)
        np.testing.assert_array_equal(np.concatenate([part[name] for part in seen]), expected)


@pytest.mark.parametrize("window", [5, 8, 24])
def test_a_window_that_would_cross_episodes_is_refused(window):
    stream = ux.episodes(make, HORIZON)
    with pytest.raises(ux.InvalidArgument, match=f"divide the episodes' 12 steps, got window={window}"):
        stream(0, window)
    with pytest.raises(ux.InvalidArgument, match="Choose a divisor"):
        jax.jit(Windows(stream, window))(jnp.int32(0))


def test_a_whole_episode_is_not_copied():
    stream = ux.episodes(make, HORIZON)
    assert "dynamic_slice" not in str(jax.make_jaxpr(lambda t: stream(t, HORIZON))(0))
    assert "dynamic_slice" in str(jax.make_jaxpr(lambda t: stream(t, 3))(0))


@pytest.mark.parametrize("every", [1, 5, 100])
@pytest.mark.parametrize("window", [2, 6, 12])
def test_fit_reads_the_steps_in_order(window, every):
    def step(params, state, x, key):
        return state, 0.0 * params + x["step"]

    system = ux.system(init=lambda key, params: (), step=step)
    updates = EPISODES * HORIZON // window
    estimator = ux.TBPTT(system, window, HORIZON)
    stream = Windows(ux.episodes(make, HORIZON), window)
    optimizer = optax.sgd(0.1)
    run = ux.fit(estimator, optimizer, 1.0, stream, key=jax.random.key(0), steps=updates, every=every)
    expected = np.reshape(EXPECTED["step"], (updates, window)).mean(1)
    np.testing.assert_allclose(run.metrics.loss, expected, rtol=1e-12)


def test_a_stream_of_other_numbers_is_no_new_program():
    traces = []

    @jax.jit
    def first(stream, t):
        traces.append(1)
        return stream(t, 2)

    def make(scale, number):
        return scale * jnp.arange(4.0) + number

    def stream(scale):
        return ux.episodes(jax.tree_util.Partial(make, scale), 4)

    np.testing.assert_array_equal(first(stream(1.0), 2), [2, 3])
    np.testing.assert_array_equal(first(stream(3.0), 6), [7, 10])
    assert len(traces) == 1
