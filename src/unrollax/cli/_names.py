"""The names of estimators and optimizers, and what can be set on each, without JAX."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
CURVATURE = ("damping", "every", "memory", "trust", "share", "iterations")  # of `inner="curvature"`
# Directions for a net's layers which are no gradients, for targets whose system is `unrollax.layered(...)`.
LAYERWISE: dict[str, tuple[str, ...]] = {
    "locoprop": ("variant", "inner", "inner_lr", "steps", "reach", "pull", "targets", *CURVATURE),
    "kfac": ("outputs", "lr", "momentum", "damping", "adapt", "every", "l2"),
}
ALL = ESTIMATORS | LAYERWISE
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


class Strict(BaseModel):
    """Base: strict types, no unknown names."""

    model_config = ConfigDict(strict=True, extra="forbid")


class EstimatorConfig(Strict):
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
    memory: int | float | str | None = None
    overlap: int | None = Field(None, ge=0)
    survival: float | None = Field(None, gt=0, le=1)
    mode: Literal["auto", "forward", "reverse"] | None = None
    order: int | None = Field(None, ge=1)
    resample: bool | None = None
    subspace: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, gt=0, le=1)
    solver: Literal["gmres", "bicgstab", "neumann", "one-step", "dense"] | None = None
    terms: int | None = Field(None, ge=1)
    tol: float | None = Field(None, gt=0)
    variant: Literal["S", "M"] | None = None
    inner: str | None = None
    inner_lr: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    reach: float | None = Field(None, gt=0)
    pull: float | None = Field(None, ge=0)
    targets: Literal["gradient", "natural", "normalized"] | None = None
    damping: float | None = Field(None, ge=0)
    every: int | None = Field(None, ge=1)
    trust: float | Literal["none"] | None = None
    share: float | Literal["none"] | None = None
    iterations: int | None = Field(None, ge=1)
    outputs: Literal["independent", "softmax"] | None = None
    lr: float | None = Field(None, ge=0)
    momentum: float | None = Field(None, ge=0)
    adapt: bool | None = None
    l2: float | None = Field(None, ge=0)


class OptimizerConfig(Strict):
    """An optimizer by name; what is `None` is left to the target."""

    name: str | None = None
    lr: float | None = Field(None, gt=0)


def flag(option: str) -> str:
    """Return how an estimator's option is given."""
    return f"--{option}" if option in FLAGS else f"--set estimator.{option}"
