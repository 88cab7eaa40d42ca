"""Unfolded gradient descent against the best that any schedule can do.

For ridge regression with A = np.random.RandomState(seed).randn(100, 50), lambda = 3 and y ~ N(0, I), the mean squared error
of gradient descent with steps eta_1 .. eta_t is a sum over eigenvalues, sum_j w_j prod_k (1 - eta_k h_j)^2. Its minimum over
all schedules of t steps is that over polynomials (the oracle), and that over schedules of period T is found by Newton's
method. Here the steps are trained on sampled y instead, and what they reach is computed in that closed form.

Expected: schedules of period 4 and 8, and with a step of its own for each of 4, 8 and 16 iterations, come within per cents of
these optima. What it takes: the logarithm of the error as the loss, the logarithm of the steps as parameters, a rate that
falls to 0, a start whose steps differ and ascend, and, for 16 iterations, an optimizer that forgets fast (Adam with b2 = 0.9)
or knows how the steps depend on each other (SOAP). Steps that start equal stay equal, but for rounding.

    .venv/bin/python examples/unfold_optimality.py [--quick] [--seeds N] [--json] [--plot FILE] [--golden]

References: Wadayama, Model-based deep learning and deep unfolding (Morikita), 2023, section 3.3 (in Japanese). Young, Journal
of Mathematics and Physics 1953.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import COLOURS, Claim, Result, above, below, main

import unrollax as ux
from unrollax.problems import ridge
from unrollax.solvers import gradient_descent
from unrollax.theory import (
    Quadratic,
    baselines,
    best_periodic,
    chebyshev_steps,
    gradient_step,
    quadratic,
    schedule_error,
)

LAM, BATCH, STD = 3.0, 100, 0.3
PERIODIC = {4: 2.04e-12, 8: 9.41e-16}  # the published optima of the error at 50


class Row(NamedTuple):
    """One training: what is trained, from where, how, and what its median is to be below, relative to an optimum."""

    name: str
    horizon: int
    entries: int
    optimum: float
    limit: float
    lr: float = 0.03
    updates: int = 500
    start: str = "ascending"
    optimizer: str = "adam, b2 = 0.9"
    seed: int = 0  # of A
    fails: bool = False


def problem(seed: int) -> Quadratic:
    """Return the spectrum and the weights of a seed's ridge regression."""
    return quadratic(np.random.RandomState(seed).randn(100, 50), LAM)


def rows() -> list[Row]:
    """Return the trainings, short ones first."""
    bound = {seed: baselines(problem(seed), 16)["oracle"] for seed in (0, 1)}
    found = [
        Row(f"{n} steps, A {seed}", n, n, bound[seed][n], 1.001, updates=1000, seed=seed)
        for seed in (0, 1)
        for n in (4, 8)
    ]
    last = bound[0][16]
    constant = schedule_error(np.resize(best_periodic(problem(0), 1, 8), 8), problem(0).h, problem(0).w)[-1]
    return [
        *found,
        Row("8 steps, from equal ones", 8, 8, bound[0][8], 0.99 * constant / bound[0][8], start="equal", fails=True),
        Row("16 steps", 16, 16, last, 1.5, lr=0.01, updates=2500),
        Row("16 steps, b2 = 0.999", 16, 16, last, 1.5, lr=0.01, updates=2500, optimizer="adam", fails=True),
        Row("16 steps, SOAP", 16, 16, last, 1.01, lr=0.003, updates=2500, optimizer="soap"),
        *[Row(f"period {T}", 50, T, PERIODIC[T], limit) for T, limit in ((4, 1.05), (8, 1.2))],
        *[
            Row(f"period {T}, from Chebyshev", 50, T, PERIODIC[T], limit, lr=0.01, start="chebyshev")
            for T, limit in ((4, 1.05), (8, 1.2))
        ],
    ]


