"""The engine of the evolution family: one antithetic window. `_evolution.py` holds its members.

Parameters are one vector theta here. With e the shift of pair i, c what is credited, and L the mean step loss over the
window from each twin's own state,

    grad = 1 / (2 pairs) sum_i c_i [ L(theta + e_i) - L(theta - e_i) ],    e = std z,    c = z / std, summed over windows.

Every pair draws z from a key of its own, its seed, so that its noise depends neither on `chunk` nor on whether it is kept or
drawn again. To that end all keys are Threefry keys, made at `init` of keys of other kinds, whose bits depend under `vmap` on
the whole batch. Pairs run a chunk at a time: noise, particles and their share of the gradient stay in cache.
"""

from __future__ import annotations

import abc
from typing import Any, Literal

import jax
import jax.numpy as jnp

from unrollax._check import check_choice, check_counts, check_key, check_params, check_sampler, check_window
from unrollax._errors import InvalidArgument
from unrollax._estimate import Info, Sampler, draw_vector, name_of, share_nonfinite, tick, window_loss
from unrollax._sample import normal, threefry
from unrollax._system import as_system
from unrollax._tree import all_finite, ravel, strong, where
from unrollax._types import Cost, Data, Estimate, Key, Params, Scalar, State, System, Traits
from unrollax._value import static, value
from unrollax.estimators._chunks import in_chunks, pairs_in_cache
from unrollax.estimators._pairs import EvolutionState, Kept, Pairs, Window
from unrollax.estimators._shaping import SHAPINGS, shape_losses
from unrollax.estimators._std import Std, as_std, mean_of, std_of

Target = Literal["exact", "smoothed", "truncated", "pseudo"]


