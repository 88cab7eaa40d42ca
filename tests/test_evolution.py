import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.estimators import _chunks
from unrollax.testing import deal

KEY = jax.random.key(6)
MEMBERS = [ux.ES, ux.PES, ux.NRES]
members = pytest.mark.parametrize("make", MEMBERS)
STD = 0.2


def step(params, state, x, key):
    state = jnp.tanh(params[0] * state + x)
    return state, (state - params[1]) ** 2


net = ux.system(init=lambda key, params: 0.5 * params[1], step=step)
counter = ux.system(init=lambda key, params: 0, step=lambda params, state, x, key: (state + 1, 0.0 * params))
THETA = np.array([0.7, -0.4])


@jax.jit
def estimate(estimator, table, params, state, data):
    """One window of an estimator that draws from a table of noise in units of std, `[pairs, ...]`."""
    return replace(estimator, sampler=deal(table.reshape(len(table), -1))).estimate(params, state, data)


def in_numpy(s, theta, rows):
    total = 0.0
    for x in rows:
        s = np.tanh(theta[0] * s + x)
        total += (s - theta[1]) ** 2
    return s, total / len(rows)


def literal(make, windows, units, offsets):
    """Every pair on its own; pair i resets in the windows that `offsets[i]` shifts, with its perturbed parameters."""
    grads, count, pairs = [], len(windows), len(offsets)
    s, shared, kept = np.zeros((pairs, 2)), np.zeros(pairs), np.zeros((pairs, 2))
    for index, rows in enumerate(windows):
        grad = np.zeros(2)
        for i in range(pairs):
            z = units[index, i]
            reset = index == 0 or (index + offsets[i]) % (count // 2) == 0
            if make is ux.NRES and not reset:
                z = kept[i]
            credit = kept[i] + z if make is ux.PES and not reset else z
            losses = []
            for twin, sign in enumerate((1, -1)):
                theta = THETA + sign * STD * z
                begin = 0.5 * theta[1] if reset else shared[i] if make is ux.ES else s[i, twin]
                s[i, twin], loss = in_numpy(begin, theta, rows)
                losses.append(loss)
            shared[i], _ = in_numpy(0.5 * THETA[1] if reset else shared[i], THETA, rows)
            grad += credit * (losses[0] - losses[1]) / (2 * STD * pairs)
            kept[i] = credit
        grads.append(grad)
    return grads


@members
@pytest.mark.parametrize(("pairs", "stagger"), [(3, False), (4, True), (3, True), (6, True)])
def test_a_member_is_a_loop_over_pairs_and_twins(make, pairs, stagger):
    rng = np.random.default_rng(pairs)
    windows, units = rng.normal(size=(8, 2)), rng.normal(size=(8, pairs, 2))
    offsets = [i * 4 // pairs if stagger else 0 for i in range(pairs)]
    estimator = make(net, std=STD, window=2, horizon=8, pairs=pairs, stagger=stagger)
    state = estimator.init(KEY, THETA)
    for rows, table, grad in zip(windows, units, literal(make, windows, units, offsets), strict=True):
        state, got = estimate(estimator, table, THETA, state, rows)
        np.testing.assert_allclose(got.grad, grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stagger", [False, True])
def test_es_single_is_nres_to_the_bit(stagger):
    runs = []
    for make in (ux.NRES, ux.ESSingle):
        estimator = make(net, std=STD, window=1, horizon=2, pairs=3, stagger=stagger)
        scan = jax.jit(lambda s, rows, e=estimator: jax.lax.scan(lambda s, x: e.estimate(THETA, s, x), s, rows))
        state, estimates = scan(estimator.init(KEY, THETA), jnp.linspace(-1, 1, 5)[:, None])
        runs.append((state.inner, state.noise, estimates))
    jax.tree.map(np.testing.assert_array_equal, *runs)


@members
@pytest.mark.parametrize(("pairs", "windows"), [(4, 4), (3, 5), (2, 7), (5, 3)])
def test_staggered_pairs_reset_once_a_horizon_each_in_its_own_window(make, pairs, windows):
    estimator = make(counter, std=STD, window=2, horizon=2 * windows, pairs=pairs, stagger=True)
    run = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: (estimator.estimate(1.0, s, None)[0],) * 2, s, length=3 * windows)
    )
    _, states = run(estimator.init(KEY, 1.0))
    lived = np.asarray(
        states.inner if make is ux.ES else states.inner[..., 0]
    )  # steps since the reset, [windows, pairs]
    resets = lived == 2
    assert resets[0].all()
    firsts = [int(np.flatnonzero(column)[1]) for column in resets.T]
    assert firsts == [windows - i * windows // pairs for i in range(pairs)]
    for i, first in enumerate(firsts):
        expected = [0, *range(first, 3 * windows, windows)]
        np.testing.assert_array_equal(np.flatnonzero(resets[:, i]), expected)
    if pairs <= windows:
        assert len(set(firsts)) == pairs
    if make is not ux.ES:
        np.testing.assert_array_equal(states.inner[..., 0], states.inner[..., 1])


def test_without_staggering_all_pairs_reset_together():
    estimator = ux.PES(counter, std=STD, window=1, horizon=3, pairs=4)
    scan = jax.jit(lambda s: jax.lax.scan(lambda s, _: (estimator.estimate(1.0, s, None)[0],) * 2, s, length=7))
    lived = scan(estimator.init(KEY, 1.0))[1].inner
    np.testing.assert_array_equal(lived, np.broadcast_to(np.array([1, 2, 3, 1, 2, 3, 1])[:, None, None], (7, 4, 2)))


@pytest.mark.parametrize(("stagger", "count"), [(False, 1), (True, 4)])
def test_es_keeps_one_trajectory_or_one_a_pair(stagger, count):
    random = ux.system(init=lambda key, p: jax.random.normal(key, ()), step=lambda p, s, x, key: (s, p * s))
    estimator = ux.ES(random, std=STD, window=1, horizon=4, pairs=4, stagger=stagger)
    state, _ = jax.jit(estimator.estimate)(1.0, estimator.init(KEY, 1.0), None)
    assert state.inner.shape == state.left.shape == (count,)
    assert len(np.unique(state.inner)) == count
    assert state.noise is None


@pytest.mark.parametrize("make", [ux.PES, ux.NRES])
def test_both_twins_of_a_pair_start_from_the_same_random_state_and_pairs_do_not(make):
    random = ux.system(init=lambda key, p: jax.random.normal(key, ()), step=lambda p, s, x, key: (s, p * s))
    estimator = make(random, std=STD, window=1, horizon=4, pairs=4)
    state, _ = jax.jit(estimator.estimate)(1.0, estimator.init(KEY, 1.0), None)
    np.testing.assert_array_equal(state.inner[:, 0], state.inner[:, 1])
    assert len(np.unique(state.inner)) == 4


def quadratic_step(params, state, x, key):
    """The loss is a quadratic of all parameters at all times: a central difference of it is exact."""
    state = state + x["u"] * params
    return state, x["weight"] * (state.sum() + state[0] - x["y"]) ** 2


quadratic = ux.system(init=lambda key, params: 2 * params[::-1], step=quadratic_step)


def all_signs(make, count, size):
    """Every sign that a pair can draw over `count` windows: `[windows, pairs, size]`."""
    draws = 1 if make is ux.NRES else count
    table = np.array(list(itertools.product([1.0, -1.0], repeat=draws * size))).reshape(-1, draws, size)
    return np.moveaxis(
        np.broadcast_to(table[:, np.zeros(count, int)] if draws == 1 else table, (len(table), count, size)), 1, 0
    )


@members
@pytest.mark.parametrize("weight", [[1, 1, 1], [0, 0, 1]])
@pytest.mark.parametrize("window", [1, 3])
def test_the_mean_over_all_signs_is_the_gradient_by_backpropagation(make, weight, window):
    """That of the whole episode for PES and NRES; ES sees its windows only, as TBPTT does."""
    data = {"u": jnp.array([0.5, -1.0, 2.0]), "y": jnp.array([1.0, -2.0, 0.5]), "weight": jnp.array(weight, float)}
    count = 3 // window
    signs = all_signs(make, count, 2)
    estimator = make(quadratic, std=0.3, window=window, horizon=3, pairs=signs.shape[1])
    reference = ux.TBPTT(quadratic, window=window if make is ux.ES else 3, horizon=3)
    state, grads = estimator.init(KEY, THETA), []
    for _ in range(2):  # two episodes
        for index in range(count):
            rows = jax.tree.map(lambda leaf, i=index: leaf[i * window : (i + 1) * window], data)
            state, got = estimate(estimator, signs[index], THETA, state, rows)
            grads.append(got.grad)
    run, expected, after = jax.jit(reference.estimate), [], reference.init(KEY, THETA)
    for rows in zip(*[jnp.split(leaf, 3 // reference.window) for leaf in data.values()], strict=True):
        after, got = run(THETA, after, dict(zip(data, rows, strict=True)))
        expected.append(got.grad)
    for episode in (grads[:count], grads[count:]):
        np.testing.assert_allclose(np.mean(episode, axis=0), np.mean(expected, axis=0), rtol=1e-11)


@members
def test_estimates_are_mapped_over_std(make):
    stds, rows = jnp.array([0.01, 0.1, 1.0]), jnp.array([0.5, -0.5])
    one = make(net, std=0.1, window=2, pairs=3)
    state = one.init(KEY, THETA)
    run = lambda estimator: estimator.estimate(THETA, state, rows)[1]
    mapped = jax.jit(jax.vmap(run, (replace(one, system=None, std=0),)))(replace(one, std=stds))
    single = jax.jit(run)
    for i, std in enumerate(stds):
        np.testing.assert_allclose(mapped.grad[i], single(replace(one, std=std)).grad, rtol=1e-11)
    assert np.ptp(mapped.loss) > 1e-3


@members
def test_the_share_of_particles_that_leave_the_domain_is_reported(make):
    wild = ux.system(init=lambda key, params: 0.0, step=lambda p, s, x, key: (s, jnp.log(p)))
    signs = np.array([0.5, 0.1, -0.2, 2.0])  # of eight particles only 1 - 2 leaves the domain of the logarithm
    _, got = estimate(
        make(wild, std=1.0, window=1, pairs=4), signs, 1.0, make(wild, 1.0, 1, pairs=4).init(KEY, 1.0), None
    )
    assert got.info.nonfinite == 1 / 8
    assert jnp.isnan(got.grad)


def test_noise_is_drawn_once_a_pair_for_all_leaves_in_the_widest_dtype():
    calls = []

    def sampler(key, shape, dtype):
        calls.append((shape, jnp.dtype(dtype)))
        return jax.random.normal(key, shape, dtype)

    params = {"a": jnp.ones((2, 3), jnp.float32), "b": jnp.ones((2, 3), jnp.float32), "c": jnp.ones(())}
    flat = ux.system(init=lambda key, p: 0.0, step=lambda p, s, x, key: (s, sum(leaf.sum() for leaf in p.values())))
    estimator = ux.NRES(flat, std=0.1, window=1, pairs=5, sampler=sampler)
    state, got = jax.jit(estimator.estimate)(params, estimator.init(KEY, params), None)
    assert set(calls) == {((13,), jnp.dtype("float64"))}
    assert len(np.unique(state.noise)) == 5 * 13
    units = np.asarray(state.noise)
    expected = units.sum(1) @ units / 5
    got_vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(got.grad)])
    np.testing.assert_allclose(got_vector, expected, rtol=1e-5, atol=2e-5)
    assert jax.tree.map(jnp.result_type, got.grad) == jax.tree.map(jnp.result_type, params)


@members
def test_noise_is_kept_as_long_as_the_rule_says(make):
    estimator = make(counter, std=STD, window=1, horizon=3, pairs=2, stagger=True)
    scan = jax.jit(lambda s: jax.lax.scan(lambda s, _: (estimator.estimate(1.0, s, None)[0],) * 2, s, length=6))
    states = scan(estimator.init(KEY, 1.0))[1]
    if make is ux.ES:
        assert states.noise is None
        return
    changed = np.diff(states.noise[..., 0], axis=0) != 0  # between windows, [5, pairs]
    own_resets = np.array([[False, False], [False, True], [True, False], [False, False], [False, True]])
    np.testing.assert_array_equal(changed, np.ones((5, 2)) if make is ux.PES else own_resets)


@members
@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_pairs_give_the_same_estimate_in_chunks_of_any_size(make, chunk):
    whole = make(net, STD, 3, 6, pairs=5, chunk=5)
    data = jax.random.normal(KEY, (3,))
    state, expected = whole.estimate(THETA, whole.init(KEY, THETA), data)
    got = replace(whole, chunk=chunk).estimate(THETA, whole.init(KEY, THETA), data)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), got[1], expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), got[0].inner, state.inner)


