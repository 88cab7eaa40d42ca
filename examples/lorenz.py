"""Lorenz: two parameters of a chaotic system from what it did, window by window.

x' = a (y - x), y' = x (r - z) - y, z' = x y - 8/3 z by Euler steps of 0.005 from (1.2, 1.3, 1.6), T = 2,000 of them.
theta = (log a, log r) starts at (3.116, 3.7); the truth is (log 10, log 28) = (2.303, 3.332). The loss of a step is
(z - z_true)^2. The exact gradient is of no use: it grows without bound with the horizon. Every estimator sees windows of 100
steps, its trajectories staggered over the horizon, so that each update sees all of it.

Expected: NRES comes close to the truth with every seed; PES does so with a wider spread, for its variance is larger; TBPTT
and truncated ES, which never see what a parameter does beyond a window, end at an a that is much too large.

The loss is rugged: 0.0001 in theta can change it by 10, and no two updates end alike. So what is compared is its mean over
the last 1,000 updates; at the start, its mean over 2,000 points around it (the start itself has 340.0).

    .venv/bin/python examples/lorenz.py [--quick] [--seeds N] [--json] [--plot FILE] [--golden]

References: Li et al., Noise-Reuse in Online Evolution Strategies, NeurIPS 2023.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import COLOURS, Claim, Result, above, below, between, main, trained

import unrollax as ux

DT, HORIZON, WINDOW, PAIRS, STD, UPDATES = 0.005, 2000, 100, 200, 0.04, 5000
BEGIN, START, TRUTH = (1.2, 1.3, 1.6), (3.116, 3.7), (2.303, 3.332)


def euler(s: jax.Array, a: Any, r: Any) -> jax.Array:
    """Make one step of the Lorenz system."""
    x, y, z = s
    return s + DT * jnp.stack([a * (y - x), x * (r - z) - y, x * y - 8 / 3 * z])


def init(key: jax.Array, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the state, and that of the true system beside it."""
    return jnp.array(BEGIN, theta.dtype), jnp.array(BEGIN, theta.dtype)


def step(theta: jax.Array, state: Any, x: None, key: jax.Array) -> tuple[Any, jax.Array]:
    """Move both systems."""
    here, true = state
    here, true = euler(here, jnp.exp(theta[0]), jnp.exp(theta[1])), euler(true, np.exp(TRUTH[0]), np.exp(TRUTH[1]))
    return (here, true), (here[2] - true[2]) ** 2


LORENZ = ux.system(init=init, step=step)


@ux.value
class Staggered:
    """A truncated estimator of one trajectory, on `copies` of it that are spread over the horizon."""

    estimator: Any
    copies: int = ux.static()

    def init(self, key: jax.Array, params: Any) -> Any:
        """Return a state for each copy, the first episodes shortened."""
        state = jax.vmap(self.estimator.init, (0, None))(jax.random.split(key, self.copies), params)
        return state._replace(left=-jnp.arange(self.copies, dtype=jnp.int32) * self.estimator.window)

    def estimate(self, params: Any, state: Any, data: Any) -> tuple[Any, ux.Estimate]:
        """Return the mean of the copies' estimates."""
        state, (loss, grad, info) = jax.vmap(self.estimator.estimate, (None, 0, None))(params, state, data)
        return state, ux.Estimate(loss.mean(), grad.mean(0), jax.tree.map(jnp.mean, info))


def evaluate(theta: jax.Array) -> jax.Array:
    """Return the mean step loss over the horizon."""
    return ux.unroll(LORENZ, theta, init(None, theta), None, jax.random.key(0), steps=HORIZON)[1].mean()


class Row(NamedTuple):
    """One line of the experiment."""

    name: str
    estimator: Any
    rate: float


