"""The minimal gated recurrent unit over a whole sequence, its backward pass by hand."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from unrollax._check import check_choice
from unrollax.kernels._layers import apply, broadcast, check_floating, check_gates, sequences
from unrollax.kernels._recurrence import METHODS, linear_recurrence
from unrollax.kernels._sequence import Carry, Layer, Weights, outer, product, project, wide


def _forward(weights: Weights, carry: Carry, a: jax.Array) -> tuple[Carry, Any]:
    """Keep dh' = slopes . da + (1 - z) dh."""
    (h,) = carry
    z, n = jnp.split(a, 2, axis=-1)
    z = 0.5 * jnp.tanh(0.5 * z) + 0.5
    return (h + z * (n - h),), (jnp.concatenate([(n - h) * z * (1 - z), z], axis=-1), 1 - z)


def _backward(weights: Weights, carry: Carry, kept: Any, h: jax.Array) -> tuple[Carry, jax.Array]:
    (dh,), (slopes, keep) = carry, kept
    return (dh * keep,), slopes * jnp.concatenate([dh, dh], axis=-1)


def _gradients(params: Weights, x: jax.Array, before: jax.Array, da: jax.Array) -> tuple[Weights, jax.Array]:
    narrow = da.astype(x.dtype)
    return {"wx": outer(x, narrow), "b": da.sum((0, 1))}, product(narrow, params["wx"].T)


MINGRU = Layer(2, lambda params: params, project, _forward, _backward, _gradients)


def mingru(
    params: Weights,
    x: Any,
    state: Any = None,
    *,
    mask: Any = None,
    batch_major: bool = False,
    method: Literal["scan", "associative"] = "scan",
) -> tuple[jax.Array, jax.Array]:
    """Run a minimal gated recurrent unit over whole sequences, gates in the order z, n.

    z = sigmoid(x Wz + bz); n = x Wn + bn; h' = (1 - z) h + z n. Equal to scanning `MinGRUCell.step`, with a backward pass
    derived by hand; derivatives, dtypes and layouts as for `lstm`.

    Cost: forward 2 T N D 2H floating operations, backward twice that. Memory for the backward pass: 4 T N H numbers;
    "associative" takes about three times as many, and log2 T operations in a row rather than T.

    Args:
        params: `wx [D, 2H]`, `b [2H]`, as `MinGRUCell.params` draws them.
        x: inputs `[T, *batch, D]`, with any batch axes or none.
        state: h before the first step, `[*batch, H]` or `[H]`; `None` for zeros.
        mask: booleans `[T, *batch]`, true at real steps; the others leave the state as it was and do not read x.
        batch_major: whether x, mask and outputs are `[*batch, T, ...]`.
        method: "scan" goes step by step, the faster way on a CPU; "associative" computes all steps in a tree, for
            accelerators that a step would not fill.

    Returns:
        The state h after the last step, and the outputs h `[T, *batch, H]`.

    Raises:
        InvalidArgument: method is neither.
        StructureError: the shapes of params, x, mask and state don't agree.

    Example:
        >>> import unrollax as ux
        >>> params = ux.MinGRUCell(inputs=3, hidden=5).params(jax.random.key(0))
        >>> mingru(params, jnp.ones((7, 2, 3)))[1].shape
        (7, 2, 5)

    References: Feng et al., "Were RNNs All We Needed?", 2024, in the form without logarithms.
    """
    check_choice("mingru", "method", method, METHODS)
    hidden = check_gates("mingru", params, 2, more=())
    start = jnp.zeros(hidden, params["b"].dtype) if state is None else state
    if method == "scan":
        (h,), outputs = apply("mingru", MINGRU, params, x, (start,), mask, batch_major=batch_major)
        return h, outputs
    x, mask = sequences("mingru", params["wx"].shape[0], x, mask, batch_major=batch_major)
    kind = check_floating("mingru", start).dtype
    dtype = jnp.result_type(x, *params.values(), kind)
    wx, b = params["wx"].astype(dtype), params["b"].astype(dtype)
    a = product(x.astype(dtype), wx) + b.reshape(
        (1,) * (x.ndim - 1) + (-1,)
    )  # in at least float32, as the recurrence is
    z, n = jax.nn.sigmoid(a[..., :hidden]), a[..., hidden:]
    start = broadcast("mingru", start, x.shape[1:-1], hidden).astype(wide(dtype))
    h, outputs = linear_recurrence(1 - z, z * n, start, mask=mask, method=method)
    outputs = outputs.astype(dtype)
    return h.astype(kind), jnp.moveaxis(outputs, 0, -2) if batch_major else outputs
