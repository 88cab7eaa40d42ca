from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.estimators._entries import layout_of
from unrollax.estimators._pattern import pattern_of
from unrollax.testing import vector

KEY = jax.random.key(2)
STEPS = 12
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(STEPS, 2))
SPARSE = np.eye(5) + np.eye(5, k=1) + (np.arange(25).reshape(5, 5) == 16)  # a chain, and 3 -> 1


def run(cell, reads=lambda out, params: (out**2).sum()):
    """A system of a cell without a learned start."""

    def step(params, state, x, key):
        state, output = cell.step(params, state, x)
        return state, reads(output, params)

    return ux.system(init=lambda key, params: jax.tree.map(lambda s: s + 0.5, cell.init(params)), step=step)


class Chain:
    """h' = tanh(h (W * SPARSE) + x0 u), whose mask is in the code."""

    def params(self, key):
        return {"w": jax.random.normal(key, (5, 5)), "u": jnp.linspace(0.5, 1.0, 5)}

    def init(self, params):
        return jnp.zeros(5)

    def step(self, params, state, x):
        h = jnp.tanh(state @ (params["w"] * SPARSE) + x[0] * params["u"])
        return h, h


RNN, LSTM, GRU, CHAIN = ux.RNNCell(2, 4), ux.LSTMCell(2, 3), ux.GRUCell(2, 3), Chain()


def mask_of(cell):
    """What influences what in one step, by hand: immediate `[S, P]` and state on state `[S, S]`, raveled by leaf name."""
    unit = lambda size, rows: np.broadcast_to(np.eye(size, dtype=bool)[:, None], (size, rows, size)).reshape(size, -1)
    if cell is RNN:  # b, wh, wx: column u of each reaches unit u
        return np.concatenate([unit(4, 1), unit(4, 4), unit(4, 2)], 1), np.ones((4, 4), bool)
    if cell is LSTM:  # gates i, f, o, g reach h_u, all but o reach c_u
        h = lambda rows: np.concatenate([np.eye(3, dtype=bool)] * 4, 1)[:, None].repeat(rows, 1).reshape(3, -1)
        gate = np.array([1, 1, 0, 1], bool).repeat(3)
        c = lambda rows: (np.concatenate([np.eye(3, dtype=bool)] * 4, 1) & gate)[:, None].repeat(rows, 1).reshape(3, -1)
        step = np.concatenate([np.concatenate([part(rows) for rows in (1, 3, 2)], 1) for part in (h, c)])
        # h' reads h and its own c, c' as well.
        one = np.concatenate([np.ones((3, 3), bool), np.eye(3, dtype=bool)], 1)
        return step, np.concatenate([one, one])
    live = SPARSE.astype(bool)
    w = unit(5, 5) & live.reshape(1, -1)
    return np.concatenate([np.eye(5, dtype=bool), w], 1), live.T


