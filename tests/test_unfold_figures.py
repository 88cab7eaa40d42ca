"""The figures of the examples `unfold_sparse.py` and `unfold_mimo.py`: short runs against the golden ones and baselines at
once, trained ones when there is time.
"""

import importlib
import json
import sys

import jax
import numpy as np
import pytest

import unrollax as ux


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    with jax.enable_x64(False):  # as the scripts run
        yield importlib.import_module
    for name in ("unfold_sparse", "unfold_mimo", "_unfold", "_common"):
        sys.modules.pop(name, None)


@pytest.fixture
def golden(root):
    return lambda name: json.loads((root / "benchmarks" / "golden" / f"{name}.json").read_text())


PARTS = {"unfold_sparse": ["lasso", "tista", "ista", "alista", "du-ista"], "unfold_mimo": ["10", "15", "20"]}
SHORT = ("ista",)  # of which a short run is cheap enough for every day
KNOWN = {f"{method}: last error, dB" for method in ("ISTA", "FISTA")}  # -37.0, see there


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param(name, part, marks=[] if part in SHORT else pytest.mark.slow)
        for name in PARTS
        for part in PARTS[name]
    ],
)
def test_a_short_run_is_the_golden_one(name, part, script, golden):
    module, kept = script(name), golden(name)
    assert list(module.PARTS) == PARTS[name] == kept["quick"]["config"]["parts"]
    result = script("_unfold").run(module.PARTS, module.CONFIG, quick=True, only=[part])
    seen, expected = result.curve[part], kept["quick"]["curve"][part]
    assert list(seen) == list(expected)
    wanted = [np.inf if number is None else number for number in expected.values()]
    np.testing.assert_allclose(list(seen.values()), wanted, rtol=kept["tolerance"]["relative"])


@pytest.mark.parametrize("name", PARTS)
def test_a_golden_file_names_its_setting_and_keeps_its_claims(name, script, golden):
    kept = golden(name)
    assert kept["command"] == f"examples/{name}.py --golden"
    assert kept["config"] == {**script(name).CONFIG, "parts": PARTS[name]}
    assert {claim["claim"] for claim in kept["claims"] if not claim["ok"]} == (KNOWN if "sparse" in name else set())
    assert [len(part) for part in kept["curve"].values()] == [len(part) for part in kept["quick"]["curve"].values()]


def claims_of(part):
    return {claim.text: (claim.seen, claim.expected(), claim.ok) for claim in part(False)}


@pytest.mark.slow
def test_the_linear_detector_has_the_published_share_of_wrong_bits(script):
    seen = script("unfold_mimo").linear(ux.problems.mimo(snr_db=15.0), 300)
    assert seen == pytest.approx(0.114, abs=0.006)  # 30,000 bits in 300 channels: 4.5 standard errors


def test_ista_of_the_book_has_the_error_that_the_book_starts_from(script):
    sparse = script("unfold_sparse")
    problems, method = ux.problems.du_ista(), ux.solvers.ista()
    net = ux.unfold(method, problems, error=sparse.squared, horizon=40, batch=200)
    errors = jax.jit(net.errors)(method.params(problems.A, lam=1.0), jax.random.key(0))
    assert float(errors[0]) == pytest.approx(128 * 0.05, rel=0.2)
    assert float(errors[40]) == pytest.approx(2.03, rel=0.2)  # published for another matrix


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lasso", "tista", "ista", "alista", "du-ista"])
def test_sparse_recovery_reaches_its_figures(name, script):
    claims = claims_of(script("unfold_sparse").PARTS[name])
    missed = {text for text, (*_, ok) in claims.items() if not ok}
    assert missed <= KNOWN, claims


@pytest.mark.slow
@pytest.mark.parametrize("snr_db", ["10", "15", "20"])
def test_detection_reaches_its_figures(snr_db, script):
    claims = claims_of(script("unfold_mimo").PARTS[snr_db])
    assert all(ok for *_, ok in claims.values()), claims
