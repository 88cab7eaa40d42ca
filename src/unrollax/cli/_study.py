"""What `unrollax diagnose` and `unrollax compare` are asked, checked without JAX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from unrollax._errors import nearest
from unrollax.cli._config import UsageError, check_target, is_file_target, validate
from unrollax.cli._names import ESTIMATORS, LAYERWISE, EstimatorConfig, flag

Number = TypeVar("Number", int, float)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)  # a wrong name need not wait for them


class StudyConfig(_Strict):
    """A target, and what of it is looked at; what is `None` is found in it."""

    target: str
    horizon: int | None = Field(None, ge=1)
    params: str | None = None
    data: str | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    options: dict[str, Any] = {}
    steps: int | None = None  # of a run: part of what a target is called with


class Output(NamedTuple):
    """What becomes of a result: the command that repeats it, where it is written, and what is printed."""

    repeat: str
    out: Path | None
    as_json: bool
    quiet: bool


class CompareConfig(_Strict):
    """How a comparison is made; what is `None` is left to `unrollax.compare`."""

    samples: int | None = Field(None, ge=4)
    tolerance: float | None = Field(None, gt=0)
    unit: Literal["seconds", "steps"] | None = None
    reference: Literal["auto", "bptt", "smoothed"] | None = None


def study(**given: Any) -> StudyConfig:
    """Check what a command was told of its target."""
    config: StudyConfig = validate(StudyConfig, _present(given), "")
    config.options = check_target(config.target, config.options)
    for option, name in (("--params", config.params), ("--data", config.data)):
        if name is not None and not is_file_target(config.target):
            raise UsageError(f"{option} is for a system in a file of your own: a recipe has its own.")
        if name is not None and not name.isidentifier():
            raise UsageError(f"{option} must be a name in the file, got {name!r}.")
    return config


def comparison(**given: Any) -> CompareConfig:
    """Check how a comparison is to be made."""
    config: CompareConfig = validate(CompareConfig, _present(given), "--")
    return config


def _present(given: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in given.items() if item is not None}


def parse_estimators(
    specs: str, windows: str | None, widths: str | None, given: dict[str, Any], horizon: int | None
) -> list[EstimatorConfig]:
    """Return the estimators that a comparison is asked for.

    Args:
        specs: names with or without their window, `bptt,tbptt:20,pes`.
        windows: windows to try, `5,10`, for each estimator that takes one and has none of its own.
        widths: standard deviations to try, `0.01,0.1`, for each that takes one.
        given: further options, for each that takes them.
        horizon: the horizon, where it is known.

    Raises:
        UsageError: there is no such estimator, a number can't be used, or nothing takes an option that was given.

    Example:
        >>> [(each.name, each.window) for each in parse_estimators("bptt,tbptt:4,es", "5,10", None, {}, None)]
        [('bptt', None), ('tbptt', 4), ('es', 5), ('es', 10)]
    """
    sweep = _numbers("--window", windows, int)
    stds = _numbers("--std", widths, float)
    used: set[str] = set()
    made: list[EstimatorConfig] = []
    for spec in filter(None, (part.strip() for part in specs.split(","))):
        name, own = _parse_spec(spec)
        takes = ESTIMATORS[name]
        free = "window" in takes and own is None
        used |= set(takes) - (set() if free else {"window"})
        for window in _each(sweep) if free else [own]:
            for std in _each(stds) if "std" in takes else [None]:
                more = {key: item for key, item in given.items() if key in takes}
                made.append(
                    validate(EstimatorConfig, {**more, "name": name, "window": window, "std": std}, "estimator.")
                )
    if not made:
        raise UsageError("--estimators must name one or more, such as bptt,tbptt:20,pes.")
    _check_used({"window": sweep, "std": stds, **given}, used, specs)
    check_windows(made, horizon)
    return [each for i, each in enumerate(made) if each not in made[:i]]


def check_windows(estimators: Iterable[EstimatorConfig], horizon: int | None) -> None:
    """Refuse windows that don't fill a horizon."""
    for each in estimators if horizon else ():
        if each.window and horizon and horizon % each.window:
            near = " or ".join(map(str, nearest_divisors(horizon, each.window)))
            raise UsageError(
                f"{each.name}:{each.window}: a window must divide the horizon of {horizon} steps. The nearest is {near}."
            )


def nearest_divisors(number: int, near: int) -> list[int]:
    """Return the divisor of a number below another one, and the one above it.

    Example:
        >>> nearest_divisors(100, 30)
        [25, 50]
    """
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    below, above = [each for each in divisors if each <= near], [each for each in divisors if each > near]
    return below[-1:] + above[:1]


def _parse_spec(spec: str) -> tuple[str, int | None]:
    name, colon, window = spec.partition(":")
    if name in LAYERWISE:
        raise UsageError(
            f"{name} can't be compared: its directions are no gradients. See how it trains: "
            f"unrollax train TARGET --estimator {name}"
        )
    if name not in ESTIMATORS:
        raise UsageError(f"no estimator is called {name!r}. {nearest(name, ESTIMATORS)}")
    if not colon:
        return name, None
    if not window.isdecimal() or not int(window):
        raise UsageError(f"{spec}: after the colon stands a window, a positive whole number, got {window!r}.")
    if "window" not in ESTIMATORS[name]:
        raise UsageError(f"{spec}: {name} takes no window. It takes {', '.join(map(flag, ESTIMATORS[name]))}.")
    return name, int(window)


def _numbers(option: str, text: str | None, kind: type[Number]) -> list[Number]:
    try:
        numbers = [kind(part) for part in text.split(",")] if text is not None else []
        if all(0 < number < float("inf") for number in numbers):
            return numbers
    except ValueError:
        pass
    example = "5,10,20" if kind is int else "0.01,0.1"
    raise UsageError(f"{option} must be positive numbers such as {example}, got {text!r}.")


def _each(numbers: list[Number]) -> list[Number | None]:
    """Return the numbers to try, or that none was given."""
    return list[Number | None](numbers) or [None]


def _check_used(options: dict[str, Any], used: set[str], specs: str) -> None:
    wrong = [key for key, item in options.items() if item not in (None, []) and key not in used]
    if wrong:
        known: Sequence[str] = list(EstimatorConfig.model_fields)
        says = f"None of {specs} takes it." if wrong[0] in known else nearest(wrong[0], known)
        raise UsageError(f"{flag(wrong[0])} has no use. {says}")
