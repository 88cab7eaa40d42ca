"""`report.html`: one self-contained page, curves as inline SVG, no script."""

from __future__ import annotations

import html
import io
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
td + td, th + th { font-variant-numeric: tabular-nums; } tr + tr > * { border-top: 1px solid var(--soft); }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; } figcaption { opacity: .75; } details { margin: .5rem 0; }
"""
GREY, BLUE = "#808080", "#1F88C8"  # readable on light and on dark
COLOURS = (BLUE, "#E07B00", "#3AA655", "#B05CC8", "#C8A000")


class Plot(NamedTuple):
    """Lines over one horizontal axis: a title, the axis' name, its numbers, and each line's by name."""

    title: str
    over: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


class Curve(NamedTuple):
    """One curve of the run: a title, what the axis shows, and points by the number of the update."""

    title: str
    label: str
    x: Sequence[float]
    y: Sequence[float]

    def plot(self) -> Plot:
        """Return it as a plot of one line."""
        return Plot(self.title, "update", self.x, {self.label: self.y})


def score_plots(scores: Mapping[str, Sequence[tuple[int, float]]]) -> list[Plot]:
    """Return one plot for each score, with those it is compared with in the same: `error`, `error, of a baseline`.

    Args:
        scores: by name, (update, score) pairs.

    Example:
        >>> plots = score_plots({"error": [(1, 0.5)], "error, of a baseline": [(1, 0.9)], "bits, held out": [(1, 2.0)]})
        >>> [list(plot.lines) for plot in plots]
        [['error', 'of a baseline'], ['bits, held out']]
    """
    plots: dict[tuple[str, tuple[int, ...]], Plot] = {}
    for name, points in scores.items():
        first = name.split(", ")[0]
        x, y = zip(*points, strict=True)
        title = first if first in scores else name
        plot = plots.setdefault((title, x), Plot(title, "update", x, {}))
        plots[title, x] = plot._replace(lines={**plot.lines, name.removeprefix(f"{title}, "): y})
    return list(plots.values())


def render(
    title: str,
    summary: Mapping[str, str],
    curves: Sequence[Curve | Plot],
    tables: Mapping[str, Mapping[str, Any]],
    repeat: str,
) -> str:
    """Return the page.

    Args:
        title: the heading.
        summary: the numbers one looks for first.
        curves: drawn in this order, each with its table of numbers; a `Plot` has many lines.
        tables: further tables by heading, such as the configuration.
        repeat: the command that repeats the run.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _table(summary)]
    for plot in (curve.plot() if isinstance(curve, Curve) else curve for curve in curves):
        parts.append(f"<h2>{html.escape(plot.title)}</h2><figure>{_draw(plot)}</figure>")
        parts.append(f"<details><summary>Numbers</summary>{_numbers(plot)}</details>")
    for heading, rows in tables.items():
        parts.append(f"<h2>{html.escape(heading)}</h2>{_table(rows)}")
    parts.append(f"<h2>Repeat it</h2><pre>{html.escape(repeat)}</pre>")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _table(rows: Mapping[str, Any]) -> str:
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(_show(cell))}</td></tr>" for name, cell in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _show(cell: Any) -> str:
    return f"{cell:.5g}" if isinstance(cell, float) else str(cell)


def _numbers(plot: Plot) -> str:
    """Return at most about 20 of a plot's points as a table, the last one among them."""
    chosen = np.unique(np.linspace(0, len(plot.x) - 1, min(20, len(plot.x))).astype(int))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (plot.over, *plot.lines))
    rows = "".join(
        f"<tr><td>{plot.x[i]:.12g}</td>" + "".join(f"<td>{y[i]:.6g}</td>" for y in plot.lines.values()) + "</tr>"
        for i in chosen
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _draw(plot: Plot) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "unrollax"}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        _draw_lines(axes, plot)
        axes.set_xlabel(plot.over, color=GREY, parse_math=False)
        axes.tick_params(colors=GREY, which="both")
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[:].set_visible(False)
        out = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's browser has the letter
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), f"{plot.title}, {', '.join(plot.lines)} against {plot.over}")


def _draw_lines(axes: Any, plot: Plot) -> None:
    """Draw one line with its name on the axis, or many with a legend; logarithmic where all is positive and far apart."""
    x = np.asarray(plot.x, float)
    lines = {name: np.asarray(y, float) for name, y in plot.lines.items()}
    lines = {name: np.where(np.abs(y) < 1e200, y, np.nan) for name, y in lines.items()}  # an axis needs room above
    marker = "o" if len(x) < 30 and len(lines) == 1 else None
    for (name, y), colour in zip(lines.items(), itertools.cycle(COLOURS), strict=False):
        axes.plot(x, y, color=colour, linewidth=1.5, marker=marker, markersize=4, label=name)
    if len(lines) > 1:
        legend = axes.legend(frameon=False, labelcolor=GREY, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        for text in legend.get_texts():
            text.set_parse_math(False)
        return
    (name, y), *_ = lines.items()
    finite = y[np.isfinite(y)]
    if len(finite) and (finite > 0).all() and finite.max() > 20 * finite.min():
        axes.set_yscale("log")
    axes.set_ylabel(name, color=GREY, parse_math=False)


def _inline(svg: str, label: str) -> str:
    """Return the `<svg>` element alone, without its metadata and with a text for those who can't see it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
