"""Cells made of cells: one above the other, and one in each direction of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._types import Key, Params, State
from unrollax._value import static, value
from unrollax.systems._checks import check_cell
from unrollax.systems._scan import Cell, batch_axes, over_batch, unroll_cell


@value
class Stacked:
    """Cells one above the other as one cell; see `stacked`."""

    cells: tuple[Cell, ...]
    residual: bool = static(default=False)
    between: Callable[[Any], Any] | None = static(default=None)

    @property
    def causal(self) -> bool:
        """Whether a step reads nothing that comes later."""
        return all(getattr(cell, "causal", True) for cell in self.cells)

    def params(self, key: Key) -> tuple[Params, ...]:
        """Draw the parameters of each layer, the lowest first."""
        keys = jax.random.split(key, len(self.cells))
        return tuple(cell.params(k) for cell, k in zip(self.cells, keys, strict=True))

    def init(self, params: tuple[Params, ...]) -> tuple[State, ...]:
        """Return the state of each layer before the first step."""
        return tuple(cell.init(p) for cell, p in zip(self.cells, params, strict=True))

    def step(self, params: tuple[Params, ...], state: tuple[State, ...], x: Any) -> tuple[tuple[State, ...], Any]:
        """Step every layer, each with the output of the one below, and return the output of the highest."""
        return self._climb(x, lambda n, h: self.cells[n].step(params[n], state[n], h), axes=0)

    def unroll(
        self, params: tuple[Params, ...], state: tuple[State, ...], xs: Any, mask: jax.Array | None = None
    ) -> tuple[tuple[State, ...], Any]:
        """Run one layer after the other over the whole sequence, each by its own `unroll` where it offers one."""
        axes = 1 + batch_axes(self, params, state, xs, mask)
        return self._climb(xs, lambda n, hs: unroll_cell(self.cells[n], params[n], state[n], hs, mask), axes)

    def _climb(self, h: Any, run: Callable[[int, Any], tuple[State, Any]], axes: int) -> tuple[tuple[State, ...], Any]:
        """Run the layers one after the other, on data that have so many axes before those of one step."""
        states = []
        for layer in range(len(self.cells)):
            after, output = run(layer, h)
            if self.between is not None and layer < len(self.cells) - 1:
                output = over_batch(self.between, axes)(output)
            h = _add(layer, h, output) if self.residual and layer else output
            states.append(after)
        return tuple(states), h


def _add(layer: int, below: Any, output: Any) -> Any:
    for a, b in zip(jax.tree.leaves(below), jax.tree.leaves(output), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            raise StructureError(
                f"stacked: with residual=True the output of layer {layer} must have the shape of its input, {describe(a)}, "
                f"got {describe(b)}. Give all layers one size, or take residual=False."
            )
    return jax.tree.map(jnp.add, below, output)


def stacked(*cells: Cell, residual: bool = False, between: Callable[[Any], Any] | None = None) -> Stacked:
    """Make one cell of several: each reads the output of the one below it at the same step.

    Args:
        cells: the lowest first.
        residual: each layer but the lowest adds its input to its output, so all must have one size.
        between: applied to the output of every layer but the highest, for one example and step, such as `jax.nn.gelu`
            between linear cells. With `residual`, before the input is added.

    Returns:
        A cell whose params and state are tuples with one entry a layer. It offers `unroll` too, which runs a layer without
        one step by step.

    Raises:
        InvalidArgument: there is no cell, or one lacks a method.
        StructureError: with `residual`, a layer whose output has another shape than its input.

    Example:
        >>> import unrollax as ux
        >>> cell = ux.stacked(ux.LSTMCell(2, 8), ux.GRUCell(8, 8), residual=True)
        >>> params = cell.params(jax.random.key(0))
        >>> state, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> len(state), output.shape
        (2, (8,))

    References: Graves, Mohamed and Hinton, ICASSP 2013; Wu et al., 2016 (residual).
    """
    if not cells:
        raise InvalidArgument("stacked: needs at least one cell, got none. Pass the lowest first: stacked(low, high).")
    for cell in cells:
        check_cell("stacked", cell)
    return Stacked(cells, residual, between)


@value
class Bidirectional:
    """Two cells that read a sequence from either end; see `bidirectional`."""

    forward: Cell
    backward: Cell

    causal: ClassVar[bool] = False

    def params(self, key: Key) -> dict[str, Params]:
        """Draw the parameters, `{"forward": ..., "backward": ...}`."""
        forward, backward = jax.random.split(key)
        return {"forward": self.forward.params(forward), "backward": self.backward.params(backward)}

    def init(self, params: dict[str, Params]) -> dict[str, State]:
        """Return the state of either direction before its first step."""
        return {"forward": self.forward.init(params["forward"]), "backward": self.backward.init(params["backward"])}

    def step(self, params: dict[str, Params], state: dict[str, State], x: Any) -> NoReturn:
        """Raise: a step can't read what comes later."""
        raise InvalidArgument(
            "bidirectional: needs a whole window at once, got one step of it. Train it with BPTT, or with TBPTT without "
            "overlap, on recurrent(...) as it is or batched: other estimators, and wrappers such as bounded, run steps. "
            "Or take one direction."
        )

    def unroll(
        self, params: dict[str, Params], state: dict[str, State], xs: Any, mask: jax.Array | None = None
    ) -> tuple[dict[str, State], jax.Array]:
        """Run both directions, and join their outputs of the same step on the last axis."""
        after, ahead = unroll_cell(self.forward, params["forward"], state["forward"], xs, mask)
        turned = _turn(unroll_cell(self.backward, params["backward"], state["backward"], _turn(xs), _turn(mask))[1])
        outputs = jnp.concatenate([ahead, turned], axis=-1)
        return {"forward": after, "backward": state["backward"]}, outputs


def _turn(tree: Any) -> Any:
    """Reverse the time axis; a padding, then at the start, leaves the state until the last real step."""
    return jax.tree.map(lambda leaf: jnp.flip(leaf, 0), tree)


def bidirectional(forward: Cell, backward: Cell) -> Bidirectional:
    """Make a cell that reads a sequence from both ends: at each step its output has seen all of it.

    There is no step form, only `unroll`, so `step` raises. What runs whole windows can train it: `BPTT`, and `TBPTT`
    without `overlap`, both with `memory="full"`. What runs steps refuses it: a window cut into pieces (`overlap`, other
    `memory`), all other estimators, and `clip_loss`, `remat` and `bounded`. The backward direction starts at each example's
    last real step. The state afterwards is that of the forward direction, and what the backward one was given: under `TBPTT`
    the former goes on from window to window, and the latter starts anew at the end of each, so it sees no further ahead.

    Args:
        forward: reads from the first step to the last.
        backward: reads from the last step to the first.

    Returns:
        A cell with `{"forward": ..., "backward": ...}` as params and as state, and the outputs of the two joined on the last
        axis, the forward one first.

    Raises:
        InvalidArgument: one of the two lacks a method; `step` was called.

    Example:
        >>> import unrollax as ux
        >>> cell = ux.bidirectional(ux.LSTMCell(2, 8), ux.GRUCell(2, 4))
        >>> params = cell.params(jax.random.key(0))
        >>> state, outputs = cell.unroll(params, cell.init(params), jnp.ones((6, 2)), None)
        >>> outputs.shape
        (6, 12)

    References: Schuster and Paliwal, IEEE Transactions on Signal Processing 1997; Zhang et al., ICASSP 2016 (in windows).
    """
    for cell in (forward, backward):
        check_cell("bidirectional", cell)
    return Bidirectional(forward, backward)
