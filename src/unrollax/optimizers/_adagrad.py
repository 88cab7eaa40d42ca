"""AdaGrad as it was written first."""

from __future__ import annotations

import optax

from unrollax.optimizers._checks import Rate, check_rate


def adagrad_plain(lr: Rate = 0.01) -> optax.GradientTransformation:
    """AdaGrad without a floor: w = w + g**2, theta -= lr g / sqrt(w), from w = 0.

    The first update of each parameter is lr in size, whatever its gradient; the usual `optax.adagrad` starts at w = 0.1
    instead, so that small gradients make small updates. A parameter whose gradients were all 0 stays, where the formula
    would say 0 / 0.

    State: w, 1 x params. Use it when gradients are sparse, or to compare with the textbook. Avoid it in long runs: w only
    grows, so that large early gradients slow all that follows.

    Args:
        lr: learning rate, a number or an optax schedule; the size of the first update.

    Raises:
        InvalidArgument: a rate below 0.

    Example:
        >>> import jax.numpy as jnp, unrollax as ux
        >>> optimizer = ux.adagrad_plain(0.5)
        >>> update, state = optimizer.update(jnp.array([4.0, 0.0]), optimizer.init(jnp.zeros(2)))
        >>> update
        Array([-0.5, -0. ], dtype=float32)

    References: Duchi et al., JMLR 2011.
    """
    check_rate("adagrad_plain", lr)
    return optax.adagrad(lr, initial_accumulator_value=0.0, eps=0.0)
