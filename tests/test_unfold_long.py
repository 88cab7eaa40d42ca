"""`examples/unfold_long.py`: its closed form, its two parts that take seconds, and (slow) its claims."""

import importlib
import sys

import jax
import numpy as np
import pytest

import unrollax as ux


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    yield importlib.import_module("unfold_long")
    for name in ("unfold_long", "_unfold", "_race", "_common"):
        sys.modules.pop(name, None)


def test_the_closed_form_is_what_an_unfolding_comes_to(script, monkeypatch):
    """16 problems of 50 numbers: the ratio of mean squares differs from that of their expectations by a few per cent."""
    monkeypatch.setattr(script, "N", 200)
    params = script.start(0)
    errors = jax.jit(script.descent().errors)(params, jax.random.key(0))
    seen = np.log(errors[-1] / errors[0]) / 2
    np.testing.assert_allclose(seen, script.log_error(params["eta"].values), atol=0.3)


def test_chebyshev_steps_are_best_among_those_that_start_near_a_constant_one(script):
    steps = ux.theory.chebyshev_steps(script.T, script.L, script.MU)
    assert script.log_error(steps) < -80 < -22 < script.log_error(np.full(4, 2 / (script.L + script.MU))) < -21


def test_a_certificate_is_trained_to_the_optimum(script):
    assert all(claim.ok for claim in script.certified(quick=False))


def test_the_implicit_gradient_is_that_of_backpropagation_once_the_iterations_have_settled(script):
    """In short, 400 iterations: exp(-3.2) of the start's error is left, and so of the difference."""
    difference, share = script.regularised(quick=True)
    assert 1e-5 < difference.seen < 1
    assert share.seen < 1 / 20


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pes", "bptt", "tbptt", "implicit"])
def test_the_claims_hold(script, part):
    assert [claim.text for claim in script.PARTS[part](False) if not claim.ok] == []
