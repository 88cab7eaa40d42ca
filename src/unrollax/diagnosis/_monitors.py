"""What `fit` shows while it trains: several observers at once, and the gradient by time distance as it changes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from unrollax._check import check_counts, check_key
from unrollax._errors import InvalidArgument
from unrollax._system import as_system
from unrollax._train import Progress
from unrollax._types import Data, Key, System
from unrollax.diagnosis._decay import Decay
from unrollax.diagnosis._flow import gradient_flow
from unrollax.diagnosis._flows import Flow
from unrollax.estimators import Gaussian


def observers(*callables: Callable[[Progress], Any] | None) -> Callable[[Progress], None]:
    """Return one `observe` for `fit` that calls several, in their order; each sees the same `Progress`.

    Args:
        callables: what to call; `None` is left out, so that one may depend on an option. What reads another's findings, as
            `TensorBoard(monitors=)` does, comes after it.

    Raises:
        InvalidArgument: one can't be called.

    Example:
        >>> import jax, optax, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: 1.0, step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> seen = []
        >>> show = ux.observers(lambda now: seen.append(now.step), lambda now: print(now.step, "of", now.end))
        >>> optimizer, key = optax.sgd(0.1), jax.random.key(0)
        >>> run = ux.fit(ux.BPTT(decay, 3), optimizer, 0.5, None, key=key, steps=4, every=2, observe=show)
        2 of 4
        4 of 4
        >>> seen
        [2, 4]
    """
    called = [each for each in callables if each is not None]
    for each in called:
        if not callable(each) or isinstance(each, type):
            got = f"the class {each.__name__}" if isinstance(each, type) else type(each).__name__
            raise InvalidArgument(
                f"observers: each must be callable with a Progress, got {got}. Pass functions such as print, or a "
                "FlowMonitor or TensorBoard."
            )

    def observe(progress: Progress) -> None:
        for each in called:
            each(progress)

    return observe


class FlowHistory(NamedTuple):
    """What a `FlowMonitor` saw: the gradient's flow back through one window, as training changes it.

    Attributes:
        steps: updates made before each look, `[n]`.
        losses: mean of the losses of the window that were followed back, `[n]`.
        lags: steps between a loss and the use of the parameters, `[k]`.
        norms: || d loss_t / d params as used at step t - lag ||, geometric mean over the losses, `[n, k]`.
        rate: of its decay with the lag, nats a step, `[n]`; negative: the gradient vanishes going back.
        half_life: ln 2 / |rate|, in steps, `[n]`.
        seconds: what each look took, `[n]`; the first one compiles.
    """

    steps: np.ndarray
    losses: np.ndarray
    lags: np.ndarray
    norms: np.ndarray
    rate: np.ndarray
    half_life: np.ndarray
    seconds: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists."""
        return {name: np.asarray(item).tolist() for name, item in self._asdict().items()}

    def __str__(self) -> str:
        shown = _rows(len(self.steps), 10)
        lags = [i for i, lag in enumerate(self.lags) if _is_power(int(lag))]
        head = ["update", "loss", "nats/step", "half-life", *(f"lag {self.lags[i]}" for i in lags)]
        rows = [
            [
                f"{self.steps[n]}",
                f"{self.losses[n]:.4g}",
                f"{self.rate[n]:.3g}",
                f"{self.half_life[n]:.3g}",
                *(f"{self.norms[n, i]:.2e}" for i in lags),
            ]
            for n in shown
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in [head, *rows]]
        title = "norm of the gradient by lag, steps from a loss back to where parameters are used; half-life in steps"
        return "\n".join([title, *lines])


class Look(NamedTuple):
    """What is kept of one look: the updates made before it, the mean loss, the decay and what it took."""

    step: int
    loss: float
    decay: Decay
    seconds: float


