import subprocess
import sys
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(9)
INPUTS, HIDDEN = 3, 4
XS = jax.random.normal(KEY, (5, INPUTS))
close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-15)


def flax(module):
    return pytest.importorskip(f"flax.{module}")


def double(module):
    return {"param_dtype": jnp.float64}


def walk(cell, params, xs=XS):
    state, outputs = cell.init(params), []
    for x in xs:
        state, output = cell.step(params, state, x)
        outputs.append(output)
    return state, np.stack(outputs)


def equinox_to_ours(name, p):
    """Rows of gates in Equinox, columns in ours; its LSTM has the order i, f, g, o."""
    wx, wh, b = p["weight_ih"].T, p["weight_hh"].T, p["bias"]
    if name == "GRUCell":
        return {"wx": wx, "wh": wh, "b": b, "bn": p["bias_n"]}
    order = np.r_[0 : 2 * HIDDEN, 3 * HIDDEN : 4 * HIDDEN, 2 * HIDDEN : 3 * HIDDEN]
    return {"wx": wx[:, order], "wh": wh[:, order], "b": b[order]}


def linen_to_ours(name, p):
    """Our matrices have the gates side by side; the bias stands with the recurrent kernels, for n inside the reset."""
    if name == "LSTMCell":
        return {
            "wx": jnp.concatenate([p[f"i{gate}"]["kernel"] for gate in "ifog"], axis=1),
            "wh": jnp.concatenate([p[f"h{gate}"]["kernel"] for gate in "ifog"], axis=1),
            "b": jnp.concatenate([p[f"h{gate}"]["bias"] for gate in "ifog"]),
        }
    return {
        "wx": jnp.concatenate([p[f"i{gate}"]["kernel"] for gate in "rzn"], axis=1),
        "wh": jnp.concatenate([p[f"h{gate}"]["kernel"] for gate in "rzn"], axis=1),
        "b": jnp.concatenate([p[f"i{gate}"]["bias"] for gate in "rzn"]),
        "bn": p["hn"]["bias"],
    }


def perturbed(params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape))


OURS = {"LSTMCell": ux.LSTMCell, "GRUCell": ux.GRUCell}
both = pytest.mark.parametrize("name", OURS)


@both
def test_a_cell_of_equinox_computes_what_ours_does(name):
    cell = ux.equinox_cell(lambda key: getattr(eqx.nn, name)(INPUTS, HIDDEN, key=key))
    params = cell.params(KEY)
    ours = OURS[name](INPUTS, HIDDEN)
    state, outputs = walk(cell, params)
    expected, expected_outputs = walk(ours, equinox_to_ours(name, params))
    close(outputs, expected_outputs)
    jax.tree.map(close, state, expected)


@both
def test_a_cell_of_linen_computes_what_ours_does(name):
    nn = flax("linen")
    cell = ux.flax_cell(getattr(nn, name)(HIDDEN, param_dtype=jnp.float64), inputs=INPUTS)
    params = perturbed(cell.params(KEY))
    state, outputs = walk(cell, params)
    expected, expected_outputs = walk(OURS[name](INPUTS, HIDDEN), linen_to_ours(name, params))
    close(outputs, expected_outputs)
    jax.tree.map(close, state, expected[::-1] if name == "LSTMCell" else expected)  # its carry is (c, h)


def test_a_cell_of_nnx_computes_what_ours_does():
    nnx = flax("nnx")
    cell = ux.flax_cell(lambda key: nnx.LSTMCell(INPUTS, HIDDEN, param_dtype=jnp.float64, rngs=nnx.Rngs(key)))
    params = perturbed(cell.params(KEY))
    renamed = {name.rstrip("_"): leaf for name, leaf in params.items()}
    (c, h), outputs = walk(cell, params)
    expected, expected_outputs = walk(ux.LSTMCell(INPUTS, HIDDEN), linen_to_ours("LSTMCell", renamed))
    close(outputs, expected_outputs)
    jax.tree.map(close, (h, c), expected)


def nnx_cell(name, **options):
    nnx = flax("nnx")
    return lambda key: getattr(nnx, name)(INPUTS, HIDDEN, param_dtype=jnp.float64, rngs=nnx.Rngs(key), **options)


def linen_cell(name):
    return ux.flax_cell(getattr(flax("linen"), name)(HIDDEN, param_dtype=jnp.float64), inputs=INPUTS)


