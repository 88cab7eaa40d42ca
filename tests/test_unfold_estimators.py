"""Every family of estimators trains an `Unfold`, with windows shorter than the horizon: the step losses telescope."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax._schedules import per_step, shared
from unrollax.systems import Unfold
from unrollax.testing import deal

KEY = jax.random.key(5)
DEPTH, WINDOW, BATCH = 4, 2, 3
H = np.array([1.0, 3.0, 8.0])
TIME = {"window": WINDOW, "horizon": DEPTH}
PARAMS = {"eta": per_step(jnp.array([0.1, 0.2, 0.15, 0.3]), DEPTH, transform="log"), "lam": shared(0.3)}
COUNT = DEPTH + 1  # numbers


def iteration(theta, x, problem):
    return {
        "x": x["x"] - theta["eta"] * (H * (x["x"] - problem) + theta["lam"] * jnp.tanh(x["x"])),
        "made": x["made"] + 1,
    }


def same(key):
    """The same problem at every reset, so that exact means exact."""
    return jnp.array([1.0, -2.0, 0.5])


net = Unfold(
    iteration,
    lambda problem: {"x": 0 * problem, "made": 0},
    lambda x, problem: ((x["x"] - problem) ** 2).sum(),
    same,
    DEPTH,
    BATCH,
)


def over(names, daily):
    """All of some estimators on both scales; every day those on the log scale but SnAp, and a few on the raw one."""
    cases = [(name, scale) for name in names for scale in ("log", "raw")]
    quick = lambda name, scale: name in daily if scale == "raw" else name != "SnAp"
    marked = [pytest.param(*case, marks=[] if quick(*case) else pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("name", "scale"), marked)


def literal(scale):
    """The gradient of L_N - L_0 by raw numbers, of a loop in Python."""

    def loss(raw):
        x, target, levels = jnp.zeros(3), same(None), []
        for t in range(DEPTH + 1):
            error = ((x - target) ** 2).sum()
            levels.append(jnp.log(error) if scale == "log" else error)
            if t < DEPTH:
                x = x - jnp.exp(raw[t]) * (H * (x - target) + raw[DEPTH] * jnp.tanh(x))
        return levels[-1] - levels[0]

    return jax.jit(jax.grad(loss)), jnp.concatenate([PARAMS["eta"].raw, PARAMS["lam"].raw[None]])


def vector(grad):
    return np.concatenate([grad["eta"].raw, grad["lam"].raw[None]])


def mean_of(estimator, rows=None):
    """Return the mean gradient of an episode's windows; rows are dealt as the noise of each."""
    windows = DEPTH // estimator.window

    @jax.jit
    def call(state, row):
        now = estimator if row is None else dataclasses.replace(estimator, sampler=deal(row))
        return now.estimate(PARAMS, state, None)

    state, grads = estimator.init(KEY, PARAMS), []
    for index in range(2 * windows):  # the second episode starts anew
        state, estimate = call(state, None if rows is None else rows[index % windows])
        grads.append(vector(estimate.grad))
    first, second = np.mean(grads[:windows], axis=0), np.mean(grads[windows:], axis=0)
    np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-12)
    return first


EXACT = {
    "BPTT": lambda net: ux.BPTT(net, DEPTH),
    "BPTT-sqrt": lambda net: ux.BPTT(net, DEPTH, memory="sqrt"),
    "UnfoldBPTT": lambda net: ux.UnfoldBPTT(net),
    "TBPTT-overlap": lambda net: ux.TBPTT(net, **TIME, overlap=WINDOW),
    "RTRL": lambda net: ux.RTRL(net, **TIME),
    "SnAp": lambda net: ux.SnAp(net, **TIME),  # each number reaches all of x at once: it drops nothing
    "RTRL-forward": lambda net: ux.RTRL(net, mode="forward", **TIME),
}


