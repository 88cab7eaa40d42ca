"""Real-time recurrent learning: the whole influence of the parameters on the state, carried exactly."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from unrollax._check import check_choice, check_window
from unrollax._system import as_system
from unrollax._tree import strong
from unrollax._types import Cost, Data, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._influence import Influence, Online, first, flat, numbers, wide, with_numbers

FORWARD = "mode == 'forward' or (mode == 'auto' and params <= states)"


@value
class RTRL(Online):
    """Real-time recurrent learning: the exact gradient, online, with memory that no horizon makes longer.

    The influence J = d state / d params is carried from window to window. With D and I the derivatives of the state after a
    window by the state before it and by the params, and `lambda` and `direct` those of the mean step loss,

        grad = direct + lambda J,    J' = D J + I;    at a reset J = d init / d params.

    `mode="forward"` pushes the tangent of each of the P numbers in params through the window. `mode="reverse"` pulls the loss
    and each of the S floating numbers of the state back through it, and pays one product `[S, S] @ [S, P]` a window,
    however long that is. `mode="auto"` does the first if P <= S.

    Target: exact. Needs `vjp`, or `jvp` in forward mode. Cost of a call: `window` steps forward, with P tangents, or with
    S + 1 cotangents and the product. State: S P numbers, in at least float32; a call needs about three times that in
    reverse, P P numbers more in forward mode. Where the updates change params inside a horizon, J mixes
    derivatives at all of them.
    Use it on long or endless streams with a small state. Avoid it beyond some hundred states: memory grows with S P and
    time with S S P / window a step; `UORO` and `SnAp` are cheaper. For a batch average over one RTRL for each example,
    as in `batched(system, n)` S counts all examples.

    Args:
        system: what is unrolled.
        window: steps of a call (K); larger values cost memory for the steps of a window and make reverse mode cheaper.
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        mode: how the influence is advanced: `"auto"`, `"forward"` or `"reverse"`. The result is the same.

    Raises:
        InvalidArgument: window is no positive whole number, horizon is no multiple of it, or mode is none of the three.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> rtrl = ux.RTRL(decay, window=1, horizon=2)
        >>> state = rtrl.init(jax.random.key(0), 0.5)
        >>> for _ in range(2):
        ...     state, estimate = rtrl.estimate(0.5, state, None)
        ...     print(estimate.grad)  # of p, and of p^2
        1.0
        1.0

    References: Williams and Zipser, Neural Computation 1989. Reverse mode: Schmidhuber, Neural Computation 1992.
    """

    system: System
    window: int = static()
    horizon: int | None = static(default=None)
    mode: Literal["auto", "forward", "reverse"] = static(default="auto")

    traits: ClassVar[Traits] = Traits(
        target="exact",
        needs="vjp",
        cost=Cost(forward="1", jvp=f"params if {FORWARD} else 0", vjp=f"0 if {FORWARD} else states + 1"),
    )

    def __post_init__(self) -> None:
        check_window("RTRL", self.window, self.horizon)
        check_choice("RTRL", "mode", self.mode, ("auto", "forward", "reverse"))
        object.__setattr__(self, "system", as_system("RTRL", self.system))

    def _nothing(self, params: Params, inner: State) -> Influence:
        states = numbers(inner).size
        return jax.tree.map(lambda p: jnp.zeros((states, *p.shape), wide(p)), params)

    def _restart(self, params: Params, start: Key, draw: Key) -> tuple[Influence, State]:
        def begin(params: Params) -> tuple[jax.Array, State]:
            inner = strong(self.system.init(start, params))
            return numbers(inner), inner

        if self._forward(params, jax.eval_shape(begin, params)[0]):

            def push(along: Params) -> Any:
                return jax.jvp(begin, (params,), (along,), has_aux=True)

            _, columns, inner = jax.vmap(push, out_axes=(0, 1, 0))(_units(params))
            return _blocks(columns, params), first(inner)
        vector, pull, inner = jax.vjp(begin, params, has_aux=True)
        (rows,) = jax.vmap(pull)(jnp.eye(vector.size, dtype=vector.dtype))
        return jax.tree.map(lambda row, p: row.astype(wide(p)), rows, params), inner

    def _advance(
        self, params: Params, influence: Influence, inner: State, data: Data, run: Key, draw: Key
    ) -> tuple[Scalar, Params, Influence, State]:
        window = flat("RTRL", self.system, inner, data, run, self.window)
        vector = numbers(inner)
        if self._forward(params, vector):
            blocks = [rows.reshape(len(rows), math.prod(rows.shape[1:])) for rows in jax.tree.leaves(influence)]
            columns = jnp.concatenate(blocks, axis=1)

            def push(along: Params, column: jax.Array) -> Any:
                return jax.jvp(window, (params, vector), (along, column.astype(vector.dtype)), has_aux=True)

            pushed = jax.vmap(push, in_axes=(0, 1), out_axes=(0, (0, 1), 0))
            (losses, _), (slopes, columns), after = pushed(_units(params), columns)
            return losses[0], with_numbers(params, slopes), _blocks(columns, params), first(after)
        (loss, _), pull, after = jax.vjp(window, params, vector, has_aux=True)
        rows = jnp.eye(1 + vector.size, dtype=vector.dtype)
        direct, back = jax.vmap(lambda row: pull((row[0].astype(loss.dtype), row[1:])))(rows)

        def chain(direct: jax.Array, old: jax.Array) -> tuple[jax.Array, jax.Array]:
            through = back.astype(old.dtype)
            grad = direct[0] + jnp.tensordot(through[0], old, 1).astype(direct.dtype)
            return grad, direct[1:].astype(old.dtype) + jnp.tensordot(through[1:], old, 1)

        both = jax.tree.map(chain, direct, influence)
        grad, new = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), both)
        return loss, grad, new, after

    def _forward(self, params: Params, vector: Any) -> bool:
        if self.mode == "auto":
            return sum(leaf.size for leaf in jax.tree.leaves(params)) <= vector.size
        return self.mode == "forward"


def _units(params: Params) -> Params:
    """Return a unit tangent for each number in params, `[params, ...]`."""
    size = numbers(params).size
    return jax.vmap(lambda row: with_numbers(params, row))(jnp.eye(size, dtype=jnp.float32))


def _blocks(columns: jax.Array, params: Params) -> Influence:
    """Cut `[states, params]` into a block `[states, ...]` for each leaf of params."""
    leaves, treedef = jax.tree.flatten(params)
    blocks, at = [], 0
    for leaf in leaves:
        block = columns[:, at : at + leaf.size].reshape(len(columns), *leaf.shape)
        blocks.append(block.astype(wide(leaf)))
        at += leaf.size
    return jax.tree.unflatten(treedef, blocks)
