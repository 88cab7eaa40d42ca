"""The engine of the evolution family: one antithetic window. `_evolution.py` holds its members.

Noise is kept in units of `std`. With z the noise that perturbs pair i, c what is credited, and L the mean step loss over
the window from each twin's own state,

    grad = 1 / (2 std pairs) sum_i c_i [ L(params + std z_i) - L(params - std z_i) ].
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_counts, check_key, check_params, check_window
from unrollax._errors import InvalidArgument
from unrollax._estimate import Info, Noise, Sampler, draw_noise, name_of, share_nonfinite, tick, weigh, window_loss
from unrollax._sample import normal
from unrollax._system import as_system
from unrollax._tree import strong, where
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, System
from unrollax._value import static, value

Draw = Callable[[], Noise]

CACHE = 2**20  # bytes of parameters and states that run at once on a CPU: half of what a core's L2 usually holds
FEWEST = 4  # pairs, below which products are too small to be fast
NO_LIMIT = 2**31


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
class Antithetic(abc.ABC):
    """One antithetic window. A member says what perturbs and what is credited, and whether trajectories are shared."""

    system: System
    std: float
    window: int = static()
    horizon: int | None = static(default=None)
    pairs: int = static(default=32)
    stagger: bool = static(default=False)
    sampler: Sampler = static(default=normal)
    chunk: int | None = static(default=None)

    def __post_init__(self) -> None:
        owner = name_of(self)
        check_window(owner, self.window, self.horizon)
        check_counts(owner, pairs=self.pairs, chunk=1 if self.chunk is None else self.chunk)
        std: Any = self.std  # an array, a tracer or a placeholder when JAX rebuilds the value
        if isinstance(std, str) or (isinstance(std, float) and not std > 0):
            raise InvalidArgument(f"{owner}: std must be a positive number, got std={std!r}.")
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

        # One axis for all particles, which XLA's batched products like, in chunks that stay in cache.
        flat = (_merge(twins), _merge(inner), jnp.repeat(keys, 2))
        chunk = 2 * (self.chunk or _pairs_in_cache(flat[:2]))
        if chunk >= 2 * self.pairs:
            losses, after = jax.vmap(run)(*flat)
        else:
            losses, after = jax.lax.map(lambda particle: run(*particle), flat, batch_size=chunk)
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


def _pairs_in_cache(particles: Any) -> int:
    """Return how many pairs to run at once: on a CPU what its cache holds, elsewhere all of them."""
    if jax.default_backend() != "cpu":
        return NO_LIMIT
    sizes = (leaf.size * leaf.dtype.itemsize // leaf.shape[0] for leaf in jax.tree.leaves(particles))
    return max(FEWEST, CACHE // (2 * max(1, sum(sizes))))


def _spread(tree: Any, axes: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*axes, *leaf.shape)), tree)


def _merge(tree: Any) -> Any:
    """Make `[pairs, 2, ...]` leaves `[2 pairs, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _split(tree: Any) -> Any:
    """Undo `_merge`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), tree)