def test_the_chunk_of_a_cpu_is_what_its_cache_holds(monkeypatch):
    pair = {"w": jnp.zeros((2, 1024)), "key": jax.random.split(KEY, 2)}  # 8 KiB and a key for each twin
    assert _chunks.pairs_in_cache(pair) == 2**20 // (2 * (8192 + 8))
    assert _chunks.pairs_in_cache({"w": jnp.zeros((2, 2**20))}) == _chunks.FEWEST
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _chunks.pairs_in_cache(pair) > 64


def test_a_chunk_is_a_positive_number():
    with pytest.raises(ux.InvalidArgument, match="PES: chunk must be a positive whole number, got chunk=0"):
        ux.PES(net, STD, 3, 6, chunk=0)


def test_windows_without_a_reset_do_not_run_init():
    runs = []

    def init(key, params):
        jax.debug.callback(lambda: runs.append(1))
        return jnp.zeros(())

    for make in MEMBERS:
        es = make(ux.system(init=init, step=step), STD, 2, 6, pairs=2)
        state = es.init(KEY, THETA)
        counts = []
        for _ in range(4):
            jax.effects_barrier()
            runs.clear()
            state, _estimate = jax.jit(es.estimate)(THETA, state, jnp.ones(2))
            jax.effects_barrier()
            counts.append(bool(runs))
        assert counts == [True, False, False, True]


