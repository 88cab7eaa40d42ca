import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(6)
STEPS, BATCH, INPUTS = 6, 3, 2
XS = jax.random.normal(KEY, (STEPS, BATCH, INPUTS))
LENGTHS = np.array([6, 2, 4])
MASK = jnp.asarray(np.arange(STEPS)[:, None] < LENGTHS)
close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-14)

CELLS = {
    "rnn": lambda inputs, size: ux.RNNCell(inputs, size),
    "lstm": lambda inputs, size: ux.LSTMCell(inputs, size),
    "gru": lambda inputs, size: ux.GRUCell(inputs, size),
    "min_gru": lambda inputs, size: ux.MinGRUCell(inputs, size),
    "lru": lambda inputs, size: ux.LRUCell(inputs, size),
}
STACKS = {
    "two": lambda: ux.stacked(ux.LSTMCell(INPUTS, 4), ux.GRUCell(4, 3)),
    "residual": lambda: ux.stacked(*(ux.GRUCell(size, 4) for size in (INPUTS, 4, 4)), residual=True),
    "between": lambda: ux.stacked(ux.LRUCell(INPUTS, 3, 4), ux.LRUCell(4, 5, 4), residual=True, between=standardized),
    "mixed": lambda: ux.stacked(ux.MinGRUCell(INPUTS, 4), ux.stacked(ux.RNNCell(4, 3), ux.LSTMCell(3, 2))),
    "one": lambda: ux.stacked(ux.RNNCell(INPUTS, 3)),
}
stacks = pytest.mark.parametrize("name", STACKS)


def standardized(h):
    """Not elementwise, so that it must see one example and step at a time."""
    return (h - h.mean()) / (h.std() + 1)


@functools.cache
def jitted(cell):
    return jax.jit(cell.step)


def walk(cell, params, xs):
    """Step one example, one step after another."""
    state, outputs, step = cell.init(params), [], jitted(cell)
    for x in xs:
        state, output = step(params, state, x)
        outputs.append(output)
    return state, np.stack(outputs)


def many(state, count=BATCH):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), state)


def test_a_stack_steps_layer_by_layer():
    low, high = ux.LSTMCell(INPUTS, 4), ux.GRUCell(4, 3)
    cell = ux.stacked(low, high)
    params = cell.params(KEY)
    state = cell.init(params)
    bottom, top = low.init(params[0]), high.init(params[1])
    for x in XS[:, 0]:
        state, output = cell.step(params, state, x)
        bottom, h = low.step(params[0], bottom, x)
        top, expected = high.step(params[1], top, h)
        np.testing.assert_array_equal(output, expected)
    jax.tree.map(np.testing.assert_array_equal, state, (bottom, top))


def test_a_residual_stack_adds_what_its_layers_read_and_puts_a_function_between_them():
    """h2 = f(h1) + cell2(f(h1)), h3 = h2 + f... written out for three plain cells in NumPy."""
    cell = ux.stacked(ux.RNNCell(INPUTS, 4), ux.RNNCell(4, 4), ux.RNNCell(4, 4), residual=True, between=standardized)
    params = cell.params(KEY)
    p = jax.tree.map(np.asarray, params)
    hidden, state = [np.zeros(4)] * 3, cell.init(params)
    rnn = lambda n, x: np.tanh(x @ p[n]["wx"] + hidden[n] @ p[n]["wh"] + p[n]["b"])
    for x in np.asarray(XS[:, 0]):
        hidden[0] = rnn(0, x)
        below = standardized(hidden[0])
        hidden[1] = rnn(1, below)
        below = below + standardized(hidden[1])
        hidden[2] = rnn(2, below)
        state, output = cell.step(params, state, jnp.asarray(x))
        np.testing.assert_allclose(output, below + hidden[2], rtol=1e-12)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), state, tuple(hidden))


@stacks
def test_unrolling_a_stack_is_stepping_it(name):
    cell = STACKS[name]()
    params = cell.params(KEY)
    state, outputs = jax.jit(cell.unroll)(params, cell.init(params), XS[:, 0], None)
    expected, expected_outputs = walk(cell, params, XS[:, 0])
    close(outputs, expected_outputs)
    jax.tree.map(close, state, expected)


@stacks
def test_unrolling_a_batch_of_different_lengths_is_stepping_each_to_its_end(name):
    cell = STACKS[name]()
    params = cell.params(KEY)
    state, outputs = jax.jit(cell.unroll)(params, many(cell.init(params)), XS, MASK)
    for n, length in enumerate(LENGTHS):
        expected, expected_outputs = walk(cell, params, XS[:length, n])
        close(outputs[:length, n], expected_outputs)
        jax.tree.map(lambda leaf, other, n=n: close(leaf[n], other), state, expected)


