"""Reverse mode through a random number of windows: exact in the mean, with the tails that theory gives it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(6)
PARAMS = {"w": jnp.array([0.8, -0.5]), "b": jnp.array(0.3)}
DATA = jax.random.normal(jax.random.key(9), (6,))


def start(key, params):
    return {"h": params["b"] * jnp.array([1.0, 2.0]) + 0.1 * jax.random.normal(key, (2,)), "n": 0}


def step(params, state, x, key):
    h = jnp.tanh(params["w"] * state["h"] + x + params["b"] + 0.1 * jax.random.normal(key, (2,)))
    return {"h": h, "n": state["n"] + 1}, (h[0] * h[1] - x) ** 2


net = ux.system(init=start, step=step)


def close(got, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), got, expected)


@jax.jit
def through(estimator, params, state, rows, deep):
    """A call that goes back through `deep` windows whatever it would have drawn, and the keys that it used."""
    key, start_key, run, _ = jax.random.split(state.key, 4)
    return estimator._estimate(params, state, rows, (key, start_key, run), deep), (start_key, run)


def episodes(estimator, params=PARAMS):
    """For each window of two episodes: the states of its episode's first call, its index, and what each depth gives."""
    state = estimator.init(KEY, params)
    count = estimator.horizon // estimator.window
    for call, rows in enumerate(np.split(np.tile(DATA, 2), 2 * count)):
        index = call % count
        outcomes = [through(estimator, params, state, rows, deep) for deep in range(count + 1)]
        yield index, [estimate for (_, estimate), _ in outcomes], outcomes[0][1], rows
        state = outcomes[0][0][0]


def exact(params, starts, runs, rows, window):
    """The mean loss of the last window, by a Python loop from the reset."""
    state, total = start(starts, params), 0.0
    for index, (run, part) in enumerate(zip(runs, rows, strict=True)):
        for key, x in zip(jax.random.split(run, window), part, strict=True):
            state, loss = step(params, state, x, key)
            total = total + (loss if index == len(rows) - 1 else 0.0)
    return total / window


@pytest.mark.parametrize(("window", "survival"), [(3, 0.5), (2, 0.9), (1, 0.2)])
def test_the_mean_over_all_depths_is_the_gradient_through_the_whole_episode(window, survival):
    estimator = ux.RandomizedTBPTT(net, window, 6, survival=survival, x=0.0)
    runs, rows = [], []
    for index, outcomes, (start_key, run), data in episodes(estimator):
        if index == 0:
            reset, runs, rows = start_key, [], []
        runs, rows = [*runs, run], [*rows, data]
        loss, grad = jax.value_and_grad(exact)(PARAMS, reset, runs, rows, window)
        ways = [survival**deep * (1 - survival) for deep in range(index)] + [survival**index]
        weighted = [jax.tree.map(lambda g, w=w: w * g, out.grad) for w, out in zip(ways, outcomes, strict=False)]
        close((outcomes[0].loss, jax.tree.map(lambda *grads: sum(grads), *weighted)), (loss, grad))
        close(outcomes[-1].grad, outcomes[index].grad)  # no further than the reset


def test_a_depth_of_none_is_tbptt():
    estimator = ux.RandomizedTBPTT(ux.system(init=lambda k, p: p, step=quiet), 3, 6, x=0.0)
    tbptt = ux.TBPTT(estimator.system, 3, 6)
    state = tbptt.init(KEY, 0.7)
    for _, outcomes, _, rows in episodes(estimator, 0.7):
        state, expected = jax.jit(tbptt.estimate)(0.7, state, rows)
        close((outcomes[0].loss, outcomes[0].grad), (expected.loss, expected.grad))


def quiet(params, state, x, key):
    state = jnp.sin(params * state + x)
    return state, state**2


