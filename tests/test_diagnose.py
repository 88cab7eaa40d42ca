"""Diagnosis and advice: what is advised where it is known what helps, and that what is predicted comes true."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax import _measure, _rules
from unrollax._advise import Case

KEY = jax.random.key(0)


def leak(rate):
    """A leaky integrator: its state's derivative is `rate` at each step."""

    def step(params, state, x, key):
        state = rate * state + params * x
        return state, (state - 1) ** 2

    return ux.system(init=lambda key, params: jnp.zeros(()), step=step), jnp.asarray(0.5), jax.random.normal(KEY, (64,))


def logistic(steps=60):
    def step(params, state, x, key):
        state = params["r"] * state * (1 - state)
        return state, (state - params["a"]) ** 2

    params = {"r": jnp.asarray(3.9), "a": jnp.asarray(0.5)}
    return ux.system(init=lambda key, params: jnp.asarray(0.3), step=step), params, steps


def lstm(bias, steps=48):
    net = ux.recurrent(ux.LSTMCell(3, 8, forget_bias=bias), ux.Dense(8, 2), ux.squared_error)
    data = ux.sequence(jax.random.normal(KEY, (steps, 3)), jax.random.normal(KEY, (steps, 2)))
    return net, net.params(jax.random.key(1)), data


def test_a_contracting_system_is_told_to_truncate_where_little_is_lost():
    system, params, data = leak(0.5)
    found = ux.diagnose(system, params, data, key=KEY, verify=True)
    assert found.dynamics.verdict == "vanishing"
    (piece,) = found.advice
    window = found.flow.window_for(0.1)
    assert piece.title == f"Truncate to windows of {window} steps"
    assert piece.option == f"ux.TBPTT(system, window={window}, horizon=64)"
    assert piece.held
    np.testing.assert_allclose(piece.measured, piece.predicted, rtol=1e-9)


def test_an_integrator_is_told_not_to_truncate():
    system, params, data = leak(1.0)
    found = ux.diagnose(system, params, data, key=KEY, verify=True)
    assert found.dynamics.verdict == "neutral"
    assert [piece.title for piece in found.advice] == ["Don't truncate: take the whole horizon"]
    assert found.advice[0].held


def test_a_chaotic_system_is_told_to_leave_the_exact_gradient():
    system, params, steps = logistic()
    found = ux.diagnose(system, params, None, key=KEY, horizon=steps, verify=True)
    assert found.dynamics.verdict == "exploding"
    titles = [piece.title for piece in found.advice]
    assert titles[0] == "Take an evolution strategy in place of the exact gradient"
    assert any(title.startswith("Begin with a horizon of") for title in titles)
    assert not any("Truncate" in title for title in titles)
    assert all(piece.held for piece in found.advice)
    assert [piece.rank for piece in found.advice] == list(range(1, len(titles) + 1))


def test_the_radius_of_a_gradient_is_where_its_prediction_ends():
    """sin(p) at p = 0: its central difference is sin(r) / r, which is half of the derivative at r = 1.8955."""
    system = ux.system(init=lambda key, params: (), step=lambda p, s, x, key: (s, jnp.sin(p)))
    flow = ux.gradient_flow(system, 0.0, None, key=KEY, horizon=1)
    case = Case(system, jnp.asarray(0.0), None, KEY, flow, None, (), None)
    assert _measure.radius(case, 1.9) == 0.95
    assert _measure.radius(case, 1.89) == 1.89


@pytest.mark.parametrize("cell", [ux.LSTMCell(3, 8, forget_bias=0.0), ux.GRUCell(3, 8)])
def test_a_cell_that_forgets_is_told_to_open_its_gate(cell):
    net = ux.recurrent(cell, ux.Dense(8, 2), ux.squared_error)
    data = ux.sequence(jax.random.normal(KEY, (48, 3)), jax.random.normal(KEY, (48, 2)))
    found = ux.diagnose(net, net.params(jax.random.key(1)), data, key=KEY, verify=True)
    piece = next(piece for piece in found.advice if piece.title.startswith("Open the gate"))
    np.testing.assert_allclose(piece.predicted, -2 / 48, rtol=1e-6)
    assert found.gates[0].predicted < -0.4
    assert piece.held
    assert "chrono=48" in piece.option


