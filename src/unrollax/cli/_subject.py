"""What `diagnose` and `compare` look at: a system, its parameters and one horizon of data, found in a target."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument
from unrollax._experiment import Episodes, Experiment
from unrollax._system import Repeat, cut, is_repeat
from unrollax._tree import describe, is_numeric
from unrollax._types import Data, GradientEstimator, Params, System
from unrollax.cli._config import is_file_target
from unrollax.cli._load import from_file, from_recipe, is_system, named
from unrollax.cli._study import StudyConfig


class Subject(NamedTuple):
    """A system, parameters, and the data of the `horizon` steps from its reset; the estimator that the target has for it.

    Where the target is an experiment, which is what `unrollax train` takes, that is there too.
    """

    system: System
    params: Params
    data: Data
    horizon: int
    estimator: GradientEstimator | None
    experiment: Experiment | None = None


def find_subject(config: StudyConfig) -> Subject:
    """Load a target.

    Raises:
        InvalidArgument: it is neither an experiment nor a system, or its parameters, its horizon or enough data are missing.
    """
    if not is_file_target(config.target):
        return _of_experiment(config, from_recipe(config))
    module, found = from_file(config)
    if isinstance(found, Experiment):
        return _of_experiment(config, found)
    if not is_system(found):
        raise InvalidArgument(
            f"{config.target} must be a system (with init and step), an unrollax.Experiment, or a function that returns one "
            f"of them, got {type(found).__name__}."
        )
    estimator = _estimator_of(module, found)
    data = named(module, config.data) if config.data else getattr(module, "data", None)
    window, horizon = _window(config, data, estimator)
    return Subject(found, _params_of(config, module, found), window, horizon, estimator)


def _of_experiment(config: StudyConfig, experiment: Experiment) -> Subject:
    for option, name in (("--params", config.params), ("--data", config.data)):
        if name is not None:
            raise InvalidArgument(f"{option} is for a system alone: the experiment {config.target} has its own.")
    window, horizon = _window(config, experiment.data, experiment.estimator)
    return Subject(experiment.system, experiment.params, window, horizon, experiment.estimator, experiment)


def _params_of(config: StudyConfig, module: ModuleType, system: Any) -> Params:
    """Return the parameters that the file names, or those that its function or the system makes from a key."""
    found = named(module, config.params) if config.params else getattr(module, "params", None)
    if found is None:
        found = getattr(system, "params", None)
    if found is None:
        raise InvalidArgument(
            f"{config.target} needs parameters, and its file has none. Add params = ..., a tree of arrays or a function of a "
            "key, or name them with --params."
        )
    is_function = callable(found) and jax.tree_util.all_leaves([found])
    return found(jax.random.key(config.seed)) if is_function else found


def _estimator_of(module: ModuleType, system: Any) -> GradientEstimator | None:
    """Return the file's estimator: one of this system rather than another's, one that is called so rather than not."""

    def rank(item: tuple[str, Any]) -> tuple[bool, bool]:
        return getattr(item[1], "system", None) is not system, item[0] != "estimator"

    estimators = [
        (name, each)
        for name, each in vars(module).items()
        if not isinstance(each, type) and all(callable(getattr(each, method, None)) for method in ("init", "estimate"))
    ]
    return min(estimators, key=rank)[1] if estimators else None


def _window(config: StudyConfig, data: Any, estimator: Any) -> tuple[Data, int]:
    """Return one horizon of data, and its steps.

    The horizon is the one that was asked for, or that of the data where they end, or that of the estimator, or that of one
    window of data.
    """
    own = getattr(estimator, "horizon", None)
    if data is None or isinstance(data, Repeat):
        return data, _steps(config, own)
    if _is_stream(data):
        horizon = _steps(config, data.horizon if isinstance(data, Episodes) else own)
        return data(jnp.int32(0), horizon), horizon
    if callable(data):
        return _join(map(data, itertools.count()), config.horizon or own)
    if isinstance(data, Iterator) or (isinstance(data, list) and not (data and _is_number(data[0]))):
        return _join(data, config.horizon or own)
    leaves = np.asarray(data) if isinstance(data, list) else data
    length = _length(leaves)
    horizon = config.horizon or length or _steps(config, own)
    if length and horizon > length:
        raise InvalidArgument(
            f"the data must have a step for each of the horizon, got {length} for --horizon {horizon}."
        )
    return cut(leaves, 0, horizon), horizon


def _steps(config: StudyConfig, own: int | None) -> int:
    if config.horizon or own:
        return int(config.horizon or own or 0)
    raise InvalidArgument(
        f"{config.target} needs a horizon, as neither its data nor an estimator in the file end. Say how many steps there "
        "are from a reset to the end, with --horizon."
    )


def _is_stream(data: Any) -> bool:
    """Whether data are `data(t, steps)`, not `data(number of the window)`."""
    if isinstance(data, Episodes):
        return True
    if not callable(data):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(data).parameters.values()
    return sum(each.kind in kinds and each.default is each.empty for each in parameters) >= 2


def _is_number(item: Any) -> bool:
    return is_numeric(item) and jnp.ndim(item) == 0


def _length(data: Data) -> int | None:
    """Return the steps of leaves `[steps, ...]`, or `None` where every step sees the same."""
    leaves = [leaf for leaf in jax.tree.leaves(data, is_leaf=is_repeat) if not is_repeat(leaf)]
    for leaf in leaves:
        if not is_numeric(leaf) or jnp.ndim(leaf) == 0:
            raise InvalidArgument(
                f"the data must be arrays with one row for each step, got a leaf {describe(leaf)}. Use unrollax.repeat(x) "
                "for what every step sees."
            )
    return int(jnp.shape(leaves[0])[0]) if leaves else None


def _join(windows: Iterable[Data], horizon: int | None) -> tuple[Data, int]:
    """Join windows until they fill the horizon; without one, the first window is the horizon."""
    taken: list[Data] = []
    steps = 0
    for window in windows:
        length = _length(window)
        if length is None:
            raise InvalidArgument("a window of the data must have a leaf with one row for each step, got none.")
        taken.append(window)
        steps += length
        if horizon is None or steps >= horizon:
            break
    if not taken or (horizon and steps < horizon):
        raise InvalidArgument(f"the data's windows must fill the horizon of {horizon} steps, got {steps} in all.")
    return cut(_concatenate(taken), 0, horizon or steps), horizon or steps


def _concatenate(windows: list[Data]) -> Data:
    def join(first: Any, *others: Any) -> Any:
        return first if is_repeat(first) else jnp.concatenate([jnp.asarray(each) for each in (first, *others)])

    return jax.tree.map(join, *windows, is_leaf=is_repeat)
