"""Recurrent cells and a readout, written for one example: sizes are fields, parameters are plain dicts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._estimate import name_of
from unrollax._types import Key
from unrollax._value import static, value

Weights = dict[str, jax.Array]
glorot = jax.nn.initializers.glorot_uniform()
orthogonal = jax.nn.initializers.orthogonal()


def _weights(key: Key, inputs: int, hidden: int, gates: int) -> Weights:
    """Glorot-uniform input weights, orthogonal recurrent weights gate by gate, and zero biases."""
    into, across = jax.random.split(key)
    return {
        "wx": jnp.concatenate([glorot(k, (inputs, hidden)) for k in jax.random.split(into, gates)], axis=1),
        "wh": jnp.concatenate([orthogonal(k, (hidden, hidden)) for k in jax.random.split(across, gates)], axis=1),
        "b": jnp.zeros(gates * hidden),
    }


@value
class RNNCell:
    """The plain recurrent cell: h' = tanh(x Wx + h Wh + b).

    Args:
        inputs: size of x.
        hidden: size of the state h, which is also the output.

    Example:
        >>> cell = RNNCell(inputs=2, hidden=5)
        >>> params = cell.params(jax.random.key(0))
        >>> h, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> output.shape
        (5,)

    References: Elman, Cognitive Science 1990.
    """

    inputs: int = static()
    hidden: int = static()

    def __post_init__(self) -> None:
        check_counts(name_of(self), inputs=self.inputs, hidden=self.hidden)

    def params(self, key: Key) -> Weights:
        """Draw `wx [inputs, hidden]`, `wh [hidden, hidden]` and `b [hidden]`."""
        return _weights(key, self.inputs, self.hidden, gates=1)

    def init(self, params: Weights) -> jax.Array:
        """Return h = 0, `[hidden]`."""
        return jnp.zeros(self.hidden, params["b"].dtype)

    def step(self, params: Weights, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the next h, twice: as the state and as the output."""
        h = jnp.tanh(x @ params["wx"] + state @ params["wh"] + params["b"])
        return h, h


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

    def __post_init__(self) -> None:
        check_counts("LSTMCell", inputs=self.inputs, hidden=self.hidden)
        if self.chrono is not None and self.chrono < 3:
            raise InvalidArgument(
                f"LSTMCell: chrono must be at least 3 steps, got chrono={self.chrono}. Use forget_bias."
            )

    def params(self, key: Key) -> Weights:
        """Draw `wx [inputs, 4 hidden]`, `wh [hidden, 4 hidden]` and `b [4 hidden]`."""
        key, times = jax.random.split(key)
        weights = _weights(key, self.inputs, self.hidden, gates=4)
        forget, opened = jnp.full(self.hidden, self.forget_bias), jnp.zeros(self.hidden)
        if self.chrono is not None:
            forget = jnp.log(jax.random.uniform(times, (self.hidden,), minval=1.0, maxval=self.chrono - 1.0))
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
        h, c = state
        gates = x @ params["wx"] + h @ params["wh"] + params["b"]
        i, f, o, g = jnp.split(gates, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h


@value
class GRUCell:
    """The gated recurrent unit, gates in the order r, z, n, with the reset gate on the recurrent product.

    r, z = sigmoid(x Wx + h Wh + b); n = tanh(x Wx + r (h Wh + bn) + b); h' = (1 - z) n + z h.

    Args:
        inputs: size of x.
        hidden: size of the state h, which is also the output.

    Example:
        >>> cell = GRUCell(inputs=2, hidden=5)
        >>> params = cell.params(jax.random.key(0))
        >>> h, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> params["wh"].shape, output.shape
        ((5, 15), (5,))

    References: Cho et al., EMNLP 2014, in the variant that PyTorch and cuDNN compute.
    """

    inputs: int = static()
    hidden: int = static()

    def __post_init__(self) -> None:
        check_counts(name_of(self), inputs=self.inputs, hidden=self.hidden)

    def params(self, key: Key) -> Weights:
        """Draw `wx [inputs, 3 hidden]`, `wh [hidden, 3 hidden]`, `b [3 hidden]` and `bn [hidden]`."""
        return {**_weights(key, self.inputs, self.hidden, gates=3), "bn": jnp.zeros(self.hidden)}

    def init(self, params: Weights) -> jax.Array:
        """Return h = 0, `[hidden]`."""
        return jnp.zeros(self.hidden, params["b"].dtype)

    def step(self, params: Weights, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the next h, twice: as the state and as the output."""
        xr, xz, xn = jnp.split(x @ params["wx"] + params["b"], 3)
        hr, hz, hn = jnp.split(state @ params["wh"], 3)
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        n = jnp.tanh(xn + r * (hn + params["bn"]))
        h = (1 - z) * n + z * state
        return h, h


@value
class Dense:
    """A linear readout: h W + b.

    Args:
        inputs: size of h.
        outputs: size of the result.

    Example:
        >>> readout = Dense(inputs=5, outputs=3)
        >>> readout.apply(readout.params(jax.random.key(0)), jnp.ones(5)).shape
        (3,)
    """

    inputs: int = static()
    outputs: int = static()

    def __post_init__(self) -> None:
        check_counts("Dense", inputs=self.inputs, outputs=self.outputs)

    def params(self, key: Key) -> Weights:
        """Draw `w [inputs, outputs]` and `b [outputs]`."""
        return {"w": glorot(key, (self.inputs, self.outputs)), "b": jnp.zeros(self.outputs)}

    def apply(self, params: Weights, h: Any) -> jax.Array:
        """Return the output for one h."""
        out: jax.Array = h @ params["w"] + params["b"]
        return out
