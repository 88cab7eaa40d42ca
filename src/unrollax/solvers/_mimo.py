"""Detection of bits behind a channel: a trainable projected gradient, the linear baseline, and the errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import Start, measurements
from unrollax.solvers._linear import times


def tpg() -> Algorithm:
    """Trainable projected gradient descent to bits of -1 and 1: x' = tanh((x + step W (y - A x)) / temperature).

    W = A^H (A A^H + alpha I)^-1, a regularised pseudoinverse, and tanh is a soft projection to -1 and 1. Take the signs of
    the last x. Where A or y is complex, so is x, of symbols +-1 +- i: tanh acts on the real and on the imaginary part, which
    is the same as the real problem of twice the size that `unrollax.problems.mimo` makes.

    theta: `step`, `temperature` (both by `per_step`), `alpha` (by `shared`); all positive, so with `transform="log"`.

    `params(noise=1.0)`: step = 1, temperature = 1 and alpha = noise^2, for which the first iteration is tanh of `lmmse`.

    Cost: a Cholesky factorisation `[m, m]` an iteration.

    Returns:
        An `Algorithm` whose state is x.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import mimo
        >>> from unrollax.solvers import bit_error_rate, tpg
        >>> problems = mimo(n=8, m=8, snr_db=20.0)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> xs = tpg().run(tpg().params(problems.noise), problem, steps=10)
        >>> float(bit_error_rate(xs[10], problem.x))
        0.0

    References: Takabe, Imanishi, Wadayama, Hayakawa and Hayashi, IEEE Access 2019.
    """
    return Algorithm(_tpg_step, Start("tpg", None), _tpg_params)


def lmmse(problem: Any) -> jax.Array:
    """Return the linear estimate of least mean squared error of entries of variance 1: A^H (A A^H + noise^2 I)^-1 y.

    Args:
        problem: has `A` `[m, n]`, `y` `[m]` and `noise`, the standard deviation. Only the ratio of the variances counts: for
            complex symbols +-1 +- i, of variance 1 in each part, give that of the noise in each part.

    Raises:
        StructureError: A and y don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import mimo
        >>> from unrollax.solvers import bit_error_rate, lmmse
        >>> problems = mimo(n=8, m=8, snr_db=20.0)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> float(bit_error_rate(lmmse(problem), problem.x))
        0.0

    References: Kay, Fundamentals of Statistical Signal Processing 1993, chapter 12.
    """
    a, y = measurements("lmmse", problem)
    return _regularised(a, problem.noise**2, y)


def bit_error_rate(x: jax.Array, truth: jax.Array) -> jax.Array:
    """Return the share of entries whose sign is not that of the truth; 0 has no sign, and counts as wrong.

    Args:
        x: estimates of bits as -1 and 1, of any shape; or of symbols +-1 +- i, two bits each.
        truth: the bits or symbols, of the same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from unrollax.solvers import bit_error_rate
        >>> float(bit_error_rate(jnp.array([0.3, -2.0, 0.0, 1.0]), jnp.array([1.0, 1.0, 1.0, 1.0])))
        0.5
    """
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(truth):
        x, truth = (jnp.stack([each.real, each.imag]) for each in (x, truth))
    return (jnp.sign(x) != truth).mean()


def _tpg_step(theta: Any, x: jax.Array, problem: Any) -> jax.Array:
    moved = x + theta["step"] * _regularised(problem.A, theta["alpha"], problem.y - times(problem.A, x))
    return _by_parts(jnp.tanh, moved / theta["temperature"])


def _tpg_params(noise: Any = 1.0) -> dict[str, Any]:
    return {"step": jnp.ones(()), "temperature": jnp.ones(()), "alpha": jnp.asarray(noise, jnp.result_type(float)) ** 2}


def _regularised(a: jax.Array, alpha: Any, v: jax.Array) -> jax.Array:
    """Return A^H (A A^H + alpha I)^-1 v; its derivatives solve with the factors that are there, and don't go through them."""
    gram = a @ a.conj().T + jnp.asarray(alpha, a.dtype) * jnp.eye(a.shape[0], dtype=a.dtype)
    factors = cho_factor(jax.lax.stop_gradient(gram), lower=True)

    def solve(_: Any, right: jax.Array) -> jax.Array:
        return cho_solve(factors, right)

    def transposed(_: Any, right: jax.Array) -> jax.Array:  # a Hermitian matrix is not its own transpose
        return cho_solve(factors, right.conj()).conj()

    across = transposed if jnp.iscomplexobj(gram) else None
    solved: jax.Array = jax.lax.custom_linear_solve(lambda x: gram @ x, v, solve, across, symmetric=across is None)
    return a.conj().T @ solved


def _by_parts(function: Callable[[jax.Array], jax.Array], v: jax.Array) -> jax.Array:
    """Return a real function of v, of a complex v that of its real and imaginary part each."""
    return jax.lax.complex(function(v.real), function(v.imag)) if jnp.iscomplexobj(v) else function(v)
