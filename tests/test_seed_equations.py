"""The seed's equations (1) to (23) on optimizers, as recurrences written out.

Where the seed slips, these tests take what its derivation means:
(5)        the sum runs over s = 1 .. t, and a parameter whose gradients were all 0 would be 0 / 0.
(8)        at w = 0 it is 0 / 0; RMSProp adds 1e-8 to w under the root, Adam 1e-8 to the root.
(10)-(12)  the gradients must be squared.
(13)       v of (14) already points downhill, so the sign before eta must be +; `v_i` must be `v_t`.
(16), (20) the gradient under the sum must be that of step s, not t.
(17), (21) equality, not approximation, if the gradients of all steps have the same mean; t >> 1 is not needed.
(23)       the mean of a quotient is the quotient of means only as rho and alpha tend to 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux

STEPS = 50
GRADIENTS = np.random.default_rng(1).standard_normal((STEPS, 3, 2)) * np.array([1e-2, 1.0])
ETA, ALPHA, RHO = 0.3, 0.9, 0.99


def path(optimizer, gradients=GRADIENTS):
    """The parameters after each update, from 0, under gradients that are given."""

    def step(carry, g):
        theta, state = carry
        update, state = optimizer.update(g, state, theta)
        theta = optax.apply_updates(theta, update)
        return (theta, state), theta

    start = jnp.zeros(gradients.shape[1:])
    return np.asarray(
        jax.jit(lambda g: jax.lax.scan(step, (start, optimizer.init(start)), g)[1])(jnp.asarray(gradients))
    )


def written_out(rule, gradients=GRADIENTS):
    """The same for the seed's: `rule` is a generator that takes a gradient and yields Delta theta."""
    rule = rule()
    next(rule)
    return np.cumsum([rule.send(g) for g in gradients], axis=0)


def momentum():
    v, change = 0.0, None
    while True:
        g = yield change
        v = -(1 - ALPHA) * g + ALPHA * v  # (2)
        change = ETA * v  # (1)


def adagrad_by_sums():
    seen, change = [], None
    while True:
        g = yield change
        seen.append(g)
        change = -ETA / np.sqrt(sum(g**2 for g in seen)) * g  # (5)


def adagrad():
    w, change = 0.0, None
    while True:
        g = yield change
        w = w + g**2  # (7)
        change = -ETA / np.sqrt(w) * g  # (6)


def rmsprop(rho=RHO, eps=0.0):
    w, change = 0.0, None
    while True:
        g = yield change
        w = rho * w + (1 - rho) * g**2  # (9)
        change = -ETA / np.sqrt(w + eps) * g  # (8)


def adam(rho=0.999, eps=1e-8):
    v, w, t, change = 0.0, 0.0, 0, None
    while True:
        g = yield change
        t += 1
        v = -(1 - ALPHA) * g + ALPHA * v  # (14)
        w = rho * w + (1 - rho) * g**2  # (15)
        change = ETA / (np.sqrt(w / (1 - rho**t)) + eps) * v / (1 - ALPHA**t)  # (13)


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [
        (ux.momentum(ETA, ALPHA), momentum),
        (ux.optimizer("momentum", ETA), momentum),
        (ux.adagrad_plain(ETA), adagrad),
        (ux.adagrad_plain(ETA), adagrad_by_sums),
        (ux.optimizer("adagrad-plain", ETA), adagrad),
        (optax.rmsprop(ETA, decay=RHO, eps=0.0), rmsprop),
        (ux.optimizer("rmsprop", ETA), lambda: rmsprop(0.9, 1e-8)),
        (optax.adam(ETA, ALPHA, 0.999, eps=0.0), lambda: adam(eps=0.0)),
        (ux.optimizer("adam", ETA), adam),
    ],
)
def test_an_update_is_the_literal_recurrence(optimizer, rule):
    np.testing.assert_allclose(path(optimizer), written_out(rule), rtol=1e-12, atol=1e-12)


def test_heavy_ball_makes_the_same_steps_at_a_tenth_of_the_rate():
    np.testing.assert_allclose(path(ux.optimizer("heavy-ball")), path(ux.optimizer("momentum")), rtol=1e-12, atol=1e-12)
    assert np.abs(path(ux.optimizer("nesterov")) - path(ux.optimizer("heavy-ball"))).max() > 0.01


def test_a_parameter_without_gradient_stays_where_the_formula_says_nought_by_nought():
    gradients = np.stack([np.array([0.0, 1.0]), np.array([0.0, -2.0]), np.array([3.0, 0.0])])
    got = path(ux.adagrad_plain(0.5), gradients)
    np.testing.assert_allclose(got, [[0, -0.5], [0, -0.5 + 1 / np.sqrt(5)], [-0.5, -0.5 + 1 / np.sqrt(5)]], rtol=1e-12)


# (16) and (20): the moving averages are the states that optax keeps.


def states(optimizer, field, gradients=GRADIENTS):
    def step(state, g):
        _, state = optimizer.update(g, state, g)
        return state, optax.tree.get(state, field)

    start = optimizer.init(jnp.zeros(gradients.shape[1:]))
    return np.asarray(jax.jit(lambda g: jax.lax.scan(step, start, g)[1])(jnp.asarray(gradients)))


