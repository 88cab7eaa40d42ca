"""Where an episode ends, nothing of its gradient is lost, and nothing of the next one is credited to it.

Reverse mode through the whole episode is the oracle. On losses that are quadratic in the parameters of every window the mean
over all signs that noise can have is the exact gradient (1e-9); where more is left to chance, the mean over many keys must
be within 4 standard errors of it.

| what ends                                        | how it is shown                                               |
|--------------------------------------------------|---------------------------------------------------------------|
| a horizon, in windows of one step up to all      | all signs, losses in every step or in the last only           |
| horizons that are staggered                      | all signs in every phase, over one horizon of windows         |
| episodes of unequal length, by the system itself | all signs, `done` in its state; by chance, each pair its own  |
| a window that is credited with its own noise only| loses what closed form says, and the library's rule loses none|
"""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.testing import deal

KEY = jax.random.key(6)
THETA = jnp.array([0.7, -0.4])
STEPS = 4
U = np.random.default_rng(1).normal(size=(12, 2))
EPISODE = U[:STEPS]


def begin(params):
    return 2 * params[::-1]


def move(params, s, u):
    """A linear step whose loss is quadratic in all parameters so far: half the difference of twins is then a derivative."""
    s = jnp.array([[0.9, 0.3], [-0.4, 0.8]]) @ s + u * params
    return s, (s.sum() - 1.0) ** 2 + s[0] * params[1]


def paid(weights):
    """The loss of each step is weighed by the time since the start, which the state keeps."""

    def step(params, state, u, key):
        t, s = state
        s, loss = move(params, s, u)
        return (t + 1, s), jnp.asarray(weights)[t % STEPS] * loss

    return ux.system(init=lambda key, params: (0, begin(params)), step=step)


PAID = {"in every step": paid([1.0, 1, 1, 1]), "in the last step": paid([0.0, 0, 0, 1])}
when_paid = pytest.mark.parametrize("system", PAID.values(), ids=PAID)


@jax.jit
def estimate(estimator, params, state, data):
    return estimator.estimate(params, state, data)


def bptt(system, data):
    """The gradient of the mean step loss over all of the data."""
    estimator = ux.BPTT(system, len(jax.tree.leaves(data)[0]))
    return np.asarray(estimate(estimator, THETA, estimator.init(KEY, THETA), data)[1].grad)


def forward(system, std, *, pairs, **time):
    return ux.ForwardGradient(system, directions=pairs, **time)


def forward_resample(system, std, *, pairs, **time):
    return ux.ForwardGradient(system, directions=pairs, resample=True, **time)


UNTRUNCATED = [ux.PES, ux.NRES, forward, forward_resample]
untruncated = pytest.mark.parametrize("make", UNTRUNCATED, ids=lambda make: make.__name__)


def all_signs(make, windows, size=2):
    """Every sign that a pair can draw in an episode, `[patterns, windows, size]`."""
    draws = windows if make in (ux.PES, forward_resample) else 1
    table = np.array(list(itertools.product([1.0, -1.0], repeat=draws * size))).reshape(-1, draws, size)
    return np.broadcast_to(table, (len(table), windows, size))


@jax.jit
def dealt(estimator, rows, params, state, data):
    """One window that draws `rows`, one for each pair or direction."""
    return replace(estimator, sampler=deal(rows)).estimate(params, state, data)


def over_all_signs(make, system, data, window, horizon, episodes=1, params=THETA):
    """The gradient of each window averaged over all signs, `[windows, ...]`."""
    count = len(data) // window
    signs = all_signs(make, count, jnp.size(params))
    estimator = make(system, 0.3, window=window, horizon=horizon, pairs=len(signs))
    state, grads = estimator.init(KEY, params), []
    for index in range(count * episodes):
        now = index % count
        state, got = dealt(estimator, signs[:, now], params, state, data[now * window : (now + 1) * window])
        grads.append(np.asarray(got.grad))
    return np.array(grads)


def exactly(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@when_paid
@pytest.mark.parametrize(
    ("make", "window"),
    [
        *((make, window) for make in UNTRUNCATED for window in (1, STEPS)),
        (ux.ES, STEPS),
        (lambda system, std, **time: ux.FullES(system, std, horizon=time["horizon"], pairs=time["pairs"]), STEPS),
    ],
)
def test_all_signs_average_to_the_gradient_of_the_episode(make, window, system):
    grads = over_all_signs(make, system, EPISODE, window, STEPS, episodes=3)
    for episode in np.split(grads, 3):
        exactly(episode.mean(0), bptt(system, EPISODE))


EXACT = {
    "RTRL-forward": lambda system, **time: ux.RTRL(system, mode="forward", **time),
    "RTRL-reverse": lambda system, **time: ux.RTRL(system, mode="reverse", **time),
    "RandomizedTBPTT": lambda system, **time: ux.RandomizedTBPTT(system, survival=1.0, x=U[0], **time),
    "TBPTT": lambda system, window, horizon: ux.TBPTT(system, window, horizon, overlap=horizon - window, x=U[0]),
}
exact = pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)


