"""Gradient flow: the parts of a gradient by loss and step, against a literal double loop and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.diagnosis import _forward, _table
from unrollax.diagnosis._probes import probe

NORMS = [0.010906688399113558, 0.02478099846737857, 0.13901933055672275]  # of the LSTM text that this began from
KEY = jax.random.key(0)


@functools.cache
def known(name):
    system, params, data = CASES[name]()
    return parts(system, params, data, KEY, len(jax.tree.leaves(data)[0]))


def parts(system, params, data, key, steps):
    """The literal double loop: for each loss, each step before it, the vector-Jacobian products in between."""
    start, run = jax.random.split(key)
    keys, step = jax.random.split(run, steps), jax.jit(system.step)
    rows = ux._system.rows_of("test", data, steps)
    states = [ux._tree.strong(system.init(start, params))]
    pulls = []
    for s in range(steps):
        row = jax.tree.map(lambda leaf, s=s: leaf[s], rows)
        (after, loss), pull = jax.vjp(lambda p, st, r=row, k=keys[s]: step(p, st, r, k), params, states[-1])
        states.append(after)
        pulls.append((pull, loss))
    by_params, by_state, starts = {}, {}, {}
    zero = jax.tree.map(_no_cotangent, states[0])
    for t in range(steps):
        cotangent = zero
        for s in range(t, -1, -1):
            pull, loss = pulls[s]
            by_params[t, s], cotangent = pull((cotangent, jnp.asarray(s == t, loss.dtype)))
            by_state[t, s] = cotangent
        starts[t] = jax.vjp(lambda p: system.init(start, p), params)[1](cotangent)[0]
    return by_params, by_state, starts


def _no_cotangent(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


def size(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]
    return np.sqrt(sum(np.square(np.abs(leaf)).sum() for leaf in leaves))


def lstm(n, d=3, h=4, steps=4):
    net = ux.recurrent(ux.LSTMCell(d, h), ux.Dense(h, 2), ux.squared_error)
    x, y = jax.random.normal(KEY, (steps, n, d)), jax.random.normal(jax.random.key(1), (steps, n, 2))
    return (
        ux.batched(net, n),
        net.params(jax.random.key(2)),
        ux.Frame(x, y, jnp.ones((steps, n)), jnp.ones((steps, n), bool)),
    )


def noisy(steps=4):
    """Weights used twice, sliced, transposed, on the left; noise; a state of all sorts; a parameter in init."""

    def init(key, params):
        return {"h": params["h0"] + jax.random.normal(key, (3,)), "t": jnp.int32(0), "key": key}

    @jax.jit
    def mix(w, h):
        return jnp.tanh(w.T @ h)

    def step(params, state, x, key):
        h = mix(params["once"], state["h"]) + params["twice"] @ (params["twice"] @ state["h"])
        h = h + params["cut"][:, :3] @ state["h"] + params["scale"] * x + 0.1 * jax.random.normal(key, (3,))
        h = h + (params["left"] @ jnp.outer(state["h"], h)).sum(0) + jnp.exp(params["flat"].reshape(3, 3)) @ h
        return {**state, "h": h, "t": state["t"] + 1}, (h**2).mean() * (1 + state["t"])

    system = ux.system(init=init, step=step)
    shapes = {"h0": (3,), "once": (3, 3), "twice": (3, 3), "cut": (3, 4), "scale": (), "left": (2, 3), "flat": (9,)}
    keys = jax.random.split(KEY, len(shapes))
    params = {name: 0.3 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
    return system, params, jax.random.normal(KEY, (steps, 3))


def spiral(steps=4):
    """A complex state with complex and real products."""

    def step(params, state, x, key):
        turn = params["turn"] @ state + 1j * (params["mix"] @ jnp.abs(state))
        return turn + x, jnp.abs(turn).sum()

    params = {"turn": jax.random.normal(KEY, (2, 2)), "mix": jax.random.normal(jax.random.key(1), (2, 2))}
    start = jnp.array([1.0 + 0.5j, 0.3 - 1j])
    return ux.system(init=lambda key, params: start, step=step), params, jax.random.normal(KEY, (steps, 2))


CASES = {
    "complex": spiral,
    "lstm, one": lambda: lstm(1),
    "lstm, few": lambda: lstm(3),
    "lstm, more than units": lambda: lstm(7),
    "all sorts": noisy,
}


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_the_literal_double_loop(name):
    system, params, data = CASES[name]()
    steps = len(jax.tree.leaves(data)[0])
    by_params, by_state, starts = known(name)
    flow = ux.gradient_flow(system, params, data, key=KEY)
    for (t, s), grad in by_params.items():
        np.testing.assert_allclose(flow.table[t, s], size(grad), rtol=1e-12, atol=1e-300)
        for (path, norms), leaf in zip(flow.leaves.items(), jax.tree.leaves(grad), strict=True):
            np.testing.assert_allclose(norms[t, s], size(leaf), rtol=1e-12, atol=1e-300, err_msg=path)
        np.testing.assert_allclose(flow.state[t, s], size(by_state[t, s]), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(flow.start, [size(starts[t]) for t in range(steps)], rtol=1e-12)
    later = np.arange(steps)[None] > np.arange(steps)[:, None]
    for norms in (flow.table, flow.state, *flow.leaves.values()):
        assert (norms[later] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_the_parts_add_up_to_the_gradient(name):
    system, params, data = CASES[name]()
    steps = len(jax.tree.leaves(data)[0])
    by_params, _, starts = known(name)
    whole = jax.tree.map(lambda *leaves: sum(leaves) / steps, *by_params.values(), *starts.values())
    flow = ux.gradient_flow(system, params, data, key=KEY, windows=())

    def loss(params):
        start, run = jax.random.split(KEY)
        return ux.unroll(system, params, system.init(start, params), data, run)[1].mean()

    for grad in (flow.grad, jax.grad(loss)(params)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), grad, whole)


def test_the_lstm_texts_norms_come_out():
    random = np.random.RandomState(1)
    x, h0, wx, wh, b = (random.randn(*shape) for shape in ((1, 3, 3), (1, 1), (3, 4), (1, 4), (4,)))
    dout = random.randn(1, 3, 1)
    cell = ux.LSTMCell(3, 1)

    def step(params, state, row, key):
        x, dout = row
        state, out = cell.step(params, state, x)
        return state, jnp.vdot(out, dout)

    system = ux.system(init=lambda key, params: (jnp.asarray(h0[0]), jnp.zeros(1)), step=step)
    params = {name: jnp.asarray(leaf) for name, leaf in (("wx", wx), ("wh", wh), ("b", b))}
    flow = ux.gradient_flow(system, params, (jnp.asarray(x[0]), jnp.asarray(dout[0])), key=KEY)
    np.testing.assert_allclose(flow.leaves["['wx']"][2], NORMS, rtol=1e-12)
    assert (flow.leaves["['wx']"][np.triu_indices(3, 1)] == 0).all()


@pytest.mark.parametrize("at", [[0], [4, 2], [7]])
def test_chosen_losses_are_rows_of_the_whole_table(at):
    system, params, data = lstm(2, steps=8)
    whole, some = (ux.gradient_flow(system, params, data, key=KEY, at=chosen) for chosen in (None, at))
    assert some.at.tolist() == sorted(at)
    np.testing.assert_allclose(some.table, whole.table[sorted(at)], rtol=1e-12)
    states = ux.state_flow(system, params, data, key=KEY, at=at)
    np.testing.assert_allclose(states.state, whole.state[sorted(at)], rtol=1e-12)
    np.testing.assert_allclose(states.losses, whole.losses[sorted(at)], rtol=1e-15)


def test_many_losses_go_back_in_pieces(monkeypatch):
    from unrollax.diagnosis import _flow

    system, params, data = lstm(2, steps=11)
    whole, said = ux.gradient_flow(system, params, data, key=KEY), []
    monkeypatch.setattr(_flow, "TOGETHER", 4)
    pieces = ux.gradient_flow(system, params, data, key=KEY, observe=said.append)
    np.testing.assert_allclose(pieces.table, whole.table, rtol=1e-12)
    assert said == [f"gradient_flow: {begin} of 11 losses" for begin in (0, 4, 8)]


def test_what_a_window_loses_is_the_bias_of_tbptt():
    system, params, data = lstm(2, steps=8)
    flow = ux.gradient_flow(system, params, data, key=KEY)
    assert flow.windows.tolist() == [1, 2, 4]
    exact = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(flow.grad)])
    for window, lost in zip(flow.windows, flow.lost, strict=True):
        tbptt = ux.TBPTT(system, window=int(window), horizon=8)
        state, grads, estimator = tbptt.init(KEY, params), [], jax.jit(tbptt.estimate)
        for begin in range(0, 8, int(window)):
            state, estimate = estimator(params, state, ux._system.cut(data, begin, begin + int(window)))
            grads.append(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(estimate.grad)]))
        error = jnp.linalg.norm(sum(grads) / len(grads) - exact) / jnp.linalg.norm(exact)
        np.testing.assert_allclose(lost, error, rtol=1e-9)
    assert flow.window_for(1.0) == 1
    assert flow.window_for(0.0) is None


def test_a_window_is_good_if_all_longer_ones_are():
    system, params = leak(0.5)
    flow = ux.gradient_flow(system, params, jnp.ones(12), key=KEY)
    flow = flow._replace(windows=np.array([1, 2, 3, 4, 6]), lost=np.array([0.5, 0.01, 0.2, 0.05, 0.01]))
    assert [flow.window_for(error) for error in (0.6, 0.1, 0.02, 0.001)] == [1, 4, 6, None]


def test_a_horizon_of_few_divisors_gets_powers_of_two():
    system, params = leak(0.5)
    flow = ux.gradient_flow(system, params, jnp.ones(97), key=KEY)
    assert flow.windows.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert flow.window_for(0.1) is not None


def test_the_gradient_and_what_is_lost_are_of_all_losses_whichever_are_looked_at():
    system, params, data = lstm(1, steps=6)
    some, every = (ux.gradient_flow(system, params, data, key=KEY, at=at) for at in ([2, 5], None))
    np.testing.assert_allclose(some.lost, every.lost, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), some.grad, every.grad)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e15, 1e25])
def test_tiny_and_huge_losses_change_nothing_but_the_scale(scale):
    """In float32, where the squares of these numbers are none."""

    def scaled(c):
        def step(params, state, x, key):
            state = jnp.tanh(params["w"] @ state + params["b"] + x)
            return state, c * ((state - 1) ** 2).sum()

        return ux.system(init=lambda key, params: jnp.zeros(2, jnp.float32), step=step)

    params = {"w": jnp.float32(0.8) * jnp.eye(2, dtype=jnp.float32), "b": jnp.zeros(2, jnp.float32)}
    x = jax.random.normal(KEY, (20, 2), jnp.float32)
    one, other = (ux.gradient_flow(scaled(np.float32(c)), params, x, key=KEY) for c in (1.0, scale))
    np.testing.assert_allclose(other.table, scale * one.table, rtol=1e-4)
    np.testing.assert_allclose(other.state_decay.rate, one.state_decay.rate, rtol=1e-3)
    assert other.state_decay.overflow is None


def test_a_state_that_is_cut_off_does_not_underflow():
    """It is reset every fourth step: the gradient is 0 there by the system's own doing."""

    def step(params, state, x, key):
        state = jnp.where(x % 4 == 0, 1.0, params * state)
        return state, state

    system = ux.system(init=lambda key, params: jnp.ones(()), step=step)
    flow = ux.gradient_flow(system, jnp.float64(0.5), jnp.arange(16.0), key=KEY)
    assert (flow.state[15, :13] == 0).all()
    assert flow.state_decay.underflow is None


