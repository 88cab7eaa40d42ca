"""LocoProp: every layer is given a target by one pass back, and solves for it by itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unrollax._check import NOT_NEGATIVE, POSITIVE, check_choice, check_counts, check_number, check_params
from unrollax._errors import InvalidArgument
from unrollax._estimate import share_nonfinite
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, Traits
from unrollax._value import static, value
from unrollax.local._checks import OWNER, check_linear, check_matching, check_slopes, check_state
from unrollax.local._curvature import Curvature
from unrollax.local._descent import Descent, SpectralFilter
from unrollax.local._layered import Loss, check_one_each
from unrollax.local._layers import as_layers, check_features, is_linear
from unrollax.local._passes import run_and_pull_back
from unrollax.local._problem import How, Problem, Solver
from unrollax.local._scales import POWERS, scale_of

BEST = Curvature()


class LocoState(NamedTuple):
    """What goes from batch to batch.

    Attributes:
        t: int32 scalar, the batches so far.
        rms: for each layer with params, `[m]` root mean squares of its units' gradients; empty with gradient targets.
        inner: what `inner` carries.
    """

    t: Scalar
    rms: list[jax.Array]
    inner: State


class LocoInfo(NamedTuple):
    """What the layers did.

    Attributes:
        nonfinite: 1 if the mean loss was NaN or infinite, else 0.
        reach: the reach that was used: less than asked for where `Curvature` bounds it.
        moved: `[layers with params]` norm of a layer's change over that of its parameters.
    """

    nonfinite: Scalar
    reach: Scalar
    moved: jax.Array


@value
class LocoProp:
    r"""LocoProp: targets for all layers from one pass back, and for each layer a convex problem of its own to reach them.

    With a = pre(W, x) a layer's pre-activations, y = f(a), and g = d loss / d a of each example's own loss, a layer solves
    from W_0, its current params,

    | variant | target | local loss, mean over the batch |
    |---|---|---|
    | `"S"` | a_0 - reach move | squared: \|pre(W, x) - target\|^2 / 2 |
    | `"M"` | y_0 - reach move | f's matching loss, a Bregman divergence: its gradient in a is f(a) - target |

    plus `pull |W - W_0|^2 / 2`, and `grad = W_0 - W`: apply it with `optax.sgd` at a rate that falls from 1 to 0, or with any
    other optimizer. All layers' problems are solved in one compiled program, by optax optimizers and `SpectralFilter` side
    by side where layers are alike. One gradient step with rate lr on either local loss is, with gradient targets, one of rate
    `lr reach` on the loss; solving the problem further weighs it by the curvature of the local loss, the covariance of the
    layer's inputs. The inputs are those of the pass forward. With v each unit's mean of g^2 over the batches seen,

    | targets | move | its length | take it |
    |---|---|---|---|
    | `"gradient"` | g | \|g\|, vanishes with it | as the paper does; for layers not linear in their params |
    | `"natural"` | g / v | 1 / \|g\| | at first: a natural gradient step in the pre-activations, unit by unit |
    | `"normalized"` | g / sqrt(v) | 1, in the unit of a (in M of y) | where gradients vanish: deep sigmoid nets |

    (v + mean v / 10 in the place of v, the mean over the layer.) The directions of the last two do not depend on how far the
    gradient has vanished on its way back. The length of natural targets grows as it vanishes, until `Curvature(share=)`
    bounds it; that of normalized ones does not change: take `reach=0.1` and `Curvature(trust=None)` with them, and lower
    the rate of the optimizer to 0. Natural targets take the loss for a negative log-likelihood in nats: c times the loss
    makes steps of 1/c the length. Where it has another unit and they get too short, `reach=1e6, Curvature(trust=None)`
    leaves their length to `share`, which knows no unit.

    Target: pseudo, a direction that is no gradient. Cost of a batch: one forward pass, one pass back to the
    pre-activations, and what `inner` takes. State: that of `inner`, and a number for each unit.
    Use it when: a deep net of layers that are linear in their weights is to be fitted fast. Avoid it when: layers share
    weights.

    Args:
        layers: first to last; see `layered`.
        loss: `loss(y, target) -> [batch]`, one an example.
        variant: `"M"` or `"S"`.
        inner: how the local problems are solved: any optax optimizer, which starts anew at each batch and may have a schedule
            over the local steps (`optax.rmsprop(optax.linear_schedule(1e-3, 0, 10))`); `Curvature`; or `SpectralFilter`.
        steps: local steps to a batch; `Curvature` solves S in the first one.
        reach: how far targets lie, in units of the move.
        pull: weight of the regulariser, in units of an eigenvalue of C.
        targets: `"gradient"`, `"natural"` or `"normalized"`.

    Raises:
        InvalidArgument: no layers, one that is none, an inner that can't solve it, or a number out of range; in M, a layer
            with params whose transfer has no matching loss, or is a softmax before the last layer (at `init`, if only params
            show that it has some).
        StructureError: when traced, data, params or a state that don't fit, or a layer that has to be linear in its params.

    Example:
        >>> import optax, unrollax as ux
        >>> layers = ux.dense_layers([4, 8, 2], "tanh")
        >>> loss = lambda y, target: ((y - target) ** 2).sum(-1)
        >>> params = ux.layered(layers, loss).params(jax.random.key(0))
        >>> x = jax.random.normal(jax.random.key(1), (64, 4))
        >>> run = ux.fit(ux.LocoProp(layers, loss), optax.sgd(optax.linear_schedule(1.0, 0.0, 50)), params,
        ...              lambda step: (x, jnp.tanh(x[:, :2])), key=jax.random.key(2), steps=50)
        >>> bool(run.metrics.loss[-1] < 0.05 * run.metrics.loss[0])
        True

    References: Amid, Anil and Warmuth, "LocoProp: Enhancing BackProp via Local Loss Optimization", AISTATS 2022. Deviations:
    `Curvature`, `SpectralFilter` and all targets but gradients are ours; the local loss is a mean over the batch, so that
    nothing depends on its size; the regulariser is `pull`, the reciprocal of the paper's rate.
    """

    traits: ClassVar[Traits] = Traits(target="pseudo", needs="vjp")

    layers: Any
    loss: Loss = static()
    variant: Literal["M", "S"] = static(default="S")
    inner: Any = BEST
    steps: int = static(default=1)
    reach: Any = 1.0
    pull: Any = 0.0
    targets: Literal["gradient", "natural", "normalized"] = static(default="natural")

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_layers(OWNER, self.layers))
        if not callable(self.loss):
            raise InvalidArgument(
                f"{OWNER}: loss must be a function loss(y, target) -> [batch], got loss={self.loss!r}. Pass one."
            )
        check_choice(OWNER, "variant", self.variant, ("M", "S"))
        check_choice(OWNER, "targets", self.targets, tuple(POWERS))
        check_counts(OWNER, steps=self.steps)
        check_number(OWNER, "reach", self.reach, POSITIVE)
        check_number(OWNER, "pull", self.pull, NOT_NEGATIVE)
        object.__setattr__(self, "inner", _as_solver(self.inner, self.variant))
        if self.variant == "M":  # layers without these may have no params, and are checked where that is known
            linear = [index for index, layer in enumerate(self.layers) if is_linear(layer)]
            check_matching(self.layers, linear)
            if isinstance(self.inner, Curvature):
                check_slopes(self.layers, linear)

    def init(self, key: Key, params: list[Params]) -> LocoState:
        """Return the state before the first batch."""
        check_number(OWNER, "reach", self.reach, POSITIVE, used=True)
        check_number(OWNER, "pull", self.pull, NOT_NEGATIVE, used=True)
        params = check_params(OWNER, params)
        return self._start(params, self._trained(params))

    def estimate(self, params: list[Params], state: LocoState, data: Data) -> tuple[LocoState, Estimate]:
        """Return old minus new params for one batch `(x, target)`, leaves `[batch, ...]`."""
        params = check_params(OWNER, params)
        at = self._trained(params)
        check_state(state, jax.eval_shape(lambda params: self._start(params, at), params))
        seen = run_and_pull_back(OWNER, self.layers, self.loss, params, data)
        for index in at:
            if is_linear(self.layers[index]):
                one = seen.inputs[index], seen.outputs[index]
                check_features(OWNER, index, self.layers[index], params[index], *one)
        t, rms, power = state.t + 1, state.rms, POWERS[self.targets]
        scales: list[tuple[jax.Array, ...]] = [()] * len(at)
        if power:
            both = [scale_of(seen.slopes[index], old, t) for index, old in zip(at, rms, strict=True)]
            scales, rms = [(scale,) * power for scale, _ in both], [new for _, new in both]
        problems = [
            Problem(self.layers[index], params[index], seen.inputs[index], seen.outputs[index], seen.slopes[index], own)
            for index, own in zip(at, scales, strict=True)
        ]
        moved, inner, reach = self.inner.solve(
            problems, state.inner, How(self.variant, self.steps, self.reach, self.pull, seen.loss)
        )
        grad = jax.tree.unflatten(
            jax.tree.structure(params), jax.tree.leaves(moved)
        )  # with the places of those without
        info = LocoInfo(share_nonfinite(seen.loss), reach, _relative(moved, [params[index] for index in at]))
        return LocoState(t, rms, inner), Estimate(seen.loss, grad, info)

    def _start(self, params: list[Params], at: list[int]) -> LocoState:
        layers, own, rms = [self.layers[index] for index in at], [params[index] for index in at], []
        if POWERS[self.targets]:
            matrices = [layer.matrix(one) for layer, one in zip(layers, own, strict=True)]
            rms = [jnp.zeros(one.shape[1], jnp.promote_types(one.dtype, jnp.float32)) for one in matrices]
        return LocoState(jnp.zeros((), jnp.int32), rms, self.inner.init(layers, own))

    def _trained(self, params: list[Params]) -> list[int]:
        """Return the places of the layers that have params; raise if one can't be solved for."""
        check_one_each(OWNER, self.layers, params)
        at = [index for index, one in enumerate(params) if jax.tree.leaves(one)]
        if POWERS[self.targets] or not isinstance(self.inner, Descent):
            why = f"targets={self.targets!r}" if POWERS[self.targets] else type(self.inner).__name__
            for index in at:
                check_linear(index, self.layers[index], params[index], why)
        if self.variant == "M":
            check_matching(self.layers, at)
        return at


def _relative(moved: list[Params], params: list[Params]) -> jax.Array:
    """Return the norms of changes over those of the params."""
    norms = [(optax.tree.norm(new), optax.tree.norm(old)) for new, old in zip(moved, params, strict=True)]
    return jnp.stack([jnp.where(old > 0, new / jnp.where(old > 0, old, 1), jnp.nan) for new, old in norms])


def _as_solver(inner: Any, variant: str) -> Solver:
    """Return what solves the local problems; an optax optimizer as one."""
    if isinstance(inner, (Curvature, Descent, SpectralFilter)):
        solver: Solver = inner
    elif not isinstance(inner, type) and all(callable(getattr(inner, name, None)) for name in ("init", "update")):
        solver = Descent(inner)
    else:
        raise InvalidArgument(
            f"{OWNER}: inner must be an optax optimizer, Curvature or SpectralFilter, got inner={inner!r}. Pass one such as "
            "optax.rmsprop(1e-3) or unrollax.Curvature()."
        )
    if isinstance(inner, SpectralFilter) and variant != "S":
        raise InvalidArgument(
            f"{OWNER}: SpectralFilter must have variant='S', got variant={variant!r}. Only steps on a squared loss are "
            "linear; take Curvature for M."
        )
    return solver
