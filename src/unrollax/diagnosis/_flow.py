"""Where the gradient of each loss comes from, step by step: `gradient_flow`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_counts, check_key, check_params
from unrollax._errors import InvalidArgument, StructureError
from unrollax._system import as_system, rows_of, steps_of
from unrollax._tree import leaves_with_names
from unrollax._types import Data, Key, Params, System
from unrollax.diagnosis._decay import decay_of
from unrollax.diagnosis._flows import Flow, StateFlow
from unrollax.diagnosis._forward import Path, follow
from unrollax.diagnosis._table import Cuts, Norms, cut_back, norms_back

MANY = 512  # losses that are all looked at unless told otherwise; of more, SOME
SOME = 128
TOGETHER = 64  # losses to one backward pass: more waste time before the first of them, fewer repeat the steps' work
LENGTHS = 12  # truncation windows at most
LOG2 = math.log(2)


def gradient_flow(
    system: System,
    params: Params,
    data: Data = None,
    *,
    key: Key,
    horizon: int | None = None,
    at: Sequence[int] | None = None,
    windows: Sequence[int] | None = None,
    observe: Callable[[str], None] | None = None,
) -> Flow:
    """Measure how much each step of an unroll gives to the gradient of each loss.

    With params_s the parameters as used at step s, the gradient of one loss is a sum over the steps before it,

        d loss_t / d params = sum over s <= t of d loss_t / d params_s   (and what comes through init).

    The table of these parts' norms shows where the gradient vanishes or explodes. All losses go through one backward pass
    together, 64 at a time. They are held near 1 with a power of two beside each, so that the table also shows what
    backpropagation would lose to underflow. A part's sum is checked against backpropagation.

    Cost: n / 64 passes that pull 64 cotangents through T steps, and one with a cotangent for each window; memory for the T
    states, n T norms a leaf, and the params once for each window. Step norms of one example need no gradient of the
    weights; a batch needs their products.

    Args:
        system: any system; its params, state and data as for `unroll`. A `batched` one has the loss of the batch's mean.
        params: where the gradient is taken.
        data: leaves `[T, ...]`, `repeat(x)` leaves, or `None`.
        key: split into that of `init` and that of the steps, as `start, run = jax.random.split(key)`.
        horizon: T, where no data leaf has a time axis.
        at: the losses, by their steps t; all up to 512 steps, else 128 spread evenly, the last among them.
        windows: lengths whose truncation error is measured; unless told otherwise divisors of T, and powers of two where it
            has few. `()` for none.
        observe: called with a line of progress after each backward pass.

    Raises:
        InvalidArgument: horizon is missing, a loss or window is out of range, or key is no key.
        StructureError: data or params don't fit the system.

    Example:
        >>> import unrollax as ux
        >>> leak = ux.system(init=lambda k, p: jnp.zeros(()), step=lambda p, s, x, k: (p * s + x, p * s + x))
        >>> flow = ux.gradient_flow(leak, 0.5, jnp.ones(40), key=jax.random.key(0))
        >>> flow.table.shape, round(float(np.exp(flow.state_decay.rate)), 6)  # the derivative of the state is p
        ((40, 40), 0.5)

    References: Hochreiter, Bengio, Frasconi and Schmidhuber, 2001, Gradient Flow in Recurrent Nets; Pascanu, Mikolov and
    Bengio, ICML 2013.
    """
    system, params, path = _path("gradient_flow", system, params, data, key, horizon)
    chosen, lengths = _losses("gradient_flow", path, at), _windows(path, windows)
    parts = [norms_back(system, params, path, some) for some in _chunks(chosen, "gradient_flow", observe)]
    cuts = cut_back(system, params, path, *_cuts(len(path.losses), lengths, chosen))
    (norms, starts), cuts = jax.device_get((tuple(zip(*parts, strict=True)), cuts))
    by_leaf = _Scaled.of([part.leaves for part in norms], [part.powers for part in norms], len(chosen))
    started = _Scaled.of([part.leaves[None] for part in starts], [part.powers[None] for part in starts], len(chosen))
    states = _states(norms, len(chosen))
    _assert_sums(norms, cuts, len(chosen), states.norms())
    return Flow(
        at=chosen,
        losses=np.asarray(path.losses)[chosen],
        table=by_leaf.norms(),
        leaves={name: by_leaf.leaf(i).norms() for i, (name, _) in enumerate(leaves_with_names(params))},
        state=states.norms(),
        start=started.norms()[:, 0],
        grad=jax.tree.unflatten(jax.tree.structure(params), [leaf[0] for leaf in cuts.grads]),
        windows=np.asarray(lengths, int),
        lost=_lost([np.asarray(leaf, np.float64)[: 1 + len(lengths)] for leaf in cuts.grads]),
        decay=decay_of(by_leaf.logs(), chosen, path.losses.dtype),
        state_decay=decay_of(states.logs(), chosen, path.losses.dtype),
    )


def state_flow(
    system: System,
    params: Params,
    data: Data = None,
    *,
    key: Key,
    horizon: int | None = None,
    at: Sequence[int] | None = None,
    observe: Callable[[str], None] | None = None,
) -> StateFlow:
    """Measure how much each loss depends on each state: the cheaper part of `gradient_flow`.

    Takes what `gradient_flow` takes, and needs no gradient with respect to params.

    Example:
        >>> import unrollax as ux
        >>> leak = ux.system(init=lambda k, p: jnp.zeros(()), step=lambda p, s, x, k: (p * s + x, p * s + x))
        >>> flow = ux.state_flow(leak, 0.5, jnp.ones(4), key=jax.random.key(0), at=[3])
        >>> flow.state
        array([[0.0625, 0.125 , 0.25  , 0.5   ]])
    """
    system, params, path = _path("state_flow", system, params, data, key, horizon)
    chosen = _losses("state_flow", path, at)
    parts = [
        norms_back(system, params, path, some, by_params=False)[0] for some in _chunks(chosen, "state_flow", observe)
    ]
    states = _states(jax.device_get(parts), len(chosen))
    decay = decay_of(states.logs(), chosen, path.losses.dtype)
    return StateFlow(chosen, np.asarray(path.losses)[chosen], states.norms(), decay)


def has_floats(system: System, params: Params, key: Key) -> bool:
    """Whether a system's state holds floating numbers, through which a gradient can flow."""
    state = jax.eval_shape(system.init, key, params)
    return any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(state))


