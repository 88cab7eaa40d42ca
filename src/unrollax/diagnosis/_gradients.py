"""Compiled programs behind a reference: exact gradients, rises of the loss, antithetic pairs; in float64 where it can be."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._estimate import window_loss
from unrollax._tree import Static, combine, is_inexact, partition, ravel, strong
from unrollax._types import Data, Key, Params, System

OWNER = "compare"
LANES = 16  # independent averages, from whose spread the standard error comes
PAIRS = 16  # antithetic pairs of a lane and call, fewer where there are many parameters
AT_ONCE = 2**20  # numbers of noise in a lane and call
UNDERIVED = (TypeError, ValueError, NotImplementedError)  # what JAX raises where there is no derivative
LONG = 1024  # steps from which the backward pass keeps only some states


class Problem(NamedTuple):
    """What is differentiated: the mean loss of `steps` steps from a reset."""

    system: Any  # `None` if a reference is given and no estimator says
    params: Params
    data: Data
    steps: int


class Average(NamedTuple):
    """A mean `[d]`, rows whose outer products sum to its covariance, and how many gradients went in."""

    mean: np.ndarray
    roots: np.ndarray
    number: int

    @property
    def error(self) -> float:
        return float(np.sqrt(np.square(self.roots).sum()))

    @property
    def norm(self) -> float:
        """The norm, without what the error adds to it."""
        square = float(np.square(self.mean).sum())
        return float(np.sqrt(square - self.error**2 if square > self.error**2 else square))


def exact_for(problem: Problem, keys: Key) -> np.ndarray:
    """Return the exact gradient for each of some keys, `[keys, d]`."""
    return np.asarray(_grads(*partition(problem[:3]), keys, problem.steps), np.float64)


def rises_for(problem: Problem, vectors: np.ndarray, keys: Key) -> tuple[np.ndarray, float]:
    """Return the mean over keys of (L(p + v) - L(p - v)) / 2 for some v `[n, d]`, and the largest |L|."""
    dtype = ravel(problem.params)[0].dtype
    rises, sizes = _rises(*partition(problem[:3]), jnp.asarray(vectors, dtype), keys, problem.steps)
    return np.asarray(rises, np.float64).mean(0), float(np.max(sizes))


def pairs_for(problem: Problem, key: Key, scale: float) -> np.ndarray:
    """Return for each lane the mean over `pairs_each` antithetic pairs, `[LANES, d]`."""
    arrays, rest = partition(problem[:3])
    return np.asarray(_pairs(arrays, rest, key, scale, problem.steps, pairs_each(problem)), np.float64)


def pairs_each(problem: Problem) -> int:
    """Return how many pairs a lane averages in a call."""
    return int(np.clip(AT_ONCE // ravel(problem.params)[0].size, 1, PAIRS))


def lacking(problem: Problem, mode: str = "vjp") -> str | None:
    """Return why the loss has no derivative, in JAX's words; `None` if it has one.

    Args:
        problem: what is differentiated.
        mode: `vjp`, in reverse, or `jvp`, forward.
    """
    loss, key = _loss_of(problem.system, problem.data, problem.steps), jax.random.key(0)

    def forward(params: Params, key: Key) -> Any:
        return jax.jvp(lambda params: loss(params, key), (params,), (params,))[1]

    try:
        if mode == "vjp":
            jax.eval_shape(jax.grad(loss), problem.params, key)
        else:  # of a custom_vjp only lowering tells
            jax.jit(forward).lower(problem.params, key)
    except UNDERIVED as error:
        jax.eval_shape(loss, problem.params, key)  # an error of the loss itself is told as it is
        return str(error).split(". ")[0].split("\n")[0].rstrip(".")
    return None


@contextlib.contextmanager
def widest(problem: Problem) -> Iterator[tuple[Problem, str]]:
    """Give the problem in float64 if its system takes that, else as it is, and the dtype's name."""
    own = str(ravel(problem.params)[0].dtype)
    with jax.enable_x64(True):
        system, params, data = jax.tree.map(_promoted, problem[:3])
        wide = Problem(system, params, data, problem.steps)
        fits = own == "float64" or _traces(wide)
        derived = own == "float64" or (fits and _traces(wide, derived=True))
    if derived or (fits and lacking(problem) is not None):  # a backward pass of the system's own may fix its dtype too
        with jax.enable_x64(True):
            yield wide, "float64"
    else:
        yield problem, own


