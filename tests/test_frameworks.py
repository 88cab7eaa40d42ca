"""Parameters are plain pytrees: models of other libraries need no adapter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux


def test_an_equinox_cell_trains_under_every_kind_of_estimator():
    cell = eqx.nn.GRUCell(2, 3, key=jax.random.key(0))
    params, rest = eqx.partition(cell, eqx.is_inexact_array)

    def step(params, state, x, key):
        state = eqx.combine(params, rest)(x, state)
        return state, (state**2).mean()

    system = ux.system(init=lambda key, params: jnp.zeros(3), step=step)
    data = jax.random.normal(jax.random.key(1), (4, 2))
    exact = jax.grad(lambda p: ux.unroll(system, p, jnp.zeros(3), data, jax.random.key(2))[1].mean())(params)
    bptt = ux.BPTT(system, 4)
    got = bptt.estimate(params, bptt.init(jax.random.key(3), params), data)[1].grad
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, exact)
    for estimator in (ux.PES(system, 0.1, 4, 8, pairs=2), ux.ForwardGradient(system, 4, 8)):
        grad = estimator.estimate(params, estimator.init(jax.random.key(3), params), data)[1].grad
        assert jax.tree.structure(grad) == jax.tree.structure(params)


def test_a_leaf_that_is_a_function_is_named():
    mlp = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    system = ux.system(init=lambda key, params: jnp.zeros(2), step=lambda p, s, x, k: (p(s), s.sum()))
    with pytest.raises(ux.StructureError, match=r"BPTT: params leaf .*activation.* must be real floating numbers, got"):
        ux.BPTT(system, 4).init(jax.random.key(0), mlp)


def test_an_equinox_module_is_a_system():
    class Filter(eqx.Module):
        gain: jax.Array

        def init(self, key, params):
            return jnp.zeros(())

        def step(self, params, state, x, key):
            state = params * state + self.gain
            return state, state**2

    bptt = ux.BPTT(Filter(jnp.float64(2.0)), 2)
    estimate = jax.jit(lambda e, p, s: e.estimate(p, s, None)[1])(bptt, 0.5, bptt.init(jax.random.key(0), 0.5))
    np.testing.assert_allclose(estimate.grad, 6.0)  # d/dp of (4 + (2 p + 2)^2) / 2 at 1/2
