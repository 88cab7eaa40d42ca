"""First-order methods do what their formulas say and come as near as theory says, on real and complex problems."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from scipy.optimize import minimize

from unrollax import InvalidArgument, StructureError, solvers
from unrollax.theory._constants import chebyshev_steps

LAM = 0.5


def draw(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    real = rng.normal(size=shape)
    return real if kind == "real" else (real + 1j * rng.normal(size=shape)) / np.sqrt(2)


def problem_of(kind, form="matrix", m=20, n=8):
    a, y = draw(kind, (m, n)), jnp.asarray(draw(kind, m, 1))
    shape = jax.ShapeDtypeStruct((n,), a.dtype)
    operator = a if form == "matrix" else lineax.FunctionLinearOperator(lambda x: jnp.asarray(a) @ x, shape)
    return a, SimpleNamespace(A=jnp.asarray(a) if form == "matrix" else operator, y=y, lam=LAM)


def ridge(a, y, lam=LAM):
    return np.linalg.solve(a.conj().T @ a + lam * np.eye(a.shape[1]), a.conj().T @ np.asarray(y))


METHODS = {
    "gradient_descent": solvers.gradient_descent,
    "heavy_ball": solvers.heavy_ball,
    "nesterov": solvers.nesterov,
    "chebyshev": solvers.chebyshev,
}


def literal(name, theta, a, y, count):
    """The iterates from x = 0, in NumPy."""
    theta, y = {key: float(number) for key, number in theta.items()}, np.asarray(y)
    x = before = np.zeros(a.shape[1], a.dtype)
    ratio, xs = 0.0, [x]
    for t in range(count):
        z = x + theta["momentum"] * (x - before) if name == "nesterov" else x
        slope = a.conj().T @ (a @ z - y) + LAM * z
        if name == "chebyshev":
            c, d = (theta["upper"] + theta["lower"]) / 2, (theta["upper"] - theta["lower"]) / 2
            after = d / c if t == 0 else 1 / (2 * c / d - ratio)
            new = x - slope / c if t == 0 else x - 2 * after / d * slope + after * ratio * (x - before)
            ratio = after
        else:
            new = z - theta["step"] * slope
            new = new + theta["momentum"] * (x - before) if name == "heavy_ball" else new
        x, before = new, x
        xs.append(x)
    return np.array(xs)


@pytest.mark.parametrize("form", ["matrix", "operator"])
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("name", METHODS)
def test_iterates_are_those_of_the_formula_in_numpy(name, kind, form):
    a, problem = problem_of(kind, form)
    method = METHODS[name]()
    theta = method.params(a, lam=LAM)
    assert all(number.dtype == jnp.float64 and number.shape == () for number in theta.values())
    found = method.run(theta, problem, steps=12)
    np.testing.assert_allclose(found, literal(name, theta, a, problem.y, 12), atol=1e-13)


def polynomials(name, h, high, low, count):
    """What is left of the error along an eigenvector after 0 to count iterations, by the two-term recurrences."""
    if name == "chebyshev":
        unit = [np.eye(count + 1)[t] for t in range(count + 1)]
        value = np.polynomial.chebyshev.chebval
        c, d = (high + low) / 2, (high - low) / 2
        return np.array([value((c - h) / d, t) / value(c / d, t) for t in unit])
    kappa = high / low
    if name == "gradient_descent":
        return (1 - 2 * h / (high + low)) ** np.arange(count + 1)[:, None]
    if name == "heavy_ball":
        eta, beta = 4 / (np.sqrt(high) + np.sqrt(low)) ** 2, ((np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1)) ** 2
        one, two = 1 + beta - eta * h, -beta
    else:
        root = np.sqrt(3 * kappa + 1)
        eta, beta = 4 / (3 * high + low), (root - 2) / (root + 2)
        one, two = (1 + beta) * (1 - eta * h), -beta * (1 - eta * h)
    found = [np.ones_like(h), np.ones_like(h)]  # at t = -1 and 0
    for _ in range(count):
        found.append(one * found[-1] + two * found[-2])
    return np.array(found[1:])


RATES = {
    "gradient_descent": lambda kappa: (kappa - 1) / (kappa + 1),
    "heavy_ball": lambda kappa: (np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1),
    "nesterov": lambda kappa: 1 - 2 / np.sqrt(3 * kappa + 1),
    "chebyshev": lambda kappa: (np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1),
}


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("name", METHODS)
def test_with_default_constants_errors_follow_theory_to_the_closed_form_solution(name, kind):
    a, problem = problem_of(kind)
    method = METHODS[name]()
    h, basis = np.linalg.eigh(a.conj().T @ a + LAM * np.eye(8))
    answers = np.asarray(method.run(method.params(a, lam=LAM), problem, steps=150))
    error = (answers - ridge(a, problem.y)) @ basis.conj()
    expected = polynomials(name, h, h[-1], h[0], 150)
    np.testing.assert_allclose(error, expected * error[0], atol=1e-12)
    # the rate in the documentation is the worst eigenvalue's, but for a factor of at most 2 t + 1
    rate, t = RATES[name](h[-1] / h[0]), np.arange(151)
    before = {"gradient_descent": 1, "chebyshev": 2}.get(name, 2 * t + 1)
    worst = np.abs(expected).max(1)
    assert (worst <= before * rate**t * (1 + 1e-9)).all()
    assert worst[-1] ** (1 / 150) >= 0.97 * rate
    assert np.abs(error[-1]).max() < 1e-8


def test_the_three_term_form_is_the_product_of_chebyshevs_steps_where_these_end():
    a, problem = problem_of("real")
    methods = solvers.chebyshev(), solvers.gradient_descent()
    theta = methods[0].params(a, lam=LAM)
    answers = methods[0].run(theta, problem, steps=16)
    for depth in (1, 2, 5, 16):
        x = methods[1].start(problem)
        for step in chebyshev_steps(depth, float(theta["upper"]), float(theta["lower"])):
            x = methods[1].step({"step": step}, x, problem)
        np.testing.assert_allclose(answers[depth], x, atol=1e-13)


def test_chebyshevs_interval_may_be_a_point():
    method = solvers.chebyshev()
    problem = SimpleNamespace(A=2 * jnp.eye(3), y=jnp.ones(3))
    np.testing.assert_allclose(method.run(method.params(problem.A), problem, steps=3)[1:], 0.5 * np.ones((3, 3)))


@pytest.mark.parametrize("name", METHODS)
def test_lam_is_thetas_before_the_problems_before_none(name):
    a, problem = problem_of("real")
    method = METHODS[name]()
    theta = method.params(a, lam=2.0)
    bare = SimpleNamespace(A=problem.A, y=problem.y)
    for given, each, lam in ((theta | {"lam": 2.0}, problem, 2.0), (theta, problem, LAM), (theta, bare, 0.0)):
        np.testing.assert_allclose(method.run(given, each, steps=300)[-1], ridge(a, problem.y, lam), atol=1e-8)


def logistic(x, problem):
    """A smooth function that is no quadratic, of a tree."""
    return jnp.logaddexp(0, -problem.y * (problem.A @ x["w"] + x["b"])).sum() + 0.5 * (x["w"] @ x["w"] + x["b"] ** 2)


@pytest.mark.parametrize("name", ["gradient_descent", "heavy_ball", "nesterov"])
def test_any_smooth_function_of_a_tree_is_minimised_by_its_gradient(name):
    a = draw("real", (30, 4))
    problem = SimpleNamespace(A=jnp.asarray(a), y=jnp.sign(draw("real", 30, 1)))

    def start(problem):
        return {"w": jnp.zeros(4), "b": jnp.zeros(())}

    method = METHODS[name](jax.grad(logistic), start)
    both = np.hstack([a, np.ones((30, 1))])
    high = np.linalg.norm(both, 2) ** 2 / 4 + 1
    options = {"quadratic": False} if name == "nesterov" else {}
    found = method.run(method.params((high, 1.0), **options), problem, steps=200)

    def flat(x):
        return np.logaddexp(0, -np.asarray(problem.y) * (both @ x)).sum() + 0.5 * x @ x

    expected = minimize(flat, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(np.append(found["w"][-1], found["b"][-1]), expected, atol=1e-6)


def test_nesterovs_momenta_for_convex_functions_keep_to_the_bound_of_1_over_t_squared():
    a, problem = draw("real", (30, 60)), None  # underdetermined: the smallest eigenvalue is 0
    a = a * np.geomspace(1, 1e-3, 60)
    problem = SimpleNamespace(A=jnp.asarray(a), y=jnp.asarray(draw("real", 30, 1)))
    method = solvers.nesterov()
    theta = method.params(a, depth=60)
    x, losses = method.start(problem), []
    step = jax.jit(lambda theta, x: method.step(theta, x, problem))
    for t in range(60):
        x = step({"step": theta["step"], "momentum": theta["momentum"][t]}, x)
        losses.append(0.5 * float(jnp.sum((problem.A @ x.x - problem.y) ** 2)))
    target = np.linalg.lstsq(a, np.asarray(problem.y), rcond=None)[0]
    bound = 2 * np.linalg.norm(a, 2) ** 2 * (target @ target) / (np.arange(1, 61) + 1) ** 2
    assert (np.array(losses) - 0.5 * np.sum((a @ target - np.asarray(problem.y)) ** 2) <= bound).all()


# Square systems.
def poisson(n=12):
    return 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_jacobi_and_sor_iterate_as_in_numpy_and_solve(kind):
    half = draw(kind, (9, 9))
    a = half.conj().T @ half + 9 * np.eye(9) + np.diag(np.arange(9.0))
    problem = SimpleNamespace(A=jnp.asarray(a), y=jnp.asarray(draw(kind, 9, 1)))
    y, x = np.asarray(problem.y), np.zeros(9, a.dtype)
    jacobi = solvers.jacobi().run({"relax": 0.8}, problem, steps=3)
    for found in jacobi[1:]:
        x = x + 0.8 * (y - a @ x) / np.diag(a)
        np.testing.assert_allclose(found, x, atol=1e-13)
    x = np.zeros(9, a.dtype)
    for found in solvers.sor().run({"relax": 1.3}, problem, steps=3)[1:]:
        for i in range(9):  # one unknown after the other
            x[i] += 1.3 * (y[i] - a[i] @ x) / a[i, i]
        np.testing.assert_allclose(found, x, atol=1e-13)
    for method in (solvers.jacobi(), solvers.sor()):
        theta = method.params(a) if method == solvers.jacobi() else method.params()
        np.testing.assert_allclose(method.run(theta, problem, steps=200)[-1], np.linalg.solve(a, y), atol=1e-10)


def test_the_rates_of_jacobi_and_of_sor_on_a_chain_are_youngs():
    a = poisson()
    problem = SimpleNamespace(A=jnp.asarray(a), y=jnp.zeros(12))
    radii = {}
    for name, method in (("jacobi", solvers.jacobi()), ("sor", solvers.sor())):
        matrix = jax.jacobian(lambda x, method=method: method.step(method.params(a), x, problem))(jnp.zeros(12))
        radii[name] = np.abs(np.linalg.eigvals(matrix)).max()
    cosine = np.cos(np.pi / 13)
    assert radii["jacobi"] == pytest.approx(cosine, rel=1e-12)
    relax = 2 / (1 + np.sqrt(1 - cosine**2))
    assert float(solvers.sor().params(a)["relax"]) == pytest.approx(relax, rel=1e-12)
    # at the optimum two eigenvalues meet, which costs half the digits
    assert radii["sor"] == pytest.approx(relax - 1, abs=1e-6)
    assert float(solvers.jacobi().params(2.5 * a)["relax"]) == pytest.approx(1.0)
    assert float(solvers.jacobi().params((1.8, 0.2))["relax"]) == pytest.approx(1.0)


def test_made_anew_a_method_is_the_same_and_compiles_nothing():
    for make in (*METHODS.values(), solvers.jacobi, solvers.sor):
        assert make() == make()
        assert hash(make()) == hash(make())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("name", METHODS)
def test_single_precision_stays_single_precision(name, dtype):
    problem = SimpleNamespace(A=jnp.eye(3, dtype=dtype), y=jnp.ones(3, dtype))
    method = METHODS[name]()
    theta = method.params(problem.A)
    x = method.start(problem)
    like = method.step(theta, x, problem)
    assert jax.tree.map(lambda leaf: leaf.dtype, like) == jax.tree.map(lambda leaf: leaf.dtype, x)


def test_constants_have_the_precision_of_a_or_of_jax_where_bounds_are_given():
    for make in METHODS.values():
        for given, kind in (
            (np.eye(2), jnp.float64),
            (jnp.eye(2, dtype=jnp.complex64), jnp.float32),
            ((3.0, 1.0), jnp.float64),
        ):
            assert {number.dtype for number in make().params(given).values()} == {jnp.dtype(kind)}


def test_what_does_not_fit_is_said():
    a, y = jnp.ones((4, 3)), jnp.ones(4)
    with pytest.raises(
        StructureError, match=r"gradient_descent: problem.A must be a matrix \[m, n\] and problem.y \[4\]"
    ):
        solvers.gradient_descent().start(SimpleNamespace(A=a, y=jnp.ones(3)))
    with pytest.raises(StructureError, match="heavy_ball: a problem must have the attribute y, got SimpleNamespace"):
        solvers.heavy_ball().start(SimpleNamespace(A=a))
    with pytest.raises(StructureError, match=r"sor: problem.A must be a square matrix, got float64\[4,3\]"):
        solvers.sor().start(SimpleNamespace(A=a, y=y))
    with pytest.raises(InvalidArgument, match=r"sor: the spectral radius of I - D\^-1 A must be below 1, got 2"):
        solvers.sor().params(np.ones((3, 3)))
    with pytest.raises(StructureError, match=r"jacobi: A must be a square matrix"):
        solvers.jacobi().params(np.ones((3, 2)))
    with pytest.raises(InvalidArgument, match=r"jacobi: the smallest eigenvalue of D\^-1 A must be a positive number"):
        solvers.jacobi().params(np.array([[1.0, 3.0], [3.0, 1.0]]))
    with pytest.raises(InvalidArgument, match=r"chebyshev: \(L, mu\) must be 0 < mu <= L, got L=1.0, mu=2.0"):
        solvers.chebyshev().params((1.0, 2.0))
    with pytest.raises(InvalidArgument, match="nesterov: depth must be a positive whole number"):
        solvers.nesterov().params((2.0, 1.0), depth=0)
