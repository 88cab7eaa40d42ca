"""Three questions of a reading group about deep unfolding, answered by measurement.

Gradient descent for ridge regression, A = np.random.RandomState(0).randn(100, 50), lambda = 3, y ~ N(0, I): trained on
drawn y, judged by the mean squared error in closed form.

Is lambda recovered from a wrong start? The answers x come from lambda = 3, the iteration starts from another one. With a step
of its own for each of N iterations the error depends on the polynomial alone that the steps and lambda make, and an interval
of lambda makes the best one: the longer the unfolding, the shorter the interval. With few steps and many iterations, or by
`Implicit`, it is recovered.

Do steps work for a fresh A? On average, those of one A do; but they diverge where its largest eigenvalue is larger. Steps
that are trained on a new A for each problem don't.

What does a period buy? It goes on: the error keeps falling beyond the depth of the training, if that is a multiple of the
period.

    .venv/bin/python examples/unfold_questions.py [--quick] [--seeds N] [--json] [--plot FILE] [--golden]

References: Wadayama, Model-based deep learning and deep unfolding (Morikita), 2023, section 3.3 (in Japanese).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from _common import COLOURS, Claim, Result, above, below, between, main
from _questions import BATCH, DEPTH, EDGES, LAM, ONE, RATE, after, best_lambda, chebyshev, edge, error, implicit, train

import unrollax as ux
from unrollax.theory import best_periodic, gradient_step, oracle, oracle_steps, quadratic

STARTS = (0.5, 1.5, 10.0, 30.0)
PERIODS = (1, 2, 4, 8, 16)


# --- is lambda recovered? ------------------------------------------------------------------------------------------------


def at_no_loss() -> list[Claim]:
    """Which lambdas the best steps for N iterations go with, and what one for each iteration could gain."""
    claims = []
    for n, low, high in ((4, 0.0, 46.75), (8, 1.72, 5.6), (16, 2.96, 3.04)):
        ends = [edge(oracle_steps(ONE, n), far) for far in (0.0, 100.0)]
        claims += [between(f"{n} steps: least lambda at the optimum", low - 0.01, low + 0.01, ends[0])]
        claims += [between(f"{n} steps: largest", 0.99 * high, 1.01 * high, ends[1])]
    (one, last), (many, _) = best_lambda(1), best_lambda(DEPTH)
    claims += [between("period 4, best steps and lambda: error at 50", 1.35e-12, 1.36e-12, one)]
    claims += [between("  |lambda - 3|", 2.2e-5, 2.3e-5, abs(last - LAM))]
    claims += [below("  best steps and a lambda for each iteration", 1e-14, many)]
    return [*claims, above("  lambda held at 2", 1e-3, (ONE.w / (ONE.h - 1) ** 2).sum())]


def lambdas(runs: int, updates: int, starts: tuple[float, ...], curve: dict[str, Any]) -> list[Claim]:
    """Where lambda goes from a wrong start, and what it costs."""
    claims, bound = [], oracle(ONE, 8)[8]
    shared = lambda lam: ux.shared(jnp.asarray(lam), transform="log")
    each = lambda lam, depth: ux.per_step(jnp.asarray(lam), depth, transform="log")
    for lam in starts:
        short = train(8, 8, runs, 2 * updates, lam=shared(lam))
        seen = np.median([error(*one) for one in zip(*short, strict=True)]) / bound
        curve[f"8 steps, from {lam:g}"] = short.lam[:, 0]
        claims += [below(f"8 steps, lambda from {lam:g}: error over the optimum", 1.001, seen)]
        claims += [between("  lambda", 1.7, 5.6, np.median(short.lam[:, 0]))]
        deep = train(DEPTH, 4, runs, updates, lam=shared(lam))
        curve[f"period 4, from {lam:g}"] = deep.lam[:, 0]
        errors = [error(*one) for one in zip(*deep, strict=True)]
        claims += [below(f"period 4, lambda from {lam:g}: |lambda - 3|", 5e-4, np.median(abs(deep.lam[:, 0] - LAM)))]
        claims += [between("  error at 50", 2e-12, 1e-9, np.median(errors))]
        free = train(DEPTH, 4, runs, updates, lam=each(lam, DEPTH))
        curve[f"one lambda an iteration, from {lam:g}"] = np.array([error(*one) for one in zip(*free, strict=True)])
        claims += [above("  one lambda an iteration: error at 50", 1e-10, np.median(curve[list(curve)[-1]]))]
        claims += [below("  how far its first lambda moved", 1e-12, np.abs(free.lam[:, 0] - lam).max())]
        claims += [below(f"Implicit, from {lam:g}: |lambda - 3|", 1e-7, abs(implicit(lam, updates) - LAM))]
    return claims


# --- a fresh A -----------------------------------------------------------------------------------------------------------


def spectra(first: int, count: int, m: int = 100, n: int = 50, scale: float = 1.0) -> list[Any]:
    """Return the spectra of `count` matrices, of seeds that no training has seen."""
    return [quadratic(scale * np.random.RandomState(first + k).randn(m, n), LAM) for k in range(count)]


def diverges(steps: np.ndarray, period: int, spectrum: Any) -> bool:
    """Whether repeating a period makes the error grow along some eigenvector."""
    return bool(np.abs(np.prod(1 - steps[:period, None] * spectrum.h, axis=0)).max() > 1)


def on_fresh(steps: Callable[[Any], Any], horizon: int, entries: int, tested: list[Any]) -> np.ndarray:
    """Return the median and the worst error on the fresh A, and the share of them where the steps diverge."""
    errors = [after(np.asarray(steps(one)), horizon, one) for one in tested[:20]]
    share = np.mean([diverges(np.resize(steps(one), horizon), entries, one) for one in tested])
    return np.array([np.median(errors), np.max(errors), share])


def others(horizon: int, entries: int) -> dict[str, Callable[[Any], Any]]:
    """Return what needs no training: steps for an A's own spectrum, and formulas for all."""
    best = lambda one: oracle_steps(one, entries) if entries == horizon else best_periodic(one, entries, horizon)
    return {
        "its own best": best,
        "its own Chebyshev": lambda one: chebyshev(entries, one.L, one.mu),
        "its own gradient descent": lambda one: [gradient_step(one.L, one.mu)],
        "Chebyshev of the limit": lambda _: chebyshev(entries, *EDGES),
    }


