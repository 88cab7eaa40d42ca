"""How weights and biases of recurrent cells start."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument
from unrollax._types import Key

Weights = dict[str, jax.Array]
glorot = jax.nn.initializers.glorot_uniform()
orthogonal = jax.nn.initializers.orthogonal()


def gated(key: Key, inputs: int, hidden: int, gates: int) -> Weights:
    """Glorot-uniform input weights, orthogonal recurrent weights gate by gate, and zero biases."""
    into, across = jax.random.split(key)
    return {
        "wx": columns(into, inputs, hidden, gates),
        "wh": jnp.concatenate([orthogonal(k, (hidden, hidden)) for k in jax.random.split(across, gates)], axis=1),
        "b": jnp.zeros(gates * hidden),
    }


def columns(key: Key, inputs: int, hidden: int, gates: int) -> jax.Array:
    """Glorot-uniform input weights, drawn gate by gate, `[inputs, gates hidden]`."""
    return jnp.concatenate([glorot(k, (inputs, hidden)) for k in jax.random.split(key, gates)], axis=1)


def normal(key: Key, rows: int, columns: int, std: float) -> jax.Array:
    """Gaussian weights of mean zero, `[rows, columns]`."""
    return std * jax.random.normal(key, (rows, columns))


def check_chrono(owner: str, chrono: int | None, instead: str = "Use chrono=None for zero biases.") -> None:
    """Raise unless the longest dependency leaves room for log U[1, chrono - 1]."""
    if chrono is not None and chrono < 3:
        raise InvalidArgument(f"{owner}: chrono must be at least 3 steps, got chrono={chrono}. {instead}")


def chrono_bias(key: Key, hidden: int, chrono: int | None) -> jax.Array:
    """Return log U[1, chrono - 1], `[hidden]`: a gate that opens so far keeps what it holds for that many steps.

    References: Tallec and Ollivier, ICLR 2018.
    """
    if chrono is None:
        return jnp.zeros(hidden)
    return jnp.log(jax.random.uniform(key, (hidden,), minval=1.0, maxval=chrono - 1.0))
