"""The rule of `ES` and its kin: fresh noise in every window, on trajectories that no noise has touched."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unrollax._estimate import name_of, window_loss
from unrollax._tree import strong, where
from unrollax._types import Data, Key, Params, State
from unrollax._value import value
from unrollax.estimators._antithetic import Antithetic, Target
from unrollax.estimators._pairs import EvolutionState, Kept, Pairs, Window
from unrollax.estimators._std import Std


@value
class SharedTrajectory(Antithetic):
    """Every pair starts its window from an unperturbed trajectory, one for all or, with `stagger`, one a pair."""

    def _rule(self, pairs: Pairs, noise: jax.Array | None, window: Window) -> tuple[jax.Array, jax.Array]:
        return self._draw(pairs.seeds, pairs.born + pairs.age, window)

    def _target(self) -> Target:
        return "smoothed" if self._is_whole() else "truncated"

    def _passes(self) -> str:
        if self._is_whole():
            return "2 * pairs"
        return f"2 * pairs + {'pairs' if self.stagger else 1}"

    def _trajectories(self) -> int:
        return self.pairs if self.stagger else 1

    def _axes(self) -> tuple[int, ...]:
        return (self._trajectories(),)

    def _holds(self) -> bool:
        return False

    def _own(self, inner: State) -> State:
        return None

    def _shared(self, inner: State) -> State:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.pairs, *leaf.shape[1:])), inner)

    def _stand(self, pairs: Pairs, kept: Kept) -> State:
        return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], 1), pairs.shared)

    def _carry(self, after: State, params: Params, state: EvolutionState, pairs: Pairs, data: Data, key: Key) -> State:
        """Advance the unperturbed trajectories; where the twins came to is forgotten."""
        if self._is_whole():
            return None

        def advance(inner: State, key: Key) -> State:
            return window_loss(name_of(self), self.system, params, inner, data, key, self.window)[1]

        def fresh() -> State:
            new = jax.vmap(lambda key: strong(self.system.init(key, params)))(pairs.start[: self._trajectories()])
            return where(state.left <= 0, new, state.inner)

        inner = jax.lax.cond((state.left <= 0).any(), fresh, lambda: state.inner)
        return jax.vmap(advance)(inner, jax.random.split(key, self._trajectories()))

    def _no_noise(self, std: Std, dtype: Any) -> jax.Array | None:
        return None
