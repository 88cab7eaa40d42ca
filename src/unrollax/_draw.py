"""Figures as inline SVG."""

from __future__ import annotations

import html
import io
import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from unrollax._figures import Bars, Contour, Figure, HeatMap, Histogram, Plot, Scatter, shares_of
from unrollax._ink import (
    COLOURS,
    DASHES,
    MARKERS,
    TEXT,
    TINY,
    add_legend,
    add_marks,
    dress,
    far_apart,
    looks_of,
    make_logarithmic,
    within,
)

DECADES = 40  # of a heat map's colours, from its largest number down: about those of float32
FEW = 6  # bars have room for as many
ENOUGH = 128  # rows and columns of a heat map's raster


def draw(figure: Figure) -> str:
    """Return a figure as an `<svg>` element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "unrollax"}):
        canvas = Canvas(
            figsize=(8, 4.4 if isinstance(figure, HeatMap | Scatter | Contour) else 3.2), layout="constrained"
        )
        DRAW[type(figure)](canvas, figure)
        out = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's browser has the letter
            canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), figure.says())


def _inline(svg: str, label: str) -> str:
    """Return the `<svg>` element alone, without its metadata, in the page's colours, and with a text for screen readers."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for i, (light, _) in enumerate(COLOURS):
        svg = svg.replace(light, f"var(--c{i}, {light})")
    svg = svg.replace(TEXT, f"var(--grey, {TEXT})")
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def _draw_plot(canvas: Any, plot: Plot) -> None:
    axes = canvas.subplots()
    x = np.asarray(plot.x, float)
    lines = {name: within(y) for name, y in plot.lines.items()}
    log = ("y" if len(lines) == 1 and far_apart(*lines.values()) else "") if plot.log is None else plot.log
    if "y" in log:
        lines = {name: np.where(y > TINY, y, np.nan) for name, y in lines.items()}
    for i, ((name, y), look) in enumerate(zip(lines.items(), looks_of(len(lines)), strict=True)):
        loose = name in plot.points
        few = np.isfinite(y).sum() < 30 and not plot.points
        marker = MARKERS[i % len(MARKERS)] if few or loose else None
        dash = {"linestyle": "none", "alpha": 0.6} if loose else {"zorder": 3}
        label = name if np.isfinite(y).any() or not y.size else f"{name} (nothing to draw)"
        axes.plot(x, y, **{**look, **dash}, linewidth=1.5, marker=marker, markersize=4, label=label)
    _scale(axes, log, x, list(lines.values()))
    if "x" not in log and x.size and (x == np.round(x)).all():
        axes.xaxis.get_major_locator().set_params(integer=True)
    add_marks(axes, plot.marks)
    if len(lines) > 1:
        add_legend(axes, list(lines))
    dress(axes, plot.over, plot.up or ("" if len(lines) > 1 else next(iter(lines))))


def _scale(axes: Any, log: str, x: np.ndarray, lines: list[np.ndarray]) -> None:
    """Make axes logarithmic where there is something that a logarithm can show."""
    drawn = np.isfinite(lines).any(0) if lines else np.zeros(len(x), bool)
    if "x" in log and (x[drawn] > 0).any():
        make_logarithmic(axes, "x", x[drawn])
    if "y" in log and any((y > 0).any() for y in lines):
        make_logarithmic(axes, "y", np.concatenate(lines))