def start(row: Row, seed: int) -> np.ndarray:
    """Return the steps that a training starts from."""
    spectrum = problem(row.seed)
    if row.start == "chebyshev":
        return np.asarray(chebyshev_steps(row.entries, spectrum.L, spectrum.mu, order="ascending"))
    noise = np.random.RandomState(seed).randn(row.entries) * (STD if row.start == "ascending" else 0)
    return np.sort(gradient_step(spectrum.L, spectrum.mu) * np.exp(noise))


def optimizer(row: Row, updates: int) -> optax.GradientTransformation:
    """Return the optimizer of a row, at a rate that falls to 0 along a cosine."""
    rate = optax.cosine_decay_schedule(row.lr, updates)
    if row.optimizer == "soap":
        return ux.soap(rate)
    return optax.adam(rate, b2=0.999 if row.optimizer == "adam" else 0.9)


def train(row: Row, *, seeds: int, updates: int) -> np.ndarray:
    """Return the trained steps of all iterations, `[seeds, horizon]`."""
    net = ux.unfold(gradient_descent(), ridge(lam=LAM, seed=row.seed), horizon=row.horizon, batch=BATCH)
    kind, found, optimize = ux.per_step if row.entries == row.horizon else ux.periodic, [], optimizer(row, updates)
    for seed in range(seeds):
        params = kind({"step": jnp.asarray(start(row, seed))}, row.entries, transform="log")
        run = ux.fit_unfold(net, params, ux.one_shot(row.horizon, updates), optimize, key=jax.random.key(seed))
        found.append(np.asarray(ux.values_of(run.params, row.horizon)["step"]))
    return np.stack(found)


def run(*, seeds: int, quick: bool) -> Result:
    """Train every row, and compare the median of the errors, in closed form, with the optimum."""
    claims: list[Claim] = []
    curve: dict[str, Any] = {}
    trained = {}
    count = 2 if quick else seeds
    chosen = [row for row in rows() if not quick or (row.horizon == 4 and not row.seed) or row.name == "period 4"]
    for row in chosen:
        spectrum = problem(row.seed)
        steps = train(row, seeds=count, updates=20 if quick else row.updates)
        errors = np.stack([schedule_error(eta, spectrum.h, spectrum.w) for eta in steps])
        middle = np.argsort(errors[:, -1])[count // 2]
        trained[row.name], curve[row.name] = (steps[middle], errors[middle]), errors[:, -1]
        make = above if row.fails else below
        claims.append(
            make(
                f"{row.name}: error at {row.horizon} over its optimum",
                row.limit,
                np.median(errors[:, -1]) / row.optimum,
            )
        )
    config = {"batch": BATCH, "lam": LAM, "std": STD, "seeds": count, "rows": [row.name for row in chosen]}
    return Result(config, claims, curve, trained)


def draw(result: Result, figure: Any) -> None:
    """Draw the errors of the trained schedules beside the baselines', and their steps."""
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    known = baselines(problem(0), 50)
    for method, errors in known.errors.items():
        if method in ("gd", "heavy_ball", "chebyshev_8", "oracle"):
            left.semilogy(errors, color="0.6", linestyle=":" if method == "oracle" else "-", linewidth=1)
            left.annotate(method, (30, errors[30]), color="0.4", fontsize=7)
    shown = [name for name in ("16 steps, SOAP", "period 4", "period 8", "4 steps, A 0") if name in result.extra]
    for name, colour in zip(shown, COLOURS, strict=False):
        steps, errors = result.extra[name]
        left.semilogy(errors, color=colour, label=name)
        right.plot(np.arange(1, len(steps) + 1), steps * problem(0).L, ".-", color=colour, linewidth=0.7)
    left.set(xlabel="iteration", ylabel="mean squared error", ylim=(1e-18, 2))
    right.set(xlabel="iteration", ylabel="step times L", yscale="log")
    left.legend(frameon=False)


if __name__ == "__main__":
    main(__file__, __doc__ or "", run, draw, seeds=5, tolerance=1e-6, size=(9, 3.6))
