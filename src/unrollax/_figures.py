"""Kinds of figures, as plain numbers: each says in words what it shows and gives its table; `_draw` draws them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Numbers: TypeAlias = Sequence[float] | np.ndarray
ROWS = 20  # of a table of numbers
SIDE = 16  # of a heat map's table


class Table(NamedTuple):
    """A table of numbers: the names of its columns, and its rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Plot(NamedTuple):
    """Lines over one horizontal axis.

    Attributes:
        title: what it shows.
        over: the name of the horizontal axis.
        x: its numbers.
        lines: each line's numbers by its name; NaN leaves a gap.
        up: the name of the vertical axis; for one line its own name by default.
        log: the axes that are logarithmic, "x", "y" or "xy"; by default y of a single line whose numbers are far apart.
        points: names of the lines that are drawn as points, such as what a line was fitted to.
        marks: vertical lines by what they mean.
    """

    title: str
    over: str
    x: Numbers
    lines: Mapping[str, Numbers]
    up: str | None = None
    log: str | None = None
    points: Collection[str] = ()
    marks: Mapping[str, float] = {}

    def says(self) -> str:
        """Return what it shows in words."""
        return f"{self.title}, {', '.join(self.lines)} against {self.over}"

    def numbers(self) -> Table:
        """Return at most about 20 of its points, the last one among them."""
        rows = [
            (f"{self.x[i]:.12g}", *(f"{y[i]:.6g}" for y in self.lines.values())) for i in _chosen(len(self.x), ROWS)
        ]
        return Table((self.over, *self.lines), rows)


class HeatMap(NamedTuple):
    """Positive numbers by row and column, on a logarithmic colour scale.

    Attributes:
        title: what it shows.
        over: the name of the columns.
        down: the name of the rows; the first is drawn at the top.
        columns: the columns' numbers.
        rows: the rows' numbers.
        cells: `[rows, columns]`; NaN is left blank, zero has the lowest colour, infinity a colour of its own.
        unit: what the numbers are.
    """

    title: str
    over: str
    down: str
    columns: Numbers
    rows: Numbers
    cells: Any
    unit: str

    def says(self) -> str:
        """Return what it shows in words."""
        return f"{self.title}, {self.unit} by {self.down} and {self.over}"

    def numbers(self) -> Table:
        """Return at most 16 rows and 16 columns of it, the first and the last among them."""
        cells = np.asarray(self.cells, float)
        across = _chosen(cells.shape[1], SIDE)
        rows = [
            (f"{self.rows[i]:.12g}", *("" if np.isnan(cells[i, j]) else f"{cells[i, j]:.3g}" for j in across))
            for i in _chosen(cells.shape[0], SIDE)
        ]
        return Table((f"{self.down} \\ {self.over}", *(f"{self.columns[j]:.12g}" for j in across)), rows)


class Bars(NamedTuple):
    """One number with its error for each of some names.

    Attributes:
        title: what it shows.
        over: what the names are.
        up: what the numbers are.
        names: in the order in which they are drawn.
        heights: the numbers.
        errors: their standard errors; NaN where there is none.
    """

    title: str
    over: str
    up: str
    names: Sequence[str]
    heights: Numbers
    errors: Numbers

    def says(self) -> str:
        """Return what it shows in words."""
        return f"{self.title}, {self.up} by {self.over}"

    def numbers(self) -> Table:
        """Return at most about 20 of its bars."""
        chosen = _chosen(len(self.names), ROWS)
        rows = [(self.names[i], f"{self.heights[i]:.6g}", f"{self.errors[i]:.2g}") for i in chosen]
        return Table((self.over, self.up, "standard error"), rows)


