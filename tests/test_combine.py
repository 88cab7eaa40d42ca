from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.estimators._parts import keep_sums, without_own
from unrollax.testing import check_cost_is_documented

KEY = jax.random.key(6)
PARAMS = {"a": jnp.array([0.4]), "b": jnp.array([[-0.7]])}
close = partial(np.testing.assert_allclose, rtol=1e-12)


@ux.value
class Draw:
    """An estimator whose gradient is 1 plus noise, fresh in every call or kept from `init` on."""

    scale: float
    noise: Callable = ux.static()
    kept: bool = ux.static(default=False)

    def init(self, key, params):
        return key

    def estimate(self, params, state, data):
        key, draw = jax.random.split(state)
        noise = jax.tree.map(lambda p: 1 + self.scale * self.noise(draw, p.shape), params)
        loss = jnp.mean(jnp.stack([leaf.mean() for leaf in jax.tree.leaves(noise)]))
        return (state if self.kept else key), ux.Estimate(loss, noise)


def skewed(key, shape):
    """Noise of mean 0 and variance 1, far from symmetric: where it is large, it also seems to vary much."""
    return jax.random.exponential(key, shape) - 1


def run(estimator, params=PARAMS, data=None, calls=1, key=KEY):
    state, call = estimator.init(key, params), jax.jit(estimator.estimate)
    for _ in range(calls):
        state, got = call(params, state, data)
    return state, got


def over_keys(estimator, params, count, calls=1, data=None):
    """The gradients and infos of the last of some calls, for many keys."""

    def one(key):
        scan = lambda state, _: estimator.estimate(params, state, data)
        got = jax.lax.scan(scan, estimator.init(key, params), length=calls)[1]
        return jax.tree.map(lambda leaf: leaf[-1], got)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, count)))


def z_of(samples, expected):
    samples = np.asarray(samples)
    return np.abs((samples.mean(0) - expected) / (samples.std(0) / np.sqrt(len(samples)))).max()


def step(params, state, x, key):
    state = 0.6 * state + jnp.concatenate([params["a"], params["b"][0]]) + 0.1 * jax.random.normal(key, (2,))
    return state, (state**2).sum() + params["a"][0] * state[0]


net = ux.system(init=lambda key, params: jax.random.normal(key, (2,)), step=step)
PES = ux.PES(net, std=0.1, window=2, horizon=6, pairs=2)
FORWARD = ux.ForwardGradient(net, window=2, horizon=6, directions=2)
TBPTT = ux.TBPTT(net, window=2, horizon=6)


# --- mean_over --------------------------------------------------------------------------------------------------------


def test_the_mean_of_copies_is_that_of_separate_runs():
    _, got = run(ux.mean_over(PES, 3), calls=4)
    each = [run(PES, calls=4, key=key)[1] for key in jax.random.split(KEY, 3)]
    jax.tree.map(lambda mean, *parts: close(mean, sum(parts) / 3), (got.loss, got.grad), *[e[:2] for e in each])
    np.testing.assert_array_equal(got.info.copies.nonfinite, np.zeros(3))


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_variance_falls_as_one_over_the_copies(repeats):
    """2,000 draws of noise of variance 9: |z| < 4 for mean and variance."""
    grads = over_keys(ux.mean_over(Draw(3.0, jax.random.normal), repeats), jnp.ones(10), 2000).grad
    assert z_of(grads.ravel(), 1) < 4
    assert z_of((grads.ravel() - 1) ** 2, 9 / repeats) < 4


def test_the_share_of_what_is_not_finite_is_averaged():
    wild = ux.system(init=lambda key, p: jax.random.bernoulli(key), step=lambda p, s, x, key: (s, p / (1 - s)))
    _, got = run(ux.mean_over(ux.TBPTT(wild, 2), 8), 1.0)
    assert 0 < got.info.nonfinite < 1
    assert got.info.nonfinite == got.info.copies.nonfinite.mean()
    _, plain = run(ux.mean_over(Draw(jnp.inf, jax.random.normal), 2))  # which says nothing in `info`
    assert plain.info.nonfinite == 1


