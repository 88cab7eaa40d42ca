"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from unrollax import optimizers
from unrollax._check import NOT_NEGATIVE, check_number
from unrollax._errors import InvalidArgument, nearest


class Named(NamedTuple):
    """An optimizer of the table: what makes it of a learning rate, and the rate that it usually has."""

    make: Callable[[Any], optax.GradientTransformation]
    lr: float = 1e-3


OPTIMIZERS: dict[str, Named] = {
    "adagrad": Named(optax.adagrad, 0.01),
    "adagrad-plain": Named(optimizers.adagrad_plain, 0.01),
    "adam": Named(optax.adam),
    "adamw": Named(optax.adamw),
    "heavy-ball": Named(lambda lr: optax.sgd(lr, momentum=0.9), 0.1),
    "lion": Named(optax.lion, 1e-4),  # all of its steps have the length of the rate: a third to a tenth of Adam's
    "momentum": Named(optimizers.momentum, 1.0),
    # One rate for matrices and the rest: each update of a matrix has the size that Adam's would have.
    "muon": Named(lambda lr: optax.contrib.muon(lr, consistent_rms=0.2)),
    "nesterov": Named(lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True), 0.1),
    "rmsprop": Named(optax.rmsprop),
    "sgd": Named(optax.sgd, 0.1),
    "shampoo": Named(optimizers.shampoo),
    "soap": Named(optimizers.soap, 3e-3),
}


def optimizer(name: str, lr: float | Callable[[Any], Any] | None = None) -> optax.GradientTransformation:
    """Return an optimizer by the name that the command line has for it, with its usual options.

    The names are adagrad, adagrad-plain, adam, adamw, heavy-ball, lion, momentum, muon, nesterov, rmsprop, sgd, shampoo and
    soap; docs/optimizers.md says what each does. For other options call the optimizer itself: `unrollax.momentum`,
    `unrollax.adagrad_plain`, `unrollax.shampoo`, `unrollax.soap`, and all others in `optax`.

    Args:
        name: one of these.
        lr: learning rate, a number or an optax schedule; by default the optimizer's usual one.

    Raises:
        InvalidArgument: an unknown name, or a rate below 0.

    Example:
        >>> import jax.numpy as jnp, unrollax as ux
        >>> momentum = ux.optimizer("momentum", lr=0.5)
        >>> update, state = momentum.update(jnp.float32(4.0), momentum.init(jnp.float32(0.0)))
        >>> round(float(update), 4)
        -0.2
    """
    if not isinstance(name, str) or name not in OPTIMIZERS:
        near = nearest(name if isinstance(name, str) else "", OPTIMIZERS)
        raise InvalidArgument(f"optimizer: name must be that of an optimizer, got {name!r}. {near}")
    found = OPTIMIZERS[name]
    if lr is not None and not callable(lr):
        check_number("optimizer", "lr", lr, NOT_NEGATIVE, used=True)
    return found.make(found.lr if lr is None else lr)
