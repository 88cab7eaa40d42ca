"""Long short-term memory over a whole sequence, its backward pass by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax.kernels._layers import apply, check_gates, check_pair
from unrollax.kernels._sequence import Carry, Layer, Weights, affine_gradients, product, project


def _prepare(params: Weights) -> Weights:
    """Halve what goes into the sigmoids: sigmoid(a) = (1 + tanh(a / 2)) / 2, so that one tanh serves all four gates."""
    hidden = params["wh"].shape[0]
    half = jnp.concatenate([jnp.full(3 * hidden, 0.5), jnp.ones(hidden)]).astype(params["b"].dtype)
    halved = {name: leaf * half.reshape((1,) * (leaf.ndim - 1) + half.shape) for name, leaf in params.items()}
    return {**halved, "wh_transposed": params["wh"].T}


def _forward(weights: Weights, carry: Carry, z: jax.Array) -> tuple[Carry, Any]:
    """Keep dc' = (dz_i, dz_f, dz_g) . to_c + f dc and dh' = through dc' + to_o dz_o."""
    h, c = carry
    gates = jnp.tanh(z + product(h.astype(weights["wh"].dtype), weights["wh"]))
    i, f, o, g = jnp.split(gates, 4, axis=-1)
    i, f, o = 0.5 * i + 0.5, 0.5 * f + 0.5, 0.5 * o + 0.5
    after = f * c + i * g
    squashed = jnp.tanh(after)
    slopes = jnp.concatenate([g * i * (1 - i), c * f * (1 - f), squashed * o * (1 - o), i * (1 - g * g)], axis=-1)
    return (o * squashed, after), (slopes, o * (1 - squashed * squashed), f)


def _backward(weights: Weights, carry: Carry, kept: Any, h: jax.Array) -> tuple[Carry, jax.Array]:
    (dh, dc), (slopes, through, f) = carry, kept
    dc = dc + dh * through
    dz = slopes * jnp.concatenate([dc, dc, dh, dc], axis=-1)
    return (product(dz.astype(weights["wh"].dtype), weights["wh_transposed"]), dc * f), dz


LSTM = Layer(4, _prepare, project, _forward, _backward, affine_gradients)


def lstm(
    params: Weights,
    x: Any,
    state: tuple[Any, Any] | None = None,
    *,
    mask: Any = None,
    batch_major: bool = False,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Run a long short-term memory over whole sequences, gates in the order i, f, o, g.

    i, f, o = sigmoid(..), g = tanh(..) of x Wx + h Wh + b; c' = f c + i g; h' = o tanh(c'). Equal to scanning
    `LSTMCell.step`, with a backward pass derived by hand. All derivatives work: reverse mode, forward mode, and higher ones,
    which differentiate through the code of the hand-written pass and cost what autodiff of a scan costs. float32, float64,
    and bfloat16 (whose sums, gates and cell state are in float32).

    Cost: forward 2 T N (D + H) 4H floating operations, backward twice that. Memory for the backward pass: 7 T N H numbers.

    Args:
        params: `wx [D, 4H]`, `wh [H, 4H]`, `b [4H]`, as `LSTMCell.params` draws them.
        x: inputs `[T, *batch, D]`, with any batch axes or none.
        state: (h, c) before the first step, `[*batch, H]` or `[H]` each; `None` for zeros.
        mask: booleans `[T, *batch]`, true at real steps. A step that is not real leaves the state as it was, and does not
            read x.
        batch_major: whether x, mask and outputs are `[*batch, T, ...]`.

    Returns:
        The state (h, c) after the last step, and the outputs h `[T, *batch, H]`.

    Raises:
        StructureError: the shapes of params, x, mask and state don't agree.

    Example:
        >>> import unrollax as ux
        >>> params = ux.LSTMCell(inputs=3, hidden=5).params(jax.random.key(0))
        >>> (h, c), outputs = lstm(params, jnp.ones((7, 2, 3)))
        >>> outputs.shape, h.shape
        ((7, 2, 5), (2, 5))

    References: Hochreiter and Schmidhuber, Neural Computation 1997; Gers et al., Neural Computation 2000. The derivation is
    in docs/theory/lstm.md.
    """
    hidden = check_gates("lstm", params, 4)
    zeros = jnp.zeros(hidden, params["b"].dtype)
    start = (zeros, zeros) if state is None else check_pair("lstm", "(h, c)", state)
    (h, c), outputs = apply("lstm", LSTM, params, x, start, mask, batch_major=batch_major)
    return (h, c), outputs
