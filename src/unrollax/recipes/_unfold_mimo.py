"""An unfolding that detects QPSK symbols."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from unrollax import problems, solvers
from unrollax._unfolded import Unfolding
from unrollax._unfolding import unfold
from unrollax.recipes._unfold_common import adam, key_of, plan_of, schedules
from unrollax.recipes._unfold_options import Mimo, Settings

PROBLEMS = 2000  # that the baseline is measured on
KEY = 17


def build(options: Mimo, seed: int, settings: Settings) -> Unfolding:
    """Return the unfolding of a trainable projected gradient detector."""
    source = problems.mimo(options.transmit, options.receive, options.snr)
    algorithm = solvers.tpg()
    # A few problems have nearly all of the error, which the logarithm of the mean follows less than the mean does.
    net = unfold(algorithm, source, horizon=settings.depth, batch=settings.batch, loss=settings.loss, scale="raw")
    params = schedules(algorithm.params(source.noise), settings, key_of(seed))
    rate = _rate_of_lmmse(options.transmit, options.receive, options.snr)
    known = {"LMMSE": np.full(settings.depth + 1, rate)}
    score, unit = _bit_errors, "bit error rate"
    return Unfolding(net, params, plan_of(settings), adam(settings), known, score, unit, algorithm)


@functools.lru_cache(maxsize=4)  # a search builds many unfoldings of the same problems
def _rate_of_lmmse(transmit: int, receive: int, snr: float) -> float:
    source = problems.mimo(transmit, receive, snr)
    draws = jax.random.split(jax.random.key(KEY), PROBLEMS)
    return float(jax.jit(jax.vmap(lambda key: _of_lmmse(source.whole(source.draw(key)))))(draws).mean())


def _of_lmmse(problem: Any) -> jax.Array:
    return solvers.bit_error_rate(solvers.lmmse(problem), problem.x)


def _bit_errors(x: jax.Array, problem: Any) -> jax.Array:
    return solvers.bit_error_rate(x, problem.x)
