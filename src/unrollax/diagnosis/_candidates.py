"""What `compare` is given, made ready: horizons, one horizon of data, the system, the distance of an update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, check_choice, check_counts, check_number
from unrollax._errors import InvalidArgument, StructureError, nearest_multiple
from unrollax._system import Repeat, as_system, cut
from unrollax._tree import describe, is_numeric, leaves_with_names, ravel
from unrollax._types import Data, Params, System
from unrollax.diagnosis._costs import anywhere

OWNER = "compare"
FEWEST = 4  # samples
SCALE = 0.01  # of the parameters' root mean square, where no estimator has a std


def check_options(samples: Any, tolerance: Any, unit: Any, scale: Any) -> None:
    """Raise unless these arguments of `compare` can be used."""
    check_counts(OWNER, samples=samples)
    if samples < FEWEST:
        raise InvalidArgument(
            f"{OWNER}: samples must be at least {FEWEST}, got samples={samples}. They give a variance."
        )
    check_number(OWNER, "tolerance", tolerance, POSITIVE, used=True)
    check_choice(OWNER, "unit", unit, ("seconds", "steps"))
    if scale is not None:
        check_number(OWNER, "scale", scale, POSITIVE, used=True)


def horizon_of(candidates: dict[str, Any], horizon: int | None) -> int:
    """Return the steps of a sample; raise unless every estimator resets after as many and its windows fill them."""
    theirs = {name: getattr(estimator, "horizon", None) for name, estimator in candidates.items()}
    known = {name: int(steps) for name, steps in theirs.items() if steps is not None}
    if horizon is None and not known:
        raise InvalidArgument(f"{OWNER}: no estimator has a horizon to take the steps of a sample from. Pass horizon=.")
    steps = max(known.values()) if horizon is None else horizon
    check_counts(OWNER, horizon=steps)
    for name, own in known.items():
        if own != steps:
            raise InvalidArgument(
                f"{OWNER}: all estimators must have the same horizon, got {own} for {name} against {steps}. They estimate "
                f"the same gradient only if they reset alike: rebuild it with horizon={steps}."
            )
    for name, estimator in candidates.items():
        window = getattr(estimator, "window", None)
        if window and steps % window:
            raise InvalidArgument(
                f"{OWNER}: horizon must be a multiple of each window, got horizon={steps}, window={window} for {name}. "
                f"The nearest is horizon={nearest_multiple(steps, window)}."
            )
    return int(steps)


def one_horizon(data: Any, horizon: int) -> Data:
    """Return the first `horizon` steps of data."""
    if callable(data):
        data = data(jnp.int32(0), horizon)
    if isinstance(data, Iterator):
        raise StructureError(
            f"{OWNER}: data must be one horizon of data or a stream data(t, steps), got {type(data).__name__}. Stack its "
            "windows along their first axis."
        )
    for name, leaf in leaves_with_names(data, is_leaf=lambda leaf: isinstance(leaf, Repeat)):
        if isinstance(leaf, Repeat):
            continue
        if not is_numeric(leaf) and not hasattr(leaf, "shape"):
            raise StructureError(
                f"{OWNER}: data leaf {name} must be an array, got {describe(leaf)}. Pass one horizon of data, or a stream "
                "data(t, steps)."
            )
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] < horizon:
            raise StructureError(
                f"{OWNER}: data leaf {name} must be time-major with at least {horizon} steps on its first axis, got "
                f"{describe(leaf)}. Pass more data, a smaller horizon=, or repeat(x) for data that every step sees."
            )
    return cut(data, 0, horizon)


def system_of(candidates: dict[str, Any], reference: Any) -> System | None:
    """Return the first estimator's system, whose exact gradient is the reference; `None` if none is needed."""
    for estimator in candidates.values():
        systems = anywhere(estimator, "system")
        if systems:
            return as_system(OWNER, systems[0])
    if isinstance(reference, str):
        raise InvalidArgument(
            f"{OWNER}: an estimator must have a field system to take the exact gradient of, got none. Pass reference=, a "
            "tree like params."
        )
    return None


def scale_of(candidates: dict[str, Any], params: Params) -> float:
    """Return the distance of an update: the median std, or a share of the parameters' size where there is none."""
    found = []
    for estimator in candidates.values():
        for std in anywhere(estimator, "std"):
            now = std.schedule(0) if hasattr(std, "schedule") else std
            found += [float(np.mean(leaf)) for leaf in jax.tree.leaves(now) if is_numeric(leaf)]
    if found:
        return float(np.median(found))
    size = float(np.sqrt(np.mean(np.square(np.asarray(ravel(params)[0], np.float64)))))
    return SCALE * (size or 1.0)
