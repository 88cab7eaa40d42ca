"""Influence balancing: a stream on which a short truncation does not learn slowly but walks the wrong way.

A linear chain of 23 units, s' = A s + theta * sign, with A = 0.5 on the diagonal and on the superdiagonal, starts from ones
and is never reset. theta enters the first 10 units with +1 and the other 13 with -1; only the first unit is seen, at the end
of each window: loss (s[0] - 1)^2 / 2. At rest s[0] = 2 (10 - 13) theta = -6 theta, so the loss is (6 theta + 1)^2 / 2 and its
minimum is at theta = -1/6. The 13 units that decide the sign of the influence are the farthest from the loss: whoever
looks back fewer than some 30 steps sees the first 10 alone, and gets the sign wrong.

Expected: whatever credits all of the past (full backpropagation, RTRL, PES, NRES) and whatever looks back 100 steps finds
the minimum; one step (TBPTT, ES) or the diagonal of the influence (SnAp-1) walks away from it. PES fails with few particles
too: on an endless stream its accumulated noise, and with it its variance, grows for ever.

    .venv/bin/python examples/influence_balancing.py [--quick] [--seeds N] [--json] [--plot FILE] [--golden]

References: Tallec and Ollivier, arXiv 2017 (1702.05043); Vicol, Metz and Sohl-Dickstein, ICML 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import COLOURS, DASHES, Claim, Result, above, below, between, main, medians, trained

import unrollax as ux

UNITS, POSITIVE, START, STD, PAIRS = 23, 10, 0.5, 0.1, 500
SIGN = np.where(np.arange(UNITS) < POSITIVE, 1.0, -1.0)
UPDATES, RATE, EVALUATION = 3000, 1e-4, 500


def init(key: jax.Array, theta: jax.Array) -> jax.Array:
    """Return ones."""
    return jnp.ones(UNITS, jnp.result_type(theta))


def step(theta: jax.Array, s: jax.Array, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Move the chain; `theta` is one number, or one a unit. `x` weighs the loss of the step."""
    s = 0.5 * s + 0.5 * jnp.append(s[1:], 0) + theta * SIGN.astype(s.dtype)
    return s, x * (s[0] - 1) ** 2 / 2


def at_the_end(window: int) -> jax.Array:
    """Return data with which the mean step loss of a window is the loss of its last step."""
    return jnp.zeros(window).at[-1].set(window)


CHAIN = ux.system(init=init, step=step)


@ux.value
class Tied:
    """An estimator that is given one theta for each unit, all kept the same: their gradients are added up.

    With one theta for all units the influence would have a single column, with no pattern in it to leave out.
    """

    estimator: Any

    def init(self, key: jax.Array, theta: jax.Array) -> Any:
        """Return the state before the first window."""
        return self.estimator.init(key, jnp.full(UNITS, theta))

    def estimate(self, theta: jax.Array, state: Any, data: Any) -> tuple[Any, ux.Estimate]:
        """Return the gradient for the one theta."""
        state, (loss, grad, info) = self.estimator.estimate(jnp.full(UNITS, theta), state, data)
        return state, ux.Estimate(loss, grad.sum(), info)


def evaluate(theta: jax.Array) -> jax.Array:
    """Return the loss after 500 steps from ones."""
    data = at_the_end(EVALUATION)
    return ux.unroll(CHAIN, theta, init(None, theta), data, jax.random.key(0))[1].mean()


class Row(NamedTuple):
    """One line of the experiment."""

    name: str
    make: Callable[[], Any]
    window: int
    claim: Callable[[str, np.ndarray], Claim]
    rate: float = RATE


def median_below(limit: float) -> Callable[[str, np.ndarray], Claim]:
    """Claim that the median of the final losses is below a limit."""
    return lambda name, losses: below(f"{name}: median loss", limit, medians(losses))


def median_above(limit: float) -> Callable[[str, np.ndarray], Claim]:
    """Claim that the median of the final losses is above a limit, or overflowed."""
    return lambda name, losses: above(f"{name}: median loss", limit, medians(losses))


def fails(name: str, losses: np.ndarray) -> Claim:
    """Claim that the median of the final losses is between 200 and 225."""
    return between(f"{name}: median loss", 200, 225, medians(losses))


