"""Momentum with the gradient's weight 1 - alpha."""

from __future__ import annotations

import optax

from unrollax.optimizers._checks import Rate, check_decay, check_rate


def momentum(lr: Rate = 1.0, alpha: float = 0.9) -> optax.GradientTransformation:
    """Momentum whose velocity is a weighted mean of the gradients: v = alpha v - (1 - alpha) g, theta += lr v.

    The steps are those of heavy ball, `optax.sgd(lr * (1 - alpha), momentum=alpha)`, but `lr` keeps its meaning when `alpha`
    changes: under a constant gradient the velocity tends to -g, and theta moves by -lr g an update.

    It is Newton's equation with friction, of a body of mass m at theta in the potential L, in steps of time dt:
    P = (1 - gamma dt) P - dt g, theta += dt P / m, with v = gamma P. So alpha = 1 - gamma dt and lr = dt / (gamma m): the
    friction is what forgets, and lr / dt is the mobility, the speed to a force that friction allows.

    State: v, 1 x params. Use it when gradients swing across a valley. Avoid it when they differ much in size between
    parameters, where Adam rescales them.

    Args:
        lr: learning rate, a number or an optax schedule; 1 / (1 - alpha) times that of heavy ball.
        alpha: weight of the velocity before, in [0, 1). Larger values average over more updates, about 1 / (1 - alpha).

    Raises:
        InvalidArgument: a rate below 0, or alpha out of [0, 1).

    Example:
        >>> import jax.numpy as jnp, optax, unrollax as ux
        >>> optimizer = ux.momentum(0.5, alpha=0.75)
        >>> update, state = optimizer.update(jnp.float32(4.0), optimizer.init(jnp.float32(0.0)))
        >>> update
        Array(-0.5, dtype=float32)

    References: Polyak, 1964; Qian, Neural Networks 1999 (the equation of motion).
    """
    check_rate("momentum", lr)
    check_decay("momentum", "alpha", alpha)
    return optax.chain(optax.ema(alpha, debias=False), optax.scale_by_learning_rate(lr))
