"""Iterations beyond inverse problems: optimal transport, eigenvectors, consensus of a network."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from unrollax._check import POSITIVE, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import numbers


class Potentials(NamedTuple):
    """Where Sinkhorn's iteration stands, in units of the cost.

    Attributes:
        f: potentials of the sources, `[n]`.
        g: those of the sinks, `[m]`.
    """

    f: jax.Array
    g: jax.Array


class Direction(NamedTuple):
    """Where the power iteration stands.

    Attributes:
        x: the iterate, of norm 1, `[n]`.
        before: the one before it, in the same unit.
    """

    x: jax.Array
    before: jax.Array


def sinkhorn() -> Algorithm:
    """Sinkhorn's iteration for optimal transport with an entropy, over-relaxed, in logarithms.

    min_P sum_ij P_ij cost_ij + epsilon P_ij (log P_ij - 1), with row sums a and column sums b:
    f <- (1 - relax) f + relax epsilon (log a - log sum_j exp((g_j - cost_ij) / epsilon)); then g likewise, with the new f.
    P_ij = exp((f_i + g_j - cost_ij) / epsilon) is what `coupling` returns.

    A problem has `cost` `[n, m]`, `a` `[n]` and `b` `[m]`, real; a and b positive and of equal sums.

    theta: `epsilon`, in units of the cost; a schedule that falls is annealing; `relax`, in (0, 2), over-relaxed above 1.

    `params(epsilon, relax=1.0)`. With relax = 1 the error falls in the end by s^2 an iteration, s the second singular
    value of a^(-1/2) P b^(-1/2), and with relax = 2 / (1 + sqrt(1 - s^2)) by relax - 1.

    Returns:
        An `Algorithm` whose state and answer are `Potentials(f, g)`.

    Raises:
        StructureError: when run, if the shapes don't fit, or something is complex.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import coupling, sinkhorn
        >>> problem = SimpleNamespace(cost=1 - jnp.eye(2), a=jnp.array([0.5, 0.5]), b=jnp.array([0.3, 0.7]))
        >>> method = sinkhorn()
        >>> last = jax.tree.map(lambda leaf: leaf[-1], method.run(method.params(0.1), problem, steps=20))
        >>> (100 * coupling(last, problem, 0.1)).round()
        Array([[30., 20.],
               [ 0., 50.]], dtype=float32)

    References: Cuturi, NIPS 2013; Thibault, Chizat, Dossal and Papadakis, Algorithms 2021 (over-relaxed); Lehmann, von
    Renesse, Sambale and Uschmajew, Optimization Letters 2022 (the rate).
    """
    return Algorithm(_sinkhorn_step, _sinkhorn_start, _sinkhorn_params)


def coupling(x: Potentials, problem: Any, epsilon: Any) -> jax.Array:
    """Return P_ij = exp((f_i + g_j - cost_ij) / epsilon), `[n, m]`, the mass that goes from i to j; see `sinkhorn`.

    Args:
        x: the potentials.
        problem: what has the `cost`.
        epsilon: that of the last iteration.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import Potentials, coupling
        >>> coupling(Potentials(jnp.zeros(2), jnp.zeros(1)), SimpleNamespace(cost=jnp.zeros((2, 1))), 1.0).tolist()
        [[1.0], [1.0]]
    """
    return jnp.exp((x.f[:, None] + x.g[None, :] - problem.cost) / epsilon)


def power_iteration() -> Algorithm:
    """The power iteration for the eigenvector of the largest eigenvalue, with a shift and with momentum.

    x' = (A x - shift x - momentum before) / r, r its norm; before' = x / r. A problem has `A`, a Hermitian matrix `[n, n]`
    or an operator, and may have `start`, where to begin; else it begins at fixed random numbers.

    theta: `shift`, in units of the eigenvalues; `momentum`, in units of their squares.

    `params(A)`, for a matrix, or `params((second, last))`, the second and the last eigenvalue: shift = (second + last) / 2
    and momentum = (second - last)^2 / 16, with which the error falls by d / (c + sqrt(c^2 - d^2)) an iteration, c = first -
    shift and d = (second - last) / 2: it is Chebyshev's iteration with constant coefficients.

    Returns:
        An `Algorithm` whose state is `Direction(x, before)`, and whose answer is x.

    Raises:
        StructureError: when run, if A is no square matrix and no operator, and has no `start` beside it.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import power_iteration
        >>> problem = SimpleNamespace(A=jnp.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> method = power_iteration()
        >>> abs(method.run(method.params(problem.A), problem, steps=20)[-1]).round(3)
        Array([0.707, 0.707], dtype=float32)

    References: von Mises and Pollaczek-Geiringer, ZAMM 1929; Xu, He, De Sa, Mitliagkas and Ré, AISTATS 2018 (momentum).
    """
    return Algorithm(_power_step, _power_start, _power_params, _direction)


def consensus() -> Algorithm:
    """Average consensus: nodes of a network reach the mean of their numbers by talking to their neighbours.

    x <- x - step Laplacian x, from x = y. A problem has `laplacian` `[n, n]`, that of a connected graph, symmetric, and `y`
    `[n]` or `[n, ...]`, what the nodes start with. A schedule of the reciprocals of the distinct eigenvalues that are not 0
    reaches the mean exactly, after as many iterations; that is what training looks for.

    theta: `step`, below 2 / the largest eigenvalue.

    `params(laplacian)` or `params((high, low))`, the largest eigenvalue and the smallest above 0: step = 2 / (high + low);
    the distance from the mean falls by (high - low) / (high + low) or more an iteration.

    Returns:
        An `Algorithm` whose state is x, in the shape of y.

    Raises:
        StructureError: when run, if the shapes don't fit.
        InvalidArgument: the graph is not connected.

    Example:
        >>> from types import SimpleNamespace
        >>> from unrollax.solvers import consensus
        >>> pair = SimpleNamespace(laplacian=jnp.array([[1.0, -1.0], [-1.0, 1.0]]), y=jnp.array([0.0, 4.0]))
        >>> consensus().run(consensus().params(pair.laplacian), pair, steps=1)[-1].tolist()
        [2.0, 2.0]

    References: Xiao and Boyd, Systems and Control Letters 2004; Sandryhaila, Kar and Moura, ICASSP 2014 (exact in finite
    time); Kishida, Ogura, Yoshida and Wadayama, IEICE Transactions 2020 (unfolded).
    """
    return Algorithm(_consensus_step, _consensus_start, _consensus_params)


def _sinkhorn_start(problem: Any) -> Potentials:
    cost, a, b = problem.cost, problem.a, problem.b
    if jnp.ndim(cost) != 2 or (jnp.shape(a) + jnp.shape(b)) != jnp.shape(cost) or jnp.ndim(a) != 1:
        raise StructureError(
            f"sinkhorn: problem.cost must be [n, m], a [n] and b [m], got {describe(cost)}, {describe(a)} and {describe(b)}. "
            "Transpose the cost, or exchange a and b."
        )
    kind = jnp.result_type(cost, a, b)
    if jnp.issubdtype(kind, jnp.complexfloating):
        raise StructureError(f"sinkhorn: problem.cost, a and b must be real, got {kind} among them. Take magnitudes.")
    return Potentials(jnp.zeros(a.shape, kind), jnp.zeros(b.shape, kind))


def _sinkhorn_step(theta: Any, x: Potentials, problem: Any) -> Potentials:
    epsilon, relax, cost = theta["epsilon"], theta["relax"], problem.cost
    over = epsilon * (jnp.log(problem.a) - logsumexp((x.g[None, :] - cost) / epsilon, axis=1))
    f = x.f + relax * (over - x.f)
    over = epsilon * (jnp.log(problem.b) - logsumexp((f[:, None] - cost) / epsilon, axis=0))
    return Potentials(f, x.g + relax * (over - x.g))


def _sinkhorn_params(epsilon: Any, relax: Any = 1.0) -> dict[str, Any]:
    check_number("sinkhorn", "epsilon", epsilon, POSITIVE, used=True)
    return numbers(None, epsilon=epsilon, relax=relax)


def _power_start(problem: Any) -> Direction:
    if hasattr(problem, "start"):
        x = problem.start
    elif hasattr(problem.A, "in_structure"):
        like = problem.A.in_structure()
        x = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
    elif jnp.ndim(problem.A) == 2 and problem.A.shape[0] == problem.A.shape[1]:
        x = jax.random.normal(jax.random.key(0), problem.A.shape[:1], problem.A.dtype)
    else:
        got = describe(problem.A)
        raise StructureError(f"power_iteration: problem.A must be a matrix [n, n], got {got}. Or give problem.start.")
    x = x / jnp.linalg.norm(x)
    return Direction(x, jnp.zeros_like(x))


def _power_step(theta: Any, state: Direction, problem: Any) -> Direction:
    x = state.x
    product = problem.A.mv(x) if hasattr(problem.A, "mv") else problem.A @ x
    after = product - theta["shift"] * x - theta["momentum"] * state.before
    norm = jnp.linalg.norm(after)
    return Direction(after / norm, x / norm)


def _direction(state: Direction) -> jax.Array:
    return state.x


def _power_params(A: Any) -> dict[str, Any]:
    if isinstance(A, tuple):
        second, last = A
    else:
        values = np.linalg.eigvalsh(np.asarray(A))
        second, last = values[-2], values[0]
    return numbers(A, shift=(second + last) / 2, momentum=(second - last) ** 2 / 16)


def _consensus_start(problem: Any) -> jax.Array:
    laplacian, y = problem.laplacian, problem.y
    if jnp.ndim(laplacian) != 2 or jnp.ndim(y) == 0 or jnp.shape(laplacian) != (y.shape[0], y.shape[0]):
        raise StructureError(
            f"consensus: problem.laplacian must be [n, n] and problem.y [n], got {describe(laplacian)} and {describe(y)}. "
            "Give one number a node."
        )
    start: jax.Array = jnp.asarray(y, jnp.result_type(laplacian, y))
    return start


def _consensus_step(theta: Any, x: jax.Array, problem: Any) -> jax.Array:
    after: jax.Array = x - theta["step"] * (problem.laplacian @ x)
    return after


def _consensus_params(laplacian: Any) -> dict[str, Any]:
    if isinstance(laplacian, tuple):
        high, low = laplacian
    else:
        values = np.linalg.eigvalsh(np.asarray(laplacian))
        high, low = values[-1], values[1]
    if not low > 1e-6 * high:
        raise InvalidArgument(
            f"consensus: the graph must be connected, got a second eigenvalue of {float(low):.3g}. Join its parts, or give "
            "(high, low)."
        )
    return numbers(laplacian, step=2 / (high + low))
