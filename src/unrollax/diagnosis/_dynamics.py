"""The dynamics of a system along its trajectory: Lyapunov exponents, and whether a window explodes or vanishes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._tree import describe, is_inexact, leaves_with_names
from unrollax._types import Data, Key, Params, State, System
from unrollax.diagnosis._growth import FACTOR, log_singular_values, mean_and_error, spectral_radius, verdict_of
from unrollax.diagnosis._jacobians import Paths, Plan, Track, floats, push
from unrollax.diagnosis._paths import Examples, examples_of
from unrollax.diagnosis._text import aligned, plain

WHOLE_SPECTRUM, LEADING = 64, 16  # numbers in a state whose every exponent is computed, and how many of a larger one
CHEAP, SMALL = 96, 256  # numbers in a state whose step Jacobians are computed as matrices
SHOWN = 10  # exponents in a summary
POINTS = 50  # of all trajectories at which they are, fewer if the matrices are large


class Lyapunov(NamedTuple):
    """How small differences in the state grow along a trajectory; see `lyapunov`.

    Attributes:
        exponents: `[k]`, mean growth of the direction that grows i-th fastest, nats a step, descending. -inf where
            the step forgets a direction.
        errors: `[k]`, their standard errors; infinite if there are too few steps to tell.
        growth: `[n, k]`, log growth of each direction from the end of `burn_in` on, mean over examples.
        at: `[n]`, the steps since then that the rows of `growth` stand for.
        gains: `[k]`, log singular values of the product of all step Jacobians, `burn_in` included, descending, mean over
            examples: the whole window multiplies a gradient by at most exp(gains[0]). NaN unless all exponents were computed.
        spectral_radius: of the step Jacobian, geometric mean over the trajectory; NaN if the state is too large.
        verdict: `"vanishing"`, `"exploding"` or `"neutral"` over the window, or `"unresolved"`.
        confidence: probability of the verdict; of the likeliest of the three if unresolved.
        steps: steps of the window.
        numbers: floating numbers in the state of one example.
        examples: examples that the figures are means over.
        nonfinite: the step after which a state or its derivative was first NaN or infinite; all figures are of the steps
            before. `None` if there is none.
    """

    exponents: np.ndarray
    errors: np.ndarray
    growth: np.ndarray
    at: np.ndarray
    gains: np.ndarray
    spectral_radius: float
    verdict: str
    confidence: float
    steps: int
    numbers: int
    examples: int
    nonfinite: int | None

    def __str__(self) -> str:
        found = [(f"{a:.6g}", f"{e:.2g}") for a, e in zip(self.exponents, self.errors, strict=True)]
        rows = [(str(n), *row) for n, row in enumerate(found[:SHOWN], 1)]
        more = [("...", *found[-1])] if len(found) > SHOWN else []
        lines = [
            f"Over {self.steps} steps: {self.verdict} ({100 * self.confidence:.1f} % confidence). The fastest direction "
            f"changes by a factor {_power(float(self.exponents[0] * self.steps))}.",
            f"Spectral radius of a step {self.spectral_radius:.6g}; {self.examples} example(s), {self.numbers} numbers each.",
            aligned([("direction", "exponent, nats a step", "standard error"), *rows, *more]),
        ]
        if self.nonfinite is not None:
            lines.append(
                f"Step {self.nonfinite} made a number NaN or infinite: all figures are of the steps before it."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, for JSON; NaN and infinities stay floats."""
        out: dict[str, Any] = plain(self)
        return out


def _power(log: float) -> str:
    """Show exp(log), which may be no number that a computer holds.

    Example:
        >>> _power(1.0), _power(-2302.6)
        ('2.72', '1e-1000')
    """
    digits = log / math.log(10)
    return f"{math.exp(log):.3g}" if abs(digits) < 300 or math.isinf(log) else f"1e{round(digits):+d}"


