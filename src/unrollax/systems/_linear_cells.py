"""Cells whose state is a linear function of the state before: a whole sequence of them is one associative scan."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from unrollax import kernels
from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.systems._checks import as_state, check_x
from unrollax.systems._initial import Weights, check_chrono, chrono_bias, columns, normal


@value
class MinGRUCell:
    """The minimal gated recurrent unit: its gates read the input alone, in the order z, n.

    z = sigmoid(x Wz + bz); n = x Wn + bn; h' = (1 - z) h + z n. As neither z nor n depends on h, a sequence of T steps
    needs no loop of T steps.

    Args:
        inputs: size of x.
        hidden: size of the state h, which is also the output.
        chrono: the longest dependency in steps, or `None`. If given, the bias of z starts at -log U[1, chrono - 1], so that
            the units remember for 2 to `chrono` steps; else at 0.

    Raises:
        InvalidArgument: a size is no positive whole number, or chrono is below 3.

    Example:
        >>> cell = MinGRUCell(inputs=2, hidden=5)
        >>> params = cell.params(jax.random.key(0))
        >>> h, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> params["wx"].shape, output.shape
        ((2, 10), (5,))

    References: Feng et al., "Were RNNs All We Needed?", 2024, in the form without logarithms; Tallec and Ollivier, ICLR 2018
    (chrono).
    """

    inputs: int = static()
    hidden: int = static()
    chrono: int | None = static(default=None)

    keep: ClassVar[str] = "1 - z"

    def __post_init__(self) -> None:
        check_counts("MinGRUCell", inputs=self.inputs, hidden=self.hidden)
        check_chrono("MinGRUCell", self.chrono)

    def params(self, key: Key) -> Weights:
        """Draw `wx [inputs, 2 hidden]` and `b [2 hidden]`."""
        key, times = jax.random.split(key)
        keep = chrono_bias(times, self.hidden, self.chrono)
        return {
            "wx": columns(key, self.inputs, self.hidden, gates=2),
            "b": jnp.concatenate([-keep, jnp.zeros(self.hidden)]),
        }

    def init(self, params: Weights) -> jax.Array:
        """Return h = 0, `[hidden]`."""
        return jnp.zeros(self.hidden, params["b"].dtype)

    def step(self, params: Weights, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the next h, twice: as the state and as the output."""
        z, n = jnp.split(check_x("MinGRUCell", self.inputs, x) @ params["wx"] + params["b"], 2)
        z = jax.nn.sigmoid(z)
        h = (1 - z) * state + z * n
        return as_state(h, state), h

    def gates(self, params: Weights, state: jax.Array, x: jax.Array) -> Weights:
        """Return z and 1 - z, `[hidden]` each; they don't depend on the state."""
        z = jax.nn.sigmoid(jnp.split(x @ params["wx"] + params["b"], 2)[0])
        return {"z": z, "1 - z": 1 - z}

    def unroll(
        self, params: Weights, state: jax.Array, xs: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Run a whole sequence; see `unrollax.kernels.mingru`."""
        return kernels.mingru(params, xs, state, mask=mask, method=_method())


@value
class LRUCell:
    """The linear recurrent unit: a complex diagonal recurrence, stable whatever its parameters are.

    lambda = exp(-exp(nu) + i exp(theta)); h' = lambda h + exp(gamma_log) (x B); the output is Re(h' C) + x D. The
    parameters and the state are real numbers: those of a complex one are a pair. The output is linear in the inputs, so put a
    function between two of these cells: `stacked(..., between=jax.nn.gelu)`.

    Args:
        inputs: size of x.
        hidden: complex numbers in the state h.
        outputs: size of the output; `None` for `hidden`.
        r_min: lambda starts uniformly on the ring between this radius
        r_max: and this one; nearer to 1 remembers longer.
        max_phase: its angle starts uniformly between 0 and this. A small one suits long memory, in which few turns occur.

    Raises:
        InvalidArgument: a size is no positive whole number, or not 0 <= r_min < r_max <= 1, or not 0 < max_phase <= 2 pi.

    Example:
        >>> cell = LRUCell(inputs=2, hidden=5, outputs=3, r_min=0.9, r_max=0.999)
        >>> params = cell.params(jax.random.key(0))
        >>> (re, im), output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> re.shape, output.shape
        ((5,), (3,))

    References: Orvieto et al., ICML 2023. Deviation: D is a matrix, so that the output may have another size than x.
    """

    inputs: int = static()
    hidden: int = static()
    outputs: int | None = static(default=None)
    r_min: float = static(default=0.0)
    r_max: float = static(default=1.0)
    max_phase: float = static(default=2 * math.pi)

    keep: ClassVar[str] = "|lambda|"

    def __post_init__(self) -> None:
        check_counts("LRUCell", inputs=self.inputs, hidden=self.hidden, outputs=self._size)
        if not 0 <= self.r_min < self.r_max <= 1:
            raise InvalidArgument(
                "LRUCell: the ring must have 0 <= r_min < r_max <= 1, "
                f"got r_min={self.r_min}, r_max={self.r_max}. For long memory take 0.9 and 0.999."
            )
        if not 0 < self.max_phase <= 2 * math.pi + 1e-6:
            raise InvalidArgument(
                f"LRUCell: max_phase must be an angle in (0, 2 pi], got max_phase={self.max_phase}. "
                "For long memory take 0.3."
            )

    @property
    def _size(self) -> int:
        return self.hidden if self.outputs is None else self.outputs

    def params(self, key: Key) -> Weights:
        """Draw the eight leaves.

        `nu`, `theta`, `gamma_log` `[hidden]`; `b_re`, `b_im` `[inputs, hidden]`; `c_re`, `c_im` `[hidden, outputs]`;
        `d` `[inputs, outputs]`.
        """
        ring, *keys = jax.random.split(key, 6)
        into, out = 1 / math.sqrt(2 * self.inputs), 1 / math.sqrt(self.hidden)
        return {
            **self._ring(ring),
            "b_re": normal(keys[0], self.inputs, self.hidden, into),
            "b_im": normal(keys[1], self.inputs, self.hidden, into),
            "c_re": normal(keys[2], self.hidden, self._size, out),
            "c_im": normal(keys[3], self.hidden, self._size, out),
            "d": normal(keys[4], self.inputs, self._size, 1 / math.sqrt(self.inputs)),
        }

    def _ring(self, key: Key) -> Weights:
        """Draw lambda uniformly on the ring, and gamma such that white noise keeps its variance in h."""
        area, angle = jax.random.uniform(key, (2, self.hidden), minval=1e-7)  # no logarithm of 0
        log_radius = math.log(self.r_max) + 0.5 * jnp.log1p(-area * (1 - (self.r_min / self.r_max) ** 2))
        nu = jnp.log(-log_radius)
        gamma_log = 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu)))
        return {"nu": nu, "theta": jnp.log(self.max_phase * angle), "gamma_log": gamma_log}

    def init(self, params: Weights) -> tuple[jax.Array, jax.Array]:
        """Return the real and the imaginary part of h = 0, `[hidden]` each."""
        zeros = jnp.zeros(self.hidden, params["nu"].dtype)
        return zeros, zeros

    def step(
        self, params: Weights, state: tuple[jax.Array, jax.Array], x: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Return the parts of the next h, and the output `[outputs]`."""
        x = check_x("LRUCell", self.inputs, x)
        radius, angle = jnp.exp(-jnp.exp(params["nu"])), jnp.exp(params["theta"])
        along, across = radius * jnp.cos(angle), radius * jnp.sin(angle)
        gamma, (re, im) = jnp.exp(params["gamma_log"]), state
        after_re = along * re - across * im + gamma * (x @ params["b_re"])
        after_im = across * re + along * im + gamma * (x @ params["b_im"])
        output = after_re @ params["c_re"] - after_im @ params["c_im"] + x @ params["d"]
        return as_state((after_re, after_im), (re, im)), output

    def gates(self, params: Weights, state: tuple[jax.Array, jax.Array], x: jax.Array) -> Weights:
        """Return |lambda| `[hidden]`, the share of h that a step keeps whatever it reads."""
        return {"|lambda|": jnp.exp(-jnp.exp(params["nu"]))}

    def unroll(
        self, params: Weights, state: tuple[jax.Array, jax.Array], xs: jax.Array, mask: jax.Array | None
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Run a whole sequence; see `unrollax.kernels.lru`."""
        return kernels.lru(params, xs, state, mask=mask, method=_method())


def _method() -> Literal["scan", "associative"]:
    """Return how a linear recurrence runs best here."""
    return "scan" if jax.default_backend() == "cpu" else "associative"
