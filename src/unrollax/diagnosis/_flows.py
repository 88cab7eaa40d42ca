"""What `gradient_flow` and `state_flow` return."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from unrollax._types import Params
from unrollax.diagnosis._decay import Decay


class Flow(NamedTuple):
    """Norms of the parts of a gradient; see `gradient_flow`. It prints as a summary.

    Attributes:
        at: `[n]`, the steps t of the losses, ascending.
        losses: `[n]`, the losses.
        table: `[n, T]`, || d loss_t / d params as used at step s ||, over all leaves; exactly 0 for s > t.
        leaves: the same for each leaf of params by its path.
        state: `[n, T]`, || d loss_t / d state_s ||, with state_s before step s.
        start: `[n]`, || d loss_t / d params through init ||.
        grad: the gradient of the mean of all T step losses, like params.
        windows: `[m]`, lengths of windows, ascending.
        lost: `[m]`, || g_K - g || / || g || with g that gradient and g_K that which `TBPTT(window=K)` averages to.
        decay: how `table` falls or grows with the distance t - s.
        state_decay: how `state` does.
    """

    at: np.ndarray
    losses: np.ndarray
    table: np.ndarray
    leaves: dict[str, np.ndarray]
    state: np.ndarray
    start: np.ndarray
    grad: Params
    windows: np.ndarray
    lost: np.ndarray
    decay: Decay
    state_decay: Decay

    def __str__(self) -> str:
        steps = self.table.shape[1]
        lines = [
            f"Gradient flow of {len(self.at)} losses over {steps} steps",
            f"  gradient by step    {self.decay}",
            f"  through the state   {self.state_decay}",
        ]
        if self.start.any():
            lines.append(
                f"  through init        at most {self.start.max():.3g}, by step at most {np.nanmax(self.table):.3g}"
            )
        lines += [f"  {text}" for text in (*_broken(self.at, self.losses), *_limits(self.state_decay))]
        if len(self.windows):
            lines.append("  truncated windows   " + "".join(f"{window:>9}" for window in self.windows))
            lines.append("  relative error      " + "".join(f"{lost:>9.2g}" for lost in self.lost))
        return "\n".join(lines)

    def window_for(self, error: float) -> int | None:
        """Return the shortest window from which on truncation changes the gradient by at most `error` of its norm.

        All longer ones that were measured change it by no more either: as parts cancel, a single one may do so by luck.
        `None` if there is none.
        """
        bad = np.flatnonzero(~(self.lost <= error))
        good = self.windows[bad.max(initial=-1) + 1 :]
        return int(good[0]) if good.size else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists; the gradient as its norm."""
        plain = self._asdict() | {"decay": self.decay.to_dict(), "state_decay": self.state_decay.to_dict()}
        del plain["grad"]
        plain["leaves"] = {name: norms.tolist() for name, norms in self.leaves.items()}
        return {name: item.tolist() if isinstance(item, np.ndarray) else item for name, item in plain.items()} | {
            "grad_norm": _norm(self.grad)
        }


class StateFlow(NamedTuple):
    """Norms of the gradients with respect to the states; see `state_flow`.

    Attributes:
        at: `[n]`, the steps t of the losses, ascending.
        losses: `[n]`, the losses.
        state: `[n, T]`, || d loss_t / d state_s ||, with state_s before step s; exactly 0 for s > t.
        state_decay: how it falls or grows with the distance t - s.
    """

    at: np.ndarray
    losses: np.ndarray
    state: np.ndarray
    state_decay: Decay

    def __str__(self) -> str:
        title = f"Gradient of {len(self.at)} losses by the states of {self.state.shape[1]} steps"
        more = (*_broken(self.at, self.losses), *_limits(self.state_decay))
        return "\n".join([title, f"  {self.state_decay}", *(f"  {text}" for text in more)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        arrays = {name: getattr(self, name).tolist() for name in ("at", "losses", "state")}
        return arrays | {"state_decay": self.state_decay.to_dict()}


def _broken(at: np.ndarray, losses: np.ndarray) -> list[str]:
    """Say which losses are no numbers."""
    bad = at[~np.isfinite(losses)]
    return [f"{len(bad)} of {len(at)} losses are NaN or infinite, the first at step {bad[0]}"] if bad.size else []


def _limits(decay: Decay) -> list[str]:
    """Say where backpropagation leaves the range of the numbers."""
    lines = []
    if decay.underflow is not None:
        lines.append(f"underflows {decay.underflow} steps before the loss: backpropagation sees 0 there")
    if decay.overflow is not None:
        lines.append(f"overflows {decay.overflow} steps before the loss: backpropagation sees infinity or NaN there")
    return lines


def _norm(tree: Any) -> float:
    return float(math.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))))
