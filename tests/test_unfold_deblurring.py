"""`examples/unfold_deblurring.py`: its parts against matrices, and (slow) its claims."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    yield importlib.import_module("unfold_deblurring")
    for name in ("unfold_deblurring", "_unfold", "_common"):
        sys.modules.pop(name, None)


def matrix_of(function, size):
    """The matrix of a linear function of images."""
    return np.asarray(jax.jit(jax.vmap(function))(np.eye(size**2).reshape(-1, size, size))).reshape(size**2, -1).T


@pytest.mark.parametrize("along_edges", [True, False])
def test_an_iteration_solves_what_it_says(script, monkeypatch, along_edges):
    monkeypatch.setattr(script, "SIZE", 6)
    problems = script.patches(1, along_edges=along_edges)
    blur, edges = matrix_of(problems.A.mv, 6), matrix_of(script.differences, 6) if along_edges else np.eye(36)
    problem = problems.whole(problems.draw(jax.random.key(0)))
    prox = (lambda v, scale: v / (1 + scale)) if along_edges else script.haar
    method = ux.solvers.half_quadratic_splitting(prox, script.differences if along_edges else None)
    x = jax.random.normal(jax.random.key(1), (6, 6))
    after = jax.jit(method.step)({"penalty": 0.2, "lam": 0.1}, method.start(problem)._replace(x=x), problem)
    z = np.ravel(prox((edges @ np.ravel(x)).reshape(-1, 6, 6) if along_edges else x, 0.5))
    right = blur.T @ np.ravel(problem.y) + 0.2 * edges.T @ z
    np.testing.assert_allclose(
        np.ravel(after.x), np.linalg.solve(blur.T @ blur + 0.2 * edges.T @ edges, right), atol=1e-5
    )


def test_haar_wavelets_are_a_decomposition_and_keep_what_is_flat(script):
    v = np.random.default_rng(0).normal(size=(8, 8))
    np.testing.assert_allclose(script.haar(v, 0.0), v, atol=1e-12)
    np.testing.assert_allclose(script.haar(jnp.ones((8, 8)), 0.3), np.ones((8, 8)), atol=1e-12)
    assert np.linalg.norm(script.haar(v, 0.3) - v.mean()) < 0.8 * np.linalg.norm(v - v.mean())


def test_a_fresh_net_is_total_variation_and_one_with_weights_follows_shifts(script):
    v, learned = np.random.default_rng(0).normal(size=(2, 8, 8)), jax.jit(script.learned)
    net = jax.jit(script.fresh)(jax.random.key(1))
    np.testing.assert_allclose(learned(net, v, 0.4), script.pairs(v, 0.4), atol=1e-15)
    net = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, net)
    shifted, found = learned(net, np.roll(v, (2, -3), (1, 2)), 0.4), np.asarray(learned(net, v, 0.4))
    np.testing.assert_allclose(shifted, np.roll(found, (2, -3), (1, 2)), atol=1e-12)
    assert np.abs(found - script.pairs(v, 0.4)).max() > 0.01


@pytest.mark.slow
def test_the_example_keeps_its_claims(script):
    with jax.enable_x64(False):  # as its user has it
        claims = script.deblurring(quick=False)
    assert [f"{claim.text}: {claim.seen}" for claim in claims if not claim.ok] == []
