"""Gates of recurrent cells against NumPy, and the decay of their memory against products of gates and of Jacobians."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(3)
HIDDEN, STEPS = 6, 30
CELLS = {
    "lstm": (ux.LSTMCell(2, HIDDEN), "f"),
    "gru": (ux.GRUCell(2, HIDDEN), "z"),
    "min_gru": (ux.MinGRUCell(2, HIDDEN), "1 - z"),
    "lru": (ux.LRUCell(2, HIDDEN), "|lambda|"),
}
INPUTS = jax.random.normal(jax.random.key(4), (STEPS, 2))


def network(cell, *, recurrent=True):
    """A network and its parameters, with random biases, and recurrent weights or none."""
    net = ux.recurrent(cell, ux.Dense(HIDDEN, 3))
    params = net.params(KEY)
    inner = dict(params["cell"])
    if "b" in inner:
        inner["b"] = inner["b"] + 0.5 * jax.random.normal(KEY, inner["b"].shape)
    if "wh" in inner and not recurrent:
        inner["wh"] = jnp.zeros_like(inner["wh"])
    return net, params | {"cell": inner}


def sequence(inputs=INPUTS, mask=None):
    return ux.sequence(inputs, 1, mask=mask, loss_at="end")


def batch(count, masks=None):
    inputs = jax.random.normal(jax.random.key(5), (count, STEPS, 2))
    masks = jnp.ones((count, STEPS), bool) if masks is None else masks
    return jax.vmap(lambda x, mask: sequence(x, mask), out_axes=1)(inputs, masks)


def trajectory(cell, params, inputs=INPUTS):
    """The states before each step, and the last."""
    states = [cell.init(params)]
    for x in inputs:
        states.append(cell.step(params, states[-1], x)[0])
    return states


def jacobian(cell, params, state, inputs):
    """The literal d (all numbers of the state after the inputs) / d (those before)."""
    flat, unravel = jax.flatten_util.ravel_pytree(state)

    def run(flat):
        state = unravel(flat)
        for x in inputs:
            state = cell.step(params, state, x)[0]
        return jax.flatten_util.ravel_pytree(state)[0]

    return np.asarray(jax.jit(jax.jacfwd(run))(flat))


@pytest.mark.parametrize("name", CELLS)
def test_the_gate_that_keeps_is_the_derivative_of_what_is_kept_without_recurrent_weights(name):
    cell, keep = CELLS[name]
    params = network(cell, recurrent=False)[1]["cell"]
    state = trajectory(cell, params)[3]
    after = jacobian(cell, params, state, INPUTS[3:4])
    gate = np.asarray(cell.gates(params, state, INPUTS[3])[keep])
    assert cell.keep == keep
    if name == "lru":  # a rotation in the plane of each complex number
        after = np.sqrt(after[:HIDDEN, :HIDDEN] ** 2 + after[HIDDEN:, :HIDDEN] ** 2)
    np.testing.assert_allclose(np.diag(after[-HIDDEN:, -HIDDEN:]), gate, atol=1e-15)


def test_gates_are_those_that_a_step_applies():
    for name, compose in {
        "lstm": lambda s, g: g["o"] * np.tanh(g["f"] * s[1] + g["i"] * g["g"]),
        "gru": lambda s, g: (1 - g["z"]) * g["n"] + g["z"] * s,
    }.items():
        cell = CELLS[name][0]
        params = network(cell)[1]["cell"]
        state = trajectory(cell, params)[5]
        gates = {gate: np.asarray(values) for gate, values in cell.gates(params, state, INPUTS[5]).items()}
        composed = compose(jax.tree.map(np.asarray, state), gates)
        np.testing.assert_allclose(cell.step(params, state, INPUTS[5])[1], composed, atol=1e-15)


def test_without_recurrent_weights_the_cells_jacobian_is_the_product_of_the_forget_gates():
    cell = CELLS["lstm"][0]
    net, params = network(cell, recurrent=False)
    states = trajectory(cell, params["cell"])
    forget = np.array([cell.gates(params["cell"], s, x)["f"] for s, x in zip(states, INPUTS, strict=False)])
    product = jacobian(cell, params["cell"], states[0], INPUTS)[HIDDEN:, HIDDEN:]
    np.testing.assert_allclose(np.diag(product), forget.prod(0), rtol=1e-12)
    np.testing.assert_array_equal(product - np.diag(np.diag(product)), 0)
    found = ux.gate_statistics(net, params, sequence(), key=KEY)
    assert found.predicted == pytest.approx(np.log(forget).mean(), abs=1e-12)
    assert found.measured == pytest.approx(found.predicted, abs=1e-12)
    assert found.without == pytest.approx(found.predicted, abs=1e-12)
    assert found.slowest == pytest.approx(np.log(forget).mean(0).max(), abs=1e-12)
    assert found.slowest_predicted == pytest.approx(found.slowest, abs=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_what_is_measured_is_the_mean_and_the_largest_log_singular_value_of_the_literal_product(name):
    cell, few = CELLS[name][0], INPUTS[:8]
    net, params = network(cell)
    found = ux.gate_statistics(net, params, sequence(few), key=KEY)
    product = jacobian(cell, params["cell"], cell.init(params["cell"]), few)
    kept = product[HIDDEN:, HIDDEN:] if name == "lstm" else product
    assert found.measured == pytest.approx(np.linalg.slogdet(kept)[1] / len(kept) / len(few), abs=1e-10)
    assert found.slowest == pytest.approx(np.log(np.linalg.norm(kept, 2)) / len(few), abs=1e-10)
    if name in ("min_gru", "lru"):
        assert found.predicted == pytest.approx(found.measured, abs=1e-12)
        assert found.slowest_predicted == pytest.approx(found.slowest, abs=1e-12)
        assert math.isnan(found.without)
    else:
        assert abs(found.predicted - found.measured) > 1e-4
        plain = ux.gate_statistics(*network(cell, recurrent=False), sequence(few), key=KEY)
        assert (found.without, found.slowest_without) == pytest.approx((plain.predicted, plain.slowest_predicted))


def test_figures_of_a_gate_are_numpys():
    cell = CELLS["lstm"][0]
    net, params = network(cell)
    params["cell"]["b"] *= 4  # so that some saturate
    states = trajectory(cell, params["cell"])
    met = [cell.gates(params["cell"], s, x) for s, x in zip(states, INPUTS, strict=False)]
    found = ux.gate_statistics(net, params, sequence(), key=KEY)
    assert set(found.gates) == {"i", "f", "o", "g"}
    for name, gate in found.gates.items():
        values = np.array([gates[name] for gates in met])
        low = -1 if name == "g" else 0
        np.testing.assert_allclose((gate.mean, gate.std), (values.mean(), values.std()), rtol=1e-12)
        np.testing.assert_allclose(gate.units, values.mean(0), rtol=1e-12)
        np.testing.assert_array_equal(gate.counts, np.histogram(values, np.linspace(low, 1, 21))[0])
        np.testing.assert_allclose(gate.edges, np.linspace(low, 1, 21), atol=1e-15)
        assert gate.saturated == pytest.approx(((values < low + 0.05) | (values > 0.95)).mean())
    assert found.gates["f"].saturated > 0


def test_of_a_batch_the_figures_are_those_of_the_examples_by_their_real_steps():
    net, params = network(CELLS["gru"][0])
    lengths = np.array([30, 12, 1, 20])
    data = batch(4, jnp.asarray(np.arange(STEPS) < lengths[:, None]))
    found = ux.gate_statistics(ux.batched(net, 4), params, data, key=KEY, examples=3)
    alone = [
        ux.gate_statistics(net, params, sequence(data.input[:length, n]), key=KEY)
        for n, length in enumerate(lengths[:3])
    ]
    assert (found.steps, found.examples) == (43, 3)
    for name in ("predicted", "measured", "slowest", "slowest_predicted"):
        pooled = np.average([getattr(one, name) for one in alone], weights=lengths[:3])
        assert getattr(found, name) == pytest.approx(pooled, abs=1e-10), name
    assert found.gates["z"].counts.sum() == 43 * HIDDEN


def test_a_layer_of_a_stack_is_measured_on_what_the_layers_below_give_it():
    low, high = ux.LSTMCell(2, HIDDEN), ux.GRUCell(HIDDEN, HIDDEN)
    net = ux.recurrent(ux.stacked(low, ux.RNNCell(HIDDEN, HIDDEN), high, between=jnp.sin), ux.Dense(HIDDEN, 3))
    params = net.params(KEY)
    h, states = INPUTS, [cell.init(p) for cell, p in zip(net.cell.cells, params["cell"], strict=True)]
    for cell, p, state in zip(net.cell.cells[:2], params["cell"], states, strict=False):
        h = jnp.sin(jax.lax.scan(lambda s, x, c=cell, p=p: c.step(p, s, x), state, h)[1])
    alone = ux.recurrent(high, ux.Dense(HIDDEN, 3))
    expected = ux.gate_statistics(alone, params | {"cell": params["cell"][2]}, sequence(h), key=KEY)
    found = ux.gate_statistics(net, params, sequence(), key=KEY, layer=2)
    assert found.measured == pytest.approx(expected.measured, abs=1e-10)
    assert found.predicted == pytest.approx(expected.predicted, abs=1e-12)
    assert ux.gate_statistics(net, params, sequence(), key=KEY).cell == "LSTMCell"


@ux.value
class Leaky:
    """A cell of a user's own, with one gate and a state of which it keeps half."""

    keep = "rate"

    def params(self, key):
        return {"a": jnp.array([0.5, 1.5])}

    def init(self, params):
        return {"kept": jnp.zeros(2), "last": jnp.zeros(2)}

    def step(self, params, state, x):
        kept = self.gates(params, state, x)["rate"] * state["kept"] + x
        return {"kept": kept, "last": x}, kept

    def gates(self, params, state, x):
        return {"rate": jax.nn.sigmoid(params["a"] + x)}

    def kept(self, state):
        return state["kept"]


