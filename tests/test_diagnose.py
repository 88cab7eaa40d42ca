"""Diagnosis and advice: what is advised where it is known what helps, and that what is predicted comes true."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax import _measure, _measure_gates, _rules, _rules_gradient
from unrollax._advise import Case
from unrollax._tree import strong

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


def case_of(system, params, steps, data=None):
    """A case of which only the gradient flow is measured."""
    params = strong(params)
    flow = ux.gradient_flow(system, params, data, key=KEY, horizon=steps)
    return Case(system, params, data, KEY, flow, None, (), None)


def stateless(loss):
    return ux.system(init=lambda key, params: (), step=lambda p, s, x, key: (s, loss(p, x)))


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
    case = case_of(system, jnp.asarray(0.0), 1)
    assert _measure.radius(case, 1.9) == 0.95
    assert _measure.radius(case, 1.89) == 1.89


def test_a_gradient_that_predicts_nothing_has_no_radius():
    """Steps of 1 and a slope against them: the rise has the wrong sign at all distances that rounding lets one see."""
    jump = lambda p, s, x, key: (s, jnp.where(p > 0, 1.0, 0.0) - 1e-9 * p)
    system = ux.system(init=lambda key, params: (), step=jump)
    assert np.isnan(_measure.radius(case_of(system, jnp.asarray(0.0), 1), 1.0))


@pytest.mark.parametrize("cell", [ux.LSTMCell(3, 32, forget_bias=0.0), ux.GRUCell(3, 32)])
def test_a_gate_is_opened_by_what_the_option_does(cell):
    """The option, applied to a new net, gives the decay that was predicted, and no such advice again."""
    data = ux.sequence(jax.random.normal(KEY, (48, 3)), jax.random.normal(KEY, (48, 2)))

    def diagnosed(cell):
        net = ux.recurrent(cell, ux.Dense(32, 2), ux.squared_error)
        params = net.params(jax.random.key(1))
        gates = ux.gate_statistics(net, params, data, key=KEY)
        case = case_of(net, params, 48, data)._replace(gates=(gates,))
        return gates, case, _rules.remember(case)

    before, case, piece = diagnosed(cell)
    assert before.predicted < -0.4
    assert piece.holds(piece.measure())
    assert not piece.holds(before.measured)
    opened = _measure_gates.opened_gate(case, 0)
    name, amount = opened.option.split("=")
    assert piece.option == f"ux.{before.cell}(inputs, hidden, {opened.option})"
    after, _, again = diagnosed(type(cell)(3, 32, **{name: float(amount) if "." in amount else int(amount)}))
    np.testing.assert_allclose(after.predicted, piece.predicted, rtol=0.5 if name == "chrono" else 0.15)
    assert again is None


def test_the_rate_of_chrono_is_the_mean_over_its_draws():
    """Of 10^5 draws, z = 5."""
    from unrollax.systems._initial import chrono_bias

    rates = -np.logaddexp(0, -np.asarray(chrono_bias(KEY, 100_000, 48)))
    assert abs(rates.mean() - _measure_gates.chrono_rate(48)) < 5 * rates.std() / np.sqrt(len(rates))


def test_of_a_stack_the_layer_that_forgets_is_named():
    cell = ux.stacked(ux.LSTMCell(2, 4, forget_bias=6.0), ux.LSTMCell(4, 4, forget_bias=-1.0))
    net = ux.recurrent(cell, ux.Dense(4, 1), ux.squared_error)
    params = net.params(jax.random.key(1))
    data = ux.sequence(jax.random.normal(KEY, (24, 2)), jnp.ones((24, 1)))
    gates = tuple(ux.gate_statistics(net, params, data, key=KEY, layer=layer) for layer in (0, 1))
    piece = _rules.remember(case_of(net, params, 24, data)._replace(gates=gates))
    assert "Open the gate f of layer 1" in piece.title
    assert piece.holds(piece.measure())


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


def test_memory_is_predicted_and_measured(monkeypatch):
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
    assert full < _rules.LARGE
    assert _rules.checkpoint(case) is None
    monkeypatch.setattr(_rules, "LARGE", full)
    finding = _rules.checkpoint(case)
    measured = finding.measure()
    assert finding.predicted == less
    assert finding.holds(measured)
    assert not finding.holds(full)
    assert not finding.holds(less / 4)


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


def test_windows_that_do_not_divide_the_horizon_are_measured_as_gradient_flow_measures_them():
    """By `jax.grad` with 24, 24, 24 and 25 - 24 steps to a window; the system draws nothing."""
    system, params, _ = leak(0.9)
    data = jax.random.normal(KEY, (97,))
    flow = ux.gradient_flow(system, params, data, key=KEY, windows=[24])
    case = case_of(system, params, 97, data)._replace(flow=flow)
    np.testing.assert_allclose(_measure.truncated_grad(case, 24), flow.lost[0], rtol=1e-9)
    piece = _rules.truncate(case._replace(flow=flow._replace(lost=np.array([0.01]))))
    assert piece.option == "ux.TBPTT(system, window=24, horizon=96)"
    assert "this horizon of 97" in piece.why
    assert not piece.holds(0.03)


def test_one_window_of_a_prime_horizon_is_no_reason_to_take_it_whole():
    system, params, _ = leak(0.5)
    case = case_of(system, params, 97, jax.random.normal(KEY, (97,)))
    short = case.flow._replace(windows=np.array([1]), lost=np.array([0.14]))
    assert _rules.keep_whole(case._replace(flow=short)) is None
    assert _rules.keep_whole(case._replace(flow=short._replace(windows=np.array([25])))) is not None
    assert (
        _rules.keep_whole(case._replace(flow=short._replace(windows=np.array([25]), lost=np.array([np.nan])))) is None
    )


@pytest.mark.parametrize(("horizon", "parts"), [(60, (6, 60)), (97, (9, 97 // 9 * 9)), (7, (1, 7)), (1, (1, 1))])
def test_windows_of_an_evolution_strategy_are_near_a_tenth(horizon, parts):
    assert _rules_gradient._split(horizon) == parts


def test_a_gradient_of_jumps_is_left_for_an_evolution_strategy():
    """The gradient is exactly 0; the reviewer's system."""
    step = lambda p, s, x, key: (0.9 * s + jnp.floor(10 * p * x) / 10, (s - 1) ** 2)
    system = ux.system(init=lambda key, p: jnp.zeros(()), step=step)
    found = ux.diagnose(system, 0.35, jnp.ones(20), key=KEY, verify=True)
    assert found.advice[0].title == "Take an evolution strategy in place of the exact gradient"
    assert "The exact gradient is 0, though the loss changes" in found.advice[0].why
    assert found.advice[0].held
    assert not any("truncate" in piece.title.lower() for piece in found.advice)
    assert "nan" not in "".join(map(str, found.advice))


