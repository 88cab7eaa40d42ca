"""What `unrollax unfold --search` is to look through, checked without JAX."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from unrollax._errors import nearest
from unrollax.cli._config import UsageError, is_file_target, parse_value
from unrollax.cli._unfold_config import UnfoldConfig, checked
from unrollax.recipes._unfold_options import Settings

SEARCHED = ("algorithm", "period", "plan", "batch", "lr", "loss", "init")  # settings that leave the task what it is
MORE = ("depth", "steps")  # is better, and only costs more
AROUND = 10.0  # times the usual learning rate either side, unless something is said
MARK = "set."  # before an option of the target
EXAMPLE = "For example --range lr=0.001:0.1 or --range plan=one-shot,incremental"


class Choices(NamedTuple):
    """Values to choose from."""

    values: tuple[Any, ...]

    def __contains__(self, item: object) -> bool:
        return item in self.values

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be right for all to be."""
        return self.values


class Interval(NamedTuple):
    """Numbers from the lowest to the highest one, both among them; whole ones if both are."""

    low: float
    high: float

    def __contains__(self, item: object) -> bool:
        return isinstance(item, (int, float)) and self.low <= item <= self.high

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be right for all to be."""
        return self.low, self.high

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def log(self) -> bool:
        """Whether equal ratios count as equally far."""
        return 0 < 10 * self.low <= self.high


Ranges: TypeAlias = Mapping[str, Choices | Interval]


class Search(NamedTuple):
    """How many settings are tried, and which."""

    trials: int
    ranges: Ranges


def search_of(trials: int | None, texts: Sequence[str], config: UnfoldConfig) -> Search | None:
    """Return the search that the command line asks for, or none.

    Raises:
        UsageError: a range is none, of nothing that can be searched, or of what can't be set; or optuna isn't installed.
    """
    if trials is None:
        if texts:
            raise UsageError(f"--range is what a search looks through, got --range {texts[0]}. Add --search 20")
        return None
    ranges = dict(_parse(text, config) for text in texts)
    if len(ranges) < len(texts):
        raise UsageError("--range must name each setting once.")
    if not ranges:
        if is_file_target(config.target):
            raise UsageError(f"--search of {config.target} must be told what to try: add --range set.OPTION=LOW:HIGH")
        lr = config.settings.lr
        ranges = {"lr": Interval(lr / AROUND, lr * AROUND)}
    for name, found in ranges.items():
        for end in found.ends:
            with_values(config, {name: end})
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("--search needs optuna. Install it with: pip install 'unrollax[search]'")
    return Search(trials, ranges)


def with_values(config: UnfoldConfig, values: Mapping[str, Any]) -> UnfoldConfig:
    """Return a configuration with other settings, or options by `set.` and their name.

    Raises:
        UsageError: that can't be set.
    """
    whole = config.model_dump()
    for name, item in values.items():
        table = "options" if name.startswith(MARK) else "settings"
        whole[table][name.removeprefix(MARK)] = item
    return checked(whole)


def usual(config: UnfoldConfig, ranges: Ranges) -> dict[str, Any]:
    """Return what a configuration has for the settings that are searched, where that is in their range."""
    options = {MARK + name: item for name, item in config.options.items()}
    has = {**config.settings.model_dump(), **options}
    return {name: has[name] for name, found in ranges.items() if name in has and has[name] in found}


def size(ranges: Ranges) -> float:
    """Return how many different settings there are."""
    return math.prod(
        len(found.values) if isinstance(found, Choices) else found.high - found.low + 1 if found.whole else math.inf
        for found in ranges.values()
    )


def _parse(text: str, config: UnfoldConfig) -> tuple[str, Choices | Interval]:
    name, equals, says = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--range must be NAME=LOW:HIGH or NAME=CHOICE,CHOICE, got {text!r}. {EXAMPLE}")
    _check_name(name, config)
    real = not name.startswith(MARK) and Settings.model_fields[name].annotation is float
    if "," in says:
        return name, Choices(tuple(dict.fromkeys(_value(part.strip(), real) for part in says.split(","))))
    low, colon, high = says.partition(":")
    if not colon:
        raise UsageError(f"--range {name} must be LOW:HIGH or CHOICE,CHOICE, got {says!r}. {EXAMPLE}")
    ends = [_value(part, real) for part in (low, high)]
    if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends) or not ends[0] < ends[1]:
        raise UsageError(f"--range {name} must be from a number to a larger one, got {says!r}. {EXAMPLE}")
    return name, Interval(*ends)


def _check_name(name: str, config: UnfoldConfig) -> None:
    own = is_file_target(config.target)
    if name in MORE:
        raise UsageError(f"{name} can't be searched: errors would fall with it, and cost rise. Set it with --{name}.")
    if own and not name.startswith(MARK):
        raise UsageError(f"{config.target} sets all by itself, got --range {name}. Search its options: set.OPTION.")
    if not own and name.startswith(MARK):
        raise UsageError(
            f"{name} can't be searched: the options of {config.target} say which problems there are, and errors on "
            "different ones can't be compared."
        )
    if not own and name not in SEARCHED:
        raise UsageError(f"there is no setting {name!r} to search. {nearest(name, SEARCHED)}")


def _value(text: str, real: bool) -> Any:
    """Return a value as --set has it; `none` for what has no value, such as the period of steps that don't repeat."""
    found = None if text == "none" else parse_value(text)
    return float(found) if real and isinstance(found, int) else found
