"""How the weights of layers start."""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from unrollax._check import check_choice
from unrollax._types import Key
from unrollax.local._transfers import Transfer

Initial = Literal["glorot", "he", "sparse"]
RECTIFIED = ("relu", "leaky_relu", "softplus")
INCOMING = 15  # of a sparsely connected unit


def check_initial(owner: str, initial: Initial | None) -> None:
    """Raise unless there is such a start."""
    check_choice(owner, "initial", initial, (None, *get_args(Initial)))


def draw(key: Key, shape: tuple[int, ...], initial: Initial | None, transfer: Transfer) -> jax.Array:
    """Draw weights `[..., inputs, outputs]`; see `unrollax.DenseLayer`."""
    kind = initial or ("he" if transfer.name in RECTIFIED else "glorot")
    if kind == "sparse":
        return _sparse(key, math.prod(shape[:-1]), shape[-1]).reshape(shape)
    make = jax.nn.initializers.he_normal if kind == "he" else jax.nn.initializers.glorot_uniform
    return make()(key, shape)


def _sparse(key: Key, inputs: int, outputs: int) -> jax.Array:
    """Give each unit N(0, 1) weights from 15 inputs without repetition, and zeros from the others."""
    which, size = jax.random.split(key)
    count = min(INCOMING, inputs)
    rows = jax.lax.top_k(jax.random.uniform(which, (outputs, inputs)), count)[1]
    numbers = jax.random.normal(size, (outputs, count))
    return jnp.zeros((inputs, outputs)).at[rows, jnp.arange(outputs)[:, None]].set(numbers)