def test_a_cell_of_a_users_own_needs_gates_and_keep():
    net = ux.recurrent(Leaky(), ux.Dense(2, 3))
    found = ux.gate_statistics(net, net.params(KEY), sequence(), key=KEY)
    assert (found.cell, found.keep) == ("Leaky", "rate")
    expected = np.log(1 / (1 + np.exp(-np.array([0.5, 1.5]) - np.asarray(INPUTS)))).mean()
    assert found.predicted == pytest.approx(expected, abs=1e-12)
    assert found.measured == pytest.approx(expected, abs=1e-12)


def test_a_gate_that_closes_forgets_and_nothing_is_nan():
    net, params = network(CELLS["lstm"][0], recurrent=False)
    params["cell"]["b"] = params["cell"]["b"].at[HIDDEN].set(-1e4)
    found = ux.gate_statistics(net, params, sequence(), key=KEY)
    assert found.predicted == found.measured == -math.inf
    assert found.slowest == pytest.approx(found.slowest_predicted, abs=1e-12)
    assert found.error == 0


NET, PARAMS = network(CELLS["lstm"][0])
UNGATED = ux.recurrent(ux.RNNCell(2, 6), ux.Dense(6, 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"recurrent": ux.system(init=lambda k, p: 0.0, step=lambda p, s, x, k: (s, s))},
            ux.InvalidArgument,
            "recurrent",
        ),
        ({"recurrent": UNGATED, "params": UNGATED.params(KEY)}, ux.InvalidArgument, "RNNCell"),
        ({"params": jnp.ones(3)}, ux.StructureError, "params must be"),
        ({"params": {"a": 1.0}}, ux.StructureError, "got .'a'"),
        ({"data": None}, ux.StructureError, "Frame"),
        ({"data": sequence(mask=jnp.zeros(STEPS, bool))}, ux.InvalidArgument, "real step"),
        ({"data": sequence(INPUTS.at[4].set(jnp.nan))}, ux.InvalidArgument, "at step 5"),
        ({"recurrent": ux.batched(NET, 3), "data": batch(2)}, ux.StructureError, "3 examples"),
        ({"layer": 1}, ux.InvalidArgument, "layer=1"),
        ({"examples": 0}, ux.InvalidArgument, "examples=0"),
        ({"key": None}, ux.InvalidArgument, "key"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    given = {"recurrent": NET, "params": PARAMS, "data": sequence(), "key": KEY} | change
    with pytest.raises(error, match=message) as raised:
        ux.gate_statistics(**given)
    assert str(raised.value).startswith("gate_statistics: ")


def test_a_result_prints_aligned_and_goes_into_json():
    found = ux.gate_statistics(NET, PARAMS, sequence(), key=KEY)
    text = str(found)
    assert "LSTMCell: the gate f keeps the memory" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    back = json.loads(json.dumps(found.to_dict()))
    assert set(back) == set(found._fields)
    assert back["gates"]["f"]["counts"] == found.gates["f"].counts.tolist()
