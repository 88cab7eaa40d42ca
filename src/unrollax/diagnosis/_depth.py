"""Depth as time: how the gradient fares on its way back through a list of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from unrollax._check import POSITIVE, check_number
from unrollax._errors import InvalidArgument
from unrollax._types import Params
from unrollax.diagnosis._layers import Seen, measure
from unrollax.diagnosis._text import aligned, plain

HEALTHY = 100.0  # factor between the first and the last layer's gradient up to which all is well
SHOWN = 40  # layers in a printed table


class Depth(NamedTuple):
    """What one backward pass says about a list of layers; see `depth_flow`. L is the number of layers.

    Attributes:
        names: what the layers are called, the first one first.
        loss: the loss.
        activations: `[L]` root mean square of a layer's output.
        norms: `[L]` Euclidean norm of a layer's output, over the whole batch.
        gradients: `[L]` norm of d loss / d output of a layer.
        input_gradient: norm of d loss / d x; NaN where x has no derivative.
        params: `[L]` norm of d loss / d params of a layer; 0 without params.
        factors: `[L]` norm of the gradient at a layer's input over that at its output; NaN where one is not a normal number.
        factor: their geometric mean.
        error: standard error of it, from the spread of the logarithms.
        predictions: `[L]` the mean-field factor, for the measured activations; NaN where not known.
        predicted: geometric mean of the predictions; None where there is none.
        saturated: `[L]` share of activations at which the transfer's slope is below 5 % of its largest; NaN if not known.
        dead: `[L]` share of units that pass no gradient for any example; NaN if not known.
        underflow: the last layer whose gradient is 0 or below the smallest normal number of its dtype, and so all before it
            learn nothing; None where there is none.
        overflow: the last layer whose gradient is infinite or NaN; None where there is none.
        verdict: "vanishing", "exploding" or "healthy": whether the first layer's input gets less than 1/100 of the last
            layer's gradient, more than 100 times as much, or neither.
    """

    names: list[str]
    loss: float
    activations: np.ndarray
    norms: np.ndarray
    gradients: np.ndarray
    input_gradient: float
    params: np.ndarray
    factors: np.ndarray
    factor: float
    error: float
    predictions: np.ndarray
    predicted: float | None
    saturated: np.ndarray
    dead: np.ndarray
    underflow: int | None
    overflow: int | None
    verdict: str

    def __str__(self) -> str:
        theory = "" if self.predicted is None else f", mean field {self.predicted:.4g}"
        spread = f" +- {self.error:.2g}" if np.isfinite(self.error) else ""
        lines = [f"Depth: {self.verdict}. A layer multiplies the gradient's norm by {self.factor:.4g}{spread}{theory}."]
        for layer, what in ((self.underflow, "is 0 or underflows"), (self.overflow, "is infinite or NaN")):
            if layer is not None:
                lines.append(f"Going back, the gradient {what} from {self.names[layer]} on.")
        head = (
            "layer",
            "output rms",
            "|d loss/d output|",
            "factor",
            "mean field",
            "|d loss/d params|",
            "saturated",
            "dead",
        )
        rows = [
            (name, *(f"{number:.4g}" for number in row[:5]), *(f"{100 * share:.1f} %" for share in row[5:]))
            for name, *row in zip(self.names, *self._columns(), strict=True)
        ]
        if len(rows) > SHOWN:
            rows = [*rows[: SHOWN // 2], ("...",) + ("",) * 7, *rows[-SHOWN // 2 :]]
        return "\n".join([*lines, aligned([head, *rows]).replace("nan %", "    -").replace("nan", "  -")])

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python numbers and lists, by field."""
        return plain(self)

    def _columns(self) -> tuple[np.ndarray, ...]:
        return (
            self.activations,
            self.gradients,
            self.factors,
            self.predictions,
            self.params,
            self.saturated,
            self.dead,
        )