LIMITS = {  # of the median, the worst and the share that diverges: trained on one A, and on many
    4: (((1e-12, 2e-12), 1.0, (0.2, 0.35)), ((3e-12, 1e-11), 1e-9, (0.0, 0.01))),
    8: (((1.6e-3, 2.1e-3), 0.1, (0.2, 0.35)), ((1.6e-3, 2.3e-3), 5e-3, (0.0, 0.01))),
}


def generalises(runs: int, updates: int, entries: tuple[int, ...], tested: list[Any], curve: dict[str, Any]) -> Any:
    """Compare steps of one A with those of many, on fresh ones."""
    claims = []
    for count in entries:
        horizon = DEPTH if count == 4 else count
        for name, steps in others(horizon, count).items():
            curve[f"{count} steps: {name}"] = on_fresh(steps, horizon, count, tested)
        for new, (middle, worst, share) in zip((False, True), LIMITS[count], strict=True):
            name = f"{count} steps trained on {'many A' if new else 'one A'}"
            found = train(horizon, count, runs, updates, new=new).steps
            rows = [on_fresh(lambda _, eta=eta: eta, horizon, count, tested) for eta in found]
            curve[name] = np.stack(rows)
            seen = np.median(rows, axis=0)
            claims += [between(f"{name}: median error at {horizon} of 20 fresh A", *middle, seen[0])]
            claims += [(below if new else above)("  worst", worst, seen[1])]
            claims += [between("  share of fresh A where they diverge", *share, seen[2])]
    sizes = {
        "200 x 100, scaled": (200, 100, 0.5**0.5),
        "50 x 25, scaled": (50, 25, 2**0.5),
        "200 x 100": (200, 100, 1.0),
    }
    for name, size in sizes.items():
        other = spectra(5000, len(tested) // 2, *size)
        curve[f"{count} steps trained on many A: {name}"] = on_fresh(lambda _: found[0], horizon, count, other)
    return claims


# --- the period ----------------------------------------------------------------------------------------------------------


def goes_on(runs: int, updates: int, periods: tuple[int, ...], curve: dict[str, Any]) -> list[Claim]:
    """Train periods for 50 iterations, and go on to 100 and 200."""
    claims = []
    far = lambda steps: [after(np.asarray(steps), n) for n in (DEPTH, 2 * DEPTH, 4 * DEPTH)]
    for period in periods:
        found = train(DEPTH, period, runs, updates).steps
        curve[f"period {period}"] = np.median([far(eta[:period]) for eta in found], axis=0)
        curve[f"Chebyshev {period}"] = np.array(far(chebyshev(period, ONE.L, ONE.mu)))
        best = after(best_periodic(ONE, period, DEPTH), DEPTH)
        limit = {1: 1.01, 2: 1.01, 4: 1.05, 8: 1.25, 16: 10}[period]
        claims += [below(f"period {period}: error at 50 over the best", limit, curve[f"period {period}"][0] / best)]
        claims += [below("  error at 100 over the square of that", 1e7, curve[f"period {period}"][1] / best**2)]
    whole = train(DEPTH + 2, 4, runs, updates).steps[:, :4]
    ended = train(16, 16, runs, 2 * updates).steps
    curve["period 4, trained for 52"] = np.median([far(eta) for eta in whole], axis=0)
    curve["16 steps, repeated"] = np.median([far(eta) for eta in ended], axis=0)
    last = lambda eta: after(np.append(eta, np.full(DEPTH - 16, eta[-1])), DEPTH)
    curve["16 steps, then the last"] = np.array([last(eta) for eta in ended])
    claims += [below("period 4, trained for 52: error at 100", 1e-22, curve["period 4, trained for 52"][1])]
    claims += [below("16 steps trained for 16, repeated: error at 100", 1e-30, curve["16 steps, repeated"][1])]
    return [
        *claims,
        above("  the last of them repeated: error at 50", 1e10, np.median(curve["16 steps, then the last"])),
    ]


def run(*, seeds: int, quick: bool) -> Result:
    """Ask all three."""
    curve: dict[str, Any] = {}
    runs, updates = (1, 10) if quick else (seeds, 500)
    starts, periods, entries = (STARTS[:1], (4,), (8,)) if quick else (STARTS, PERIODS, (4, 8))
    tested = spectra(1000, 20 if quick else 200)
    claims = goes_on(runs, updates, periods, curve) + generalises(runs, updates, entries, tested, curve)
    claims += lambdas(runs, updates, starts, curve) + ([] if quick else at_no_loss())
    config = {"batch": BATCH, "lam": LAM, "rate": RATE, "seeds": runs, "updates": updates, "starts": list(starts)}
    return Result(config, claims, curve)


def draw(result: Result, figure: Any) -> None:
    """Draw the errors beyond the depth of the training, and those on fresh A."""
    left, right = figure.subplots(1, 2)
    at, names = (DEPTH, 2 * DEPTH, 4 * DEPTH), [name for name in result.curve if name.startswith("period ")]
    for name, colour in zip([name for name in names if "from" not in name], COLOURS, strict=False):
        left.semilogy(at, result.curve[name], ".-", color=colour, label=name)
    left.set(xlabel="iteration", ylabel="mean squared error", ylim=(1e-60, 1))
    fresh_A = [name for name in result.curve if name.startswith("8 steps") and "from" not in name]
    for row, name in enumerate(fresh_A):
        middle, worst, _ = np.atleast_2d(result.curve[name])[0]
        right.plot([middle, worst], [row, row], ".-", color=COLOURS[0])
    right.set(xlabel="mean squared error: median and worst A", xscale="log", yticks=range(len(fresh_A)))
    right.set_yticklabels([name.removeprefix("8 steps").strip(": ") for name in fresh_A])
    left.legend(frameon=False)


if __name__ == "__main__":
    main(__file__, __doc__ or "", run, draw, seeds=3, tolerance=1e-6, size=(9, 3.6))
