"""What the family's optimizers ask of their numbers, and of what they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from unrollax._check import NOT_NEGATIVE, Rule, check_number
from unrollax._errors import StructureError
from unrollax._tree import describe, is_inexact, leaves_with_names
from unrollax._types import Params

Rate: TypeAlias = (
    float | jax.Array | Callable[[Any], Any]
)  # a number, or an optax schedule: of the updates made to a number

BELOW_ONE = Rule("a number in [0, 1)", lambda number: (number >= 0) & (number < 1))


def check_rate(owner: str, lr: Any) -> None:
    """Raise unless a learning rate is a number of at least 0 or a schedule."""
    if not callable(lr):
        check_number(owner, "lr", lr, NOT_NEGATIVE, used=True)


def check_decay(owner: str, name: str, got: Any) -> None:
    """Raise unless a decay rate is in [0, 1)."""
    check_number(owner, name, got, BELOW_ONE, used=True)


def check_real(owner: str, params: Params) -> None:
    """Raise unless each leaf of params is real and floating; there may be none, as under `optax.masked`."""
    for name, leaf in leaves_with_names(params):
        if not is_inexact(leaf) or jnp.iscomplexobj(leaf):
            raise StructureError(
                f"{owner}: params leaf {name} must be real floating numbers, got {describe(leaf)}. "
                "Give it to another optimizer with optax.partition."
            )
