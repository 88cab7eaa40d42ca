"""From arguments to a checked, repeatable configuration, without JAX."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unrollax._errors import nearest, nearest_multiple
from unrollax.recipes._options import RECIPES, Recipe

# Which options each estimator takes; a test holds them against the classes.
_EVOLUTION = ("window", "horizon", "pairs", "std", "stagger", "shaping", "control", "noise")
ESTIMATORS: dict[str, tuple[str, ...]] = {
    "bptt": ("horizon", "memory"),
    "tbptt": ("window", "horizon", "overlap", "memory"),
    "randomized-tbptt": ("window", "horizon", "survival"),
    "rtrl": ("window", "horizon", "mode"),
    "snap": ("window", "horizon", "order"),
    "uoro": ("window", "horizon", "directions"),
    "forward-gradient": ("window", "horizon", "directions", "resample"),
    "es": _EVOLUTION,
    "full-es": _EVOLUTION[1:],
    "pes": _EVOLUTION,
    "nres": _EVOLUTION,
    "es-single": _EVOLUTION,
    "guided-es": (*_EVOLUTION, "subspace", "alpha"),
    "implicit": ("window", "horizon", "solver", "terms", "tol"),
}
# Options with a flag of their own; the others are set with --set estimator.KEY=VALUE.
FLAGS = ("window", "horizon", "pairs", "std", "directions")
OPTIMIZERS = (
    "adagrad",
    "adagrad-plain",
    "adam",
    "adamw",
    "heavy-ball",
    "lion",
    "momentum",
    "muon",
    "nesterov",
    "rmsprop",
    "sgd",
    "shampoo",
    "soap",
)


class UsageError(Exception):
    """An argument that can't be used."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class EstimatorConfig(_Strict):
    """An estimator by name; what is `None` is left to the target."""

    name: str | None = None
    window: int | None = Field(None, ge=1)
    horizon: int | None = Field(None, ge=1)
    pairs: int | None = Field(None, ge=1)
    std: float | None = Field(None, gt=0)
    directions: int | None = Field(None, ge=1)
    stagger: bool | None = None
    shaping: Literal["rank", "centred"] | None = None
    control: Literal["analytic"] | None = None
    noise: Literal["stored", "regenerated"] | None = None
    memory: int | str | None = None
    overlap: int | None = Field(None, ge=0)
    survival: float | None = Field(None, gt=0, le=1)
    mode: Literal["auto", "forward", "reverse"] | None = None
    order: int | None = Field(None, ge=1)
    resample: bool | None = None
    subspace: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, gt=0, le=1)
    solver: Literal["gmres", "neumann", "one-step", "dense"] | None = None
    terms: int | None = Field(None, ge=1)
    tol: float | None = Field(None, gt=0)


class OptimizerConfig(_Strict):
    """An optimizer by name; what is `None` is left to the target."""

    name: str | None = None
    lr: float | None = Field(None, gt=0)


class RunConfig(_Strict):
    """All that `run.toml` holds."""

    target: str
    steps: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    estimator: EstimatorConfig = EstimatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    options: dict[str, Any] = {}

    def to_toml(self) -> dict[str, Any]:
        """Return what is written to `run.toml`: TOML has no null, so what is left to the target is left out."""
        tables = self.model_dump(exclude_none=True)
        return {name: table for name, table in tables.items() if table != {}}


