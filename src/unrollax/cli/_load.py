"""What a target names: an object of the user's file, or a built-in recipe."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from unrollax._errors import InvalidArgument, nearest
from unrollax._experiment import Experiment
from unrollax.cli._config import find_recipe


class Target(Protocol):
    """What a configuration says of its target."""

    target: str
    seed: int
    options: dict[str, Any]

    @property
    def steps(self) -> int | None:
        """Updates to make; `None` if that is left to the target."""
        ...


def from_recipe(config: Target) -> Experiment:
    """Build a recipe's experiment."""
    recipe = find_recipe(config.target)
    build = importlib.import_module(recipe.module).build
    try:
        experiment: Experiment = build(recipe.options(**config.options), config.seed, config.steps)
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            f"{config.target} needs {error.name}. Install it with: pip install 'unrollax[recipes]'"
        ) from error
    return experiment


def from_file(config: Target) -> tuple[ModuleType, Any]:
    """Import the user's file; return it and what the target names in it, functions called with the options."""
    path, _, name = config.target.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = named(module, name)
    if callable(found) and not is_system(found) and not isinstance(found, Experiment):
        return module, _call(config, found)
    if config.options:
        raise InvalidArgument(f"{config.target} is no function, so it takes no --set, got {', '.join(config.options)}.")
    return module, found


def named(module: ModuleType, name: str) -> Any:
    """Return what has a name in the user's file."""
    if not hasattr(module, name):
        public = [
            each for each, item in vars(module).items() if not each.startswith("_") and not isinstance(item, ModuleType)
        ]
        raise InvalidArgument(f"{Path(str(module.__file__)).name} has no {name!r}. {nearest(name, public)}")
    return getattr(module, name)


def is_system(found: Any) -> bool:
    """Whether an object can be unrolled."""
    return not isinstance(found, type) and all(callable(getattr(found, name, None)) for name in ("init", "step"))


def _call(config: Target, function: Any) -> Any:
    """Call the user's function with the options that were set, and with `seed` and `steps` if it takes them."""
    parameters = inspect.signature(function).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    unknown = [key for key in config.options if key not in parameters and not anything]
    if unknown:
        raise InvalidArgument(f"{config.target} takes no option {unknown[0]!r}. {nearest(unknown[0], parameters)}")
    extra = {"seed": config.seed, "steps": config.steps}
    given = {**{key: item for key, item in extra.items() if key in parameters}, **config.options}
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise InvalidArgument(f"{config.target} can't be called: {error}. Give it with --set KEY=VALUE.") from error
    return function(**given)
