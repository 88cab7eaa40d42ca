"""Local problems solved by their curvature: the covariance of a layer's inputs, which all its units share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from unrollax._check import FROM_ZERO_TO_ONE, NOT_NEGATIVE, POSITIVE, check_counts, check_number
from unrollax._inverse import damped_inverse
from unrollax._types import Params
from unrollax._value import static, value
from unrollax.local._problem import How, Problem, Solution, in_kinds_of, is_squared, local_gradient
from unrollax.local._rows import Rows, gained, matrices_of, tiny, wide

BOUNDS = ("trust", "share")
EARLY = 10  # batches at the start for each of which the inverses are made anew: activations change fastest there


class CurvatureState(NamedTuple):
    """What `Curvature` carries.

    Attributes:
        t: int32 scalar, the batches so far.
        averaged: int32 scalar, the batches in the averages.
        covariances: a layer's averaged `X^T X / batch`, `[n, n]`; a scalar 0 where nothing is averaged.
        inverses: its inverse with pull and damping, `[n, n]`; a scalar 0 where it is made anew at each batch.
    """

    t: jax.Array
    averaged: jax.Array
    covariances: list[jax.Array]
    inverses: list[jax.Array]


@value
class Curvature:
    """Steps by the curvature of the local problem, the covariance C of a layer's inputs: for `LocoProp(inner=)`.

    With C = X^T X / batch and G the gradient at a layer's matrix, a step is `P (local gradient)`,

        P = (slope C + (pull + damping tr(slope C) / n) I)^-1,

    so that the first one is `reach P G`. In S (slope = 1) with `every=1, memory=0, damping=0` one step is the closed form,
    the least of the regularised local loss: the gradient preconditioned by the covariance of the inputs, K-FAC's right
    factor. In M slope is the largest of the transfer: `slope C` is the curvature of a quadratic that lies above the matching
    loss and touches it at the current weights. Each step goes to its minimum, and so lowers the local loss where C is this
    batch's (`every=1, memory=0`).

    What makes it cheap: all units of a layer share P, it is made anew only every `every` batches, from an average of C, and
    a step is then one product beyond the gradient's.

    Cost of a batch: one product `[n, n] [n, m]` a layer, and every `every` batches (the first 10 too) X^T X and an
    inverse, about 3 n^3 operations.
    State: two matrices `[n, n]` a layer, of n inputs and a bias; one without `memory`, none with `iterations`.
    Use it when: n is up to some thousands. Avoid it when: it is more, or use `iterations`.

    Args:
        damping: added to the curvature, in units of its mean eigenvalue. Larger: closer to the gradient. With 0, and no
            pull, C must have full rank: more rows than inputs.
        every: batches between two inversions.
        memory: decay in (0, 1) of the average of C, an inversion; 0: C of the last batch alone. It sees some five batches of
            rows: below as many rows as inputs take a larger damping, 1 for batches of a few examples.
        trust: bound on r^2 <P G, gradient>, summed over layers, r the reach that is used: the largest up to `reach` that
            keeps it. For `targets="natural"` that is twice the Kullback-Leibler divergence of the step as the curvatures
            predict it. With others it shrinks with the gradient, and may bound nothing. `None`: no such bound. Several
            steps together are shortened until the gradient foretells no more of them than of the longest first one.
        share: bound on r <P G, gradient>, the decrease of the loss that the gradient foretells, as a share of the batch's
            loss: a Polyak step is at 1. It shortens natural steps where little is left to be gained, whatever the loss's
            unit. A loss below 0 sets no such bound; for one that may be near 0 and fall further, as a log-density's, take
            `None`, which never does.
        iterations: solve by so many steps of conjugate gradients on each batch, and keep no matrices; `every` and `memory`
            are then not used. `None`: by inverses.

    Raises:
        InvalidArgument: a number out of range, or a count that is no positive whole number.

    Example:
        >>> import unrollax as ux
        >>> layers = ux.dense_layers([4, 8, 2], "tanh")
        >>> loss = lambda y, target: ((y - target) ** 2).sum(-1)
        >>> closed_form = ux.Curvature(damping=0.0, every=1, memory=0.0)
        >>> loco = ux.LocoProp(layers, loss, variant="S", inner=closed_form, targets="gradient", pull=0.1)
        >>> params = ux.layered(layers, loss).params(jax.random.key(0))
        >>> state = loco.init(jax.random.key(1), params)
        >>> state, estimate = jax.jit(loco.estimate)(params, state, (jnp.ones((16, 4)), jnp.zeros((16, 2))))
        >>> estimate.grad[0]["w"].shape
        (4, 8)

    References: Amid, Anil and Warmuth, AISTATS 2022; Martens and Grosse, ICML 2015 (K-FAC); Bohning and Lindsay, Annals of
    the Institute of Statistical Mathematics 1988 (the quadratic bound).
    """

    damping: Any = 0.03
    every: int = static(default=10)
    memory: Any = 0.8
    trust: Any = 0.3
    share: Any = 1.0
    iterations: int | None = static(default=None)

    def __post_init__(self) -> None:
        check_counts("Curvature", every=self.every)
        check_number("Curvature", "damping", self.damping, NOT_NEGATIVE)
        check_number("Curvature", "memory", self.memory, FROM_ZERO_TO_ONE)
        if self.iterations is not None:
            check_counts("Curvature", iterations=self.iterations)
        for name in BOUNDS:
            if getattr(self, name) is not None:
                check_number("Curvature", name, getattr(self, name), POSITIVE)

    def init(self, layers: list[Any], params: list[Params]) -> CurvatureState:
        """Return zeros in the shapes of the layers' curvatures."""
        zero = jnp.zeros((), jnp.int32)
        made = [layer.matrix(own) for layer, own in zip(layers, params, strict=True)]
        squares = [jnp.zeros((len(one), len(one)), wide(one.dtype)) for one in made]
        none = [jnp.zeros((), one.dtype) for one in squares]
        self._check_used()
        direct = self.iterations is None
        averages, kept = direct and self._averages(), direct and self.every > 1
        return CurvatureState(zero, zero, squares if averages else none, squares if kept else none)

    def _check_used(self) -> None:
        check_number("Curvature", "damping", self.damping, NOT_NEGATIVE, used=True)
        check_number("Curvature", "memory", self.memory, FROM_ZERO_TO_ONE, used=True)
        for name in BOUNDS:
            if getattr(self, name) is not None:
                check_number("Curvature", name, getattr(self, name), POSITIVE, used=True)

    def solve(self, problems: list[Problem], state: CurvatureState, how: How) -> Solution:
        """Solve all layers' problems; see `Solver`."""
        seen = [matrices_of(problem) for problem in problems]
        slopes = [_slope(problem, how) for problem in problems]
        steps: list[Callable[[jax.Array], jax.Array]]
        if self.iterations is None:
            inverses, after = self._inverses(seen, slopes, state, how)
            steps = [inverse.__matmul__ for inverse in inverses]
        else:
            after = state
            steps = [partial(self._iterate, rows, slope, how) for rows, slope in zip(seen, slopes, strict=True)]
        first = [step(rows.towards) for step, rows in zip(steps, seen, strict=True)]
        most = self._most(how, gained(first, seen))
        reach = jnp.minimum(jnp.asarray(how.reach, most.dtype), most)
        moved = [
            self._later(problem, how, reach, step, reach * u)
            for problem, step, u in zip(problems, steps, first, strict=True)
        ]
        if how.steps > 1:  # together they go no further than the first one might
            limit = jnp.where(jnp.isfinite(most), most * gained(first, seen), jnp.inf)
            held = jnp.minimum(1, limit / jnp.maximum(gained(moved, seen), tiny(most)))
            moved = [held.astype(u.dtype) * u for u in moved]
        found = [_as_params(problem, u) for problem, u in zip(problems, moved, strict=True)]
        return found, after._replace(t=state.t + 1), reach

    def _later(self, problem: Problem, how: How, reach: Any, step: Any, moved: jax.Array) -> jax.Array:
        """Make the steps after the first one, where the loss isn't squared: there it has done all."""
        if how.steps == 1 or is_squared(problem, how.variant):
            return moved
        gradient = local_gradient(problem, how, reach)

        def again(_: Any, moved: jax.Array) -> jax.Array:
            away = _as_params(problem, moved)
            found = gradient(jax.tree.map(jnp.subtract, problem.params, away))
            return moved + step(problem.layer.matrix(found).astype(moved.dtype))

        return jax.lax.fori_loop(1, how.steps, again, moved)

    def _most(self, how: How, product: jax.Array) -> jax.Array:
        """Return the largest reach that the bounds allow, of a step P G with this product with the gradient."""
        most = jnp.full((), jnp.inf, product.dtype)
        product = jnp.maximum(product, tiny(product))
        if self.trust is not None:
            most = jnp.minimum(most, jnp.sqrt(self.trust / product).astype(most.dtype))
        if self.share is not None:
            gained = (self.share * how.loss / product).astype(most.dtype)
            most = jnp.minimum(most, jnp.where(how.loss < 0, jnp.inf, gained))
        return most

    def _averages(self) -> bool:
        """Whether covariances are averaged: unless memory is known to be 0, which it is at `init` or nowhere."""
        return isinstance(self.memory, jax.core.Tracer) or self.memory != 0

    def _inverses(
        self, seen: list[Rows], slopes: list[Any], state: CurvatureState, how: How
    ) -> tuple[list[jax.Array], CurvatureState]:
        """Return the inverses, made anew where it is time, and what to carry."""

        def renew(state: CurvatureState) -> CurvatureState:
            covariances = [rows.features.T @ rows.features / rows.batch for rows in seen]
            if averages:
                share = jnp.minimum(self.memory, state.averaged / (state.averaged + 1.0))
                covariances = [
                    old + ((1 - share) * (new - old)).astype(old.dtype)
                    for old, new in zip(state.covariances, covariances, strict=True)
                ]
            inverses = [
                self._invert(slope * c, how).astype(old.dtype)
                for slope, c, old in zip(slopes, covariances, state.inverses, strict=True)
            ]
            return CurvatureState(state.t, state.averaged + 1, covariances if averages else state.covariances, inverses)

        averages = state.covariances[0].ndim > 0  # in a compiled program memory may be unknown, but not what was made
        if self.every == 1:
            after = renew(state)
            return after.inverses, after._replace(inverses=state.inverses)
        state = jax.lax.cond((state.t % self.every == 0) | (state.t < EARLY), renew, lambda now: now, state)
        return state.inverses, state

    def _invert(self, curvature: jax.Array, how: How) -> jax.Array:
        return damped_inverse(curvature, self._added(jnp.trace(curvature), len(curvature), how))

    def _added(self, trace: Any, n: int, how: How) -> Any:
        return how.pull + self.damping * trace / n

    def _iterate(self, rows: Rows, slope: Any, how: How, gradient: jax.Array) -> jax.Array:
        """Return P gradient by conjugate gradients, through products with the features."""
        x = rows.features
        added = self._added(slope * jnp.square(x).sum() / rows.batch, x.shape[1], how)
        product = lambda u: (slope * (x.T @ (x @ u)) / rows.batch + added * u).astype(u.dtype)
        largest = jnp.abs(gradient).max()  # whose square must not over- or underflow
        unit = jnp.where(largest > 0, largest, 1)
        found: jax.Array = unit * cg(product, gradient / unit, tol=0.0, maxiter=self.iterations)[0]
        return found


def _slope(problem: Problem, how: How) -> Any:
    """Return the largest slope of the local loss's gradient: 1 where it is squared, else that of the transfer."""
    return 1.0 if is_squared(problem, how.variant) else problem.layer.transfer.slope  # which `LocoProp` has checked


def _as_params(problem: Problem, moved: jax.Array) -> Params:
    """Return a matrix as params, in their dtypes."""
    return in_kinds_of(problem.params, problem.layer.from_matrix(moved))
