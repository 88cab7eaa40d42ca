"""Means over a standard normal number of functions with kinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FAR = 10.0  # standard deviations that the quadrature reaches to: beyond them lies a mass of 1e-23


class Rule(NamedTuple):
    """A quadrature for means over a standard normal number: `(weights * f(points)).sum()`."""

    points: np.ndarray
    weights: np.ndarray


def normal_rule(breaks: Sequence[float] = (0.0,), *, panel: float = 0.5, order: int = 12) -> Rule:
    """Return Gauss-Legendre panels whose ends are at the breaks and finer towards 0.

    Gauss-Hermite nodes converge slowly at a kink such as ReLU's; between two ends this rule sees a smooth function. The
    weights are made symmetric and of sum 1, so that the mean of a constant, and of a step at 0, is exact.
    """
    fine = panel * 2.0 ** -np.arange(11)
    right = np.unique(np.concatenate([[0.0], fine, np.arange(panel, FAR + panel / 2, panel)]))
    ends = np.sort(np.concatenate([-right[1:], right, np.clip(np.asarray(breaks, float), -FAR, FAR)]))
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = np.diff(ends)[:, None] / 2
    points = (ends[:-1, None] + half * (1 + nodes)).ravel()
    density = (half * weights).ravel() * np.exp(-(points**2) / 2)
    return Rule(points, density / math.fsum(density))
