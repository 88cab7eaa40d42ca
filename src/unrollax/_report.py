"""`report.html`: one self-contained page, curves as inline SVG, no script."""

from __future__ import annotations

import html
import io
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


class Curve(NamedTuple):
    """One curve of the report: a title, what the axis shows, and points."""

    title: str
    label: str
    x: Sequence[float]
    y: Sequence[float]


def render(
    title: str,
    summary: Mapping[str, str],
    curves: Sequence[Curve],
    tables: Mapping[str, Mapping[str, Any]],
    repeat: str,
) -> str:
    """Return the page.

    Args:
        title: the heading.
        summary: the numbers one looks for first.
        curves: drawn in this order, each with its table of numbers.
        tables: further tables by heading, such as the configuration.
        repeat: the command that repeats the run.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _table(summary)]
    for curve in curves:
        parts.append(f"<h2>{html.escape(curve.title)}</h2><figure>{_draw(curve)}</figure>")
        parts.append(f"<details><summary>Numbers</summary>{_numbers(curve)}</details>")
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


def _numbers(curve: Curve) -> str:
    """Return at most about 20 of a curve's points as a table, the last one among them."""
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, min(20, len(curve.x))).astype(int))
    rows = "".join(f"<tr><td>{curve.x[i]:.12g}</td><td>{curve.y[i]:.6g}</td></tr>" for i in chosen)
    return f"<table><tr><th>update</th><th>{html.escape(curve.label)}</th></tr>{rows}</table>"


def _draw(curve: Curve) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    y = np.where(np.abs(y) < 1e200, y, np.nan)  # an axis needs room above its numbers
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "unrollax"}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(x, y, color=BLUE, linewidth=1.5, marker="o" if len(x) < 30 else None, markersize=4)
        finite = y[np.isfinite(y)]
        if len(finite) and (finite > 0).all() and finite.max() > 20 * finite.min():
            axes.set_yscale("log")
        axes.set_xlabel("update", color=GREY)
        axes.set_ylabel(curve.label, color=GREY, parse_math=False)
        axes.tick_params(colors=GREY, which="both")
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[:].set_visible(False)
        out = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's browser has the letter
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), f"{curve.title}, {curve.label} against update")


def _inline(svg: str, label: str) -> str:
    """Return the `<svg>` element alone, without its metadata and with a text for those who can't see it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
