"""Optimizers by name: each is a plain optax transformation whose state is a fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax._optimizer import OPTIMIZERS
from unrollax._tree import from_arrays, to_arrays

NAMES = list(OPTIMIZERS)


def params_and_gradients(dtype=jnp.float32, steps=5):
    """A net of layers as a list of dicts, one of them without params."""
    rng = np.random.default_rng(0)
    params = [
        {"w": rng.standard_normal((4, 3)), "b": np.zeros(3)},
        None,
        {"kernel": rng.standard_normal((2, 2, 3)), "scale": np.ones(())},
    ]
    draw = lambda leaf: jnp.asarray(rng.standard_normal((steps, *np.shape(leaf))), dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params), jax.tree.map(draw, params)


def run(optimizer, params, state, gradients):
    def step(carry, grad):
        params, state = carry
        update, state = optimizer.update(grad, state, params)
        return (optax.apply_updates(params, update), state), None

    return jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs)[0])((params, state), gradients)


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_a_fixed_point_in_float32_under_x64_and_updates_have_the_params_kind(name):
    params, gradients = params_and_gradients()
    optimizer = ux.optimizer(name)
    state = optimizer.init(params)
    first = jax.tree.map(lambda leaf: leaf[0], gradients)
    update, after = jax.eval_shape(optimizer.update, first, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert kinds(after) == kinds(jax.eval_shape(lambda: state))
    assert kinds(update) == kinds(params)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_two_parts_through_plain_arrays_is_the_run_in_one_to_the_bit(name):
    params, gradients = params_and_gradients()
    optimizer = ux.optimizer(name)
    start = optimizer.init(params)
    whole = run(optimizer, params, start, gradients)
    half = run(optimizer, params, start, jax.tree.map(lambda leaf: leaf[:3], gradients))
    saved = from_arrays(half, to_arrays(half))
    again = run(optimizer, *saved, jax.tree.map(lambda leaf: leaf[3:], gradients))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    moved = jax.tree.map(lambda old, new: (old != new).any(), params, whole[0])
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_half_precision_params_keep_theirs(name):
    params, gradients = params_and_gradients(jnp.bfloat16)
    after, _ = run(ux.optimizer(name), params, ux.optimizer(name).init(params), gradients)
    assert all(leaf.dtype == jnp.bfloat16 and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_a_bowl_at_its_usual_rate_or_at_a_schedule(name):
    start = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)))
    usual = OPTIMIZERS[name].lr

    def last(lr):
        optimizer = ux.optimizer(name, lr)

        def step(carry, _):
            w, state = carry
            update, state = optimizer.update(2 * w, state, w)
            return (w + update, state), None

        return jax.lax.scan(step, (start, optimizer.init(start)), None, length=20)[0][0]

    fixed, scheduled = jax.jit(lambda: (last(None), last(lambda count: jnp.where(count < 20, usual, jnp.nan))))()
    assert (fixed**2).sum() < (start**2).sum()
    np.testing.assert_allclose(fixed, scheduled, rtol=1e-12)


@pytest.mark.parametrize("name", ["momentum", "shampoo", "soap"])
def test_a_rate_may_be_traced(name):
    w, grad = jnp.zeros((2, 2)), jnp.eye(2) + 0.1

    def after_two(lr):
        optimizer = ux.optimizer(name, lr)
        _, state = optimizer.update(grad, optimizer.init(w), w)
        return optimizer.update(grad, state, w)[0]

    one, two = jax.vmap(after_two)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(2 * one, two, rtol=1e-12)
    assert (one != 0).all()


def test_muon_makes_a_matrix_orthogonal_and_leaves_biases_to_adam():
    """Five steps of its iteration take all singular values into about 0.7 to 1.2, and 0.2 sqrt(longer side) scales them."""
    params, gradients = params_and_gradients(jnp.float64)
    first = jax.tree.map(lambda leaf: leaf[0], gradients)
    optimizer = ux.optimizer("muon", 1.0)
    update, _ = optimizer.update(first, optimizer.init(params), params)
    w = np.asarray(update[0]["w"])
    values = np.linalg.svd(w / (0.2 * np.sqrt(4)), compute_uv=False)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    assert np.linalg.cond(w) < np.linalg.cond(first[0]["w"])
    adam = optax.adamw(1.0, weight_decay=0.0, nesterov=True)
    bias = params[0]["b"]
    want, _ = adam.update(first[0]["b"], adam.init(bias), bias)
    np.testing.assert_allclose(update[0]["b"], want, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adamm", "Did you mean adam"),
        ("shampo", "Did you mean shampoo"),
        ("zzz", "The choices are adagrad"),
        (3, "got 3. The choices are adagrad"),
        (None, "got None. The choices are adagrad"),
        (["adam"], r"got \['adam'\]. The choices are adagrad"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, says):
    with pytest.raises(ux.InvalidArgument, match=f"optimizer: name must be .*{says}"):
        ux.optimizer(name)


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf"), "fast"])
@pytest.mark.parametrize("make", [lambda lr: ux.optimizer("sgd", lr), ux.momentum, ux.adagrad_plain])
def test_a_rate_that_is_none_is_refused(make, lr):
    with pytest.raises(ux.InvalidArgument, match="lr must be a finite number of at least 0"):
        make(lr)


def test_alpha_of_one_would_never_move():
    with pytest.raises(ux.InvalidArgument, match=r"momentum: alpha must be a number in \[0, 1\)"):
        ux.momentum(0.1, alpha=1.0)
