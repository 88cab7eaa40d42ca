"""Soft thresholding with support selection: the largest entries keep their size."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import FROM_ZERO_TO_ONE, check_number
from unrollax._value import static, value
from unrollax.prox import soft


class Counted(NamedTuple):
    """An iterate that knows how many iterations led to it.

    Attributes:
        x: the iterate, `[n]`.
        t: how many, as a floating number.
    """

    x: jax.Array
    t: jax.Array


@value
class Selection:
    """Which entries a threshold lets through unshrunk: those above it among the largest share of all entries.

    Attributes:
        owner: who selects, for messages.
        select: the share grows by this with each iteration, and the first has it,
        most: up to this.
    """

    owner: str = static()
    select: float = static()
    most: float = static()

    def __post_init__(self) -> None:
        check_number(self.owner, "select", self.select, FROM_ZERO_TO_ONE, used=True)
        check_number(self.owner, "most", self.most, FROM_ZERO_TO_ONE, used=True)

    def soft(self, v: jax.Array, threshold: Any, t: jax.Array) -> jax.Array:
        """Return the thresholded v after t iterations; which entries are let through is no matter of derivatives."""
        n = v.shape[0]
        room = int(self.most * n + 1e-3)  # 1e-3: a product such as 0.29 * 100 falls just short of a whole number
        if room == 0 or self.select == 0:
            return soft(v, threshold)
        size, bound = jax.lax.stop_gradient((jnp.abs(v), threshold))
        count = jnp.floor(jnp.minimum((t + 1) * self.select, self.most) * n + 1e-3).astype(int)
        largest = jax.lax.top_k(size, room)[0]
        last = jnp.where(count > 0, largest[jnp.clip(count - 1, 0, room - 1)], jnp.inf)
        return jnp.where((size >= last) & (size > bound), v, soft(v, threshold))
