"""Watching an estimator: its halves are the whole in distribution, and what they say is right."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax import testing
from unrollax._count import count_marks
from unrollax._kit import HORIZON, WINDOW, WINDOWS, analytic, marked, quadratic, signs, some_data, start, vector

KEY = jax.random.key(6)
TIME = {"window": WINDOW, "horizon": HORIZON}
close = partial(np.testing.assert_allclose, rtol=1e-12)
equal = np.testing.assert_array_equal

A = np.array([[1.0, 0.4, 0.0], [0.4, 2.0, -0.3], [0.0, -0.3, 0.5]])
THETA = np.array([0.3, -1.0, 0.7])
SLOPE = A @ THETA  # of the loss below


def bowl_step(params, state, x, key):
    """One step, with a quadratic loss: a pair's estimate is then exactly z <z, slope>."""
    theta = jnp.concatenate([params["a"], params["b"][None]])
    return state, 0.5 * theta @ A @ theta


bowl = ux.system(init=lambda key, params: (), step=bowl_step)
BOWL = {"a": jnp.array(THETA[:2]), "b": jnp.array(THETA[2])}


def net_step(params, state, x, key):
    state = jnp.tanh(0.6 * state + params["a"][0] * x + jnp.array([1.0, -0.5]) * params["b"][0, 0])
    return state, (state**2).sum() + params["a"][0] * state[0]


net = ux.system(init=lambda key, params: jnp.array([0.3, -0.2]) + params["a"][0], step=net_step)


def run(estimator, params, data=None, calls=1, key=KEY):
    """The estimates of some calls."""
    state, call, seen = estimator.init(key, params), jax.jit(estimator.estimate), []
    for _ in range(calls):
        state, got = call(params, state, data)
        seen.append(got)
    return seen


def over_keys(estimator, params, count):
    one = lambda key: estimator.estimate(params, estimator.init(key, params), None)[1]
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, count)))


def z_of(samples, expected):
    return abs((samples.mean() - expected) / (samples.std() / np.sqrt(len(samples))))


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "pairs"),
    [
        (lambda: ux.ES(bowl, std=0.1, window=1, horizon=1, pairs=8), 8),
        pytest.param(lambda: ux.ForwardGradient(bowl, window=1, horizon=1, directions=8), 8, marks=pytest.mark.slow),
        pytest.param(
            lambda: ux.mean_over(ux.PES(bowl, std=0.1, window=1, horizon=1, pairs=3), 2), 6, marks=pytest.mark.slow
        ),
    ],
    ids=["ES", "ForwardGradient", "mean_over"],
)
def test_noise_and_signal_are_those_of_the_analytic_covariance(make, pairs):
    """z <z, g> with normal z has mean g and covariance |g|^2 I + g g^T. 4,000 draws, |z| < 4 for each of five."""
    got = over_keys(ux.watch(make()), BOWL, 4000)
    trace, square = (len(SLOPE) + 1) * (SLOPE**2).sum() / pairs, (SLOPE**2).sum()
    assert z_of(got.info.noise, trace) < 4
    assert z_of(got.info.signal, square) < 4
    grads = np.concatenate([got.grad["a"], got.grad["b"][:, None]], 1)
    assert z_of(((grads - SLOPE) ** 2).sum(1), trace) < 4, "the watched estimate has another variance than the whole"
    assert all(z_of(grads[:, i], SLOPE[i]) < 4 for i in range(3))
    close(got.info.mean().noise_scale, got.info.noise.mean() / got.info.signal.mean())


@ux.value
class Loud:
    """`bowl` with its losses times a number."""

    scale: float

    def init(self, key, params):
        return ()

    def step(self, params, state, x, key):
        return state, self.scale * bowl_step(params, state, x, key)[1]


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_the_square_of_the_gradient_is_noise_and_signal_and_the_sum_over_leaves(scale):
    """Also for losses whose gradients have squares that no float64 holds: then only norms and cosine can be told."""

    def measure(scale):
        watched = ux.watch(ux.PES(Loud(scale), std=0.1, window=1, horizon=2, pairs=4))
        return ux.fit(watched, optax.sgd(0.0), BOWL, None, key=KEY, steps=6).metrics

    got, plain = measure(scale), measure(1.0)
    close(got.info.cosine, plain.info.cosine, rtol=1e-10)
    close(got.info.leaves["a"], scale * plain.info.leaves["a"], rtol=1e-10)
    norms = np.hypot(got.info.leaves["a"], got.info.leaves["b"])
    close(norms, scale * plain.grad_norm, rtol=1e-10)
    if scale == 1.0:
        close(norms, got.grad_norm)
        close(got.info.noise + got.info.signal, got.grad_norm**2)


