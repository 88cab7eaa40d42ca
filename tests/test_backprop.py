import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(4)
PARAMS = {"w": jnp.array([0.8, -0.5]), "b": jnp.array(0.3)}
DATA = jax.random.normal(jax.random.key(9), (12,))


def start(key, params):
    return params["b"] * jnp.array([1.0, 2.0])


def noisy_start(key, params):
    return start(key, params) + jax.random.normal(key, (2,))


def step(params, state, x, key):
    state = jnp.tanh(params["w"] * state + x + params["b"])
    return state, (state[0] * state[1] - x) ** 2


def noisy_step(params, state, x, key):
    return step(params, state, x + 0.1 * jax.random.normal(key, ()), key)


net = ux.system(init=start, step=step)
noisy = ux.system(init=noisy_start, step=noisy_step)
CASES = [(1, 4), (2, 6), (3, 3), (2, None)]


def windows(estimator, params, data, count, update=lambda params, grad: params):
    state, run, out = estimator.init(KEY, params), jax.jit(estimator.estimate), []
    for rows in jnp.split(data, count):
        state, estimate = run(params, state, rows)
        out.append(estimate)
        params = update(params, estimate.grad)
    return state, out


def close(a, b, rtol=1e-11):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-13), a, b)


def test_bptt_is_the_gradient_of_a_python_loop():
    def loss(params):
        state, total = start(None, params), 0.0
        for x in DATA:
            state, loss = step(params, state, x, None)
            total = total + loss
        return total / len(DATA)

    expected, grad = jax.jit(jax.value_and_grad(loss))(PARAMS)
    _, (first, second) = windows(ux.BPTT(net, horizon=12), PARAMS, jnp.tile(DATA, 2), 2)
    close(first.grad, grad)
    close(first.loss, expected)
    close(second, first, rtol=0)


@pytest.mark.parametrize(("window", "horizon"), CASES)
def test_tbptt_stops_the_gradient_between_windows(window, horizon):
    def loss(params, state, rows, reset):
        state = start(None, params) if reset else jax.lax.stop_gradient(state)
        total = 0.0
        for x in rows:
            state, loss = step(params, state, x, None)
            total = total + loss
        return total / len(rows), state

    descend = lambda params, grad: jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)
    count = len(DATA) // window
    _, estimates = windows(ux.TBPTT(net, window, horizon), PARAMS, DATA, count, descend)
    literal = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=3)
    params, state = PARAMS, jnp.zeros(2)
    for index, (rows, estimate) in enumerate(zip(jnp.split(DATA, count), estimates, strict=True)):
        reset = index * window % horizon == 0 if horizon else index == 0
        (expected, state), grad = literal(params, state, rows, reset)
        close((estimate.loss, estimate.grad), (expected, grad))
        params = descend(params, grad)


def test_tbptt_with_one_window_a_horizon_is_bptt_to_the_bit():
    runs = [windows(e, PARAMS, DATA, 3) for e in (ux.TBPTT(noisy, window=4, horizon=4), ux.BPTT(noisy, horizon=4))]
    jax.tree.map(np.testing.assert_array_equal, runs[0][1], runs[1][1])
    assert len({float(estimate.loss) for estimate in runs[0][1]}) == 3  # every episode has a start of its own


def test_windows_of_an_episode_average_to_bptt_when_nothing_crosses_them():
    forgetful = ux.system(init=start, step=lambda p, s, x, key: step(p, jnp.ones(2), x, key))
    _, parts = windows(ux.TBPTT(forgetful, window=3, horizon=12), PARAMS, DATA, 4)
    _, (whole,) = windows(ux.BPTT(forgetful, horizon=12), PARAMS, DATA, 1)
    close(jax.tree.map(lambda *leaves: sum(leaves) / 4, *[part.grad for part in parts]), whole.grad)


# --- truncation that overlaps ----------------------------------------------------------------------------------------

SPANS = [(2, 2, 6), (2, 3, 12), (4, 1, 12), (3, 7, 12), (2, 30, 6), (1, 3, None)]