class Histogram(NamedTuple):
    """Histograms side by side, one for each name.

    Attributes:
        title: what they show.
        over: what is counted, the name of the horizontal axis.
        panels: by name, the bins' edges `[b + 1]` and their counts `[b]`.
    """

    title: str
    over: str
    panels: Mapping[str, tuple[Any, Any]]

    def says(self) -> str:
        """Return what it shows in words."""
        return f"{self.title}, share of {self.over} for {', '.join(self.panels)}"

    def numbers(self) -> Table:
        """Return the share of each bin, in at most 20 bins for each name."""
        rows = []
        for name, (edges, counts) in self.panels.items():
            edges, shares = coarser(np.asarray(edges, float), shares_of(counts))
            rows += [
                (name, f"{low:.3g} to {high:.3g}", f"{share:.2%}")
                for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
            ]
        return Table(("", self.over, "share"), rows)


class Scatter(NamedTuple):
    """Named points of which fewer is better on both axes, with the front of those that no other one beats.

    Attributes:
        title: what it shows.
        over: the name of the horizontal axis, which is logarithmic.
        up: the name of the vertical axis, which is logarithmic where all is positive and far apart.
        points: (x, y) by name.
    """

    title: str
    over: str
    up: str
    points: Mapping[str, tuple[float, float]]

    def says(self) -> str:
        """Return what it shows in words."""
        return f"{self.title}, {self.up} against {self.over} of {', '.join(self.points)}"

    def front(self) -> list[str]:
        """Return the names that no other point beats on both axes, from left to right."""
        finite = {name: point for name, point in self.points.items() if np.isfinite(point).all()}
        best, names = float("inf"), []
        for name, (_, y) in sorted(finite.items(), key=lambda item: item[1]):
            if y < best:
                best = y
                names.append(name)
        return names

    def numbers(self) -> Table:
        """Return the points from left to right."""
        front = self.front()
        points = sorted(self.points.items(), key=lambda item: tuple(np.nan_to_num(item[1], nan=np.inf)))
        rows = [(name, f"{x:.4g}", f"{y:.4g}", "yes" if name in front else "") for name, (x, y) in points]
        return Table(("", self.over, self.up, "not beaten"), rows)


class Contour(NamedTuple):
    """A surface from above, with paths on it.

    Attributes:
        title: what it shows.
        over: the name of the horizontal axis.
        up: the name of the vertical axis.
        x: the columns' places `[m]`.
        y: the rows' places `[n]`.
        heights: `[n, m]`; what is not finite is left blank.
        unit: what the heights are.
        paths: places `[steps, 2]` by name.
    """

    title: str
    over: str
    up: str
    x: Any
    y: Any
    heights: Any
    unit: str
    paths: Mapping[str, Any] = {}

    def says(self) -> str:
        """Return what it shows in words."""
        paths = f", with the paths of {', '.join(self.paths)}" if self.paths else ""
        return f"{self.title}, {self.unit} over {self.over} and {self.up}{paths}"

    def numbers(self) -> Table:
        """Return at most 16 rows and columns of the heights, the largest y first as it is drawn."""
        heights = np.asarray(self.heights, float)
        across = _chosen(heights.shape[1], SIDE)
        rows = [
            (f"{self.y[i]:.4g}", *(f"{heights[i, j]:.4g}" for j in across))
            for i in reversed(_chosen(heights.shape[0], SIDE))
        ]
        return Table((f"{self.up} \\ {self.over}", *(f"{self.x[j]:.4g}" for j in across)), rows)


Figure: TypeAlias = Plot | HeatMap | Bars | Histogram | Scatter | Contour


def shares_of(counts: Any) -> np.ndarray:
    """Return counts as shares of their sum; zeros where nothing was counted."""
    counts = np.asarray(counts, float)
    return counts / max(counts.sum(), 1.0)


def coarser(edges: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring bins until there are at most 20."""
    width = -(-len(shares) // ROWS)
    starts = np.arange(0, len(shares), width)
    return np.append(edges[:-1][starts], edges[-1]), np.add.reduceat(shares, starts) if len(shares) else shares


def _chosen(count: int, most: int) -> list[int]:
    """Return at most `most` places of a sequence, evenly spread, the first and the last among them."""
    return [int(place) for place in np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))]
