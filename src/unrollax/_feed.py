"""Where `fit` reads its windows from: a function of the update's number, traced, or blocks gathered on the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from unrollax._errors import InvalidArgument, StructureError
from unrollax._types import Data, Scalar
from unrollax._value import value


@value
class Traced:
    """Data made inside the compiled loop, from the number of the update."""

    data: Callable[[Any], Data]

    def window(self, step: Scalar, index: Scalar) -> Data:
        """Return the window of one update."""
        del index
        try:
            return self.data(step)
        except jax.errors.JAXTypeError as error:
            raise StructureError(
                "fit: data(step) must be traceable by JAX, where step is a traced int32, got an error of tracing (above). "
                "Use jax.numpy with fixed sizes in it (step + jnp.arange(window), not jnp.arange(step, step + window)), or "
                "pass an iterable of windows made on the host."
            ) from error


@value
class Stacked:
    """A block of windows from the host, leaves `[every, window, ...]`."""

    windows: Data

    def window(self, step: Scalar, index: Scalar) -> Data:
        """Return the window of one update."""
        del step
        return jax.tree.map(lambda leaf: leaf[index], self.windows)


def feeds_of(data: Any, every: int, steps: int) -> Iterator[Traced | Stacked]:
    """Yield what each block reads its windows from."""
    if data is None or callable(data):
        yield from itertools.repeat(Traced(data or _no_data))
    if not isinstance(data, Iterable) or isinstance(data, (dict, str)):
        raise InvalidArgument(
            f"fit: data must be a callable of the update's number or an iterable of windows, got {type(data).__name__}. "
            "For the same window in every update pass lambda step: window."
        )
    windows = iter(data)
    for done in range(0, steps, every):
        count = min(every, steps - done)
        block = list(itertools.islice(windows, count))
        if len(block) < count:
            raise InvalidArgument(
                f"fit: data must hold one window for each update, got {done + len(block)} for steps={steps}. "
                "Pass a longer iterable, or a callable of the update's number."
            )
        yield Stacked(_stack(block + block[-1:] * (every - count)))


def gather(feeds: Iterator[Traced | Stacked], last: Traced | Stacked) -> Traced | Stacked | Exception:
    """Return the next block's feed, or the error of making it: the block under way is observed before it is raised."""
    try:
        return next(feeds, last)
    except Exception as error:
        return error


def _no_data(step: Any) -> None:
    del step


def _stack(windows: list[Data]) -> Data:
    try:
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *windows)
    except ValueError as error:
        raise StructureError(
            f"fit: all windows of the data must have the same structure and shapes, got a difference: {error}. "
            "Drop or pad the odd window."
        ) from error
