"""Which parameters a fixed point depends on: `fixed_point_depends`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_counts, check_key, check_params
from unrollax._errors import InvalidArgument
from unrollax._system import as_system, checked_step, cut, rows_of, unroll_for
from unrollax._tree import is_inexact, leaves_with_names, strong
from unrollax._types import Data, Key, Params, System
from unrollax.systems import Unfold

OWNER = "fixed_point_depends"
SLACK = 100.0  # how many times what is left of the way an influence must be to count


class _Seen(NamedTuple):
    """What was measured at the last step, with norms over the floating numbers of the state, and by leaf of params."""

    left: Any  # |s' - s|
    size: Any  # |s'|
    influence: Any  # of |leaf| |v^T ds'/dleaf|, v of independent N(0, 1)
    direct: Any  # |dloss/dleaf|


def fixed_point_depends(
    system: System, params: Params, data: Data = None, *, key: Key, steps: int, tol: float = 1e-4
) -> dict[str, float]:
    """Check before `Implicit` is used that the fixed point depends on every parameter.

    `Implicit` differentiates the fixed point s* = step(s*, params), not the way to it. A step size changes the way alone:
    s' = s - eta grad f(s) has ds'/deta = -grad f(s*) = 0 there, whatever eta, so its gradient is rounding. Nothing can be
    raised inside a compiled program; this runs `steps` steps and looks at the derivative of the last one. A leaf counts
    unless |leaf| |v^T ds'/dleaf|, v of independent N(0, 1), is within 100 times what is left, |s' - s|, and rounding. A
    leaf that only the loss reads, such as a readout, is no fault: `Implicit` has its gradient without the fixed point.

    Args:
        system: what `Implicit` is to be used on. Of an `Unfold`, x is the state that counts.
        params: where it is to be used. Numbers of a schedule that the last iteration doesn't read are not judged.
        data: leaves `[steps, ...]`, `repeat(x)` leaves, or `None`.
        key: a PRNG key.
        steps: iterations, enough to settle.
        tol: |s' - s| / |s'| at most, for the state to count as settled.

    Returns:
        By path in params, |leaf| |v^T ds'/dleaf| / |s'|: about how much a step moves if the leaf is doubled. 0 for leaves
        that only the loss reads.

    Raises:
        InvalidArgument: the fixed point doesn't depend on a leaf, which is named; the steps don't settle; or the loss of an
            `Unfold` is `"final"`, which is 0 at every fixed point.

    Example:
        >>> import unrollax as ux
        >>> def step(params, x, data, key):  # of (x - 1)^2 + lam x^2
        ...     x = x - params["step"] * (2 * (x - 1) + 2 * params["lam"] * x)
        ...     return x, x**2
        >>> descent = ux.system(init=lambda key, params: jnp.zeros(()), step=step)
        >>> ux.fixed_point_depends(descent, {"step": 0.1, "lam": 1.0}, key=jax.random.key(0), steps=100)
        Traceback (most recent call last):
        unrollax._errors.InvalidArgument: fixed_point_depends: the fixed point must depend on every parameter, got none on \
['step']: the steps end at the same point whatever it is. Keep it constant, or train it with UnfoldBPTT, BPTT or PES.

    References: Krantz and Parks, The Implicit Function Theorem, 2002.
    """
    check_counts(OWNER, steps=steps)
    system, params, key = as_system(OWNER, system), check_params(OWNER, params), check_key(OWNER, key)
    if isinstance(system, Unfold) and system.loss == "final":
        raise InvalidArgument(
            f'{OWNER}: the loss of an Unfold must be that of an iteration, got loss="final", which is 0 at every fixed '
            'point. Take loss="anytime".'
        )
    seen = jax.device_get(_look(system, params, data, key, steps))
    residual = seen.left / (seen.size or 1)
    if not residual <= tol:
        raise InvalidArgument(
            f"{OWNER}: the steps must settle, got |s' - s| / |s'| = {residual:.2g} after {steps} steps. Take more steps, or "
            "params with which they converge."
        )
    eps = float(np.finfo(np.asarray(seen.size).dtype).eps)
    least = SLACK * (seen.left + eps * seen.size)
    found = {}
    for (name, moves), reads in zip(leaves_with_names(seen.influence), jax.tree.leaves(seen.direct), strict=True):
        if moves <= least and not (moves == 0 and reads > 0):
            raise InvalidArgument(
                f"{OWNER}: the fixed point must depend on every parameter, got none on {name}: the steps end at the same "
                "point whatever it is. Keep it constant, or train it with UnfoldBPTT, BPTT or PES."
            )
        found[name] = float(moves / (seen.size or 1))
    return found


def _look(system: System, params: Params, data: Data, key: Key, steps: int) -> _Seen:
    """Run all steps but the last, and differentiate that."""
    start, run, end, draw = jax.random.split(key, 4)
    state = strong(system.init(start, params))
    rows = rows_of(OWNER, data, steps)
    if steps > 1:
        state = jax.jit(
            lambda params, state: unroll_for(OWNER, system, params, state, cut(rows, 0, steps - 1), run, steps - 1)[0]
        )(params, state)
    x = jax.tree.map(lambda leaf: leaf[-1], rows)

    def last(params: Params) -> tuple[Any, jax.Array]:
        after, loss = checked_step(OWNER, system, params, state, x, end)
        return _floats(system, after), loss

    (there, loss), pull = jax.vjp(last, params)
    keys = jax.random.split(draw, max(len(there), 1))
    v = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, there, strict=False)]
    moves = pull((v, jnp.zeros_like(loss)))[0]
    reads = pull((jax.tree.map(jnp.zeros_like, there), jnp.ones_like(loss)))[0]
    left = [after - before for after, before in zip(there, _floats(system, state), strict=True)]
    influence = jax.tree.map(lambda leaf, move: (_norm([leaf]) + (~leaf.any())) * _norm([move]), params, moves)
    return _Seen(_norm(left), _norm(there), influence, jax.tree.map(lambda leaf: _norm([leaf]), reads))


def _floats(system: System, state: Any) -> list[jax.Array]:
    """Return the floating leaves of what has to settle."""
    return [leaf for leaf in jax.tree.leaves(state.x if isinstance(system, Unfold) else state) if is_inexact(leaf)]


def _norm(leaves: list[Any]) -> jax.Array:
    squares = [jnp.square(jnp.abs(leaf)).sum() for leaf in leaves]
    return jnp.sqrt(sum(squares, jnp.zeros(())))