@pytest.mark.parametrize("window", [1, 2, 6])
def test_a_survival_of_1_is_bptt_in_windows(window):
    system = ux.system(init=lambda key, p: p, step=quiet)
    estimator = ux.RandomizedTBPTT(system, window, 6, survival=1, x=0.0)
    bptt = ux.BPTT(system, 6)
    expected = bptt.estimate(0.7, bptt.init(KEY, 0.7), DATA)[1]

    @jax.jit
    def episode(key):
        scan = lambda state, rows: estimator.estimate(0.7, state, rows)
        return jax.lax.scan(scan, estimator.init(key, 0.7), jnp.tile(DATA, 2).reshape(-1, window))[1]

    got = episode(KEY)
    for half in (slice(None, 6 // window), slice(6 // window, None)):
        close((got.loss[half].mean(), got.grad[half].mean()), (expected.loss, expected.grad))
    many = jax.vmap(episode)(jax.random.split(KEY, 2))
    close(many.grad, jnp.stack([got.grad] * 2))


def test_earlier_windows_start_where_they_did_and_run_with_the_present_parameters():
    system = ux.system(init=lambda key, p: p, step=quiet)
    estimator = ux.RandomizedTBPTT(system, 1, 6, survival=1.0, x=0.0)
    state, starts, now = estimator.init(KEY, 0.7), [], 0.7
    run = lambda p, s, rows: ux.unroll(system, p, s, rows, KEY)
    for index, rows in enumerate(np.split(DATA, 6)):
        params = 0.7 + 0.05 * index
        now = params if index == 0 else now
        state, estimate = jax.jit(estimator.estimate)(params, state, rows)
        starts.append((now, rows))
        mean = lambda p, s, x: run(p, s, x)[1].mean()
        expected, back = jax.grad(mean, (0, 1))(params, now, rows)
        for begin, x in starts[-2::-1]:
            more, back = jax.vjp(lambda p, s, x=x: run(p, s, x)[0], params, begin)[1](back)
            expected = expected + more
        close(estimate.grad, expected + back)
        now, _ = run(params, now, rows)
        np.testing.assert_allclose(state.inner, now, rtol=1e-13)


# --- chance: s' = a s + params, loss s', so that what goes through window n - i is a^i ----------------------------------


def linear(a):
    return ux.system(init=lambda key, p: 0.0 * p, step=lambda p, s, x, key: (a * s + p, a * s + p))


def moments(a, survival, index):
    """The mean and second moment of window `index`'s estimate, by the closed form over the depth."""
    sums = np.cumsum((a / survival) ** np.arange(index + 1))
    ways = np.r_[survival ** np.arange(index) * (1 - survival), survival**index]
    return ways @ sums, ways @ sums**2


def draws(a, survival, horizon, count):
    estimator = ux.RandomizedTBPTT(linear(a), 1, horizon, survival=survival)

    def run(key):
        scan = lambda state, _: estimator.estimate(1.0, state, None)
        return jax.lax.scan(scan, estimator.init(key, 1.0), length=horizon)[1].grad

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, count)))


@pytest.mark.parametrize(("a", "survival"), [(0.6, 0.5), (0.9, 0.7)])
def test_draws_have_the_mean_of_the_exact_gradient_and_the_closed_second_moment(a, survival):
    grads = draws(a, survival, 6, 20_000)
    for index in range(6):
        mean, second = moments(a, survival, index)
        assert mean == pytest.approx((1 - a ** (index + 1)) / (1 - a), rel=1e-12)  # unbiased
        for values, expected in ((grads[:, index], mean), (grads[:, index] ** 2, second)):
            error = values.std() / np.sqrt(len(values))
            assert abs(values.mean() - expected) <= 4 * error + 1e-12  # z = 4


def test_each_depth_has_the_weight_that_its_chance_asks_for():
    estimator = ux.RandomizedTBPTT(linear(0.9), 1, 8, survival=0.5)
    state = estimator.init(KEY, 1.0)
    for index in range(8):
        got = [through(estimator, 1.0, state, None, deep)[0][1].grad for deep in range(8)]
        sums = np.cumsum(1.8 ** np.arange(8))
        np.testing.assert_allclose(got, sums[np.minimum(np.arange(8), index)], rtol=1e-12)
        state = through(estimator, 1.0, state, None, 0)[0][0]


