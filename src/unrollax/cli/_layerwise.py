"""Estimators that need a net of layers, from the options of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import optax

from unrollax._errors import InvalidArgument
from unrollax._experiment import Episodes, Experiment, Windows
from unrollax._optimizer import optimizer
from unrollax._types import GradientEstimator
from unrollax.cli._names import CURVATURE
from unrollax.local import Curvature, Layered, LocoProp, SpectralFilter
from unrollax.local._curvature import BOUNDS
from unrollax.optimizers import KFAC

CLASSES: dict[str, Any] = {"locoprop": LocoProp, "kfac": KFAC}
TITLES = {"locoprop": "LocoProp", "kfac": "K-FAC"}


def make_layerwise(name: str, given: Mapping[str, Any], experiment: Experiment) -> GradientEstimator:
    """Return LocoProp or K-FAC on the experiment's net; what is not given comes from its own one, if it has one."""
    net, own = experiment.system, experiment.estimator
    if not isinstance(net, Layered):
        raise InvalidArgument(
            f"{TITLES[name]} needs a net of layers, ux.layered(...), as the target's system, got {type(net).__name__}. Write "
            "the net as one, or take an estimator such as bptt."
        )
    if name == "kfac":
        return dataclasses.replace(own if isinstance(own, KFAC) else KFAC(net), **given)
    kept = own if isinstance(own, LocoProp) else LocoProp(net.layers, net.loss)
    mine: dict[str, Any] = {key: item for key, item in given.items() if key not in (*CURVATURE, "inner", "inner_lr")}
    return dataclasses.replace(kept, inner=_inner(given, kept.inner), **mine)


def _inner(given: Mapping[str, Any], own: Any) -> Any:
    """Return what solves the local problems."""
    name = given.get("inner") or ("curvature" if isinstance(own, Curvature) else None)
    if name == "curvature":
        options: dict[str, Any] = {
            key: None if item == "none" else item for key, item in given.items() if key in CURVATURE
        }
        return dataclasses.replace(own if isinstance(own, Curvature) else Curvature(), **options)
    if name == "spectral":
        return SpectralFilter(given["inner_lr"])
    return optimizer(name, given.get("inner_lr")) if name else own


def options_of(estimator: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make an estimator again: all its numbers, and of its inner one also what was given."""
    found = {field.name: getattr(estimator, field.name) for field in dataclasses.fields(estimator)}
    if isinstance(estimator, LocoProp) and isinstance(estimator.inner, Curvature):
        found |= {key: getattr(estimator.inner, key) for key in CURVATURE} | {"inner": "curvature"}
        found |= {key: "none" for key in BOUNDS if found[key] is None}
    plain = {key: item for key, item in found.items() if isinstance(item, (bool, int, float, str))}
    return {**plain, **given}


def by_batches(experiment: Experiment) -> Experiment:
    """Return an experiment whose data come in the batches of its own estimator, if they are a stream that anyone may cut."""
    data, window = experiment.data, getattr(experiment.estimator, "window", None)
    if window is None or not callable(data) or isinstance(data, (Episodes, Windows)):
        return experiment
    return experiment._replace(data=cast(Any, Windows(data, window)))


def whole_steps(estimator: Any, lr: float | None, steps: int) -> optax.GradientTransformation:
    """Return what makes whole steps of directions; those that keep their length near a minimum shrink to 0 in a line."""
    first = 1.0 if lr is None else lr
    keep = getattr(estimator, "targets", "gradient") != "gradient"
    return optax.sgd(optax.linear_schedule(first, 0.0, steps) if keep else first)
