"""LocoProp: every layer is given a target by one pass back, and solves for it by itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from unrollax._check import NOT_NEGATIVE, POSITIVE, check_choice, check_counts, check_number, check_params
from unrollax._errors import InvalidArgument, StructureError
from unrollax._estimate import share_nonfinite
from unrollax._types import Data, Estimate, Key, Params, Scalar, State, Traits
from unrollax._value import static, value
from unrollax.local._curvature import Curvature
from unrollax.local._descent import Descent, SpectralFilter
from unrollax.local._layered import Loss, check_one_each
from unrollax.local._layers import as_layers, is_linear, show
from unrollax.local._natural import natural
from unrollax.local._passes import run_and_pull_back
from unrollax.local._problem import How, Problem, Solver
from unrollax.local._transfers import Transfer

OWNER = "LocoProp"
BEST = Curvature()


class LocoState(NamedTuple):
    """What goes from batch to batch.

    Attributes:
        t: int32 scalar, the batches so far.
        rms: for each layer with params, `[m]` root mean squares of its units' gradients; empty without natural targets.
        inner: what `inner` carries.
    """

    t: Scalar
    rms: list[jax.Array]
    inner: State


class LocoInfo(NamedTuple):
    """What the layers did.

    Attributes:
        nonfinite: 1 if the mean loss was NaN or infinite, else 0.
        reach: the reach that was used: less than asked for where `Curvature(trust=)` bounds it.
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

    plus `pull |W - W_0|^2 / 2`, and `grad = W_0 - W`: apply it with `optax.sgd(1.0)`, or with any other optimizer on top. All
    layers' problems are solved at once in one compiled program, those of layers alike side by side. One gradient step with
    rate lr on either local loss is a gradient step of rate `lr reach` on the loss; solving the problem further weighs it by
    the curvature of the local loss, the covariance of the layer's inputs. The inputs are those of the pass forward.

    With `targets="gradient"`, the paper's, move = g. With `"natural"` each unit's g is divided by its mean square over the
    batches seen, a natural gradient step in the pre-activations unit by unit: it does not depend on how far the gradient
    has vanished on its way back. Such steps keep their length near a minimum: lower the rate of the optimizer to 0.

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
        steps: local steps to a batch.
        reach: how far targets lie, in units of the move.
        pull: weight of the regulariser, in units of an eigenvalue of C.
        targets: `"gradient"` or `"natural"`.

    Raises:
        InvalidArgument: no layers, one that is none, a softmax or a transfer without a matching loss in M, an inner that
            can't solve it, or a number out of range.
        StructureError: when traced, data or params that don't fit, or a layer that `inner` needs to be linear in its params.

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
    `Curvature`, `SpectralFilter` and natural targets are ours; the local loss is a mean over the batch, so that nothing
    depends on its size; the regulariser is `pull`, the reciprocal of the paper's rate.
    """

    traits: ClassVar[Traits] = Traits(target="pseudo", needs="vjp")

    layers: Any
    loss: Loss = static()
    variant: Literal["M", "S"] = static(default="S")
    inner: Any = BEST
    steps: int = static(default=1)
    reach: Any = 1.0
    pull: Any = 0.0
    targets: Literal["gradient", "natural"] = static(default="natural")

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_layers(OWNER, self.layers))
        if not callable(self.loss):
            raise InvalidArgument(
                f"{OWNER}: loss must be a function loss(y, target) -> [batch], got loss={self.loss!r}. Pass one."
            )
        check_choice(OWNER, "variant", self.variant, ("M", "S"))
        check_choice(OWNER, "targets", self.targets, ("gradient", "natural"))
        check_counts(OWNER, steps=self.steps)
        check_number(OWNER, "reach", self.reach, POSITIVE)
        check_number(OWNER, "pull", self.pull, NOT_NEGATIVE)
        object.__setattr__(self, "inner", _as_solver(self.inner, self.variant))
        if self.variant == "M":
            _check_matching(self.layers)

    def init(self, key: Key, params: list[Params]) -> LocoState:
        """Return the state before the first batch."""
        check_number(OWNER, "reach", self.reach, POSITIVE, used=True)
        check_number(OWNER, "pull", self.pull, NOT_NEGATIVE, used=True)
        params = check_params(OWNER, params)
        layers, own = self._trained(params)
        rms = []
        if self.targets == "natural":
            matrices = [layer.matrix(one) for layer, one in zip(layers, own, strict=True)]
            rms = [jnp.zeros(one.shape[1], jnp.promote_types(one.dtype, jnp.float32)) for one in matrices]
        return LocoState(jnp.zeros((), jnp.int32), rms, self.inner.init(layers, own))

    def estimate(self, params: list[Params], state: LocoState, data: Data) -> tuple[LocoState, Estimate]:
        """Return old minus new params for one batch `(x, target)`, leaves `[batch, ...]`."""
        params = check_params(OWNER, params)
        self._trained(params)
        seen = run_and_pull_back(OWNER, self.layers, self.loss, params, data)
        at = _with_params(params)
        t = state.t + 1
        scales: list[Any] = [None] * len(at)
        rms = state.rms
        if self.targets == "natural":
            both = [natural(seen.slopes[index], old, t) for index, old in zip(at, rms, strict=True)]
            scales, rms = [scale for scale, _ in both], [new for _, new in both]
        problems = [
            Problem(
                self.layers[index], params[index], seen.inputs[index], seen.outputs[index], seen.slopes[index], scale
            )
            for index, scale in zip(at, scales, strict=True)
        ]
        moved, inner, reach = self.inner.solve(
            problems, state.inner, How(self.variant, self.steps, self.reach, self.pull)
        )
        grad = jax.tree.unflatten(
            jax.tree.structure(params), jax.tree.leaves(moved)
        )  # with the places of those without
        info = LocoInfo(share_nonfinite(seen.loss), reach, _relative(moved, [params[index] for index in at]))
        return LocoState(t, rms, inner), Estimate(seen.loss, grad, info)

    def _trained(self, params: list[Params]) -> tuple[list[Any], list[Params]]:
        """Return the layers that have params, and these; raise if one must be linear in them and isn't."""
        check_one_each(OWNER, self.layers, params)
        at = _with_params(params)
        if self.targets == "natural" or not isinstance(self.inner, Descent):
            what = type(self.inner).__name__ if self.targets == "gradient" else "targets='natural'"
            for index in at:
                if not is_linear(self.layers[index]):
                    raise StructureError(
                        f"{OWNER}: layers[{index}] must have features, matrix and from_matrix for {what}, got "
                        f"{show(self.layers[index])} without. Take targets='gradient' and an optax optimizer as inner, or "
                        "give it these three."
                    )
                _check_matrix(index, self.layers[index], params[index])
        return [self.layers[index] for index in at], [params[index] for index in at]