def lyapunov(
    system: System,
    params: Params,
    data: Data = None,
    *,
    key: Key,
    steps: int | None = None,
    exponents: int | None = None,
    burn_in: int = 0,
    every: int = 1,
    examples: int | None = None,
) -> Lyapunov:
    """Measure how small differences in the state grow along the trajectory: the Lyapunov spectrum, by QR.

    k orthonormal directions Q are pushed through the Jacobian J_t of each step, J_t Q = Q' R, and log |R_ii| summed. Its mean
    after `burn_in` is the exponent of direction i, in nats a step: a gradient that goes back T steps changes by about
    exp(T exponents[0]). Nothing over- or underflows, however long the trajectory. The standard error is that of the
    means of 2 to 32 consecutive stretches of the trajectory; with several examples, the larger of that and what the spread
    between them says.

    The verdict is about the whole window: with exponent a, error e and T steps it is `"exploding"` if the normal
    probability that a T > ln 10 is 0.95 or more, `"vanishing"` if that of a T < -ln 10 is, `"neutral"` if that of lying
    between is: the window changes the fastest direction by less than a factor of 10. Else it is `"unresolved"`. Where the
    state became NaN or infinite after growth by more than a factor of 10, that is `"exploding"` for certain.

    The trajectory is that of `init(start, params)` and `unroll(..., run)` with `start, run = jax.random.split(key)`. In a
    `batched` system the examples are independent, and the figures are means over them. Only floating numbers of the state
    count; all else is held. A padded step of a sequence changes nothing, and counts as a step. In float32 an exponent has
    about 6 digits; take float64 (`jax.config.update("jax_enable_x64", True)`) for more.

    Args:
        system: any system whose step has a forward-mode derivative, as all but `jax.custom_vjp` has.
        params: its parameters.
        data: leaves `[steps, ...]`, `repeat(x)`, or `None`.
        key: a PRNG key, for `init`, the steps and the directions to start with.
        steps: steps of the trajectory, if the data don't say.
        exponents: how many, from the largest on; `None` for all of a state of at most 64 numbers, else 16. Costs so many
            forward-mode derivatives a step, and a QR of n times that many numbers.
        burn_in: first steps that only turn the directions to where they belong; larger is more accurate.
        every: steps from one QR to the next; larger is faster, and loses directions that shrink against the first by
            more than 1 / eps in between: their exponents read -inf.
        examples: of a batch, how many to measure; `None` for 8 or all.

    Raises:
        InvalidArgument: a count is not positive or too large for the state or the window, the state holds no floating
            number, or it is NaN or infinite before anything could be measured.
        StructureError: data, params or the step's results don't fit.

    Example:
        >>> import jax.numpy as jnp, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(2), step=lambda p, s, x, k: (p * s, s.sum()))
        >>> found = ux.lyapunov(decay, jnp.array([0.5, 0.9]), key=jax.random.key(0), steps=200, burn_in=100)
        >>> print(found.exponents.round(3), found.verdict)
        [-0.105 -0.693] vanishing

    References: Benettin et al., Meccanica 1980; Engelken, Wolf and Abbott, Physical Review Research 2023 (recurrent nets).
    """
    _check_options(exponents, burn_in, every, examples)
    found = examples_of("lyapunov", system, params, data, key, steps, examples or 8)
    count = _numbers(found.states)
    directions = _directions(count, exponents)
    _check_burn_in(burn_in, found.steps)
    points = _points(count, len(found.keys))
    plan = Plan("lyapunov", found.steps, burn_in, every, points, directions == count)
    basis = _basis(found, key, count, directions)
    track = push(found.system, params, Paths(found.states, found.data, found.keys, basis), plan)
    return _summary(track, plan, count)


def _check_options(exponents: Any, burn_in: Any, every: Any, examples: Any) -> None:
    check_counts("lyapunov", every=every)
    if exponents is not None:
        check_counts("lyapunov", exponents=exponents)
    if examples is not None:
        check_counts("lyapunov", examples=examples)
    if isinstance(burn_in, bool) or not isinstance(burn_in, (int, np.integer)) or burn_in < 0:
        raise InvalidArgument(f"lyapunov: burn_in must be a whole number of steps, got burn_in={burn_in!r}. Take 0.")


