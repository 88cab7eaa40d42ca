"""K-FAC: Gauss-Newton steps for a net of layers by a Kronecker product a layer, which set lr, momentum and damping."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import NOT_NEGATIVE, POSITIVE, check_choice, check_counts, check_key, check_number, check_params
from unrollax._types import Estimate, Key, Params, Scalar, Traits
from unrollax._value import static, value
from unrollax.local._layered import losses_of, run_layers
from unrollax.local._passes import batch_of
from unrollax.optimizers._factors import Factors, apply_inverse, averaged, factors_of, inverted, zero_factors
from unrollax.optimizers._net import Linear, check_net, ends_alone, linearized, matrices_of, params_from
from unrollax.optimizers._output_hessian import Times, check_hessian, output_hessian
from unrollax.optimizers._quadratic import Matrices, Quadratic, dot, minimum

DECAY = 0.95  # of the factors' moving averages, an update
LEAST = 0.8  # but at a renewal no less: at every=10 a small autoencoder had 80 with 0.6, 76 with 0.8, 77 with 0.95, one seed
DROP = 0.95  # of the damping, an update
MOST = 100  # updates whose change of the damping is made at once
SMALLEST = 1e-8  # damping


class KFACInfo(NamedTuple):
    """What one update of K-FAC says.

    Attributes:
        grad_norm: Euclidean norm of the gradient, of the loss and the L2 term.
        lr: what the preconditioned gradient was multiplied with.
        momentum: what the last update was multiplied with.
        damping: the damping that was used.
        ratio: reduction of the objective over what the quadratic model foretold; NaN where it wasn't measured.
    """

    grad_norm: Scalar
    lr: Scalar
    momentum: Scalar
    damping: Scalar
    ratio: Scalar


class KFACState(NamedTuple):
    """All that the next update needs.

    Attributes:
        key: for the random signs.
        step: int32 scalar, the updates so far.
        renewed: int32 scalar, the batches in the factors.
        damping: the next one.
        factors: the layers' averages.
        inverses: of the factors, damped.
        velocity: the last update.
    """

    key: Key
    step: Scalar
    renewed: Scalar
    damping: Scalar
    factors: list[Factors]
    inverses: list[Factors]
    velocity: Matrices


@value
class KFAC:
    r"""Second-order steps for a net of layers: each layer's curvature is a Kronecker product of two small matrices.

    For a layer a = F W with features F of its inputs, the Gauss-Newton matrix of its W is taken to be A (x) G, where
    A = E[F^T F] and G = E[g^T g]; g is what backpropagation makes at `a` of H^(1/2) r, with H the Hessian of the loss in the
    net's outputs and r random signs. Where an example meets W several times (the patches of a convolution, the steps of a
    recurrent layer, further axes), A is the mean over all of them and G the sum over an example's: what meets W at two places
    is taken to be unrelated, and g to have one distribution at all of them. A last dense or convolutional layer whose outputs
    are independent has a diagonal G, exact from any signs, and only that is kept. The proposal is

        v = -(A + pi gamma I)^-1 grad (G + gamma / pi I)^-1,   gamma = sqrt(damping + l2),   pi^2 = mean diag A / mean diag G,

    and the update lr v + momentum (last update), whose two numbers minimise the quadratic model
    M(d) = 1/2 d^T (J^T H J + (damping + l2) I) d + grad^T d with the exact Gauss-Newton matrix of this batch.

    At the first update and every `every` after it, this batch is counted into the averages of A and G and they are inverted;
    what were averaged in between would not be used before. At the k-th time the old averages weigh
    min(1 - 1/k, max(0.95^every, 0.8)): as in the paper at every=1, and never of fewer than about five batches.
    Every `every` updates the damping falls by 0.95^every where the loss fell by more than 3/4 of -M, and grows by as much
    where by less than 1/4 (Levenberg-Marquardt).

    It is an estimator on batches, whose `grad` is the update with its sign changed: give it to `fit` with `optax.sgd(1.0)`.

    Target: a direction, no gradient. Cost: one forward pass, one back to the pre-activations, the gradient, two tangents, and
    products with the inverses; every `every` updates one more pass back and forward, the factors and an inverse of each.
    State: A [n, n] and G [m, m] of each layer twice, and one update. Use it when a net of modest width is hard to condition
    and batches are large, such as deep autoencoders; avoid it for wide layers and small batches, where the quadratic model
    of one batch says little of the others (then set lr and momentum yourself).

    Args:
        net: an object with `layers` and `loss(y, target) -> [batch]`, such as `unrollax.layered(layers, loss)`; layers with
            params are linear in them (`features`, `matrix`, `from_matrix`). The loss is convex in the net's outputs.
        outputs: how the loss sees them. `"independent"`: each output has a term of its own, as in squared error or sigmoid
            cross-entropy on logits; `"softmax"`: softmax cross-entropy on logits, over the last axis. What the loss is, is
            compared with it once, while tracing.
        lr: fixed; `None`: by the quadratic model.
        momentum: fixed; `None`: by the quadratic model.
        damping: the first one, in units of the loss's curvature; larger ones make shorter first steps. The paper has 150.
        adapt: whether the damping follows the quadratic model's success; else it stays.
        every: updates from one renewal of factors and inverses to the next, and between two changes of the damping.
        l2: adds l2 / 2 |params|^2 to what is minimised; `Estimate.loss` leaves it out.

    Raises:
        InvalidArgument: a layer with params that can't be matched, or a loss with another curvature than `outputs` says.
        StructureError: params or data don't fit the layers.

    Example:
        >>> import optax, unrollax as ux
        >>> net = ux.layered(ux.dense_layers([5, 3, 5], "tanh"), lambda y, target: ((y - target) ** 2).sum(axis=1))
        >>> x = jax.random.normal(jax.random.key(1), (20, 5))
        >>> params = net.params(jax.random.key(2))
        >>> run = ux.fit(ux.KFAC(net), optax.sgd(1.0), params, lambda step: (x, x), key=jax.random.key(0), steps=40)
        >>> bool(run.metrics.loss[-1] < 0.6 * run.metrics.loss[0])
        True

    References: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
    Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016 (KFC); Martens, Ba
    and Johnson, ICLR 2018 (recurrent layers, their independent variant). Deviations: g from random signs rather than from
    sampled targets, which has the same mean and less noise; gamma follows the damping rather than a search of its own; one
    period for all that isn't done at each update, also for the averages, which the paper makes of a part of each batch.
    """

    net: Any
    outputs: Literal["independent", "softmax"] = static(default="independent")
    lr: Any = None
    momentum: Any = None
    damping: Any = 1.0
    adapt: bool = static(default=True)
    every: int = static(default=5)
    l2: Any = 0.0
    traits: ClassVar[Traits] = Traits(target="pseudo", needs="vjp")

    def __post_init__(self) -> None:
        check_choice("KFAC", "outputs", self.outputs, ("independent", "softmax"))
        check_choice("KFAC", "adapt", self.adapt, (True, False))
        check_counts("KFAC", every=self.every)
        check_number("KFAC", "damping", self.damping, POSITIVE)
        for name in ("lr", "momentum", "l2"):
            check_number("KFAC", name, getattr(self, name), NOT_NEGATIVE)
        check_net("KFAC", self.net)

    def init(self, key: Key, params: Params) -> KFACState:
        """Return empty averages, and the first damping."""
        matrices = matrices_of("KFAC", self.net.layers, check_params("KFAC", params))
        alone = self.outputs == "independent" and ends_alone(self.net.layers, params)
        last = len(matrices) - 1 if alone else None
        empty = [zero_factors(matrix, index == last) for index, matrix in enumerate(matrices)]
        damping = jnp.asarray(self.damping, jnp.result_type(jnp.float32, *matrices))
        none = jnp.zeros((), jnp.int32)
        still = [jnp.zeros_like(matrix) for matrix in matrices]
        return KFACState(check_key("KFAC", key), none, none, damping, empty, empty, still)

    def estimate(self, params: Params, state: KFACState, data: Any) -> tuple[KFACState, Estimate]:
        """Return the update for one batch `(x [batch, ...], target [batch, ...])`, with its sign changed."""
        x, target = batch_of("KFAC", data)
        matrices = matrices_of("KFAC", self.net.layers, params)
        net = linearized("KFAC", self.net.layers, params, x)
        losses, pull_loss = jax.vjp(lambda y: losses_of("KFAC", self.net.loss, y, target), net.y)
        check_hessian("KFAC", self.net.loss, net.y, target, self.outputs)
        loss, batch = losses.mean(), losses.size
        slopes = net.grads(pull_loss(jnp.full_like(losses, 1 / batch))[0])
        grad = [g + self.l2 * w for g, w in zip(slopes, matrices, strict=True)]
        times, root = output_hessian(self.net.loss, net.y, target, self.outputs)
        state = self._renewed(state, net, root, batch)
        proposal = [-apply_inverse(inverse, g) for inverse, g in zip(state.inverses, grad, strict=True)]
        model = self._model(net, times, grad, (proposal, state.velocity), state.damping)
        weights = minimum(model, (self.lr, self.momentum))
        update = [weights[0] * p + weights[1] * v for p, v in zip(proposal, state.velocity, strict=True)]
        ratio, damping = self._damping(params, (x, target), matrices, update, loss, model.at(weights), state)
        info = KFACInfo(jnp.sqrt(dot(grad, grad)), weights[0], weights[1], state.damping, ratio)
        state = state._replace(step=state.step + 1, damping=damping, velocity=update)
        return state, Estimate(loss, params_from(self.net.layers, params, [-u for u in update]), info)

    def _renewed(self, state: KFACState, net: Linear, root: Times, batch: int) -> KFACState:
        """Count this batch into the averages and invert them, where it is time."""
        key, draw = jax.random.split(state.key)
        gamma = jnp.sqrt(state.damping + self.l2)

        def renew() -> tuple[Scalar, list[Factors], list[Factors]]:
            pulled = net.pull(root(jax.random.rademacher(draw, net.y.shape, net.y.dtype)))
            keep = jnp.minimum(1 - 1 / (state.renewed + 1.0), max(DECAY**self.every, LEAST))
            factors = [
                averaged(old, factors_of(rows, g, batch, old.outputs.ndim == 1), keep)
                for old, rows, g in zip(state.factors, net.features, pulled, strict=True)
            ]
            return state.renewed + 1, factors, [inverted(pair, gamma) for pair in factors]

        due = state.step % self.every == 0  # renewed at steps 1 and 2, too, an autoencoder fared worse: ADR 0017
        kept = (state.renewed, state.factors, state.inverses)
        renewed, factors, inverses = jax.lax.cond(due, renew, lambda: kept)
        return state._replace(key=key, renewed=renewed, factors=factors, inverses=inverses)

    def _model(
        self, net: Linear, times: Times, grad: Matrices, directions: tuple[Matrices, Matrices], damping: Any
    ) -> Quadratic:
        """Return the quadratic model of this batch in two directions."""
        pushed = jnp.stack([net.push(direction) for direction in directions])
        bent = jax.vmap(times)(pushed)
        curved = pushed.reshape(2, -1) @ bent.reshape(2, -1).T / len(net.y)
        lengths = jnp.array([[dot(a, b) for b in directions] for a in directions])
        slopes = jnp.array([dot(grad, direction) for direction in directions])
        return Quadratic(curved + (damping + self.l2) * lengths, slopes)

    def _damping(
        self, params: Any, data: Any, matrices: Matrices, update: Matrices, loss: Any, foretold: Any, state: KFACState
    ) -> tuple[Scalar, Scalar]:
        """Return how far the quadratic model was right, and the next damping."""
        if not self.adapt:
            return jnp.full_like(state.damping, jnp.nan), state.damping

        def measured() -> tuple[Scalar, Scalar]:
            after = [w + u for w, u in zip(matrices, update, strict=True)]
            x, target = data
            y = run_layers("KFAC", self.net.layers, params_from(self.net.layers, params, after), x)
            fell = losses_of("KFAC", self.net.loss, y, target).mean() - loss
            fell = fell + 0.5 * self.l2 * (dot(after, after) - dot(matrices, matrices))
            ratio = fell / foretold
            factor = DROP ** min(self.every, MOST)
            change = jnp.where(ratio > 0.75, factor, jnp.where(ratio >= 0.25, 1.0, 1 / factor))  # NaN: more damping
            return ratio, jnp.maximum(state.damping * change, SMALLEST).astype(state.damping.dtype)

        due = (state.step + 1) % self.every == 0
        return jax.lax.cond(due, measured, lambda: (jnp.full_like(loss, jnp.nan), state.damping))