def test_unrolling_takes_any_number_of_batch_axes_and_gaps():
    cell = ux.stacked(ux.LSTMCell(INPUTS, 4), ux.RNNCell(4, 3), between=standardized)
    params = cell.params(KEY)
    xs = jax.random.normal(KEY, (STEPS, 2, BATCH, INPUTS))
    mask = jax.random.bernoulli(KEY, 0.6, (STEPS, 2, BATCH))
    start = many(many(cell.init(params)), 2)
    state, outputs = jax.jit(cell.unroll)(params, start, xs, mask)
    _, without = jax.jit(cell.unroll)(params, start, xs, None)
    for at in np.ndindex(2, BATCH):
        real = np.asarray(mask[(slice(None), *at)])
        expected, expected_outputs = walk(cell, params, xs[(slice(None), *at)][real])
        close(outputs[(slice(None), *at)][real], expected_outputs)
        jax.tree.map(lambda leaf, other, at=at: close(leaf[at], other), state, expected)
        close(without[(slice(None), *at)], walk(cell, params, xs[(slice(None), *at)])[1])


def test_an_unroll_goes_on_where_the_one_before_it_ended():
    cell = STACKS["between"]()
    params = cell.params(KEY)
    state, first = cell.unroll(params, cell.init(params), XS[:2, 0], None)
    state, second = cell.unroll(params, state, XS[2:, 0], None)
    whole, outputs = cell.unroll(params, cell.init(params), XS[:, 0], None)
    close(np.concatenate([first, second]), outputs)
    jax.tree.map(close, state, whole)


@stacks
def test_gradients_through_an_unrolled_stack_agree_with_finite_differences(name):
    cell = STACKS[name]()
    flat, unravel = jax.flatten_util.ravel_pytree(cell.params(KEY))

    @jax.jit
    def loss(vector):
        params = unravel(vector)
        state, outputs = cell.unroll(params, many(cell.init(params)), XS, MASK)
        return (outputs**2 * MASK[..., None]).sum() + sum((leaf**3).sum() for leaf in jax.tree.leaves(state))

    directions = np.random.default_rng(0).normal(size=(5, flat.size))
    numeric = [(loss(flat + 1e-6 * d) - loss(flat - 1e-6 * d)) / 2e-6 for d in directions]
    np.testing.assert_allclose(directions @ jax.grad(loss)(flat), numeric, rtol=1e-6, atol=1e-8)


def test_nan_in_a_padding_reaches_neither_the_states_nor_the_gradient():
    class Plain:
        """A cell without `unroll`."""

        def params(self, key):
            return jax.random.normal(key, (INPUTS,))

        def init(self, params):
            return jnp.zeros(INPUTS)

        def step(self, params, state, x):
            return (params * state + x) ** 2, state

    cell = ux.stacked(Plain())
    params = cell.params(KEY)

    def loss(params, xs):
        state, outputs = jax.jit(cell.unroll)(params, many(cell.init(params)), xs, MASK)
        return jnp.where(MASK[..., None], outputs, 0).sum() + state[0].sum()

    spoilt = jnp.where(MASK[..., None], XS, jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, jax.grad(loss)(params, spoilt), jax.grad(loss)(params, XS))


def test_a_stack_is_a_cell_of_a_system():
    net = ux.recurrent(STACKS["two"](), ux.Dense(3, 2))
    params = net.params(KEY)
    data = ux.sequence(XS[:4, 0], jnp.array([0, 1, 1, 0]))
    exact = jax.jit(jax.grad(lambda p: ux.unroll(net, p, net.init(KEY, p), data, KEY)[1].mean()))(params)
    bptt = ux.BPTT(net, horizon=4)
    grad = jax.jit(lambda e, p: e.estimate(p, e.init(KEY, p), data)[1].grad)(bptt, params)
    jax.tree.map(close, grad, exact)
    pes = ux.PES(net, 0.1, 4, 8, pairs=2)
    grad = jax.jit(lambda e, p: e.estimate(p, e.init(KEY, p), data)[1].grad)(pes, params)
    assert jax.tree.structure(grad) == jax.tree.structure(params)


def test_layers_are_drawn_with_keys_of_their_own():
    low, high = ux.stacked(ux.RNNCell(4, 4), ux.RNNCell(4, 4)).params(KEY)
    assert np.any(low["wh"] != high["wh"])


def test_a_residual_layer_of_another_size_is_named():
    cell = ux.stacked(ux.RNNCell(INPUTS, 4), ux.RNNCell(4, 4), ux.RNNCell(4, 3), residual=True)
    params = cell.params(KEY)
    expected = (
        r"^stacked: with residual=True the output of layer 2 must have the shape of its input, "
        r"float64\[4\], got float64\[3\]\."
    )
    with pytest.raises(ux.StructureError, match=expected):
        cell.step(params, cell.init(params), XS[0, 0])


