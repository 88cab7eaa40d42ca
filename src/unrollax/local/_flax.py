"""Layers of Flax's modules, of either API; Flax is not imported before it is used."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument
from unrollax._tree import describe
from unrollax._types import Params
from unrollax.local._flax_modules import OWNER, Found, Path, is_known, linen_module, nnx_module
from unrollax.local._from_modules import Convolution, ModuleLayers, check_same, conv_of, dense_of
from unrollax.local._transfers import transfer


class Entry(NamedTuple):
    """What `names` says of one layer.

    Attributes:
        path: of a submodule; `None` for a layer that is given.
        then: the transfer that follows, or the layer.
    """

    path: Path | None
    then: Any


def flax_layers(module: Any, names: Sequence[Any], *, variables: Any = None, x: Any = None) -> ModuleLayers:
    """Make a list of layers of a module of Flax, of which you say what follows what.

    Nothing is guessed: `names` lists the submodules in the order in which they are applied, each with the transfer that
    follows it. Known are `Dense` and `Conv` of `flax.linen`, `Linear` and `Conv` of `flax.nnx` (one group, without dilation,
    padding `"SAME"` or `"VALID"`). Whatever has parameters must be named.

    Args:
        module: a module of `flax.linen` with its `variables`, or one of `flax.nnx`; it maps a batch.
        names: pairs `(name, transfer)`, such as `("Dense_0", "tanh")`; a name goes through submodules with dots, as in
            `"encoder.layers.0"`. An entry may also be a layer, such as `unrollax.Layer` for what flattens or pools.
        variables: of `flax.linen`, as `module.init` makes them.
        x: a batch `[batch, ...]`; on it the layers are compared with the module. `flax.linen` needs it for a `Conv`, whose
            options it says only when it is run.

    Returns:
        A value with `.layers`, `.params` (the module's arrays as a list with one pytree a layer, copied) and
        `.module(params)`: the module with trained arrays, or the variables of one of `flax.linen`.

    Raises:
        InvalidArgument: a name that the module does not have or that is no such layer, one that is left out, or layers that
            don't compute on x what the module does.

    Example:
        >>> import flax.linen as nn, unrollax as ux
        >>> net = nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(2)])
        >>> x = jnp.ones((5, 4))
        >>> variables = net.init(jax.random.key(0), x)
        >>> made = ux.flax_layers(net, [("layers_0", "tanh"), ("layers_2", "identity")], variables=variables, x=x)
        >>> made.layers[0]
        DenseLayer(inputs=4, outputs=8, transfer=Transfer(name='tanh', slope=1.0), bias=True, initial=None)
        >>> net.apply(made.module(made.params), x).shape
        (5, 2)
    """
    api = linen_module(module, variables, x) if hasattr(module, "apply") else nnx_module(module, variables)
    entries = _entries(names)
    built = [_build(entry, api.find) for entry in entries]
    paths = tuple(entry.path for entry in entries)
    _check_none_left(api.params, paths)
    layers, own = tuple(layer for layer, _ in built), [weights for _, weights in built]
    if x is not None:
        check_same(OWNER, layers, own, jnp.asarray(x), api.run(x))
    return ModuleLayers(layers, own, functools.partial(api.restore, paths))


def _entries(names: Any) -> list[Entry]:
    """Return what is named; raise unless each is a pair or a layer, and no submodule comes twice."""
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise InvalidArgument(
            f'{OWNER}: names must be a list of pairs such as ("Dense_0", "tanh"), got {names!r}. List all, first to last.'
        )
    entries = [_entry(index, given) for index, given in enumerate(names)]
    paths = [entry.path for entry in entries if entry.path]
    for path in paths:
        if paths.count(path) > 1:
            raise InvalidArgument(
                f"{OWNER}: names must hold each submodule once, got {'.'.join(path)!r} twice. Layers can't share params."
            )
    return entries


def _entry(index: int, given: Any) -> Entry:
    if callable(getattr(given, "pre", None)) and callable(getattr(given, "transfer", None)):
        return Entry(None, given)
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not isinstance(given[0], str):
        raise InvalidArgument(
            f'{OWNER}: names[{index}] must be a pair such as ("Dense_0", "tanh") or a layer, got {given!r}. Name the '
            "submodule and the transfer that follows it."
        )
    try:
        return Entry(tuple(given[0].split(".")), transfer(given[1]))
    except InvalidArgument as error:
        raise InvalidArgument(f"{OWNER}: names[{index}]: {error}") from None


def _build(entry: Entry, find: Callable[[Path], Found]) -> tuple[Any, Params]:
    """Return the layer of an entry, and its arrays."""
    if entry.path is None:
        return entry.then, None
    layer, weights = _layer(".".join(entry.path), find(entry.path))
    return dataclasses.replace(layer, transfer=entry.then), weights


def _layer(name: str, found: Found) -> tuple[Any, dict[str, jax.Array]]:
    """Return a submodule as a layer without a transfer, and its arrays."""
    arrays, config = found.arrays, found.config
    kind = "a submodule" if config is None else type(config).__name__
    kernel = arrays.get("kernel")
    if kernel is None or set(arrays) - {"kernel", "bias"} or (config is not None and not is_known(config)):
        raise InvalidArgument(
            f"{OWNER}: {name!r} must be a Dense, a Linear or a Conv, got {kind} with "
            f"{', '.join(sorted(arrays)) or 'no params'}. Write the list of layers yourself, with unrollax.Layer."
        )
    weights = {"w": kernel, "b": arrays["bias"]} if "bias" in arrays else {"w": kernel}
    narrow = getattr(config, "dtype", None)
    if narrow is not None and jnp.dtype(narrow) != kernel.dtype:
        raise InvalidArgument(
            f"{OWNER}: {name!r} must compute in the dtype of its params, {kernel.dtype}, got dtype={jnp.dtype(narrow)}. Make "
            "both the same."
        )
    if kernel.ndim == 2:
        return dense_of(weights), weights
    if kernel.ndim != 4 or config is None:
        remedy = (
            "Pass x, a batch, from which its options are read." if kernel.ndim == 4 else "Write it as unrollax.Layer."
        )
        raise InvalidArgument(
            f"{OWNER}: {name!r} must be a Dense, or a Conv over two axes whose options are known, got a kernel "
            f"{describe(kernel)}. {remedy}"
        )
    dilations = [config.input_dilation, config.kernel_dilation]
    plain = config.feature_group_count == 1 and config.mask is None and all(_all_one(each) for each in dilations)
    how = Convolution(kernel.shape[:2], config.strides, config.padding, plain)
    return conv_of(OWNER, repr(name), weights, how), weights


def _all_one(got: Any) -> bool:
    return got is None or set(got if isinstance(got, Sequence) else (got,)) == {1}


def _check_none_left(params: Any, paths: tuple[Path | None, ...]) -> None:
    """Raise unless every array belongs to a named submodule."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        parts = tuple(str(getattr(part, "key", part)) for part in path)
        if parts[:-1] not in paths:
            raise InvalidArgument(
                f"{OWNER}: names must hold whatever has params, got none for {'.'.join(parts)!r}, {describe(leaf)}. Add its "
                "submodule in its place, or write the list of layers yourself."
            )
