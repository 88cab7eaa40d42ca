"""From results to a page: what each says in plain words, its figures and their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unrollax._errors import InvalidArgument
from unrollax._report import Section, render
from unrollax.readings._advice import read_advice
from unrollax.readings._depth import read_depth, read_mean_field
from unrollax.readings._dynamics import read_gates, read_lyapunov
from unrollax.readings._estimators import read_comparison
from unrollax.readings._flow import read_decay, read_flow, read_history, read_state_flow
from unrollax.readings._landscape import read_lr_range, read_surface, read_trajectories
from unrollax.readings._schedules import read_schedules

# By the name of a result's class: whoever only draws need not import what measures.
READINGS: dict[str, Callable[[Any], list[Section]]] = {
    "Comparison": read_comparison,
    "Decay": read_decay,
    "Depth": read_depth,
    "Flow": read_flow,
    "FlowHistory": read_history,
    "Gates": read_gates,
    "LRRange": read_lr_range,
    "Lyapunov": read_lyapunov,
    "MeanField": read_mean_field,
    "ScheduleReport": read_schedules,
    "StateFlow": read_state_flow,
    "Surface": read_surface,
    "Trajectories": read_trajectories,
}


def sections_of(*results: Any) -> list[Section]:
    """Return what results say, in their order.

    Raises:
        InvalidArgument: there is no section for one of them.
    """
    return [section for result in results for section in _sections(result)]


def _sections(result: Any) -> list[Section]:
    kind = type(result).__name__
    if kind in READINGS:
        return READINGS[kind](result)
    if kind == "Diagnosis":
        parts = (result.flow, result.dynamics, result.gates, getattr(result, "comparison", None))
        return [*read_advice(result.advice), *(section for part in parts for section in _parts(part))]
    if kind == "Advice" or (isinstance(result, list) and all(type(each).__name__ == "Advice" for each in result)):
        return read_advice(result if isinstance(result, list) else [result])
    raise InvalidArgument(
        f"write_report: results must be what the functions of diagnosis return, got {kind}. There are sections for "
        f"Diagnosis, a list of Advice, {', '.join(READINGS)}."
    )


def _parts(part: Any) -> list[Section]:
    """Return what a part of a diagnosis says: none, a result, or one for each layer."""
    if part is None or type(part).__name__ in READINGS:
        return [] if part is None else _sections(part)
    layers = [(i, section) for i, each in enumerate(part, 1) for section in _sections(each)]
    return [
        section._replace(heading=f"{section.heading}, layer {i}" if len(part) > 1 else section.heading)
        for i, section in layers
    ]


def write_report(
    path: str | Path, *results: Any, title: str = "unrollax", summary: Mapping[str, Any] | None = None
) -> Path:
    """Write one self-contained HTML page: for each result what it says in plain words, its figures and their numbers.

    The page has no script and needs no other file; it is light or dark as the reader's browser is, and its colours are told
    apart by the colour-blind too.

    Args:
        path: the file to write; an older one is replaced.
        results: what `diagnose`, `gradient_flow`, `state_flow`, `lyapunov`, `gate_statistics`, `depth_flow`, `mean_field`,
            `compare`, `lr_range_test`, `loss_surface`, `trajectories`, `diagnose_schedules`, `advise` or a `FlowMonitor`
            returned, in the order of the page.
        title: its heading.
        summary: names and numbers to put above all else.

    Returns:
        The path.

    Raises:
        InvalidArgument: a result for which there is no section.

    Example:
        >>> import tempfile, jax
        >>> import unrollax as ux
        >>> theory = ux.mean_field(jax.numpy.tanh, depth=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = ux.write_report(f"{folder}/report.html", theory, title="Deep tanh nets")
        ...     print(page.read_text().count("<figure>"))
        2
    """
    page = render(title, summary or {}, sections_of(*results), {}, "")
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path
