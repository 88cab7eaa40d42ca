"""The rules that `diagnose` gives advice by. Each says what it would change a number to, and how to measure that."""

from __future__ import annotations

import math
from typing import Any

from unrollax import _measure, _measure_gates
from unrollax._advise import Case, Finding
from unrollax._rules_gradient import clip_gradient, clip_losses, growth, smooth
from unrollax.diagnosis import Gates

ERROR = 0.1  # of the gradient, relative: what a truncation may lose
TEN = math.log(10)
BIASED = ("LSTMCell", "GRUCell")  # whose gate that keeps has a bias to raise
LARGE = 64 * 2**20  # bytes of a backward pass that are worth a thought


def truncate(case: Case) -> Finding | None:
    """Cut the horizon to windows where little of the gradient crosses them."""
    window = case.flow.window_for(ERROR)
    if window is None or 2 * window > case.horizon:
        return None
    lost = float(case.flow.lost[case.flow.windows == window][0])
    horizon = case.horizon // window * window
    return Finding(
        weight=0.5,
        title=f"Truncate to windows of {_steps(window)}",
        why=f"Of the gradient over this horizon of {case.horizon} steps, windows of {window} lose {lost:.2g} of its norm.",
        effect=f"{horizon // window} updates a horizon for one, and a backward pass through {_steps(window)}.",
        predicted=lost,
        option=f"ux.TBPTT(system, window={window}, horizon={horizon})",
        command=f"--estimator tbptt --window {window} --horizon {horizon}",
        measure=lambda: _measure.truncated_grad(case, window),
        holds=lambda got: lost / 2 - 1e-3 <= got <= 2 * lost + 1e-3,
        exact=True,
    )


def keep_whole(case: Case) -> Finding | None:
    """Warn where every window loses much."""
    if not len(case.flow.windows) or case.flow.window_for(ERROR) is not None or growth(case) is not None:
        return None
    window, lost = int(case.flow.windows[-1]), float(case.flow.lost[-1])
    if not math.isfinite(lost) or 4 * window < case.horizon:
        return None
    return Finding(
        weight=0.4,
        title="Don't truncate: take the whole horizon",
        why=f"Even windows of {window} of this horizon's {case.horizon} steps lose {lost:.2g} of the gradient's norm.",
        effect=f"An exact gradient; one truncated there is off by {lost:.2g}.",
        predicted=lost,
        option=f"ux.BPTT(system, horizon={case.horizon})",
        command=f"--estimator bptt --horizon {case.horizon}",
        measure=lambda: _measure.truncated_grad(case, window),
        holds=lambda got: lost / 2 - 1e-3 <= got <= 2 * lost + 1e-3,
        exact=True,
    )


def shorten(case: Case) -> Finding | None:
    """Begin with a horizon that the gradient survives."""
    rate = growth(case)
    if rate is None or not math.isfinite(rate):
        return None
    horizon = int(2 * TEN / rate)
    if not 2 <= horizon < case.horizon:
        return None
    nats = rate * horizon
    return Finding(
        weight=0.6,
        title=f"Begin with a horizon of {horizon} steps and lengthen it",
        why=f"Over {case.horizon} steps the fastest direction grows by {rate * case.horizon:.3g} nats.",
        effect=f"Over {horizon} it grows by {nats:.2g} nats, a factor of {math.exp(nats):.2g}.",
        predicted=nats,
        option=f"ux.BPTT(system, horizon={horizon})",
        command=f"--estimator bptt --horizon {horizon}",
        measure=lambda: _measure.growth_over(case, horizon),
        holds=lambda got: abs(got - nats) <= 0.3 * nats,
    )


def _closes(case: Case, gates: Gates) -> bool:
    """Whether a gate loses the memory within the horizon, and twice as fast as one that starts for it by `chrono`."""
    if gates.cell not in BIASED or case.horizon < 3:
        return False
    return gates.predicted < min(-TEN / case.horizon, 2 * _measure_gates.chrono_rate(case.horizon))


def remember(case: Case) -> Finding | None:
    """Open the gates that keep the memory, where they close within the horizon: of several layers, the worst first."""
    closing = [layer for layer, gates in enumerate(case.gates) if _closes(case, gates)]
    if not closing:
        return None
    layer = min(closing, key=lambda each: case.gates[each].predicted)
    gates, opened = case.gates[layer], _measure_gates.opened_gate(case, layer)
    rest = ", ".join(str(each) for each in closing if each != layer)
    place = f" of layer {layer}" if len(case.gates) > 1 else ""
    return Finding(
        weight=0.7,
        title=f"Open the gate {gates.keep}{place}: start its bias for {case.horizon} steps",
        why=f"It keeps {math.exp(gates.predicted):.2f} of the memory a step, half of it for "
        f"{math.log(2) / -gates.predicted:.2g} steps, and the horizon has {case.horizon}."
        + (f" So do those of layers {rest}." if rest else ""),
        effect=f"With its bias so started it keeps a memory at {opened.rate:.2g} nats a step in place of "
        f"{gates.predicted:.2g}; worth it if what is to be remembered is that old.",
        predicted=opened.rate,
        option=f"ux.{gates.cell}(inputs, hidden, {opened.option})",
        command="",
        measure=lambda: _measure_gates.with_bias(case, layer, opened.bias),
        holds=lambda got: abs(got - opened.rate) <= 0.5 * abs(gates.predicted - opened.rate),
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
        exact=True,
    )


def take(case: Case) -> Finding | None:
    """Repeat what a comparison recommends, if that reaches the tolerance."""
    if case.comparison is None:
        return None
    row = next(row for row in case.comparison.rows if row.name == case.comparison.recommended)
    if not math.isfinite(row.cost_to):
        return None
    return Finding(
        weight=0.95,
        title=f"Take {row.name}",
        why=case.comparison.reason,
        effect=f"An error of {case.comparison.tolerance:.0%} for {row.cost_to:.2g} {case.comparison.unit}.",
        predicted=row.cost_to,
        option=row.name,
        command="",
        measure=None,
        holds=lambda got: got <= 2 * row.cost_to,
    )


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


RULES: tuple[Any, ...] = (
    smooth, take, clip_losses, remember, shorten, truncate, checkpoint, keep_whole, clip_gradient,
)  # fmt: skip
