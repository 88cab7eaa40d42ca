"""What `unrollax unfold` trains, and how its errors are measured beside those of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from unrollax._plans import Plan, RandomHorizon
from unrollax._types import Key, Params
from unrollax.systems import Unfold


class Unfolding(NamedTuple):
    """An unfolded algorithm with all that its training needs: what a target of `unrollax unfold` is.

    Attributes:
        net: the algorithm on its problems, from `unfold`.
        params: schedules and whatever else is trained.
        plan: `one_shot`, `incremental` or `random_horizon`.
        optimizer: an `optax.GradientTransformation`.
        baselines: errors `[horizon + 1]` of other methods after 0, 1, ... iterations, by name; shown beside
            those of the trained one.
        score: `score(answer, problem)`, what is shown in the place of the error that is trained, such as a bit error rate.
        unit: the name of what is shown.
        algorithm: what `net` was made of, with `answer(x)`; needed to export the trained one.
    """

    net: Unfold
    params: Params
    plan: Plan | RandomHorizon
    optimizer: optax.GradientTransformation
    baselines: Mapping[str, Any] = {}
    score: Callable[[Any, Any], Any] | None = None
    unit: str = "mean squared error"
    algorithm: Any = None


def scores_of(unfolding: Unfolding, params: Params, key: Key, *, problems: int) -> np.ndarray:
    """Return what is shown of an unfolding after 0, 1, ..., horizon iterations, the mean over fresh problems."""
    net, score = dataclasses.replace(unfolding.net, batch=problems), unfolding.score
    if score is not None:
        answer = getattr(unfolding.algorithm, "answer", lambda x: x)
        net = dataclasses.replace(net, error=lambda x, problem: score(answer(x), problem))
    return np.asarray(jax.jit(lambda params, key: net.errors(params, key))(params, key))
