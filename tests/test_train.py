from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax.testing import deal

KEY = jax.random.key(3)
PARAMS = {"w": jnp.array([0.4, -0.2]), "b": jnp.array(0.1)}
ADAM = optax.adam(1e-2)
TRACES = []


def step(params, state, x, key):
    TRACES.append(1)
    h = jnp.tanh(params["w"] * state + x["u"] + 0.1 * jax.random.normal(key, (2,)))
    return h, ((h - params["b"]) ** 2).sum()


net = ux.system(init=lambda key, params: jax.random.normal(key, (2,)), step=step)
pes = ux.PES(net, std=0.1, window=2, horizon=6, pairs=3)
tbptt = ux.TBPTT(net, window=2, horizon=6)


def waves(number):
    return {"u": jnp.sin(2.0 * number + jnp.arange(2.0))}


def windows(count, start=0):
    return [jax.tree.map(np.asarray, waves(number)) for number in range(start, start + count)]


run = partial(ux.fit, key=KEY, every=3)


def same_bits(a, b):
    """Whole results of `fit`, keys included."""
    plain = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(plain(x), plain(y)), a, b)


@pytest.mark.parametrize("estimator", [pes, tbptt])
def test_fit_is_a_python_loop_over_updates(estimator):
    params, state, optimizer = PARAMS, estimator.init(KEY, PARAMS), ADAM.init(PARAMS)
    estimate, losses, norms = jax.jit(estimator.estimate), [], []
    for number in range(7):
        state, (loss, grad, _) = estimate(params, state, waves(number))
        updates, optimizer = ADAM.update(grad, optimizer, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
        norms.append(np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(grad))))
    result = run(estimator, ADAM, PARAMS, waves, steps=7)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), result.params, params)
    np.testing.assert_allclose(result.metrics.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(result.metrics.grad_norm, norms, rtol=1e-11)
    assert result.state.step == 7


@pytest.mark.parametrize("every", [1, 4, 100])
def test_the_result_does_not_depend_on_the_size_of_a_block(every):
    reference = run(pes, ADAM, PARAMS, waves, steps=7)
    same_bits(run(pes, ADAM, PARAMS, waves, steps=7, every=every), reference)
    same_bits(run(pes, ADAM, PARAMS, windows(7), steps=7, every=every), reference)


@pytest.mark.parametrize("estimator", [pes, tbptt])
def test_a_run_that_is_continued_gives_the_bits_of_a_longer_one(estimator):
    whole = run(estimator, ADAM, PARAMS, waves, steps=10)
    first = run(estimator, ADAM, PARAMS, waves, steps=4)
    rest = run(estimator, ADAM, None, waves, steps=6, state=first.state)
    same_bits(rest.state, whole.state)
    same_bits(rest.metrics, jax.tree.map(lambda leaf: leaf[4:], whole.metrics))
    same_bits(run(estimator, ADAM, None, waves, steps=6, state=first.state), rest)  # the state given is not used up


def test_an_iterator_continues_where_it_stands():
    stream = iter(windows(12))
    first = run(tbptt, ADAM, PARAMS, stream, steps=4)
    rest = run(tbptt, ADAM, None, stream, steps=6, state=first.state)
    same_bits(rest.state, run(tbptt, ADAM, PARAMS, waves, steps=10).state)
    assert len(list(stream)) == 2


@pytest.mark.parametrize("data", [lambda: np.stack([w["u"] for w in windows(4)]), lambda: (w["u"] for w in windows(9))])
def test_data_may_be_any_iterable_of_windows(data):
    bare = ux.system(init=net.init, step=lambda p, s, x, key: step(p, s, {"u": x}, key))
    expected = run(tbptt, ADAM, PARAMS, waves, steps=4).params
    same_bits(run(replace(tbptt, system=bare), ADAM, PARAMS, data(), steps=4).params, expected)


def test_the_parameters_given_can_still_be_used():
    params = jax.tree.map(jnp.array, PARAMS)
    first = run(tbptt, ADAM, params, waves, steps=4)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    same_bits(run(tbptt, ADAM, params, waves, steps=4), first)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, first.state)))


