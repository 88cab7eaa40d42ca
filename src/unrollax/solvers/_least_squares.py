"""What the methods for |A x - y|^2 / 2 + ... share: where to start, the gradient, the weight, and bounds on the curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._value import static, value
from unrollax.solvers._linear import adjoint, times
from unrollax.theory._spectrum import as_quadratic

Grad: TypeAlias = Callable[[Any, Any], Any]  # (x, problem) -> the gradient, a tree like x
Begin: TypeAlias = Callable[[Any], Any]  # problem -> x


def zeros(owner: str, problem: Any) -> jax.Array:
    """Return x = 0 in the shape and dtype of A^H y; raise unless A and y fit."""
    a, y = measurements(owner, problem)
    like = jax.eval_shape(lambda: adjoint(a, y))
    return jnp.zeros(like.shape, like.dtype)


def measurements(owner: str, problem: Any) -> tuple[Any, jax.Array]:
    """Return A and y of a problem; raise unless they are there and fit."""
    for name in ("A", "y"):
        if not hasattr(problem, name):
            raise StructureError(
                f"{owner}: a problem must have the attribute {name}, got {type(problem).__name__}. "
                "Add it, or give grad and start."
            )
    a, y = problem.A, problem.y
    if not hasattr(a, "mv") and (jnp.ndim(a) != 2 or jnp.ndim(y) == 0 or jnp.shape(y)[0] != jnp.shape(a)[0]):
        rows = jnp.shape(a)[0] if jnp.ndim(a) == 2 else "m"
        raise StructureError(
            f"{owner}: problem.A must be a matrix [m, n] and problem.y [{rows}], got {describe(a)} and {describe(y)}. "
            "Transpose A, or draw y anew."
        )
    return a, y


def gradient(theta: Any, x: jax.Array, problem: Any) -> jax.Array:
    """Return A^H (A x - y) + lam x."""
    return adjoint(problem.A, times(problem.A, x) - problem.y) + weight(theta, problem) * x


def weight(theta: Any, problem: Any) -> Any:
    """Return lam: a trained one, else the problem's own, else 0."""
    return theta["lam"] if "lam" in theta else getattr(problem, "lam", 0.0)


def bounds(owner: str, given: Any, lam: Any = 0.0) -> tuple[Any, Any]:
    """Return the largest and the smallest eigenvalue of A^H A + lam that an iterate from 0 ever meets.

    Args:
        owner: who asks, for messages.
        given: A, a matrix or an operator that has `as_matrix()`; or the pair (L, mu) itself, with lam in it.
        lam: the weight of the ridge, where A is given.
    """
    if isinstance(given, tuple) and len(given) == 2:
        _check_pair(owner, *given)
        return given
    found = as_quadratic(owner, given.as_matrix() if hasattr(given, "as_matrix") else given, lam)
    return found.L, found.mu


def _check_pair(owner: str, high: Any, low: Any) -> None:
    if isinstance(high, jax.core.Tracer) or isinstance(low, jax.core.Tracer):
        return
    if not 0 < low <= high:
        raise InvalidArgument(
            f"{owner}: (L, mu) must be 0 < mu <= L, got L={high!r}, mu={low!r}. Give the smallest eigenvalue that isn't 0."
        )


def numbers(given: Any, **theta: Any) -> dict[str, jax.Array]:
    """Return constants as arrays, of the real dtype of A's numbers where A is an array."""
    kind = jnp.result_type(getattr(given, "dtype", float))
    real = jnp.abs(jnp.zeros((), jnp.result_type(kind, jnp.float32))).dtype
    return {name: jnp.asarray(number, real) for name, number in theta.items()}


@value
class Start:
    """Where a method starts: `start(problem)` of its user, or 0."""

    owner: str = static()
    start: Begin | None = static()

    def __call__(self, problem: Any) -> Any:
        return zeros(self.owner, problem) if self.start is None else self.start(problem)


def slope(grad: Grad | None, theta: Any, x: Any, problem: Any) -> Any:
    """Return the gradient: a user's, or that of the least squares."""
    return gradient(theta, x, problem) if grad is None else grad(x, problem)


def add(x: Any, factor: Any, direction: Any) -> Any:
    """Return x + factor direction of trees."""
    return jax.tree.map(lambda one, other: one + factor * other, x, direction)


def answer_of(state: Any) -> Any:
    """Return the iterate in a state that has more."""
    return state.x
