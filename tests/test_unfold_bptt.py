"""`UnfoldBPTT` against literal loops, and one program for all depths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax import InvalidArgument
from unrollax._dynamic import loop
from unrollax._plans import Stage
from unrollax._schedules import jitter, knots, per_step, periodic, resolve, shared
from unrollax.estimators import UnfoldBPTT
from unrollax.systems import Unfold

KEY = jax.random.key(2)
LONGEST, BATCH, SIZE = 6, 4, 3
H = np.array([1.0, 3.0, 8.0])
W = jax.random.normal(jax.random.key(1), (SIZE, SIZE)) / 5
PARAMS = {
    "eta": per_step(jnp.array([0.1, 0.3, 0.2, 0.25, 0.15, 0.12]), LONGEST, "log"),
    "beta": periodic(jnp.array([0.3, 0.5]), 2, (0.0, 1.0)),
    "lam": shared(0.4, "softplus"),
    "gamma": knots(jnp.array([0.1, -0.2]), [0, 4]),
    "w": W,
}


def real(theta, x, problem):
    return x - theta["eta"] * H * (x - problem) + theta["gamma"] * jnp.tanh(theta["w"] @ x) / (1 + theta["lam"])


def tree(theta, x, problem):
    velocity = theta["beta"] * x["velocity"] - theta["eta"] * H * (x["x"] - problem) + 0.01 * theta["lam"] * x["count"]
    return {
        "x": x["x"] + velocity + theta["gamma"] * theta["w"] @ x["x"],
        "velocity": velocity,
        "count": x["count"] + 1,
    }


def turned(theta, x, problem):
    turn = jnp.exp(1j * theta["gamma"])
    return turn * x - theta["eta"] * H * (x - problem) - theta["lam"] * 0.1 * x * jnp.abs(x) + 0.1j * theta["w"] @ x


def draw(key):
    return 1 + jax.random.normal(key, (SIZE,))


def far(x, problem):
    return jnp.sum(jnp.abs(x - problem) ** 2)


def weight(t, horizon):
    return (t + 1.0) / horizon


KINDS = {
    "real": Unfold(real, lambda problem: jnp.zeros(SIZE), far, draw, LONGEST, BATCH),
    "complex": Unfold(
        turned,
        lambda problem: 0 * problem,
        far,
        lambda key: draw(key) + 1j * draw(jax.random.fold_in(key, 1)),
        LONGEST,
        BATCH,
    ),
    "tree": Unfold(
        tree,
        lambda problem: {"x": problem / 9, "velocity": jnp.zeros(SIZE), "count": 0},
        lambda x, problem: far(x["x"], problem),
        draw,
        LONGEST,
        BATCH,
    ),
}
CASES = [
    ("real", "final", "log", "full"),
    ("real", weight, "raw", "states"),
    ("complex", "anytime", "log", "full"),
    ("complex", "final", "raw", "states"),
    ("tree", "final", "raw", "full"),
    ("tree", "anytime", "log", "states"),
]


def close(a, b, rtol=1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-14 * max(1, float(np.abs(y).max())))


def literal(net, problems, depth):
    """Return the mean step loss as a loop in Python, and its gradient."""

    def mean_loss(params):
        def level(xs):
            mean = jax.vmap(net.error)(xs, problems).mean()
            return jnp.log(mean) if net.scale == "log" else mean

        xs = jax.vmap(net.start)(problems)
        levels = [level(xs)]
        for t in range(depth):
            theta = resolve(params, t)
            xs = jax.vmap(lambda x, problem, theta=theta: net.iteration(theta, x, problem))(xs, problems)
            levels.append(level(xs))
        if net.loss == "final":
            return levels[-1] - levels[0]
        factors = [1.0 if net.loss == "anytime" else weight(t, depth) for t in range(1, depth + 1)]
        return sum(f * each for f, each in zip(factors, levels[1:], strict=True)) / depth

    return jax.jit(jax.value_and_grad(mean_loss))


@pytest.mark.parametrize(("kind", "loss", "scale", "memory"), CASES)
def test_the_gradient_is_that_of_a_python_loop(kind, loss, scale, memory):
    net = dataclasses.replace(KINDS[kind], loss=loss, scale=scale)
    estimator = UnfoldBPTT(net, memory=memory)
    state = estimator.init(KEY, PARAMS)
    estimate = jax.jit(estimator.estimate)(PARAMS, state, Stage.at(3))[1]
    problems = net.init(jax.random.split(state, 3)[1], PARAMS).own
    close((estimate.loss, estimate.grad), literal(net, problems, 3)(PARAMS))


def test_the_gradient_is_that_of_bptt_on_the_same_draws():
    net = dataclasses.replace(KINDS["tree"], loss="anytime")
    estimator = UnfoldBPTT(net)
    after, estimate = jax.jit(estimator.estimate)(PARAMS, estimator.init(KEY, PARAMS), Stage.at(4))
    whole = ux.BPTT(dataclasses.replace(net, horizon=4), horizon=4)
    same, expected = jax.jit(whole.estimate)(PARAMS, whole.init(KEY, PARAMS), None)
    close((estimate.loss, estimate.grad), (expected.loss, expected.grad))
    assert (jax.random.key_data(same.key) == jax.random.key_data(after)).all()


def test_one_program_serves_every_depth_on_problems_of_its_own():
    traces = []

    def counted(theta, x, problem):
        traces.append(1)
        return real(theta, x, problem)

    net = dataclasses.replace(KINDS["real"], iteration=counted)
    run = jax.jit(UnfoldBPTT(net).estimate)
    run(PARAMS, KEY, Stage.at(1))
    once, state, levels = len(traces), KEY, set()
    for depth in (1, 4, LONGEST, 4):
        errors = KINDS["real"].errors(PARAMS, jax.random.split(state, 3)[1])
        state, estimate = run(PARAMS, state, Stage.at(depth))
        np.testing.assert_allclose(estimate.info.level, np.log(errors[depth]), rtol=1e-12)
        np.testing.assert_allclose(estimate.loss, np.log(errors[depth] / errors[0]), rtol=1e-12)
        assert int(estimate.info.depth) == depth
        assert (estimate.grad["eta"].raw != 0).tolist() == [t < depth for t in range(LONGEST)]
        levels.add(float(estimate.info.level))
    assert len(levels) == 4
    assert run._cache_size() == 1
    assert len(traces) == once


@pytest.mark.parametrize("memory", ["full", "states"])
def test_a_call_makes_the_passes_that_its_memory_promises(memory):
    """Counted as they are run: a loop whose length is data shows none of it in the program. What nothing reads is not run."""
    passes = []

    def tell(kind, x):
        return jax.pure_callback(lambda x: (passes.append(kind), x)[1], x, x, vmap_method="expand_dims")

    mark = jax.custom_vjp(lambda x: tell("forward", x))
    mark.defvjp(lambda x: (tell("forward", x), None), lambda _, x: (tell("vjp", x),))
    net = Unfold(lambda theta, x, p: x - theta * (mark(x) - p), lambda p: 0 * p, far, draw, LONGEST, 1)
    estimator = UnfoldBPTT(net, memory=memory)
    run = jax.jit(estimator.estimate)
    for depth in (1, 4, LONGEST):
        passes.clear()
        jax.block_until_ready(run(jnp.array(0.1), KEY, Stage.at(depth)))
        cost = {kind: passes.count(kind) / depth for kind in ("forward", "vjp")}
        assert cost == {kind: float(getattr(estimator.traits.cost, kind)) for kind in cost}


def bytes_of(longest, memory, iteration):
    params = {"eta": shared(0.1)}
    net = Unfold(iteration, lambda p: 0 * p, far, draw, 2, 1000)
    estimator = UnfoldBPTT(net, longest, memory)
    compiled = jax.jit(estimator.estimate).lower(params, KEY, Stage.at(2)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def straight(theta, x, p):
    return x - theta["eta"] * (x - p)


def bent(theta, x, p):
    return x - theta["eta"] * jnp.tanh(theta["eta"] * jnp.sinh(x - p))


@pytest.mark.parametrize(
    ("memory", "iteration", "rows"),
    [("full", straight, 1), ("states", straight, 1), ("states", bent, 1), ("full", bent, 4)],
)
def test_memory_grows_with_the_longest_by_x_or_by_what_an_iteration_keeps(memory, iteration, rows):
    """`bent` keeps x - p by its sinh and cosh, tanh's own derivative and tanh itself."""
    few, many = bytes_of(10, memory, iteration), bytes_of(110, memory, iteration)
    x = 1000 * SIZE * 8
    assert 100 * rows * x <= many - few <= 101 * rows * x


