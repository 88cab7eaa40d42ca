"""Reverse mode for unfolded algorithms, at a depth that is data: one compiled program for every depth."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice, check_counts, check_key, check_params
from unrollax._dynamic import MEMORIES, Memory
from unrollax._errors import InvalidArgument
from unrollax._estimate import share_nonfinite
from unrollax._types import Cost, Data, Estimate, Key, Params, Scalar, Traits
from unrollax._value import static, value


class UnfoldInfo(NamedTuple):
    """What `UnfoldBPTT` reports beside the gradient.

    Attributes:
        nonfinite: 1 if the mean step loss was NaN or infinite, else 0.
        depth: int32 scalar, the iterations that were unfolded.
        level: the batch mean of the errors after them, or its logarithm (`Unfold`'s scale).
    """

    nonfinite: Scalar
    depth: Scalar
    level: Scalar


@value
class UnfoldBPTT:
    """Backpropagation through an unfolded algorithm whose depth may change from call to call.

    Every call draws a batch of problems, runs `depth` iterations and differentiates their mean step loss in reverse mode,
    with the depth as the horizon of that episode. The depth is a traced number, so a plan that grows it compiles once. The
    gradient is that of `BPTT(dataclasses.replace(system, horizon=depth), horizon=depth)`, on the same draws if it has the
    same key.

    Target: exact. Needs `vjp`. Cost of a call: `depth` iterations forward and their pullbacks; with `memory="states"`, as
    many more forward. Memory: `longest` times what the pullback of an iteration needs, or with `"states"` copies of x, and
    not of the problems, whatever the depth. State: a key.
    Use it to train an `Unfold` of up to some thousand iterations. Avoid it where the gradient explodes, or `longest` copies
    of x do not fit: `TBPTT` and `PES` need no such memory.

    Args:
        system: an `Unfold`.
        longest: the largest depth that will be asked for; `None` for the system's horizon. It takes the horizon's place.
        memory: `"full"`, or `"states"` to keep x alone and run each iteration twice.

    Data of a call: `None` for the depth `longest`, or an object with a whole number `depth` of 1 to `longest`, which may be
    traced, such as the row of a plan (`one_shot`, `incremental`, `random_horizon`).

    Raises:
        InvalidArgument: system is no `Unfold`, longest is no positive whole number, memory is neither, or a depth that is no
            tracer is out of range.

    Example:
        >>> from unrollax import UnfoldBPTT
        >>> from unrollax import Unfold
        >>> from unrollax import per_step
        >>> from unrollax import Stage
        >>> net = Unfold(iteration=lambda theta, x, problem: x - theta * (x - problem), start=lambda problem: 0 * problem,
        ...              error=lambda x, problem: (x - problem) ** 2, sample=jax.random.normal, horizon=3, batch=10)
        >>> bptt, params = UnfoldBPTT(net), per_step(0.5, 3)
        >>> state = bptt.init(jax.random.key(0), params)
        >>> state, estimate = jax.jit(bptt.estimate)(params, state, Stage.at(depth=2))
        >>> estimate.grad.raw  # the loss is log((1 - 0.5)^2 (1 - 0.5)^2): the derivative by each factor is -4
        Array([-4., -4.,  0.], dtype=float32)

    References: Werbos, Proceedings of the IEEE 1990.
    """

    system: Any
    longest: int | None = static(default=None)
    memory: Memory = static(default="full")

    def __post_init__(self) -> None:
        if self.system is None:  # how `vmap` is told to leave this field alone
            return
        if not callable(getattr(self.system, "run", None)) or not hasattr(self.system, "horizon"):
            raise InvalidArgument(
                f"UnfoldBPTT: system must be an Unfold, got {type(self.system).__name__}. Make one with unrollax.unfold, or "
                "take BPTT for a system of another kind."
            )
        longest = self.system.horizon if self.longest is None else self.longest
        check_counts("UnfoldBPTT", longest=longest)
        check_choice("UnfoldBPTT", "memory", self.memory, MEMORIES)
        object.__setattr__(self, "longest", int(longest))
        if self.system.horizon != longest:
            object.__setattr__(self, "system", dataclasses.replace(self.system, horizon=int(longest)))

    @property
    def traits(self) -> Traits:
        """What it estimates, what it needs and what it costs."""
        forward = "1" if self.memory == "full" else "2"
        return Traits(target="exact", needs="vjp", cost=Cost(forward=forward, vjp="1"))

    @property
    def window(self) -> int:
        """The most steps of a call."""
        assert self.longest is not None
        return self.longest

    @property
    def horizon(self) -> int:
        """The most steps between two resets: those of a call."""
        return self.window

    def init(self, key: Key, params: Params) -> Key:
        """Return the key of all later draws."""
        params = check_params("UnfoldBPTT", params)
        key, start = jax.random.split(check_key("UnfoldBPTT", key))
        jax.eval_shape(self.system.init, start, params)  # raises what is wrong with them
        return key

    def estimate(self, params: Params, state: Key, data: Data) -> tuple[Key, Estimate]:
        """Return the next key, and the gradient on a fresh batch of problems."""
        params = check_params("UnfoldBPTT", params)
        key, start, _ = jax.random.split(state, 3)
        depth = self._depth(data)
        first = self.system.init(start, params)

        def loss(params: Params) -> tuple[Scalar, Any]:
            after, mean = self.system.run(params, first, depth=depth, longest=self.longest, memory=self.memory)
            return mean, after.level

        (mean, level), grad = jax.value_and_grad(loss, has_aux=True)(params)
        return key, Estimate(mean, grad, UnfoldInfo(share_nonfinite(mean), depth, level))

    def _depth(self, data: Data) -> Scalar:
        depth: Any = self.longest if data is None else getattr(data, "depth", data)
        if not _is_whole(depth):
            raise InvalidArgument(
                f"UnfoldBPTT: data must be None or have a whole number depth, got {type(data).__name__}. Pass a plan such as "
                "unrollax.one_shot(depth, steps) to fit, or one row of it."
            )
        if not isinstance(depth, jax.core.Tracer) and not 1 <= int(depth) <= self.window:
            raise InvalidArgument(
                f"UnfoldBPTT: depth must be 1 to longest={self.longest}, got depth={int(depth)}. Make longest larger."
            )
        return jnp.asarray(depth, jax.numpy.int32)


def _is_whole(depth: Any) -> bool:
    """Whether something is one whole number, traced or not."""
    if isinstance(depth, bool) or not isinstance(depth, (int, np.integer, jax.Array)):
        return False
    return jnp.shape(depth) == () and bool(jnp.issubdtype(jnp.result_type(depth), jnp.integer))
