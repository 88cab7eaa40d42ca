"""Fitness shaping: what takes the place of the losses of all particles, so that their scale no longer matters."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.stats import rankdata

SHAPINGS = ("rank", "centred")


def shape_losses(shaping: Literal["rank", "centred"], losses: jax.Array) -> jax.Array:
    """Return the utilities of losses of any shape; equal losses have equal utilities.

    `rank`: ranks from -1/2 to 1/2, where NaN is the worst. `centred`: less their mean, over their standard deviation.
    """
    if shaping == "rank":
        ranks = rankdata(jnp.where(jnp.isnan(losses), jnp.inf, losses), method="average").reshape(losses.shape)
        return ((ranks - 1) / (losses.size - 1) - 0.5).astype(losses.dtype)
    centred = losses - losses.mean()
    deviation = jnp.sqrt((centred**2).mean())
    return jnp.where(deviation > 0, centred / jnp.where(deviation > 0, deviation, 1), 0)
