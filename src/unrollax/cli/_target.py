"""From a checked configuration to an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from unrollax import estimators
from unrollax._errors import InvalidArgument
from unrollax._experiment import Episodes, Experiment
from unrollax._optimizer import optimizer
from unrollax._system import rows_of
from unrollax._types import GradientEstimator
from unrollax.cli._config import RunConfig, is_file_target
from unrollax.cli._layerwise import CLASSES as LAYERED
from unrollax.cli._layerwise import by_batches, make_layerwise, options_of, whole_steps
from unrollax.cli._load import from_file, from_recipe
from unrollax.cli._names import ALL, ESTIMATORS, LAYERWISE, EstimatorConfig, OptimizerConfig, flag

CLASSES: dict[str, Any] = {
    "bptt": estimators.BPTT,
    "tbptt": estimators.TBPTT,
    "randomized-tbptt": estimators.RandomizedTBPTT,
    "rtrl": estimators.RTRL,
    "snap": estimators.SnAp,
    "uoro": estimators.UORO,
    "forward-gradient": estimators.ForwardGradient,
    "es": estimators.ES,
    "full-es": estimators.FullES,
    "pes": estimators.PES,
    "nres": estimators.NRES,
    "es-single": estimators.ESSingle,
    "guided-es": estimators.GuidedES,
    "implicit": estimators.Implicit,
}
WHOLE = ("bptt", "full-es")  # a call is a horizon
DEFAULTS = {"pairs": 32, "std": 0.03, "directions": 16}


def load(config: RunConfig) -> Experiment:
    """Return the target's experiment, with the estimator and optimizer that the configuration names."""
    experiment = _from_file(config) if is_file_target(config.target) else from_recipe(config)
    _check_window(config.estimator.window, experiment)
    own = name_of(experiment.estimator) in LAYERWISE
    if config.estimator.model_dump(exclude_none=True):
        chosen = make_estimator(config.estimator, experiment)
        experiment = (by_batches(experiment) if name_of(chosen) in LAYERWISE else experiment)._replace(estimator=chosen)
    _check_horizon(experiment)
    layerwise = name_of(experiment.estimator) in LAYERWISE
    given = config.optimizer.model_dump(exclude_none=True)
    if layerwise and ("lr" in given or not own) and config.optimizer.name is None:
        made = whole_steps(experiment.estimator, config.optimizer.lr, config.steps or experiment.steps)
        experiment = experiment._replace(optimizer=made)
    elif given or layerwise != own:  # rates for directions are none for gradients
        experiment = experiment._replace(optimizer=make_optimizer(config.optimizer))
    return experiment


def _check_window(window: int | None, experiment: Experiment) -> None:
    """Refuse windows that don't fill an episode."""
    if window and isinstance(experiment.data, Episodes) and experiment.data.horizon % window:
        steps = experiment.data.horizon
        divisors = [str(number) for number in range(1, steps + 1) if steps % number == 0]
        raise InvalidArgument(
            f"--window must divide the target's episodes of {steps} steps, got {window}. It may be {', '.join(divisors)}."
        )


def _check_horizon(experiment: Experiment) -> None:
    """Refuse resets that fall into the middle of an episode."""
    if name_of(experiment.estimator) in LAYERWISE:
        return  # a window is an episode
    horizon = getattr(experiment.estimator, "horizon", None)
    if isinstance(experiment.data, Episodes) and horizon != experiment.data.horizon:
        raise InvalidArgument(
            f"horizon must be the length of the target's episodes, {experiment.data.horizon}, got horizon={horizon}. "
            "Leave --horizon out, and choose a --window that divides it."
        )


def _from_file(config: RunConfig) -> Experiment:
    _, found = from_file(config)
    if not isinstance(found, Experiment):
        raise InvalidArgument(
            f"{config.target} must be an unrollax.Experiment or a function that returns one, got {type(found).__name__}."
        )
    return found


