from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.testing import vector

KEY = jax.random.key(3)
STEPS = 10
MODES = ("forward", "reverse")


def recurrent(cell):
    """A net whose start is learned and whose loss reads the output."""
    inner = cell.params(jax.random.key(0))
    params = {"cell": inner, "start": jnp.array(0.3), "out": jnp.linspace(-1.0, 1.0, cell.hidden)}

    def init(key, params):
        return jax.tree.map(lambda s: s + params["start"], cell.init(params["cell"]))

    def step(params, state, x, key):
        state, output = cell.step(params["cell"], state, x["in"] + 0.1 * jax.random.normal(key, ()))
        return state, (output @ params["out"] - x["target"]) ** 2

    return ux.system(init=init, step=step), params


NETS = {"rnn": recurrent(ux.RNNCell(2, 3)), "lstm": recurrent(ux.LSTMCell(2, 2))}
DATA = {
    "in": np.random.default_rng(0).normal(size=(STEPS, 2)),
    "target": np.random.default_rng(1).normal(size=STEPS),
}


def quiet(system):
    """The same system without noise, so that estimators with other keys see the same losses."""
    return ux.system(init=system.init, step=lambda p, s, x, k: system.step(p, s, x, jax.random.key(0)))


def over(estimator, params, data=DATA, horizons=1):
    state, run, out = estimator.init(KEY, params), jax.jit(estimator.estimate), []
    for _ in range(horizons):
        for at in range(0, STEPS, estimator.window):
            state, estimate = run(params, state, jax.tree.map(lambda d, at=at: d[at : at + estimator.window], data))
            out.append(estimate)
    return state, out


def bptt(system, params, data=DATA, horizon=STEPS):
    estimator = ux.BPTT(system, horizon)
    return estimator.estimate(params, estimator.init(KEY, params), data)[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [1, 2, 5, 10])
@pytest.mark.parametrize("name", NETS)
def test_rtrl_is_bptt_however_the_horizon_is_cut(name, window, mode):
    system, params = NETS[name]
    system = quiet(system)
    _, estimates = over(ux.RTRL(system, window, STEPS, mode), params, horizons=2)
    expected, half = bptt(system, params), len(estimates) // 2
    for episode in (estimates[:half], estimates[half:]):
        np.testing.assert_allclose(np.mean([e.loss for e in episode]), expected.loss, rtol=1e-12)
        grads = np.mean([vector(e.grad) for e in episode], axis=0)
        np.testing.assert_allclose(grads, vector(expected.grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2])
def test_both_modes_agree_on_every_estimate_and_influence(window):
    system, params = NETS["lstm"]
    (first, some), (second, others) = (over(ux.RTRL(system, window, None, mode), params) for mode in MODES)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
    jax.tree.map(close, first.influence, second.influence)
    jax.tree.map(close, some, others)


@pytest.mark.parametrize("mode", MODES)
def test_the_influence_is_the_jacobian_of_the_state(mode):
    system, params = NETS["rnn"]
    system = quiet(system)
    state, _ = over(ux.RTRL(system, 2, None, mode), params)
    final = lambda params: ux.unroll(system, params, system.init(None, params), DATA, KEY)[0]
    expected = jax.jacobian(final)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), state.influence, expected)


