"""An iterative algorithm as a system: its iterations are the steps, the numbers in them are trained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice, check_counts, check_key
from unrollax._dynamic import MEMORIES, Memory, loop
from unrollax._errors import InvalidArgument
from unrollax._iteration import as_arrays, as_source, check_error, check_run, check_weight, check_x, iterate
from unrollax._schedule import check_depth, resolve
from unrollax._tree import describe, strong
from unrollax._types import Key, Params, Scalar
from unrollax._value import static, value

Weight: TypeAlias = Callable[[Any, Any], Any]  # (t, horizon) -> number
Loop: TypeAlias = Callable[
    [Any, Params, Any, Any], tuple[Any, Scalar]
]  # (body, params, fixed, x) -> (x, sum of losses)


class UnfoldState(NamedTuple):
    """A batch of problems that are being solved.

    Attributes:
        own: the own parts of the problems, leaves `[batch, ...]`.
        x: where the algorithm stands on each, leaves `[batch, ...]`.
        level: L_t, the batch mean of the errors or its logarithm, a scalar.
        t: int32 scalar, the iterations made.
    """

    own: Any
    x: Any
    level: Scalar
    t: Scalar


@value
class Unfold:
    """An iterative algorithm, unfolded: a system whose steps are iterations on a batch of random problems.

    x_{t+1} = iteration(theta_t, x_t, problem) for t = 0, ..., horizon - 1 from x_0 = start(problem), where theta_t is params
    with each schedule (`periodic`, `per_step`, `shared`, `knots`) replaced by its number at iteration t; other leaves of
    params, such as a learned matrix, are in theta as they are. With e_t the mean of error(x_t, problem) over the
    batch, and L_t = log(e_t) (`scale="log"`) or e_t (`"raw"`), the mean step loss over the horizon N is

    - `loss="final"`: L_N - L_0. A step's loss is N (L_t - L_{t-1}), so that windows see the part that they gain.
    - `loss="anytime"`: the mean of L_1, ..., L_N.
    - a function `weight(t, horizon)`: the mean of weight(t, N) L_t over t = 1, ..., N.

    Every estimator trains it by `init` and `step`; `UnfoldBPTT` by `run`, at any depth with one compiled program. The
    logarithm makes the gradient independent of how small the errors have become. Under raw errors the second moments of Adam
    remember the large gradients of earlier, shorter unfoldings, and late training crawls: keep `"raw"` for errors that may be
    0, such as bit errors. A batch mean below the smallest normal number counts as that.

    Args:
        iteration: `iteration(theta, x, problem) -> x`, one iteration on one problem. x is any pytree, of complex numbers too.
        start: `start(problem) -> x`.
        error: `error(x, problem) -> e >= 0`, a real floating scalar.
        sample: `sample(key) -> problem`, or an object with `draw(key) -> own` and `whole(own) -> problem`, whose own part
            is kept for each problem of the batch, and the rest (a matrix that all share) once.
        horizon: N, iterations of an episode.
        batch: problems that are drawn at each reset; more of them lower the variance of the gradient.
        loss: `"final"`, `"anytime"` or a function `weight(t, horizon)`, of traced whole numbers.
        scale: `"log"` or `"raw"`.

    Raises:
        InvalidArgument: a count is no positive whole number, a choice is none, a part is no function, or `sample` can't be
            drawn from; when traced, a per-step schedule is shorter than the horizon or a period longer.
        StructureError: when traced, `iteration` changes a leaf of x, or `error` is no real scalar.

    Example:
        >>> import optax, unrollax as ux
        >>> from unrollax import Unfold
        >>> from unrollax import per_step
        >>> h = jnp.array([1.0, 2.0, 10.0])  # curvatures of a quadratic, with its minimum at random
        >>> net = Unfold(iteration=lambda theta, x, problem: x - theta["eta"] * h * (x - problem),
        ...              start=lambda problem: jnp.zeros(3), error=lambda x, problem: ((x - problem) ** 2).sum(),
        ...              sample=lambda key: jax.random.normal(key, (3,)), horizon=3, batch=10)
        >>> params = {"eta": per_step(0.1, 3, transform="log")}
        >>> bptt = ux.BPTT(net, horizon=3)
        >>> state, estimate = bptt.estimate(params, bptt.init(jax.random.key(0), params), None)
        >>> estimate.grad["eta"]
        Schedule(raw=float32[3], kind='per_step', transform='log', at=())

    References: Gregor and LeCun, ICML 2010; Ito, Takabe and Wadayama, IEEE Transactions on Signal Processing 2019;
    Monga, Li and Eldar, IEEE Signal Processing Magazine 2021.
    """

    iteration: Callable[[Any, Any, Any], Any] = static()
    start: Callable[[Any], Any] = static()
    error: Callable[[Any, Any], Any] = static()
    sample: Any
    horizon: int = static()
    batch: int = static()
    loss: Literal["final", "anytime"] | Weight = static(default="final")
    scale: Literal["log", "raw"] = static(default="log")

    def __post_init__(self) -> None:
        check_counts("Unfold", horizon=self.horizon, batch=self.batch)
        check_choice("Unfold", "scale", self.scale, ("log", "raw"))
        if not callable(self.loss):
            check_choice("Unfold", "loss", self.loss, ("final", "anytime"))
        for name, says in (("iteration", "theta, x, problem"), ("start", "problem"), ("error", "x, problem")):
            if not callable(getattr(self, name)):
                got = describe(getattr(self, name))
                raise InvalidArgument(f"Unfold: {name} must be a function {name}({says}), got {got}. Pass one.")
        object.__setattr__(self, "sample", as_source(self.sample))

    def init(self, key: Key, params: Params) -> UnfoldState:
        """Draw `batch` problems and start the algorithm on each."""
        check_depth("Unfold", params, self.horizon)
        keys = jax.random.split(check_key("Unfold", key), self.batch)
        own = jax.vmap(lambda key: as_arrays("draw", self.sample.draw(key)))(keys)
        x = jax.vmap(lambda own: as_arrays("start", self.start(self.sample.whole(own))), axis_size=self.batch)(own)
        return UnfoldState(own, x, self._level(x, own), jnp.zeros((), jnp.int32))

    def step(self, params: Params, state: UnfoldState, x: None, key: Key) -> tuple[UnfoldState, Scalar]:
        """Run one iteration on every problem; it reads no data and draws nothing."""
        after = self._after(params, state)
        return after, self._step_loss(state.level, after, self.horizon)

    def run(
        self,
        params: Params,
        state: UnfoldState,
        *,
        depth: Any = None,
        longest: int | None = None,
        memory: Memory = "full",
    ) -> tuple[UnfoldState, Scalar]:
        """Run `depth` iterations as one episode of that horizon; return the state and the mean step loss.

        The depth may be traced: one program runs all depths. `jax.grad` differentiates the mean step loss by params in
        reverse mode; the problems count as constants.

        Args:
            params: schedules and whatever else the iterations read.
            state: where to start, from `init`.
            depth: iterations, at most `longest`; `None` for the horizon.
            longest: rows of the buffers that reverse mode keeps; `None` for the horizon.
            memory: what they hold: `"full"`, all that the backward pass needs, or `"states"`, x alone, for one more run.

        Raises:
            InvalidArgument: depth is known and not 1 to longest, memory is neither, or a per-step schedule is shorter.
        """
        depth = self.horizon if depth is None else depth
        longest = self.horizon if longest is None else longest
        check_run(depth, longest)
        check_choice("Unfold.run", "memory", memory, MEMORIES)
        if not isinstance(depth, jax.Array):
            check_depth("Unfold.run", params, depth, periods=False)
        run = self._only_x if self.loss == "final" else self._with_losses
        after, total = run(params, state, functools.partial(loop, depth=depth, longest=longest, memory=memory), depth)
        return after, after.level - state.level if self.loss == "final" else total / depth

    def errors(self, params: Params, key: Key, *, steps: int | None = None) -> jax.Array:
        """Return the batch mean of the errors on fresh problems after 0, 1, ..., `steps` iterations, `[steps + 1]`.

        Args:
            params: as for `run`.
            key: draws the problems.
            steps: iterations; `None` for the horizon. A per-step schedule must have as many entries.

        Raises:
            InvalidArgument: a per-step schedule is shorter.
        """
        steps = self.horizon if steps is None else steps
        check_counts("Unfold.errors", steps=steps)
        check_depth("Unfold.errors", params, steps, periods=False)
        state = self.init(key, params)

        def body(state: UnfoldState, _: None) -> tuple[UnfoldState, Scalar]:
            after = self._after(params, state)
            return after, self._mean_error(after.x, after.own)

        errors = jax.lax.scan(body, state, None, length=steps)[1]
        return jnp.concatenate([self._mean_error(state.x, state.own)[None], errors])

    def _only_x(self, params: Params, state: UnfoldState, loop: Loop, _: Any) -> tuple[UnfoldState, Scalar]:
        """Run without the errors on the way."""

        def body(params: Params, own: Any, moving: Any) -> Any:
            x, t = moving
            return (self._iterate(params, x, own, t), t + 1), jnp.zeros_like(state.level)

        (x, t), total = loop(body, params, state.own, (state.x, state.t))
        return UnfoldState(state.own, x, self._level(x, state.own), t), total

    def _with_losses(self, params: Params, state: UnfoldState, loop: Loop, depth: Any) -> tuple[UnfoldState, Scalar]:
        """Run with the loss of every iteration; return their sum."""

        def body(params: Params, fixed: Any, moving: UnfoldState) -> Any:
            own, depth = fixed
            after = self._after(params, moving._replace(own=own))
            return after._replace(own=()), self._step_loss(moving.level, after, depth)

        fixed = (state.own, depth)
        after, total = loop(body, params, fixed, state._replace(own=()))
        return after._replace(own=state.own), total

    def _after(self, params: Params, state: UnfoldState) -> UnfoldState:
        x = self._iterate(params, state.x, state.own, state.t)
        return UnfoldState(state.own, x, self._level(x, state.own), state.t + 1)

    def _iterate(self, params: Params, x: Any, own: Any, t: Any) -> Any:
        theta = resolve(params, t)

        def one(x: Any, own: Any) -> Any:
            return check_x(x, strong(iterate("Unfold", self.iteration, theta, x, self.sample.whole(own))))

        return jax.vmap(one, axis_size=self.batch)(x, own)

    def _step_loss(self, before: Scalar, after: UnfoldState, horizon: Any) -> Scalar:
        if self.loss == "final":
            return (horizon * (after.level - before)).astype(before.dtype)
        if self.loss == "anytime":
            return after.level
        assert callable(self.loss)
        return jnp.asarray(check_weight(self.loss(after.t, horizon)), before.dtype) * after.level

    def _level(self, x: Any, own: Any) -> Scalar:
        mean = self._mean_error(x, own)
        return jnp.log(jnp.maximum(mean, np.finfo(mean.dtype).tiny)) if self.scale == "log" else mean

    def _mean_error(self, x: Any, own: Any) -> Scalar:
        def one(x: Any, own: Any) -> Scalar:
            return check_error(self.error(x, self.sample.whole(own)))

        errors: jax.Array = jax.vmap(one, axis_size=self.batch)(x, own)
        return errors.mean()
