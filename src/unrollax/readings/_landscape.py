"""Learning rates, the loss around the parameters, and the ways that optimisers take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unrollax._figures import Contour, Figure, Plot
from unrollax._report import Section
from unrollax.readings._words import paragraphs, short


def read_lr_range(found: Any) -> list[Section]:
    """Return what an `LRRange` says."""
    marks = {"low": found.low, "steepest": found.best, "high": found.high}
    marks |= {"diverges": math.nan if found.diverged is None else found.diverged}
    range_ = (
        f"Learning rates from {short(found.low)} to {short(found.high)} make the loss fall, most steeply at "
        f"{short(found.best)}. Choose one below the steepest; a schedule may go up to it."
    )
    text = paragraphs(
        range_ if math.isfinite(found.low) else f"No range to suggest: {found.note}",
        f"From {short(found.diverged)} on the loss grows for good." if found.diverged is not None else "",
    )
    lines = {"loss": found.losses, "smoothed": found.smoothed}
    over = "learning rate of the update"
    plot = Plot("Loss while the learning rate grows", over, found.rates, lines, "loss", "x", ("loss",), marks)
    return [Section("Learning rate", text, [plot])]


def read_surface(found: Any) -> list[Section]:
    """Return what a `Surface` says."""
    losses = np.asarray(found.losses, float)
    finite = losses[np.isfinite(losses)]
    text = f"The loss at the parameters is {short(float(found.center))}"
    text += f"; around them it is between {short(finite.min())} and {short(finite.max())}." if len(finite) else "."
    text += f" Directions: {found.directions}." if getattr(found, "directions", "") else ""
    figure = Contour(
        "Loss around the parameters", "along direction a", "along direction b", found.a, found.b, losses.T, "loss"
    )
    return [Section("Loss surface", text, [figure])]


def read_trajectories(found: Any) -> list[Section]:
    """Return what a `Trajectories` says."""
    ends = {name: float(np.asarray(losses)[-1]) for name, losses in found.losses.items()}
    steps = max((len(losses) for losses in found.losses.values()), default=1)
    ranked = sorted(ends, key=lambda name: (math.isnan(ends[name]), ends[name]))
    text = (
        f"After {steps - 1} updates the loss is "
        + ", ".join(f"{short(ends[name])} with {name}" for name in ranked)
        + "."
    )
    figures: list[Figure] = [
        Contour("Paths", "x", "y", found.x, found.y, found.grid, "loss", found.paths),
        Plot("Loss by update", "update", range(steps), _padded(found.losses, steps), "loss", "y"),
    ]
    return [Section("Optimisers", text, figures)]


def _padded(losses: Any, steps: int) -> dict[str, np.ndarray]:
    """Return the losses as lines of one length."""
    return {
        name: np.pad(np.asarray(line, float), (0, steps - len(line)), constant_values=np.nan)
        for name, line in losses.items()
    }
