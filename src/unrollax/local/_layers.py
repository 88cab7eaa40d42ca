"""What a layer is: a pre-activation that depends on parameters, and a transfer function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._types import Key, Params
from unrollax._value import static, value
from unrollax.local._transfers import transfer


class AnyLayer(Protocol):
    """What a net needs of a layer; `x` has the batch on its first axis.

    A layer may also offer `params(key)`, which draws its parameters, and `forward(params, x, nudge) -> (y, inputs)`.
    """

    def pre(self, params: Params, x: Any, /) -> Any:
        """Return the pre-activations a, `[batch, ..., m]`."""
        ...

    def transfer(self, a: Any, /) -> Any:
        """Return the activations y, in the shape of a."""
        ...


class LinearLayer(Protocol):
    """A layer whose pre-activations are linear in its params, `features(inputs) @ matrix(params)` as rows."""

    def features(self, inputs: Any, /) -> jax.Array:
        """Return what meets the params, `[rows, n]`."""
        ...

    def matrix(self, params: Params, /) -> jax.Array:
        """Return the params as one matrix, `[n, m]`."""
        ...

    def from_matrix(self, matrix: jax.Array, /) -> Params:
        """Undo `matrix`."""
        ...


def _no_params(key: Key) -> None:
    return None


@value
class Layer:
    """A layer of your own: `y = transfer(pre(params, x))`.

    It may have no parameters: its entry in the net's params is then `None`.

    Args:
        pre: `pre(params, x) -> a`, of a batch, with the batch on the first axis of x and of a.
        transfer: a name such as `"tanh"`, a function of JAX such as `jax.nn.relu`, or a `Transfer`.
        params: `params(key)` draws the parameters; without it there are none.

    Raises:
        InvalidArgument: pre or params is no function, or there is no such transfer.

    Example:
        >>> import unrollax as ux
        >>> flatten = ux.Layer(lambda params, x: x.reshape(len(x), -1))
        >>> scale = ux.Layer(lambda params, x: params * x, "tanh", lambda key: jax.random.normal(key, (1, 6)))
        >>> net = ux.layered([flatten, scale], lambda y, target: (y - target).sum(-1))
        >>> net.predict(net.params(jax.random.key(0)), jnp.ones((4, 2, 3))).shape
        (4, 6)
    """

    pre: Callable[[Params, Any], Any] = static()
    transfer: Any = static(default="identity")  # a Transfer once made
    params: Callable[[Key], Params] = static(default=_no_params, repr=False)

    def __post_init__(self) -> None:
        for name, got, such in (("pre", self.pre, "pre(params, x)"), ("params", self.params, "params(key)")):
            if not callable(got):
                raise InvalidArgument(f"Layer: {name} must be a function {such}, got {name}={got!r}. Pass one.")
        set_transfer(self, "Layer")

    def forward(self, params: Params, x: Any, nudge: Any = None) -> tuple[Any, Any]:
        """Return y with `a = pre(params, x) + nudge`, and x."""
        return feed_forward(self, params, x, nudge)


@value
class Held:
    """A layer that is no pytree, as one: it is compared by identity."""

    own: Any = static()

    def __getattr__(self, name: str) -> Any:
        if name == "own" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.own, name)


def feed_forward(layer: Any, params: Params, x: Any, nudge: Any) -> tuple[Any, Any]:
    """Return y with `a = pre(params, x) + nudge`, and x."""
    a = layer.pre(params, x)
    return layer.transfer(a if nudge is None else a + nudge), x


def forward(layer: Any, params: Params, x: Any, nudge: Any = None) -> tuple[Any, Any]:
    """Run any layer, by its own `forward` where it has one: (y, inputs), with `a = pre(params, inputs) + nudge`."""
    own = getattr(layer, "forward", None)
    out: tuple[Any, Any] = own(params, x, nudge) if callable(own) else feed_forward(layer, params, x, nudge)
    return out


def is_linear(layer: Any) -> bool:
    """Whether a layer says that its pre-activations are linear in its params; see `LinearLayer`."""
    return all(callable(getattr(layer, name, None)) for name in ("features", "matrix", "from_matrix"))


def set_transfer(layer: Any, owner: str) -> None:
    """Resolve a layer's transfer, which may be a name; the message of an error names the layer."""
    try:
        object.__setattr__(layer, "transfer", transfer(layer.transfer))
    except InvalidArgument as error:
        raise InvalidArgument(f"{owner}: {error}") from None


