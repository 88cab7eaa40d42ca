"""Lyapunov exponents against closed forms, NumPy's factorizations of the literal product, and published figures."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MIXED = RNG.normal(size=(4, 4))
TURN = math.pi / 3
ROTATION = np.array([[math.cos(TURN), -math.sin(TURN)], [math.sin(TURN), math.cos(TURN)]])


def system_of(function, start):
    """A system whose next state is a function of params and state."""
    return ux.system(
        init=lambda key, params: jax.tree.map(jnp.asarray, start),
        step=lambda params, state, x, key: (function(params, state), jnp.zeros(())),
    )


def linear(count):
    return system_of(lambda matrix, state: matrix @ state, np.full(count, 0.1))


def similar(matrix):
    """A matrix with the same eigenvalues that is not normal."""
    mix = MIXED[: len(matrix), : len(matrix)]
    return mix @ matrix @ np.linalg.inv(mix)


def by_matrices(count):
    """A linear system whose matrices are the data."""
    return ux.system(
        init=lambda key, params: jnp.zeros(count), step=lambda params, state, x, key: (x @ state, jnp.zeros(()))
    )


LOGISTIC = system_of(lambda r, x: r * x * (1 - x), 0.3123)
HENON = system_of(lambda p, s: jnp.stack([1 - p[0] * s[0] ** 2 + s[1], p[1] * s[0]]), np.full(2, 0.1))


def test_the_logistic_map_at_4_has_the_exponent_ln_2():
    """By x = sin^2(a) a step's log derivative is ln 2 + w(next x) - w(x), so the mean of N steps is ln 2 + O(1/N).

    An orbit of floating numbers ends in a cycle, after about 1e7 to 1e8 steps in float64, far beyond these.
    """
    found = ux.lyapunov(LOGISTIC, 4.0, key=KEY, steps=1_000_000)
    assert abs(found.exponents[0] - math.log(2)) < 1e-5
    assert found.verdict == "exploding"
    assert abs(found.exponents[0] - math.log(2)) < 3 * found.errors[0]


def test_the_henon_map_has_the_published_exponents_whose_sum_is_the_log_of_its_determinant():
    """0.41922 and -1.62319 in the limit (Sprott 2003); 100 000 steps from (0.1, 0.1) give 0.4206 and -1.6245."""
    found = ux.lyapunov(HENON, jnp.array([1.4, 0.3]), key=KEY, steps=100_000)
    np.testing.assert_allclose(found.exponents, [0.4206, -1.6245], atol=4e-3)
    assert (np.abs(found.exponents - [0.41922, -1.62319]) < 4 * found.errors).all()
    assert (found.errors < 3e-3).all()
    assert abs(found.exponents.sum() - math.log(0.3)) < 1e-12


@pytest.mark.slow
def test_the_henon_map_has_the_published_exponents_to_three_digits():
    found = ux.lyapunov(HENON, jnp.array([1.4, 0.3]), key=KEY, steps=5_000_000, burn_in=1000)
    np.testing.assert_allclose(found.exponents, [0.41922, -1.62319], atol=8e-4)  # z = 4
    assert abs(found.exponents.sum() - math.log(0.3)) < 1e-12


@pytest.mark.parametrize("every", [1, 3])
def test_a_linear_system_has_the_logs_of_its_eigenvalues(every):
    matrix = similar(np.diag([1.5, -0.8, 0.3, 0.1]))
    found = ux.lyapunov(linear(4), matrix, key=KEY, steps=201, burn_in=100, every=every)
    np.testing.assert_allclose(found.exponents, np.log([1.5, 0.8, 0.3, 0.1]), atol=1e-12)
    assert (found.errors < 1e-12).all()
    assert found.spectral_radius == pytest.approx(1.5, rel=1e-12)


def test_a_defective_and_far_from_normal_matrix_has_the_logs_of_its_eigenvalues():
    found = ux.lyapunov(linear(2), np.array([[0.9, 500.0], [0, 0.3]]), key=KEY, steps=200, burn_in=100)
    np.testing.assert_allclose(found.exponents, np.log([0.9, 0.3]), atol=1e-12)


def test_a_complex_pair_has_the_log_of_its_modulus_over_whole_turns():
    """Inside a turn the growth of a direction rises and falls, but not that of the pair."""
    matrix = np.zeros((3, 3))
    matrix[:2, :2], matrix[2, 2] = 0.9 * ROTATION, 0.5
    found = ux.lyapunov(linear(3), similar(matrix), key=KEY, steps=240, burn_in=120)
    np.testing.assert_allclose(found.exponents, np.log([0.9, 0.9, 0.5]), atol=1e-12)
    cut_short = ux.lyapunov(linear(3), similar(matrix), key=KEY, steps=241, burn_in=120).exponents
    np.testing.assert_allclose(cut_short[:2].sum(), 2 * math.log(0.9), atol=1e-12)
    assert np.abs(cut_short[:2] - math.log(0.9)).max() > 1e-6


def test_a_rotation_neither_grows_nor_shrinks():
    found = ux.lyapunov(linear(2), ROTATION, key=KEY, steps=300)
    np.testing.assert_allclose(found.exponents, 0, atol=1e-14)
    np.testing.assert_allclose(found.gains, 0, atol=1e-12)
    assert (found.verdict, found.confidence) == ("neutral", 1.0)


def test_a_lorenz_flow_has_its_trace_as_sum_a_zero_and_the_published_exponent():
    sigma, rho, beta, dt = 10.0, 28.0, 8 / 3, 0.005

    def slope(s):
        return jnp.stack([sigma * (s[1] - s[0]), s[0] * (rho - s[2]) - s[1], s[0] * s[1] - beta * s[2]])

    def runge_kutta(_, s):
        a = slope(s)
        b = slope(s + dt / 2 * a)
        c = slope(s + dt / 2 * b)
        return s + dt / 6 * (a + 2 * b + 2 * c + slope(s + dt * c))

    found = ux.lyapunov(
        system_of(runge_kutta, np.array([1.0, 1.0, 20.0])), (), key=KEY, steps=100_000, burn_in=4000, every=4
    )
    assert found.exponents.sum() / dt == pytest.approx(-(sigma + 1 + beta), abs=1e-4)
    np.testing.assert_allclose(found.exponents[:2] / dt, [0.9056, 0], atol=0.02)


def test_growth_is_that_of_a_literal_qr_and_gains_are_the_singular_values_of_the_literal_product():
    matrices = RNG.normal(size=(12, 5, 5))
    found = ux.lyapunov(by_matrices(5), (), matrices, key=KEY)
    product, logs = np.eye(5), []
    q = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    for matrix in matrices:
        product = matrix @ product
        q, r = np.linalg.qr(matrix @ q)
        logs.append(np.log(np.abs(np.diag(r))))
    np.testing.assert_allclose(found.gains, np.log(np.linalg.svd(product)[1]), atol=1e-7)
    np.testing.assert_allclose(found.gains[:3], np.log(np.linalg.svd(product)[1])[:3], atol=1e-12)
    np.testing.assert_allclose(found.growth.sum(1), np.cumsum(np.sum(logs, 1)), atol=1e-12)
    np.testing.assert_allclose(found.growth[-1] / 12, found.exponents, atol=1e-15)
    np.testing.assert_array_equal(found.at, np.arange(1, 13))


def test_gains_keep_their_digits_where_the_product_is_far_outside_of_floating_numbers():
    """Of a normal matrix the singular values of a power are the powers of the eigenvalues, two of which are close."""
    q = np.linalg.qr(MIXED)[0]
    logs = np.array([2.0, 0.3, 0.299, -3.0])
    system = system_of(lambda matrix, state: matrix @ state, np.zeros(4))
    found = ux.lyapunov(system, q @ np.diag(np.exp(logs)) @ q.T, key=KEY, steps=1000)
    np.testing.assert_allclose(found.gains, 1000 * logs, atol=1e-8)


def test_a_direction_that_a_step_forgets_has_the_exponent_minus_infinity_and_nothing_is_nan():
    found = ux.lyapunov(linear(3), np.ones((3, 3)), key=KEY, steps=40, burn_in=1)
    assert found.exponents[0] == pytest.approx(math.log(3), abs=1e-14)
    assert np.isneginf(found.exponents[1:]).all()
    assert np.isneginf(found.gains[1:]).all()
    assert (found.errors[1:] == 0).all()
    assert found.gains[0] == pytest.approx(40 * math.log(3))
    nothing = ux.lyapunov(linear(3), np.zeros((3, 3)), key=KEY, steps=10)
    assert np.isneginf(nothing.exponents).all()
    assert (nothing.verdict, nothing.confidence, nothing.spectral_radius) == ("vanishing", 1.0, 0.0)


def test_only_the_leading_exponents_are_computed_if_asked_and_of_a_large_state():
    matrix = RNG.normal(size=(80, 80)) / 9
    found = ux.lyapunov(linear(80), matrix, key=KEY, steps=30)
    assert found.exponents.shape == (16,)
    assert np.isnan(found.gains).all()
    np.testing.assert_allclose(found.spectral_radius, np.abs(np.linalg.eigvals(matrix)).max(), rtol=1e-12)
    one = ux.lyapunov(linear(4), similar(np.diag([1.5, 0.8, 0.3, 0.1])), key=KEY, steps=90, burn_in=60, exponents=1)
    np.testing.assert_allclose(one.exponents, [math.log(1.5)], atol=1e-12)


def test_complex_leaves_count_as_two_numbers_and_counters_and_keys_as_none():
    def step(params, state, x, key):
        moved = state["z"] * params * jnp.exp(0.3j)
        return {"z": moved, "n": state["n"] + 1, "key": jax.random.split(state["key"])[0]}, jnp.zeros(())

    start = {"z": jnp.array([1 + 1j]), "n": jnp.array(0), "key": KEY}
    found = ux.lyapunov(ux.system(init=lambda key, params: start, step=step), 0.7, key=KEY, steps=30)
    np.testing.assert_allclose(found.exponents, np.log([0.7, 0.7]), atol=1e-14)


def test_the_trajectory_is_that_of_unroll_with_its_keys_and_data():
    """The state is what a step's derivative is: a wrong key or row would show in the growth."""

    def step(params, state, x, key):
        rate = params + x["row"] + x["all"] + jax.random.uniform(key)
        return {"s": rate * state["s"], "rate": jax.lax.stop_gradient(rate)}, rate

    system = ux.system(init=lambda key, params: {"s": jax.random.normal(key), "rate": jnp.zeros(())}, step=step)
    data = {"row": jnp.linspace(0, 1, 20), "all": ux.repeat(0.5)}
    found = ux.lyapunov(system, 1.0, data, key=KEY)
    start, run = jax.random.split(KEY)
    rates = ux.unroll(system, 1.0, system.init(start, 1.0), data, run)[1]
    np.testing.assert_allclose(found.gains[0], np.log(rates).sum(), atol=1e-12)
    assert np.isneginf(found.exponents[1])


