"""A plain recurrent layer over whole sequences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import StructureError
from unrollax._tree import describe
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.local._layers import check_param, set_transfer, show, with_ones

Weights = dict[str, jax.Array]
orthogonal = jax.nn.initializers.orthogonal()
glorot = jax.nn.initializers.glorot_uniform()


@value
class RecurrentLayer:
    """A plain recurrent layer over sequences: `a_t = h_{t-1} @ wh + x_t @ wx + b`, `h_t = transfer(a_t)`, from h_0 = 0.

    Its outputs are all h. As a layer that is linear in its params it is one matrix that all steps share: what a step saw is
    `[h_{t-1}, x_t, 1]`, and for given such rows, which `forward` returns, the pre-activations are their product with it.

    Args:
        inputs: size n of a step of x `[batch, T, n]`.
        outputs: size m of a step of y `[batch, T, m]`.
        transfer: a name such as `"tanh"`, a function of JAX such as `jax.nn.relu`, or a `Transfer`.

    Raises:
        InvalidArgument: a size is no positive whole number, or there is no such transfer.
        StructureError: when traced, x or params that don't fit.

    Example:
        >>> layer = RecurrentLayer(3, 5)
        >>> params = layer.params(jax.random.key(0))
        >>> y, inputs = layer.forward(params, jnp.ones((4, 7, 3)))
        >>> y.shape, inputs.shape, layer.features(inputs).shape, layer.matrix(params).shape
        ((4, 7, 5), (4, 7, 8), (28, 9), (9, 5))

    References: Elman, Cognitive Science 1990.
    """

    inputs: int = static()
    outputs: int = static()
    transfer: Any = static(default="tanh")  # a Transfer once made

    def __post_init__(self) -> None:
        check_counts("RecurrentLayer", inputs=self.inputs, outputs=self.outputs)
        set_transfer(self, "RecurrentLayer")

    def params(self, key: Key) -> Weights:
        """Draw an orthogonal `wh [m, m]` and a Glorot-uniform `wx [n, m]`; `b [m]` is 0."""
        across, into = jax.random.split(key)
        wh = orthogonal(across, (self.outputs, self.outputs))
        return {"wh": wh, "wx": glorot(into, (self.inputs, self.outputs)), "b": jnp.zeros(self.outputs, wh.dtype)}

    def pre(self, params: Weights, x: Any) -> jax.Array:
        """Return the pre-activations `[batch, T, m]`.

        Args:
            params: as `params(key)` draws them.
            x: sequences `[batch, T, n]`, which are run; or what each step saw, `[batch, T, m + n]`, which is not.
        """
        x = self._check(x, self.inputs, self.outputs + self.inputs)
        if x.shape[-1] == self.inputs:
            return self._run(params, x, None)[0]
        check_param(self, params, **self._shapes())
        weights = jnp.concatenate([params["wh"], params["wx"]])
        return x @ weights + params["b"].reshape(1, 1, -1)

    def forward(self, params: Weights, x: Any, nudge: Any = None) -> tuple[jax.Array, jax.Array]:
        """Return y with `a_t = [h_{t-1}, x_t, 1] @ matrix(params) + nudge_t`, and what each step saw, `[batch, T, m + n]`."""
        x = self._check(x, self.inputs)
        _, before, after = self._run(params, x, nudge)
        return after, jnp.concatenate([before, x.astype(before.dtype)], axis=-1)

    def features(self, inputs: Any) -> jax.Array:
        """Return what the steps saw as rows, with a last column of ones, `[batch * T, m + n + 1]`."""
        inputs = self._check(inputs, self.outputs + self.inputs)
        return with_ones(inputs.reshape(-1, self.outputs + self.inputs), True)

    def matrix(self, params: Weights) -> jax.Array:
        """Return wh, below it wx, below it b, `[m + n + 1, m]`."""
        check_param(self, params, **self._shapes())
        return jnp.concatenate([params["wh"], params["wx"], params["b"][None]])

    def from_matrix(self, matrix: jax.Array) -> Weights:
        """Undo `matrix`."""
        return {"wh": matrix[: self.outputs], "wx": matrix[self.outputs : -1], "b": matrix[-1]}

    def _run(self, params: Weights, x: jax.Array, nudge: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return a, h before each step and h after it, all `[batch, T, m]`."""
        check_param(self, params, **self._shapes())
        given = x @ params["wx"] + params["b"].reshape(1, 1, -1)
        given = given if nudge is None else given + nudge
        kind = jnp.promote_types(given.dtype, params["wh"].dtype)

        def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
            a = h @ params["wh"] + now
            after = self.transfer(a)
            return after, (a, h, after)

        start = jnp.zeros((len(x), self.outputs), kind)
        seen = jax.lax.scan(step, start, jnp.swapaxes(given, 0, 1).astype(kind))[1]
        a, before, after = (jnp.swapaxes(each, 0, 1) for each in seen)
        return a, before, after

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        m = self.outputs
        return {"wh": (m, m), "wx": (self.inputs, m), "b": (m,)}

    def _check(self, x: Any, *sizes: int) -> jax.Array:
        if not hasattr(x, "shape") or len(x.shape) != 3 or x.shape[-1] not in sizes:
            raise StructureError(
                f"{show(self)}: x must be sequences [batch, T, {' or '.join(map(str, sizes))}], got {describe(x)}. "
                "Give one sequence a batch axis, x[None], and a step an axis of features."
            )
        return jnp.asarray(x)
