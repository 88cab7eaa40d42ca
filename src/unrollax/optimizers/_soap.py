"""SOAP: Adam in the eigenbasis of Shampoo's Gram matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unrollax._check import NOT_NEGATIVE, check_counts, check_number
from unrollax._types import Params
from unrollax.optimizers._checks import Rate, check_decay, check_rate, check_real
from unrollax.optimizers._sides import Side, cut, gram, in_turn, kind, matrix_shape, moving, multiply_both

Pair = tuple[Any, Any]  # what the left and the right side have; None where a side is not turned


class SOAPState(NamedTuple):
    """What `soap` remembers.

    Attributes:
        t: gradients seen.
        grams: as params; at each leaf the Gram matrices of its left and right side, `[blocks, size, size]`, or `None`.
        bases: the same, their eigenvectors as columns.
        first: as params, the mean gradient.
        second: as params, the mean square of the gradient in those bases, a matrix a leaf.
    """

    t: jax.Array
    grams: Any
    bases: Any
    first: Any
    second: Any


class Settings(NamedTuple):
    """The numbers of `soap`."""

    b1: float
    b2: float
    eps: float
    every: int
    block: int
    longest: int


def soap(
    lr: Rate = 3e-3,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    every: int = 10,
    block: int = 512,
    longest: int = 8192,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """SOAP: Adam on the gradient turned into the eigenbases of its Gram matrices, P^T g Q, turned back.

    With L = b2 L + (1 - b2) g g^T and R = b2 R + (1 - b2) g^T g, and P and Q their eigenvectors,

        m = b1 m + (1 - b1) g,  w = b2 w + (1 - b2) (P^T g Q)**2,  m' = m / (1 - b1**t),  w' = w / (1 - b2**t)
        theta -= lr P [(P^T m' Q) / (sqrt(w') + eps)] Q^T

    P and Q are at first eigenvectors of the first gradient's L and R; that gradient makes no update (in its own bases it is
    diagonal, and Adam would blow up the rounding errors beside), and t counts from the second. After every `every`-th
    gradient a step of orthogonal iteration follows: P is the orthogonal factor of L P, after its columns p, and the rows of
    w, are sorted by p^T L p, largest first; Q likewise.

    A parameter of more than two axes counts as a matrix [all but the last, last]; one of fewer is Adam's. A side longer
    than `block` is cut into equal blocks, each with a basis of its own; one longer than `longest` is not turned.

    Cost beyond the gradient's: eight products an update of g with a side's block, and the iterations (4 ms for a block of
    392, 21 ms for one of 784, on one core; see docs/optimizers.md on LAPACK's threads).
    State: 2 x params, and 2 x length x block numbers a side.
    Use it like Adam, where a step is dear; it has no more to tune than Adam. Avoid it where a step is cheap.

    Args:
        lr: learning rate, a number or an optax schedule; Adam's, or up to three times that.
        b1: weight of the mean gradient before, in [0, 1).
        b2: weight of the mean square and of the Gram matrices before, in [0, 1).
        eps: is added to the root of the mean square.
        every: updates between two turns of the bases. Larger values are cheaper and act on older bases.
        block: rows of a block. Smaller values cost less and know less.
        longest: longest side that is turned.
        weight_decay: lr * weight_decay * params is taken off at each update.

    Raises:
        InvalidArgument: a number out of its range.
        StructureError: in `init`, a parameter that isn't real and floating.

    Example:
        >>> import jax.numpy as jnp, optax, unrollax as ux
        >>> optimizer = ux.soap(0.1)
        >>> g = jnp.diag(jnp.array([100.0, 1.0]))
        >>> _, state = optimizer.update(g, optimizer.init(jnp.zeros((2, 2))))
        >>> update, state = optimizer.update(g, state)
        >>> update.round(3) + 0
        Array([[-0.1,  0. ],
               [ 0. , -0.1]], dtype=float32)

    References: Vyas et al., ICLR 2025. As in the authors' program, beyond the paper: the first gradient only sets the
    bases, and columns are sorted. Deviation: blocks.
    """
    settings = Settings(b1, b2, eps, every, block, longest)
    check_rate("soap", lr)
    for name in ("b1", "b2"):
        check_decay("soap", name, getattr(settings, name))
    for name, number in (("eps", eps), ("weight_decay", weight_decay)):
        check_number("soap", name, number, NOT_NEGATIVE, used=True)
    check_counts("soap", every=every, block=block, longest=longest)
    return optax.chain(
        _scale_by_soap(settings),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(lr),
    )


def _scale_by_soap(settings: Settings) -> optax.GradientTransformation:
    b1, b2, every = settings.b1, settings.b2, settings.every

    def init(params: Params) -> SOAPState:
        check_real("soap", params)
        first = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), kind(leaf)), params)
        grams = jax.tree.map(lambda leaf: _grams(leaf, settings), first)
        second = jax.tree.map(lambda leaf, pair: multiply_both(pair, _matrix(leaf)), first, grams)
        return SOAPState(jnp.zeros((), jnp.int32), grams, grams, first, second)

    def update(grad: Any, state: SOAPState, params: Params | None = None) -> tuple[Any, SOAPState]:
        t = state.t + 1
        g = jax.tree.map(lambda leaf: leaf.astype(kind(leaf)), grad)
        new = jax.tree.map(lambda leaf: _grams(leaf, settings), g)
        grams = jax.tree.map(lambda old, now: moving(old, now, b2), state.grams, new)
        starts = state.t == 0
        bases = jax.lax.cond(starts, lambda: in_turn(_eigenvectors, grams), lambda: state.bases)
        g = jax.tree.map(lambda leaf: jnp.where(starts, 0, leaf), g)  # the moments stay 0, and so does the step
        first = jax.tree.map(lambda old, now: moving(old, now, b1), state.first, g)
        turned = jax.tree.map(_turn, g, bases)
        second = jax.tree.map(lambda old, now: moving(old, now * now, b2), state.second, turned)
        step = jax.tree.map(
            lambda m, pair, w: _adam(m, pair, w, settings, jnp.maximum(state.t, 1)), first, bases, second
        )
        out = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), step, grad)
        bases, second = jax.lax.cond(t % every == 0, lambda: _iterate(g, grams, bases, second), lambda: (bases, second))
        return out, SOAPState(t, grams, bases, first, second)

    return optax.GradientTransformation(init, update)


def _matrix(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(matrix_shape(leaf.shape))


def _grams(leaf: jax.Array, settings: Settings) -> Pair:
    """Return the Gram matrices of those sides of a gradient that are turned."""
    x = _matrix(leaf)

    def side(x: jax.Array) -> jax.Array | None:
        blocks: Side = cut(x.shape[0], settings.block, settings.longest)
        return None if leaf.ndim < 2 or blocks.size == 1 else gram(x, blocks)

    return side(x), side(x.T)


def _eigenvectors(matrix: jax.Array) -> jax.Array:
    """Return eigenvectors as columns, that of the largest eigenvalue first."""
    return jnp.linalg.eigh(matrix)[1][..., ::-1]


def _turn(leaf: jax.Array, bases: Pair) -> jax.Array:
    """Return P^T x Q."""
    left, right = jax.tree.map(lambda basis: basis.mT, bases)
    return multiply_both((left, right), _matrix(leaf))


def _adam(first: jax.Array, bases: Pair, second: jax.Array, settings: Settings, t: jax.Array) -> jax.Array:
    """Return Adam's step in the bases, turned back."""
    up, down = ((1 - jnp.power(decay, t)).astype(first.dtype) for decay in (settings.b1, settings.b2))
    step = (_turn(first, bases) / up) / (jnp.sqrt(second / down) + settings.eps)
    m, n = matrix_shape(first.shape)
    return multiply_both(bases, step)[:m, :n].reshape(first.shape)


def _iterate(like: Any, grams: Any, bases: Any, second: Any) -> tuple[Any, Any]:
    """Return all bases after a step of orthogonal iteration, and the mean squares with their rows in the new order."""

    def leaf(_: jax.Array, grams: Pair, bases: Pair, second: jax.Array) -> tuple[Pair, jax.Array]:
        left, second = _one_side(grams[0], bases[0], second)
        right, second = _one_side(grams[1], bases[1], second.T)
        return (left, right), second.T

    done = jax.tree.map(leaf, like, grams, bases, second)
    images = jax.tree.map(lambda _, pair: pair[0], like, done)
    bases = in_turn(lambda image: jnp.linalg.qr(image)[0], images)
    return bases, jax.tree.map(lambda _, pair: pair[1], like, done)


def _one_side(matrix: Any, basis: Any, second: jax.Array) -> tuple[Any, jax.Array]:
    """Return L P with its columns sorted, the largest p^T L p first, and the rows of the mean squares likewise."""
    if matrix is None:
        return None, second
    image = matrix @ basis
    order = jnp.argsort(-(basis * image).sum(-2), axis=-1)
    rows = second.reshape(*order.shape, -1)
    sorted_rows = jnp.take_along_axis(rows, order[:, :, None], 1).reshape(second.shape)
    return jnp.take_along_axis(image, order[:, None, :], 2), sorted_rows
