"""What each entry of a schedule does in an unfolded algorithm: `diagnose_schedules`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_key, check_params
from unrollax._errors import InvalidArgument, nearest
from unrollax._schedule import Schedule, is_schedule, schedules_of, values_of
from unrollax._tree import describe, leaves_with_names
from unrollax._types import Key, Params
from unrollax.diagnosis._schedule_report import ScheduleEntries, ScheduleReport, Theory, findings_of
from unrollax.diagnosis._schedule_runs import errors_of, grads_of, growth_of, in_both, levels_of, start_of
from unrollax.systems import Unfold
from unrollax.theory import Quadratic, amplification, rounding_floor, schedule_error, stable_order

OWNER = "diagnose_schedules"
MOVES = (0.1, -0.1, 1.0, -1.0)  # of a raw number: absolute, or relative where there is no transform
SAME = 2 / 3  # gradients are equal if they differ by no more than eps to this power of their norm


def diagnose_schedules(
    net: Unfold, params: Params, *, key: Key, quadratic: Quadratic | None = None, eta: str | None = None
) -> ScheduleReport:
    """Measure what each entry of the schedules of an unfolded algorithm does, on one batch of problems.

    - Entries that no training can move: their gradient is exactly 0. Those that change no error when they are moved, by 10 %
      and by 100 %, up and down, are `unused`, such as the weight of a regulariser at the first iteration from x = 0; the
      others are `flat`.
    - Entries of one schedule with equal numbers and equal gradients, which stay equal under every optimizer: `tied`.
    - The gradient with respect to the number that each iteration takes, as if each had one of its own.
    - How small changes of x grow, from the start and from everywhere on the way, by forward derivatives, and whether the
      errors in float32 are those in float64.
    - For gradient descent on a quadratic, what `unrollax.theory` says of its steps.

    Cost: one backward pass, 3 forward passes with 2 tangents, and at most 4 forward passes for each entry without a
    gradient.

    Args:
        net: what `unfold` makes, or an `Unfold`.
        params: schedules, and whatever else the iterations read.
        key: draws the problems and the changes.
        quadratic: what `unrollax.theory.quadratic` makes, if the algorithm is gradient descent on that.
        eta: the path in params of the schedule of step sizes, such as `"['step']"`; `None` if there is only one schedule.

    Returns:
        A `ScheduleReport`, which prints as a page, with what to do about each finding.

    Raises:
        InvalidArgument: net is no `Unfold`, params hold no schedule, `eta` names none, or key is no key.
        StructureError: params don't fit.

    Example:
        >>> import unrollax as ux
        >>> net = ux.unfold(ux.solvers.gradient_descent(), ux.problems.ridge(20, 10), horizon=3, batch=10)
        >>> params = ux.per_step({"step": 0.03, "lam": 3.0}, 3, transform="log")
        >>> report = ux.diagnose_schedules(net, params, key=jax.random.key(0))
        >>> report.schedules["['lam']"].unused  # x starts at 0
        (0,)
        >>> print(report.findings[0])
        ['lam']: entry 0 has no influence on the loss. Training never moves it: drop the entry, share it with a neighbour, \