def test_the_second_moment_explodes_where_the_squared_decay_exceeds_the_survival():
    """As the docstring says: like (a^2 / survival)^n beyond it, to a limit below it."""
    growth = [moments(0.9, 0.5, 80)[1] / moments(0.9, 0.5, 79)[1], moments(0.6, 0.5, 80)[1] / moments(0.6, 0.5, 79)[1]]
    np.testing.assert_allclose(growth, [0.81 / 0.5, 1.0], rtol=1e-6)
    estimator = ux.RandomizedTBPTT(linear(0.9), 1, 25, survival=0.5)
    state, seconds = estimator.init(KEY, 1.0), []
    for index in range(25):
        if index >= 23:
            grads = jax.vmap(lambda deep: through(estimator, 1.0, state, None, deep)[0][1].grad)(jnp.arange(index + 1))  # noqa: B023
            seconds.append(np.r_[0.5 ** np.arange(index) * 0.5, 0.5**index] @ np.asarray(grads) ** 2)
            assert seconds[-1] == pytest.approx(moments(0.9, 0.5, index)[1], rel=1e-11)
        state = through(estimator, 1.0, state, None, 0)[0][0]
    assert seconds[1] / seconds[0] > 1.6


def test_a_call_goes_through_as_many_windows_as_documented():
    """1 + survival + ... + survival^n on average: with a = survival each of them adds 1 to the gradient."""
    count = np.cumsum(0.7 ** np.arange(6))
    ones = draws(0.7, 0.7, 6, 20_000)
    error = ones.std(0) / np.sqrt(len(ones))
    assert (np.abs(ones.mean(0) - count) <= 4 * error + 1e-12).all()  # z = 4
    np.testing.assert_array_equal(np.round(ones, 9), np.round(ones))


def test_the_deepest_of_many_windows_is_reached_even_by_single_precision():
    """One uniform float32 could not: 0.5^60 is below its grain."""
    with jax.enable_x64(False):
        estimator = ux.RandomizedTBPTT(linear(1.0), 1, 64, survival=jnp.float32(0.999))
        state = estimator.init(KEY, 1.0)
        scan = lambda state, _: estimator.estimate(1.0, state, None)
        grads = jax.jit(lambda s: jax.lax.scan(scan, s, length=64 * 4)[1].grad)(state).reshape(4, 64)
    deepest = sum(0.999**-i for i in range(64))
    np.testing.assert_allclose(grads[:, -1].max(), deepest, rtol=1e-4)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survival", [0.0, 1.5, -0.1, np.nan, "half"])
def test_a_survival_that_is_no_probability_is_refused(survival):
    with pytest.raises(ux.InvalidArgument, match=rf"survival must be a number in \(0, 1\], got survival={survival!r}"):
        ux.RandomizedTBPTT(net, 2, 4, survival=survival)


@pytest.mark.parametrize("survival", [0, 2, True, np.array(1.5), None])
def test_a_survival_that_may_have_been_an_axis_is_refused_where_it_is_used(survival):
    estimator = ux.RandomizedTBPTT(net, 2, 4, survival=survival)
    with pytest.raises(
        ux.InvalidArgument, match=r"RandomizedTBPTT: survival must be a number in \(0, 1\], got survival="
    ):
        estimator.init(KEY, PARAMS)


def test_estimates_are_mapped_over_survival():
    one, survivals = ux.RandomizedTBPTT(linear(0.5), 1, 2), jnp.array([1.0, 0.5])

    @jax.jit
    def second(estimator):
        state, _ = estimator.estimate(1.0, estimator.init(KEY, 1.0), None)
        return estimator.estimate(1.0, state, None)[1].grad

    mapped = jax.vmap(second, (replace(one, system=None, survival=0),))(replace(one, survival=survivals))
    np.testing.assert_allclose(mapped, [second(replace(one, survival=survival)) for survival in survivals], rtol=1e-12)


def test_an_endless_stream_is_refused():
    with pytest.raises(
        ux.InvalidArgument, match=r"RandomizedTBPTT: horizon must be .* got horizon=None. Give a horizon"
    ):
        ux.RandomizedTBPTT(net, 2, None)
    with pytest.raises(ux.InvalidArgument, match=r"RandomizedTBPTT: horizon must be a multiple of window.*horizon=4"):
        ux.RandomizedTBPTT(net, 2, 5)