def test_a_gradient_that_says_too_little_is_left_whatever_the_dynamics():
    """round(100 p x) / 100 rises like p x, and its gradient is 0: the 1e-4 beside it is all that BPTT sees."""
    system = stateless(lambda p, x: jnp.round(100 * p * x) / 100 + 1e-4 * p)
    found = ux.diagnose(system, 0.5, 1 + jax.random.uniform(KEY, (40,)), key=KEY, verify=True)
    (piece,) = found.advice
    assert piece.title.startswith("Take an evolution strategy")
    assert "the loss rises 1.6e+04 times" in piece.why
    assert piece.held


def test_params_without_effect_are_named_so():
    found = ux.diagnose(stateless(lambda p, x: jax.nn.relu(p) + x), -1.0, jnp.arange(6.0), key=KEY, verify=True)
    titles = [piece.title for piece in found.advice]
    assert titles == ["Find out why the params have no effect on the loss"]
    assert not found.advice[0].held  # twice as far the params are above 0: the prediction says so
    flat = ux.diagnose(stateless(lambda p, x: 0 * p + x), -1.0, jnp.arange(6.0), key=KEY, verify=True)
    assert flat.advice[0].held


def test_a_minimum_is_no_fault():
    found = ux.diagnose(stateless(lambda p, x: p**2), 0.0, jnp.arange(6.0), key=KEY)
    assert found.advice == []
    assert "No rule applies." in str(found)


def test_an_exploding_system_without_advice_is_not_called_fine():
    """The reviewer's system: linear in the state, so the gradient explodes and still predicts the loss."""
    system = ux.system(init=lambda k, p: 1.0 + 0 * p, step=lambda p, s, x, k: (p * s, (p * s - 3) ** 2))
    found = ux.diagnose(system, 1.3, None, horizon=10, key=KEY)
    assert found.dynamics.verdict == "exploding"
    assert "the gradient comes through" not in str(found._replace(advice=[]))
    system, params, data = leak(0.5)
    assert "the gradient comes through" in str(ux.diagnose(system, params, data, key=KEY)._replace(advice=[]))