or take another start for x.

    References: Lebedev and Finogenov, USSR Computational Mathematics and Mathematical Physics 1971 (growth by the order of
    steps).
    """
    params, key = _checked(net, params, key)
    state = start_of(net, params, jax.random.fold_in(key, 0))
    levels = levels_of(net, params, state)
    schedules = _schedules(net, params, state, levels)
    growth = growth_of(net, params, state, jax.random.fold_in(key, 1))
    theory = None if quadratic is None else _theory(quadratic, _steps(params, eta, net.horizon))
    report = ScheduleReport(
        schedules, errors_of(net, levels), *growth, *in_both(net, params, state), theory, findings=()
    )
    return report._replace(findings=findings_of(report))


def _checked(net: Any, params: Params, key: Any) -> tuple[Params, Key]:
    if not isinstance(net, Unfold):
        raise InvalidArgument(
            f"{OWNER}: net must be an Unfold, got {describe(net)}. Make one with unrollax.unfold(algorithm, problems, "
            "horizon=)."
        )
    params = check_params(OWNER, params)
    if not schedules_of(params):
        raise InvalidArgument(
            f"{OWNER}: params must hold a schedule, got none. Make one with unrollax.per_step(numbers, {net.horizon})."
        )
    return params, check_key(OWNER, key)


def _schedules(net: Unfold, params: Params, state: Any, levels: jax.Array) -> dict[str, ScheduleEntries]:
    """Return the readings of each schedule by its path."""
    grad, by_iteration = jax.device_get(grads_of(net, params, state))
    rows = dict(leaves_with_names(by_iteration))
    readings = {}
    for (name, schedule), (_, slope) in zip(schedules_of(params), schedules_of(grad), strict=True):
        raw, slopes = _by_entry(schedule, schedule.raw), _by_entry(schedule, slope.raw)
        idle = [int(i) for i in np.flatnonzero(~slopes.any(1))]
        moves = {i: _moves(net, params, state, name, i, levels) for i in idle}
        readings[name] = ScheduleEntries(
            kind=schedule.kind,
            values=_whole(schedule, np.asarray(schedule.values)),
            grad=np.linalg.norm(slopes.astype(np.float64), axis=1),
            by_iteration=np.linalg.norm(rows[name].reshape(net.horizon, -1).astype(np.float64), axis=1),
            unused=tuple(i for i in idle if not moves[i]),
            flat=tuple(i for i in idle if moves[i]),
            tied=_tied(raw, slopes),
        )
    return readings


def _whole(schedule: Schedule, numbers: np.ndarray) -> np.ndarray:
    """Return numbers shaped as `raw` with entries on the first axis, of which a shared number has one."""
    return numbers[None] if schedule.kind == "shared" else numbers


def _by_entry(schedule: Schedule, numbers: Any) -> np.ndarray:
    whole = _whole(schedule, np.asarray(numbers))
    return whole.reshape(len(whole), -1)


def _moves(net: Unfold, params: Params, state: Any, name: str, entry: int, levels: Any) -> bool:
    """Whether any level changes when an entry is moved, a little or much, up or down."""
    return any(
        not np.array_equal(levels_of(net, _moved(params, name, entry, by), state), levels, equal_nan=True)
        for by in MOVES
    )


def _moved(params: Params, name: str, entry: int, by: float) -> Params:
    """Return params with one entry of a schedule moved."""
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_schedule)
    names = [path for path, _ in leaves_with_names(params, is_leaf=is_schedule)]
    place = names.index(name)
    schedule = leaves[place]
    raw = np.array(_whole(schedule, np.asarray(schedule.raw)))
    size = np.where(raw[entry] == 0, 1, np.abs(raw[entry])) if schedule.transform is None else 1
    raw[entry] += by * size
    moved = jnp.asarray(raw.reshape(np.shape(schedule.raw)))
    leaves[place] = Schedule(moved, schedule.kind, schedule.transform, schedule.at)
    return jax.tree.unflatten(treedef, leaves)


def _tied(raw: np.ndarray, slopes: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Return groups of entries with equal raw numbers `[entries, n]` and gradients that differ by rounding only."""
    eps = float(np.finfo(slopes.dtype).eps)
    sizes, groups = np.linalg.norm(slopes, axis=1), dict[int, list[int]]()
    for i in np.flatnonzero((sizes > 0) & np.isfinite(sizes)):
        near = (
            j
            for j in groups
            if np.allclose(raw[i], raw[j], rtol=4 * eps, atol=0)
            and np.linalg.norm(slopes[i] - slopes[j]) <= eps**SAME * max(sizes[i], sizes[j])
        )
        groups.setdefault(next(near, int(i)), []).append(int(i))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _steps(params: Params, eta: str | None, horizon: int) -> np.ndarray:
    """Return the step size of each iteration, `[horizon]`."""
    found = dict(schedules_of(params))
    known = ", ".join(found)
    if eta is None and len(found) > 1:
        raise InvalidArgument(
            f"{OWNER}: eta must name the schedule of step sizes, got None for {known}. Pass one of them."
        )
    if eta is not None and eta not in found:
        raise InvalidArgument(f"{OWNER}: eta must be the path of a schedule, got {eta!r}. {nearest(eta, found)}")
    schedule = found[next(iter(found)) if eta is None else eta]
    numbers = np.asarray(values_of(schedule, horizon), np.float64)
    if numbers.ndim != 1:
        raise InvalidArgument(
            f"{OWNER}: step sizes must be one number an iteration, got {describe(numbers)}. Leave out quadratic=."
        )
    return numbers


def _theory(quadratic: Quadratic, steps: np.ndarray) -> Theory:
    h = np.asarray(quadratic.h, np.float64)
    w = np.full(len(h), 1 / len(h)) if quadratic.w is None else np.asarray(quadratic.w, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return Theory(
            error=np.asarray(schedule_error(steps, h, w)),
            amplification=np.asarray(amplification(steps, float(quadratic.mu), float(quadratic.L))),
            floor=rounding_floor(steps, h, w),
            stable=rounding_floor(stable_order(steps), h, w),
        )
