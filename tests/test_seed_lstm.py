"""The figures of the text on backpropagation through an LSTM that this library started from, by its formulas and by ours.

The text prints, for the loss at step 3 of three, the gradient with respect to Wx as used at each step, and their norms. Its
code is transcribed here as far as the figures need it, mended where it can't run; `docs/theory/lstm.md` lists what is wrong.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax import kernels

NORMS = [0.010906688399113558, 0.02478099846737857, 0.13901933055672275]  # Wx of step 1, 2, 3
MATRICES = [
    [
        [-1.95768961e-05, 0.00000000e00, 2.77411349e-05, -9.76467796e-03],
        [7.37299593e-06, 0.00000000e00, -1.04477887e-05, 3.67754574e-03],
        [6.36561888e-06, 0.00000000e00, -9.02030083e-06, 3.17508036e-03],
    ],
    [
        [-9.83990139e-03, 6.78775168e-05, -1.10660923e-03, 4.20773125e-04],
        [7.93641636e-03, -5.47469140e-05, 8.92540613e-04, -3.39376441e-04],
        [-2.11067811e-02, 1.45598602e-04, -2.37369846e-03, 9.02566589e-04],
    ],
    [
        [-0.02349287, 0.00135057, -0.11156069, -0.05284914],
        [0.01024921, -0.00058921, 0.04867045, 0.02305643],
        [-0.00429567, 0.00024695, -0.02039889, -0.00966347],
    ],
]


def draws(n=1, d=3, t=3, h=1):
    """Its random numbers in its order: `np.random.seed(1)`, then x, h0, Wx, Wh, b and dout."""
    random = np.random.RandomState(1)
    shapes = {"x": (n, t, d), "h0": (n, h), "wx": (d, 4 * h), "wh": (h, 4 * h), "b": (4 * h,), "dout": (n, t, h)}
    return SimpleNamespace(**{name: random.randn(*shape) for name, shape in shapes.items()})


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def forward(x, prev_h, prev_c, wx, wh, b):
    """One step, and its cache: x, h and c before it, tanh(c) after it, and the gates."""
    ai, af, ao, ag = np.array_split(x @ wx + prev_h @ wh + b, 4, axis=-1)
    i, f, o, g = sigmoid(ai), sigmoid(af), sigmoid(ao), np.tanh(ag)
    next_c = f * prev_c + i * g
    return o * np.tanh(next_c), next_c, (x, prev_h, prev_c, np.tanh(next_c), i, f, o, g)


def dc_da(prev_c, next_c_t, i, f, o, g):
    """The derivatives of the next c and of the next h with respect to the pre-activations, `[N, 4H]` each."""
    dc = [i * (1 - i) * g, f * (1 - f) * prev_c, np.zeros_like(o), (1 - g**2) * i]
    dh = [o * (1 - next_c_t**2) * part for part in dc]
    dh[2] = o * (1 - o) * next_c_t
    return np.concatenate(dc, axis=-1), np.concatenate(dh, axis=-1)


def unrolled(given):
    h, c, caches = given.h0, np.zeros_like(given.h0), []
    for t in range(given.x.shape[1]):
        h, c, cache = forward(given.x[:, t], h, c, given.wx, given.wh, given.b)
        caches.append(cache)
    return caches


def by_step(given, loss, *, dead=False):
    """The gradient of one loss, `dout` at its step, with respect to Wx as used at each step up to it.

    `dead` takes the line for the cotangent of h that the text computes and then overwrites.
    """
    dnext_h, dnext_c, parts = given.dout[:, loss], np.zeros_like(given.h0), []
    for x, _, prev_c, next_c_t, i, f, o, g in reversed(unrolled(given)[: loss + 1]):
        dgrad_c, dgrad_h = dc_da(prev_c, next_c_t, i, f, o, g)
        wide = lambda leaf: np.tile(leaf, 4)  # mended: `[N, H]` by `[N, 4H]` broadcasts for H = 1 alone
        dgrad = wide(dnext_c) * dgrad_c + wide(dnext_h) * dgrad_h
        parts.append(x.T @ dgrad)
        dnext_c = dnext_c * f + dnext_h * o * (1 - next_c_t**2) * f
        dnext_h = (wide(dnext_h) * dgrad_h + wide(dnext_c) * dgrad_c if dead else dgrad) @ given.wh.T
    return parts[::-1]


def test_its_formulas_give_its_figures():
    parts = by_step(draws(), 2)
    np.testing.assert_allclose([np.linalg.norm(part) for part in parts], NORMS, rtol=1e-15)
    for part, printed in zip(parts, MATRICES, strict=True):
        np.testing.assert_array_less(np.abs(part - printed), 0.5000001 * last_digit(printed))


def last_digit(printed):
    """NumPy prints eight digits after the point, of the number or of its mantissa."""
    return (
        1e-8 if np.abs(printed).max() > 0.03 else 1e-8 * 10.0 ** np.floor(np.log10(np.maximum(np.abs(printed), 1e-9)))
    )


def library(given, run):
    """Return `loss(copies of wx, t)`: the text's loss at step t, with a Wx of its own for every step."""

    def loss(copies, last):
        h, c = jnp.asarray(given.h0), jnp.zeros_like(jnp.asarray(given.h0))
        for t in range(last + 1):
            params = {"wx": copies[t], "wh": jnp.asarray(given.wh), "b": jnp.asarray(given.b)}
            (h, c), out = run(params, (h, c), jnp.asarray(given.x[:, t]))
        return jnp.vdot(out, given.dout[:, last])

    return loss


