"""The linear recurrent unit over a whole sequence."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from unrollax.kernels._layers import broadcast, check_floating, check_pair, check_weights, sequences
from unrollax.kernels._recurrence import linear_recurrence
from unrollax.kernels._sequence import Weights, wide

SHAPES = {
    **dict.fromkeys(("nu", "theta", "gamma_log"), ("H",)),
    **dict.fromkeys(("b_re", "b_im"), ("D", "H")),
    **dict.fromkeys(("c_re", "c_im"), ("H", "O")),
    "d": ("D", "O"),
}


def _check(owner: str, params: Weights) -> int:
    """Raise unless params are those of a linear recurrent unit; return H."""
    rows, size = (*jnp.shape(params.get("d", 0)), 0, 0)[:2]
    hidden = next(iter(jnp.shape(params.get("nu", 0))), 0)
    check_weights(owner, params, SHAPES, {"D": rows, "H": hidden, "O": size})
    return hidden


def lru(
    params: Weights,
    x: Any,
    state: tuple[Any, Any] | None = None,
    *,
    mask: Any = None,
    batch_major: bool = False,
    method: Literal["scan", "associative"] = "scan",
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Run a linear recurrent unit over whole sequences.

    lambda = exp(-exp(nu) + i exp(theta)); h' = lambda h + exp(gamma_log) (x B); the output is Re(h' C) + x D. Equal to
    scanning `LRUCell.step`; derivatives, dtypes and layouts as for `lstm`, but all of it is computed in at least float32.

    Cost: forward 4 T N H (D + O) floating operations and the products with D, backward twice that. Memory for the backward
    pass: 4 T N H complex numbers.

    Args:
        params: as `LRUCell.params` draws them, for D inputs, H complex numbers of state and O outputs.
        x: inputs `[T, *batch, D]`, with any batch axes or none.
        state: the real and the imaginary part of h before the first step, `[*batch, H]` or `[H]` each; `None` for zeros.
        mask: booleans `[T, *batch]`, true at real steps; the others leave the state as it was and do not read x.
        batch_major: whether x, mask and outputs are `[*batch, T, ...]`.
        method: "scan" goes step by step, the faster way on a CPU; "associative" computes all steps in a tree, for
            accelerators that a step would not fill.

    Returns:
        The parts of the state after the last step, and the outputs `[T, *batch, O]`.

    Raises:
        InvalidArgument: method is neither.
        StructureError: the shapes of params, x, mask and state don't agree.

    Example:
        >>> import unrollax as ux
        >>> params = ux.LRUCell(inputs=3, hidden=5, outputs=4).params(jax.random.key(0))
        >>> lru(params, jnp.ones((7, 2, 3)))[1].shape
        (7, 2, 4)

    References: Orvieto et al., ICML 2023.
    """
    hidden = _check("lru", params)
    x, mask = sequences("lru", params["b_re"].shape[0], x, mask, batch_major=batch_major)
    zero = jnp.zeros(params["nu"].shape, params["nu"].dtype)
    parts = (zero, zero) if state is None else check_pair("lru", "(real part, imaginary part)", state)
    kinds = [check_floating("lru", part).dtype for part in parts]
    dtype = jnp.result_type(x, *params.values(), *kinds)
    params, x = jax.tree.map(lambda leaf: leaf.astype(wide(dtype)), (params, x))  # no complex number is narrower
    re, im = (broadcast("lru", part, x.shape[1:-1], hidden).astype(wide(dtype)) for part in parts)
    along = jnp.exp(jax.lax.complex(-jnp.exp(params["nu"]), jnp.exp(params["theta"])))
    into = jax.lax.complex(x @ params["b_re"], x @ params["b_im"])
    scale = jnp.exp(params["gamma_log"]).reshape((1,) * (into.ndim - 1) + (-1,))
    along = jnp.broadcast_to(along.reshape(scale.shape), into.shape)
    last, h = linear_recurrence(along, scale * into, jax.lax.complex(re, im), mask=mask, method=method)
    outputs = (h.real @ params["c_re"] - h.imag @ params["c_im"] + x @ params["d"]).astype(dtype)
    after = (last.real.astype(kinds[0]), last.imag.astype(kinds[1]))
    return after, jnp.moveaxis(outputs, 0, -2) if batch_major else outputs
