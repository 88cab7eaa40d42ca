"""Pictures of a loss: along two directions in the space of params, and as a valley that optimizers run down."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, check_counts, check_key, check_like, check_number, check_params
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import Static, combine, describe, partition
from unrollax._types import Key, Params, Scalar
from unrollax.diagnosis._text import aligned, plain

CHUNK = 16  # points that are evaluated at once

Loss = Callable[[Any], Any]


class Surface(NamedTuple):
    """A loss along two directions; see `loss_surface`.

    Attributes:
        a: `[points]` steps along the first direction.
        b: `[points]` steps along the second direction.
        losses: `[points, points]` loss at `params + a[i] first + b[j] second`.
        center: loss at `params`.
        directions: what the directions are, in words.
    """

    a: np.ndarray
    b: np.ndarray
    losses: np.ndarray
    center: float
    directions: str

    def __str__(self) -> str:
        finite = np.isfinite(self.losses)
        lost = (
            f"{100 * (1 - finite.mean()):.1f} % of the points are infinite or NaN" if not finite.all() else "all finite"
        )
        rows = [("directions", self.directions), ("center", f"{self.center:.6g}")]
        if finite.any():
            i, j = np.unravel_index(np.nanargmin(np.where(finite, self.losses, np.nan)), self.losses.shape)
            rows.append(("lowest", f"{self.losses[i, j]:.6g} at a = {self.a[i]:.3g}, b = {self.b[j]:.3g}"))
            rows.append(("highest", f"{self.losses[finite].max():.6g}"))
        rows.append(("grid", f"{len(self.a)} x {len(self.b)} over a, b in [{self.a[0]:.3g}, {self.a[-1]:.3g}], {lost}"))
        width = max(len(text) for _, text in rows)
        return f"Loss surface\n{aligned([(name, text.ljust(width)) for name, text in rows])}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python numbers and lists, by field."""
        return plain(self)


def loss_surface(
    loss: Loss,
    params: Params,
    *,
    directions: tuple[Params, Params] | None = None,
    key: Key | None = None,
    span: float = 1.0,
    points: int = 41,
) -> Surface:
    """Evaluate a loss on a grid in the plane through `params` along two directions.

    Random directions are Gaussian and as long as the params they belong to: in a leaf with two axes or more, each slice at
    one index of the last axis (the weights into one unit) has the norm of that slice of params, any other leaf the norm of
    the leaf. A unit's scale then doesn't decide how flat the picture looks. They are not made orthogonal: in many dimensions
    they nearly are.

    Args:
        loss: `loss(params)`, a scalar. For a system, with a key that all points share:
            `lambda params: ux.unroll(system, params, system.init(key, params), data, key)[1].mean()`.
        params: the centre.
        directions: two trees like params, used as they are: eigenvectors, gradients, or the difference of two solutions.
        key: a PRNG key for random directions; needed without `directions`.
        span: how far to go to both sides, in lengths of the directions.
        points: grid points along each direction; with an odd number one is the centre.

    Raises:
        InvalidArgument: neither directions nor a key, or a number out of range.
        StructureError: a direction that isn't like params, or a loss that is no scalar.

    Example:
        >>> import jax, jax.numpy as jnp, unrollax as ux
        >>> loss = lambda params: (params["w"] ** 2).sum()
        >>> found = ux.loss_surface(loss, {"w": jnp.ones(3)}, key=jax.random.key(0), points=5)
        >>> found.losses.shape, f"{found.center:.1f}"
        ((5, 5), '3.0')

    References: Li et al., NeurIPS 2018, Visualizing the loss landscape of neural nets. There biases keep still; here they
        move too. Goodfellow et al., ICLR 2015, for the line between two solutions.
    """
    check_counts("loss_surface", points=points)
    check_number("loss_surface", "span", span, POSITIVE, used=True)
    params = check_params("loss_surface", params)
    if not callable(loss):
        raise InvalidArgument(f"loss_surface: loss must be a function of params, got {type(loss).__name__}. Pass one.")
    if directions is None:
        if key is None:
            raise InvalidArgument(
                "loss_surface: directions or a key must be given, got neither. Pass key=jax.random.key(0)."
            )
        keys = jax.random.split(check_key("loss_surface", key))
        first, second = (_random(key, params) for key in keys)
    else:
        first, second = _given(directions, params)
    steps = np.linspace(-float(span), float(span), points)
    arrays, rest = partition((loss, params, first, second))
    losses, center = _grid(arrays, rest, jnp.asarray(steps, float))
    words = "random, as long as the params slice by slice" if directions is None else "as given"
    return Surface(steps, steps.copy(), np.asarray(losses, np.float64), float(center), words)


def _given(directions: Any, params: Params) -> tuple[Params, Params]:
    if not isinstance(directions, (tuple, list)) or len(directions) != 2:
        raise InvalidArgument(
            f"loss_surface: directions must be two trees like params, got {type(directions).__name__}. Pass (first, second)."
        )
    remedy = "Make the directions of the params' structure, shapes and dtypes."
    for index, direction in enumerate(directions):
        check_like("loss_surface", f"directions[{index}]", direction, params, remedy)
    return directions[0], directions[1]


def _random(key: Key, params: Params) -> Params:
    """Return a Gaussian direction with the norms of the slices of params."""
    leaves, treedef = jax.tree.flatten(params)

    def direction(key: Key, leaf: Any) -> Any:
        noise = jax.random.normal(key, leaf.shape, leaf.dtype)
        axes = tuple(range(leaf.ndim - 1)) if leaf.ndim > 1 else None
        ratio = jnp.square(leaf).sum(axes, keepdims=True) / jnp.square(noise).sum(axes, keepdims=True)
        return noise * jnp.sqrt(ratio)

    return jax.tree.unflatten(treedef, map(direction, jax.random.split(key, len(leaves)), leaves))


@functools.partial(jax.jit, static_argnums=1)
def _grid(arrays: list[Any], rest: Static, steps: Any) -> tuple[Any, Scalar]:
    loss, params, first, second = combine(arrays, rest)

    def at(a: Scalar, b: Scalar) -> Any:
        moved = jax.tree.map(lambda p, u, v: p + (a * u + b * v).astype(p.dtype), params, first, second)
        value = loss(moved)
        if jnp.shape(value) != ():
            raise StructureError(f"loss_surface: loss must return a scalar, got {describe(value)}. Reduce it.")
        return value

    count = len(steps)
    pairs = (jnp.repeat(steps, count), jnp.tile(steps, count))
    losses = jax.lax.map(lambda pair: at(*pair), pairs, batch_size=min(CHUNK, count * count))
    return losses.reshape(count, count), at(jnp.zeros(()), jnp.zeros(()))
