"""Lyapunov exponents and gates: why gradients vanish or explode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unrollax._figures import Bars, Figure, Histogram, Plot, Table
from unrollax._report import Section
from unrollax.readings._words import paragraphs, short

BARS = 64
LINES = 6
SAYS = {
    "vanishing": "Differences between two states shrink, and so do gradients on their way back: the state forgets.",
    "exploding": "Small differences between two states grow, and so do gradients on their way back: far ahead, the exact "
    "gradient says nothing useful. Evolution strategies, shorter windows or clipped losses help.",
    "neutral": "Differences neither grow nor shrink by much: gradients come through.",
    "unresolved": "Whether gradients vanish or explode can't be told from so few steps. Measure over more of them.",
}


def read_lyapunov(found: Any) -> list[Section]:
    """Return what a `Lyapunov` says."""
    exponents = np.asarray(found.exponents, float)
    top = float(exponents[0]) if len(exponents) else math.nan
    fastest = ""
    if math.isfinite(top):
        fastest = (
            f"The direction that grows fastest changes by a factor of {short(math.exp(min(top, 700)))} a step "
            f"({top:.3g} +- {float(found.errors[0]):.2g} nats)."
        )
    names = [str(i + 1) for i in range(min(len(exponents), BARS))]
    bars = Bars("Lyapunov spectrum", "direction", "nats a step", names, exponents[:BARS], found.errors[:BARS])
    radius = float(found.spectral_radius)
    text = paragraphs(
        f"Verdict: {found.verdict}, with {found.confidence:.1%} confidence. {SAYS.get(found.verdict, '')}",
        fastest
        + (f" The step's own Jacobian has a spectral radius of {short(radius)}." if math.isfinite(radius) else ""),
    )
    growth = np.asarray(found.growth, float)
    over = getattr(found, "at", np.arange(1, len(growth) + 1))
    lines = {f"direction {i + 1}": growth[:, i] for i in range(min(growth.shape[1], LINES))} if growth.size else {}
    figures: list[Figure] = [bars]
    if lines:
        figures.append(Plot("Growth along the trajectory", "step", over, lines, "log of the growth, nats", ""))
    return [Section("Dynamics", text, figures)]


def read_gates(found: Any) -> list[Section]:
    """Return what a `Gates` says."""
    keep = found.gates.get(found.keep)
    about = f": on average {keep.mean:.3g}, saturated {keep.saturated:.0%} of the time" if keep is not None else ""
    text = paragraphs(
        f"What the {found.cell} keeps from one step to the next is set by its gate {found.keep}{about}.",
        f"By itself that gate changes the memory, and the gradient on its way back, by {found.predicted:.3g} nats a step: a "
        f"factor of {short(math.exp(min(found.predicted, 700)))}.{_measured(found)}",
        _slowest(found),
    )
    rows = [
        (gate.name, f"{gate.mean:.3g}", f"{gate.std:.2g}", f"{gate.saturated:.1%}", _range(gate.units))
        for gate in found.gates.values()
    ]
    head = ("gate", "mean", "standard deviation", "saturated", "mean by unit")
    histogram = Histogram("Gates", "value", {gate.name: (gate.edges, gate.counts) for gate in found.gates.values()})
    return [Section("Gates", text, [histogram], {"": Table(head, rows)})]


def _measured(found: Any) -> str:
    if not math.isfinite(found.measured):
        return ""
    return (
        f" Measured with the recurrent weights it is {found.measured:.3g} +- {found.error:.2g} nats: they "
        f"{_add(found.measured - found.predicted, found.error)}."
    )


def _slowest(found: Any) -> str:
    slowest = getattr(found, "slowest", math.nan)
    if not math.isfinite(slowest):
        return ""
    return (
        f"What is kept longest changes by {slowest:.3g} nats a step; {found.slowest_predicted:.3g} by the gate alone."
    )


def _add(difference: float, error: float) -> str:
    if not abs(difference) > 2 * error:
        return "make no difference that can be told from noise"
    return f"{'slow' if difference > 0 else 'speed up'} the decay by {abs(difference):.3g} nats a step"


def _range(units: Any) -> str:
    units = np.asarray(units, float)
    return f"{units.min():.3g} to {units.max():.3g}" if units.size else ""