def keys_of(estimator, calls):
    """The init key and step keys of every call, as `estimate` draws them."""
    key, found = jax.random.split(KEY)[0], []
    for _ in range(calls):
        key, start_key, steps = jax.random.split(key, 3)
        found.append((start_key, jax.random.split(steps, estimator.window)))
    return found


@pytest.mark.parametrize(("window", "overlap", "horizon"), SPANS)
def test_overlap_stops_the_gradient_that_many_steps_before_a_window(window, overlap, horizon):
    """By a Python loop over the episode from its start, with the state made a constant at window's start - overlap."""
    estimator = ux.TBPTT(noisy, window, horizon, overlap=overlap, x=0.0)
    calls = len(DATA) // window
    keys = keys_of(estimator, calls)

    def loss(params, index):
        first = index - index % (horizon // window) if horizon else 0
        begin, end = index * window, (index + 1) * window
        state, total = noisy_start(keys[first][0], params), 0.0
        for t in range(first * window, end):
            if t == begin - overlap and t > first * window:
                state = jax.lax.stop_gradient(state)
            state, loss = noisy_step(params, state, DATA[t], keys[t // window][1][t % window])
            total = total + (loss if t >= begin else 0.0)
        return total / window

    _, estimates = windows(estimator, PARAMS, DATA, calls)
    for index, estimate in enumerate(estimates):
        close((estimate.loss, estimate.grad), jax.value_and_grad(loss)(PARAMS, index))


@pytest.mark.parametrize(("window", "overlap", "horizon"), [(2, 3, 6), (1, 2, None), (3, 1, 6)])
def test_overlapped_steps_are_run_again_with_the_present_parameters(window, overlap, horizon):
    def loss(params, begin, end, state, reached):
        state, total, seen = start(None, params) if reached else state, 0.0, []
        for t in range(begin - overlap if not reached else begin - min(begin - episode, overlap), end):
            seen.append((t, state))
            state, loss = step(params, state, DATA[t], None)
            total = total + (loss if t >= begin else 0.0)
        return total / window, dict(seen)

    descend = lambda params, grad: jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)
    estimator = ux.TBPTT(net, window, horizon, overlap=overlap, x=0.0)
    _, estimates = windows(estimator, PARAMS, DATA, len(DATA) // window, descend)
    params, states = PARAMS, {}
    for index, estimate in enumerate(estimates):
        begin = index * window
        episode = begin - begin % horizon if horizon else 0
        reached = begin - episode <= overlap
        state = None if reached else states[begin - overlap]
        (expected, seen), grad = jax.value_and_grad(loss, has_aux=True)(params, begin, begin + window, state, reached)
        close((estimate.loss, estimate.grad), (expected, grad))
        states.update(seen)
        params = descend(params, grad)


@pytest.mark.parametrize(("window", "overlap"), [(2, 10), (3, 9), (3, 50), (6, 6)])
def test_with_overlap_back_to_the_reset_windows_average_to_bptt(window, overlap):
    _, parts = windows(ux.TBPTT(net, window, 12, overlap=overlap, x=0.0), PARAMS, DATA, 12 // window)
    _, (whole,) = windows(ux.BPTT(net, horizon=12), PARAMS, DATA, 1)
    close(jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *[part.grad for part in parts]), whole.grad)


def test_without_overlap_nothing_is_kept_or_run_again():
    state = ux.TBPTT(net, 2, 6).init(KEY, PARAMS)
    assert state.past == ()
    traced = [
        str(jax.make_jaxpr(partial(ux.TBPTT(net, 2, 6, **more).estimate, PARAMS))(state, DATA[:2]))
        for more in ({}, {"overlap": 0, "x": DATA[0], "memory": "full"})
    ]
    assert traced[0] == traced[1]
    assert traced[0].count("scan[") == 2  # forward and back


def fragile_step(params, state, x, key):
    """A step whose derivative is infinite on data that never come."""
    after = {"h": state["h"] * params + jnp.sqrt(x["a"] * params) + x["b"].sum(), "n": state["n"] + 1, "none": None}
    return after, after["h"]


@pytest.mark.parametrize("memory", ["sqrt", "log", 2000])
def test_overlap_takes_repeated_data_and_less_memory_and_is_vmapped_over_seeds(memory):
    fragile = ux.system(init=lambda key, p: {"h": p, "n": 0, "none": None}, step=fragile_step)
    x = {"a": 0.0, "b": jnp.zeros(2)}
    rows, still = jnp.arange(1.0, 13.0), jnp.array([0.1, 0.2])

    def run(estimator, data, key):
        scan = lambda state, now: estimator.estimate(0.9, state, data(now))
        return jax.lax.scan(scan, estimator.init(key, 0.9), rows.reshape(6, 2))[1]

    plain = ux.TBPTT(fragile, 2, 12, overlap=7, x=x)
    dense = run(plain, lambda now: {"a": now, "b": jnp.tile(still, (2, 1))}, KEY)
    less = dataclasses.replace(plain, memory=memory)
    many = jax.jit(jax.vmap(lambda key: run(less, lambda now: {"a": now, "b": ux.repeat(still)}, key)))
    got = many(jax.random.split(KEY, 3))
    assert jnp.isfinite(dense.grad).all()
    close(got, jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), dense))


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (None, "None"),
        (0, r"\(root\) int64\[\]"),
        (np.zeros(2), r"\(root\) float64\[2\]"),
        ([0.0], r"\[0\] float64\[\]"),
    ],
)
@pytest.mark.parametrize("make", [partial(ux.TBPTT, overlap=1), ux.RandomizedTBPTT])
def test_data_that_are_not_like_x_are_refused(make, x, got):
    estimator = make(net, window=2, horizon=4, x=x)
    message = rf"PTT: x= must be like one step of the data, which is \(root\) float64\[\], got {got}. Pass any one"
    with pytest.raises(ux.StructureError, match=message):
        estimator.estimate(PARAMS, estimator.init(KEY, PARAMS), DATA[:2])


