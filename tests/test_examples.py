"""The scripts of `examples/`: their settings against closed forms and literal loops, their first updates against the golden
curves, and (slow) all that they claim.
"""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

NAMES = ("influence_balancing", "toy_regression", "variance", "lorenz", "landscapes")
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    yield importlib.import_module
    for name in (*NAMES, "_common"):
        sys.modules.pop(name, None)


@pytest.fixture
def golden(root):
    return lambda name: json.loads((root / "benchmarks" / "golden" / f"{name}.json").read_text())


# --- the settings --------------------------------------------------------------------------------------------------------


def test_the_chain_rests_at_minus_six_theta(script):
    chain = script("influence_balancing")
    matrix = 0.5 * np.eye(23) + 0.5 * np.eye(23, k=1)
    sign = np.array([1.0] * 10 + [-1.0] * 13)
    for theta in (0.5, -1 / 6):
        rest = np.linalg.solve(np.eye(23) - matrix, theta * sign)
        np.testing.assert_allclose(rest[0], -6 * theta, rtol=1e-12)
        loss, grad = jax.value_and_grad(chain.evaluate)(jnp.asarray(theta))
        np.testing.assert_allclose(loss, (6 * theta + 1) ** 2 / 2, atol=1e-12)
        np.testing.assert_allclose(grad, 6 * (6 * theta + 1), atol=1e-10)


def test_the_chain_moves_by_its_matrix(script):
    chain = script("influence_balancing")
    matrix, state, theta = 0.5 * np.eye(23) + 0.5 * np.eye(23, k=1), np.ones(23), 0.3
    for _ in range(7):
        state = matrix @ state + theta * np.array([1.0] * 10 + [-1.0] * 13)
    after, losses = ux.unroll(chain.CHAIN, theta, jnp.ones(23), chain.at_the_end(7), jax.random.key(0))
    np.testing.assert_allclose(after, state, rtol=1e-13)
    np.testing.assert_allclose(losses.mean(), (state[0] - 1) ** 2 / 2, rtol=1e-13)


def literal_total(theta0, theta1):
    x0, x1, total = 1.0, 1.0, 0.0
    for t in range(100):
        rate = np.exp(theta0) * (100 - t) / 100 + np.exp(theta1) * t / 100
        bump = np.exp(-5 * x0**2)
        slope0 = x0 / np.sqrt(x0**2 + 5) - 10 * x0 * np.sin(x1) ** 2 * bump
        slope1 = 2 * np.sin(x1) * np.cos(x1) * bump + 0.25 * np.sign(x1 - 100)
        x0, x1 = x0 - rate * slope0, x1 - rate * slope1
        total += np.sqrt(x0**2 + 5) - np.sqrt(5) + np.sin(x1) ** 2 * np.exp(-5 * x0**2) + 0.25 * abs(x1 - 100)
    return total


def test_the_toy_total_is_a_literal_loop(script):
    toy = script("toy_regression")
    for theta in ((-4.0, -4.0), (2.8, -3.7), (-3.0, -2.0), (3.0, -1.0)):
        np.testing.assert_allclose(toy.total(jnp.array(theta)), literal_total(*theta), rtol=1e-9)
    assert round(literal_total(-4, -4)) == 2488
    assert round(literal_total(2.8, -3.7)) == 558


def test_the_lorenz_loss_is_a_literal_loop(script):
    lorenz = script("lorenz")

    def heights(a, r):
        x, y, z = 1.2, 1.3, 1.6
        for _ in range(300):
            x, y, z = x + 0.005 * a * (y - x), y + 0.005 * (x * (r - z) - y), z + 0.005 * (x * y - 8 / 3 * z)
            yield z

    theta = jnp.array(lorenz.START)
    losses = ux.unroll(lorenz.LORENZ, theta, lorenz.init(None, theta), None, jax.random.key(0), steps=300)[1]
    here, true = (np.array(list(heights(*np.exp(at)))) for at in (lorenz.START, lorenz.TRUTH))
    np.testing.assert_allclose(losses, (here - true) ** 2, rtol=1e-7, atol=1e-9)


def test_staggered_copies_are_spread_over_the_horizon(script):
    lorenz = script("lorenz")
    copies = lorenz.Staggered(ux.TBPTT(lorenz.LORENZ, window=100, horizon=500), 5)
    theta = jnp.array(lorenz.TRUTH) + 0.1
    state, resets = copies.init(jax.random.key(0), theta), []
    run = jax.jit(copies.estimate)
    for _ in range(10):
        resets.append(np.flatnonzero(state.left <= 0).tolist())
        state, _ = run(theta, state, None)
    assert sorted(resets[0]) == [0, 1, 2, 3, 4]  # all start
    assert [len(reset) for reset in resets[5:]] == [1] * 5
    assert sorted(index for reset in resets[5:] for index in reset) == [0, 1, 2, 3, 4]


