"""A fully connected layer, and a net of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.local._initial import Initial, check_initial, draw
from unrollax.local._layers import check_input, check_param, feed_forward, set_transfer, with_ones

Weights = dict[str, jax.Array]


@value
class DenseLayer:
    """A fully connected layer: `a = x @ w + b`, `y = transfer(a)`, on the last axis of x.

    Args:
        inputs: size of the last axis of x.
        outputs: size of that of y.
        transfer: a name such as `"tanh"`, a function of JAX such as `jax.nn.relu`, or a `Transfer`.
        bias: whether there is a b, which starts at 0.
        initial: how w starts. `"glorot"`: uniform in +-sqrt(6 / (inputs + outputs)); `"he"`: Gaussian of variance
            2 / inputs, cut at two standard deviations; `"sparse"`: each unit has N(0, 1) weights from 15 inputs, the others
            are 0. `None`: `"he"` for relu, leaky_relu and softplus, else `"glorot"`.

    Raises:
        InvalidArgument: a size is no positive whole number, or there is no such transfer or start.
        StructureError: when traced, x or params that don't fit.

    Example:
        >>> layer = DenseLayer(3, 2, "tanh")
        >>> params = layer.params(jax.random.key(0))
        >>> y, inputs = layer.forward(params, jnp.ones((5, 3)))
        >>> y.shape, layer.features(inputs).shape, layer.matrix(params).shape
        ((5, 2), (5, 4), (4, 2))

    References: Glorot and Bengio, AISTATS 2010; He et al., ICCV 2015; Martens, ICML 2010 (`"sparse"`).
    """

    inputs: int = static()
    outputs: int = static()
    transfer: Any = static(default="identity")  # a Transfer once made
    bias: bool = static(default=True)
    initial: Initial | None = static(default=None)

    def __post_init__(self) -> None:
        check_counts("DenseLayer", inputs=self.inputs, outputs=self.outputs)
        check_initial("DenseLayer", self.initial)
        set_transfer(self, "DenseLayer")

    def params(self, key: Key) -> Weights:
        """Draw `w [inputs, outputs]` and, with a bias, `b [outputs]`."""
        w = draw(key, (self.inputs, self.outputs), self.initial, self.transfer)
        return {"w": w, "b": jnp.zeros(self.outputs, w.dtype)} if self.bias else {"w": w}

    def pre(self, params: Weights, x: Any) -> jax.Array:
        """Return the pre-activations `[batch, ..., outputs]` of x `[batch, ..., inputs]`."""
        x = check_input(self, x, f"[batch, ..., {self.inputs}]", 2)
        check_param(self, params, **self._shapes())
        a = x @ params["w"]
        return a + params["b"].reshape((1,) * (a.ndim - 1) + (-1,)) if self.bias else a

    def forward(self, params: Weights, x: Any, nudge: Any = None) -> tuple[jax.Array, Any]:
        """Return y with `a = pre(params, x) + nudge`, and x."""
        return feed_forward(self, params, x, nudge)

    def features(self, inputs: Any) -> jax.Array:
        """Return x as rows, with a last column of ones if there is a bias, `[rows, n]`."""
        x = check_input(self, inputs, f"[batch, ..., {self.inputs}]", 2)
        return with_ones(x.reshape(-1, self.inputs), self.bias)

    def matrix(self, params: Weights) -> jax.Array:
        """Return w, and below it b, `[n, outputs]`."""
        check_param(self, params, **self._shapes())
        return jnp.concatenate([params["w"], params["b"][None]]) if self.bias else params["w"]

    def from_matrix(self, matrix: jax.Array) -> Weights:
        """Undo `matrix`."""
        return {"w": matrix[: self.inputs], "b": matrix[self.inputs]} if self.bias else {"w": matrix}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        w = (self.inputs, self.outputs)
        return {"w": w, "b": (self.outputs,)} if self.bias else {"w": w}


def dense_layers(
    sizes: Sequence[int],
    transfer: str | Callable[[Any], Any] = "tanh",
    last: str | Callable[[Any], Any] = "identity",
    *,
    initial: Initial | None = None,
) -> tuple[DenseLayer, ...]:
    """Make a net of fully connected layers.

    Args:
        sizes: of the input, of each layer's output in turn: `len(sizes) - 1` layers.
        transfer: of all layers but the last; see `transfer`.
        last: of the last layer.
        initial: how the weights start; see `DenseLayer`.

    Raises:
        InvalidArgument: fewer than two sizes, one that is no positive whole number, or no such transfer.

    Example:
        >>> [layer.transfer.name for layer in dense_layers([784, 250, 30, 784], "relu", "sigmoid")]
        ['relu', 'relu', 'sigmoid']
    """
    sizes = list(sizes) if isinstance(sizes, Sequence) else [sizes]
    if len(sizes) < 2:
        raise InvalidArgument(
            f"dense_layers: sizes must hold those of the input and of at least one layer, got {sizes}. "
            "Pass such as [784, 250, 10]."
        )
    check_counts("dense_layers", **{f"sizes[{index}]": size for index, size in enumerate(sizes)})
    ends = len(sizes) - 2
    return tuple(
        DenseLayer(inputs, outputs, last if index == ends else transfer, initial=initial)
        for index, (inputs, outputs) in enumerate(pairwise(sizes))
    )
