"""What `unrollax unfold` trains, and how its errors are measured beside those of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from unrollax._errors import InvalidArgument
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


def check_unfolding(owner: str, unfolding: Unfolding) -> Unfolding:
    """Return an unfolding; raise unless its parts are of the kinds that they are said to be."""
    for name, part, kinds, remedy in (
        ("net", unfolding.net, Unfold, "Make one with unrollax.unfold."),
        ("plan", unfolding.plan, (Plan, RandomHorizon), "Take one such as unrollax.one_shot(depth, steps)."),
        ("baselines", unfolding.baselines, Mapping, "Give a dict of errors."),
    ):
        if not isinstance(part, kinds):
            wanted = {"net": "an Unfold", "plan": "a plan"}.get(name, "a mapping")
            raise InvalidArgument(f"{owner}: {name} must be {wanted}, got {type(part).__name__}. {remedy}")
    last = unfolding.net.horizon
    for name, errors in unfolding.baselines.items():
        if np.ndim(errors) != 1 or np.size(errors) <= last:
            raise InvalidArgument(
                f"{owner}: baseline {name!r} must have the errors after 0 to {last} iterations, [{last + 1}], got "
                f"{list(np.shape(errors))}. Add what is missing."
            )
    return unfolding


def scores_of(unfolding: Unfolding, params: Params, key: Key, *, problems: int) -> np.ndarray:
    """Return what is shown of an unfolding after 0, 1, ..., horizon iterations, the mean over fresh problems."""
    return np.asarray(scorer_of(unfolding, problems=problems)(params, key))


def scorer_of(unfolding: Unfolding, *, problems: int) -> Callable[[Params, Key], jax.Array]:
    """Return `scores_of` as a function of params and key that compiles once."""
    net, score = dataclasses.replace(unfolding.net, batch=problems), unfolding.score
    if score is not None:
        answer = getattr(unfolding.algorithm, "answer", lambda x: x)
        net = dataclasses.replace(net, error=lambda x, problem: score(answer(x), problem))
    scorer: Callable[[Params, Key], jax.Array] = jax.jit(lambda params, key: net.errors(params, key))
    return scorer
