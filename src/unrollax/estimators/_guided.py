"""Guided evolution strategies: noise that prefers the subspace of recent gradients."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import UP_TO_ONE, check_counts, check_key, check_number, check_params
from unrollax._errors import InvalidArgument
from unrollax._estimate import Sampler
from unrollax._tree import ravel
from unrollax._types import Data, Estimate, GradientEstimator, Key, Params, State, Traits
from unrollax._value import static, value
from unrollax.estimators._pairs import EvolutionState, Window
from unrollax.estimators._parts import NEEDS, as_estimator, check_same_windows
from unrollax.estimators._trajectory import SharedTrajectory

OWNER = "GuidedES"


class GuidedState(NamedTuple):
    """The state of evolution strategies, of the guide, and its last gradients as rows `[subspace, numbers in params]`."""

    evolution: EvolutionState
    guide: State
    recent: jax.Array


@value
class GuidedES(SharedTrajectory):
    """Guided evolution strategies: `ES` whose noise prefers the span of a guide's last gradients.

    With an orthonormal basis U of that span (k rows, n parameters), z = sqrt(alpha) z1 + sqrt((1 - alpha) n / k) U^T z2 takes
    the place of the noise; it has the same mean square as plain noise. The estimates average to S g, where g is the smoothed
    gradient of the window and S = alpha I + (1 - alpha) (n / k) U^T U its covariance: g is amplified along the span and
    shrunk across it. This bias is the point of the method, and why its target is `pseudo`; alpha = 1 is `ES`.

    Target: pseudo (see above, and truncated as `ES`). Needs `forward`, and what the guide needs. Cost of a call: that of
    `ES` and of the guide. State: that of `ES` and of the guide, and `subspace` gradients. Use it when a cheap biased gradient
    points roughly the right way and parameters are many. Avoid it when no gradient is worth following.

    Args:
        system: what is unrolled.
        std: standard deviation of the perturbation, as for `ES`, but for `None`: a width is learned from plain noise only.
        window: steps of a call (K).
        horizon: steps between resets (T), a multiple of `window`; `None` for an endless stream.
        pairs: antithetic pairs; variance falls as 1 / pairs.
        stagger: as for `ES`, like all options from here to `noise`.
        guide: an estimator on the same windows, such as `TBPTT`, whose gradients span the subspace; `None` for the estimates
            of GuidedES itself.
        subspace: how many of the last gradients span it (k).
        alpha: share of the noise that ignores the guide, in (0, 1].

    Raises:
        InvalidArgument: as for `ES`, std is `None`, guide is no estimator or has other windows, or alpha is not in (0, 1].

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, p * s))
        >>> guided = ux.GuidedES(decay, std=0.1, window=2, pairs=8, guide=ux.TBPTT(decay, window=2))
        >>> state, estimate = guided.estimate(0.5, guided.init(jax.random.key(0), 0.5), None)
        >>> state.recent.shape
        (4, 1)

    References: Maheswaranathan et al., ICML 2019. Deviations: noise has the mean square of plain noise rather than 1 / n of
    it, and the factor beta is 1, so that the learning rate keeps its meaning; the window is truncated.
    """

    guide: GradientEstimator | None = None
    subspace: int = static(default=4)
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_counts(OWNER, subspace=self.subspace)
        check_number(OWNER, "alpha", self.alpha, UP_TO_ONE)
        SharedTrajectory.__post_init__(self)
        if self.guide is not None:
            object.__setattr__(self, "guide", as_estimator(OWNER, "guide", self.guide))
            check_same_windows(OWNER, {"itself": self, "guide": self.guide})

    @property
    def traits(self) -> Traits:
        """What the estimates average to, what they need of `step` and what they cost."""
        own = self._plain_traits()._replace(target="pseudo")
        if self.guide is None:
            return own
        needs: Any = getattr(getattr(self.guide, "traits", None), "needs", "vjp")
        return own._replace(needs=max(own.needs, needs, key=NEEDS.index), cost=None)

    def init(self, key: Key, params: Params) -> GuidedState:  # type: ignore[override]
        """Return the state before the first window; until the guide has spoken, noise is plain."""
        check_number(OWNER, "alpha", self.alpha, UP_TO_ONE, used=True)
        if self.std is None:  # at construction it may be how `vmap` is told to leave the field alone
            raise InvalidArgument(
                f"{OWNER}: std must be given, as a width is learned from plain noise only, got std=None. Give one, or take "
                "ES, PES or NRES."
            )
        params = check_params(OWNER, params)
        first, second = jax.random.split(check_key(OWNER, key))
        evolution = SharedTrajectory.init(self, first, params)
        vector, _ = ravel(params)
        guide = None if self.guide is None else self.guide.init(second, params)
        return GuidedState(evolution, guide, jnp.zeros((self.subspace, vector.size), vector.dtype))

    def estimate(  # type: ignore[override]
        self, params: Params, state: GuidedState, data: Data
    ) -> tuple[GuidedState, Estimate]:
        """Return the state after one window and the estimate of its mean step loss's gradient."""
        guide, recent = state.guide, state.recent
        if self.guide is not None:
            guide, known = self.guide.estimate(params, guide, data)
            recent = _push(recent, known.grad)
        along = dataclasses.replace(self, sampler=Along(self.sampler, _basis(recent), self.alpha))
        evolution, estimate = SharedTrajectory.estimate(along, params, state.evolution, data)
        if self.guide is None:
            recent = _push(recent, estimate.grad)
        return GuidedState(evolution, guide, recent), estimate

    def _known(self, slope: jax.Array, window: Window) -> jax.Array:
        std = window.std.at(window.number)
        return self.sampler.covariance(slope * std) / std if isinstance(self.sampler, Along) else slope