# --- mix --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.0])
def test_a_fixed_weight_is_the_formula(weight):
    state, got = run(ux.mix(TBPTT, PES, weight=weight), calls=3)
    parts = [run(part, calls=3, key=key)[1] for part, key in zip((TBPTT, PES), jax.random.split(KEY), strict=True)]
    jax.tree.map(
        lambda mixed, one, two: close(mixed, (1 - weight) * one + weight * two, rtol=1e-11),
        (got.loss, got.grad),
        *[part[:2] for part in parts],
    )
    assert got.info.weight == weight
    jax.tree.map(np.testing.assert_array_equal, (got.info.first, got.info.second), (parts[0].info, parts[1].info))
    assert state.second.left.shape == (2,)


def test_a_weight_is_a_number_that_vmap_and_grad_see():
    weights = jnp.array([0.0, 0.5, 1.0])
    by_weight = lambda w: run(ux.mix(TBPTT, PES, weight=w))[1].grad["a"][0]
    grads = jax.vmap(by_weight)(weights)
    close(grads[1], (grads[0] + grads[2]) / 2)
    close(jax.grad(by_weight)(0.3), grads[2] - grads[0], rtol=1e-10)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"weight": 0.3}, {"weight": "inverse-variance"}])
def test_an_estimate_that_is_not_finite_leaves_no_trace(options, broken):
    good, bad = Draw(1.0, jax.random.normal), Draw(broken, jax.random.normal)
    for place, mixed in ((1, ux.mix(bad, good, **options)), (0, ux.mix(good, bad, **options))):
        _, got = run(mixed, calls=2)
        assert got.info.weight == place
        alone = good if options["weight"] == 0.3 else ux.mean_over(good, 4)
        _, expected = run(alone, calls=2, key=jax.random.split(KEY)[place])
        jax.tree.map(partial(close, rtol=1e-14), got[:2], expected[:2])
    assert not np.isfinite(run(ux.mix(bad, bad, **options))[1].loss)  # nothing is hidden


def test_a_copy_that_is_not_finite_takes_the_weight_from_its_kind_in_the_others_too():
    """One of four copies overflows: the others' weights see it, its own goes to its finite twin."""
    sometimes = lambda key, shape: jnp.where(jax.random.bernoulli(key, 0.1), jnp.inf, 1.0) * jnp.ones(shape)
    got = over_keys(ux.mix(Draw(1.0, sometimes), Draw(1.0, jax.random.normal), samples=4), jnp.ones(2), 500)
    assert np.isfinite(got.grad).all()
    assert ((got.info.weight == 1) | (got.info.weight <= 0.25)).all()  # 0 with all four finite and of no variance
    assert 0.2 < (got.info.weight > 0).mean() < 0.5  # 1 - 0.9^4 = 0.34


def literal_without_own(a, b):
    """Sample covariances of the others, pair by pair."""
    copies = range(len(a))
    return [sum(np.dot(a[j] - a[k], b[j] - b[k]) for j in copies for k in copies if i not in (j, k)) for i in copies]


def test_sums_without_the_own_copy_are_literally_that():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    tree = lambda leaf: {"x": leaf[:, :2], "y": leaf[:, 2]}
    close(without_own(tree(a), tree(b)), literal_without_own(a, b))
    others = np.delete(a, 2, axis=0)
    close(without_own(a, a)[2], others.var(0, ddof=1).sum() * 2 * 4 * 3)
    a[2] = 1e12  # an outlier is not seen by its own weight, and takes no digits with it
    close(without_own(a, a)[2], others.var(0, ddof=1).sum() * 2 * 4 * 3)
    a[2] = np.nan
    assert list(np.isfinite(without_own(a, a))) == [False, False, True, False, False]


def test_sums_decay_and_forget_what_is_broken():
    old, new = jnp.array([[1.0, jnp.nan, 3.0], [4.0, 5.0, 6.0]]), jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, jnp.inf]])
    np.testing.assert_array_equal(keep_sums(old, new, 0.5), [[1.5, 1, 1.5], [3, 1, 3]])


