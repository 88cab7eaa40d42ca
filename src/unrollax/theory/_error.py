"""The error of a schedule on a quadratic, at every iteration, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from unrollax._check import check_choice, check_counts
from unrollax.theory._arrays import module_of, same_length, vector


def schedule_error(steps: Any, spectrum: Any, weights: Any = None) -> Any:
    """Return the mean squared error of gradient descent with steps eta_1 .. eta_N, after 0 .. N iterations.

    E_t = sum_j w_j prod_{k <= t} (1 - eta_k h_j)^2: a sum of products of positive numbers, so that 1e-27 has as many digits
    as 1. It can be differentiated, and serves as an objective that needs no data.

    Args:
        steps: eta `[N]`.
        spectrum: eigenvalues h `[n]` of the Hessian.
        weights: w `[n]`, at least 0, the error at the start along each eigenvector; `None` for the worst,
            max_j prod_k (1 - eta_k h_j)^2.

    Returns:
        `[N + 1]`, in float64 of NumPy unless an argument is an array of JAX. It underflows below 1e-308 in float64, 1e-38 in
        float32; `log_schedule_error` doesn't.

    Raises:
        StructureError: an argument that is no vector, or weights unlike the spectrum.

    Example:
        >>> schedule_error([0.1, 0.5], [1.0, 2.0, 10.0], [1.0, 1.0, 1.0]).round(4).tolist()
        [3.0, 1.45, 0.2025]
    """
    xp, steps, h, w = _arguments("schedule_error", steps, spectrum, weights)
    products = xp.cumprod(xp.square(1 - steps[:, None] * h[None, :]), axis=0)
    products = xp.concatenate([xp.ones_like(products[:1]), products])
    return products.max(1) if w is None else products @ w


def log_schedule_error(steps: Any, spectrum: Any, weights: Any = None) -> Any:
    """Return the logarithm of `schedule_error`, without underflow, for 10,000 iterations as well as for 10.

    log E_t = log sum_j exp(log w_j + 2 sum_{k <= t} log|1 - eta_k h_j|). It can be differentiated. A factor of exactly 0
    counts as the smallest positive number, and has no gradient.

    Args:
        steps: eta `[N]`.
        spectrum: eigenvalues h `[n]` of the Hessian.
        weights: w `[n]`, positive; `None` for the worst eigenvalue.

    Returns:
        `[N + 1]`, natural logarithms.

    Raises:
        StructureError: an argument that is no vector, or weights unlike the spectrum.

    Example:
        >>> import numpy as np
        >>> log_schedule_error(np.full(10_000, 0.5), [1.0, 3.0], [1.0, 1.0])[-1].round(2)
        np.float64(-13862.25)
    """
    xp, steps, h, w = _arguments("log_schedule_error", steps, spectrum, weights)
    logs = xp.cumsum(2 * log_size(1 - steps[:, None] * h[None, :], xp), axis=0)
    logs = xp.concatenate([xp.zeros_like(logs[:1]), logs])
    if w is None:
        return logs.max(1)
    terms = logs + log_size(w, xp)[None, :]
    top = terms.max(1)
    return top + xp.log(xp.exp(terms - top[:, None]).sum(1))


def momentum_error(
    method: str, eta: Any, beta: Any, spectrum: Any, weights: Any = None, *, iterations: int | None = None
) -> Any:
    """Return the mean squared error of heavy ball or Nesterov's method, after 0 .. N iterations.

    Along an eigenvector with eigenvalue h, e_{t+1} = (1 + beta_t - eta_t h) e_t - beta_t e_{t-1} for the heavy ball and
    e_{t+1} = (1 - eta_t h) ((1 + beta_t) e_t - beta_t e_{t-1}) for Nesterov's, with e_{-1} = e_0 = 1.

    Args:
        method: "heavy_ball" or "nesterov".
        eta: the step size, or those of the iterations `[N]`.
        beta: the momentum, or those of the iterations `[N]`.
        spectrum: eigenvalues h `[n]` of the Hessian.
        weights: w `[n]`; `None` for the worst eigenvalue.
        iterations: N, for constants.

    Returns:
        `[N + 1]`.

    Raises:
        InvalidArgument: an unknown method, or constants without `iterations`.
        StructureError: an argument that is no vector, or vectors of different lengths.

    Example:
        >>> momentum_error("heavy_ball", 0.25, 0.25, [1.0, 9.0], [1.0, 1.0], iterations=3).round(3).tolist()
        [2.0, 2.125, 1.25, 0.57]
    """
    check_choice("momentum_error", "method", method, ("heavy_ball", "nesterov"))
    xp = module_of(eta, beta, spectrum, weights)
    _, _, h, w = _arguments("momentum_error", [0.0], spectrum, weights, xp)
    eta, beta = _per_iteration(eta, beta, iterations, xp)
    before = now = xp.ones_like(h)
    errors = [now]
    for step, momentum in zip(eta, beta, strict=True):
        if method == "heavy_ball":
            before, now = now, (1 - step * h) * now + momentum * (now - before)
        else:
            before, now = now, (1 - step * h) * (now + momentum * (now - before))
        errors.append(now)
    squares = xp.square(xp.stack(errors))
    return squares.max(1) if w is None else squares @ w


def log_size(numbers: Any, xp: Any) -> Any:
    """Return log|u|, with the smallest positive number in the place of 0."""
    sizes = xp.abs(numbers)
    zero = sizes == 0
    return xp.where(zero, xp.log(xp.finfo(sizes.dtype).tiny), xp.log(xp.where(zero, 1, sizes)))


def _per_iteration(eta: Any, beta: Any, iterations: int | None, xp: Any) -> tuple[Any, Any]:
    """Return both constants as vectors of one length."""
    owner = "momentum_error"
    lengths = [len(numbers) for numbers in (eta, beta) if np.ndim(numbers)]
    if not lengths:
        check_counts(owner, iterations=iterations)
    many = lengths[0] if lengths else iterations
    pair = [xp.full(many, numbers) if not np.ndim(numbers) else numbers for numbers in (eta, beta)]
    eta, beta = vector(owner, "eta", pair[0], xp), vector(owner, "beta", pair[1], xp)
    same_length(owner, "beta", beta, "eta", eta)
    return eta, beta


def _arguments(owner: str, steps: Any, spectrum: Any, weights: Any, xp: Any = None) -> tuple[Any, Any, Any, Any]:
    """Return the module to compute with, and the arguments as its vectors."""
    xp = xp or module_of(steps, spectrum, weights)
    steps, h = vector(owner, "steps", steps, xp), vector(owner, "spectrum", spectrum, xp)
    if weights is None:
        return xp, steps, h, None
    w = vector(owner, "weights", weights, xp)
    same_length(owner, "weights", w, "the spectrum's", h)
    return xp, steps, h, w
