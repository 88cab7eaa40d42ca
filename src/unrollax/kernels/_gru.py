"""The gated recurrent unit over a whole sequence, its backward pass by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax.kernels._layers import apply, check_gates
from unrollax.kernels._sequence import Carry, Layer, Weights, outer, product, project, with_transposed


def _sigmoid(z: jax.Array) -> jax.Array:
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


def _forward(weights: Weights, carry: Carry, z: jax.Array) -> tuple[Carry, Any]:
    """Keep dh' = slopes . d(h Wh) + slope_n d(x Wx)_n + z dh, where the slopes of r and z hold for x Wx as well."""
    (h,) = carry
    across = product(h.astype(weights["wh"].dtype), weights["wh"])
    hidden = h.shape[-1]
    r, z_ = jnp.split(_sigmoid(z[..., : 2 * hidden] + across[..., : 2 * hidden]), 2, axis=-1)
    candidate = across[..., 2 * hidden :] + weights["bn"][None]
    n = jnp.tanh(z[..., 2 * hidden :] + r * candidate)
    slope_n = (1 - z_) * (1 - n * n)
    slopes = jnp.concatenate([slope_n * candidate * r * (1 - r), (h - n) * z_ * (1 - z_), slope_n * r], axis=-1)
    return (n + z_ * (h - n),), (slopes, slope_n, z_)


def _backward(weights: Weights, carry: Carry, kept: Any, h: jax.Array) -> tuple[Carry, Any]:
    (dh,), (slopes, slope_n, z) = carry, kept
    dz = slopes * jnp.concatenate([dh, dh, dh], axis=-1)
    return (product(dz.astype(weights["wh"].dtype), weights["wh_transposed"]) + dh * z,), (dz, slope_n * dh)


def _gradients(params: Weights, x: jax.Array, before: jax.Array, dz: Any) -> tuple[Weights, jax.Array]:
    across, candidate = dz
    hidden = candidate.shape[-1]
    into = jnp.concatenate([across[..., : 2 * hidden], candidate], axis=-1)
    narrow = into.astype(x.dtype)
    weights = {
        "wx": outer(x, narrow),
        "wh": outer(before, across.astype(x.dtype)),
        "b": into.sum((0, 1)),
        "bn": across[..., 2 * hidden :].sum((0, 1)),
    }
    return weights, product(narrow, params["wx"].T)


GRU = Layer(3, with_transposed, project, _forward, _backward, _gradients)


def gru(
    params: Weights, x: Any, state: Any = None, *, mask: Any = None, batch_major: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Run a gated recurrent unit over whole sequences, gates in the order r, z, n.

    r, z = sigmoid(x Wx + h Wh + b); n = tanh(x Wx + r (h Wh + bn) + b); h' = (1 - z) n + z h. Equal to scanning
    `GRUCell.step`, with a backward pass derived by hand; derivatives, dtypes and layouts as for `lstm`.

    Cost: forward 2 T N (D + H) 3H floating operations, backward twice that. Memory for the backward pass: 6 T N H numbers.

    Args:
        params: `wx [D, 3H]`, `wh [H, 3H]`, `b [3H]`, `bn [H]`, as `GRUCell.params` draws them.
        x: inputs `[T, *batch, D]`, with any batch axes or none.
        state: h before the first step, `[*batch, H]` or `[H]`; `None` for zeros.
        mask: booleans `[T, *batch]`, true at real steps; the others leave the state as it was and do not read x.
        batch_major: whether x, mask and outputs are `[*batch, T, ...]`.

    Returns:
        The state h after the last step, and the outputs h `[T, *batch, H]`.

    Raises:
        StructureError: the shapes of params, x, mask and state don't agree.

    Example:
        >>> import unrollax as ux
        >>> params = ux.GRUCell(inputs=3, hidden=5).params(jax.random.key(0))
        >>> gru(params, jnp.ones((7, 2, 3)))[1].shape
        (7, 2, 5)

    References: Cho et al., EMNLP 2014, in the variant that PyTorch and cuDNN compute.
    """
    hidden = check_gates("gru", params, 3, more=("wh", "bn"))
    start = jnp.zeros(hidden, params["b"].dtype) if state is None else state
    (h,), outputs = apply("gru", GRU, params, x, (start,), mask, batch_major=batch_major)
    return h, outputs
