"""An experiment: all that a run needs, with data that any estimator's window can be cut from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from unrollax._errors import InvalidArgument
from unrollax._types import Data, GradientEstimator, Params, System
from unrollax._value import static, value

Stream: TypeAlias = Callable[[Any, int], Data]
Artifact: TypeAlias = str | Mapping[str, Sequence[float]]


class Experiment(NamedTuple):
    """What `unrollax train` runs.

    Attributes:
        system: what is unrolled; another estimator may be put on it from the command line.
        estimator: the estimator unless another is asked for.
        optimizer: an `optax.GradientTransformation`.
        params: the parameters to start from.
        data: a stream `data(t, steps)` that returns the steps t to t + steps of all time, leaves `[steps, ...]`, where t is a
            traced int32 (`episodes` makes one); or an iterable of windows of the estimator's own length; or `None`.
        evaluate: `evaluate(params)` returns named numbers, such as a test accuracy; called now and then, and at the end.
        steps: updates of a run unless told otherwise.
        artifacts: `artifacts(params)` returns what else belongs into the run folder, by name. A text is written as the file
            of that name; a table `{column: numbers}` is written as CSV and drawn in the report, its other columns over its
            first one.
    """

    system: System
    estimator: GradientEstimator
    optimizer: optax.GradientTransformation
    params: Params
    data: Stream | Iterable[Data] | None
    evaluate: Callable[[Params], Mapping[str, float]] | None = None
    steps: int = 1000
    artifacts: Callable[[Params], Mapping[str, Artifact]] | None = None


@value
class Episodes:
    """A stream of episodes; see `episodes`."""

    make: Callable[[Any], Data]
    horizon: int = static()

    def __call__(self, t: Any, steps: int) -> Data:
        """Return steps t to t + steps, which must lie inside one episode."""
        if self.horizon % steps:
            raise InvalidArgument(
                f"episodes: window must divide the episodes' {self.horizon} steps, got window={steps}. "
                "Choose a divisor, or give the estimator the episodes' length as its horizon."
            )
        whole = self.make(t // self.horizon)
        if steps == self.horizon:
            return whole
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, t % self.horizon, steps), whole)


def episodes(make: Callable[[Any], Data], horizon: int) -> Episodes:
    """Make a stream of data from episodes of equal length.

    Args:
        make: `make(number)` returns one episode, leaves `[horizon, ...]`; number is a traced int32. It is called anew for
            each window of an episode, so it must return the same data for the same number.
        horizon: steps of an episode.

    Example:
        >>> import jax.numpy as jnp
        >>> stream = episodes(lambda number: 100 * number + jnp.arange(6), 6)
        >>> stream(8, 2)
        Array([102, 103], dtype=int32)
    """
    return Episodes(make, horizon)


@value
class Windows:
    """The windows of a stream, by the number of the update: what `fit` takes as data."""

    stream: Stream
    window: int = static()

    def __call__(self, step: Any) -> Data:
        """Return window number `step`."""
        return self.stream(step * self.window, self.window)


def in_windows(data: Any, estimator: GradientEstimator) -> Any:
    """Return an experiment's data as `fit` takes them: a stream by windows of the estimator, or else of whole episodes."""
    if not callable(data) or isinstance(data, Windows):
        return data
    window = getattr(estimator, "window", None)
    return Windows(data, window or (data.horizon if isinstance(data, Episodes) else 1))
