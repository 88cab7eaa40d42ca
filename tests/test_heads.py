import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

import unrollax as ux

KEY = jax.random.key(4)
K, D = 3, 2
MIXTURE = ux.Mixture(
    logits=jnp.array([0.3, -1.0, 2.0]),
    mean=jnp.array([[0.0, 1.0], [-2.0, 0.5], [1.5, -1.0]]),
    log_std=jnp.array([[-0.5, 0.2], [0.3, -1.0], [0.0, -0.3]]),
)
ONE = ux.Mixture(MIXTURE.logits, MIXTURE.mean[:, :1], MIXTURE.log_std[:, :1])


def weights(mixture):
    w = np.exp(np.asarray(mixture.logits))
    return w / w.sum()


def density(mixture, x):
    """The density, component by component and coordinate by coordinate."""
    total = 0.0
    for w, mean, log_std in zip(weights(mixture), mixture.mean, mixture.log_std, strict=True):
        total += w * np.prod([stats.norm.pdf(x[d], mean[d], np.exp(log_std[d])) for d in range(len(x))])
    return total


def test_a_readout_is_linear():
    readout = ux.Dense(2, 3)
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([1.0, 0.0, -1.0])}
    np.testing.assert_array_equal(readout.apply(params, jnp.array([1.0, 2.0])), [7, 9, 11])
    drawn = readout.params(KEY)
    assert jax.tree.map(jnp.shape, drawn) == {"w": (2, 3), "b": (3,)}
    assert np.abs(drawn["w"]).max() <= np.sqrt(6 / 5)
    assert not np.any(drawn["b"])


def test_a_readout_without_outputs_is_named():
    with pytest.raises(ux.InvalidArgument, match=r"^Dense: outputs must be a positive whole number, got outputs=0\."):
        ux.Dense(1, 0)


@pytest.mark.parametrize("x", [[0.0, 0.0], [-2.0, 0.5], [4.0, -3.0]])
def test_the_loss_of_a_mixture_is_the_logarithm_of_its_density(x):
    np.testing.assert_allclose(ux.mixture_nll(MIXTURE, jnp.array(x)), -np.log(density(MIXTURE, x)), rtol=1e-12)


def test_a_mixture_is_a_density():
    at = jax.jit(lambda x: jnp.exp(ONE.log_prob(x[None])))
    np.testing.assert_allclose(integrate.quad(at, -30, 30, points=[-2, 0, 1.5], limit=200)[0], 1, rtol=1e-9)
    grid = np.linspace(-12, 12, 801)
    points = jnp.stack(jnp.meshgrid(grid, grid), axis=-1).reshape(-1, D)
    values = jnp.exp(jax.vmap(MIXTURE.log_prob)(points))
    np.testing.assert_allclose(values.sum() * (grid[1] - grid[0]) ** 2, 1, rtol=1e-9)


def test_one_component_is_a_gaussian_and_copies_of_it_change_nothing():
    x, mean, log_std = jnp.array([0.4, -1.0]), jnp.array([[1.0, 2.0]]), jnp.array([[0.3, -0.4]])
    one = ux.Mixture(jnp.zeros(1), mean, log_std)
    four = ux.Mixture(jnp.array([0.0, 3.0, -2.0, 1.0]), jnp.tile(mean, (4, 1)), jnp.tile(log_std, (4, 1)))
    expected = -stats.norm.logpdf(x, mean[0], np.exp(log_std[0])).sum()
    np.testing.assert_allclose(ux.mixture_nll(one, x), expected, rtol=1e-13)
    np.testing.assert_allclose(ux.mixture_nll(four, x), expected, rtol=1e-13)


