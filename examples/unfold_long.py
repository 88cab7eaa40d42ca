"""Unfolding 10,000 iterations: which gradient gets anywhere, and what it takes.

Gradient descent on quadratics with condition number 1,000 has four steps that repeat 2,500 times. From x_0 ~ N(0, I) and with
the solution at 0 the error is a product, exp(-20) of the start's for the best single step and exp(-81) for Chebyshev's four:
it does not end at the rounding of a solution's digits, as it would elsewhere. All start from steps near 1 / L. Parts:

- `pes`: persistent evolution strategies in windows of 100 iterations, with a std that falls, eight pairs;
- `bptt`: backpropagation through all 10,000, the better of two rates;
- `tbptt`: through windows of 100. The logarithm of the error telescopes: each window's loss is what it gains, and, once the
  state has turned to the slowest directions, what every later window gains. So the bias of truncation is small here, and its
  many updates win. Of raw errors only the first windows matter, and it fails;
- `certificate`: `theory.smooth_log_rate`, the rate at the worst eigenvalue, which needs no data and no unfolding;
- `implicit`: how the error of a ridge regression, solved by such steps, depends on its lambda. The implicit function theorem
  against backpropagation through all iterations: digits in which they agree, and memory.

The first three may make 2 million iterations in all, each of a batch of 16 problems: 1,250 updates of PES, 200 of
BPTT. What is compared is log |x_N| / |x_0| (root mean square), in closed form. x is held within 1e100, where a run has lost
but hasn't overflowed.

    .venv/bin/python examples/unfold_long.py [--quick] [--json] [--out FILE] [--only PART] [--golden]

References: Vicol, Metz and Sohl-Dickstein, ICML 2021. Young, Journal of Mathematics and Physics 1953. Bai, Kolter and Koltun,
NeurIPS 2019.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import Claim, above, below
from _race import size
from _unfold import main

import unrollax as ux

N, T, D, BATCH = 10_000, 4, 50, 16
MU, L = 1e-3, 1.0
BUDGET, SEEDS = 2_000_000, 4
WINDOW, PAIRS = 100, 8
SPECTRUM = np.linspace(MU, L, D)
FAR = 1e100


def descent(scale: str = "log") -> ux.Unfold:
    """Return gradient descent along the eigenvectors of a quadratic with its minimum at 0."""
    return ux.Unfold(
        iteration=lambda theta, x, _: jnp.clip(x - theta["eta"] * SPECTRUM * x, -FAR, FAR),
        start=lambda problem: problem,
        error=lambda x, _: (x**2).mean(),
        sample=lambda key: jax.random.normal(key, (D,)),
        horizon=N,
        batch=BATCH,
        scale=scale,
    )


def log_error(eta: Any) -> float:
    """Return the logarithm of the root mean square of x_N, of that of x_0."""
    eta = np.asarray(eta)
    with np.errstate(divide="ignore"):
        logs = 2 * N // T * np.log(np.abs(1 - eta[:, None] * SPECTRUM)).sum(0)
    return float(logs.max() + np.log(np.exp(logs - logs.max()).mean())) / 2


def start(seed: int) -> dict[str, Any]:
    """Return four steps near 1 / L: all runs from them converge, and they differ."""
    steps = np.sort(np.exp(0.1 * np.random.RandomState(seed).randn(T)) / L)
    return ux.periodic({"eta": steps}, T, transform="log")


def trained(estimator: Any, updates: int, lr: float, seed: int) -> float:
    """Train by an estimator at a rate that falls to 0, and return the error; infinity where it is lost."""
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, updates), b2=0.9)
    try:
        fit = ux.fit(estimator, optimizer, start(seed), None, key=jax.random.key(seed), steps=updates)
    except ux.Diverged:
        return np.inf
    return log_error(fit.params["eta"].values)


def memory(estimator: Any, params: Any) -> int:
    """Return the bytes of a call: those of the estimator's state, and what the compiler sets aside."""
    state = estimator.init(jax.random.key(0), params)
    compiled = jax.jit(estimator.estimate).lower(params, state, None).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes) + size(state)


def persistent(quick: bool) -> list[Claim]:
    """Train by PES, a seed after the other."""
    updates = 20 if quick else BUDGET // (2 * PAIRS * WINDOW)
    std = optax.exponential_decay(0.1, updates, 0.03)
    pes = ux.PES(descent(), std=std, window=WINDOW, horizon=N, pairs=PAIRS, stagger=True)
    found = [trained(pes, updates, 0.05, seed) for seed in range(2 if quick else SEEDS)]
    return [
        below(f"PES, median of {len(found)} seeds: log error", -40, np.median(found)),
        below("PES, worst seed: log error", -30, max(found)),
        below("PES: MB", 1, memory(pes, start(0)) / 1e6),
    ]