@over(EXACT, ["UnfoldBPTT", "RTRL"])
def test_exact_ones_average_to_the_gradient_of_the_whole(name, scale):
    grad, raw = literal(scale)
    found = mean_of(EXACT[name](dataclasses.replace(net, scale=scale)))
    np.testing.assert_allclose(found, grad(raw), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", ["log", "raw"])
def test_one_window_sees_its_own_part_of_the_telescope(scale):
    """TBPTT and ES leave out what crosses windows: the gradient of each gain from a state that counts as constant."""
    system = dataclasses.replace(net, scale=scale)

    def gains(params):
        state, total = system.init(KEY, params), 0.0
        for _ in range(DEPTH // WINDOW):
            state = jax.lax.stop_gradient(state)
            before = state.level
            for _ in range(WINDOW):
                state, _ = system.step(params, state, None, KEY)
            total += state.level - before
        return total

    expected = vector(jax.jit(jax.grad(gains))(PARAMS))
    np.testing.assert_allclose(mean_of(ux.TBPTT(system, **TIME)), expected, rtol=1e-10, atol=1e-13)
    rows = orthogonal(1).repeat(2, axis=0)
    blind = ux.ES(system, std=STD, pairs=rows.shape[1], **TIME)
    np.testing.assert_allclose(mean_of(blind, rows), expected, rtol=1e-5, atol=1e-5)
    grad, raw = literal(scale)
    assert np.abs(expected - grad(raw)).max() > 0.01


STD = 1e-4
NOISE = {"std": STD, "pairs": 2}
SMOOTHED = {
    "PES": lambda net: ux.PES(net, **NOISE, **TIME),
    "PES-analytic": lambda net: ux.PES(net, **NOISE, **TIME, control="analytic"),
    "NRES": lambda net: ux.NRES(net, **NOISE, **TIME),
    "FullES": lambda net: ux.FullES(net, **NOISE, horizon=DEPTH),
    "ES": lambda net: ux.ES(net, **NOISE, window=DEPTH, horizon=DEPTH),
    "ForwardGradient": lambda net: ux.ForwardGradient(net, directions=2, **TIME),
}


def orthogonal(windows):
    """Signs whose products average to 0 for every two of all numbers of an episode, `[windows, draws, numbers]`.

    They are columns of a Hadamard matrix: all that an estimator of second order in the noise can tell from all patterns.
    """
    hadamard = np.ones((1, 1))
    while len(hadamard) <= COUNT * windows:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    chosen = hadamard[:, 1 : 1 + COUNT * windows]
    return chosen.reshape(len(hadamard), windows, COUNT).transpose(1, 0, 2)


@over(SMOOTHED, ["PES"])
def test_unbiased_ones_average_to_it_over_all_signs(name, scale):
    """Antithetic differences are derivatives up to std^2 times third ones, and forward gradients exact ones."""
    estimator = SMOOTHED[name](dataclasses.replace(net, scale=scale))
    rows = orthogonal(DEPTH // estimator.window)
    field = "directions" if name == "ForwardGradient" else "pairs"
    found = mean_of(dataclasses.replace(estimator, **{field: rows.shape[1]}), rows)
    grad, raw = literal(scale)
    np.testing.assert_allclose(found, grad(raw), rtol=1e-5, atol=1e-5)


CHANCE = {
    "UORO": lambda net: ux.UORO(net, directions=8, **TIME),
    "RandomizedTBPTT": lambda net: ux.RandomizedTBPTT(net, **TIME),
    "mix": lambda net: ux.mix(ux.RTRL(net, **TIME), ux.PES(net, std=0.01, pairs=8, **TIME), weight=0.3),
}


@pytest.mark.slow
@over(CHANCE, CHANCE)
def test_unbiased_ones_average_to_it_by_chance(name, scale):
    """2048 episodes, |z| < 5 for each of the 5 numbers."""
    estimator = CHANCE[name](dataclasses.replace(net, scale=scale))

    def episode(key):
        def one(state, _):
            state, estimate = estimator.estimate(PARAMS, state, None)
            return state, jnp.concatenate([estimate.grad["eta"].raw, estimate.grad["lam"].raw[None]])

        return jax.lax.scan(one, estimator.init(key, PARAMS), length=DEPTH // WINDOW)[1].mean(0)

    grads = np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(KEY, 2048)))
    grad, raw = literal(scale)
    error = grads.std(0) / np.sqrt(len(grads))
    assert (error < 0.5 * np.abs(grad(raw)).max()).all()
    assert (np.abs(grads.mean(0) - grad(raw)) < 5 * error + 1e-3 * np.abs(grad(raw)).max()).all()


@pytest.mark.slow
def test_problems_drawn_anew_at_each_reset_average_to_the_gradient_of_the_mean():
    """Raw errors of fresh problems have the gradient of their expectation: BPTT and PES, |z| < 5."""
    system = dataclasses.replace(net, sample=lambda key: same(key) + jax.random.normal(key, (3,)), scale="raw", batch=2)
    keys = jax.random.split(KEY, 2048)

    def mean(estimator):
        def episode(key):
            def one(state, _):
                state, estimate = estimator.estimate(PARAMS, state, None)
                return state, jnp.concatenate([estimate.grad["eta"].raw, estimate.grad["lam"].raw[None]])

            return jax.lax.scan(one, estimator.init(key, PARAMS), length=DEPTH // estimator.window)[1].mean(0)

        grads = np.asarray(jax.jit(jax.vmap(episode))(keys))
        return grads.mean(0), grads.var(0) / len(grads)

    (exact, noise), (found, more) = mean(ux.BPTT(system, DEPTH)), mean(ux.PES(system, std=0.01, pairs=8, **TIME))
    assert (np.abs(found - exact) < 5 * np.sqrt(noise + more)).all()


def test_the_gradient_at_a_fixed_point_is_that_of_the_last_level():
    """Long after it has settled, with one step a window, Implicit gives the derivative of what L_t settles at, times N."""
    at_rest = Unfold(
        lambda theta, x, problem: x - 0.2 * (x - problem + theta * jnp.tanh(x)),
        lambda problem: 0 * problem,
        lambda x, problem: ((x - problem) ** 2).sum(),
        same,
        200,
        1,
        loss="anytime",
        scale="raw",
    )
    estimator = ux.Implicit(at_rest, window=1, horizon=200)
    state, theta = estimator.init(KEY, jnp.array(0.3)), jnp.array(0.3)

    def settled(theta):
        x = same(None) * 0
        for _ in range(300):
            x = x - 0.2 * (x - same(None) + theta * jnp.tanh(x))
        return ((x - same(None)) ** 2).sum()

    call = jax.jit(estimator.estimate)
    for _ in range(200):
        state, estimate = call(theta, state, None)
    step = 1e-5
    slope = (settled(theta + step) - settled(theta - step)) / (2 * step)
    np.testing.assert_allclose(estimate.grad, slope, rtol=1e-4)