@pytest.mark.parametrize("overlap", [-1, 1.0, True, None])
def test_an_overlap_that_is_no_count_is_refused(overlap):
    with pytest.raises(
        ux.InvalidArgument, match=f"overlap must be a whole number of at least 0, got overlap={overlap}"
    ):
        ux.TBPTT(net, 2, 4, overlap=overlap)


def test_a_step_that_changes_its_state_is_named_when_it_is_run_again():
    grow = ux.system(init=lambda key, p: jnp.zeros(1), step=lambda p, s, x, key: (jnp.zeros(2), p.sum()))
    estimator = ux.TBPTT(grow, 2, 4, overlap=1)
    with pytest.raises(ux.StructureError, match="TBPTT: step must keep each state leaf's shape"):
        estimator.estimate(jnp.ones(1), estimator.init(KEY, jnp.ones(1)), None)


@pytest.mark.parametrize("make", [partial(ux.TBPTT, overlap=3), partial(ux.RandomizedTBPTT, survival=0.9)])
def test_windows_run_again_bear_states_of_every_kind(make):
    def drift(params, state, x, key):
        after, loss = mixed_step(params, state, x, key)
        return after, loss + after["h"]  # h = params + the data so far

    estimator = make(ux.system(init=mixed_start, step=drift), window=1, horizon=3, x=0.0)
    before = estimator.init(KEY, 1.5)
    scan = lambda state, rows: jax.lax.scan(lambda s, x: estimator.estimate(1.5, s, x), state, rows)
    after, estimates = jax.jit(scan)(before, DATA[:6, None])
    if isinstance(estimator, ux.TBPTT):
        np.testing.assert_allclose(estimates.grad, np.full(6, 4.0), rtol=1e-13)
    assert jnp.isfinite(estimates.grad).all()
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), tree)
    assert described(after) == described(before)


# --- every estimator, where backpropagation tells what is right --------------------------------------------------------

