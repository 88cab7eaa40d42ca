"""The rules that `diagnose` gives advice by. Each says what it would change a number to, and how to measure that."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax import _measure
from unrollax._advise import Case, Finding

ERROR = 0.1  # of the gradient, relative: what a truncation may lose
TEN = math.log(10)
BIASED = ("LSTMCell", "GRUCell")  # whose gate that keeps has a bias to raise, and which take chrono=
LARGE = 64 * 2**20  # bytes of a backward pass that are worth a thought
HEAVY = 10  # how much larger than their median some gradient or loss must be to be cut off


def truncate(case: Case) -> Finding | None:
    """Cut the horizon to windows where little of the gradient crosses them."""
    window = case.flow.window_for(ERROR)
    if window is None or 2 * window > case.horizon:
        return None
    lost = float(case.flow.lost[case.flow.windows == window][0])
    return Finding(
        weight=0.5,
        title=f"Truncate to windows of {window} steps",
        why=f"Of the gradient over {case.horizon} steps, windows of {window} lose {lost:.2g} of its norm.",
        effect=f"{case.horizon // window} updates a horizon for one, and a backward pass through {window} steps.",
        predicted=lost,
        option=f"ux.TBPTT(system, window={window}, horizon={case.horizon})",
        command=f"--estimator tbptt --window {window} --horizon {case.horizon}",
        measure=lambda: _measure.truncated_grad(case, window),
        holds=lambda got: abs(got - lost) <= 0.1 * lost + 1e-3,
    )


def keep_whole(case: Case) -> Finding | None:
    """Warn where every window loses much."""
    if not len(case.flow.windows) or case.flow.window_for(ERROR) is not None or growth(case) is not None:
        return None
    window, lost = int(case.flow.windows[-1]), float(case.flow.lost[-1])
    return Finding(
        weight=0.4,
        title="Don't truncate: take the whole horizon",
        why=f"Even windows of {window} of the {case.horizon} steps lose {lost:.2g} of the gradient's norm.",
        effect=f"An exact gradient; a truncated one would be off by {lost:.2g} or more.",
        predicted=lost,
        option=f"ux.BPTT(system, horizon={case.horizon})",
        command=f"--estimator bptt --horizon {case.horizon}",
        measure=lambda: _measure.truncated_grad(case, window),
        holds=lambda got: abs(got - lost) <= 0.1 * lost + 1e-3,
    )


def growth(case: Case) -> float | None:
    """Return what the fastest direction grows by at a step, in nats, where the gradient explodes over the horizon."""
    if case.dynamics is None or case.dynamics.verdict != "exploding":
        return None
    return float(case.dynamics.exponents[0])


def smooth(case: Case) -> Finding | None:
    """Leave the exact gradient where it predicts the loss over too small a distance."""
    rate = growth(case)
    if rate is None:
        return None
    norm = _norm(case)
    spread = float(np.std(case.flow.losses[np.isfinite(case.flow.losses)]))
    near = spread / norm if norm else math.inf
    sizes = [float(jnp.sqrt(jnp.square(leaf).mean())) for leaf in jax.tree.leaves(case.params)]
    std = 0.01 * (float(np.mean(sizes)) or 1.0)
    if near > std:
        return None
    window = _divisor(case.horizon, case.horizon / 10)
    return Finding(
        weight=1.0,
        title="Take an evolution strategy in place of the exact gradient",
        why=f"Differences grow by {rate:.3g} nats a step: the gradient's norm is {norm:.2g}, where the "
        f"step losses differ by {spread:.2g}.",
        effect=f"The exact gradient holds within a distance of about {near:.1g} of the params; this one is that of the loss "
        f"averaged over {std:.1g}.",
        predicted=near,
        option=f"ux.PES(system, std={std:.2g}, window={window}, horizon={case.horizon}, pairs=64)",
        command=f"--estimator pes --std {std:.2g} --window {window} --horizon {case.horizon} --pairs 64",
        measure=lambda: _measure.radius(case, std),
        holds=lambda got: got <= max(10 * near, std / 4),
    )


def shorten(case: Case) -> Finding | None:
    """Begin with a horizon that the gradient survives."""
    rate = growth(case)
    if rate is None or not math.isfinite(rate):
        return None
    horizon = int(2 * TEN / rate)
    if not 2 <= horizon < case.horizon:
        return None
    return Finding(
        weight=0.6,
        title=f"Begin with a horizon of {horizon} steps and lengthen it",
        why=f"Over {case.horizon} steps the fastest direction grows by {rate * case.horizon:.3g} nats.",
        effect=f"Over {horizon} it grows by {rate * horizon:.2g} nats, a factor of 100.",
        predicted=rate * horizon,
        option=f"ux.BPTT(system, horizon={horizon})",
        command=f"--estimator bptt --horizon {horizon}",
        measure=lambda: _measure.growth_over(case, horizon),
        holds=lambda got: abs(got - rate * horizon) <= rate * horizon,
    )


def remember(case: Case) -> Finding | None:
    """Open the gates that keep the memory, where they close within the horizon."""
    if len(case.gates) != 1:
        return None
    gates = case.gates[0]
    if gates.cell not in BIASED or gates.predicted * case.horizon > -TEN:
        return None
    shift, rate = _measure.gate_shift(case, gates)
    return Finding(
        weight=0.7,
        title=f"Open the gate {gates.keep}: start its bias at that of {case.horizon} steps",
        why=f"It keeps {math.exp(gates.predicted):.2f} of the memory a step, half of it for "
        f"{math.log(2) / -gates.predicted:.2g} steps, and the horizon has {case.horizon}.",
        effect=f"With its bias raised by {shift:.2g} it keeps a memory at {rate:.2g} nats a step in place of "
        f"{gates.predicted:.2g}; worth it if what is to be remembered is that old.",
        predicted=rate,
        option=f"ux.{gates.cell}(inputs, hidden, chrono={case.horizon})",
        command="",
        measure=lambda: _measure.shifted_gates(case, shift),
        holds=lambda got: abs(got - rate) <= 0.5 * abs(gates.predicted - rate),
    )


def checkpoint(case: Case) -> Finding | None:
    """Keep fewer states where the backward pass takes much memory."""
    full, less = _measure.backward_needs(case)
    if full < LARGE or full < 4 * less:
        return None
    return Finding(
        weight=0.45,
        title="Keep fewer states for the backward pass",
        why=f"It holds {full / 2**20:.0f} MiB for {case.horizon} steps.",
        effect=f"{less / 2**20:.1f} MiB, for up to one more forward pass.",
        predicted=float(less),
        option=f'ux.BPTT(system, horizon={case.horizon}, memory="sqrt")',
        command=f"--estimator bptt --horizon {case.horizon} --set estimator.memory=sqrt",
        measure=lambda: _measure.backward_bytes(case),
        holds=lambda got: less / 3 <= got <= 3 * less + 2**20,
    )


def clip_gradient(case: Case) -> Finding | None:
    """Bound the updates where some gradients are far larger than most."""
    if case.dynamics is None or case.dynamics.verdict not in ("exploding", "unresolved"):
        return None
    norms = _measure.gradient_norms(case, jax.random.fold_in(case.key, 1))
    finite = norms[np.isfinite(norms)]
    if not finite.size or norms.max() <= HEAVY * np.median(finite):
        return None
    at = 2 * float(np.median(finite))
    share = float((~(norms <= at)).mean())
    return Finding(
        weight=0.35,
        title=f"Bound the gradient's norm at {at:.2g}",
        why=f"Near these params the median of {len(norms)} gradients has a norm of {at / 2:.2g}, the largest"
        f" {norms.max():.2g}.",
        effect=f"The {share:.0%} of the updates that are longer are shortened; the others stay as they are.",
        predicted=share,
        option=f"optax.chain(optax.clip_by_global_norm({at:.2g}), optimizer)",
        command="",
        measure=lambda: float((~(_measure.gradient_norms(case, jax.random.fold_in(case.key, 2)) <= at)).mean()),
        holds=lambda got: abs(got - share) <= 3 * math.sqrt(0.5 / len(norms)),
    )


def clip_losses(case: Case) -> Finding | None:
    """Bound the step losses where some are far larger than most, or no numbers."""
    losses = case.flow.losses
    finite = losses[np.isfinite(losses)]
    usual = float(np.median(np.abs(finite))) if finite.size else math.nan
    if not finite.size or not usual or (finite.size == losses.size and finite.max() <= 10 * HEAVY * usual):
        return None
    at = HEAVY * usual
    mean = float(np.where(np.isfinite(losses), np.minimum(losses, at), at).mean())
    return Finding(
        weight=0.9 if finite.size < losses.size else 0.3,
        title=f"Bound the step losses at {at:.2g}",
        why=f"{losses.size - finite.size} of {losses.size} losses are no finite numbers; the largest of the others is "
        f"{finite.max():.2g}, the median {usual:.2g}.",
        effect=f"The mean loss becomes {mean:.3g}; evolution strategies survive, a backward pass through NaN does not.",
        predicted=mean,
        option=f"ux.clip_loss(system, at={at:.2g})",
        command="",
        measure=lambda: _measure.clipped_loss(case, at),
        holds=lambda got: abs(got - mean) <= 0.01 * abs(mean),
    )


def take(case: Case) -> Finding | None:
    """Repeat what a comparison recommends."""
    if case.comparison is None:
        return None
    row = next(row for row in case.comparison.rows if row.name == case.comparison.recommended)
    return Finding(
        weight=0.95,
        title=f"Take {row.name}",
        why=case.comparison.reason,
        effect=f"An error of {case.comparison.tolerance:.0%} for {row.cost_to:.2g} {case.comparison.unit}.",
        predicted=row.cost_to,
        option=f"# the estimator that was compared as {row.name}",
        command="",
        measure=None,
        holds=lambda got: got <= 2 * row.cost_to,
    )


def _norm(case: Case) -> float:
    """Return the norm of the gradient; where that overflows, the sum of those of its parts, which are held in float64."""
    squares = (float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(case.flow.grad))
    norm = math.sqrt(sum(squares))
    return norm if math.isfinite(norm) else float(np.nansum(case.flow.table) / len(case.flow.at))


def _divisor(number: int, near: float) -> int:
    return min((each for each in range(1, number + 1) if number % each == 0), key=lambda each: abs(each - near))


RULES: tuple[Any, ...] = (
    smooth, take, clip_losses, remember, shorten, truncate, checkpoint, keep_whole, clip_gradient,
)  # fmt: skip
