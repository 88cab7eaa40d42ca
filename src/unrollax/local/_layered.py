"""A net of layers as a system of one example, whose window is a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe, is_inexact
from unrollax._types import Key, Params, State
from unrollax._value import static, value
from unrollax.local._layers import as_layers, forward, show

Loss = Callable[[Any, Any], Any]


@value
class Layered:
    """A net of layers and a loss, as a system; see `layered`."""

    layers: tuple[Any, ...]
    loss: Loss = static()

    def params(self, key: Key) -> list[Params]:
        """Draw the parameters, one pytree a layer; `None` for a layer without."""
        return draw_params(self.layers, key)

    def predict(self, params: list[Params], x: Any) -> Any:
        """Return the last layer's output for a batch x, `[batch, ...]`."""
        return run_layers("layered", self.layers, params, x)

    def init(self, key: Key, params: list[Params]) -> State:
        """Return the empty state: nothing goes from example to example."""
        return ()

    def step(self, params: list[Params], state: State, x: tuple[Any, Any], key: Key) -> tuple[State, jax.Array]:
        """Return the loss of one example `(x, target)`."""
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], two("layered", x))
        return state, self._losses(params, one)[0]

    def unroll(self, params: list[Params], state: State, data: tuple[Any, Any], keys: Key) -> tuple[State, jax.Array]:
        """Return the losses of all examples, which are run at once; see `unrollax.System`."""
        axes = keys.ndim
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes:]), two("layered", data))
        return state, self._losses(params, flat).reshape(keys.shape)

    def _losses(self, params: list[Params], data: tuple[Any, Any]) -> jax.Array:
        x, target = data
        return losses_of("layered", self.loss, self.predict(params, x), target)


def two(owner: str, data: Any) -> tuple[Any, Any]:
    """Return data as (x, target)."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        got = f"{type(data).__name__} of {len(data)}" if isinstance(data, (tuple, list, dict)) else describe(data)
        raise StructureError(f"{owner}: data must be a pair (x, target), leaves [batch, ...], got {got}. Pass both.")
    return data[0], data[1]


def draw_params(layers: tuple[Any, ...], key: Key) -> list[Params]:
    """Draw the parameters of each layer that says how; `None` for the others."""
    keys = jax.random.split(key, len(layers))
    draws = [getattr(layer, "params", None) for layer in layers]
    return [draw(one) if callable(draw) else None for draw, one in zip(draws, keys, strict=True)]


def losses_of(owner: str, loss: Loss, y: Any, target: Any) -> jax.Array:
    """Return the losses of a batch; raise unless there is one an example."""
    try:
        losses = loss(y, target)
    except (TypeError, ValueError) as error:
        if isinstance(error, (StructureError, jax.errors.JAXTypeError)):
            raise
        said = str(error).partition("\n")[0].rstrip(".")
        raise StructureError(
            f"{owner}: loss must take predictions {_shapes(y)} with a target {_shapes(target)}, got {type(error).__name__}: "
            f"{said}. Give them shapes that fit: flatten images before a dense layer, and make the last layer as wide as the "
            "target."
        ) from error
    if jnp.shape(losses) != jnp.shape(y)[:1] or not jnp.issubdtype(jnp.result_type(losses), jnp.floating):
        raise StructureError(
            f"{owner}: loss must return floating [batch] losses, one an example, here [{len(y)}], got {describe(losses)} for "
            f"predictions {describe(y)}. Reduce all axes but the first, for example with .sum(-1)."
        )
    return jnp.asarray(losses)


def run_layers(owner: str, layers: tuple[Any, ...], params: list[Params], x: Any) -> Any:
    """Return the last layer's output; errors name the layer."""
    check_one_each(owner, layers, params)
    for index, (layer, own) in enumerate(zip(layers, params, strict=True)):
        x = run_layer(owner, index, layer, own, x)[0]
    return x


def check_one_each(owner: str, layers: tuple[Any, ...], params: Any) -> None:
    """Raise unless params are a list of one entry a layer."""
    if not isinstance(params, (list, tuple)) or len(params) != len(layers):
        got = f"{len(params)} entries" if isinstance(params, (list, tuple)) else describe(params)
        raise StructureError(
            f"{owner}: params must be a list with one entry for each of the {len(layers)} layers, got {got}. Take them from "
            "params(key); None stands for a layer without."
        )


def run_layer(owner: str, index: int, layer: Any, params: Params, x: Any, nudge: Any = None) -> tuple[Any, Any]:
    """Run one layer of a net: (y, inputs). Errors name it by its place."""
    try:
        y, inputs = forward(layer, params, x, nudge)
    except (TypeError, ValueError) as error:
        told = str(error) if isinstance(error, StructureError) else f"{show(layer)} can't take {_shapes(x)}: {error}"
        raise StructureError(f"{owner}: layers[{index}]: {told}") from error
    batch = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if not is_inexact(y) or {jnp.shape(y)[:1]} != batch or not jnp.ndim(y):
        raise StructureError(
            f"{owner}: layers[{index}], {show(layer)}, must return floating numbers with the batch on the first axis, got "
            f"{_shapes(y)} for {_shapes(x)}. Keep that axis."
        )
    return y, inputs


def _shapes(tree: Any) -> str:
    return ", ".join(map(describe, jax.tree.leaves(tree))) or "nothing"


def layered(layers: Sequence[Any], loss: Loss) -> Layered:
    """Make a system of a net of layers: a step is one example, a window is a batch.

    Its mean step loss is the mean loss of the batch, so that `BPTT(layered(layers, loss), horizon=batch)` is backpropagation,
    and every other estimator works on it too. Whole windows are run as a batch, not step by step.

    Args:
        layers: first to last: `DenseLayer`, `ConvLayer`, `RecurrentLayer`, `Layer`, or any objects with `pre(params, x)` and
            `transfer(a)`.
        loss: `loss(y, target) -> [batch]`, one an example.

    Returns:
        A system with `.params(key)` to draw parameters, a list with one pytree a layer, and `.predict(params, x)`; its data
        are pairs `(x, target)` with leaves `[batch, ...]`.

    Raises:
        InvalidArgument: no layers, an object that is none, one whose size does not fit the one before, or a loss that is no
            function.
        StructureError: when traced, shapes that don't fit, with the layer's place, or a loss that isn't `[batch]`.

    Example:
        >>> import unrollax as ux
        >>> net = ux.layered(ux.dense_layers([4, 8, 2], "tanh"), lambda y, target: ((y - target) ** 2).sum(-1))
        >>> params = net.params(jax.random.key(0))
        >>> bptt = ux.BPTT(net, horizon=16)
        >>> data = jnp.ones((16, 4)), jnp.zeros((16, 2))
        >>> estimate = bptt.estimate(params, bptt.init(jax.random.key(1), params), data)[1]
        >>> estimate.grad[0]["w"].shape
        (4, 8)
    """
    made = as_layers("layered", layers)
    if not callable(loss):
        raise InvalidArgument(
            f"layered: loss must be a function loss(y, target) -> [batch], got loss={loss!r}. Pass one such as "
            "lambda y, target: ((y - target) ** 2).sum(-1)."
        )
    return Layered(made, loss)
