"""Colours that follow the reader's light or dark page and that the colour-blind can tell apart, and how axes look.

No mark is told from another by its colour alone: lines differ by their dashes and markers, points by their names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# On a light page and on a dark one: text, then hues near Okabe and Ito's, their lightness chosen so that they stand out from
# the page and, whatever kind of cones a reader lacks, from each other.
GREY = ("#737373", "#a3a3a3")
COLOURS = (
    ("#1286d8", "#3a86ff"),
    ("#cd6223", "#ff7a1f"),
    ("#039c78", "#2fb08a"),
    ("#762d5b", "#ffd9ee"),
    ("#332900", "#f0e442"),
    ("#8a8a8a", "#b8b8b8"),
)
TEXT = GREY[0]
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 2)), (0, (1, 1)))
MARKERS = "osD^vP"
LIMIT, TINY = 1e200, 1e-290  # an axis needs room above its largest number, a logarithmic one below its smallest


def style() -> str:
    """Return the CSS that gives the figures' colours to a page."""
    names = {f"--c{i}": pair for i, pair in enumerate(COLOURS)} | {"--grey": GREY}
    light, dark = ("; ".join(f"{name}: {pair[side]}" for name, pair in names.items()) for side in (0, 1))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def dress(axes: Any, over: str, up: str) -> None:
    """Name the axes and make them quiet."""
    axes.set_xlabel(over, color=TEXT, parse_math=False)
    axes.set_ylabel(up, color=TEXT, parse_math=False)
    axes.tick_params(colors=TEXT, which="both")
    axes.grid(color=TEXT, alpha=0.25, linewidth=0.6)
    axes.spines[:].set_visible(False)


def add_legend(axes: Any, names: list[str]) -> None:
    """Name the lines above the axes, in as many columns as the names leave room for."""
    columns = max(1, min(4, 90 // (max(map(len, names)) + 8)))
    legend = axes.legend(
        frameon=False, labelcolor=TEXT, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), handlelength=3
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def looks_of(count: int) -> list[dict[str, Any]]:
    """Return the looks of lines: with the seventh the colours come again, with other dashes."""
    looks = []
    for i in range(count):
        shift = i // len(COLOURS)
        looks.append({"color": COLOURS[i % len(COLOURS)][0], "linestyle": DASHES[(i + shift) % len(DASHES)]})
    return looks


def within(numbers: Any) -> np.ndarray:
    """Return numbers with NaN for those that no axis has room for."""
    numbers = np.asarray(numbers, float)
    return np.where(np.abs(numbers) < LIMIT, numbers, np.nan)


def far_apart(numbers: np.ndarray) -> bool:
    """Whether numbers are better shown by their logarithm: all positive, the largest more than 20 times the smallest."""
    finite = numbers[np.isfinite(numbers)]
    return bool(len(finite) and (finite > 0).all() and finite.max() > 20 * finite.min())


def make_logarithmic(axes: Any, which: str, numbers: np.ndarray) -> None:
    """Make an axis logarithmic, with 1, 2 and 5 named where there are too few powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    positive = numbers[np.isfinite(numbers) & (numbers > 0)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_minor_formatter(NullFormatter())
    if positive.size and positive.max() < 300 * positive.min():
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda number, _: f"{number:.6g}")


def add_marks(axes: Any, marks: Any) -> None:
    """Draw vertical lines with their names at the top, each a line lower than the one before."""
    for i, (name, at) in enumerate(marks.items()):
        if np.isfinite(at):
            axes.axvline(at, color=TEXT, linestyle=":", linewidth=1.2)
            place = axes.transData.transform((at, 0))[0], axes.transAxes.transform((0.6, 0))[0]
            side = {"ha": "right", "xytext": (-4, -4 - 13 * i)} if place[0] > place[1] else {"xytext": (4, -4 - 13 * i)}
            axes.annotate(
                name, (at, 1), xycoords=("data", "axes fraction"), textcoords="offset points", va="top", color=TEXT,
                fontsize=9, parse_math=False, **side,
            )  # fmt: skip
