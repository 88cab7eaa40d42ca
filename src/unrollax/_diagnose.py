"""`diagnose`: all measurements of a system's gradient at once, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from unrollax._advise import Advice, Case, ranked
from unrollax._check import check_params
from unrollax._modes import check_modes
from unrollax._rules import RULES
from unrollax._system import as_system
from unrollax._types import Data, Key, Params, System
from unrollax.diagnosis import Comparison, Flow, Gates, Lyapunov, gate_statistics, gradient_flow, lyapunov
from unrollax.diagnosis._flow import has_floats
from unrollax.diagnosis._gates import gated_layers


class Diagnosis(NamedTuple):
    """What was measured of a system, and what to do about it; see `diagnose`. It prints as a page of text.

    Attributes:
        flow: where the gradient of each loss comes from.
        dynamics: how differences in the state grow; `None` if the state holds no floating numbers, or if step has no forward
            derivative, as with a `custom_vjp`.
        gates: the gates of each layer of a gated recurrent cell, from the lowest; empty for other systems.
        advice: at most five pieces, what matters most first.
    """

    flow: Flow
    dynamics: Lyapunov | None
    gates: tuple[Gates, ...]
    advice: list[Advice]

    def __str__(self) -> str:
        measured = [self.flow, *([self.dynamics] if self.dynamics is not None else []), *self.gates]
        parts: list[Any] = [*measured, *self.advice]
        if not self.advice:
            parts.append("No advice: the gradient comes through." if self._fine else "No rule applies.")
        return "\n\n".join(map(str, parts))

    @property
    def _fine(self) -> bool:
        """Whether the gradient comes through: finite, not 0, and nothing explodes."""
        grads = [np.asarray(leaf) for leaf in jax.tree.leaves(self.flow.grad)]
        finite = all(np.isfinite(numbers).all() for numbers in (self.flow.losses, *grads))
        calm = self.dynamics is None or self.dynamics.verdict in ("neutral", "vanishing")
        return bool(finite and calm and any(grad.any() for grad in grads))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "flow": self.flow.to_dict(),
            "dynamics": None if self.dynamics is None else self.dynamics.to_dict(),
            "gates": [gates.to_dict() for gates in self.gates],
            "advice": [piece.to_dict() for piece in self.advice],
        }


def diagnose(
    system: System,
    params: Params,
    data: Data = None,
    *,
    key: Key,
    horizon: int | None = None,
    comparison: Comparison | None = None,
    verify: bool = False,
    observe: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Measure where a system's gradient vanishes or explodes, and say what to do about it.

    Runs `gradient_flow`, `lyapunov`, and `gate_statistics` where the cell has gates, and gives at most five pieces of
    advice, each with a number that it predicts and the option that applies it. With `verify` each is applied, and the number
    measured.

    Cost: that of its parts, most of it `gradient_flow`'s; a piece of advice takes a gradient or two to verify.

    Args:
        system: any system.
        params: where it is looked at: those to start from, or trained ones.
        data: one horizon, leaves `[T, ...]`, `repeat(x)` leaves, or `None`.
        key: a PRNG key; all randomness comes from it.
        horizon: T, where no data leaf has a time axis.
        comparison: what `compare` returned, so that advice can rest on it.
        verify: measure whether the advice does what it says.
        observe: called with a line of progress now and then.

    Raises:
        InvalidArgument: horizon is missing, key is no key, or step has no derivative.
        StructureError: data or params don't fit the system.

    Example:
        >>> import jax, jax.numpy as jnp, unrollax as ux
        >>> def step(params, state, x, key):
        ...     state = params * state + x
        ...     return state, (state - 1) ** 2
        >>> leak = ux.system(init=lambda key, params: jnp.zeros(()), step=step)
        >>> found = ux.diagnose(leak, 0.5, jax.random.normal(jax.random.key(1), (60,)), key=jax.random.key(0), verify=True)
        >>> found.dynamics.verdict, found.advice[0].title, found.advice[0].held
        ('vanishing', 'Truncate to windows of 15 steps', True)
    """
    say, params, system = observe or _silence, check_params("diagnose", params), as_system("diagnose", system)
    forward = check_modes(system, params, data, key, horizon)
    flow = gradient_flow(system, params, data, key=key, horizon=horizon, observe=observe)
    steps = flow.table.shape[1]
    say("lyapunov" if forward else "no forward derivative: without lyapunov and gate_statistics")
    moves = forward and has_floats(system, params, key)
    dynamics = lyapunov(system, params, data, key=key, steps=steps) if moves else None
    layers = gated_layers(system) if forward else 0
    say("gate_statistics" if layers else "advice")
    gates = tuple(gate_statistics(system, params, data, key=key, layer=layer) for layer in range(layers))
    case = Case(system, params, data, key, flow, dynamics, gates, comparison)
    return Diagnosis(flow, dynamics, gates, ranked(case, RULES, verify=verify, observe=say))


def advise(
    diagnosis: Diagnosis,
    system: System,
    params: Params,
    data: Data = None,
    *,
    key: Key,
    comparison: Comparison | None = None,
    verify: bool = False,
    observe: Callable[[str], None] | None = None,
) -> list[Advice]:
    """Give advice on a diagnosis again: with a comparison beside it, or to verify it.

    Takes what `diagnose` took, and what it returned.

    Example:
        >>> import jax, jax.numpy as jnp, unrollax as ux
        >>> leak = ux.system(init=lambda key, params: jnp.zeros(()), step=lambda p, s, x, k: (p * s + x, p * s + x))
        >>> found = ux.diagnose(leak, 0.5, jnp.ones(60), key=jax.random.key(0))
        >>> [piece.held for piece in ux.advise(found, leak, 0.5, jnp.ones(60), key=jax.random.key(0), verify=True)]
        [True]
    """
    params, system = check_params("advise", params), as_system("advise", system)
    case = Case(system, params, data, key, diagnosis.flow, diagnosis.dynamics, diagnosis.gates, comparison)
    return ranked(case, RULES, verify=verify, observe=observe or _silence)


def _silence(text: str) -> None:
    del text