def windows_of(estimator, data, episodes=1):
    """The gradient of each window of an estimator that draws no noise, `[windows, 2]`."""
    state, grads = estimator.init(KEY, THETA), []
    for rows in np.split(np.concatenate([data] * episodes), episodes * len(data) // estimator.window):
        state, got = estimate(estimator, THETA, state, rows)
        grads.append(np.asarray(got.grad))
    return np.array(grads)


@exact
@pytest.mark.parametrize(
    ("window", "system"), [(1, PAID["in every step"]), (1, PAID["in the last step"]), (STEPS, PAID["in the last step"])]
)
def test_windows_of_an_exact_estimator_average_to_the_gradient_of_the_episode(make, window, system):
    grads = windows_of(make(system, window=window, horizon=STEPS), EPISODE, episodes=3)
    for episode in np.split(grads, 3):
        exactly(episode.mean(0), bptt(system, EPISODE))


@when_paid
@pytest.mark.parametrize("make", [ux.PES, ux.NRES], ids=lambda make: make.__name__)
@pytest.mark.parametrize("window", [1, 2])
def test_staggered_pairs_average_to_the_gradient_over_a_horizon_of_windows(make, window, system):
    """Each pair sees the end of one episode and the start of the next; the phases see the data from where they start."""
    count = STEPS // window
    signs = all_signs(make, count)
    pairs = count * len(signs)
    estimator = make(system, 0.3, window=window, horizon=STEPS, pairs=pairs, stagger=True)
    state, grads = estimator.init(KEY, THETA), []
    np.testing.assert_array_equal(state.left, -window * np.repeat(np.arange(count), len(signs)))
    for index in range(3 * count):
        rows = np.concatenate([signs[:, (index + phase) % count] for phase in range(count)])
        now = index % count * window
        state, got = dealt(estimator, rows, THETA, state, EPISODE[now : now + window])
        grads.append(np.asarray(got.grad))
    expected = np.mean([bptt(system, np.roll(EPISODE, phase * window, 0)) for phase in range(count)], axis=0)
    for horizon in np.split(np.array(grads), 3)[1:]:  # the first episodes of staggered pairs are cut short
        exactly(horizon.mean(0), expected)


LENGTHS = (2, 1, 3)


def ending(pays_at_end):
    """A system that ends its own episodes, after 2, 1 and 3 steps and so on: what follows `done` is a fresh state."""

    def step(params, state, u, key):
        done, t, episode, s = state
        s, loss = move(params, jnp.where(done, begin(params), s), u)
        t = jnp.where(done, 0, t) + 1
        ends = t == jnp.array(LENGTHS)[episode % len(LENGTHS)]
        return (ends, t, episode + ends, s), jnp.where(ends | (not pays_at_end), loss, 0.0)

    return ux.system(init=lambda key, params: (False, 0, 0, begin(params)), step=step)


ENDING = {"in every step": ending(False), "in the last step": ending(True)}
# Windows that end with an episode, and that have one end inside or two.
cut = pytest.mark.parametrize(
    ("window", "steps", "system"),
    [(1, 6, ENDING["in the last step"]), (2, 6, ENDING["in every step"]), (3, 12, ENDING["in the last step"])],
)


def test_the_reference_of_a_system_that_ends_its_episodes_is_the_sum_of_theirs():
    """Episodes that are run apart, one by one, by `jax.grad`: the oracle of the tests below."""

    def total(params):
        losses, at = [], 0
        for length in LENGTHS:
            s = begin(params)
            for u in U[at : at + length]:
                s, loss = move(params, s, u)
                losses.append(loss)
            at += length
        return sum(losses) / 6

    exactly(bptt(ENDING["in every step"], U[:6]), jax.grad(total)(THETA))


@untruncated
@cut
def test_episodes_of_unequal_length_average_to_their_gradient(make, window, steps, system):
    """An estimator that knows nothing of `done` goes on crediting noise of earlier episodes, which is right in the mean.

    Let z_a be the noise of window a. A loss after an end does not depend on noise before it, and the z are independent
    with mean 0: crediting this loss to z_a adds E[z_a] E[...] = 0. For PES that costs variance, which grows with all
    windows since the estimator's own reset; `test_noise_from_before_the_end_costs_variance` says how much. NRES
    perturbs all episodes with one noise and credits it, which is the gradient along that noise of all of them.
    """
    endless = over_all_signs(make, system, U[:steps], window, None)
    exactly(endless.mean(0), bptt(system, U[:steps]))
    if window == 1:
        horizons = over_all_signs(make, system, U[:steps], window, steps, episodes=2)
        exactly(horizons[steps:].mean(0), bptt(system, U[:steps]))


@exact
@cut
def test_an_exact_estimator_sees_that_a_state_is_fresh(make, window, steps, system):
    grads = windows_of(make(system, window=window, horizon=steps), U[:steps], 2)
    for horizon in np.split(grads, 2):
        exactly(horizon.mean(0), bptt(system, U[:steps]))


def adding_up(length):
    """s' = s + theta from 0, over again after `length` steps."""

    def step(params, state, x, key):
        t, s = state
        s = jnp.where(t == 0, 0.0, s) + params
        return ((t + 1) % length, s), s

    return ux.system(init=lambda key, params: (0, jnp.zeros(())), step=step)


@pytest.mark.parametrize(
    ("make", "horizon", "growth"),
    [(ux.PES, None, [0, 1, 2, 3, 4]), (ux.NRES, None, [0, 0, 0, 0, 0]), (ux.PES, 2, [0, 0, 0, 0, 0])],
)
def test_noise_from_before_the_end_costs_variance(make, horizon, growth):
    """Episodes of one window each: in window w one pair of PES is off by (z_0 + ... + z_{w-1}) z_w q, of variance w q^2.

    The window's gradient is q = 3 / 2. NRES has no such growth, nor has PES if it is told where episodes end.
    """
    estimator = make(adding_up(2), 0.3, window=2, horizon=horizon, pairs=1)
    grads = []
    for signs in itertools.product([1.0, -1.0], repeat=5):
        rows = [signs[0]] * 5 if make is ux.NRES else signs
        state, row = estimator.init(KEY, 0.5), []
        for sign in rows:
            state, got = dealt(estimator, jnp.array([[sign]]), 0.5, state, np.zeros(2))
            row.append(float(got.grad))
        grads.append(row)
    exactly(np.mean(grads, 0), 1.5)
    exactly(np.var(grads, 0), 1.5**2 * np.array(growth))


def blind_at(ends):
    """PES as in a well-known public code: windows in which an episode ends are credited with their own noise only."""

    class Blind(ux.PES):
        def _rule(self, pairs, noise, window):
            shift, total = ux.PES._rule(self, pairs, noise, window)
            own = self._draw_at(pairs, pairs.age, window)[1]
            return shift, jnp.where(jnp.isin(pairs.age, jnp.array(ends))[:, None], own, total)

    return ux.value(Blind)


@pytest.mark.parametrize(
    ("length", "window", "horizon", "ends", "lost"),
    [
        # Losses 1, ..., 6 times theta. Of 5 + 6 in the last window 1 + 2 are due to its own noise: 8 of 21 are lost.
        (6, 2, 6, [2], 8 / 21),
        # Windows of one step: of the last loss, 4 times theta, 1 is due to its own noise.
        (4, 1, 4, [3], 3 / 10),
        # Five steps in windows of two: the first episode ends in the middle of window 2, the second with window 4, and
        # 4 of 5 and 6 of 4 + 5 are lost, out of twice 15.
        (5, 2, 10, [2, 4], 10 / 30),
        # A single window has no earlier noise.
        (6, 6, 6, [0], 0.0),
    ],
)
def test_an_end_that_sees_its_own_noise_only_loses_a_third_of_the_gradient(length, window, horizon, ends, lost):
    system, data = adding_up(length), np.zeros(horizon)
    gradient = np.mean([t % length + 1 for t in range(horizon)])
    signs = all_signs(ux.PES, horizon // window, 1)
    for make, share in ((ux.PES, 1.0), (blind_at(ends), 1 - lost)):
        estimator = make(system, 0.3, window=window, horizon=horizon, pairs=len(signs))
        state, grads = estimator.init(KEY, 0.5), []
        for index in range(horizon // window):
            state, got = dealt(estimator, signs[:, index], 0.5, state, data[:window])
            grads.append(float(got.grad))
        exactly(np.mean(grads), share * gradient)


@functools.cache
def restarts(probability):
    """Each step ends the episode by a coin; without its key the data say when, `(u, done)`."""

    def step(params, state, x, key):
        done, s = state
        u, told = x if isinstance(x, tuple) else (x, jax.random.bernoulli(key, probability))
        s, loss = move(params, jnp.where(done, begin(params), s), u)
        return (told, s), loss

    return ux.system(init=lambda key, params: (False, begin(params)), step=step)


@functools.cache
def stands_still(lengths):
    """Episodes of a length that `init` draws; afterwards nothing moves and nothing costs."""

    def init(key, params):
        return 0, jax.random.choice(key, jnp.array(lengths)), begin(params)

    def step(params, state, u, key):
        t, length, s = state
        moved, loss = move(params, s, u)
        runs = t < length
        return (t + 1, length, jnp.where(runs, moved, s)), jnp.where(runs, loss, 0.0)

    return ux.system(init=init, step=step)


@functools.cache
def mean_over_coins(probability):
    """The gradient by reverse mode for every sequence of coins, by their probabilities."""
    total = 0.0
    for coins in itertools.product([False, True], repeat=STEPS - 1):
        share = np.prod([probability if coin else 1 - probability for coin in coins])
        total += share * bptt(restarts(probability), (SAME, np.array([*coins, False])))
    return total


@functools.cache
def mean_over_lengths(lengths):
    return np.mean([bptt(stands_still((length,)), SAME) for length in lengths], axis=0)


SAME = np.repeat(U[:1], STEPS, 0)  # the same in each step, so that staggered episodes are all alike
RANDOM = {
    "a coin in each step": (restarts(0.4), functools.partial(mean_over_coins, 0.4)),
    "a length from init": (stands_still((1, 2, 4)), functools.partial(mean_over_lengths, (1, 2, 4))),
}
BY_CHANCE = {
    "PES": lambda system, **time: ux.PES(system, 0.3, pairs=8, **time),
    "PES-staggered": lambda system, **time: ux.PES(system, 0.3, pairs=8, stagger=True, **time),
    "NRES": lambda system, **time: ux.NRES(system, 0.3, pairs=8, **time),
    "NRES-staggered": lambda system, **time: ux.NRES(system, 0.3, pairs=8, stagger=True, **time),
    "FullES": lambda system, window, horizon: ux.FullES(system, 0.3, horizon=horizon, pairs=8),
    "ForwardGradient": lambda system, **time: ux.ForwardGradient(system, directions=8, **time),
    "RTRL": lambda system, **time: ux.RTRL(system, **time),
    "UORO": lambda system, **time: ux.UORO(system, directions=8, **time),
    "RandomizedTBPTT": lambda system, **time: ux.RandomizedTBPTT(system, x=U[0], **time),
}


def within_four_errors(estimator, data, expected):
    """The mean over keys of the second horizon's mean gradient; the standard error is at most 3 % of the gradient."""
    count = len(data) // estimator.window
    rows = jnp.asarray(np.concatenate([data, data])).reshape(2 * count, estimator.window, -1)

    def second_horizon(key):
        def run(state, rows):
            state, got = estimator.estimate(THETA, state, rows)
            return state, got.grad

        return jax.lax.scan(run, estimator.init(key, THETA), rows)[1][count:].mean(0)

    grads = np.asarray(jax.jit(jax.vmap(second_horizon))(jax.random.split(KEY, 2**14)))
    error = grads.std(0) / np.sqrt(len(grads))
    assert (error < 0.03 * np.linalg.norm(expected)).all(), f"too few keys to tell: {error} of {expected}"
    z = (grads.mean(0) - expected) / error
    assert (np.abs(z) < 4).all(), f"off by {z} standard errors, mean {grads.mean(0)} for {expected}"


@pytest.mark.parametrize("ends", RANDOM)
@pytest.mark.parametrize("name", BY_CHANCE)
def test_pairs_whose_episodes_end_at_different_times_average_to_the_gradient(name, ends):
    """Each pair has episodes of its own length, the same for both twins; |z| < 4."""
    system, expected = RANDOM[ends]
    within_four_errors(BY_CHANCE[name](system, window=1, horizon=STEPS), SAME, expected())


@when_paid
@pytest.mark.parametrize("name", ["UORO", "RandomizedTBPTT"])
def test_what_is_exact_in_the_mean_only_is_so_where_episodes_end(name, system):
    """The estimators whose signs or lengths cannot be enumerated here; |z| < 4."""
    within_four_errors(BY_CHANCE[name](system, window=1, horizon=STEPS), EPISODE, bptt(system, EPISODE))


def test_a_gradient_that_stops_at_a_window_is_caught_by_chance():
    """The test above has the power that it needs: truncated backpropagation is many standard errors off."""
    system, expected = RANDOM["a coin in each step"]
    with pytest.raises(AssertionError, match="off by"):
        within_four_errors(ux.TBPTT(system, window=1, horizon=STEPS), SAME, expected())