def test_of_a_batch_the_figures_are_means_over_examples_measured_alone():
    def step(params, state, x, key):
        return params * state * (1 + x + jax.random.uniform(key)), state.sum()

    one = ux.system(init=lambda key, params: jax.random.normal(key, (1,)), step=step)
    data = jnp.asarray(RNG.uniform(size=(30, 12)))
    found = ux.lyapunov(ux.clip_loss(ux.remat(ux.batched(one, 12)), at=1.0), 0.5, data, key=KEY, examples=5)
    run = jax.random.split(KEY)[1]
    keys = jax.vmap(lambda key: jax.random.split(key, 12))(jax.random.split(run, 30))
    growth = np.log(0.5 * (1 + data + jax.vmap(jax.vmap(jax.random.uniform))(keys)))[:, :5]
    np.testing.assert_allclose(found.exponents[0], growth.mean(), atol=1e-14)
    assert found.examples == 5
    batches = growth.reshape(5, 6, 5).mean(1)
    within = np.sqrt((batches.var(0, ddof=1) / 5).sum()) / 5
    between = growth.mean(0).std(ddof=1) / math.sqrt(5)
    np.testing.assert_allclose(found.errors[0], max(within, between), rtol=1e-9)


def test_the_standard_error_covers_the_truth_as_often_as_it_says():
    """Growth ~ N(0.1, 0.5^2) in each of 300 runs of 400 steps: |z| > 2 in 4.6 %, more by the error's own error (z = 4)."""
    one = ux.system(
        init=lambda key, params: jnp.ones(1),
        step=lambda params, state, x, key: (state * jnp.exp(params + 0.5 * jax.random.normal(key)), jnp.zeros(())),
    )
    found = ux.lyapunov(ux.batched(one, 300), 0.1, key=KEY, steps=400, examples=300)
    assert abs(found.exponents[0] - 0.1) < 4 * 0.5 / math.sqrt(400 * 300)
    np.testing.assert_allclose(found.errors[0], 0.5 / math.sqrt(400 * 300), rtol=4 / math.sqrt(2 * 299))


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.9, "vanishing"), (1.1, "exploding"), (1.001, "neutral"), (10 ** (1 / 100), "unresolved")]
)
def test_a_verdict_says_what_the_window_does(rate, verdict):
    """Over 100 steps of noisy growth; the last is on the border, ln 10."""
    noisy = ux.system(
        init=lambda key, params: jnp.ones(1),
        step=lambda params, state, x, key: (state * params * jnp.exp(0.01 * x), jnp.zeros(())),
    )
    noise = RNG.normal(size=100)
    found = ux.lyapunov(noisy, rate, noise - noise.mean(), key=KEY)
    assert found.verdict == verdict
    assert found.confidence > 0.95 if verdict != "unresolved" else found.confidence < 0.95


