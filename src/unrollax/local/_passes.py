"""One pass through a net, forward and back: what each layer saw, and where the loss of each example would have it go."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._errors import StructureError
from unrollax._tree import describe, leaves_with_names
from unrollax._types import Data, Params, Scalar
from unrollax.local._layered import Loss, check_one_each, losses_of, run_layer, two


class Seen(NamedTuple):
    """A batch, layer by layer.

    Attributes:
        loss: the mean loss.
        inputs: what each layer's `pre` was given.
        outputs: each layer's y.
        slopes: each layer's d loss_i / d a, of each example's own loss, in the shape of y.
    """

    loss: Scalar
    inputs: list[Any]
    outputs: list[Any]
    slopes: list[Any]


def run_and_pull_back(owner: str, layers: tuple[Any, ...], loss: Loss, params: list[Params], data: Data) -> Seen:
    """Run a batch forward, and pull back the loss to all pre-activations; not to the parameters, which costs a third more.

    The derivative at a pre-activation is that at a number that is added to it, 0 here.
    """
    check_one_each(owner, layers, params)
    x, target = batch_of(owner, data)

    def run(nudges: list[Any]) -> tuple[Scalar, tuple[Scalar, list[Any], list[Any]]]:
        inputs, outputs = see_layers(owner, layers, params, x, nudges)
        losses = losses_of(owner, loss, outputs[-1], target)
        return losses.sum(), (losses.mean(), inputs, outputs)

    shapes = jax.eval_shape(lambda: run([None] * len(layers))[1][2])
    slopes, (mean, inputs, outputs) = jax.grad(run, has_aux=True)([jnp.zeros(one.shape, one.dtype) for one in shapes])
    return Seen(mean, inputs, outputs, slopes)


def see_layers(
    owner: str, layers: tuple[Any, ...], params: list[Params], x: Any, nudges: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Run a batch through a net: what each layer's `pre` saw, and its y. A nudge is added to a layer's pre-activations."""
    inputs, outputs = [], [x]
    for index, (layer, own, nudge) in enumerate(zip(layers, params, nudges, strict=True)):
        y, seen = run_layer(owner, index, layer, own, outputs[-1], nudge)
        inputs.append(seen)
        outputs.append(y)
    return inputs, outputs[1:]


def batch_of(owner: str, data: Any) -> tuple[Any, Any]:
    """Return data as (x, target); raise unless all their leaves have as many examples, and at least one."""
    pair = two(owner, data)
    named = leaves_with_names(data)
    batch = max((jnp.shape(leaf)[0] for _, leaf in named if jnp.ndim(leaf)), default=0)
    for name, leaf in named:
        if not batch or jnp.shape(leaf)[:1] != (batch,):
            raise StructureError(
                f"{owner}: data leaf {name} must be [batch, ...], {f'here [{batch}, ...]' if batch else 'of some examples'}, "
                f"got {describe(leaf)}. Pair each x with its target."
            )
    return pair