@pytest.mark.parametrize("std", [0.0, -0.1, "0.1", np.inf, np.nan, np.float32(0), np.int64(-1)])
def test_a_std_that_is_no_positive_number_is_refused(std):
    with pytest.raises(ux.InvalidArgument, match="PES: std must be a positive number, got std="):
        ux.PES(net, std, 3, 6)


@members
@pytest.mark.parametrize("std", [0, -1, True, np.array(-0.1), jnp.zeros(()), jnp.array(True), object(), 1j])
def test_a_std_that_may_have_been_an_axis_is_refused_where_it_is_used(make, std):
    says = f"{make.__name__}: std must be a positive number, got std="
    with pytest.raises(ux.InvalidArgument, match=says):
        make(net, std, 3, 6).init(KEY, THETA)
    state = jax.eval_shape(make(net, STD, 3, 6).init, KEY, THETA)
    with pytest.raises(ux.InvalidArgument, match=says):
        make(net, std, 3, 6).estimate(THETA, state, jnp.ones(3))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
@members
def test_noise_depends_on_no_batch_whatever_the_keys_are(make, impl):
    """Under `vmap`, bits of these keys depend on all keys of the batch, and so would noise on `chunk` and on ages."""
    one = make(net, STD, 2, 6, pairs=6, stagger=True)
    runs = []
    for estimator in (one, replace(one, noise="regenerated"), replace(one, chunk=2)):
        scan = lambda s, x, e=estimator: jax.lax.scan(lambda s, x: e.estimate(THETA, s, x), s, x)[1]
        runs.append(jax.jit(scan)(estimator.init(jax.random.key(1, impl=impl), THETA), jnp.ones((7, 2))))
    for other in runs[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), other, runs[0])


@members
def test_twins_share_the_chance_of_a_system_whatever_the_keys_are(make):
    def noisy(params, state, x, key):
        return state, jax.random.normal(key)

    walk = ux.system(init=lambda key, params: jax.random.normal(key), step=noisy)
    estimator = make(walk, STD, 2, 6, pairs=4)
    key = jax.random.key(1, impl="rbg")
    np.testing.assert_array_equal(estimator.estimate(THETA, estimator.init(key, THETA), None)[1].grad, 0)
