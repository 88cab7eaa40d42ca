"""Plans as data, and `fit_unfold`, which trains by one."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax import InvalidArgument
from unrollax._plans import incremental, one_shot, random_horizon
from unrollax._schedules import knots, per_step, periodic, shared
from unrollax._unfolding import fit_unfold
from unrollax.estimators import UnfoldBPTT
from unrollax.systems import Unfold

KEY = jax.random.key(8)
H = np.array([1.0, 3.0, 8.0])


def iteration(theta, x, problem):
    return x - theta["eta"] * H * (x - problem) + theta.get("w", 0.0) * problem


def far(x, problem):
    return ((x - problem) ** 2).sum()


net = Unfold(iteration, lambda p: 0 * p, far, lambda key: 1 + jax.random.normal(key, (3,)), 6, 4)
PARAMS = {"eta": per_step(jnp.linspace(0.1, 0.3, 6), 6, "log")}


# --- rows ------------------------------------------------------------------------------------------------------------


def rows(plan, count):
    stages = jax.jit(jax.vmap(plan))(jnp.arange(count))
    return {name: np.asarray(leaf).tolist() for name, leaf in stages._asdict().items()}


def test_a_plan_says_the_depth_of_every_update():
    plan = incremental([1, 2, 5], steps=2)
    assert rows(plan, 8) == {
        "depth": [1, 1, 2, 2, 5, 5, 5, 5],
        "generation": [0, 0, 1, 1, 2, 2, 2, 2],
        "first": [True, False, True, False, True, False, False, False],
        "before": [0, 0, 1, 1, 2, 2, 2, 2],
    }
    assert (plan.steps, plan.longest, plan.reset, plan.freeze) == (6, 5, True, None)
    assert incremental(range(1, 51), 50).steps == 2500
    assert rows(one_shot(7, 3), 4)["depth"] == [7] * 4
    assert (one_shot(7, 3).steps, one_shot(7, 3).longest, one_shot(7, 3).reset) == (3, 7, False)
    assert incremental([4, 2], 1).longest == 4


def test_a_random_horizon_is_uniform_and_depends_on_the_seed_and_the_update_alone():
    """Each of 5 depths is a binomial of 1,000, |z| < 5."""
    plan = random_horizon(3, 7, 1000)
    depths = np.asarray(rows(plan, 1000)["depth"])
    counts = np.array([(depths == depth).sum() for depth in range(3, 8)])
    assert counts.sum() == 1000
    assert (np.abs(counts - 200) < 5 * np.sqrt(1000 * 0.2 * 0.8)).all()
    assert [int(random_horizon(3, 7, 9)(step).depth) for step in range(5)] == depths[:5].tolist()
    assert rows(random_horizon(3, 7, 9, seed=1), 1000)["depth"] != depths.tolist()
    assert (plan.steps, plan.longest) == (1000, 7)


ERRORS = {
    "one_shot: depth must be a positive whole number, got depth=0": lambda: one_shot(0, 5),
    "one_shot: steps must be a positive whole number, got steps=2.5": lambda: one_shot(3, 2.5),
    r"incremental: depths must be positive whole numbers.*got depths=\[\]": lambda: incremental([], 5),
    r"incremental: depths must be .*got depths=\[1, 0\]": lambda: incremental([1, 0], 5),
    r"incremental: depths must be .*got depths=\[1.5\]": lambda: incremental([1.5], 5),
    "incremental: depths must be .*got depths=50": lambda: incremental(50, 5),
    "incremental: freeze must be one of None, 'earlier', got freeze=True": lambda: incremental([1], 5, freeze=True),
    "incremental: reset must be one of True, False, got reset='adam'": lambda: incremental([1], 5, reset="adam"),
    "random_horizon: low must be at most high, got low=5, high=3": lambda: random_horizon(5, 3, 9),
    "random_horizon: seed must be a whole number": lambda: random_horizon(1, 3, 9, seed="x"),
    "fit_unfold: plan must be callable and have steps and longest, got int": lambda: train(16),
    "Unfold: per-step schedule .* each of the 7 iterations, got 6": lambda: train(one_shot(7, 1)),
}


def train(plan, params=PARAMS, optimizer=None, **options):
    return fit_unfold(net, params, plan, optimizer or optax.adam(0.02), key=KEY, **options)


@pytest.mark.parametrize("message", ERRORS)
def test_what_is_no_plan_is_told(message):
    with pytest.raises(InvalidArgument, match=message):
        ERRORS[message]()


# --- training --------------------------------------------------------------------------------------------------------


def literal(optimizer, plan, params, *, fresh):
    """The same training by hand: an optax run for each generation, or one for all."""
    estimator, opt = UnfoldBPTT(net, plan.longest), None
    state, run = estimator.init(KEY, params), jax.jit(estimator.estimate)
    for step in range(plan.steps):
        if opt is None or (fresh and step % plan.each == 0):
            opt = optimizer.init(params)
        state, estimate = run(params, state, plan(step))
        updates, opt = optimizer.update(estimate.grad, opt, params)
        params = optax.apply_updates(params, updates)
    return params, opt


@pytest.mark.parametrize("reset", [True, False])
def test_reset_is_a_new_optax_run_for_each_generation(reset):
    """With a learning rate that depends on the optimizer's count, and moments that remember."""
    optimizer = optax.adam(optax.linear_schedule(0.05, 0.01, 4))
    plan = incremental([1, 3, 6], steps=4, reset=reset)
    run = train(plan, optimizer=optimizer, every=5)
    params, opt = literal(optimizer, plan, PARAMS, fresh=reset)
    np.testing.assert_allclose(run.params["eta"].raw, params["eta"].raw, rtol=1e-12)
    own = run.state.optimizer.inner if reset else run.state.optimizer
    counts = [leaf for leaf in jax.tree.leaves(own) if leaf.dtype == jnp.int32]
    assert [int(count) for count in counts] == ([4, 4] if reset else [12, 12])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-300), own, opt)
    assert run.metrics.info.depth.tolist() == [1] * 4 + [3] * 4 + [6] * 4


