"""The problem of one layer: move its pre-activations, or activations, to their targets, by its own parameters alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._types import Params, Scalar, State
from unrollax.local._layers import is_linear

Solution: TypeAlias = tuple[list[Params], State, Scalar]


class Problem(NamedTuple):
    """A layer with what it saw and how far its targets lie, in the terms of `LocoProp`.

    Attributes:
        layer: the layer.
        params: its parameters, W_0.
        inputs: what its `pre` sees.
        outputs: its y at W_0.
        slope: d loss_i / d a, `[batch, ..., m]`.
        scales: `[m]` each: what the units' slopes are multiplied by, one after the other, as their product may overflow.
    """

    layer: Any
    params: Params
    inputs: Any
    outputs: Any
    slope: Any
    scales: tuple[jax.Array, ...]

    @property
    def move(self) -> Any:
        """The direction of the targets, `[batch, ..., m]`: they lie at `a - reach move` or `y - reach move`."""
        move = self.slope
        for scale in self.scales:
            move = move * scale.reshape((1,) * (move.ndim - 1) + (-1,))
        return move.astype(self.slope.dtype)


class How(NamedTuple):
    """What all layers' problems share: options of `LocoProp`, and the mean loss of the batch."""

    variant: str
    steps: int
    reach: Any
    pull: Any
    loss: Any


class Solver(Protocol):
    """What solves the problems of all layers."""

    def init(self, layers: list[Any], params: list[Params]) -> State:
        """Return what it carries from batch to batch."""
        ...

    def solve(self, problems: list[Problem], state: State, how: How) -> Solution:
        """Return old minus new params of each layer, the next state, and the reach that was used."""
        ...


def is_squared(problem: Problem, variant: str) -> bool:
    """Whether the local loss is squared: in S, and in M where the transfer is the identity, whose matching loss that is."""
    return variant == "S" or getattr(problem.layer.transfer, "name", None) == "identity"


def local_gradient(problem: Problem, how: How, reach: Any) -> Callable[[Params], Params]:
    """Return the gradient of a layer's local loss, as a function of its params.

    With e = a - (a_0 - reach move) in S and e = f(a) - (y_0 - reach move) in M, it is the mean over the batch of e pulled
    back to the params, plus `pull (W - W_0)`.
    """
    layer, start, batch = problem.layer, problem.params, len(problem.slope)
    squared = is_squared(problem, how.variant)
    identity = getattr(layer.transfer, "name", None) == "identity"
    at_start = problem.outputs if identity or not squared else layer.pre(start, problem.inputs)
    aim = at_start - reach * problem.move

    def gradient(params: Params) -> Params:
        a, back = jax.vjp(lambda own: layer.pre(own, problem.inputs), params)
        (found,) = back((((a if squared else layer.transfer(a)) - aim) / batch).astype(a.dtype))
        return in_kinds_of(params, jax.tree.map(lambda g, new, old: g + how.pull * (new - old), found, params, start))

    return gradient


def first_gradient(problem: Problem, reach: Any) -> Params:
    """Return the local gradient where the steps start, in either variant: `reach` times the mean of the pulled-back move."""
    a, back = jax.vjp(lambda own: problem.layer.pre(own, problem.inputs), problem.params)
    found: Params = back((reach * problem.move / len(problem.slope)).astype(a.dtype))[0]
    return found


def rows_of(problem: Problem) -> tuple[jax.Array, jax.Array, int]:
    """Return features `[rows, n]` and moves `[rows, m]` of a linear layer, in at least float32, and the batch."""
    move, features = problem.move, problem.layer.features(problem.inputs)
    x, rows = (one.astype(jnp.promote_types(one.dtype, jnp.float32)) for one in (features, move))
    return x, rows.reshape(-1, move.shape[-1]), len(move)


def gram_gradient(problem: Problem, how: How, reach: Any) -> Callable[[Params], Params]:
    """Return `local_gradient` for a squared loss and a linear layer, from C = X^T X / batch, which is computed once.

    It is `(C + pull I)(W - W_0) + reach X^T move / batch`, and its cost does not depend on the number of rows.
    """
    layer = problem.layer
    features, move, batch = rows_of(problem)
    covariance, towards = features.T @ features / batch, reach * (features.T @ move) / batch
    start = layer.matrix(problem.params)

    def gradient(params: Params) -> Params:
        away = layer.matrix(params) - start
        return in_kinds_of(params, layer.from_matrix(covariance @ away + how.pull * away + towards))

    return gradient


def in_kinds_of(params: Params, found: Params) -> Params:
    """Return a tree like params in their dtypes: data, or a number such as reach, may be of a wider one."""
    return jax.tree.map(lambda new, like: new.astype(like.dtype), found, params)


def gram_pays(problem: Problem, how: How) -> bool:
    """Whether the Gram form takes fewer operations than products with the rows at each step."""
    if not (is_squared(problem, how.variant) and is_linear(problem.layer)):
        return False
    features, move = jax.eval_shape(lambda: rows_of(problem)[:2])
    (rows, n), m = features.shape, move.shape[-1]
    later = how.steps - 1
    return bool(rows * n * n + later * n * n * m < later * 2 * rows * n * m)


def alike(problem: Problem) -> Any:
    """Return a key that problems share which one program can solve side by side."""
    leaves, structure = jax.tree.flatten(problem)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def side_by_side(solve: Callable[[Problem], Any], problems: list[Problem]) -> list[Any]:
    """Solve each problem; those of layers of one kind and shape in one batched program."""
    groups: dict[Any, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(alike(problem), []).append(index)
    found: list[Any] = [None] * len(problems)
    for members in groups.values():
        if len(members) == 1:
            found[members[0]] = solve(problems[members[0]])
            continue
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[problems[index] for index in members])
        solved = jax.vmap(solve)(stacked)
        for place, index in enumerate(members):
            found[index] = jax.tree.map(lambda leaf, at=place: leaf[at], solved)
    return found
