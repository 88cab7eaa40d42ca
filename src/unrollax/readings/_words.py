"""Numbers as words, and what the figures of several results share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unrollax._figures import Plot

POINTS, FIT = "measured", "fitted line"


def short(number: float) -> str:
    """Return three digits, for a reader rather than a program."""
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"


def paragraphs(*texts: str) -> str:
    """Join what there is to say."""
    return "\n\n".join(text for text in texts if text)


def by_step(rate: float, error: float) -> str:
    """Say what a rate in nats a step does to a norm.

    Example:
        >>> by_step(-0.0693, 0.001)
        'multiplies it by 0.933 on average (-0.0693 +- 0.001 nats): it halves every 10 steps'
    """
    if not math.isfinite(rate):
        return "could not be followed: there are too few numbers that are neither zero nor infinite"
    said = f"multiplies it by {short(math.exp(min(rate, 700)))} on average ({rate:.3g} +- {error:.2g} nats)"
    if not abs(rate) > 2 * error:
        return f"{said}: no decay and no growth can be told from it"
    return f"{said}: it {'halves' if rate < 0 else 'doubles'} every {short(math.log(2) / abs(rate))} steps"


def decay_plot(title: str, decay: Any) -> Plot:
    """Return the norms of a `Decay` by lag with the fitted line, and where they leave the numbers of their dtype."""
    lags = np.asarray(decay.lags)
    first, last = decay.fitted
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        line = np.exp(decay.intercept + decay.rate * lags)
    marks = {"below the smallest normal number": decay.underflow, "beyond the largest number": decay.overflow}
    return Plot(
        title,
        "lag t - s, in steps back from the loss",
        lags,
        {POINTS: decay.norms, FIT: np.where((lags >= first) & (lags <= last), line, np.nan)},
        up="norm, geometric mean",
        log="y",
        points=(POINTS,),
        marks={name: lag for name, lag in marks.items() if lag is not None},
    )
