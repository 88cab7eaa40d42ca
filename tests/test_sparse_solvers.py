"""Sparse recovery and detection: steps against literal NumPy, limits against other solvers, constants against optimality."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import Lasso

from unrollax import InvalidArgument, StructureError, fit_unfold, one_shot, per_step, problems, solvers, unfold
from unrollax.solvers import _lista, _weights
from unrollax.solvers._selection import Selection

M, N = 12, 20


def one(seed=0, m=M, n=N, **options):
    of = problems.sparse_recovery(m=m, n=n, p=0.2, seed=seed, **options)
    return of.whole(of.draw(jax.random.key(seed)))


def soft(v, threshold):
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


def iterate(method, theta, problem, steps):
    return np.asarray(method.run(theta, problem, steps=steps))


# --- ISTA and FISTA ------------------------------------------------------------------------------------------------------


def test_ista_and_fista_are_their_formulas():
    problem = one()
    a, y = np.asarray(problem.A), np.asarray(problem.y)
    theta = {"step": 0.11, "threshold": 0.03, "momentum": 0.7}
    plain, fast, before, weight = np.zeros(N), np.zeros(N), np.zeros(N), 0.0
    seen = iterate(solvers.ista(), theta, problem, 6), iterate(solvers.fista(), theta, problem, 6)
    for t in range(1, 7):
        plain = soft(plain - 0.11 * a.T @ (a @ plain - y), 0.03)
        after = (1 + np.sqrt(1 + 4 * weight**2)) / 2
        z = fast + 0.7 * (weight - 1) / after * (fast - before)
        fast, before, weight = soft(z - 0.11 * a.T @ (a @ z - y), 0.03), fast, after
        np.testing.assert_allclose(seen[0][t], plain, atol=1e-14)
        np.testing.assert_allclose(seen[1][t], fast, atol=1e-14)


def test_fistas_momentum_is_the_published_one():
    """Beck and Teboulle number weights from t_1 = 1 and keep the point between; the iterates are the same."""
    problem = one()
    a, y = np.asarray(problem.A), np.asarray(problem.y)
    theta = solvers.fista().params(problem.A, lam=0.05)
    high = np.linalg.norm(a, 2) ** 2
    x, z, t = np.zeros(N), np.zeros(N), 1.0
    for k, seen in enumerate(iterate(solvers.fista(), theta, problem, 20)):
        np.testing.assert_allclose(seen, x, atol=1e-12, err_msg=str(k))
        after = soft(z - a.T @ (a @ z - y) / high, 0.05 / high)
        grown = (1 + np.sqrt(1 + 4 * t * t)) / 2
        x, z, t = after, after + (t - 1) / grown * (after - x), grown


@pytest.mark.parametrize(("name", "steps"), [("ista", 4000), ("fista", 4000)])
def test_both_go_to_the_solution_of_the_lasso(name, steps):
    problem, lam = one(), 0.01
    method = getattr(solvers, name)()
    lasso = Lasso(alpha=lam / M, fit_intercept=False, tol=1e-15, max_iter=100_000)
    lasso.fit(np.asarray(problem.A), np.asarray(problem.y))
    assert 3 < (lasso.coef_ != 0).sum() < M
    found = iterate(method, method.params(problem.A, lam=lam), problem, steps)[-1]
    np.testing.assert_allclose(found, lasso.coef_, atol=1e-8)


def test_complex_ista_ends_where_the_lassos_conditions_hold():
    real, imaginary = np.random.RandomState(0).randn(2, M, N)
    y = np.random.RandomState(1).randn(M) + 1j * np.random.RandomState(2).randn(M)
    problem, lam = SimpleNamespace(A=jnp.asarray(real + 1j * imaginary), y=jnp.asarray(y)), 5.0
    theta = solvers.fista().params(problem.A, lam=lam)
    assert theta["step"].dtype == jnp.float64
    x = iterate(solvers.fista(), theta, problem, 3000)[-1]
    pull = np.asarray(problem.A).conj().T @ (y - np.asarray(problem.A) @ x)
    on = np.abs(x) > 1e-9
    assert 0 < on.sum() < N
    np.testing.assert_allclose(pull[on], lam * x[on] / np.abs(x[on]), atol=1e-7)
    assert np.abs(pull[~on]).max() <= lam


# --- learned forms -------------------------------------------------------------------------------------------------------


def test_lista_starts_as_ista_and_is_its_formula(key):
    problem = one()
    start = iterate(solvers.lista(), solvers.lista().params(problem.A, lam=0.05), problem, 9)
    np.testing.assert_allclose(
        start, iterate(solvers.ista(), solvers.ista().params(problem.A, lam=0.05), problem, 9), atol=1e-14
    )
    w1, w2, x = (
        np.asarray(jax.random.normal(k, s))
        for k, s in zip(jax.random.split(key, 3), [(N, M), (N, N), (N,)], strict=True)
    )
    seen = solvers.lista().step({"W1": w1, "W2": w2, "threshold": 0.4}, jnp.asarray(x), problem)
    np.testing.assert_allclose(seen, soft(w1 @ np.asarray(problem.y) + w2 @ x, 0.4), atol=1e-13)


def selected(v, threshold, share):
    """Literal selection: sort, let the largest through where they are above the threshold, shrink all others."""
    through = np.argsort(-np.abs(v))[: int(round(share * v.size, 6))]
    out = soft(v, threshold)
    for i in through:
        if abs(v[i]) > threshold:
            out[i] = v[i]
    return out


@pytest.mark.parametrize(("select", "most"), [(0.05, 0.3), (0.0, 0.3), (0.012, 0.0), (0.29, 1.0), (0.02, 0.5)])
def test_selection_lets_the_largest_entries_through(select, most, key):
    v = np.asarray(jax.random.normal(key, (100,)))
    chosen = Selection("test", select, most)
    seen = jax.jit(jax.vmap(lambda t: chosen.soft(v, 0.5, t)))(jnp.arange(30.0))
    for t in range(30):
        np.testing.assert_allclose(seen[t], selected(v, 0.5, min((t + 1) * select, most)))


def test_an_entry_that_is_let_through_does_not_depend_on_the_threshold():
    v = jnp.array([3.0, -2.0, 0.9, 0.1])
    slopes = jax.jacobian(lambda threshold: Selection("test", 0.5, 0.5).soft(v, threshold, jnp.float64(0)))(0.5)
    assert slopes.tolist() == [0.0, 0.0, -1.0, 0.0]


@pytest.mark.parametrize("name", ["lista_cpss", "tilista", "alista"])
def test_steps_with_selection_are_their_formulas(name, key):
    problem = one()
    a, y = np.asarray(problem.A), np.asarray(problem.y)
    w = np.asarray(jax.random.normal(key, (M, N))) / 5
    step, theta = 0.8, {"W": w, "step": 0.8, "threshold": 0.2}
    method = solvers.alista(a, 0.1, 0.35) if name == "alista" else getattr(solvers, name)(0.1, 0.35)
    if name == "alista":
        w = np.asarray(solvers.analytic_weights(a))
    if name == "lista_cpss":
        step = 1.0
    x = np.zeros(N)
    for t, seen in enumerate(iterate(method, theta, problem, 5)):
        np.testing.assert_allclose(seen, x, atol=1e-13)
        x = selected(x + step * w.T @ (y - a @ x), 0.2, min((t + 1) * 0.1, 0.35))


def test_coupled_weights_without_selection_start_as_ista():
    problem = one()
    method = solvers.lista_cpss(select=0)
    seen = iterate(method, method.params(problem.A, lam=0.05), problem, 9)
    np.testing.assert_allclose(
        seen, iterate(solvers.ista(), solvers.ista().params(problem.A, lam=0.05), problem, 9), atol=1e-14
    )


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_analytic_weights_have_the_least_coherence(kind):
    a = np.random.RandomState(0).randn(6, 9)
    a = a + 1j * np.random.RandomState(1).randn(6, 9) if kind == "complex" else a
    w = np.asarray(solvers.analytic_weights(a))
    np.testing.assert_allclose((w.conj() * a).sum(0), 1, atol=1e-12)
    for i in range(9):  # Lagrange: A A^H w = multiplier a_i, a_i^H w = 1
        system = np.block([[a @ a.conj().T, -a[:, i : i + 1]], [a[:, i].conj()[None], np.zeros((1, 1))]])
        np.testing.assert_allclose(np.linalg.solve(system, np.eye(7)[-1])[:6], w[:, i], atol=1e-10)
    if kind == "real":
        found = minimize(
            lambda w: ((a.T @ w) ** 2).sum(),
            a[:, 0] / (a[:, 0] ** 2).sum(),
            jac=lambda w: 2 * a @ (a.T @ w),
            constraints={"type": "eq", "fun": lambda w: a[:, 0] @ w - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(found.x, w[:, 0], atol=1e-5)


# --- MIMO ----------------------------------------------------------------------------------------------------------------


def test_detectors_are_their_formulas():
    of = problems.mimo(n=5, m=3, snr_db=12.0)
    problem = of.whole(of.draw(jax.random.key(2)))
    a, y = np.asarray(problem.A), np.asarray(problem.y)
    linear = a.T @ np.linalg.inv(a @ a.T + of.noise**2 * np.eye(6)) @ y
    np.testing.assert_allclose(solvers.lmmse(problem), linear, atol=1e-12)
    np.testing.assert_allclose(linear, np.linalg.solve(a.T @ a + of.noise**2 * np.eye(10), a.T @ y), atol=1e-12)
    w, x = a.T @ np.linalg.inv(a @ a.T + 0.3 * np.eye(6)), np.zeros(10)
    for seen in iterate(solvers.tpg(), {"step": 0.7, "temperature": 0.4, "alpha": 0.3}, problem, 4):
        np.testing.assert_allclose(seen, x, atol=1e-12)
        x = np.tanh((x + 0.7 * w @ (y - a @ x)) / 0.4)
    first = iterate(solvers.tpg(), solvers.tpg().params(of.noise), problem, 1)[1]
    np.testing.assert_allclose(first, np.tanh(linear), atol=1e-12)


def test_bit_errors_are_counted_one_by_one(key):
    x, truth = (
        jax.random.normal(key, (7, 11)).at[0, 0].set(0.0),
        jax.random.rademacher(jax.random.key(1), (7, 11), float),
    )
    wrong = sum(
        (value > 0) - (value < 0) != bit for value, bit in zip(x.ravel().tolist(), truth.ravel().tolist(), strict=True)
    )
    assert float(solvers.bit_error_rate(x, truth)) == pytest.approx(wrong / 77)
    assert 10 < wrong < 60


# --- what all share ------------------------------------------------------------------------------------------------------

ALL = {
    "ista": (lambda a: solvers.ista(), lambda s, a: s.params(a)),
    "fista": (lambda a: solvers.fista(), lambda s, a: s.params(a)),
    "lista": (lambda a: solvers.lista(), lambda s, a: s.params(a)),
    "lista_cpss": (lambda a: solvers.lista_cpss(), lambda s, a: s.params(a)),
    "tilista": (lambda a: solvers.tilista(), lambda s, a: s.params(a)),
    "alista": (solvers.alista, lambda s, a: s.params()),
    "tista": (solvers.tista, lambda s, a: s.params()),
    "amp": (lambda a: solvers.amp(), lambda s, a: s.params(a)),
    "oamp": (solvers.oamp, lambda s, a: s.params()),
    "tpg": (lambda a: solvers.tpg(), lambda s, a: s.params()),
}


@pytest.mark.parametrize("name", ALL)
def test_a_step_keeps_the_state_has_finite_derivatives_and_names_what_doesnt_fit(name):
    problem = one()
    method = ALL[name][0](problem.A)
    theta = ALL[name][1](method, problem.A)
    before = method.start(problem)
    after = method.step(theta, before, problem)
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) for state in (before, after)]
    assert kinds[0] == kinds[1]
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(theta))

    def loss(theta, state):
        for _ in range(2):
            state = method.step(theta, state, problem)
        return ((method.answer(state) - problem.x) ** 2).sum()

    grads = jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(theta, before))
    assert all(np.isfinite(leaf).all() for leaf in grads)
    assert any((leaf != 0).any() for leaf in grads)
    with pytest.raises(StructureError, match=rf"{name}: problem.A must be a matrix \[m, n\] and problem.y \[12\]"):
        method.start(problem._replace(y=jnp.ones(M + 1)))


def test_what_is_no_constant_or_matrix_is_refused_by_name():
    for make, says in (
        (lambda: solvers.alista(np.ones(3)), r"A must be a matrix \[m, n\], got float64\[3\]"),
        (lambda: solvers.tista(problems.deblurring(size=8).A), r"tista: A must be a matrix"),
    ):
        with pytest.raises(StructureError, match=says):
            make()
    for make, says in (
        (lambda: solvers.lista_cpss(select=1.2), r"lista_cpss: select must be a number in \[0, 1\]"),
        (lambda: solvers.alista(np.eye(3), most=-0.1), "alista: most must be"),
        (lambda: solvers.tista(rate=0.0), r"tista: rate must be a number in \(0, 1\]"),
        (lambda: solvers.oamp(variance=-1.0), "oamp: variance must be a positive number"),
        (lambda: solvers.ista().params(np.eye(3), lam=0.0), "ista: lam must be a positive number"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            make()


def test_equal_algorithms_are_equal_so_that_none_compiles_twice():
    for make in (
        solvers.ista,
        solvers.fista,
        solvers.lista,
        solvers.lista_cpss,
        solvers.tilista,
        solvers.amp,
        solvers.tpg,
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
    assert solvers.lista_cpss() != solvers.lista_cpss(select=0.01)
    assert dataclasses.replace(solvers.ista(), answer=abs) != solvers.ista()


HOLD = {"alista": solvers.alista, "tista": solvers.tista, "oamp": solvers.oamp}


@pytest.mark.parametrize("name", HOLD)
def test_algorithms_of_equal_matrices_are_equal_and_of_others_are_not(name):
    make, a = HOLD[name], np.random.RandomState(0).randn(4, 6)
    same = (make(a), make(jnp.asarray(a)), make(a.copy()))
    assert len(set(same)) == 1
    assert "float64[6,4]" in repr(same[0]) or "float64[4,6]" in repr(same[0])
    changed = a.copy()
    changed[3, 5] = np.nextafter(changed[3, 5], 9)
    others = [make(changed), make(a.astype(np.float32)), make(a.reshape(3, 8)), make(a.astype(complex))]
    others.append(make(a, most=0.2) if name == "alista" else make(a, rate=0.2))
    if name != "alista":
        others.append(make())
        assert make(a, variance=jnp.ones(6)) == make(a, variance=jnp.ones(6)) != make(a)
    assert len({same[0], *others}) == len(others) + 1


def test_what_was_made_while_tracing_is_equal_to_nothing_else():
    a, made = jnp.asarray(np.random.RandomState(0).randn(4, 6)), []

    @jax.jit
    def answer(a, y):
        made.extend((solvers.tista(a), solvers.tista(a)))
        problem = SimpleNamespace(A=a, y=y, noise=0.1)
        return made[0].run(made[0].params(), problem, steps=2)

    answer(a, jnp.ones(4))
    assert len({*made, solvers.tista(a)}) == 3


@pytest.mark.parametrize("name", ["alista", "tista"])  # OAMP holds what TISTA does
def test_an_algorithm_that_is_made_again_of_an_equal_matrix_compiles_nothing(name, monkeypatch):
    of, traces, optimizer = problems.sparse_recovery(m=4, n=6), [], optax.adam(0.02)

    def counted(*args, of, **options):
        traces.append(1)
        return of(*args, **options)

    for module, what in ((_weights, "bernoulli_gauss"), (_lista, "_weighted")):
        monkeypatch.setattr(module, what, partial(counted, of=getattr(module, what)))

    def train(a):
        before, method = len(traces), HOLD[name](a)
        net = unfold(method, dataclasses.replace(of, A=jnp.asarray(a)), horizon=2, batch=3)
        fit_unfold(net, per_step(method.params(), 2), one_shot(2, 3), optimizer, key=jax.random.key(0))
        return len(traces) - before

    first, again, other = train(np.asarray(of.A)), train(np.asarray(of.A).copy()), train(2 * np.asarray(of.A))
    assert other == first > 0
    assert again < first / 2  # the checks of shapes trace it; no program is built