def depth_flow(
    layers: Sequence[Any],
    params: Sequence[Params],
    x: Any,
    loss: Callable[[Any], Any],
    *,
    names: Sequence[str] | None = None,
    weight_std: float | None = None,
) -> Depth:
    """Follow the gradient back through a list of layers, in one backward pass that linearises each layer anew.

    With y_l the output of layer l and y_0 = x, the factor of a layer is `|d loss/d y_(l-1)| / |d loss/d y_l|`, norms over the
    whole batch. Beside it stands what mean-field theory predicts for random weights of the same size,
    `weight_std sqrt(E[transfer'(sqrt(q) z)**2])`, with q the measured mean square of the layer's activations.

    A layer is one of
        - a pair `(pre, transfer)` of functions, `y = transfer(pre(params, x))`, or an object with these two attributes;
        - one function `layer(params, x)`: its saturation and its prediction aren't known then, and a unit counts as dead
          when its output is the same for all examples.

    Where the transfer doesn't act on each number (a softmax), it is treated as the second.

    Args:
        layers: the layers, first to last; each returns an array whose first axis is the batch.
        params: for each layer its params, any pytree; `None` for a layer without.
        x: the input of the first layer, `[batch, ...]`.
        loss: `loss(y)`, a scalar, of the last layer's output.
        names: what to call the layers.
        weight_std: standard deviation of the weights times the root of a unit's number of inputs, for the prediction. By
            default it is measured in every layer that has one matrix, of inputs by outputs or the other way round.

    Raises:
        InvalidArgument: no layers, one that is none of the above, or not as many params or names as layers.
        StructureError: a layer that returns no batch of floating numbers, or a loss that is no scalar.

    Example:
        >>> import jax, unrollax as ux
        >>> dense = (lambda params, x: x @ params["w"], jax.nn.sigmoid)
        >>> keys = jax.random.split(jax.random.key(0), 12)
        >>> params = [{"w": jax.random.normal(key, (256, 256)) / 16} for key in keys]
        >>> x = jax.random.normal(jax.random.key(1), (16, 256))
        >>> found = ux.depth_flow([dense] * 12, params, x, lambda y: (y * x).sum())
        >>> print(f"{found.factor:.2f} {found.predicted:.2f} {found.verdict}")
        0.23 0.23 vanishing

    References: Glorot and Bengio, AISTATS 2010; Schoenholz et al., ICLR 2017 (the prediction).
    """
    layers = [_usable(index, layer) for index, layer in enumerate(layers)]
    names = [f"layer {index + 1}" for index in range(len(layers))] if names is None else list(names)
    _check_lengths(len(layers), params=len(params), names=len(names))
    if not callable(loss):
        raise InvalidArgument(
            f"depth_flow: loss must be a function of the last layer's output, got {loss!r}. Pass one."
        )
    if weight_std is not None:
        check_number("depth_flow", "weight_std", weight_std, POSITIVE, used=True)
        weight_std = float(weight_std)
    return _summary(names, measure(layers, list(params), x, loss, weight_std))


def _usable(index: int, layer: Any) -> Any:
    """Return a layer as a pair or a function, or as the pytree that it is; an object's methods are hashed by identity."""
    if isinstance(layer, tuple) and type(layer) is tuple:
        if len(layer) == 2 and all(map(callable, layer)):
            return layer
    elif callable(getattr(layer, "pre", None)) and callable(getattr(layer, "transfer", None)):
        return (layer.pre, layer.transfer) if jax.tree_util.all_leaves([layer]) else layer
    elif callable(layer):
        return layer
    raise InvalidArgument(
        f"depth_flow: layers[{index}] must be a pair (pre, transfer), an object with these attributes or a function "
        f"layer(params, x), got {layer!r}. Write one as a lambda."
    )


def _check_lengths(count: int, **lengths: int) -> None:
    if not count:
        raise InvalidArgument(
            "depth_flow: layers must hold at least one layer, got none. Pass the layers, first to last."
        )
    for name, length in lengths.items():
        if length != count:
            raise InvalidArgument(
                f"depth_flow: {name} must hold one for each of the {count} layers, got {length}. Add None."
            )


def _summary(names: list[str], seen: Seen) -> Depth:
    after, before, tiny, rows = seen.grads[1:], seen.grads[:-1], seen.tiny, seen.rows
    usable = np.isfinite(after) & np.isfinite(before) & (after >= tiny) & (before >= np.append(tiny[0], tiny[:-1]))
    factors = np.divide(before, after, out=np.full(len(after), np.nan), where=usable)
    logs = np.log(factors[usable])
    # The norms are a random walk over depth: its slope is the mean of the steps, and no line through the points does better.
    mean = logs.mean() if len(logs) else np.nan
    error = np.exp(mean) * logs.std(ddof=1) / np.sqrt(len(logs)) if len(logs) > 1 else np.nan
    known = rows.predicted[np.isfinite(rows.predicted) & (rows.predicted > 0)]
    underflow, overflow = _last(after < tiny), _last(~np.isfinite(after))
    total = logs.sum()
    vanishing, exploding = total < -np.log(HEALTHY), total > np.log(HEALTHY) or overflow is not None
    verdict = "exploding" if exploding else "vanishing" if vanishing or underflow is not None else "healthy"
    return Depth(
        names=names,
        loss=seen.loss,
        activations=rows.rms,
        norms=rows.norm,
        gradients=after,
        input_gradient=float(before[0]),
        params=seen.params,
        factors=factors,
        factor=float(np.exp(mean)),
        error=float(error),
        predictions=rows.predicted,
        predicted=float(np.exp(np.log(known).mean())) if len(known) else None,
        saturated=rows.saturated,
        dead=rows.dead,
        underflow=underflow,
        overflow=overflow,
        verdict=verdict,
    )


def _last(flags: np.ndarray) -> int | None:
    return int(np.flatnonzero(flags)[-1]) if flags.any() else None
