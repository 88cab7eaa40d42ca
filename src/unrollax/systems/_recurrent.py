"""A recurrent network over a sequence as a system: cell, readout, loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe, where
from unrollax._types import Key, Params, State
from unrollax._value import static, value


class Cell(Protocol):
    """What `recurrent` needs of a cell; the sizes are the cell's own."""

    def params(self, key: Key) -> Params:
        """Draw parameters."""
        ...

    def init(self, params: Params) -> State:
        """Return the state before the first step."""
        ...

    def step(self, params: Params, state: State, x: Any) -> tuple[State, jax.Array]:
        """Return the next state and the output that the readout sees."""
        ...


class Readout(Protocol):
    """What `recurrent` needs of a readout."""

    def params(self, key: Key) -> Params:
        """Draw parameters."""
        ...

    def apply(self, params: Params, h: Any) -> Any:
        """Return the prediction for one output of the cell."""
        ...


class Frame(NamedTuple):
    """One step of data for `recurrent`; with a leading time axis, a sequence. `sequence` makes them.

    Attributes:
        input: what the cell reads.
        target: what the loss compares the prediction with.
        mask: whether the step is real; a step that is not leaves the state as it was.
        weight: what the loss of the step is multiplied by.
    """

    input: Any
    target: Any
    mask: jax.Array
    weight: jax.Array


def sequence(input: Any, target: Any, *, mask: Any = None, loss_at: Literal["each", "end"] = "each") -> Frame:
    """Make the data of one example from a sequence.

    Weights are such that the mean step loss over all T steps is the mean loss over the real steps (`each`), or the loss at
    the last real step (`end`). `jax.vmap` it over examples, and move the time axis to the front.

    Args:
        input: leaves `[T, ...]`.
        target: leaves `[T, ...]`; for `end` leaves without a time axis, the one target.
        mask: booleans `[T]`, true at real steps; `None` if all are.
        loss_at: which steps have a loss.

    Raises:
        InvalidArgument: loss_at is neither.
        StructureError: leaves of input, target and mask have different lengths.

    Example:
        >>> sequence(jnp.zeros((4, 2)), 7, mask=jnp.array([1, 1, 1, 0]), loss_at="end").weight
        Array([0., 0., 4., 0.], dtype=float32)
    """
    if loss_at not in ("each", "end"):
        raise InvalidArgument(f"sequence: loss_at must be 'each' or 'end', got {loss_at!r}.")
    steps = jnp.shape(jax.tree.leaves(input)[0])[0]
    mask = jnp.ones(steps, bool) if mask is None else jnp.asarray(mask).astype(bool)
    for leaf in jax.tree.leaves((input, mask, target if loss_at == "each" else ())):
        if jnp.shape(leaf)[:1] != (steps,):
            raise StructureError(
                f"sequence: input, target and mask must have the same {steps} steps, got {describe(leaf)}. "
                "For one target at the end pass it without a time axis and loss_at='end'."
            )
    if loss_at == "end":
        target = jax.tree.map(lambda t: jnp.broadcast_to(t, (steps, *jnp.shape(t))), target)
        last = steps - 1 - jnp.argmax(mask[::-1])
        weight = steps * ((jnp.arange(steps) == last) & mask).astype(float)
    else:
        weight = mask * (steps / jnp.maximum(mask.sum(), 1)).astype(float)
    return Frame(input, target, mask, weight)


def cross_entropy(prediction: jax.Array, target: Any) -> jax.Array:
    """Return the negative log-probability (nats) of an integer class under logits `[classes]`.

    Example:
        >>> cross_entropy(jnp.zeros(4), 2)
        Array(1.3862944, dtype=float32)
    """
    return optax.softmax_cross_entropy_with_integer_labels(prediction, jnp.asarray(target))


def squared_error(prediction: jax.Array, target: Any) -> jax.Array:
    """Return the mean squared difference over the components.

    Example:
        >>> squared_error(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]))
        Array(2., dtype=float32)
    """
    return jnp.mean((prediction - target) ** 2)


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
        target = _blank(x.weight == 0, x.target)
        return after, x.weight * self.loss(self.readout.apply(params["readout"], output), target)

    def predict(self, params: dict[str, Params], inputs: Any, mask: Any = None) -> Any:
        """Return the predictions for one sequence, leaves `[T, ...]`; `jax.vmap` it for many."""
        steps = jnp.shape(jax.tree.leaves(inputs)[0])[0]
        mask = jnp.ones(steps, bool) if mask is None else mask

        def body(state: State, now: tuple[Any, jax.Array]) -> tuple[State, Any]:
            state, output = self._advance(params, state, *now)
            return state, self.readout.apply(params["readout"], output)

        return jax.lax.scan(body, self.cell.init(params["cell"]), (inputs, mask))[1]

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
