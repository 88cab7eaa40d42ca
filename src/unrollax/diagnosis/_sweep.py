"""Sets of estimators to compare, and what they are called."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from unrollax._errors import InvalidArgument
from unrollax._tree import is_numeric

HUMPS = re.compile(r"(?<=[a-z]{3})(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")


def name_for(estimator: Any) -> str:
    """Return how tables call an estimator: as the command line does, with its window and std where it has them.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: 1.0, step=lambda p, s, x, k: (p * s, p * s))
        >>> name_for(ux.PES(decay, std=0.1, window=20, horizon=100)), name_for(ux.BPTT(decay, 100))
        ('pes:20 std=0.1', 'bptt')
    """
    name = HUMPS.sub("-", type(estimator).__name__).lower()
    window, std = getattr(estimator, "window", None), getattr(estimator, "std", None)
    whole = window is None or window == getattr(estimator, "horizon", None)
    number = is_numeric(std) and np.ndim(cast(Any, std)) == 0
    return name + ("" if whole else f":{window}") + (f" std={float(cast(Any, std)):g}" if number else "")


def named(owner: str, estimators: Any) -> dict[str, Any]:
    """Return estimators by name; raise unless each is one and there is one."""
    if isinstance(estimators, Mapping):
        found = dict(estimators)
    elif isinstance(estimators, Sequence) and not isinstance(estimators, str):
        found = {}
        for estimator in estimators:
            name = name_for(estimator)
            same = sum(known.partition(" #")[0] == name for known in found)
            found[f"{name} #{same + 1}" if same else name] = estimator
    else:
        found = {name_for(estimators): estimators}
    if not found:
        raise InvalidArgument(f"{owner}: estimators must hold at least one, got none. Pass a dict or a list of them.")
    for name, estimator in found.items():
        methods = all(callable(getattr(estimator, part, None)) for part in ("init", "estimate"))
        if isinstance(estimator, type) or not methods:
            kind = f"the class {estimator.__name__}" if isinstance(estimator, type) else type(estimator).__name__
            raise InvalidArgument(
                f"{owner}: estimators must have init and estimate, got {kind} for {name!r}. Pass estimators such as "
                "unrollax.PES(system, ...), by name or in a list."
            )
    return {str(name): estimator for name, estimator in found.items()}


def sweep(estimator: Any, *, window: Iterable[int] = (), std: Iterable[Any] = ()) -> dict[str, Any]:
    """Return an estimator with other windows and standard deviations, each combination by its name.

    Args:
        estimator: a built-in estimator, or any dataclass with these fields.
        window: steps of a call, each a divisor of the horizon; none leaves it as it is.
        std: standard deviations of the perturbation; none leaves it as it is.

    Raises:
        InvalidArgument: the estimator lacks a field, or refuses a value of it.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: 1.0, step=lambda p, s, x, k: (p * s, p * s))
        >>> list(ux.sweep(ux.PES(decay, std=0.1, window=5, horizon=20), window=(5, 10), std=(0.1, 0.3)))
        ['pes:5 std=0.1', 'pes:5 std=0.3', 'pes:10 std=0.1', 'pes:10 std=0.3']
    """
    values = {"window": tuple(window), "std": tuple(std)}
    swept = {name: choices for name, choices in values.items() if choices}
    fields = {field.name for field in dataclasses.fields(estimator)} if dataclasses.is_dataclass(estimator) else set()
    for name in swept:
        if name not in fields:
            known = ", ".join(sorted(fields & values.keys())) or "none"
            raise InvalidArgument(
                f"sweep: {type(estimator).__name__} must have a field {name} to be swept over, got one without. "
                f"Those that it has: {known}."
            )
    found = [
        dataclasses.replace(estimator, **dict(zip(swept, choice, strict=True)))
        for choice in itertools.product(*swept.values())
    ]
    return named("sweep", found)