def test_a_verdict_needs_enough_steps():
    assert ux.lyapunov(linear(1), np.array([[9.0]]), key=KEY, steps=3).verdict == "unresolved"


def test_figures_of_a_trajectory_that_overflows_are_of_the_steps_before_it():
    found = ux.lyapunov(system_of(lambda p, s: p * s**2, 2.0), 1.5, key=KEY, steps=20)
    assert found.nonfinite == 10
    assert found.verdict == "exploding"
    states = [2.0]
    for _ in range(9):
        states.append(1.5 * states[-1] ** 2)
    np.testing.assert_allclose(found.exponents[0], np.log(3 * np.array(states[:9])).mean())
    assert "Step 10" in str(found)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": None}, ux.InvalidArgument, "steps"),
        ({"steps": 0}, ux.InvalidArgument, "steps=0"),
        ({"steps": 5, "burn_in": 5}, ux.InvalidArgument, "burn_in=5 of 5 steps"),
        ({"burn_in": -1}, ux.InvalidArgument, "burn_in=-1"),
        ({"every": 0}, ux.InvalidArgument, "every=0"),
        ({"exponents": 3}, ux.InvalidArgument, "exponents=3"),
        ({"examples": 0}, ux.InvalidArgument, "examples=0"),
        ({"key": 3}, ux.InvalidArgument, "key"),
        ({"data": jnp.ones(4)}, ux.StructureError, "5 steps"),
        ({"params": "a"}, ux.StructureError, "params leaf"),
        ({"system": 3}, ux.InvalidArgument, "init or step"),
        ({"system": system_of(lambda p, s: s, ())}, ux.InvalidArgument, "must hold floating numbers, got nothing"),
        ({"system": system_of(lambda p, s: s + 1, 0)}, ux.InvalidArgument, "int64"),
        ({"system": system_of(lambda p, s: s * jnp.nan, 1.0)}, ux.InvalidArgument, "NaN or infinity at step 1"),
        ({"system": system_of(lambda p, s: s[:1], np.ones(2))}, ux.StructureError, "step must keep"),
        ({"system": ux.batched(linear(2), 2), "data": jnp.ones((5, 3))}, ux.StructureError, "2 examples"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    given = {"system": linear(2), "params": np.eye(2), "key": KEY, "steps": 5} | change
    with pytest.raises(error, match=message) as raised:
        ux.lyapunov(**given)
    assert "lyapunov" in str(raised.value)


def test_a_result_prints_aligned_and_goes_into_json():
    at_rest = system_of(lambda matrix, state: matrix @ state, np.zeros(2))
    found = ux.lyapunov(at_rest, np.diag([1e200, 0.5]), key=KEY, steps=5)
    lines = str(found).splitlines()
    assert lines[0].startswith("Over 5 steps: ")
    assert "1e+1000" in lines[0]
    assert len({len(line) for line in lines[2:5]}) == 1
    back = json.loads(json.dumps(found.to_dict()))
    assert set(back) == set(found._fields)
    np.testing.assert_array_equal(back["growth"], found.growth)


def test_a_second_call_with_other_numbers_compiles_nothing():
    from unrollax.diagnosis import _jacobians

    ux.lyapunov(linear_at_rest := linear(2), np.eye(2), key=KEY, steps=7)
    before = _jacobians._push._cache_size()
    ux.lyapunov(linear_at_rest, 2 * np.eye(2), key=jax.random.key(1), steps=7)
    assert _jacobians._push._cache_size() == before


SIZE, STEPS, STARTS = 64, 100, 24


def torch_uniform(cell, key):
    """Weights U(-1/sqrt(H), 1/sqrt(H)), as PyTorch starts its cells; a plain RNN has two such biases, an LSTM none here."""
    keys, limit = iter(jax.random.split(key, 4)), 1 / math.sqrt(SIZE)

    def draw(leaf):
        return jax.random.uniform(next(keys), leaf.shape, minval=-limit, maxval=limit)

    weights = {name: draw(leaf) for name, leaf in cell.params(key).items()}
    bias = weights["b"] + draw(weights["b"]) if isinstance(cell, ux.RNNCell) else jnp.zeros_like(weights["b"])
    return weights | {"b": bias}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "start", "known", "within"),
    [
        (ux.RNNCell(2, SIZE), torch_uniform, 0.51, 0.04),  # from one start to another it spreads by 0.05
        (ux.LSTMCell(2, SIZE), torch_uniform, 0.46, 0.02),  # 0.01
        (ux.LSTMCell(2, SIZE), ux.LSTMCell.params, 0.054, 0.004),  # 0.004
        (ux.LSTMCell(2, SIZE, chrono=STEPS), ux.LSTMCell.params, 0.015, 0.003),  # 0.001
    ],
    ids=["torch_rnn", "torch_lstm_forget_bias_0", "orthogonal_lstm_forget_bias_1", "chrono_lstm"],
)
def test_at_64_units_and_100_steps_cells_lose_what_is_known_of_them(cell, start, known, within):
    """Nats a step over steps 10 to 100 on Gaussian inputs of size 2, mean over starts whose spread is the error (z = 2)."""
    weights = jax.vmap(lambda key: start(cell, key))(jax.random.split(KEY, STARTS))
    one = ux.system(
        init=lambda key, params: cell.init(params),
        step=lambda params, state, x, key: (cell.step(x["weights"], state, x["input"])[0], jnp.zeros(())),
    )
    data = {"weights": ux.repeat(weights), "input": jax.random.normal(KEY, (STEPS, STARTS, 2))}
    like = jax.tree.map(lambda leaf: leaf[0], weights)
    found = ux.lyapunov(ux.batched(one, STARTS), like, data, key=KEY, exponents=1, burn_in=10, examples=STARTS)
    assert abs(-found.exponents[0] - known) < within
    assert 2 * found.errors[0] < within
