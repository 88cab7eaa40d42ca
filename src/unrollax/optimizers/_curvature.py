"""The Hessian H of a loss in a net's outputs, with a root of it, and the minimum of a quadratic model in two directions."""

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


def curvature_times(loss: Loss, y: jax.Array, target: Any, vector: jax.Array) -> jax.Array:
    """Return H v for each example."""
    return jax.jvp(jax.grad(lambda y: loss(y, target).sum()), (y,), (vector,))[1]


def curvature(loss: Loss, y: jax.Array, target: Any, outputs: str) -> tuple[Times, Times]:
    """Return what makes H v of a v for each example, and what makes R v, where R R^T = H."""
    if outputs == "independent":
        diagonal = jnp.maximum(curvature_times(loss, y, target, jnp.ones_like(y)), 0.0)
        return (lambda v: diagonal * v), (lambda v: jnp.sqrt(diagonal) * v)
    p = jax.nn.softmax(y)

    def root(v: jax.Array) -> jax.Array:
        return jnp.sqrt(p) * v - p * (jnp.sqrt(p) * v).sum(axis=-1, keepdims=True)

    return (lambda v: curvature_times(loss, y, target, v)), root


def check_curvature(owner: str, loss: Loss, y: Any, target: Any, outputs: str) -> None:
    """Raise unless a loss has the Hessian that `outputs` says: computed once, with numbers of its own, while tracing."""
    with jax.ensure_compile_time_eval():
        draw = np.random.default_rng(0).standard_normal((2, 2, *y.shape[1:]))
        at, vector = jnp.asarray(draw, y.dtype)
        goal = jax.tree.map(_some_target, target)
        got = curvature_times(loss, at, goal, vector)
        ones = curvature_times(loss, at, goal, jnp.ones_like(at))
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


def minimum(quadratic: jax.Array, linear: jax.Array, fixed: tuple[Any, Any]) -> jax.Array:
    """Return the w `[2]` that minimises 1/2 w^T Q w + b^T w, where some of its numbers may be fixed.

    Example:
        >>> minimum(jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.array([-2.0, -2.0]), (None, None))
        Array([1. , 0.5], dtype=float32)
    """
    (a, c), (_, d) = quadratic
    p, q = linear
    if fixed[0] is not None and fixed[1] is not None:
        return jnp.array([fixed[0], fixed[1]], linear.dtype)
    if fixed[0] is not None:
        return jnp.array([fixed[0], _divided(-q - c * fixed[0], d)], linear.dtype)
    if fixed[1] is not None:
        return jnp.array([_divided(-p - c * fixed[1], a), fixed[1]], linear.dtype)
    share = _divided(c, a)  # take the first out of the second
    rest = d - share * c
    second = jnp.where(rest > 1e-6 * d, _divided(-q + share * p, rest), 0.0)  # parallel: the first does it all
    return jnp.stack([_divided(-p - c * second, a), second])


def _divided(top: Any, bottom: Any) -> jax.Array:
    """Divide, and return 0 where there is no curvature: the direction is 0 then."""
    return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1.0), 0.0)


def dot(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """Return the inner product of two lists of matrices."""
    return jnp.stack([jnp.vdot(x, y) for x, y in zip(a, b, strict=True)]).sum()