def test_a_cell_that_remembers_is_told_nothing_of_gates():
    system, params, data = lstm(5.0)
    found = ux.diagnose(system, params, data, key=KEY)
    assert not [piece for piece in found.advice if "gate" in piece.title]
    assert all(piece.measured is None and piece.held is None for piece in found.advice)


def test_an_outlier_among_the_losses_is_cut_off():
    system = ux.system(init=lambda key, params: (), step=lambda p, s, x, key: (s, p * x))
    data = jnp.ones(20).at[7].set(1e4)
    found = ux.diagnose(system, 1.0, data, key=KEY, verify=True)
    (piece,) = [piece for piece in found.advice if piece.title == "Bound the step losses at 10"]
    np.testing.assert_allclose([piece.predicted, piece.measured], [29 / 20] * 2)
    assert piece.held


def test_memory_is_predicted_and_measured():
    """A tanh net with 400 units over 4,096 steps: 13 MB of states and as much again of what tanh keeps, in float64."""
    net = ux.recurrent(ux.RNNCell(1, 400), ux.Dense(400, 1), ux.squared_error)
    params, steps = net.params(KEY), 4096
    data = ux.sequence(jnp.ones((steps, 1)), jnp.ones((steps, 1)))
    flow = ux.gradient_flow(net, params, data, key=KEY, at=[steps - 1], windows=())
    flow = flow._replace(table=np.zeros((1, steps)))
    case = Case(net, params, data, KEY, flow, None, (), None)
    full, less = _measure.backward_needs(case)
    assert full > 2 * 8 * 400 * steps
    assert less < full / 20
    assert _rules.checkpoint(case) is None or full >= _rules.LARGE


def test_at_most_five_pieces_in_order(monkeypatch):
    from unrollax._advise import Finding, ranked

    rules = [
        lambda case, w=w: Finding(w, f"rule {w}", "", "", 1.0, "", "", lambda: 3.0, lambda got: got == 1.0)
        for w in (0.1, 0.9, 0.5, 0.3, 0.2, 0.8)
    ]
    pieces = ranked(None, [*rules, lambda case: None], verify=True, observe=lambda text: None)
    assert [piece.title for piece in pieces] == ["rule 0.9", "rule 0.8", "rule 0.5", "rule 0.3", "rule 0.2"]
    assert not any(piece.held for piece in pieces)
    assert "Predicted 1, measured 3: the prediction did not hold." in str(pieces[0])


def test_a_comparison_is_advised_by():
    system, params, data = leak(0.5)
    some = {"bptt": ux.BPTT(system, horizon=64), "tbptt:16": ux.TBPTT(system, window=16, horizon=64)}
    compared = ux.compare(some, params, data, key=KEY, samples=4, unit="steps")
    found = ux.diagnose(system, params, data, key=KEY, comparison=compared)
    assert found.advice[0].title == f"Take {compared.recommended}"
    assert found.advice[0].why == compared.reason


def test_a_state_without_numbers_has_no_dynamics():
    system = ux.system(init=lambda key, params: jnp.int32(0), step=lambda p, s, x, key: (s + 1, (p - x) ** 2))
    found = ux.diagnose(system, 1.0, jnp.arange(6.0), key=KEY)
    assert found.dynamics is None
    assert found.gates == ()


def test_it_prints_and_turns_to_plain_numbers():
    system, params, data = lstm(0.0, 16)
    said = []
    found = ux.diagnose(system, params, data, key=KEY, observe=said.append)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["advice"][0]["title"] in str(found)
    assert plain["gates"][0]["cell"] == "LSTMCell"
    assert "Gradient flow of 16 losses" in str(found)
    assert said[0].startswith("gradient_flow")
