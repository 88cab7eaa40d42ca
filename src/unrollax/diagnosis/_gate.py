"""One gate's values in figures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unrollax.diagnosis._text import plain

BINS, END = 20, 0.05  # of a histogram, and how near to an end of its range a gate is saturated


class Gate(NamedTuple):
    """One gate of a cell, over all units, real steps and examples.

    Attributes:
        name: as in the cell's `gates`.
        mean: of its values.
        std: of its values.
        saturated: share of the values within 0.05 of an end of the range: there the gate's own derivative is small.
        edges: `[bins + 1]`, of the histogram: from 0 to 1, or from -1 to 1 for a gate with negative values.
        counts: `[bins]`, values in each bin.
        units: `[hidden]`, the mean of each unit.
    """

    name: str
    mean: float
    std: float
    saturated: float
    edges: np.ndarray
    counts: np.ndarray
    units: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, for JSON."""
        out: dict[str, Any] = plain(self)
        return out


def gate_of(name: str, values: np.ndarray) -> Gate:
    """Summarise the values `[n, hidden]` of one gate."""
    low, high = min(-1.0 if (values < 0).any() else 0.0, values.min()), max(1.0, values.max())
    counts, edges = np.histogram(values, BINS, (low, high))
    ends = (values < low + END) | (values > high - END)
    return Gate(name, float(values.mean()), float(values.std()), float(ends.mean()), edges, counts, values.mean(0))
