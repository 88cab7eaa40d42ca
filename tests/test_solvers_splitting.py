"""Splitting methods agree with each other, with independent solvers and with theory's rates, real and complex."""

import sys
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest
from scipy.optimize import lsq_linear, minimize, nnls

from unrollax import InvalidArgument, StructureError, prox, solvers
from unrollax.solvers._inner import solve_inner

LAM = 2.0


def draw(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    real = rng.normal(size=shape)
    return real if kind == "real" else (real + 1j * rng.normal(size=shape)) / np.sqrt(2)


def problem_of(kind, m=20, n=8):
    a, y = draw(kind, (m, n)), draw(kind, m, 1)
    return a, SimpleNamespace(A=jnp.asarray(a), y=jnp.asarray(y), lam=LAM)


def operator_of(a):
    return lineax.FunctionLinearOperator(lambda x: jnp.asarray(a) @ x, jax.ShapeDtypeStruct(a.shape[1:], a.dtype))


@cache
def lasso(kind, lam=LAM):
    """The lasso's solution by cyclic coordinate descent, in NumPy, and where it is 0."""
    a, problem = problem_of(kind)
    y, x = np.asarray(problem.y), np.zeros(a.shape[1], a.dtype)
    for _ in range(400):
        for i in range(a.shape[1]):
            v = a[:, i].conj() @ (y - a @ x + a[:, i] * x[i])
            x[i] = v / abs(v) * max(abs(v) - lam, 0) / np.linalg.norm(a[:, i]) ** 2
    slope = a.conj().T @ (y - a @ x)
    assert np.abs(slope).max() <= lam * (1 + 1e-12)
    assert np.real(np.vdot(slope, x)) == pytest.approx(lam * np.abs(x).sum(), rel=1e-12)
    assert 0 < (x == 0).sum() < 8
    return x


def last(method, theta, problem, steps):
    return np.asarray(method.run(theta, problem, steps=steps)[-1])


EXACT = {"admm": solvers.admm, "douglas_rachford": solvers.douglas_rachford, "chambolle_pock": solvers.chambolle_pock}


@pytest.mark.parametrize("form", ["matrix", "operator", "factored"])
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("name", EXACT)
def test_all_find_the_lassos_solution(name, kind, form):
    if (name, form) == ("chambolle_pock", "factored"):
        return  # it has no inner solve
    a, problem = problem_of(kind)
    problem.A = {"matrix": jnp.asarray, "operator": operator_of, "factored": solvers.factored}[form](a)
    method = EXACT[name]()
    found = last(method, method.params(a, lam=LAM), problem, 1000 if name == "chambolle_pock" else 150)
    np.testing.assert_allclose(found, lasso(kind), atol=1e-8)


def test_they_find_it_with_other_constants_that_change_from_iteration_to_iteration_too():
    _, problem = problem_of("real")
    for method, name in ((solvers.admm(), "penalty"), (solvers.douglas_rachford(), "step")):
        theta = method.params(problem.A, lam=LAM) | {"relax": 1.5}
        step = jax.jit(lambda theta, x, method=method: method.step(theta, x, problem))
        x = method.start(problem)
        for t in range(300):
            # ADMM may change its penalty at any time; the companion of Douglas and Rachford's is in units of its step
            factor = 3.0 ** (t % 3 - 1) if name == "penalty" else 0.3
            x = step(theta | {name: factor * theta[name]}, x)
        np.testing.assert_allclose(x.x, lasso("real"), atol=1e-8)


def test_one_iteration_of_each_is_its_formula_in_numpy():
    kind = "complex"
    a, problem = problem_of(kind)
    y, k = np.asarray(problem.y), np.diff(np.eye(8), axis=0)
    x, z, dual, p = draw(kind, 8, 2), draw(kind, 7, 3), draw(kind, 7, 4), draw(kind, 20, 5)
    ah = a.conj().T

    def soft(v, scale):
        return v * np.maximum(1 - scale / np.abs(v), 0)

    rho, relax = 0.7, 1.4
    theta = {"penalty": rho, "relax": relax, "lam": LAM, "step": 0.3, "tau": 0.1, "sigma": 0.2, "momentum": 0.9}
    split = type(solvers.admm(K=jnp.diff).start(problem))
    found = solvers.admm(K=jnp.diff).step(theta, split(*map(jnp.asarray, (x, z, dual))), problem)
    new = np.linalg.solve(ah @ a + rho * k.T @ k, ah @ y + k.T @ (rho * z - dual))
    kx = relax * k @ new + (1 - relax) * z
    low = soft(kx + dual / rho, LAM / rho)
    for got, expected in zip(found, (new, low, dual + rho * (kx - low)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)

    halves = type(solvers.half_quadratic_splitting(K=jnp.diff).start(problem))
    found = solvers.half_quadratic_splitting(K=jnp.diff).step(theta, halves(jnp.asarray(x), jnp.asarray(z)), problem)
    low = soft(k @ x, LAM / rho)
    np.testing.assert_allclose(found.z, low, atol=1e-12)
    np.testing.assert_allclose(found.x, np.linalg.solve(ah @ a + rho * k.T @ k, ah @ y + rho * k.T @ low), atol=1e-12)

    found = solvers.douglas_rachford().step(theta, halves(jnp.asarray(x), jnp.asarray(x)), problem)
    u = np.linalg.solve(0.3 * ah @ a + np.eye(8), x + 0.3 * ah @ y)
    new = soft(2 * u - x, 0.3 * LAM)
    np.testing.assert_allclose(found.x, new, atol=1e-12)
    np.testing.assert_allclose(found.z, x + relax * (new - u), atol=1e-12)

    pair = type(solvers.chambolle_pock().start(problem))
    ahead = draw(kind, 8, 6)
    state = pair(*map(jnp.asarray, (x, ahead, p, z)))
    found = solvers.chambolle_pock(K=jnp.diff).step(theta, state, problem)
    data = (p + 0.2 * (a @ ahead - y)) / 1.2
    v = z + 0.2 * k @ ahead
    prior = v - 0.2 * soft(v / 0.2, LAM / 0.2)
    assert np.abs(prior).max() <= LAM + 1e-12  # a projection on the dual ball
    new = x - 0.1 * (ah @ data + k.T @ prior)
    for got, expected in zip(found, (new, new + 0.9 * (new - x), data, prior), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)


@cache
def denoised(n=30, scale=0.6):
    """A noisy staircase and its total variation denoising by an active-set solver for the dual problem."""
    y = np.repeat([0.0, 2.0, 1.0], n // 3) + 0.3 * draw("real", n, 7)
    differences = np.diff(np.eye(n), axis=0)
    u = lsq_linear(differences.T, y, (-scale, scale), method="bvls", tol=1e-14).x
    return y, y - differences.T @ u


def chain(n=30):
    """The largest and the smallest eigenvalue of K K^H for the differences of n entries."""
    return 2 - 2 * np.cos(np.pi * (n - 1) / n), 2 - 2 * np.cos(np.pi / n)


def denoisers():
    exact = partial(prox.total_variation)
    return {
        "admm": (solvers.admm(K=jnp.diff), {"gram": chain()}, 400),
        "chambolle_pock": (solvers.chambolle_pock(K=jnp.diff), {"gram": 4.0}, 3000),
        "douglas_rachford with the exact prox": (solvers.douglas_rachford(exact), {}, 60),
        "admm with the exact prox": (solvers.admm(exact), {}, 60),
        "chambolle_pock with the exact prox": (solvers.chambolle_pock(exact), {}, 200),
    }


@pytest.mark.parametrize("name", denoisers())
def test_all_denoise_by_total_variation_alike(name):
    method, options, steps = denoisers()[name]
    y, expected = denoised()
    problem = SimpleNamespace(A=jnp.eye(30), y=jnp.asarray(y), lam=0.6)
    theta = method.params(problem.A, lam=0.6, **options)
    np.testing.assert_allclose(last(method, theta, problem, steps), expected, atol=1e-8)
    if "exact" not in name:  # theta without lam takes that of the problem
        bare = {key: number for key, number in theta.items() if key != "lam"}
        np.testing.assert_allclose(last(method, bare, problem, steps), expected, atol=1e-8)


def test_deblurring_by_total_variation_with_factored_or_iterated_inner_solves_is_the_same():
    y, _ = denoised()
    a = 0.5 * np.eye(30) + 0.25 * np.eye(30, k=1) + 0.25 * np.eye(30, k=-1)
    method = solvers.admm(K=jnp.diff)
    theta = method.params(a, lam=0.3, gram=chain())
    forms = jnp.asarray(a), operator_of(a), solvers.factored(a, jnp.diff)
    found = [last(method, theta, SimpleNamespace(A=form, y=jnp.asarray(y)), 25) for form in forms]
    np.testing.assert_allclose(found[1], found[0], atol=1e-9)
    np.testing.assert_allclose(found[2], found[0], atol=1e-9)


def test_half_quadratic_splitting_solves_its_own_problem_and_nears_the_lassos_as_the_penalty_grows():
    a, problem = problem_of("real")
    method = solvers.half_quadratic_splitting()
    gaps = []
    for penalty in (30.0, 300.0):

        def smoothed(x, penalty=penalty):  # least over z of lam |z| + penalty |x - z|^2 / 2
            size = np.abs(x)
            kink = LAM / penalty
            rest = np.where(size <= kink, penalty * size**2 / 2, LAM * size - LAM * kink / 2)
            slope = a.T @ (a @ x - np.asarray(problem.y)) + np.clip(penalty * x, -LAM, LAM)
            return 0.5 * np.sum((a @ x - np.asarray(problem.y)) ** 2) + rest.sum(), slope

        expected = minimize(
            smoothed, np.zeros(8), jac=True, method="L-BFGS-B", options={"ftol": 1e-16, "gtol": 1e-11}
        ).x
        found = last(method, {"penalty": penalty, "lam": LAM}, problem, 3000)
        np.testing.assert_allclose(found, expected, atol=1e-8)
        gaps.append(np.linalg.norm(found - lasso("real")))
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.2)


def contractions(distances):
    distances = np.array(distances)
    return distances[1:] / distances[:-1]


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("relax", [1.0, 2.0])
def test_the_companions_of_douglas_rachford_and_of_admm_come_nearer_at_the_documented_rate(kind, relax):
    a, problem = problem_of(kind)
    h = np.linalg.eigvalsh(a.conj().T @ a)
    root = np.sqrt(h[-1] / h[0])
    rate = root / (root + 1) if relax == 1 else (root - 1) / (root + 1)
    slope = a.conj().T @ (np.asarray(problem.y) - a @ lasso(kind))  # in lam times the subgradients
    method = solvers.douglas_rachford()
    theta = method.params(a, lam=LAM) | {"relax": relax}
    fixed = lasso(kind) - np.asarray(theta["step"]) * slope
    x, distances = method.start(problem), []
    step = jax.jit(lambda x: method.step(theta, x, problem))
    for _ in range(20):
        distances.append(np.linalg.norm(x.z - fixed))
        x = step(x)
    assert (contractions(distances) <= rate + 1e-9).all()
    method = solvers.admm()
    theta = method.params(a, lam=LAM)
    rho, x, distances = np.asarray(theta["penalty"]), method.start(problem), []
    step = jax.jit(lambda x: method.step(theta, x, problem))
    for _ in range(20):
        x = step(x)
        distances.append(np.linalg.norm(x.z + x.dual / rho - lasso(kind) - slope / rho))
    assert (contractions(distances) <= root / (root + 1) + 1e-9).all()


def test_half_quadratic_splitting_comes_nearer_at_the_documented_rate():
    a, problem = problem_of("real")
    method = solvers.half_quadratic_splitting()
    theta = method.params(a, lam=0.3)
    answers = np.asarray(method.run(theta, problem, steps=400))
    rho, low = float(theta["penalty"]), np.linalg.eigvalsh(a.T @ a)[0]
    distances = np.linalg.norm(answers[:20] - answers[-1], axis=1)
    assert (contractions(distances) <= rho / (rho + low) + 1e-9).all()


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_chambolle_and_pock_with_both_parts_strongly_convex_keep_their_linear_rate(kind):
    a, problem = problem_of(kind)
    y = np.asarray(problem.y)
    expected = np.linalg.solve(a.conj().T @ a + 0.4 * np.eye(8), a.conj().T @ y)
    method = solvers.chambolle_pock(prox.squared_l2)
    theta = method.params(a, lam=0.4, convexity=0.4)
    r = 2 * np.sqrt(0.4) / np.linalg.norm(a, 2)
    omega = (1 + 1 / (1 + r)) / (2 + r)
    x, distances = method.start(problem), []
    step = jax.jit(lambda x: method.step(theta, x, problem))
    for _ in range(60):
        off = np.linalg.norm(x.x - expected) ** 2, np.linalg.norm(x.data - (a @ expected - y)) ** 2
        distances.append((0.4 * off[0] + (1 - omega) * off[1], 0.4 * off[0] + off[1]))
        x = step(x)
    now, first = np.array(distances)[:, 0], distances[0][1]
    assert (now <= omega ** np.arange(60) * first * (1 + 1e-9)).all()


def test_projected_gradient_solves_what_scipy_does_for_any_projection_of_optax():
    a, problem = problem_of("real")
    problem.lam = 0.0
    y = np.asarray(problem.y)
    nonnegative = solvers.projected_gradient(optax.projections.projection_non_negative)
    found = last(nonnegative, nonnegative.params(a), problem, 150)
    np.testing.assert_allclose(found, nnls(a, y)[0], atol=1e-9)
    assert (found == 0).any()
    box = solvers.projected_gradient(partial(optax.projections.projection_box, lower=-0.1, upper=0.2))
    found = last(box, box.params(a), problem, 150)
    np.testing.assert_allclose(found, lsq_linear(a, y, (-0.1, 0.2), method="bvls", tol=1e-14).x, atol=1e-9)


def test_projected_gradient_trains_a_radius_and_falls_at_its_rate():
    a, problem = problem_of("real")
    problem.lam = 0.0
    method = solvers.projected_gradient(optax.projections.projection_l2_ball)
    theta = method.params(a) | {"radius": jnp.asarray(0.3)}
    answers = np.asarray(method.run(theta, problem, steps=150))
    assert np.linalg.norm(answers[-1]) == pytest.approx(0.3)
    h = np.linalg.eigvalsh(a.T @ a)
    distances = np.linalg.norm(answers[:15] - answers[-1], axis=1)
    assert (contractions(distances) <= (h[-1] - h[0]) / (h[-1] + h[0]) + 1e-9).all()

    def loss(radius):
        x = method.run(theta | {"radius": radius}, problem, steps=60)[-1]
        return 0.5 * jnp.sum((problem.A @ x - problem.y) ** 2)

    # the derivative of the least loss in a ball by its radius is minus the length of the gradient
    slope = np.linalg.norm(a.T @ (a @ answers[-1] - np.asarray(problem.y)))
    assert float(jax.jit(jax.grad(loss))(0.3)) == pytest.approx(-slope, rel=1e-6)


def test_anything_of_the_form_of_a_prox_serves():
    _, problem = problem_of("real")

    class Functional:  # in the manner of other libraries
        def prox(self, v, lam=1.0, **others):
            return jnp.sign(v) * jnp.maximum(jnp.abs(v) - lam, 0)

    for make in (solvers.admm, solvers.douglas_rachford, solvers.chambolle_pock):
        method = make(Functional().prox)
        found = last(method, method.params(problem.A, lam=LAM), problem, 800)
        np.testing.assert_allclose(found, lasso("real"), atol=1e-7)


@pytest.mark.parametrize(("m", "n"), [(9, 5), (5, 9)])
def test_inner_solves_are_right_by_every_way_for_tall_and_wide_matrices(m, n):
    a, right = draw("complex", (m, n)), draw("complex", n, 1)
    differences = np.diff(np.eye(n), axis=0)
    for k, prior in ((None, np.eye(n)), (jnp.diff, differences.T @ differences)):
        expected = np.linalg.solve(a.conj().T @ a + 0.3 * prior, right)
        for form in (jnp.asarray(a), operator_of(a), solvers.factored(a, k)):
            solve = jax.jit(lambda right, shift, form=form, k=k: solve_inner("here", form, k, right, shift))
            np.testing.assert_allclose(solve(jnp.asarray(right), 0.3), expected, atol=1e-10)


def test_an_operator_that_can_solve_is_asked_to():
    a, problem = problem_of("complex")

    class Solver:
        def mv(self, x):
            return jnp.asarray(a) @ x

        def transpose(self):
            return operator_of(a.T)

        def solve(self, right, shift):
            return solvers.factored(a).solve(right, shift)

    for method in (solvers.admm(), solvers.half_quadratic_splitting(), solvers.douglas_rachford()):
        theta = method.params(a, lam=LAM)
        own = SimpleNamespace(A=Solver(), y=problem.y)
        np.testing.assert_allclose(last(method, theta, own, 5), last(method, theta, problem, 5), atol=1e-11)


def test_derivatives_through_inner_solves_are_the_same_by_every_way():
    a, problem = problem_of("complex")
    method = solvers.admm()

    def loss(theta, form):
        x = method.run(theta, SimpleNamespace(A=form, y=problem.y), steps=3)[-1]
        return jnp.sum(jnp.abs(x) ** 2)

    theta = method.params(a, lam=LAM)
    forms = jnp.asarray(a), operator_of(a), solvers.factored(a)
    slopes = jax.jit(lambda theta: [jax.grad(loss)(theta, form) for form in forms])(theta)
    for other in slopes[1:]:
        for name in theta:
            assert float(other[name]) == pytest.approx(float(slopes[0][name]), rel=1e-8)
            assert abs(float(other[name])) > 1e-6


def test_an_operator_on_images_needs_no_matrix():
    kernel = jnp.fft.rfft2(jnp.zeros((6, 6)).at[0, 0].set(0.6).at[0, 1].set(0.4))

    class Blur:
        def __init__(self, transfer):
            self.transfer = transfer

        def mv(self, x):
            return jnp.fft.irfft2(jnp.fft.rfft2(x) * self.transfer, s=x.shape)

        def transpose(self):
            return Blur(self.transfer.conj())

    blur, x = Blur(kernel), jnp.zeros((6, 6)).at[2, 3].set(2.0).at[4, 1].set(-1.0)
    problem = SimpleNamespace(A=blur, y=blur.mv(x), lam=1e-6)
    method = solvers.admm()
    theta = {"penalty": 0.2, "relax": 1.5, "lam": 1e-6}
    np.testing.assert_allclose(last(method, theta, problem, 60), x, atol=1e-4)


def test_without_lineax_operators_are_refused_and_matrices_are_not(monkeypatch):
    a, problem = problem_of("real")
    monkeypatch.setitem(sys.modules, "lineax", None)
    method = solvers.admm()
    theta = method.params(a)
    method.step(theta, method.start(problem), problem)
    problem.A = SimpleNamespace(mv=lambda x: jnp.asarray(a) @ x)
    problem.A.transpose = lambda: SimpleNamespace(mv=lambda x: jnp.asarray(a).T @ x)
    with pytest.raises(
        InvalidArgument, match=r"admm: an operator in problem.A needs lineax.*Install unrollax\[solvers\]"
    ):
        method.step(theta, method.start(problem), problem)


def test_made_anew_a_method_is_the_same_and_compiles_nothing():
    for make in (*EXACT.values(), solvers.half_quadratic_splitting):
        assert make(prox.soft) == make(prox.soft)
        assert make(prox.soft) != make(prox.hard)
        assert hash(make()) == hash(make())


def test_what_does_not_fit_is_said():
    problem = SimpleNamespace(A=solvers.factored(jnp.eye(3)), y=jnp.ones(3))
    method = solvers.admm(K=jnp.diff)
    with pytest.raises(InvalidArgument, match=r"admm: problem.A must be factored with the algorithm's K"):
        method.step(method.params(problem.A), method.start(problem), problem)
    with pytest.raises(StructureError, match=r"factored: A must be a matrix \[m, n\], got float64\[3\]"):
        solvers.factored(jnp.ones(3))
    with pytest.raises(StructureError, match=r"chambolle_pock: problem.A must be a matrix"):
        solvers.chambolle_pock().start(SimpleNamespace(A=jnp.ones((3, 2)), y=jnp.ones(2)))
