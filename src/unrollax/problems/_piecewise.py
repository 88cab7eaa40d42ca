"""Signals of few jumps under noise, for denoising by total variation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import NOT_NEGATIVE, UP_TO_ONE, check_counts, check_number
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.problems._problem import Problem, measured


@value
class PiecewiseConstant:
    """Signals that jump now and then, under noise; made by `piecewise_constant`.

    Attributes:
        n: length of a signal.
        p: the probability of a jump from one entry to the next.
        noise: the standard deviation of the noise.
        lam: the weight of the total variation.
    """

    n: int = static()
    p: Any
    noise: Any
    lam: Any

    def draw(self, key: Key) -> tuple[jax.Array, jax.Array]:
        """Return the signal under noise and the signal, `[n]` each."""
        where, what, noise = jax.random.split(key, 3)
        jumps = jax.random.normal(what, (self.n,))
        jumps = jumps * jax.random.bernoulli(where, self.p, (self.n,)).at[0].set(
            True
        )  # the first is the level to start at
        x = jnp.cumsum(jumps)
        return measured(noise, x, self.noise), x

    def whole(self, own: tuple[jax.Array, jax.Array]) -> Problem:
        """Return the problem of what `draw` gave; its A is the identity."""
        y, x = own
        return Problem(jnp.eye(self.n, dtype=y.dtype), y, x, self.noise, self.lam)


def piecewise_constant(n: int = 100, p: float = 0.05, noise: float = 0.2, lam: float = 0.4) -> PiecewiseConstant:
    """Find a piecewise constant signal under noise: least ``|x - y|^2 / 2 + lam sum_i |x_(i+1) - x_i|``.

    A signal starts at N(0, 1) and jumps by N(0, 1) with probability p from each entry to the next.

    Args:
        n: length of a signal.
        p: probability of a jump.
        noise: standard deviation of the noise.
        lam: weight of the total variation, for algorithms that read it; with the other defaults, the
            solution's error is least near 0.4.

    Raises:
        InvalidArgument: n is no positive whole number, p is outside (0, 1], or noise or lam is negative.

    Example:
        >>> import jax
        >>> from unrollax.problems import piecewise_constant
        >>> y, x = piecewise_constant().draw(jax.random.key(0))
        >>> x.shape, len(set(x.tolist()))
        ((100,), 9)

    References: Rudin, Osher and Fatemi, Physica D 1992.
    """
    check_counts("piecewise_constant", n=n)
    check_number("piecewise_constant", "p", p, UP_TO_ONE, used=True)
    check_number("piecewise_constant", "noise", noise, NOT_NEGATIVE, used=True)
    check_number("piecewise_constant", "lam", lam, NOT_NEGATIVE, used=True)
    return PiecewiseConstant(n, float(p), float(noise), float(lam))
