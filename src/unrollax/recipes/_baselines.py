"""Linear forecasts of a series, which a network has to beat, and the scale on which both are made. NumPy only."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from unrollax._errors import InvalidArgument

LARGEST = 300.0  # logarithm of a forecast


class Scale(NamedTuple):
    """Where a series is learned: standardised after a function that evens out its noise.

    Attributes:
        name: `linear`, `root` or `log`.
        floor: the smallest training value; for `log`, smaller ones count as it.
        mean: of the training values under the function.
        std: their standard deviation.
    """

    name: str
    floor: float
    mean: float
    std: float

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Standardise."""
        return np.asarray((bend(self.name, values, self.floor) - self.mean) / self.std)

    def back(self, scaled: np.ndarray) -> np.ndarray:
        """Undo `forward`."""
        bent = scaled * self.std + self.mean
        if self.name == "root":
            return np.square(np.maximum(bent, 0))
        return np.exp(np.minimum(bent, LARGEST)) if self.name == "log" else bent


def bend(name: str, values: np.ndarray, floor: float) -> np.ndarray:
    """Return the values, their roots or their logarithms."""
    if name == "root":
        return np.sqrt(np.maximum(values, 0))
    return np.log(np.maximum(values, floor)) if name == "log" else np.asarray(values)


def make_scale(name: str, train: np.ndarray) -> Scale:
    """Measure the scale on the training values.

    Raises:
        InvalidArgument: they have no such function, or don't vary.
    """
    floor = float(train.min())
    if (name == "root" and floor < 0) or (name == "log" and floor <= 0):
        raise InvalidArgument(f"forecast: scale={name} must have values of one sign, got {floor:g}. Choose linear.")
    bent = bend(name, train, floor)
    if not bent.std() > 0:
        raise InvalidArgument(f"forecast: the training values must vary, got {train[0]:g} throughout.")
    return Scale(name, floor, float(bent.mean()), float(bent.std()))


def choose_scale(train: np.ndarray, order: int, ahead: int) -> Scale:
    """Return the scale on which the size of an autoregression's errors is least correlated with its forecasts."""
    floor = float(train.min())
    names = ["linear", *(["root"] if floor >= 0 else []), *(["log"] if floor > 0 else [])]
    scales = [make_scale(name, train) for name in names]

    def dependence(scale: Scale) -> float:
        values = scale.forward(train)
        forecast = autoregression(values, len(train), order, ahead)[order + ahead - 1 :]
        size = np.abs(values[order + ahead - 1 :] - forecast)
        spread = size.std() * forecast.std()
        return abs(float(np.mean((size - size.mean()) * (forecast - forecast.mean())) / spread)) if spread > 0 else 0.0

    return min(scales, key=dependence)


def autoregression(values: np.ndarray, train: int, order: int, ahead: int) -> np.ndarray:
    """Forecast every value from the `order` ones that end `ahead` steps before it, by least squares on the first `train`.

    Returns:
        `[n]`, NaN where too few values come before.

    Example:
        >>> autoregression(np.array([1.0, 2.0, 4.0, 8.0, 16.0, 99.0]), train=5, order=1, ahead=1).round(6)
        array([nan,  2.,  4.,  8., 16., 32.])
    """
    design, start = _lagged(values, order, ahead)
    weights = np.linalg.lstsq(design[: train - start], values[start:train], rcond=None)[0]
    return np.concatenate([np.full(start, np.nan), design @ weights])


def _lagged(values: np.ndarray, order: int, ahead: int) -> tuple[np.ndarray, int]:
    """Return rows of 1 and the `order` values that a forecast may use, the last first, and where the first forecast is."""
    start = order + ahead - 1
    lags = [values[order - 1 - lag : len(values) - ahead - lag] for lag in range(order)]
    return np.stack([np.ones(len(values) - start), *lags], axis=1), start


def best_order(train: np.ndarray, ahead: int) -> int:
    """Return the order of the autoregression with the least AIC on the training values, all orders on the same targets."""
    most = max(1, min(24, (len(train) - ahead) // 8))
    targets = train[most + ahead - 1 :]

    def criterion(order: int) -> float:
        forecast = autoregression(train, len(train), order, ahead)[most + ahead - 1 :]
        return len(targets) * math.log(max(rmse(forecast, targets) ** 2, 1e-300)) + 2 * (order + 1)

    return min(range(1, most + 1), key=criterion)


def rmse(forecast: np.ndarray, truth: np.ndarray) -> float:
    """Return the root of the mean squared difference."""
    return float(np.sqrt(np.mean(np.square(forecast - truth))))
