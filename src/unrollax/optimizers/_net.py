"""A net of layers that are linear in their params, linearised at its pre-activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument
from unrollax.local._conv import ConvLayer
from unrollax.local._dense import DenseLayer
from unrollax.local._layered import check_one_each
from unrollax.local._layers import check_features, is_linear, matrix_shape, show
from unrollax.local._passes import see_layers


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


def check_net(owner: str, net: Any) -> None:
    """Raise unless a net has layers and a loss."""
    if net is None or isinstance(net, int):  # how `vmap` is told of axes
        return
    lacking = [name for name in ("layers", "loss") if not hasattr(net, name)]
    if lacking:
        raise InvalidArgument(
            f"{owner}: net must have layers and loss(y, target), got {type(net).__name__} without "
            f"{' or '.join(lacking)}. Make one with unrollax.layered(layers, loss)."
        )


def trained(params: Any) -> list[int]:
    """Return which layers have params."""
    return [index for index, own in enumerate(params) if jax.tree.leaves(own)]


def matrices_of(owner: str, layers: Any, params: Any) -> list[jax.Array]:
    """Return the matrices `[n, m]` of the layers that have params; raise for a layer that isn't linear in its own."""
    check_one_each(owner, layers, params)
    for index in trained(params):
        if not is_linear(layers[index]):
            raise InvalidArgument(
                f"{owner}: layers with params must have features, matrix and from_matrix, got layers[{index}], "
                f"{show(layers[index])}, without. Use unrollax.DenseLayer and the like, or give it these three."
            )
        matrix_shape(owner, index, layers[index], params[index])
    return [layers[index].matrix(params[index]) for index in trained(params)]


def params_from(layers: Any, params: Any, matrices: list[jax.Array]) -> Any:
    """Return params with these matrices, as the list or tuple that `params` are."""
    new = list(params)
    for index, matrix in zip(trained(params), matrices, strict=True):
        new[index] = layers[index].from_matrix(matrix)
    return type(params)(new)


def ends_alone(layers: Any, params: Any) -> bool:
    """Whether the net gives each output from a pre-activation of its own; that its transfer does, is tried with numbers."""
    layer = layers[-1]
    if not isinstance(layer, (DenseLayer, ConvLayer)) or not jax.tree.leaves(params[-1]):
        return False
    with jax.ensure_compile_time_eval():
        at, vector = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, layer.outputs)))
        got, ones = (jax.jvp(layer.transfer, (at,), (v,))[1] for v in (vector, jnp.ones_like(at)))
        return bool(jnp.allclose(got, ones * vector, rtol=1e-3, atol=1e-4))


def linearized(owner: str, layers: Any, params: Any, x: Any) -> Linear:
    """Run a net on a batch and linearise it in nudges of the trained layers' pre-activations."""
    where = trained(params)

    def forward(nudges: list[Any]) -> tuple[jax.Array, list[Any]]:
        own = dict(zip(where, nudges, strict=True))
        inputs, outputs = see_layers(owner, layers, params, x, [own.get(index) for index in range(len(layers))])
        return outputs[-1], inputs

    shapes = jax.eval_shape(lambda: see_layers(owner, layers, params, x, [None] * len(layers))[1])
    zeros = [jnp.zeros(shapes[index].shape, shapes[index].dtype) for index in where]
    y, push, inputs = jax.linearize(forward, zeros, has_aux=True)
    transposed = jax.linear_transpose(push, zeros)
    for index in where:
        check_features(owner, index, layers[index], params[index], inputs[index], shapes[index])
    features = [layers[index].features(inputs[index]) for index in where]

    def pushed(direction: list[jax.Array]) -> jax.Array:
        change: jax.Array = push([(f @ d).reshape(z.shape) for f, d, z in zip(features, direction, zeros, strict=True)])
        return change

    def pulled(cotangent: jax.Array) -> list[jax.Array]:
        return [g.reshape(len(f), -1) for g, f in zip(transposed(cotangent)[0], features, strict=True)]

    return Linear(y, features, pushed, pulled)
