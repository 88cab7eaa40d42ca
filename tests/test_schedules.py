from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unrollax import InvalidArgument, StructureError
from unrollax._schedules import Schedule, jitter, knots, per_step, periodic, resolve, shared, values_of
from unrollax._tree import to_arrays

KEY = jax.random.key(5)
NUMBERS = np.array([0.3, 0.9, 0.5, 0.7])
RAW = {
    None: (lambda v: v, lambda r: r, lambda r: np.ones_like(r)),
    "log": (np.log, np.exp, np.exp),
    "softplus": (lambda v: np.log(np.exp(v) - 1), lambda r: np.log(1 + np.exp(r)), lambda r: 1 / (1 + np.exp(-r))),
    (-1.0, 2.0): (
        lambda v: -np.log(3 / (v + 1) - 1),
        lambda r: -1 + 3 / (1 + np.exp(-r)),
        lambda r: 3 * np.exp(-r) / (1 + np.exp(-r)) ** 2,
    ),
}
AT = [1, 2, 6, 9]
MAKERS = {
    "shared": lambda v, f: shared(v[0], f),
    "periodic": lambda v, f: periodic(v, 4, f),
    "per_step": lambda v, f: per_step(v, 4, f),
    "knots": lambda v, f: knots(v, AT, f),
}


def mixture(kind, t):
    """The weights of the entries at iteration t, literally."""
    if kind == "shared":
        return np.ones(1)
    if kind == "knots":
        return np.array([np.interp(t, AT, np.eye(4)[k]) for k in range(4)])
    return np.eye(4)[t % 4 if kind == "periodic" else min(t, 3)]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_schedule_resolves_and_is_derived_as_numpy_says(kind):
    schedules = {str(transform): MAKERS[kind](jnp.asarray(NUMBERS), transform) for transform in RAW}
    numbers = values_of(schedules, 12)
    all_of = lambda schedules, t: sum(jax.tree.leaves(resolve(schedules, t)))
    grads = jax.jit(jax.vmap(jax.grad(all_of), (None, 0)))(schedules, jnp.arange(12))
    weights = np.array([mixture(kind, t) for t in range(12)])
    for transform, (inverse, forward, slope) in RAW.items():
        schedule, raw = schedules[str(transform)], inverse(NUMBERS)[: weights.shape[1]]
        np.testing.assert_allclose(np.atleast_1d(schedule.raw), raw, rtol=1e-13)
        np.testing.assert_allclose(np.atleast_1d(schedule.values), NUMBERS[: len(raw)], rtol=1e-13)
        np.testing.assert_allclose(numbers[str(transform)], forward(weights @ raw), rtol=1e-13)
        expected = weights * slope(weights @ raw)[:, None]
        np.testing.assert_allclose(grads[str(transform)].raw.reshape(12, -1), expected, rtol=1e-12, atol=1e-300)


def test_numbers_are_tied_arrays_are_the_entries_and_other_leaves_pass_through():
    matrices = jnp.arange(12.0).reshape(3, 2, 2)
    made = per_step({"eta": 0.5, "w": matrices, "kept": shared(2.0, "log")}, 3)
    params = {"made": made, "net": [jnp.ones((2, 2)), None]}
    theta = resolve(params, 1)
    np.testing.assert_array_equal(theta["made"]["w"], matrices[1])
    assert made["eta"].raw.tolist() == [0.5] * 3
    assert made["kept"].kind == "shared"
    assert theta["net"][0] is params["net"][0]
    assert values_of(params, 5)["made"]["w"].shape == (5, 2, 2)
    assert values_of(params, 5)["net"][0].shape == (2, 2)


def test_a_schedule_prints_on_one_line_and_is_saved_by_its_path():
    params = {"eta": per_step(0.1, 16, "log"), "lam": knots(jnp.ones(2, jnp.float32), [0, 8])}
    assert repr(params["eta"]) == "Schedule(raw=float64[16], kind='per_step', transform='log', at=())"
    assert repr(params["lam"]) == "Schedule(raw=float32[2], kind='knots', transform=None, at=(0, 8))"
    assert {name: rows.shape for name, rows in to_arrays(params).items()} == {"eta/raw": (16,), "lam/raw": (2,)}
    assert params["eta"].entries == 16


def test_equal_schedules_with_other_numbers_do_not_compile_anew():
    run = jax.jit(lambda params, t: resolve(params, t)["eta"])
    for number, t in ((0.1, 0), (0.2, 3), (0.3, 9)):
        assert float(run({"eta": periodic(number, 4, "log")}, t)) == pytest.approx(number)
    assert run._cache_size() == 1


def test_groups_of_schedules_get_their_own_learning_rates_by_label():
    params = {"eta": periodic(jnp.array([1.0, 2.0]), 2), "lam": shared(3.0), "w": jnp.ones(2)}
    optimizer = optax.partition(
        {"fast": optax.sgd(1.0), "slow": optax.sgd(0.1)}, {"eta": "fast", "lam": "slow", "w": "slow"}
    )
    grad = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(optimizer.update)(grad, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["eta"].raw, [0.0, 1.0])
    np.testing.assert_allclose([params["lam"].raw, *params["w"]], [2.9, 0.9, 0.9])


