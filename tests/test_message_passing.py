"""TISTA, AMP and OAMP: steps against literal NumPy, what they say of their own errors against the errors."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from unrollax import problems, solvers
from unrollax.solvers._weights import error_variance

M, N = 12, 20


def one(seed=0, m=M, n=N, **options):
    of = problems.sparse_recovery(m=m, n=n, p=0.2, seed=seed, **options)
    return of.whole(of.draw(jax.random.key(seed)))


def soft(v, threshold):
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


def iterate(method, theta, problem, steps):
    return np.asarray(method.run(theta, problem, steps=steps))


# --- TISTA ---------------------------------------------------------------------------------------------------------------


def posterior_mean(r, tau2, rate=0.1, variance=1.0):
    dense = rate * norm.pdf(r, 0, np.sqrt(variance + tau2))
    return r * variance / (variance + tau2) * dense / (dense + (1 - rate) * norm.pdf(r, 0, np.sqrt(tau2)))


def literal_tista(problem, x, step, rate):
    a, y, noise2 = np.asarray(problem.A), np.asarray(problem.y), problem.noise**2
    w = np.linalg.pinv(a)
    residual = y - a @ x
    v2 = max((residual @ residual - M * noise2) / np.trace(a.T @ a), 1e-9)
    tau2 = v2 / N * (N + (step**2 - 2 * step) * M) + step**2 * np.trace(w @ w.T) * noise2 / N
    r = x + step * w @ residual
    return r, tau2, posterior_mean(r, tau2, rate)


def test_tista_is_its_formula_for_a_common_and_for_any_matrix():
    problem = one(snr_db=20.0)
    common, every = solvers.tista(problem.A, rate=0.2), solvers.tista(rate=0.2)
    x = np.zeros(N)
    for step in (1.0, 2.3, 0.7):
        seen = common.step({"step": step}, jnp.asarray(x), problem)
        np.testing.assert_allclose(seen, every.step({"step": step}, jnp.asarray(x), problem), atol=1e-12)
        x = literal_tista(problem, x, step, 0.2)[2]
        np.testing.assert_allclose(seen, x, atol=1e-10)


def test_the_estimate_of_the_errors_variance_is_right_on_average(key):
    """For an x whose error has no preferred direction; the mean of 4,000 problems, within 4.5 standard errors."""
    of, step = problems.sparse_recovery(m=M, n=N, p=0.2, snr_db=15.0), 1.7
    w = jnp.linalg.pinv(of.A)

    def gap(key):
        drawn, wrong = jax.random.split(key)
        problem = of.whole(of.draw(drawn))
        x = problem.x + 0.3 * jax.random.normal(wrong, (N,))
        residual = problem.y - problem.A @ x
        r = x + step * w @ residual
        return ((r - problem.x) ** 2).mean() - error_variance(step, residual, problem, w)

    gaps = jax.jit(jax.vmap(gap))(jax.random.split(key, 4000))
    assert abs(gaps.mean()) < 4.5 * gaps.std() / np.sqrt(4000)


def test_tistas_gradient_is_finite_where_the_residual_vanishes():
    problem = one(snr_db=None)
    grad = jax.grad(lambda step: (solvers.tista(problem.A).step({"step": step}, problem.x, problem) ** 2).sum())(1.3)
    assert np.isfinite(grad)


# --- AMP and OAMP --------------------------------------------------------------------------------------------------------


def test_amp_is_its_formula():
    problem = one()
    a, y = np.asarray(problem.A), np.asarray(problem.y)
    x, r = np.zeros(N), y
    for seen in iterate(solvers.amp(), {"threshold": 1.1}, problem, 6):
        np.testing.assert_allclose(seen, x, atol=1e-12)
        bound = 1.1 * np.linalg.norm(r) / np.sqrt(M)
        x = soft(x + a.T @ r, bound)
        r = y - a @ x + np.count_nonzero(x) / M * r


def evolution(noise, delta, p, alpha, steps):
    """tau^2 of the state evolution of Bernoulli-Gauss signals, by dense sums over v = X + tau Z."""
    taus = [noise**2 + p / delta]
    for _ in range(steps):
        tau = np.sqrt(taus[-1])
        z = np.linspace(-10, 10, 20001)
        weight = norm.pdf(z) * (z[1] - z[0])
        quiet = (weight * soft(tau * z, alpha * tau) ** 2).sum()
        v = np.sqrt(1 + tau**2) * z
        loud = (weight * (soft(v, alpha * tau) - v / (1 + tau**2)) ** 2).sum() + tau**2 / (1 + tau**2)
        taus.append(noise**2 + ((1 - p) * quiet + p * loud) / delta)
    return np.array(taus)


def test_amps_residual_follows_the_state_evolution():
    """|r|^2 / m, the mean of 60 fresh matrices, within 4.5 standard errors at each of 6 iterations."""
    m, n, p, noise, alpha = 300, 600, 0.1, 0.02, 1.4

    def run(key):
        where, what, noisy, matrix = jax.random.split(key, 4)
        x = jax.random.bernoulli(where, p, (n,)) * jax.random.normal(what, (n,))
        a = jax.random.normal(matrix, (m, n)) / np.sqrt(m)
        problem = problems.Problem(a, a @ x + noise * jax.random.normal(noisy, (m,)), x, noise)
        state, levels = solvers.amp().start(problem), []
        for _ in range(6):
            levels.append((state.residual**2).mean())
            state = solvers.amp().step({"threshold": alpha}, state, problem)
        return jnp.stack(levels)

    levels = np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(jax.random.key(0), 60)))
    expected = evolution(noise, m / n, p, alpha, 5)
    z = (levels.mean(0) - expected) / (levels.std(0) / np.sqrt(60))
    assert np.abs(z).max() < 4.5
    assert expected[-1] < 0.1 * expected[0]


def test_onsagers_term_is_the_divergence_of_complex_thresholding():
    a = jnp.asarray(np.random.RandomState(0).randn(3, 5) + 1j * np.random.RandomState(1).randn(3, 5)) / 3
    state = solvers.amp().start(SimpleNamespace(A=a, y=jnp.array([1.0 + 2j, -2.0, 3.0j])))
    v = a.conj().T @ state.residual
    bound = 0.5 * np.linalg.norm(state.residual) / np.sqrt(3)
    slopes = []
    for i in range(5):  # by differences along the real and the imaginary axis
        for way in (1, 1j):
            up, down = (
                abs(x) and x * max(1 - bound / abs(x), 0)
                for x in (complex(v[i]) + 1e-6 * way, complex(v[i]) - 1e-6 * way)
            )
            slopes.append(((up - down) / (2e-6 * way)).real)
    problem = SimpleNamespace(A=a, y=jnp.array([1.0 + 2j, -2.0, 3.0j]))
    after = solvers.amp().step({"threshold": 0.5}, state, problem)
    expected = problem.y - a @ after.x + sum(slopes) / 2 / 3 * state.residual
    np.testing.assert_allclose(after.residual, expected, atol=1e-7)


def test_amps_constant_is_the_minimax_threshold():
    """It minimises over thresholds the largest share of noise that a sparse signal's error may keep."""
    delta = 0.5
    chosen = float(solvers.amp().params(np.ones((50, 100)))["threshold"])

    def border(alpha):  # Donoho, Maleki and Montanari 2009, equation 5: the most non-zeros an m that still vanish
        kept = 2 * ((1 + alpha**2) * norm.cdf(-alpha) - alpha * norm.pdf(alpha))
        return (1 - kept / delta) / (1 + alpha**2 - kept)

    grid = np.linspace(0.3, 2, 20001)
    assert chosen == pytest.approx(grid[np.argmax(border(grid))], abs=1e-3)
    assert float(solvers.amp().params(np.eye(3))["threshold"]) == pytest.approx(0, abs=1e-9)


def test_oamp_is_its_formula_and_tista_where_nothing_is_removed():
    problem = one(snr_db=20.0)
    method = solvers.oamp(problem.A, rate=0.2)
    state = method.start(problem)
    z = np.zeros(N)
    for _ in range(4):
        r, tau2, x = literal_tista(problem, z, 0.9 * N / M, 0.2)
        slope = ((posterior_mean(r + 1e-6, tau2, 0.2) - posterior_mean(r - 1e-6, tau2, 0.2)) / 2e-6).mean()
        z = (x - 0.8 * slope * r) / (1 - 0.8 * slope)
        state = method.step({"step": 0.9, "removed": 0.8}, state, problem)
        np.testing.assert_allclose(state.x, x, atol=1e-7)
        np.testing.assert_allclose(state.free, z, atol=1e-7)
    other = iterate(solvers.tista(problem.A, rate=0.2), {"step": 0.9 * N / M}, problem, 5)
    np.testing.assert_allclose(iterate(method, {"step": 0.9, "removed": 0.0}, problem, 5), other, atol=1e-12)
    assert solvers.oamp().run(method.params(), problem, steps=2).shape == (3, N)
