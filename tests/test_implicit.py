from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.testing import check_cost_is_documented

KEY = jax.random.key(2)
SOLVERS = ("gmres", "bicgstab", "neumann", "dense")
close = partial(np.testing.assert_allclose, rtol=1e-8)


def estimate(estimator, params, data=None, calls=1):
    state, run = estimator.init(KEY, params), jax.jit(estimator.estimate)
    for _ in range(calls):
        state, got = run(params, state, data)
    return state, got


# --- a network in equilibrium -----------------------------------------------------------------------------------------

SIZE = 6
RNG = np.random.default_rng(0)
NET = {"w": 0.25 * RNG.normal(size=(SIZE, SIZE)), "b": RNG.normal(size=SIZE)}
AIM = RNG.normal(size=SIZE)


def cell(params, state, x, key):
    state = jnp.tanh(params["w"] @ state + params["b"])
    return state, x * ((state - AIM) ** 2).sum()


net = ux.system(init=lambda key, params: jnp.zeros(SIZE), step=cell)


def settle(params):
    state = jnp.zeros(SIZE)
    for _ in range(300):
        state = jnp.tanh(params["w"] @ state + params["b"])
    return state


def last_loss(params, state, steps):
    """The loss of the last of some steps."""
    for _ in range(steps):
        state, loss = cell(params, state, 1.0, None)
    return loss


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_equilibrium_network_has_the_gradient_of_bptt_through_600_steps(solver):
    only_last = np.zeros(600)
    only_last[-1] = 600  # BPTT's loss is the mean
    _, expected = estimate(ux.BPTT(net, horizon=600), NET, only_last)
    _, got = estimate(ux.Implicit(net, window=600, solver=solver, terms=200, tol=1e-13), NET, ux.repeat(1.0))
    jax.tree.map(partial(close, atol=1e-10), got.grad, expected.grad)
    assert got.info.residual < 1e-14
    assert got.info.solve < 1e-12
    assert got.info.nonfinite == 0


@pytest.mark.parametrize("terms", [1, 2, 3, 7])
def test_neumann_with_k_terms_is_backpropagation_through_k_steps_at_the_fixed_point(terms):
    start = settle(NET)
    at_rest = replace(net, init=lambda key, params: start)
    _, got = estimate(ux.Implicit(at_rest, window=1, solver="neumann", terms=terms), NET, ux.repeat(1.0))
    expected = jax.grad(last_loss)(NET, start, terms)
    jax.tree.map(partial(close, rtol=1e-12, atol=1e-14), got.grad, expected)


def test_one_step_is_neumann_with_one_term_to_the_bit():
    one_step = ux.Implicit(net, window=50, solver="one-step")
    _, got = estimate(one_step, NET, ux.repeat(1.0))
    _, expected = estimate(replace(one_step, solver="neumann", terms=1), NET, ux.repeat(1.0))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert got.info.solve == 1  # nothing of the linear system is solved


def test_a_warm_start_gets_there_in_many_short_windows():
    short = ux.Implicit(net, window=5, terms=SIZE, tol=1e-13)
    _, expected = estimate(replace(short, window=200), NET, ux.repeat(1.0))
    _, first = estimate(short, NET, ux.repeat(1.0))
    _, got = estimate(short, NET, ux.repeat(1.0), calls=40)
    jax.tree.map(partial(close, rtol=1e-10), got.grad, expected.grad)
    assert first.info.residual > 1e-4  # which says that the theorem doesn't apply yet
    assert got.info.residual < 1e-14


def test_a_reset_comes_when_the_horizon_is_over():
    count = ux.system(init=lambda key, p: 0, step=lambda p, s, x, key: (s + 1, p * s))
    estimator = ux.Implicit(count, window=2, horizon=4)
    state, seen = estimator.init(KEY, 1.0), []
    for _ in range(4):
        state, got = estimator.estimate(1.0, state, None)
        seen.append((int(state.inner), float(got.loss)))
    assert seen == [(2, 0.5), (4, 2.5), (2, 0.5), (4, 2.5)]
    assert estimate(replace(estimator, horizon=None), 1.0, calls=4)[0].inner == 8
    assert estimate(replace(estimator, horizon=2), 1.0, calls=4)[0].inner == 2


