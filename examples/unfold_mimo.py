"""Overloaded MIMO: bits of 50 antennas at 32 receivers, by a projected gradient of ten trained iterations.

QPSK, y = H x + noise with a fresh channel H for each problem, turned to real numbers `[64, 100]`. The trainable projected
gradient (TPG) has a step and a temperature an iteration and one regulariser, 21 numbers, and is trained on the mean squared
error, at the signal-to-noise ratio that it is tested at. Figures are shares of wrong bits. The baseline is the linear
estimate of least mean squared error (LMMSE).

    .venv/bin/python examples/unfold_mimo.py [--quick] [--json] [--out FILE] [--only DB] [--golden]

The loss is the mean squared error itself. Few problems have nearly all of the error at 20 dB. The logarithm of a batch's
mean, which is best elsewhere, weighs batches without such a problem as much as those with one: from the same start, 600
updates of 50 problems ended at 5.8e-3 with it and at 4.3e-3 without. Test sets need to be large for the same reason: of
1,000 problems, figures at 20 dB differ by 0.6e-3 (one standard deviation).

All runs in float32. References: Takabe, Imanishi, Wadayama, Hayakawa and Hayashi, IEEE Access 2019.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import Claim, below, between
from _unfold import main

import unrollax as ux

DEPTH, UPDATES, RATE, BATCH, TESTS = 10, 800, 0.1, 64, 10  # of 1,000 problems each
LIMITS = {10: (0.146, 0.112), 15: (0.114, 0.021), 20: (0.100, 3.6e-3)}  # dB: of LMMSE, of TPG


def wrong(x: jax.Array, problem: Any) -> jax.Array:
    """Return the share of wrong bits."""
    return ux.solvers.bit_error_rate(x, problem.x).astype(x.dtype)


def linear(problems: Any, count: int) -> float:
    """Return the share of wrong bits of LMMSE."""

    def one(key: jax.Array) -> jax.Array:
        problem = problems.whole(problems.draw(key))
        return wrong(ux.solvers.lmmse(problem), problem)

    keys = jax.random.split(jax.random.key(99), count)
    return float(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))(keys).mean())


def part(snr_db: int, quick: bool) -> list[Claim]:
    """Train and test at one signal-to-noise ratio."""
    problems, method = ux.problems.mimo(snr_db=snr_db), ux.solvers.tpg()
    sets, size, updates = (1, 50, 4) if quick else (TESTS, 1000, UPDATES)
    net = ux.unfold(method, problems, horizon=DEPTH, batch=BATCH, scale="raw")
    theta = {"step": jnp.tile(jnp.array([1.3, 4.0]), DEPTH // 2), "temperature": 0.45}  # the optimum zigzags
    start = ux.per_step(theta, DEPTH, transform="log") | ux.shared({"alpha": 4.0}, transform="log")
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, updates))
    params = ux.fit_unfold(net, start, ux.one_shot(DEPTH, updates), optimizer, key=jax.random.key(snr_db)).params
    judge = jax.jit(dataclasses.replace(net, error=wrong, batch=size).errors)
    errors = np.mean([judge(params, jax.random.key(seed))[DEPTH] for seed in range(90, 90 + sets)])
    base, limit = LIMITS[snr_db]
    room = 0.02 + quick
    return [
        between(f"{snr_db} dB: LMMSE", base * (1 - room), base * (1 + room), linear(problems, sets * size)),
        below(f"{snr_db} dB: TPG, {DEPTH} iterations", limit, errors),
    ]


PARTS: dict[str, Callable[[bool], list[Claim]]] = {str(snr_db): functools.partial(part, snr_db) for snr_db in LIMITS}
CONFIG = {"depth": DEPTH, "updates": UPDATES, "rate": RATE, "batch": BATCH, "tests": TESTS}

if __name__ == "__main__":
    main(__file__, __doc__, PARTS, CONFIG)
