"""What unfoldings share: schedules of an algorithm's usual constants, plans and the optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrollax._plans import Plan, RandomHorizon, incremental, one_shot, random_horizon
from unrollax._schedules import jitter, per_step, periodic
from unrollax.recipes._unfold_options import Settings

APART = 0.01  # relative, between entries that start equal: tied ones would stay so


def schedules(theta: dict[str, Any], settings: Settings, key: Any, *, std: float = APART) -> dict[str, Any]:
    """Return schedules that start near the usual constants; matrices among these stay what they are.

    Numbers that are positive stay so. `std` parts the entries of a schedule, relative to them.
    """

    def made(number: Any) -> Any:
        if jnp.ndim(number) > 1:
            return number
        transform = "log" if bool((np.asarray(number) > 0).all()) else None
        if settings.period is None:
            return per_step(number, settings.depth, transform)
        return periodic(number, settings.period, transform)

    return jitter({name: made(number) for name, number in theta.items()}, key, std=std)


def plan_of(settings: Settings) -> Plan | RandomHorizon:
    """Return the plan by its name; an incremental one adds an iteration a generation, or a period."""
    if settings.plan == "one-shot":
        return one_shot(settings.depth, settings.steps)
    if settings.plan == "random":
        return random_horizon(settings.period or 1, settings.depth, settings.steps)
    depths = range(settings.period or 1, settings.depth + 1)
    return incremental(depths, max(1, settings.steps // len(depths)))


def adam(settings: Settings) -> optax.GradientTransformation:
    """Return Adam with a rate that falls to 0 by a cosine, and a second moment that soon forgets."""
    return optax.adam(optax.cosine_decay_schedule(settings.lr, settings.steps), b2=0.9)


def key_of(seed: int) -> Any:
    """Return the key of where schedules start."""
    return jax.random.fold_in(jax.random.key(seed), 1)