def _push(recent: jax.Array, grad: Params) -> jax.Array:
    """Put a gradient in the place of the oldest; one that is not finite leaves the subspace alone."""
    row = ravel(grad)[0][None].astype(recent.dtype)
    return jnp.where(jnp.isfinite(row).all(), jnp.concatenate([recent[1:], row]), recent)


def _basis(rows: jax.Array) -> jax.Array:
    """Return orthonormal rows that span the given ones, and rows of 0 for as many as are redundant."""
    scale = jnp.sqrt((rows**2).sum(1, keepdims=True))
    rows = jnp.where(scale > 0, rows / jnp.where(scale > 0, scale, 1), 0)
    values, vectors = jnp.linalg.eigh(rows @ rows.T)
    kept = values > 1e3 * float(np.finfo(rows.dtype).eps)
    return jnp.where(kept[:, None], (vectors / jnp.sqrt(jnp.where(kept, values, 1))[None]).T @ rows, 0)


@value
class Along:
    """A sampler of noise with covariance alpha I + (1 - alpha) (n / k) U^T U; plain if there is no basis U yet."""

    plain: Sampler = static()
    basis: jax.Array
    alpha: Any

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Draw one noise."""
        whole, inside = jax.random.split(key)
        share, scale = self._weights(shape[0])
        within = self.plain(inside, (len(self.basis),), dtype) @ self.basis.astype(dtype) * jnp.sqrt(scale)
        return (jnp.sqrt(1 - share) * self.plain(whole, shape, dtype) + jnp.sqrt(share) * within).astype(dtype)

    def covariance(self, vector: jax.Array) -> jax.Array:
        """Return the covariance times a vector."""
        share, scale = self._weights(vector.size)
        within = (self.basis @ vector) @ self.basis * scale
        return ((1 - share) * vector + share * within).astype(vector.dtype)

    def _weights(self, size: int) -> tuple[jax.Array, jax.Array]:
        """Return the share of the noise that is drawn in the span, and n / k."""
        rank = (self.basis != 0).any(1).sum()
        return jnp.where(rank > 0, 1 - self.alpha, 0.0), size / jnp.maximum(rank, 1)
