"""A recurrent net on scikit-learn's digits read row by row: LocoProp, S and M, against Adam at equal steps and equal seconds.

A plain tanh cell of 64 units reads 8 rows of 8 pixels; a softmax on its last state says which digit it was. The recurrent
layer is one local problem for all steps of time: what a step saw, `[h, x]`, is a row of what meets the weights, and its
target comes from the pass back through time.

    .venv/bin/python examples/locoprop_recurrent.py            # some minutes
    .venv/bin/python examples/locoprop_recurrent.py --quick

Each method is tuned over as many trials; its updates shrink linearly to 0 over each run. The table is in docs/locoprop.md.

References: Amid, Anil and Warmuth, AISTATS 2022; Martens, Ba and Johnson, ICLR 2018 (curvature of recurrent layers).
"""

from __future__ import annotations

from typing import Any

import _layerwise
import jax.numpy as jnp

import unrollax as ux
from unrollax.recipes._digits import load, standardized

USUAL = {"steps": 200, "trials": 4, "batch": 100}
HIDDEN = 64


def net() -> ux.Layered:
    """Return the net, `[batch, 8, 8]` to `[batch, 10]` logits."""
    layers = [
        ux.RecurrentLayer(8, HIDDEN),
        ux.Layer(lambda _, x: x[:, -1]),
        ux.DenseLayer(HIDDEN, 10),
    ]
    return ux.layered(layers, _layerwise.cross_entropy)


def task() -> _layerwise.Task:
    """Return the net and the digits, split as in the recipe `sequential-digits`."""
    train, test = [(standardized(jnp.asarray(x)), jnp.asarray(label)) for x, label in load(rows=True)]
    return _layerwise.Task(net(), train, test)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, and print the table."""
    return _layerwise.main(__doc__ or "", task, given, USUAL)


if __name__ == "__main__":
    main()
