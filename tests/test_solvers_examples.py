"""Optimal transport, eigenvectors and consensus: what the iterations converge to, and how fast."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest

from unrollax import InvalidArgument, StructureError, solvers


def transport(n=5, m=4):
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    return SimpleNamespace(cost=jnp.asarray(rng.uniform(size=(n, m))), a=jnp.asarray(a), b=jnp.asarray(b))


def at(answers, t):
    return jax.tree.map(lambda leaf: leaf[t], answers)


def test_sinkhorn_scales_rows_and_columns_as_in_numpy():
    problem = transport()
    epsilon, relax = 0.2, 1.3
    answers = solvers.sinkhorn().run(solvers.sinkhorn().params(epsilon, relax), problem, steps=4)
    kernel, u, v = np.exp(-np.asarray(problem.cost) / epsilon), np.ones(5), np.ones(4)
    for t in range(1, 5):
        u = u ** (1 - relax) * (np.asarray(problem.a) / (kernel @ v)) ** relax
        v = v ** (1 - relax) * (np.asarray(problem.b) / (kernel.T @ u)) ** relax
        found = solvers.coupling(at(answers, t), problem, epsilon)
        np.testing.assert_allclose(found, u[:, None] * kernel * v, rtol=1e-12)


def test_sinkhorn_reaches_both_marginals_at_the_rate_of_the_second_singular_value_and_faster_relaxed():
    problem = transport()
    method = solvers.sinkhorn()
    last = solvers.coupling(at(method.run(method.params(0.1), problem, steps=800), -1), problem, 0.1)
    np.testing.assert_allclose(last.sum(1), problem.a, atol=1e-12)
    np.testing.assert_allclose(last.sum(0), problem.b, atol=1e-12)
    s = np.linalg.svd(np.asarray(last) / np.sqrt(np.outer(problem.a, problem.b)), compute_uv=False)[1]
    relax = 2 / (1 + np.sqrt(1 - s**2))
    # two eigenvalues meet at the optimum, which adds a factor of t
    for chosen, rate, ends, close in ((1.0, s**2, (10, 30), 0.01), (relax, relax - 1, (6, 14), 0.2)):
        answers = method.run(method.params(0.1, chosen), problem, steps=30)
        errors = [np.linalg.norm(solvers.coupling(at(answers, t), problem, 0.1) - last) for t in ends]
        assert (errors[1] / errors[0]) ** (1 / (ends[1] - ends[0])) == pytest.approx(rate, rel=close)


def test_sinkhorn_stays_finite_where_the_kernel_underflows():
    problem = transport()
    method = solvers.sinkhorn()
    last = at(method.run(method.params(1e-4), problem, steps=200), -1)
    assert np.exp(-np.asarray(problem.cost) / 1e-4).min() == 0
    np.testing.assert_allclose(solvers.coupling(last, problem, 1e-4).sum(0), problem.b, atol=1e-12)


@pytest.mark.parametrize("form", ["real", "complex", "operator"])
def test_the_power_iteration_finds_the_first_eigenvector_at_its_rate(form):
    rng = np.random.default_rng(0)
    half = rng.normal(size=(8, 8)) + (1j * rng.normal(size=(8, 8)) if form == "complex" else 0)
    values, basis = np.array([-1.0, -0.5, 0.0, 0.7, 1.0, 2.0, 3.0, 3.6]), np.linalg.qr(half)[0]
    a = jnp.asarray((basis * values) @ basis.conj().T)
    given = lineax.MatrixLinearOperator(a) if form == "operator" else a
    problem, method = SimpleNamespace(A=given), solvers.power_iteration()
    theta = method.params(a)
    assert float(theta["shift"]) == pytest.approx(1.0)
    assert float(theta["momentum"]) == pytest.approx(1.0)
    answers = np.asarray(method.run(theta, problem, steps=60))
    np.testing.assert_allclose(np.linalg.norm(answers, axis=1), 1, atol=1e-13)
    share = np.abs(answers @ basis.conj()) / np.abs(answers @ basis[:, -1].conj())[:, None]
    worst = share[:, :-1].max(1)
    c, d = 2.6, 2.0
    rate = d / (c + np.sqrt(c**2 - d**2))
    assert (worst[40] / worst[10]) ** (1 / 30) == pytest.approx(rate, rel=0.05)
    x = answers[0]  # without a shift and momentum it is von Mises's
    for found in np.asarray(method.run({"shift": 0.0, "momentum": 0.0}, problem, steps=9))[1:]:
        x = np.asarray(a) @ x / np.linalg.norm(np.asarray(a) @ x)
        np.testing.assert_allclose(found, x, atol=1e-13)


def ring(n=7):
    shift = np.roll(np.eye(n), 1, axis=0)
    return 2 * np.eye(n) - shift - shift.T


def test_consensus_falls_at_its_rate_to_the_mean():
    laplacian, y = ring(), np.random.default_rng(0).normal(size=7)
    problem, method = SimpleNamespace(laplacian=jnp.asarray(laplacian), y=jnp.asarray(y)), solvers.consensus()
    answers = np.asarray(method.run(method.params(laplacian), problem, steps=40))
    values = np.linalg.eigvalsh(laplacian)
    distances = np.linalg.norm(answers - y.mean(), axis=1)
    assert (distances[1:] <= (values[-1] - values[1]) / (values[-1] + values[1]) * distances[:-1] + 1e-12).all()
    assert distances[-1] < 1e-4 * distances[0]


def test_consensus_is_exact_after_a_step_for_each_distinct_eigenvalue():
    laplacian, y = ring(), np.random.default_rng(0).normal(size=(7, 2))
    problem, method = SimpleNamespace(laplacian=jnp.asarray(laplacian), y=jnp.asarray(y)), solvers.consensus()
    distinct = np.unique(np.linalg.eigvalsh(laplacian).round(9))[1:]
    x = method.start(problem)
    for eigenvalue in distinct:
        x = method.step({"step": 1 / eigenvalue}, x, problem)
    assert len(distinct) == 3
    np.testing.assert_allclose(x, np.broadcast_to(y.mean(0), (7, 2)), atol=1e-8)


def test_what_does_not_fit_is_said():
    problem = transport()
    with pytest.raises(StructureError, match=r"sinkhorn: problem.cost must be \[n, m\], a \[n\] and b \[m\]"):
        solvers.sinkhorn().start(SimpleNamespace(cost=problem.cost.T, a=problem.a, b=problem.b))
    with pytest.raises(InvalidArgument, match="sinkhorn: epsilon must be a positive number"):
        solvers.sinkhorn().params(0.0)
    with pytest.raises(StructureError, match=r"power_iteration: problem.A must be a matrix \[n, n\]"):
        solvers.power_iteration().start(SimpleNamespace(A=jnp.ones((3, 2))))
    with pytest.raises(StructureError, match=r"consensus: problem.laplacian must be \[n, n\] and problem.y \[n\]"):
        solvers.consensus().start(SimpleNamespace(laplacian=jnp.eye(3), y=jnp.ones(2)))
    with pytest.raises(InvalidArgument, match="consensus: the graph must be connected"):
        solvers.consensus().params(np.zeros((3, 3)))
