"""The seed's recipe: gradient descent for ridge regression with four periodic steps, trained incrementally from zero.

Errors on random y are known in closed form: x* - x_t = prod_k (1 - eta_k H) x* with H = A^T A + lam I, and so the mean square
is MSE(t) = sum_j w_j prod_k (1 - eta_k h_j)^2, h the eigenvalues of H, w = (h - lam) / h^2.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unrollax._plans import incremental
from unrollax._schedules import periodic
from unrollax._unfolding import fit_unfold
from unrollax.systems import Unfold

A = np.random.RandomState(0).randn(100, 50)
LAM, PERIOD, EACH, RATE = 3.0, 4, 50, 1e-4
GRAM = A.T @ A + LAM * np.eye(50)
PINV = np.linalg.solve(GRAM, A.T)
EIGENVALUES = np.linalg.eigvalsh(GRAM)
WEIGHTS = (EIGENVALUES - LAM) / EIGENVALUES**2


class Ridge(NamedTuple):
    y: jax.Array
    x: jax.Array


def draw(key):
    y = jax.random.normal(key, (100,))
    return Ridge(y, PINV @ y)


def iteration(theta, x, problem):
    return x - theta["eta"] * (A.T @ (A @ x - problem.y) + LAM * x)


net = Unfold(
    iteration,
    lambda problem: jnp.zeros(50),
    lambda x, problem: ((x - problem.x) ** 2).sum(),
    draw,
    horizon=50,
    batch=100,
    scale="raw",
)


def restarted(rate, each, b1=0.9, b2=0.999, eps=1e-8):
    """Adam with the moments kept and the step index of its bias correction begun anew every `each` updates."""

    def init(params):
        return jnp.int32(0), jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    def update(grad, state, params=None):
        step, first, second = state
        first = jax.tree.map(lambda m, g: (1 - b1) * g + b1 * m, first, grad)
        second = jax.tree.map(lambda v, g: (1 - b2) * g**2 + b2 * v, second, grad)
        count = step % each + 1
        updates = jax.tree.map(
            lambda m, v: -rate * (m / (1 - b1**count)) / (jnp.sqrt(v / (1 - b2**count)) + eps), first, second
        )
        return updates, (step + 1, first, second)

    return optax.GradientTransformation(init, update)


def mse(eta, t):
    return (WEIGHTS * np.prod([(1 - eta[k % PERIOD] * EIGENVALUES) ** 2 for k in range(t)], 0)).sum()


def trained(optimizer, generations, *, scale="raw", reset=False, freeze=None):
    plan = incremental(range(1, generations + 1), EACH, reset=reset, freeze=freeze)
    system, start = dataclasses.replace(net, scale=scale), periodic({"eta": 0.0}, PERIOD)
    run = fit_unfold(system, start, plan, optimizer, key=jax.random.key(0), every=plan.steps)
    return np.asarray(run.params["eta"].values)


def in_the_mean(generations, *, restart=False, reset=False, b2=0.999, log=False, freeze=False):
    """The same training on the closed form of the mean, in NumPy."""
    eta, first, second = np.zeros(PERIOD), np.zeros(PERIOD), np.zeros(PERIOD)
    for step in range(EACH * generations):
        depth, index = step // EACH + 1, step % EACH
        if reset and index == 0:
            first, second = np.zeros(PERIOD), np.zeros(PERIOD)
        factors = np.array([1 - eta[k % PERIOD] * EIGENVALUES for k in range(depth)])
        whole, grad = factors.prod(0), np.zeros(PERIOD)
        for k in range(depth):
            others = np.delete(factors, k, 0).prod(0)
            grad[k % PERIOD] += (WEIGHTS * 2 * whole * others * -EIGENVALUES).sum()
        grad = grad / (WEIGHTS * whole**2).sum() if log else grad
        learns = np.arange(PERIOD) == (depth - 1) % PERIOD if freeze else np.ones(PERIOD, bool)
        grad = np.where(learns, grad, 0)
        first, second = 0.1 * grad + 0.9 * first, (1 - b2) * grad**2 + b2 * second
        count = (index if restart or reset else step) + 1
        eta -= np.where(learns, RATE * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - b2**count)) + 1e-8), 0)
    return eta


def test_the_closed_form_is_the_error_of_an_unfolded_ridge_regression():
    """The mean over 6 batches of 100 problems, |z| < 5 with a spread of 1 / sqrt(600 x 50 / 2) of it at the very most."""
    eta = jnp.array([0.01, 0.018, 0.008, 0.004])
    errors = jax.vmap(lambda key: net.errors({"eta": periodic(eta, 4)}, key, steps=8))(
        jax.random.split(jax.random.key(1), 6)
    )
    np.testing.assert_allclose(errors.mean(0), [mse(eta, t) for t in range(9)], rtol=0.05)


@pytest.mark.parametrize("restart", [False, True])
def test_the_first_generations_of_the_recipe_follow_the_mean(restart):
    optimizer = restarted(RATE, EACH) if restart else optax.adam(RATE)
    eta, expected = trained(optimizer, 8), in_the_mean(8, restart=restart)
    np.testing.assert_allclose(eta, expected, rtol=0.02)
    np.testing.assert_allclose(mse(eta, 8), mse(expected, 8), rtol=0.02)


def test_training_on_the_mean_reaches_both_published_errors():
    """An independent account of the two figures: no draws, no JAX."""
    assert 2.2e-7 <= mse(in_the_mean(50), 50) <= 2.8e-7
    np.testing.assert_allclose(mse(in_the_mean(50, restart=True), 50), 1.01e-6, rtol=0.03)


@pytest.mark.slow
def test_the_whole_recipe_reaches_the_published_error():
    assert 2.2e-7 <= mse(trained(optax.adam(RATE), 50), 50) <= 2.8e-7


@pytest.mark.slow
def test_the_restarted_index_costs_four_times_the_error():
    np.testing.assert_allclose(mse(trained(restarted(RATE, EACH), 50), 50), 1.01e-6, rtol=0.03)


# Under raw errors, Adam's second moments remember the large gradients of earlier generations: whatever makes it forget
# them, or makes gradients as large at the end as at the beginning, gains over four orders.
REMEDIES = {
    "reset": ({"reset": True}, {"reset": True}, 0.999),
    "beta2": ({}, {"b2": 0.9}, 0.9),
    "log": ({"scale": "log"}, {"log": True}, 0.999),
    "both": ({"scale": "log", "reset": True}, {"log": True, "reset": True}, 0.999),
}


@pytest.mark.slow
@pytest.mark.parametrize("remedy", REMEDIES)
def test_adam_s_memory_of_large_gradients_is_what_costs_four_orders(remedy):
    options, mean, b2 = REMEDIES[remedy]
    error = mse(trained(optax.adam(RATE, b2=b2), 50, **options), 50)
    assert error < 1e-11
    np.testing.assert_allclose(error, mse(in_the_mean(50, **mean), 50), rtol=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["raw", "log"])
def test_holding_the_entries_of_earlier_iterations_loses_orders(scale):
    error = mse(trained(optax.adam(RATE), 50, scale=scale, freeze="earlier"), 50)
    np.testing.assert_allclose(error, mse(in_the_mean(50, log=scale == "log", freeze=True), 50), rtol=0.2)
    assert error > 50 * mse(in_the_mean(50, log=scale == "log"), 50)
