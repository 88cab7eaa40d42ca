"""What `unrollax unfold` finds of the schedules that it trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from unrollax._schedule import schedules_of
from unrollax._unfolded import Unfolding
from unrollax.diagnosis import diagnose_schedules
from unrollax.diagnosis._schedule_report import Finding, ScheduleReport

MOST = 100  # problems
DRAWN = 2**31 - 3  # the key of these problems
RESOLVED = 100 * float(np.finfo(np.float32).eps)  # relative error of x that float32 can't be blamed for
IN_DOUBLE = (
    "This command computes in float64: do so where the numbers are used, or order the steps by ux.theory.stable_order."
)


def diagnosed(unfolding: Unfolding, params: Any, seed: int) -> ScheduleReport | None:
    """Return what is found of trained schedules on a batch, in the words of the command; `None` if there are none."""
    if not schedules_of(params):
        return None
    net = dataclasses.replace(unfolding.net, batch=min(unfolding.net.batch, MOST))
    report = diagnose_schedules(net, params, key=jax.random.fold_in(jax.random.key(seed), DRAWN))
    return report._replace(
        findings=tuple(
            finding._replace(remedy=IN_DOUBLE) if finding.kind == "rounding" else finding for finding in report.findings
        )
    )


def short_path(path: str) -> str:
    """Return the name of a schedule.

    Example:
        >>> short_path("['step']")
        'step'
    """
    return path.strip(".[]'\"")


def as_json(report: ScheduleReport | None) -> list[dict[str, str]] | None:
    """Return the findings by the schedules' names; `None` where none were looked for."""
    return [_named(each)._asdict() for each in report.findings] if report else None


def worth_a_line(report: ScheduleReport | None) -> list[Finding]:
    """Return the findings that are printed under the table, by the schedules' names.

    Not what is only as it has to be: see `_is_small`.
    """
    return [_named(each) for each in report.findings if not _is_small(each, report)] if report else []


def _is_small(finding: Finding, report: ScheduleReport) -> bool:
    """Whether a finding is for the page alone.

    Changes that grow, where what comes of it in float32 was measured; an error that float32 can't better; and first entries
    without influence, as many algorithms begin where one of their numbers has nothing to act on.
    """
    if finding.kind == "unused":
        each = report.schedules[finding.where]
        count = len(each.unused)
        return each.unused == tuple(range(count)) and 2 * count <= len(each.grad)
    single = report.float32
    if finding.kind == "growth":
        return single is not None
    return finding.kind == "rounding" and single is not None and bool(single[-1] <= RESOLVED**2 * single[0])


def _named(finding: Finding) -> Finding:
    return finding._replace(where=short_path(finding.where))
