"""What lists of layers made of other libraries' modules have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_like
from unrollax._errors import InvalidArgument
from unrollax._tree import describe
from unrollax._types import Params
from unrollax._value import static, value
from unrollax.local._conv import ConvLayer, Padding
from unrollax.local._dense import DenseLayer
from unrollax.local._layered import run_layers


@value
class ModuleLayers:
    """A module of another library as a list of layers; see `equinox_layers` and `flax_layers`."""

    layers: tuple[Any, ...]
    own: list[Params]
    restore: Callable[[list[Params]], Any] = static(repr=False)

    @property
    def params(self) -> list[Params]:
        """The module's arrays, one pytree a layer, as copies: a training run may give their buffers away."""
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), self.own)

    def module(self, params: list[Params]) -> Any:
        """Return the module, or the variables of one of `flax.linen`, with these params, such as trained ones.

        Raises:
            StructureError: params of another structure, shape or dtype than `.params`.
        """
        check_like("ModuleLayers.module", "params", params, self.own, "Pass the trained form of .params.")
        return self.restore(params)


class Convolution(NamedTuple):
    """How another library describes a convolution.

    Attributes:
        size: height and width of a patch.
        strides: steps from patch to patch.
        padding: `"SAME"`, `"VALID"` or pairs of numbers.
        plain: whether it has one group, no dilation and no mask, and pads with zeros.
    """

    size: Any
    strides: Any
    padding: Any
    plain: bool


def dense_of(weights: dict[str, jax.Array]) -> DenseLayer:
    """Return the dense layer of `w [inputs, outputs]` and, with a bias, `b`, without a transfer."""
    inputs, outputs = weights["w"].shape
    return DenseLayer(inputs, outputs, bias="b" in weights)


def conv_of(owner: str, name: str, weights: dict[str, jax.Array], how: Convolution) -> ConvLayer:
    """Return the convolution of `w [height, width, inputs, outputs]`, without a transfer; raise unless it is a plain one."""
    strides, size = _two(1 if how.strides is None else how.strides), _two(how.size)
    padding = _padding(how.padding, size, strides)
    if padding is None or not how.plain:
        raise InvalidArgument(
            f'{owner}: {name} must be a convolution of one group, without dilation or mask, padded as "SAME" or "VALID" with '
            f"zeros, got padding={how.padding!r}{'' if how.plain else ' and one of the others'}. Write it as "
            "unrollax.Layer(pre, transfer)."
        )
    inputs, outputs = weights["w"].shape[2:]
    return ConvLayer(inputs, outputs, size, strides=strides, padding=padding, bias="b" in weights)


def _two(got: Any) -> tuple[int, int]:
    first, second = (got, got) if isinstance(got, int) else tuple(got)
    return int(first), int(second)


def _padding(given: Any, size: tuple[int, int], strides: tuple[int, int]) -> Padding | None:
    """Return the name of a padding that is the same for images of every size."""
    if isinstance(given, str):
        return {"SAME": "SAME", "VALID": "VALID"}.get(given)  # type: ignore[return-value]
    pairs = [
        (pad, pad) if isinstance(pad, int) else tuple(pad)
        for pad in ((given,) * 2 if isinstance(given, int) else given)
    ]
    if not any(map(any, pairs)):
        return "VALID"
    same = [((one - 1) // 2, one - 1 - (one - 1) // 2) for one in size]
    return "SAME" if pairs == same and strides == (1, 1) else None


def check_same(owner: str, layers: tuple[Any, ...], params: list[Params], x: Any, expected: Any) -> None:
    """Raise unless the layers compute on a batch x what the module does."""
    got = jax.jit(functools.partial(run_layers, owner, layers))(params, x)
    if not hasattr(expected, "shape") or jnp.shape(got) != jnp.shape(expected):
        found = f"{describe(got)} where it gives {describe(expected)}"
    else:
        kind = jnp.result_type(jnp.float16, expected)
        apart, size = float(jnp.abs(got - expected).max()), float(jnp.abs(expected).max())
        if apart <= float(jnp.finfo(kind).eps) ** 0.5 * size:  # type: ignore[no-untyped-call]
            return
        found = f"outputs up to {apart:.2g} apart, which themselves reach {size:.2g}"
    raise InvalidArgument(
        f"{owner}: the layers must compute what the module computes on x, got {found}. Name every layer in order, with the "
        "transfer that follows it, and write what else lies between as unrollax.Layer(pre, transfer)."
    )


def same(params: None, x: Any) -> Any:
    """Return x: the pre-activation of a lone transfer."""
    return x


def channels_last(params: None, x: Any) -> Any:
    """Turn images `[batch, channels, height, width]` round."""
    return jnp.moveaxis(x, 1, -1)


def channels_first(params: None, x: Any) -> Any:
    """Undo `channels_last`."""
    return jnp.moveaxis(x, -1, 1)


def flatten(params: None, x: Any) -> Any:
    """Make a row of each example."""
    return x.reshape(len(x), -1)


def flatten_image(params: None, x: Any) -> Any:
    """Flatten an image as it was with its channels first."""
    return jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
