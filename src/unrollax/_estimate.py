"""What estimators share: the clock, the noise, and the loss of one window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._checkpointed import Memory
from unrollax._errors import StructureError
from unrollax._system import unroll_for
from unrollax._tree import describe, ravel
from unrollax._types import Data, Key, Params, Scalar, State, System

Noise: TypeAlias = Any  # a tree like params, with leaves [count, ...]
Sampler: TypeAlias = Callable[
    ..., jax.Array
]  # sampler(key, shape, dtype): mean 0, covariance I; called once a draw, for all params as one vector


class Info(NamedTuple):
    """What the built-in estimators report beside the gradient.

    Attributes:
        nonfinite: share of the trajectories whose mean loss over the window was NaN or infinite, a scalar in [0, 1].
    """

    nonfinite: Scalar


def name_of(estimator: Any) -> str:
    """Return how messages call an estimator."""
    return type(estimator).__name__


def tick(left: jax.Array, window: int, horizon: int | None) -> jax.Array:
    """Advance clocks by one window.

    A clock counts the steps that are left of an episode, and 0 or less says that the next window starts with a reset.
    A negative start makes the first episode that much shorter: this is how pairs are staggered. An endless stream is
    always one step before an end that never comes.
    """
    if horizon is None:
        return jnp.ones_like(left)
    return jnp.where(left <= 0, left + horizon, left) - window


def window_loss(
    owner: str,
    system: System,
    params: Params,
    state: State,
    data: Data,
    key: Key,
    window: int,
    memory: Memory = "full",
    *,
    whole: bool = False,
) -> tuple[Scalar, State]:
    """Return the mean step loss over one window and the state after it, in the order that `jax.grad(has_aux)` takes.

    `memory` is what a backward pass through it may take; see `BPTT`. If `whole`, the system's own `unroll` is used.
    """
    state, losses = unroll_for(owner, system, params, state, data, key, window, memory, whole=whole)
    return losses.mean(), state


def draw_vector(owner: str, sampler: Sampler, key: Key, like: jax.Array) -> jax.Array:
    """Draw one noise for parameters that were raveled to the vector `like`."""
    z = sampler(key, like.shape, like.dtype)
    if jnp.shape(z) != like.shape:
        raise StructureError(
            f"{owner}: sampler must return the shape that it is asked for, {list(like.shape)}, got {describe(z)}. It is "
            "called as sampler(key, shape, dtype), once a draw, for all parameters as one vector."
        )
    return z.astype(like.dtype)


def draw_noise(owner: str, sampler: Sampler, key: Key, count: int, params: Params) -> Noise:
    """Draw `count` noises, each from a key of its own: for each leaf of params an array `[count, ...]` of its dtype."""
    vector, unravel = ravel(params)
    return jax.vmap(lambda key: unravel(draw_vector(owner, sampler, key, vector)))(jax.random.split(key, count))


def weigh(weights: jax.Array, noise: Noise) -> Params:
    """Return the weighted sum of noises `[count, ...]`, summed in at least float32 and given in the noise's dtype."""

    def leaf(z: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(z.dtype, jnp.float32)
        return jnp.tensordot(weights.astype(dtype), z.astype(dtype), axes=1).astype(z.dtype)

    return jax.tree.map(leaf, noise)


def share_nonfinite(losses: jax.Array) -> Scalar:
    """Return the share of losses that are NaN or infinite."""
    return (~jnp.isfinite(losses)).mean(dtype=jnp.float32)