@value
class Antithetic(abc.ABC):
    """One antithetic window. A member says what perturbs and what is credited, and whether trajectories are shared."""

    system: System
    std: Any
    window: int = static()
    horizon: int | None = static(default=None)
    pairs: int = static(default=32)
    stagger: bool = static(default=False)
    sampler: Sampler = static(default=normal)
    chunk: int | None = static(default=None)
    shaping: Literal["rank", "centred"] | None = static(default=None)
    control: Literal["analytic"] | None = static(default=None)
    noise: Literal["stored", "regenerated"] = static(default="stored")

    def __post_init__(self) -> None:
        owner = name_of(self)
        check_window(owner, self.window, self.horizon)
        check_counts(owner, pairs=self.pairs, chunk=1 if self.chunk is None else self.chunk)
        check_choice(owner, "shaping", self.shaping, (None, *SHAPINGS))
        check_choice(owner, "control", self.control, (None, "analytic"))
        check_choice(owner, "noise", self.noise, ("stored", "regenerated"))
        check_choice(owner, "stagger", self.stagger, (True, False))
        check_sampler(owner, self.sampler)
        if self.stagger and self.horizon is None:
            raise InvalidArgument(
                f"{owner}: stagger=True spreads resets over a horizon, got horizon=None. Give a horizon."
            )
        if self.control and self.shaping:
            raise InvalidArgument(
                f"{owner}: control corrects a gradient, and shaping={self.shaping!r} makes none. Choose one of them."
            )
        object.__setattr__(self, "std", as_std(owner, self.std))
        object.__setattr__(self, "system", as_system(owner, self.system))

    @abc.abstractmethod
    def _rule(self, pairs: Pairs, noise: jax.Array | None, window: Window) -> tuple[jax.Array, jax.Array]:
        """Return by how much the pairs are shifted, and the noise that they keep, both `[pairs, d]`."""

    @property
    def traits(self) -> Traits:
        """What the estimates average to, what they need of `step` and what they cost."""
        return self._plain_traits()

    def _plain_traits(self) -> Traits:
        passes = f"{self._passes()} + 1" if self.control else self._passes()
        target = "pseudo" if self.shaping else self._target()
        return Traits(
            target, "vjp" if self.control else "forward", Cost(forward=passes, vjp="1" if self.control else "0")
        )

    def _target(self) -> Target:
        return "smoothed"

    def _passes(self) -> str:
        return "2 * pairs"

    def init(self, key: Key, params: Params) -> EvolutionState:
        """Return the state before the first window, which will start with a reset of every pair."""
        owner, count = name_of(self), self._trajectories()
        params = check_params(owner, params)
        mean = mean_of(owner, self.std, params)
        std = std_of(owner, self.std, params, self.pairs)
        key, start, draw = jax.random.split(threefry(check_key(owner, key)), 3)
        inner = strong(self.system.init(start, mean))
        spread = jnp.arange(count, dtype=jnp.int32) * ((self.horizon or 0) // self.window) // count * self.window
        return EvolutionState(
            key=key,
            windows=jnp.zeros((), jnp.int32),
            left=-spread if self.stagger else jnp.zeros(count, jnp.int32),
            age=jnp.zeros(count, jnp.int32),
            inner=None if self._is_whole() else _spread(inner, self._axes()),
            seeds=jax.random.split(draw, self.pairs) if self._holds() else None,
            noise=self._no_noise(std, ravel(mean)[0].dtype),
            control=inner if self.control else None,
        )

    def estimate(self, params: Params, state: EvolutionState, data: Data) -> tuple[EvolutionState, Estimate]:
        """Return the state after one window and the gradient estimate of its mean step loss."""
        params = check_params(name_of(self), params)
        mean = mean_of(name_of(self), self.std, params)
        std = std_of(name_of(self), self.std, params, self.pairs)
        key, *keys = jax.random.split(state.key, 6)
        age = jnp.where(state.left <= 0, 0, state.age)
        pairs = self._gather(state, age, keys)
        slope, control = self._slope(mean, state, data, keys[3])
        window = Window(*ravel(mean), std, state.windows, data, slope)
        kept, losses, grad = self._sweep(pairs, Kept(self._own(state.inner), state.noise), window)
        state = EvolutionState(
            key=key,
            windows=state.windows + 1,
            left=tick(state.left, self.window, self.horizon),
            age=age + 1,
            inner=self._carry(kept.inner, mean, state, pairs, data, keys[4]),
            seeds=pairs.seeds if self._holds() else None,
            noise=kept.noise,
            control=control,
        )
        return state, Estimate(losses.mean(), ravel(params)[1](grad), Info(share_nonfinite(losses)))

    def _gather(self, state: EvolutionState, age: jax.Array, keys: list[Key]) -> Pairs:
        """Return what each pair reads: its clock, the seed of its episode, its keys of this window."""
        draw, start, run, *_ = keys
        reset = jnp.broadcast_to(state.left <= 0, (self.pairs,))

        def fresh() -> Key:
            return jax.random.split(draw, self.pairs)

        def held(seeds: Key) -> Key:
            return jax.lax.cond(reset.any(), lambda: jnp.where(reset, fresh(), seeds), lambda: seeds)

        return Pairs(
            reset=reset,
            age=jnp.broadcast_to(age, (self.pairs,)),
            born=jnp.broadcast_to(state.windows - age, (self.pairs,)),
            seeds=fresh() if state.seeds is None else held(state.seeds),
            start=jnp.broadcast_to(jax.random.split(start, self._trajectories()), (self.pairs,)),
            run=jax.random.split(run, self.pairs),
            shared=self._shared(state.inner),
        )

    def _sweep(self, pairs: Pairs, kept: Kept, window: Window) -> tuple[Kept, jax.Array, jax.Array]:
        """Run all pairs, chunk by chunk, and weigh what they are credited with."""
        stand = jax.eval_shape(
            lambda pairs, kept: jax.tree.map(lambda leaf: leaf[0], self._stand(pairs, kept)), pairs, kept
        )
        chunk = self.chunk or pairs_in_cache((stand, window.theta, window.theta))
        nothing = window.std.nothing(window.theta.dtype)

        def run(pairs: Pairs, kept: Kept) -> tuple[Kept, jax.Array, jax.Array]:
            return self._run(pairs, kept, window)

        kept, losses, sums = in_chunks(run, pairs, kept, nothing, self.pairs, chunk)
        if not self.shaping:
            known = None if window.slope is None else self._known(window.slope, window)
            return kept, losses, window.std.gradient(sums, losses, known)

        # The utilities are known only when all losses are: what is credited is looked up or drawn once more.
        def again(pieces: tuple[Pairs, jax.Array], noise: jax.Array | None) -> tuple[Any, None, jax.Array]:
            kept = noise if noise is not None else self._rule(pieces[0], None, window)[1]
            return noise, None, window.std.weigh(pieces[1], self._credit(pieces[0], kept, window))

        utilities = shape_losses(self.shaping, losses)
        _, _, sums = in_chunks(again, (pairs, utilities), kept.noise, nothing, self.pairs, chunk)
        return kept, losses, window.std.gradient(sums, utilities, None)

    def _run(self, pairs: Pairs, kept: Kept, window: Window) -> tuple[Kept, jax.Array, jax.Array]:
        """Run one window of both twins of some pairs, which share every key of the system."""
        shift, noise = self._rule(pairs, kept.noise, window)
        twins = (window.theta[None, None] + jnp.stack([shift, -shift], 1)).reshape(-1, window.theta.size)
        params = jax.vmap(window.unravel)(twins)
        inner = self._begin(pairs, params, self._stand(pairs, kept))

        def run(params: Params, inner: State, key: Key) -> tuple[Scalar, State]:
            return window_loss(name_of(self), self.system, params, inner, window.data, key, self.window)

        # One axis for all particles, which XLA's batched products like.
        losses, after = jax.vmap(run)(params, _merge(inner), jnp.repeat(pairs.run, 2))
        losses = losses.reshape(-1, 2)
        explained = 0.0 if window.slope is None else (shift @ window.slope).astype(losses.dtype)
        return (
            Kept(None if self._is_whole() else self._own(_split(after)), None if kept.noise is None else noise),
            losses,
            window.std.weigh(losses, self._credit(pairs, noise, window), explained),
        )

    def _begin(self, pairs: Pairs, twins: Params, stand: State) -> State:
        """Start each twin: from its perturbed `init` at a reset, else from where its trajectory stands."""

        def restart(key: Key, params: Params) -> State:
            return strong(self.system.init(key, params))

        def fresh() -> State:
            return _split(jax.vmap(restart)(jnp.repeat(pairs.start, 2), twins))

        if self._is_whole():
            return fresh()
        return jax.lax.cond(pairs.reset.any(), lambda: where(pairs.reset, fresh(), stand), lambda: stand)

    def _is_whole(self) -> bool:
        """Whether a window is a whole horizon, so that each starts anew."""
        return self.window == self.horizon

    def _draw(self, seeds: Key, born: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
        """Draw a noise from each seed: the shift, and its credit."""
        return self._in_std(self._units(seeds, window), born, window)

    def _units(self, seeds: Key, window: Window) -> jax.Array:
        """Draw a noise from each seed, in units of std."""
        return jax.vmap(lambda seed: draw_vector(name_of(self), self.sampler, seed, window.theta))(seeds)

    def _in_std(self, units: jax.Array, born: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
        """Return the shift that each noise makes, and its credit."""
        return jax.vmap(lambda z, time: (z * window.std.at(time), window.std.credit(z, time)))(units, born)

    def _slope(self, params: Params, state: EvolutionState, data: Data, key: Key) -> tuple[jax.Array | None, State]:
        """Return the gradient of an unperturbed window by reverse mode (0 if it is not finite), and the state after."""
        if not self.control:
            return None, None
        start, run = jax.random.split(key)

        def loss(params: Params) -> tuple[Scalar, State]:
            inner = jax.lax.cond(
                state.left[0] <= 0, lambda p: strong(self.system.init(start, p)), lambda _: state.control, params
            )
            return window_loss(name_of(self), self.system, params, inner, data, run, self.window)

        (_, after), grad = jax.value_and_grad(loss, has_aux=True)(params)
        return jnp.where(all_finite(grad), ravel(grad)[0], 0), after

    # What members with trajectories of their own share; `ES` says otherwise.

    def _trajectories(self) -> int:
        return self.pairs

    def _axes(self) -> tuple[int, ...]:
        return (self.pairs, 2)

    def _holds(self) -> bool:
        return True

    def _own(self, inner: State) -> State:
        return inner

    def _shared(self, inner: State) -> State:
        return None

    def _stand(self, pairs: Pairs, kept: Kept) -> State:
        return kept.inner

    def _carry(self, after: State, params: Params, state: EvolutionState, pairs: Pairs, data: Data, key: Key) -> State:
        return after

    def _no_noise(self, std: Std, dtype: Any) -> jax.Array | None:
        return jnp.zeros((self.pairs, self._width(std)), dtype) if self.noise == "stored" else None

    # What is kept is what is credited, and noise has the covariance I: `_HeldNoise` and `GuidedES` say otherwise.

    def _width(self, std: Std) -> int:
        return std.size + std.logs

    def _credit(self, pairs: Pairs, kept: jax.Array, window: Window) -> jax.Array:
        """Return what pairs are credited with, given the noise that they keep."""
        return kept

    def _known(self, slope: jax.Array, window: Window) -> jax.Array:
        """Return the mean of the credit times the rise that a slope explains."""
        return slope


def _spread(tree: Any, axes: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*axes, *leaf.shape)), tree)


def _merge(tree: Any) -> Any:
    """Make `[pairs, 2, ...]` leaves `[2 pairs, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _split(tree: Any) -> Any:
    """Undo `_merge`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), tree)
