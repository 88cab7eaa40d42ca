"""Unfoldings that recover sparse vectors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax import problems, solvers
from unrollax._unfolded import Unfolding
from unrollax._unfolding import unfold
from unrollax.recipes._unfold_common import adam, key_of, plan_of, schedules
from unrollax.recipes._unfold_options import Settings, Sparse

UNTRAINED = {"ISTA": solvers.ista, "FISTA": solvers.fista, "AMP": solvers.amp}
KEY = 17  # of the problems that baselines are measured on
MATRIX = ("tista", "alista")  # which are made for one


def build(options: Sparse, seed: int, settings: Settings) -> Unfolding:
    """Return the unfolding of an algorithm on sparse recovery."""
    source = problems.sparse_recovery(options.rows, options.columns, options.p, options.snr, options.matrix)
    make: Any = getattr(solvers, settings.algorithm.replace("-", "_"))
    known_matrix = settings.algorithm in MATRIX
    algorithm = make(source.A) if known_matrix else make()
    net = unfold(
        algorithm, source, error=normalised_error, horizon=settings.depth, batch=settings.batch, loss=settings.loss
    )
    params = schedules(algorithm.params() if known_matrix else algorithm.params(source.A), settings, key_of(seed))
    known = {name: _errors(method(), source, settings) for name, method in UNTRAINED.items()}
    return Unfolding(
        net, params, plan_of(settings), adam(settings), known, unit="normalised squared error", algorithm=algorithm
    )


def normalised_error(x: jax.Array, problem: Any) -> jax.Array:
    """Return |x - problem.x|^2 / |problem.x|^2."""
    power = jnp.maximum((problem.x**2).sum(), float(np.finfo(problem.x.dtype).tiny))
    return ((x - problem.x) ** 2).sum() / power


def _errors(algorithm: Any, source: Any, settings: Settings) -> np.ndarray:
    """Return the errors of an algorithm with its usual constants."""
    net = unfold(algorithm, source, error=normalised_error, horizon=settings.depth, batch=200)
    theta = algorithm.params(source.A)
    return np.asarray(jax.jit(net.errors)(theta, jax.random.key(KEY)))