# --- hyperparameters --------------------------------------------------------------------------------------------------

X, Y = RNG.normal(size=(20, 5)), RNG.normal(size=20)
X_VALID, Y_VALID = RNG.normal(size=(12, 5)), RNG.normal(size=12)


def ridge(of_next):
    """Gradient descent on ridge regression; the loss is that of the validation rows, at the next state or at this one."""

    def step(log_penalty, w, x, key):
        after = w - 0.1 * (X.T @ (X @ w - Y) / 20 + jnp.exp(log_penalty) * w)
        return after, ((X_VALID @ (after if of_next else w) - Y_VALID) ** 2).mean()

    return ux.system(init=lambda key, p: jnp.zeros(5), step=step)


def hypergradient(log_penalty):
    penalty = np.exp(log_penalty)
    hessian = X.T @ X / 20 + penalty * np.eye(5)
    w = np.linalg.solve(hessian, X.T @ Y / 20)
    slope = 2 * X_VALID.T @ (X_VALID @ w - Y_VALID) / 12
    return -penalty * slope @ np.linalg.solve(hessian, w), ((X_VALID @ w - Y_VALID) ** 2).mean()


@pytest.mark.parametrize("of_next", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_ridge_regression_has_the_closed_form_hypergradient(solver, of_next):
    estimator = ux.Implicit(ridge(of_next), window=2000, solver=solver, terms=2000, tol=1e-13)
    _, got = estimate(estimator, -1.0)
    grad, loss = hypergradient(-1.0)
    close(got.grad, grad)
    assert abs(got.loss - loss) > 1e-5  # the mean over the window, on the way there
    _, got = estimate(estimator, -1.0, calls=2)
    close(got.loss, loss)


def test_descent_with_few_steps_an_update_finds_the_best_penalty():
    """The state is warm: 20 steps an update are enough."""
    estimator = ux.Implicit(ridge(True), window=20, terms=5)

    def update(carry, _):
        log_penalty, state = carry
        state, got = estimator.estimate(log_penalty, state, None)
        return (log_penalty - 2.0 * got.grad, state), None

    start = -2.0, estimator.init(KEY, -2.0)
    (found, _), _ = jax.jit(lambda start: jax.lax.scan(update, start, length=2000))(start)
    assert abs(hypergradient(found)[0]) < 1e-6
    assert hypergradient(found)[1] < hypergradient(-2.0)[1] - 1e-3


# --- when the theorem holds, and when not -----------------------------------------------------------------------------


def linear(matrix, start):
    """Steps A s + params, with the loss of the next state's first number."""

    def step(params, state, x, key):
        state = matrix @ state + params
        return state, state[0]

    return ux.system(init=lambda key, params: jnp.asarray(start), step=step)


@pytest.mark.parametrize("radius", [0.5, 0.9])
def test_the_error_of_the_series_is_within_the_radius_to_the_terms(radius):
    """Bolte, Pauwels and Vaiter's bound, r / (1 - r) for one step; the loss has slope 1, a step's has slope 1 in params."""
    basis = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    matrix = basis @ np.diag(radius * np.array([1, -0.7, 0.5, 0.9])) @ basis.T
    expected = np.linalg.inv(np.eye(4) - matrix)[0]
    for terms in (1, 2, 5, 20):
        estimator = ux.Implicit(linear(matrix, np.zeros(4)), window=1, solver="neumann", terms=terms)
        error = np.linalg.norm(estimate(estimator, np.zeros(4))[1].grad - expected)
        assert 1e-3 * radius**terms < error <= radius**terms / (1 - radius)


@pytest.mark.parametrize("solver", ["gmres", "bicgstab", "dense"])
def test_a_fixed_point_that_repels_has_a_gradient_all_the_same(solver):
    matrix = np.array([[-1.5, 0.3, 0], [0.2, 2.5, 0.1], [0, -0.4, 0.6]])
    inverse = np.linalg.inv(np.eye(3) - matrix)
    estimator = ux.Implicit(linear(matrix, inverse @ np.ones(3)), window=1, solver=solver, tol=1e-12)
    _, got = estimate(estimator, np.ones(3))
    close(got.grad, inverse[0], rtol=1e-12)
    assert got.info.solve < 1e-12
    _, got = estimate(replace(estimator, solver="neumann", terms=30), np.ones(3))
    assert got.info.solve > 1e6  # and the series says that it diverges


def test_too_few_terms_show_in_info():
    matrix = np.diag(np.linspace(-0.9, 0.95, 10))
    estimator = ux.Implicit(linear(matrix + 0.1, np.zeros(10)), window=1, terms=2)
    assert estimate(estimator, np.ones(10))[1].info.solve > 0.05
    assert estimate(replace(estimator, terms=10, tol=1e-12), np.ones(10))[1].info.solve < 1e-10
    assert estimate(replace(estimator, terms=10, tol=0.5), np.ones(10))[1].info.solve < 0.5


def test_what_is_left_over_is_what_the_formula_says():
    """b - (I - D^T) u by hand, for the series with two powers."""
    matrix = RNG.normal(size=(3, 3))
    b, at = matrix.T @ [1, 0, 0], np.ones(3)
    _, got = estimate(ux.Implicit(linear(matrix, at), window=1, solver="neumann", terms=3), np.zeros(3))
    u = b + matrix.T @ b
    close(got.info.solve, np.linalg.norm(b - u + matrix.T @ u) / np.linalg.norm(b), rtol=1e-12)
    close(got.info.residual, np.linalg.norm(matrix @ at - at) / np.linalg.norm(matrix @ at), rtol=1e-12)
    close(got.grad, np.array([1, 0, 0]) + u, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_that_is_no_function_of_its_state_has_its_own_gradient(solver):
    forget = ux.system(init=lambda key, p: jnp.zeros(2), step=lambda p, s, x, key: (p * jnp.ones(2), p**3))
    _, got = estimate(ux.Implicit(forget, window=3, solver=solver), 2.0)
    assert (got.grad, got.info.residual, got.info.solve) == (12, 0, 0)
    nothing = ux.system(init=lambda key, p: (), step=lambda p, s, x, key: (s, p**3))
    assert estimate(ux.Implicit(nothing, window=3, solver=solver), 2.0)[1].grad == 12


def test_a_loss_that_is_not_finite_is_reported():
    _, got = estimate(ux.Implicit(net, window=3), NET, jnp.array([1.0, jnp.nan, 1.0]))
    assert got.info.nonfinite == 1


# --- states of all kinds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_complex_state_counts_as_two_real_numbers(solver):
    """The conjugate makes the step no holomorphic function, so that the linear system is real only."""

    def step(p, z, x, key):
        z = 0.5 * jnp.exp(1j * p) * jnp.conj(z) + 0.2 * z**2 + p
        return z, jnp.abs(z - 1j) ** 2

    spiral = ux.system(init=lambda key, p: 0j, step=step)
    only_last = replace(spiral, step=lambda p, z, x, key: (step(p, z, x, key)[0], x * step(p, z, x, key)[1]))
    weights = np.zeros(200)
    weights[-1] = 200
    expected = estimate(ux.BPTT(only_last, horizon=200), 0.4, weights)[1].grad
    state, got = estimate(ux.Implicit(spiral, window=200, solver=solver, terms=200, tol=1e-13), 0.4)
    close(got.grad, expected)
    assert state.inner.dtype == complex


def test_leaves_without_a_derivative_are_left_aside():
    def start(key, p):
        return {"s": jnp.zeros(()), "half": jnp.bfloat16(0), "n": 0, "on": True, "key": key, "none": None}

    def step(p, state, x, key):
        s = 0.5 * state["s"] + p + 0 * state["half"].astype(float)
        return state | {"s": s, "half": state["half"] + 1, "n": state["n"] + 1, "on": ~state["on"], "key": key}, s**2

    state, got = estimate(ux.Implicit(ux.system(init=start, step=step), window=101, tol=1e-13), 1.0)
    close(got.grad, 8, rtol=1e-12)
    assert (state.inner["n"], state.inner["on"], state.inner["half"].dtype) == (101, False, jnp.bfloat16)


def test_the_last_steps_noise_is_what_is_differentiated():
    def step(p, state, x, key):
        z = jax.random.normal(key, ())
        s = 0.5 * state[0] + p * z
        return (s, z), s

    system = ux.system(init=lambda key, p: (jnp.zeros(()), jnp.zeros(())), step=step)
    run = jax.jit(jax.vmap(lambda key: ux.Implicit(system, window=7).estimate(1.0, estimator.init(key, 1.0), None)))
    estimator = ux.Implicit(system, window=7)
    state, got = run(jax.random.split(KEY, 5))
    close(got.grad, 2 * state.inner[1], rtol=1e-12)  # (1 - 0.5)^-1 z
    assert len(np.unique(got.grad)) == 5


def test_every_step_sees_its_own_row_and_the_loss_is_the_mean():
    add = ux.system(init=lambda key, p: 0.0, step=lambda p, s, x, key: (s + x["a"], p * x["a"] + x["b"]))
    data = {"a": jnp.arange(4.0), "b": ux.repeat(10.0)}
    state, got = estimate(ux.Implicit(add, window=4, solver="one-step"), 2.0, data)
    assert (state.inner, got.loss, got.grad) == (6, 13, 3)


def test_a_step_may_hold_loops():
    def step(p, s, x, key):
        s = jax.lax.fori_loop(0, 3, lambda _, s: jnp.tanh(0.5 * s + p), s)
        return s, (s**2).sum()

    loops = ux.system(init=lambda key, p: jnp.zeros(3), step=step)
    grads = [
        estimate(ux.Implicit(loops, window=60, solver=solver, terms=90, tol=1e-13), jnp.arange(3.0))[1].grad
        for solver in SOLVERS
    ]
    for grad in grads[:-1]:
        close(grad, grads[-1], rtol=1e-10)


@pytest.mark.parametrize("solver", [*SOLVERS, "one-step"])
def test_memory_does_not_grow_with_the_window(solver):
    wide = ux.system(
        init=lambda key, p: jnp.zeros(64), step=lambda p, s, x, key: (jnp.tanh(0.5 * s + p) + x, (s**2).mean())
    )
    sizes = []
    for window in (8, 512):
        estimator = ux.Implicit(wide, window=window, solver=solver)
        args = 0.5, estimator.init(KEY, 0.5), ux.repeat(1.0)
        sizes.append(jax.jit(estimator.estimate).lower(*args).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] - sizes[0] < 8 * 512  # less than eight states more, for 504 steps


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 3, "horizon": 4}, "Implicit: horizon must be a multiple of window, got horizon=4, window=3"),
        ({"window": 3, "terms": 0}, "Implicit: terms must be a positive whole number, got terms=0"),
        ({"window": 3, "tol": "x"}, "Implicit: tol must be a finite number of at least 0, got tol='x'"),
        ({"window": 3, "tol": -1.0}, "Implicit: tol must be a finite number of at least 0, got tol=-1.0"),
        ({"window": 3, "solver": "cg"}, "Implicit: solver must be one of 'gmres', .*, got solver='cg'"),
    ],
)
def test_fields_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(ux.InvalidArgument, match=message):
        ux.Implicit(net, **options)