def test_losses_that_are_no_numbers_are_said():
    system = ux.system(init=lambda key, params: (), step=lambda p, s, x, key: (s, p * jnp.where(x > 2, jnp.nan, x)))
    flow = ux.gradient_flow(system, jnp.float64(1.0), jnp.arange(6.0), key=KEY)
    assert "3 of 6 losses are NaN or infinite, the first at step 3" in str(flow)


def leak(rate, dtype=jnp.float64):
    def step(params, state, x, key):
        state = (params * state + x).astype(dtype)
        return state, state

    return ux.system(init=lambda key, params: jnp.zeros((), dtype), step=step), jnp.asarray(rate, dtype)


@pytest.mark.parametrize("rate", [0.5, 0.999, 1.0, 1.5])
def test_a_linear_systems_decay_is_its_logarithm(rate):
    system, params = leak(rate)
    flow = ux.state_flow(system, params, jnp.ones(60), key=KEY)
    np.testing.assert_allclose(flow.state_decay.rate, np.log(rate), atol=1e-13)
    assert flow.state_decay.error < 1e-13
    half = np.log(2) / abs(np.log(rate)) if rate != 1 else np.inf
    np.testing.assert_allclose(flow.state_decay.half_life, half, rtol=1e-9)
    assert ("neither shrinks nor grows" in str(flow)) == (rate == 1.0)
    np.testing.assert_allclose(np.log(flow.state_decay.norms), np.arange(1, 61) * np.log(rate), atol=1e-11)


