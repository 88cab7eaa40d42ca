"""Control variates: an estimate on a cheap model, with the same noise, whose mean is known."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import FINITE, FROM_ZERO_TO_ONE, check_key, check_number, check_params
from unrollax._errors import InvalidArgument
from unrollax._types import Data, Estimate, GradientEstimator, Key, Params, Scalar, State
from unrollax._value import static, value
from unrollax.estimators._parts import (
    COPIES,
    Combined,
    check_copies,
    estimate_copies,
    init_copies,
    keep_sums,
    mean_of_copies,
    minus,
    nonfinite_of,
    without_own,
    zero_sums,
)

PARTS = ("estimator", "control", "exact")


class ControlState(NamedTuple):
    """The states of the three estimators."""

    estimator: State
    control: State
    exact: State


class FittedControlState(NamedTuple):
    """The states of the copies, and each copy's covariance and variance as its others saw them, `[2, samples]`."""

    parts: ControlState
    sums: jax.Array


class ControlInfo(NamedTuple):
    """What the parts report.

    Attributes:
        nonfinite: the largest of the parts' shares of trajectories that were not finite.
        coefficient: c; for "fitted" the mean over the copies.
        estimator: the estimator's info; for "fitted" of each copy, `[samples, ...]`.
        control: the control's.
        exact: that of the control's mean.
    """

    nonfinite: Scalar
    coefficient: Scalar
    estimator: Any
    control: Any
    exact: Any


@value
class ControlVariate(Combined):
    """An estimator less the error of a control, by a fixed coefficient; see `control_variate`."""

    estimator: GradientEstimator
    control: GradientEstimator
    exact: GradientEstimator
    coefficient: float

    owner: ClassVar[str] = "control_variate"
    fields: ClassVar[tuple[str, ...]] = PARTS

    def __post_init__(self) -> None:
        self._take_parts()

    def init(self, key: Key, params: Params) -> ControlState:
        """Return the three states; the estimator and its control have the same key."""
        params = check_params(self.owner, params)
        shared, own = jax.random.split(check_key(self.owner, key))
        inits = self.estimator.init(shared, params), self.control.init(shared, params), self.exact.init(own, params)
        return ControlState(*inits)

    def estimate(self, params: Params, state: ControlState, data: Data) -> tuple[ControlState, Estimate]:
        """Run all three on the same data and return the estimate less c times the control's error."""
        params = check_params(self.owner, params)
        runs = [getattr(self, name).estimate(params, getattr(state, name), data) for name in PARTS]
        g, h, e = (estimate for _, estimate in runs)
        c = jnp.asarray(self.coefficient, jnp.result_type(float))
        grad = minus(g.grad, c, minus(h.grad, jnp.ones_like(c), e.grad))
        info = ControlInfo(nonfinite_of(g, h, e), c, g.info, h.info, e.info)
        return ControlState(*(after for after, _ in runs)), Estimate(g.loss, grad, info)


@value
class FittedControlVariate(Combined):
    """An estimator less the error of a control, by the coefficient that fits best; see `control_variate`."""

    estimator: GradientEstimator
    control: GradientEstimator
    exact: GradientEstimator
    decay: float = 0.0
    samples: int = static(default=4)

    owner: ClassVar[str] = "control_variate"
    fields: ClassVar[tuple[str, ...]] = PARTS
    times: ClassVar[str] = "samples"

    def __post_init__(self) -> None:
        check_copies(self.owner, self.samples)
        self._take_parts()

    def init(self, key: Key, params: Params) -> FittedControlState:
        """Return the states of all copies; a copy of the estimator and one of its control have the same key."""
        params = check_params(self.owner, params)
        shared, own = jax.random.split(check_key(self.owner, key))
        keys = {"estimator": shared, "control": shared, "exact": own}
        parts = (init_copies(getattr(self, name), keys[name], params, self.samples) for name in PARTS)
        return FittedControlState(ControlState(*parts), zero_sums(params, self.samples))

    def estimate(self, params: Params, state: FittedControlState, data: Data) -> tuple[FittedControlState, Estimate]:
        """Run all copies on the same data and return the mean estimate, each with the others' coefficient."""
        params = check_params(self.owner, params)
        runs = [estimate_copies(getattr(self, name), params, getattr(state.parts, name), data) for name in PARTS]
        g, h, e = (estimate for _, estimate in runs)
        error = jax.tree.map(jnp.subtract, h.grad, e.grad)
        sums = keep_sums(state.sums, jnp.stack([without_own(g.grad, error), without_own(error, error)]), self.decay)
        c = jnp.where(sums[1] > 0, sums[0] / jnp.where(sums[1] > 0, sums[1], 1), 0)
        grad = mean_of_copies(jax.vmap(minus)(g.grad, c, error))
        info = ControlInfo(nonfinite_of(g, h, e), c.mean(), g.info, h.info, e.info)
        after = FittedControlState(ControlState(*(after for after, _ in runs)), sums)
        return after, Estimate(mean_of_copies(g.loss), grad, info)


