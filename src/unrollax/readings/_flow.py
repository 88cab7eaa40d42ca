"""Gradient flow: which step each loss's gradient comes from, and what a truncation loses."""

from __future__ import annotations

from typing import Any

import numpy as np

from unrollax._figures import Figure, HeatMap, Plot, Table
from unrollax._report import Section
from unrollax.readings._words import by_step, decay_plot, paragraphs, short

LEAVES = 6  # lines in a plot
OVER = "step s at which the parameters are used"
DOWN = "step t of the loss"
READ = (
    "In the picture a row is a loss and a column a step; the diagonal is a loss by its own step. What fades to the left is "
    "what can't be learnt from far back. Above the diagonal nothing is drawn: later steps have no part in a loss."
)
GOALS = (0.1, 0.01)  # relative errors of a truncated gradient


def read_flow(flow: Any) -> list[Section]:
    """Return what a `Flow` says."""
    losses, steps = np.shape(flow.table)
    text = paragraphs(
        f"The gradient of each of {losses} losses, taken apart by the step at which the parameters were used, over {steps} "
        f"steps. Going back by one step {by_step(flow.decay.rate, flow.decay.error)}. Through the state alone, a step back "
        f"{by_step(flow.state_decay.rate, flow.state_decay.error)}.",
        _beyond(flow.state_decay),
        _windows(flow),
        READ,
    )
    figures: list[Figure] = [
        _heat("Gradient by loss and step", OVER, flow, flow.table, "|d loss_t / d params_s|"),
        decay_plot("Decay with the distance", flow.decay),
        decay_plot("Decay through the state", flow.state_decay),
        _leaves(flow),
    ]
    if np.isfinite(flow.lost).any():
        lost = {"lost": flow.lost}
        figures.append(Plot("What a truncation loses", "window, in steps", flow.windows, lost, "relative error", "xy"))
    return [Section("Gradient flow", text, figures, {"By parameter": _shares(flow)})]


def read_state_flow(flow: Any) -> list[Section]:
    """Return what a `StateFlow` says."""
    losses, steps = np.shape(flow.state)
    text = paragraphs(
        f"The gradient of each of {losses} losses by the states of {steps} steps. Going back by one step "
        f"{by_step(flow.state_decay.rate, flow.state_decay.error)}.",
        _beyond(flow.state_decay),
        READ,
    )
    figures: list[Figure] = [
        _heat("Gradient by loss and state", "step s of the state", flow, flow.state, "|d loss_t / d state_s|"),
        decay_plot("Decay through the state", flow.state_decay),
    ]
    return [Section("Gradient flow through the state", text, figures)]


def read_decay(decay: Any) -> list[Section]:
    """Return what a `Decay` says."""
    text = f"Going back by one step {by_step(decay.rate, decay.error)}."
    return [Section("Decay", paragraphs(text, _beyond(decay)), [decay_plot("Decay with the distance", decay)])]


def read_history(history: Any) -> list[Section]:
    """Return what a `FlowHistory` says."""
    first, last = float(history.half_life[0]), float(history.half_life[-1])
    text = (
        f"The gradient followed back {len(history.steps)} times during training: its half-life was {short(first)} steps at "
        f"first and {short(last)} at the end."
    )
    figures: list[Figure] = [
        Plot("Decay during training", "update", history.steps, {"nats a step": history.rate}),
        HeatMap(
            "Gradient by distance during training", "lag, in steps", "update", history.lags, history.steps,
            history.norms, "norm, geometric mean",
        ),
    ]  # fmt: skip
    return [Section("Gradient flow during training", text, figures)]


def _beyond(decay: Any) -> str:
    said = []
    if decay.underflow is not None:
        said.append(
            f"From {decay.underflow} steps back on it is below the smallest normal number of its dtype: nothing is learnt "
            "from there, whatever the learning rate."
        )
    if decay.overflow is not None:
        said.append(
            f"From {decay.overflow} steps back on it is beyond the largest number of its dtype: backpropagation gives "
            "infinity or NaN."
        )
    return " ".join(said)


def _windows(flow: Any) -> str:
    """Say which windows keep how much of the gradient."""
    windows, lost = np.asarray(flow.windows), np.asarray(flow.lost)
    said = []
    for goal in GOALS:
        enough = windows[lost <= goal]
        if len(enough):
            said.append(f"at most {goal:.0%} of the gradient with windows of {enough.min()} steps")
    if not np.isfinite(lost).any():
        return "What a truncation loses can't be told: the gradient is 0, infinite or NaN." if len(windows) else ""
    if not said:
        return "No window that was tried keeps 90 % of the gradient." if len(windows) else ""
    return f"Truncated backpropagation loses {', and '.join(said)}."


def _lags(flow: Any, steps: int) -> np.ndarray:
    """Return the steps from each column back from each row's loss; negative where the step comes later."""
    return np.asarray(flow.at)[:, None] - np.arange(steps)[None]


def _heat(title: str, over: str, flow: Any, table: Any, unit: str) -> HeatMap:
    """Return a table by loss and step without what lies above its diagonal; NaN in the rest is shown as infinite."""
    cells = np.asarray(table, float)
    shown = np.where(np.isfinite(cells), cells, np.inf)
    shown = np.where(_lags(flow, cells.shape[1]) < 0, np.nan, shown)
    return HeatMap(title, over, DOWN, np.arange(cells.shape[1]), flow.at, shown, unit)


def _leaves(flow: Any) -> Plot:
    """Return the norms by lag of the leaves with the largest."""
    lags = _lags(flow, np.shape(flow.table)[1])
    every = np.arange(lags.max() + 1)
    largest = sorted(flow.leaves, key=lambda name: -_size(flow.leaves[name]))[:LEAVES]
    lines = {name: _by_lag(np.asarray(flow.leaves[name], float), lags, len(every)) for name in largest}
    return Plot(
        "Decay by parameter", "lag t - s, in steps back from the loss", every, lines, "norm, root mean square", "y"
    )


def _by_lag(table: np.ndarray, lags: np.ndarray, count: int) -> np.ndarray:
    top = float(np.nanmax(table, initial=0.0, where=np.isfinite(table))) or 1.0
    here = (lags >= 0) & np.isfinite(table)
    sums = np.bincount(lags[here], np.square(table[here] / top), count)
    counts = np.bincount(lags[here], minlength=count)
    return top * np.sqrt(np.divide(sums, counts, out=np.full(count, np.nan), where=counts > 0))


def _size(table: Any) -> float:
    """Return the norm of what is finite, without overflow."""
    numbers = np.asarray(table, float)
    numbers = numbers[np.isfinite(numbers)]
    top = float(numbers.max(initial=0.0))
    return top * float(np.sqrt(np.square(numbers / top).sum())) if top else 0.0


def _shares(flow: Any) -> Table:
    sizes = {name: _size(table) for name, table in flow.leaves.items()}
    top = max(sizes.values(), default=0.0) or 1.0
    total = sum((size / top) ** 2 for size in sizes.values()) or 1.0
    rows = [(name, f"{size:.4g}", f"{(size / top) ** 2 / total:.1%}") for name, size in sizes.items()]
    return Table(("leaf of params", "norm over all losses and steps", "share of its square"), rows)
