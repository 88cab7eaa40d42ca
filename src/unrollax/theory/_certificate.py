"""What a schedule does to every eigenvalue of an interval: a certificate, and the growth on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, check_number
from unrollax.theory._arrays import check_bounds, lobatto, module_of, same_length, vector
from unrollax.theory._error import log_size

HALVINGS = 60  # of a segment: more than a float64 has bits
POINTS = (16, 128, 4096)  # of a grid: a step, at least, at most


class Certificate(NamedTuple):
    """What `certificate` says of a cycle of steps.

    Attributes:
        log_rate: log of the largest |prod_k (1 - eta_k h)| over h in [mu, L], a cycle.
        rate: the same, not as a logarithm: the error along no eigenvector shrinks by less in a cycle.
        per_iteration: rate^(1/T), to compare periods.
        converges: whether rate < 1.
        transient: the largest |prod_{k <= t} (1 - eta_k h)| over h in [mu, L] and t = 0 .. T: at least 1.
    """

    log_rate: Any
    rate: Any
    per_iteration: Any
    converges: Any
    transient: Any


def certificate(steps: Any, mu: Any, L: Any) -> Certificate:
    """Return how a cycle of steps treats the worst eigenvalue of [mu, L]: its rate, and its growth on the way.

    The rate is the true maximum, not one over a grid: between two neighbouring roots 1/eta the logarithm of the product is
    concave, so that the one maximum there is found by halving, to the last digit. Its gradient is that of the product at the
    maximal eigenvalue, and where several are equal that of one of them, as for any maximum: train `smooth_log_rate` in its
    place. Steps may be of any sign.

    Args:
        steps: eta `[T]`, one cycle.
        mu: the smallest eigenvalue, positive.
        L: the largest.

    Returns:
        A `Certificate` of scalars. `transient` is taken from `amplification`, on its grid.

    Raises:
        InvalidArgument: unless 0 < mu <= L.
        StructureError: steps that are no vector.

    Example:
        >>> from unrollax.theory import certificate, chebyshev_steps
        >>> said = certificate(chebyshev_steps(4, 9.0, 1.0), 1.0, 9.0)
        >>> round(float(said.rate), 6), bool(said.converges), round(float(said.transient), 2)
        (0.124514, True, 1.2)

    References: Young, Journal of Mathematics and Physics 1953.
    """
    check_bounds("certificate", L, mu)
    xp = module_of(steps, mu, L)
    steps = vector("certificate", "steps", steps, xp)
    log_rate = _maxima(steps, mu, L, xp).max()
    rate = xp.exp(log_rate)
    transient = amplification(steps, mu, L).max()
    return Certificate(log_rate, rate, xp.exp(log_rate / len(steps)), log_rate < 0, transient)


def smooth_log_rate(steps: Any, mu: Any, L: Any, *, sharpness: float = 100.0) -> Any:
    """Return an upper bound of a certificate's `log_rate` that is smooth, and so can be trained without data.

    log(sum_i exp(sharpness m_i)) / sharpness, where m_i are the T + 1 local maxima of log |prod_k (1 - eta_k h)| over
    [mu, L], one between neighbouring roots, and its values at both ends. It is above the largest of them by at most
    log(T + 3) / sharpness, so a value below 0 proves convergence. The maximum itself trains badly: its gradient jumps from
    one m_i to another. With Adam on log eta, b2 = 0.9, from 0.03 to 0 in 1,500 updates, for a condition number of 1,000 and
    T = 4, the error that is left after 10,000 iterations has the logarithm -154 with this, -45 with the maximum itself, and
    -158 at the optimum.

    Args:
        steps: eta `[T]`, one cycle.
        mu: the smallest eigenvalue, positive.
        L: the largest.
        sharpness: larger values are nearer to the maximum, and harder to train; well above 1 / |log_rate|.

    Returns:
        A scalar.

    Raises:
        InvalidArgument: unless 0 < mu <= L and sharpness > 0.
        StructureError: steps that are no vector.

    Example:
        >>> from unrollax.theory import certificate, chebyshev_steps, smooth_log_rate
        >>> steps = chebyshev_steps(4, 9.0, 1.0)
        >>> round(float(certificate(steps, 1.0, 9.0).log_rate), 3), round(float(smooth_log_rate(steps, 1.0, 9.0)), 3)
        (-2.083, -2.064)
    """
    check_bounds("smooth_log_rate", L, mu)
    check_number("smooth_log_rate", "sharpness", sharpness, POSITIVE, used=True)
    xp = module_of(steps, mu, L)
    maxima = sharpness * _maxima(vector("smooth_log_rate", "steps", steps, xp), mu, L, xp)
    return (maxima.max() + xp.log(xp.exp(maxima - maxima.max()).sum())) / sharpness


def amplification(steps: Any, mu: Any, L: Any) -> Any:
    """Return by how much the error can have grown after each iteration: max_h |prod_{k <= t} (1 - eta_k h)|.

    The maximum is over a grid of Chebyshev points of [mu, L] with both ends, 16 for each step and at most 4,096: up to 256
    steps it is at most 0.5 % too small. It bounds each iteration's error relative to that at the start, and what rounding
    adds at the start.

    Args:
        steps: eta `[N]`.
        mu: the smallest eigenvalue, positive.
        L: the largest.

    Returns:
        `[N + 1]`, the first 1.

    Raises:
        InvalidArgument: unless 0 < mu <= L.
        StructureError: steps that are no vector.

    Example:
        >>> amplification([1.0, 0.25], 1.0, 4.0).round(2).tolist()
        [1.0, 3.0, 0.56]

    References: Ehlich and Zeller, Mathematische Zeitschrift 1964 (the grid).
    """
    check_bounds("amplification", L, mu)
    xp = module_of(steps, mu, L)
    steps = vector("amplification", "steps", steps, xp)
    each, least, most = POINTS
    h = lobatto(mu, L, 1 + min(max(each * len(steps), least), most), xp)

    def body(logs: Any, step: Any) -> tuple[Any, Any]:
        logs = logs + log_size(1 - step * h, xp)
        return logs, logs.max()

    _, tops = _scan(xp, body, xp.zeros_like(h), steps)
    return xp.exp(xp.concatenate([xp.zeros_like(tops[:1]), tops]))


def rounding_floor(steps: Any, spectrum: Any, weights: Any, dtype: Any = np.float32) -> np.ndarray:
    """Return the mean squared error that rounding alone is expected to leave after 0 .. N iterations.

    Each iteration x - eta (H x - b) rounds x and the gradient: white noise of variance eps^2/12 (1 + (eta L)^2) |x|^2 / n
    along every eigenvector, which the steps that follow multiply by (1 - eta h)^2. The size of x is that of the solution and
    of all errors, so that the growth of a bad order feeds on itself. An estimate: within a factor of 20 of gradient descent
    in float32, over 30 orders of magnitude.

    Args:
        steps: eta `[N]`.
        spectrum: eigenvalues h `[n]` of the Hessian.
        weights: w `[n]`, the mean square of the solution along each eigenvector (the iteration starts at 0).
        dtype: the floating type that the iteration runs in.

    Returns:
        `[N + 1]`. What a schedule reaches is about this plus `schedule_error`.

    Raises:
        StructureError: an argument that is no vector, or weights unlike the spectrum.

    Example:
        >>> from unrollax.theory import chebyshev_steps, quadratic
        >>> ridge = quadratic(np.random.RandomState(0).randn(100, 50), lam=3.0)
        >>> for order in ("ascending", "stable"):
        ...     steps = chebyshev_steps(48, ridge.L, ridge.mu, order)
        ...     print(f"{rounding_floor(steps, ridge.h, ridge.w)[-1]:.0e}")
        2e+17
        4e-14
    """
    owner = "rounding_floor"
    eta, h, w = vector(owner, "steps", steps), vector(owner, "spectrum", spectrum), vector(owner, "weights", weights)
    same_length(owner, "weights", w, "the spectrum's", h)
    variance = float(np.finfo(jnp.dtype(dtype)).eps) ** 2 / 12
    exact, noise, floor = np.ones_like(h), np.zeros_like(h), [0.0]
    for step in eta:
        exact = exact * (1 - step * h)
        size = w @ (1 - exact) ** 2 + noise.sum()
        noise = (1 - step * h) ** 2 * noise + variance * size * (1 + (step * h.max()) ** 2) / len(h)
        floor.append(noise.sum())
    return np.array(floor)


def _maxima(steps: Any, mu: Any, L: Any, xp: Any) -> Any:
    """Return the local maxima of log |prod_k (1 - eta_k h)| over [mu, L], `[T + 3]`; their places count as constants."""
    points = _critical(_constant(steps), _constant(mu), _constant(L), xp)
    return log_size(1 - steps[:, None] * points[None, :], xp).sum(0)


def _critical(steps: Any, mu: Any, L: Any, xp: Any) -> Any:
    """Return the eigenvalues at which a product can be largest, `[T + 3]`: one between neighbouring roots, and the ends."""
    safe = xp.where(steps == 0, 1, steps)
    roots = xp.clip(xp.sort(xp.where(steps == 0, L, 1 / safe)), mu, L)
    ends = xp.stack([xp.asarray(mu, roots.dtype), xp.asarray(L, roots.dtype)])
    low, high = xp.concatenate([ends[:1], roots]), xp.concatenate([roots, ends[1:]])

    def halve(_: Any, between: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = between
        middle = (low + high) / 2
        factors = 1 - steps[:, None] * middle[None, :]
        # the derivative of the logarithm falls from +inf to -inf; at a root itself any side will do
        rises = (-steps[:, None] / xp.where(factors == 0, 1, factors)).sum(0) > 0
        return xp.where(rises, middle, low), xp.where(rises, high, middle)

    low, high = _loop(xp, halve, (low, high))
    return xp.concatenate([(low + high) / 2, ends])


def _constant(number: Any) -> Any:
    return jax.lax.stop_gradient(number) if isinstance(number, jax.Array) else number


def _loop(xp: Any, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    if xp is jnp:
        return jax.lax.fori_loop(0, HALVINGS, body, carry)
    for index in range(HALVINGS):
        carry = body(index, carry)
    return carry


def _scan(xp: Any, body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any) -> tuple[Any, Any]:
    if xp is jnp:
        return jax.lax.scan(body, carry, rows)
    results = []
    for row in rows:
        carry, result = body(carry, row)
        results.append(result)
    return carry, np.stack(results)