def test_halves_without_noise_agree():
    exact = ux.mean_over(ux.BPTT(net, 4), 2)
    (got,) = run(ux.watch(exact), start(), jnp.arange(4.0))
    close(got.info.cosine, 1)
    assert got.info.noise == 0
    assert got.info.noise_scale == 0
    close(got.info.signal, (vector(got.grad) ** 2).sum())
    silent = ux.system(init=net.init, step=lambda p, s, x, k: (s, 0 * p["a"][0]))
    (got,) = run(ux.watch(ux.mean_over(ux.BPTT(silent, 4), 2)), start(), jnp.arange(4.0))
    assert np.isnan(got.info.cosine)
    assert got.info.noise == got.info.signal == 0


def test_a_signal_that_drowns_has_an_infinite_noise_scale():
    nothing = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, p @ jax.random.normal(key, (4,))))
    got = over_keys(ux.watch(ux.mean_over(ux.BPTT(nothing, 1), 2)), jnp.ones(4), 50).info
    equal(got.noise_scale, np.where(got.signal > 0, got.noise / got.signal, np.inf))
    assert 0 < np.isinf(got.noise_scale).sum() < 50


def test_it_prints_its_means_and_gives_plain_numbers():
    watched = ux.watch(ux.NRES(bowl, std=0.1, window=1, horizon=2, pairs=4))
    info = ux.fit(watched, optax.sgd(0.01), BOWL, None, key=KEY, steps=5).metrics.info
    told = info.to_dict()
    assert told["leaves"] == {"a": float(info.leaves["a"].mean()), "b": float(info.leaves["b"].mean())}
    assert told["noise_scale"] == info.noise.mean() / info.signal.mean()
    text = str(info)
    assert "means over 5 updates" in text
    assert f"{told['noise']:.4g}" in text
    assert f"a  {told['leaves']['a']:.4g}" in text
    (one,) = run(watched, BOWL)
    assert "one update" in str(one.info)
    assert one.info.mean() is one.info


# --- the estimate is that of the whole ------------------------------------------------------------------------------

SIGNS = {
    "PES": lambda noise: ux.PES(quadratic(), **TIME, **noise),
    "NRES": lambda noise: ux.NRES(quadratic(), **TIME, **noise),
    "ES": lambda noise: ux.ES(quadratic(), **TIME, **noise),
    "ForwardGradient": lambda noise: ux.ForwardGradient(
        quadratic(), **TIME, directions=noise["pairs"], sampler=noise["sampler"]
    ),
}


@pytest.mark.parametrize(
    "name", ["PES", "ForwardGradient", *(pytest.param(name, marks=pytest.mark.slow) for name in ("NRES", "ES"))]
)
def test_over_all_sign_patterns_the_mean_is_exact(name):
    """Each half is dealt all 64, in two episodes on end."""
    data = some_data(WINDOWS)
    expected = analytic(quadratic(), WINDOW if name == "ES" else None, data)
    make = lambda index: ux.watch(
        SIGNS[name]({"std": 0.1, "pairs": 2 * 64, "sampler": testing.deal(signs(index, WINDOWS)), "chunk": None})
    )
    state = make(0).init(KEY, start())
    for _ in range(2):
        grads = []
        for index in range(WINDOWS):
            state, got = make(index).estimate(start(), state, data[index * WINDOW : (index + 1) * WINDOW])
            grads.append(vector(got.grad))
        close(np.mean(grads, 0), expected, rtol=1e-9, atol=1e-9)


def watched_pes(system, **time):
    return ux.watch(ux.PES(system, std=0.1, pairs=4, **time))


@pytest.mark.parametrize(
    "check",
    [
        testing.check_state_is_a_fixed_point,
        testing.check_traces_once,
        testing.check_keys_advance,
        testing.check_common_random_numbers,
        testing.check_cost_is_documented,
    ],
)
def test_conformance(check):
    check(watched_pes)


@pytest.mark.slow
@testing.parametrize_with_checks(
    {
        "PES": watched_pes,
        "NRES": lambda system, **time: ux.watch(ux.NRES(system, std=0.1, pairs=4, **time)),
        "ES": lambda system, **time: ux.watch(ux.ES(system, std=0.1, pairs=4, **time)),
        "PES-analytic": lambda system, **time: ux.watch(ux.PES(system, std=0.1, pairs=4, control="analytic", **time)),
        "ForwardGradient": lambda system, **time: ux.watch(ux.ForwardGradient(system, directions=2, **time)),
        "UORO": lambda system, **time: ux.watch(ux.UORO(system, directions=2, **time)),
        "mean_over": lambda system, **time: ux.watch(ux.mean_over(ux.ForwardGradient(system, **time), 4)),
        "BPTT": lambda system, *, window, horizon: ux.watch(ux.BPTT(system, horizon)),
        "norms-only": lambda system, **time: ux.watch(ux.PES(system, std=0.1, pairs=4, **time), halves=False),
    }
)
def test_conformance_of_all(check):
    check()


