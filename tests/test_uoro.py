import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.estimators import _uoro
from unrollax.testing import vector

KEY = jax.random.key(6)
W = np.array([[0.9, -0.4], [0.5, 0.7]])
ROWS = np.random.default_rng(0).normal(size=(6, 2))


def step(params, state, x, key):
    h = jnp.tanh(params["w"] @ state + params["b"] * x)
    return h, (h**2).sum() + params["b"] * h[0]


PARAMS = {"w": jnp.asarray(W), "b": jnp.array(0.6)}
net = ux.system(init=lambda key, p: p["b"] * jnp.array([1.0, -0.5]), step=step)


def bptt(system, params, data, horizon):
    estimator = ux.BPTT(system, horizon)
    return estimator.estimate(params, estimator.init(KEY, params), data)[1].grad


def dealt(monkeypatch, signs):
    """Make UORO draw the given signs, one row a draw; a call traces a draw for the reset and one for its window."""
    rows = iter(signs)

    def deal(key, leaves):
        row, out, at = next(rows), [], 0
        for leaf in leaves:
            parts = 2 if jnp.iscomplexobj(leaf) else 1
            cut = [row[at + i * leaf.size : at + (i + 1) * leaf.size].reshape(leaf.shape) for i in range(parts)]
            out.append(cut[0] if parts == 1 else jax.lax.complex(*cut))
            at += parts * leaf.size
        return out

    monkeypatch.setattr(_uoro, "draw_signs", deal)


def mean_over_signs(monkeypatch, estimator, params, data, windows, size):
    """Average the mean gradient of the first windows over every pattern of all signs that count."""
    every = np.array(list(itertools.product([1.0, -1.0], repeat=size * windows))).reshape(-1, windows, size)

    def one(signs):
        # The reset draws first; later calls trace a reset that is not taken; the last window's own draw is of no use.
        rows = [signs[0]]
        for window in range(windows):
            rows += [signs[min(window + 1, windows - 1)], signs[0]]
        dealt(monkeypatch, rows)
        state, grads = estimator.init(KEY, params), []
        for part in np.split(data, windows) if data is not None else [None] * windows:
            state, estimate = estimator.estimate(params, state, part)
            grads.append(vector(estimate.grad))
        return jnp.stack(grads).mean(0)

    return np.asarray(jax.jit(jax.vmap(one))(every)).mean(0), len(every)


def test_uoro_is_the_recursion_of_the_paper(monkeypatch):
    """Tallec and Ollivier's algorithm 1 in NumPy, without its small numbers, while params change."""
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], size=(7, 2))
    uoro = ux.UORO(net, window=1)
    state = uoro.init(KEY, PARAMS)
    w, b = W.copy(), 0.6
    norm = lambda *parts: np.sqrt(sum((np.asarray(p) ** 2).sum() for p in parts))
    h = b * np.array([1.0, -0.5])
    start = signs[0] @ np.array([1.0, -0.5])  # nu^T d init / d params: only b
    rho = np.sqrt(norm(start) / norm(signs[0]))
    s, tw, tb = rho * signs[0], np.zeros((2, 2)), start / rho
    params = PARAMS
    for t, x in enumerate(ROWS):
        dealt(monkeypatch, [signs[0], signs[t + 1]])
        state, estimate = uoro.estimate(params, state, x[None])
        new = np.tanh(w @ h + b * x)
        slope = 1 - new**2
        up = 2 * new + b * np.array([1.0, 0.0])  # d loss / d new
        back = up * slope
        direct_w, direct_b = np.outer(back, h), back @ x + new[0]
        along = (w.T @ back) @ s
        gw, gb = direct_w + along * tw, direct_b + along * tb
        np.testing.assert_allclose(estimate.grad["w"], gw, rtol=1e-11)
        np.testing.assert_allclose(estimate.grad["b"], gb, rtol=1e-11)
        moved = slope * (w @ s)
        nu = signs[t + 1] * slope
        iw, ib = np.outer(nu, h), nu @ x
        rho0, rho1 = np.sqrt(norm(tw, tb) / norm(moved)), np.sqrt(norm(iw, ib) / np.sqrt(2))
        s = rho0 * moved + rho1 * signs[t + 1]
        tw, tb, h = tw / rho0 + iw / rho1, tb / rho0 + ib / rho1, new
        w, b = w - 0.1 * gw, b - 0.1 * gb
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, estimate.grad)
    np.testing.assert_allclose(state.influence.tangents[0][0], s, rtol=1e-11)
    np.testing.assert_allclose(state.influence.credit["w"][0], tw, rtol=1e-11)


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_the_mean_over_all_signs_is_the_exact_gradient(monkeypatch, windows):
    """Tried signs: those of the reset and of every window but the last, whose influence nothing reads."""
    uoro = ux.UORO(net, window=6 // windows, horizon=6)
    mean, count = mean_over_signs(monkeypatch, uoro, PARAMS, ROWS, windows, 2)
    assert count == 4**windows
    np.testing.assert_allclose(mean, vector(bptt(net, PARAMS, ROWS, 6)), rtol=1e-11)


def test_the_mean_is_exact_for_a_complex_state(monkeypatch):
    turn = ux.system(
        init=lambda key, p: jnp.exp(1j * p), step=lambda p, s, x, key: (s * jnp.exp(1j * p), (s * s).real + s.imag)
    )
    mean, _ = mean_over_signs(monkeypatch, ux.UORO(turn, 2, 6), jnp.array(0.3), None, 3, 2)
    np.testing.assert_allclose(mean, vector(bptt(turn, jnp.array(0.3), None, 6)), rtol=1e-11)


@pytest.mark.parametrize("window", [1, 3])
def test_uoro_is_unbiased_on_a_tanh_net(window):
    """|z| < 4 for each of 5 numbers, with 20,000 seeds."""
    uoro = ux.UORO(net, window, 6)

    def episode(key):
        _, estimates = jax.lax.scan(
            lambda s, rows: uoro.estimate(PARAMS, s, rows), uoro.init(key, PARAMS), ROWS.reshape(-1, window, 2)
        )
        return vector(jax.tree.map(lambda g: g.mean(0), estimates.grad))

    grads = np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(KEY, 20_000)))
    z = (grads.mean(0) - vector(bptt(net, PARAMS, ROWS, 6))) / (grads.std(0) / np.sqrt(len(grads)))
    assert (np.abs(z) < 4).all()
    assert (grads.std(0) > 0.01).all()


