"""What the gates of a recurrent cell do on data, and how much of its memory they keep with the recurrent weights in place."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument, StructureError
from unrollax._types import Key, Params, System
from unrollax.diagnosis._gate import Gate, gate_of
from unrollax.diagnosis._growth import log_largest, mean_and_error
from unrollax.diagnosis._jacobians import Paths, Plan, floats, push
from unrollax.diagnosis._paths import examples_of
from unrollax.diagnosis._recording import Layer, Record, record
from unrollax.diagnosis._text import aligned, plain
from unrollax.systems._frames import Frame
from unrollax.systems._recurrent import Recurrent
from unrollax.systems._stack import Stacked

OWNER = "gate_statistics"
LARGEST = 256  # kept numbers whose Jacobian products are computed


class Gates(NamedTuple):
    """The gates of a cell and what becomes of its memory; see `gate_statistics`. Rates are in nats a step.

    Attributes:
        cell: the cell's type.
        gates: by name.
        keep: the name of the gate that multiplies what the cell keeps.
        predicted: the mean of log keep: the decay of the memory if it took no other way than through that gate.
        measured: the mean over all directions of the decay of the memory with the recurrent weights in place; NaN if the
            cell keeps more than 256 numbers.
        error: its standard error.
        without: the same with the recurrent weights set to zero, and the inputs of the cell as they are; NaN if it has none.
        slowest_predicted: the mean of log keep of the unit that keeps longest.
        slowest: the decay of the direction that lasts longest: log of the largest singular value over the steps.
        slowest_without: the same without recurrent weights.
        steps: real steps, of all examples together.
        examples: examples that were measured.
    """

    cell: str
    gates: dict[str, Gate]
    keep: str
    predicted: float
    measured: float
    error: float
    without: float
    slowest_predicted: float
    slowest: float
    slowest_without: float
    steps: int
    examples: int

    def __str__(self) -> str:
        shares = [(g.name, f"{g.mean:.3f}", f"{g.std:.3f}", f"{100 * g.saturated:.1f} %") for g in self.gates.values()]
        decays = [
            ("by that gate alone", self.predicted, self.slowest_predicted),
            ("measured", self.measured, self.slowest),
            ("measured, recurrent weights 0", self.without, self.slowest_without),
        ]
        lines = [
            f"{self.cell}: the gate {self.keep} keeps the memory. {self.steps} steps of {self.examples} example(s).",
            aligned([("gate", "mean", "std", "saturated"), *shares]),
            "",
            aligned(
                [
                    ("growth of the memory, nats a step", "all directions", "slowest"),
                    *((name, f"{mean:.4f}", f"{slowest:.4f}") for name, mean, slowest in decays),
                ]
            ),
            f"Standard error of what was measured over all directions: {self.error:.2g}.",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON; NaN and infinities stay floats."""
        out: dict[str, Any] = plain(self)
        return out


def gate_statistics(
    recurrent: System, params: Params, data: Any, *, key: Key, layer: int = 0, examples: int | None = None
) -> Gates:
    """Measure the gates of a recurrent cell on data, and how fast its memory fades.

    The gate `keep` multiplies what the cell keeps, f of an LSTM, z of a GRU, 1 - z of a minGRU, |lambda| of an LRU. Were
    that the only way from m_0 to m_T, the memory's Jacobian d m_T / d m_0 would be the product of the gates, and the mean of
    its log singular values over T, `measured`, the mean of log keep, `predicted`. They agree where no recurrent weight feeds
    the gates; their difference is what the recurrent weights do. `slowest` is the direction that lasts longest, which is what
    a gradient over many steps consists of.

    Padded steps don't count. Of a batch only some examples are measured.

    Args:
        recurrent: a system made by `recurrent`, or a batch of it.
        params: its parameters, `{"cell": ..., "readout": ...}`.
        data: a `Frame` with leaves `[steps, ...]`, in a batch `[steps, n, ...]`.
        key: a PRNG key, for the directions to start with.
        layer: of a `stacked` cell, which one, the lowest 0. Its inputs come from the layers below.
        examples: of a batch, how many to measure; `None` for 8 or all.

    Returns:
        `Gates`. A cell of yours can be measured if it has `gates(params, state, x)`, which returns a dict of arrays
        `[hidden]`, and `keep`, the name of one of them; it may have `kept(state)`, the part of the state that it multiplies.
        Recurrent weights are what its params call `wh`.

    Raises:
        InvalidArgument: the system is not recurrent, the cell has no gates, or there is no such layer or no real step, or
            a gate is NaN or infinite.
        StructureError: data or params don't fit.

    Example:
        >>> import jax.numpy as jnp, unrollax as ux
        >>> net = ux.recurrent(ux.LSTMCell(2, 8, forget_bias=2.0), ux.Dense(8, 3))
        >>> data = ux.sequence(jax.random.normal(jax.random.key(0), (50, 2)), 1, loss_at="end")
        >>> found = ux.gate_statistics(net, net.params(jax.random.key(1)), data, key=jax.random.key(2))
        >>> list(found.gates), found.keep, round(found.predicted, 2)
        (['f', 'g', 'i', 'o'], 'f', -0.14)

    References: Gers et al., Neural Computation 2000; Tallec and Ollivier, ICLR 2018; Can, Krishnamurthy and Schwab, 2020.
    """
    check_counts(OWNER, examples=8 if examples is None else examples)
    _check_parts(recurrent, params, data)
    found = examples_of(OWNER, recurrent, params, data, key, None, examples or 8)
    cell, weights = _layer(found.system, params, layer)
    met = record(found, params, layer)
    _check_record(met)
    basis, read = _basis(cell, met, key)
    paths = Paths(met.start, (met.inputs, met.mask), found.keys, basis, read)
    mask = np.asarray(met.mask)
    values = {name: np.asarray(rows) for name, rows in met.gates.items()}
    predicted, slowest_predicted = _predicted(values[cell.keep], mask)
    measured, error, slowest = _decay(cell, weights, paths, mask)
    without, _, slowest_without = _decay(cell, _without(weights), paths, mask)
    return Gates(
        cell=type(cell).__name__,
        gates={name: gate_of(name, rows[mask]) for name, rows in values.items()},
        keep=cell.keep,
        predicted=predicted,
        measured=measured,
        error=error,
        without=without,
        slowest_predicted=slowest_predicted,
        slowest=slowest,
        slowest_without=slowest_without,
        steps=int(mask.sum()),
        examples=len(mask),
    )