def rows() -> list[Row]:
    """Return the estimators with their learning rates."""
    options = {"std": STD, "window": WINDOW, "horizon": HORIZON, "pairs": PAIRS, "stagger": True}
    tbptt = Staggered(ux.TBPTT(LORENZ, window=WINDOW, horizon=HORIZON), HORIZON // WINDOW)
    return [
        Row("NRES", ux.NRES(LORENZ, **options), 1e-5),
        Row("PES", ux.PES(LORENZ, **options), 1e-5),
        Row("TBPTT", tbptt, 3e-4),
        Row("ES", ux.ES(LORENZ, **options), 3e-4),
    ]


def claims_of(name: str, ends: np.ndarray, log_a: np.ndarray) -> list[Claim]:
    """Compare the final losses of all seeds, and the final log a of the two that are biased."""
    if name == "NRES":
        return [below("NRES: largest loss", 55, ends.max()), below("NRES: spread of the seeds", 5, np.ptp(ends))]
    if name == "PES":
        return [between("PES: smallest loss", 45, 70, ends.min()), between("PES: largest loss", 45, 70, ends.max())]
    return [
        between(f"{name}: mean loss, 72 within a tenth", 64.8, 79.2, ends.mean()),
        above(f"{name}: smallest log a", 3.5, log_a.min()),
    ]


def run(*, seeds: int, quick: bool) -> Result:
    """Train with every estimator and compare the final losses with the published ones."""
    updates, every, count = (20, 10, 2) if quick else (UPDATES, 10, seeds)
    start, last = jnp.array(START), 1000 // every
    losses_of = jax.jit(jax.vmap(jax.vmap(evaluate)))
    around = START + STD * np.random.default_rng(0).normal(size=(1, 2000, 2))
    claims = [between("mean loss around the start, 313.5 within 5 %", 297.8, 329.2, losses_of(around).mean())]
    stride = 10 if quick else 100
    curve: dict[str, Any] = {"start": float(evaluate(start)), "update": list(range(0, updates + 1, stride))}
    paths, spreads = {}, {}
    for row in rows():
        training = ux.Training(row.estimator, optax.sgd(row.rate))
        thetas, _ = trained(training, start, None, seeds=range(count), updates=updates, every=every)
        losses = np.asarray(losses_of(thetas))
        paths[row.name], ends = (thetas, losses), losses[:, -last:].mean(1)
        shown = thetas[:, :: stride // every]
        curve[f"{row.name}, log a"], curve[f"{row.name}, log r"] = shown[..., 0], shown[..., 1]
        curve[f"{row.name}, final loss"] = spreads[row.name] = ends
        claims += claims_of(row.name, ends, thetas[:, -1, 0])
    wider = np.ptp(spreads["PES"]) / np.ptp(spreads["NRES"])
    claims.append(above("PES: spread / NRES's", 1, wider))
    config = {"updates": updates, "seeds": count, "window": WINDOW, "horizon": HORIZON, "pairs": PAIRS, "std": STD}
    return Result(config, claims, curve, paths)


def draw(result: Result, figure: Any) -> None:
    """Draw the loss over both parameters with the paths of the first seed, and the running mean losses of all."""
    from matplotlib.colors import LogNorm
    from matplotlib.patheffects import withStroke

    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    a, r = np.linspace(1.9, 4.4, 150), np.linspace(3.1, 3.8, 140)
    grid = np.stack(np.meshgrid(a, r), -1)
    losses = np.asarray(jax.jit(jax.vmap(jax.vmap(evaluate)))(grid))
    image = left.pcolormesh(a, r, losses, cmap="viridis", norm=LogNorm(10, 500), shading="nearest", rasterized=True)
    figure.colorbar(image, ax=left, label="mean of (z - z_true)²", extend="both")
    for (name, (thetas, seen)), colour in reversed(list(zip(result.extra.items(), COLOURS, strict=False))):
        path = [withStroke(linewidth=2.5, foreground="white")]
        left.plot(*thetas[0].T, color=colour, linewidth=1.2, path_effects=path)
        left.plot(*thetas[0, -1], "o", color=colour, markeredgecolor="white", zorder=5)
        width = max(1, min(50, seen.shape[1] // 4))
        for seed, row in enumerate(seen):
            mean = np.convolve(row, np.ones(width) / width, "valid")
            updates = (np.arange(len(mean)) + width) * result.config["updates"] / (len(row) - 1)
            right.plot(updates, mean, color=colour, linewidth=1, label=None if seed else name)
    left.plot(*TRUTH, "*", color="white", markersize=14, markeredgecolor="black", zorder=6)
    left.set(xlabel="log a", ylabel="log r", title="Paths of the first seed; the star is the truth")
    right.set(xlabel="update", ylabel="loss, mean over 500 updates", yscale="log", title="Every seed")
    right.set_yticks([40, 50, 70, 100, 200, 300], ["40", "50", "70", "100", "200", "300"])
    right.minorticks_off()
    handles, names = right.get_legend_handles_labels()
    right.legend(reversed(handles), reversed(names), frameon=False)


if __name__ == "__main__":
    main(__file__, __doc__, run, draw, seeds=5, tolerance=1e-6, size=(11, 4.6))