def test_the_weight_of_a_copy_is_that_of_the_others_variances():
    first, second = Draw(2.0, jax.random.normal), Draw(1.0, skewed)
    _, got = run(ux.mix(first, second, samples=5), jnp.ones(3))
    keys = [jax.random.split(key, 5) for key in jax.random.split(KEY)]
    a, b = (
        np.array([run(part, jnp.ones(3), key=k)[1].grad for k in ks])
        for part, ks in zip((first, second), keys, strict=True)
    )
    v, u = np.array(literal_without_own(a, a)), np.array(literal_without_own(b, b))
    w = (v / (v + u))[:, None]
    close(got.grad, ((1 - w) * a + w * b).mean(0))
    close(got.info.weight, w.mean())


def test_with_steady_weights_the_variance_is_the_least_there_is():
    """Variances 4 and 1 a number: weight 4/5 for the second, variance 4/5 over the copies; 2,000 keys, |z| < 4."""
    mixed = ux.mix(Draw(2.0, jax.random.normal), Draw(1.0, jax.random.normal), samples=4, decay=0.99)
    got = over_keys(mixed, jnp.ones(4), 2000, calls=100)
    np.testing.assert_allclose(got.info.weight, 0.8, atol=0.1)
    assert z_of(got.grad.ravel(), 1) < 4
    assert (
        z_of((got.grad.ravel() - 1) ** 2, 0.8 / 4 * 1.005) < 4
    )  # weights vary by some 2 %, which costs less than that


@pytest.mark.parametrize(("kept", "decay", "calls"), [(False, 0.0, 1), (True, 0.0, 1), (True, 0.9, 4)])
def test_the_mix_is_unbiased_under_skewed_noise_that_is_kept(kept, decay, calls):
    """20,000 keys, |z| < 4; a weight that sees its own sample has |z| > 20."""
    parts = [Draw(scale, skewed, kept) for scale in (1.0, 2.0)]
    got = over_keys(ux.mix(*parts, samples=4, decay=decay), jnp.ones(1), 20000, calls)
    assert z_of(got.grad, 1) < 4
    a, b = (
        1 + scale * (np.random.default_rng(seed).exponential(size=(20000, 4)) - 1) for seed, scale in ((0, 1), (1, 2))
    )
    v, u = a.var(1, ddof=1), b.var(1, ddof=1)
    naive = a.mean(1) + v / (v + u) * (b.mean(1) - a.mean(1))
    assert z_of(naive, 1) > 20


def logistic(horizon, rate, **options):
    def step(rate, state, x, key):
        state = rate * state * (1 - state)
        return state, (state - 0.5) ** 2

    chaos = ux.system(init=lambda key, rate: jax.random.uniform(key, (), minval=0.3, maxval=0.7), step=step)
    es = ux.ES(chaos, std=0.02, window=horizon, horizon=horizon, pairs=4)
    return es, run(ux.mix(ux.BPTT(chaos, horizon), es, **options), rate)[1]


@pytest.mark.parametrize("options", [{"weight": 0.3}, {"weight": "inverse-variance", "samples": 3}])
def test_where_backpropagation_overflows_on_the_logistic_map_evolution_takes_over(options):
    """What is left is evolution's, finite; rounding is chaos too, so that no digits can be compared."""
    es, got = logistic(2500, 3.9, **options)
    _, alone = run(ux.BPTT(es.system, 2500), 3.9)
    assert np.isfinite(alone.loss)
    assert not np.isfinite(alone.grad)
    assert got.info.weight == 1
    assert np.isfinite((got.loss, got.grad)).all()
    np.testing.assert_allclose(got.loss, run(es, 3.9)[1].loss, rtol=0.05)


def test_the_weight_follows_the_chaos_of_the_logistic_map():
    """Tame at rate 2.5, where the map has a fixed point; steep at 3.9, where the slope grows by half a unit a step."""
    weights = [float(logistic(horizon, rate)[1].info.weight) for horizon, rate in ((60, 2.5), (60, 3.9))]
    assert weights[0] < 0.1
    assert weights[1] > 0.9999


# --- control_variate --------------------------------------------------------------------------------------------------


