"""Which estimator pays on a system: bias, noise and cost of each, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from unrollax._check import check_key, check_params
from unrollax._errors import InvalidArgument
from unrollax._tree import ravel
from unrollax._types import Data, Key, Params
from unrollax.diagnosis._candidates import check_options, horizon_of, one_horizon, scale_of, system_of
from unrollax.diagnosis._comparison import Comparison
from unrollax.diagnosis._costs import BY_OTHERS, BY_TIME, UNKNOWN, Steps, seconds_forward, steps_of
from unrollax.diagnosis._gradients import UNDERIVED, Problem, lacking
from unrollax.diagnosis._horizons import Sampled, piece_of, sample_all
from unrollax.diagnosis._reference import Search, Target, find_reference
from unrollax.diagnosis._sweep import named
from unrollax.diagnosis._verdict import Row, cost_to, moments, recommend
from unrollax.estimators import Gaussian

OWNER = "compare"

Unit = Literal["seconds", "steps"]


def compare(
    estimators: Mapping[str, Any] | Sequence[Any],
    params: Params,
    data: Data | Callable[[Any, int], Data] = None,
    *,
    key: Key,
    samples: int = 32,
    horizon: int | None = None,
    reference: Any = "auto",
    scale: float | None = None,
    tolerance: float = 0.1,
    unit: Unit = "seconds",
    observe: Callable[[str], None] | None = None,
) -> Comparison:
    """Measure what each estimator's gradient is worth and what it costs, on the caller's own system.

    A sample is the mean of an estimator's estimates over one horizon's windows, from a reset with a key of its own, at fixed
    params and on the same data: of all estimators an estimate of the same gradient. With m and S the mean and covariance of n
    samples and r the reference, all in units of |r|,

        bias^2 = |m - r|^2 - tr S / n - error(r)^2,    std^2 = tr S,    cost to tol = max(1, std^2 / (tol^2 - bias^2)) cost.

    A bias whose square is below two of its standard errors is unresolved: it is printed as `< limit` and counts as none in
    costs; more samples resolve it. Samples that are not finite are left out of the figures, and make the cost infinite.

    The recommended one has the least cost to reach `tolerance`. Among those within a factor of 1.5 of it, it is one with the
    least memory (10 %, or what fits in 1 MiB, makes no difference), and of these the one that updates most often.

    The reference is the exact gradient, by backpropagation in float64 where the system takes that, averaged over keys where
    the system draws. It is used if it is finite and predicts what the loss does at the distance of an update, `scale`: if the
    loss rises along it by half to twice what it says, and it explains at least half of the squared rises in random
    directions. On a chaotic system or a loss with jumps it doesn't, and a step with a callback or a loop of unknown length
    has none: there the reference is the gradient of the loss under noise of std `scale`, by many antithetic pairs. Which it
    is, and why, is said.

    Args:
        estimators: by name, or a list to be named by class, window and std. The exact gradient is that of the first one's
            system. Staggered pairs are run one horizon first; they see the data out of step, so give these none.
        params: where all are compared.
        data: a stream `data(t, steps)`, of which steps 0 to horizon are taken; or leaves `[T, ...]` of at least `horizon`
            steps, `repeat(x)` leaves, or `None`.
        key: a PRNG key; all randomness comes from it.
        samples: horizons to run each estimator for; more resolve smaller biases, and allow a better reference.
        horizon: steps of a sample; by default that of the estimators, needed if all of theirs are `None`.
        reference: `"auto"`, `"bptt"`, `"smoothed"`, or a tree like params.
        scale: the distance of an update, in units of params; by default the median std of the estimators that have one,
            else 0.01 of the parameters' root mean square (0.01 if that is 0).
        tolerance: the relative root-mean-square error that is asked for.
        unit: what costs are in: `"seconds"`, or `"steps"` of the system, which do not depend on the machine. Where they are
            known of some estimators only, the others' are their seconds over the median that a step takes those.
        observe: called with a line of text now and then.

    Raises:
        InvalidArgument: no estimators, one that is none or doesn't fit the horizon or takes a derivative that the step
            hasn't, an option that can't be used, or a reference that is not finite.
        StructureError: params, data or the reference don't fit, as data that are too short.

    Example:
        >>> import unrollax as ux
        >>> def step(params, state, x, key):
        ...     state = 0.5 * state + params * x
        ...     return state, (state - 1) ** 2
        >>> leak = ux.system(init=lambda key, params: 0.0, step=step)
        >>> some = [ux.BPTT(leak, 16), *ux.sweep(ux.TBPTT(leak, window=1, horizon=16), window=(1, 4)).values()]
        >>> x = jax.random.normal(jax.random.key(1), (16,))
        >>> found = ux.compare(some, jax.numpy.float32(1.0), x, key=jax.random.key(0), unit="steps", tolerance=0.2)
        >>> found.recommended, [round(row.bias, 2) for row in found.rows]
        ('tbptt:4', [0.0, 0.24, 0.1])

    References: the measured trade of bias against variance follows Metz et al., ICML 2019, and Vicol, Metz and
    Sohl-Dickstein, ICML 2021; the antithetic reference Li et al., NeurIPS 2023.
    """
    candidates = named(OWNER, estimators)
    params, key = _plain(check_params(OWNER, params)), check_key(OWNER, key)
    check_options(samples, tolerance, unit, scale)
    horizon = horizon_of(candidates, horizon)
    data = one_horizon(data, horizon)
    scale = scale_of(candidates, params) if scale is None else float(scale)
    refer, sample, clock = jax.random.split(key, 3)
    problem = Problem(system_of(candidates, reference), params, data, horizon)
    say = _silence if observe is None else observe
    target = find_reference(problem, reference, Search(refer, scale, tolerance, samples, say))
    sampled = _sampled(candidates, problem, samples, sample, say)
    steps = _steps(candidates, problem, sampled, clock)
    rows = []
    for name, estimator in candidates.items():
        row = _row(name, sampled[name], target, steps[name], problem)._replace(unbiased=_unbiased(estimator))
        rows.append(row._replace(cost_to=cost_to(row, row.steps if unit == "steps" else row.seconds, tolerance)))
    recommended, reason = recommend(rows, unit, tolerance)
    if target.reference.error > tolerance:
        reason += f" But the reference itself is only known to {target.reference.error:.0%}: take more samples."
    return Comparison(rows, target.reference, recommended, reason, unit, tolerance, horizon, samples)


def _silence(text: str) -> None:
    del text


def _plain(params: Params) -> Params:
    if isinstance(params, Gaussian):
        raise InvalidArgument(
            f"{OWNER}: params must be those of the system, got a Gaussian. Give params.mean, and each estimator a number "
            "as std."
        )
    return params


def _sampled(
    candidates: Mapping[str, Any], problem: Problem, samples: int, key: Key, observe: Callable[[str], None]
) -> dict[str, Sampled]:
    """Take samples; where that fails for want of a derivative, say so."""
    try:
        return sample_all(dict(candidates), problem, samples, key, observe)
    except UNDERIVED as error:
        for mode, name in (("vjp", "reverse"), ("jvp", "forward")):
            needing = [each for each, made in candidates.items() if _needs(made) == mode]
            why = lacking(problem, mode) if needing and problem.system is not None else None
            if why is not None:
                raise InvalidArgument(
                    f"{OWNER}: the step must have a derivative in {name} mode for {' and '.join(needing)}, got none ({why}). "
                    "Leave that out: es, pes and nres only run the step."
                ) from error
        raise


def _needs(estimator: Any) -> str | None:
    return getattr(getattr(estimator, "traits", None), "needs", None)


def _steps(
    candidates: Mapping[str, Any], problem: Problem, sampled: Mapping[str, Sampled], key: Key
) -> dict[str, Steps]:
    """Return what a step of the horizon costs each, by formula or counting where that can be, else by the clock.

    The clock's are made comparable with the others': a step takes the median of the seconds that it takes those, or what it
    takes without an estimator if there are none.
    """
    found = {
        name: steps_of(estimator, problem.params, piece_of(problem.data, 0, sampled[name].plan.window), key)
        for name, estimator in candidates.items()
    }
    known = [
        sampled[name].seconds / steps.each for name, steps in found.items() if steps is not None and steps.each > 0
    ]
    second, note = math.nan, UNKNOWN
    if None in found.values() and known:
        second, note = float(np.median(known)), BY_OTHERS
    elif None in found.values() and problem.system is not None:
        second, note = seconds_forward(*problem, key), BY_TIME
    return {name: steps or Steps(sampled[name].seconds / second, note) for name, steps in found.items()}


def _unbiased(estimator: Any) -> bool:
    """Whether an estimator says that it averages to the gradient, exact or smoothed."""
    return getattr(getattr(estimator, "traits", None), "target", None) in ("exact", "smoothed")


def _row(name: str, sampled: Sampled, target: Target, steps: Steps, problem: Problem) -> Row:
    eps = float(np.finfo(ravel(problem.params)[0].dtype).eps)
    found = moments(sampled.grads / (target.reference.norm or 1.0), target.mean, target.roots, eps)
    shifted = (
        "its staggered pairs see the data out of step" if sampled.plan.warm and jax.tree.leaves(problem.data) else ""
    )
    broken = f"not finite in {found.nonfinite:.0%} of the samples" if found.nonfinite else ""
    return Row(
        name=name,
        bias=found.bias.size,
        bias_error=found.bias.size_error,
        resolved=found.bias.resolved,
        std=found.std,
        cosine=found.cosine,
        snr=found.snr,
        steps=steps.each * problem.steps,
        seconds=sampled.seconds,
        bytes=sampled.bytes,
        updates=sampled.plan.windows,
        cost_to=math.inf,
        nonfinite=found.nonfinite,
        note="; ".join(note for note in (steps.note, shifted, broken) if note),
    )