def test_gradients_of_the_loss_agree_with_finite_differences():
    flat, unravel = jax.flatten_util.ravel_pytree((MIXTURE, jnp.array([0.5, -0.2])))
    loss = jax.jit(lambda vector: ux.mixture_nll(*unravel(vector)))
    numeric = [(loss(flat + e) - loss(flat - e)) / 2e-6 for e in 1e-6 * np.eye(len(flat))]
    np.testing.assert_allclose(jax.grad(loss)(flat), numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4, 1e8])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_outputs_and_targets_have_finite_losses_and_gradients(scale, sign, dtype):
    readout = ux.MixtureDense(4, D, K)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), readout.params(KEY))
    h = (sign * scale * jnp.linspace(-1, 1, 4)).astype(dtype)
    for target in (0.0, scale):
        loss = lambda p, h, target=target: ux.mixture_nll(readout.apply(p, h), jnp.full(D, target, dtype))
        value, grads = jax.value_and_grad(loss, argnums=(0, 1))(params, h)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, grads)))


def test_far_points_keep_the_slope_of_the_nearest_gaussian():
    """Where every density underflows, the loss is a parabola still."""
    far = ux.Mixture(jnp.zeros(2), jnp.array([[0.0], [1e3]]), jnp.zeros((2, 1)))
    slope = jax.grad(lambda x: ux.mixture_nll(far, x[None]))(-1e4)
    np.testing.assert_allclose(slope, -1e4, rtol=1e-12)


@pytest.mark.parametrize("floor", [1e-3, 0.5])
def test_no_standard_deviation_is_below_the_floor(floor):
    readout = ux.MixtureDense(1, D, K, min_std=floor)
    params = jax.tree.map(jnp.zeros_like, readout.params(KEY))
    raw = jnp.array([-1e3, -1.0, 0.0, 2.0, 10.0, -1e8])
    params["b"] = params["b"].at[K + K * D :].set(raw)
    std = np.exp(readout.apply(params, jnp.ones(1)).log_std).ravel()
    np.testing.assert_allclose(std, floor + np.exp(raw), rtol=1e-12)


def test_a_readout_of_mixtures_is_linear_and_cut_in_the_order_of_the_docstring():
    readout = ux.MixtureDense(4, D, K, min_std=1e-12)
    params, h = readout.params(KEY), jnp.linspace(-1, 2, 4)
    assert jax.tree.map(jnp.shape, params) == {"w": (4, K + 2 * K * D), "b": (K + 2 * K * D,)}
    row = np.asarray(h) @ np.asarray(params["w"]) + np.asarray(params["b"])
    mixture = readout.apply(params, h)
    np.testing.assert_allclose(mixture.logits, row[:K], rtol=1e-12)
    np.testing.assert_allclose(mixture.mean, row[K : K + K * D].reshape(K, D), rtol=1e-12)
    np.testing.assert_allclose(mixture.log_std, row[K + K * D :].reshape(K, D), rtol=1e-9)


def test_components_start_apart():
    """With equal centres they would have equal gradients, and stay equal."""
    params = ux.MixtureDense(4, D, K).params(KEY)
    at_zero = ux.MixtureDense(4, D, K).apply(params, jnp.zeros(4))
    assert np.min(np.abs(np.diff(np.sort(at_zero.mean, axis=0), axis=0))) > 1e-3
    np.testing.assert_array_equal(at_zero.logits, np.zeros(K))


def test_samples_have_the_moments_and_the_distribution_of_the_mixture():
    count = 20_000
    points = np.asarray(jax.jit(jax.vmap(MIXTURE.sample))(jax.random.split(KEY, count)))
    w, mean, var = weights(MIXTURE), np.asarray(MIXTURE.mean), np.exp(2 * np.asarray(MIXTURE.log_std))
    expected = w @ mean
    np.testing.assert_allclose(MIXTURE.expected(), expected, rtol=1e-12)
    spread = w @ (var + mean**2) - expected**2
    assert np.all(np.abs(points.mean(axis=0) - expected) < 4 * np.sqrt(spread / count))  # z = 4
    between = (w * mean[:, 0]) @ mean[:, 1] - expected[0] * expected[1]  # only the choice of component ties coordinates
    products = (points - expected).prod(axis=1)
    assert abs(products.mean() - between) < 4 * products.std() / np.sqrt(count)  # z = 4
    for d in range(D):
        cdf = lambda x, d=d: sum(w[k] * stats.norm.cdf(x, mean[k, d], np.sqrt(var[k, d])) for k in range(K))
        assert stats.kstest(points[:, d], cdf).pvalue > 1e-4