def parse_set(pairs: list[str], target: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse `key=value` pairs to the target's options and the estimator's.

    A value is TOML if it can be, else a string; for an option of a recipe that is a string it is one as it stands, such as
    a column called 2019.
    """
    options: dict[str, Any] = {}
    strings = _strings(target)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set must be KEY=VALUE, got {pair!r}. For example --set rows=true")
        item = _toml_value(text)
        options[key.strip()] = text if key.strip() in strings and not isinstance(item, str) else item
    mark = "estimator."
    own = {key.removeprefix(mark): item for key, item in options.items() if key.startswith(mark)}
    return {key: item for key, item in options.items() if not key.startswith(mark)}, own


def _strings(target: str) -> set[str]:
    """Return the options of a recipe, or of the one of a `run.toml`, that are strings."""
    name = read_toml(Path(target)).get("target") if target.endswith(".toml") else target
    fields = RECIPES[name].options.model_fields if isinstance(name, str) and name in RECIPES else {}
    return {option for option, field in fields.items() if field.annotation is str}


def flag(option: str) -> str:
    """Return how an estimator's option is given."""
    return f"--{option}" if option in FLAGS else f"--set estimator.{option}"


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def find_recipe(name: str) -> Recipe:
    """Return a built-in recipe by name."""
    if name not in RECIPES:
        raise UsageError(
            f"no recipe is called {name!r}. {nearest(name, RECIPES)} For your own experiment give path/to/file.py:name."
        )
    return RECIPES[name]


def is_file_target(target: str) -> bool:
    """Whether a target is `path/to/file.py:name`."""
    path, _, name = target.rpartition(":")
    return target.endswith(".py") or (path.endswith(".py") and bool(name))


def resolve(target: str, given: dict[str, Any], options: dict[str, Any]) -> RunConfig:
    """Check the target and its options; arguments that were given stand above those of a `run.toml`."""
    base: dict[str, Any] = read_toml(Path(target)) if target.endswith(".toml") else {"target": target}
    for table in ("estimator", "optimizer", "options"):
        if not isinstance(base.setdefault(table, {}), dict):
            raise UsageError(f"{target}: {table} must be a table, got {base[table]!r}.")
    chosen = given["estimator"]["name"]
    if chosen in ESTIMATORS:  # what an earlier run gave to another estimator is left behind
        others = set(EstimatorConfig.model_fields) - set(ESTIMATORS[chosen])
        base["estimator"] = {key: item for key, item in base["estimator"].items() if key not in others}
    for table in ("estimator", "optimizer"):
        base[table] = {**base[table], **{key: item for key, item in given[table].items() if item is not None}}
    base |= {key: given[key] for key in ("steps", "seed") if given[key] is not None}
    base["options"] = {**base["options"], **options}
    config = validate(RunConfig, base, "")
    _move_lr(config)
    config.options = check_target(config.target, config.options)
    _check_names(config)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}. Give the run.toml of an earlier run, or a recipe's name."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} must be TOML: {error}.") from error


def _move_lr(config: RunConfig) -> None:
    """Give the learning rate to a recipe that has an option for it, unless it is that of an optimizer that was named."""
    lr = config.optimizer.lr if config.optimizer.name is None else None
    if lr is not None and not is_file_target(config.target) and "lr" in find_recipe(config.target).options.model_fields:
        config.options["lr"], config.optimizer.lr = lr, None


def check_target(target: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a target, a recipe's with its defaults; raise if it can't be one."""
    if not is_file_target(target):
        checked: dict[str, Any] = validate(find_recipe(target).options, options, f"{target}: ").model_dump()
        return checked
    path, _, name = target.rpartition(":")
    if not path:
        raise UsageError(f"{target} must say which name of the file to take: {target}:NAME")
    if not Path(path).is_file():
        raise UsageError(f"no file {path}. A target is a recipe ({', '.join(RECIPES)}) or path/to/file.py:name.")
    if not name.isidentifier():
        raise UsageError(f"{target}: {name!r} is no Python name. A target is path/to/file.py:name.")
    return options


def _check_names(config: RunConfig) -> None:
    name = config.estimator.name
    if name is not None and name not in ESTIMATORS:
        raise UsageError(f"no estimator is called {name!r}. {nearest(name, ESTIMATORS)}")
    if name is not None:
        taken = ESTIMATORS[name]
        wrong = [key for key, item in config.estimator if key != "name" and item is not None and key not in taken]
        if wrong:
            raise UsageError(f"{name} takes no {flag(wrong[0])}. It takes {', '.join(map(flag, taken))}.")
    window, horizon = config.estimator.window, config.estimator.horizon
    if window and horizon and horizon % window:
        near = nearest_multiple(horizon, window)
        raise UsageError(
            f"--horizon must be a multiple of --window, got {horizon} and {window}. The nearest is {near}."
        )
    chosen = config.optimizer.name
    if chosen is not None and chosen not in OPTIMIZERS:
        raise UsageError(f"no optimizer is called {chosen!r}. {nearest(chosen, OPTIMIZERS)}")


def validate(model: type[Any], fields: dict[str, Any], where: str) -> Any:
    """Build a strict model; its first error becomes one sentence that names the nearest known option."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        *tables, key = map(str, first["loc"])
        name = ".".join([*tables, key])
        if first["type"] == "extra_forbidden":
            for table in tables:
                model = model.model_fields[table].annotation
            raise UsageError(f"{where}there is no option {name!r}. {nearest(key, model.model_fields)}") from error
        if first["type"] == "missing":
            raise UsageError(f"{where}{name} is missing.") from error
        says = first["msg"].removeprefix("Value error, ")
        says = says[0].lower() + says[1:]
        raise UsageError(f"{where}{name}: {says}, got {first['input']!r}.") from error
