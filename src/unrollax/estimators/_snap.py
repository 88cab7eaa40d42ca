"""SnAp: real-time recurrent learning that keeps only the entries of the influence that a few steps can make."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from unrollax._check import check_counts, check_window
from unrollax._errors import StructureError
from unrollax._system import FunctionSystem, as_system, unroll_for
from unrollax._tree import describe, strong
from unrollax._types import Data, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._entries import Colours, Layout, dot, immediate, layout_of, through
from unrollax.estimators._influence import Influence, Online, flat, numbers, with_numbers
from unrollax.estimators._pattern import pattern_of


@value
class SnAp(Online):
    """The sparse n-step approximation of RTRL: what a parameter does to a number of the state in few steps is carried.

    An entry of the influence J = d state / d params is kept if that parameter can change that number of the state within
    `order` steps; a reset counts as one. With D and I the derivatives of the state after a step by the state before it and by
    params, `lambda` and `direct` those of the window's mean step loss by the state before it and by params,

        J' = mask (D J + I) at every step,    grad = direct + lambda J;    at a reset J = mask d init / d params.

    What can change what is found once, when a call is traced, from derivatives at random numbers of the right shapes: a
    product with a fixed 0 keeps nothing, and an influence that shows at few random places may be missed. Entries are stored
    without the others, rows of I and of D that have no column in common are pulled back together, and params that never
    reach the state (a readout) cost nothing.

    Target: truncated: inside a window the gradient is exact, across its start what the mask drops is left out. Exact if
    what params reach in `order` steps is all that they ever reach: with an `order` of S, if not earlier. A parameter that
    all numbers of the state read has no entry to drop: there SnAp is RTRL. Needs `vjp`. Cost of a call: two passes forward,
    one back, and at every step one pull-back for each colour of I (1 for a plain recurrent net with `order=1`, 2 for
    an LSTM) and at most S through the state alone. State: the kept entries in at least float32, P k numbers if k are
    kept for a parameter; a call needs memory for about twice that and for `window` steps.
    Use it online where RTRL doesn't fit and a unit matters most to itself, or where weights are sparse. Avoid it
    where influence takes detours through other units: the bias has no bound.

    Args:
        system: what is unrolled. Its fixed arrays count as any numbers; a 0 that shall drop entries must be in the code.
        window: steps of a call (K); larger values have less bias and cost more memory.
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        order: steps within which a kept influence works (n); larger values have less bias and keep more.
        x: an example of what a step sees, as `init` sees no data; its shapes count, not its values. `None` if steps see
            none. What data choose by an index is kept along the first axis of params.

    Raises:
        InvalidArgument: a count is no positive whole number, horizon is no multiple of window, or whole numbers in the
            system are traced.
        StructureError: the data of a step are not like `x`.

    Example:
        >>> import unrollax as ux
        >>> cell = ux.RNNCell(inputs=3, hidden=5)
        >>> step = lambda p, s, x, k: (cell.step(p, s, x)[0], (s**2).mean())
        >>> snap = ux.SnAp(ux.system(init=lambda k, p: cell.init(p), step=step), window=2, x=jnp.zeros(3))
        >>> state = snap.init(jax.random.key(0), cell.params(jax.random.key(1)))
        >>> [entries.shape for entries in state.influence]  # 5 units, one row each, 3 + 5 + 1 params
        [(5, 1, 9)]

    References: Menick et al., ICLR 2021. Deviations: a window is differentiated exactly; a step's loss is read before the
    mask is applied, as a step gives its state and its loss at once; and the influence through `init` is kept.
    """

    system: System
    window: int = static()
    horizon: int | None = static(default=None)
    order: int = static(default=1)
    x: Any = None

    traits: ClassVar[Traits] = Traits(target="truncated", needs="vjp")

    def __post_init__(self) -> None:
        check_window("SnAp", self.window, self.horizon)
        check_counts("SnAp", order=self.order)
        object.__setattr__(self, "system", as_system("SnAp", self.system))

    def _layout(self, params: Params) -> Layout:
        try:
            return layout_of(pattern_of("SnAp", self.system, params, self.x), self.order)
        except Exception as error:
            if self.x is None:
                error.add_note("SnAp: if the step reads data, give an example of one step: SnAp(..., x=example).")
            raise

    def _nothing(self, params: Params, inner: State) -> Influence:
        dtype = numbers(params).dtype
        return [jnp.zeros((*b.rows.shape, b.columns.shape[1]), dtype) for b in self._layout(params).blocks]

    def _restart(self, params: Params, start: Key, draw: Key) -> tuple[Influence, State]:
        def begin(params: Params) -> tuple[jax.Array, State]:
            inner = strong(self.system.init(start, params))
            return numbers(inner), inner

        layout = self._layout(params)
        vector, pull, inner = jax.vjp(begin, params, has_aux=True)
        if not len(layout.start.cotangents):
            return self._nothing(params, inner), inner
        pulled = _pulled(lambda row: numbers(pull(row)[0]), layout.start, vector)
        return [immediate(pulled, layout.start, block, block.start) for block in layout.blocks], inner

    def _advance(
        self, params: Params, influence: Influence, inner: State, data: Data, run: Key, draw: Key
    ) -> tuple[Scalar, Params, Influence, State]:
        layout = self._layout(params)

        def step(params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
            self._check_row(x)
            inner, old = state
            after, new = self._step(layout, params, inner, old, x, key)
            return (after, new), jnp.zeros(())

        window = flat("SnAp", self.system, inner, data, run, self.window)
        (loss, end), pull, after = jax.vjp(window, params, numbers(inner), has_aux=True)
        direct, slope = pull((jnp.ones_like(loss), jnp.zeros_like(end)))
        grad = jax.tree.map(jnp.add, direct, with_numbers(params, dot(slope, layout, influence)))
        carried = FunctionSystem(init=self.system.init, step=step)
        (_, influence), _ = unroll_for("SnAp", carried, params, (inner, influence), data, run, self.window)
        return loss, grad, influence, after

    def _step(
        self, layout: Layout, params: Params, inner: State, old: Influence, x: Any, key: Key
    ) -> tuple[State, Influence]:
        """Advance the state and the kept entries of its influence by one step."""

        def move(params: Params, vector: jax.Array) -> tuple[jax.Array, State]:
            after = strong(self.system.step(params, with_numbers(inner, vector), x, key)[0])
            return numbers(after), after

        vector = numbers(inner)
        _, by_params, after = jax.vjp(lambda params: move(params, vector), params, has_aux=True)
        _, by_state, _ = jax.vjp(lambda vector: move(params, vector), vector, has_aux=True)
        rows = _pulled(lambda row: numbers(by_params(row)[0]), layout.step, vector)
        state = _pulled(lambda row: by_state(row)[0], layout.state, vector)
        return after, [
            through(state, layout.state, block, entries)
            + immediate(rows, layout.step, block, block.step).astype(entries.dtype)
            for block, entries in zip(layout.blocks, old, strict=True)
        ]

    def _check_row(self, x: Any) -> None:
        given, seen = (jax.tree.map(lambda leaf: describe(leaf).partition("[")[2], tree) for tree in (self.x, x))
        if given != seen:
            raise StructureError(
                f"SnAp: x must be like what a step sees, {jax.tree.map(describe, x)}, got "
                f"{jax.tree.map(describe, self.x)}. Give an example of one step, without the time axis."
            )


def _pulled(pull: Any, colours: Colours, like: jax.Array) -> jax.Array:
    """Pull back one cotangent for each colour."""
    return jax.vmap(pull)(jnp.asarray(colours.cotangents, like.dtype))
