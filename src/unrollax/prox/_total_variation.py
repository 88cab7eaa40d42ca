"""The proximal operator of the total variation of a sequence, exactly and in one pass there and one back."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unrollax._errors import StructureError
from unrollax._tree import describe


def total_variation(v: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Total variation denoising along the last axis, the proximal operator of g(x) = sum_i |x_(i+1) - x_i|.

    It is exact: dynamic programming over the sequence gives where x is constant, and there x is the mean of v plus
    scale (s_right - s_left) / length, s the signs of the jumps at both ends (0 at the ends of the sequence). Derivatives go
    through this formula: along a constant stretch dx is the mean of dv.

    Cost: 4 n moves one after the other, whatever the numbers, so a GPU gains only over many sequences at once; 8 n numbers of
    memory.

    Args:
        v: real numbers `[..., n]`.
        scale: the weight of the variation, one number of at least 0; larger values leave fewer jumps.

    Raises:
        StructureError: v is complex or has no axis.

    Example:
        >>> total_variation(jnp.array([1.0, 3.0, 2.0, 9.0, 11.0]), 1.5)
        Array([2.5, 2.5, 2.5, 9. , 9.5], dtype=float32)

    References: Johnson, Journal of Computational and Graphical Statistics 2013. Deviation: the values are recomputed from
    where the jumps are, which keeps their precision in float32 and gives the derivative.
    """
    v = jnp.asarray(v)
    if v.ndim == 0 or jnp.iscomplexobj(v):
        raise StructureError(
            f"total_variation: v must be real numbers [..., n], got {describe(v)}. Take the real and the imaginary part each "
            "by itself, or `group` on differences in chambolle_pock or admm."
        )
    v = v.astype(jnp.promote_types(v.dtype, jnp.float32))
    if v.shape[-1] == 1:
        return v
    rows = v.reshape(-1, v.shape[-1])
    return _rows(rows, jnp.asarray(scale, v.dtype)).reshape(v.shape)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def _rows(v: jax.Array, scale: jax.Array) -> jax.Array:
    """Denoise one sequence `[n]`."""
    rough = _solve(jax.lax.stop_gradient(v), jax.lax.stop_gradient(scale))
    signs = jnp.pad(jnp.sign(jnp.diff(rough)), 1)
    place = jnp.cumsum(jnp.abs(signs[:-1])).astype(int)  # which constant stretch an entry is in

    def sums(terms: jax.Array) -> jax.Array:
        return jnp.zeros_like(v).at[place].add(terms)[place]

    return sums(v + scale * jnp.diff(signs)) / sums(jnp.ones_like(v))


class Sweep(NamedTuple):
    """Where the forward pass stands.

    f_i(x) is the derivative of the least cost of entries 0 to i given x_i = x. f_i = clip(f_(i-1), -scale, scale) + x - v_i;
    where the clipping begins and ends, `below` and `above`, are x_(i-1)'s bounds given x_i. f_i is linear between knots.

    Attributes:
        knots: a row for each: where it is, and the slope and offset that are added to f_i as x passes it, `[2 n + 1, 3]`.
        knot: the row that the search meets next; read after the last write, so that no iteration copies the rows.
        first: the first knot there is.
        last: the last knot there is.
        entry: i.
        rightward: whether knots are passed from the left, in search of `below`, or from the right, in search of `above`.
        line: slope and offset of f_i where the search is, `[2]`.
        bounds: below and above for each entry before this, `[n + 1, 2]`; the last row is of no use.
    """

    knots: jax.Array
    knot: jax.Array
    first: jax.Array
    last: jax.Array
    entry: jax.Array
    rightward: jax.Array
    line: jax.Array
    bounds: jax.Array


def _solve(v: jax.Array, scale: jax.Array) -> jax.Array:
    """Return x up to rounding.

    Each of two searches an entry ends with a new knot, and each knot is passed at most once, so 4 n moves are enough. Their
    number is fixed: loops inside, whose lengths differ, would run as long as the longest of a batch and copy their buffers.
    """
    n = len(v)
    start = Sweep(
        knots=jnp.zeros((2 * n + 1, 3), v.dtype),
        knot=jnp.zeros(3, v.dtype),
        first=jnp.asarray(n),
        last=jnp.asarray(n - 1),
        entry=jnp.asarray(0),
        rightward=jnp.asarray(True),
        line=jnp.stack([jnp.ones_like(scale), -v[0]]),
        bounds=jnp.zeros((n + 1, 2), v.dtype),
    )
    end = jax.lax.fori_loop(0, 4 * n, lambda _, sweep: _move(v, scale, sweep), start)

    def backward(after: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
        now = jnp.clip(after, bound[0], bound[1])
        return now, now

    x = end.bounds[n - 1, 0]
    return jnp.append(jax.lax.scan(backward, x, end.bounds[: n - 1], reverse=True)[1], x)


def _move(v: jax.Array, scale: jax.Array, sweep: Sweep) -> Sweep:
    """Pass a knot, or find where f_i meets the level of the search: there a knot is put in the place of those passed.

    The level is -scale from the left and scale from the right, and 0 for the last entry, which is then found.
    """
    n, (knots, knot, first, last, entry, rightward, line, bounds) = len(v), sweep
    place, sign = jnp.where(rightward, first, last), jnp.where(rightward, 1, -1)
    level = jnp.where(entry < n - 1, -sign * scale, 0)
    there = first + 1 - rightward <= last  # the new knot from the left is none to pass from the right
    passes = there & (sign * (line[0] * knot[0] + line[1] - level) <= 0)
    crossing = (level - line[1]) / line[0]
    added = jnp.stack([crossing, sign * line[0], sign * (line[1] - level)])
    done = entry >= n
    knots = knots.at[jnp.where(passes | done | (entry == n - 1), 2 * n, place - sign)].set(added)
    turned = entry + 1 - rightward  # an entry's second search ends it
    # f_i at the far end: slope 1 and the clipped offset, of which there is none before the first entry.
    outer = jnp.where(turned > 0, jnp.where(rightward, scale, -scale), 0) - v[jnp.minimum(turned, n - 1)]
    first = jnp.where(rightward & ~done, jnp.where(passes, first + 1, first - 1), first)
    last = jnp.where(rightward | done, last, jnp.where(passes, last - 1, last + 1))
    after = jnp.where(passes, rightward, ~rightward)
    return Sweep(
        knots=knots,
        knot=knots[jnp.where(after, first, last)],
        first=first,
        last=last,
        entry=jnp.where(passes, entry, jnp.where(entry == n - 1, n, turned)),
        rightward=after,
        line=jnp.where(passes, line + sign * knot[1:], jnp.stack([jnp.ones_like(outer), outer])),
        bounds=bounds.at[jnp.where(passes, n, entry), 1 - rightward.astype(int)].set(crossing),
    )
