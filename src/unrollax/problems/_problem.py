"""What every problem is: the operator, what was measured, and the answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._types import Key


class Problem(NamedTuple):
    """One linear inverse problem: y = A x + noise e with e ~ N(0, I), and what else a step may need.

    Attributes:
        A: a matrix `[m, n]`, or a linear operator with `mv(x)` and `transpose()`.
        y: what was measured, `[m]`.
        x: the answer, `[n]`: the truth, or what the problem says that the algorithm should find; `None` if unknown.
        noise: the standard deviation of the noise of each entry of y.
        lam: the weight of the regulariser, where the problem says one.
    """

    A: Any
    y: jax.Array
    x: Any
    noise: Any = 0.0
    lam: Any = 0.0


def measured(key: Key, product: jax.Array, noise: Any) -> jax.Array:
    """Return a product A x with noise of a standard deviation added."""
    drawn = jax.random.normal(key, product.shape, product.dtype)
    return product + jnp.asarray(noise, product.dtype) * drawn