def control_variate(
    estimator: GradientEstimator,
    control: GradientEstimator,
    *,
    exact: GradientEstimator,
    coefficient: float | Literal["fitted"] = 1.0,
    samples: int | None = None,
    decay: float | None = None,
) -> ControlVariate | FittedControlVariate:
    """Take a control's error off an estimator: grad = estimator - c (control - exact).

    `control` is the same kind of estimator on a cheap model of the system, and is given the same key, so that both draw the
    same noise and err alike. `exact` is the mean of `control` by other means, such as backpropagation through the model:

        control_variate(ES(system, ...), ES(model, ...), exact=BPTT(model, ...))

    The mean is that of `estimator` for every c that is independent of the noise, if `exact` has the mean of `control`;
    what it is off by is added c times. With rho the correlation of the two, the best c = cov(estimator, control) /
    var(control) leaves (1 - rho^2) of the variance. A number is fixed, and 1 is right when the model is close. "fitted" runs
    `samples` copies of all three and takes for each the c of the OTHER copies, which know nothing of its noise, so that the
    mean stays.

    Target: the weakest one of the three in the order exact, smoothed, truncated, pseudo; needs: the strongest one in the
    order forward, jvp, vjp. Cost and state: the sum of the three, times `samples`. The loss is that of `estimator`.
    Use it when a differentiable or cheaper model of the system is at hand. Avoid it where the model's own gradient
    explodes: a NaN in any of the three is a NaN in the result.

    Args:
        estimator: any object with `init` and `estimate`.
        control: another, whose draws from a key are those of `estimator`: the same class, pairs and sampler.
        exact: a third, with the mean of `control`; it has a key of its own.
        coefficient: c, a number; or "fitted".
        samples: copies of all three, at least 3, for "fitted" only; default 4.
        decay: for "fitted" only: covariances are summed over calls, those of a call ago times this. Default 0, this call's
            alone; near 1 the coefficients are steadier, which pays with few parameters, and they survive resets.

    Returns:
        An estimator with the window and horizon of all three.

    Raises:
        InvalidArgument: windows or horizons differ, coefficient is neither, decay is not in [0, 1], or samples or decay
            go with a fixed one.

    Example:
        >>> import unrollax as ux
        >>> def make(bend):
        ...     def step(p, s, x, key):
        ...         s = 0.9 * s + p + bend * jnp.sin(9 * p)
        ...         return s, s**2
        ...     return ux.system(init=lambda key, p: jnp.zeros(()), step=step)
        >>> noise = {"std": 0.1, "window": 5, "horizon": 5, "pairs": 4}
        >>> real, model = (ux.ES(make(bend), **noise) for bend in (0.01, 0.0))
        >>> better = ux.control_variate(real, model, exact=ux.BPTT(make(0.0), 5))
        >>> state, estimate = better.estimate(0.5, better.init(jax.random.key(0), 0.5), None)
        >>> estimate.grad.shape
        ()

    References: Ross, Simulation, 5th edition, 2013, section 9.2. Vicol, Metz and Sohl-Dickstein, ICML 2021, have one for
    `PES`.
    """
    if isinstance(coefficient, str):
        if coefficient != "fitted":
            raise InvalidArgument(
                f"control_variate: coefficient must be a number or 'fitted', got coefficient={coefficient!r}."
            )
        check_number("control_variate", "decay", 0.0 if decay is None else decay, FROM_ZERO_TO_ONE, used=True)
        return FittedControlVariate(
            estimator, control, exact, 0.0 if decay is None else decay, COPIES if samples is None else samples
        )
    if samples is not None or decay is not None:
        raise InvalidArgument(
            f"control_variate: samples and decay are for coefficient='fitted', got coefficient={coefficient!r}. "
            "Leave them out, or wrap the result in unrollax.mean_over."
        )
    check_number("control_variate", "coefficient", coefficient, FINITE, used=True)
    return ControlVariate(estimator, control, exact, coefficient)