def test_the_closed_forms_are_variances_of_quadratic_forms(script):
    """An estimate is x^T M_d x in d, with x all noise of a horizon; its variance is 2 tr(S S), S the half of M_d + M_d^T."""
    variance = script("variance")
    g = variance.influence()
    count, size = variance.WINDOWS, variance.D

    def trace(perturbed, credited):
        """Noise a of `perturbed` windows moves the params of window b where perturbed[b] == a; the like for credit."""
        total = 0.0
        for d in range(size):
            form = np.zeros((count, size, count, size))
            for c in range(count):
                for b in range(c + 1):
                    for a in credited(c):
                        form[a, d, perturbed(b)] += g[c, b] / count
            form = form.reshape(count * size, -1)
            total += 2 * np.trace((form + form.T) @ (form + form.T)) / 4
        return total

    expected = variance.traces(g)
    np.testing.assert_allclose(trace(lambda b: b, lambda c: range(c + 1)), expected["PES"], rtol=1e-12)
    np.testing.assert_allclose(trace(lambda b: 0, lambda c: [0]), expected["NRES"], rtol=1e-12)
    assert expected["full ES"] == expected["NRES"]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_convolved_gradient_is_that_of_the_convolved_loss(script, index):
    landscapes = script("landscapes")
    case = landscapes.CASES[index]._replace(horizon=100)
    found = landscapes.scanned(case, 1500)
    numeric = np.gradient(found["smooth"], found["theta"])[5:-5]
    np.testing.assert_allclose(found["slope"][5:-5], numeric, atol=0.02 * np.abs(numeric).max())
    quiet = np.gradient(found["loss"], found["theta"])[5:100]  # where the system is regular
    np.testing.assert_allclose(found["exact"][5:100], quiet, atol=0.01 * np.abs(quiet).max())


# --- golden curves -------------------------------------------------------------------------------------------------------


def close(seen, kept, tolerance, where):
    """Compare nested numbers; `None` stands for what is not finite."""
    if isinstance(kept, dict):
        assert seen.keys() == kept.keys(), where
        for name in kept:
            close(seen[name], kept[name], tolerance, f"{where}, {name}")
        return
    seen, kept = np.asarray(seen, float), np.asarray(kept, float)  # None becomes NaN
    finite = np.isfinite(kept)
    np.testing.assert_array_equal(np.isfinite(seen), finite, err_msg=where)
    scale = np.abs(kept[finite]).max(initial=0)
    np.testing.assert_allclose(seen[finite], kept[finite], rtol=tolerance, atol=tolerance * scale, err_msg=where)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "variance"])
def test_a_short_run_is_the_golden_one(script, golden, name):
    kept = golden(name)
    result = script(name).run(seeds=kept["seeds"], quick=True)
    assert json.loads(json.dumps(result.config)) == kept["quick"]["config"]
    close(result.curve, kept["quick"]["curve"], kept["tolerance"]["relative"], name)


@pytest.mark.parametrize("part", ["linear", "LSTM", "RNN"])
def test_a_short_run_of_each_part_of_variance_is_the_golden_one(script, golden, part):
    kept, curve = golden("variance"), {}
    variance = script("variance")
    config = variance.settings(seeds=kept["seeds"], quick=True)
    assert config == kept["quick"]["config"]
    assert part in variance.PARTS
    variance.measure(part, config, curve)
    close(curve, {name: kept["quick"]["curve"][name] for name in curve}, kept["tolerance"]["relative"], part)


@every
def test_a_golden_file_names_its_setting_and_keeps_its_claims(golden, name):
    kept = golden(name)
    assert kept["command"] == f"examples/{name}.py --golden"
    assert kept["config"].items()
    assert [claim["claim"] for claim in kept["claims"] if not claim["ok"]] == []


@pytest.mark.slow
@every
def test_a_full_run_keeps_its_claims(script, golden, name):
    kept = golden(name)
    result = script(name).run(seeds=kept["seeds"], quick=False)
    assert json.loads(json.dumps(result.config)) == kept["config"]
    assert [claim.text for claim in result.claims] == [claim["claim"] for claim in kept["claims"]]
    assert [f"{claim.text}: {claim.seen}" for claim in result.claims if not claim.ok] == []


def test_a_claim_that_overflowed_is_no_success(script):
    common = script("_common")
    assert not common.below("loss", 1, np.nan).ok
    assert not common.below("loss", 1, np.inf).ok
    assert common.above("it diverges", 1, np.nan).ok
    assert common.below("loss", 1, 0.5).ok
    assert "MISS" in common.table([common.between("loss", 1, 2, 3)])
