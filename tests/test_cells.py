import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(5)
INPUTS, HIDDEN = 3, 4


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def rnn(p, h, x):
    h = np.tanh(x @ p["wx"] + h @ p["wh"] + p["b"])
    return h, h


def lstm(p, state, x):
    """Gate by gate, each with its own block of columns."""
    h, c = state
    i, f, o, g = (
        x @ p["wx"][:, k * HIDDEN : (k + 1) * HIDDEN]
        + h @ p["wh"][:, k * HIDDEN : (k + 1) * HIDDEN]
        + p["b"][k * HIDDEN : (k + 1) * HIDDEN]
        for k in range(4)
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


def gru(p, h, x):
    wx, wh, b = (np.split(p[name], 3, axis=-1) for name in ("wx", "wh", "b"))
    r = sigmoid(x @ wx[0] + h @ wh[0] + b[0])
    z = sigmoid(x @ wx[1] + h @ wh[1] + b[1])
    n = np.tanh(x @ wx[2] + b[2] + r * (h @ wh[2] + p["bn"]))
    h = (1 - z) * n + z * h
    return h, h


CELLS = {"rnn": (ux.RNNCell, rnn, 1), "lstm": (ux.LSTMCell, lstm, 4), "gru": (ux.GRUCell, gru, 3)}
cells = pytest.mark.parametrize("name", CELLS)


def perturbed(cell):
    """Parameters without zeros, so that every bias counts."""
    params = cell.params(KEY)
    return {k: v + 0.1 * jax.random.normal(jax.random.key(i), v.shape) for i, (k, v) in enumerate(params.items())}


@cells
def test_a_cell_steps_as_its_equations_say(name):
    make, literal, _ = CELLS[name]
    cell = make(INPUTS, HIDDEN)
    params = perturbed(cell)
    plain = {k: np.asarray(v) for k, v in params.items()}
    state = cell.init(params)
    expected = (np.zeros(HIDDEN), np.zeros(HIDDEN)) if name == "lstm" else np.zeros(HIDDEN)
    for x in np.random.default_rng(0).normal(size=(4, INPUTS)):
        state, output = cell.step(params, state, jnp.asarray(x))
        expected, expected_output = literal(plain, expected, x)
        np.testing.assert_allclose(output, expected_output, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), state, expected)


@cells
def test_parameters_have_the_shapes_of_the_docstring(name):
    make, _, gates = CELLS[name]
    shapes = jax.tree.map(jnp.shape, make(INPUTS, HIDDEN).params(KEY))
    expected = {"wx": (INPUTS, gates * HIDDEN), "wh": (HIDDEN, gates * HIDDEN), "b": (gates * HIDDEN,)}
    assert shapes == expected | ({"bn": (HIDDEN,)} if name == "gru" else {})


@cells
def test_recurrent_weights_start_orthogonal_gate_by_gate(name):
    make, _, gates = CELLS[name]
    blocks = np.split(np.asarray(make(INPUTS, HIDDEN).params(KEY)["wh"]), gates, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(HIDDEN), atol=1e-12)
    assert len({block.tobytes() for block in blocks}) == gates


