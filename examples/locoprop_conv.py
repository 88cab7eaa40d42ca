"""A small convolutional net on scikit-learn's digits: LocoProp, S and M, against Adam at equal steps and equal seconds.

8 x 8 images, two convolutions of 3 x 3 (16 and 32 channels, the second one in steps of 2), and a softmax over what they give.
A convolution is a layer that is linear in its weights: each patch is a row of what meets them, so that its local problem is
a least-squares problem over all patches of the batch.

    .venv/bin/python examples/locoprop_conv.py            # some minutes
    .venv/bin/python examples/locoprop_conv.py --quick

Each method is tuned over as many trials; its updates shrink linearly to 0 over each run. The table is in docs/locoprop.md.

References: Amid, Anil and Warmuth, AISTATS 2022; Grosse and Martens, ICML 2016 (covariances of patches).
"""

from __future__ import annotations

from typing import Any

import _layerwise
import jax.numpy as jnp

import unrollax as ux
from unrollax.recipes._digits import load

USUAL = {"steps": 200, "trials": 4, "batch": 100}


def net(transfer: str = "relu") -> ux.Layered:
    """Return the net, `[batch, 8, 8, 1]` to `[batch, 10]` logits."""
    layers = [
        ux.ConvLayer(1, 16, 3, transfer),
        ux.ConvLayer(16, 32, 3, transfer, strides=2),
        ux.Layer(lambda _, x: x.reshape(len(x), -1)),
        ux.DenseLayer(4 * 4 * 32, 10),
    ]
    return ux.layered(layers, _layerwise.cross_entropy)


def task() -> _layerwise.Task:
    """Return the net and the digits."""
    train, test = [(jnp.asarray(x)[..., None], jnp.asarray(label)) for x, label in load(rows=True)]
    return _layerwise.Task(net(), train, test)


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run, and print the table."""
    return _layerwise.main(__doc__ or "", task, given, USUAL)


if __name__ == "__main__":
    main()
