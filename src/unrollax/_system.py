"""Systems and `unroll`: the only code that knows about time inside a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from unrollax import _checkpointed
from unrollax._check import check_counts, check_key
from unrollax._checkpointed import Memory
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe, leaves_with_names, strong
from unrollax._types import Data, Key, Params, State, System, Whole
from unrollax._value import static, value


@value
class FunctionSystem:
    """A system made of two functions; see `system`."""

    init: Callable[..., State] = static()
    step: Callable[..., tuple[State, jax.Array]] = static()
    unroll: Whole | None = static(default=None, repr=False)


def system(
    *,
    init: Callable[[Key, Params], State],
    step: Callable[[Params, State, Any, Key], tuple[State, Any]],
    unroll: Whole | None = None,
) -> FunctionSystem:
    """Make a system from two functions, or three.

    Args:
        init: `init(key, params) -> state`, the state at time 0, a pytree.
        step: `step(params, state, x, key) -> (state, loss)`, with a state of the same structure, shapes and dtypes and a
            scalar floating loss. `x` is one step of the data.
        unroll: `unroll(params, state, data, keys) -> (state, losses)`, equal to as many steps as there are keys, for whoever
            can write a faster one; `BPTT` and `TBPTT` take it. Data and losses have leaves `[steps, ...]`; in a `batched`
            system all have the axes of the batch too, `[steps, *batch, ...]`, states `[*batch, ...]`.

    Example:
        >>> import unrollax as ux
        >>> def init(key, params):
        ...     return jax.numpy.ones(3)
        >>> def step(params, state, x, key):
        ...     state = params * state + x
        ...     return state, (state**2).mean()
        >>> decay = ux.system(init=init, step=step)
        >>> state, losses = ux.unroll(decay, 0.5, decay.init(None, 0.5), jax.numpy.zeros(4), jax.random.key(0))
        >>> losses.shape
        (4,)
    """
    return FunctionSystem(init=init, step=step, unroll=unroll)


def as_system(owner: str, candidate: Any) -> System:
    """Return `candidate` as a system that can be a field of a value: any object with `init` and `step` will do."""
    if candidate is None:  # no system, but how `vmap` is told to leave this field alone
        return cast(System, candidate)
    lacking = [name for name in ("init", "step") if not callable(getattr(candidate, name, None))]
    if lacking:
        raise InvalidArgument(
            f"{owner}: system must have init(key, params) and step(params, state, x, key), got "
            f"{type(candidate).__name__} without {' or '.join(lacking)}. Write one with unrollax.system(init=, step=)."
        )
    if not jax.tree_util.all_leaves([candidate]):
        return cast(System, candidate)
    # bound methods compare by identity
    return FunctionSystem(init=candidate.init, step=candidate.step, unroll=whole_form(candidate))


def whole_form(system: Any) -> Whole | None:
    """Return how a system runs whole windows at once, where it can."""
    found = getattr(system, "unroll", None)
    return found if callable(found) else None


@value
class Repeat:
    """Data that every step of a window sees whole; see `repeat`."""

    x: Any


def repeat(x: Any) -> Repeat:
    """Mark data without a time axis: each step of a window sees the same `x`.

    It may stand for the whole data or for any part of them, beside time-major leaves.

    Example:
        >>> import unrollax as ux
        >>> def step(params, state, x, key):
        ...     return state, params * x["a"] + x["b"]
        >>> add = ux.system(init=lambda key, params: (), step=step)
        >>> data = {"a": ux.repeat(10.0), "b": jax.numpy.arange(3.0)}
        >>> ux.unroll(add, 1.0, (), data, jax.random.key(0))[1]
        Array([10., 11., 12.], dtype=float32)
    """
    return Repeat(x)


def unroll(
    system: System, params: Params, state: State, data: Data, key: Key, *, steps: int | None = None
) -> tuple[State, jax.Array]:
    """Run a system through one window of data.

    Args:
        system: what to run.
        params: its parameters.
        state: the state to start from.
        data: leaves `[steps, ...]`, `repeat(x)` leaves, or `None`.
        key: every step gets a key of its own, split from this one.
        steps: the number of steps; needed when no data leaf has a time axis.

    Returns:
        The state after the window, and the step losses `[steps]`.

    Raises:
        StructureError: a data leaf whose first axis isn't `steps`, a step that changes the state's structure, shape or
            dtype, or a loss that is no floating scalar.

    Example:
        >>> import unrollax as ux
        >>> add = ux.system(init=lambda key, params: 0.0, step=lambda p, s, x, k: (s + x, p * (s + x)))
        >>> state, losses = ux.unroll(add, 10.0, 0.0, jax.numpy.arange(4.0), jax.random.key(0))
        >>> losses
        Array([ 0., 10., 30., 60.], dtype=float32)
    """
    if steps is not None:
        check_counts("unroll", steps=steps)
    return unroll_for("unroll", system, params, state, data, check_key("unroll", key), steps)


def unroll_for(
    owner: str,
    system: System,
    params: Params,
    state: State,
    data: Data,
    key: Key,
    steps: int | None,
    memory: Memory = "full",
    *,
    whole: bool = False,
) -> tuple[State, jax.Array]:
    """`unroll`, with errors that name `owner` and a backward pass within `memory`."""
    steps = steps_of(owner, data, steps)
    return unroll_keys(owner, system, params, state, data, jax.random.split(key, steps), memory, whole=whole)


def unroll_keys(
    owner: str,
    system: System,
    params: Params,
    state: State,
    data: Data,
    keys: Key,
    memory: Memory = "full",
    *,
    whole: bool = False,
) -> tuple[State, jax.Array]:
    """Run one step for each of the keys `[steps]`; if `whole`, by the system's own `unroll` where it has one."""
    leaves, treedef = jax.tree.flatten(data, is_leaf=is_repeat)
    moving = [None if is_repeat(leaf) else leaf for leaf in leaves]

    def body(params: Params, carry: State, now: tuple[list[Any], Key]) -> tuple[State, jax.Array]:
        row, step_key = now
        seen = [leaf.x if is_repeat(leaf) else part for leaf, part in zip(leaves, row, strict=True)]
        return checked_step(owner, system, params, carry, jax.tree.unflatten(treedef, seen), step_key)

    def at_once(params: Params, carry: State, rows: tuple[list[Any], Key]) -> tuple[State, jax.Array]:
        assert own is not None
        return checked_window(owner, own, params, carry, jax.tree.unflatten(treedef, rows[0]), rows[1])

    own = whole_form(system) if whole and not any(map(is_repeat, leaves)) else None
    if own is not None and memory != "full" and not getattr(system, "causal", True):
        raise InvalidArgument(
            f'{owner}: memory must be "full" for a system that reads ahead, got memory={memory!r}. A window can\'t be cut '
            "into pieces for it."
        )
    run = None if own is None else at_once
    return _checkpointed.scan(owner, body, params, strong(state), (moving, keys), len(keys), memory, run)


