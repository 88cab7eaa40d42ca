"""A net of layers that are linear in their params, linearised at its pre-activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument, StructureError

NEEDED = ("features", "matrix", "from_matrix")


class Linear(NamedTuple):
    """A net at one point.

    Attributes:
        y: its outputs, `[batch, ...]`.
        features: what each trained layer's matrix is multiplied with, `[rows, n]`.
        push: from a direction of all matrices to the change of y.
        pull: from a cotangent of y to those of the trained layers' pre-activations, `[rows, m]`.
    """

    y: jax.Array
    features: list[jax.Array]
    push: Callable[[list[jax.Array]], jax.Array]
    pull: Callable[[jax.Array], list[jax.Array]]

    def grads(self, cotangent: jax.Array) -> list[jax.Array]:
        """Pull a cotangent of y back to the matrices."""
        return [rows.T @ g for rows, g in zip(self.features, self.pull(cotangent), strict=True)]


def check_layers(owner: str, net: Any) -> None:
    """Raise unless a net has layers and a loss."""
    if net is None or isinstance(net, int):  # how `vmap` is told of axes
        return
    lacking = [name for name in ("layers", "loss") if not hasattr(net, name)]
    if lacking:
        raise InvalidArgument(
            f"{owner}: net must have layers and loss(y, target), got {type(net).__name__} without "
            f"{' or '.join(lacking)}. Make one with unrollax.layered(layers, loss)."
        )


def trained(layers: Any, params: Any) -> list[int]:
    """Return which layers have params."""
    return [index for index in range(len(layers)) if jax.tree.leaves(params[index])]


def matrices_of(owner: str, layers: Any, params: Any) -> list[jax.Array]:
    """Return the matrices `[n, m]` of the layers that have params; raise for a layer that isn't linear in its own."""
    if not isinstance(params, (list, tuple)) or len(params) != len(layers):
        got = f"{len(params)}" if isinstance(params, (list, tuple)) else type(params).__name__
        raise StructureError(
            f"{owner}: params must be a list with one entry for each of the {len(layers)} layers, got {got}. Make them with "
            "net.params(key)."
        )
    for index in trained(layers, params):
        lacking = [name for name in NEEDED if not callable(getattr(layers[index], name, None))]
        if lacking:
            raise InvalidArgument(
                f"{owner}: layers with params must be linear in them, got layer {index}, {type(layers[index]).__name__}, "
                f"without {', '.join(lacking)}. Use unrollax.DenseLayer and the like, or write these methods."
            )
    return [layers[index].matrix(params[index]) for index in trained(layers, params)]


def params_from(layers: Any, params: Any, matrices: list[jax.Array]) -> Any:
    """Return params with these matrices, as the list or tuple that `params` are."""
    new = list(params)
    for index, matrix in zip(trained(layers, params), matrices, strict=True):
        new[index] = layers[index].from_matrix(matrix)
    return type(params)(new)


def ends_alone(layers: Any, params: Any) -> bool:
    """Whether the last layer gives each output from a pre-activation of its own: tried once, with numbers, while tracing."""
    layer, own = layers[-1], params[-1]
    size = getattr(layer, "inputs", None)
    if not jax.tree.leaves(own) or not isinstance(size, int):
        return False
    draw = np.random.default_rng(0).standard_normal
    with jax.ensure_compile_time_eval():
        zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), own)
        try:
            a = layer.pre(zeros, jnp.asarray(draw((2, size)), jax.tree.leaves(zeros)[0].dtype))
        except (TypeError, ValueError):  # a layer of images or sequences, whose rows act on one another
            return False
        at, vector = (jnp.asarray(draw(a.shape), a.dtype) for _ in range(2))
        got, ones = (jax.jvp(layer.transfer, (at,), (v,))[1] for v in (vector, jnp.ones_like(at)))
        return a.ndim == 2 and bool(jnp.allclose(got, ones * vector, rtol=1e-3, atol=1e-4))


def linearized(owner: str, layers: Any, params: Any, x: jax.Array) -> Linear:
    """Run a net on a batch and linearise it in nudges of its pre-activations."""
    where = trained(layers, params)

    def forward(nudges: list[Any]) -> tuple[jax.Array, list[Any]]:
        now, seen, left = x, [], iter(nudges)
        for index, layer in enumerate(layers):
            now, inputs = _run(layer, params[index], now, next(left) if index in where else None)
            if index in where:
                seen.append(inputs)
        return now, seen

    shapes = jax.eval_shape(forward, [None] * len(where))[1]
    zeros = []
    for index, inputs in zip(where, shapes, strict=True):
        shape = jax.eval_shape(layers[index].pre, params[index], inputs)
        zeros.append(jnp.zeros(shape.shape, shape.dtype))
    y, push, seen = jax.linearize(forward, zeros, has_aux=True)
    transposed = jax.linear_transpose(push, zeros)
    features = [layers[index].features(inputs) for index, inputs in zip(where, seen, strict=True)]

    def pushed(direction: list[jax.Array]) -> jax.Array:
        return push([(f @ d).reshape(z.shape) for f, d, z in zip(features, direction, zeros, strict=True)])

    def pulled(cotangent: jax.Array) -> list[jax.Array]:
        return [g.reshape(len(f), -1) for g, f in zip(transposed(cotangent)[0], features, strict=True)]

    return Linear(y, features, pushed, pulled)


def _run(layer: Any, params: Any, x: Any, nudge: Any) -> tuple[Any, Any]:
    """Return y with `a = pre(params, inputs) + nudge`, and the inputs."""
    if callable(getattr(layer, "forward", None)):
        out: tuple[Any, Any] = layer.forward(params, x, nudge)
        return out
    a = layer.pre(params, x)
    return layer.transfer(a if nudge is None else a + nudge), x
