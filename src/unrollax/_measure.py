"""What advice predicts, measured with the advice applied."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax import _checkpointed
from unrollax._advise import Case
from unrollax._system import checked_step, cut, rows_of, unroll_keys
from unrollax._tree import ravel, strong
from unrollax._types import Params, State
from unrollax._wrap import clip_loss
from unrollax.diagnosis import Gates, gate_statistics, lyapunov
from unrollax.estimators import BPTT

DRAWS = 16  # gradients near the params
NEAR = 0.01  # how near, relative to the params' norm
FINEST = 40  # halvings of a distance


def mean_loss(case: Case, params: Params, window: int | None = None, key: Any = None) -> jax.Array:
    """Return the mean step loss of a case; if a window is given, no derivative crosses from one to the next."""
    start, run = jax.random.split(case.key if key is None else key)
    state, keys = strong(case.system.init(start, params)), jax.random.split(run, case.horizon)
    window, losses = window or case.horizon, list[jax.Array]()
    for begin in range(0, case.horizon, window):
        end = min(begin + window, case.horizon)
        part = unroll_keys(
            "diagnose", case.system, params, state, cut(case.data, begin, end), keys[begin:end], whole=True
        )
        state, losses = jax.lax.stop_gradient(part[0]), [*losses, part[1]]
    return jnp.concatenate(losses).mean()


def truncated_grad(case: Case, window: int) -> float:
    """Return the relative error of a gradient that crosses no window."""
    cut_short, whole = (
        ravel(jax.jit(jax.grad(lambda params, w=size: mean_loss(case, params, w)))(case.params))[0]
        for size in (window, None)
    )
    return float(jnp.linalg.norm(cut_short - whole) / jnp.linalg.norm(whole))


def radius(case: Case, largest: float) -> float:
    """Return the distance along the gradient up to which it predicts the loss' change to a factor of two.

    If there is none, the shortest that was tried.
    """
    vector, unravel = ravel(case.params)
    loss = jax.jit(lambda vector: mean_loss(case, unravel(vector)))
    grad = jax.grad(lambda vector: mean_loss(case, unravel(vector)))(vector)
    norm = float(jnp.linalg.norm(grad))
    for size in largest * 0.5 ** np.arange(FINEST):
        step = size * grad / norm
        rise = float(loss(vector + step) - loss(vector - step)) / (2 * size)
        if 0.5 * norm <= rise <= 2 * norm:
            break
    return float(size)


def growth_over(case: Case, horizon: int) -> float:
    """Return what the fastest direction grows by over fewer steps, in nats."""
    data = cut(case.data, 0, horizon)
    found = lyapunov(case.system, case.params, data, key=case.key, steps=horizon, exponents=1)
    return horizon * float(found.exponents[0])


def gate_shift(case: Case, gates: Gates) -> tuple[float, float]:
    """Return what to add to the bias of the gate that keeps, for it to keep over the horizon, and its mean logarithm then."""
    logits = _logit(np.clip(gates.gates[gates.keep].units, 1e-6, 1 - 1e-6))
    aim = -2 / case.horizon

    def rate(shift: float) -> float:
        return float(-np.logaddexp(0, -(logits + shift)).mean())

    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < aim else (low, middle)
    return high, rate(high)


def shifted_gates(case: Case, shift: float) -> float:
    """Return the decay of the memory, recurrent weights and all, with the bias of the gate that keeps it raised."""
    cell = dict(case.params["cell"])
    hidden = cell["wh"].shape[0]
    cell["b"] = cell["b"].at[hidden : 2 * hidden].add(shift)  # f of an LSTM, z of a GRU
    return gate_statistics(case.system, {**case.params, "cell": cell}, case.data, key=case.key).measured


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def backward_needs(case: Case) -> tuple[int, int]:
    """Return the bytes that a backward pass holds by the count of what steps keep: of a plain one, and with `"sqrt"`."""
    rows = (rows_of("diagnose", case.data, case.horizon), jax.random.split(case.key, case.horizon))
    state = strong(case.system.init(case.key, case.params))

    def step(params: Params, state: State, row: Any) -> tuple[State, jax.Array]:
        return checked_step("diagnose", case.system, params, state, *row)

    sizes = _checkpointed.sizes_of(step, case.params, state, rows)
    inner = _checkpointed.inner_lengths("diagnose", "sqrt", case.horizon, lambda: sizes)
    return _checkpointed.need(case.horizon, (), sizes), _checkpointed.need(case.horizon, inner, sizes)


def backward_bytes(case: Case) -> float:
    """Return the temporary bytes of the compiled gradient with `memory="sqrt"`."""
    bptt = BPTT(case.system, horizon=case.horizon, memory="sqrt")
    state = bptt.init(case.key, case.params)
    compiled = jax.jit(bptt.estimate).lower(case.params, state, case.data).compile()
    analysis: Any = compiled.memory_analysis()
    return float(analysis.temp_size_in_bytes)


def gradient_norms(case: Case, key: Any) -> np.ndarray:
    """Return the norms of some gradients at params near those of the case."""
    vector, unravel = ravel(case.params)
    width = NEAR * float(jnp.linalg.norm(vector)) / math.sqrt(vector.size)

    def norm(key: Any) -> jax.Array:
        noise, run = jax.random.split(key)
        near = vector + width * jax.random.normal(noise, vector.shape, vector.dtype)
        return jnp.linalg.norm(jax.grad(lambda v: mean_loss(case, unravel(v), key=run))(near))

    return np.asarray(jax.jit(lambda keys: jax.lax.map(norm, keys))(jax.random.split(key, DRAWS)))


def clipped_loss(case: Case, at: float) -> float:
    """Return the mean loss with the step losses bounded."""
    return float(mean_loss(case._replace(system=clip_loss(case.system, at=at)), case.params))