# --- equal entries ---------------------------------------------------------------------------------------------------

quadratic = Unfold(lambda theta, x, p: x - theta["eta"] * H * (x - p), lambda p: 0 * p, far, draw, 8, BATCH)


def test_equal_tied_entries_get_equal_gradients_and_jitter_splits_them():
    estimator, optimizer = UnfoldBPTT(quadratic), optax.adam(0.03)
    estimate = jax.jit(estimator.estimate)
    tied = {"eta": periodic(0.1, 4, "log")}
    runs = []
    for params in (tied, jitter(tied, KEY, std=0.1)):
        grad = estimate(params, KEY, None)[1].grad["eta"].raw
        run = ux.fit(estimator, optimizer, params, None, key=KEY, steps=200)
        runs.append((np.ptp(grad) / np.abs(grad).max(), np.ptp(run.params["eta"].values), run.params))
    assert runs[0][0] < 1e-12
    assert runs[0][1] < 1e-9
    assert runs[1][0] > 1e-5
    assert runs[1][1] > 0.05
    tied_error, split_error = (quadratic.errors(params, KEY)[-1] for _, _, params in runs)
    assert split_error < tied_error / 10


# --- it composes -----------------------------------------------------------------------------------------------------


def test_it_maps_over_params_and_over_numbers_that_an_iteration_closes_over():
    def grad_of(scale, eta):
        net = dataclasses.replace(quadratic, iteration=lambda theta, x, p: x - theta * scale * H * (x - p))
        return jax.grad(lambda eta: net.run(eta, net.init(KEY, eta), depth=5, longest=8)[1])(eta)

    scales, etas = jnp.array([1.0, 0.5]), jnp.array([0.1, 0.15])
    mapped = jax.jit(jax.vmap(grad_of))(scales, etas)
    np.testing.assert_allclose(mapped, [jax.jit(grad_of)(*pair) for pair in zip(scales, etas, strict=True)], rtol=1e-12)