MANY = {
    "eta": PARAMS["eta"],
    "own": periodic(jnp.array([0.1, 0.2, 0.3]), 3),
    "at": knots(jnp.array([0.1, 0.2, 0.3]), [0, 2, 5]),
    "one": shared(0.1),
    "w": jnp.zeros(3),
}


def many(theta, x, problem):
    return x - (theta["eta"] + theta["own"] * theta["at"] * theta["one"]) * H * (x - problem) + theta["w"] * problem


def test_freeze_leaves_the_entries_that_no_new_iteration_reads_to_the_bit():
    """New iterations: 0 and 1, then 2, then 3 and 4; weight decay would move whatever is not held."""
    plan, seen = incremental([2, 3, 5], steps=3, freeze="earlier"), [MANY]
    observe = lambda progress: seen.append(jax.tree.map(np.array, progress.state.params))
    system = dataclasses.replace(net, iteration=many)
    fit_unfold(system, MANY, plan, optax.adamw(0.02), key=KEY, every=3, observe=observe)
    moved = [
        {name: np.asarray(after[name].raw != before[name].raw).tolist() for name in ("eta", "own", "at", "one")}
        for before, after in pairwise(seen)
    ]
    no, yes = False, True
    assert [row["eta"] for row in moved] == [
        [yes] * 2 + [no] * 4,
        [no, no, yes, no, no, no],
        [no] * 3 + [yes] * 2 + [no],
    ]
    assert [row["own"] for row in moved] == [[yes, yes, no], [no, no, yes], [yes, yes, no]]
    assert [row["at"] for row in moved] == [[yes, yes, no], [no, yes, no], [no, yes, yes]]
    assert [row["one"] for row in moved] == [yes] * 3
    assert all((after["w"] != before["w"]).all() for before, after in pairwise(seen))


def test_training_goes_on_from_its_state_to_the_bit():
    plan, optimizer = incremental([1, 4], steps=6), optax.adam(0.02)
    whole, part = (train(plan, optimizer=optimizer, steps=steps, every=4) for steps in (12, 8))
    rest = train(plan, optimizer=optimizer, steps=4, every=4, state=part.state)
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, rest.state.params)
    jax.tree.map(np.testing.assert_array_equal, whole.state.optimizer, rest.state.optimizer)


def test_one_program_trains_a_plan_and_another_call_compiles_nothing():
    traces = []

    def counted(theta, x, problem):
        traces.append(1)
        return iteration(theta, x, problem)

    system, optimizer = dataclasses.replace(net, iteration=counted), optax.adam(0.02)
    counts = []
    for depths in ([1, 6], [1, 6], [1, 2, 3, 4, 5, 6]):
        before = len(traces)
        fit_unfold(system, PARAMS, incremental(depths, 2), optimizer, key=KEY, every=4)
        counts.append(len(traces) - before)
    assert counts[0] == counts[2]  # as many for six depths as for two
    assert counts[1] < counts[0] / 2


def test_a_number_that_is_not_finite_is_told_by_its_update():
    system = dataclasses.replace(net, iteration=lambda theta, x, p: x * jnp.exp(1e3 * theta["eta"]) + p)
    with pytest.raises(ux.Diverged, match="at step 3 "):
        fit_unfold(system, {"eta": shared(0.2)}, incremental([1, 6], 2), optax.sgd(1e-9), key=KEY)