MADE = {
    "equinox": lambda: ux.equinox_cell(lambda key: eqx.nn.LSTMCell(INPUTS, HIDDEN, key=key)),
    "equinox module": lambda: ux.equinox_cell(eqx.nn.GRUCell(INPUTS, HIDDEN, use_bias=False, key=KEY)),
    "linen LSTM": lambda: linen_cell("OptimizedLSTMCell"),
    "linen GRU": lambda: linen_cell("GRUCell"),
    "linen MGU": lambda: linen_cell("MGUCell"),
    "linen simple": lambda: linen_cell("SimpleCell"),
    "nnx LSTM": lambda: ux.flax_cell(nnx_cell("OptimizedLSTMCell")),
    "nnx GRU": lambda: ux.flax_cell(nnx_cell("GRUCell")),
    "nnx module": lambda: ux.flax_cell(nnx_cell("SimpleCell")(KEY)),
}


@pytest.mark.parametrize("name", MADE)
def test_an_adapted_cell_trains_in_a_batch(name):
    cell = MADE[name]()
    net = ux.recurrent(cell, ux.Dense(HIDDEN, 1), ux.squared_error)
    params = net.params(KEY)
    data = ux.sequence(XS, jnp.sin(XS[:, :1]))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], axis=1), data)

    def literal(params):
        state, total = cell.init(params["cell"]), 0.0
        for x, y in zip(XS, data.target, strict=True):
            state, h = cell.step(params["cell"], state, x)
            total += ((h @ params["readout"]["w"] + params["readout"]["b"] - y) ** 2).mean()
        return total / len(XS)

    bptt = ux.BPTT(ux.batched(net, 2), horizon=len(XS))
    state = bptt.init(KEY, params)
    grad = jax.jit(lambda e, p, s: e.estimate(p, s, batch)[1].grad)(bptt, params, state)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-14), grad, jax.jit(jax.grad(literal))(params))


@pytest.mark.parametrize("name", MADE)
def test_params_are_plain_dicts_of_arrays_and_drawn_by_the_key_unless_a_module_was_given(name):
    cell = MADE[name]()
    params, other = cell.params(KEY), cell.params(jax.random.key(100))

    def check(tree):
        assert type(tree) in (dict, type(XS))
        for leaf in tree.values() if type(tree) is dict else []:
            check(leaf)

    check(params)
    flat, rest = jax.flatten_util.ravel_pytree(params)[0], jax.flatten_util.ravel_pytree(other)[0]
    assert flat.dtype == jnp.float64
    assert np.array_equal(flat, rest) == name.endswith("module")


def test_a_module_takes_trained_params_back():
    nnx = flax("nnx")
    for cell in (ux.flax_cell(nnx_cell("GRUCell")(KEY)), MADE["equinox module"]()):
        params = perturbed(cell.params(KEY))
        module = cell.module(params)
        h = cell.step(params, cell.init(params), XS[0])[1]
        zeros = jnp.zeros(HIDDEN)
        close(module(XS[0], zeros) if isinstance(module, eqx.Module) else module(zeros, XS[0])[1], h)
        assert isinstance(module, (eqx.nn.GRUCell, nnx.GRUCell))


def test_a_training_run_that_gives_its_buffers_away_leaves_the_module_whole():
    cell = MADE["equinox module"]()
    first, start = cell.params(KEY), cell.init(None)
    for leaf in jax.tree.leaves((first, start)):
        leaf.delete()
    assert np.all(np.isfinite(walk(cell, cell.params(KEY))[1]))


class Leaky(eqx.Module):
    """A module of its own, with whole numbers, a function and a constant beside its weights."""

    weight: jax.Array
    order: jax.Array
    scale: np.ndarray
    activation: object
    rate: float = 0.5

    def __call__(self, x, state):
        h, count = state
        new = self.activation(self.weight @ x * self.scale)[self.order]
        return (1 - self.rate) * h + self.rate * new, count + 1


def leaky(key):
    return Leaky(jax.random.normal(key, (2, INPUTS)), jnp.array([1, 0]), np.full(2, 2.0), jnp.tanh)


@pytest.mark.parametrize("make", [leaky, leaky(KEY)])
def test_a_module_of_ones_own_keeps_what_is_not_trained(make):
    cell = ux.equinox_cell(make, state=(np.zeros(2), 0))
    params = cell.params(KEY)
    assert jax.tree.map(jnp.shape, params) == {"weight": (2, INPUTS)}
    state, outputs = jax.jit(lambda cell, params: walk_traced(cell, params))(cell, params)
    h = np.zeros(2)
    for x, output in zip(np.asarray(XS), outputs, strict=True):
        h = 0.5 * h + 0.5 * np.tanh(2 * (np.asarray(params["weight"]) @ x))[[1, 0]]
        close(output, h)
    assert int(state[1]) == len(XS)


def walk_traced(cell, params):
    return jax.lax.scan(lambda state, x: cell.step(params, state, x), cell.init(params), XS)


