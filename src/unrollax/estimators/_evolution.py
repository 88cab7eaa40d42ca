"""Evolution strategies: one antithetic window, whose members differ only in what perturbs and what is credited.

| member             | state of a pair                          | perturbs with                | is credited              |
|--------------------|------------------------------------------|------------------------------|--------------------------|
| `ES`               | none: it starts from a shared trajectory | fresh noise                  | the same noise           |
| `PES`              | its own                                  | fresh noise                  | all noise since its reset|
| `NRES`, `ESSingle` | its own                                  | the noise drawn at its reset | the same noise           |

The engine, with the formula that all share, is in `_antithetic.py`.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from unrollax._estimate import Noise, name_of, window_loss
from unrollax._tree import strong, where
from unrollax._types import Data, Key, Params, State, Traits
from unrollax._value import value
from unrollax.estimators._antithetic import Antithetic, Draw, EvolutionState


@value
class ES(Antithetic):
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
        chunk: pairs that run at once; `None` for what fits a core's cache on a CPU, and all of them elsewhere. With
            pairs sharded over devices set it to `pairs`.

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

        def advance(inner: State, key: Key) -> State:
            return window_loss(name_of(self), self.system, params, inner, data, key, self.window)[1]

        def fresh() -> State:
            new = jax.vmap(lambda key: strong(self.system.init(key, params)))(starts)
            return where(state.left <= 0, new, state.inner)

        return jax.vmap(advance)(jax.lax.cond((state.left <= 0).any(), fresh, lambda: state.inner), keys)

    def _no_noise(self, params: Params) -> Noise:
        return None


@value
class PES(Antithetic):
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
        chunk: pairs that run at once; `None` for what fits a core's cache on a CPU, and all of them elsewhere. With
            pairs sharded over devices set it to `pairs`.

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


class _HeldNoise(Antithetic):
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
        chunk: pairs that run at once; `None` for what fits a core's cache on a CPU, and all of them elsewhere. With
            pairs sharded over devices set it to `pairs`.

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