def test_float32_shows_what_backpropagation_loses_to_underflow_and_overflow():
    """0.1^38 is the last normal power in float32, 10^38 the last finite one; the table goes on in both directions."""
    for rate, limit in ((0.1, "underflow"), (10.0, "overflow")):
        system, params = leak(rate, jnp.float32)
        flow = ux.state_flow(system, params, jnp.ones(100, jnp.float32), key=KEY, at=[99])
        assert getattr(flow.state_decay, limit) == 37 if limit == "underflow" else 38
        np.testing.assert_allclose(np.log10(flow.state[0, 0]), 100 * np.log10(rate), rtol=1e-6)
        assert limit in str(flow)


def test_chain_of_sigmoids_at_zero_shrinks_by_a_quarter_a_step():
    system = ux.system(
        init=lambda key, params: jnp.zeros(()),
        step=lambda p, s, x, key: (jax.nn.sigmoid(p * s) - 0.5, jax.nn.sigmoid(p * s) - 0.5),
    )
    flow = ux.state_flow(system, jnp.float64(1.0), None, key=KEY, horizon=30)
    lags = np.arange(30)[:, None] - np.arange(30) + 1
    np.testing.assert_allclose(flow.state, np.where(lags > 0, 0.25 ** np.maximum(lags, 0), 0), rtol=1e-15)