def plane(slope):
    """A system whose loss is linear in the parameters."""
    return ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, p @ slope))


A, B = np.array([1.0, -0.5, 2.0, 0.3, 0.0]), np.array([1.3, -0.3, 1.5, 0.0, 0.4])
TIME = {"window": 1, "horizon": 1}
ES_A, ES_B = (ux.ES(plane(slope), std=0.1, pairs=1, **TIME) for slope in (A, B))
EXACT = ux.BPTT(plane(B), 1)


def test_a_perfect_model_leaves_backpropagation_whatever_the_noise():
    """The estimator and its control draw the same, as they have the same key; also in later windows and episodes."""
    fit = ux.ForwardGradient(net, window=2, horizon=6, directions=64)
    state, got = run(ux.control_variate(PES, PES, exact=fit), calls=5)
    _, alone = run(fit, calls=5, key=jax.random.split(KEY)[1])
    jax.tree.map(partial(close, rtol=1e-8), got.grad, alone.grad)
    _, main = run(PES, calls=5, key=jax.random.split(KEY)[0])
    assert (got.loss, got.info.nonfinite, got.info.coefficient) == (main.loss, 0, 1)
    jax.tree.map(
        np.testing.assert_array_equal, *jax.tree.map(jax.random.key_data, (state.estimator.key, state.control.key))
    )


@pytest.mark.parametrize("coefficient", [0.0, 0.5, A @ B / (B @ B), 1.0, 1.5])
def test_the_variance_is_that_of_the_slopes_difference(coefficient):
    """One pair z has the gradient z (z . a), of covariance trace (D + 1) |a|^2 for normal z; 20,000 keys, |z| < 4."""
    grads = over_keys(ux.control_variate(ES_A, ES_B, exact=EXACT, coefficient=coefficient), jnp.zeros(5), 20000).grad
    assert z_of(grads, A) < 4
    left = A - coefficient * B
    assert z_of(((grads - A) ** 2).sum(1), (5 + 1) * left @ left) < 4


def test_the_fitted_coefficient_is_the_best_one():
    """cov / var = a . b / |b|^2, which leaves 1 - cos^2 of the variance."""
    fitted = ux.control_variate(ES_A, ES_B, exact=EXACT, coefficient="fitted", samples=4, decay=0.98)
    got = over_keys(fitted, jnp.zeros(5), 2000, calls=200)
    best = A @ B / (B @ B)
    np.testing.assert_allclose(got.info.coefficient.mean(), best, rtol=0.005)
    assert z_of(got.grad, A) < 4
    variance = ((got.grad - A) ** 2).sum(1).mean() * 4 / ((5 + 1) * A @ A)
    np.testing.assert_allclose(variance, 1 - (A @ B) ** 2 / (A @ A) / (B @ B), rtol=0.08)


def test_the_fitted_coefficient_of_a_copy_is_that_of_the_others():
    fitted = ux.control_variate(ES_A, ES_B, exact=EXACT, coefficient="fitted", samples=5)
    _, got = run(fitted, jnp.zeros(5))
    keys = jax.random.split(jax.random.split(KEY)[0], 5)
    g, h = (np.array([run(es, jnp.zeros(5), key=k)[1].grad for k in keys]) for es in (ES_A, ES_B))
    c = np.array(literal_without_own(g, h)) / literal_without_own(h, h)
    close(got.grad, (g - c[:, None] * (h - B)).mean(0))
    close(got.info.coefficient, c.mean())


@pytest.mark.parametrize(("kept", "decay", "calls"), [(False, 0.0, 1), (True, 0.9, 3)])
def test_the_fitted_control_is_unbiased_under_skewed_noise_that_is_kept(kept, decay, calls):
    """The control is the estimator's noise and more, squared; its mean is known. 20,000 keys, |z| < 4."""
    squared = lambda key, shape: skewed(key, shape) + skewed(key, shape) ** 2 - 1
    parts = [Draw(1.0, noise, kept) for noise in (skewed, squared)]
    known = Draw(0.0, skewed)
    fitted = ux.control_variate(*parts, exact=known, coefficient="fitted", samples=4, decay=decay)
    assert z_of(over_keys(fitted, jnp.ones(1), 20000, calls).grad, 1) < 4


