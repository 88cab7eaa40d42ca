"""The two algorithms of the text that this library started from, as it states them, one particle after another.

The text writes of the initial state: "RNN の隠れ状態ベクトルに初期値をセットする。s ← s_0" (ES) and
"粒子の数だけ RNN の隠れ状態ベクトルを用意して初期値をセットする。s^(i) ← s_0" (PES): some initial value, the same for
every particle, which depends on no parameter. It says nothing of resets; here the state is set to s_0 again after T steps,
and PES's ξ to zero. PES's list also advances ES's unperturbed s, which nothing in it reads.

The text sums the losses of a window of K steps where unrollax takes the mean step loss: its gradient is K times as large.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.testing import deal

INPUTS, HIDDEN = 2, 3
SIZES = [HIDDEN * INPUTS, HIDDEN * HIDDEN, HIDDEN, HIDDEN]
D = sum(SIZES)
S0 = np.array([0.3, -0.1, 0.2])
SIGMA, ALPHA = 0.3, 0.05


def split(theta):
    u, w, b, v = (theta[end - size : end] for size, end in zip(SIZES, np.cumsum(SIZES), strict=True))
    return u.reshape(HIDDEN, INPUTS), w.reshape(HIDDEN, HIDDEN), b, v


def unroll(s, theta, inputs, targets):
    """`s', L ← unroll(s, θ, K)`."""
    u, w, b, v = split(theta)
    total = 0.0
    for x, y in zip(inputs, targets, strict=True):
        s = np.tanh(u @ x + w @ s + b)
        total += (v @ s - y) ** 2
    return s, total


def es(windows, theta, n, resets, draw):
    """進化戦略を単純に適用した RNN の学習(ES)."""
    grads = []
    for index, (inputs, targets) in enumerate(windows):
        if resets(index):
            s = S0
        g, epsilon = np.zeros(D), np.zeros(D)
        for i in range(1, n + 1):
            epsilon = draw(index, i) if i % 2 else -epsilon
            _, loss = unroll(s, theta + epsilon, inputs, targets)
            g = g + epsilon * loss
        g = g / (n * SIGMA**2)
        s, _ = unroll(s, theta, inputs, targets)
        theta = theta - ALPHA * g
        grads.append(g)
    return grads, theta


def pes(windows, theta, n, resets, draw):
    """パーシステント進化戦略を適用した RNN の学習(PES)."""
    grads = []
    for index, (inputs, targets) in enumerate(windows):
        if resets(index):
            s = dict.fromkeys(range(1, n + 1), S0)
            xi = dict.fromkeys(range(1, n + 1), np.zeros(D))
        g, epsilon = np.zeros(D), np.zeros(D)
        for i in range(1, n + 1):
            epsilon = draw(index, i) if i % 2 else -epsilon
            s[i], loss = unroll(s[i], theta + epsilon, inputs, targets)
            xi[i] = xi[i] + epsilon
            g = g + xi[i] * loss
        g = g / (n * SIGMA**2)
        theta = theta - ALPHA * g
        grads.append(g)
    return grads, theta


def step(theta, s, x, key):
    u, w, b, v = split(theta)
    s = jnp.tanh(u @ x["input"] + w @ s + b)
    return s, (v @ s - x["target"]) ** 2


rnn = ux.system(init=lambda key, theta: jnp.asarray(S0), step=step)


@jax.jit
def estimate(estimator, table, theta, state, data):
    """One window of an estimator that draws from a table of noise in units of σ, `[N / 2, D]`."""
    return replace(estimator, sampler=deal(table)).estimate(theta, state, data)


@pytest.mark.parametrize(("algorithm", "make"), [(es, ux.ES), (pes, ux.PES)])
@pytest.mark.parametrize(
    ("n", "k", "t", "count"),
    [(2, 1, None, 6), (6, 4, None, 4), (10, 3, 9, 7), (4, 5, 5, 3), (8, 1, 3, 8)],
)
def test_the_text_and_the_library_give_the_same_gradients(algorithm, make, n, k, t, count):
    rng = np.random.default_rng([n, k, count])
    windows = [(rng.normal(size=(k, INPUTS)), rng.normal(size=k)) for _ in range(count)]
    units = rng.normal(size=(count, n // 2, D))
    theta = start = 0.5 * rng.normal(size=D)
    expected, last = algorithm(
        windows,
        theta,
        n,
        resets=lambda index: index * k % t == 0 if t else index == 0,
        draw=lambda index, i: SIGMA * units[index, (i - 1) // 2],
    )

    estimator = make(rnn, std=SIGMA, window=k, horizon=t, pairs=n // 2)
    state = estimator.init(jax.random.key(0), theta)
    for (inputs, targets), table, grad in zip(windows, units, expected, strict=True):
        state, got = estimate(estimator, table, theta, state, {"input": inputs, "target": targets})
        np.testing.assert_allclose(k * got.grad, grad, rtol=1e-10, atol=1e-10 * np.abs(grad).max())
        theta = theta - ALPHA * k * np.asarray(got.grad)
    np.testing.assert_allclose(theta, last, rtol=1e-10, atol=1e-12)
    assert np.abs(last - start).max() > 1e-2


def test_the_two_algorithms_of_the_text_part_after_the_first_window():
    rng = np.random.default_rng(0)
    windows = [(rng.normal(size=(2, INPUTS)), rng.normal(size=2)) for _ in range(3)]
    units = rng.normal(size=(3, 2, D))
    theta = 0.5 * rng.normal(size=D)
    runs = [
        run(windows, theta, 4, lambda index: index == 0, lambda index, i: SIGMA * units[index, (i - 1) // 2])[0]
        for run in (es, pes)
    ]
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-14)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(runs[0][1:], runs[1][1:], strict=True))