def whole(quick: bool) -> list[Claim]:
    """Train by backpropagation through all iterations."""
    updates = 2 if quick else BUDGET // N
    bptt = ux.UnfoldBPTT(descent())
    best = min(np.median([trained(bptt, updates, lr, seed) for seed in range(2)]) for lr in (0.01, 0.03))
    return [
        above("BPTT: log error", -40, best),
        above("BPTT: MB", 10, memory(bptt, start(0)) / 1e6),
    ]


def truncated(quick: bool) -> list[Claim]:
    """Train by backpropagation through windows, with each loss."""
    updates = 20 if quick else BUDGET // WINDOW
    found = {}
    for scale in ("log", "raw"):
        tbptt = ux.TBPTT(descent(scale), window=WINDOW, horizon=N)
        found[scale] = np.median([min(trained(tbptt, updates, lr, seed) for lr in (0.001, 0.01)) for seed in range(2)])
    return [
        below("TBPTT, logarithm of the error: log error", -77, found["log"]),
        above("TBPTT, raw error: log error", -40, found["raw"]),
        below("TBPTT: MB", 5, memory(ux.TBPTT(descent(), window=WINDOW, horizon=N), start(0)) / 1e6),
    ]


def certified(quick: bool) -> list[Claim]:
    """Train the rate at the worst eigenvalue."""
    updates = 20 if quick else 3000
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, updates), b2=0.9)

    @jax.jit
    def train(raw: jax.Array) -> jax.Array:
        def update(_: Any, carry: Any) -> Any:
            raw, state = carry
            grad = jax.grad(lambda raw: ux.theory.smooth_log_rate(jnp.exp(raw), MU, L, sharpness=1000.0))(raw)
            step, state = optimizer.update(grad, state)
            return raw + step, state

        return jnp.exp(jax.lax.fori_loop(0, updates, update, (raw, optimizer.init(raw)))[0])

    ends = [log_error(train(start(seed)["eta"].raw)) for seed in range(SEEDS)]
    best = log_error(ux.theory.chebyshev_steps(T, L, MU))
    return [
        below("the certificate's rate: log error, worst seed", -77, max(ends)),
        below("Chebyshev's steps, a formula: log error", -80, best),
    ]


def regularised(quick: bool) -> list[Claim]:
    """Differentiate the error of a ridge regression by its lambda, with and without the way to the solution."""
    basis = np.linalg.qr(np.random.RandomState(0).randn(D, D))[0]
    hessian, batch, steps = (basis * (SPECTRUM - MU / 2)) @ basis.T, 128, 400 if quick else N

    def system(loss: str) -> ux.Unfold:
        return ux.Unfold(
            iteration=lambda theta, x, problem: x - theta["eta"] * (hessian @ x + theta["lam"] * x - problem[0]),
            start=lambda _: jnp.zeros(D),
            error=lambda x, problem: ((x - problem[1]) ** 2).mean(),
            sample=lambda key: tuple(jax.random.normal(key, (2, D))),
            horizon=steps,
            batch=batch,
            loss=loss,
            scale="raw",
        )

    params = {**ux.periodic({"eta": ux.theory.chebyshev_steps(T, L, MU)}, T), **ux.shared({"lam": MU / 2})}
    unrolled = ux.UnfoldBPTT(system("final"))
    implicit = ux.Implicit(system("anytime"), window=steps, horizon=steps, solver="bicgstab", terms=100, tol=1e-12)
    slope = [
        float(jax.jit(each.estimate)(params, each.init(jax.random.key(0), params), None)[1].grad["lam"].raw)
        for each in (unrolled, implicit)
    ]
    share = memory(implicit, params) / memory(unrolled, params)
    return [
        below("lambda by Implicit: relative difference from backpropagation", 1e-8, abs(slope[1] / slope[0] - 1)),
        below("lambda by Implicit: memory, of backpropagation's", 1 / 500, share),
    ]


PARTS = {
    "pes": persistent,
    "bptt": whole,
    "tbptt": truncated,
    "certificate": certified,
    "implicit": regularised,
}
CONFIG = {"iterations": N, "period": T, "batch": BATCH, "window": WINDOW, "pairs": PAIRS, "budget": BUDGET}

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(__file__, __doc__, PARTS, CONFIG)
