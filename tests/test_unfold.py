"""`Unfold`, an algorithm as a system, against literal loops."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax import InvalidArgument
from unrollax._schedules import per_step, periodic, shared
from unrollax._unfolding import unfold
from unrollax._value import static, value
from unrollax.systems import Unfold

KEY = jax.random.key(11)
H = np.array([1.0, 3.0, 8.0])
DEPTH, BATCH = 4, 5
ETA = np.array([0.1, 0.2, 0.15, 0.3])


def iteration(theta, x, problem):
    return x - theta["eta"] * H * (x - problem)


def start(problem):
    return jnp.zeros(3)


def error(x, problem):
    return jnp.sum(jnp.abs(x - problem) ** 2)


def draw(key):
    return 1 + jax.random.normal(key, (3,))


net = Unfold(iteration, start, error, draw, DEPTH, BATCH)
PARAMS = {"eta": per_step(jnp.asarray(ETA), DEPTH)}


def literal_errors(problems, steps=DEPTH):
    """The mean error after 0, 1, ... iterations, problem by problem."""
    errors = np.zeros(steps + 1)
    for target in np.asarray(problems):
        x = np.zeros(3)
        for t in range(steps + 1):
            errors[t] += ((x - target) ** 2).sum() / len(problems)
            if t < steps:
                x = x - ETA[t] * H * (x - target)
    return errors


def weight(t, horizon):
    return t**2 / horizon


MEANS = {
    "final": lambda levels: levels[-1] - levels[0],
    "anytime": lambda levels: levels[1:].mean(),
    weight: lambda levels: np.mean([t**2 / DEPTH * levels[t] for t in range(1, DEPTH + 1)]),
}


@pytest.mark.parametrize("scale", ["log", "raw"])
@pytest.mark.parametrize("loss", MEANS, ids=["final", "anytime", "weight"])
def test_the_mean_step_loss_is_the_objective(loss, scale):
    system = dataclasses.replace(net, loss=loss, scale=scale)
    state = system.init(KEY, PARAMS)
    errors = literal_errors(state.own)
    levels = np.log(errors) if scale == "log" else errors
    after, losses = ux.unroll(system, PARAMS, state, None, KEY, steps=DEPTH)
    np.testing.assert_allclose(losses.mean(), MEANS[loss](levels), rtol=1e-12)
    again, mean = system.run(PARAMS, state)
    np.testing.assert_allclose(mean, MEANS[loss](levels), rtol=1e-12)
    np.testing.assert_allclose(after.level, levels[-1], rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), after, again)
    assert int(after.t) == DEPTH


def test_the_final_step_losses_telescope_in_every_window():
    state, mean = net.init(KEY, PARAMS), 0.0
    levels = np.log(literal_errors(state.own))
    for t in range(0, DEPTH, 2):
        state, losses = ux.unroll(net, PARAMS, state, None, KEY, steps=2)
        np.testing.assert_allclose(losses.mean(), DEPTH / 2 * (levels[t + 2] - levels[t]), rtol=1e-12)
        mean += losses.mean() / 2
    np.testing.assert_allclose(mean, levels[-1] - levels[0], rtol=1e-12)


def test_errors_are_those_of_every_iteration_and_go_on_beyond_the_horizon_where_the_schedules_do():
    np.testing.assert_allclose(net.errors(PARAMS, KEY), literal_errors(net.init(KEY, PARAMS).own), rtol=1e-12)
    endless = {"eta": periodic(0.1, 2)}
    errors = net.errors(endless, KEY, steps=9)
    np.testing.assert_allclose(errors[:5], net.errors(endless, KEY), rtol=1e-13)
    assert errors.shape == (10,)
    assert (jnp.diff(errors) < 0).all()
    with pytest.raises(InvalidArgument, match=r"Unfold.errors: per-step schedule \['eta'\] .* 5 iterations, got 4"):
        net.errors(PARAMS, KEY, steps=5)


# --- problems --------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    a: jax.Array
    y: jax.Array
    x: jax.Array


@value
class Shared:
    """Problems that share a matrix; `own` says what is kept of each."""

    a: jax.Array
    count: int = static(default=3)

    def draw(self, key):
        x = jax.random.normal(key, (self.count,))
        return self.a @ x, x

    def whole(self, own):
        return Problem(self.a, *own)


class Plain:
    """The same as an object that is no pytree."""

    def __init__(self, a):
        self.draw, self.whole = Shared(a).draw, Shared(a).whole


A = jax.random.normal(jax.random.key(3), (4, 3)) / 3


class Descent:
    step = staticmethod(lambda theta, x, problem: x - theta["eta"] * problem.a.T @ (problem.a @ x - problem.y))
    start = staticmethod(lambda problem: jnp.zeros(3))


@pytest.mark.parametrize("problems", [Shared(A), Plain(A), lambda key: Shared(A).whole(Shared(A).draw(key))])
def test_what_problems_share_is_kept_once(problems):
    system = unfold(Descent(), problems, horizon=DEPTH, batch=BATCH)
    state = system.init(KEY, PARAMS)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.own)]
    own = [(BATCH, 4), (BATCH, 3)]
    assert shapes == ([(BATCH, 4, 3), *own] if not hasattr(problems, "whole") else own)
    xs, expected = np.asarray(jax.tree.leaves(state.own)[-1]), []
    for target in xs:
        x = np.zeros(3)
        for eta in ETA:
            x = x - eta * np.asarray(A).T @ (np.asarray(A) @ (x - target))
        expected.append(np.mean((x - target) ** 2))
    np.testing.assert_allclose(system.errors(PARAMS, KEY)[-1], np.mean(expected), rtol=1e-12)
    np.testing.assert_allclose(system.run(PARAMS, state)[0].level, np.log(np.mean(expected)), rtol=1e-12)


def test_the_error_sees_the_answer_of_an_algorithm():
    class Momentum(Descent):
        step = staticmethod(lambda theta, x, problem: {"x": Descent.step(theta, x["x"], problem), "n": x["n"] + 1})
        start = staticmethod(lambda problem: {"x": jnp.zeros(3), "n": 0})
        answer = staticmethod(lambda x: x["x"])

    plain, wrapped = (unfold(each, Shared(A), horizon=DEPTH, batch=BATCH) for each in (Descent(), Momentum()))
    np.testing.assert_allclose(wrapped.errors(PARAMS, KEY), plain.errors(PARAMS, KEY), rtol=1e-14)
    assert wrapped.run(PARAMS, wrapped.init(KEY, PARAMS))[0].x["n"].tolist() == [DEPTH] * BATCH
    assert hash(wrapped.error) == hash(
        unfold(Momentum(), Shared(A), horizon=DEPTH).error
    )  # so that equal ones compile once


def test_every_reset_draws_new_problems_and_the_same_key_the_same():
    first, again, other = (net.init(key, PARAMS).own for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.concatenate([first, other]).round(9))) == 2 * BATCH * 3


def test_an_error_of_zero_has_a_finite_logarithm_and_gradient():
    params = {"eta": per_step(1.0, 1)}
    exact = Unfold(lambda theta, x, p: x - theta["eta"] * (x - p), start, error, draw, 1, BATCH)
    state = exact.init(KEY, params)
    (mean, grad) = jax.value_and_grad(lambda p: exact.run(p, state)[1])(params)
    assert np.isfinite(mean)
    assert grad["eta"].raw.tolist() == [0.0]
    np.testing.assert_allclose(mean + state.level, np.log(np.finfo(float).tiny), rtol=1e-12)


# --- every estimator takes it ----------------------------------------------------------------------------------------

fixed = dataclasses.replace(net, sample=lambda key: jnp.array([1.0, -2.0, 0.5]), batch=2)
ONE = {"eta": shared(0.1, "log")}
EXACT = {
    "BPTT": (lambda: ux.BPTT(fixed, horizon=DEPTH), 1),
    "TBPTT": (lambda: ux.TBPTT(fixed, window=DEPTH, horizon=DEPTH), 1),
    "overlap": (lambda: ux.TBPTT(fixed, window=2, horizon=DEPTH, overlap=2), 2),
    "ForwardGradient": (lambda: ux.ForwardGradient(fixed, window=2, horizon=DEPTH, sampler=jax.random.rademacher), 2),
    "ES": (lambda: ux.ES(fixed, std=1e-4, window=DEPTH, horizon=DEPTH, pairs=2, sampler=jax.random.rademacher), 1),
    "PES": (lambda: ux.PES(fixed, std=1e-4, window=DEPTH, horizon=DEPTH, pairs=2, sampler=jax.random.rademacher), 1),
    "NRES": (lambda: ux.NRES(fixed, std=1e-4, window=2, horizon=DEPTH, pairs=2, sampler=jax.random.rademacher), 2),
}


@pytest.mark.parametrize("name", EXACT)
def test_windows_average_to_the_gradient_of_a_literal_loop(name):
    """For one parameter, signs as noise: antithetic differences are the derivative up to std^2."""

    def loss(log_eta):
        x, target = jnp.zeros(3), fixed.sample.draw(None)
        first = error(x, target)
        for _ in range(DEPTH):
            x = iteration({"eta": jnp.exp(log_eta)}, x, target)
        return jnp.log(error(x, target)) - jnp.log(first)

    make, windows = EXACT[name]
    estimator, total = make(), 0.0
    state, run = estimator.init(KEY, ONE), jax.jit(estimator.estimate)
    for _ in range(windows):
        state, estimate = run(ONE, state, None)
        total += estimate.grad["eta"].raw / windows
    exact = 1e-12 if "PTT" in name or name in ("overlap", "ForwardGradient") else 1e-6
    np.testing.assert_allclose(total, jax.jit(jax.grad(loss))(jnp.log(0.1)), rtol=exact)


def test_a_net_is_a_value_that_compiles_once():
    run = jax.jit(lambda system, params: system.run(params, system.init(KEY, params))[1])
    for number in (0.1, 0.2):
        run(unfold(Descent(), Shared(A * number), horizon=4), {"eta": per_step(number, 4)})
    assert run._cache_size() == 1
    assert repr(net).startswith("Unfold(iteration=iteration, start=start, error=error, sample=Source(draw=draw")