def step_by_kernel(params, state, x):
    state, outputs = kernels.lstm(params, x[None], state)
    return state, outputs[0]


def step_by_cell(params, state, x):
    return jax.vmap(ux.LSTMCell(*params["wx"].shape[:1], params["wh"].shape[0]).step, (None, 0, 0))(params, state, x)


@pytest.mark.parametrize("run", [step_by_kernel, step_by_cell])
def test_our_lstm_gives_its_figures(run):
    given = draws()
    parts = jax.jit(jax.grad(library(given, run)), static_argnums=1)(jnp.stack([given.wx] * 3), 2)
    np.testing.assert_allclose(np.linalg.norm(parts, axis=(1, 2)), NORMS, rtol=1e-12)
    np.testing.assert_allclose(parts, by_step(given, 2), rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("loss", [0, 1, 2])
@pytest.mark.parametrize("sizes", [(1, 3, 3, 1), (2, 5, 3, 4)])
def test_the_parts_of_a_loss_add_up_to_its_gradient(sizes, loss):
    """Also for more sequences and units than one, which its own code can't do."""
    given = draws(*sizes)

    def at(wx):
        params = {"wx": wx, "wh": jnp.asarray(given.wh), "b": jnp.asarray(given.b)}
        start = (jnp.asarray(given.h0), jnp.zeros(given.h0.shape))
        return jnp.vdot(
            kernels.lstm(params, jnp.asarray(given.x), start, batch_major=True)[1][:, loss], given.dout[:, loss]
        )

    grad = jax.jit(jax.grad(at))(jnp.asarray(given.wx))
    np.testing.assert_allclose(grad, sum(by_step(given, loss)), rtol=1e-12, atol=1e-15)


def test_the_line_that_it_overwrites_would_have_been_wrong():
    """Its cotangent of h, from a cotangent of c that has moved on, changes the figures; the line after it is right."""
    norms = [np.linalg.norm(part) for part in by_step(draws(), 2, dead=True)]
    np.testing.assert_allclose(norms, [0.009820440777401069, 0.024671512914740554, NORMS[2]], rtol=1e-12)


def test_its_first_snippet_computes_four_copies_of_one_unit():
    """Weights as wide as H, not 4H: the gates have a quarter of the units, here one, and broadcast over all four."""
    random = np.random.RandomState(232)
    x, h, wx, wh = (random.randn(*shape) for shape in ((2, 3, 5), (2, 4), (5, 4), (4, 4)))
    random.randn(4, 4)
    b, c = random.randn(4), np.zeros((2, 4))
    for t in range(3):
        h, c, (*_, o, _) = forward(x[:, t], h, c, wx, wh, b)
        assert o.shape == (2, 1)
        np.testing.assert_array_equal(np.ptp(h, axis=-1), 0)
    params = {name: jnp.asarray(leaf) for name, leaf in (("wx", wx), ("wh", wh), ("b", b))}
    with pytest.raises(ux.StructureError, match=r"lstm: params must have the shapes wx \[D, 4H\]"):
        kernels.lstm(params, jnp.asarray(x), batch_major=True)
    with pytest.raises(ValueError, match="could not be broadcast"):  # eight units: two don't broadcast over eight
        forward(np.ones((2, 5)), np.ones((2, 8)), np.zeros((2, 8)), np.ones((5, 8)), np.ones((8, 8)), np.ones(8))


def test_a_cell_shrinks_without_a_tanh_as_well():
    """It says that with a sigmoid for g the cell could never decrease: it does, as f < 1."""
    c = 2.0
    assert 0.5 * c + sigmoid(0.0) * sigmoid(0.0) < c
