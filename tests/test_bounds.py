from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux

KEY = jax.random.key(0)
PARAMS = {"rate": jnp.array([0.1, 2.0]), "decay": jnp.array(0.03), "mix": {"a": jnp.array(0.2), "b": jnp.array(-3.0)}}
BOUNDS = {"rate": "log", "decay": "softplus", "mix": {"a": (0, 1), "b": (-5, -1)}}


def step(params, state, x, key):
    a, b = params["mix"]["a"], params["mix"]["b"]
    return state, params["rate"].sum() + 3 * params["decay"] + a**2 + b


plain = ux.system(init=lambda key, params: params["decay"], step=step)


def test_free_numbers_stand_for_the_parameters():
    held = ux.bounded(plain, BOUNDS)
    free = held.free(PARAMS)
    np.testing.assert_allclose(free["rate"], np.log([0.1, 2.0]))
    np.testing.assert_allclose(np.log1p(np.exp(free["decay"])), 0.03)
    np.testing.assert_allclose(free["mix"]["a"], np.log(0.2 / 0.8))
    np.testing.assert_allclose(-5 + 4 / (1 + np.exp(-free["mix"]["b"])), -3.0)
    jax.tree.map(np.testing.assert_allclose, held.params(free), PARAMS)


@pytest.mark.parametrize("far", [-1e3, 1e3])
def test_no_free_number_leaves_the_range(far):
    params = ux.bounded(plain, BOUNDS).params(jax.tree.map(lambda leaf: jnp.full_like(leaf, far), PARAMS))
    assert (params["rate"] >= 0).all()
    assert params["decay"] >= 0
    assert 0 <= params["mix"]["a"] <= 1
    assert -5 <= params["mix"]["b"] <= -1


def test_gradients_are_those_of_the_chain_rule():
    held = ux.bounded(plain, BOUNDS)
    free = held.free(PARAMS)
    got = ux.BPTT(held, horizon=2)
    got = got.estimate(free, got.init(KEY, free), None)[1].grad
    np.testing.assert_allclose(got["rate"], PARAMS["rate"], rtol=1e-12)
    np.testing.assert_allclose(got["mix"]["a"], 2 * 0.2 * 0.2 * 0.8, rtol=1e-12)
    np.testing.assert_allclose(got["mix"]["b"], 4 * 0.5 * 0.5, rtol=1e-12)


def test_one_bound_covers_a_part_of_the_tree_and_none_leaves_it_alone():
    held = ux.bounded(plain, {"rate": "log", "decay": None, "mix": None})
    free = held.free(PARAMS)
    assert free["decay"] == PARAMS["decay"]
    assert free["mix"] == PARAMS["mix"]
    whole = ux.bounded(plain, None)
    jax.tree.map(np.testing.assert_array_equal, whole.free(PARAMS), PARAMS)


def test_the_state_starts_from_the_bounded_parameters():
    held = ux.bounded(plain, BOUNDS)
    np.testing.assert_allclose(held.init(KEY, held.free(PARAMS)), 0.03, rtol=1e-12)


def test_a_rate_that_may_not_be_negative_is_tuned_by_evolution():
    """Gradient descent with a tuned rate: the loss has NaN below zero, which a wide noise would meet."""
    body = ux.system(
        init=lambda key, p: jnp.array(1.0), step=lambda p, s, x, key: (s - p["rate"] * s, s**2 + 0 * jnp.log(p["rate"]))
    )
    held = ux.bounded(body, {"rate": "log"})
    free = held.free({"rate": 0.05})
    nres = ux.NRES(held, std=0.5, window=5, horizon=5, pairs=16)
    run = ux.fit(nres, optax.adam(0.05), free, None, key=KEY, steps=200)
    assert np.isfinite(run.metrics.loss).all()
    assert 0.5 < held.params(run.params)["rate"] < 1.5
    assert run.metrics.loss[-1] < run.metrics.loss[0] / 2


def test_a_bounded_system_is_a_value_that_compiles_once():
    count = []

    @jax.jit
    def run(held, free):
        count.append(1)
        return held.params(free)

    for _ in range(2):
        held = ux.bounded(plain, BOUNDS)
        run(held, held.free(PARAMS))
    assert len(count) == 1


class Pair(NamedTuple):
    """Parameters that are a named tuple."""

    a: Any
    b: Any


@pytest.mark.parametrize(
    ("bounds", "params"),
    [
        (("log", "softplus"), (0.5, 0.1)),
        (("log", None), (0.5, {"x": -1.0})),
        (((0, 1), "log"), (0.5, 2.0)),
        (((0, 1), (np.float32(-5), -1)), (0.5, -2.0)),
        ((None, ((0, 1), None)), (-2.0, (0.5, -3.0))),
        (Pair("log", (0, 1)), Pair(2.0, 0.5)),
        ((), ()),
    ],
)
def test_a_tuple_that_is_no_range_bounds_the_parts_of_a_tuple(bounds, params):
    held = ux.bounded(plain, bounds)
    free = held.free(params)
    assert jax.tree.structure(free) == jax.tree.structure(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), held.params(free), params)
    hash(held.bounds)


def test_a_tuple_of_two_numbers_is_one_range_for_all():
    params = ux.bounded(plain, (0, 1)).params((jnp.array(-1e3), jnp.array(1e3)))
    np.testing.assert_array_equal(params, (0, 1))


@pytest.mark.parametrize("bound", [(0, np.inf), (-np.inf, 0), (-np.inf, np.inf)])
def test_a_range_without_end_is_refused_with_a_remedy(bound):
    with pytest.raises(ux.InvalidArgument, match=r"bounded: a range must have finite ends, got .*'log' or 'softplus'"):
        ux.bounded(plain, {"rate": bound, "decay": None, "mix": None})


@pytest.mark.parametrize(
    "bound", ["exp", (1, 0), (1, 2, 3), (0, np.nan), 0.5, np.zeros(2), (0, 1j), (0, "log"), Pair(0, 1)]
)
def test_an_unknown_bound_is_refused(bound):
    with pytest.raises(ux.InvalidArgument, match="bounded: a bound must be 'log', 'softplus', a range"):
        ux.bounded(plain, {"rate": bound, "decay": None, "mix": None})


def test_parameters_outside_their_bounds_are_refused_by_name():
    with pytest.raises(
        ux.InvalidArgument, match=r"bounded: params leaf \['decay'\] must lie between 0.0 and inf, got -1"
    ):
        ux.bounded(plain, {"rate": None, "decay": "softplus", "mix": None}).free({**PARAMS, "decay": -1.0})


def test_bounds_that_are_no_prefix_are_refused():
    with pytest.raises(ux.StructureError, match="bounded: bounds must be a prefix of params"):
        ux.bounded(plain, {"rate": "log"}).free(PARAMS)