def _promoted(leaf: Any) -> Any:
    if not is_inexact(leaf) or isinstance(leaf, (float, complex)):
        return leaf
    return jnp.asarray(leaf).astype(jnp.complex128 if jnp.iscomplexobj(leaf) else jnp.float64)


def _traces(problem: Problem, *, derived: bool = False) -> bool:
    """Whether the loss, or also its gradient, stays in float64. A system may fix dtypes anywhere, so any error counts."""
    loss = _loss_of(problem.system, problem.data, problem.steps)
    run = jax.value_and_grad(loss) if derived else loss
    try:
        found = jax.eval_shape(run, problem.params, jax.random.key(0))
    except Exception:
        return False
    return all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))


def _loss_of(system: System, data: Data, steps: int) -> Callable[[Params, Key], jax.Array]:
    """Return the mean step loss of the horizon as a function of params and a key, with a reverse mode that fits."""
    causal = getattr(system, "causal", True)
    memory: Literal["full", "sqrt"] = "sqrt" if causal and steps >= LONG else "full"

    def loss(params: Params, key: Key) -> jax.Array:
        start, run = jax.random.split(key)
        state = strong(system.init(start, params))
        return window_loss(OWNER, system, params, state, data, run, steps, memory, whole=not causal)[0]

    return loss


@functools.partial(jax.jit, static_argnums=(1, 3))
def _grads(arrays: list[Any], rest: Static, keys: Key, steps: int) -> jax.Array:
    """Return the exact gradient for each of some keys, `[keys, d]`."""
    system, params, data = combine(arrays, rest)
    grad = jax.grad(_loss_of(system, data, steps))
    return jax.lax.map(lambda key: ravel(grad(params, key))[0], keys)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _rises(arrays: list[Any], rest: Static, vectors: jax.Array, keys: Key, steps: int) -> tuple[jax.Array, jax.Array]:
    """Return (L(p + v) - L(p - v)) / 2 and the larger |L| for each of some v `[n, d]` and each of some keys, `[n, keys]`."""
    system, params, data = combine(arrays, rest)
    rise = _rise_of(_loss_of(system, data, steps), params)
    return jax.lax.map(lambda key: jax.vmap(rise, (0, None))(vectors, key), keys)


def _rise_of(loss: Callable[[Params, Key], jax.Array], params: Params) -> Callable[..., tuple[jax.Array, jax.Array]]:
    theta, unravel = ravel(params)

    def rise(vector: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        up, down = loss(unravel(theta + vector), key), loss(unravel(theta - vector), key)
        return (up - down) / 2, jnp.maximum(jnp.abs(up), jnp.abs(down))

    return rise


@functools.partial(jax.jit, static_argnums=(1, 4, 5))
def _pairs(arrays: list[Any], rest: Static, key: Key, scale: Any, steps: int, pairs: int) -> jax.Array:
    """Return for each lane the mean over its antithetic pairs, `[LANES, d]`."""
    system, params, data = combine(arrays, rest)
    theta = ravel(params)[0]
    rise = _rise_of(_loss_of(system, data, steps), params)

    def lane(key: Key) -> jax.Array:
        draw, run = jax.random.split(key)
        z = jax.random.normal(draw, (pairs, theta.size), theta.dtype)
        rises = jax.vmap(rise)(scale * z, jax.random.split(run, pairs))[0]
        return (rises.astype(z.dtype) @ z) / (scale * pairs)

    return jax.lax.map(lane, jax.random.split(key, LANES))
