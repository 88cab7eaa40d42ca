"""The plain recurrent network over a whole sequence, its backward pass by hand."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from unrollax._check import check_choice
from unrollax.kernels._layers import apply, check_gates
from unrollax.kernels._sequence import Carry, Layer, Weights, affine_gradients, product, project, with_transposed


def _across(weights: Weights, carry: Carry, z: jax.Array) -> jax.Array:
    return z + product(carry[0].astype(weights["wh"].dtype), weights["wh"])


def _tanh(weights: Weights, carry: Carry, z: jax.Array) -> tuple[Carry, tuple[()]]:
    return (jnp.tanh(_across(weights, carry, z)),), ()


def _relu(weights: Weights, carry: Carry, z: jax.Array) -> tuple[Carry, tuple[()]]:
    return (jax.nn.relu(_across(weights, carry, z)),), ()


def _backward_tanh(weights: Weights, carry: Carry, kept: Any, h: jax.Array) -> tuple[Carry, jax.Array]:
    return _through(weights, carry[0] * (1 - h * h))


def _backward_relu(weights: Weights, carry: Carry, kept: Any, h: jax.Array) -> tuple[Carry, jax.Array]:
    return _through(weights, jnp.where(h > 0, carry[0], 0))


def _through(weights: Weights, dz: jax.Array) -> tuple[Carry, jax.Array]:
    return (product(dz.astype(weights["wh"].dtype), weights["wh_transposed"]),), dz


LAYERS = {
    "tanh": Layer(1, with_transposed, project, _tanh, _backward_tanh, affine_gradients),
    "relu": Layer(1, with_transposed, project, _relu, _backward_relu, affine_gradients),
}


def rnn(
    params: Weights,
    x: Any,
    state: Any = None,
    *,
    activation: Literal["tanh", "relu"] = "tanh",
    mask: Any = None,
    batch_major: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Run a plain recurrent network over whole sequences: h' = activation(x Wx + h Wh + b).

    Equal to scanning `RNNCell.step`, with a backward pass derived by hand; derivatives, dtypes and layouts as for `lstm`.

    Cost: forward 2 T N (D + H) H floating operations, backward twice that. Memory for the backward pass: T N H numbers.

    Args:
        params: `wx [D, H]`, `wh [H, H]`, `b [H]`, as `RNNCell.params` draws them.
        x: inputs `[T, *batch, D]`, with any batch axes or none.
        state: h before the first step, `[*batch, H]` or `[H]`; `None` for zeros.
        activation: "tanh" or "relu".
        mask: booleans `[T, *batch]`, true at real steps; the others leave the state as it was and do not read x.
        batch_major: whether x, mask and outputs are `[*batch, T, ...]`.

    Returns:
        The state h after the last step, and the outputs h `[T, *batch, H]`.

    Raises:
        InvalidArgument: activation is neither.
        StructureError: the shapes of params, x, mask and state don't agree.

    Example:
        >>> import unrollax as ux
        >>> params = ux.RNNCell(inputs=3, hidden=5).params(jax.random.key(0))
        >>> rnn(params, jnp.ones((7, 2, 3)))[1].shape
        (7, 2, 5)

    References: Elman, Cognitive Science 1990.
    """
    check_choice("rnn", "activation", activation, tuple(LAYERS))
    hidden = check_gates("rnn", params, 1)
    start = jnp.zeros(hidden, params["b"].dtype) if state is None else state
    (h,), outputs = apply("rnn", LAYERS[activation], params, x, (start,), mask, batch_major=batch_major)
    return h, outputs
