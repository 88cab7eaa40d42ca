"""Layers of Equinox's modules; Equinox is not imported before it is used."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument
from unrollax._tree import describe
from unrollax._types import Params
from unrollax.local._conv import ConvLayer
from unrollax.local._dense import DenseLayer
from unrollax.local._equinox_parts import OWNER, Activation, Path, Piece, pieces_of
from unrollax.local._from_modules import (
    Convolution,
    ModuleLayers,
    channels_first,
    channels_last,
    check_same,
    conv_of,
    dense_of,
    flatten,
    flatten_image,
    same,
)
from unrollax.local._layers import Layer
from unrollax.local._transfers import READY, Transfer, known


class Built(NamedTuple):
    """A list of layers under way.

    Attributes:
        layers: those so far.
        params: theirs.
        paths: where each has its arrays from.
        image: whether what they give is an image, channels last.
    """

    layers: list[Any]
    params: list[Params]
    paths: list[Path | None]
    image: bool


def equinox_layers(module: Any, x: Any = None) -> ModuleLayers:
    """Make a list of layers of an `eqx.nn.MLP`, or of an `eqx.nn.Sequential` whose parts are known.

    Known are `Linear`, `Conv2d` (one group, without dilation, padding `"SAME"` or `"VALID"`), `MLP`, `Sequential`,
    `Identity`, and `Lambda` of a function that `transfer` knows or of `jnp.ravel`. Nothing is guessed: what else there is, is
    an error that names it. A transfer joins the layer before it, if there is one that has none. Images are channels first in
    Equinox and channels last in `ConvLayer`; layers without params turn them.

    Args:
        module: the module, which maps one example.
        x: a batch of examples, `[batch, ...]`, as the module takes them; on it the layers are compared with the module.

    Returns:
        A value with `.layers`, `.params` (the module's arrays as a list with one pytree a layer, copied) and
        `.module(params)`, the module with trained arrays.

    Raises:
        InvalidArgument: a part that is no such layer or comes twice, an x that the module can't take, or layers that don't
            compute on it what the module does.

    Example:
        >>> import equinox as eqx, unrollax as ux
        >>> mlp = eqx.nn.MLP(4, 2, 8, 1, jax.nn.tanh, key=jax.random.key(0))
        >>> made = ux.equinox_layers(mlp, jnp.ones((5, 4)))
        >>> net = ux.layered(made.layers, lambda y, target: ((y - target) ** 2).sum(-1))
        >>> net.predict(made.params, jnp.ones((5, 4))).shape, made.module(made.params).layers[0].weight.shape
        ((5, 2), (8, 4))
    """
    built = Built([], [], [], False)
    for piece in pieces_of(module):
        built = _add(built, piece)
    if not any(path is not None for path in built.paths):
        raise InvalidArgument(
            f"{OWNER}: module must hold a Linear or a Conv2d, got {type(module).__name__}. Pass a whole net."
        )
    if built.image:
        _without_params(built, Layer(channels_first))
    made = ModuleLayers(tuple(built.layers), built.params, functools.partial(_restore, module, tuple(built.paths)))
    if x is not None:
        check_same(OWNER, made.layers, made.own, jnp.asarray(x), _run(module, x))
    return made


def _run(module: Any, x: Any) -> Any:
    """Return what the module gives for a batch."""
    try:
        return jax.jit(jax.vmap(module))(x)
    except (TypeError, ValueError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise InvalidArgument(
            f"{OWNER}: x must be a batch of examples that the module takes, [batch, ...], got {describe(x)}, for which it "
            f"raises {type(error).__name__}: {said}. Give one example a batch axis, x[None], or another shape."
        ) from error


def _add(built: Built, piece: Piece) -> Built:
    """Return what is built with one piece more."""
    import equinox as eqx

    kind = type(piece.item)
    if kind is eqx.nn.Identity:
        return built
    if kind is eqx.nn.Linear:
        return _add_linear(built, piece)
    if kind is eqx.nn.Conv2d:
        return _add_conv(built, piece)
    if kind is eqx.nn.Lambda:
        return _add_function(built, piece, Activation(piece.item.fn, False))
    if kind is Activation:
        return _add_function(built, piece, piece.item)
    raise InvalidArgument(
        f"{OWNER}: {piece.name} must be a Linear, a Conv2d, an Identity or a Lambda of a known function, got "
        f"{kind.__name__}. Leave it out, or write the list of layers yourself with unrollax.Layer(pre, transfer)."
    )


def _add_linear(built: Built, piece: Piece) -> Built:
    item = piece.item
    if built.image:
        raise InvalidArgument(
            f"{OWNER}: {piece.name} must not see an image, got a Linear after a Conv2d. Put Lambda(jnp.ravel) between."
        )
    if "scalar" in (item.in_features, item.out_features):
        raise InvalidArgument(
            f'{OWNER}: {piece.name} must have whole numbers as sizes, got a Linear with a "scalar" side. Make it 1.'
        )
    weights = _weights(item)
    return _with_params(built, piece, dense_of(weights), weights, image=False)


def _add_conv(built: Built, piece: Piece) -> Built:
    item = piece.item
    if not built.image:
        if built.layers:
            raise InvalidArgument(
                f"{OWNER}: {piece.name} must come first or after another Conv2d, got one after "
                f"{type(built.layers[-1]).__name__}. Write the list of layers yourself."
            )
        _without_params(built, Layer(channels_last))
    weights = _weights(item)
    plain = item.groups == 1 and set(item.dilation) == {1} and item.padding_mode == "ZEROS"
    how = Convolution(item.kernel_size, item.stride, item.padding, plain)
    return _with_params(built, piece, conv_of(OWNER, piece.name, weights, how), weights, image=True)


def _add_function(built: Built, piece: Piece, activation: Activation) -> Built:
    if activation.function is jnp.ravel and not activation.elementwise:
        _without_params(built, Layer(flatten_image if built.image else flatten))
        return built._replace(image=False)
    found = _transfer(activation.function)
    whole = found is not None and found.name == "softmax"
    if found is None or (whole and (activation.elementwise or built.image)):
        where = "over the last axis of an image" if built.image else "of each number by itself"
        got = (
            f"softmax {where}"
            if whole
            else getattr(activation.function, "__qualname__", None) or repr(activation.function)
        )
        raise InvalidArgument(
            f"{OWNER}: {piece.name} must be the function of one of {', '.join(sorted(READY))}, or jnp.ravel, got {got}. "
            "Write the list of layers yourself, with a Transfer of your own."
        )
    last = built.layers[-1] if built.layers else None
    if isinstance(last, (DenseLayer, ConvLayer)) and last.transfer.name == "identity":
        built.layers[-1] = dataclasses.replace(last, transfer=found)
    elif found.name != "identity":
        _without_params(built, Layer(same, found))
    return built


def _transfer(function: Any) -> Transfer | None:
    """Return the transfer of a function of JAX, or of the identity that an MLP ends with by default."""
    import equinox as eqx

    default = inspect.signature(eqx.nn.MLP.__init__).parameters["final_activation"].default
    return READY["identity"] if function is default else known(function)


def _with_params(built: Built, piece: Piece, layer: Any, weights: Params, *, image: bool) -> Built:
    built.layers.append(layer)
    built.params.append(weights)
    built.paths.append(piece.path)
    return built._replace(image=image)


def _without_params(built: Built, layer: Layer) -> None:
    built.layers.append(layer)
    built.params.append(None)
    built.paths.append(None)


def _weights(item: Any) -> dict[str, jax.Array]:
    """Return a module's arrays in the layout of a layer."""
    w = jnp.transpose(item.weight, (1, 0) if item.weight.ndim == 2 else (2, 3, 1, 0))
    return {"w": w} if item.bias is None else {"w": w, "b": item.bias.reshape(-1)}


def _restore(module: Any, paths: tuple[Path | None, ...], params: list[Params]) -> Any:
    """Return the module with the arrays of trained layers."""
    import equinox as eqx

    pairs = [(path, own) for path, own in zip(paths, params, strict=True) if path is not None]

    def arrays(module: Any) -> list[Any]:
        items = [functools.reduce(lambda inner, index: inner.layers[index], path, module) for path, _ in pairs]
        return [leaf for item in items for leaf in (item.weight, item.bias) if leaf is not None]

    old, new = iter(arrays(module)), []
    for _, own in pairs:
        weight = next(old)
        new.append(jnp.transpose(own["w"], (1, 0) if weight.ndim == 2 else (3, 2, 0, 1)))
        if "b" in own:
            new.append(own["b"].reshape(next(old).shape))
    return eqx.tree_at(arrays, module, new)
