"""Errors of schedules on quadratics, against the iterations themselves."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrollax._errors import InvalidArgument, StructureError
from unrollax.theory import (
    Quadratic,
    chebyshev_steps,
    conjugate_gradient_error,
    heavy_ball_constants,
    log_schedule_error,
    momentum_error,
    nesterov_constants,
    quadratic,
    schedule_error,
)


def ridge(seed=0, lam=3.0):
    return quadratic(np.random.RandomState(seed).randn(100, 50), lam)


def simulated(A, lam, steps):
    """Return the mean over y ~ N(0, I) of the squared error of gradient descent: the sum over unit vectors y."""
    m, n = A.shape
    hessian = A.conj().T @ A + lam * np.eye(n)
    solutions = np.linalg.pinv(hessian) @ A.conj().T
    x, errors = np.zeros((n, m)), []
    for step in [0.0, *steps]:
        x = x - step * (hessian @ x - A.conj().T)
        errors.append((np.abs(x - solutions) ** 2).sum())
    return np.array(errors)


@pytest.mark.parametrize(
    ("shape", "lam", "imaginary"), [((12, 7), 0.5, 0), ((5, 9), 0.3, 0), ((5, 9), 0.0, 0), ((8, 6), 1.0, 1)]
)
def test_schedule_error_is_that_of_gradient_descent_averaged_over_y(shape, lam, imaginary):
    random = np.random.RandomState(1)
    A = random.randn(*shape) + imaginary * 1j * random.randn(*shape)
    problem, steps = quadratic(A, lam), random.rand(6) * 0.1
    np.testing.assert_allclose(
        schedule_error(steps, problem.h, problem.w), simulated(A, lam, steps), rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("method", ["heavy_ball", "nesterov"])
def test_momentum_error_is_that_of_the_method(method):
    random = np.random.RandomState(2)
    A, lam, eta, beta = random.randn(8, 5), 0.5, random.rand(7) * 0.1, random.rand(7) * 0.5
    hessian, problem = A.T @ A + lam * np.eye(5), quadratic(A, lam)
    solutions = np.linalg.solve(hessian, A.T)
    before = x = np.zeros((5, 8))
    errors = [(solutions**2).sum()]
    for step, momentum in zip(eta, beta, strict=True):
        ahead = x + momentum * (x - before)
        at = x if method == "heavy_ball" else ahead
        before, x = x, ahead - step * (hessian @ at - A.T)
        errors.append(((x - solutions) ** 2).sum())
    np.testing.assert_allclose(momentum_error(method, eta, beta, problem.h, problem.w), errors, rtol=1e-10)
    traced = jax.jit(lambda eta: momentum_error(method, eta, jnp.array(beta), problem.h, problem.w))(eta)
    np.testing.assert_allclose(traced, errors, rtol=1e-10)


@pytest.mark.parametrize("power", [-14, -27])
def test_tiny_errors_have_all_their_digits(power):
    # (1 - eta h)^2 = 2^-40 exactly: powers of two have no rounding
    steps = [1 - 2.0**-20] * 2
    exact = float(Fraction(2) ** -80)
    assert schedule_error(steps, [1.0], [1.0])[-1] == exact
    tiny = 10.0**power
    assert schedule_error(steps, [1.0], [tiny])[-1] == pytest.approx(exact * tiny, rel=1e-14)


def test_ten_thousand_iterations_do_not_underflow():
    h, w = np.array([1.0, 2.0]), np.array([0.3, 0.7])
    logs = log_schedule_error(np.full(10_000, 0.4), h, w)
    assert logs[-1] == pytest.approx(np.log(0.3) + 20_000 * np.log(0.6), rel=1e-12)
    problem = ridge()
    steps = chebyshev_steps(50, problem.L, problem.mu)
    np.testing.assert_allclose(
        np.exp(log_schedule_error(steps, problem.h, problem.w)),
        schedule_error(steps, problem.h, problem.w),
        rtol=1e-11,
    )


@pytest.mark.parametrize("weights", [np.array([0.2, 0.5, 0.3]), None])
@pytest.mark.parametrize("error", [schedule_error, log_schedule_error])
def test_errors_can_be_traced_and_differentiated(error, weights):
    h, steps = np.array([1.0, 2.5, 4.0]), np.array([0.3, 0.7, 0.25])  # 1 - 0.25 * 4 = 0
    objective = jax.jit(lambda steps: error(steps, h, weights)[2])
    np.testing.assert_allclose(objective(jnp.array(steps)), error(steps, h, weights)[2], rtol=1e-13)
    grad, whole = jax.jit(jax.jacrev(lambda steps: error(steps, h, weights)[2:]))(jnp.array(steps))
    assert np.isfinite(whole).all()
    for k, nudge in enumerate(1e-6 * np.eye(3)):
        slope = (error(steps + nudge, h, weights)[2] - error(steps - nudge, h, weights)[2]) / 2e-6
        assert grad[k] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_errors_of_an_interval_are_the_worst():
    steps, h = np.array([0.1, 0.6, 0.3]), np.array([1.0, 2.0, 7.0])
    each = [schedule_error(steps, [point], [1.0]) for point in h]
    np.testing.assert_array_equal(schedule_error(steps, h), np.max(each, axis=0))


@pytest.mark.parametrize(
    ("method", "constants"), [("heavy_ball", heavy_ball_constants), ("nesterov", nesterov_constants)]
)
def test_no_other_constants_have_a_better_worst_rate(method, constants):
    L, mu = 24.5, 1.0
    h = np.linspace(mu, L, 500)

    def rate(eta, beta):
        if method == "heavy_ball":
            trace, det = 1 + beta - eta * h, beta + 0 * h
        else:
            trace, det = (1 + beta) * (1 - eta * h), beta * (1 - eta * h)
        root = np.sqrt((trace**2 - 4 * det).astype(complex))
        return max(np.abs((trace + root) / 2).max(), np.abs((trace - root) / 2).max())

    eta, beta = constants(L, mu)
    known = np.sqrt(beta) if method == "heavy_ball" else 1 - 2 / np.sqrt(3 * L / mu + 1)
    assert rate(eta, beta) == pytest.approx(known, abs=1e-6)  # roots are double there: half of the digits
    others = [rate(eta * a, beta + b) for a in np.linspace(0.8, 1.2, 41) for b in np.linspace(-0.1, 0.1, 41)]
    assert min(others) >= known - 1e-6


def test_conjugate_gradients_choose_the_best_polynomial_in_the_norm_of_the_hessian():
    h, w, seed, draws = np.array([1.0, 2.0, 5.0, 9.0, 14.0]), np.array([0.3, 0.2, 0.4, 0.1, 0.2]), 3, 8
    starts = np.sqrt(w) * np.random.RandomState(seed).randn(draws, 5)
    found = conjugate_gradient_error(Quadratic(h=h, w=w, L=14.0, mu=1.0), 5, draws=draws, seed=seed)
    for degree in (1, 2, 3):
        powers = h[:, None] ** np.arange(1, degree + 1)
        errors = []
        for c in starts:
            scale = np.sqrt(h) * c
            coefficients = np.linalg.lstsq(scale[:, None] * powers, -scale, rcond=None)[0]
            errors.append(((c * (1 + powers @ coefficients)) ** 2).sum())
        assert found[degree] == pytest.approx(np.mean(errors), rel=1e-9)
    assert found[0] == pytest.approx(w.sum())
    assert found[5] < 1e-25


def test_conjugate_gradients_in_the_eigenvectors_coordinates_are_those_on_the_matrix():
    random = np.random.RandomState(4)
    A, lam, draws = random.randn(30, 12), 1.0, 5
    U, sigma, _ = np.linalg.svd(A, full_matrices=False)
    U, sigma = U[:, ::-1], sigma[::-1]
    hessian, total = A.T @ A + lam * np.eye(12), np.zeros(7)
    for g in np.random.RandomState(0).randn(draws, 12):
        b = A.T @ (U @ g)
        x, r, p, solution = np.zeros(12), b, b, np.linalg.solve(hessian, b)
        for t in range(7):
            total[t] += ((x - solution) ** 2).sum() / draws
            alpha = r @ r / (p @ hessian @ p)
            x, after = x + alpha * p, r - alpha * hessian @ p
            p, r = after + (after @ after) / (r @ r) * p, after
    np.testing.assert_allclose(conjugate_gradient_error(A, 6, lam=lam, draws=draws)[1:], total[1:], rtol=1e-6)


def test_messages_name_what_is_wrong():
    with pytest.raises(
        StructureError, match=r"weights must have one entry for each of the spectrum's, got float64\[2\]"
    ):
        schedule_error([0.1], [1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(StructureError, match=r"steps must be a vector of real numbers, got float64\[\]"):
        schedule_error(0.1, [1.0])
    with pytest.raises(InvalidArgument, match="iterations must be a positive whole number"):
        momentum_error("nesterov", 0.1, 0.1, [1.0])
    with pytest.raises(StructureError, match="beta must have one entry for each of eta"):
        momentum_error("nesterov", [0.1, 0.2], [0.1], [1.0])
    with pytest.raises(InvalidArgument, match="'heavy_ball', 'nesterov', got method='adam'"):
        momentum_error("adam", 0.1, 0.1, [1.0], iterations=1)
    with pytest.raises(InvalidArgument, match="give a matrix A, or both bounds"):
        quadratic(L=1.0)
    with pytest.raises(StructureError, match=r"A must be a matrix of numbers, got float64\[3\]"):
        quadratic(np.ones(3))
    with pytest.raises(InvalidArgument, match="A must not be zero"):
        quadratic(np.zeros((3, 2)))
    with pytest.raises(InvalidArgument, match=r"mu must be at most L, got mu=2\.0, L=1\.0"):
        quadratic(L=1.0, mu=2.0)
    with pytest.raises(InvalidArgument, match="mu must be a positive number"):
        heavy_ball_constants(1.0, 0.0)
    with pytest.raises(InvalidArgument, match="must have weights, got an interval"):
        conjugate_gradient_error((2.0, 1.0), 3)
