"""One step of data for a recurrent network, the sequences made of it, and losses of one step."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe


class Frame(NamedTuple):
    """One step of data for `recurrent`; with a leading time axis, a sequence. `sequence` makes them.

    Attributes:
        input: what the cell reads.
        target: what the loss compares the prediction with.
        mask: whether the step is real; a step that is not leaves the state as it was and has no loss.
        weight: what the loss of the step is multiplied by.
    """

    input: Any
    target: Any
    mask: jax.Array
    weight: jax.Array


def sequence(input: Any, target: Any, *, mask: Any = None, loss_at: Literal["each", "end"] = "each") -> Frame:
    """Make the data of one example from a sequence.

    Weights are such that the mean step loss over all T steps is the mean loss over the real steps (`each`), or the loss at
    the last real step (`end`). `jax.vmap` it over examples, and move the time axis to the front.

    Args:
        input: leaves `[T, ...]`.
        target: leaves `[T, ...]`; for `end` leaves without a time axis, the one target.
        mask: booleans `[T]`, true at real steps; `None` if all are.
        loss_at: which steps have a loss.

    Raises:
        InvalidArgument: loss_at is neither.
        StructureError: leaves of input, target and mask have different lengths.

    Example:
        >>> sequence(jnp.zeros((4, 2)), 7, mask=jnp.array([1, 1, 1, 0]), loss_at="end").weight
        Array([0., 0., 4., 0.], dtype=float32)
    """
    if loss_at not in ("each", "end"):
        raise InvalidArgument(f"sequence: loss_at must be 'each' or 'end', got {loss_at!r}.")
    steps = jnp.shape(jax.tree.leaves(input)[0])[0]
    mask = jnp.ones(steps, bool) if mask is None else jnp.asarray(mask).astype(bool)
    for leaf in jax.tree.leaves((input, mask, target if loss_at == "each" else ())):
        if jnp.shape(leaf)[:1] != (steps,):
            raise StructureError(
                f"sequence: input, target and mask must have the same {steps} steps, got {describe(leaf)}. "
                "For one target at the end pass it without a time axis and loss_at='end'."
            )
    if loss_at == "end":
        target = jax.tree.map(lambda t: jnp.broadcast_to(t, (steps, *jnp.shape(t))), target)
        last = steps - 1 - jnp.argmax(mask[::-1])
        weight = steps * ((jnp.arange(steps) == last) & mask).astype(float)
    else:
        weight = mask * (steps / jnp.maximum(mask.sum(), 1)).astype(float)
    return Frame(input, target, mask, weight)


def cross_entropy(prediction: jax.Array, target: Any) -> jax.Array:
    """Return the negative log-probability (nats) of an integer class under logits `[classes]`.

    Example:
        >>> cross_entropy(jnp.zeros(4), 2)
        Array(1.3862944, dtype=float32)
    """
    return optax.softmax_cross_entropy_with_integer_labels(prediction, jnp.asarray(target))


def squared_error(prediction: jax.Array, target: Any) -> jax.Array:
    """Return the mean squared difference over the components.

    Example:
        >>> squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]))
        Array(2., dtype=float32)
    """
    return jnp.mean((prediction - target) ** 2)
