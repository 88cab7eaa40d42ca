"""Which entries of an influence matrix are kept, how they are stored, and which rows are pulled back together."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from unrollax.estimators._pattern import Pattern

Mask: TypeAlias = np.ndarray | None  # `None` for true everywhere
FEW = 8  # rows below which a product is faster as a sum that fuses with what surrounds it


class Colours(NamedTuple):
    """Rows of a Jacobian that share no column that matters are of one colour: one pull-back gives all of them.

    Attributes:
        of: int `[S]`, the colour of each row; 0 for a row that is not needed.
        cotangents: `[colours, S]`, what is pulled back.
    """

    of: np.ndarray
    cotangents: np.ndarray


class Block(NamedTuple):
    """Groups of params that are kept in equally many rows; groups of about one size share a block, padded.

    Attributes:
        rows: int `[groups, k]`, the numbers of the state that a group is kept for.
        columns: int `[groups, n]`, the params of each group.
        kept: `[groups, k, n]`, false for padding.
        step: `[groups, k, n]`, where a step has an immediate influence.
        start: `[groups, k, n]`, where `init` has one.
    """

    rows: np.ndarray
    columns: np.ndarray
    kept: Mask
    step: Mask
    start: Mask


class Layout(NamedTuple):
    """How the kept entries are stored and computed.

    Attributes:
        blocks: the stored entries.
        back: int `[P]`, where the blocks' columns, one after the other, hold each of the params; past the end for none.
        state: the colours of d state / d state.
        step: the colours of d state / d params.
        start: the colours of d init / d params.
    """

    blocks: tuple[Block, ...]
    back: np.ndarray
    state: Colours
    step: Colours
    start: Colours


def layout_of(pattern: Pattern, order: int) -> Layout:
    """Keep the entries that `order` steps can make, the reset counted as a step."""
    step, start, of_class = _classes(pattern)
    kept = base = step | start
    for _ in range(order - 1):
        more = base | _meet(pattern.state, kept)
        if (more == kept).all():
            break
        kept = more
    groups, of_group = np.unique(kept, axis=1, return_inverse=True)
    of_group = of_group.ravel()[of_class]
    blocks = tuple(_block(groups, of_group, members, step, start, of_class) for members in _alike(groups, of_group))
    back = np.full(len(of_class), sum(block.columns.size for block in blocks), np.int32)
    at = 0
    for block in blocks:
        real = np.ones(block.columns.shape, bool) if block.kept is None else block.kept.any(1)
        back[block.columns[real]] = at + np.flatnonzero(real)
        at += block.columns.size
    together = _meet(groups, groups.T)
    clash = _meet(together, pattern.state.T)
    state = _colour(clash | clash.T, np.any(together, axis=1))
    return Layout(blocks, back, state, *(_colour(_meet(part, part.T), np.any(part, axis=1)) for part in (step, start)))


def _classes(pattern: Pattern) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct columns of the patterns of params, `[S, classes]`, and the class of each of the params."""
    both = np.packbits(np.concatenate([pattern.step, pattern.start]), axis=0)
    some, of_class = np.unique(both, axis=1, return_inverse=True)
    step, start = np.split(np.unpackbits(some, axis=0, count=2 * len(pattern.state)).astype(bool), 2)
    return step, start, of_class.ravel()


def _meet(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the product of two boolean matrices."""
    return a.astype(np.float32) @ b.astype(np.float32) > 0


def _alike(groups: np.ndarray, of_group: np.ndarray) -> list[list[int]]:
    """Return lists of groups whose numbers of rows and of params have the same number of binary digits."""
    found: dict[tuple[int, int], list[int]] = {}
    counts = np.bincount(of_group, minlength=groups.shape[1])
    for group, (rows, count) in enumerate(zip(groups.sum(0).tolist(), counts.tolist(), strict=True)):
        if rows:
            found.setdefault((rows.bit_length(), count.bit_length()), []).append(group)
    return list(found.values())


def _block(
    groups: np.ndarray,
    of_group: np.ndarray,
    members: list[int],
    step: np.ndarray,
    start: np.ndarray,
    of_class: np.ndarray,
) -> Block:
    by_group = np.split(np.argsort(of_group, kind="stable"), np.cumsum(np.bincount(of_group))[:-1])
    rows, real_rows = _padded([np.flatnonzero(groups[:, group]) for group in members])
    columns, real = _padded([by_group[group] for group in members])
    kept = real_rows[:, :, None] & real[:, None, :]
    at = rows[:, :, None], of_class[columns][:, None, :]
    return Block(rows, columns, *(None if mask.all() else mask for mask in (kept, kept & step[at], kept & start[at])))


def _padded(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return lists as rows of one matrix, filled up with zeros, and which entries are real."""
    width = max(map(len, lists))
    real = np.arange(width) < np.array([len(each) for each in lists])[:, None]
    filled = np.zeros(real.shape, np.int32)
    filled[real] = np.concatenate(lists)
    return filled, real


def _colour(clash: np.ndarray, needed: np.ndarray) -> Colours:
    """Give each needed row the first colour that no row has that it clashes with."""
    of = np.zeros(len(clash), np.int32)
    done: list[int] = []
    for row in np.flatnonzero(needed):
        taken = set(of[[other for other in done if clash[row, other]]].tolist())
        of[row] = next(colour for colour in range(len(clash)) if colour not in taken)
        done.append(int(row))
    rows = np.flatnonzero(needed)
    cotangents = np.zeros((int(of[rows].max(initial=-1)) + 1, len(clash)), np.float32)
    cotangents[of[rows], rows] = 1
    return Colours(of, cotangents)


def immediate(pulled: jax.Array, colours: Colours, block: Block, mask: Mask) -> jax.Array:
    """Return a block's entries `[groups, k, n]` of a Jacobian by params that was pulled back by colours, `[colours, P]`."""
    if not len(pulled):
        return jnp.zeros((*block.rows.shape, block.columns.shape[1]), pulled.dtype)
    columns = jnp.take(pulled, block.columns.ravel(), axis=1).reshape(-1, *block.columns.shape)
    groups = np.arange(len(block.rows))[:, None]
    entries = columns[0][:, None] if len(columns) == 1 else columns[colours.of[block.rows], groups]
    entries = jnp.broadcast_to(entries, (*block.rows.shape, entries.shape[-1]))
    return entries if mask is None else jnp.where(mask, entries, jnp.zeros_like(entries))


def through(pulled: jax.Array, colours: Colours, block: Block, old: jax.Array) -> jax.Array:
    """Return the kept entries of d state / d state, pulled back by colours `[colours, S]`, times a block."""
    rows = block.rows
    state = pulled[colours.of[rows][:, :, None], rows[:, None, :]].astype(old.dtype)
    if rows.shape[1] > FEW:
        new = jnp.matmul(state, old)
    else:
        new = functools.reduce(jnp.add, [state[:, :, i, None] * old[:, None, i] for i in range(rows.shape[1])])
    return new if block.kept is None else jnp.where(block.kept, new, jnp.zeros_like(new))


def dot(slope: jax.Array, layout: Layout, influence: Any) -> jax.Array:
    """Return a cotangent of the state times the influence, `[P]`."""
    parts = [
        jnp.einsum("gk,gkn->gn", slope[block.rows].astype(old.dtype), old).ravel()
        for block, old in zip(layout.blocks, influence, strict=True)
    ]
    return jnp.concatenate([*parts, jnp.zeros(1, parts[0].dtype if parts else slope.dtype)])[layout.back]
