"""What a target keeps with its run besides scores: texts as files, tables as CSV and as plots of the report."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unrollax._errors import InvalidArgument
from unrollax._figures import Plot

OWN = ("run.toml", "env.json", "metrics.jsonl", "params.safetensors", "report.html")


def keep(folder: Path, artifacts: Any) -> list[Plot]:
    """Write artifacts into a run folder, and return what the report draws of them.

    Args:
        folder: the run folder.
        artifacts: by name, a text, which becomes the file of that name, or a table `{column: numbers}`, which becomes a CSV
            file and a plot of its other columns over its first one.

    Raises:
        InvalidArgument: it is no such mapping, or a name is no file name or that of a file of the run's own.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     plots = keep(Path(path), {"two lines": {"t": [0, 1], "a": [0.5, 1.0], "b": [2.0, 3.0]}, "note.txt": "hi"})
        ...     print(sorted(file.name for file in Path(path).iterdir()), plots[0].title, list(plots[0].lines))
        ['note.txt', 'two-lines.csv'] two lines ['a', 'b']
    """
    if not isinstance(artifacts, Mapping):
        raise InvalidArgument(f"artifacts must return a mapping by name, got {type(artifacts).__name__}.")
    plots = []
    for name, item in artifacts.items():
        if isinstance(item, str):
            _write(folder, str(name), item)
        else:
            plots.append(_table(folder, str(name), item))
    return plots


def _write(folder: Path, name: str, text: str) -> None:
    if Path(name).name != name or name in (*OWN, ".."):
        raise InvalidArgument(f"artifacts: a text's name must be a file name not among {', '.join(OWN)}, got {name!r}.")
    (folder / name).write_text(text, encoding="utf-8")


def _table(folder: Path, name: str, columns: Mapping[str, Sequence[float]]) -> Plot:
    lengths = {len(column) for column in columns.values()} if isinstance(columns, Mapping) else set()
    if len(lengths) != 1 or len(columns) < 2:
        raise InvalidArgument(
            f"artifacts: {name!r} must be a text or a table of two or more columns of one length, got "
            + (f"columns of {sorted(lengths)} rows." if isinstance(columns, Mapping) else f"{type(columns).__name__}.")
        )
    slug = re.sub(r"\W+", "-", name).strip("-") or "table"
    with (folder / f"{slug}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(map(_number, column) for column in columns.values()), strict=True))
    (over, x), *lines = columns.items()
    return Plot(name, over, x, dict(lines))


def _number(number: float) -> str:
    """Return nine significant digits: enough for float32, and `1700` rather than `1700.0`."""
    return f"{float(number):.9g}"
