"""From the arguments of `unrollax unfold` to a checked, repeatable configuration, without JAX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from unrollax._errors import nearest
from unrollax.cli._config import UsageError, check_target, is_file_target, read_toml, validate
from unrollax.cli._names import Strict
from unrollax.recipes._unfold_options import UNFOLDINGS, Settings


class UnfoldConfig(Strict):
    """All that `run.toml` of an unfolding holds."""

    command: Literal["unfold"] = "unfold"
    target: str
    seed: int = Field(0, ge=0, lt=2**32)
    settings: Settings = Settings()
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The updates, as other targets have them."""
        return self.settings.steps


def resolve(target: str, given: dict[str, Any], seed: int | None, options: dict[str, Any]) -> UnfoldConfig:
    """Check a target and its options; arguments that were given stand above those of a `run.toml`."""
    base: dict[str, Any] = read_toml(Path(target)) if target.endswith(".toml") else {"target": target}
    if target.endswith(".toml") and base.get("command") != "unfold":
        raise UsageError(
            f"{target} must be the run.toml of unrollax unfold, got another one. Run it with: unrollax train"
        )
    given = {name: item for name, item in given.items() if item is not None}
    if given.get("depth") == 0:  # which stands for the target's own depth in a file
        raise UsageError("--depth must be 1 or more, got 0. Leave it out for the target's own.")
    base["settings"] = {**base.get("settings", {}), **given}
    base["options"] = {**base.get("options", {}), **options}
    base |= {} if seed is None else {"seed": seed}
    if is_file_target(str(base.get("target"))) and given:
        raise UsageError(f"{base['target']} sets all by itself, got --{next(iter(given))}. Set it in the file.")
    return checked(base)


def checked(whole: dict[str, Any]) -> UnfoldConfig:
    """Return a configuration, a built-in unfolding's with what was left to it.

    Raises:
        UsageError: it has what can't be set.
    """
    config: UnfoldConfig = validate(UnfoldConfig, whole, "")
    if is_file_target(config.target):
        check_target(config.target, config.options)
        return config
    if config.target not in UNFOLDINGS:
        raise UsageError(
            f"no unfolding is called {config.target!r}. {nearest(config.target, UNFOLDINGS)} For your own give "
            "path/to/file.py:name."
        )
    return _whole(config)


def _whole(config: UnfoldConfig) -> UnfoldConfig:
    """Return a built-in unfolding with what was left to it."""
    kind: Any = UNFOLDINGS[config.target].options
    checked = validate(kind, config.options, f"{config.target}: ").model_dump()
    settings = config.settings
    name, depth = settings.algorithm or kind.algorithms[0], settings.depth or kind.depth
    if name not in kind.algorithms:
        raise UsageError(f"--algorithm of {config.target} must be {' or '.join(kind.algorithms)}, got {name}.")
    if settings.period and settings.period > depth:
        raise UsageError(f"--period must be at most --depth, got {settings.period} for {depth}.")
    whole = settings.model_copy(update={"algorithm": name, "depth": depth})
    return config.model_copy(update={"settings": whole, "options": checked})