def as_layers(owner: str, layers: Any) -> tuple[Any, ...]:
    """Return layers as a tuple of pytrees; raise unless each is a layer, and has the inputs that the one before gives."""
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise InvalidArgument(
            f"{owner}: layers must be a list of layers, got {type(layers).__name__}. Pass [first, ..., last]."
        )
    if not layers:
        raise InvalidArgument(f"{owner}: layers must hold at least one layer, got none. Pass them first to last.")
    made = tuple(_as_layer(owner, index, layer) for index, layer in enumerate(layers))
    for index, (before, after) in enumerate(pairwise(made)):
        gives, takes = getattr(before, "outputs", None), getattr(after, "inputs", None)
        if isinstance(gives, int) and isinstance(takes, int) and gives != takes:
            raise InvalidArgument(
                f"{owner}: layers[{index + 1}], {show(after)}, must take the {gives} numbers on the last axis that "
                f"layers[{index}], {show(before)}, gives, got inputs={takes}. Change one, or put what reshapes between them, "
                "such as unrollax.Layer(lambda params, x: x.reshape(len(x), -1)) behind a convolution."
            )
    return made


def _as_layer(owner: str, index: int, layer: Any) -> Any:
    lacking = [name for name in ("pre", "transfer") if not callable(getattr(layer, name, None))]
    if isinstance(layer, type) or lacking:
        lack = f"{type(layer).__name__} without {' and '.join(lacking)}"
        got = f"the class {layer.__name__} and no object of it" if isinstance(layer, type) else lack
        raise InvalidArgument(
            f"{owner}: layers[{index}] must have pre(params, x) and transfer(a), got {got}. Take DenseLayer(inputs, outputs, "
            "transfer), or Layer(pre, transfer) for one of your own."
        )
    return Held(layer) if jax.tree_util.all_leaves([layer]) else layer


def show(layer: Any) -> str:
    """Name a layer by its type and sizes."""
    layer = layer.own if isinstance(layer, Held) else layer
    sizes = [getattr(layer, name, None) for name in ("inputs", "outputs")]
    known = f"({', '.join(map(str, sizes))})" if all(isinstance(size, int) for size in sizes) else ""
    return type(layer).__name__ + known


def check_input(layer: Any, x: Any, axes: str, least: int) -> jax.Array:
    """Return x as an array; raise unless it has enough axes and the layer's inputs on the last."""
    x = jnp.asarray(x) if hasattr(x, "shape") or isinstance(x, (int, float)) else x
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) < least or shape[-1] != layer.inputs:
        few = shape is not None and len(shape) == least - 1 and shape[-1:] == (layer.inputs,)
        fits = f" or make inputs={shape[-1]}" if shape else ""
        remedy = "Give one example a batch axis: x[None]." if few else f"Reshape it{fits}."
        raise StructureError(f"{show(layer)}: x must be {axes}, got {describe(x)}. {remedy}")
    return jnp.asarray(x)


def check_param(layer: Any, params: Params, **shapes: tuple[int, ...]) -> None:
    """Raise unless params are a dict of arrays with these shapes."""
    for name, shape in shapes.items():
        got = params.get(name) if isinstance(params, dict) else None
        if got is None or jnp.shape(got) != shape:
            raise StructureError(
                f"{show(layer)}: params leaf [{name!r}] must be {list(shape)}, got "
                f"{describe(got) if isinstance(params, dict) else describe(params)}. Take them from params(key)."
            )


def matrix_shape(owner: str, index: int, layer: Any, params: Params) -> tuple[int, int]:
    """Return the shape of a linear layer's matrix; raise unless it takes the params and gives two axes."""
    try:
        made = jax.eval_shape(layer.matrix, params)
    except StructureError as error:
        raise StructureError(f"{owner}: layers[{index}]: {error}") from None
    if len(made.shape) != 2:
        raise StructureError(
            f"{owner}: layers[{index}], {show(layer)}, must have a matrix [n, m], got {describe(made)}. Make pre(params, x) "
            "the rows features(x) @ matrix(params)."
        )
    n, m = made.shape
    return n, m


def check_features(owner: str, index: int, layer: Any, params: Params, inputs: Any, y: Any) -> None:
    """Raise unless a linear layer's features and matrix can be multiplied, and their product has the numbers of its y."""
    features, matrix = jax.eval_shape(layer.features, inputs), matrix_shape(owner, index, layer, params)
    rows, m = math.prod(y.shape[:-1]), y.shape[-1]
    if features.shape != (rows, matrix[0]) or matrix[1] != m:
        raise StructureError(
            f"{owner}: layers[{index}], {show(layer)}, must have features [{rows}, n] and a matrix [n, {m}] for its y, "
            f"{describe(y)}, got features {describe(features)} and a matrix {list(matrix)}. Make pre(params, x) the rows "
            "features(x) @ matrix(params)."
        )


def with_ones(rows: jax.Array, bias: bool) -> jax.Array:
    """Append a column of ones to `[rows, n]` where there is a bias."""
    return jnp.concatenate([rows, jnp.ones((len(rows), 1), rows.dtype)], axis=1) if bias else rows
