"""One step of data for a recurrent network, the sequences made of it, and losses of one step."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax.systems._checks import check_array


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
        StructureError: leaves of input, target and mask have different lengths, or a leaf of the input has no time axis.

    Example:
        >>> sequence(jnp.zeros((4, 2)), 7, mask=jnp.array([1, 1, 1, 0]), loss_at="end").weight
        Array([0., 0., 4., 0.], dtype=float32)
    """
    if loss_at not in ("each", "end"):
        raise InvalidArgument(f"sequence: loss_at must be 'each' or 'end', got {loss_at!r}.")
    steps = _steps(input)
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


def _steps(input: Any) -> int:
    """Return the steps of a sequence."""
    leaves = jax.tree.leaves(input)
    flat = [leaf for leaf in leaves if not jnp.ndim(leaf)]
    if not leaves or flat:
        got = describe(flat[0]) if flat else "no leaf"
        raise StructureError(
            f"sequence: input must have leaves [T, ...], with time first, got {got}. Pass arrays, not lists of numbers: "
            "jnp.asarray(input)."
        )
    return jnp.shape(leaves[0])[0]


def cross_entropy(prediction: jax.Array, target: Any) -> jax.Array:
    """Return the negative log-probability (nats) of an integer class under logits `[classes]`.

    It is NaN for a class that isn't there, one below 0 too. To ignore a label, such as -100, give its step weight 0 or a
    false mask in the `Frame`: `recurrent` then doesn't read the target.

    Raises:
        StructureError: the prediction has no axis of floating logits, or the target is no integer for each of them.

    Example:
        >>> cross_entropy(jnp.zeros(4), 2)
        Array(1.3862944, dtype=float32)
    """
    prediction = check_array("cross_entropy", "prediction", prediction)
    target = check_array("cross_entropy", "target", target)
    if not prediction.ndim or not jnp.issubdtype(prediction.dtype, jnp.floating):
        raise StructureError(
            f"cross_entropy: prediction must be floating logits [classes], got {describe(prediction)}. "
            "Take Dense(inputs, classes) as the readout."
        )
    whole = jnp.issubdtype(target.dtype, jnp.integer)
    if not whole or target.shape != prediction.shape[:-1]:
        raise StructureError(
            f"cross_entropy: target must be an integer class of shape {list(prediction.shape[:-1])} under the logits "
            f"{describe(prediction)}, got {describe(target)}. {_remedy(prediction.shape, target, whole=whole)}"
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(prediction, target)
    return jnp.where(target < 0, jnp.nan, losses)  # which would count from the last class


def _remedy(logits: tuple[int, ...], target: jax.Array, *, whole: bool) -> str:
    """Say how to make an integer class of a target."""
    if target.shape == logits and logits[-1] > 1:
        return "Turn a one-hot code into its class by target.argmax(-1); for real targets take squared_error."
    if target.shape == (*logits[:-1], 1):
        return f"Drop its last axis: target[..., 0]{'' if whole else '.astype(int)'}."
    return "Pass one class for each prediction." if whole else "Convert it: target.astype(int)."


def squared_error(prediction: jax.Array, target: Any) -> jax.Array:
    """Return the mean squared difference over the components.

    Raises:
        StructureError: the two have different shapes, unless both are one number.

    Example:
        >>> squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]))
        Array(2., dtype=float32)
    """
    prediction = check_array("squared_error", "prediction", prediction)
    target = check_array("squared_error", "target", target)
    if prediction.shape != target.shape:
        if prediction.size != 1 or target.size != 1:
            raise StructureError(
                f"squared_error: target must have the shape of the prediction, {describe(prediction)}, got "
                f"{describe(target)}. Make the readout's outputs the components of a target."
            )
        target = target.reshape(prediction.shape)
    return jnp.mean((prediction - target) ** 2)
