"""From arguments to a checked, repeatable configuration, without JAX."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from unrollax._errors import nearest, nearest_multiple
from unrollax.cli._names import ALL, CURVATURE, LAYERWISE, OPTIMIZERS, EstimatorConfig, OptimizerConfig, Strict, flag
from unrollax.recipes._options import RECIPES, Recipe


class UsageError(Exception):
    """An argument that can't be used."""


class RunConfig(Strict):
    """All that `run.toml` holds."""

    target: str
    steps: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    estimator: EstimatorConfig = EstimatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    options: dict[str, Any] = Field(default_factory=dict)

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
        item = parse_value(text)
        options[key.strip()] = text if key.strip() in strings and not isinstance(item, str) else item
    mark = "estimator."
    own = {key.removeprefix(mark): item for key, item in options.items() if key.startswith(mark)}
    return {key: item for key, item in options.items() if not key.startswith(mark)}, own


def _strings(target: str) -> set[str]:
    """Return the options of a recipe, or of the one of a `run.toml`, that are strings."""
    name = read_toml(Path(target)).get("target") if target.endswith(".toml") else target
    fields = RECIPES[name].options.model_fields if isinstance(name, str) and name in RECIPES else {}
    return {option for option, field in fields.items() if field.annotation is str}


def parse_value(text: str) -> Any:
    """Return a text as TOML has it, or as it stands."""
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
    if base.get("command") == "unfold":
        raise UsageError(
            f"{target} must be the run.toml of unrollax train, got that of unfold. Run: unrollax unfold {target}"
        )
    for table in ("estimator", "optimizer", "options"):
        if not isinstance(base.setdefault(table, {}), dict):
            raise UsageError(f"{target}: {table} must be a table, got {base[table]!r}.")
    chosen = given["estimator"]["name"]
    if chosen in ALL:  # what an earlier run gave to another estimator is left behind
        others = set(EstimatorConfig.model_fields) - set(ALL[chosen])
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
    """Give the learning rate to a recipe that has an option for it, unless it is that of an optimizer that was named.

    One for gradients is none for the directions of LocoProp, and the other way round.
    """
    lr = config.optimizer.lr if config.optimizer.name is None else None
    if lr is None or is_file_target(config.target):
        return
    recipe, name = find_recipe(config.target), config.estimator.name
    if "lr" in recipe.options.model_fields and (name is None or (name in LAYERWISE) == recipe.layerwise):
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
    if name is not None and name not in ALL:
        raise UsageError(f"no estimator is called {name!r}. {nearest(name, ALL)}")
    if name is not None:
        taken = ALL[name]
        wrong = [key for key, item in config.estimator if key != "name" and item is not None and key not in taken]
        if wrong:
            raise UsageError(f"{name} takes no {flag(wrong[0])}. It takes {', '.join(map(flag, taken))}.")
    _check_inner(config.estimator)
    window, horizon = config.estimator.window, config.estimator.horizon
    if window and horizon and horizon % window:
        near = nearest_multiple(horizon, window)
        raise UsageError(
            f"--horizon must be a multiple of --window, got {horizon} and {window}. The nearest is {near}."
        )
    chosen = config.optimizer.name
    if chosen is not None and chosen not in OPTIMIZERS:
        raise UsageError(f"no optimizer is called {chosen!r}. {nearest(chosen, OPTIMIZERS)}")


def _check_inner(estimator: EstimatorConfig) -> None:
    """Answer an inner solver of LocoProp that there is not, and options that it doesn't take."""
    inner = estimator.inner
    known = ("curvature", "spectral", *OPTIMIZERS)
    if inner is not None and inner not in known:
        raise UsageError(f"no inner solver is called {inner!r}. {nearest(inner, known)}")
    given = {key for key, item in estimator if item is not None}
    wrong = sorted(given & ({"inner_lr"} if inner == "curvature" else set(CURVATURE) if inner else set()))
    if wrong:
        takes = ", ".join(map(flag, CURVATURE)) if inner == "curvature" else flag("inner_lr")
        raise UsageError(f"inner={inner} takes no {flag(wrong[0])}. It takes {takes}.")
    if inner == "spectral" and estimator.inner_lr is None:
        raise UsageError(f"inner=spectral needs {flag('inner_lr')}, the rate of its steps. For example 0.05.")


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
        own = first["type"] == "value_error"  # ours, which may begin with a path, and say itself what it got
        says = str(first["ctx"]["error"]).rstrip(".") if own else first["msg"][0].lower() + first["msg"][1:]
        got = "" if ", got " in says else f", got {first['input']!r}"
        raise UsageError(f"{where}{name}: {says}{got}.") from error
