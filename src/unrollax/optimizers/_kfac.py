"""K-FAC: Gauss-Newton steps for a net of layers by a Kronecker product a layer, which set lr, momentum and damping."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import NOT_NEGATIVE, POSITIVE, check_choice, check_counts, check_key, check_number, check_params
from unrollax._errors import StructureError
from unrollax._types import Estimate, Key, Params, Scalar, Traits
from unrollax._value import static, value
from unrollax.optimizers._curvature import Times, check_curvature, curvature, dot, minimum
from unrollax.optimizers._factors import Factors, apply_inverse, averaged, factors_of, inverted, usable, zero_factors
from unrollax.optimizers._net import Linear, check_layers, ends_alone, linearized, matrices_of, params_from

Matrices = list[jax.Array]  # one [n, m] for each trained layer
DECAY = 0.95  # of the factors' moving averages
DROP = 0.95  # of the damping, for each update
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
    """All that the next update needs: the factors' averages and inverses, the last update, the damping."""

    key: Key
    step: Scalar
    damping: Scalar
    factors: list[Factors]
    inverses: list[Factors]
    velocity: Matrices


@value
class KFAC:
    r"""Second-order steps for a net of layers: each layer's curvature is a Kronecker product of two small matrices.

    For a layer a = F W with features F of its inputs, the Gauss-Newton matrix of its W is taken to be A (x) G, where
    A = E[F^T F] and G = E[g^T g]; g is what backpropagation makes at `a` of H^(1/2) r, with H the Hessian of the loss in the
    net's outputs and r random signs. Both are averaged over updates (decay min(1 - 1/k, 0.95)). A last layer whose outputs
    are independent has a diagonal G, exact from any signs, and only that is kept. The proposal is

        v = -(A + pi gamma I)^-1 grad (G + gamma / pi I)^-1,   gamma = sqrt(damping + l2),   pi^2 = mean diag A / mean diag G,

    and the update lr v + momentum (last update), whose two numbers minimise the quadratic model
    M(d) = 1/2 d^T (J^T H J + (damping + l2) I) d + grad^T d with the exact Gauss-Newton matrix of this batch. Every `every`
    updates, the damping falls by 0.95^every where the loss fell by more than 3/4 of -M, and grows by as much where by less
    than 1/4 (Levenberg-Marquardt).

    It is an estimator on batches, whose `grad` is the update with its sign changed: give it to `fit` with `optax.sgd(1.0)`.

    Target: a direction, no gradient. Cost: one forward pass, two back to the pre-activations and two tangents, the factors,
    and an inverse of each every `every` updates. State: A [n, n] and G [m, m] of each layer twice, and one update. Use it
    when a net of modest width is hard to condition and batches are large, such as deep autoencoders; avoid it for wide layers
    and small batches, where the quadratic model of one batch says little of the others (then set lr and momentum yourself).

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
        every: updates between two inversions, and between two changes of the damping.
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
    Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016. Deviations: g from
    random signs rather than from sampled targets, which has the same mean and less noise; gamma follows the damping rather
    than a search of its own; one period for all that isn't done at each update.
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
        check_layers("KFAC", self.net)

    def init(self, key: Key, params: Params) -> KFACState:
        """Return empty averages, and the first damping."""
        matrices = matrices_of("KFAC", self.net.layers, check_params("KFAC", params))
        alone = self.outputs == "independent" and ends_alone(self.net.layers, params)
        last = len(matrices) - 1 if alone else None
        empty = [zero_factors(matrix, index == last) for index, matrix in enumerate(matrices)]
        damping = jnp.asarray(self.damping, jnp.result_type(jnp.float32, *matrices))
        step = jnp.zeros((), jnp.int32)
        return KFACState(
            check_key("KFAC", key), step, damping, empty, empty, [jnp.zeros_like(matrix) for matrix in matrices]
        )

    def estimate(self, params: Params, state: KFACState, data: Any) -> tuple[KFACState, Estimate]:
        """Return the update for one batch `(x [batch, ...], target [batch, ...])`, with its sign changed."""
        x, target = _pair(data)
        matrices = matrices_of("KFAC", self.net.layers, params)
        net = linearized("KFAC", self.net.layers, params, x)
        check_curvature("KFAC", self.net.loss, net.y, target, self.outputs)
        losses, pull_loss = jax.vjp(lambda y: self._losses(y, target), net.y)
        loss, batch = losses.mean(), losses.size
        grad = [
            g + self.l2 * w
            for g, w in zip(net.grads(pull_loss(jnp.full_like(losses, 1 / batch))[0]), matrices, strict=True)
        ]
        times, root = curvature(self.net.loss, net.y, target, self.outputs)
        state = self._averaged(state, net, root, batch)
        proposal = [-apply_inverse(inverse, g) for inverse, g in zip(state.inverses, grad, strict=True)]
        weights, foretold = self._weights(net, times, grad, (proposal, state.velocity), state.damping, batch)
        update = [weights[0] * p + weights[1] * v for p, v in zip(proposal, state.velocity, strict=True)]
        ratio, damping = self._damping(params, (x, target), matrices, update, loss, foretold, state)
        info = KFACInfo(jnp.sqrt(dot(grad, grad)), weights[0], weights[1], state.damping, ratio)
        state = state._replace(step=state.step + 1, damping=damping, velocity=update)
        return state, Estimate(loss, params_from(self.net.layers, params, [-u for u in update]), info)

    def _losses(self, y: jax.Array, target: Any) -> jax.Array:
        """Return the losses `[batch]`."""
        losses = jnp.asarray(self.net.loss(y, target))
        if losses.shape != y.shape[:1]:
            raise StructureError(
                f"KFAC: loss must return one number an example, [{y.shape[0]}], got {list(losses.shape)}. Sum over the "
                "outputs, but not over the batch."
            )
        return losses

    def _averaged(self, state: KFACState, net: Linear, root: Times, batch: int) -> KFACState:
        """Count this batch into the averages, and invert them when it is time."""
        key, draw = jax.random.split(state.key)
        signs = jax.random.rademacher(draw, net.y.shape, net.y.dtype)
        roots = net.pull(root(signs))
        keep = jnp.minimum(1 - 1 / (state.step + 1.0), DECAY)
        factors = [
            averaged(old, factors_of(rows, g, batch, old.outputs.ndim == 1), keep)
            for old, rows, g in zip(state.factors, net.features, roots, strict=True)
        ]
        gamma = jnp.sqrt(state.damping + self.l2)
        inverses = jax.lax.cond(
            state.step % self.every == 0,
            lambda: [usable(inverted(pair, gamma), old) for pair, old in zip(factors, state.inverses, strict=True)],
            lambda: state.inverses,
        )
        return state._replace(key=key, factors=factors, inverses=inverses)

    def _weights(
        self, net: Linear, times: Times, grad: Matrices, directions: tuple[Matrices, Matrices], damping: Any, batch: int
    ) -> tuple[jax.Array, Scalar]:
        """Return the multiples of the two directions that minimise the quadratic model, and its value there."""
        pushed = jnp.stack([net.push(direction) for direction in directions])
        bent = jax.vmap(times)(pushed)
        flat = (2, -1)
        curved = pushed.reshape(flat) @ bent.reshape(flat).T / batch
        lengths = jnp.array([[dot(a, b) for b in directions] for a in directions])
        quadratic = curved + (damping + self.l2) * lengths
        linear = jnp.array([dot(grad, direction) for direction in directions])
        weights = minimum(quadratic, linear, (self.lr, self.momentum))
        return weights, 0.5 * weights @ quadratic @ weights + linear @ weights

    def _damping(
        self, params: Any, data: Any, matrices: Matrices, update: Matrices, loss: Any, foretold: Any, state: KFACState
    ) -> tuple[Scalar, Scalar]:
        """Return how far the quadratic model was right, and the next damping."""
        if not self.adapt:
            return jnp.full_like(state.damping, jnp.nan), state.damping

        def measured() -> tuple[Scalar, Scalar]:
            after = [w + u for w, u in zip(matrices, update, strict=True)]
            x, target = data
            y = linearized("KFAC", self.net.layers, params_from(self.net.layers, params, after), x).y
            fell = self._losses(y, target).mean() - loss + 0.5 * self.l2 * (dot(after, after) - dot(matrices, matrices))
            ratio = fell / foretold
            factor = DROP**self.every
            change = jnp.where(ratio > 0.75, factor, jnp.where(ratio >= 0.25, 1.0, 1 / factor))  # NaN: more damping
            return ratio, jnp.maximum(state.damping * change, SMALLEST).astype(state.damping.dtype)

        due = (state.step + 1) % self.every == 0
        return jax.lax.cond(due, measured, lambda: (jnp.full_like(loss, jnp.nan), state.damping))


def _pair(data: Any) -> tuple[jax.Array, Any]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise StructureError(f"KFAC: data must be (x, target), got {type(data).__name__}. Pass batches of both.")
    return jnp.asarray(data[0]), data[1]
