"""Relations that hold for any system: found by hypothesis rather than by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import unrollax as ux
from unrollax.testing import deal

HORIZON = 12
seeds = st.integers(0, 2**16)
divisors = st.sampled_from([1, 3, 4])
few = settings(max_examples=15, deadline=None, derandomize=True)


@ux.value
class Smooth:
    """A random tanh system whose init depends on the parameters. Its weights are leaves, so that one trace serves all."""

    across: jax.Array
    into: jax.Array

    def init(self, key, params):
        return jnp.tanh(params)

    def step(self, params, state, x, key):
        state = jnp.tanh(self.across @ state + self.into @ params + x)
        return state, (state**2).sum() + params @ state


def smooth(seed):
    return Smooth(*0.6 * np.random.default_rng(seed).normal(size=(2, 3, 3)))


estimate_jit = jax.jit(lambda estimator, *args: estimator.estimate(*args))
unroll_jit = jax.jit(ux.unroll, static_argnames="steps")


def total(estimator, seed):
    """The mean of the windows' gradients over one horizon, and their mean loss."""
    params, data = jax.random.normal(jax.random.key(seed), (2, 3))
    state, window = estimator.init(jax.random.key(seed), params), estimator.window
    grads, losses = [], []
    for start in range(0, HORIZON, window):
        piece = data[None] * jnp.arange(start, start + window, dtype=float)[:, None] / HORIZON
        state, estimate = estimate_jit(estimator, params, state, piece)
        grads.append(estimate.grad)
        losses.append(estimate.loss)
    return np.mean(grads, axis=0), np.mean(losses)


def same_noise(key, shape, dtype):
    """Noise that does not depend on the key, so that another number of draws meets the same at the reset."""
    return jax.random.normal(jax.random.key(99), shape, dtype)


@few
@given(seed=seeds, window=divisors)
def test_a_horizon_may_be_cut_anywhere_when_the_noise_is_held(seed, window):
    system = smooth(seed)
    for make in (
        lambda window: ux.NRES(system, 0.05, window, HORIZON, pairs=2, sampler=same_noise),
        lambda window: ux.ForwardGradient(system, window, HORIZON, directions=2, sampler=same_noise),
    ):
        for got, expected in zip(total(make(window), seed), total(make(HORIZON), seed), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@few
@given(seed=seeds, window=divisors)
def test_truncation_loses_gradient_but_no_loss(seed, window):
    system = smooth(seed)
    _, loss = total(ux.TBPTT(system, window, HORIZON), seed)
    _, whole = total(ux.BPTT(system, HORIZON), seed)
    np.testing.assert_allclose(loss, whole, rtol=1e-12)


@few
@given(seed=seeds)
def test_directions_that_span_the_space_give_the_whole_gradient(seed):
    """Averaged over the axes, times their number, v (dl/dv) is the gradient itself."""

    system = smooth(seed)
    forward, _ = total(
        ux.ForwardGradient(system, 3, HORIZON, directions=3, sampler=deal(np.sqrt(3.0) * np.eye(3))), seed
    )
    exact, _ = total(ux.BPTT(system, HORIZON), seed)
    np.testing.assert_allclose(forward, exact, rtol=1e-9, atol=1e-12)


@few
@given(seed=seeds, count=st.integers(1, 5))
def test_a_batch_of_equal_examples_is_one_example(seed, count):
    system = smooth(seed)
    params, x = jax.random.normal(jax.random.key(seed), (2, 3))
    one = unroll_jit(system, params, system.init(None, params), ux.repeat(x), jax.random.key(0), steps=4)[1]
    many = ux.batched(system, count)
    start = many.init(jax.random.key(0), params)
    data = ux.repeat(jnp.broadcast_to(x, (count, 3)))
    np.testing.assert_allclose(unroll_jit(many, params, start, data, jax.random.key(0), steps=4)[1], one, rtol=1e-12)


@few
@given(seed=seeds)
def test_repeated_data_are_the_same_row_at_every_step(seed):
    system = smooth(seed)
    params, x = jax.random.normal(jax.random.key(seed), (2, 3))
    start, key = system.init(None, params), jax.random.key(0)
    tiled = unroll_jit(system, params, start, jnp.broadcast_to(x, (5, 3)), key)[1]
    np.testing.assert_array_equal(unroll_jit(system, params, start, ux.repeat(x), key, steps=5)[1], tiled)