SIGNS = {"std": 0.25, "pairs": 1, "sampler": jax.random.rademacher}
EVERY = {
    "BPTT": lambda system: ux.BPTT(system, horizon=1),
    "TBPTT": lambda system: ux.TBPTT(system, window=1, horizon=2),
    "RandomizedTBPTT": lambda system: ux.RandomizedTBPTT(system, window=1, horizon=2, x=0.0),
    "ForwardGradient": lambda system: ux.ForwardGradient(system, window=1, horizon=2, sampler=jax.random.rademacher),
    "ES": lambda system: ux.ES(system, window=1, horizon=2, **SIGNS),
    "PES": lambda system: ux.PES(system, window=1, horizon=2, **SIGNS),
    "NRES": lambda system: ux.NRES(system, window=1, horizon=2, **SIGNS),
}
every = pytest.mark.parametrize("name", EVERY)


def mixed_start(key, params):
    return {"h": params, "n": 0, "on": True, "key": key, "half": jnp.bfloat16(0), "z": 1j, "none": None, "gone": {}}


def mixed_step(params, state, x, key):
    """A gradient that is exact for every estimator, under noise that is the same for all."""
    carried, drawn = jax.random.split(state["key"])
    noise = jax.random.normal(drawn, ()) + jax.random.normal(key, ())
    after = {"h": state["h"] + x, "n": state["n"] + 1, "on": ~state["on"], "half": state["half"] + 1, "key": carried}
    return state | after | {"z": state["z"] * params}, params**2 + noise


@every
def test_a_state_may_hold_leaves_of_every_kind_and_be_scanned(name):
    estimator = EVERY[name](ux.system(init=mixed_start, step=mixed_step))
    before = estimator.init(KEY, 1.5)
    scan = lambda state, rows: jax.lax.scan(lambda s, x: estimator.estimate(1.5, s, x), state, rows)
    after, estimates = jax.jit(scan)(before, DATA[:3, None])
    grads = (
        np.delete(estimates.grad, 1) if name == "PES" else estimates.grad
    )  # PES credits old noise: exact in the mean
    np.testing.assert_allclose(grads, np.full(len(grads), 3.0), rtol=1e-13)
    assert len(np.unique(estimates.loss)) == 3
    assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), after) == jax.tree.map(
        lambda leaf: (leaf.dtype, leaf.shape), before
    )
    assert (after.inner["n"] == 1).all()
    assert (after.inner["half"] == 1).all()
    assert not after.inner["on"].any()


@every
def test_params_in_bfloat16_have_a_gradient_in_bfloat16(name):
    square = ux.system(init=lambda key, p: jnp.float32(0), step=lambda p, s, x, key: (s + 1, p * p))
    _, (estimate,) = windows(EVERY[name](square), jnp.bfloat16(1), DATA[:1], 1)
    assert (estimate.grad, estimate.grad.dtype) == (2, jnp.bfloat16)
    assert estimate.loss == (1.0625 if "ES" in name else 1)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("BPTT", "RandomizedTBPTT")])
def test_an_endless_stream_never_resets(name):
    counting = ux.system(init=lambda key, p: 0, step=lambda p, s, x, key: (s + 1, p * x))
    endless = dataclasses.replace(EVERY[name](counting), horizon=None)
    state = endless.init(KEY, 1.0)
    scan = lambda s: jax.lax.scan(lambda s, x: endless.estimate(1.0, s, x), s, jnp.ones((50, 1)))[0]
    state = jax.jit(scan)(state)
    assert (state.inner == 50).all()
    assert (state.left == 1).all()


@pytest.mark.parametrize(("x", "share"), [(np.nan, 1), (np.inf, 1), (0.5, 0)])
@pytest.mark.parametrize("name", ["BPTT", "TBPTT", "RandomizedTBPTT", "ForwardGradient"])
def test_a_trajectory_with_a_loss_that_is_not_finite_is_reported(name, x, share):
    _, (estimate,) = windows(EVERY[name](net), PARAMS, jnp.array([x]), 1)
    assert estimate.info.nonfinite == share