@pytest.mark.parametrize("coefficient", [0.7, 1.0])
def test_over_all_signs_the_mean_is_exact(coefficient):
    """On a loss that is quadratic in two parameters, with a model that is off by a bend and a slope."""

    def curved(bend):
        return ux.system(init=lambda k, p: p[0], step=lambda p, s, x, k: (0.5 * s + p[1], bend * s**2 + p[0] * p[1]))

    params, grads = jnp.array([0.4, -0.7]), []
    for signs in product([1.0, -1.0], repeat=2):
        sampler = lambda key, shape, dtype, signs=signs: jnp.asarray(signs, dtype).reshape(shape)
        noise = {"std": 0.3, "window": 3, "horizon": 3, "pairs": 1, "sampler": sampler}
        real, model = (ux.ES(curved(bend), **noise) for bend in (1.0, 0.8))
        mixed = ux.control_variate(real, model, exact=ux.BPTT(curved(0.8), 3), coefficient=coefficient)
        grads.append(run(mixed, params)[1].grad)
    expected = run(ux.BPTT(curved(1.0), 3), params)[1].grad
    close(np.mean(grads, axis=0), expected)
    assert np.abs(grads[0] - expected).max() > 0.01


# --- all of them ------------------------------------------------------------------------------------------------------


def controlled(part, **options):
    return ux.control_variate(part, part, exact=part, **options)


COMBINED = {
    "mean_over": lambda part: ux.mean_over(part, 3),
    "mix": lambda part: ux.mix(part, part, weight=0.5),
    "mix-inverse-variance": lambda part: ux.mix(part, part),
    "control_variate": controlled,
    "control_variate-fitted": partial(controlled, coefficient="fitted"),
}
combined = pytest.mark.parametrize("make", COMBINED.values(), ids=COMBINED)


@combined
def test_it_goes_through_its_parts_windows_and_costs_what_they_cost(make):
    def built(system, *, window, horizon):
        return make(ux.PES(system, std=0.1, pairs=5, window=window, horizon=horizon))

    whole = built(net, window=2, horizon=6)
    assert (whole.window, whole.horizon) == (2, 6)
    assert whole.traits[:2] == PES.traits[:2]
    check_cost_is_documented(built)

    def twice(system, *, window, horizon):
        """Of windows that are no whole horizon: copies that all start anew on a system without chance are one program."""
        return make(make(ux.TBPTT(system, window=window, horizon=2 * horizon)))

    check_cost_is_documented(twice)


@combined
def test_what_the_parts_do_not_say_is_not_said(make):
    whole = make(Draw(1.0, jax.random.normal))
    assert not any(hasattr(whole, name) for name in ("window", "horizon", "traits"))
    with pytest.raises(AttributeError, match="window"):
        whole.window  # noqa: B018


@combined
def test_any_object_with_the_two_methods_will_do(make):
    @jax.jit
    def estimate(params, state, data):
        return state, ux.Estimate((params**2).sum(), 2 * params)

    plain = SimpleNamespace(init=lambda key, params: jnp.zeros(()), estimate=estimate, window=7, traits=TBPTT.traits)
    whole = make(plain)
    assert (whole.window, whole.traits[:2]) == (7, ("truncated", "vjp"))
    assert not hasattr(whole, "horizon")
    _, got = jax.jit(lambda whole, state: whole.estimate(jnp.ones(2), state, None))(whole, whole.init(KEY, jnp.ones(2)))
    close(got.grad, [2, 2])
    assert jax.tree.leaves(replace(whole)) == jax.tree.leaves(whole)


@combined
def test_params_in_bfloat16_have_a_gradient_in_bfloat16(make):
    square = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, p * p))
    _, got = run(make(ux.TBPTT(square, 1)), jnp.bfloat16(3))
    assert (got.grad, got.grad.dtype, got.loss) == (6, jnp.bfloat16, 9)


