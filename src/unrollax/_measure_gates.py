"""How a gate that keeps the memory could start, and what the memory does then."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from unrollax._advise import Case
from unrollax.diagnosis import gate_statistics
from unrollax.systems._initial import chrono_bias


class Opened(NamedTuple):
    """How a gate that keeps can start: the option of its cell, the bias, and the mean of the gate's logarithm then."""

    option: str
    bias: np.ndarray
    rate: float


def chrono_rate(steps: int) -> float:
    """Return the mean of log sigmoid(b) over biases b = log U[1, steps - 1], as `chrono=steps` draws them."""
    top = steps - 1
    return -(steps * math.log(steps) - top * math.log(top) - 2 * math.log(2)) / (top - 1)


def opened_gate(case: Case, layer: int) -> Opened:
    """Return how the gate that keeps would start for the horizon, everything else as it is.

    The forget bias of an LSTM is chosen for a decay of 2 / horizon; a GRU has `chrono=` alone.
    """
    gates = case.gates[layer]
    others = _logit(np.clip(gates.gates[gates.keep].units, 1e-6, 1 - 1e-6)) - _bias(case, layer)

    def rate(bias: Any) -> float:
        return float(-np.logaddexp(0, -(others + bias)).mean())

    if gates.cell == "GRUCell":
        places = (np.arange(256) + 0.5) / 256
        drawn = np.asarray(chrono_bias(jax.random.fold_in(case.key, 5), len(others), case.horizon), float)
        spread = np.log(1 + (case.horizon - 2) * places)[:, None]
        return Opened(f"chrono={case.horizon}", drawn, rate(spread))
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < -2 / case.horizon else (low, middle)
    bias = round(high, 2)
    return Opened(f"forget_bias={bias}", np.full(len(others), bias), rate(bias))


def with_bias(case: Case, layer: int, bias: np.ndarray) -> float:
    """Return the decay of a layer's memory, recurrent weights and all, with the bias of the gate that keeps it replaced."""
    cells = case.params["cell"]
    cell = dict(cells if isinstance(cells, dict) else cells[layer])
    cell["b"] = cell["b"].at[len(bias) : 2 * len(bias)].set(bias)  # f of an LSTM, z of a GRU
    mended = cell if isinstance(cells, dict) else type(cells)([*cells[:layer], cell, *cells[layer + 1 :]])
    params = {**case.params, "cell": mended}
    return gate_statistics(case.system, params, case.data, key=case.key, layer=layer).measured


def _bias(case: Case, layer: int) -> np.ndarray:
    """Return the bias of the gate that keeps."""
    cells = case.params["cell"]
    cell = cells if isinstance(cells, dict) else cells[layer]
    hidden = cell["wh"].shape[0]
    return np.asarray(cell["b"], float)[hidden : 2 * hidden]


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)
