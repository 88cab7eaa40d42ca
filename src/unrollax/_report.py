"""`report.html`: one self-contained page, figures as inline SVG, each with its table of numbers, no script."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unrollax._draw import draw
from unrollax._figures import Figure, Plot, Table
from unrollax._ink import style

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin-bottom: 0; }
p { max-width: 48rem; white-space: pre-line; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
td + td, th + th { font-variant-numeric: tabular-nums; } tr + tr > * { border-top: 1px solid var(--soft); }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; } figcaption { opacity: .75; } details { margin: .5rem 0; }
.wide { overflow-x: auto; } .wide td:first-child { white-space: nowrap; }
"""


class Curve(NamedTuple):
    """One curve of the run: a title, what the axis shows, and points by the number of the update."""

    title: str
    label: str
    x: Sequence[float]
    y: Sequence[float]

    def plot(self) -> Plot:
        """Return it as a plot of one line."""
        return Plot(self.title, "update", self.x, {self.label: self.y})


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        heading: its title.
        text: what to make of it in plain words; an empty line parts two paragraphs.
        figures: drawn in this order, each with its table of numbers.
        tables: further tables by title.
        code: what can be copied, such as a command, by what it does.
    """

    heading: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Mapping[str, Table] = {}
    code: Mapping[str, str] = {}


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
    parts: Sequence[Curve | Figure | Section],
    tables: Mapping[str, Mapping[str, Any]],
    repeat: str,
) -> str:
    """Return the page.

    Args:
        title: the heading.
        summary: the numbers one looks for first.
        parts: curves and other figures, each under its title and with its table of numbers; and sections of many.
        tables: further tables by heading, such as the configuration.
        repeat: the command that repeats the run; empty if there is none.
    """
    page = [f"<h1>{html.escape(title)}</h1>", _rows(summary)]
    for part in parts:
        page += _section(part) if isinstance(part, Section) else _lone(part.plot() if isinstance(part, Curve) else part)
    for heading, rows in tables.items():
        page.append(f"<h2>{html.escape(heading)}</h2>{_rows(rows)}")
    if repeat:
        page.append(f"<h2>Repeat it</h2><pre>{html.escape(repeat)}</pre>")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}{style()}</style></head><body>\n'
        + "\n".join(page)
        + "\n</body></html>\n"
    )


def _lone(figure: Figure) -> list[str]:
    return [f"<h2>{html.escape(figure.title)}</h2>{_figure(figure)}"]


def _section(section: Section) -> list[str]:
    page = [f"<h2>{html.escape(section.heading)}</h2>"]
    page += [f"<p>{html.escape(text)}</p>" for text in section.text.split("\n\n") if text]
    for title, table in section.tables.items():
        page.append((f"<h3>{html.escape(title)}</h3>" if title else "") + _table(table))
    for says, code in section.code.items():
        page.append(f"<p>{html.escape(says)}</p><pre>{html.escape(code)}</pre>")
    for figure in section.figures:
        page.append(f"<h3>{html.escape(figure.title)}</h3>{_figure(figure)}")
    return page


def _figure(figure: Figure) -> str:
    """Return a figure with its table of numbers behind it."""
    return f"<figure>{draw(figure)}</figure><details><summary>Numbers</summary>{_table(figure.numbers())}</details>"


def _rows(rows: Mapping[str, Any]) -> str:
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(_show(cell))}</td></tr>" for name, cell in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in table.rows)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def _show(cell: Any) -> str:
    return f"{cell:.5g}" if isinstance(cell, float) else str(cell)
