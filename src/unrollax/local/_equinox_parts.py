"""What a module of Equinox is made of, in order; Equinox is not imported before it is used."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from unrollax._errors import InvalidArgument

OWNER = "equinox_layers"
Path = tuple[int, ...]


class Piece(NamedTuple):
    """A part of a module that is no list of others.

    Attributes:
        path: the places in `.layers`, from the outermost module.
        item: a module, or the activation of an MLP.
        name: what to call it in messages.
    """

    path: Path
    item: Any
    name: str


class Activation(NamedTuple):
    """A function that follows a layer.

    Attributes:
        function: what is applied.
        elementwise: whether to each number by itself, as an MLP does.
    """

    function: Any
    elementwise: bool


def pieces_of(module: Any) -> list[Piece]:
    """Take a module apart; raise if one with arrays comes twice, as layers can't share params."""
    import equinox as eqx

    pieces, seen = _pieces(module, (), "module"), dict[int, str]()
    for piece in pieces:
        if any(map(eqx.is_array, jax.tree.leaves(piece.item))):
            first = seen.setdefault(id(piece.item), piece.name)
            if first != piece.name:
                raise InvalidArgument(
                    f"{OWNER}: {piece.name} must be a module of its own, got the {type(piece.item).__name__} that is {first} "
                    "too. Layers can't share params: make another, or train the module itself by backpropagation."
                )
    return pieces


def _pieces(module: Any, path: Path, name: str) -> list[Piece]:
    """Take a module apart."""
    import equinox as eqx

    if type(module) not in (eqx.nn.MLP, eqx.nn.Sequential):
        return [Piece(path, module, name)]
    pieces = []
    for index, item in enumerate(module.layers):
        pieces += _pieces(item, (*path, index), f"{name}.layers[{index}]")
        if type(module) is eqx.nn.MLP:
            which = "final_activation" if index == len(module.layers) - 1 else "activation"
            pieces.append(Piece(path, Activation(getattr(module, which), True), f"{name}.{which}"))
    return pieces
