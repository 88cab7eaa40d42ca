"""Sparse recovery: few of the unknowns are not zero, and there are fewer measurements than unknowns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import FINITE, NOT_NEGATIVE, UP_TO_ONE, check_counts, check_number
from unrollax._types import Key
from unrollax._value import value
from unrollax.problems._problem import Problem, measured


@value
class SparseRecovery:
    """Bernoulli-Gauss signals behind one matrix; made by `sparse_recovery` or `du_ista`.

    Attributes:
        A: the matrix that all problems share, `[m, n]`.
        p: the probability that an entry of x is not zero; such an entry is N(0, 1).
        noise: the standard deviation of the noise of each measurement.
    """

    A: jax.Array
    p: Any
    noise: Any

    def draw(self, key: Key) -> tuple[jax.Array, jax.Array]:
        """Return what was measured, `[m]`, and the signal, `[n]`."""
        where, what, noise = jax.random.split(key, 3)
        shape, dtype = self.A.shape[1:], self.A.dtype
        x = jax.random.bernoulli(where, self.p, shape) * jax.random.normal(what, shape, dtype)
        return measured(noise, self.A @ x, self.noise), x

    def whole(self, own: tuple[jax.Array, jax.Array]) -> Problem:
        """Return the problem of what `draw` gave."""
        return Problem(self.A, *own, noise=self.noise)


def sparse_recovery(
    m: int = 250, n: int = 500, p: float = 0.1, snr_db: float | None = 40.0, seed: int = 0
) -> SparseRecovery:
    """Recover a Bernoulli-Gauss signal x from y = A x + noise e, with m < n measurements.

    The entries of A are N(0, 1/m), from `np.random.RandomState(seed)`, and the same for all problems. Each entry of x is
    N(0, 1) with probability p, else 0. The noise is set so that ``E |A x|^2 / E |noise e|^2 = 10^(snr_db / 10)`` for this A:
    its variance is ``p |A|_F^2 / (m 10^(snr_db / 10))``.

    Args:
        m: measurements.
        n: unknowns.
        p: share of entries of x that are not 0.
        snr_db: signal-to-noise ratio in decibels; `None` for no noise.
        seed: of A.

    Raises:
        InvalidArgument: a size is no positive whole number, p is outside (0, 1], or snr_db is not finite.

    Example:
        >>> import jax
        >>> from unrollax.problems import sparse_recovery
        >>> problems = sparse_recovery()
        >>> y, x = jax.jit(jax.vmap(problems.draw))(jax.random.split(jax.random.key(0), 100))
        >>> y.shape, x.shape, round(float((x != 0).mean()), 1), f"{problems.noise:.5f}"
        ((100, 250), (100, 500), 0.1, '0.00446')

    References: Ito, Takabe and Wadayama, Trainable ISTA for sparse signal recovery, IEEE Trans. Signal Processing 2019.
    """
    check_counts("sparse_recovery", m=m, n=n)
    check_number("sparse_recovery", "p", p, UP_TO_ONE, used=True)
    a = np.random.RandomState(seed).randn(m, n) / np.sqrt(m)
    if snr_db is None:
        return SparseRecovery(jnp.asarray(a), float(p), 0.0)
    check_number("sparse_recovery", "snr_db", snr_db, FINITE, used=True)
    noise = np.sqrt(p * (a**2).sum() / m * 10 ** (-snr_db / 10))
    return SparseRecovery(jnp.asarray(a), float(p), float(noise))


def du_ista(n: int = 128, m: int = 64, sigma: float = 0.1, p: float = 0.05, seed: int = 0) -> SparseRecovery:
    """Recover a Bernoulli-Gauss signal as the book on deep unfolding has it.

    The entries of A are N(0, 1) and the same for all problems, those of the noise N(0, sigma^2). The baseline is ISTA with a
    step of 1 / L and lam = 1, for which the mean of ``|x - truth|^2`` (a sum over entries) is about 1.9 after 40 iterations.

    Args:
        n: unknowns.
        m: measurements.
        sigma: standard deviation of the noise.
        p: share of entries of x that are not 0.
        seed: of A, `np.random.RandomState(seed).randn(m, n)`.

    Raises:
        InvalidArgument: a size is no positive whole number, p is outside (0, 1], or sigma is negative.

    Example:
        >>> from unrollax.problems import du_ista
        >>> du_ista()
        SparseRecovery(A=float32[64, 128], p=0.05, noise=0.1)

    References: Wadayama, Model-based deep learning and deep unfolding (Morikita), 2023, chapter 4 (in Japanese).
    """
    check_counts("du_ista", n=n, m=m)
    check_number("du_ista", "p", p, UP_TO_ONE, used=True)
    check_number("du_ista", "sigma", sigma, NOT_NEGATIVE, used=True)
    return SparseRecovery(jnp.asarray(np.random.RandomState(seed).randn(m, n)), float(p), float(sigma))