def checked_step(owner: str, system: System, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
    """Run one step; raise unless it returns a state like the one that it was given, and a scalar loss."""
    after, loss = _check_returned(owner, "step", "loss", state, system.step(params, state, x, key))
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise StructureError(
            f"{owner}: step must return a floating scalar loss, got {describe(loss)}. Reduce it, for example with .mean()."
        )
    return after, jnp.asarray(loss)


def checked_window(
    owner: str, own: Whole, params: Params, state: State, data: Data, keys: Key
) -> tuple[State, jax.Array]:
    """Run a window by a system's own `unroll`; raise unless it returns a state like its first, and a loss for each step."""
    after, losses = _check_returned(owner, "unroll", "losses", state, own(params, state, data, keys))
    if jnp.shape(losses) != keys.shape or not jnp.issubdtype(jnp.result_type(losses), jnp.floating):
        raise StructureError(
            f"{owner}: unroll must return a floating loss for each of the {len(keys)} steps, got {describe(losses)}. Don't "
            "reduce them over time."
        )
    return after, jnp.asarray(losses)


def rows_of(owner: str, data: Data, steps: int) -> Any:
    """Return what each step of a window sees, as leaves `[steps, ...]`: `repeat(x)` is broadcast."""
    steps_of(owner, data, steps)

    def spread(leaf: Any) -> Any:
        if not is_repeat(leaf):
            return jnp.asarray(leaf)
        return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (steps, *jnp.shape(x))), leaf.x)

    return jax.tree.map(spread, data, is_leaf=is_repeat)


def cut(data: Data, begin: int, end: int) -> Data:
    """Return some steps of data."""
    return jax.tree.map(lambda leaf: leaf if is_repeat(leaf) else leaf[begin:end], data, is_leaf=is_repeat)


def _kind(returned: Any) -> str:
    """Say what a step returned that is no pair."""
    if isinstance(returned, tuple):
        return f"{len(returned)} parts"
    return describe(returned) if jax.tree_util.all_leaves([returned]) else type(returned).__name__


def is_repeat(leaf: Any) -> bool:
    """Whether every step sees a leaf of the data whole."""
    return isinstance(leaf, Repeat)


def steps_of(owner: str, data: Data, steps: int | None) -> int:
    """Return the number of steps that data have; raise unless all their leaves have as many, and as `steps` says."""
    named = [(name, leaf) for name, leaf in leaves_with_names(data, is_leaf=is_repeat) if not is_repeat(leaf)]
    if steps is None:
        lengths = [jnp.shape(leaf)[0] for _, leaf in named if jnp.ndim(leaf)]
        if not lengths:
            raise InvalidArgument(
                f"{owner}: no data leaf has a time axis to take the number of steps from. Pass steps=."
            )
        steps = lengths[0]
    for name, leaf in named:
        if jnp.shape(leaf)[:1] != (steps,):
            raise StructureError(
                f"{owner}: data leaf {name} must be time-major with {steps} steps on its first axis, got {describe(leaf)}. "
                "Cut the data to the window, or pass repeat(x) for data that every step sees."
            )
    return steps


def _check_returned(owner: str, name: str, second: str, before: State, returned: Any) -> tuple[State, Any]:
    """Return the state, without weak types, and what came with it, from what `step` or `unroll` returned."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise StructureError(f"{owner}: {name} must return (state, {second}), got {_kind(returned)}. Return both.")
    after = strong(returned[0])
    given, got = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if given != got:
        raise StructureError(
            f"{owner}: {name} must return a state with the structure that init gave, {given}, got {got}. "
            f"Return every part of the state from {name}."
        )
    for (path, old), new in zip(leaves_with_names(before), jax.tree.leaves(after), strict=True):
        if jnp.shape(old) != jnp.shape(new) or old.dtype != new.dtype:
            raise StructureError(
                f"{owner}: {name} must keep each state leaf's shape and dtype, {path} was {describe(old)}, got "
                f"{describe(new)}. Start it in init as {describe(new)}, or cast it back in {name}."
            )
    return after, returned[1]