@pytest.mark.parametrize("probability", [1e-6, 0.05, 0.5, 0.9, 1 - 1e-6])
def test_a_quantile_undoes_the_distribution_function(probability):
    found = np.asarray(jax.jit(lambda q: MIXTURE.quantile(q))(probability))
    std = np.exp(np.asarray(MIXTURE.log_std))
    cdf = weights(MIXTURE) @ stats.norm.cdf(found, np.asarray(MIXTURE.mean), std)
    np.testing.assert_allclose(cdf, np.full(D, probability), rtol=1e-9)


def test_a_mixture_of_one_has_the_quantiles_of_a_gaussian():
    one = ux.Mixture(jnp.zeros(1), jnp.array([[3.0]]), jnp.log(jnp.array([[2.0]])))
    np.testing.assert_allclose(one.quantile(0.975), [stats.norm.ppf(0.975, 3, 2)], rtol=1e-12)


def test_mixtures_are_mapped_over_examples():
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.5]), MIXTURE)
    targets = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    losses = jax.vmap(ux.mixture_nll)(many, targets)
    each = [ux.mixture_nll(jax.tree.map(lambda leaf, n=n: leaf[n], many), targets[n]) for n in range(2)]
    np.testing.assert_allclose(losses, each, rtol=1e-13)
    assert jax.vmap(ux.Mixture.expected)(many).shape == (2, D)


def test_a_mixture_fits_two_branches_that_a_mean_would_miss():
    """Targets of +1 and -1 for one and the same h: the best fit has the two branches' shares, means and deviations."""
    readout, h = ux.MixtureDense(1, 1, 2, min_std=1e-6), jnp.ones(1)
    rng = np.random.default_rng(3)
    branches = [rng.normal(-1, 0.05, 30), rng.normal(1, 0.1, 10)]
    targets = jnp.asarray(np.concatenate(branches)[:, None])
    adam = optax.adam(optax.cosine_decay_schedule(5e-2, 1500))
    loss = lambda params: jax.vmap(ux.mixture_nll, (None, 0))(readout.apply(params, h), targets).mean()

    @jax.jit
    def fall(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = adam.update(grad, state)
        return (optax.apply_updates(params, updates), state), value

    params = readout.params(KEY)
    (params, _), losses = jax.lax.scan(fall, (params, adam.init(params)), length=1500)
    best = sum(
        share * (-np.log(share) + 0.5 * (1 + np.log(2 * np.pi)) + np.log(branch.std()))
        for share, branch in zip((0.75, 0.25), branches, strict=True)
    )
    np.testing.assert_allclose(losses[-1], best, atol=1e-4)
    mixture = readout.apply(params, h)
    np.testing.assert_allclose(np.sort(mixture.mean[:, 0]), [branch.mean() for branch in branches], atol=1e-3)


@pytest.mark.parametrize("target", [0.0, jnp.zeros(3), jnp.zeros((1, D))])
def test_a_target_of_another_shape_is_named(target):
    shape = np.shape(target)
    got = str(list(shape)).replace(" ", "").replace("[", r"\[").replace("]", r"\]")
    expected = rf"^Mixture: x must have the shape of one centre, float64\[2\], got float64{got}\."
    with pytest.raises(ux.StructureError, match=expected):
        ux.mixture_nll(MIXTURE, jnp.asarray(target))


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ((0, 1, 1), {}, "inputs must be a positive whole number, got inputs=0"),
        ((1, 0, 1), {}, "outputs must be a positive whole number, got outputs=0"),
        ((1, 1, -1), {}, "components must be a positive whole number, got components=-1"),
        ((1, 1, 1), {"min_std": 0.0}, "min_std must be positive, got min_std=0.0"),
        ((1, 1, 1), {"min_std": float("nan")}, "min_std must be positive, got min_std=nan"),
    ],
)
def test_a_field_of_a_readout_that_cannot_be_is_named(sizes, options, expected):
    with pytest.raises(ux.InvalidArgument, match=rf"^MixtureDense: {expected}\."):
        ux.MixtureDense(*sizes, **options)
