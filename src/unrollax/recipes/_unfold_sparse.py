"""Unfoldings that recover sparse vectors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
    algorithm = _algorithm(settings.algorithm, source.A, options.p)
    net = unfold(
        algorithm, source, error=normalised_error, horizon=settings.depth, batch=settings.batch, loss=settings.loss
    )
    theta = algorithm.params() if settings.algorithm in MATRIX else algorithm.params(source.A)
    if settings.algorithm == "tista":  # from steps that are nearly equal it is trained to -39 dB, from these to -43
        theta["step"] = theta["step"] * jnp.resize(jnp.array([1.0, 2.0]), (settings.period or settings.depth,))
    params = schedules(theta, settings, key_of(seed))
    known = _known(settings.depth, **options.model_dump())
    return Unfolding(
        net, params, plan_of(settings), adam(settings), known, unit="normalised squared error", algorithm=algorithm
    )


def _algorithm(name: str, a: jax.Array, p: float) -> Any:
    """Return an algorithm that knows how many entries are not 0."""
    if name == "tista":
        return solvers.tista(a, rate=p)
    most = min(1.0, 1.2 * p)
    if name == "alista":
        return solvers.alista(a, most=most)
    make = {"ista": solvers.ista, "fista": solvers.fista, "lista": solvers.lista}
    selecting = {"lista-cpss": solvers.lista_cpss, "tilista": solvers.tilista}
    return make[name]() if name in make else selecting[name](most=most)


def normalised_error(x: jax.Array, problem: Any) -> jax.Array:
    """Return |x - problem.x|^2 / |problem.x|^2."""
    power = jnp.maximum((problem.x**2).sum(), float(np.finfo(problem.x.dtype).tiny))
    return ((x - problem.x) ** 2).sum() / power


@functools.lru_cache(maxsize=4)  # a search builds many unfoldings of the same problems
def _known(depth: int, rows: int, columns: int, p: float, snr: float, matrix: int) -> Mapping[str, np.ndarray]:
    """Return the errors of untrained algorithms."""
    source = problems.sparse_recovery(rows, columns, p, snr, matrix)
    return {name: _errors(method(), source, depth) for name, method in UNTRAINED.items()}


def _errors(algorithm: Any, source: Any, depth: int) -> np.ndarray:
    """Return the errors of an algorithm with its usual constants."""
    net = unfold(algorithm, source, error=normalised_error, horizon=depth, batch=200)
    theta = algorithm.params(source.A)
    return np.asarray(jax.jit(net.errors)(theta, jax.random.key(KEY)))