class FlowMonitor:
    """An `observe` for `fit` that follows the gradient back through one fixed window, with the parameters of the moment.

    After a block it calls `gradient_flow` on the same window with the same key, so that what changes from look to look is
    the parameters alone: whether the gradient begins to vanish or to explode while the network learns, which its norm
    doesn't show. `.history` has all looks, `.last` the `Flow` of the last one.

    Cost: a `gradient_flow` of `len(at)` losses every `every` blocks; `.share` says which part of the run's time that
    is. The first look compiles, which takes seconds; the later ones run that program. No buffer of the run is kept.

    Args:
        system: what is unrolled; one example or a few are enough, it need not be the batch of the training.
        data: one window of it, as for `gradient_flow`.
        key: a PRNG key, the same for every look.
        every: blocks of `fit` between two looks; the first block and the last one are always seen.
        at: the losses to follow back, their t; `None` for the choice of `gradient_flow`.
        horizon: the number of steps, where no data leaf has a time axis.

    Raises:
        InvalidArgument: every is no positive whole number, key is none, or system lacks a method.

    Example:
        >>> import jax, jax.numpy as jnp, optax, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s + x, (p * s) ** 2))
        >>> monitor = ux.FlowMonitor(decay, jnp.ones(8), key=jax.random.key(0), at=[7])
        >>> run = ux.fit(
        ...     ux.BPTT(decay, 8), optax.sgd(0.01), 0.5, lambda step: jnp.ones(8),
        ...     key=jax.random.key(0), steps=20, every=10, observe=monitor,
        ... )
        >>> monitor.history.steps, monitor.history.norms.shape
        (array([10, 20]), (2, 8))
    """

    def __init__(
        self,
        system: System,
        data: Data,
        *,
        key: Key,
        every: int = 1,
        at: Sequence[int] | None = None,
        horizon: int | None = None,
    ) -> None:
        check_counts("FlowMonitor", every=every, horizon=1 if horizon is None else horizon)
        self.system, self.key = as_system("FlowMonitor", system), check_key("FlowMonitor", key)
        self.data, self.every, self.at, self.horizon = data, every, at, horizon
        self._blocks, self._trained = 0, 0.0
        self._looks: list[Look] = []
        self.last: Flow | None = None

    def __call__(self, progress: Progress) -> None:
        """Look, if it is time to."""
        self._blocks, self._trained = self._blocks + 1, progress.seconds
        if (self._blocks - 1) % self.every and progress.step != progress.end:
            return
        params, began = progress.state.params, time.perf_counter()
        params = params.mean if isinstance(params, Gaussian) else params
        flow = gradient_flow(self.system, params, self.data, key=self.key, horizon=self.horizon, at=self.at, windows=())
        self.last = flow
        self._looks.append(Look(progress.step, float(np.mean(flow.losses)), flow.decay, time.perf_counter() - began))

    @property
    def history(self) -> FlowHistory:
        """All looks so far."""
        decays = [look.decay for look in self._looks]
        lags = sorted({int(lag) for decay in decays for lag in decay.lags})
        norms = [_at_lags(decay, lags) for decay in decays]
        return FlowHistory(
            steps=np.array([look.step for look in self._looks], int),
            losses=np.array([look.loss for look in self._looks], float),
            lags=np.array(lags, int),
            norms=np.array(norms, float).reshape(len(norms), len(lags)),
            rate=np.array([decay.rate for decay in decays], float),
            half_life=np.array([decay.half_life for decay in decays], float),
            seconds=np.array([look.seconds for look in self._looks], float),
        )

    @property
    def seconds(self) -> float:
        """Wall time of all looks."""
        return sum(look.seconds for look in self._looks)

    @property
    def share(self) -> float:
        """Part of the time of updates and looks that went into looks, without compilation, which the first one holds."""
        later = [look.seconds for look in self._looks[1:]]
        looks = sum(later) / len(later) * len(self._looks) if later else self.seconds
        return looks / max(looks + self._trained, 1e-9)

    def scalars(self) -> dict[str, float]:
        """Return the last look as named numbers, for a log: decay, half-life and the norms at lags of powers of two."""
        if not self._looks:
            return {}
        decay = self._looks[-1].decay
        lags = [int(lag) for lag in decay.lags if _is_power(int(lag))]
        norms = dict(zip((f"flow/lag_{lag}" for lag in lags), _at_lags(decay, lags), strict=True))
        return {"flow/rate": float(decay.rate), "flow/half_life": float(decay.half_life), **norms}

    def __str__(self) -> str:
        return f"{self.history}\n{100 * self.share:.2g} % of the time went into {len(self._looks)} looks"


def _at_lags(decay: Decay, lags: list[int]) -> list[float]:
    """Return the norms at some lags, NaN where there is none."""
    known = dict(zip((int(lag) for lag in decay.lags), (float(norm) for norm in decay.norms), strict=True))
    return [known.get(lag, math.nan) for lag in lags]


def _is_power(lag: int) -> bool:
    return lag & (lag - 1) == 0


def _rows(count: int, most: int) -> list[int]:
    """Return at most so many indices, evenly spread, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})
