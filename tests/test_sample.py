from functools import partial
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax._sample import threefry

KEY = jax.random.key(12)
normal = jax.jit(ux.normal, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def values():
    """All 65,536 values: the inverse of the normal distribution function at the middles of as many equal shares."""
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)])
    return quantiles / np.sqrt(np.mean(quantiles**2))


def indices(draws, values):
    return np.clip(np.searchsorted((values[1:] + values[:-1]) / 2, np.asarray(draws).ravel()), 0, 65535)


def test_every_draw_is_one_of_65536_equal_shares_of_the_normal_distribution_scaled_to_variance_one(values):
    draws = np.asarray(normal(KEY, (100_000,), float))
    np.testing.assert_allclose(draws, values[indices(draws, values)], rtol=1e-10)


def test_the_values_have_mean_zero_variance_one_and_the_stated_kurtosis(values):
    """Over all of them, from the sampler's own numbers: each is looked up among draws until all have been seen."""
    seen = np.full(65536, np.nan)
    for i in range(8):
        draws = np.asarray(normal(jax.random.key(i), (2**18,), float))
        seen[indices(draws, values)] = draws
    assert np.isfinite(seen).all()  # a value is missed with probability 65536 exp(-32) = 1e-9
    np.testing.assert_allclose(seen, values, rtol=1e-9)
    assert abs(seen.mean()) < 1e-12
    assert abs((seen**2).mean() - 1) < 1e-12
    np.testing.assert_allclose(seen, -seen[::-1], rtol=1e-12)
    assert (seen**4).mean() == pytest.approx(2.999, abs=5e-4)
    assert 4.32 < np.abs(seen).max() <= 4.33


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_each_value_is_as_likely_as_another(impl, values):
    count = 2**21
    draws = normal(jax.random.key(3, impl=impl), (count,), float)
    hits = np.bincount(indices(draws, values), minlength=65536)
    chi2 = ((hits - count / 65536) ** 2).sum() / (count / 65536)
    assert abs(chi2 - 65535) < 4 * np.sqrt(2 * 65535)  # z = 4


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_elements_and_keys_are_uncorrelated_with_unit_covariance(impl):
    """Every entry of the covariance of 24 elements, and of two halves of a word, at z = 5."""
    count, size = 4096, 24
    keys = jax.random.split(jax.random.key(5, impl=impl), count)
    draws = np.asarray(jax.vmap(lambda key: ux.normal(key, (4, 6), float))(keys)).reshape(count, size)
    covariance = draws.T @ draws / count
    assert np.abs(draws.mean(0)).max() < 5 / np.sqrt(count)
    assert np.abs(covariance - np.eye(size))[~np.eye(size, dtype=bool)].max() < 5 / np.sqrt(count)
    assert np.abs(np.diag(covariance) - 1).max() < 5 * np.sqrt(2 / count)
    next_key = (draws[:-1] * draws[1:]).mean(0)
    assert np.abs(next_key).max() < 5 / np.sqrt(count - 1)


def test_neighbours_in_a_long_draw_are_uncorrelated():
    draws = np.asarray(normal(KEY, (2**18,), float))
    lags = [1, 2, 3, 2**16, 2**17, 2**17 + 1]
    for lag in lags:
        assert abs((draws[lag:] * draws[:-lag]).mean()) < 4 / np.sqrt(len(draws) - lag), lag  # z = 4
    assert len(lags) == len(set(lags))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (5, 1, 7), (0,), (4, 0, 2), (101,)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_a_draw_has_its_shape_and_dtype(shape, dtype):
    draws = normal(KEY, shape, dtype)
    assert (draws.shape, draws.dtype) == (shape, dtype)
    assert jnp.isfinite(draws).all()


def test_draws_agree_between_dtypes_up_to_rounding():
    exact = normal(KEY, (999,), jnp.float64)
    np.testing.assert_array_equal(normal(KEY, (999,), float), exact)
    np.testing.assert_allclose(normal(KEY, (999,), jnp.float32), exact, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(normal(KEY, (999,), jnp.bfloat16).astype(float), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey, partial(jax.random.key, impl="rbg")])
def test_draws_depend_on_the_key_alone(make):
    first, again, other = (np.asarray(normal(make(seed), (50,), float)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not (first == other).any()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_mapped_keys_draw_what_each_would_alone(impl):
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    mapped = jax.vmap(lambda key: ux.normal(key, (5,), jnp.float32))(keys)
    assert mapped.shape == (3, 5)
    assert len(np.unique(mapped)) == 15
    if impl == "threefry2x32":  # rbg's bits under vmap are others, as jax.random says
        single = [ux.normal(key, (5,), jnp.float32) for key in keys]
        np.testing.assert_array_equal(mapped, jnp.stack(single))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_threefry_key_depends_on_every_word_of_a_key_and_on_no_batch(impl):
    words = jnp.array([[1, 2, 3, 4], [9, 2, 3, 4], [1, 9, 3, 4], [1, 2, 9, 4], [1, 2, 3, 9]], jnp.uint32)
    keys = jax.random.wrap_key_data(words, impl=impl)
    mapped = jax.vmap(threefry)(keys)
    assert str(jax.random.key_impl(mapped)) == "threefry2x32"
    assert len(np.unique(jax.random.key_data(mapped), axis=0)) == len(words)
    for one, key in zip(mapped, keys, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(one), jax.random.key_data(threefry(key)))


def test_a_threefry_key_stays_what_it_is():
    key = jax.random.key(3)
    assert threefry(key) is key
