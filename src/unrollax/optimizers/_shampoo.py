"""Shampoo: both sides of a gradient are whitened by roots of their Gram matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrollax._check import NOT_NEGATIVE, POSITIVE, check_choice, check_counts, check_number
from unrollax._types import Params
from unrollax.optimizers._checks import Rate, check_decay, check_rate, check_real
from unrollax.optimizers._sides import Side, cut, gram, in_turn, kind, matrix_shape, moving, multiply_both

Pair = tuple[Any, Any]  # what the left and the right side have; None where there is no such side


class ShampooState(NamedTuple):
    """What `shampoo` remembers.

    Attributes:
        t: updates made.
        grams: as params; at each leaf the Gram matrices of its left and right side, `[blocks, size, size]`.
        roots: the same, their inverse roots when they were last renewed.
        second: as params, the mean squared gradient for grafting; `()` if it isn't needed.
        velocity: as params, the moving average of the steps.
    """

    t: jax.Array
    grams: Any
    roots: Any
    second: Any
    velocity: Any


class Settings(NamedTuple):
    """The numbers of `shampoo`."""

    b1: float
    b2: float | None
    eps: float
    every: int
    block: int
    longest: int
    graft: str | None


def shampoo(
    lr: Rate = 1e-3,
    *,
    b1: float = 0.9,
    b2: float | None = 0.99,
    eps: float = 1e-6,
    every: int = 20,
    block: int = 512,
    longest: int = 8192,
    graft: str | None = "rmsprop",
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Shampoo: L = b2 L + (1 - b2) g g^T, R = b2 R + (1 - b2) g^T g, step = L^(-1/4) g R^(-1/4), for matrices g.

    L and R are divided by 1 - b2**t. Their roots are renewed at every `every`-th update, the first included, by an
    eigendecomposition in which each eigenvalue is max(value, 0) + eps * largest. Then, with `graft`, the step takes the norm
    that RMSProp's (or SGD's) step would have had; velocity = b1 velocity + (1 - b1) step and theta -= lr velocity.

    A parameter of more than two axes counts as a matrix [all but the last, last]. One of fewer than two has a diagonal L
    only, whose root is L^(-1/2): RMSProp, or AdaGrad with `b2=None`. A side longer than `block` is cut into equal
    blocks, each with a factor of its own; one longer than `longest` has a diagonal factor.

    Cost beyond the gradient's: four products an update of g with a side's block, and the eigendecompositions (8 ms for a
    block of 392, 47 ms for one of 784, on one core; see docs/optimizers.md on LAPACK's threads).
    State: 2 x params, and 2 x length x block numbers a side.
    Use it when a step is dear and layers are ill-conditioned: large batches, deep nets. Avoid it when gradients are so noisy
    that their Gram matrices say nothing.

    Args:
        lr: learning rate, a number or an optax schedule; that of RMSProp fits with its graft.
        b1: weight of the velocity before, in [0, 1); 0 takes the step as it is.
        b2: weight of the Gram matrices before, in [0, 1); `None` sums them up, as in the first paper.
        eps: ridge of the roots, a share of the largest eigenvalue. Larger values whiten less.
        every: updates between two renewals of the roots. Larger values are cheaper and act on older curvature.
        block: rows of a block. Smaller values cost less and know less.
        longest: longest side with factors; longer ones have a diagonal.
        graft: whose norm the step takes, "rmsprop", "sgd" or `None` for its own.
        weight_decay: lr * weight_decay * params is taken off at each update.

    Raises:
        InvalidArgument: a number out of its range.
        StructureError: in `init`, a parameter that isn't real and floating.

    Example:
        >>> import jax.numpy as jnp, optax, unrollax as ux
        >>> optimizer = ux.shampoo(0.1, b1=0.0, graft=None)
        >>> g = jnp.diag(jnp.array([100.0, 1.0]))
        >>> update, state = optimizer.update(g, optimizer.init(jnp.zeros((2, 2))))
        >>> update.round(3) + 0
        Array([[-0.1,  0. ],
               [ 0. , -0.1]], dtype=float32)

    References: Gupta, Koren and Singer, ICML 2018; Anil et al., 2020 (grafting, moving averages, blocks, renewal now and
    then). Deviations: blocks cut each side by itself; the ridge is relative; vectors are grafted like the rest.
    """
    settings = Settings(b1, b2, eps, every, block, longest, graft)
    check_rate("shampoo", lr)
    _check(settings, weight_decay)
    return optax.chain(
        _scale_by_shampoo(settings),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(lr),
    )


