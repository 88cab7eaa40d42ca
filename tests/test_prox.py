"""Each proximal operator is the minimiser that it says it is, and its derivatives are finite everywhere."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from unrollax import InvalidArgument, StructureError, prox

KINDS = ("real", "complex")


def numbers(shape, kind, seed=0):
    rng = np.random.default_rng(seed)
    real = 1.5 * rng.normal(size=shape)
    return real if kind == "real" else real + 1.5j * rng.normal(size=shape)


def inner(a, b):
    """The real inner product."""
    return np.real(np.vdot(a, b))


# p = prox(v, s) of a norm g exactly if the dual norm of v - p is at most s and <v - p, p> = s g(p).
def spectral(v):
    return np.linalg.svd(v, compute_uv=False)


NORMS = {
    "soft": (prox.soft, lambda x: np.abs(x).sum(), lambda u: np.abs(u).max()),
    "l2": (prox.l2, lambda x: np.sqrt((np.abs(x) ** 2).sum()), lambda u: np.sqrt((np.abs(u) ** 2).sum())),
    "group": (
        prox.group,
        lambda x: np.sqrt((np.abs(x) ** 2).sum(-1)).sum(),
        lambda u: np.sqrt((np.abs(u) ** 2).sum(-1)).max(),
    ),
    "group along the first axis": (
        functools.partial(prox.group, axis=0),
        lambda x: np.sqrt((np.abs(x) ** 2).sum(0)).sum(),
        lambda u: np.sqrt((np.abs(u) ** 2).sum(0)).max(),
    ),
    "nuclear": (prox.nuclear, lambda x: spectral(x).sum(), lambda u: spectral(u).max()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NORMS)
def test_the_proximal_operator_of_a_norm_fulfils_the_conditions_of_a_minimum(name, kind):
    operator, norm, dual = NORMS[name]
    operator, zeros = jax.jit(operator), []
    for seed, scale in itertools.product(range(3), (0.0, 0.4, 1.7, 4.0, 50.0)):
        v = numbers((4, 3), kind, seed)
        p = np.asarray(operator(jnp.asarray(v), scale))
        assert p.dtype == v.dtype
        assert dual(v - p) <= scale + 1e-12
        assert abs(inner(v - p, p) - scale * norm(p)) < 1e-12 * (1 + scale)
        zeros.append(norm(p) == 0 if name != "nuclear" else norm(p) < 1e-12)
    assert 0 < sum(zeros) < len(zeros)


@pytest.mark.parametrize("kind", KINDS)
def test_the_elastic_net_fulfils_the_conditions_of_a_minimum(kind):
    v, scale, ridge = numbers(50, kind), 0.8, 0.3
    p = np.asarray(prox.elastic_net(jnp.asarray(v), scale, ridge=ridge))
    rest = (v - p) / scale - ridge * p  # a subgradient of the absolute values
    assert np.abs(rest).max() <= 1 + 1e-12
    np.testing.assert_allclose((rest * p.conj()).real, np.abs(p), atol=1e-12)
    assert 0 < (p == 0).sum() < 50


@pytest.mark.parametrize("kind", KINDS)
def test_where_g_is_smooth_its_gradient_is_what_v_lost(kind):
    v = numbers(50, kind)
    for scale in (0.0, 0.8, 5.0):
        p = np.asarray(prox.huber(jnp.asarray(v), scale, delta=0.7))
        np.testing.assert_allclose(v - p, scale * p * np.minimum(1, 0.7 / np.abs(p)), atol=1e-12)
        q = np.asarray(prox.squared_l2(jnp.asarray(v), scale))
        np.testing.assert_allclose(v - q, scale * q, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_and_top_k_are_the_best_of_all_supports(kind):
    v, scale = numbers(7, kind), 0.6
    supports = np.array(list(itertools.product((0, 1), repeat=7)))
    lost = (np.abs(v) ** 2 * (1 - supports)).sum(1) / 2
    best = supports[np.argmin(scale * supports.sum(1) + lost)]
    assert 0 < best.sum() < 7
    np.testing.assert_array_equal(prox.hard(jnp.asarray(v), scale), v * best)
    for k in (1, 3, 7):
        few = supports[supports.sum(1) == k]
        best = few[np.argmin((np.abs(v) ** 2 * (1 - few)).sum(1))]
        np.testing.assert_array_equal(prox.top_k(jnp.asarray(v), 1.0, k=k), v * best)


def test_top_k_keeps_exactly_k_of_equal_numbers_and_acts_on_rows():
    v = jnp.array([[1.0, -1.0, 1.0], [3.0, 1.0, -2.0]])
    np.testing.assert_array_equal(prox.top_k(v, k=2), [[1, -1, 0], [3, 0, -2]])


@pytest.mark.parametrize("kind", KINDS)
def test_bernoulli_gauss_is_the_posterior_mean(kind):
    rate, variance, noise = 0.2, 1.7, 0.3
    v = numbers(9, kind)
    half = 0.5 if kind == "real" else 1.0

    def density(x, of):
        return (2 * np.pi * of if kind == "real" else np.pi * of) ** -half * np.exp(-half * np.abs(x) ** 2 / of)

    # integrate x p(v | x) p(x) over a grid of x, real or complex
    line = np.linspace(-9, 9, 601)
    grid = line if kind == "real" else (line[::3, None] + 1j * line[None, ::3]).ravel()
    cell = (line[1] - line[0]) if kind == "real" else (line[3] - line[0]) ** 2
    weights = rate * density(grid, variance) * density(v[:, None] - grid, noise) * cell
    expected = (weights * grid).sum(1) / (weights.sum(1) + (1 - rate) * density(v, noise))
    found = prox.bernoulli_gauss(jnp.asarray(v), noise, rate=rate, variance=variance)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_bernoulli_gauss_and_its_derivatives_are_finite_at_the_extremes(dtype):
    sizes, scales = (0.0, 1e-20, 1.0, 50.0, 1e5), (0.0, 1e-30, 1e-9, 1.0, 1e6)
    grid = jnp.asarray(list(itertools.product(sizes, scales)), dtype)
    derived = jax.jit(jax.vmap(jax.value_and_grad(prox.bernoulli_gauss, (0, 1))))
    assert all(np.isfinite(each).all() for each in jax.tree.leaves(derived(*grid.T)))
    complexes = jax.vmap(
        jax.value_and_grad(lambda v, scale: jnp.abs(prox.bernoulli_gauss(v, scale) - 0.3) ** 2, (0, 1))
    )
    v = jnp.stack([grid[:, 0] + 0j, 1j * grid[:, 0], (0.6 - 0.8j) * grid[:, 0]])
    found = jax.jit(complexes)(v.ravel(), jnp.tile(grid[:, 1], 3))
    assert all(np.isfinite(each).all() for each in jax.tree.leaves(found))
    # where there is no noise every number but 0 is what was sent
    values, slopes = derived(jnp.asarray([0.3, 30.0], dtype), jnp.asarray([0.0, 1e-3], dtype))
    np.testing.assert_allclose([values[0], slopes[0][1]], [0.3, 1 / 1.001], rtol=1e-6)


def dual_solution(v, scale):
    """x = v - D^T u, where u in the box is nearest: an active-set solver that knows nothing of the order of entries."""
    differences = np.diff(np.eye(len(v)), axis=0)
    box = lsq_linear(differences.T, v, (-scale, scale), method="bvls", tol=1e-14)
    return v - differences.T @ box.x


@pytest.mark.parametrize("n", [2, 3, 40])
def test_total_variation_is_the_solution_of_its_dual_problem(n):
    for seed, scale in itertools.product(range(3), (0.05, 0.6, 2.5, 100.0)):
        v = numbers(n, "real", seed)
        found = jax.jit(prox.total_variation)(v, scale)
        np.testing.assert_allclose(found, dual_solution(v, scale), atol=1e-11)


def test_total_variation_of_special_sequences():
    v = numbers(30, "real")
    np.testing.assert_array_equal(prox.total_variation(v, 0.0), v)
    np.testing.assert_allclose(prox.total_variation(v, 1e4), np.full(30, v.mean()), atol=1e-13)
    np.testing.assert_allclose(prox.total_variation(jnp.ones(30), 0.7), np.ones(30), atol=1e-15)
    ramp = jnp.arange(10.0)  # the ends move in by half a block each
    np.testing.assert_allclose(prox.total_variation(ramp, 1.0), np.clip(ramp, 1, 8), atol=1e-13)
    np.testing.assert_array_equal(prox.total_variation(jnp.array([[2.0], [3.0]]), 1.0), [[2.0], [3.0]])


def test_total_variation_acts_on_rows_and_under_vmap_each_with_its_own_scale():
    rows, scales = numbers((2, 3, 40), "real"), np.array([0.2, 1.5])
    expected = np.array([[dual_solution(row, scale) for row in part] for part, scale in zip(rows, scales, strict=True)])
    found = jax.jit(jax.vmap(prox.total_variation))(rows, scales)
    np.testing.assert_allclose(found, expected, atol=1e-11)


def test_total_variation_keeps_the_precision_of_float32_in_long_sequences():
    v = 10 + np.repeat(numbers(20, "real"), 100) + 0.1 * numbers(2000, "real", 1)
    exact = prox.total_variation(jnp.asarray(v), 1.0)
    found = prox.total_variation(jnp.asarray(v, jnp.float32), jnp.float32(1.0))
    assert np.abs(found - exact).max() < 2e-5
    assert len(set(np.asarray(exact).tolist())) < 200


SMOOTH = {
    "soft": prox.soft,
    "elastic_net": prox.elastic_net,
    "huber": prox.huber,
    "group": prox.group,
    "l2": prox.l2,
    "nuclear": prox.nuclear,
    "squared_l2": prox.squared_l2,
    "bernoulli_gauss": prox.bernoulli_gauss,
    "total_variation": prox.total_variation,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SMOOTH)
def test_away_from_kinks_derivatives_are_those_by_finite_differences(name, kind):
    if (name, kind) == ("total_variation", "complex"):
        with pytest.raises(StructureError, match="must be real numbers"):
            prox.total_variation(jnp.ones(3, complex), 1.0)
        return
    operator = SMOOTH[name]

    @jax.jit
    def both_ways(v, scale, moved, by, back):
        up, down = (operator(v + sign * 1e-6 * moved, scale + sign * 1e-6 * by) for sign in (1, -1))
        pushed = jax.jvp(operator, (v, scale), (moved, by))[1]
        pulled, pulled_scale = jax.vjp(operator, v, scale)[1](back)
        # <back, J t> = <J^T back, t>: JAX's cotangents of complex numbers are conjugate to gradients
        return (up - down) / 2e-6, pushed, (back * pushed).sum().real, (pulled * moved).sum().real + pulled_scale * by

    for shape in [(4, 3), (3, 4)] if name == "nuclear" else [(3, 4)]:
        v, moved, back = (numbers(shape, kind, seed) for seed in (0, 1, 2))
        expected, pushed, one, other = both_ways(v, 0.7, moved, 0.9, back)
        np.testing.assert_allclose(pushed, expected, atol=1e-7)
        assert float(one) == pytest.approx(float(other), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*SMOOTH, "hard", "top_k"])
def test_at_kinks_derivatives_are_finite(name, kind):
    if (name, kind) == ("total_variation", "complex"):
        return
    operator = {**SMOOTH, "hard": prox.hard, "top_k": functools.partial(prox.top_k, k=1)}[name]
    dtype = float if kind == "real" else complex
    points = [np.zeros((2, 2)), np.ones((2, 2)), np.eye(2), np.array([[2.0, 0.0], [0.0, 1e-300]])]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(v, scale):
        return jnp.sum(jnp.abs(operator(v, scale) - 0.3) ** 2)

    for point, scale in itertools.product(points, (0.0, 1.0, 2.0)):
        found = slopes(jnp.asarray(point, dtype), scale)
        assert all(np.isfinite(slope).all() for slope in found), (point, scale)


@pytest.mark.parametrize(
    "name", ["soft", "group", "l2", "nuclear", "elastic_net", "huber", "squared_l2", "total_variation"]
)
def test_at_scale_zero_nothing_changes_and_the_derivative_is_the_identity(name):
    v = np.array([[0.0, 0.0], [0.0, 3.0]])

    def at_zero(v):
        return SMOOTH[name](v.reshape(2, 2), 0.0).ravel()

    x, jacobian = jax.jit(lambda v: (at_zero(v), jax.jacobian(at_zero)(v)))(jnp.asarray(v).ravel())
    np.testing.assert_allclose(x, v.ravel(), atol=1e-15)
    expected = np.eye(4)
    if name == "total_variation":  # the first row is constant, so that what moves an entry moves its row by half
        expected[:2, :2] = 0.5
    np.testing.assert_allclose(jacobian, expected, atol=1e-12)


def test_norms_of_any_size_are_taken_without_over_or_underflow():
    for size in (1e-30, 1e30):
        v = jnp.asarray([3 * size, 4 * size], jnp.float32)
        np.testing.assert_allclose(prox.l2(v, jnp.float32(2.5 * size)), v / 2, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.jacobian(prox.l2))(v, jnp.float32(0.0)), np.eye(2), atol=1e-6)


def test_what_has_no_proximal_operator_here_is_said():
    with pytest.raises(InvalidArgument, match=r"top_k: k must be at most the length of v's last axis, got k=4"):
        prox.top_k(jnp.ones(3), k=4)
    with pytest.raises(InvalidArgument, match="top_k: k must be a positive whole number"):
        prox.top_k(jnp.ones(3), k=0)
    with pytest.raises(StructureError, match=r"nuclear: v must be a matrix \[..., m, n\], got float64\[3\]"):
        prox.nuclear(jnp.ones(3), 1.0)