def test_the_rates_error_covers_the_truth():
    """A product of random factors: over 200 draws, the error holds the mean of log factor at z = 2 in 80 to 99 %."""

    def step(params, state, x, key):
        state = params * jnp.exp(x) * state
        return state, state

    system = ux.system(init=lambda key, params: jnp.ones(()), step=step)
    hits = 0
    for seed in range(200):
        x = 0.3 * jax.random.normal(jax.random.key(seed), (100,)) - 0.2
        decay = ux.state_flow(system, jnp.float64(1.0), x, key=KEY, at=[99]).state_decay
        hits += abs(decay.rate + 0.2) < 2 * decay.error
    assert 0.80 < hits / 200 < 0.99


def test_nothing_that_is_not_finite_hides():
    system = ux.system(
        init=lambda key, params: jnp.ones(()), step=lambda p, s, x, key: (jnp.where(x > 5, jnp.nan, p) * s, p * s)
    )
    flow = ux.gradient_flow(system, jnp.float64(0.5), jnp.arange(10.0), key=KEY)
    assert np.isnan(flow.table[8, 3])
    assert np.isfinite(flow.table[:6]).all()
    assert flow.state_decay.overflow == 1
    assert (flow.table[np.triu_indices(10, 1)] == 0).all()


def test_a_derivative_that_is_not_linear_is_refused():
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, ct: (jnp.clip(ct, -0.1, 0.1),))
    system = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (clipped(p * s), clipped(p * s)))
    with pytest.raises(ux.StructureError, match="gradient_flow: the derivative of step must be linear"):
        ux.gradient_flow(system, jnp.float64(1.0), None, key=KEY, horizon=8)


def test_a_memoryless_system_has_a_diagonal_table():
    system = ux.system(init=lambda key, params: (), step=lambda p, s, x, key: (s, (p * x) ** 2))
    flow = ux.gradient_flow(system, jnp.float64(3.0), jnp.arange(1.0, 6.0), key=KEY)
    np.testing.assert_allclose(flow.table, np.diag(2 * 3 * np.arange(1.0, 6) ** 2), rtol=1e-14)
    assert (flow.lost == 0).all()
    assert "too few" in str(flow)


def test_products_are_found_and_other_uses_are_not():
    def function(leaves, x):
        a, b, c, d, e = leaves
        return jnp.tanh(x @ a) + (b.T @ x.T).T + x @ c + x @ c + x @ d[:, 0] + jax.nn.relu(e) @ x.T @ x

    leaves = [jnp.ones((3, 3))] * 3 + [jnp.ones((3, 3, 3))[:, :1], jnp.ones((1, 3)) + 0]
    probed = probe(function, [*leaves[:3], jnp.ones((3, 1, 3)), jnp.ones((2, 3))], jnp.ones((2, 3)))
    assert probed.leaves == (0, 1)


def test_steps_compile_once_for_other_numbers(monkeypatch):
    system, params, data = lstm(1, steps=5)
    ux.gradient_flow(system, params, data, key=KEY)
    sizes = [f._cache_size() for f in (_forward._follow, _table._norms_back, _table._cut_back)]
    ux.gradient_flow(system, jax.tree.map(lambda leaf: 2 * leaf, params), data, key=jax.random.key(5))
    assert sizes == [f._cache_size() for f in (_forward._follow, _table._norms_back, _table._cut_back)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"at": [4]}, "at must be steps from 0 to 3, got \\[4\\]"),
        ({"at": []}, "at must be steps"),
        ({"windows": [0]}, "windows\\[0\\] must be a positive whole number"),
        ({"key": 3}, "key must be a single PRNG key"),
        ({"horizon": 7}, "must be time-major with 7 steps"),
        ({"data": None}, "Pass horizon="),
    ],
)
def test_errors_say_what_to_do(given, message):
    system, params, data = lstm(1)
    with pytest.raises(ux.UnrollaxError, match=message):
        ux.gradient_flow(system, params, **({"data": data, "key": KEY} | given))


