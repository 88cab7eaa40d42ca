"""Sequences of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice, check_counts
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax.systems._frames import Frame


def pad_sequences(
    sequences: Sequence[tuple[Any, Any]],
    *,
    loss_at: Literal["each", "end"] = "each",
    mean: Literal["sequences", "steps"] = "sequences",
    length: int | None = None,
) -> Frame:
    """Make one batch of sequences of different lengths, padded with zeros at the end.

    It is data for `batched(recurrent(...), n)` with n sequences. The weights are such that the mean step loss of the batch
    is the mean over the sequences of each one's mean loss, or the mean over all real steps alike. A sequence without a step
    has no loss and does not count in the mean.

    Args:
        sequences: pairs (input, target) with leaves `[steps, ...]`, of any lengths; for `loss_at="end"` the target has no
            time axis.
        loss_at: which steps have a loss, each real one, or the last real one of each sequence.
        mean: what counts alike, every sequence, or every step, by which a longer sequence counts for more. With
            `loss_at="end"` there is one loss a sequence, and no difference.
        length: steps of the batch; `None` for the longest sequence. One number for all batches compiles once.

    Returns:
        A `Frame` with leaves `[length, n, ...]`.

    Raises:
        InvalidArgument: there is no step at all, a sequence is longer than `length`, or an option is none of its choices.
        StructureError: what should be a pair is none, the leaves of one sequence have different lengths, or those of two
            don't fit together.

    Example:
        >>> import numpy as np
        >>> short, long = (np.ones((2, 3)), np.array([1, 0])), (np.ones((4, 3)), np.array([0, 1, 1, 2]))
        >>> data = pad_sequences([short, long])
        >>> data.input.shape
        (4, 2, 3)
        >>> data.weight[:, 0]
        Array([2., 2., 0., 0.], dtype=float32)
    """
    check_choice("pad_sequences", "loss_at", loss_at, ("each", "end"))
    check_choice("pad_sequences", "mean", mean, ("sequences", "steps"))
    pairs = [_pair(n, pair) for n, pair in enumerate(sequences)]
    steps = np.array([_steps(n, given, target, loss_at) for n, (given, target) in enumerate(pairs)], np.int64)
    total = _length(steps, length)
    mask = np.arange(total)[:, None] < steps
    inputs = _together("input", [pair[0] for pair in pairs], steps, total)
    if loss_at == "each":
        target = _together("target", [pair[1] for pair in pairs], steps, total)
    else:
        spread = [jax.tree.map(lambda leaf: np.broadcast_to(leaf, (total, *leaf.shape)), pair[1]) for pair in pairs]
        target = _together("target", spread, np.full(len(pairs), total), total)
    weight = total * len(pairs) * _shares(steps, mask, loss_at, mean)
    return Frame(inputs, target, jnp.asarray(mask), jnp.asarray(weight, float))


def _pair(n: int, pair: Any) -> tuple[Any, Any]:
    """Return the input and the target of one sequence as arrays: an array of two steps is no pair."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        parts = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, (tuple, list)) else describe(pair)
        raise StructureError(
            f"pad_sequences: sequence {n} must be a pair (input, target), got {parts}. Pass a list of such pairs."
        )
    both: tuple[Any, Any] = jax.tree.map(np.asarray, (pair[0], pair[1]))
    return both


def _shares(steps: np.ndarray, mask: np.ndarray, loss_at: str, mean: str) -> np.ndarray:
    """Return by how much each step's loss counts, all together 1."""
    if loss_at == "end":
        return (np.arange(len(mask))[:, None] == steps - 1) / np.count_nonzero(steps)
    if mean == "steps":
        return mask / steps.sum()
    return mask / np.maximum(steps, 1) / np.count_nonzero(steps)


def _steps(n: int, given: Any, target: Any, loss_at: str) -> int:
    """Return the number of steps of one sequence; raise unless all its leaves have it."""
    timed = jax.tree.leaves((given, target) if loss_at == "each" else given)
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in timed}
    if len(lengths) != 1 or None in lengths:
        raise StructureError(
            f"pad_sequences: the leaves of sequence {n} must have the same steps on their first axis, got "
            f"{', '.join(map(describe, timed)) or 'no leaf'}. Pass arrays, not lists, and loss_at='end' for one target."
        )
    return lengths.pop() or 0


def _length(steps: np.ndarray, length: int | None) -> int:
    """Return the steps of the batch."""
    if not steps.sum():
        raise InvalidArgument(
            f"pad_sequences: at least one sequence must have a step, got {len(steps)} sequences without one. "
            "Leave such a batch out."
        )
    longest = int(steps.max())
    if length is None:
        return longest
    check_counts("pad_sequences", length=length)
    if length < longest:
        raise InvalidArgument(
            f"pad_sequences: length must be at least that of the longest sequence, got length={length}, "
            f"{longest} steps in sequence {int(steps.argmax())}. Cut it, or take length={longest}."
        )
    return length


def _together(name: str, trees: list[Any], steps: np.ndarray, total: int) -> Any:
    """Pad every tree's leaves to `total` steps, and stack them as axis 1."""
    like = trees[int(steps.argmax())]
    structure: Any = jax.tree.structure(like)
    for n, tree in enumerate(trees):
        if structure != jax.tree.structure(tree):
            raise StructureError(
                f"pad_sequences: the {name} of every sequence must have one structure, {structure}, "
                f"got {jax.tree.structure(tree)} in sequence {n}. Make them alike."
            )
    return jax.tree.map(lambda first, *leaves: _pad(name, first, leaves, steps, total), like, *trees)


def _pad(name: str, like: np.ndarray, leaves: tuple[np.ndarray, ...], steps: np.ndarray, total: int) -> jax.Array:
    """Pad one leaf of every sequence; one of no steps may have any shape."""
    kind = np.result_type(*[leaf.dtype for leaf, real in zip(leaves, steps, strict=True) if real])
    full = np.zeros((total, len(leaves), *like.shape[1:]), kind)
    for n, (leaf, real) in enumerate(zip(leaves, steps, strict=True)):
        if real and leaf.shape[1:] != like.shape[1:]:
            raise StructureError(
                f"pad_sequences: one step of the {name} must have one shape, that of {describe(like)}, got "
                f"{describe(leaf)} in sequence {n}. Make them alike."
            )
        full[:real, n] = leaf if real else 0
    return jnp.asarray(full)