def _check_burn_in(burn_in: int, steps: int) -> None:
    if burn_in >= steps:
        raise InvalidArgument(
            f"lyapunov: burn_in must leave steps to measure, got burn_in={burn_in} of {steps} steps. "
            f"Take burn_in={steps // 5}, or more steps."
        )


def _numbers(states: State) -> int:
    """Return how many floating numbers one example's state holds; raise if there is none."""
    sizes = [
        leaf[0].size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in jax.tree.leaves(states) if is_inexact(leaf)
    ]
    if not sum(sizes):
        held = ", ".join(f"{name} {describe(leaf[0])}" for name, leaf in leaves_with_names(states)) or "nothing"
        raise InvalidArgument(
            f"lyapunov: the state must hold floating numbers, got {held}. Without them there are no dynamics to "
            "measure: keep what step changes in the state."
        )
    return sum(sizes)


def _directions(count: int, exponents: int | None) -> int:
    if exponents is None:
        return count if count <= WHOLE_SPECTRUM else LEADING
    if exponents > count:
        raise InvalidArgument(
            f"lyapunov: exponents must be at most the floating numbers in the state, {count}, got exponents={exponents}. "
            f"Take exponents={count}, or None."
        )
    return exponents


def _points(count: int, examples: int) -> int:
    """Return at how many steps of each example to take a Jacobian: eigenvalues cost count^3."""
    if count > SMALL:
        return 0
    return math.ceil(POINTS * min(1.0, (CHEAP / count) ** 3) / examples)


def _basis(found: Examples, key: Key, count: int, directions: int) -> jax.Array:
    """Return orthonormal directions at random: those of the axes could be ones that a step never turns."""
    dtype = floats(jax.tree.map(lambda leaf: leaf[0], found.states))[0].dtype
    drawn = jax.random.normal(jax.random.fold_in(key, 2), (count, directions), dtype)
    return jnp.linalg.qr(drawn)[0]


def _summary(track: Track, plan: Plan, count: int) -> Lyapunov:
    finite = track.finite.all(0)
    end = plan.steps if finite.all() else int(np.argmin(finite))
    due = [t for t in range(plan.burn_in, end) if (t + 1) % plan.every == 0 or t == plan.steps - 1]
    _check_measured(due, end, plan)
    logs, at = track.logs[:, due], np.array(due) + 1 - plan.burn_in
    means, errors = mean_and_error(list(logs), [np.diff(at, prepend=0)] * len(logs))
    order = np.argsort(-means, kind="stable")
    leading, error = float(means[order[0]]), float(errors[order[0]])
    burst = end < plan.steps and leading * at[-1] > FACTOR
    verdict, confidence = ("exploding", 1.0) if burst else verdict_of(leading, error, plan.steps)
    return Lyapunov(
        exponents=means[order],
        errors=errors[order],
        growth=np.cumsum(logs.mean(0), 0)[:, order],
        at=at,
        gains=_gains(track, complete=end == plan.steps),
        spectral_radius=spectral_radius(track.jacobians, end // plan.stride),
        verdict=verdict,
        confidence=confidence,
        steps=plan.steps,
        numbers=count,
        examples=len(logs),
        nonfinite=None if end == plan.steps else end + 1,
    )


def _check_measured(due: list[int], end: int, plan: Plan) -> None:
    if not due:
        raise InvalidArgument(
            f"lyapunov: the state and its derivative must be finite, got NaN or infinity at step {end + 1}, before any "
            f"growth was measured (burn_in={plan.burn_in}, every={plan.every}). Mend the params or the data, or lower both."
        )


def _gains(track: Track, *, complete: bool) -> np.ndarray:
    """Return the log singular values of the whole product: -inf for each direction that some step forgot."""
    if track.product is None or not complete:
        return np.full(track.logs.shape[-1], np.nan)
    gains = log_singular_values(track.product.logs, track.product.unit)
    forgotten = np.isneginf(track.logs).any(1).sum(-1)
    for row, lost in zip(gains, forgotten, strict=True):
        row[len(row) - lost :] = -np.inf
    return gains.mean(0)
