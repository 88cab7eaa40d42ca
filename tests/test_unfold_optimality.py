"""`examples/unfold_optimality.py`: its setting, its first updates against the golden ones, and (slow) its claims."""

import importlib
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from unrollax.problems import ridge
from unrollax.theory import oracle, quadratic


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    yield importlib.import_module("unfold_optimality")
    for name in ("unfold_optimality", "_common"):
        sys.modules.pop(name, None)


@pytest.fixture
def golden(root):
    return json.loads((root / "benchmarks" / "golden" / "unfold_optimality.json").read_text())


def test_the_limits_are_the_published_ones(script):
    rows = {row.name: row for row in script.rows()}
    for seed in (0, 1):
        for n in (4, 8):
            row = rows[f"{n} steps, A {seed}"]
            assert row.optimum == pytest.approx(oracle(script.problem(seed), n)[n])
            assert (row.horizon, row.entries, row.limit) == (n, n, 1.001)
    for period, limit in ((4, 1.05 * 2.04e-12), (8, 1.2 * 9.41e-16)):
        for name in (f"period {period}", f"period {period}, from Chebyshev"):
            assert rows[name].optimum * rows[name].limit == pytest.approx(limit)
            assert (rows[name].horizon, rows[name].entries) == (50, period)
    assert rows["16 steps"].limit == 1.5
    assert max(row.updates for row in rows.values()) <= 2500


def test_the_spectrum_is_that_of_the_problems_that_are_drawn(script):
    drawn = ridge(lam=script.LAM, seed=1)
    spectrum = script.problem(1)
    np.testing.assert_allclose(quadratic(drawn.A, drawn.lam).h, spectrum.h, rtol=1e-12)
    # the mean of |x|^2 over y ~ N(0, I) is the sum of the weights
    assert float(jnp.sum(drawn.solution**2)) == pytest.approx(spectrum.w.sum(), rel=1e-12)


def test_a_short_run_is_the_golden_one(script, golden):
    result = script.run(seeds=golden["seeds"], quick=True)
    assert json.loads(json.dumps(result.config)) == golden["quick"]["config"]
    for name, errors in golden["quick"]["curve"].items():
        np.testing.assert_allclose(result.curve[name], errors, rtol=golden["tolerance"]["relative"])


def test_the_golden_file_keeps_its_claims(golden):
    assert golden["command"] == "examples/unfold_optimality.py --golden"
    assert golden["seeds"] == 5
    assert len(golden["claims"]) == 12
    assert [claim["claim"] for claim in golden["claims"] if not claim["ok"]] == []


@pytest.mark.slow
def test_a_full_run_keeps_its_claims(script, golden):
    result = script.run(seeds=golden["seeds"], quick=False)
    assert json.loads(json.dumps(result.config)) == golden["config"]
    assert [claim.text for claim in result.claims] == [claim["claim"] for claim in golden["claims"]]
    assert [f"{claim.text}: {claim.seen}" for claim in result.claims if not claim.ok] == []