@combined
def test_it_prints_on_one_line(make):
    assert "\n" not in repr(make(PES))
    assert "PES(system=" in repr(make(PES))


ORDER = [
    (FORWARD, PES, "smoothed", "jvp"),
    (PES, TBPTT, "truncated", "vjp"),
    (FORWARD, FORWARD, "exact", "jvp"),
    (PES, PES, "smoothed", "forward"),
]


@pytest.mark.parametrize(("first", "second", "target", "needs"), ORDER)
def test_the_weaker_target_and_the_stronger_need_win(first, second, target, needs):
    for pair in ((first, second), (second, first)):
        assert ux.mix(*pair, weight=0.5).traits[:2] == (target, needs)
        assert ux.mix(*pair).traits[:2] == (target, needs)
        assert ux.control_variate(first, pair[0], exact=pair[1]).traits[:2] == (target, needs)


def test_a_direction_that_is_no_gradient_stays_one_and_an_unknown_cost_unknown():
    pseudo = SimpleNamespace(init=PES.init, estimate=PES.estimate, traits=ux.Traits("pseudo", "forward"))
    assert ux.mix(TBPTT, pseudo, weight=0.5).traits == ux.Traits("pseudo", "vjp", None)


def test_what_differs_in_time_is_refused():
    other = replace(PES, window=3)
    message = "mix: the parts must have the same window, got first with window=2, second with window=3. Give both"
    for options in ({"weight": 0.5}, {}):
        with pytest.raises(ux.InvalidArgument, match=message):
            ux.mix(TBPTT, other, **options)
    message = "control_variate: the parts must have the same horizon, got estimator .*=6, control .*=6, exact .*=4"
    for options in ({}, {"coefficient": "fitted"}):
        with pytest.raises(ux.InvalidArgument, match=message):
            ux.control_variate(PES, PES, exact=replace(PES, horizon=4), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ux.mean_over(PES, 0), "mean_over: repeats must be a positive whole number, got repeats=0"),
        (lambda: ux.mean_over(net, 2), r"mean_over: estimator must have .*, got FunctionSystem without estimate. Pass"),
        (lambda: ux.mix(PES, 3.0), "mix: second must have .*, got float without init or estimate"),
        (
            lambda: ux.mix(PES, PES, weight="even"),
            "mix: weight must be a number or 'inverse-variance', got weight='even'",
        ),
        (lambda: ux.mix(PES, PES, weight=None), "mix: weight must be a finite number, got weight=None"),
        (lambda: ux.mix(PES, PES, weight=True), "mix: weight must be a finite number, got weight=True"),
        (lambda: ux.mix(PES, PES, weight=np.nan), "mix: weight must be a finite number, got weight=nan"),
        (lambda: ux.mix(PES, PES, decay=2.0), r"mix: decay must be a number in \[0, 1\], got decay=2.0"),
        (lambda: controlled(PES, coefficient=None), "control_variate: coefficient must be a finite number, got coeff"),
        (
            lambda: controlled(PES, coefficient="fitted", decay=-0.5),
            r"control_variate: decay must be a number in \[0, 1\]",
        ),
        (
            lambda: ux.mean_over(ux.PES, 2),
            r"mean_over: estimator must have init.*, got the class PES\. Pass an estimator",
        ),
        (lambda: ux.mix(PES, ux.PES, weight=0.5), r"mix: second must have init.*, got the class PES\."),
        (lambda: ux.mix(PES, PES, weight=0.5, samples=4), "mix: samples and decay are for weight='inverse-variance'"),
        (lambda: ux.mix(PES, PES, samples=2), "mix: samples must be at least 3, got samples=2"),
        (
            lambda: controlled(PES, coefficient="best"),
            "coefficient must be a number or 'fitted', got coefficient='best'",
        ),
        (lambda: controlled(PES, decay=0.5), "control_variate: samples and decay are for coefficient='fitted', got"),
        (lambda: controlled(PES, coefficient="fitted", samples=1), "control_variate: samples must be at least 3"),
    ],
)
def test_what_cannot_be_combined_is_refused(make, message):
    with pytest.raises(ux.InvalidArgument, match=message):
        make()
