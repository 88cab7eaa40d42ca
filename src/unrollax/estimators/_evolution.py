"""Evolution strategies: one antithetic window, whose members differ only in what perturbs and what is credited.

| member             | state of a pair                          | perturbs with                | is credited              |
|--------------------|------------------------------------------|------------------------------|--------------------------|
| `ES`               | none: it starts from a shared trajectory | fresh noise                  | the same noise           |
| `PES`              | its own                                  | fresh noise                  | all noise since its reset|
| `NRES`, `ESSingle` | its own                                  | the noise drawn at its reset | the same noise           |

Noise is kept in units of `std`. With z the noise that perturbs pair i, c what is credited, and L the mean step loss over
the window from each twin's own state,

    grad = 1 / (2 std pairs) sum_i c_i [ L(params + std z_i) - L(params - std z_i) ].
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._errors import InvalidArgument
from unrollax._estimate import (
    Info,
    Noise,
    Sampler,
    check_counts,
    check_key,
    check_params,
    check_window,
    draw_noise,
    name_of,
    share_nonfinite,
    tick,
    weigh,
    window_loss,
)
from unrollax._sample import normal
from unrollax._system import as_system
from unrollax._tree import strong, where
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value

Draw = Callable[[], Noise]


class EvolutionState(NamedTuple):
    """What the next window needs.

    Attributes:
        key: the key of all later draws.
        left: int32 `[trajectories]`, the steps left of each trajectory's episode; 0 or less means a reset comes first.
        inner: the system's states, `[pairs, 2, ...]`; for `ES` those of the unperturbed trajectories, `[trajectories, ...]`.
        noise: the noise that each pair keeps, `[pairs, ...]` for each leaf of params (its twin's is the negative), or `None`.
    """

    key: Key
    left: jax.Array
    inner: State
    noise: Noise


@value
class _Evolution(abc.ABC):
    """One antithetic window. A member says what perturbs and what is credited, and whether trajectories are shared."""

    system: System
    std: float
    window: int = static()
    horizon: int | None = static(default=None)
    pairs: int = static(default=32)
    stagger: bool = static(default=False)
    sampler: Sampler = static(default=normal)

    def __post_init__(self) -> None:
        owner = name_of(self)
        check_window(owner, self.window, self.horizon)
        check_counts(owner, pairs=self.pairs)
        if self.stagger and self.horizon is None:
            raise InvalidArgument(
                f"{owner}: stagger=True spreads resets over a horizon, got horizon=None. Give a horizon."
            )
        object.__setattr__(self, "system", as_system(owner, self.system))

    @abc.abstractmethod
    def _rule(self, reset: jax.Array, draw: Draw, kept: Noise) -> tuple[Noise, Noise, Noise]:
        """Return what perturbs, what is credited, and what the pair keeps."""

    def _trajectories(self) -> int:
        return self.pairs

    def init(self, key: Key, params: Params) -> EvolutionState:
        """Return the state before the first window, which will start with a reset of every pair."""
        owner, count = name_of(self), self._trajectories()
        params = check_params(owner, params)
        key, start = jax.random.split(check_key(owner, key))
        inner = _spread(strong(self.system.init(start, params)), self._axes())
        spread = jnp.arange(count, dtype=jnp.int32) * ((self.horizon or 0) // self.window) // count * self.window
        left = -spread if self.stagger else jnp.zeros(count, jnp.int32)
        return EvolutionState(key, left, inner, self._no_noise(params))

    def estimate(self, params: Params, state: EvolutionState, data: Data) -> tuple[EvolutionState, Estimate]:
        """Return the state after one window and the gradient estimate of its mean step loss."""
        params = check_params(name_of(self), params)
        key, draw, start, run = jax.random.split(state.key, 4)
        reset = jnp.broadcast_to(state.left <= 0, (self.pairs,))
        perturb, credit, kept = self._rule(
            reset, lambda: draw_noise(self.sampler, draw, self.pairs, params), state.noise
        )
        twins = jax.tree.map(self._twins, params, perturb)
        starts = jax.random.split(start, self._trajectories())
        keys = jax.random.split(run, self.pairs + self._trajectories())
        losses, after = self._run(twins, self._begin(starts, twins, state), data, keys[: self.pairs])
        grad = weigh((losses[:, 0] - losses[:, 1]) / (2 * self.std * self.pairs), credit)
        inner = self._carry(after, params, state, data, starts, keys[self.pairs :])
        state = EvolutionState(key, tick(state.left, self.window, self.horizon), inner, kept)
        return state, Estimate(losses.mean(), grad, Info(share_nonfinite(losses)))

    def _twins(self, leaf: jax.Array, noise: jax.Array) -> jax.Array:
        """Return a leaf of params and noise, `[pairs, 2, ...]`."""
        return leaf[None, None] + jnp.asarray(self.std, leaf.dtype) * jnp.stack([noise, -noise], 1)

    def _begin(self, keys: Key, twins: Params, state: EvolutionState) -> State:
        """Start each twin: from its perturbed `init` at a reset, else from where its trajectory stands."""

        def restart(key: Key, params: Params) -> State:
            return strong(self.system.init(key, params))

        def fresh() -> State:
            new = jax.vmap(jax.vmap(restart, (None, 0)))(jnp.broadcast_to(keys, (self.pairs,)), twins)
            return where(jnp.broadcast_to(state.left <= 0, (self.pairs,)), new, self._stand(state))

        return jax.lax.cond((state.left <= 0).any(), fresh, lambda: self._stand(state))

    def _run(self, twins: Params, inner: State, data: Data, keys: Key) -> tuple[jax.Array, State]:
        """Run one window of every twin; the two of a pair share every step key."""

        def run(params: Params, inner: State, key: Key) -> tuple[Scalar, State]:
            return window_loss(name_of(self), self.system, params, inner, data, key, self.window)

        # One axis for all particles: XLA's batched products are faster so.
        losses, after = jax.vmap(run)(_merge(twins), _merge(inner), jnp.repeat(keys, 2))
        return losses.reshape(-1, 2), _split(after)

    def _axes(self) -> tuple[int, ...]:
        return (self.pairs, 2)

    def _stand(self, state: EvolutionState) -> State:
        return state.inner

    def _carry(self, after: State, params: Params, state: EvolutionState, data: Data, starts: Key, keys: Key) -> State:
        del params, state, data, starts, keys
        return after

    def _no_noise(self, params: Params) -> Noise:
        return jax.tree.map(lambda p: jnp.zeros((self.pairs, *p.shape), p.dtype), params)


def _spread(tree: Any, axes: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*axes, *leaf.shape)), tree)


def _merge(tree: Any) -> Any:
    """Make `[pairs, 2, ...]` leaves `[2 pairs, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _split(tree: Any) -> Any:
    """Undo `_merge`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), tree)


@value
class ES(_Evolution):
    """Evolution strategies on a truncated window: each pair perturbs one shared trajectory with fresh noise.

    A trajectory is advanced with the unperturbed parameters; each pair starts every window from it. At a reset the pairs
    start from `system.init` with their perturbed parameters. With `stagger`, each pair follows an unperturbed trajectory
    of its own, which costs one more run a pair.

    Target: truncated (and smoothed by `std`): what a parameter did in earlier windows is not seen; with `window = horizon`
    only smoothed. Needs `forward`. Cost of a call: `(2 pairs + 1) window` steps; memory for `2 pairs` states and noises
    while it runs. State: one state of the system. Use it when windows are almost independent. Avoid it where early steps
    decide late losses: `PES` has no such bias.

    Args:
        system: what is unrolled.
        std: standard deviation of the perturbation; larger values smooth more and have less variance.
        window: steps of a call (K).
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        pairs: antithetic pairs (N / 2 particles); variance falls as 1 / pairs.
        stagger: spread the resets of the pairs evenly over the horizon.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I.

    Raises:
        InvalidArgument: a count is no positive whole number, or horizon is no multiple of window.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> es = ux.ES(decay, std=0.1, window=2, pairs=8)
        >>> state, estimate = es.estimate(0.5, es.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad.shape
        ()

    References: Metz et al., ICML 2019; Salimans et al., arXiv 2017.
    """

    traits: ClassVar[Traits] = Traits(target="truncated", needs="forward")

    def _rule(self, reset: jax.Array, draw: Draw, kept: Noise) -> tuple[Noise, Noise, Noise]:
        fresh = draw()
        return fresh, fresh, kept

    def _trajectories(self) -> int:
        return self.pairs if self.stagger else 1

    def _axes(self) -> tuple[int, ...]:
        return (self._trajectories(),)

    def _stand(self, state: EvolutionState) -> State:
        return jax.tree.map(lambda s: jnp.broadcast_to(s[:, None], (self.pairs, 2, *s.shape[1:])), state.inner)

    def _carry(self, after: State, params: Params, state: EvolutionState, data: Data, starts: Key, keys: Key) -> State:
        """Advance the unperturbed trajectories; where the twins came to is forgotten."""

        def advance(left: jax.Array, inner: State, start: Key, key: Key) -> State:
            inner = where(left <= 0, strong(self.system.init(start, params)), inner)
            return window_loss(name_of(self), self.system, params, inner, data, key, self.window)[1]

        return jax.vmap(advance)(state.left, state.inner, starts, keys)

    def _no_noise(self, params: Params) -> Noise:
        return None


@value
class PES(_Evolution):
    """Persistent evolution strategies: fresh noise each window, credited for all that it did since the reset.

    Every pair keeps the states of its two twins and the sum of its noise since the reset. A perturbation of an early
    window is thus credited with every later loss, which makes the estimate unbiased for the smoothed loss.

    Target: smoothed. Needs `forward`. Cost of a call: `2 pairs window` steps. State: `2 pairs` states of the system and one
    noise a pair (`pairs` times the size of params). The variance grows with the number of windows in a horizon when their
    losses are unrelated; `NRES` has none of that growth. Use it when the truncation bias matters and the exact gradient
    explodes or does not exist. Avoid it with `horizon=None` on long streams: the sum of the noise grows without bound.

    Args:
        system: what is unrolled.
        std: standard deviation of the perturbation; larger values smooth more and have less variance.
        window: steps of a call (K); larger values draw less noise a horizon, and so have less variance.
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        pairs: antithetic pairs (N / 2 particles); variance falls as 1 / pairs.
        stagger: spread the resets of the pairs evenly over the horizon.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I.

    Raises:
        InvalidArgument: a count is no positive whole number, or horizon is no multiple of window.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> pes = ux.PES(decay, std=0.1, window=2, horizon=8, pairs=4)
        >>> state, estimate = pes.estimate(0.5, pes.init(jax.random.key(0), 0.5), None)
        >>> state.noise.shape
        (4,)

    References: Vicol, Metz and Sohl-Dickstein, ICML 2021. Deviation: the loss is the mean over the window's steps.
    """

    traits: ClassVar[Traits] = Traits(target="smoothed", needs="forward")

    def _rule(self, reset: jax.Array, draw: Draw, kept: Noise) -> tuple[Noise, Noise, Noise]:
        fresh = draw()
        total = jax.tree.map(lambda k, z: z + k, where(reset, jax.tree.map(jnp.zeros_like, kept), kept), fresh)
        return fresh, total, total


class _HeldNoise(_Evolution):
    """The rule of `NRES` and `ESSingle`: one noise from reset to reset."""

    def _rule(self, reset: jax.Array, draw: Draw, kept: Noise) -> tuple[Noise, Noise, Noise]:
        held = jax.lax.cond(reset.any(), lambda: where(reset, draw(), kept), lambda: kept)
        return held, held, held


@value
class NRES(_HeldNoise):
    """Noise-reuse evolution strategies: a pair keeps the noise of its reset for the whole episode.

    Target: smoothed (one perturbation over the whole horizon). Needs `forward`. Cost of a call: `2 pairs window` steps, and
    noise only at resets. State: `2 pairs` states of the system and one noise a pair. Its variance does not grow with the
    number of windows. Use it as the first evolution estimator to try on a finite horizon, with `stagger=True` so that every
    update sees all of the horizon. Avoid it with `horizon=None`: the noise would never be drawn anew.

    Args:
        system: what is unrolled.
        std: standard deviation of the perturbation; larger values smooth more and have less variance.
        window: steps of a call (K).
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        pairs: antithetic pairs (N / 2 particles); variance falls as 1 / pairs.
        stagger: spread the resets of the pairs evenly over the horizon, as the paper does.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I.

    Raises:
        InvalidArgument: a count is no positive whole number, or horizon is no multiple of window.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> nres = ux.NRES(decay, std=0.1, window=2, horizon=8, pairs=4, stagger=True)
        >>> nres.init(jax.random.key(0), 0.5).left
        Array([ 0, -2, -4, -6], dtype=int32)

    References: Li et al., NeurIPS 2023.
    """

    traits: ClassVar[Traits] = Traits(target="smoothed", needs="forward")


@value
class ESSingle(_HeldNoise):
    """ES-Single: one perturbation for each pair from reset to reset. It is the rule of `NRES` under its second name.

    Target, cost, state, arguments and errors: those of `NRES`. The paper resets all pairs together.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> single = ux.ESSingle(decay, std=0.1, window=2, horizon=8, pairs=4)
        >>> state, estimate = single.estimate(0.5, single.init(jax.random.key(0), 0.5), None)
        >>> estimate.loss.shape
        ()

    References: Vicol, Kolter and Swersky, ICML 2023.
    """

    traits: ClassVar[Traits] = Traits(target="smoothed", needs="forward")
