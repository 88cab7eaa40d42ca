"""A series from a column of a CSV file.

The file that is shipped, `sunspots.csv`, holds the yearly mean sunspot numbers of 1700 to 2008, version 1: WDC-SILSO, Royal
Observatory of Belgium, Brussels, in the public domain as statsmodels' data set `sunspots`, column SUNACTIVITY.
"""

from __future__ import annotations

import csv
import io
import math
import re
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unrollax._errors import InvalidArgument, nearest

SHORTEST = 30  # values
DELIMITERS = ",;\t|"
TIME = re.compile(r"[12]\d{3}(\.\d+)?|\d{4}-\d\d(-\d\d([T ]\d\d:\d\d.*)?)?")  # years and ISO dates: they sort as text


class Series(NamedTuple):
    """A column of numbers.

    Attributes:
        name: the column's name.
        values: `[n]`.
        over: what its values stand over: the name of the file's first column if that is another and grows, else `row`.
        x: `[n]`, that column, or the numbers of the rows from 1.
    """

    name: str
    values: np.ndarray
    over: str
    x: np.ndarray


def read(path: str, target: str) -> Series:
    """Read a column of the user's CSV file, or of the one that is shipped if path is empty.

    Raises:
        InvalidArgument: the file can't be read, lacks the column, runs from the newest row to the oldest, has rows of more
            cells than its header, or the column has gaps, words or too few numbers.

    Example:
        >>> series = read("", "sunspots")
        >>> series.over, series.values[:4]
        ('year', array([ 5., 11., 16., 23.]))
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig") if path else _shipped()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidArgument(f"forecast: path must be a readable CSV file, got {path!r}: {reason}.") from error
    header, rows, lines = _parse(path, text)
    place = _column(header, target)
    for row, line in zip(rows, lines, strict=True):
        _check_length(header, row, line)
    values = np.array([_number(row, place, header[place], line) for row, line in zip(rows, lines, strict=True)])
    if len(values) < SHORTEST:
        raise InvalidArgument(f"forecast: the series must have at least {SHORTEST} values, got {len(values)}.")
    if place:
        _check_order([row[0] for row in rows], lines)
    over, x = _axis(header, rows, place)
    return Series(header[place], values, over, x)


def _shipped() -> str:
    return (resources.files("unrollax.recipes") / "sunspots.csv").read_text(encoding="utf-8")


def _parse(path: str, text: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header, the rows and their line numbers; empty lines at either end are no rows, those between are."""
    try:
        dialect: type[csv.Dialect] | str = csv.Sniffer().sniff(text[:4096], DELIMITERS)
    except csv.Error:
        dialect = "excel"  # a file of one column has no delimiter
    rows, lines = _cells(path, text, dialect)
    while rows and not any(rows[-1]):
        rows.pop()
    while rows and not any(rows[0]):
        del rows[0], lines[0]
    while len(rows) > 1 and not any(rows[1]):
        del rows[1], lines[1]
    if not rows or all(_is_number(cell) for cell in rows[0]):
        raise InvalidArgument(
            f"forecast: the file's first line must name its columns, got {', '.join(rows[0]) if rows else 'nothing'}."
        )
    return rows[0], rows[1:], lines[1 : len(rows)]


def _cells(path: str, text: str, dialect: Any) -> tuple[list[list[str]], list[int]]:
    """Return all rows and the lines where they end; raise at a quote that nothing closes, which would swallow the rest."""
    reader = csv.reader(io.StringIO(text, newline=""), dialect, doublequote=True)
    rows: list[list[str]] = []
    ends = [0]
    try:
        for row in reader:
            rows.append([cell.strip() for cell in row])
            ends.append(reader.line_num)
    except csv.Error as error:
        raise _damage(path, str(error), ends[-1] + 1) from error
    last = "\n".join(text.split("\n")[ends[-2] :]) if rows else ""
    try:
        list(csv.reader(io.StringIO(last, newline=""), dialect, doublequote=True, strict=True))
    except csv.Error as error:
        if "end of data" in str(error):
            raise _damage(path, str(error), ends[-2] + 1) from error
    return rows, ends[1:]


def _damage(path: str, what: str, line: int) -> InvalidArgument:
    return InvalidArgument(
        f"forecast: path must be a readable CSV file, got {path!r}: {what}, in the row that begins in line {line}. "
        "Close the quote there."
    )


def _check_length(header: list[str], row: list[str], line: int) -> None:
    """Raise if a row has cells that no column names: a number with an unquoted decimal comma is two cells."""
    if any(row[len(header) :]):
        raise InvalidArgument(
            f"forecast: no row must have more cells than the header, got {len(row)} in line {line}, the header names "
            f"{len(header)}. Quote cells that contain the delimiter, and write numbers with decimal points."
        )


def _check_order(times: list[str], lines: list[int]) -> None:
    """Raise if years or dates run backwards."""
    falls = all(after <= before for before, after in pairwise(times)) and times[-1] < times[0]
    if falls and all(map(TIME.fullmatch, times)):
        raise InvalidArgument(
            f"forecast: the rows must run from the oldest to the newest, got {times[0]} in line {lines[0]} and {times[-1]} "
            f"in line {lines[-1]}. Turn the file around."
        )


def _column(header: list[str], target: str) -> int:
    if not target and len(header) == 1:
        return 0
    if target not in header:
        got = repr(target) if target else "none"
        raise InvalidArgument(f"forecast: target must be a column of the file, got {got}. {nearest(target, header)}")
    return header.index(target)


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _number(row: list[str], place: int, name: str, line: int) -> float:
    cell = row[place] if place < len(row) else ""
    if _is_number(cell):
        return float(cell)
    if not cell or cell.lower() in ("nan", "na", "null", "none", "-", "?"):
        raise InvalidArgument(
            f"forecast: column {name!r} must have no gaps, got one in line {line}. Fill it or cut there."
        )
    comma = cell.count(",") == 1 and _is_number(cell.replace(",", "."))
    remedy = f" Write a decimal point for its comma: {cell.replace(',', '.')}." if comma else ""
    raise InvalidArgument(f"forecast: column {name!r} must hold finite numbers, got {cell!r} in line {line}.{remedy}")


def _axis(header: list[str], rows: list[list[str]], place: int) -> tuple[str, np.ndarray]:
    first = [row[0] for row in rows]
    if place != 0 and all(map(_is_number, first)):
        x = np.array(first, float)
        if (np.diff(x) > 0).all():
            return header[0], x
    return "row", np.arange(1.0, len(rows) + 1)
