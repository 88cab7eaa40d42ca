"""Combinators, from estimators to an estimator: means of copies and mixes of two."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import FINITE, FROM_ZERO_TO_ONE, check_counts, check_key, check_number, check_params
from unrollax._errors import InvalidArgument
from unrollax._types import Data, Estimate, GradientEstimator, Key, Params, Scalar, State
from unrollax._value import static, value
from unrollax.estimators._parts import (
    COPIES,
    Combined,
    check_copies,
    combine,
    estimate_copies,
    init_copies,
    is_finite,
    keep_sums,
    mean_of_copies,
    nonfinite_of,
    without_own,
    zero_sums,
)


class MeanInfo(NamedTuple):
    """What the copies report: `nonfinite`, the mean of theirs, and `copies`, their infos, `[repeats, ...]`."""

    nonfinite: Scalar
    copies: Any


@value
class MeanOver(Combined):
    """The mean of independent copies of an estimator; see `mean_over`."""

    estimator: GradientEstimator
    repeats: int = static()

    owner: ClassVar[str] = "mean_over"
    fields: ClassVar[tuple[str, ...]] = ("estimator",)
    times: ClassVar[str] = "repeats"

    def __post_init__(self) -> None:
        check_counts(self.owner, repeats=self.repeats)
        self._take_parts()

    def init(self, key: Key, params: Params) -> State:
        """Return the states of all copies, leaves `[repeats, ...]`."""
        params = check_params(self.owner, params)
        return init_copies(self.estimator, check_key(self.owner, key), params, self.repeats)

    def estimate(self, params: Params, state: State, data: Data) -> tuple[State, Estimate]:
        """Run every copy on the same data and return the mean of their estimates."""
        state, each = estimate_copies(self.estimator, check_params(self.owner, params), state, data)
        info = MeanInfo(nonfinite_of(each), each.info)
        return state, Estimate(mean_of_copies(each.loss), mean_of_copies(each.grad), info)


def mean_over(estimator: GradientEstimator, repeats: int) -> MeanOver:
    """Average independent copies of an estimator, each with keys and a state of its own.

    All copies see the same data and have the target of one; what their keys decide (noise, starts, the system's own
    randomness) is averaged, so that its variance falls as 1 / repeats. For noise alone the estimator's own `pairs` or
    `directions` are cheaper.

    Args:
        estimator: any object with `init` and `estimate`.
        repeats: copies; cost, state and memory are those of one times this.

    Returns:
        An estimator with the window, horizon, target and needs of one copy.

    Raises:
        InvalidArgument: repeats is no positive whole number, or estimator lacks a method.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jax.random.normal(k), step=lambda p, s, x, k: (p * s, p * s**2))
        >>> many = ux.mean_over(ux.TBPTT(decay, window=5), 100)
        >>> state, estimate = many.estimate(0.5, many.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad.shape, state.inner.shape
        ((), (100,))
    """
    return MeanOver(estimator, repeats)


class MixState(NamedTuple):
    """The states of the two estimators."""

    first: State
    second: State


class AdaptiveMixState(NamedTuple):
    """The states of the copies of the two estimators, and their variances as each copy's others saw them, `[2, samples]`."""

    first: State
    second: State
    variances: jax.Array


class MixInfo(NamedTuple):
    """What the parts report.

    Attributes:
        nonfinite: the larger one of the parts' shares of trajectories that were not finite.
        weight: of the second estimator; for "inverse-variance" the mean over the copies.
        first: the first estimator's info; for "inverse-variance" of each copy, `[samples, ...]`.
        second: the second estimator's.
    """

    nonfinite: Scalar
    weight: Scalar
    first: Any
    second: Any


@value
class Mix(Combined):
    """Two estimators by a fixed weight; see `mix`."""

    first: GradientEstimator
    second: GradientEstimator
    weight: float

    owner: ClassVar[str] = "mix"
    fields: ClassVar[tuple[str, ...]] = ("first", "second")

    def __post_init__(self) -> None:
        self._take_parts()

    def init(self, key: Key, params: Params) -> MixState:
        """Return the states of both, with keys of their own."""
        params = check_params(self.owner, params)
        keys = jax.random.split(check_key(self.owner, key))
        return MixState(self.first.init(keys[0], params), self.second.init(keys[1], params))

    def estimate(self, params: Params, state: MixState, data: Data) -> tuple[MixState, Estimate]:
        """Run both on the same data and return their weighted mean."""
        params = check_params(self.owner, params)
        one_state, one = self.first.estimate(params, state.first, data)
        two_state, two = self.second.estimate(params, state.second, data)
        weight = _to_the_finite(jnp.asarray(self.weight, jnp.result_type(float)), one, two)
        loss, grad = combine(weight, (one.loss, one.grad), (two.loss, two.grad))
        info = MixInfo(nonfinite_of(one, two), weight, one.info, two.info)
        return MixState(one_state, two_state), Estimate(loss, grad, info)


@value
class AdaptiveMix(Combined):
    """Two estimators by their inverse variances; see `mix`."""

    first: GradientEstimator
    second: GradientEstimator
    decay: float = 0.0
    samples: int = static(default=4)

    owner: ClassVar[str] = "mix"
    fields: ClassVar[tuple[str, ...]] = ("first", "second")
    times: ClassVar[str] = "samples"

    def __post_init__(self) -> None:
        check_copies(self.owner, self.samples)
        self._take_parts()

    def init(self, key: Key, params: Params) -> AdaptiveMixState:
        """Return the states of all copies of both, with keys of their own."""
        params = check_params(self.owner, params)
        keys = jax.random.split(check_key(self.owner, key))
        first = init_copies(self.first, keys[0], params, self.samples)
        second = init_copies(self.second, keys[1], params, self.samples)
        return AdaptiveMixState(first, second, zero_sums(params, self.samples))

    def estimate(self, params: Params, state: AdaptiveMixState, data: Data) -> tuple[AdaptiveMixState, Estimate]:
        """Run all copies on the same data and return the mean of their mixes, each weighted by the others' variances."""
        params = check_params(self.owner, params)
        one_state, one = estimate_copies(self.first, params, state.first, data)
        two_state, two = estimate_copies(self.second, params, state.second, data)
        now = jnp.stack([without_own(one.grad, one.grad), without_own(two.grad, two.grad)])
        variances = keep_sums(state.variances, now, self.decay)
        weights = jax.vmap(_to_the_finite)(_inverse_variance(variances, jnp.isfinite(now)), one, two)
        each = jax.vmap(combine)(weights, (one.loss, one.grad), (two.loss, two.grad))
        loss, grad = mean_of_copies(each)
        info = MixInfo(nonfinite_of(one, two), weights.mean(), one.info, two.info)
        return AdaptiveMixState(one_state, two_state, variances), Estimate(loss, grad, info)


def _to_the_finite(weight: Scalar, one: Estimate, two: Estimate) -> Scalar:
    """Give all weight to the one that is finite, when the other isn't."""
    fine = is_finite(one), is_finite(two)
    return jnp.where(fine[0] & ~fine[1], 0, jnp.where(fine[1] & ~fine[0], 1, weight))


def _inverse_variance(variances: jax.Array, fine: jax.Array) -> jax.Array:
    """Return the weight of the second for each copy, from variances `[2, copies]` and whether this call's were finite."""
    one, two = variances / jnp.where(variances.max(0) > 0, variances.max(0), 1)[None]
    weight = jnp.where(one + two > 0, one / jnp.where(one + two > 0, one + two, 1), 0.5)
    return jnp.where(fine[0] & ~fine[1], 0, jnp.where(fine[1] & ~fine[0], 1, weight))


def mix(
    first: GradientEstimator,
    second: GradientEstimator,
    *,
    weight: float | Literal["inverse-variance"] = "inverse-variance",
    samples: int | None = None,
    decay: float | None = None,
) -> Mix | AdaptiveMix:
    """Mix two estimators: grad = (1 - weight) first + weight second.

    With a number the weight is fixed. With "inverse-variance" it is the one that gives the mix the least variance when the
    two are independent, v_first / (v_first + v_second), so that the noisy one fades: backpropagation where it is tame,
    evolution strategies where it explodes. The variances are those of the whole gradient over `samples` copies of both.
    Each copy is weighted by the variances of the OTHER copies, which know nothing of its own noise: for fixed params the
    mix is unbiased when both are, as it wouldn't be if a copy's own noise had a say in its weight.

    An estimate whose loss or gradient is NaN or infinite gets weight 0 and leaves no trace, also under a fixed weight; if
    both are, so is the mix.

    Target: the weaker one of the two in the order exact, smoothed, truncated, pseudo; needs: the stronger one in the order
    forward, jvp, vjp. Cost: the sum of both, times `samples`. State: theirs, times `samples`.
    Use it where the gradient explodes in some places only. Avoid "inverse-variance" on a system without randomness with
    `BPTT` as a part: its copies are all equal, of variance 0, and however steep the gradient it takes all weight until it
    overflows. Start the system at random.

    Args:
        first: any object with `init` and `estimate`.
        second: another, with the same window and horizon.
        weight: of the second, a number; or "inverse-variance".
        samples: copies of both, at least 3, for "inverse-variance" only; default 4.
        decay: for "inverse-variance" only: variances are summed over calls, those of a call ago times this. Default 0, this
            call's alone; near 1 the weights are steadier, which pays with few parameters, and they survive resets.

    Returns:
        An estimator with the window and horizon of both.

    Raises:
        InvalidArgument: windows or horizons differ, weight is neither, decay is not in [0, 1], or samples or decay go with
            a fixed weight.

    Example:
        >>> import unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jax.random.normal(k), step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> both = ux.mix(ux.BPTT(decay, 5), ux.ES(decay, std=0.1, window=5, horizon=5))
        >>> state, estimate = both.estimate(0.5, both.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad.shape, bool(0 <= estimate.info.weight <= 1)
        ((), True)

    References: Metz et al., arXiv 2021; Parmas et al., ICML 2018 (total propagation). Deviation: the variances leave out
    the copy that they weight.
    """
    if isinstance(weight, str):
        if weight != "inverse-variance":
            raise InvalidArgument(f"mix: weight must be a number or 'inverse-variance', got weight={weight!r}.")
        check_number("mix", "decay", 0.0 if decay is None else decay, FROM_ZERO_TO_ONE, used=True)
        return AdaptiveMix(first, second, 0.0 if decay is None else decay, COPIES if samples is None else samples)
    if samples is not None or decay is not None:
        raise InvalidArgument(
            f"mix: samples and decay are for weight='inverse-variance', got weight={weight!r}. "
            "Leave them out, or wrap the mix in unrollax.mean_over."
        )
    check_number("mix", "weight", weight, FINITE, used=True)
    return Mix(first, second, weight)
