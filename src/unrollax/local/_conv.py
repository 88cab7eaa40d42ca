"""A convolution over images, with the channels last."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp

from unrollax._check import check_choice, check_counts
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.local._initial import Initial, check_initial, draw
from unrollax.local._layers import check_input, check_param, feed_forward, set_transfer, show, with_ones

Padding = Literal["SAME", "VALID"]
Weights = dict[str, jax.Array]


@value
class ConvLayer:
    """A convolution over images: at each place `a = patch @ w + b`, with the channels last.

    The pre-activations are linear in the weights: a row of `features` is one patch, of all channels at its
    `size[0] * size[1]` places.

    Args:
        inputs: channels of x `[batch, height, width, inputs]`.
        outputs: channels of y.
        size: height and width of a patch; one number for both.
        transfer: a name such as `"relu"`, a function of JAX such as `jax.nn.relu`, or a `Transfer`.
        strides: steps down and to the right from patch to patch; one number for both.
        padding: `"SAME"`, with zeros around, or `"VALID"`, only patches that lie inside.
        bias: whether there is a b, which starts at 0.
        initial: how w starts; see `DenseLayer`, where the inputs are the numbers of a patch.

    Raises:
        InvalidArgument: a size is no positive whole number, or there is no such transfer, padding or start.
        StructureError: when traced, x or params that don't fit, or an image smaller than a patch.

    Example:
        >>> layer = ConvLayer(3, 8, 5, "relu", strides=2)
        >>> params = layer.params(jax.random.key(0))
        >>> y, inputs = layer.forward(params, jnp.ones((4, 28, 28, 3)))
        >>> y.shape, layer.features(inputs).shape, layer.matrix(params).shape
        ((4, 14, 14, 8), (784, 76), (76, 8))
    """

    inputs: int = static()
    outputs: int = static()
    size: int | tuple[int, int] = static()
    transfer: Any = static(default="identity")  # a Transfer once made
    strides: int | tuple[int, int] = static(default=1)
    padding: Padding = static(default="SAME")
    bias: bool = static(default=True)
    initial: Initial | None = static(default=None)

    def __post_init__(self) -> None:
        check_counts("ConvLayer", inputs=self.inputs, outputs=self.outputs)
        check_choice("ConvLayer", "padding", self.padding, get_args(Padding))
        check_initial("ConvLayer", self.initial)
        for name in ("size", "strides"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        set_transfer(self, "ConvLayer")

    def params(self, key: Key) -> Weights:
        """Draw `w [height, width, inputs, outputs]` of a patch and, with a bias, `b [outputs]`."""
        w = draw(key, self._shapes()["w"], self.initial, self.transfer)
        return {"w": w, "b": jnp.zeros(self.outputs, w.dtype)} if self.bias else {"w": w}

    def pre(self, params: Weights, x: Any) -> jax.Array:
        """Return the pre-activations `[batch, height, width, outputs]`."""
        x = self._check(x)
        check_param(self, params, **self._shapes())
        x, w = x.astype(kind := jnp.promote_types(x.dtype, params["w"].dtype)), params["w"].astype(kind)
        strides = cast(tuple[int, int], self.strides)
        a = jax.lax.conv_general_dilated(x, w, strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return a + params["b"].reshape(1, 1, 1, -1) if self.bias else a

    def forward(self, params: Weights, x: Any, nudge: Any = None) -> tuple[jax.Array, Any]:
        """Return y with `a = pre(params, x) + nudge`, and x."""
        return feed_forward(self, params, x, nudge)

    def features(self, inputs: Any) -> jax.Array:
        """Return the patches as rows, with a last column of ones if there is a bias, `[batch * height * width, n]`."""
        x = self._check(inputs)
        strides, size = cast(tuple[int, int], self.strides), cast(tuple[int, int], self.size)
        around = jax.lax.padtype_to_pads(x.shape[1:3], size, strides, self.padding)
        x = jnp.pad(x, [(0, 0), *around, (0, 0)])
        tall, broad = ((total - one) // step + 1 for total, one, step in zip(x.shape[1:3], size, strides, strict=True))
        # Slices, and no convolution with ones: they are exact on every device.
        places = [
            x[:, i : i + (tall - 1) * strides[0] + 1 : strides[0], j : j + (broad - 1) * strides[1] + 1 : strides[1]]
            for i in range(size[0])
            for j in range(size[1])
        ]
        return with_ones(jnp.concatenate(places, axis=-1).reshape(-1, size[0] * size[1] * self.inputs), self.bias)

    def matrix(self, params: Weights) -> jax.Array:
        """Return w as a matrix, and below it b, `[n, outputs]`."""
        check_param(self, params, **self._shapes())
        w = params["w"].reshape(-1, self.outputs)
        return jnp.concatenate([w, params["b"][None]]) if self.bias else w

    def from_matrix(self, matrix: jax.Array) -> Weights:
        """Undo `matrix`."""
        shape = self._shapes()["w"]
        if not self.bias:
            return {"w": matrix.reshape(shape)}
        return {"w": matrix[:-1].reshape(shape), "b": matrix[-1]}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        w = (*cast(tuple[int, int], self.size), self.inputs, self.outputs)
        return {"w": w, "b": (self.outputs,)} if self.bias else {"w": w}

    def _check(self, x: Any) -> jax.Array:
        axes, size = f"[batch, height, width, {self.inputs}]", cast(tuple[int, int], self.size)
        x = check_input(self, x, axes, 4)
        small = self.padding == "VALID" and (x.shape[1] < size[0] or x.shape[2] < size[1])
        if x.ndim != 4 or small:
            remedy = f'It holds no patch of {size}: take padding="SAME".' if small else "Reshape it."
            raise StructureError(f"{show(self)}: x must be {axes}, got {describe(x)}. {remedy}")
        return x


def _pair(name: str, got: Any) -> tuple[int, int]:
    pair = tuple(got) if isinstance(got, (tuple, list)) else (got, got)
    if len(pair) != 2:
        raise InvalidArgument(
            f"ConvLayer: {name} must be one whole number or two, down and to the right, got {name}={got!r}. Give two."
        )
    check_counts("ConvLayer", **{name: pair[0]})
    check_counts("ConvLayer", **{name: pair[1]})
    return int(pair[0]), int(pair[1])