def test_observe_is_told_after_every_block():
    told, saved = [], []

    def observe(progress):
        told.append(progress)
        saved.append(jax.tree.map(np.asarray, progress.state.params))

    start = run(tbptt, ADAM, PARAMS, waves, steps=2).state
    result = run(tbptt, ADAM, None, waves, steps=7, state=start, observe=observe)
    assert [(p.step, p.end, p.done) for p in told] == [(5, 9, 3), (8, 9, 6), (9, 9, 7)]
    assert [p.metrics.loss.shape for p in told] == [(3,), (3,), (1,)]
    same_bits(jax.tree.map(lambda *parts: np.concatenate(parts), *[p.metrics for p in told]), result.metrics)
    assert 0 < told[0].seconds < told[1].seconds < told[2].seconds
    assert len({p.compile_seconds for p in told}) == 1
    assert told[0].compile_seconds > 0
    same_bits(saved[-1], result.params)
    for progress, params in zip(told, saved, strict=True):  # a copy that was kept is not overwritten by later blocks
        end = run(tbptt, ADAM, None, waves, steps=progress.done, state=start)
        same_bits(end.params, params)


def test_metrics_are_numpy_arrays_of_one_row_an_update():
    metrics = run(pes, ADAM, PARAMS, waves, steps=5).metrics
    assert jax.tree.map(lambda leaf: (type(leaf), leaf.shape), metrics) == jax.tree.map(
        lambda _: (np.ndarray, (5,)), metrics
    )
    assert metrics.finite.all()
    assert metrics.finite.dtype == bool
    np.testing.assert_array_equal(metrics.info.nonfinite, np.zeros(5))


def test_rebuilt_estimators_do_not_compile_again():
    run(replace(pes, std=0.3), ADAM, PARAMS, waves, steps=2)
    before = len(TRACES)
    losses = set()
    for std, steps, seed in [(0.1, 2, 1), (0.2, 5, 2), (0.4, 9, 3)]:
        estimator = ux.PES(net, std=std, window=2, horizon=6, pairs=3)
        losses.add(float(run(estimator, ADAM, PARAMS, waves, steps=steps, key=jax.random.key(seed)).metrics.loss[0]))
    run(pes, ADAM, PARAMS, waves, steps=4, state=run(pes, ADAM, PARAMS, waves, steps=3).state)
    assert len(TRACES) == before
    assert len(losses) == 3


def test_training_is_one_update_and_can_be_scanned():
    training = ux.Training(tbptt, ADAM)
    scan = jax.jit(lambda s: jax.lax.scan(lambda s, n: training.step(s, waves(n)), s, jnp.arange(4)))
    state, metrics = scan(training.init(KEY, PARAMS))
    expected = run(tbptt, ADAM, PARAMS, waves, steps=4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-12), (state.params, metrics), (expected.params, expected.metrics)
    )


def test_a_system_without_data_is_trained_without():
    decay = ux.system(init=lambda key, p: 1.0, step=lambda p, s, x, key: (p * s, (p * s) ** 2))
    result = ux.fit(ux.BPTT(decay, horizon=1), optax.sgd(0.25), 0.8, None, key=KEY, steps=5)  # p <- p - 0.25 * 2 p
    np.testing.assert_allclose(result.params, 0.8 / 2**5, rtol=1e-14)
    np.testing.assert_allclose(result.metrics.loss, (0.8 / 2.0 ** np.arange(5)) ** 2, rtol=1e-14)


# --- what goes wrong ----------------------------------------------------------------------------------------------------

blow_up = ux.system(init=lambda key, p: 0.0, step=lambda p, s, x, key: (s, jnp.where(x >= 5, jnp.inf, 1.0) * p))
sgd = optax.sgd(0.1)


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("done", [0, 2])
def test_divergence_names_the_step_the_loss_and_a_remedy(every, done):
    estimator = ux.TBPTT(blow_up, window=1)
    number = lambda step: step[None].astype(float)
    state = ux.fit(estimator, sgd, 1.0, number, key=KEY, steps=done).state if done else None
    told = []
    with pytest.raises(ux.Diverged) as caught:
        ux.fit(estimator, sgd, 1.0, number, key=KEY, steps=20, every=every, state=state, observe=told.append)
    assert (caught.value.step, caught.value.nonfinite) == (6, 1.0)
    assert all(p.step < 6 for p in told)
    for words in (
        "fit: parameters must stay finite, got NaN or infinity at step 6 (loss inf, gradient norm inf",
        "100 % of the trajectories non-finite",
        "Lower the learning rate",
        "optax.clip_by_global_norm",
        "unrollax.clip_loss(system, at=)",
    ):
        assert words in str(caught.value)


