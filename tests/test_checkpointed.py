"""Nested scans: the plain scan's values and gradients, in less memory."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unrollax as ux
from unrollax import _checkpointed

KEY = jax.random.key(2)
PARAMS = {"w": jnp.array([0.8, -0.5]), "b": jnp.array(0.3)}
LENGTHS = (1, 2, 7, 12, 97, 100, 360)


def start(key, params):
    return {"h": params["b"] + jax.random.normal(key, (2,)), "n": 0, "on": True, "key": key, "none": None}


def step(params, state, x, key):
    carried, drawn = jax.random.split(state["key"])
    noise = 0.1 * jax.random.normal(drawn, (2,)) + 0.1 * jax.random.normal(key, (2,))
    h = jnp.tanh(params["w"] * state["h"] + x["moving"] + x["still"] + params["b"] + noise)
    after = {"h": h, "n": state["n"] + 1, "on": ~state["on"], "key": carried, "none": None}
    return after, (h[0] - h[1] * state["n"] / 100) ** 2


net = ux.system(init=start, step=step)


def data_of(steps):
    return {"moving": jax.random.normal(jax.random.key(5), (steps,)), "still": ux.repeat(0.2)}


def bptt(steps, memory, system=net):
    return ux.BPTT(system, horizon=steps, memory=memory)


def call(estimator, params=PARAMS, key=KEY):
    return estimator.estimate(params, estimator.init(key, params), data_of(estimator.horizon))


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), numbers(got), numbers(expected))


def numbers(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]


@pytest.mark.parametrize("memory", ["sqrt", "log", "bytes"])
@pytest.mark.parametrize("steps", LENGTHS)
def test_pieces_give_the_values_and_gradients_of_the_plain_scan(steps, memory):
    memory = 16 * steps + 1200 if memory == "bytes" else memory
    close(jax.jit(call)(bptt(steps, memory)), jax.jit(call)(bptt(steps, "full")))


@pytest.mark.parametrize("memory", ["sqrt", "log", 3000])
def test_pieces_commute_with_remat_vmap_and_forward_mode(memory):
    def grad_at(estimator, b):
        return call(estimator, PARAMS | {"b": b})[1].grad

    expected, got = bptt(97, "full"), bptt(97, memory)
    close(jax.jit(call)(bptt(97, memory, ux.remat(net))), jax.jit(call)(expected))
    seeds = jax.random.split(KEY, 3)
    both = [jax.jit(jax.vmap(lambda key, e=e: call(e, key=key)[1]))(seeds) for e in (got, expected)]
    close(*both)
    both = [jax.jit(lambda b, e=e: jax.jvp(lambda b: grad_at(e, b), (b,), (1.0,)))(0.3) for e in (got, expected)]
    close(*both)


@pytest.mark.parametrize("memory", ["sqrt", "log"])
def test_the_data_have_a_derivative_through_pieces(memory):
    def loss(moving, estimator):
        data = data_of(12) | {"moving": moving}
        return estimator.estimate(PARAMS, estimator.init(KEY, PARAMS), data)[1].loss

    moving = data_of(12)["moving"]
    close(jax.grad(loss)(moving, bptt(12, memory)), jax.grad(loss)(moving, bptt(12, "full")))


@pytest.mark.parametrize("memory", ["sqrt", "log", 270])
def test_tbptt_in_pieces_is_tbptt(memory):
    plain = ux.TBPTT(ux.system(init=lambda k, p: p, step=lambda p, s, x, k: (jnp.sin(p * s + x), s**2)), 7, 21)
    pieces = replace(plain, memory=memory)

    def run(estimator, rows):
        scan = lambda state, x: estimator.estimate(0.9, state, x)
        return jax.lax.scan(scan, estimator.init(KEY, 0.9), rows)[1]

    rows = jax.random.normal(KEY, (6, 7))
    close(jax.jit(run)(pieces, rows), jax.jit(run)(plain, rows))


def jaxpr_of(steps, memory):
    return str(jax.make_jaxpr(lambda: call(bptt(steps, memory))[1])())


def test_a_full_memory_has_no_pieces():
    assert "prevent_cse" not in jaxpr_of(100, "full")
    assert "prevent_cse" in jaxpr_of(100, "sqrt")


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2_000_000))
def test_lengths_are_as_long_as_they_are_said_to_be(steps):
    (inner,) = _checkpointed.inner_lengths("o", "sqrt", steps, None) or (1,)
    assert math.sqrt(steps) / 1.5 - 1 < inner < 1.5 * math.sqrt(steps) + 1
    inner = _checkpointed.inner_lengths("o", "log", steps, None)
    assert len(inner) + 1 <= max(1, math.ceil(math.log(steps, 8)))
    assert all(length <= 12 for length in inner)
    assert steps / math.prod(inner) <= 30


@pytest.mark.parametrize("steps", [97, 100, 1000, 99991])
@pytest.mark.parametrize("memory", ["sqrt", "log"])
def test_a_step_is_traced_about_once_a_level(steps, memory):
    count = 0

    def counted(params, state, x, key):
        nonlocal count
        count += 1
        return state * params, state

    system = ux.system(init=lambda key, params: 1.0, step=counted)
    estimator = bptt(steps, memory, system)
    jax.eval_shape(lambda: estimator.estimate(0.5, estimator.init(KEY, 0.5), None))
    levels = 1 + len(_checkpointed.inner_lengths("o", memory, steps, None))
    assert count <= 2 * levels  # lax.scan may trace a body twice


# --- bytes ----------------------------------------------------------------------------------------------------------


def wide_step(params, state, x, key):
    state = jnp.tanh(params @ state + x)
    return state, (state**2).mean()


wide = ux.system(init=lambda key, params: jnp.zeros(64, jnp.float32), step=wide_step)
WEIGHTS = jnp.eye(64, dtype=jnp.float32) / 2


def temporaries(steps, memory, width=1):
    estimator = bptt(steps, memory, wide)
    data = jnp.zeros((steps, 64), jnp.float32) if width > 1 else jnp.zeros(steps, jnp.float32)
    lowered = jax.jit(estimator.estimate).lower(WEIGHTS, estimator.init(KEY, WEIGHTS), data)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_pieces_take_the_memory_of_their_lengths():
    steps, state = 10_000, 64 * 4
    always = 12 * steps + 200_000  # keys, losses; the gradient and its kin
    full, sqrt, log = (temporaries(steps, memory) for memory in ("full", "sqrt", "log"))
    assert full > steps * state
    assert sqrt < 100 * (1 + 6) * state + always < full / 5
    assert log < 5 * 10 * (1 + 6) * state + always


def test_pieces_do_not_copy_the_data():
    steps = 9973  # a prime, so that nothing divides it
    width = steps * 63 * 4
    for memory in ("sqrt", "log"):
        assert temporaries(steps, memory, 64) - temporaries(steps, memory) < width / 20


@pytest.mark.parametrize("budget", [60_000, 100_000, 300_000, 1_000_000])
def test_bytes_are_kept_but_for_the_gradient(budget):
    steps = 3000
    gradient = 4 * 64 * 64 * 4  # the estimate leaves it out, and its copies
    assert temporaries(steps, budget) < 1.2 * budget + gradient


def test_bytes_take_the_fewest_levels_that_fit():
    sizes = _checkpointed.Sizes(state=10, inside=40, always=0)
    lengths = lambda memory: _checkpointed.inner_lengths("o", memory, 900, lambda: sizes)
    assert lengths(36_000) == ()
    assert lengths(35_999) == (15,)  # 60 states and 15 insides
    assert lengths(1200) == (15,)
    assert len(lengths(1199)) == 2
    assert lengths(460) == (15, 4)  # 15 and 15 states and 4 insides
    assert len(lengths(459)) == 3


def test_the_sizes_of_a_step_are_counted():
    def counted(params, state, row):
        x, _ = row
        h = jnp.sin(params["v"]) * params["w"] * jnp.sin(state["h"] + x)
        return {"h": h, "n": state["n"] + 1}, h.sum()

    state = {"h": jnp.zeros(5, jnp.float32), "n": jnp.int32(0)}
    params = {"w": jnp.ones(5, jnp.float32), "v": jnp.ones(5, jnp.float32)}
    xs = jnp.zeros((9, 5), jnp.float32), jax.random.split(KEY, 9)
    sizes = _checkpointed.sizes_of(counted, params, state, xs)
    assert sizes.state == 5 * 4 + 4
    assert sizes.always == 8 + 4
    vectors = 2 * 5 * 4  # the sine of h + x and its cosine; what depends on params alone is no step's
    assert sizes.inside == vectors + 5 * 4 + 8


def test_too_few_bytes_name_the_fewest():
    with pytest.raises(
        ux.InvalidArgument, match=r"BPTT: memory must be at least (\d+) bytes for 97 steps, each with"
    ) as info:
        call(bptt(97, 10))
    fewest = int(str(info.value).split("at least ")[1].split()[0])
    call(bptt(97, fewest))
    with pytest.raises(ux.InvalidArgument, match=f"at least {fewest} bytes.*got memory={fewest - 1}. Give more"):
        call(bptt(97, fewest - 1))


@pytest.mark.parametrize("memory", ["half", 0, -3, True, 1.5, None])
def test_a_memory_that_is_none_is_refused(memory):
    for make in (lambda: bptt(4, memory), lambda: ux.TBPTT(net, 2, memory=memory)):
        with pytest.raises(
            ux.InvalidArgument, match=f'PTT: memory must be "full", "sqrt", "log" or .*memory={memory!r}'
        ):
            make()
