"""Landscapes: three systems whose loss is rugged, what the exact gradient says there, and what a smoothed one says.

1. The logistic map x' = r x (1 - x), over r: order, period doubling, chaos.
2. The Lorenz system of `lorenz.py`, over log r.
3. A stiff double pendulum, two masses on two stiff springs, by semi-implicit Euler, over the angle from which it is let go.

Expected: where a system is chaotic the exact gradient grows exponentially with the horizon, and says nothing about where
the loss falls. The loss smoothed by a Gaussian has a gradient of ordinary size; NRES, which only runs the system, finds it.

    .venv/bin/python examples/landscapes.py [--quick] [--seeds N] [--json] [--plot FILE] [--golden]

References: Metz, Freeman, Schoenholz and Kachman, Gradients are not all you need, arXiv 2021.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lorenz
import numpy as np
from _common import COLOURS, Result, above, below, horizon_gradients, main

import unrollax as ux


def logistic_step(r: jax.Array, state: jax.Array, x: None, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Make one step of the logistic map; the loss is the squared distance from 0.6."""
    state = r * state * (1 - state)
    return state, (state - 0.6) ** 2


def logistic_init(key: jax.Array, r: jax.Array) -> jax.Array:
    """Return 0.3."""
    return jnp.full((), 0.3, r.dtype)


LOGISTIC = ux.system(init=logistic_init, step=logistic_step)


def lorenz_step(log_r: jax.Array, state: Any, x: None, key: jax.Array) -> tuple[Any, jax.Array]:
    """Make one step of the Lorenz system with the true a."""
    return lorenz.step(jnp.stack([jnp.asarray(lorenz.TRUTH[0], log_r.dtype), log_r]), state, x, key)


LORENZ = ux.system(init=lorenz.init, step=lorenz_step)

STIFFNESS, GRAVITY, DT = (
    1000.0,
    9.81,
    0.01,
)  # of springs of length 1 between masses of 1: ten times faster than the swing


