"""Certificates, the growth on the way, and stable orders, against dense grids and gradient descent in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unrollax._errors import InvalidArgument, StructureError
from unrollax.theory import (
    amplification,
    certificate,
    chebyshev_steps,
    gradient_step,
    quadratic,
    rounding_floor,
    schedule_error,
    smooth_log_rate,
    stable_order,
)

L, MU = 24.5, 1.0
DENSE = np.linspace(MU, L, 200_001)


def worst(steps):
    return np.abs(np.prod([1 - step * DENSE for step in steps], axis=0)).max()


@pytest.mark.parametrize("signs", ["positive", "any", "equal", "zero", "outside"])
def test_the_rate_is_the_maximum_over_a_dense_grid(signs):
    random = np.random.RandomState(3)
    for many in (1, 2, 5, 12):
        steps = {
            "positive": 1 / (MU + (L - MU) * random.rand(many)),
            "any": random.randn(many) * 0.2,
            "equal": np.full(many, gradient_step(L, MU)),
            "zero": np.append(random.rand(many) * 0.1, 0.0),
            "outside": 1 / (2 * L + random.rand(many)),
        }[signs]
        assert certificate(steps, MU, L).rate == pytest.approx(worst(steps), rel=1e-6)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_chebyshev_steps_have_the_rate_of_the_theory(n):
    said = certificate(chebyshev_steps(n, L, MU), MU, L)
    rate = 1 / np.cosh(n * np.arccosh((L + MU) / (L - MU)))
    assert said.rate == pytest.approx(rate, rel=1e-12)
    assert said.per_iteration == pytest.approx(rate ** (1 / n), rel=1e-12)
    assert said.log_rate == pytest.approx(np.log(rate), rel=1e-12)
    assert said.converges
    assert not certificate([0.1], MU, L).converges


def test_certificates_can_be_traced_and_their_gradient_is_that_of_the_maximum():
    steps = np.array([0.05, 0.3, 0.11])
    objective = jax.jit(lambda steps: certificate(steps, MU, L).log_rate)
    np.testing.assert_allclose(objective(jnp.array(steps)), certificate(steps, MU, L).log_rate, rtol=1e-13)
    grad = jax.grad(objective)(jnp.array(steps))
    for k, nudge in enumerate(1e-6 * np.eye(3)):
        slope = (certificate(steps + nudge, MU, L).log_rate - certificate(steps - nudge, MU, L).log_rate) / 2e-6
        assert grad[k] == pytest.approx(slope, rel=1e-6)


def test_the_smooth_rate_bounds_the_maximum_and_is_near_it():
    steps = np.array([0.05, 0.3, 0.11])
    exact = certificate(steps, MU, L).log_rate
    for sharpness in (1.0, 100.0):
        assert exact <= smooth_log_rate(steps, MU, L, sharpness=sharpness) <= exact + np.log(6) / sharpness
    objective = jax.jit(lambda steps: smooth_log_rate(steps, MU, L, sharpness=3.0))
    grad = jax.grad(objective)(jnp.array(steps))
    for k, nudge in enumerate(1e-6 * np.eye(3)):
        slope = float(objective(steps + nudge) - objective(steps - nudge)) / 2e-6
        assert grad[k] == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(("condition", "within"), [(24.5, 0.02), (1000.0, 0.003)])
def test_training_the_smooth_rate_finds_chebyshev_steps(condition, within):
    start = jnp.log(gradient_step(condition, 1.0)) + jnp.array([-0.4, -0.1, 0.1, 0.4])
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 800), b2=0.9)

    @jax.jit
    def run(raw):
        def body(carry, _):
            raw, state = carry
            grad = jax.grad(lambda raw: smooth_log_rate(jnp.exp(raw), 1.0, condition))(raw)
            updates, state = optimizer.update(grad, state)
            return (raw + updates, state), None

        return jax.lax.scan(body, (raw, optimizer.init(raw)), length=800)[0][0]

    best = certificate(chebyshev_steps(4, condition, 1.0), 1.0, condition).log_rate
    found = certificate(np.exp(run(start)), 1.0, condition).log_rate
    assert best <= found + 1e-12
    assert found < best + within


def test_amplification_is_the_growth_over_a_dense_grid():
    steps = np.random.RandomState(0).rand(9) * 0.3
    expected = [1.0, *(worst(steps[:t]) for t in range(1, 10))]
    found = amplification(steps, MU, L)
    np.testing.assert_allclose(found, expected, rtol=5e-3)
    assert certificate(steps, MU, L).transient == found.max()
    np.testing.assert_allclose(jax.jit(amplification)(jnp.array(steps), MU, L), found, rtol=1e-12)


def test_stable_order_is_lebedev_and_finogenovs():
    assert stable_order(1).tolist() == [0]
    assert stable_order(16).tolist() == [0, 15, 7, 8, 3, 12, 4, 11, 1, 14, 6, 9, 2, 13, 5, 10]
    for n in range(1, 130):
        assert sorted(stable_order(n)) == list(range(n))
    steps = np.random.RandomState(0).rand(11)
    np.testing.assert_array_equal(stable_order(steps), np.sort(steps)[stable_order(11)])
    np.testing.assert_array_equal(jax.jit(stable_order)(jnp.array(steps)), stable_order(steps))


@pytest.mark.parametrize("condition", [24.5, 1000.0])
def test_in_stable_order_nothing_grows_beyond_the_condition_number(condition):
    for n in (3, 8, 13, 31, 48, 50, 100):
        steps = chebyshev_steps(n, condition, 1.0)
        np.testing.assert_array_equal(steps, stable_order(chebyshev_steps(n, condition, 1.0, "ascending")))
        assert amplification(steps, 1.0, condition).max() < condition  # errors of the start
        assert amplification(steps[::-1], 1.0, condition).max() < condition  # rounding on the way
    assert amplification(chebyshev_steps(48, condition, 1.0, "ascending")[::-1], 1.0, condition).max() > 1e12


@functools.cache
def in_float32(order):
    """Return the mean squared error of gradient descent in float32 for a 100 x 50 ridge, with 48 Chebyshev steps."""
    A, lam = np.random.RandomState(0).randn(100, 50), 3.0
    problem = quadratic(A, lam)
    y = np.random.RandomState(1).randn(100, 200)
    solution = np.linalg.solve(A.T @ A + lam * np.eye(50), A.T @ y)
    steps = chebyshev_steps(48, problem.L, problem.mu, "ascending")
    steps = steps[::-1] if order == "descending" else stable_order(steps) if order == "stable" else steps
    single, x, errors = A.astype(np.float32), np.zeros((50, 200), np.float32), []
    for step in [0.0, *steps]:
        x = x - np.float32(step) * (single.T @ (single @ x - y.astype(np.float32)) + np.float32(lam) * x)
        errors.append(((x - solution) ** 2).sum(0).mean())
    return problem, steps, np.array(errors)


def test_48_chebyshev_steps_in_float32_need_the_stable_order():
    assert 1e17 < in_float32("ascending")[2][-1] < 1e18
    assert in_float32("stable")[2][-1] < 2.5e-13


@pytest.mark.parametrize("order", ["ascending", "descending", "stable"])
def test_the_rounding_floor_is_what_float32_leaves(order):
    problem, steps, errors = in_float32(order)
    predicted = rounding_floor(steps, problem.h, problem.w) + schedule_error(steps, problem.h, problem.w)
    assert (np.abs(np.log10(predicted / errors)) < np.log10(20)).all()


def test_messages_name_what_is_wrong():
    with pytest.raises(InvalidArgument, match=r"certificate: mu must be at most L, got mu=2\.0, L=1\.0"):
        certificate([0.1], 2.0, 1.0)
    with pytest.raises(
        StructureError, match=r"certificate: steps must be a vector of real numbers, got float64\[1,1\]"
    ):
        certificate([[0.1]], 1.0, 2.0)
    with pytest.raises(InvalidArgument, match="order must be one of 'stable', 'ascending'"):
        chebyshev_steps(3, 2.0, 1.0, order="random")
    with pytest.raises(InvalidArgument, match="n must be a positive whole number"):
        stable_order(0)
    with pytest.raises(InvalidArgument, match="sharpness must be a positive number"):
        smooth_log_rate([0.1], 1.0, 2.0, sharpness=0.0)
    with pytest.raises(StructureError, match="weights must have one entry for each of the spectrum's"):
        rounding_floor([0.1], [1.0, 2.0], [1.0])