@pytest.mark.parametrize("tol", [-1, None, True, jnp.inf])
def test_a_tolerance_that_may_have_been_an_axis_is_refused_where_it_is_used(tol):
    with pytest.raises(ux.InvalidArgument, match="Implicit: tol must be a finite number of at least 0, got tol="):
        ux.Implicit(net, window=3, tol=tol).init(KEY, NET)


@pytest.mark.parametrize("window", [1, 4])
def test_data_that_do_not_fit_the_window_are_refused_in_its_words(window):
    estimator = ux.Implicit(net, window=window)
    message = f"Implicit: data leaf .* must be time-major with {window} steps on its first axis, got float64.*5"
    with pytest.raises(ux.StructureError, match=message):
        estimator.estimate(NET, estimator.init(KEY, NET), jnp.ones(5))


@pytest.mark.parametrize(
    ("solver", "terms"), [("neumann", 1), ("neumann", 2), ("neumann", 6), ("one-step", 6), ("dense", 6)]
)
def test_a_call_makes_the_passes_that_the_solver_promises(solver, terms):
    check_cost_is_documented(lambda system, **time: ux.Implicit(system, solver=solver, terms=terms, **time))


def test_what_gmres_costs_is_not_known_beforehand():
    assert ux.Implicit(net, window=2).traits == ux.Traits(target="exact", needs="vjp", cost=None)