@pytest.mark.parametrize("name", ["PES", pytest.param("mean_over", marks=pytest.mark.slow)])
def test_halves_at_once_are_those_one_after_the_other(name, monkeypatch):
    """On a CPU they run in turn, elsewhere as one."""
    estimator = ux.PES(net, std=0.1, window=2, horizon=6, pairs=4)
    watched = ux.watch(estimator if name == "PES" else ux.mean_over(estimator, 2))
    got = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        got.append(run(watched, start(), jnp.arange(2.0), 3))
    jax.tree.map(partial(close, rtol=1e-9, atol=1e-12), *got)
    close(got[0][-1].info.cosine, got[1][-1].info.cosine, rtol=1e-9)


def test_staggered_clocks_are_those_of_the_whole():
    whole = ux.NRES(quadratic(), std=0.1, window=2, horizon=14, pairs=6, stagger=True)
    watched = ux.watch(whole)
    state, halves, data = whole.init(KEY, start()), watched.init(KEY, start()), some_data(1)
    advance = [jax.jit(lambda state, each=each: each.estimate(start(), state, data)[0]) for each in (whole, watched)]
    for _ in range(8):
        assert sorted([*halves.first.left, *halves.second.left]) == sorted(state.left)
        assert sorted(halves.first.left) != sorted(halves.second.left)
        state, halves = advance[0](state), advance[1](halves)


BATCH = ux.batched(net, 6)
BATCHED = {
    "BPTT": (ux.BPTT(BATCH, 4), 1),
    "BPTT-bytes": (ux.BPTT(BATCH, 4, memory=6000), 1),
    "TBPTT": (ux.TBPTT(BATCH, 4, 8), 3),
    "TBPTT-overlap": (ux.TBPTT(BATCH, 4, 12, overlap=3, x=jnp.zeros(6)), 3),
    "RTRL": (ux.RTRL(BATCH, 4, 8), 3),
}


FAST = [("BPTT-bytes", False), ("TBPTT", True)]
OTHERS = [(name, repeated) for name in BATCHED for repeated in (False, True) if (name, repeated) not in FAST]