def _path(
    owner: str, system: System, params: Params, data: Data, key: Key, horizon: int | None
) -> tuple[System, Params, Path]:
    system, params, key = as_system(owner, system), check_params(owner, params), check_key(owner, key)
    if horizon is not None:
        check_counts(owner, horizon=horizon)
    elif not any(np.ndim(leaf) for leaf in jax.tree.leaves(data)):
        raise InvalidArgument(f"{owner}: no data leaf has a time axis to take the horizon from. Pass horizon=.")
    steps = steps_of(owner, data, horizon)
    return system, params, follow(system, params, rows_of(owner, data, steps), key, steps)


def _losses(owner: str, path: Path, at: Sequence[int] | None) -> np.ndarray:
    steps = len(path.losses)
    if at is None:
        return np.arange(steps) if steps <= MANY else np.unique(np.linspace(0, steps - 1, SOME).astype(int))
    chosen = np.unique(np.asarray(at))
    if not chosen.size or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= steps:
        raise InvalidArgument(f"{owner}: at must be steps from 0 to {steps - 1}, got {at!r}. Leave it out for all.")
    return chosen


def _windows(path: Path, windows: Sequence[int] | None) -> Sequence[int]:
    """Return lengths of windows below T, ascending, at most 12."""
    steps = len(path.losses)
    if windows is not None:
        check_counts("gradient_flow", **{f"windows[{i}]": window for i, window in enumerate(windows)})
        return sorted({int(window) for window in windows})
    lengths = [size for size in range(1, steps) if steps % size == 0]
    if not lengths or 4 * lengths[-1] < steps or len(lengths) < LENGTHS / 3:  # a prime, or nearly one
        lengths = sorted({*lengths, *(2**i for i in range((steps - 1).bit_length()))})
    places = np.linspace(0, len(lengths) - 1, min(LENGTHS, len(lengths))).round().astype(int)
    return [lengths[i] for i in places]


