"""Detection of QPSK symbols behind a random channel with more transmitters than receivers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import FINITE, check_counts, check_number
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.problems._problem import Problem, measured


@value
class MIMO:
    """QPSK symbols behind a fresh channel each; made by `mimo`.

    Attributes:
        n: transmitting antennas.
        m: receiving antennas.
        noise: the standard deviation of the real and of the imaginary part of the noise.
    """

    n: int = static()
    m: int = static()
    noise: Any = 0.0

    def draw(self, key: Key) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the channel `[2 m, 2 n]`, what was received `[2 m]`, and the bits as -1 and 1 `[2 n]`."""
        channel, bits, noise = jax.random.split(key, 3)
        real, imaginary = jax.random.normal(channel, (2, self.m, self.n)) * jnp.sqrt(0.5)
        a = jnp.block([[real, -imaginary], [imaginary, real]])
        x = jax.random.rademacher(bits, (2 * self.n,), a.dtype)
        return a, measured(noise, a @ x, self.noise), x

    def whole(self, own: tuple[jax.Array, jax.Array, jax.Array]) -> Problem:
        """Return the problem of what `draw` gave."""
        return Problem(*own, noise=self.noise)


def mimo(n: int = 50, m: int = 32, snr_db: float = 15.0) -> MIMO:
    """Find which bits n antennas sent, from what m antennas received: y = H x + noise, with a fresh H for each problem.

    H is complex with entries CN(0, 1) and the symbols are QPSK, ``+-1 +- i``. All is turned to real numbers: x, of -1 and 1,
    has the real parts first and then the imaginary ones, and ``A = [[Re H, -Im H], [Im H, Re H]]`` is `[2 m, 2 n]`. The
    ratio is that of the power of the signal to that of the noise at a receiving antenna: the noise has the variance
    ``n 10^(-snr_db / 10)`` in each real entry.

    Args:
        n: transmitting antennas; 2 n bits.
        m: receiving antennas; below n the channel is overloaded.
        snr_db: signal-to-noise ratio at a receiving antenna, in decibels.

    Raises:
        InvalidArgument: a number of antennas is no positive whole number, or snr_db is not finite.

    Example:
        >>> import jax
        >>> from unrollax.problems import mimo
        >>> problems = mimo(snr_db=20.0)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> problem.A.shape, sorted(set(problem.x.tolist()))
        ((64, 100), [-1.0, 1.0])

    References: Takabe, Imanishi, Wadayama, Hayakawa and Hayashi, Trainable projected gradient detector for massive
    overloaded MIMO channels, IEEE Access 2019.
    """
    check_counts("mimo", n=n, m=m)
    check_number("mimo", "snr_db", snr_db, FINITE, used=True)
    return MIMO(n, m, float((n * 10 ** (-snr_db / 10)) ** 0.5))