@cells
def test_input_weights_start_glorot_uniform_gate_by_gate(name):
    make, _, gates = CELLS[name]
    hidden = 300
    bound = np.sqrt(6 / (INPUTS + hidden))
    blocks = np.split(np.asarray(make(INPUTS, hidden).params(KEY)["wx"]), gates, axis=1)
    for block in blocks:
        count, scaled = block.size, block / bound
        assert np.abs(scaled).max() <= 1
        assert abs(scaled.mean()) < 4 / np.sqrt(3 * count)  # z = 4, variance 1/3
        assert abs((scaled**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / count)  # z = 4, variance of a square 4/45
    assert len({block.tobytes() for block in blocks}) == gates


@pytest.mark.parametrize("name", ["rnn", "gru"])
def test_biases_start_at_zero(name):
    params = CELLS[name][0](INPUTS, HIDDEN).params(KEY)
    assert not any(np.any(leaf) for key, leaf in params.items() if key.startswith("b"))


@pytest.mark.parametrize("bias", [1.0, -2.5])
def test_the_forget_bias_goes_to_the_forget_gate_alone(bias):
    b = np.asarray(ux.LSTMCell(INPUTS, HIDDEN, forget_bias=bias).params(KEY)["b"])
    np.testing.assert_array_equal(b, np.repeat([0, bias, 0, 0], HIDDEN))
    default = ux.LSTMCell(INPUTS, HIDDEN).params(KEY)["b"]
    np.testing.assert_array_equal(default, np.repeat([0, 1, 0, 0], HIDDEN))


@pytest.mark.parametrize("longest", [3, 10, 1000])
def test_chrono_biases_draw_the_memory_uniformly_and_close_the_input_gate(longest):
    hidden = 400
    i, f, o, g = np.split(np.asarray(ux.LSTMCell(1, hidden, forget_bias=9.0, chrono=longest).params(KEY)["b"]), 4)
    memory = (np.exp(f) - 1) / (longest - 2)  # uniform on [0, 1]
    assert -1e-12 <= memory.min() < 0.05
    assert 0.95 < memory.max() <= 1
    assert abs(memory.mean() - 0.5) < 4 * np.sqrt(1 / 12 / hidden)  # z = 4
    np.testing.assert_array_equal(i, -f)
    assert not np.any([o, g])


@pytest.mark.parametrize("chrono", [2, 0, -5])
def test_a_chrono_range_without_room_is_named(chrono):
    with pytest.raises(ux.InvalidArgument, match=rf"^LSTMCell: chrono must be at least 3 steps, got chrono={chrono}\."):
        ux.LSTMCell(1, 2, chrono=chrono)


def test_a_forget_gate_of_one_and_an_input_gate_of_zero_keep_the_memory():
    cell = ux.LSTMCell(INPUTS, HIDDEN)
    params = cell.params(KEY) | {"b": jnp.repeat(jnp.array([-1e3, 1e3, 1e3, 0.0]), HIDDEN)}
    memory = jnp.linspace(-2, 2, HIDDEN)
    (h, c), output = cell.step(params, (jnp.zeros(HIDDEN), memory), jnp.ones(INPUTS))
    np.testing.assert_array_equal(c, memory)
    np.testing.assert_array_equal(output, h)
    np.testing.assert_allclose(h, np.tanh(memory), rtol=1e-14)


def test_a_readout_is_linear():
    readout = ux.Dense(2, 3)
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([1.0, 0.0, -1.0])}
    np.testing.assert_array_equal(readout.apply(params, jnp.array([1.0, 2.0])), [7, 9, 11])
    drawn = readout.params(KEY)
    assert jax.tree.map(jnp.shape, drawn) == {"w": (2, 3), "b": (3,)}
    assert np.abs(drawn["w"]).max() <= np.sqrt(6 / 5)
    assert not np.any(drawn["b"])


@cells
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_state_has_the_parameters_dtype(name, dtype):
    cell = CELLS[name][0](INPUTS, HIDDEN)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), cell.params(KEY))
    before = cell.init(params)
    after, _ = cell.step(params, before, jnp.ones(INPUTS, dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves((before, after))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("make", [ux.RNNCell, ux.LSTMCell, ux.GRUCell])
@pytest.mark.parametrize(("inputs", "hidden", "named"), [(0, 1, "inputs"), (1, -1, "hidden"), (1, True, "hidden")])
def test_a_size_that_is_no_positive_whole_number_is_named(make, inputs, hidden, named):
    with pytest.raises(ux.InvalidArgument, match=rf"^{make.__name__}: {named} must be a positive whole number"):
        make(inputs, hidden)


def test_a_readout_without_outputs_is_named():
    with pytest.raises(ux.InvalidArgument, match=r"^Dense: outputs must be a positive whole number, got outputs=0\."):
        ux.Dense(1, 0)
