"""Unbiased online recurrent optimisation: the influence of the parameters as one random product."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_counts, check_window
from unrollax._estimate import weigh
from unrollax._system import as_system
from unrollax._tree import strong
from unrollax._types import Cost, Data, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._influence import Floats, Influence, Online, floats, leafwise, wide


class RankOne(NamedTuple):
    """The influence as a product of two factors, d state / d params ~ tangents credit^T; leaves `[directions, ...]`."""

    tangents: Floats
    credit: Params


@value
class UORO(Online):
    """Unbiased online recurrent optimisation: RTRL with the influence reduced to a random matrix of rank one.

    J = d state / d params is carried as a product s t^T of a tangent s and params-like numbers t whose mean is J. With D and
    I the derivatives of the state after a window by the state before it and by the params, `lambda` and `direct` those
    of the mean step loss, and nu random signs,

        grad = direct + (lambda s) t,    s' = rho0 D s + rho1 nu,    t' = t / rho0 + nu^T I / rho1,
        rho0 = sqrt(|t| / |D s|),    rho1 = sqrt(|nu^T I| / |nu|),

    which has the least variance of all rho; `directions` such products are averaged.

    Target: exact, in the mean. Needs `vjp` and `jvp`. Cost of a call: `window` steps forward, with `directions` tangents and
    `directions` + 1 cotangents; memory grows with `window`. State: one state of the system, and a tangent and params in at
    least float32 a direction. Where the updates change params inside a horizon, J mixes derivatives at all of them.
    Use it on endless streams where the influence matrix doesn't fit in memory. Avoid it where the system forgets slowly:
    the variance grows with the horizon and with the number of states, and learning needs small rates.

    Args:
        system: what is unrolled; its step must support `jax.jvp` and `jax.vjp`.
        window: steps of a call (K); larger values draw fewer signs a horizon, and so have less variance.
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        directions: independent products; variance falls as 1 / directions.

    Raises:
        InvalidArgument: a count is no positive whole number, or horizon is no multiple of window.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> uoro = ux.UORO(decay, window=1, horizon=2, directions=4)
        >>> state, estimate = uoro.estimate(0.5, uoro.init(jax.random.key(0), 0.5), None)
        >>> state.influence.credit.shape
        (4,)

    References: Tallec and Ollivier, ICLR 2018. Deviations: a window in place of a step, directions, and no small number is
    added to rho: a product that is zero is left out.
    """

    system: System
    window: int = static()
    horizon: int | None = static(default=None)
    directions: int = static(default=1)

    traits: ClassVar[Traits] = Traits(
        target="exact", needs="vjp", cost=Cost(forward="1", jvp="directions", vjp="directions + 1")
    )

    def __post_init__(self) -> None:
        check_window("UORO", self.window, self.horizon)
        check_counts("UORO", directions=self.directions)
        object.__setattr__(self, "system", as_system("UORO", self.system))

    def _nothing(self, params: Params, inner: State) -> Influence:
        def many(leaf: jax.Array) -> jax.Array:
            return jnp.zeros((self.directions, *leaf.shape), wide(leaf))

        return RankOne([many(leaf) for leaf in floats(inner)], jax.tree.map(many, params))

    def _restart(self, params: Params, start: Key, draw: Key) -> tuple[Influence, State]:
        def begin(params: Params) -> tuple[Floats, State]:
            inner = strong(self.system.init(start, params))
            return floats(inner), inner

        leaves, pull, inner = jax.vjp(begin, params, has_aux=True)

        def fresh(key: Key) -> RankOne:
            signs = draw_signs(key, leaves)
            return _balanced(RankOne(signs, pull(_conj(signs))[0]))

        return jax.vmap(fresh)(jax.random.split(draw, self.directions)), inner

    def _advance(
        self, params: Params, influence: Influence, inner: State, data: Data, run: Key, draw: Key
    ) -> tuple[Scalar, Params, Influence, State]:
        leaves = floats(inner)
        window = leafwise("UORO", self.system, inner, data, run, self.window)
        # Linearised once, so that tangents and cotangents share one pass forward.
        (loss, ends), push, after = jax.linearize(window, params, leaves, has_aux=True)
        pull = jax.linear_transpose(push, params, leaves)
        direct, slope = pull((jnp.ones_like(loss), jax.tree.map(jnp.zeros_like, ends)))
        still = jax.tree.map(jnp.zeros_like, params)

        def renew(old: RankOne, key: Key) -> tuple[jax.Array, RankOne]:
            signs = draw_signs(key, ends)
            _, moved = push(still, [s.astype(leaf.dtype) for s, leaf in zip(old.tangents, leaves, strict=True)])
            pulled, _ = pull((jnp.zeros_like(loss), _conj(signs)))
            new = jax.tree.map(jnp.add, _balanced(RankOne(moved, old.credit)), _balanced(RankOne(signs, pulled)))
            return _along(slope, old.tangents), new

        slopes, new = jax.vmap(renew)(influence, jax.random.split(draw, self.directions))
        through = weigh(slopes / self.directions, influence.credit)
        grad = jax.tree.map(lambda d, t: (d + t).astype(d.dtype), direct, through)
        return loss, grad, new, after


def draw_signs(key: Key, leaves: Floats) -> Floats:
    """Draw +1 or -1 for each real number in the leaves; a complex number has two."""

    def signs(key: Key, leaf: jax.Array) -> jax.Array:
        real = leaf.real.dtype
        if not jnp.iscomplexobj(leaf):
            return jax.random.rademacher(key, leaf.shape, real)
        return jax.lax.complex(*jax.random.rademacher(key, (2, *leaf.shape), real))

    keys = jax.random.split(key, max(1, len(leaves)))
    return [signs(key, leaf) for key, leaf in zip(keys, leaves, strict=False)]


def _balanced(product: RankOne) -> RankOne:
    """Return the same product with factors of equal norm, in the dtypes that they are kept in; zeros if it is zero."""
    product = jax.tree.map(lambda leaf: leaf.astype(wide(leaf)), product)
    left, right = _norm(product.tangents), _norm(product.credit)
    some = (left > 0) & (right > 0)
    rho = jnp.sqrt(jnp.where(some, right, 1) / jnp.where(some, left, 1))

    def scaled(tree: Any, by: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jnp.where(some, leaf * by.astype(leaf.dtype), jnp.zeros_like(leaf)), tree)

    return RankOne(scaled(product.tangents, rho), scaled(product.credit, 1 / rho))


def _norm(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(functools.reduce(jnp.add, squares, jnp.zeros((), jnp.float32)))


def _along(cotangents: Floats, tangents: Floats) -> jax.Array:
    """Return the slope along a tangent: a complex cotangent holds the derivatives by both parts, the second negated."""
    products = [jnp.sum((c * t).real) for c, t in zip(cotangents, tangents, strict=True)]
    return functools.reduce(jnp.add, products, jnp.zeros((), jnp.float32))


def _conj(signs: Floats) -> Floats:
    """Turn signs into the cotangents that pair with them."""
    return [jnp.conj(sign) if jnp.iscomplexobj(sign) else sign for sign in signs]