def test_what_the_readout_sees_of_a_state_can_be_chosen():
    cell = ux.equinox_cell(eqx.nn.LSTMCell(INPUTS, HIDDEN, key=KEY), output=lambda state: state[1])
    (_, c), output = cell.step(cell.params(KEY), cell.init(None), XS[0])
    np.testing.assert_array_equal(output, c)


def test_nested_modules_have_names_with_dots():
    class Deep(eqx.Module):
        cells: list

        def __call__(self, x, state):
            h = [self.cells[0](x, state[0])]
            return [*h, self.cells[1](h[0], state[1])]

    deep = Deep([eqx.nn.GRUCell(INPUTS, HIDDEN, key=KEY), eqx.nn.GRUCell(HIDDEN, HIDDEN, key=KEY)])
    cell = ux.equinox_cell(deep, state=[np.zeros(HIDDEN)] * 2, output=lambda state: state[-1])
    assert set(cell.params(KEY)) == {
        f"cells.{n}.{leaf}" for n in range(2) for leaf in ("weight_ih", "weight_hh", "bias", "bias_n")
    }
    assert walk(cell, cell.params(KEY))[1].shape == (5, HIDDEN)


@pytest.mark.parametrize("module", [lambda: eqx.nn.GRUCell(2, 3, key=KEY), lambda: eqx.nn.LSTMCell(2, 3, key=KEY)])
def test_the_zeros_of_equinox_have_the_dtype_of_its_arrays(module):
    with jax.enable_x64(False):
        made = module()
    assert {leaf.dtype for leaf in jax.tree.leaves(ux.equinox_cell(made).init(None))} == {jnp.dtype(jnp.float32)}


def named(module):
    return rf"^equinox_cell: module must be a pytree of arrays called as module\(x, state\), got {module}\."


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (lambda: eqx.nn.GRUCell, named("the class GRUCell")),
        (lambda: {"w": jnp.ones(2)}, named("dict without __call__")),
        (lambda: 3.0, named("float without __call__")),
        (lambda: lambda key: {"w": jnp.ones(2)}, named("dict without __call__")),
        (lambda: eqx.nn.Identity(), named("Identity without floating arrays")),
        (
            lambda: eqx.nn.Linear(2, 2, key=KEY),
            r"^equinox_cell: state must be given for a Linear, got state=None\.",
        ),
    ],
)
def test_what_is_no_cell_of_equinox_is_named(module, expected):
    with pytest.raises(ux.InvalidArgument, match=expected):
        ux.equinox_cell(module())


def refused(got):
    return rf"^flax_cell: module must be a recurrent cell with initialize_carry, .*, got {got}\. Pass nn\.LSTMCell"


@pytest.mark.parametrize(
    ("module", "options", "expected"),
    [
        (lambda: flax("linen").Dense(3), {"inputs": 2}, refused("Dense without initialize_carry")),
        (lambda: flax("nnx").Linear(2, 3, rngs=flax("nnx").Rngs(0)), {}, refused("Linear without initialize_carry")),
        (lambda: flax("nnx").LSTMCell, {}, refused("the class LSTMCell")),
        (lambda: flax("linen").LSTMCell, {}, refused("the class LSTMCell")),
        (lambda: lambda key: {}, {}, refused("dict without initialize_carry")),
        (dict, {}, refused("dict without initialize_carry")),
        (lambda: eqx.nn.GRUCell(1, 2, key=KEY), {}, refused("GRUCell without initialize_carry")),
        (lambda: flax("linen").GRUCell(3), {}, r"^flax_cell: inputs must be given for a GRUCell, got inputs=None\."),
        (
            lambda: flax("linen").GRUCell(3),
            {"inputs": 0},
            r"^flax_cell: inputs must be a positive whole number, got inputs=0\.",
        ),
    ],
)
def test_what_is_no_cell_of_flax_is_named(module, options, expected):
    with pytest.raises(ux.InvalidArgument, match=expected):
        ux.flax_cell(module(), **options)


def test_a_cell_of_linen_with_variables_of_its_own_is_named():
    nn = flax("linen")

    class Counting(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry, x):
            self.variable("batch_stats", "count", lambda: jnp.zeros(())).value += 1
            return carry, nn.Dense(1)(x)

        @nn.nowrap
        def initialize_carry(self, rng, input_shape):
            return jnp.zeros(1)

    expected = r"^flax_cell: a cell must keep its numbers in params and in its carry, got the collections batch_stats\."
    with pytest.raises(ux.InvalidArgument, match=expected):
        ux.flax_cell(Counting(), inputs=2)


def test_neither_library_is_imported_with_unrollax():
    script = (
        "import sys, unrollax\n"
        "unrollax.equinox_cell, unrollax.flax_cell\n"
        "assert not {'equinox', 'flax'} & {name.partition('.')[0] for name in sys.modules}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
