"""What LocoProp asks of its layers, their params and its state."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import leaves_with_names
from unrollax._types import Params, State
from unrollax.local._layers import is_linear, matrix_shape, show
from unrollax.local._transfers import Transfer

OWNER = "LocoProp"


def check_linear(index: int, layer: Any, params: Params, why: str) -> None:
    """Raise unless a layer is linear in its params, and takes these."""
    if not is_linear(layer):
        raise StructureError(
            f"{OWNER}: layers[{index}] must have features, matrix and from_matrix for {why}, got {show(layer)} without. Take "
            "targets='gradient' and an optax optimizer as inner, or give it these three."
        )
    matrix_shape(OWNER, index, layer, params)


def check_matching(layers: tuple[Any, ...], at: list[int]) -> None:
    """Raise unless each transfer at these places has a matching loss, and none but the net's last is a softmax.

    It is asked only of layers that have params, as nothing is solved at others.
    """
    for index in at:
        transfer = getattr(layers[index], "transfer", None)
        where = f"{OWNER}: layers[{index}], {show(layers[index])},"
        if not isinstance(transfer, Transfer) or transfer.potential is None:
            raise InvalidArgument(
                f"{where} must have a transfer with a matching loss for variant='M', got {_name(transfer)}. Give it one, "
                "Transfer(name, function, potential), or take variant='S', which needs none."
            )
        if transfer.name == "softmax" and index + 1 < len(layers):
            raise InvalidArgument(
                f"{where} must not be a softmax unless it is the last, for variant='M': targets beside the simplex are those "
                "of no pre-activation. Take variant='S', or another transfer there."
            )


def check_slopes(layers: tuple[Any, ...], at: list[int]) -> None:
    """Raise unless each transfer at these places has a largest slope, or a squared matching loss."""
    for index in at:
        transfer = layers[index].transfer
        if transfer.slope is None and transfer.name != "identity":
            raise InvalidArgument(
                f"{OWNER}: layers[{index}], {show(layers[index])}, must have a transfer with a largest slope for "
                f"Curvature and variant='M', got {_name(transfer)}, slope=None. Give Transfer(name, function, potential, "
                "slope), or take variant='S' or an optax inner optimizer."
            )


def check_state(state: State, like: State) -> None:
    """Raise unless a state has the leaves of one that `init` makes; a scalar in place of an array is none that is kept."""
    got, must = ({name: jnp.shape(leaf) for name, leaf in leaves_with_names(tree)} for tree in (state, like))
    for name in {**must, **got}:
        pair = must.get(name), got.get(name)
        if None in pair or (all(pair) and pair[0] != pair[1]):
            expected, found = ("nothing" if shape is None else list(shape) for shape in pair)
            raise StructureError(
                f"{OWNER}: state leaf {name} must be {expected}, got {found}. Make the state with init(key, params) for this "
                "net and these settings."
            )


def _name(transfer: Any) -> str:
    return getattr(transfer, "name", None) or getattr(transfer, "__qualname__", None) or repr(transfer)
