"""Message passing for sparse recovery: iterations whose error looks like Gaussian noise of a known size."""

from __future__ import annotations

from collections.abc import Callable
from math import erfc, exp, pi, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._value import static, value
from unrollax.prox import soft
from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._least_squares import answer_of, measurements, numbers, zeros
from unrollax.solvers._linear import adjoint, times
from unrollax.solvers._weights import Known, check_matrix, error_variance, known

SLOPE = 0.99  # a mean slope is kept below it, as 1 - slope divides


class Message(NamedTuple):
    """Where AMP stands.

    Attributes:
        x: the iterate, `[n]`.
        residual: y - A x with what the last residual left in x taken out, `[m]`.
    """

    x: jax.Array
    residual: jax.Array


class Orthogonal(NamedTuple):
    """Where OAMP stands.

    Attributes:
        x: the best estimate, `[n]`, which is the answer.
        free: the estimate that the next iteration starts from, whose error is uncorrelated with that of its input.
    """

    x: jax.Array
    free: jax.Array


def amp() -> Algorithm:
    """Approximate message passing: soft thresholding, and a residual that remembers.

    v = x + A^H r; x' = soft(v, threshold |r| / sqrt(m));
    r' = y - A x' + r sum_i soft'(v_i) / m, whose last term (Onsager's) takes out what r itself left in x'. For complex
    numbers soft' is the mean of the slopes along and across v_i, 1 - threshold tau / (2 |v_i|) above the threshold, else 0.
    For large A with independent entries N(0, 1/m), v - truth is N(0, tau^2) with tau^2 = |r|^2 / m, which follows the state
    evolution tau'^2 = noise^2 + (n / m) E |soft(X + tau Z, threshold tau) - X|^2. For other A it may diverge: `oamp`.

    theta: `threshold`, in units of tau.

    `params(A)`: the minimax threshold for m / n, the a with m / n = 2 f(a) / (a + 2 (f(a) - a F(-a))), f and F the normal
    density and distribution function; for a complex A, that with m / n = (2 a e^(-a^2) + (1 - a^2) s) / (2 a + s), s =
    sqrt(pi) erfc(a), as the noise is CN(0, 1), of variance 1/2 each way. 0 for m >= n.

    Returns:
        An `Algorithm` whose state is `Message(x, residual)`, and whose answer is x. A may be complex, or an operator.

    Raises:
        StructureError: when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import amp
        >>> problems = sparse_recovery()
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> answer = amp().run(amp().params(problem.A), problem, steps=50)[50]
        >>> bool(((answer - problem.x) ** 2).sum() < 1e-3 * (problem.x**2).sum())
        True

    References: Donoho, Maleki and Montanari, PNAS 2009; Maleki, Anitori, Yang and Baraniuk, IEEE Transactions on Information
    Theory 2013 (complex).
    """
    return Algorithm(_amp_step, _amp_start, _amp_params, answer_of)


def oamp(A: Any = None, *, rate: float = 0.1, variance: float = 1.0) -> Algorithm:
    """Orthogonal approximate message passing for Bernoulli-Gauss signals, real or complex, with the pseudoinverse.

    r = z + step (n / m) W (y - A z), with W = A^H (A A^H)^-1, and tau^2 its mean squared error, as in `tista`;
    x' = E[x | r = x + tau e]; d = the mean slope of that function of r (of its two parts, for complex numbers);
    z' = (x' - removed d r) / (1 - removed d), whose error is uncorrelated with that of r for removed = 1.
    With removed = 0 it is TISTA with its step times m / n.

    theta: `step`, `removed`.

    `params()`: step = 1, removed = 1. The problem gives `A`, `y` and `noise`, the standard deviation.

    Args:
        A: the matrix that all problems share, whose pseudoinverse is computed once; `None`: each step computes that of
            `problem.A`.
        rate: share of x that is not 0.
        variance: of these entries, E |x_i|^2.

    Returns:
        An `Algorithm` whose state is `Orthogonal(x, free)`, and whose answer is x. Made again with an equal A it is equal.

    Raises:
        InvalidArgument: rate is outside (0, 1], or variance is not positive.
        StructureError: A is no matrix; or when run, if the problem has no A or y, or they don't fit.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> from unrollax.solvers import oamp
        >>> problems = sparse_recovery()
        >>> method = oamp(problems.A)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> answer = method.run(method.params(), problem, steps=12)[12]
        >>> bool(((answer - problem.x) ** 2).sum() < 1e-3 * (problem.x**2).sum())
        True

    References: Ma and Ping, IEEE Access 2017; He, Wen, Jin and Li, IEEE Transactions on Signal Processing 2020 (unfolded).
    """
    return Algorithm(_OAMP(known("oamp", A, rate, variance)), _oamp_start, _oamp_params, answer_of)