def test_divergence_tells_the_share_of_particles_that_were_not_finite():
    sampler = deal(jnp.array([[0.5], [0.5], [0.1], [2.0]]))  # of eight particles 1 - 2 < 0 has no logarithm
    wild = ux.system(init=lambda key, p: 0.0, step=lambda p, s, x, key: (s, jnp.log(p)))
    with pytest.raises(ux.Diverged, match=r"12\.5 % of the trajectories") as caught:
        ux.fit(ux.ES(wild, std=1.0, window=1, pairs=4, sampler=sampler), sgd, 1.0, None, key=KEY, steps=2)
    assert (caught.value.step, caught.value.nonfinite) == (1, 1 / 8)


class Quiet:
    """An estimator of another's making, which says nothing of its trajectories."""

    def init(self, key, params):
        return ()

    def estimate(self, params, state, data):
        return state, ux.Estimate(params, 0 * params + jnp.nan)


def test_divergence_of_an_estimator_without_info_tells_no_share():
    with pytest.raises(ux.Diverged, match=r"gradient norm nan\)\.") as caught:
        ux.fit(Quiet(), sgd, 1.0, None, key=KEY, steps=2)
    assert caught.value.nonfinite is None


def test_divergence_in_bfloat16_is_told_as_well():
    with pytest.raises(ux.Diverged, match=r"at step 1 \(loss 1,"):
        ux.fit(Quiet(), sgd, jnp.bfloat16(1), None, key=KEY, steps=2)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_divergence_by_bad_data_names_the_leaf(streamed, bad):
    def data(number):
        return waves(number) | {"v": jnp.where(number == 4, bad, 1.0) * jnp.ones(2), "n": jnp.zeros(2, int)}

    windows = [jax.tree.map(np.asarray, data(number)) for number in range(9)]
    sick = ux.system(init=net.init, step=lambda p, s, x, key: (s, x["v"] * p["b"] + x["u"]))
    with pytest.raises(ux.Diverged, match=r"hold NaN or infinity in \['v'\]: mend them there\.$") as caught:
        run(replace(tbptt, system=sick), sgd, PARAMS, windows if streamed else data, steps=9)
    assert caught.value.step == 5


@pytest.mark.parametrize("steps", [0, -1, True, 2.0])
@pytest.mark.parametrize("name", ["steps", "every"])
def test_a_count_that_is_no_positive_whole_number_is_named(name, steps):
    with pytest.raises(
        ux.InvalidArgument, match=rf"^fit: {name} must be a positive whole number, got {name}={steps}\."
    ):
        ux.fit(tbptt, ADAM, PARAMS, waves, key=KEY, **{"steps": 1, name: steps})


@pytest.mark.parametrize(("held", "every"), [(0, 3), (4, 3), (6, 3), (4, 100)])
def test_an_iterable_that_ends_early_is_named(held, every):
    message = rf"^fit: data must hold one window for each update, got {held} for steps=7\. Pass a longer iterable"
    with pytest.raises(ux.InvalidArgument, match=message):
        run(tbptt, ADAM, PARAMS, windows(held), steps=7, every=every)


@pytest.mark.parametrize(
    "data",
    [
        lambda number: windows(9)[number],
        lambda number: waves(number) if number > 3 else waves(0),
        lambda number: {"u": np.sin(np.asarray(number) + np.arange(2.0))},
        lambda number: {"u": jnp.arange(number, number + 2)},
    ],
)
def test_a_function_that_jax_cannot_trace_is_named(data):
    with pytest.raises(
        ux.StructureError, match=r"^fit: data\(step\) must be traceable by JAX.*pass an iterable of windows"
    ):
        run(tbptt, ADAM, PARAMS, data, steps=2)


@pytest.mark.parametrize("odd", [{"u": np.zeros(3)}, {"v": np.zeros(2)}, {"u": np.zeros(2), "v": np.zeros(2)}])
def test_windows_of_different_shapes_are_named(odd):
    message = (
        r"^fit: all windows of the data must have the same structure and shapes, got a difference: .*pad the odd window"
    )
    with pytest.raises(ux.StructureError, match=f"(?s){message}"):
        run(tbptt, ADAM, PARAMS, [*windows(2), odd], steps=3)


@pytest.mark.parametrize(
    ("data", "got"), [({"u": np.zeros(2)}, "dict"), ("text", "str"), (3, "int"), (ux.repeat(1), "Repeat")]
)
def test_data_that_are_no_windows_are_named(data, got):
    with pytest.raises(
        ux.InvalidArgument, match=rf"^fit: data must be a callable .*, got {got}\. .*lambda step: window\."
    ):
        run(tbptt, ADAM, PARAMS, data, steps=1)


