from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(11)
N, STEPS = 3, 4


def start(key, params):
    return {"h": params["w"] * jax.random.normal(key, (2,)), "n": 0}


def step(params, state, x, key):
    h = jnp.tanh(params["w"] * state["h"] + x["u"] * params["b"] + 0.3 * jax.random.normal(key, (2,)))
    return {"h": h, "n": state["n"] + 1}, (h**2).sum() + x["u"]


net = ux.system(init=start, step=step)
PARAMS = {"w": jnp.array([0.9, -0.4]), "b": jnp.array(0.7)}
DATA = {"u": jax.random.normal(jax.random.key(1), (STEPS, N))}


def mean_loss(system, params, data, init_key=KEY, step_key=KEY):
    return ux.unroll(system, params, system.init(init_key, params), data, step_key)[1].mean()


def losses_by_loop(params, data):
    """Every example on its own, from a key of its own for its start and for each of its steps."""
    starts = jax.random.split(KEY, N)
    keys = [jax.random.split(key, N) for key in jax.random.split(KEY, STEPS)]
    total = 0.0
    for i in range(N):
        state = start(starts[i], params)
        for t in range(STEPS):
            state, loss = step(params, state, {"u": data["u"][t, i]}, keys[t][i])
            total = total + loss / (N * STEPS)
    return total


def test_a_batch_is_a_loop_over_examples():
    value, grad = jax.jit(jax.value_and_grad(partial(mean_loss, ux.batched(net, N))))(PARAMS, DATA)
    expected, expected_grad = jax.jit(jax.value_and_grad(losses_by_loop))(PARAMS, DATA)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), grad, expected_grad)


def test_the_examples_of_a_batch_have_keys_of_their_own():
    batch = ux.batched(net, 8)
    state = batch.init(KEY, PARAMS)
    after, _ = batch.step(PARAMS, jax.tree.map(jnp.zeros_like, state), {"u": jnp.zeros(8)}, KEY)
    for h in (state["h"], after["h"]):
        assert h.shape == (8, 2)
        assert len(np.unique(h)) == 16


def test_repeated_data_of_a_batch_have_the_axis_of_examples_first():
    add = ux.system(init=lambda key, params: 0.0, step=lambda p, s, x, key: (s + x, p * s))
    state, losses = ux.unroll(ux.batched(add, 3), 1.0, jnp.zeros(3), ux.repeat(jnp.arange(3.0)), KEY, steps=2)
    np.testing.assert_array_equal(state, [0, 2, 4])
    np.testing.assert_array_equal(losses, [0, 1])


def test_a_batch_of_batches_is_a_batch():
    data = {"u": jnp.arange(4.0 * STEPS).reshape(STEPS, 2, 2)}
    nested = ux.batched(ux.batched(ux.system(init=start, step=lambda p, s, x, key: step(p, s, x, KEY)), 2), 2)
    flat = ux.batched(nested.system.system, 4)
    zero = {"h": jnp.zeros((2, 2, 2)), "n": jnp.zeros((2, 2), int)}
    _, losses = ux.unroll(nested, PARAMS, zero, data, KEY)
    flattened = jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[2:]), zero)
    _, expected = ux.unroll(flat, PARAMS, flattened, {"u": data["u"].reshape(STEPS, 4)}, KEY)
    np.testing.assert_allclose(losses, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("data", "got"), [({"u": jnp.zeros((STEPS, 4))}, r"float64\[4\]"), ({"u": jnp.zeros(STEPS)}, r"float64\[\]")]
)
def test_another_number_of_examples_is_named(data, got):
    batch = ux.batched(net, N)
    says = (
        rf"^batched: data leaf \['u'\] must have 3 examples on its first axis, as in batched\(system, 3\), got {got}\."
    )
    with pytest.raises(ux.StructureError, match=says + r" The leaves of data are \[window, 3, \.\.\.\]\."):
        ux.unroll(batch, PARAMS, batch.init(KEY, PARAMS), data, KEY)
    with pytest.raises(ux.StructureError, match=says):
        ux.unroll(batch, PARAMS, batch.init(KEY, PARAMS), ux.repeat({"u": data["u"][0]}), KEY, steps=2)


def test_a_state_of_another_number_of_examples_is_named():
    state = ux.batched(net, 2).init(KEY, PARAMS)
    says = (
        r"^batched: state leaf \['h'\] must have 3 examples on its first axis, .* got float64\[2,2\]\..* as init makes"
    )
    with pytest.raises(ux.StructureError, match=says):
        ux.unroll(ux.batched(net, N), PARAMS, state, DATA, KEY)


@pytest.mark.parametrize("n", [0, -2, True, 1.5])
def test_a_batch_of_no_whole_number_is_named(n):
    with pytest.raises(ux.InvalidArgument, match=rf"^batched: n must be a positive whole number, got n={n}\."):
        ux.batched(net, n)