def all_below(name: str, losses: np.ndarray) -> Claim:
    """Claim that no seed ends above 1e-6."""
    return below(f"{name}: largest loss", 1e-6, np.where(np.isnan(losses), np.inf, losses).max())


def evolution(member: Any, window: int, pairs: int = PAIRS) -> Callable[[], Any]:
    """Return how to make a member of the evolution family for the stream."""
    return lambda: member(CHAIN, std=STD, window=window, pairs=pairs)


ROWS = (
    Row("BPTT, 500 steps", lambda: ux.BPTT(CHAIN, horizon=EVALUATION), EVALUATION, median_below(1e-6)),
    Row("TBPTT, window 100", lambda: ux.TBPTT(CHAIN, window=100), 100, median_below(1e-6)),
    Row("TBPTT, window 10", lambda: ux.TBPTT(CHAIN, window=10), 10, median_above(1e12)),
    Row("TBPTT, window 1", lambda: ux.TBPTT(CHAIN, window=1), 1, fails),
    Row("ES, window 100", evolution(ux.ES, 100), 100, median_below(1e-6)),
    Row("ES, window 1", evolution(ux.ES, 1), 1, fails),
    Row("PES, window 10", evolution(ux.PES, 10), 10, median_below(1e-6)),
    Row("PES, window 1", evolution(ux.PES, 1), 1, all_below),
    Row("PES, window 1, 10 particles", evolution(ux.PES, 1, 5), 1, median_above(1e3)),
    Row("NRES, window 1", evolution(ux.NRES, 1), 1, median_below(1e-8)),
    Row("RTRL, window 1", lambda: ux.RTRL(CHAIN, window=1), 1, median_below(1e-8)),
    Row("SnAp-1, window 1", lambda: Tied(ux.SnAp(CHAIN, window=1, x=jnp.zeros(()))), 1, median_above(10 * 8)),
    Row("UORO, window 1, rate 1e-5", lambda: ux.UORO(CHAIN, window=1), 1, median_below(1), 1e-5),
    Row("UORO, window 1, rate 1e-4", lambda: ux.UORO(CHAIN, window=1), 1, median_above(1e3)),
)


def run(*, seeds: int, quick: bool) -> Result:
    """Train with every estimator and compare the final losses with the published ones."""
    every = 10 if quick else 100
    updates, count = (20, 2) if quick else (UPDATES, seeds)
    curve: dict[str, Any] = {"update": list(range(0, updates + 1, every))}
    claims = []
    losses_of = jax.jit(jax.vmap(jax.vmap(evaluate)))
    for row in ROWS:
        training = ux.Training(row.make(), optax.sgd(row.rate))
        thetas, _ = trained(training, START, at_the_end(row.window), seeds=range(count), updates=updates, every=every)
        losses = np.asarray(losses_of(thetas))
        curve[row.name] = medians(losses)
        claims.append(row.claim(row.name, losses[:, -1]))
    claims.append(between("loss at the start", 7.999, 8.001, evaluate(jnp.asarray(START))))
    claims.append(between("its gradient", 23.99, 24.01, jax.grad(evaluate)(jnp.asarray(START))))
    config = {"updates": updates, "seeds": count, "rate": RATE, "std": STD, "pairs": PAIRS, "start": START}
    return Result(config, claims, curve)


def draw(result: Result, figure: Any) -> None:
    """Draw the median losses."""
    axes = figure.subplots()
    families: list[str] = []
    for name, values in list(result.curve.items())[1:]:
        families.append(name.split(",")[0].split()[0])
        colour = COLOURS[sorted(set(families), key=families.index).index(families[-1])]
        seen = np.where(np.isfinite(values), np.maximum(values, 1e-18), np.nan)
        dash = DASHES[families.count(families[-1]) - 1]
        axes.plot(result.curve["update"], seen, color=colour, linestyle=dash, label=name)
    axes.set(yscale="log", xlabel="update", ylabel="loss after 500 steps from ones", ylim=(1e-17, 1e17))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_title("Influence balancing: medians over the seeds", loc="left")


if __name__ == "__main__":
    main(__file__, __doc__, run, draw, seeds=10, tolerance=1e-6, size=(9, 5))
