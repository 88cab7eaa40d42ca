"""Step sizes and momenta in closed form, and the order in which steps can be taken without rounding errors growing."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice, check_counts
from unrollax.theory._arrays import check_bounds, module_of, vector


class Momentum(NamedTuple):
    """Constants of a method with momentum.

    Attributes:
        eta: the step size.
        beta: the momentum, in [0, 1).
    """

    eta: Any
    beta: Any


def gradient_step(L: Any, mu: Any) -> Any:
    """Return 2 / (L + mu), the constant step of gradient descent that is best for the worst eigenvalue in [mu, L].

    Args:
        L: the largest eigenvalue of the Hessian, or the largest curvature.
        mu: the smallest, positive.

    Raises:
        InvalidArgument: unless 0 < mu <= L.

    Example:
        >>> gradient_step(3.0, 1.0)
        0.5

    References: Polyak, Introduction to Optimization, 1987.
    """
    check_bounds("gradient_step", L, mu)
    return 2 / (L + mu)


def heavy_ball_constants(L: Any, mu: Any) -> Momentum:
    """Return the optimal constants of the heavy ball, x_{t+1} = x_t - eta grad(x_t) + beta (x_t - x_{t-1}).

    eta = 4 / (sqrt(L) + sqrt(mu))^2 and beta = ((sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu)))^2, with which the errors of all
    eigenvalues in [mu, L] fall at the same rate sqrt(beta) an iteration.

    Args:
        L: the largest eigenvalue of the Hessian.
        mu: the smallest, positive.

    Raises:
        InvalidArgument: unless 0 < mu <= L.

    Example:
        >>> heavy_ball_constants(9.0, 1.0)
        Momentum(eta=0.25, beta=0.25)

    References: Polyak, USSR Computational Mathematics and Mathematical Physics 1964.
    """
    check_bounds("heavy_ball_constants", L, mu)
    high, low = L**0.5, mu**0.5
    return Momentum(4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2)


def nesterov_constants(L: Any, mu: Any) -> Momentum:
    """Return the optimal constants of Nesterov's method on quadratics.

    The method is x_{t+1} = v_t - eta grad(v_t) with v_t = x_t + beta (x_t - x_{t-1}). On quadratics with eigenvalues in
    [mu, L] the best are eta = 4 / (3 L + mu) and beta = (r - 2) / (r + 2) with r = sqrt(3 L / mu + 1), at the rate 1 - 2 / r.
    The usual ones for convex functions, 1 / L and (sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu)), are slower there.

    Args:
        L: the largest eigenvalue of the Hessian.
        mu: the smallest, positive.

    Raises:
        InvalidArgument: unless 0 < mu <= L.

    Example:
        >>> nesterov_constants(5.0, 1.0)
        Momentum(eta=0.25, beta=0.3333333333333333)

    References: Lessard, Recht and Packard, SIAM Journal on Optimization 2016, proposition 1.
    """
    check_bounds("nesterov_constants", L, mu)
    root = (3 * L / mu + 1) ** 0.5
    return Momentum(4 / (3 * L + mu), (root - 2) / (root + 2))


def chebyshev_steps(n: int, L: Any, mu: Any, order: Literal["stable", "ascending"] = "stable") -> Any:
    """Return the n steps that are best for the worst eigenvalue in [mu, L]: reciprocals of a Chebyshev polynomial's roots.

    eta_k = 1 / ((L + mu)/2 + (L - mu)/2 cos((2 k - 1) pi / 2 n)). After all n, whatever the order, the error along every
    eigenvector is at most 1 / T_n((L + mu) / (L - mu)) of that at the start. Repeated, they are the usual periodic schedule.

    Args:
        n: how many.
        L: the largest eigenvalue of the Hessian.
        mu: the smallest, positive.
        order: "stable", see `stable_order`, or "ascending", in which rounding errors grow without bound with n but which is
            a little better when a period is cut off after its first steps.

    Returns:
        `[n]`, an array of NumPy, of JAX if a bound is.

    Raises:
        InvalidArgument: n isn't positive, the order is unknown, or not 0 < mu <= L.

    Example:
        >>> chebyshev_steps(4, 24.5, 1.0).round(3).tolist()
        [0.042, 0.528, 0.058, 0.121]

    References: Young, Journal of Mathematics and Physics 1953. Lebedev and Finogenov, USSR Computational Mathematics and
    Mathematical Physics 1971.
    """
    check_counts("chebyshev_steps", n=n)
    check_choice("chebyshev_steps", "order", order, ("stable", "ascending"))
    check_bounds("chebyshev_steps", L, mu)
    xp = module_of(L, mu)
    cosines = np.cos((2 * np.arange(1, n + 1) - 1) * np.pi / (2 * n))
    cosines = cosines[stable_order(n)] if order == "stable" else cosines
    steps = 1 / ((L + mu) / 2 + (L - mu) / 2 * xp.asarray(cosines))
    return steps


def stable_order(steps_or_n: Any) -> Any:
    """Return steps in an order in which no intermediate product grows much, or the ranks in that order.

    Lebedev and Finogenov's order pairs each step that is small for the spectrum with one that undoes its growth: the order of
    2 m ranks is that of m, with i followed by 2 m - 1 - i. For an odd number the same is done with m = (n - 1) / 2, and the
    middle rank comes last; so any n will do. For Chebyshev steps no product of neighbours then exceeds about the condition
    number, where it would exceed 1e15 in ascending order for 48 steps and a condition number of 24.5: in float32, gradient
    descent then ends at an error of 3e17 in place of 3e-14. Other steps, such as learned ones, are sorted and taken by rank.

    Args:
        steps_or_n: steps `[n]`, or their number.

    Returns:
        The steps `[n]`, reordered, or for a number the ranks `[n]` from 0, of which 0 is the smallest step.

    Raises:
        InvalidArgument: a number of steps below 1.
        StructureError: steps that are no vector.

    Example:
        >>> stable_order(8).tolist(), stable_order(5).tolist()
        ([0, 7, 3, 4, 1, 6, 2, 5], [0, 4, 1, 3, 2])
        >>> stable_order([1.0, 2.0, 3.0, 4.0]).tolist()
        [1.0, 4.0, 2.0, 3.0]

    References: Lebedev and Finogenov, USSR Computational Mathematics and Mathematical Physics 1971 and 1973 (any n).
    Samarskii and Nikolaev, Numerical Methods for Grid Equations, volume 2, 1989, section 6.2.
    """
    if np.ndim(steps_or_n) == 0:
        check_counts("stable_order", n=steps_or_n)
        return np.array(_ranks(int(steps_or_n)))
    xp = module_of(steps_or_n)
    steps = vector("stable_order", "steps", steps_or_n, xp)
    return xp.sort(steps)[jnp.asarray(_ranks(len(steps))) if xp is jnp else _ranks(len(steps))]


def _ranks(n: int) -> list[int]:
    if n == 1:
        return [0]
    paired = [rank for low in _ranks(n // 2) for rank in (low, n - 1 - low)]
    return [*paired, n // 2] if n % 2 else paired