def test_makers_take_traced_numbers():
    make = jax.jit(lambda number: periodic({"eta": number}, 3, "softplus"))
    np.testing.assert_allclose(make(0.7)["eta"].values, [0.7] * 3, rtol=1e-14)
    slopes = jax.jacobian(lambda number: values_of(knots(number, [0, 4], "log"), 6))(0.7)
    np.testing.assert_allclose(slopes, np.ones(6), rtol=1e-14)


def test_softplus_is_exact_for_large_and_small_numbers():
    numbers = jnp.array([1e-12, 1e-3, 50.0, 1e4])
    np.testing.assert_allclose(per_step(numbers, 4, "softplus").values, numbers, rtol=1e-13)


# --- jitter ----------------------------------------------------------------------------------------------------------


def test_jitter_parts_equal_entries_and_leaves_the_rest_alone():
    params = {"eta": periodic(0.1, 4, "log"), "lam": shared(2.0), "at": knots(0.5, AT, (0, 1)), "w": jnp.ones(3)}
    first, again, other = (jitter(params, key, std=0.01) for key in (KEY, KEY, jax.random.key(6)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert len(set(first["eta"].raw.tolist() + other["eta"].raw.tolist() + first["at"].raw.tolist())) == 12
    np.testing.assert_array_equal(first["w"], params["w"])
    assert first["lam"] is params["lam"]
    assert jax.tree.structure(first) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, jitter(params, KEY, std=0.0)["eta"], params["eta"])


COUNT = 20_000
SPREADS = {
    "log": lambda values: np.log(values / 0.5),
    "softplus": lambda values: np.log(values / 0.5),
    None: lambda values: values - 0.5,
    (0.0, 1.0): lambda values: np.log(values / (1 - values)),
}


@pytest.mark.parametrize("transform", SPREADS, ids=str)
def test_jitter_is_relative_where_numbers_are_positive(transform):
    """Mean and variance of the noise, |z| < 5."""
    z = SPREADS[transform](np.asarray(jitter(per_step(0.5, COUNT, transform), KEY, std=0.1).values)) / 0.1
    assert abs(z.mean() * np.sqrt(COUNT)) < 5
    assert abs((z.var() - 1) * np.sqrt(COUNT / 2)) < 5


# --- errors ----------------------------------------------------------------------------------------------------------

ERRORS = {
    "periodic: period must be a positive whole number, got period=0": partial(periodic, 1.0, 0),
    "per_step: depth must be a positive whole number, got depth=2.5": partial(per_step, 1.0, 2.5),
    r"per_step: leaf \['eta'\] must be a number, .* or \[4, ...\], .* got float64\[3\].*jnp.broadcast_to": partial(
        per_step, {"eta": jnp.ones(3)}, 4
    ),
    r"shared: leaf \['a'\] must hold positive finite numbers with transform='log', got 0": partial(
        shared, {"a": jnp.array([1.0, 0.0])}, "log"
    ),
    r"shared: leaf \(root\) must hold numbers strictly between 0 and 2 with transform=\(0.0, 2.0\), got 2": partial(
        shared, 2.0, (0, 2)
    ),
    r"shared: leaf \(root\) must hold finite numbers, got nan": partial(shared, float("nan")),
    r"shared: leaf \['a'\] must be a real number or array, got complex128\[\]": partial(shared, {"a": 1j}),
    r"shared: leaf \['a'\] must be a real number or array, got str": partial(shared, {"a": "x"}),
    "shared: transform must be None, 'log', 'softplus' or an interval": partial(shared, 1.0, "exp"),
    r"shared: transform .* got transform=\(2, 1\)": partial(shared, 1.0, (2, 1)),
    r"knots: at must be ascending iterations.*got at=\[0, 4, 4\]": partial(knots, 1.0, [0, 4, 4]),
    r"knots: at must be ascending iterations.*got at=\[-1, 4\]": partial(knots, 1.0, [-1, 4]),
    r"knots: at must be ascending iterations.*got at=5": partial(knots, 1.0, 5),
    "Schedule: kind must be one of": partial(Schedule, jnp.ones(2), kind="cosine"),
    "values_of: steps must be a positive": lambda: values_of(shared(1.0), 0),
    "jitter: std must be a finite number of at least 0, got std=-1": lambda: jitter(shared(1.0), KEY, std=-1.0),
    "jitter: key must be a single PRNG key": lambda: jitter(shared(1.0), 3, std=1.0),
}


@pytest.mark.parametrize("message", ERRORS, ids=str)
def test_what_can_not_be_a_schedule_is_told(message):
    with pytest.raises((InvalidArgument, StructureError), match=message):
        ERRORS[message]()