def _cuts(steps: int, lengths: Sequence[int], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and windows: of the mean loss, whole and in each length, and last of the chosen losses, whole."""
    weights = np.full((2 + len(lengths), steps), 1 / steps)
    weights[-1] = np.isin(np.arange(steps), chosen) / len(chosen)
    return weights, _int32([steps, *lengths, steps])


def _chunks(at: np.ndarray, owner: str, observe: Callable[[str], None] | None) -> Any:
    """Yield the losses a few at a time, from the first; the last few are filled up with none."""
    size = min(TOGETHER, len(at))
    for begin in range(0, len(at), size):
        if observe is not None:
            observe(f"{owner}: {begin} of {len(at)} losses")
        some = at[begin : begin + size]
        yield _int32(np.concatenate([some, np.full(size - len(some), -1)]))


def _int32(numbers: Any) -> np.ndarray:
    return np.asarray(numbers, np.int32)


class _Scaled(NamedTuple):
    """Norms by leaf `[n, T, leaves]` in float64, to be multiplied by 2 to the power of `powers` `[n, T]`."""

    parts: np.ndarray
    powers: np.ndarray

    @classmethod
    def of(cls, norms: Sequence[np.ndarray], powers: Sequence[np.ndarray], count: int) -> _Scaled:
        """Put together what the backward passes gave, `[T, B, leaves]` and `[T, B]`."""
        parts = np.concatenate([part.astype(np.float64) for part in norms], 1)
        return cls(parts.swapaxes(0, 1)[:count], np.concatenate(powers, 1).T[:count])

    def leaf(self, index: int) -> _Scaled:
        return _Scaled(self.parts[..., index : index + 1], self.powers)

    def norms(self) -> np.ndarray:
        return np.ldexp(np.linalg.norm(self.parts, axis=-1), self.powers)

    def logs(self) -> np.ndarray:
        """Return natural logarithms, also of norms that no float64 holds."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.linalg.norm(self.parts, axis=-1)) + LOG2 * self.powers)


def _states(norms: Sequence[Any], count: int) -> _Scaled:
    return _Scaled.of([part.states[..., None] for part in norms], [part.powers for part in norms], count)


def _assert_sums(norms: Sequence[Norms], cuts: Cuts, count: int, states: np.ndarray) -> None:
    """Raise unless the losses' cotangents add up to that of backpropagation, as far as rounding allows."""
    scale, info = states.sum(0), cast(Any, jnp.finfo)
    for i, whole in enumerate(cuts.sums):
        added = sum(_wide(part.sums[i]) for part in norms)
        error = np.abs(added - count * _wide(whole)).reshape(len(scale), -1).max(-1, initial=0)
        allowed = math.sqrt(float(info(whole.dtype).eps)) * scale
        bad = np.flatnonzero(np.isfinite(error) & np.isfinite(allowed) & (error > allowed))
        if bad.size:
            raise StructureError(
                f"gradient_flow: the derivative of step must be linear, got gradients of the single losses that don't add "
                f"up to the gradient at step {bad[0]}, by {error[bad[0]]:.2g}. Look for a custom_vjp in it."
            )


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _lost(grads: Sequence[np.ndarray]) -> np.ndarray:
    """Return the relative distance of each gradient but the first from the first."""
    flat = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in grads], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.linalg.norm(flat[1:] - flat[0], axis=1) / np.linalg.norm(flat[0]))
