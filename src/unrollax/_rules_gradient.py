"""The rules about a gradient or losses that are of no use as they are."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from unrollax import _measure
from unrollax._advise import Case, Finding

HEAVY = 10  # how much larger than their median some gradient or loss must be to be cut off
NEAR = 0.01  # of the params' size: the distance of an update
FARTHER = (1.0, 3.0, 10.0, 30.0, 100.0)  # times that, where the gradient is 0
RANGE = 30  # factor to which the reach of a gradient is predicted


def growth(case: Case) -> float | None:
    """Return what the fastest direction grows by at a step, in nats, where the gradient explodes over the horizon."""
    if case.dynamics is None or case.dynamics.verdict != "exploding":
        return None
    return float(case.dynamics.exponents[0])


def smooth(case: Case) -> Finding | None:
    """Leave the exact gradient where it does not predict what the loss does at the distance of an update."""
    if not np.isfinite(case.flow.losses).all():
        return None
    leaves = jax.tree.leaves(case.params)
    size = NEAR * (float(np.mean([float(jnp.sqrt(jnp.square(leaf).mean())) for leaf in leaves])) or 1.0)
    seen = _measure.foresight(case, [size * times for times in FARTHER])
    if not math.isfinite(seen.changed):
        return None
    if not seen.norm and not seen.changed:
        return _cut_off(case, seen.distance)
    if seen.good and math.isfinite(norm_of(case)):  # a gradient of 0 is, at a minimum
        return None
    rate, spread = growth(case), float(np.std(case.flow.losses))
    if rate is None or (near := _reach(case, rate, spread)) > seen.distance:
        return _jumps(case, seen, math.isfinite(norm_of(case)))
    why = (
        f"Differences grow by {rate:.3g} nats a step: the gradient's norm is {_size(case):.2g}, where the step losses "
        f"differ by {spread:.2g}."
    )
    return _strategy(case, seen.distance)._replace(
        why=why,
        effect=f"The exact gradient holds within a distance of about {near:.1g} of the params; this one is that of the loss "
        f"averaged over {seen.distance:.1g}.",
        predicted=near,
        measure=lambda: _measure.radius(case, seen.distance),
        holds=lambda got: near / RANGE <= got <= RANGE * near,
    )


def _jumps(case: Case, seen: _measure.Foresight, finite: bool) -> Finding:
    """Say what the exact gradient misses where nothing explodes."""
    if not finite:
        why = "The exact gradient is infinite or NaN, though the losses are finite."
    elif not seen.norm:
        why = f"The exact gradient is 0, though the loss changes by {seen.changed:.1g} within {seen.distance:.1g}: it jumps."
    elif not seen.along:
        why = (
            f"Along the exact gradient, at a distance of {seen.distance:.1g}, the loss rises {seen.ratio:.2g} times as "
        )
        why += "much as it says."
    else:
        why = (
            f"The exact gradient explains {max(seen.explained, 0):.0%} of what the loss does in random directions at a "
        )
        why += f"distance of {seen.distance:.1g}."
    return _strategy(case, seen.distance)._replace(why=why)


def _strategy(case: Case, std: float) -> Finding:
    """Advise an evolution strategy."""
    window, horizon = _split(case.horizon)
    return Finding(
        weight=1.0,
        title="Take an evolution strategy in place of the exact gradient",
        why="",
        effect=f"Its gradient is that of the loss averaged over {std:.1g}, and predicts that average at this distance: the "
        "rise along it is 1 times what it says.",
        predicted=1.0,
        option=f"ux.PES(system, std={std:.2g}, window={window}, horizon={horizon}, pairs=64)",
        command=f"--estimator pes --std {std:.2g} --window {window} --horizon {horizon} --pairs 64",
        measure=lambda: _measure.smoothed_ratio(case, std),
        holds=lambda got: 0.5 <= got <= 2,
        distrusts=True,
    )


def _cut_off(case: Case, distance: float) -> Finding:
    """Say that the params do nothing."""
    return Finding(
        weight=1.0,
        title="Find out why the params have no effect on the loss",
        why=f"The gradient is exactly 0, and the loss is the same at a distance of up to {distance:.1g} in "
        f"{_measure.DIRECTIONS} random directions.",
        effect="No estimator learns from a loss that stays the same: look for dead or saturated units, rounding, a "
        "stop_gradient, or params that step doesn't use.",
        predicted=0.0,
        option="",
        command="",
        measure=lambda: _measure.foresight(case, [2 * distance], jax.random.fold_in(case.key, 5)).changed,
        holds=lambda got: got == 0,
        distrusts=True,
    )


def clip_gradient(case: Case) -> Finding | None:
    """Bound the updates where some gradients are far larger than most."""
    if case.dynamics is None or case.dynamics.verdict not in ("exploding", "unresolved"):
        return None
    norms = _measure.gradient_norms(case, jax.random.fold_in(case.key, 1))
    if not np.isfinite(norms).all() or norms.max() <= HEAVY * np.median(norms):
        return None
    at = 2 * float(np.median(norms))
    share, many = float((norms > at).mean()), len(norms)
    return Finding(
        weight=0.35,
        title=f"Bound the gradient's norm at {at:.2g}",
        why=f"Near these params the median of {many} gradients has a norm of {at / 2:.2g}, the largest {norms.max():.2g}.",
        effect=f"The {share:.0%} of the updates that are longer are shortened; the others stay as they are.",
        predicted=share,
        option=f"optax.chain(optax.clip_by_global_norm({at:.2g}), optimizer)",
        command="",
        measure=lambda: float((~(_measure.gradient_norms(case, jax.random.fold_in(case.key, 2)) <= at)).mean()),
        holds=lambda got: abs(got - share) <= 3 * math.sqrt(share * (1 - share) * 2 / many),
        exact=True,
    )


def clip_losses(case: Case) -> Finding | None:
    """Bound the step losses where some are far larger than most, or no numbers."""
    losses = case.flow.losses
    fine = np.isfinite(losses)
    finite = losses[fine]
    if not finite.size:
        return _no_losses(case)
    some = np.abs(finite[finite != 0])  # most losses are 0 where only some steps have one
    usual = float(np.median(some)) if some.size else 1 / HEAVY
    if fine.all() and finite.max() <= 10 * HEAVY * usual:
        return None
    at = HEAVY * usual
    mean = float(np.where(fine, np.minimum(losses, at), at).mean())
    lost = "All losses are finite" if fine.all() else _lost(case, fine)
    return Finding(
        weight=0.3 if fine.all() else 0.9,
        title=f"Bound the step losses at {at:.2g}",
        why=f"{lost}; the largest finite one is {finite.max():.2g}, the median of those that aren't 0 {usual:.2g}.",
        effect=f"The mean loss becomes {mean:.3g}; evolution strategies survive, a backward pass through NaN does not.",
        predicted=mean,
        option=f"ux.clip_loss(system, at={at:.2g})",
        command="",
        measure=lambda: _measure.clipped_loss(case, at),
        holds=lambda got: abs(got - mean) <= 0.1 * abs(mean),
    )


def _no_losses(case: Case) -> Finding:
    return Finding(
        weight=1.0,
        title="Mend the step: no loss is finite",
        why=_lost(case, np.zeros(case.flow.losses.shape, bool)) + ".",
        effect="No bound on the losses helps a gradient or a state that is NaN: look at the data, at the params, and for a "
        "logarithm, root or quotient at 0.",
        predicted=0.0,
        option="",
        command="",
        measure=None,
        holds=lambda got: got == 0,
    )


def _lost(case: Case, fine: np.ndarray) -> str:
    return f"{(~fine).sum()} of {fine.size} losses are not finite, the first at step {case.flow.at[np.argmin(fine)]}"


def norm_of(case: Case) -> float:
    """Return the norm of the gradient."""
    squares = (float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(case.flow.grad))
    return math.sqrt(sum(squares))


def _size(case: Case) -> float:
    """Return the norm of the gradient; where that overflows, the sum of those of its parts, which are held in float64."""
    norm = norm_of(case)
    return (norm if math.isfinite(norm) else float(np.nansum(case.flow.table) / len(case.flow.at))) or math.inf


def _reach(case: Case, rate: float, spread: float) -> float:
    """Return how far the exact gradient holds: until the last loss, which has most of it, has gone through its spread."""
    return spread / (_size(case) * max(1.0, case.horizon * -math.expm1(-rate)))


def _split(horizon: int) -> tuple[int, int]:
    """Return a window near a tenth of a horizon, and the horizon, a little shorter where no such window divides it."""
    windows = [each for each in range(1, horizon + 1) if horizon % each == 0 and 0.05 <= each / horizon <= 0.2]
    window = min(windows, key=lambda each: abs(each - horizon / 10), default=max(1, horizon // 10))
    return window, horizon // window * window
