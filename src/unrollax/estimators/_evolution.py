"""Evolution strategies: one antithetic window, whose members differ only in what perturbs and what is credited.

| member             | state of a pair                          | perturbs with                | is credited              |
|--------------------|------------------------------------------|------------------------------|--------------------------|
| `ES`, `FullES`     | none: it starts from a shared trajectory | fresh noise                  | the same noise           |
| `PES`              | its own                                  | fresh noise                  | all noise since its reset|
| `NRES`, `ESSingle` | its own                                  | the noise drawn at its reset | the same noise           |

The engine, with the formula that all share, is in `_antithetic.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._tree import where
from unrollax._value import static, value
from unrollax.estimators._antithetic import Antithetic
from unrollax.estimators._pairs import Pairs, Window
from unrollax.estimators._std import Std
from unrollax.estimators._trajectory import SharedTrajectory


@value
class ES(SharedTrajectory):
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
        std: standard deviation of the perturbation; larger values smooth more and have less variance. A number, a prefix of
            params with one for each leaf or part, `std(windows so far)` such as an optax schedule, or `None` to learn it
            (params is then a `Gaussian`).
        window: steps of a call (K).
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        pairs: antithetic pairs (N / 2 particles); variance falls as 1 / pairs.
        stagger: spread the resets of the pairs evenly over the horizon.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I, called once a pair for all params as one vector.
        chunk: pairs that run at once; `None` for what fits a core's cache on a CPU, and all of them elsewhere. With
            pairs sharded over devices set it to `pairs`, or run one estimator a process (docs/scale.md).
        shaping: `"rank"` puts centred ranks in the place of the losses, `"centred"` their deviations from the mean over
            their standard deviation; the result is a direction, no gradient.
        control: `"analytic"` takes the window's gradient by reverse mode, on a trajectory without noise, as a control
            variate: the mean stays, and the variance falls as far as the loss is linear at the scale of `std`.
        noise: ES keeps none from window to window: either value will do.

    Raises:
        InvalidArgument: a count is no positive whole number, horizon is no multiple of window, a number in std is not
            positive, or an option is none of its choices.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> es = ux.ES(decay, std=0.1, window=2, pairs=8)
        >>> state, estimate = es.estimate(0.5, es.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad.shape
        ()

    References: Metz et al., ICML 2019; Salimans et al., arXiv 2017.
    """