@pytest.mark.parametrize("kind", ["callback", "while"])
def test_a_step_without_a_derivative_is_refused_in_words(kind):
    def outside(p):
        if kind == "callback":
            return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), p.dtype), p)
        return jax.lax.while_loop(lambda y: y < 10, lambda y: y * 2, p)

    system = ux.system(init=lambda k, p: jnp.zeros(()), step=lambda p, s, x, k: (s, outside(p)))
    with pytest.raises(
        ux.InvalidArgument, match=r"(?s)^diagnose: step must have a derivative, got .* unrollax.compare"
    ):
        ux.diagnose(system, 1.0, jnp.ones(4), key=KEY)


def test_a_step_without_a_forward_derivative_goes_without_dynamics():
    @jax.custom_vjp
    def own(x):
        return jnp.sin(x)

    own.defvjp(lambda x: (own(x), x), lambda x, g: (g * jnp.cos(x),))
    system = ux.system(init=lambda k, p: jnp.zeros(()), step=lambda p, s, x, k: (own(p * s + x), s**2))
    found = ux.diagnose(system, 0.5, jnp.ones(16), key=KEY, verify=True)
    assert found.dynamics is None
    assert found.flow.table.shape == (16, 16)
    assert found.advice


def test_losses_that_are_not_finite_are_spoken_of():
    broken = ux.diagnose(stateless(lambda p, x: jnp.log(p) * x), -1.0, jnp.ones(8), key=KEY, verify=True)
    assert broken.advice[0].title == "Mend the step: no loss is finite"
    assert "8 of 8 losses are not finite, the first at step 0" in broken.advice[0].why
    assert broken.advice[0].held is None
    data = jnp.zeros(9).at[5].set(jnp.inf).at[8].set(0.5)
    (piece,) = ux.diagnose(stateless(lambda p, x: jnp.abs(p * x)), 1.0, data, key=KEY, verify=True).advice
    assert piece.title == "Bound the step losses at 5"
    assert "1 of 9 losses are not finite, the first at step 5" in piece.why
    np.testing.assert_allclose([piece.predicted, piece.measured], [5.5 / 9] * 2)


def test_losses_at_few_steps_are_no_outliers():
    case = case_of(stateless(lambda p, x: p * x), jnp.asarray(1.0), 400, jnp.zeros(400).at[-1].set(3.0))
    assert _rules_gradient.clip_losses(case) is None


def test_gradients_that_are_not_finite_are_not_clipped(monkeypatch):
    system, params, steps = logistic(8)
    case = case_of(system, params, steps)._replace(dynamics=ux.lyapunov(system, params, None, key=KEY, steps=steps))
    case = case._replace(dynamics=case.dynamics._replace(verdict="exploding"))
    norms = np.array([1.0] * 14 + [50.0, 60.0])
    monkeypatch.setattr(_measure, "gradient_norms", lambda case, key: norms)
    piece = _rules_gradient.clip_gradient(case)
    assert piece.predicted == 2 / 16
    assert piece.holds(5 / 16)
    assert not piece.holds(8 / 16)
    monkeypatch.setattr(_measure, "gradient_norms", lambda case, key: np.append(norms, np.inf))
    assert _rules_gradient.clip_gradient(case) is None


def test_what_cannot_be_measured_is_neither_held_nor_not():
    from unrollax._advise import Finding, ranked

    rule = lambda case: Finding(1.0, "a", "", "", 1.0, "", "", lambda: np.nan, lambda got: got == 1.0)
    (piece,) = ranked(None, [rule], verify=True, observe=lambda text: None)
    assert piece.held is None
    assert "Predicted 1: below what can be measured." in str(piece)


def test_a_comparison_in_which_none_arrives_is_no_advice():
    system, params, data = leak(0.5)
    some = {"bptt": ux.BPTT(system, horizon=64), "tbptt:16": ux.TBPTT(system, window=16, horizon=64)}
    compared = ux.compare(some, params, data, key=KEY, samples=4, unit="steps")
    case = case_of(system, params, 64, data)._replace(comparison=compared)
    assert _rules.take(case).option == compared.recommended
    never = compared._replace(rows=[row._replace(cost_to=np.inf) for row in compared.rows])
    assert _rules.take(case._replace(comparison=never)) is None
