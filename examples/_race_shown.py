"""What is shown of a race: a table, a picture, and plain numbers for JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from _common import COLOURS, DASHES
from matplotlib.figure import Figure


def table(result: dict[str, Any]) -> str:
    """Return the table, the best method at equal steps first."""
    where, found = result["setting"], result["methods"]
    times = [f"{seconds:g}" for seconds in where["seconds"]]
    head = [
        "method",
        "settings",
        f"train at {where['steps']}",
        "test",
        "ms/step",
        "ratio",
        *(f"at {at} s" for at in times),
    ]
    rows = [[*head, "state MB", "temporary MB"]]
    for name, one in sorted(found.items(), key=lambda item: item[1]["train"]):
        losses = [f"{one['train']:.2f} ± {one['train std']:.2f}", f"{one['test']:.2f}"]
        cost = [f"{1e3 * one.get('seconds a step', math.nan):.3g}", f"{one.get('ratio', math.nan):.2f}"]
        timed = [f"{one.get('at', {}).get(at, {}).get('loss', math.nan):.2f}" for at in times]
        memory = [f"{one.get(kind, math.nan) / 1e6:.2f}" for kind in ("state bytes", "temporary bytes")]
        rows.append([name, said(one["settings"]), *losses, *cost, *timed, *memory])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def said(settings: dict[str, Any]) -> str:
    """Return settings in a cell."""
    return ", ".join(f"{name} {item:.3g}" for name, item in settings.items())


def notes(result: dict[str, Any]) -> str:
    """Say what the table is of."""
    where = result["setting"]
    train, test = where["images"]
    floors = where["entropy"]
    return (
        f"{where['data']}, {train:,} + {test:,} images, {where['sizes']} mirrored, {where['transfer']}, "
        f"batch {where['batch']}; "
        f"{where['trials']} trials a method, {where['seeds']} seeds, mean ± standard deviation. Losses in nats an image; the "
        f"images' entropy, which none can go below, is {floors['train']:.2f} (test {floors['test']:.2f}). "
        f"{'Updates shrink linearly to 0 over each run. ' if where['decay'] else ''}"
        f"State is beside params of {where['params bytes'] / 1e6:.2f} MB."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw loss against steps, and against seconds."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, (name, one) in enumerate(result["methods"].items()):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
        left.plot(one["curve"]["steps"][1:], one["curve"]["loss"][1:], label=name, **style)
        longest = next(reversed(one.get("at", {}).values()), None)
        if longest:
            right.plot(longest["curve"]["seconds"][1:], longest["curve"]["loss"][1:], **style)
            right.plot([*map(float, one["at"])], [at["loss"] for at in one["at"].values()], "o", color=style["color"])
    for panel, over in ((left, "steps"), (right, "seconds")):
        panel.axhline(result["setting"]["entropy"]["train"], color="black", linewidth=0.8, linestyle=":")
        panel.set(xscale="log", yscale="log", xlabel=over)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
    left.set_ylabel("cross-entropy of training images, nats")
    left.set_title("Equal steps: best settings, median of the seeds", loc="left")
    right.set_title("Equal time: the best for each time (o), curve of the longest", loc="left")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def clean(item: Any) -> Any:
    """Return what JSON can hold: `None` for what is not finite."""
    if isinstance(item, dict):
        return {str(name): clean(part) for name, part in item.items()}
    if isinstance(item, (list, tuple)):
        return [clean(part) for part in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item
