"""Recurrent cells, written for one example: sizes are fields, parameters are plain dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from unrollax import kernels
from unrollax._check import check_choice, check_counts
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.systems._checks import as_state, check_x
from unrollax.systems._initial import Weights, check_chrono, chrono_bias, gated, normal

Initial = Literal["orthogonal", "identity"]
Activation = Literal["tanh", "relu"]


@value
class RNNCell:
    """The plain recurrent cell: h' = f(x Wx + h Wh + b).

    Args:
        inputs: size of x.
        hidden: size of the state h, which is also the output.
        activation: f, `"tanh"` or `"relu"`.
        initial: how the weights start. `"orthogonal"`: a random orthogonal Wh and Glorot-uniform Wx; `"identity"`: the
            identity, and Wx ~ N(0, 0.001^2), which with `"relu"` keeps the state for long (the IRNN). The bias is zero.
        scale: what multiplies Wh at the start; below 1 forgets sooner.

    Raises:
        InvalidArgument: a size is no positive whole number, or there is no such activation or start.

    Example:
        >>> cell = RNNCell(inputs=2, hidden=5, activation="relu", initial="identity")
        >>> params = cell.params(jax.random.key(0))
        >>> h, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> output.shape
        (5,)

    References: Elman, Cognitive Science 1990; Le, Jaitly and Hinton, 2015 (identity).
    """

    inputs: int = static()
    hidden: int = static()
    activation: Activation = static(default="tanh")
    initial: Initial = static(default="orthogonal")
    scale: float = static(default=1.0)

    def __post_init__(self) -> None:
        check_counts("RNNCell", inputs=self.inputs, hidden=self.hidden)
        check_choice("RNNCell", "activation", self.activation, get_args(Activation))
        check_choice("RNNCell", "initial", self.initial, get_args(Initial))

    def params(self, key: Key) -> Weights:
        """Draw `wx [inputs, hidden]`, `wh [hidden, hidden]` and `b [hidden]`."""
        if self.initial == "identity":
            wx, b = normal(key, self.inputs, self.hidden, 0.001), jnp.zeros(self.hidden)
            return {"wx": wx, "wh": self.scale * jnp.eye(self.hidden), "b": b}
        weights = gated(key, self.inputs, self.hidden, gates=1)
        return weights | {"wh": self.scale * weights["wh"]}

    def init(self, params: Weights) -> jax.Array:
        """Return h = 0, `[hidden]`."""
        return jnp.zeros(self.hidden, params["b"].dtype)

    def step(self, params: Weights, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the next h, twice: as the state and as the output."""
        x = check_x("RNNCell", self.inputs, x)
        h = self._f(x @ params["wx"] + state @ params["wh"] + params["b"])
        return as_state(h, state), h

    def unroll(
        self, params: Weights, state: jax.Array, xs: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Run a whole sequence; see `unrollax.kernels.rnn`."""
        return kernels.rnn(params, xs, state, activation=self.activation, mask=mask)

    @property
    def _f(self) -> Callable[[jax.Array], jax.Array]:
        return jnp.tanh if self.activation == "tanh" else jax.nn.relu


@value
class LSTMCell:
    """Long short-term memory, gates in the order i, f, o, g.

    i, f, o = sigmoid(..), g = tanh(..) of x Wx + h Wh + b; c' = f c + i g; h' = o tanh(c').

    Args:
        inputs: size of x.
        hidden: size of c and of h, which is the output.
        forget_bias: starts the forget gate's bias; larger values remember longer from the start.
        chrono: the longest dependency in steps, or `None`. If given, the forget gate's bias starts at log U[1, chrono - 1]
            and the input gate's at its negative, and `forget_bias` is not used.

    Raises:
        InvalidArgument: a size is no positive whole number, or chrono is below 3.

    Example:
        >>> cell = LSTMCell(inputs=2, hidden=5)
        >>> params = cell.params(jax.random.key(0))
        >>> (h, c), output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> params["wx"].shape, output.shape
        ((2, 20), (5,))

    References: Hochreiter and Schmidhuber, Neural Computation 1997; Gers et al., Neural Computation 2000 (forget gate);
    Tallec and Ollivier, ICLR 2018 (chrono).
    """

    inputs: int = static()
    hidden: int = static()
    forget_bias: float = static(default=1.0)
    chrono: int | None = static(default=None)

    keep: ClassVar[str] = "f"

    def __post_init__(self) -> None:
        check_counts("LSTMCell", inputs=self.inputs, hidden=self.hidden)
        check_chrono("LSTMCell", self.chrono, "Use forget_bias.")

    def params(self, key: Key) -> Weights:
        """Draw `wx [inputs, 4 hidden]`, `wh [hidden, 4 hidden]` and `b [4 hidden]`."""
        key, times = jax.random.split(key)
        weights = gated(key, self.inputs, self.hidden, gates=4)
        forget, opened = jnp.full(self.hidden, self.forget_bias), jnp.zeros(self.hidden)
        if self.chrono is not None:
            forget = chrono_bias(times, self.hidden, self.chrono)
            opened = -forget
        rest = jnp.zeros(2 * self.hidden)
        return {**weights, "b": jnp.concatenate([opened, forget, rest])}

    def init(self, params: Weights) -> tuple[jax.Array, jax.Array]:
        """Return h = 0 and c = 0, `[hidden]` each."""
        zeros = jnp.zeros(self.hidden, params["b"].dtype)
        return zeros, zeros

    def step(
        self, params: Weights, state: tuple[jax.Array, jax.Array], x: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Return the next (h, c), and h as the output."""
        gates = self.gates(params, state, check_x("LSTMCell", self.inputs, x))
        c = gates["f"] * state[1] + gates["i"] * gates["g"]
        h = gates["o"] * jnp.tanh(c)
        return as_state((h, c), tuple(state)), h

    def gates(self, params: Weights, state: tuple[jax.Array, jax.Array], x: jax.Array) -> Weights:
        """Return i, f, o and g, `[hidden]` each, as a step from this state applies them."""
        i, f, o, g = jnp.split(x @ params["wx"] + state[0] @ params["wh"] + params["b"], 4)
        return {"i": jax.nn.sigmoid(i), "f": jax.nn.sigmoid(f), "o": jax.nn.sigmoid(o), "g": jnp.tanh(g)}

    def kept(self, state: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Return the part of the state that the gate named by `keep` multiplies: c."""
        return state[1]

    def unroll(
        self, params: Weights, state: tuple[jax.Array, jax.Array], xs: jax.Array, mask: jax.Array | None
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Run a whole sequence; see `unrollax.kernels.lstm`."""
        return kernels.lstm(params, xs, state, mask=mask)


@value
class GRUCell:
    """The gated recurrent unit, gates in the order r, z, n, with the reset gate on the recurrent product.

    r, z = sigmoid(x Wx + h Wh + b); n = tanh(x Wx + r (h Wh + bn) + b); h' = (1 - z) n + z h.

    Args:
        inputs: size of x.
        hidden: size of the state h, which is also the output.
        chrono: the longest dependency in steps, or `None`. If given, the bias of z, which keeps the old h, starts at
            log U[1, chrono - 1], so that the units remember for 2 to `chrono` steps; else at 0.

    Raises:
        InvalidArgument: a size is no positive whole number, or chrono is below 3.

    Example:
        >>> cell = GRUCell(inputs=2, hidden=5)
        >>> params = cell.params(jax.random.key(0))
        >>> h, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> params["wh"].shape, output.shape
        ((5, 15), (5,))

    References: Cho et al., EMNLP 2014, in the variant that PyTorch and cuDNN compute; Tallec and Ollivier, ICLR 2018
    (chrono, whose update gate is 1 - z).
    """

    inputs: int = static()
    hidden: int = static()
    chrono: int | None = static(default=None)

    keep: ClassVar[str] = "z"

    def __post_init__(self) -> None:
        check_counts("GRUCell", inputs=self.inputs, hidden=self.hidden)
        check_chrono("GRUCell", self.chrono)

    def params(self, key: Key) -> Weights:
        """Draw `wx [inputs, 3 hidden]`, `wh [hidden, 3 hidden]`, `b [3 hidden]` and `bn [hidden]`."""
        weights, zeros = gated(key, self.inputs, self.hidden, gates=3), jnp.zeros(self.hidden)
        if self.chrono is not None:
            keep = chrono_bias(jax.random.fold_in(key, 3), self.hidden, self.chrono)
            weights |= {"b": jnp.concatenate([zeros, keep, zeros])}
        return weights | {"bn": zeros}

    def init(self, params: Weights) -> jax.Array:
        """Return h = 0, `[hidden]`."""
        return jnp.zeros(self.hidden, params["b"].dtype)

    def step(self, params: Weights, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the next h, twice: as the state and as the output."""
        gates = self.gates(params, state, check_x("GRUCell", self.inputs, x))
        h = (1 - gates["z"]) * gates["n"] + gates["z"] * state
        return as_state(h, state), h

    def gates(self, params: Weights, state: jax.Array, x: jax.Array) -> Weights:
        """Return r, z and n, `[hidden]` each, as a step from this state applies them."""
        xr, xz, xn = jnp.split(x @ params["wx"] + params["b"], 3)
        hr, hz, hn = jnp.split(state @ params["wh"], 3)
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        return {"r": r, "z": z, "n": jnp.tanh(xn + r * (hn + params["bn"]))}

    def unroll(
        self, params: Weights, state: jax.Array, xs: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Run a whole sequence; see `unrollax.kernels.gru`."""
        return kernels.gru(params, xs, state, mask=mask)
