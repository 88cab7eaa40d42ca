"""What random deep nets do at infinite width: how activations and gradients grow from layer to layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import FINITE, NOT_NEGATIVE, POSITIVE, check_counts, check_number
from unrollax._errors import InvalidArgument
from unrollax.diagnosis._quadrature import normal_rule
from unrollax.diagnosis._text import aligned, plain

Transfer = Callable[[Any], Any]
HUGE, SMALL = 1e30, 1e-9  # a variance that grows beyond is infinite; one that shrinks below goes to 0
TINY = 1e-20  # stands for 0, where a kink has no derivative
CRITICAL = 1e-9  # |ln chi| below it counts as 0


class MeanField(NamedTuple):
    """What mean-field theory predicts for a deep net with random weights; see `mean_field`.

    Attributes:
        weight_std: standard deviation of a weight times the root of the number of inputs of a unit.
        bias_std: standard deviation of the biases.
        lengths: `[depth]` variance of the activations (before the transfer) in each layer.
        factors: `[depth]` norm of the gradient at a layer's input over that at its output.
        factor: their geometric mean, over the `depth` layers.
        q: fixed point of the variance; infinite where it grows for ever.
        chi: mean squared factor at the fixed point: below 1 gradients vanish, above 1 they explode.
        correlation: fixed point of the correlation between the activations of two inputs.
        slope: slope of the correlation map there: what a small deviation from it is multiplied by, a layer.
        depth_scale: layers after which the squared gradient has changed by e, 1 / |ln chi|; infinite at criticality.
        verdict: "vanishing", "critical" or "exploding", of the fixed point.
    """

    weight_std: float
    bias_std: float
    lengths: np.ndarray
    factors: np.ndarray
    factor: float
    q: float
    chi: float
    correlation: float
    slope: float
    depth_scale: float
    verdict: str

    def __str__(self) -> str:
        depth = len(self.factors)
        says = {
            "vanishing": "Gradients shrink from layer to layer, going back (the ordered phase).",
            "critical": "Gradients keep their norm where the variance has settled (the edge of chaos).",
            "exploding": "Gradients grow from layer to layer, going back (the chaotic phase).",
        }
        rows = [
            ("weights", f"std {self.weight_std:.4g} / sqrt(inputs), biases std {self.bias_std:.4g}"),
            (
                f"over {depth} layers",
                f"gradient norm x {self.factor:.4g} a layer, x {np.prod(self.factors):.3g} in all",
            ),
            ("variance", f"{self.lengths[0]:.4g} in the first layer, {self.lengths[-1]:.4g} in the last"),
            (
                "settled",
                f"variance {self.q:.4g}, chi {self.chi:.6g}, gradient norm x {math.sqrt(self.chi):.4g} a layer",
            ),
            ("depth scale", f"{self.depth_scale:.4g} layers"),
            ("correlation", f"{self.correlation:.4g}, its deviations x {self.slope:.4g} a layer"),
        ]
        table = aligned([(name, text.ljust(max(len(row[1]) for row in rows))) for name, text in rows])
        return f"Mean field: {self.verdict}. {says[self.verdict]}\n{table}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python numbers and lists, by field."""
        return plain(self)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(transfer: Transfer, points: Any) -> tuple[jax.Array, jax.Array]:
    """Return the transfer and its derivative at points, of any shape."""
    value, slope = jax.jvp(transfer, (points,), (jnp.ones_like(points),))
    return value, slope


class _Map(NamedTuple):
    """The maps of variance and correlation from one layer to the next."""

    transfer: Transfer
    weights: float  # variances
    biases: float
    kinks: tuple[float, ...]

    def moments(self, q: float) -> tuple[float, float]:
        """Return the next layer's variance and chi, for activations of variance q."""
        root = math.sqrt(max(q, TINY))
        rule = normal_rule(tuple(kink / root for kink in self.kinks))
        value, slope = map(np.asarray, _slopes(self.transfer, root * rule.points))
        squares, chi = float(rule.weights @ value**2), float(rule.weights @ slope**2)
        return self.weights * squares + self.biases, self.weights * chi

    def correlated(self, q: float, c: float) -> tuple[float, float]:
        """Return the next layer's correlation and the map's slope, for two activations of variance q, correlation c."""
        root = math.sqrt(max(q, TINY))
        rule = normal_rule((0.0,), panel=1.0, order=8)
        first = root * np.broadcast_to(rule.points[:, None], (len(rule.points),) * 2)
        second = c * first + math.sqrt(max(1 - c * c, 0)) * first.T
        value, slope = map(np.asarray, _slopes(self.transfer, first))
        other, tilt = map(np.asarray, _slopes(self.transfer, second))
        after = self.moments(max(q, TINY))[0]
        both = rule.weights @ (value * other) @ rule.weights
        slopes = rule.weights @ (slope * tilt) @ rule.weights
        return float((self.weights * both + self.biases) / after), float(self.weights * slopes * root**2 / after)


def _settle(update: Callable[[float], float], start: float, floor: float) -> float:
    """Return where repeated updates lead, sped up by Aitken's extrapolation: near criticality they creep.

    An extrapolated point is taken only where it lies onwards: in growth without end it points back. With `floor=0` the
    number is a variance and judged by its own size.
    """
    q = start
    for _ in range(300):
        first = update(q)
        if not first < HUGE:
            return math.inf
        if abs(first - q) <= 1e-14 * (abs(q) + floor):
            return first
        if not floor and first < min(q, SMALL):
            return 0.0
        second = update(first)
        bend = second - 2 * first + q
        jump = q - (first - q) ** 2 / bend if bend else second
        onwards = (jump - second) * (second - first) > 0
        q = min(max(jump, 1e-6 * second), 1e6 * second) if onwards else second
    return math.nan


