"""The engine of `depth_flow`: a list of layers forward and back, and what is seen of each on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import StructureError
from unrollax._tree import Static, combine, describe, is_inexact, partition
from unrollax._types import Params
from unrollax.diagnosis._quadrature import normal_rule

SATURATED = 0.05  # of the transfer's largest slope


class Row(NamedTuple):
    """What is seen of a layer on the way forward; of all layers, arrays `[L]`.

    Attributes:
        rms: root mean square of the output.
        norm: its norm.
        saturated: share of saturated activations.
        dead: share of dead units.
        predicted: the mean-field factor.
    """

    rms: Any
    norm: Any
    saturated: Any
    dead: Any
    predicted: Any


class Seen(NamedTuple):
    """What is seen of L layers.

    Attributes:
        loss: the loss.
        rows: the layers on the way forward.
        grads: `[L + 1]` norms of the gradient at the first layer's input and at each layer's output.
        params: `[L]` norms of the gradient at the layers' params.
        tiny: `[L]` smallest normal numbers of the outputs' dtypes.
    """

    loss: float
    rows: Row
    grads: np.ndarray
    params: np.ndarray
    tiny: np.ndarray


def measure(
    layers: list[Any], params: list[Params], x: Any, loss: Callable[[Any], Any], weight_std: float | None
) -> Seen:
    """Run the layers forward and back. Each is compiled by itself, and once where it comes again with the same shapes."""
    inputs, ahead, tiny = [jnp.asarray(x)], [], []
    if not inputs[0].ndim:
        raise StructureError(f"depth_flow: x must have the batch on its first axis, got {describe(x)}. Give it one.")
    for index, (layer, own) in enumerate(zip(layers, params, strict=True)):
        y, row = _forward(*partition((layer, own, inputs[-1], weight_std)))
        _check_output(index, y, inputs[-1])
        ahead.append(row)
        tiny.append(float(jnp.finfo(y.dtype).tiny))  # type: ignore[no-untyped-call]
        inputs.append(y)
    value, grad = _end(*partition((loss, inputs[-1])))
    norms = [_norm([grad])]
    at_params = []
    for layer, own, seen in zip(layers[::-1], params[::-1], inputs[-2::-1], strict=True):
        at_own, into, grad = _back(*partition((layer, own, seen)), grad)
        at_params.append(at_own)
        norms.append(into)
    rows = jax.tree.map(lambda *leaves: np.array(leaves, float), *ahead)
    norms, at_params = norms[::-1], at_params[::-1]
    return Seen(float(value), rows, np.array(norms, float), np.array(at_params, float), np.array(tiny))


def _check_output(index: int, y: Any, x: Any) -> None:
    is_array = isinstance(y, jax.Array) and y.ndim > 0 and jnp.issubdtype(y.dtype, jnp.floating)
    if not is_array or y.shape[0] != x.shape[0]:
        raise StructureError(
            f"depth_flow: layers[{index}] must return floating numbers with the batch on the first axis, got {describe(y)} "
            f"for an input {describe(x)}. Keep that axis."
        )


def _parts(layer: Any) -> tuple[Any, Any]:
    """Return (pre, transfer) of a layer, or (layer, None)."""
    if isinstance(layer, tuple) and len(layer) == 2:
        return layer
    if callable(getattr(layer, "pre", None)) and callable(getattr(layer, "transfer", None)):
        return layer.pre, layer.transfer
    return layer, None


def _run(layer: Any, params: Params, x: Any) -> Any:
    pre, transfer = _parts(layer)
    return pre(params, x) if transfer is None else transfer(pre(params, x))


@functools.partial(jax.jit, static_argnums=1)
def _forward(arrays: list[Any], rest: Static) -> tuple[Any, Row]:
    """Return a layer's output and what is seen of it on the way."""
    layer, params, x, weight_std = combine(arrays, rest)
    pre, transfer = _parts(layer)
    a = pre(params, x)
    y = a if transfer is None else transfer(a)
    if not hasattr(y, "ndim") or not y.ndim or not is_inexact(y):
        return y, Row(*[jnp.nan] * 5)
    rows = y.reshape(len(y), -1)
    constant: Any = (rows == rows[:1]).all(0).mean(dtype=float) if len(y) > 1 else jnp.nan
    seen: tuple[Any, Any, Any] = (jnp.nan, constant, jnp.nan)
    if transfer is not None and jnp.shape(a) == y.shape:
        seen = _of_transfer(transfer, a, constant, _weight_std(params, x, a) if weight_std is None else weight_std)
    size = _norm([y])
    return y, Row(size / np.sqrt(y.size), size, *seen)