def gated_layers(system: Any) -> int:
    """Return how many layers `gate_statistics` can measure: 0 unless the cell, or each cell of a stack, has gates."""
    inner = system
    while hasattr(inner, "system"):
        inner = inner.system
    cell = inner.cell if isinstance(inner, Recurrent) else None
    cells = cell.cells if isinstance(cell, Stacked) else [cell]
    return len(cells) if all(callable(getattr(each, "gates", None)) for each in cells) else 0


def _check_parts(network: Any, params: Any, data: Any) -> None:
    inner = network
    while hasattr(inner, "system"):  # a batch, and what changes only the loss
        inner = inner.system
    if not isinstance(inner, Recurrent):
        raise InvalidArgument(
            f"{OWNER}: needs a system made by recurrent(cell, readout), got {type(inner).__name__}. "
            "Of any other system lyapunov measures how its state fades."
        )
    if not isinstance(params, dict) or "cell" not in params:
        got = list(params) if isinstance(params, dict) else type(params).__name__
        raise StructureError(
            f"{OWNER}: params must be {{'cell': ..., 'readout': ...}}, got {got}. Draw them by .params(key)."
        )
    if not isinstance(data, Frame):
        raise StructureError(
            f"{OWNER}: data must be a Frame, got {type(data).__name__}. Make it with sequence(input, target)."
        )


def _layer(network: Any, params: Params, layer: int) -> tuple[Any, Params]:
    """Return the cell to measure and its parameters."""
    cell, weights, layers = network.cell, params["cell"], 1
    if isinstance(cell, Stacked):
        layers = len(cell.cells)
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < layers:
        raise InvalidArgument(
            f"{OWNER}: layer must be one of the cell's {layers}, got layer={layer!r}. The lowest is layer=0."
        )
    if isinstance(cell, Stacked):
        cell, weights = cell.cells[layer], weights[layer]
    if not callable(getattr(cell, "gates", None)) or not isinstance(getattr(cell, "keep", None), str):
        raise InvalidArgument(
            f"{OWNER}: the cell must have gates(params, state, x) and keep, the name of the gate that keeps its memory, got "
            f"{type(cell).__name__}. Of a cell without gates lyapunov measures how its state fades."
        )
    return cell, weights


def _check_record(met: Record) -> None:
    mask = np.asarray(met.mask)
    if not mask.any():
        raise InvalidArgument(f"{OWNER}: the data must have a real step, got a mask without one. Mend the mask.")
    for name, rows in met.gates.items():
        bad = mask & ~np.isfinite(np.asarray(rows)).all(-1)
        if bad.any():
            step = int(np.argmax(bad.any(0))) + 1
            raise InvalidArgument(
                f"{OWNER}: gates must be finite, got NaN or infinity in {name} at step {step}. Mend the params or the data."
            )


def _basis(cell: Any, met: Record, key: Key) -> tuple[jax.Array, jax.Array]:
    """Return orthonormal directions of what the cell keeps, and the matrix that reads it from the state."""
    vector, rebuild = floats(jax.tree.map(lambda leaf: leaf[0], met.start))
    kept = getattr(cell, "kept", lambda state: state)
    read = jax.jacobian(lambda vector: floats(kept(rebuild(vector)))[0])(vector)
    turn = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 2), (len(read), len(read)), read.dtype))[0]
    return read.T @ turn, read


def _decay(cell: Any, weights: Params | None, paths: Paths, mask: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of the log singular values of the memory's Jacobian a step, its error, and the largest one's rate."""
    count = paths.basis.shape[1]
    if weights is None or count > LARGEST:
        return math.nan, math.nan, math.nan
    plan = Plan(OWNER, mask.shape[1], product=True)
    track = push(Layer(cell), weights, paths, plan)
    assert track.product is not None
    steps, real = mask.sum(), mask.any(1)
    logs = [rows[there].mean(1, keepdims=True) for rows, there in zip(track.logs, mask, strict=True) if there.any()]
    error = mean_and_error(logs, [np.ones(len(rows)) for rows in logs])[1][0]
    forgotten: np.ndarray = np.isneginf(track.logs).any(1)
    mean = -math.inf if forgotten.any() else float(track.product.logs[real].mean(1).sum() / steps)
    largest = log_largest(track.product.logs, track.product.unit)[real].sum() / steps
    return mean, float(error), -math.inf if forgotten.all(1).any() else float(largest)


def _without(weights: Params) -> Params | None:
    """Return the parameters with the recurrent weights set to zero; `None` if there are none."""
    if not isinstance(weights, dict) or "wh" not in weights:
        return None
    return weights | {"wh": jax.tree.map(jnp.zeros_like, weights["wh"])}


def _predicted(keep: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Return the mean of log keep over all units, and of the unit that keeps longest."""
    with np.errstate(divide="ignore"):
        sums = np.stack([np.log(np.abs(rows[real])).sum(0) for rows, real in zip(keep, mask, strict=True)])
    return float(sums.mean(1).sum() / mask.sum()), float(sums.max(1).sum() / mask.sum())