def test_it_prints_and_turns_to_plain_numbers():
    import json

    system, params, data = lstm(1, steps=8)
    flow = ux.gradient_flow(system, params, data, key=KEY)
    assert str(flow).startswith(
        "Gradient flow of 8 losses over 8 steps\n  gradient by step    changes by -0.4 +- 0.2 nats"
    )
    plain = json.loads(json.dumps(flow.to_dict()))
    assert plain["table"] == flow.table.tolist()
    assert plain["leaves"]["['cell']['wh']"] == flow.leaves["['cell']['wh']"].tolist()
    json.dumps(ux.state_flow(system, params, data, key=KEY).to_dict())


def uniform(cell, key):
    """PyTorch's start: all weights and biases uniform within one over the square root of the units."""
    like = cell.params(key)
    keys, bound = jax.random.split(key, len(like)), 64**-0.5
    return {
        name: jax.random.uniform(k, leaf.shape, minval=-bound, maxval=bound)
        for k, (name, leaf) in zip(keys, like.items(), strict=True)
    }


def drawn(cell, key):
    return cell.params(key)


@pytest.mark.parametrize(
    ("cell", "start", "rate", "within"),
    [
        (ux.RNNCell(2, 64), uniform, 0.51, 0.04),
        (ux.LSTMCell(2, 64), uniform, 0.46, 0.02),
        (ux.LSTMCell(2, 64, forget_bias=1.0), drawn, 0.054, 0.006),
        (ux.LSTMCell(2, 64, chrono=100), drawn, 0.015, 0.003),
    ],
    ids=["tanh, PyTorch's start", "LSTM, forget bias 0", "orthogonal, bias 1", "chrono"],
)
def test_at_64_units_and_100_steps_cells_lose_what_is_known_of_them(cell, start, rate, within):
    """Nats a step on the way back from the last loss, mean of 6 starts, two random inputs a step."""
    net, key = ux.recurrent(cell, ux.Dense(64, 1), ux.squared_error), jax.random.key(100)
    rates = []
    for seed in range(6):
        inputs = jax.random.normal(jax.random.fold_in(key, seed), (100, 2))
        params = {"cell": start(cell, jax.random.key(seed)), "readout": net.readout.params(key)}
        flow = ux.state_flow(net, params, ux.sequence(inputs, jnp.ones((100, 1))), key=key, at=[99])
        rates.append(flow.state_decay.rate)
    assert abs(np.mean(rates) + rate) < within


@jax.custom_vjp
def by_hand(w, h):
    return jnp.tanh(h @ w)


def by_hand_backward(kept, cotangent):
    w, h = kept
    inner = cotangent * (1 - jnp.tanh(h @ w) ** 2)
    return jnp.outer(h, inner), inner @ w.T


by_hand.defvjp(lambda w, h: (by_hand(w, h), (w, h)), by_hand_backward)

STEPS = {
    "custom_jvp of a weight": lambda w, s, x: jnp.tanh(s @ jax.nn.relu(w) + x),
    "custom_vjp": lambda w, s, x: by_hand(w, s) + x,
    "scan": lambda w, s, x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w + x), None), s, None, length=3)[0],
    "cond": lambda w, s, x: jax.lax.cond(x.sum() > 0, lambda: jnp.tanh(s @ w), lambda: s @ w.T),
    "remat": lambda w, s, x: jax.checkpoint(lambda w, s: jnp.tanh(s @ w) + x)(w, s),
}


@pytest.mark.parametrize("name", STEPS)
def test_whatever_a_weight_goes_through_the_table_is_the_double_loop(name):
    def step(params, state, x, key):
        state = STEPS[name](params, state, x)
        return state, (state**2).sum()

    system = ux.system(init=lambda key, params: jnp.ones(3), step=step)
    params, data = 0.5 * jax.random.normal(KEY, (3, 3)), jax.random.normal(KEY, (3, 3))
    flow = ux.gradient_flow(system, params, data, key=KEY, windows=())
    for (t, s), grad in parts(system, params, data, KEY, 3)[0].items():
        np.testing.assert_allclose(flow.table[t, s], size(grad), rtol=1e-12)