def test_directions_divide_the_variance():
    def spread(directions):
        uoro = ux.UORO(net, 1, 6, directions)

        def episode(key):
            _, estimates = jax.lax.scan(lambda s, x: uoro.estimate(PARAMS, s, x), uoro.init(key, PARAMS), ROWS[:, None])
            return vector(jax.tree.map(lambda g: g.mean(0), estimates.grad))

        return np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(KEY, 4000))).var(0).sum()

    assert spread(1) / spread(8) == pytest.approx(8, rel=0.15)  # the ratio of two variances of 4000: 4 % each


def test_the_factors_have_equal_norms_which_is_the_least_variance(monkeypatch):
    """After one step from a start that params don't touch only nu (nu^T I) is left: both its factors have one norm."""
    fixed = ux.system(init=lambda key, p: jnp.array([1.0, -0.5]), step=step)
    uoro = ux.UORO(fixed, 1, directions=3)
    state, _ = uoro.estimate(PARAMS, uoro.init(KEY, PARAMS), ROWS[:1])
    left = np.linalg.norm(state.influence.tangents[0], axis=1)
    right = np.sqrt(sum((np.asarray(c).reshape(3, -1) ** 2).sum(1) for c in jax.tree.leaves(state.influence.credit)))
    np.testing.assert_allclose(left, right, rtol=1e-12)
    assert len(np.unique(np.sign(state.influence.tangents[0]), axis=0)) > 1  # each direction has signs of its own


@pytest.mark.parametrize(
    "system",
    [
        ux.system(init=lambda key, p: 0, step=lambda p, s, x, key: (s + 1, p**2)),  # no number has a derivative
        ux.system(init=lambda key, p: jnp.ones(2), step=lambda p, s, x, key: (s, p**2 + s.sum())),  # nothing influenced
        ux.system(init=lambda key, p: jnp.ones(2), step=lambda p, s, x, key: (0 * s, p**2 + s.sum())),  # and forgotten
        ux.system(init=lambda key, p: p * jnp.ones(2), step=lambda p, s, x, key: (jnp.ones(2), p**2)),
    ],
)
def test_a_product_that_is_zero_is_left_out(system):
    uoro = ux.UORO(system, 1, 3)
    state, run = uoro.init(KEY, 1.5), jax.jit(uoro.estimate)
    for _ in range(6):
        state, estimate = run(1.5, state, None)
        assert estimate.grad == 3
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.influence))


def test_narrow_params_and_states_have_factors_in_float32():
    system = ux.system(
        init=lambda key, p: p * jnp.ones(1, jnp.bfloat16),
        step=lambda p, s, x, key: (s, s.sum().astype(jnp.float32)),
    )
    uoro, params = ux.UORO(system, 1), jnp.ones((), jnp.bfloat16)
    state = uoro.init(KEY, params)
    for _ in range(3):  # with one number and one state there is nothing to reduce: the product is exact
        state, estimate = jax.jit(uoro.estimate)(params, state, None)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.influence)} == {np.dtype(np.float32)}
        assert (estimate.grad, estimate.grad.dtype) == (1, jnp.bfloat16)


def test_wrong_fields_are_named():
    with pytest.raises(ux.InvalidArgument, match="UORO: directions must be a positive whole number, got directions=0"):
        ux.UORO(net, 1, directions=0)
    with pytest.raises(ux.InvalidArgument, match="UORO: horizon must be a multiple of window, got horizon=5, window=2"):
        ux.UORO(net, 2, 5)
