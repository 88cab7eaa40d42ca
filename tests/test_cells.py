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


def min_gru(p, h, x):
    z = sigmoid(x @ p["wx"][:, :HIDDEN] + p["b"][:HIDDEN])
    n = x @ p["wx"][:, HIDDEN:] + p["b"][HIDDEN:]
    h = (1 - z) * h + z * n
    return h, h


def lru(p, state, x):
    """In complex numbers."""
    h = state[0] + 1j * state[1]
    eigenvalue = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    h = eigenvalue * h + np.exp(p["gamma_log"]) * (x @ (p["b_re"] + 1j * p["b_im"]))
    return (h.real, h.imag), (h @ (p["c_re"] + 1j * p["c_im"])).real + x @ p["d"]


CELLS = {"rnn": (ux.RNNCell, rnn, 1), "lstm": (ux.LSTMCell, lstm, 4), "gru": (ux.GRUCell, gru, 3)}
LINEAR = {"min_gru": (ux.MinGRUCell, min_gru, 2), "lru": (ux.LRUCell, lru, None)}
EVERY = CELLS | LINEAR
cells = pytest.mark.parametrize("name", CELLS)
every = pytest.mark.parametrize("name", EVERY)
chronos = pytest.mark.parametrize("make", [ux.LSTMCell, ux.GRUCell, ux.MinGRUCell])


def perturbed(cell):
    """Parameters without zeros, so that every bias counts."""
    params = cell.params(KEY)
    return {k: v + 0.1 * jax.random.normal(jax.random.key(i), v.shape) for i, (k, v) in enumerate(params.items())}


@every
def test_a_cell_steps_as_its_equations_say(name):
    make, literal, _ = EVERY[name]
    cell = make(INPUTS, HIDDEN)
    params = perturbed(cell)
    plain = {k: np.asarray(v) for k, v in params.items()}
    state = cell.init(params)
    expected = jax.tree.map(lambda leaf: np.zeros(HIDDEN), state)
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


@pytest.mark.parametrize("name", ["rnn", "gru", "min_gru"])
def test_biases_start_at_zero(name):
    params = EVERY[name][0](INPUTS, HIDDEN).params(KEY)
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


@pytest.mark.parametrize("longest", [3, 10, 1000])
@pytest.mark.parametrize(("make", "gate", "sign"), [(ux.GRUCell, 1, 1), (ux.MinGRUCell, 0, -1)])
def test_chrono_biases_keep_the_state_of_a_gated_unit_for_the_time_that_they_were_drawn_for(make, gate, sign, longest):
    """z multiplies the old state in the one cell and the new one in the other."""
    hidden = 400
    cell = make(1, hidden, chrono=longest)
    params = cell.params(KEY)
    blocks = np.asarray(params["b"]).reshape(-1, hidden)
    assert not np.any(np.delete(blocks, gate, axis=0))
    spread = (np.exp(sign * blocks[gate]) - 1) / (longest - 2)
    assert -1e-12 <= spread.min() < 0.05
    assert 0.95 < spread.max() <= 1
    assert abs(spread.mean() - 0.5) < 4 * np.sqrt(1 / 12 / hidden)  # z = 4
    still = jax.tree.map(jnp.zeros_like, params) | {"b": params["b"]}
    kept, _ = cell.step(still, jnp.ones(hidden), jnp.zeros(1))
    steps = 1 / (1 - np.asarray(kept))  # after one step a memory of T steps has lost 1/T
    assert steps.min() >= 2 - 1e-9
    assert steps.max() <= longest * (1 + 1e-9)


@chronos
@pytest.mark.parametrize("chrono", [2, 0, -5])
def test_a_chrono_range_without_room_is_named(make, chrono):
    expected = rf"^{make.__name__}: chrono must be at least 3 steps, got chrono={chrono}\."
    with pytest.raises(ux.InvalidArgument, match=expected):
        make(1, 2, chrono=chrono)


@chronos
def test_without_chrono_the_other_weights_are_the_same(make):
    """The option changes the biases of gates alone."""
    plain, chrono = make(INPUTS, HIDDEN).params(KEY), make(INPUTS, HIDDEN, chrono=50).params(KEY)
    assert np.any(np.asarray(plain.pop("b") != chrono.pop("b")))
    jax.tree.map(np.testing.assert_array_equal, plain, chrono)


def test_an_identity_network_adds_up_its_inputs():
    """The IRNN before training: relu of the state plus a small push."""
    cell = ux.RNNCell(INPUTS, 500, activation="relu", initial="identity")
    params = cell.params(KEY)
    np.testing.assert_array_equal(params["wh"], np.eye(500))
    np.testing.assert_array_equal(params["b"], np.zeros(500))
    weights = np.asarray(params["wx"]) / 0.001
    assert abs(weights.mean()) < 4 / np.sqrt(weights.size)  # z = 4
    assert abs((weights**2).mean() - 1) < 4 * np.sqrt(2 / weights.size)  # z = 4, variance of a square 2
    start, x = jnp.linspace(-1, 2, 500), jnp.ones(INPUTS)
    after, _ = cell.step(params, start, x)
    np.testing.assert_allclose(after, np.maximum(start + np.asarray(params["wx"]).sum(axis=0), 0), rtol=1e-12)


