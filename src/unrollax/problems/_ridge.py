"""Ridge regression, whose answer is known in closed form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import POSITIVE, check_counts, check_number
from unrollax._types import Key
from unrollax._value import value
from unrollax.problems._problem import Problem


@value
class Ridge:
    """Ridge regression with one matrix for all problems; made by `ridge`.

    Attributes:
        A: the matrix, `[m, n]`.
        lam: the weight of the square of x.
        solution: (A^T A + lam I)^-1 A^T, `[n, m]`.
    """

    A: jax.Array
    lam: Any
    solution: jax.Array

    def draw(self, key: Key) -> tuple[jax.Array, jax.Array]:
        """Return y ~ N(0, I), `[m]`, and the x that solves its problem, `[n]`."""
        y = jax.random.normal(key, self.A.shape[:1], self.A.dtype)
        return y, self.solution @ y

    def whole(self, own: tuple[jax.Array, jax.Array]) -> Problem:
        """Return the problem of what `draw` gave."""
        return Problem(self.A, *own, lam=self.lam)


def ridge(m: int = 100, n: int = 50, lam: float = 3.0, seed: int = 0) -> Ridge:
    """Ridge regression: find the x of least ``|A x - y|^2 / 2 + lam |x|^2 / 2``.

    A is `np.random.RandomState(seed).randn(m, n)`, the same for all problems; y ~ N(0, I) is drawn for each, and
    ``x = (A^T A + lam I)^-1 A^T y`` is its answer. Of the defaults, seed 0 has the condition number 24.5.

    Args:
        m: measurements.
        n: unknowns.
        lam: weight of the regulariser; larger values make the problem better conditioned.
        seed: of A.

    Raises:
        InvalidArgument: a size is no positive whole number, or lam is not positive.

    Example:
        >>> import jax
        >>> from unrollax.problems import ridge
        >>> problems = ridge()
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> gradient = problem.A.T @ (problem.A @ problem.x - problem.y) + problem.lam * problem.x
        >>> problem.A.shape, bool(abs(gradient).max() < 1e-3)
        ((100, 50), True)

    References: Wadayama, Model-based deep learning and deep unfolding (Morikita), 2023, section 3.3 (in Japanese).
    """
    check_counts("ridge", m=m, n=n)
    check_number("ridge", "lam", lam, POSITIVE, used=True)
    a = np.random.RandomState(seed).randn(m, n)
    solution = np.linalg.solve(a.T @ a + lam * np.eye(n), a.T)
    return Ridge(jnp.asarray(a), float(lam), jnp.asarray(solution))
