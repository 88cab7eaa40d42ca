"""Whether a system has the derivatives that a diagnosis needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument
from unrollax._system import rows_of, steps_of
from unrollax._tree import is_inexact
from unrollax._types import Data, Key, Params, System


def check_modes(system: System, params: Params, data: Data, key: Key, horizon: int | None) -> bool:
    """Raise unless a step can be differentiated backwards, and return whether it can forwards. Nothing is computed.

    What can't be traced at all is left to `gradient_flow`, which says why.
    """
    try:
        state = jax.eval_shape(system.init, key, params)
        steps = steps_of("diagnose", data, horizon)
        row = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], rows_of("diagnose", data, steps)))
        jax.eval_shape(system.step, params, state, row, key)
    except Exception:
        return True
    fault = _fault(_pulled, system, params, state, row, key)
    if fault is not None:
        raise InvalidArgument(
            f"diagnose: step must have a derivative, got one that JAX can't differentiate backwards ({fault}). Measure with "
            "unrollax.compare what es, pes and nres do on it: they need none."
        )
    return _fault(_pushed, system, params, state, row, key) is None


def _pulled(function: Callable[..., Any], at: tuple[Any, ...]) -> Any:
    total, back = jax.vjp(function, *at)
    return back(jnp.ones_like(total))


def _pushed(function: Callable[..., Any], at: tuple[Any, ...]) -> Any:
    """Push a few tangents, as `lyapunov` does: JAX tells of a `custom_vjp` only then."""
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), at)
    return jax.vmap(lambda tangents: jax.jvp(function, at, tangents)[1])(several)


def _fault(mode: Callable[..., Any], system: System, params: Params, state: Any, row: Any, key: Key) -> str | None:
    """Return what JAX says against differentiating init and a step in one of its modes; `None` if it does."""
    leaves, treedef = jax.tree.flatten(state)

    def run(floats: list[Any], others: list[Any], params: Params, row: Any, key: Key) -> Any:
        def total(params: Params, floats: list[Any]) -> Any:
            rest, moving = iter(others), iter(floats)
            now = jax.tree.unflatten(treedef, [next(moving if _floats(leaf) else rest) for leaf in leaves])
            after, loss = system.step(params, now, row, key)
            parts = jax.tree.leaves((after, system.init(key, params)))
            return sum((jnp.real(part).sum() for part in parts if is_inexact(part)), loss)

        return mode(total, (params, floats))

    floats = [leaf for leaf in leaves if _floats(leaf)]
    others = [leaf for leaf in leaves if not _floats(leaf)]
    try:
        jax.eval_shape(run, floats, others, params, row, key)
    except (TypeError, ValueError, NotImplementedError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return None


def _floats(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))