@pytest.mark.parametrize("initial", ["orthogonal", "identity"])
def test_the_scale_is_the_modulus_of_every_eigenvalue_at_the_start(initial):
    params = ux.RNNCell(INPUTS, 20, initial=initial, scale=0.7).params(KEY)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(np.asarray(params["wh"]))), np.full(20, 0.7), rtol=1e-10)


def test_a_rectified_cell_steps_as_its_equation_says():
    cell = ux.RNNCell(INPUTS, HIDDEN, activation="relu")
    params = perturbed(cell)
    h, x = np.linspace(-1, 1, HIDDEN), np.array([0.3, -2.0, 1.0])
    expected = np.maximum(x @ params["wx"] + h @ params["wh"] + params["b"], 0)
    assert 0 < np.count_nonzero(expected) < HIDDEN
    np.testing.assert_allclose(cell.step(params, jnp.asarray(h), jnp.asarray(x))[1], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"activation": "gelu"}, r"activation must be one of 'tanh', 'relu', got activation='gelu'"),
        ({"initial": "eye"}, r"initial must be one of 'orthogonal', 'identity', got initial='eye'"),
    ],
)
def test_an_option_of_the_plain_cell_that_is_none_is_named(options, expected):
    with pytest.raises(ux.InvalidArgument, match=rf"^RNNCell: {expected}\."):
        ux.RNNCell(1, 2, **options)


def test_linear_units_start_uniformly_on_the_ring():
    hidden, r_min, r_max, phase = 4000, 0.4, 0.9, 1.5
    params = ux.LRUCell(1, hidden, 1, r_min=r_min, r_max=r_max, max_phase=phase).params(KEY)
    radius, angle = np.exp(-np.exp(np.asarray(params["nu"]))), np.exp(np.asarray(params["theta"]))
    area, turn = (radius**2 - r_min**2) / (r_max**2 - r_min**2), angle / phase
    for uniform in (area, turn):
        assert 0 <= uniform.min() < 0.01
        assert 0.99 < uniform.max() <= 1
        assert abs(uniform.mean() - 0.5) < 4 * np.sqrt(1 / 12 / hidden)  # z = 4
    assert abs(np.corrcoef(area, turn)[0, 1]) < 4 / np.sqrt(hidden)  # z = 4
    np.testing.assert_allclose(np.exp(params["gamma_log"]), np.sqrt(1 - radius**2), rtol=1e-10)


def test_white_noise_keeps_its_variance_in_a_linear_unit():
    """The stationary variance of h is gamma^2 / (1 - |lambda|^2) times that of x B, so gamma makes them equal."""
    cell = ux.LRUCell(1, 3, r_min=0.5, r_max=0.95)
    params = {k: np.asarray(v) for k, v in cell.params(KEY).items()}
    radius = np.exp(-np.exp(params["nu"]))
    response = np.exp(params["gamma_log"]) ** 2 * (radius[None] ** (2 * np.arange(2000)[:, None])).sum(axis=0)
    np.testing.assert_allclose(response, np.ones(3), rtol=1e-9)


def test_weights_of_a_linear_unit_start_with_the_variances_of_the_paper():
    params = ux.LRUCell(7, 300, 11).params(KEY)
    variances = {"b_re": 1 / 14, "b_im": 1 / 14, "c_re": 1 / 300, "c_im": 1 / 300, "d": 1 / 7}
    for name, variance in variances.items():
        scaled = np.asarray(params[name]) / np.sqrt(variance)
        assert abs((scaled**2).mean() - 1) < 4 * np.sqrt(2 / scaled.size), name  # z = 4, variance of a square 2
    assert jax.tree.map(jnp.shape, params) == {
        **dict.fromkeys(("nu", "theta", "gamma_log"), (300,)),
        **dict.fromkeys(("b_re", "b_im"), (7, 300)),
        **dict.fromkeys(("c_re", "c_im"), (300, 11)),
        "d": (7, 11),
    }