@value
class FullES(SharedTrajectory):
    """Evolution strategies on whole horizons: the loss of an episode under one perturbation, for `ES` with a single window.

    Target: smoothed. Needs `forward`. Cost of a call: `2 pairs horizon` steps. State: two keys. It is the reference for the
    estimators that see windows: none of their bias, one update an episode. Use it when episodes are short. Avoid it when
    they are long: `NRES` has the same target and updates `horizon / window` times as often.

    Args:
        system: what is unrolled.
        std: as for `ES`, like all other options.
        window: steps of an episode, which the data of a call have.
        horizon: the same; either of the two will do.

    Raises:
        InvalidArgument: no horizon, or a window that is not the horizon.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> full = ux.FullES(decay, std=0.1, horizon=8, pairs=4)
        >>> full.window, full.traits.target
        (8, 'smoothed')

    References: Salimans et al., arXiv 2017; Metz et al., ICML 2019.
    """

    window: int = static(default=None)

    def __post_init__(self) -> None:
        horizon = self.window if self.horizon is None else self.horizon
        check_counts("FullES", horizon=horizon)
        if self.window not in (None, horizon):
            raise InvalidArgument(
                f"FullES: window must be the horizon, got window={self.window}, horizon={self.horizon}. Leave it out, or "
                "take NRES for windows of a horizon."
            )
        object.__setattr__(self, "horizon", horizon)
        object.__setattr__(self, "window", horizon)
        SharedTrajectory.__post_init__(self)


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
        std: standard deviation of the perturbation; larger values smooth more and have less variance. A number, a prefix of
            params with one for each leaf or part, `std(windows so far)` such as an optax schedule, or `None` to learn it
            (params is then a `Gaussian`).
        window: steps of a call (K); larger values draw less noise a horizon, and so have less variance.
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        pairs: antithetic pairs (N / 2 particles); variance falls as 1 / pairs.
        stagger: spread the resets of the pairs evenly over the horizon.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I, called once a pair for all params as one vector.
        chunk: pairs that run at once; `None` for what fits a core's cache on a CPU, and all of them elsewhere. With
            pairs sharded over devices set it to `pairs`, or run one estimator a process (docs/scale.md).
        shaping: `"rank"` puts centred ranks in the place of the losses, `"centred"` their deviations from the mean over
            their standard deviation; the result is a direction, no gradient.
        control: `"analytic"` takes the window's gradient by reverse mode, on a trajectory without noise, as a control
            variate: the mean stays, and the variance falls as far as the loss is linear at the scale of `std`.
        noise: `"stored"`, or `"regenerated"` from keys: then nothing of the size pairs x params persists, and each
            window draws the noise of all earlier ones of its episode again, for the `std` that it has now: store it where
            that is learned or replaced in the middle of episodes.

    Raises:
        InvalidArgument: a count is no positive whole number, horizon is no multiple of window, a number in std is not
            positive, or an option is none of its choices.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> pes = ux.PES(decay, std=0.1, window=2, horizon=8, pairs=4)
        >>> state, estimate = pes.estimate(0.5, pes.init(jax.random.key(0), 0.5), None)
        >>> state.noise.shape  # a number in params for each pair
        (4, 1)

    References: Vicol, Metz and Sohl-Dickstein, ICML 2021. Deviation: the loss is the mean over the window's steps.
    """

    def _rule(self, pairs: Pairs, noise: jax.Array | None, window: Window) -> tuple[jax.Array, jax.Array]:
        shift, fresh = self._draw_at(pairs, pairs.age, window)
        if noise is not None:
            return shift, fresh + where(pairs.reset, jnp.zeros_like(noise), noise)

        def earlier(age: jax.Array, total: jax.Array) -> jax.Array:
            ages = jnp.full_like(pairs.age, age)
            return total + where(ages < pairs.age, self._draw_at(pairs, ages, window)[1], jnp.zeros_like(total))

        return shift, jax.lax.fori_loop(0, pairs.age.max(), earlier, fresh)

    def _draw_at(self, pairs: Pairs, age: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
        """Draw the noise of one window of the episode."""
        return self._draw(jax.vmap(jax.random.fold_in)(pairs.seeds, age), pairs.born + age, window)


class _HeldNoise(Antithetic):
    """The rule of `NRES` and `ESSingle`: one noise from reset to reset, kept in units of `std`, which may move meanwhile."""

    def _rule(self, pairs: Pairs, noise: jax.Array | None, window: Window) -> tuple[jax.Array, jax.Array]:
        def fresh() -> jax.Array:
            return self._units(pairs.seeds, window)

        def held(noise: jax.Array) -> jax.Array:
            return jax.lax.cond(pairs.reset.any(), lambda: where(pairs.reset, fresh(), noise), lambda: noise)

        z = fresh() if noise is None else held(noise)
        return self._in_std(z, pairs.born, window)[0], z

    def _credit(self, pairs: Pairs, kept: jax.Array, window: Window) -> jax.Array:
        return self._in_std(kept, pairs.born, window)[1]

    def _width(self, std: Std) -> int:
        return std.size


@value
class NRES(_HeldNoise):
    """Noise-reuse evolution strategies: a pair keeps the noise of its reset for the whole episode.

    Target: smoothed (one perturbation over the whole horizon). Needs `forward`. Cost of a call: `2 pairs window` steps, and
    noise only at resets. State: `2 pairs` states of the system and one noise a pair. Its variance does not grow with the
    number of windows. Use it as the first evolution estimator to try on a finite horizon, with `stagger=True` so that every
    update sees all of the horizon. Avoid it with `horizon=None`: the noise would never be drawn anew.

    Args:
        system: what is unrolled.
        std: standard deviation of the perturbation; larger values smooth more and have less variance. A number, a prefix of
            params with one for each leaf or part, `std(windows so far)` such as an optax schedule, of which the value at the
            reset holds for an episode, or `None` to learn it (params is then a `Gaussian`). If it is learned or replaced in
            the middle of an episode, the noise becomes as wide as it is now; what earlier windows did to the state was done
            with the old width, and is weighted by old over new.
        window: steps of a call (K).
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        pairs: antithetic pairs (N / 2 particles); variance falls as 1 / pairs.
        stagger: spread the resets of the pairs evenly over the horizon, as the paper does.
        sampler: `sampler(key, shape, dtype)` with mean 0 and covariance I, called once a pair for all params as one vector.
        chunk: pairs that run at once; `None` for what fits a core's cache on a CPU, and all of them elsewhere. With
            pairs sharded over devices set it to `pairs`, or run one estimator a process (docs/scale.md).
        shaping: `"rank"` puts centred ranks in the place of the losses, `"centred"` their deviations from the mean over
            their standard deviation; the result is a direction, no gradient.
        control: `"analytic"` takes the window's gradient by reverse mode, on a trajectory without noise, as a control
            variate: the mean stays, and the variance falls as far as the loss is linear at the scale of `std`.
        noise: `"stored"`, or `"regenerated"` from keys in every window: then nothing of the size pairs x params persists.

    Raises:
        InvalidArgument: a count is no positive whole number, horizon is no multiple of window, a number in std is not
            positive, or an option is none of its choices.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> nres = ux.NRES(decay, std=0.1, window=2, horizon=8, pairs=4, stagger=True)
        >>> nres.init(jax.random.key(0), 0.5).left
        Array([ 0, -2, -4, -6], dtype=int32)

    References: Li et al., NeurIPS 2023.
    """


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