def _check_matrix(index: int, layer: Any, params: Params) -> None:
    """Raise unless a linear layer takes these params; the message names its place."""
    try:
        jax.eval_shape(layer.matrix, params)
    except StructureError as error:
        raise StructureError(f"{OWNER}: layers[{index}]: {error}") from None


def _with_params(params: list[Params]) -> list[int]:
    """Return the places of the layers that have params."""
    return [index for index, one in enumerate(params) if jax.tree.leaves(one)]


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


def _check_matching(layers: tuple[Any, ...]) -> None:
    """Raise unless each transfer has a matching loss, and none but the last is a softmax."""
    for index, layer in enumerate(layers):
        transfer = getattr(layer, "transfer", None)
        got = getattr(transfer, "name", None) or getattr(transfer, "__qualname__", None) or repr(transfer)
        where = f"{OWNER}: layers[{index}], {show(layer)},"
        if not isinstance(transfer, Transfer) or transfer.potential is None:
            raise InvalidArgument(
                f"{where} must have a transfer with a matching loss for variant='M', got {got}. Give it one, "
                "Transfer(name, function, potential), or take variant='S', which needs none."
            )
        if transfer.name == "softmax" and index + 1 < len(layers):
            raise InvalidArgument(
                f"{where} must not be a softmax unless it is the last, for variant='M': targets beside the simplex are those "
                "of no pre-activation. Take variant='S', or another transfer there."
            )
