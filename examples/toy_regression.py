"""Toy regression: an inner training run of 100 steps, tuned through two numbers, on which the exact gradient fails.

Gradient descent on f(x) = sqrt(x0^2 + 5) - sqrt 5 + sin^2(x1) exp(-5 x0^2) + 0.25 |x1 - 100| starts from (1, 1) and makes
T = 100 steps with the learning rate exp(theta0) (T - t) / T + exp(theta1) t / T. What is tuned is the sum of f after each
step. Its landscape is wild where learning rates are large, and has ridges that are high and narrow; the best schedule
starts large and ends small.

Expected: from (-4, -4), backpropagation, truncated or not, sticks in the ripples; truncated ES heads for what helps its
window; PES, NRES and a full ES see a smooth landscape whole, and reach the basin of the grid's optimum.

    .venv/bin/python examples/toy_regression.py [--quick] [--seeds N] [--json] [--plot FILE] [--golden]

References: Vicol, Metz and Sohl-Dickstein, ICML 2021.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import COLOURS, Claim, Result, above, below, between, main, trained

import unrollax as ux

T, WINDOW, PAIRS, UPDATES = 100, 10, 50, 20_000
START, GRID = (-4.0, -4.0), np.linspace(-8, 8, 161)
ADAM = optax.adam(1e-2, b1=0.99, b2=0.999)


def f(x: jax.Array) -> jax.Array:
    """Return the inner loss."""
    return (
        jnp.sqrt(x[0] ** 2 + 5)
        - jnp.sqrt(5.0)
        + jnp.sin(x[1]) ** 2 * jnp.exp(-5 * x[0] ** 2)
        + 0.25 * jnp.abs(x[1] - 100)
    )


def init(key: jax.Array, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x = (1, 1) at t = 0."""
    return jnp.ones(2, theta.dtype), jnp.zeros((), theta.dtype)


def step(theta: jax.Array, state: Any, x: None, key: jax.Array) -> tuple[Any, jax.Array]:
    """Make one step of gradient descent; the loss is f after it."""
    point, t = state
    rate = jnp.exp(theta[0]) * (T - t) / T + jnp.exp(theta[1]) * t / T
    point = point - rate * jax.grad(f)(point)
    return (point, t + 1), f(point)


DESCENT = ux.system(init=init, step=step)


@jax.jit
def total(theta: jax.Array) -> jax.Array:
    """Return the sum of f over the inner run."""
    return ux.unroll(DESCENT, theta, init(None, theta), None, jax.random.key(0), steps=T)[1].sum()


def landscape(grid: np.ndarray) -> np.ndarray:
    """Return the total on a grid, `[theta0, theta1]`."""
    thetas = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(total)))(thetas))


class Row(NamedTuple):
    """One line of the experiment."""

    name: str
    estimator: Any
    limit: float
    fails: bool


def rows() -> list[Row]:
    """Return the estimators with what their totals are to be below, or above where they are to fail."""
    common = {"horizon": T, "pairs": PAIRS}
    return [
        Row("TBPTT", ux.TBPTT(DESCENT, window=WINDOW, horizon=T), 2400, True),
        Row("BPTT", ux.BPTT(DESCENT, horizon=T), 2400, True),
        Row("ES", ux.ES(DESCENT, std=1.0, window=WINDOW, **common), 1200, True),
        Row("PES", ux.PES(DESCENT, std=0.3, window=WINDOW, **common), 580, False),
        Row("NRES", ux.NRES(DESCENT, std=0.3, window=WINDOW, **common), 580, False),
        Row("FullES", ux.FullES(DESCENT, std=0.3, **common), 580, False),
    ]


def claim(row: Row, ends: np.ndarray) -> Claim:
    """Compare the worst seed with the limit: the lowest where the estimator is to fail, else the highest."""
    if row.fails:
        return above(f"{row.name}: lowest total", row.limit, ends.min())
    return below(f"{row.name}: highest total", row.limit, ends.max())


def run(*, seeds: int, quick: bool) -> Result:
    """Train with every estimator from the same start, and look at the landscape."""
    stride = 1 if quick else 4
    updates, every, count = (20, 10, 2) if quick else (UPDATES, 100, seeds)
    values = landscape(GRID)
    best = np.unravel_index(values.argmin(), values.shape)
    claims = [
        between("total at the start", 2487.5, 2488.5, total(jnp.array(START))),
        between("lowest total on the grid", 558.0, 558.2, values.min()),
        between("its theta0", 2.79, 2.81, GRID[best[0]]),
        between("its theta1", -3.71, -3.69, GRID[best[1]]),
    ]
    curve: dict[str, Any] = {"update": list(range(0, updates + 1, every * stride))}
    paths = {}
    totals = jax.jit(jax.vmap(jax.vmap(total)))
    for row in rows():
        thetas, _ = trained(
            ux.Training(row.estimator, ADAM), jnp.array(START), None, seeds=range(count), updates=updates, every=every
        )
        losses = np.asarray(totals(thetas))
        paths[row.name], curve[row.name] = thetas, losses[:, ::stride]
        claims.append(claim(row, losses[:, -1]))
    config = {"updates": updates, "seeds": count, "window": WINDOW, "horizon": T, "pairs": PAIRS, "start": START}
    return Result(config, claims, curve, (values, paths))


def draw(result: Result, figure: Any) -> None:
    """Draw the landscape with the path of each estimator's first seed, and the totals beside it."""
    from matplotlib.colors import LogNorm
    from matplotlib.patheffects import withStroke

    values, paths = result.extra
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    shown = np.where(np.isfinite(values), values, np.inf)
    image = left.pcolormesh(
        GRID, GRID, shown.T, norm=LogNorm(values.min(), 1e4), cmap="viridis", shading="nearest", rasterized=True
    )
    figure.colorbar(image, ax=left, extend="max", label="sum of f over 100 inner steps")
    outline = [withStroke(linewidth=3.5, foreground="white")]
    for (name, thetas), colour, dash in zip(
        paths.items(), COLOURS, ("-", (0, (2, 2)), "-", "-", "-", "-"), strict=False
    ):
        left.plot(*thetas[0].T, color=colour, linewidth=1.6, path_effects=outline)
        left.plot(*thetas[0, -1], "o", color=colour, markersize=6, markeredgecolor="white", zorder=5)
        for seed, losses in enumerate(result.curve[name]):
            label = None if seed else name
            right.plot(result.curve["update"], losses, color=colour, linestyle=dash, linewidth=1.4, label=label)
    left.plot(*START, "X", color="white", markersize=9, markeredgecolor="black", label="start")
    left.plot(2.8, -3.7, "*", color="white", markersize=14, markeredgecolor="black", label="grid optimum", zorder=6)
    left.set(
        xlabel="theta0, log of the first learning rate", ylabel="theta1, log of the last", xlim=(-6, 6), ylim=(-6, 6)
    )
    left.set_title("Paths of the first seed", loc="left")
    left.legend(loc="upper left", framealpha=1)
    right.set(xlabel="update", ylabel="total without noise", yscale="log")
    right.set_title("Every seed", loc="left")
    right.set_xticks([0, 5000, 10_000, 15_000, 20_000], ["0", "5,000", "10,000", "15,000", "20,000"])
    right.set_yticks([600, 1000, 2000], ["600", "1,000", "2,000"])
    right.minorticks_off()
    right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    main(__file__, __doc__, run, draw, seeds=5, tolerance=1e-6, size=(11, 4.8))