given = ux.system(init=lambda key, params: 0.0, step=lambda p, s, x, key: (s + 1, p * x))


@pytest.mark.parametrize(
    ("loss", "clipped", "slope"),
    [
        (1.5, 1.5, 1.0),
        (-7.0, -7.0, 1.0),
        (2.0, 2.0, 0.0),
        (1e300, 2.0, 0.0),
        (np.inf, 2.0, 0.0),
        (-np.inf, 2.0, 0.0),
        (np.nan, 2.0, 0.0),
    ],
)
def test_a_clipped_loss_is_bounded_and_flat_where_it_is_clipped(loss, clipped, slope):
    constant = ux.system(init=lambda key, p: 0.0, step=lambda p, s, x, key: (s, p + x))
    tame = ux.clip_loss(constant, at=2.0)
    value, grad = jax.value_and_grad(lambda p: tame.step(p, 0.0, loss, KEY)[1])(0.0)
    assert (value, grad) == (clipped, slope)


def test_clipping_leaves_the_state_alone_and_keeps_the_losss_dtype():
    tame = ux.clip_loss(given, at=2)
    state, loss = tame.step(jnp.float32(1), 0.0, jnp.float32(9), KEY)
    assert (state, loss, loss.dtype) == (1, 2, jnp.float32)


@pytest.mark.parametrize("at", ["x", None, True, np.nan, jnp.array([1.0, np.nan])])
def test_a_bound_of_the_loss_that_is_no_number_is_refused(at):
    with pytest.raises(ux.InvalidArgument, match=r"^clip_loss: at must be a number, got at="):
        ux.clip_loss(given, at=at)


def test_evolution_survives_a_particle_that_blows_up_when_the_loss_is_clipped():
    wild = ux.system(init=lambda key, p: 1.0, step=lambda p, s, x, key: (s, jnp.log(p)))
    estimator = ux.ES(ux.clip_loss(wild, at=3.0), std=1.0, window=1, pairs=1, sampler=lambda *a: jnp.array([1.0]))
    _, (loss, grad, info) = estimator.estimate(0.5, estimator.init(KEY, 0.5), None)
    assert info.nonfinite == 0
    np.testing.assert_allclose(loss, (np.log(1.5) + 3) / 2, rtol=1e-15)
    np.testing.assert_allclose(grad, (np.log(1.5) - 3) / 2, rtol=1e-15)


def wide_step(params, state, x, key):
    hidden = jnp.tanh(params["up"] * (state.sum() + x))
    for _ in range(3):
        hidden = jnp.sin(hidden) + params["up"]
    state = jnp.tanh(params["down"] @ hidden.reshape(-1, 2).mean(0) + state)
    return state, (state**2).sum() + x


wide = ux.system(init=lambda key, params: jnp.zeros(2), step=wide_step)
WIDE = {"up": jnp.linspace(-1, 1, 4096), "down": jnp.array([[0.5, 0.1], [-0.3, 0.2]])}


def test_remat_gives_the_same_gradient_in_less_memory():
    grads, memory = [], []
    for system in (wide, ux.remat(wide)):
        compiled = jax.jit(jax.grad(partial(mean_loss, system))).lower(WIDE, jnp.linspace(0, 1, 64)).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        grads.append(compiled(WIDE, jnp.linspace(0, 1, 64)))
    assert memory[1] < memory[0] / 10
    assert memory[0] > 64 * 4096 * 8
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), *grads)


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda system: ux.clip_loss(system, at=1e9), lambda x: x),
        (ux.remat, lambda x: x),
        (lambda system: ux.remat(ux.clip_loss(ux.remat(system), at=1e9)), lambda x: x),
        (lambda system: ux.clip_loss(system, at=0.25), lambda x: np.minimum(x, 0.25)),
    ],
)
def test_wrappers_nest_and_leave_what_they_do_not_name(wrap, expected):
    one = {"u": DATA["u"][:, 0]}
    plain = ux.unroll(net, PARAMS, net.init(KEY, PARAMS), one, KEY)
    wrapped = wrap(net)
    state, losses = ux.unroll(wrapped, PARAMS, wrapped.init(KEY, PARAMS), one, KEY)
    np.testing.assert_allclose(losses, expected(plain[1]), rtol=1e-14)
    np.testing.assert_allclose(state["h"], plain[0]["h"], rtol=1e-14)


def test_the_bound_may_be_a_traced_number():
    losses = jax.vmap(lambda at: ux.clip_loss(given, at=at).step(1.0, 0.0, 5.0, KEY)[1])(jnp.array([1.0, 4.0, 9.0]))
    np.testing.assert_array_equal(losses, [1, 4, 5])