def make_estimator(config: EstimatorConfig, experiment: Experiment) -> GradientEstimator:
    """Return the named estimator on the experiment's system; what is not given comes from the experiment's own."""
    own = experiment.estimator
    name = config.name or name_of(own)
    if name is None:
        raise InvalidArgument(f"the target's own {type(own).__name__} has no options here. Name one with --estimator.")
    given = config.model_dump(exclude_none=True, exclude={"name"})
    wrong = [key for key in given if key not in ALL[name]]
    if wrong:
        raise InvalidArgument(f"{name} takes no {flag(wrong[0])}. It takes {', '.join(map(flag, ALL[name]))}.")
    if name in LAYERWISE:
        return make_layerwise(name, given, experiment)
    window, horizon = getattr(own, "window", None), getattr(own, "horizon", None)
    if horizon is None and isinstance(experiment.data, Episodes):
        horizon = experiment.data.horizon
    if horizon is None and "horizon" not in given and (name in WHOLE or name == "randomized-tbptt"):
        raise InvalidArgument(f"{name} needs --horizon: the target is an endless stream.")
    horizon = given.get("horizon", horizon)
    fields = {field.name for field in dataclasses.fields(CLASSES[name])} - {"system"}
    kept = {key: getattr(own, key) for key in fields if hasattr(own, key)}  # also what has no option, such as stagger
    if "x" in fields and kept.get("x") is None:
        kept["x"] = _one_step(name, experiment.data)
    window = None if name in WHOLE else _window(window, horizon)
    known = {**DEFAULTS, **kept, "horizon": horizon, "window": window, **given}
    return CLASSES[name](system=experiment.system, **{key: item for key, item in known.items() if key in fields})


def _one_step(name: str, data: Any) -> Any:
    """Return one step of data, as an example for estimators that keep some: zeros of its shapes and dtypes."""
    if isinstance(data, Iterator):
        raise InvalidArgument(f"{name} must know one step of data, and an iterator can't be looked at. Make it a list.")
    if callable(data):
        rows = jax.eval_shape(lambda: rows_of(name, data(jnp.int32(0), 1), 1))
    else:
        rows = None if data is None else jax.eval_shape(lambda window: window, next(iter(data)))
    return jax.tree.map(lambda row: jnp.zeros(row.shape[1:], row.dtype), rows)


def name_of(estimator: Any) -> str | None:
    """Return the name that the command line has for an estimator, or `None`."""
    return next((name for name, cls in (CLASSES | LAYERED).items() if type(estimator) is cls), None)


def _window(window: int | None, horizon: int | None) -> int | None:
    """Keep the window of the target, unless it is the whole horizon: then a quarter of it, or the next divisor."""
    if horizon is None or (window is not None and window < horizon and horizon % window == 0):
        return window
    return next(size for size in range(-(-horizon // 4), horizon + 1) if horizon % size == 0)


def resolved(config: RunConfig, experiment: Experiment) -> RunConfig:
    """Return the configuration with the steps, and all numbers of an estimator that was named, filled in."""
    name, own = config.estimator.name, experiment.estimator
    config = config.model_copy(update={"steps": config.steps or experiment.steps})
    if name is None:
        return config  # the target's own estimator follows its options, also those set when the run is repeated
    if name in LAYERWISE:
        given = config.estimator.model_dump(exclude_none=True)
        return config.model_copy(
            update={"estimator": EstimatorConfig.model_validate({**options_of(own, given), "name": name})}
        )
    used = {key: getattr(own, key) for key in ESTIMATORS[name]}
    # A width that is no number, such as a schedule, is the target's own, which a repeated run builds again.
    plain = {key: item for key, item in used.items() if isinstance(item, (bool, int, float, str))}
    return config.model_copy(update={"estimator": EstimatorConfig.model_validate({"name": name, **plain})})


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the named optimizer (Adam if only a learning rate was given)."""
    return optimizer(config.name or "adam", config.lr)
