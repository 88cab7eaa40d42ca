"""Advice: what to do, what it should bring, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from unrollax._figures import Table
from unrollax._report import Section
from unrollax.readings._words import short


def read_advice(pieces: Sequence[Any]) -> list[Section]:
    """Return what a list of `Advice` says."""
    if not pieces:
        return [
            Section(
                "Advice", "No rule applies to what was measured. Nothing to mend was found by them; see the figures."
            )
        ]
    pieces = sorted(pieces, key=lambda piece: piece.rank)
    measured = any(piece.measured is not None for piece in pieces)
    head = ("", "what to do", "why", "effect", "predicted", *(["measured", "held"] if measured else []))
    rows = [
        (str(piece.rank), piece.title, piece.why, piece.effect, short(piece.predicted), *_measured(piece, measured))
        for piece in pieces
    ]
    code = {f"{piece.rank}. {piece.title}": _code(piece) for piece in pieces}
    return [Section("Advice", "", (), {"": Table(head, rows)}, {name: text for name, text in code.items() if text})]


def _measured(piece: Any, measured: bool) -> list[str]:
    """Return what came of a prediction, where any was put to the test."""
    if not measured:
        return []
    held = {None: "", True: "yes", False: "no"}[getattr(piece, "held", None)]
    if piece.measured is None:
        return ["", held]
    return ["below what can be measured" if math.isnan(piece.measured) else short(piece.measured), held]


def _code(piece: Any) -> str:
    """Return the Python that follows the advice, and the command."""
    command = f"unrollax train TARGET {piece.command}" if piece.command.startswith("-") else piece.command
    return "\n".join(text for text in (piece.option, command) if text)
