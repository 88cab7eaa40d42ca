"""The Hessian H of a loss in a net's outputs, by its products with vectors, and a root of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument
from unrollax._tree import is_inexact

Loss = Callable[[jax.Array, Any], jax.Array]
Times = Callable[[jax.Array], jax.Array]
FITS = 1e-3  # relative difference of two products with H, in float32


def hessian_times(loss: Loss, y: jax.Array, target: Any, vector: jax.Array) -> jax.Array:
    """Return H v for each example."""
    return jax.jvp(jax.grad(lambda y: loss(y, target).sum()), (y,), (vector,))[1]


def output_hessian(loss: Loss, y: jax.Array, target: Any, outputs: str) -> tuple[Times, Times]:
    """Return what makes H v of a v for each example, and what makes R v, where R R^T = H."""
    if outputs == "independent":
        diagonal = jnp.maximum(hessian_times(loss, y, target, jnp.ones_like(y)), 0.0)
        return (lambda v: diagonal * v), (lambda v: jnp.sqrt(diagonal) * v)
    p = jax.nn.softmax(y)

    def root(v: jax.Array) -> jax.Array:
        return jnp.sqrt(p) * v - p * (jnp.sqrt(p) * v).sum(axis=-1, keepdims=True)

    return (lambda v: hessian_times(loss, y, target, v)), root


def check_hessian(owner: str, loss: Loss, y: Any, target: Any, outputs: str) -> None:
    """Raise unless a loss has the Hessian that `outputs` says: computed once, with numbers of its own, while tracing."""
    with jax.ensure_compile_time_eval():
        draw = np.random.default_rng(0).standard_normal((2, 2, *y.shape[1:]))
        at, vector = jnp.asarray(draw, y.dtype)
        goal = jax.tree.map(_some_target, target)
        got = hessian_times(loss, at, goal, vector)
        ones = hessian_times(loss, at, goal, jnp.ones_like(at))
        p = jax.nn.softmax(at)
        mean = (p * vector).sum(axis=-1, keepdims=True)
        expected = p * (vector - mean) if outputs == "softmax" else ones * vector
        scale = float(jnp.abs(got).max())
        apart = float(jnp.abs(got - expected).max())
        convex = outputs == "softmax" or bool((ones >= -FITS * scale).all())
    if scale == 0.0 or not apart <= FITS * scale or not convex:
        raise InvalidArgument(f"{owner}: {_SAYS[outputs]} {_remedy(apart <= FITS * scale, convex, scale)}")


_SAYS = {
    "independent": 'loss must have a convex term for each output with outputs="independent",',
    "softmax": 'loss must be softmax cross-entropy, summed over whatever else an example has, with outputs="softmax",',
}


def _remedy(fits: bool, convex: bool, scale: float) -> str:
    if scale == 0.0:
        return "got one that is linear in the outputs. Second-order steps have nothing to go by: use another optimizer."
    if fits and not convex:
        return "got one that curves downwards. Use squared error, or cross-entropy on logits."
    return (
        "got one with another Hessian. Use squared error or sigmoid cross-entropy on logits with "
        'outputs="independent", or unscaled softmax cross-entropy on logits with outputs="softmax".'
    )


def _some_target(leaf: Any) -> jax.Array:
    """Return a target of two examples: the label 0, or equal shares, which cross-entropies and squares all take."""
    shape = (2, *jnp.shape(leaf)[1:])
    if not is_inexact(leaf):
        return jnp.zeros(shape, jnp.result_type(leaf))
    return jnp.full(shape, 1.0 / (shape[-1] if len(shape) > 1 else 2), jnp.result_type(leaf))
