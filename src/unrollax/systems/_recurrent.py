"""A recurrent network over a sequence as a system: cell, readout, loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from unrollax._tree import where
from unrollax._types import Key, Params, State
from unrollax._value import static, value
from unrollax.systems._frames import Frame, cross_entropy
from unrollax.systems._scan import Cell, over_batch, unroll_cell


class Readout(Protocol):
    """What `recurrent` needs of a readout."""

    def params(self, key: Key) -> Params:
        """Draw parameters."""
        ...

    def apply(self, params: Params, h: Any) -> Any:
        """Return the prediction for one output of the cell."""
        ...


def _as_it_is(x: Any) -> Any:
    return x


@value
class Recurrent:
    """A recurrent network as a system for one example; see `recurrent`."""

    cell: Cell
    readout: Readout
    loss: Callable[[Any, Any], jax.Array] = static(default=cross_entropy)
    encode: Callable[[Any], Any] = static(default=_as_it_is)

    def params(self, key: Key) -> dict[str, Params]:
        """Draw the parameters, `{"cell": ..., "readout": ...}`."""
        cell, readout = jax.random.split(key)
        return {"cell": self.cell.params(cell), "readout": self.readout.params(readout)}

    def init(self, key: Key, params: dict[str, Params]) -> State:
        """Return the cell's state before the first step."""
        del key
        return self.cell.init(params["cell"])

    def step(self, params: dict[str, Params], state: State, x: Frame, key: Key) -> tuple[State, jax.Array]:
        """Advance by one frame, and return its weighted loss."""
        del key
        after, output = self._advance(params, state, x.input, x.mask)
        weight = jnp.where(x.mask, x.weight, 0)
        target = _blank(weight == 0, x.target)
        return after, weight * self.loss(self.readout.apply(params["readout"], output), target)

    @property
    def unroll(self) -> Callable[..., tuple[State, jax.Array]] | None:
        """Whole windows at once, where the cell offers it; see `unrollax.System`."""
        return self._unroll if callable(getattr(self.cell, "unroll", None)) else None

    @property
    def causal(self) -> bool:
        """Whether a step reads nothing that comes later."""
        return getattr(self.cell, "causal", True)

    def _unroll(self, params: dict[str, Params], state: State, data: Frame, keys: Key) -> tuple[State, jax.Array]:
        """Advance by all frames, leaves `[steps, *batch, ...]`, and return their weighted losses `[steps, *batch]`."""
        del keys
        after, predictions = self._predict(params, state, data.input, data.mask)
        weight = jnp.where(data.mask, data.weight, 0)
        losses = over_batch(self.loss, jnp.ndim(weight))(predictions, _blank(weight == 0, data.target))
        return after, weight * losses

    def predict(self, params: dict[str, Params], inputs: Any, mask: Any = None) -> Any:
        """Return the predictions for one sequence, leaves `[T, ...]`; `jax.vmap` it for many."""
        if mask is None:
            mask = jnp.ones(jnp.shape(jax.tree.leaves(inputs)[0])[:1], bool)
        return self._predict(params, self.cell.init(params["cell"]), inputs, mask)[1]

    def _predict(self, params: dict[str, Params], state: State, inputs: Any, mask: Any) -> tuple[State, Any]:
        mask = jnp.asarray(mask).astype(bool)
        encoded = over_batch(self.encode, mask.ndim)(_blank(~mask, inputs))
        after, outputs = unroll_cell(self.cell, params["cell"], state, encoded, mask)
        return after, over_batch(lambda h: self.readout.apply(params["readout"], h), mask.ndim)(outputs)

    def _advance(self, params: dict[str, Params], state: State, input: Any, mask: jax.Array) -> tuple[State, jax.Array]:
        mask = jnp.asarray(mask).astype(bool)
        after, output = self.cell.step(params["cell"], state, self.encode(_blank(~mask, input)))
        return where(mask, after, state), output


def _blank(flag: jax.Array, tree: Any) -> Any:
    """Put zeros where nothing counts: 0 times the NaN or the -100 of a padding would be NaN."""
    return where(flag, jax.tree.map(jnp.zeros_like, tree), tree)


def recurrent(
    cell: Cell,
    readout: Readout,
    loss: Callable[[Any, Any], jax.Array] = cross_entropy,
    *,
    encode: Callable[[Any], Any] = _as_it_is,
) -> Recurrent:
    """Make a system of a recurrent network, for one example; `batched` makes it a batch.

    Args:
        cell: `RNNCell`, `LSTMCell`, `GRUCell`, or anything with their `params`, `init` and `step`.
        readout: `Dense`, or anything with its `params` and `apply`.
        loss: `loss(prediction, target)`, a scalar for one example and step.
        encode: applied to each input before the cell, such as a one-hot code.

    Returns:
        A system with `.params(key)` to draw parameters and `.predict(params, inputs)`; its data are `Frame`s.

    Example:
        >>> import unrollax as ux
        >>> net = ux.recurrent(ux.LSTMCell(2, 8), ux.Dense(8, 3))
        >>> params = net.params(jax.random.key(0))
        >>> data = ux.sequence(jnp.ones((6, 2)), 1, loss_at="end")
        >>> bptt = ux.BPTT(net, horizon=6)
        >>> estimate = bptt.estimate(params, bptt.init(jax.random.key(1), params), data)[1]
        >>> estimate.grad["cell"]["wh"].shape
        (8, 32)
    """
    return Recurrent(cell, readout, loss, encode)
