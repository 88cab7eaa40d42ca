"""What recipes share."""

from __future__ import annotations

from typing import Any

import optax

from unrollax.systems import GRUCell, LSTMCell, MinGRUCell, RNNCell, stacked


def decayed_adam(lr: float, steps: int) -> optax.GradientTransformation:
    """Return Adam on gradients of norm at most 1, its learning rate decayed to 0 by a cosine over the run."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, steps)))


def make_cell(name: str, inputs: int, hidden: int, *, chrono: int | None = None, layers: int = 1) -> Any:
    """Return a cell by the name that the command line has for it, or `layers` of them one above the other.

    Args:
        name: `lstm`, `gru`, `rnn` or `mingru`.
        inputs: size of what the lowest one reads.
        hidden: size of the state and of the output.
        chrono: the longest dependency in steps, for cells that can start with a memory as long.
        layers: cells one above the other, each added to what it reads.

    Example:
        >>> cell = make_cell("gru", 2, 8, layers=3)
        >>> [one.inputs for one in cell.cells]
        [2, 8, 8]
    """
    cells = [_one_cell(name, hidden if layer else inputs, hidden, chrono) for layer in range(layers)]
    return cells[0] if layers == 1 else stacked(*cells, residual=True)


def _one_cell(name: str, inputs: int, hidden: int, chrono: int | None) -> Any:
    if name == "rnn":
        return RNNCell(inputs, hidden)
    return {"lstm": LSTMCell, "gru": GRUCell, "mingru": MinGRUCell}[name](inputs, hidden, chrono=chrono)