@pytest.mark.parametrize("ring", [(0.0, 1.0), (0.999, 1.0), (0.0, 0.001)])
def test_no_draw_of_a_linear_unit_is_infinite_even_in_float32(ring):
    with jax.enable_x64(False):
        params = ux.LRUCell(1, 20_000, 1, r_min=ring[0], r_max=ring[1]).params(KEY)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_linear_unit_is_stable_whatever_its_parameters_are():
    cell = ux.LRUCell(INPUTS, HIDDEN)
    params = cell.params(KEY) | {"nu": jnp.array([-30.0, 0.0, 5.0, 30.0]), "theta": jnp.full(HIDDEN, 3.0)}
    start = (jnp.ones(HIDDEN), jnp.zeros(HIDDEN))
    (re, im), _ = cell.step(params, start, jnp.zeros(INPUTS))
    assert np.all(np.hypot(re, im) <= 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"r_min": 0.9, "r_max": 0.9}, r"the ring must have 0 <= r_min < r_max <= 1, got r_min=0.9, r_max=0.9"),
        ({"r_max": 1.1}, r"the ring must have 0 <= r_min < r_max <= 1, got r_min=0.0, r_max=1.1"),
        ({"max_phase": 0.0}, r"max_phase must be an angle in \(0, 2 pi\], got max_phase=0.0"),
        ({"max_phase": 7.0}, r"max_phase must be an angle in \(0, 2 pi\], got max_phase=7.0"),
    ],
)
def test_a_ring_that_is_none_is_named(options, expected):
    with pytest.raises(ux.InvalidArgument, match=rf"^LRUCell: {expected}\."):
        ux.LRUCell(1, 2, **options)


def test_a_minimal_unit_holds_two_gates():
    assert jax.tree.map(jnp.shape, ux.MinGRUCell(INPUTS, HIDDEN).params(KEY)) == {"wx": (3, 8), "b": (8,)}


def test_a_forget_gate_of_one_and_an_input_gate_of_zero_keep_the_memory():
    cell = ux.LSTMCell(INPUTS, HIDDEN)
    params = cell.params(KEY) | {"b": jnp.repeat(jnp.array([-1e3, 1e3, 1e3, 0.0]), HIDDEN)}
    memory = jnp.linspace(-2, 2, HIDDEN)
    (h, c), output = cell.step(params, (jnp.zeros(HIDDEN), memory), jnp.ones(INPUTS))
    np.testing.assert_array_equal(c, memory)
    np.testing.assert_array_equal(output, h)
    np.testing.assert_allclose(h, np.tanh(memory), rtol=1e-14)


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_state_has_the_parameters_dtype(name, dtype):
    cell = EVERY[name][0](INPUTS, HIDDEN)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), cell.params(KEY))
    before = cell.init(params)
    after, _ = cell.step(params, before, jnp.ones(INPUTS, dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves((before, after))} == {jnp.dtype(dtype)}


@every
def test_a_wider_input_does_not_widen_the_state(name):
    """So that a kernel and its steps have the same states."""
    cell = EVERY[name][0](INPUTS, HIDDEN)
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), cell.params(KEY))
    before = cell.init(params)
    after, output = cell.step(params, before, jnp.ones(INPUTS, "float32"))
    last, outputs = cell.unroll(params, before, jnp.ones((1, INPUTS), "float32"), None)
    kinds = lambda tree: jax.tree.map(lambda leaf: leaf.dtype.name, tree)
    assert kinds(after) == kinds(last) == kinds(before)
    assert output.dtype == outputs.dtype == jnp.float32


@every
@pytest.mark.parametrize(
    ("x", "says"),
    [
        (jnp.ones((4, INPUTS)), r"got float64\[4,3\]\. A step is that of one example: for many take unrollax.batched"),
        (jnp.array(2), r"got int64\[\]\. For codes pass recurrent an encode, .*one_hot, num_classes=3\)"),
        (jnp.array([2, 1]), r"got int64\[2\]\. For codes pass recurrent an encode"),
        (jnp.array(0.5), r"got float64\[\]\. Give it an axis of features: x\[\.\.\., None\]\."),
        (jnp.ones(5), r"got float64\[5\]\. Make inputs=5, or for many examples take unrollax.batched"),
    ],
)
def test_what_a_step_cannot_read_is_named(name, x, says):
    cell = EVERY[name][0](INPUTS, HIDDEN)
    params = cell.params(KEY)
    with pytest.raises(
        ux.StructureError, match=rf"^{type(cell).__name__}: x must be one step of one example, \[3\], {says}"
    ):
        cell.step(params, cell.init(params), x)
    with pytest.raises(ux.StructureError, match=rf"^{type(cell).__name__}: x must be one array, got list\."):
        cell.step(params, cell.init(params), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("make", [make for make, *_ in EVERY.values()])
@pytest.mark.parametrize(("inputs", "hidden", "named"), [(0, 1, "inputs"), (1, -1, "hidden"), (1, True, "hidden")])
def test_a_size_that_is_no_positive_whole_number_is_named(make, inputs, hidden, named):
    with pytest.raises(ux.InvalidArgument, match=rf"^{make.__name__}: {named} must be a positive whole number"):
        make(inputs, hidden)