def test_rtrl_is_the_textbook_recursion_while_params_change():
    """Williams and Zipser in NumPy: h' = tanh(W h + x), loss |h'|^2, plain descent after every step."""
    system = ux.system(
        init=lambda key, w: jnp.ones(2),
        step=lambda w, h, x, key: (jnp.tanh(w @ h + x), (jnp.tanh(w @ h + x) ** 2).sum()),
    )
    w, h, p = np.array([[0.9, -0.4], [0.5, 0.7]]), np.ones(2), np.zeros((2, 2, 2))
    rtrl = ux.RTRL(system, window=1)
    params, state, run = w, rtrl.init(KEY, w), jax.jit(rtrl.estimate)
    for x in DATA["in"]:
        new = np.tanh(w @ h + x)
        p = (1 - new**2)[:, None, None] * (np.einsum("ij,jkl->ikl", w, p) + np.einsum("ik,l->ikl", np.eye(2), h))
        h = new
        grad = np.einsum("i,ikl->kl", 2 * h, p)
        state, estimate = run(params, state, x[None])
        np.testing.assert_allclose(estimate.grad, grad, rtol=1e-11)
        params, w = params - 0.1 * estimate.grad, w - 0.1 * grad
    np.testing.assert_allclose(state.influence, p, rtol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_through_init_is_counted(mode):
    learned_start = ux.system(init=lambda key, p: p**2, step=lambda p, s, x, key: (0.5 * s, s))
    state, got = ux.RTRL(learned_start, 1, 2, mode), []
    estimator, state = state, state.init(KEY, 3.0)
    for _ in range(4):
        state, estimate = estimator.estimate(3.0, state, None)
        got.append(float(estimate.grad))
    assert got == [6.0, 3.0, 6.0, 3.0]


def test_the_gradient_of_chaos_grows_as_that_of_bptt():
    logistic = ux.system(init=lambda key, r: 0.3 + 0 * r, step=lambda r, s, x, key: (r * s * (1 - s), s))
    sizes = []
    for steps in (20, 80):
        rtrl = ux.RTRL(logistic, 5, steps)
        run = jax.jit(lambda s, e=rtrl, n=steps // 5: jax.lax.scan(lambda s, _: e.estimate(3.99, s, None), s, length=n))
        grad = run(rtrl.init(KEY, 3.99))[1].grad.mean()
        np.testing.assert_allclose(grad, bptt(logistic, 3.99, None, steps).grad, rtol=1e-6)
        sizes.append(abs(grad))
    assert sizes[1] > 1e8 * sizes[0]  # a Lyapunov exponent of about 0.6 a step


@pytest.mark.parametrize(("states", "mode"), [(3, "forward"), (2, "forward"), (1, "reverse")])
def test_auto_pushes_params_if_they_are_no_more_than_states(states, mode):
    system = ux.system(init=lambda key, p: jnp.ones(states), step=lambda p, s, x, key: (s * p[0] + p[1], (s**2).sum()))
    programs = []
    for each in ("auto", "forward", "reverse"):
        rtrl, params = ux.RTRL(system, 2, mode=each), jnp.ones(2)
        programs.append(str(jax.make_jaxpr(rtrl.estimate)(params, rtrl.init(KEY, params), None)))
    assert [programs[0] == other for other in programs[1:]] == [mode == "forward", mode == "reverse"]


@pytest.mark.parametrize("mode", MODES)
def test_states_may_be_complex_or_hold_leaves_without_a_derivative(mode):
    def init(key, p):
        return {"z": jnp.exp(1j * p["a"]), "n": 0, "key": key, "on": True, "none": None}

    def step(p, s, x, key):
        z = s["z"] * jnp.exp((0.1j * p["a"] + p["b"][0]) * s["n"])
        return {**s, "z": z, "n": s["n"] + 1, "on": ~s["on"]}, z.real * jnp.where(s["on"], 1.0, z.imag)

    system, params = ux.system(init=init, step=step), {"a": jnp.array(0.4), "b": jnp.array([0.05, 1.0]), "c": None}
    state, estimates = over(ux.RTRL(system, 5, 10, mode), params, None)
    expected = bptt(system, params, None).grad
    grads = np.mean([vector(e.grad) for e in estimates], axis=0)
    np.testing.assert_allclose(grads, vector(expected), rtol=1e-11, atol=1e-13)
    assert state.influence["b"].shape == (2, 2)  # both parts of z, both numbers of b


@pytest.mark.parametrize("mode", MODES)
def test_the_influence_of_narrow_params_is_kept_in_float32(mode):
    system = ux.system(
        init=lambda key, p: jnp.zeros(2, jnp.bfloat16),
        step=lambda p, s, x, key: ((s + p).astype(jnp.bfloat16), s.sum().astype(jnp.float32)),
    )
    rtrl, params = ux.RTRL(system, 1, mode=mode), jnp.ones((), jnp.bfloat16)
    state, run = rtrl.init(KEY, params), jax.jit(rtrl.estimate)
    for count in range(4):
        assert state.influence.dtype == jnp.float32
        state, estimate = run(params, state, None)
        assert (estimate.grad, estimate.grad.dtype) == (2 * count, jnp.bfloat16)


@pytest.mark.parametrize("mode", MODES)
def test_a_state_without_numbers_has_the_gradient_of_its_window(mode):
    counting = ux.system(init=lambda key, p: 0, step=lambda p, s, x, key: (s + 1, p**2 * s))
    rtrl = ux.RTRL(counting, 2, mode=mode)
    state, _ = rtrl.estimate(3.0, rtrl.init(KEY, 3.0), None)
    np.testing.assert_allclose(rtrl.estimate(3.0, state, None)[1].grad, 6 * 2.5, rtol=1e-14)


def test_seeds_may_be_vmapped():
    system, params = NETS["rnn"]
    rtrl = ux.RTRL(system, 5, 5)
    keys = jax.random.split(KEY, 3)
    call = lambda key: rtrl.estimate(params, rtrl.init(key, params), jax.tree.map(lambda d: d[:5], DATA))[1]
    many = jax.jit(jax.vmap(call))(keys)
    one = call(keys[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-11, atol=1e-13), many, one)
    assert len(np.unique(many.loss)) == 3


def test_wrong_fields_are_named():
    system, _ = NETS["rnn"]
    with pytest.raises(
        ux.InvalidArgument, match="RTRL: mode must be one of 'auto', 'forward', 'reverse', got mode='both'"
    ):
        ux.RTRL(system, 1, mode="both")
    with pytest.raises(ux.InvalidArgument, match="RTRL: horizon must be a multiple of window, got horizon=5, window=2"):
        replace(ux.RTRL(system, 1), window=2, horizon=5)
