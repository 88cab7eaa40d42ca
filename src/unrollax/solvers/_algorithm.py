"""What an iterative algorithm is: one iteration, where it starts, what it answers, and its usual constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from unrollax._check import check_counts
from unrollax._iteration import iterate
from unrollax._value import static, value


@value
class Algorithm:
    """An iterative algorithm as four functions, of one example each.

    `unrollax.unfold` makes it trainable; `run` iterates it with constants.

    Attributes:
        step: `step(theta, x, problem) -> x`, one iteration; theta is a dict of numbers, by the names that `params` gives.
        start: `start(problem) -> x`, what the first iteration gets, any pytree.
        params: `params(...) -> theta`, the usual constants, from what its signature asks for.
        answer: `answer(x)`, the solution in x.

    Example:
        >>> import jax.numpy as jnp
        >>> from unrollax.solvers import Algorithm
        >>> halve = Algorithm(step=lambda theta, x, problem: theta["factor"] * x, start=lambda problem: problem,
        ...                   params=lambda: {"factor": 0.5})
        >>> halve.run(halve.params(), jnp.array(8.0), steps=3).tolist()
        [8.0, 4.0, 2.0, 1.0]
    """

    step: Callable[..., Any] = static()
    start: Callable[..., Any] = static()
    params: Callable[..., dict[str, Any]] = static()
    answer: Callable[..., Any] = static(default=lambda x: x)

    def run(self, theta: Any, problem: Any, *, steps: int) -> Any:
        """Iterate with constant theta; return the answers at 0 to `steps` iterations, leaves `[steps + 1, ...]`.

        It is one `lax.scan`: `jax.vmap` it over problems, `jax.jit` it for many calls.
        """
        if type(steps) is not int or steps != 0:
            check_counts("Algorithm.run", steps=steps)

        def body(x: Any, _: None) -> tuple[Any, Any]:
            after = iterate("Algorithm.run", self.step, theta, x, problem)
            return after, self.answer(after)

        first = self.start(problem)
        answers = jax.lax.scan(body, first, None, length=steps)[1]
        return jax.tree.map(lambda x, rest: jax.numpy.concatenate([x[None], rest]), self.answer(first), answers)
