"""Unfoldings of least squares: one random matrix, or the user's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax import problems, solvers, theory
from unrollax._errors import InvalidArgument
from unrollax._schedules import per_step, periodic
from unrollax._unfolded import Unfolding
from unrollax._unfolding import unfold
from unrollax.recipes._unfold_common import APART, adam, key_of, plan_of, schedules
from unrollax.recipes._unfold_options import Linear, Ridge, Settings

ALGORITHMS: dict[str, Any] = {
    "gradient-descent": solvers.gradient_descent,
    "heavy-ball": solvers.heavy_ball,
    "nesterov": solvers.nesterov,
    "ista": solvers.ista,
    "fista": solvers.fista,
}
SPARSE = ("ista", "fista")
SPREAD = 0.3  # of step sizes at first: from ascending ones so far apart training reached the optimum each time


def build(options: Ridge | Linear, seed: int, settings: Settings) -> Unfolding:
    """Return the unfolding of an algorithm on one matrix."""
    source: Any
    if isinstance(options, Ridge):
        source = problems.ridge(options.rows, options.columns, options.lam, options.matrix)
    else:
        source = _own(options, sparse=settings.algorithm in SPARSE)
    algorithm = ALGORITHMS[settings.algorithm]()
    net = unfold(
        algorithm, source, error=squared_error, horizon=settings.depth, batch=settings.batch, loss=settings.loss
    )
    quadratic = None if settings.algorithm in SPARSE else theory.quadratic(np.asarray(source.A), float(source.lam))
    if settings.init == "chebyshev":
        params = _chebyshev(settings, quadratic)
    else:
        theta = algorithm.params(source.A, lam=float(source.lam))
        one = settings.algorithm == "gradient-descent"
        params = schedules(theta, settings, key_of(seed), std=SPREAD if one else APART)
        params = jax.tree.map(jnp.sort, params) if one else params
    known: dict[str, Any] = {}
    if isinstance(options, Ridge):  # whose y has the distribution that the closed forms are for
        known = theory.baselines(quadratic, settings.depth).errors
    return Unfolding(net, params, plan_of(settings), adam(settings), known, unit="squared error", algorithm=algorithm)


def squared_error(x: jax.Array, problem: Any) -> jax.Array:
    """Return |x - problem.x|^2, a sum over entries."""
    return (jnp.abs(x - problem.x) ** 2).sum()


def _own(options: Linear, *, sparse: bool) -> Any:
    """Return the user's problems, with the answers of least squares where none are given."""
    found = problems.load(options.path)
    found = dataclasses.replace(found, lam=options.lam or found.lam)
    if found.x is not None:
        return found
    if sparse:
        raise InvalidArgument(
            f"linear: {options.path} must hold the answers x for ista and fista, got none. Add x, or take gradient-descent."
        )
    a, y = np.asarray(found.A), np.asarray(found.y)
    with np.errstate(over="ignore", invalid="ignore"):
        gram = a.conj().T @ a + float(found.lam) * np.eye(a.shape[1])
    if not np.isfinite(gram).all():
        raise InvalidArgument(
            f"linear: A of {options.path} must have finite squares, got numbers up to {np.abs(a).max():.3g}. Scale A and y."
        )
    x = np.linalg.lstsq(gram, a.conj().T @ y.T, rcond=None)[0].T
    return dataclasses.replace(found, x=jnp.asarray(x))


def _chebyshev(settings: Settings, quadratic: Any) -> dict[str, Any]:
    """Return the steps of Chebyshev's polynomial, ascending: the better order where a period is cut off."""
    if settings.algorithm != "gradient-descent":
        raise InvalidArgument(
            f"unfold: --init chebyshev must have --algorithm gradient-descent, got {settings.algorithm}. Leave --init out."
        )
    entries = settings.period or settings.depth
    steps = jnp.asarray(theory.chebyshev_steps(entries, float(quadratic.L), float(quadratic.mu), order="ascending"))
    make = periodic if settings.period else per_step
    made: dict[str, Any] = make({"step": steps}, entries, "log")  # which are apart already
    return made