@value
class _OAMP:
    known: Known = static()

    def __call__(self, theta: Any, state: Orthogonal, problem: Any) -> Orthogonal:
        w = self.known.weights(problem)
        factor = theta["step"] * w.shape[0] / w.shape[1]
        residual = problem.y - times(problem.A, state.free)
        tau2 = error_variance(factor, residual, problem, w)
        r = state.free + factor * (w @ residual)
        x, slope = _mean_slope(lambda r: self.known.mean(r, tau2), r)
        removed = theta["removed"] * jnp.minimum(slope, SLOPE)
        return Orthogonal(x, (x - removed * r) / (1 - removed))


def _oamp_start(problem: Any) -> Orthogonal:
    x = zeros("oamp", problem)
    return Orthogonal(x, x)


def _oamp_params() -> dict[str, Any]:
    return {"step": jnp.ones(()), "removed": jnp.ones(())}


def _mean_slope(function: Callable[[jax.Array], jax.Array], r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return function(r) and its mean slope; of complex numbers, the mean of those of the real and of the imaginary part."""
    x, along = jax.jvp(function, (r,), (jnp.ones_like(r),))
    if not jnp.iscomplexobj(r):
        return x, along.mean()
    across = jax.jvp(function, (r,), (jnp.full_like(r, 1j),))[1]
    return x, (along.real + across.imag).mean() / 2


def _amp_start(problem: Any) -> Message:
    x = zeros("amp", problem)
    return Message(x, jnp.asarray(measurements("amp", problem)[1], jnp.result_type(problem.y, x)))


def _amp_step(theta: Any, state: Message, problem: Any) -> Message:
    m = state.residual.shape[0]
    v = state.x + adjoint(problem.A, state.residual)
    threshold = theta["threshold"] * jnp.sqrt((jnp.abs(state.residual) ** 2).sum() / m)
    x = soft(v, threshold)
    slopes = _slopes(v, threshold).sum() / m
    return Message(x, problem.y - times(problem.A, x) + slopes * state.residual)


def _slopes(v: jax.Array, threshold: jax.Array) -> jax.Array:
    """Return the derivative of soft thresholding; of complex numbers, the mean of those along and across."""
    size = jnp.abs(v)
    above = size > threshold
    if not jnp.iscomplexobj(v):
        return above.astype(size.dtype)
    return jnp.where(above, 1 - threshold / (2 * jnp.where(above, size, 1)), 0)


def _amp_params(A: Any) -> dict[str, Any]:
    a = check_matrix("amp", A)
    return numbers(A, threshold=_minimax(a.shape[0] / a.shape[1], jnp.iscomplexobj(a)))


def _minimax(delta: float, is_complex: bool) -> float:
    """Return the threshold a, in units of the noise, for m / n = delta; 0 for delta >= 1.

    Of signals of which a share e is not 0, the worst have infinite entries there, and soft thresholding has the risk
    e (1 + a^2) + (1 - e) R(a), with R(a) = E max(|Z| - a, 0)^2 of noise Z alone. Where its minimum over a equals delta, AMP
    is at its limit: e 2 a + (1 - e) R'(a) = 0, which leaves delta = (2 a R - (1 + a^2) R') / (2 a - R').
    """
    share = _complex_share if is_complex else _real_share
    low, high = 0.0, 40.0  # share falls from 1 at 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > delta else (low, middle)
    return round(low, 12)


def _real_share(a: float) -> float:
    density, tail = exp(-a * a / 2) / sqrt(2 * pi), erfc(a / sqrt(2)) / 2
    return 2 * density / (a + 2 * (density - a * tail))


def _complex_share(a: float) -> float:
    """For Z ~ CN(0, 1), where R(a) = exp(-a^2) - sqrt(pi) a erfc(a) and R'(a) = -sqrt(pi) erfc(a)."""
    tail = sqrt(pi) * erfc(a)
    return (2 * a * exp(-a * a) + (1 - a * a) * tail) / (2 * a + tail)