def literal(cell, params, window, order):
    """J <- mask (D J + I) after every step with dense Jacobians, a window differentiated exactly."""
    system = run(cell)
    immediate, state = mask_of(cell)
    mask = immediate
    for _ in range(order - 1):
        mask = immediate | (state.astype(int) @ mask.astype(int) > 0)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    s, back = jax.flatten_util.ravel_pytree(system.init(KEY, params))
    move = jax.jit(lambda p, s, x: jax.flatten_util.ravel_pytree(system.step(unravel(p), back(s), x, KEY)[0])[0])

    def loss(p, s, rows):
        losses = []
        state = back(s)
        for x in rows:
            state, each = system.step(unravel(p), state, x, KEY)
            losses.append(each)
        return jnp.stack(losses).mean()

    slopes, jacobians = jax.jit(jax.grad(loss, (0, 1))), jax.jit(jax.jacobian(move, (0, 1)))
    influence, grads = np.zeros((s.size, flat.size)), []
    for rows in np.split(DATA, STEPS // window):
        direct, slope = slopes(flat, s, rows)
        grads.append(direct + slope @ influence)
        for x in rows:
            i, d = jacobians(flat, s, x)
            influence, s = mask * (d @ influence + i), move(flat, s, x)
    return np.array(grads), influence, mask


def over(estimator, params, data=DATA):
    state = estimator.init(KEY, params)
    call, grads = jax.jit(estimator.estimate), []
    for at in range(0, STEPS, estimator.window):
        rows = None if data is None else jax.tree.map(lambda d, at=at: d[at : at + estimator.window], data)
        state, estimate = call(params, state, rows)
        grads.append(vector(estimate.grad))
    return state, np.stack(grads)


CASES = [(RNN, 1, 1), (LSTM, 1, 1), (LSTM, 1, 3), (CHAIN, 1, 2), (CHAIN, 2, 1), (CHAIN, 3, 3), (RNN, 2, 1)]
CASES_IDS = [f"{type(cell).__name__}-order-{order}-window-{window}" for cell, order, window in CASES]


@pytest.mark.parametrize(("cell", "order", "window"), CASES, ids=CASES_IDS)
def test_snap_is_the_masked_recursion_with_dense_jacobians(cell, order, window):
    params = cell.params(jax.random.key(1))
    expected, influence, mask = literal(cell, params, window, order)
    snap = ux.SnAp(run(cell), window, order=order, x=jnp.zeros(2))
    state, grads = over(snap, params)
    np.testing.assert_allclose(grads, expected, rtol=1e-9, atol=1e-11)
    kept = np.concatenate([np.asarray(block).ravel() for block in state.influence])
    real = influence[mask]
    np.testing.assert_allclose(np.sort(kept[kept != 0]), np.sort(real[real != 0]), rtol=1e-9, atol=1e-12)
    if order == 1:  # there is something to leave out
        assert np.abs(over(ux.RTRL(run(cell), window), params)[1] - grads).max() > 1e-4


@pytest.mark.parametrize("cell", [CHAIN, LSTM, GRU], ids=["chain", "lstm", "gru"])
def test_an_order_of_all_states_is_rtrl(cell):
    params = cell.params(jax.random.key(1))
    system = run(cell)
    _, expected = over(ux.RTRL(system, 2, 6), params)
    _, grads = over(ux.SnAp(system, 2, 6, order=6, x=jnp.zeros(2)), params)
    np.testing.assert_allclose(grads, expected, rtol=1e-9, atol=1e-12)


def test_units_that_see_only_themselves_need_one_step_and_one_pull_back():
    system = ux.system(
        init=lambda key, p: p["start"],
        step=lambda p, s, x, key: (jnp.tanh(p["w"] * s + x[0] + p["b"]), (s**2).sum()),
    )
    params = {"w": jnp.linspace(-1.0, 1.0, 6), "b": jnp.full(6, 0.2), "start": jnp.linspace(0.1, 0.6, 6)}
    snap = ux.SnAp(system, 2, 12, x=jnp.zeros(2))
    state, grads = over(snap, params)
    bptt = ux.BPTT(system, STEPS)
    expected = vector(bptt.estimate(params, bptt.init(KEY, params), DATA)[1].grad)
    np.testing.assert_allclose(grads.mean(0), expected, rtol=1e-10)
    assert [block.shape for block in state.influence] == [(6, 1, 3)]
    layout = layout_of(pattern_of("test", system, params, jnp.zeros(2)), 1)
    assert [len(part.cotangents) for part in (layout.state, layout.step, layout.start)] == [1, 1, 1]


def test_a_number_that_all_units_read_makes_snap_rtrl():
    system = ux.system(
        init=lambda key, p: jnp.ones(3),
        step=lambda p, s, x, key: (jnp.tanh(p * jnp.roll(s, 1) + x[0]), (s**2).sum()),
    )
    params = jnp.array(0.7)
    _, expected = over(ux.RTRL(system, 1), params)
    _, grads = over(ux.SnAp(system, 1, x=jnp.zeros(2)), params)
    np.testing.assert_allclose(grads, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("cell", "order", "pulls", "entries"),
    [(RNN, 1, 1, 4 * 7), (LSTM, 1, 2, 2 * 12 * 6 - 3 * 6), (GRU, 1, 1, 3 * (3 * 2 + 3 * 3 + 4)), (RNN, 2, 1, 4 * 28)],
    ids=["rnn", "lstm", "gru", "rnn-2"],
)
def test_rows_that_share_no_params_are_pulled_back_together(cell, order, pulls, entries):
    params = cell.params(KEY)
    pattern = pattern_of("test", run(cell), params, jnp.zeros(2))
    layout = layout_of(pattern, order)
    assert len(layout.step.cotangents) == pulls
    kept = [
        np.broadcast_to(True, (*b.rows.shape, b.columns.shape[1])) if b.kept is None else b.kept for b in layout.blocks
    ]
    assert sum(int(mask.sum()) for mask in kept) == entries


def test_a_readout_costs_no_memory():
    cell = ux.RNNCell(2, 8)
    params = {"cell": cell.params(KEY), "out": jnp.ones((8, 50))}

    def step(params, state, x, key):
        state, output = cell.step(params["cell"], state, x)
        return state, ((output @ params["out"]) ** 2).mean()

    system = ux.system(init=lambda key, p: cell.init(p["cell"]), step=step)
    snap = ux.SnAp(system, 1, x=jnp.zeros(2))
    state = snap.init(KEY, params)
    assert [block.shape for block in state.influence] == [(8, 1, 2 + 8 + 1)]
    _, grads = over(snap, params)
    assert (np.abs(grads[1:]).max(0) > 0).all()  # and still has a gradient


# --- patterns ------------------------------------------------------------------------------------------------------------


def pattern(step, init, params, x=None):
    return pattern_of("test", ux.system(init=init, step=step), params, x)


def test_half_dead_units_are_seen():
    """Every unit of a wide layer of ReLUs is on somewhere, whatever the sign of its weights."""
    step = lambda p, s, x, key: (jax.nn.relu(p * s), s.sum())
    found = pattern(step, lambda key, p: jnp.zeros(200), jnp.ones(200))
    np.testing.assert_array_equal(found.step, np.eye(200, dtype=bool))
    np.testing.assert_array_equal(found.state, np.eye(200, dtype=bool))


def test_large_weights_that_saturate_are_seen():
    step = lambda p, s, x, key: (jnp.tanh(100 * (p @ s)), s.sum())
    found = pattern(step, lambda key, p: jnp.zeros(20), jnp.ones((20, 20)))
    np.testing.assert_array_equal(found.step, np.eye(20, dtype=bool).repeat(20, 1))
    assert found.state.all()


def test_a_table_is_kept_for_rows_that_no_look_met():
    """Tokens choose rows: those beyond the ones that were tried reach what the others do."""
    step = lambda p, s, x, key: (s + p["table"][x], s.sum())
    params = {"table": jnp.zeros((100, 3)), "unused": jnp.zeros(4)}
    found = pattern(step, lambda key, p: jnp.zeros(3), params, jnp.int32(0))
    np.testing.assert_array_equal(found.step[:, :300], np.tile(np.eye(3, dtype=bool), 100))
    assert not found.step[:, 300:].any()


def test_a_schedule_is_kept_for_times_that_no_look_met():
    step = lambda p, s, x, key: ({"s": s["s"] * p[s["t"]], "t": s["t"] + 1}, s["s"])
    found = pattern(step, lambda key, p: {"s": jnp.ones(()), "t": 0}, jnp.ones(1000))
    assert found.step.all()


def test_masked_steps_and_learned_starts_are_seen():
    step = lambda p, s, x, key: (jnp.where(x["mask"], jnp.tanh(p["w"] * s + x["in"]), s), s.sum())
    params, x = {"start": jnp.ones(2), "w": jnp.ones(2)}, {"in": jnp.zeros(2), "mask": False}
    found = pattern(step, lambda key, p: p["start"], params, x)
    eye, no = np.eye(2, dtype=bool), np.zeros((2, 2), bool)
    np.testing.assert_array_equal(found.step, np.concatenate([no, eye], 1))
    np.testing.assert_array_equal(found.start, np.concatenate([eye, no], 1))


def test_a_derivative_of_nan_counts():
    found = pattern(lambda p, s, x, key: (jnp.log(-(p**2)) * s, s.sum()), lambda key, p: jnp.ones(2), jnp.ones(()))
    assert found.step.all()


@ux.value
class Wired:
    """Each unit reads the units that an array of whole numbers says."""

    wires: jax.Array
    scale: float = 0.0

    def init(self, key, params):
        return jnp.ones(3)

    def step(self, params, state, x, key):
        return jnp.tanh(self.scale * params * state[self.wires]), state.sum()


def test_the_pattern_depends_on_whole_numbers_of_a_system_and_not_on_others():
    wires = np.array([1, 2, 2])
    expected = np.eye(3, dtype=bool)[wires]
    for scale in (0.0, 1.0):
        found = pattern_of("test", Wired(jnp.asarray(wires), scale), jnp.ones(3), None)
        np.testing.assert_array_equal(found.state, expected)
        np.testing.assert_array_equal(found.step, np.eye(3, dtype=bool))


def test_whole_numbers_of_a_system_must_be_known():
    snap, params = ux.SnAp(Wired(jnp.array([1, 2, 0])), 1), jnp.ones(3)
    state = snap.init(KEY, params)
    jax.jit(snap.estimate)(params, state, None)
    with pytest.raises(ux.InvalidArgument, match=r"SnAp: the system's leaf \.wires must be known.*Close over"):
        jax.jit(lambda snap: snap.estimate(params, state, None))(snap)


def test_the_pattern_is_the_same_for_a_system_that_is_traced():
    @ux.value
    class Scaled:
        scale: jax.Array

        def init(self, key, params):
            return jnp.ones(3)

        def step(self, params, state, x, key):
            return jnp.tanh(self.scale * params * state + x), state.sum()

    params = jnp.ones(3)
    call = jax.jit(lambda snap, state: snap.estimate(params, state, jnp.ones((2, 3)))[1].grad)
    make = lambda scale: ux.SnAp(Scaled(scale), 2, x=jnp.zeros(3))
    state = make(jnp.ones(3)).init(KEY, params)
    many = jax.vmap(lambda scale: call(make(scale), state))(jnp.array([jnp.zeros(3), jnp.ones(3)]))
    assert (many[0] == 0).all()
    np.testing.assert_allclose(many[1], call(make(jnp.ones(3)), state), rtol=1e-13)


def test_the_step_is_not_looked_at_again_for_the_next_trace():
    looks = []

    def step(params, state, x, key):
        looks.append(None)
        return params * state, state

    snap = ux.SnAp(ux.system(init=lambda key, p: 1.0, step=step), 1)
    state = snap.init(KEY, 0.5)
    first = len(looks)
    snap.init(KEY, 0.7)
    assert (first > 0, len(looks)) == (True, first)
    jax.jit(snap.estimate)(0.5, state, None)


# --- states and errors ---------------------------------------------------------------------------------------------------


def test_states_may_be_complex_or_hold_leaves_without_a_derivative():
    def step(p, s, x, key):
        z = s["z"] * jnp.exp(0.1j * p["a"] + p["b"][0])
        return {**s, "z": z, "n": s["n"] + 1, "key": key}, (z.real * jnp.arange(1.0, 3.0)).sum()

    system = ux.system(init=lambda key, p: {"z": jnp.exp(1j * p["a"]), "n": 0, "key": key, "none": None}, step=step)
    params = {"a": jnp.array([0.4, 0.5]), "b": jnp.array([0.05, 1.0], jnp.float32), "c": None}
    bptt = ux.BPTT(system, STEPS)
    expected = bptt.estimate(params, bptt.init(KEY, params), None)[1].grad
    _, grads = over(ux.SnAp(system, 3, 12), params, None)
    np.testing.assert_allclose(grads.mean(0), vector(expected), rtol=1e-6, atol=1e-9)


def test_narrow_params_are_summed_in_float32():
    system = ux.system(
        init=lambda key, p: jnp.zeros(2, jnp.bfloat16),
        step=lambda p, s, x, key: ((s + p).astype(jnp.bfloat16), s.sum().astype(jnp.float32)),
    )
    snap, params = ux.SnAp(system, 1), jnp.ones((), jnp.bfloat16)
    state = snap.init(KEY, params)
    for count in range(4):
        assert [block.dtype for block in state.influence] == [jnp.float32]
        state, estimate = jax.jit(snap.estimate)(params, state, None)
        assert (estimate.grad, estimate.grad.dtype) == (2 * count, jnp.bfloat16)


def test_wrong_fields_are_named():
    system = run(RNN)
    with pytest.raises(ux.InvalidArgument, match="SnAp: order must be a positive whole number, got order=0"):
        ux.SnAp(system, 1, order=0)
    with pytest.raises(ux.InvalidArgument, match="SnAp: horizon must be a multiple of window, got horizon=5, window=2"):
        ux.SnAp(system, 2, 5)


def test_a_missing_or_a_wrong_example_is_named():
    params = RNN.params(KEY)
    with pytest.raises(TypeError) as caught:
        ux.SnAp(run(RNN), 1).init(KEY, params)
    note = "SnAp: if the step reads data, give an example of one step: SnAp(..., x=example)."
    assert note in caught.value.__notes__
    lenient = ux.system(init=lambda key, p: jnp.ones(2), step=lambda p, s, x, key: (s * p + x.sum(), s.sum()))
    snap = partial(ux.SnAp, lenient, 1)
    state = snap(x=jnp.zeros(2)).init(KEY, 1.0)
    with pytest.raises(
        ux.StructureError, match=r"SnAp: x must be like what a step sees, float64\[3\], got float32\[2\]"
    ):
        snap(x=jnp.zeros(2, jnp.float32)).estimate(1.0, state, jnp.ones((1, 3)))
    snap(x=np.zeros(3, np.float32)).estimate(1.0, state, jnp.ones((1, 3)))  # the dtype doesn't matter