def test_the_general_terms_are_weighted_sums_of_all_gradients():
    t, s = np.arange(1, STEPS + 1)[:, None], np.arange(1, STEPS + 1)[None]
    weights = {decay: np.where(s <= t, (1 - decay) * decay ** (t - s), 0.0) for decay in (ALPHA, RHO)}
    w = np.tensordot(weights[RHO], GRADIENTS**2, 1)  # (16)
    v = -np.tensordot(weights[ALPHA], GRADIENTS, 1)  # (20)
    adam = optax.adam(ETA, ALPHA, RHO)
    np.testing.assert_allclose(states(optax.rmsprop(ETA, decay=RHO), "nu"), w, rtol=1e-12)
    np.testing.assert_allclose(states(adam, "nu"), w, rtol=1e-12)
    np.testing.assert_allclose(-states(adam, "mu"), v, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(-states(ux.momentum(ETA, ALPHA), "ema"), v, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        w[2], (1 - RHO) * (RHO**2 * GRADIENTS[0] ** 2 + RHO * GRADIENTS[1] ** 2 + GRADIENTS[2] ** 2)
    )


def test_after_a_hundred_flat_steps_rmsprop_has_forgotten_all_but_0_366():
    gradients = np.zeros((101, 1))
    gradients[0] = 5.0
    w = states(optax.rmsprop(ETA, decay=0.99), "nu", gradients)
    assert w[100, 0] / w[0, 0] == pytest.approx(0.99**100, rel=1e-12) == pytest.approx(0.366, abs=1e-3)


# (17) to (23): gradients are independent draws with mean MEAN and standard deviation STD.

MEAN, STD, RUNS = 0.7, 1.3, 20_000
Z = 4.0


def draws(steps, runs=RUNS):
    return np.random.default_rng(2).normal(MEAN, STD, (steps, runs))


def assert_mean_is(samples, want):
    """Each row's mean is `want` within z = 4 standard errors (a false alarm in 16,000 rows)."""
    error = samples.std(1, ddof=1) / np.sqrt(samples.shape[1])
    assert (np.abs(samples.mean(1) - want) < Z * error).all()


def test_the_means_of_the_moving_averages_lack_one_minus_rho_to_the_t_and_dividing_mends_it():
    gradients, times = draws(30), np.array([1, 3, 30])
    lack = 1 - np.array([RHO, ALPHA])[:, None] ** times
    w = states(optax.adam(ETA, ALPHA, RHO), "nu", gradients)[times - 1]
    v = -states(optax.adam(ETA, ALPHA, RHO), "mu", gradients)[times - 1]
    square = MEAN**2 + STD**2
    assert_mean_is(w, square * lack[0])  # (17) to (19)
    assert_mean_is(w / lack[0][:, None], square)
    assert_mean_is(v, -MEAN * lack[1])  # (21)
    assert_mean_is(v / lack[1][:, None], -MEAN)  # (22)
    assert (np.abs(w.mean(1) - square) > 10 * w.std(1) / np.sqrt(RUNS)).all()  # without it they are far off


def test_adams_mean_step_tends_to_the_mean_gradient_by_its_root_mean_square():
    want = -ETA * MEAN / np.sqrt(MEAN**2 + STD**2)  # (23)
    off = []
    for rho, steps in ((0.5, 20), (0.9, 100), (0.999, 4000)):
        gradients = draws(steps, 500)
        moves = np.diff(path(optax.adam(ETA, 0.9, rho, eps=0.0), gradients), axis=0)[-steps // 4 :]
        off.append(abs(moves.mean() / want - 1))
    assert off[0] > 0.1  # at a short memory the quotient's mean is another
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.01


# (3) and (4): m dV/dt = -grad U - gamma m V, in steps of dt, with P = m V.


@pytest.mark.parametrize(("mass", "friction", "dt"), [(1.0, 2.0, 0.05), (3.0, 0.4, 0.5), (0.2, 9.0, 0.1)])
def test_momentum_is_newtons_equation_with_friction(mass, friction, dt):
    """alpha = 1 - gamma dt and lr = dt / (gamma m); the velocity of the optimizer is v = gamma P."""

    def slope(x):
        return np.array([x[0] ** 3, np.sin(x[1])])

    x, p, body = np.array([1.0, 2.0]), np.zeros(2), []
    for _ in range(STEPS):
        p = (1 - friction * dt) * p - dt * slope(x)  # (4) times m
        x = x + dt * p / mass  # (3)
        body.append((x, friction * p))

    optimizer = ux.momentum(lr=dt / (friction * mass), alpha=1 - friction * dt)
    theta = jnp.array([1.0, 2.0])
    state = optimizer.init(theta)
    for want, velocity in body:
        update, state = optimizer.update(jnp.asarray(slope(np.asarray(theta))), state)
        theta = theta + update
        np.testing.assert_allclose(theta, want, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(-optax.tree.get(state, "ema"), velocity, rtol=1e-12, atol=1e-12)
