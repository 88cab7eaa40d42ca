"""`examples/unfold_questions.py`: its closed forms, its first updates against the golden ones, and (slow) its claims."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.problems import ridge
from unrollax.solvers import gradient_descent
from unrollax.theory import oracle, oracle_steps


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    yield importlib.import_module("unfold_questions")
    for name in ("unfold_questions", "_questions", "_common"):
        sys.modules.pop(name, None)


@pytest.fixture
def golden(root):
    return json.loads((root / "benchmarks" / "golden" / "unfold_questions.json").read_text())


def close(seen, kept, tolerance, where):
    """Compare the numbers of curves; `None` stands for what is not finite."""
    seen, kept = np.asarray(seen, float), np.asarray(kept, float)
    np.testing.assert_allclose(np.where(np.isfinite(seen), seen, np.nan), kept, rtol=tolerance, err_msg=where)


def test_the_closed_form_is_the_error_over_all_y(script):
    """The mean of |x - x*|^2 over y ~ N(0, I) is the sum over unit vectors y, run by the product's own iteration."""
    problems, random = ridge(lam=3.0), np.random.RandomState(0)
    steps, lam = 0.006 * random.rand(5), 10 * random.rand(5)
    params = {"step": ux.per_step(jnp.asarray(steps), 5), "lam": ux.per_step(jnp.asarray(lam), 5)}
    net = ux.unfold(gradient_descent(), problems, horizon=5)

    def distance(y):
        x, problem = jnp.zeros(50), problems.whole((y, problems.solution @ y))
        for t in range(5):
            x = net.iteration(ux.resolve(params, t), x, problem)
        return jnp.sum((x - problem.x) ** 2)

    np.testing.assert_allclose(script.error(steps, lam), jax.vmap(distance)(jnp.eye(100)).sum(), rtol=1e-11)


@pytest.mark.parametrize("lam", [1.8, 3.0, 5.0])
def test_eight_steps_are_optimal_with_other_lambdas(script, lam):
    questions = importlib.import_module("_questions")
    steps = questions.steps_for(lam, oracle_steps(script.ONE, 8))
    assert steps.shape == (8,)
    assert script.error(steps, np.full(8, lam)) == pytest.approx(oracle(script.ONE, 8)[8], rel=1e-8)


def test_no_lambdas_are_below_the_oracle(script):
    random, bound = np.random.RandomState(1), oracle(script.ONE, 4)[4]
    best = oracle_steps(script.ONE, 4)
    scale = np.repeat([0.01, 0.1, 1.0], 50)[:, None]
    steps, lam = best * np.exp(scale * random.randn(150, 4)), 3 * np.exp(scale * random.randn(150, 4))
    errors = jax.jit(jax.vmap(script.error))(steps, lam)
    assert float(errors.min()) >= bound * (1 - 1e-12)
    assert float(errors[:50].max()) < 1.5 * bound


def test_lambda_that_is_far_has_no_real_steps(script):
    questions = importlib.import_module("_questions")
    best = oracle_steps(script.ONE, 8)
    assert questions.steps_for(1.6, best) is None
    assert questions.steps_for(6.0, best) is None
    assert questions.edge(best, 0.0) == pytest.approx(1.72, abs=0.01)


def test_steps_diverge_where_a_factor_is_above_one(script):
    (spectrum,) = script.spectra(0, 1)
    limit = 2 / spectrum.L
    assert not script.diverges(np.array([0.999 * limit]), 1, spectrum)
    assert script.diverges(np.array([1.001 * limit]), 1, spectrum)


def test_a_drawn_problem_has_its_own_matrix_and_its_answer(script):
    questions = importlib.import_module("_questions")
    problem, other = questions.fresh(jax.random.key(0)), questions.fresh(jax.random.key(1))
    assert float(jnp.abs(problem.A - other.A).max()) > 1
    slope = problem.A.T @ (problem.A @ problem.x - problem.y) + 3 * problem.x
    np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_a_short_run_is_the_golden_one(script, golden):
    result = script.run(seeds=golden["seeds"], quick=True)
    assert json.loads(json.dumps(result.config)) == golden["quick"]["config"]
    assert result.curve.keys() == golden["quick"]["curve"].keys()
    for name, kept in golden["quick"]["curve"].items():
        close(result.curve[name], kept, golden["tolerance"]["relative"], name)


def test_the_golden_file_keeps_its_claims(golden):
    assert golden["command"] == "examples/unfold_questions.py --golden"
    assert golden["seeds"] == 3
    assert len(golden["claims"]) > 40
    assert [claim["claim"] for claim in golden["claims"] if not claim["ok"]] == []


@pytest.mark.slow
def test_a_full_run_keeps_its_claims(script, golden):
    result = script.run(seeds=golden["seeds"], quick=False)
    assert json.loads(json.dumps(result.config)) == golden["config"]
    assert [claim.text for claim in result.claims] == [claim["claim"] for claim in golden["claims"]]
    assert [f"{claim.text}: {claim.seen}" for claim in result.claims if not claim.ok] == []
