"""The engine of `gradient_flow`: the cotangents of many losses through one backward pass.

The states of the forward pass are kept, and each step is linearised anew where the backward pass meets it: once for all
losses. A loss' cotangent is held with its largest number near 1 and a power of two beside it, so that its norms neither
under- nor overflow, however far back they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._checkpointed import depending
from unrollax._tree import Static, combine, partition, strong
from unrollax._types import Key, Params, System
from unrollax.diagnosis._forward import Floats, Path, Run, floats_of, run_of
from unrollax.diagnosis._probes import Probed, norm, probe

FAR = 100  # the largest power of two that a cotangent is scaled by at once: its inverse is no subnormal number


class Norms(NamedTuple):
    """Norms of the gradients of B losses; those of row s are to be multiplied by 2 to the power of `powers[s]`.

    Attributes:
        leaves: with respect to each leaf of params as used at a step, `[T, B, leaves]`.
        states: with respect to the state before a step, `[T, B]`.
        powers: int32 `[T, B]`.
        sums: the cotangent of the state before a step, summed over the losses, leaves `[T, ...]`.
    """

    leaves: jax.Array
    states: jax.Array
    powers: jax.Array
    sums: Floats


class Start(NamedTuple):
    """Norms of the gradients of B losses with respect to each leaf of params through `init`, `[B, leaves]`; see `Norms`."""

    leaves: jax.Array
    powers: jax.Array


class Cuts(NamedTuple):
    """Gradients of weighted losses, each through windows of its own length.

    Attributes:
        grads: by leaf of params, `[m, ...]`.
        sums: the cotangent of the state before a step, for the last of them, leaves `[T, ...]`.
    """

    grads: Floats
    sums: Floats


def norms_back(system: System, params: Params, path: Path, at: Any, *, by_params: bool = True) -> tuple[Norms, Start]:
    """Send the cotangents of the losses `at` `[B]` back to the start; a negative one is no loss."""
    arrays, rest = partition((system, params))
    return _norms_back(arrays, rest, path, at, by_params)


@functools.partial(jax.jit, static_argnums=(1, 4))
def _norms_back(arrays: list[Any], rest: Static, path: Path, at: jax.Array, by_params: bool) -> tuple[Norms, Start]:
    system, params = combine(arrays, rest)
    steps, dtype = len(path.losses), path.losses.dtype
    leaves, states = jax.tree.leaves(params), floats_of(path.states)
    floats = [leaf[0] for leaf in states]
    step = _Linear(run_of(system, params, path), leaves, floats, by_params)
    own, own_norms = jax.vmap(lambda s: step.pull_loss([leaf[s] for leaf in states], s))(jnp.maximum(at, 0))

    def body(back: jax.Array, carry: Any) -> Any:
        cotangents, powers, norms = carry
        s = at.max() - back
        cotangents, by_leaf = step.pull([leaf[s] for leaf in states], s, cotangents, len(at))
        cotangents = [_at_step(s, at, leaf, mine) for leaf, mine in zip(cotangents, own, strict=True)]
        by_leaf = _at_step(s, at, by_leaf, own_norms)
        now = Norms(by_leaf, _norms(cotangents, len(at)), powers, _sum(cotangents, powers))
        norms = jax.tree.map(lambda rows, row: rows.at[s].set(row.astype(rows.dtype)), norms, now)
        return *_rescaled(cotangents, powers), norms

    count = len(at)
    norms = Norms(
        jnp.zeros((steps, count, len(leaves) if by_params else 0), dtype),
        jnp.zeros((steps, count), dtype),
        jnp.zeros((steps, count), jnp.int32),
        [jnp.zeros_like(leaf) for leaf in states],
    )
    zeros = [jnp.zeros((count, *leaf.shape), leaf.dtype) for leaf in floats]
    cotangents, powers, norms = jax.lax.fori_loop(0, at.max() + 1, body, (zeros, norms.powers[0], norms))
    return norms, Start(_through_init(system, params, path.start, cotangents, count), powers)


def _at_step(s: jax.Array, at: jax.Array, later: jax.Array, own: jax.Array) -> jax.Array:
    """Choose, for each loss at step s: what came from later, what it starts with, or 0 (0 times infinity is NaN)."""
    return jnp.where(_beside(at > s, later), later, jnp.where(_beside(at == s, own), own, 0))


def _unprobed(run: Run) -> Callable[..., Any]:
    return lambda probes, leaves, floats, s: (run(leaves, floats, s), probes)


class _Linear:
    """The derivative of the steps of a path: of the next state, and of the loss."""

    def __init__(self, run: Run, leaves: Floats, floats: Floats, by_params: bool) -> None:
        self.run, self.leaves, self.by_params = run, leaves, by_params
        self.probed = probe(run, leaves, floats, jnp.int32(0)) if by_params else Probed((), (), _unprobed(run))
        self.dtype = jax.eval_shape(run, leaves, floats, 0)[1].dtype

    def pull(self, floats: Floats, s: jax.Array, cotangents: Floats, count: int) -> tuple[Floats, jax.Array]:
        """Pull `count` cotangents of the next state to the state before, with norms by leaf of params `[count, leaves]`."""
        return self._pull(floats, s, cotangents, lambda out: out[0], count)

    def pull_loss(self, floats: Floats, s: jax.Array) -> tuple[Floats, jax.Array]:
        """Pull the step's own loss to the state before it, with norms by leaf of params `[leaves]`."""
        loss = jax.eval_shape(self.run, self.leaves, floats, s)[1]
        pulled = self._pull(floats, s, jnp.ones(1, loss.dtype), lambda out: out[1], 1)
        return jax.tree.map(lambda leaf: leaf[0], pulled)

    def _pull(self, floats: Floats, s: jax.Array, cotangents: Any, of: Any, count: int) -> tuple[Floats, jax.Array]:
        plain = [i for i in range(len(self.leaves)) if self.by_params and i not in self.probed.leaves]

        def step(probes: Floats, some: Floats, floats: Floats) -> Any:
            leaves = list(self.leaves)
            for i, leaf in zip(plain, some, strict=True):
                leaves[i] = leaf
            out, products = self.probed.call(probes, leaves, floats, s)
            return of(out), products

        zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in self.probed.probes]
        _, back, products = jax.vjp(step, zeros, [self.leaves[i] for i in plain], floats, has_aux=True)
        at_probes, grads, states = jax.vmap(back, axis_size=count)(cotangents)
        reached = _reached(back, cotangents)
        order = [*self.probed.leaves, *plain]
        measures = [*(product.norms for product in products), *(norm for _ in plain)]
        nothing = jnp.zeros(count, self.dtype)
        found = [
            measure(grad) if any_of else nothing
            for measure, grad, any_of in zip(measures, [*at_probes, *grads], reached, strict=False)
        ]
        by_leaf = [found[order.index(i)] for i in sorted(order)]
        return states, jnp.stack(by_leaf, -1) if by_leaf else nothing[:, None][:, :0]


