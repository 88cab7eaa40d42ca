"""Learned ISTA: matrices in place of A's own, with and without support selection."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._value import static, value
from unrollax.prox import soft
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import Start, answer_of, numbers, zeros
from unrollax.solvers._linear import adjoint, parts, times, whole
from unrollax.solvers._selection import Counted, Selection
from unrollax.solvers._weights import Held, analytic_weights, check_matrix, held, step_and_threshold


def lista() -> Algorithm:
    """Learned ISTA with two free matrices: x' = soft(W1 y + W2 x, threshold).

    Use it for one A and plenty of data: it has n (m + n) numbers an iteration to train, and is slow to. Else `lista_cpss` or
    `alista`.

    theta: `W1` `[n, m]`, `W2` `[n, n]`, `threshold`. Train one pair of matrices for all iterations, by leaving them
    as they are, and the thresholds by `per_step`; or all by `per_step`, as the paper has it.

    `params(A, lam=0.1)`: W1 = A^H / L, W2 = I - A^H A / L and threshold = lam / L, with which it is ISTA. As
    params are real, those of a complex A are W1 and W2 as real and imaginary parts, `[2, n, m]` and `[2, n, n]`.

    Returns:
        An `Algorithm` whose state is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import ista, lista
        >>> problems = sparse_recovery(m=50, n=100)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> one, other = (method.run(method.params(problem.A), problem, steps=9) for method in (ista(), lista()))
        >>> bool(abs(one - other).max() < 1e-5)
        True

    References: Gregor and LeCun, ICML 2010.
    """
    return Algorithm(_lista_step, Start("lista", None), _lista_params)


def lista_cpss(select: float = 0.012, most: float = 0.12) -> Algorithm:
    """Learned ISTA with coupled weights and support selection: x' = soft_q(x + W^H (y - A x), threshold).

    soft_q lets the largest entries that are above the threshold through unshrunk: of all entries, a share ``min(t select,
    most)`` at iteration t, counted from 1. So late iterations don't bias what they are sure of. With `select=0` it is
    LISTA-CP.

    theta: `W` `[m, n]`, `threshold`. Train both by `per_step`, as the paper has it, or let all iterations share W.

    `params(A, lam=0.1)`: W = A / L and threshold = lam / L; W of a complex A as real and imaginary parts, `[2, m, n]`.

    Args:
        select: share of the entries that each iteration lets through more than the last.
        most: the largest share let through; a little above the share of x that is not 0.

    Returns:
        An `Algorithm` whose state is `Counted(x, t)`, and whose answer is x.

    Raises:
        InvalidArgument: select or most is outside [0, 1].
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import lista_cpss
        >>> problems = sparse_recovery(m=50, n=100)
        >>> method = lista_cpss()
        >>> method.run(method.params(problems.A), problems.whole(problems.draw(jax.random.key(0))), steps=9).shape
        (10, 100)

    References: Chen, Liu, Wang and Yin, NeurIPS 2018.
    """
    return Algorithm(
        _Coupled(Selection("lista_cpss", select, most)), _Counting("lista_cpss"), _coupled_params, answer_of
    )


def tilista(select: float = 0.012, most: float = 0.12) -> Algorithm:
    """Tied learned ISTA: x' = soft_q(x + step W^H (y - A x), threshold), with one W that is trained too.

    soft_q is as in `lista_cpss`.

    theta: `W` `[m, n]`, `step`, `threshold`. Train the two numbers by `per_step` and leave W as it is, for all
    iterations to share.

    `params(A, lam=0.1)`: the `analytic_weights` W of ALISTA, step = 1 and threshold = lam; W of a complex A as real and
    imaginary parts, `[2, m, n]`.

    Args:
        select: share of the entries that each iteration lets through more than the last.
        most: the largest share let through.

    Returns:
        An `Algorithm` whose state is `Counted(x, t)`, and whose answer is x.

    Raises:
        InvalidArgument: select or most is outside [0, 1].
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import tilista
        >>> theta = tilista().params(sparse_recovery(m=50, n=100).A)
        >>> theta["W"].shape, float(theta["step"])
        ((50, 100), 1.0)

    References: Liu, Chen, Wang and Yin, ICLR 2019.
    """
    return Algorithm(_Tied(Selection("tilista", select, most)), _Counting("tilista"), _tied_params, answer_of)


def alista(A: Any, select: float = 0.012, most: float = 0.12) -> Algorithm:
    """Analytic learned ISTA: x' = soft_q(x + step W^H (y - A x), threshold), with W in closed form: two numbers an iteration.

    W = `analytic_weights(A)` has the least generalised coherence with A; soft_q is as in `lista_cpss`.

    theta: `step`, `threshold`; train both by `per_step`, with `transform="log"`.

    `params(lam=0.1)`: step = 1 and threshold = lam, some share of how large the entries are that are not 0.

    Args:
        A: the matrix that all problems share, `[m, n]`.
        select: share of the entries that each iteration lets through more than the last; 0 is ALISTA without selection.
        most: the largest share let through; a little above the share of x that is not 0.

    Returns:
        An `Algorithm` whose state is `Counted(x, t)`, and whose answer is x. Made again with an equal A it is equal.

    Raises:
        InvalidArgument: select or most is outside [0, 1].
        StructureError: A is no matrix; or when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import alista
        >>> problems = sparse_recovery(m=50, n=100)
        >>> method = alista(problems.A)
        >>> method.run(method.params(), problems.whole(problems.draw(jax.random.key(0))), steps=9).shape
        (10, 100)

    References: Liu, Chen, Wang and Yin, ICLR 2019.
    """
    selection, weights = Selection("alista", select, most), analytic_weights(A)
    step = _Analytic(selection, held(weights, check_matrix("alista", A)))
    return Algorithm(step, _Counting("alista"), _AnalyticParams(weights.dtype), answer_of)


@value
class _Counting:
    owner: str = static()

    def __call__(self, problem: Any) -> Counted:
        x = zeros(self.owner, problem)
        return Counted(x, jnp.zeros((), jnp.abs(x).dtype))


@value
class _Coupled:
    selection: Selection = static()

    def __call__(self, theta: Any, state: Counted, problem: Any) -> Counted:
        return _weighted(whole(theta["W"]), 1.0, theta["threshold"], state, problem, self.selection)


@value
class _Tied:
    selection: Selection = static()

    def __call__(self, theta: Any, state: Counted, problem: Any) -> Counted:
        return _weighted(whole(theta["W"]), theta["step"], theta["threshold"], state, problem, self.selection)


@value
class _Analytic:
    selection: Selection = static()
    weights: Held = static()

    def __call__(self, theta: Any, state: Counted, problem: Any) -> Counted:
        return _weighted(self.weights.array, theta["step"], theta["threshold"], state, problem, self.selection)


@value
class _AnalyticParams:
    dtype: Any = static()

    def __call__(self, lam: float = 0.1) -> dict[str, Any]:
        return numbers(self, step=1.0, threshold=lam)


def _weighted(w: Any, step: Any, threshold: Any, state: Counted, problem: Any, selection: Selection) -> Counted:
    """Return the state after a step along W^H (y - A x)."""
    v = state.x + step * adjoint(w, problem.y - times(problem.A, state.x))
    return Counted(selection.soft(v, threshold, state.t), state.t + 1)


def _lista_step(theta: Any, x: jax.Array, problem: Any) -> jax.Array:
    return soft(whole(theta["W1"]) @ problem.y + whole(theta["W2"]) @ x, theta["threshold"])


def _lista_params(A: Any, lam: float = 0.1) -> dict[str, Any]:
    a, theta = check_matrix("lista", A), step_and_threshold("lista", A, lam)
    w1 = theta["step"] * a.conj().T
    w2 = jnp.eye(a.shape[1], dtype=w1.dtype) - w1 @ a
    return {"W1": parts(w1), "W2": parts(w2), "threshold": theta["threshold"]}


def _coupled_params(A: Any, lam: float = 0.1) -> dict[str, Any]:
    a, theta = check_matrix("lista_cpss", A), step_and_threshold("lista_cpss", A, lam)
    return {"W": parts(theta["step"] * a), "threshold": theta["threshold"]}


def _tied_params(A: Any, lam: float = 0.1) -> dict[str, Any]:
    return {"W": parts(analytic_weights(A)), **numbers(A, step=1.0, threshold=lam)}
