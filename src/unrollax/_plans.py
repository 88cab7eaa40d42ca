"""Plans: how deep each update of a training unfolds, as data that `fit` reads."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice, check_counts
from unrollax._errors import InvalidArgument
from unrollax._types import Scalar
from unrollax._value import static, value

Freeze: TypeAlias = Literal["earlier"] | None


class Stage(NamedTuple):
    """One row of a plan: what an update is to do.

    Attributes:
        depth: int32 scalar, the iterations to unfold.
        generation: int32 scalar, the updates of one depth are one generation, counted from 0.
        first: whether the update is the first of its generation.
        before: int32 scalar, the depth of the generation before, 0 for the first.
    """

    depth: Scalar
    generation: Scalar
    first: Scalar
    before: Scalar

    @classmethod
    def at(cls, depth: int) -> Stage:
        """Return the only stage of a plan with one depth."""
        return cls(jnp.int32(depth), jnp.int32(0), jnp.asarray(False), jnp.int32(0))


@value
class Plan:
    """Generations of equally many updates, each with a depth; made by `one_shot` and `incremental`.

    Called with the number of an update, it returns the `Stage` of that; beyond the last update the last generation goes on.

    Attributes:
        depths: the depth of each generation.
        each: updates of a generation.
        reset: whether `fit_unfold` starts the optimizer anew with each generation.
        freeze: `"earlier"` if `fit_unfold` holds the entries of schedules that no new iteration of a generation reads.
    """

    depths: tuple[int, ...] = static()
    each: int = static()
    reset: bool = static(default=False)
    freeze: Freeze = static(default=None)

    def __call__(self, step: Any) -> Stage:
        """Return the stage of update `step`, counted from 0; it may be traced."""
        depths = jnp.asarray(self.depths, jnp.int32)
        generation = jnp.minimum(jnp.asarray(step, jnp.int32) // self.each, len(self.depths) - 1)
        before = jnp.where(generation > 0, depths[jnp.maximum(generation - 1, 0)], 0)
        return Stage(depths[generation], generation, step == generation * self.each, before)

    @property
    def steps(self) -> int:
        """Updates of the whole plan."""
        return self.each * len(self.depths)

    @property
    def longest(self) -> int:
        """The largest depth."""
        return max(self.depths)


@value
class RandomHorizon:
    """A depth drawn anew for each update; made by `random_horizon`."""

    low: int = static()
    high: int = static()
    steps: int = static()
    seed: int = static(default=0)

    def __call__(self, step: Any) -> Stage:
        """Return the stage of update `step`, counted from 0; it may be traced. Equal numbers have equal depths."""
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        depth = jax.random.randint(key, (), self.low, self.high + 1, jnp.int32)
        return Stage(depth, jnp.int32(0), jnp.asarray(step == 0), jnp.int32(0))

    @property
    def reset(self) -> bool:
        """There is one generation only."""
        return False

    @property
    def freeze(self) -> Freeze:
        """There are no earlier iterations."""
        return None

    @property
    def longest(self) -> int:
        """The largest depth."""
        return self.high


def one_shot(depth: int, steps: int) -> Plan:
    """Unfold to the full depth from the first update on.

    With the logarithm of the error as the loss, and entries that are not all equal (`jitter`), it is what to try first.

    Args:
        depth: iterations.
        steps: updates.

    Returns:
        A plan: `plan(step)` is the `Stage` of an update, `plan.steps` their number, `plan.longest` the largest depth.

    Raises:
        InvalidArgument: a count is no positive whole number.

    Example:
        >>> from unrollax import one_shot
        >>> plan = one_shot(16, 2000)
        >>> int(plan(7).depth), plan.steps, plan.longest
        (16, 2000, 16)
    """
    check_counts("one_shot", depth=depth, steps=steps)
    return Plan((int(depth),), int(steps))


def incremental(depths: Any, steps: int, reset: bool = True, freeze: Freeze = None) -> Plan:
    """Unfold deeper from generation to generation.

    Args:
        depths: the depth of each generation, such as `range(1, 51)`.
        steps: updates of a generation.
        reset: start the optimizer anew with each generation. Without it, under raw errors, the second moments of Adam
            remember the large gradients of the shorter unfoldings, and late generations crawl.
        freeze: `"earlier"` holds the entries of schedules that no new iteration of the generation reads (those of index at
            least the depth before). It was worse wherever it was measured: early steps that were best for a short
            unfolding are not for a long one.

    Returns:
        A plan, as `one_shot` does.

    Raises:
        InvalidArgument: depths are none or no positive whole numbers, steps is none, or there is no such freeze.

    Example:
        >>> from unrollax import incremental
        >>> plan = incremental([1, 2, 4], steps=50)
        >>> [int(plan(step).depth) for step in (0, 49, 50, 149)], plan.steps
        ([1, 1, 2, 4], 150)

    References: Ito, Takabe and Wadayama, IEEE Transactions on Signal Processing 2019.
    """
    check_counts("incremental", steps=steps)
    check_choice("incremental", "freeze", freeze, (None, "earlier"))
    check_choice("incremental", "reset", reset, (True, False))
    numbers = tuple(np.asarray(depths).tolist()) if np.ndim(depths) == 1 and len(depths) else ()
    if not numbers or not all(isinstance(depth, int) and depth >= 1 for depth in numbers):
        raise InvalidArgument(
            f"incremental: depths must be positive whole numbers, one a generation, got depths={depths!r}. Give a list such "
            "as range(1, 51)."
        )
    return Plan(numbers, int(steps), bool(reset), freeze)


def random_horizon(low: int, high: int, steps: int, seed: int = 0) -> RandomHorizon:
    """Unfold each update to a depth of its own, uniform on low, ..., high.

    The schedule is then good at all these depths, at the price of being best at none.

    Args:
        low: the smallest depth.
        high: the largest.
        steps: updates.
        seed: of the depths; equal seeds give equal depths.

    Returns:
        A plan, as `one_shot` does.

    Raises:
        InvalidArgument: a count is no positive whole number, or low is above high.

    Example:
        >>> from unrollax import random_horizon
        >>> plan = random_horizon(4, 16, steps=100)
        >>> {4 <= int(plan(step).depth) <= 16 for step in range(20)}
        {True}
    """
    check_counts("random_horizon", low=low, high=high, steps=steps)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise InvalidArgument(f"random_horizon: seed must be a whole number, got seed={seed!r}. Give one such as 0.")
    if low > high:
        raise InvalidArgument(f"random_horizon: low must be at most high, got low={low}, high={high}. Exchange them.")
    return RandomHorizon(int(low), int(high), int(steps), int(seed))