def _reached(pull: Any, cotangents: Any) -> list[bool]:
    """Whether each result of a pull depends on the cotangents at all; the others are zeros, for which none need be paid."""
    jaxpr = jax.make_jaxpr(pull)(jax.tree.map(lambda leaf: leaf[0], cotangents)).jaxpr
    found = depending(jaxpr, jaxpr.invars)
    return [id(var) in found for var in jaxpr.outvars]


def _through_init(system: System, params: Params, key: Key, cotangents: Floats, count: int) -> jax.Array:
    back = jax.vjp(lambda params: floats_of(strong(system.init(key, params))), params)[1]
    grads = jax.tree.leaves(jax.vmap(back, axis_size=count)(cotangents))
    return jnp.stack([norm(grad) for grad in grads], -1)


def _norms(cotangents: Floats, count: int) -> jax.Array:
    return functools.reduce(jnp.hypot, map(norm, cotangents), jnp.zeros(count))


def _beside(rows: jax.Array, leaf: jax.Array) -> jax.Array:
    return rows.reshape(-1, *(1,) * (leaf.ndim - 1))


def _times(leaf: jax.Array, powers: jax.Array) -> jax.Array:
    """Multiply each row by 2 to a power."""
    return leaf * _beside(jnp.ldexp(jnp.ones((), leaf.real.dtype), powers), leaf)


def _sum(cotangents: Floats, powers: jax.Array) -> Floats:
    return [_times(leaf, powers).sum(0) for leaf in cotangents]


def _rescaled(cotangents: Floats, powers: jax.Array) -> tuple[Floats, jax.Array]:
    """Bring the largest number of each loss' cotangent near 1; the factor is a power of two, and so exact."""
    each = [jnp.abs(leaf).reshape(len(leaf), -1).max(-1) for leaf in cotangents]
    largest = functools.reduce(jnp.maximum, each, jnp.zeros(len(powers)))
    shift = jnp.clip(jnp.frexp(largest)[1], -FAR, FAR)
    return [_times(leaf, -shift) for leaf in cotangents], powers + shift


def cut_back(system: System, params: Params, path: Path, weights: Any, windows: Any) -> Cuts:
    """Return the gradients of the losses weighed by `weights` `[m, T]`, through windows of some lengths `[m]`."""
    arrays, rest = partition((system, params))
    return _cut_back(arrays, rest, path, weights, windows)


@functools.partial(jax.jit, static_argnums=1)
def _cut_back(arrays: list[Any], rest: Static, path: Path, weights: jax.Array, windows: jax.Array) -> Cuts:
    system, params = combine(arrays, rest)
    run, leaves, states = run_of(system, params, path), jax.tree.leaves(params), floats_of(path.states)
    many, steps = len(windows), len(path.losses)
    weights = weights.astype(path.losses.dtype)

    def body(carry: Any, s: jax.Array) -> Any:
        cotangents, grads = carry
        back = jax.vjp(lambda leaves, floats: run(leaves, floats, s), leaves, [leaf[s] for leaf in states])[1]
        more, cotangents = jax.vmap(back)((cotangents, weights[:, s]))
        whole = [leaf[-1] for leaf in cotangents]
        inside = (s % windows != 0) | (s == 0)  # a window's first step passes nothing on, but for `init`
        cotangents = [jnp.where(_beside(inside, leaf), leaf, 0) for leaf in cotangents]
        return (cotangents, jax.tree.map(jnp.add, grads, more)), whole

    zeros = [jnp.zeros((many, *leaf.shape[1:]), leaf.dtype) for leaf in states]
    grads = [jnp.zeros((many, *leaf.shape), leaf.dtype) for leaf in leaves]
    (cotangents, grads), sums = jax.lax.scan(body, (zeros, grads), jnp.arange(steps, dtype=jnp.int32), reverse=True)
    back = jax.vjp(lambda params: floats_of(strong(system.init(path.start, params))), params)[1]
    started = jax.tree.leaves(jax.vmap(back, axis_size=many)(cotangents))
    return Cuts([a + b for a, b in zip(grads, started, strict=True)], sums)
