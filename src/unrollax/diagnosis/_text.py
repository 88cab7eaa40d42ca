"""How results are shown: aligned tables, and plain Python for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with aligned columns, the first to the left and the others to the right.

    Example:
        >>> print(aligned([("layer", "factor"), ("first", "0.25")]))
        layer  factor
        first    0.25
    """
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(first), *(cell.rjust(n) for cell, n in zip(row[1:], widths, strict=True))] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def plain(item: Any) -> Any:
    """Return named tuples as dicts, arrays as lists and NumPy's numbers as Python's, throughout.

    Example:
        >>> plain({"rates": np.array([1.0, 2.0]), "shape": (np.int64(3),)})
        {'rates': [1.0, 2.0], 'shape': [3]}
    """
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return {name: plain(getattr(item, name)) for name in item._fields}
    if isinstance(item, dict):
        return {str(name): plain(part) for name, part in item.items()}
    if isinstance(item, (list, tuple)):
        return [plain(part) for part in item]
    return item.tolist() if isinstance(item, (np.ndarray, np.generic)) else item