def _check(settings: Settings, weight_decay: float) -> None:
    check_decay("shampoo", "b1", settings.b1)
    if settings.b2 is not None:
        check_decay("shampoo", "b2", settings.b2)
    check_number("shampoo", "eps", settings.eps, POSITIVE, used=True)
    check_counts("shampoo", every=settings.every, block=settings.block, longest=settings.longest)
    check_choice("shampoo", "graft", settings.graft, ("rmsprop", "sgd", None))
    check_number("shampoo", "weight_decay", weight_decay, NOT_NEGATIVE, used=True)


def _scale_by_shampoo(settings: Settings) -> optax.GradientTransformation:
    def init(params: Params) -> ShampooState:
        check_real("shampoo", params)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), kind(leaf)), params)
        grams = jax.tree.map(lambda leaf: _grams(leaf, settings), zeros)
        second = zeros if settings.graft == "rmsprop" else ()
        return ShampooState(jnp.zeros((), jnp.int32), grams, grams, second, zeros)

    def update(grad: Any, state: ShampooState, params: Params | None = None) -> tuple[Any, ShampooState]:
        t = state.t + 1
        g = jax.tree.map(lambda leaf: leaf.astype(kind(leaf)), grad)
        new = jax.tree.map(lambda leaf: _grams(leaf, settings), g)
        grams = jax.tree.map(lambda old, now: moving(old, now, settings.b2), state.grams, new)
        roots = jax.lax.cond(state.t % settings.every == 0, lambda: _roots(g, grams, settings, t), lambda: state.roots)
        step = jax.tree.map(_precondition, g, roots)
        second = state.second
        if settings.graft == "rmsprop":
            second = jax.tree.map(lambda old, x: moving(old, x * x, settings.b2), second, g)
        step = _grafted(step, g, second, settings, t)
        velocity = jax.tree.map(lambda old, x: moving(old, x, settings.b1), state.velocity, step)
        out = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), velocity, grad)
        return out, ShampooState(t, grams, roots, second, velocity)

    return optax.GradientTransformation(init, update)


def _grams(leaf: jax.Array, settings: Settings) -> Pair:
    """Return the Gram matrices of both sides of a gradient."""
    m, n = matrix_shape(leaf.shape)
    x = leaf.reshape(m, n)
    if leaf.ndim < 2:
        return gram(x, Side(m, 1)), None
    left, right = cut(m, settings.block, settings.longest), cut(n, settings.block, settings.longest)
    return gram(x, left), gram(x.T, right)


def _roots(like: Any, grams: Any, settings: Settings, t: jax.Array) -> Any:
    """Return the inverse roots of all Gram matrices: -1/4, or -1/2 where there is but one side."""

    def root(matrix: jax.Array, sides: int) -> jax.Array:
        return _root(matrix / _corrected(matrix, settings.b2, t), sides, settings.eps)  # relative, so they scale as one

    sides = jax.tree.map(lambda _, pair: jax.tree.map(lambda _: len(jax.tree.leaves(pair)), pair), like, grams)
    return in_turn(root, grams, sides)


def _corrected(like: jax.Array, b2: float | None, t: jax.Array) -> jax.Array:
    """Return what a moving average from 0 lacks after t steps, 1 - b2**t."""
    return jnp.ones((), like.dtype) if b2 is None else (1 - jnp.power(b2, t)).astype(like.dtype)


def _root(matrix: jax.Array, sides: int, eps: float) -> jax.Array:
    """Return matrix^(-1 / (2 sides)), a block each; the identity of one that is 0."""
    values, vectors = (matrix[..., 0], jnp.ones_like(matrix)) if matrix.shape[-1] == 1 else jnp.linalg.eigh(matrix)
    largest = values.max(initial=0.0)
    some = largest * eps > float(np.finfo(matrix.dtype).tiny)
    values = jnp.where(some, jnp.maximum(values, 0) + eps * largest, 1)
    return (vectors * values[:, None] ** (-0.5 / sides)) @ vectors.mT


def _precondition(leaf: jax.Array, roots: Pair) -> jax.Array:
    m, n = matrix_shape(leaf.shape)
    return multiply_both(roots, leaf.reshape(m, n))[:m, :n].reshape(leaf.shape)


def _grafted(step: Any, g: Any, second: Any, settings: Settings, t: jax.Array) -> Any:
    """Return the step with the norm of another optimizer's, leaf by leaf."""
    if settings.graft is None:
        return step

    def like(leaf: jax.Array, x: jax.Array) -> jax.Array:
        own = jnp.linalg.norm(leaf)
        return leaf * jnp.where(own > 0, jnp.linalg.norm(x) / jnp.where(own > 0, own, 1), 0)

    if settings.graft == "rmsprop":
        g = jax.tree.map(lambda x, w: x / (jnp.sqrt(w / _corrected(w, settings.b2, t)) + 1e-8), g, second)
    return jax.tree.map(like, step, g)
