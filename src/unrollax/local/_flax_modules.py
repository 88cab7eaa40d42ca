"""Modules of Flax, of either API, taken apart by the names of their submodules and put together again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from unrollax._errors import InvalidArgument, nearest
from unrollax._types import Params

OWNER = "flax_layers"
Path = tuple[str, ...]


class Found(NamedTuple):
    """A submodule.

    Attributes:
        config: an object that says its options, or `None` where only its arrays are known.
        arrays: `kernel` and, with a bias, `bias`, and whatever else it holds.
    """

    config: Any
    arrays: dict[str, Any]


class Module(NamedTuple):
    """What is needed of a module.

    Attributes:
        find: returns a submodule by its path.
        params: all its params, as nested dicts.
        run: maps a batch.
        restore: `restore(paths, params)` puts trained arrays in their places.
    """

    find: Callable[[Path], Found]
    params: Any
    run: Callable[[Any], Any]
    restore: Callable[[tuple[Path | None, ...], list[Params]], Any]


def is_known(config: Any) -> bool:
    """Whether a submodule is a layer of Flax itself that can be matched."""
    return type(config).__module__.startswith("flax.") and type(config).__name__ in ("Dense", "Linear", "Conv")


def linen_module(module: Any, variables: Any, x: Any) -> Module:
    """Take a module of `flax.linen` apart; its submodules say their options where there is an x to run it on."""
    from flax import linen

    if not isinstance(variables, dict | linen.FrozenDict) or "params" not in variables:
        raise InvalidArgument(
            f"{OWNER}: variables must be given for a module of flax.linen, with params, got {type(variables).__name__}. Pass "
            "what module.init(key, x) returns."
        )
    configs: dict[Path, Any] = {}

    def see(run: Any, arguments: Any, options: Any, context: Any) -> Any:
        configs.setdefault(context.module.path, context.module)
        return run(*arguments, **options)

    if x is not None:
        with linen.intercept_methods(see):
            jax.eval_shape(module.apply, variables, x)

    def find(path: Path) -> Found:
        inner = variables["params"]
        for part in path:
            _check_has(path, part, list(inner) if hasattr(inner, "keys") else [])
            inner = inner[part]
        return Found(configs.get(path), dict(inner) if hasattr(inner, "keys") else {})

    params = variables["params"]
    return Module(
        find, params, jax.jit(lambda x: module.apply(variables, x)), functools.partial(_restore_linen, variables)
    )


def nnx_module(module: Any, variables: Any) -> Module:
    """Take a module of `flax.nnx` apart."""
    from flax import nnx

    if variables is not None or not isinstance(module, nnx.Module) or not callable(module):
        got = "variables for one that holds its own" if variables is not None else type(module).__name__
        raise InvalidArgument(
            f"{OWNER}: module must be one of flax.linen with its variables, or one of flax.nnx without, got {got}. Pass one."
        )

    def find(path: Path) -> Found:
        item = _inner(module, path)
        arrays = {name: getattr(item, name, None) for name in ("kernel", "bias")} if is_known(item) else {}
        return Found(item, {name: leaf[...] for name, leaf in arrays.items() if leaf is not None})

    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    return Module(find, params, module, functools.partial(_restore_nnx, module))


def _inner(module: Any, path: Path) -> Any:
    for part in path:
        if part.isdigit() and hasattr(module, "__len__"):
            _check_has(path, part, [str(index) for index in range(len(module))])
            module = module[int(part)]
        else:
            _check_has(path, part, [name for name in vars(module) if not name.startswith("_")])
            module = getattr(module, part)
    return module


def _check_has(path: Path, part: str, names: list[str]) -> None:
    if part not in names:
        raise InvalidArgument(
            f"{OWNER}: {'.'.join(path)!r} must be the name of a submodule, got no {part!r}. {nearest(part, names)}"
        )


def _named(paths: tuple[Path | None, ...], params: list[Params]) -> list[tuple[Path, jax.Array]]:
    """Return the arrays of trained layers by their paths in the module."""
    names = {"w": "kernel", "b": "bias"}
    pairs = [(path, own) for path, own in zip(paths, params, strict=True) if path is not None]
    return [((*path, names[name]), leaf) for path, own in pairs for name, leaf in own.items()]


def _restore_linen(variables: Any, paths: tuple[Path | None, ...], params: list[Params]) -> Any:
    from flax import core

    new = core.unfreeze(jax.tree.map(lambda leaf: leaf, variables))
    for path, leaf in _named(paths, params):
        inner = functools.reduce(lambda tree, part: tree[part], path[:-1], new["params"])
        inner[path[-1]] = leaf
    return new


def _restore_nnx(module: Any, paths: tuple[Path | None, ...], params: list[Params]) -> Any:
    from flax import nnx

    new = nnx.clone(module)
    for path, leaf in _named(paths, params):
        getattr(_inner(new, path[:-1]), path[-1])[...] = leaf
    return new