@pytest.mark.parametrize(
    ("estimator", "optimizer", "message"),
    [
        (net, ADAM, r"fit: estimator must have init and estimate, got FunctionSystem\. Pass one such as"),
        (ux.PES, ADAM, r"fit: estimator must have init and estimate, got the class PES\."),
        (tbptt, 0.1, r"fit: optimizer must have init and update, got float\. Pass an optax optimizer such as"),
        (tbptt, optax.adam, r"fit: optimizer must have init and update, got function\."),
    ],
)
def test_what_is_no_estimator_or_optimizer_is_named(estimator, optimizer, message):
    with pytest.raises(ux.InvalidArgument, match=f"^{message}"):
        run(estimator, optimizer, PARAMS, waves, steps=1)


@pytest.mark.parametrize(("params", "leaf"), [({"w": 1, "b": 0.0}, r"\['w'\]"), (3, r"\(root\)")])
def test_parameters_that_cannot_be_trained_are_named(params, leaf):
    with pytest.raises(
        ux.StructureError, match=rf"^Training: params leaf {leaf} must be real floating numbers, got int64"
    ):
        run(tbptt, ADAM, params, waves, steps=1)


def test_updates_before_an_iterable_ends_are_observed():
    seen = []

    def observe(progress):
        seen.append(progress)

    with pytest.raises(ux.InvalidArgument, match="got 5 for steps=7"):
        ux.fit(tbptt, ADAM, PARAMS, windows(5), key=KEY, steps=7, every=2, observe=observe)
    assert [progress.step for progress in seen] == [2, 4]


def test_a_system_may_hold_a_size():
    @ux.value
    class Sized:
        size: int

        def init(self, key, params):
            return jnp.zeros(self.size)

        def step(self, params, state, x, key):
            state = state + params
            return state, (state**2).sum()

    run = ux.fit(ux.BPTT(Sized(3), 2), ADAM, 0.5, None, key=KEY, steps=2)
    assert run.metrics.loss.shape == (2,)


def test_what_is_no_state_to_continue_from_is_named():
    first = run(tbptt, ADAM, PARAMS, waves, steps=1)
    for state, got in ((first, r"Fit\. Pass run\.state\."), (first.params, r"dict\. Pass the state of")):
        with pytest.raises(ux.InvalidArgument, match=f"^fit: state must be a TrainState, got {got}"):
            run(tbptt, ADAM, None, waves, steps=1, state=state)


@pytest.mark.parametrize(
    ("estimator", "optimizer", "leaf"),
    [
        (pes, ADAM, r"\.estimator\.windows must be int32\[\], got nothing"),
        (tbptt, optax.sgd(0.1), r"\.optimizer\[0\]\.count must be nothing, got int32\[\]"),
        (ux.TBPTT(net, 2, 6, overlap=2, x={"u": 0.0}), ADAM, r"\.estimator\..* must be .*, got nothing"),
        (ux.mean_over(tbptt, 2), ADAM, r"\.estimator\.key must be key\[2\], got key\[\]"),
    ],
)
def test_a_state_of_something_else_is_refused_by_its_first_leaf(estimator, optimizer, leaf):
    state = run(tbptt, ADAM, PARAMS, waves, steps=1).state
    with pytest.raises(ux.StructureError, match=f"^fit: state leaf {leaf}\\. Continue with the estimator"):
        run(estimator, optimizer, None, waves, steps=1, state=state)


def test_a_state_with_the_leaves_of_another_structure_is_refused():
    state = run(tbptt, ADAM, PARAMS, waves, steps=1).state
    odd = state._replace(optimizer=(*state.optimizer, None))
    with pytest.raises(ux.StructureError, match=r"^fit: state must be PyTreeDef"):
        run(tbptt, ADAM, None, waves, steps=1, state=odd)


def test_a_state_of_numpy_arrays_or_with_keys_of_another_kind_continues():
    state = run(tbptt, ADAM, PARAMS, waves, steps=1).state
    plain = lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)
    expected = run(tbptt, ADAM, None, waves, steps=1, state=state)
    same_bits(run(tbptt, ADAM, None, waves, steps=1, state=jax.tree.map(plain, state)), expected)
    other = ux.fit(tbptt, ADAM, PARAMS, waves, key=jax.random.key(0, impl="rbg"), steps=1).state
    assert run(tbptt, ADAM, None, waves, steps=1, state=other).state.step == 2