def test_the_loop_is_derived_by_where_it_starts_too():
    run = lambda x, depth: loop(lambda a, b, x: (a * x, (b * x**2).sum()), 0.5, 3.0, x, depth=depth, longest=5)
    x = jnp.array([1.0, -2.0])
    grad = jax.jit(jax.grad(lambda x, depth: run(x, depth)[0].sum() + run(x, depth)[1]))
    for depth in (0, 1, 5):
        expected = 0.5**depth + 2 * 3 * np.asarray(x) * sum(0.25**t for t in range(depth))
        np.testing.assert_allclose(grad(x, depth), expected, rtol=1e-13)


ERRORS = {
    "UnfoldBPTT: system must be an Unfold, got FunctionSystem": lambda: UnfoldBPTT(ux.system(init=max, step=max)),
    "UnfoldBPTT: longest must be a positive whole number, got longest=0": lambda: UnfoldBPTT(quadratic, 0),
    "UnfoldBPTT: depth must be 1 to longest=8, got depth=9": lambda: estimate(Stage.at(9)),
    "UnfoldBPTT: depth must be 1 to longest=8, got depth=0": lambda: estimate(0),
    "UnfoldBPTT: data must be None or have a whole number depth, got float": lambda: estimate(1.5),
    "UnfoldBPTT: data must be None or have a whole number depth, got ArrayImpl": lambda: estimate(jnp.zeros((8, 2))),
    r"Unfold: per-step schedule \['eta'\] must have an entry for each of the 8 iterations, got 6": lambda: UnfoldBPTT(
        KINDS["real"], 8
    ).init(KEY, PARAMS),
    r"Unfold: the period of schedule \['eta'\] .* period=4 for depth=3": lambda: UnfoldBPTT(quadratic, 3).init(
        KEY, {"eta": periodic(0.1, 4)}
    ),
}


def estimate(data):
    estimator = UnfoldBPTT(quadratic)
    return estimator.estimate({"eta": shared(0.1)}, KEY, data)


@pytest.mark.parametrize("message", ERRORS)
def test_what_does_not_fit_is_told(message):
    with pytest.raises(InvalidArgument, match=message):
        ERRORS[message]()
