"""The options of the evolution family: how wide the noise is, what is kept of it, what stands for the losses."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax.estimators._guided import Along, _basis
from unrollax.estimators._shaping import shape_losses
from unrollax.testing import deal

KEY = jax.random.key(3)
PARAMS = {"a": jnp.array([0.7, -0.2]), "b": {"c": jnp.array(0.4), "d": jnp.array([[0.1], [-0.3]])}}
DATA = jax.random.normal(jax.random.key(4), (6, 2))


def vector(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def step(params, state, x, key):
    state = jnp.tanh(params["a"] * state + params["b"]["c"] + x + params["b"]["d"][:, 0])
    return state, (state**2).sum() + 0.1 * jax.random.normal(key) * state[0]


net = ux.system(init=lambda key, params: params["a"] + jax.random.normal(key, (2,)), step=step)
members = pytest.mark.parametrize("make", [ux.ES, ux.PES, ux.NRES])


def run(estimator, params=PARAMS, windows=7, data=DATA):
    call, state, out = jax.jit(estimator.estimate), estimator.init(KEY, params), []
    for index in range(windows):
        piece = jnp.roll(data, index, 0)[: estimator.window]
        state, estimate = call(params, state, piece)
        out.append(estimate)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *out)


def assert_equal(got, expected, rtol=1e-10):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-12), got, expected)


@members
@pytest.mark.parametrize("options", [{}, {"stagger": True}, {"shaping": "rank"}, {"control": "analytic"}, {"chunk": 2}])
def test_noise_that_is_drawn_again_is_the_noise_that_was_kept(make, options):
    stored = make(net, 0.1, window=2, horizon=6, pairs=5, **options)
    regenerated = replace(stored, noise="regenerated")
    assert_equal(run(regenerated), run(stored))
    state = regenerated.init(KEY, PARAMS)
    assert state.noise is None
    assert all(leaf.size <= 5 * 2 * 2 for leaf in jax.tree.leaves(state))


def test_noise_that_is_drawn_again_is_the_noise_that_was_kept_where_std_is_learned():
    stored = ux.PES(net, None, window=2, horizon=6, pairs=4)
    params = ux.Gaussian(PARAMS, {"a": -2.0, "b": -1.0})
    assert_equal(run(replace(stored, noise="regenerated"), params), run(stored, params))


@pytest.mark.parametrize(("std", "shaping"), [(None, None), (0.1, "rank")])
def test_held_noise_that_is_drawn_again_is_the_noise_that_was_kept_where_std_moves(std, shaping):
    """Inside an episode: as params where it is learned, as a field where it is given."""
    bend = ux.system(init=lambda key, p: p, step=lambda p, s, x, key: (s + p, jnp.sin(s + 3 * p).sum()))
    stored, mean = ux.NRES(bend, std, window=1, horizon=4, pairs=4, shaping=shaping), jnp.array([0.3, -0.5])
    call = jax.jit(lambda estimator, params, state: estimator.estimate(params, state, None))
    kept = jax.jit(stored.init)(KEY, mean if std else ux.Gaussian(mean, -2.0))
    drawn = kept._replace(noise=None)
    for width in (0.1, 0.07, 0.05):
        params = mean if std else ux.Gaussian(mean, jnp.log(width))
        now = replace(stored, std=width) if std else stored
        kept, expected = call(now, params, kept)
        drawn, got = call(replace(now, noise="regenerated"), params, drawn)
        assert_equal(got, expected, rtol=1e-9)


@pytest.mark.parametrize("std", [None, 0.1])
@pytest.mark.parametrize("make", [ux.PES, ux.NRES])
def test_the_mean_over_all_signs_stays_exact_where_std_moves(make, std):
    """On a loss linear in params, for PES in all params since the reset: only it keeps the width that each noise had."""
    slope, memory = jnp.array([3.0, -1.0]), float(make is ux.PES)
    linear = ux.system(
        init=lambda key, p: jnp.zeros(()), step=lambda p, s, x, key: (memory * (s + p @ slope), memory * s + p @ slope)
    )
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=4))).reshape(16, 2, 2)
    estimator = make(linear, std, window=1, horizon=2, pairs=16)

    @jax.jit
    def second(widths):
        params = [jnp.zeros(2) if std else ux.Gaussian(jnp.zeros(2), jnp.log(width)) for width in widths]
        state = estimator.init(KEY, params[0])
        for t in range(2):
            dealt = replace(estimator, std=std and widths[t], sampler=deal(signs[:, t]))
            state, got = dealt.estimate(params[t], state, None)
        return got.grad if std else got.grad.mean

    np.testing.assert_allclose(second(jnp.array([0.1, 0.05])), (1 + memory) * slope, rtol=1e-9)


@pytest.mark.parametrize("make", [ux.ES, ux.PES, ux.NRES])
def test_a_learned_width_may_have_a_finer_dtype_than_the_mean(make):
    estimator = make(net, None, window=2, horizon=6, pairs=4)
    params = ux.Gaussian(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS), jnp.float64(-2.0))
    state = estimator.init(KEY, params)
    after, got = jax.lax.scan(lambda s, _: estimator.estimate(params, s, DATA[:2]), state, length=4)
    assert jax.tree.map(jnp.result_type, after.noise) == jax.tree.map(jnp.result_type, state.noise)
    assert jax.tree.map(jnp.result_type, got.grad) == jax.tree.map(jnp.result_type, params)


@members
@pytest.mark.parametrize(
    "std", [{"a": 0.1, "b": 0.3}, {"a": 0.1, "b": {"c": 0.2, "d": 0.3}}, {"a": jnp.array([0.1, 0.4]), "b": 0.2}]
)
def test_a_std_for_each_leaf_is_a_change_of_units(make, std):
    """In units of its own std every parameter has std 1."""
    units = jax.tree.map(lambda s, below: jax.tree.map(lambda leaf: s * jnp.ones_like(leaf), below), std, PARAMS)
    scaled = ux.system(
        init=lambda key, p: net.init(key, jax.tree.map(jnp.multiply, p, units)),
        step=lambda p, s, x, key: net.step(jax.tree.map(jnp.multiply, p, units), s, x, key),
    )
    options = {"window": 2, "horizon": 6, "pairs": 3}
    expected = run(make(scaled, 1.0, **options), jax.tree.map(jnp.divide, PARAMS, units))
    got = run(make(net, std, **options))
    assert_equal(got.loss, expected.loss)
    assert_equal(got.grad, jax.tree.map(lambda g, u: g / np.asarray(u)[None], expected.grad, units))


@members
def test_a_constant_schedule_is_a_number(make):
    number = make(net, 0.2, window=2, horizon=6, pairs=3)
    assert_equal(run(replace(number, std=optax.constant_schedule(0.2))), run(number))


def test_a_schedule_weighs_every_noise_by_its_own_std():
    """PES literally: shifts std_t z_t, credits sum z_t / std_t; NRES keeps the std of its reset."""
    stds, windows = [0.4, 0.2, 0.1, 0.05], 4
    units = np.random.default_rng(0).normal(size=(windows, 3, 1))
    square = ux.system(init=lambda key, p: jnp.zeros(()), step=lambda p, s, x, key: (s + p, jnp.sin(s + p)))
    for make, reset in ((ux.PES, 2), (ux.NRES, 2)):
        estimator = make(square, lambda t: jnp.asarray(stds)[t], window=1, horizon=reset, pairs=3)
        state, theta = estimator.init(KEY, 0.3), 0.3
        inner, credit, held = np.zeros((3, 2)), np.zeros(3), np.zeros(3)
        for t in range(windows):
            fresh = units[t, :, 0]
            if t % reset == 0:
                inner[:], credit[:] = 0, 0
                held = stds[t] * fresh if make is ux.NRES else held
                credit = fresh / stds[t] if make is ux.NRES else credit
            if make is ux.PES:
                held, credit = stds[t] * fresh, credit + fresh / stds[t]
            inner += theta + np.stack([held, -held], 1)
            expected = (credit * np.diff(np.sin(inner)[:, ::-1])[:, 0]).mean() / 2
            state, got = replace(estimator, sampler=deal(units[t])).estimate(theta, state, None)
            np.testing.assert_allclose(got.grad, expected, rtol=1e-10)


@pytest.mark.parametrize("make", [ux.PES, ux.NRES])
def test_the_width_of_noise_is_learned_with_the_gradient_of_the_smoothed_loss(make):
    """On a quartic-free loss, with noise from the three-point Gauss-Hermite rule, both parts of the gradient are exact."""

    def step(p, s, x, key):
        s = s + p[0]
        return s, x * s**2 + 3.0 * p[1] ** 2

    square = ux.system(init=lambda key, p: jnp.zeros(()), step=step)
    rule = np.sqrt(3) * np.array([-1, 0, 0, 0, 0, 1])
    windows = 2 if make is ux.PES else 1
    draws = np.array(list(itertools.product(rule, repeat=2 * windows))).reshape(-1, windows, 2)
    estimator = make(square, None, window=2 // windows, horizon=2, pairs=len(draws))
    mean, log_std, x = jnp.array([0.7, -0.2]), jnp.log(jnp.array([0.3, 0.5])), jnp.array([2.0, -0.5])

    def smoothed(mean, log_std):
        """E of the mean step loss: the sum of k noises of variance v has variance k v, or k^2 v if it is one noise."""
        v = jnp.exp(2 * log_std)
        spread = jnp.array([1.0, 2.0 if windows == 2 else 4.0]) * v[0]
        path = (jnp.array([1.0, 2.0]) * mean[0]) ** 2 + spread
        return (x * path).mean() + 3.0 * (mean[1] ** 2 + v[1])

    state, grads = estimator.init(KEY, ux.Gaussian(mean, log_std)), []
    for w, piece in enumerate(jnp.split(x, windows)):
        call = jax.jit(replace(estimator, sampler=deal(draws[:, w])).estimate)
        state, got = call(ux.Gaussian(mean, log_std), state, piece)
        grads.append(got.grad)
    expected = jax.grad(smoothed, (0, 1))(mean, log_std)
    np.testing.assert_allclose(np.mean([g.mean for g in grads], 0), expected[0], rtol=1e-10, atol=1e-12)
    # All draws at once: the mean of the others as a baseline stretches the finite average by P / (P - 1).
    stretch = len(draws) / (len(draws) - 1)
    np.testing.assert_allclose(np.mean([g.log_std for g in grads], 0), stretch * expected[1], rtol=1e-10, atol=1e-12)


def test_a_learned_width_is_shared_by_what_its_prefix_covers():
    one = ux.NRES(net, None, window=2, horizon=6, pairs=4)
    each = run(one, ux.Gaussian(PARAMS, {"a": jnp.full(2, -2.0), "b": {"c": -2.0, "d": jnp.full((2, 1), -2.0)}}))
    parts = run(one, ux.Gaussian(PARAMS, {"a": -2.0, "b": -2.0}))
    whole = run(one, ux.Gaussian(PARAMS, -2.0))
    sums = jax.tree.map(lambda g: g.reshape(len(g), -1).sum(1), each.grad.log_std)
    assert_equal(parts.grad.log_std, {"a": sums["a"], "b": sums["b"]["c"] + sums["b"]["d"]})
    assert_equal(whole.grad.log_std, parts.grad.log_std["a"] + parts.grad.log_std["b"])
    assert_equal(whole.grad.mean, each.grad.mean)
    assert_equal(whole.grad.mean, run(replace(one, std=np.exp(-2.0))).grad)


def test_a_learned_width_trains():
    """On a loss with its minimum at 1 that is convex in the width, the mean is found and the width shrinks."""
    bowl = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, (p - 1) ** 2))
    estimator = ux.NRES(bowl, None, window=1, horizon=1, pairs=64)
    params = ux.Gaussian(jnp.array(0.0), jnp.log(0.5))
    got = ux.fit(estimator, optax.adam(0.03), params, None, key=KEY, steps=150).params
    assert abs(got.mean - 1) < 0.05
    assert got.log_std < np.log(0.1)


def test_ranks_see_only_the_order_of_losses_and_centred_losses_neither_scale_nor_shift():
    for shaping, bend in (("rank", lambda loss: jnp.exp(3 * loss) + 1), ("centred", lambda loss: 5 * loss - 2)):
        bent = ux.system(
            init=net.init,
            step=lambda p, s, x, key, bend=bend: (net.step(p, s, x, key)[0], bend(net.step(p, s, x, key)[1])),
        )
        options = {"std": 0.3, "window": 1, "horizon": 6, "pairs": 6, "shaping": shaping}
        assert_equal(run(ux.PES(bent, **options)).grad, run(ux.PES(net, **options)).grad, rtol=1e-9)


def test_utilities_are_those_of_the_formulas():
    losses = jnp.array([[3.0, 1.0], [2.0, 2.0], [jnp.nan, -jnp.inf]])
    np.testing.assert_allclose(shape_losses("rank", losses), (np.array([[5, 2], [3.5, 3.5], [6, 1]]) - 1) / 5 - 0.5)
    some = jnp.array([[1.0, 2.0], [4.0, 5.0]])
    np.testing.assert_allclose(shape_losses("centred", some), (some - 3) / np.std(some))
    np.testing.assert_array_equal(shape_losses("centred", jnp.ones((2, 2))), 0)


def test_particles_that_leave_the_domain_are_ranked_last():
    wild = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, -jnp.log(p)))  # NaN below 0
    estimator = ux.ES(
        wild, 1.0, window=1, pairs=4, shaping="rank", sampler=deal(np.array([[2.0], [0.5], [0.1], [3.0]]))
    )
    _, got = estimator.estimate(1.0, estimator.init(KEY, 1.0), None)
    assert got.info.nonfinite == 2 / 8
    assert np.isfinite(got.grad)
    assert got.grad < 0  # away from where the logarithm ends


def test_the_analytic_gradient_explains_all_of_a_linear_window():
    """For ES on losses linear in the parameters not a trace of the noise is left; for PES that of earlier windows."""
    linear = ux.system(init=lambda key, p: jnp.zeros(3), step=lambda p, s, x, key: (s + p, (s + p) @ x))
    theta, data = jnp.array([0.3, -0.2, 0.5]), jax.random.normal(KEY, (6, 3))
    exact = ux.TBPTT(linear, window=2, horizon=6)
    expected = run(exact, theta, 6, data)
    got = run(ux.ES(linear, 0.3, window=2, horizon=6, pairs=2, control="analytic"), theta, 6, data)
    np.testing.assert_allclose(got.grad, expected.grad, rtol=1e-9)
    plain, controlled = (
        run(ux.PES(linear, 0.3, window=2, horizon=6, pairs=2, control=control), theta, 6, data).grad
        for control in (None, "analytic")
    )
    np.testing.assert_allclose(controlled[::3], expected.grad[::3], rtol=1e-9)  # the first windows of the episodes
    assert ((controlled - expected.grad) ** 2).sum() > 1e-3
    assert not np.allclose(plain[::3], expected.grad[::3], rtol=0.1)


def test_an_analytic_gradient_that_is_not_finite_is_left_out():
    wild = ux.system(
        init=lambda key, p: (), step=lambda p, s, x, key: (s, jnp.where(p > 0, p, jnp.sqrt(-p) * p * 0 + p))
    )
    cusp = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, jnp.sqrt(jnp.abs(p))))  # infinite slope at 0
    for body, theta in ((wild, 0.5), (cusp, 0.0)):
        plain = ux.ES(body, 0.1, window=1, pairs=3)
        controlled = replace(plain, control="analytic")
        for estimator in (plain, controlled):
            assert np.isfinite(estimator.estimate(theta, estimator.init(KEY, theta), None)[1].grad)
    assert_equal(run(replace(plain, control="analytic"), 0.0, 1).grad, run(plain, 0.0, 1).grad)


def test_full_es_is_es_with_a_window_as_long_as_the_horizon():
    full, es = ux.FullES(net, 0.1, horizon=6, pairs=3), ux.ES(net, 0.1, window=6, horizon=6, pairs=3)
    jax.tree.map(np.testing.assert_array_equal, run(full), run(es))
    assert full.traits.target == "smoothed"
    assert full.traits.cost == es.traits.cost


def test_guided_noise_has_the_covariance_of_the_paper_and_the_mean_square_of_plain_noise():
    rows = jax.random.normal(KEY, (2, 5))
    basis = _basis(jnp.concatenate([rows, rows[:1] + rows[1:]]))  # three rows that span a plane
    np.testing.assert_allclose(basis @ basis.T, np.diag((np.asarray(basis) != 0).any(1)), atol=1e-12)
    projector = np.asarray(rows).T @ np.linalg.inv(np.asarray(rows @ rows.T)) @ np.asarray(rows)
    np.testing.assert_allclose(basis.T @ basis, projector, atol=1e-10)
    alpha, count = 0.3, 200_000
    expected = alpha * np.eye(5) + (1 - alpha) * 5 / 2 * projector
    assert np.trace(expected) == pytest.approx(5)
    keys = jax.random.split(KEY, count)
    z = np.asarray(jax.vmap(lambda key: Along(ux.normal, basis, alpha)(key, (5,), jnp.float64))(keys))
    products = z[:, :, None] * z[:, None, :]
    scores = (products.mean(0) - expected) / (products.std(0) / np.sqrt(count))
    assert np.abs(scores).max() < 4.5
    plain = np.asarray(
        jax.vmap(lambda key: Along(ux.normal, jnp.zeros((2, 5)), alpha)(key, (5,), jnp.float64))(keys[:20_000])
    )
    np.testing.assert_allclose(plain.T @ plain / 20_000, np.eye(5), atol=0.05)


def test_guided_estimates_average_to_the_covariance_times_the_gradient():
    """The documented bias, on a linear loss with a guide that always points along the first axis; |z| < 4.5."""
    slope, count = jnp.array([1.0, -2.0, 0.5]), 4000
    linear = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, p @ slope))
    first = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, 7 * p[0]))
    guided = ux.GuidedES(linear, 0.1, window=1, pairs=4, guide=ux.TBPTT(first, window=1), subspace=2, alpha=0.4)
    grads = jax.jit(jax.vmap(lambda key: guided.estimate(jnp.zeros(3), guided.init(key, jnp.zeros(3)), None)[1].grad))(
        jax.random.split(KEY, count)
    )
    expected = 0.4 * np.asarray(slope) + 0.6 * 3 * np.array([1.0, 0, 0])
    scores = (grads.mean(0) - expected) / (grads.std(0) / np.sqrt(count))
    assert np.abs(scores).max() < 4.5


@pytest.mark.parametrize("std", [0.1, jnp.array([0.1, 0.2, 0.4])])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_guided_estimates_keep_their_mean_under_the_analytic_gradient(std, alpha):
    """On a linear loss nothing is left but the mean, S g in units of std: the same for any noise, and without variance."""
    slope = jnp.array([1.0, -2.0, 0.5])
    linear = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, p @ slope))
    guide = jnp.array([2.0, 1.0, 0.0])
    guide = ux.system(init=lambda key, p: (), step=lambda p, s, x, key, along=guide: (s, p @ along))
    options = {"window": 1, "pairs": 2, "guide": ux.TBPTT(guide, window=1), "subspace": 2, "alpha": alpha}
    guided = ux.GuidedES(linear, std, **options, control="analytic")
    along = np.array([2.0, 1.0, 0.0]) / np.sqrt(5)
    cov = alpha * np.eye(3) + (1 - alpha) * 3 * np.outer(along, along)
    width = np.broadcast_to(std, 3)
    estimate = lambda key: guided.estimate(jnp.zeros(3), guided.init(key, jnp.zeros(3)), None)[1].grad
    for grad in jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 3)):
        np.testing.assert_allclose(grad, cov @ (width * slope) / width, rtol=1e-9)


def test_a_guide_that_is_not_finite_leaves_the_subspace_alone():
    cusp = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, jnp.sqrt(jnp.abs(p)).sum()))
    guided = ux.GuidedES(cusp, 0.1, window=1, pairs=4, guide=ux.TBPTT(cusp, window=1))
    state, got = guided.estimate(jnp.zeros(2), guided.init(KEY, jnp.zeros(2)), None)
    np.testing.assert_array_equal(state.recent, 0)
    assert np.isfinite(got.grad).all()


def test_guided_es_follows_its_own_estimates_if_it_has_no_guide():
    guided = ux.GuidedES(net, 0.1, window=2, horizon=6, pairs=3, subspace=2)
    state, got = guided.estimate(PARAMS, guided.init(KEY, PARAMS), DATA[:2])
    np.testing.assert_allclose(state.recent[-1], vector(got.grad))
    assert guided.traits == ux.ES(net, 0.1, window=2, horizon=6, pairs=3).traits._replace(target="pseudo")


def test_estimates_are_mapped_over_alpha():
    line = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, p @ DATA[0]))
    alphas, one = jnp.array([0.2, 0.9]), ux.GuidedES(line, 0.1, window=1, pairs=3, guide=ux.TBPTT(line, 1))
    grad = lambda estimator: estimator.estimate(jnp.ones(2), estimator.init(KEY, jnp.ones(2)), None)[1].grad
    mapped = jax.jit(jax.vmap(grad, (replace(one, system=None, std=None, alpha=0),)))(replace(one, alpha=alphas))
    np.testing.assert_allclose(mapped, [jax.jit(grad)(replace(one, alpha=alpha)) for alpha in alphas], rtol=1e-10)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            lambda: ux.PES(net, 0.1, 2, shaping="ranks"),
            "PES: shaping must be one of None, 'rank', 'centred', got shaping='ranks'",
        ),
        (
            lambda: ux.PES(net, 0.1, 2, noise="kept"),
            "PES: noise must be one of 'stored', 'regenerated', got noise='kept'",
        ),
        (lambda: ux.PES(net, 0.1, 2, control=True), "PES: control must be one of None, 'analytic', got control=True"),
        (lambda: ux.ES(net, 0.1, 2, control="analytic", shaping="rank"), "ES: control corrects a gradient"),
        (lambda: ux.PES(net, {"a": 0.1, "b": -0.1}, 2), "PES: std must be a positive number, got std=-0.1"),
        (lambda: ux.FullES(net, 0.1), "FullES: horizon must be a positive whole number, got horizon=None"),
        (lambda: ux.FullES(net, 0.1, 2, 6), "FullES: window must be the horizon, got window=2, horizon=6"),
        (lambda: ux.GuidedES(net, 0.1, 2, alpha=0.0), r"GuidedES: alpha must be a number in \(0, 1\], got alpha=0.0"),
        (lambda: ux.GuidedES(net, 0.1, 2, alpha="x"), r"GuidedES: alpha must be a number in \(0, 1\], got alpha='x'"),
        (lambda: ux.GuidedES(net, 0.1, 2, alpha=2).init(KEY, PARAMS), r"GuidedES: alpha .* in \(0, 1\], got alpha=2\."),
        (lambda: ux.GuidedES(net, 0.1, 2, alpha=0).init(KEY, PARAMS), r"GuidedES: alpha .* in \(0, 1\], got alpha=0\."),
        (
            lambda: ux.GuidedES(net, 0.1, 2, guide=3),
            r"GuidedES: guide must have init.*, got int without init or estimate",
        ),
        (lambda: ux.GuidedES(net, 0.1, 2, guide=ux.TBPTT), r"GuidedES: guide must have init.*, got the class TBPTT\."),
        (
            lambda: ux.GuidedES(net, 0.1, 2, guide=ux.TBPTT(net, 3)),
            "GuidedES: the parts must have the same window, got itself with window=2, guide with window=3. Give both",
        ),
        (
            lambda: ux.GuidedES(net, 0.1, 2, 4, guide=ux.TBPTT(net, 2)),
            "GuidedES: the parts must have the same horizon, got itself with horizon=4, guide with horizon=None",
        ),
        (
            lambda: ux.GuidedES(net, None, 2).init(KEY, ux.Gaussian(PARAMS, -1.0)),
            "GuidedES: std must be given, as a width is learned from plain noise only, got std=None",
        ),
        (lambda: ux.GuidedES(net, 0.1, 2).init(0, PARAMS), "GuidedES: key must be a single PRNG key, got 0"),
        (
            lambda: ux.PES(net, 0.1, 2, 4, stagger="yes"),
            "PES: stagger must be one of True, False, got stagger='yes'. Choose",
        ),
        (lambda: ux.PES(net, 0.1, 2, sampler=3), r"PES: sampler must be callable as sampler\(key, shape, dtype\), got"),
        (
            lambda: ux.ForwardGradient(net, 2, sampler=3),
            "ForwardGradient: sampler must be callable as .*, got sampler=3",
        ),
        (lambda: ux.GuidedES(net, 0.1, 2, subspace=0), "GuidedES: subspace must be a positive whole number"),
        (lambda: ux.GuidedES(net, 0.1, 2, horizon=5), "GuidedES: horizon must be a multiple of window"),
    ],
)
def test_an_option_that_cannot_be_is_refused(build, says):
    with pytest.raises(ux.InvalidArgument, match=says):
        build()


@pytest.mark.parametrize(
    ("std", "params", "says"),
    [
        ({"a": 0.1}, PARAMS, "PES: std must be a number or a prefix of params"),
        (None, PARAMS, "PES: std=None learns it"),
        (0.1, ux.Gaussian(PARAMS, -1.0), "PES: std=None learns it"),
        (None, ux.Gaussian(PARAMS, {"a": -1.0}), "PES: std must be a number or a prefix of params"),
    ],
)
def test_a_std_that_does_not_fit_the_parameters_is_refused(std, params, says):
    with pytest.raises(ux.StructureError, match=says):
        ux.PES(net, std, 2).init(KEY, params)


@pytest.mark.parametrize(
    ("make", "owner"), [(partial(ux.PES, std=0.1), "PES"), (ux.ForwardGradient, "ForwardGradient")]
)
def test_a_sampler_of_another_shape_is_refused(make, owner):
    estimator = make(net, window=2, sampler=lambda key, shape, dtype: jnp.zeros(3, dtype))
    with pytest.raises(
        ux.StructureError, match=rf"^{owner}: sampler must return the shape .* asked for, \[5\], got float64\[3\]"
    ):
        estimator.estimate(PARAMS, estimator.init(KEY, PARAMS), DATA[:2])