def test_a_stack_of_nothing_and_what_is_no_cell_are_named():
    with pytest.raises(ux.InvalidArgument, match=r"^stacked: needs at least one cell, got none\."):
        ux.stacked()
    with pytest.raises(ux.InvalidArgument, match=r"^stacked: a cell must have .*, got Dense without init and step\."):
        ux.stacked(ux.RNNCell(1, 2), ux.Dense(2, 3))
    with pytest.raises(ux.InvalidArgument, match=r"^bidirectional: a cell must have .*, got function without params"):
        ux.bidirectional(ux.RNNCell(1, 2), lambda x: x)


@pytest.mark.parametrize("forward", CELLS)
@pytest.mark.parametrize("backward", ["lstm", "lru"])
def test_a_bidirectional_cell_reads_each_example_from_its_own_last_step(forward, backward):
    cell = ux.bidirectional(CELLS[forward](INPUTS, 4), CELLS[backward](INPUTS, 3))
    params = cell.params(KEY)
    state, outputs = jax.jit(cell.unroll)(params, many(cell.init(params)), XS, MASK)
    assert outputs.shape == (STEPS, BATCH, 7)
    for n, length in enumerate(LENGTHS):
        real = XS[:length, n]
        after, ahead = walk(cell.forward, params["forward"], real)
        _, back = walk(cell.backward, params["backward"], real[::-1])
        close(outputs[:length, n], np.concatenate([ahead, back[::-1]], axis=1))
        jax.tree.map(lambda leaf, other, n=n: close(leaf[n], other), state["forward"], after)


def test_a_bidirectional_cell_runs_one_example_without_a_mask():
    cell = ux.bidirectional(ux.GRUCell(INPUTS, 4), ux.GRUCell(INPUTS, 4))
    params = cell.params(KEY)
    _, outputs = jax.jit(cell.unroll)(params, cell.init(params), XS[:, 0], None)
    _, turned = cell.unroll(
        {"forward": params["backward"], "backward": params["forward"]}, cell.init(params), XS[::-1, 0], None
    )
    close(outputs, np.roll(turned[::-1], 4, axis=1))


def test_in_windows_the_forward_direction_goes_on_and_the_backward_one_starts_anew():
    cell = ux.bidirectional(ux.GRUCell(INPUTS, 4), ux.LSTMCell(INPUTS, 3))
    params = cell.params(KEY)
    state, first = cell.unroll(params, cell.init(params), XS[:2, 0], None)
    _, second = cell.unroll(params, state, XS[2:, 0], None)
    _, whole = cell.unroll(params, cell.init(params), XS[:, 0], None)
    close(np.concatenate([first, second])[:, :4], whole[:, :4])
    close(second[:, 4:], whole[2:, 4:])
    close(first[:, 4:], walk(cell.backward, params["backward"], XS[:2, 0][::-1])[1][::-1])


def test_what_comes_later_changes_what_a_bidirectional_cell_says_now_and_a_padding_does_not():
    cell = ux.bidirectional(ux.RNNCell(INPUTS, 2), ux.RNNCell(INPUTS, 2))
    params = cell.params(KEY)
    outputs = lambda xs: cell.unroll(params, many(cell.init(params)), xs, MASK)[1]
    moved = np.asarray(jax.grad(lambda xs: outputs(xs)[0, 1, 2:].sum())(XS))  # the first step of the example of two
    assert np.all(moved[:2, 1])
    assert np.count_nonzero(moved) == moved[:2, 1].size


def test_bidirectional_layers_are_stacked():
    low = ux.bidirectional(ux.GRUCell(INPUTS, 2), ux.LSTMCell(INPUTS, 2))
    high = ux.bidirectional(ux.LSTMCell(4, 3), ux.RNNCell(4, 3))
    cell = ux.stacked(low, high)
    params = cell.params(KEY)
    _, outputs = jax.jit(cell.unroll)(params, many(cell.init(params)), XS, MASK)
    _, below = low.unroll(params[0], many(low.init(params[0])), XS, MASK)
    close(outputs, high.unroll(params[1], many(high.init(params[1])), below, MASK)[1])
    for n, length in enumerate(LENGTHS):
        alone = jax.jit(cell.unroll)(params, cell.init(params), XS[:length, n], None)[1]
        close(outputs[:length, n], alone)
    with pytest.raises(ux.InvalidArgument, match=r"^bidirectional: "):
        cell.step(params, cell.init(params), XS[0, 0])


def test_a_step_of_a_bidirectional_cell_says_what_to_do():
    cell = ux.bidirectional(ux.RNNCell(INPUTS, 2), ux.RNNCell(INPUTS, 2))
    params = cell.params(KEY)
    with pytest.raises(
        ux.InvalidArgument, match=r"needs a whole window at once, got one step of it\. Train it with BPTT"
    ):
        cell.step(params, cell.init(params), XS[0, 0])