def let_go(key: jax.Array, angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return where the two masses are, in one line, and that they do not move."""
    one = jnp.stack([jnp.sin(angle), -jnp.cos(angle)])
    return jnp.stack([one, 2 * one]), jnp.zeros((2, 2), angle.dtype)


def pull(ends: jax.Array) -> jax.Array:
    """Return the force of a spring that reaches to `ends`."""
    length = jnp.sqrt((ends**2).sum())
    return -STIFFNESS * (length - 1) * ends / length


def pendulum_step(angle: jax.Array, state: Any, x: None, key: jax.Array) -> tuple[Any, jax.Array]:
    """Move the masses; the loss is the squared distance of the lower one from a point beside it."""
    places, speeds = state
    upper, lower = pull(places[0]), pull(places[1] - places[0])
    force = jnp.stack([upper - lower, lower]) - jnp.array([[0, GRAVITY]], places.dtype)
    speeds = speeds + DT * force
    places = places + DT * speeds
    return (places, speeds), ((places[1] - jnp.array([2, 0], places.dtype)) ** 2).sum()


PENDULUM = ux.system(init=let_go, step=pendulum_step)


class Case(NamedTuple):
    """One row of the picture."""

    name: str
    axis: str
    system: Any
    low: float
    high: float
    horizon: int
    window: int
    std: float


CASES = (
    Case("logistic map, 200 steps", "r", LOGISTIC, 2.9, 3.9, 200, 20, 0.02),
    Case("Lorenz, 2,000 steps", "log r", LORENZ, 2.9, 3.7, 2000, 100, 0.02),
    Case("stiff double pendulum, 1,000 steps", "angle", PENDULUM, 0.3, 2.8, 1000, 100, 0.05),
)


def scanned(case: Case, points: int) -> dict[str, np.ndarray]:
    """Return the loss and the exact gradient on a fine grid, and the loss and the gradient convolved with a Gaussian."""
    reach = np.linspace(-5, 5, 10 * round(case.std * points / (case.high - case.low)) + 1)
    margin = 5 * case.std
    spacing = case.std * (reach[1] - reach[0])
    grid = np.arange(case.low - margin, case.high + margin + spacing / 2, spacing)
    bptt = ux.BPTT(case.system, horizon=case.horizon)

    def look(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        estimate = bptt.estimate(theta, bptt.init(jax.random.key(0), theta), None)[1]
        return estimate.loss, estimate.grad

    loss, grad = jax.device_get(jax.jit(lambda g: jax.lax.map(look, g, batch_size=200))(jnp.asarray(grid)))
    weights = np.exp(-(reach**2) / 2) / np.exp(-(reach**2) / 2).sum()
    half = len(reach) // 2
    inside = slice(half, -half)
    smooth = np.convolve(loss, weights, "valid")
    slope = np.convolve(loss, weights * reach[::-1] / case.std, "valid")
    return {"theta": grid[inside], "loss": loss[inside], "exact": grad[inside], "smooth": smooth, "slope": slope}


def estimated(case: Case, thetas: np.ndarray, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return NRES's gradient at some parameters, the mean over windows and pairs, and its standard error."""
    nres = ux.NRES(case.system, std=case.std, window=case.window, horizon=case.horizon, pairs=1)
    keys = jax.random.split(jax.random.key(1), pairs)
    windows = case.horizon // case.window
    grads = np.stack([horizon_gradients(nres, theta, None, keys, windows)[:, 0] for theta in thetas])
    return grads.mean(1), grads.std(1) / np.sqrt(pairs)


def run(*, seeds: int, quick: bool) -> Result:
    """Scan the three systems; `seeds` pairs are drawn at each point."""
    points, stations, pairs = (400, 3, 100) if quick else (20_000, 25, seeds)
    curve: dict[str, Any] = {}
    claims, extra = [], {}
    for case in CASES:
        found = scanned(case, points)
        at = np.linspace(0, len(found["theta"]) - 1, stations).round().astype(int)
        mean, error = estimated(case, found["theta"][at], pairs)
        z = np.abs(mean - found["slope"][at]) / error
        growth = np.quantile(np.abs(found["exact"]), 0.9) / np.quantile(np.abs(found["slope"]), 0.9)
        claims.append(above(f"{case.name}: exact gradient / smoothed, both at the 90th percentile", 1e2, growth))
        claims.append(below(f"{case.name}: NRES against the convolution, largest |z|", 4, z.max()))
        every = slice(None, None, max(1, len(found["theta"]) // 40))
        curve |= {f"{case.name}, {part}": values[every] for part, values in found.items()}
        curve[f"{case.name}, NRES"] = mean
        extra[case.name] = (case, found, found["theta"][at], mean, error)
    return Result({"points": points, "NRES points": stations, "pairs": pairs}, claims, curve, extra)


def draw(result: Result, figure: Any) -> None:
    """Draw a row for each system: the loss, and its gradient."""
    rows = figure.subplots(len(CASES), 2)
    for (left, right), (case, found, at, mean, error) in zip(rows, result.extra.values(), strict=True):
        left.plot(found["theta"][::10], found["loss"][::10], color=COLOURS[5], linewidth=0.5, label="loss")
        left.plot(found["theta"], found["smooth"], color=COLOURS[7], linewidth=1.8, label=f"smoothed, std {case.std}")
        left.set_title(case.name, loc="left")
        left.set(xlabel=case.axis, ylabel="mean step loss")
        left.legend(frameon=False)
        right.plot(found["theta"][::10], found["exact"][::10], ",", color=COLOURS[3], alpha=0.8)
        right.plot([], [], "s", markersize=4, color=COLOURS[3], label="BPTT, the exact gradient")
        right.plot(found["theta"], found["slope"], color=COLOURS[7], linewidth=1.5, label="of the smoothed loss")
        right.errorbar(
            at, mean, 2 * error, fmt="o", color=COLOURS[0], markersize=4, label="NRES, with two standard errors"
        )
        small, large = (int(np.ceil(np.log10(np.abs(found[part]).max()))) for part in ("slope", "exact"))
        powers = ((small + large) // 2, large)
        right.set_yscale("symlog", linthresh=10.0**small)
        right.set_yticks([-(10.0**p) for p in reversed(powers)] + [0] + [10.0**p for p in powers])
        right.minorticks_off()
        right.axhline(0, color="grey", linewidth=0.5, zorder=0)
        right.set(xlabel=case.axis, ylabel="gradient")
    handles, labels = rows[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)


if __name__ == "__main__":
    main(__file__, __doc__, run, draw, seeds=1000, tolerance=1e-6, size=(11, 9))
