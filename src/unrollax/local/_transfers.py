"""Transfer functions, and the convex potential of each, from which its matching loss comes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import POSITIVE, check_number
from unrollax._errors import InvalidArgument, StructureError, nearest
from unrollax._tree import describe
from unrollax._value import static, value

# Coefficients of s, s^2, s^3, s^5, ... in -Li2(-e^a) for s = log(1 + e^a): the numbers of Bernoulli over factorials.
DILOGARITHM = (1.0, 1 / 4, 1 / 36, -1 / 3600, 1 / 211680, -1 / 10886400, 1 / 526901760, -691 / 16999766784000)
LAST = 1 / 1120863744000  # B14 / 15!


@value
class Transfer:
    """A transfer function y = f(a), with a convex potential F whose gradient it is.

    The matching loss of a target is `F(a) - a . target`, whose gradient in `a` is `f(a) - target`: it is convex in `a`, and
    in the weights of a linear layer before it, whatever f is. Up to what does not depend on `a` it is the Bregman divergence
    of F between `a` and the pre-activation of the target. `transfer(name)` looks a ready one up.

    Args:
        name: what to call it.
        function: f, from `[..., m]` to `[..., m]`, of each number by itself or of the last axis as a whole.
        potential: F, from `[..., m]` to `[...]`: for an elementwise f its antiderivative, summed over the last axis. `None`:
            it has no matching loss.
        slope: the largest slope of f (of a vector function, the largest eigenvalue of its Jacobian); `None`: not known.

    Raises:
        InvalidArgument: function or potential can't be called, or slope is not positive.

    Example:
        >>> import unrollax as ux
        >>> arctan = ux.Transfer("arctan", jnp.arctan, lambda a: (a * jnp.arctan(a) - 0.5 * jnp.log1p(a**2)).sum(-1), 1.0)
        >>> a, target = jnp.array([2.0, 0.0]), jnp.array([0.5, 0.5])
        >>> jax.grad(arctan.matching_loss)(a, target), arctan(a) - target
        (Array([ 0.607..., -0.5 ], dtype=float32), Array([ 0.607..., -0.5 ], dtype=float32))

    References: Auer, Herbster and Warmuth, NeurIPS 1995 (matching loss); Amid, Anil and Warmuth, AISTATS 2022.
    """

    name: str = static()
    function: Callable[[Any], Any] = static(repr=False)
    potential: Callable[[Any], Any] | None = static(default=None, repr=False)
    slope: float | None = static(default=None)

    def __post_init__(self) -> None:
        for part, got in (("function", self.function), ("potential", self.potential)):
            if not callable(got) and (part == "function" or got is not None):
                raise InvalidArgument(
                    f"Transfer: {part} must be a function of an array [..., m], got {part}={got!r}. Pass one such as "
                    f"{'jnp.arctan' if part == 'function' else 'lambda a: (a**2).sum(-1) / 2'}."
                )
        if self.slope is not None:
            check_number("Transfer", "slope", self.slope, POSITIVE, used=True)

    def __call__(self, a: Any) -> Any:
        """Return f(a), `[..., m]`."""
        return self.function(a)

    def matching_loss(self, a: Any, target: Any) -> jax.Array:
        """Return `F(a) - a . target` over the last axis, `[...]`, at least in float32.

        The target may lie outside the range of f; the loss is then not bounded from below, but its gradient
        `f(a) - target` is the same.

        Raises:
            InvalidArgument: the transfer has no potential.
            StructureError: a and target differ in shape.
        """
        a, target = self._wide("matching_loss", "target", a, target)
        return self._potential(a) - (a * target).sum(-1)

    def bregman(self, a: Any, b: Any) -> jax.Array:
        """Return `F(a) - F(b) - f(b) . (a - b)` over the last axis, `[...]`: 0 where f(a) = f(b), else positive.

        Raises:
            InvalidArgument: the transfer has no potential.
            StructureError: a and b differ in shape.
        """
        a, b = self._wide("bregman", "b", a, b)
        found = self._potential(a) - self._potential(b) - (self.function(b) * (a - b)).sum(-1)
        return found + jax.lax.stop_gradient(jnp.maximum(found, 0) - found)  # what rounding makes negative

    def _wide(self, method: str, name: str, a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
        if jnp.shape(a) != jnp.shape(b) or not jnp.ndim(a):
            raise StructureError(
                f"Transfer.{method}: a and {name} must be [..., m] with the same shape, got {describe(a)} and {describe(b)}. "
                "Broadcast one to the other."
            )
        return wide(a), wide(b)

    def _potential(self, a: jax.Array) -> jax.Array:
        if self.potential is None:
            raise InvalidArgument(
                f"Transfer: {self.name!r} must have a potential for a matching loss, got potential=None. Pass its "
                f"antiderivative, summed over the last axis: Transfer({self.name!r}, function, potential)."
            )
        found = self.potential(a)
        if jnp.shape(found) != a.shape[:-1]:
            raise StructureError(
                f"Transfer: the potential of {self.name!r} must be {list(a.shape[:-1])} for {describe(a)}, got "
                f"{describe(found)}. Sum it over the last axis alone."
            )
        return jnp.asarray(found)


def wide(a: Any) -> jax.Array:
    """Return an array of at least float32."""
    a = jnp.asarray(a)
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def _identity(a: Any) -> Any:
    return a


def _square(a: Any) -> Any:
    return 0.5 * jnp.square(wide(a)).sum(-1)


def _relu(a: Any) -> Any:
    return 0.5 * jnp.square(jax.nn.relu(wide(a))).sum(-1)


def _leaky(a: Any) -> Any:
    a = wide(a)
    return 0.5 * (a * jax.nn.leaky_relu(a)).sum(-1)


def _log_cosh(a: Any) -> Any:
    """Return log cosh a without cancellation near 0 and without overflow far from it."""
    a = wide(a)
    near = 0.5 * jnp.log1p(jnp.square(jnp.sinh(jnp.clip(a, -1, 1))))
    size = jnp.abs(a)
    return jnp.where(size < 1, near, size + jnp.log1p(jnp.exp(-2 * size)) - math.log(2)).sum(-1)


def _softplus(a: Any) -> Any:
    return jax.nn.softplus(wide(a)).sum(-1)


def _dilogarithm(a: Any) -> Any:
    """Return -Li2(-e^a), the antiderivative of softplus; for a > 0 by pi^2 / 6 + a^2 / 2 + Li2(-e^-a)."""
    a = wide(a)
    s = jax.nn.softplus(jnp.where(a > 0, -a, a))  # -|a|, whose slope at 0 is that of the lower side
    first, second, *odd = DILOGARITHM
    square, tail = s * s, jnp.full_like(s, LAST)
    for coefficient in odd[::-1]:
        tail = coefficient + square * tail
    below = s * (first + s * (second + s * tail))
    return jnp.where(a > 0, math.pi**2 / 6 + 0.5 * a * a - below, below).sum(-1)


def _log_sum_exp(a: Any) -> Any:
    return jax.nn.logsumexp(wide(a), axis=-1)


READY = {
    each.name: each
    for each in (
        Transfer("identity", _identity, _square, 1.0),
        Transfer("relu", jax.nn.relu, _relu, 1.0),
        Transfer("leaky_relu", jax.nn.leaky_relu, _leaky, 1.0),
        Transfer("tanh", jnp.tanh, _log_cosh, 1.0),
        Transfer("sigmoid", jax.nn.sigmoid, _softplus, 0.25),
        Transfer("softplus", jax.nn.softplus, _dilogarithm, 1.0),
        Transfer("softmax", jax.nn.softmax, _log_sum_exp, 0.5),
    )
}
ALIASES: tuple[tuple[Any, str], ...] = (
    (jax.nn.identity, "identity"),
    (jax.lax.tanh, "tanh"),
    (jax.lax.logistic, "sigmoid"),
)


def transfer(given: str | Callable[[Any], Any]) -> Transfer:
    """Return a transfer function by its name or by the function of JAX itself.

    | name | f(a) | F(a) | largest slope |
    |---|---|---|---|
    | `identity` | a | a^2 / 2 | 1 |
    | `relu` | max(a, 0) | max(a, 0)^2 / 2 | 1 |
    | `leaky_relu` | max(a, a / 100) | a f(a) / 2 | 1 |
    | `tanh` | tanh a | log cosh a | 1 |
    | `sigmoid` | 1 / (1 + e^-a) | log(1 + e^a) | 1/4 |
    | `softplus` | log(1 + e^a) | -Li2(-e^a), the dilogarithm | 1 |
    | `softmax` | e^a / sum of e^a, over the last axis | log of that sum | 1/2 |

    Args:
        given: one of these names; `jnp.tanh`, `jax.nn.relu` and the like, which other libraries give out as their own; or a
            `Transfer`, which is returned.

    Raises:
        InvalidArgument: a name or a function that is none of these; make a `Transfer` of it.

    Example:
        >>> transfer("sigmoid")
        Transfer(name='sigmoid', slope=0.25)
        >>> transfer(jax.nn.relu)(jnp.array([-1.0, 2.0]))
        Array([0., 2.], dtype=float32)
    """
    if isinstance(given, Transfer):
        return given
    if isinstance(given, str) and given in READY:
        return READY[given]
    found = None if isinstance(given, str) else known(given)
    if found is not None:
        return found
    if isinstance(given, str):
        raise InvalidArgument(
            f"transfer: {given!r} must be the name of a transfer function. {nearest(given, READY)} For another make "
            "Transfer(name, function, potential)."
        )
    raise InvalidArgument(
        f"transfer: a function must be that of one of {', '.join(sorted(READY))}, got "
        f"{getattr(given, '__qualname__', None) or repr(given)}. For another make Transfer(name, function, potential)."
    )


def known(function: Any) -> Transfer | None:
    """Return the ready transfer whose function this is, if it is one."""
    for each in READY.values():
        if function is each.function:
            return each
    return next((READY[name] for alias, name in ALIASES if function is alias), None)
