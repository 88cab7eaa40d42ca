"""The standard deviation of a perturbation: a number, one a leaf, a schedule, or learned; and how it weighs noise.

With r and l half the rise and the mean of the two twins' losses, and l' the mean of the other pairs' l,

    d / d theta   = mean over pairs of  r z / std,
    d / d log std = mean over pairs of  (l - l') (z^2 - 1),  if it is learned, summed over the parameters that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import POSITIVE, check_number
from unrollax._errors import StructureError
from unrollax._tree import is_numeric, ravel
from unrollax._types import Params
from unrollax._value import static, value


class Gaussian(NamedTuple):
    """Parameters of a search distribution whose width is learned with its mean, for evolution strategies with `std=None`.

    The system sees parameters like `mean`; the gradient has both parts. On a loss that is smooth at the scale of the noise
    the width shrinks for ever, so give `log_std` a small learning rate, or bound it from below.

    Attributes:
        mean: the parameters that the system has without noise.
        log_std: logarithm of the standard deviation: one number, or a prefix of `mean` with one for each leaf or part.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> nres = ux.NRES(decay, std=None, window=2, horizon=4, pairs=8)
        >>> params = ux.Gaussian(mean=jnp.float32(0.5), log_std=jnp.log(0.1))
        >>> state, estimate = nres.estimate(params, nres.init(jax.random.key(0), params), None)
        >>> estimate.grad.log_std.shape
        ()

    References: Wierstra et al., JMLR 2014.
    """

    mean: Params
    log_std: Any


@value
class Scheduled:
    """A standard deviation that follows the number of windows, such as an optax schedule."""

    schedule: Callable[[Any], Any] = static()


class Std(NamedTuple):
    """The standard deviation for one window; `at(time)` is that of a noise drawn in window number `time`.

    Attributes:
        at: window number to a scalar or `[size]`.
        share: sums `[size]` over the parameters that share a learned logarithm, `[logs]`.
        size: numbers in params.
        logs: learned logarithms, 0 if none is.
        pairs: pairs of a window.
    """

    at: Callable[[jax.Array], jax.Array]
    share: Callable[[jax.Array], jax.Array]
    size: int
    logs: int
    pairs: int

    def credit(self, z: jax.Array, time: jax.Array) -> jax.Array:
        """Return what one noise `[size]` is credited with, `[size + logs]`."""
        return jnp.concatenate([z / self.at(time), self.share(z**2 - 1)]) if self.logs else z / self.at(time)

    def weigh(self, losses: jax.Array, credit: jax.Array, explained: jax.Array | float = 0.0) -> jax.Array:
        """Return the share of some pairs in the sums of `gradient`; half the rise of the loss is `explained` elsewhere."""
        one, two = losses[:, 0], losses[:, 1]
        # Compilers may round one of two equal means before subtracting and not the other: equal twins differ by 0.
        half = jnp.where(one == two, 0, (one - two) / 2) - explained
        part = (half / self.pairs).astype(credit.dtype) @ credit[:, : self.size]
        if not self.logs:
            return part
        scores = credit[:, self.size :] / self.pairs
        return jnp.concatenate([part, losses.mean(1).astype(credit.dtype) @ scores, scores.sum(0)])

    def nothing(self, dtype: Any) -> jax.Array:
        """Return the sums before the first pair."""
        return jnp.zeros(self.size + 2 * self.logs, dtype)

    def gradient(self, sums: jax.Array, losses: jax.Array, slope: jax.Array | None) -> jax.Array:
        """Return the gradient from the sums over all pairs, and what is known of it beforehand."""
        grad = sums[: self.size] if slope is None else sums[: self.size] + slope
        if not self.logs:
            return grad
        weighted, scores = jnp.split(sums[self.size :], 2)
        others = self.pairs / max(1, self.pairs - 1)  # a pair's own loss is no baseline for it
        baseline = losses.mean().astype(sums.dtype) if self.pairs > 1 else 0.0
        return jnp.concatenate([grad, others * (weighted - baseline * scores)])


def as_std(owner: str, std: Any) -> Any:
    """Return the field `std` as a pytree; raise if a number in it isn't positive."""
    if callable(std) and not isinstance(std, Scheduled):
        return Scheduled(std)
    _check_positive(owner, std)
    return std


def _check_positive(owner: str, std: Any, *, used: bool = False) -> None:
    for number in jax.tree.leaves(std):
        check_number(owner, "std", number, POSITIVE, used=used)


def mean_of(owner: str, std: Any, params: Params) -> Params:
    """Return the parameters that the system has without noise."""
    if (std is None) != isinstance(params, Gaussian):
        raise StructureError(
            f"{owner}: std=None learns it, with params=Gaussian(mean, log_std), any other std is for plain params; "
            f"got std={std!r} and params of type {type(params).__name__}."
        )
    return params.mean if std is None else params


def std_of(owner: str, std: Any, params: Params, pairs: int) -> Std:
    """Return the standard deviation for one window; params is a `Gaussian` if it is learned."""
    mean = mean_of(owner, std, params)
    size = ravel(mean)[0].size

    def spread(std: Any) -> jax.Array:
        return _spread(owner, std, mean)

    if std is None:
        logs, unravel = ravel(params.log_std)
        learned = jnp.exp(jnp.broadcast_to(spread(params.log_std), (size,)))
        transposed = jax.vjp(lambda logs: jnp.broadcast_to(spread(unravel(logs)), (size,)), logs)[1]
        return Std(lambda _: learned, lambda vector: transposed(vector)[0].astype(vector.dtype), size, logs.size, pairs)
    if isinstance(std, Scheduled):
        schedule = std.schedule
        return Std(lambda time: spread(schedule(time)), lambda vector: vector, size, 0, pairs)
    _check_positive(owner, std, used=True)
    fixed = spread(std)
    return Std(lambda _: fixed, lambda vector: vector, size, 0, pairs)


def _spread(owner: str, std: Any, params: Params) -> jax.Array:
    """Return a number as a scalar, and a prefix of params as a vector with a number for each of theirs."""
    dtype = ravel(params)[0].dtype
    if is_numeric(std) and jnp.ndim(std) == 0:
        return jnp.asarray(std, dtype)

    def fill(number: Any, below: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(number, dtype), leaf.shape), below)

    try:
        return ravel(jax.tree.map(fill, std, params))[0]
    except ValueError as error:
        raise StructureError(
            f"{owner}: std must be a number or a prefix of params {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(std)}. Give one number for each leaf or for a part of the tree."
        ) from error