def _draw_heat(canvas: Any, heat: HeatMap) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    axes = canvas.subplots()
    cells, rows, columns = _blocks(np.asarray(heat.cells, float), heat.rows, heat.columns)
    powers, low, high = _powers(cells)
    colours = ListedColormap(colormaps["cividis"](np.linspace(0.08, 1, 256))).with_extremes(
        bad=(0, 0, 0, 0), over=COLOURS[1][0]
    )
    image = axes.imshow(powers, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none")
    bar = canvas.colorbar(image, extend="max" if (powers > high).any() else "neither", pad=0.02)
    bar.set_label(heat.unit, color=TEXT, parse_math=False)
    bar.ax.tick_params(colors=TEXT)
    bar.ax.yaxis.set_major_formatter(lambda power, _: f"{10.0**power:.2g}" if -300 < power < 300 else f"1e{power:.0f}")
    bar.outline.set_visible(False)
    dress(axes, heat.over, heat.down)
    axes.grid(False)
    axes.spines[:].set(visible=True, color=TEXT, linewidth=0.6)
    axes.set_xticks(*_ticks(columns))
    axes.set_yticks(*_ticks(rows))


def _ticks(numbers: np.ndarray) -> tuple[list[int], list[str]]:
    places = np.unique(np.linspace(0, len(numbers) - 1, min(9, len(numbers))).astype(int))
    return [int(place) for place in places], [f"{numbers[place]:.6g}" for place in places]


def _blocks(cells: np.ndarray, rows: Any, columns: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join cells to blocks, each shown by its largest, until no side has more than 128."""
    for axis in (0, 1):
        width = max(1, -(-cells.shape[axis] // ENOUGH))
        starts = np.arange(0, cells.shape[axis], width)
        cells = np.fmax.reduceat(cells, starts, axis=axis)  # NaN only where the whole block is
        rows, columns = (np.asarray(rows)[starts], columns) if axis == 0 else (rows, np.asarray(columns)[starts])
    return cells, rows, columns


def _powers(cells: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the cells' powers of ten and the least and largest that have colours of their own; zero is below them all."""
    positive = cells[np.isfinite(cells) & (cells > 0)]
    high = float(np.log10(positive.max())) if positive.size else 0.0
    low = max(float(np.log10(positive.min())) if positive.size else -1.0, high - DECADES)
    low = low if high - low > 0.1 else high - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = np.maximum(np.log10(cells), low)
    return np.where(np.isposinf(powers), high + 1, powers), low, high


def _draw_bars(canvas: Any, bars: Bars) -> None:
    axes = canvas.subplots()
    places, heights = np.arange(len(bars.names)), within(bars.heights)
    axes.bar(places, np.nan_to_num(heights), color=COLOURS[0][0], width=0.7)
    errors = np.where(np.isfinite(heights), np.nan_to_num(within(bars.errors)), np.nan)
    axes.errorbar(places, heights, errors, linestyle="none", color=TEXT, elinewidth=1.5, capsize=3)
    axes.axhline(0, color=TEXT, linewidth=1)
    dress(axes, bars.over, bars.up)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.6, max(len(places), FEW) - 0.4)
    chosen = places[:: max(1, -(-len(places) // 20))]
    axes.set_xticks(chosen)
    steep = {"rotation": 30, "ha": "right"} if sum(len(bars.names[i]) for i in chosen) > 90 else {}
    axes.set_xticklabels([bars.names[i] for i in chosen], parse_math=False, **steep)


def _draw_histogram(canvas: Any, histogram: Histogram) -> None:
    across = min(4, max(1, len(histogram.panels)))
    down = max(1, -(-len(histogram.panels) // across))
    canvas.set_size_inches(8, 2.4 * down)
    grid = canvas.subplots(down, across, squeeze=False, sharey=True)
    for axes, panel in itertools.zip_longest(grid.flat, histogram.panels.items()):
        if panel is None:
            axes.set_visible(False)
            continue
        name, (edges, counts) = panel
        axes.stairs(shares_of(counts), edges, fill=True, color=COLOURS[0][0])
        dress(axes, histogram.over, "share" if axes is grid.flat[0] else "")
        axes.set_title(name, color=TEXT, fontsize=10, parse_math=False)


def _draw_scatter(canvas: Any, scatter: Scatter) -> None:
    axes = canvas.subplots()
    points = {name: tuple(within(point)) for name, point in scatter.points.items()}
    points = {name: point for name, point in points.items() if np.isfinite(point).all()}
    x, y = (np.array([point[side] for point in points.values()]) for side in (0, 1))
    front = [name for name in scatter.front() if name in points]
    if (x > 0).all() and x.size:
        make_logarithmic(axes, "x", x)
    if far_apart(y):
        make_logarithmic(axes, "y", y)
    for name, point in points.items():
        fill = COLOURS[0][0] if name in front else "none"
        axes.plot(*point, linestyle="none", marker="o", markersize=8, color=COLOURS[0][0], markerfacecolor=fill)
    axes.margins(0.12)
    dress(axes, scatter.over, scatter.up)
    if front:
        steps = np.array([points[name] for name in front] + [(axes.get_xlim()[1], points[front[-1]][1])])
        axes.step(*steps.T, where="post", color=COLOURS[0][0], linewidth=1, linestyle=DASHES[1], alpha=0.7)
    canvas.draw_without_rendering()
    _name_points(axes, points)


def _name_points(axes: Any, points: Any) -> None:
    """Write the points' names beside them, moved up where they would lie on another name or point."""
    right = axes.transAxes.transform((1, 1))[0]
    taken = [(left - 7, left + 7, up) for left, up in map(axes.transData.transform, points.values())]
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        left, bottom = axes.transData.transform(point)
        width, shift = 7.5 * len(name), 11.0
        side = -1 if left + width > right else 1
        start = left + 8 if side > 0 else left - 8 - width
        while any(abs(bottom + shift - up) < 14 and start < end and begin < start + width for begin, end, up in taken):
            shift += 14
        taken.append((start, start + width, bottom + shift))
        axes.annotate(
            name, point, xytext=(7 * side, shift * 0.72), textcoords="offset points", fontsize=9, color=TEXT,
            ha="left" if side > 0 else "right", va="center", parse_math=False,
        )  # fmt: skip


def _draw_contour(canvas: Any, contour: Contour) -> None:
    from matplotlib.colors import BoundaryNorm

    axes = canvas.subplots()
    heights = np.ma.masked_invalid(within(contour.heights))
    if heights.count():
        levels = _levels(heights.compressed())
        if contour.paths:
            lines = axes.contour(contour.x, contour.y, heights, levels, colors=TEXT, linewidths=0.7, linestyles="-")
            axes.clabel(lines, levels[len(levels) // 2 :], fontsize=7, colors=TEXT, fmt=lambda height: f"{height:.3g}")
        else:
            filled = axes.contourf(
                contour.x, contour.y, heights, levels, cmap="cividis", norm=BoundaryNorm(levels, 256)
            )
            filled.set_edgecolor("face")  # no seams between neighbours
            bar = canvas.colorbar(filled, pad=0.02, ticks=levels[::2], format=lambda height, _: f"{height:.3g}")
            bar.set_label(contour.unit, color=TEXT, parse_math=False)
            bar.ax.tick_params(colors=TEXT, which="both")
    for i, ((name, path), look) in enumerate(zip(contour.paths.items(), looks_of(len(contour.paths)), strict=True)):
        places, marker = within(path), MARKERS[i % len(MARKERS)]
        axes.plot(*places.T, **look, linewidth=1.5, marker=marker, markersize=5, markevery=[0, -1], label=name)
    if contour.paths:
        add_legend(axes, list(contour.paths))
        axes.set(xlim=(np.min(contour.x), np.max(contour.x)), ylim=(np.min(contour.y), np.max(contour.y)))
    dress(axes, contour.over, contour.up)
    axes.grid(False)


def _levels(heights: np.ndarray) -> np.ndarray:
    """Return where contours are drawn: evenly, or by equal factors where heights are positive and far apart."""
    low, high = float(heights.min()), float(heights.max())
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        reach = max(abs(low) * 1e-3, 1e-12)
        low, high = low - reach, high + reach
    return np.geomspace(low, high, 13) if far_apart(heights) else np.linspace(low, high, 13)


DRAW: dict[type, Callable[[Any, Any], None]] = {
    Plot: _draw_plot,
    HeatMap: _draw_heat,
    Bars: _draw_bars,
    Histogram: _draw_histogram,
    Scatter: _draw_scatter,
    Contour: _draw_contour,
}
