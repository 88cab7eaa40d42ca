"""What `unfold_questions.py` trains, its error in closed form, and what lambda can be at no loss."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import unrollax as ux
from unrollax.problems import Problem, ridge
from unrollax.solvers import gradient_descent
from unrollax.theory import best_periodic, chebyshev_steps, quadratic, schedule_error

LAM, DEPTH, BATCH, RATE = 3.0, 50, 25, 0.01
EDGES = tuple((np.sqrt(100) + sign * np.sqrt(50)) ** 2 + LAM for sign in (1, -1))  # of a large random A's spectrum
ONE = quadratic(np.random.RandomState(0).randn(100, 50), LAM)


class Trained(NamedTuple):
    """What a training found: the steps and the lambdas of all iterations, `[seeds, horizon]`."""

    steps: np.ndarray
    lam: np.ndarray


def fresh(key: jax.Array) -> Problem:
    """Draw a problem with an A of its own."""
    one, two = jax.random.split(key)
    a, y = jax.random.normal(one, (100, 50)), jax.random.normal(two, (100,))
    return Problem(a, y, jnp.linalg.solve(a.T @ a + LAM * jnp.eye(50), a.T @ y), lam=LAM)


@functools.cache  # equal nets and optimizers compile once
def net_of(horizon: int, new: bool) -> ux.systems.Unfold:
    """Return gradient descent on the one A, or on a new one for each problem."""
    return ux.unfold(gradient_descent(), fresh if new else ridge(lam=LAM), horizon=horizon, batch=BATCH)


@functools.cache
def optimizer(updates: int, names: tuple[str, ...]) -> optax.GradientTransformation:
    """Return Adam for the steps and another, three times as fast, for lambda."""
    rates = {"step": RATE, "lam": 3 * RATE}
    adams = {name: optax.adam(optax.cosine_decay_schedule(rates[name], updates), b2=0.9) for name in names}
    return optax.partition(adams, {name: name for name in names})


def train(horizon: int, entries: int, runs: int, updates: int, *, lam: Any = None, new: bool = False) -> Trained:
    """Train steps, from Chebyshev's, and, if given, the schedule of lambda; once for each of `runs` keys."""
    make, found = ux.per_step if entries == horizon else ux.periodic, []
    bounds = EDGES if new else (ONE.L, ONE.mu)
    begin = jnp.asarray(chebyshev(entries, *bounds))
    params = {"step": make(begin, entries, transform="log")} | ({} if lam is None else {"lam": lam})
    for seed in range(runs):
        how, plan = optimizer(updates, tuple(params)), ux.one_shot(horizon, updates)
        run = ux.fit_unfold(net_of(horizon, new), params, plan, how, key=jax.random.key(seed))
        numbers = ux.values_of(run.params, horizon)
        found.append((numbers["step"], numbers.get("lam", jnp.full(horizon, LAM))))
    return Trained(*(np.stack(part) for part in zip(*found, strict=True)))


def error(steps: Any, lam: Any) -> jax.Array:
    """Return the error at the end of steps and lambdas: x* - x stays a multiple r of x*, along each eigenvector."""
    h, w = jnp.asarray(ONE.h), jnp.asarray(ONE.w)

    def body(r: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        eta, one = now
        return (1 - eta * (h - LAM + one)) * r + eta * (one - LAM), None

    r = jax.lax.scan(body, jnp.ones(len(h)), (jnp.asarray(steps), jnp.asarray(lam)))[0]
    return (w * r**2).sum()


def chebyshev(entries: int, L: float, mu: float) -> np.ndarray:
    """Return Chebyshev's steps in ascending order: where a period is cut off, it is a little better than the stable one."""
    return np.asarray(chebyshev_steps(entries, L, mu, order="ascending"))


def after(steps: np.ndarray, iterations: int, spectrum: Any = ONE) -> float:
    """Return the error when steps are repeated, if need be, for so many iterations."""
    return float(schedule_error(np.resize(steps, iterations), spectrum.h, spectrum.w)[-1])


def steps_for(lam: float, best: np.ndarray) -> np.ndarray | None:
    """Return the steps that with another lambda do what `best` do with the true one; `None` if they aren't real.

    After N iterations x = q(A^T A) A^T y with 1 - (g + lam) q(g) = prod_k (1 - eta_k (g + lam)): for a given q the
    reciprocals of the eta are its roots in s = g + lam.
    """
    product = np.polynomial.Polynomial([1.0])
    for eta in best:
        product *= np.polynomial.Polynomial([1.0, -eta * ONE.L])
    q = -np.polynomial.Polynomial(product.coef[1:])
    shifted = q(np.polynomial.Polynomial([(LAM - lam) / ONE.L, 1.0]))
    roots = (1 - np.polynomial.Polynomial([0.0, 1.0]) * shifted).roots()
    real = np.all(np.abs(roots.imag) < 1e-5 * np.abs(roots)) and np.all(roots.real > 0)
    return np.sort(1 / (roots.real * ONE.L)) if real else None


def edge(best: np.ndarray, far: float) -> float:
    """Return how far lambda can go from the true one towards `far` at no loss."""
    near = LAM
    if steps_for(far, best) is not None:
        return far
    for _ in range(40):
        middle = (near + far) / 2
        near, far = (near, middle) if steps_for(middle, best) is None else (middle, far)
    return near


def best_lambda(entries: int) -> tuple[float, float]:
    """Return the least error at 50 with period 4 and `entries` lambdas that L-BFGS finds from the true one, and the last."""

    def loss(u: jax.Array) -> jax.Array:
        lam = jnp.broadcast_to(LAM + u[4:] / 10, (DEPTH,))
        return jnp.log(error(jnp.tile(jnp.exp(u[:4]), 13)[:DEPTH], lam))

    search, slope = optax.lbfgs(memory_size=60), optax.value_and_grad_from_state(loss)

    def body(_: int, now: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        u, state = now
        level, grad = slope(u, state=state)
        move, state = search.update(grad, state, u, value=level, grad=grad, value_fn=loss)
        return u + move, state

    u = jnp.concatenate([jnp.log(best_periodic(ONE, 4, DEPTH)), jnp.zeros(entries)])
    u, _ = jax.lax.fori_loop(0, 300, body, (u, search.init(u)))
    return float(jnp.exp(loss(u))), LAM + float(u[-1]) / 10


def implicit(lam: float, updates: int) -> float:
    """Return lambda as `Implicit` recovers it; the step is given, as the fixed point doesn't depend on it."""
    descent = gradient_descent()
    step = lambda theta, x, problem: descent.step({"step": 1.5 / ONE.L, **theta}, x, problem)
    judge = lambda x, problem: jnp.mean((x - problem.x) ** 2)
    net = ux.systems.Unfold(step, descent.start, judge, ridge(lam=LAM), DEPTH, BATCH, loss="anytime", scale="raw")
    params = {"lam": ux.shared(jnp.asarray(lam), transform="log")}
    rate = optax.cosine_decay_schedule(0.1, updates)
    run = ux.fit(ux.Implicit(net, window=DEPTH), optax.adam(rate), params, None, key=jax.random.key(0), steps=updates)
    return float(run.params["lam"].values)
