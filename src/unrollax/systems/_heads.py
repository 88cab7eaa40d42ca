"""Readouts from the output of a cell to a prediction: a number for each component, or a mixture of Gaussians."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.systems._checks import check_output
from unrollax.systems._initial import Weights, glorot


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
        h = check_output("Dense", self.inputs, h)
        out: jax.Array = h @ params["w"] + params["b"]
        return out


class Mixture(NamedTuple):
    """A mixture of K Gaussians in D dimensions, each with independent components; `MixtureDense` predicts them.

    The methods are for one mixture: `jax.vmap` them for many.

    Attributes:
        logits: logarithms of the K weights up to a constant, `[K]`.
        mean: the centres, `[K, D]`.
        log_std: logarithms of the standard deviations, `[K, D]`.
    """

    logits: jax.Array
    mean: jax.Array
    log_std: jax.Array

    def log_prob(self, x: Any) -> jax.Array:
        """Return the logarithm of the density at x `[D]`.

        Raises:
            StructureError: x has another shape than the centres.
        """
        x = jnp.asarray(x)
        if x.shape != self.mean.shape[1:]:
            raise StructureError(
                f"Mixture: x must have the shape of one centre, {describe(self.mean[0])}, got {describe(x)}. "
                "Use one mixture and one point at a time, and jax.vmap for many."
            )
        far = (x[None] - self.mean) * jnp.exp(-self.log_std)
        each = -0.5 * far**2 - self.log_std - 0.5 * math.log(2 * math.pi)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + each.sum(axis=1))

    def expected(self) -> jax.Array:
        """Return the mean of the whole mixture, `[D]`."""
        return jax.nn.softmax(self.logits) @ self.mean

    def sample(self, key: Key) -> jax.Array:
        """Draw a point, `[D]`."""
        which, where = jax.random.split(key)
        k = jax.random.categorical(which, self.logits)
        noise = jax.random.normal(where, self.mean.shape[1:], self.mean.dtype)
        return self.mean[k] + jnp.exp(self.log_std[k]) * noise

    def quantile(self, probability: float | jax.Array) -> jax.Array:
        """Return where each coordinate's own distribution function is `probability`, `[D]`, by bisection; no gradient."""
        weights = jax.nn.softmax(self.logits)
        each = self.mean + jnp.exp(self.log_std) * ndtri(jnp.asarray(probability, self.mean.dtype))

        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            below = weights @ ndtr((middle[None] - self.mean) * jnp.exp(-self.log_std)) < probability
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, 64, halve, (each.min(axis=0), each.max(axis=0)))
        return jax.lax.stop_gradient(0.5 * (low + high))


@value
class MixtureDense:
    """A linear readout of a mixture of Gaussians, for targets that are real numbers with several likely values.

    h W + b is cut into logits, centres and r, and std = min_std + exp(r): without a floor the likelihood grows without bound
    when one component closes on one point.

    Args:
        inputs: size of h.
        outputs: size D of a target.
        components: Gaussians K of the mixture.
        min_std: the smallest standard deviation, in units of the target.

    Raises:
        InvalidArgument: a size is no positive whole number, or min_std is not positive.

    Example:
        >>> readout = MixtureDense(inputs=5, outputs=2, components=3)
        >>> mixture = readout.apply(readout.params(jax.random.key(0)), jnp.ones(5))
        >>> mixture.mean.shape, mixture.sample(jax.random.key(1)).shape
        ((3, 2), (2,))

    References: Bishop, "Mixture density networks", 1994.
    """

    inputs: int = static()
    outputs: int = static()
    components: int = static()
    min_std: float = static(default=1e-3)

    def __post_init__(self) -> None:
        check_counts("MixtureDense", inputs=self.inputs, outputs=self.outputs, components=self.components)
        if not self.min_std > 0:
            raise InvalidArgument(
                f"MixtureDense: min_std must be positive, got min_std={self.min_std}. "
                "Take what is small beside the targets' noise."
            )

    def params(self, key: Key) -> Weights:
        """Draw `w [inputs, K + 2 K D]` and `b [K + 2 K D]`; only the biases of the centres are not 0, but N(0, 1)."""
        weights, biases = jax.random.split(key)
        size = self.components * self.outputs
        b = [jnp.zeros(self.components), jax.random.normal(biases, (size,)), jnp.zeros(size)]
        return {"w": glorot(weights, (self.inputs, self.components + 2 * size)), "b": jnp.concatenate(b)}

    def apply(self, params: Weights, h: Any) -> Mixture:
        """Return the mixture for one h."""
        h = check_output("MixtureDense", self.inputs, h)
        k, shape = self.components, (self.components, self.outputs)
        logits, mean, raw = jnp.split(h @ params["w"] + params["b"], [k, k + k * self.outputs])
        log_std = jnp.logaddexp(raw, jnp.asarray(math.log(self.min_std), raw.dtype))
        return Mixture(logits, mean.reshape(shape), log_std.reshape(shape))


def mixture_nll(prediction: Mixture, target: Any) -> jax.Array:
    """Return the negative logarithm (nats) of a mixture's density at a target `[D]`: a loss for `recurrent`.

    Raises:
        StructureError: the prediction is no `Mixture`, or the target has another shape than the centres.

    Example:
        >>> one = Mixture(logits=jnp.zeros(1), mean=jnp.zeros((1, 2)), log_std=jnp.zeros((1, 2)))
        >>> mixture_nll(one, jnp.zeros(2))
        Array(1.837877, dtype=float32)

    References: Bishop, "Mixture density networks", 1994.
    """
    if not isinstance(prediction, Mixture):
        raise StructureError(
            f"mixture_nll: prediction must be a Mixture, got {describe(prediction)}. Take MixtureDense as the readout."
        )
    return -prediction.log_prob(target)