@functools.partial(jax.jit, static_argnums=1)
def _end(arrays: list[Any], rest: Static) -> tuple[Any, Any]:
    """Return the loss and its gradient."""
    loss, y = combine(arrays, rest)
    value, back = jax.vjp(loss, y)
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise StructureError(f"depth_flow: loss must return a floating scalar, got {describe(value)}. Reduce it.")
    return value, back(jnp.ones_like(value))[0]


@functools.partial(jax.jit, static_argnums=1)
def _back(arrays: list[Any], rest: Static, grad: Any) -> tuple[Any, Any, Any]:
    """Pull a gradient back through a layer, linearised anew: return its norms at params and input, and it itself there."""
    layer, params, x = combine(arrays, rest)
    if not is_inexact(x):
        (at_params,) = jax.vjp(lambda own: _run(layer, own, x), params)[1](grad)
        return _norm(at_params), jnp.nan, jnp.nan
    at_params, into = jax.vjp(lambda own, x: _run(layer, own, x), params, x)[1](grad)
    return _norm(at_params), _norm([into]), into


def _of_transfer(transfer: Callable[[Any], Any], a: Any, constant: Any, weight_std: Any) -> tuple[Any, Any, Any]:
    """Return the shares of saturated activations and of dead units, and the predicted factor."""
    slopes = _slopes(transfer, a)
    signs = (1 - 2 * (jnp.arange(a.size) % 2)).reshape(a.shape).astype(a.dtype)
    mixed = jax.jvp(transfer, (a,), (signs,))[1]
    each = (jnp.abs(mixed - signs * slopes) <= 1e-3 * jnp.maximum(jnp.abs(mixed), jnp.abs(slopes))).all()
    wide = jnp.promote_types(a.dtype, jnp.float32)
    rule = normal_rule()
    try:
        top = jnp.nanmax(jnp.abs(_slopes(transfer, jnp.linspace(-10, 10, 2001, dtype=wide))))
        around = _slopes(transfer, jnp.sqrt(jnp.square(a.astype(wide)).mean()) * jnp.asarray(rule.points, wide))
    except (TypeError, ValueError):  # a transfer of one shape alone, such as one with a slope for each unit
        top, around = jnp.asarray(jnp.nan, wide), jnp.full(rule.points.shape, jnp.nan, wide)
    top = jnp.maximum(top, jnp.abs(slopes).max().astype(wide))
    saturated = (jnp.abs(slopes) < SATURATED * top).mean(dtype=float)
    dead = (slopes.reshape(len(slopes), -1) == 0).all(0).mean(dtype=float)
    predicted = weight_std * jnp.sqrt(jnp.asarray(rule.weights, wide) @ jnp.square(around))
    known = each & ~jnp.isnan(top)
    return (
        jnp.where(known, saturated, jnp.nan),
        jnp.where(each, dead, constant),
        jnp.where(each, predicted, jnp.nan),
    )


def _slopes(transfer: Callable[[Any], Any], a: Any) -> Any:
    return jax.jvp(transfer, (a,), (jnp.ones_like(a),))[1]


def _weight_std(params: Params, x: Any, a: Any) -> Any:
    """Return the size of the weights of a dense layer, as the standard deviation times the root of the inputs."""
    matrices = [leaf for leaf in jax.tree.leaves(params) if is_inexact(leaf) and jnp.ndim(leaf) == 2]
    ends = (jnp.shape(x)[-1], a.shape[-1])
    if len(matrices) != 1 or jnp.ndim(x) < 2 or matrices[0].shape not in (ends, ends[::-1]):
        return jnp.nan
    return jnp.sqrt(jnp.square(matrices[0]).mean() * ends[0])


def _norm(tree: Any) -> Any:
    """Return the norm of a tree's floating leaves, scaled so that squares of small or large numbers keep in range."""
    leaves = [
        leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)
    ]
    if not leaves:
        return jnp.zeros(())
    top = functools.reduce(jnp.maximum, [jnp.abs(leaf).max() for leaf in leaves])
    unit = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
    return unit * jnp.sqrt(sum(jnp.square(leaf / unit).sum() for leaf in leaves))