@pytest.mark.parametrize(
    ("name", "repeated"), [*FAST, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
def test_halves_of_the_examples_are_batches_of_half_the_size(name, repeated):
    """The system has no randomness: the watched gradient is the plain one, and each half that of its own examples."""
    estimator, calls = BATCHED[name]
    rows = jnp.asarray(np.random.default_rng(3).normal(size=6 if repeated else (4, 6)))
    data = ux.repeat(rows) if repeated else rows
    watched = ux.watch(estimator)
    assert watched.halved == "examples"
    state = watched.init(KEY, start())
    if name.startswith("TBPTT"):
        assert state.first.inner.shape == state.second.inner.shape == (3, 2)
    got, plain = run(watched, start(), data, calls), run(estimator, start(), data, calls)
    options = {"x": jnp.zeros(3)} if name == "TBPTT-overlap" else {}
    half = replace(estimator, system=ux.batched(net, 3), **options)
    parts = [jax.tree.map(lambda leaf, at=at: leaf[..., at], data) for at in (slice(3), slice(3, 6))]
    one, two = ([vector(each.grad) for each in run(half, start(), part, calls)] for part in parts)
    for call in range(calls):
        close(vector(got[call].grad), vector(plain[call].grad), rtol=1e-11)
        close(got[call].loss, plain[call].loss)
        a, b = np.asarray(one[call]), np.asarray(two[call])
        close(got[call].info.cosine, a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        close(got[call].info.noise, ((a - b) ** 2).sum() / 4, rtol=1e-9)


def test_examples_are_not_stepped_more_often():
    data = jnp.asarray(np.random.default_rng(0).normal(size=(HORIZON, 4, 3)))
    plain = ux.BPTT(ux.batched(marked(), 4), HORIZON)
    counts = [count_marks(each.estimate, start(), each.init(KEY, start()), data) for each in (plain, ux.watch(plain))]
    assert counts[0] == counts[1]
    assert counts[0]["forward"] == counts[0]["vjp"] == 4 * HORIZON
    assert ux.watch(plain).traits == replace_cost(plain.traits)


def replace_cost(traits):
    """The inner costs as a combinator of one part writes them."""
    forward = traits.cost.forward.replace("memory", "estimator.memory")
    return traits._replace(cost=ux.Cost(*(f"1 * (({text}))" for text in (forward, "0", "1"))))


def test_data_without_an_axis_of_examples_are_named():
    watched = ux.watch(ux.BPTT(ux.batched(net, 4), 3))
    with pytest.raises(ux.StructureError, match=r"watch: data leaf \['a'\] must have 4 examples on axis 1, got"):
        watched.estimate(start(), watched.init(KEY, start()), {"a": jnp.zeros(3)})
    with pytest.raises(ux.StructureError, match=r"data leaf \(root\) must have 4 examples on axis 0, got float64\[5\]"):
        watched.estimate(start(), watched.init(KEY, start()), ux.repeat(jnp.zeros(5)))


WHOLE = {
    "odd": ux.PES(bowl, std=0.1, window=1, pairs=3),
    "shaped": ux.PES(bowl, std=0.1, window=1, pairs=4, shaping="rank"),
    "guided": ux.GuidedES(bowl, std=0.1, window=1, pairs=4),
    "one": ux.BPTT(bowl, 2),
    "odd batch": ux.TBPTT(ux.batched(bowl, 3), 2),
    "mix": ux.mix(ux.BPTT(bowl, 2), ux.BPTT(bowl, 2), weight=0.5),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_has_no_halves(name):
    assert ux.watch(WHOLE[name]).halved is None


@pytest.mark.parametrize("name", ["odd", "one"])
def test_what_has_no_halves_is_run_as_it_is(name):
    watched = ux.watch(WHOLE[name])
    (got,), (plain,) = run(watched, BOWL), run(WHOLE[name], BOWL)
    jax.tree.map(equal, (got.loss, got.grad, got.info.info), (plain.loss, plain.grad, plain.info))
    close(got.info.leaves["a"], np.linalg.norm(plain.grad["a"]))
    assert all(np.isnan(leaf) for leaf in got.info[3:])
    assert got.info.nonfinite == 0


def test_without_halves_that_is_said_and_a_gradient_that_is_no_number_is_not_taken_for_it():
    (got,) = run(ux.watch(WHOLE["one"]), BOWL)
    assert str(got.info).startswith("no halves: nothing is known of the noise. They take an even number of pairs")
    assert "gradient norm by leaf\n  a  " in str(got.info)
    assert "nan" not in str(got.info)
    (bad,) = run(
        ux.watch(ux.NRES(bowl, std=0.1, window=1, horizon=2, pairs=4)), jax.tree.map(lambda x: x * jnp.nan, BOWL)
    )
    assert str(bad.info).startswith("cosine of the halves nan")


def test_a_learned_width_and_norms_only_have_no_halves():
    learned = ux.watch(ux.PES(bowl, std=None, window=1, pairs=4))
    assert learned.halved is None
    (got,) = run(learned, ux.Gaussian(BOWL, jnp.log(0.1)))
    assert got.info.leaves.log_std.shape == ()
    assert ux.watch(ux.PES(bowl, std=0.1, window=1, pairs=4), halves=False).halved is None


# --- in a training run -----------------------------------------------------------------------------------------------


def test_a_watched_run_goes_on_from_its_state_with_the_same_bits():
    watched = ux.watch(ux.PES(net, std=0.1, window=2, horizon=6, pairs=4))
    go = partial(
        ux.fit, watched, optax.adam(0.01), start(), lambda step: 0.1 * step + jnp.arange(2.0), key=KEY, every=2
    )
    whole, first = go(steps=8), go(steps=3)
    second = go(steps=5, state=first.state)
    jax.tree.map(equal, second.state.params, whole.params)
    equal(np.concatenate([first.metrics.info.cosine, second.metrics.info.cosine]), whole.metrics.info.cosine)
    assert whole.metrics.info.info.nonfinite.shape == (8, 2)


def test_divergence_still_names_the_share_of_bad_trajectories():
    wild = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (s, jnp.log(p)))
    watched = ux.watch(ux.ES(wild, std=1.0, window=1, pairs=4))
    with pytest.raises(ux.Diverged, match="% of the trajectories non-finite") as caught:
        ux.fit(watched, optax.sgd(0.1), 0.1, None, key=KEY, steps=20)
    assert 0 < caught.value.nonfinite < 1


def test_it_passes_on_what_the_estimator_says_of_itself():
    watched = ux.watch(ux.PES(net, std=0.1, window=2, horizon=6, pairs=4))
    assert (watched.window, watched.horizon, watched.halved) == (2, 6, "pairs")
    assert watched.system is net
    assert (watched.traits.target, watched.traits.needs) == ("smoothed", "forward")
    assert isinstance(watched, ux.GradientEstimator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ux.watch(net), "watch: estimator must have init"),
        (lambda: ux.watch(ux.BPTT(net, 2), halves="pairs"), "watch: halves must be one of True, False"),
        (lambda: ux.watch(ux.BPTT), "got the class BPTT"),
    ],
)
def test_what_can_not_be_watched_is_refused(make, message):
    with pytest.raises(ux.InvalidArgument, match=message):
        make()
