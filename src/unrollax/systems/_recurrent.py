"""A recurrent network over a sequence as a system: cell, readout, loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe, leaves_with_names, where
from unrollax._types import Key, Params, State
from unrollax._value import static, value
from unrollax.systems._checks import check_cell, check_part
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
        _check_frames(x, ())
        after, output = self._advance(params, state, x.input, x.mask)
        weight = jnp.where(x.mask, x.weight, 0)
        target = _blank(weight == 0, x.target)
        return after, weight * self._score(self.readout.apply(params["readout"], output), target)

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
        _check_frames(data, keys.shape)
        after, outputs = self._outputs(params, state, data.input, data.mask, keys.ndim)
        weight = jnp.where(data.mask, data.weight, 0)
        predictions = self._read(params, outputs, keys.ndim)
        losses = over_batch(self._score, keys.ndim)(predictions, _blank(weight == 0, data.target))
        return after, weight * losses

    def _score(self, prediction: Any, target: Any) -> jax.Array:
        """Return the loss of one example and step."""
        loss = self.loss(prediction, target)
        if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise StructureError(
                f"recurrent: loss must return a floating scalar for one example and step, got {describe(loss)} from a "
                f"prediction {_shapes(prediction)} and a target {_shapes(target)}. Reduce it, for example with .mean()."
            )
        return loss

    def predict(self, params: dict[str, Params], inputs: Any, mask: Any = None) -> Any:
        """Return the predictions for one sequence, leaves `[T, ...]`; `jax.vmap` it for many.

        Args:
            params: as `.params(key)` draws them.
            inputs: one sequence, leaves `[T, ...]`.
            mask: booleans `[T]`, true at real steps; `None` if all are.

        Raises:
            StructureError: inputs are no single sequence, or mask has another shape than `[T]`.
        """
        start = self.cell.init(params["cell"])
        steps = _steps(inputs, self._one_step)
        if mask is not None and jnp.shape(mask) != (steps,):
            raise StructureError(
                f"Recurrent.predict: mask must be [{steps}], one boolean for each step, got {describe(mask)}. "
                "For many sequences jax.vmap it over inputs and mask."
            )
        after, outputs = self._outputs(params, start, inputs, mask, axes=1)  # a kernel would take a batch as well
        if list(map(jnp.shape, jax.tree.leaves(after))) != list(map(jnp.shape, jax.tree.leaves(start))):
            raise _many(inputs, self._one_step)
        return self._read(params, outputs, axes=1)

    @property
    def _one_step(self) -> str:
        """What one step of the input is, where cell and encode let it be said."""
        size = getattr(self.cell, "inputs", None)
        return str(size) if isinstance(size, int) and self.encode is _as_it_is else "..."

    def _outputs(self, params: dict[str, Params], state: State, inputs: Any, mask: Any, axes: int) -> tuple[State, Any]:
        """Return the cell's state after a window, and its outputs; time and the batch are the first `axes` axes."""
        if mask is not None:
            mask = jnp.asarray(mask).astype(bool)
            inputs = _blank(~mask, inputs)
        return unroll_cell(self.cell, params["cell"], state, over_batch(self.encode, axes)(inputs), mask)

    def _read(self, params: dict[str, Params], outputs: Any, axes: int) -> Any:
        """Return the predictions."""
        return over_batch(lambda h: self.readout.apply(params["readout"], h), axes)(outputs)

    def _advance(self, params: dict[str, Params], state: State, input: Any, mask: jax.Array) -> tuple[State, jax.Array]:
        mask = jnp.asarray(mask).astype(bool)
        after, output = self.cell.step(params["cell"], state, self.encode(_blank(~mask, input)))
        return where(mask, after, state), output


def _blank(flag: jax.Array, tree: Any) -> Any:
    """Put zeros where nothing counts: 0 times the NaN or the -100 of a padding would be NaN."""
    return where(flag, jax.tree.map(jnp.zeros_like, tree), tree)


def _check_frames(data: Any, shape: tuple[int, ...]) -> None:
    """Raise unless data are frames of steps and examples of this shape: `()` in a step, `[steps, *batch]` in a window."""
    if any(not hasattr(data, name) for name in Frame._fields):
        parts = f"{type(data).__name__} of {len(data)}" if isinstance(data, (tuple, list)) else describe(data)
        raise StructureError(
            f"recurrent: data must be a Frame of input, target, mask and weight, got {parts}. Make one with "
            "unrollax.sequence(input, target), or a batch with unrollax.pad_sequences."
        )
    for name in ("mask", "weight"):
        got = jnp.shape(getattr(data, name))
        if got != shape:
            many = f" For many examples wrap the system: batched(system, {got[-1]})." if len(got) > len(shape) else ""
            raise StructureError(
                f"recurrent: {name} must be {list(shape)}, one for each step and example, got "
                f"{describe(getattr(data, name))}.{many or ' Make the data with unrollax.sequence or pad_sequences.'}"
            )
    for name, leaf in leaves_with_names({"input": data.input, "target": data.target}):
        if jnp.shape(leaf)[: len(shape)] != shape:
            raise StructureError(
                f"recurrent: data leaf {name} must have the axes {list(shape)} of the mask first, got {describe(leaf)}. "
                "Make the data with unrollax.sequence or pad_sequences."
            )


def _steps(inputs: Any, one: str) -> int:
    """Return the steps of one sequence."""
    leaves = jax.tree.leaves(inputs)
    lengths = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) != 1 or lengths == {()}:
        raise _many(inputs, one)
    return lengths.pop()[0]


def _many(inputs: Any, one: str) -> StructureError:
    return StructureError(
        f"Recurrent.predict: inputs must be one sequence [T, {one}], got {_shapes(inputs)}. For many sequences jax.vmap it; "
        "pass arrays, not lists of numbers."
    )


def _shapes(tree: Any) -> str:
    """Describe the leaves of a tree."""
    return ", ".join(map(describe, jax.tree.leaves(tree))) or "nothing"


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

    Raises:
        InvalidArgument: a part is a class and no object of it, lacks a method, or can't be called.
        StructureError: when traced, data that are no `Frame` or don't fit, or a loss that is no scalar.

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
    check_cell("recurrent", cell, "cell")
    methods = {"params": "params(key)", "apply": "apply(params, h)"}
    remedy = "Pass recurrent(cell, readout, loss), with a readout such as Dense(inputs, outputs)."
    check_part("recurrent", "readout", readout, methods, remedy)
    for name, function in (("loss", loss), ("encode", encode)):
        if not callable(function):
            raise InvalidArgument(
                f"recurrent: {name} must be a function, got {function!r}. Pass one such as "
                f"{'unrollax.squared_error' if name == 'loss' else 'functools.partial(jax.nn.one_hot, num_classes=10)'}."
            )
    return Recurrent(cell, readout, loss, encode)
