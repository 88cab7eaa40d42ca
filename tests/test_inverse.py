"""The inverse by blocks is the inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrollax._inverse import damped_inverse, inverse_factor


def covariance(n, rows, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, n)) * np.geomspace(1, 1e-2, n)
    return x.T @ x / rows


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 200])
def test_the_inverse_factor_is_that_of_choleskys(n):
    matrix = covariance(n, 3 * n) + 1e-3 * np.eye(n)
    expected = np.linalg.inv(np.linalg.cholesky(matrix))
    np.testing.assert_allclose(jax.jit(inverse_factor)(matrix, 0.0), expected, rtol=1e-9, atol=1e-9)


def test_the_damped_inverse_adds_what_it_is_told():
    matrix = covariance(100, 40)
    expected = np.linalg.inv(matrix + 0.1 * np.eye(100))
    np.testing.assert_allclose(damped_inverse(jnp.asarray(matrix), 0.1), expected, rtol=1e-10, atol=1e-10)


def test_a_singular_covariance_without_damping_has_an_inverse_in_float32_that_is_finite_and_no_larger_than_the_least():
    for seed in range(3):
        matrix = jnp.asarray(covariance(300, 20, seed), jnp.float32)
        found = np.asarray(damped_inverse(matrix, 0.0), np.float64)
        eigenvalues = np.linalg.eigvalsh((found + found.T) / 2)
        least = 10 * float(jnp.finfo(jnp.float32).eps) * float(jnp.trace(matrix))
        assert eigenvalues.max() < 2 / least
        assert eigenvalues.min() > -1e-6 * eigenvalues.max()


def test_a_condition_number_of_over_1e4_costs_float32_few_digits():
    matrix = covariance(400, 800) + 1e-5 * np.eye(400)
    assert np.linalg.cond(matrix) > 1e4
    found = np.asarray(damped_inverse(jnp.asarray(matrix, jnp.float32), 0.0), np.float64)
    least = 10 * float(jnp.finfo(jnp.float32).eps) * np.trace(matrix)
    assert np.abs(found @ (matrix + least * np.eye(400)) - np.eye(400)).max() < 5e-3