def mean_field(
    transfer: Transfer,
    *,
    weight_std: float = 1.0,
    bias_std: float = 0.0,
    q: float | None = None,
    depth: int = 20,
    kinks: Sequence[float] = (0.0,),
) -> MeanField:
    """Predict how activations and gradients grow through a deep net with random weights.

    For weights of mean 0 and variance `weight_std**2 / n`, with n inputs a unit, biases of variance `bias_std**2`, and n
    to infinity, the activations of a layer are normal with a variance that follows the length map, and the gradient's
    squared norm is multiplied by `chi` on its way back through a layer (z is a standard normal number):

        q_next = weight_std**2 E[transfer(sqrt(q) z)**2] + bias_std**2
        chi(q) = weight_std**2 E[transfer'(sqrt(q) z)**2]

    `factors` are `sqrt(chi)` in each of `depth` layers; `q`, `chi` and what follows from them hold where the variance has
    settled. The two differ where it settles slowly: for tanh and `weight_std=1` the fixed point is critical, but thirty
    layers have a factor of 0.94 each, since the variance is still on its way to 0. Means are by quadrature in float64.

    Args:
        transfer: a function that acts on each number, such as `jax.nn.relu`.
        weight_std: standard deviation of a weight times the root of the number of inputs; sqrt(2) is He's initialisation.
        bias_std: standard deviation of the biases.
        q: variance of the first layer's activations; by default that for inputs of mean square 1.
        depth: layers to follow.
        kinks: activations at which the transfer isn't smooth, such as `(-1, 1)` for a hard tanh: the quadrature breaks there.

    Raises:
        InvalidArgument: an argument out of range, or a transfer that doesn't act on each number.

    Example:
        >>> import jax, unrollax as ux
        >>> found = ux.mean_field(jax.nn.relu, weight_std=2**0.5)
        >>> print(f"{found.factor:.6f}", found.verdict)
        1.000000 critical
        >>> print(f"{ux.mean_field(jax.nn.sigmoid).chi ** 0.5:.3f}")
        0.236

    References: Poole et al., NeurIPS 2016, Exponential expressivity in deep neural networks through transient chaos;
        Schoenholz et al., ICLR 2017, Deep information propagation.
    """
    check_counts("mean_field", depth=depth)
    check_number("mean_field", "weight_std", weight_std, POSITIVE, used=True)
    check_number("mean_field", "bias_std", bias_std, NOT_NEGATIVE, used=True)
    q = float(weight_std) ** 2 + float(bias_std) ** 2 if q is None else q
    check_number("mean_field", "q", q, POSITIVE, used=True)
    for kink in kinks:
        check_number("mean_field", "kinks", kink, FINITE, used=True)
    with jax.enable_x64(True):
        _check_transfer(transfer)
        maps = _Map(transfer, float(weight_std) ** 2, float(bias_std) ** 2, tuple(map(float, kinks)))
        lengths, chis = _follow(maps, float(q), depth)
        settled = _settle(lambda now: maps.moments(now)[0], float(q), 0.0)
        at = min(settled, HUGE)
        chi = maps.moments(at)[1]
        correlation, slope = _correlation(maps, at)
    scale = math.inf if abs(math.log(chi)) < CRITICAL else 1 / abs(math.log(chi))
    verdict = "critical" if scale == math.inf else "exploding" if chi > 1 else "vanishing"
    factors = np.sqrt(chis)
    factor = float(np.exp(np.log(factors).mean()))
    return MeanField(
        float(weight_std), float(bias_std), lengths, factors, factor, settled, chi, correlation, slope, scale, verdict
    )


def _follow(maps: _Map, q: float, depth: int) -> tuple[np.ndarray, np.ndarray]:
    lengths, chis = np.zeros(depth), np.zeros(depth)
    for layer in range(depth):
        lengths[layer] = q
        q, chis[layer] = maps.moments(q)
    return lengths, chis


def _correlation(maps: _Map, q: float) -> tuple[float, float]:
    """Return the stable fixed point of the correlation map and its slope there; 1 is always a fixed point."""
    if not math.isfinite(q):
        return math.nan, math.nan
    _, slope = maps.correlated(q, 1.0)
    if slope <= 1 + 1e-6:
        return 1.0, slope
    correlation = _settle(lambda c: min(max(maps.correlated(q, c)[0], -1.0), 1.0), 0.0, 1.0)
    return round(correlation, 12), maps.correlated(q, correlation)[1]


def _check_transfer(transfer: Any) -> None:
    """Raise unless a transfer acts on each number: then part of its result is the result for a part."""
    points = jnp.linspace(-2.0, 2.0, 8)
    got: Any = transfer(points) if callable(transfer) else points[:0]
    if jnp.shape(got) != points.shape or not jnp.array_equal(transfer(points[:3]), got[:3]):
        name = getattr(transfer, "__name__", repr(transfer))
        raise InvalidArgument(
            f"mean_field: transfer must be a function that acts on each number, got {name}. Pass one such as jax.numpy.tanh."
        )
