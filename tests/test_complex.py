"""Every algorithm on complex problems: against the same problem in real numbers, against NumPy, or refused."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from scipy.integrate import quad

from unrollax import StructureError, problems, prox, solvers
from unrollax.solvers._weights import error_variance

M, N, STEPS = 10, 6, 5
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # the same program in half the time


def draw(shape, seed=0):
    real, imaginary = np.random.default_rng(seed).normal(size=(2, *np.atleast_1d(shape)))
    return (real + 1j * imaginary) / np.sqrt(2)


def doubled(a):
    """The matrix of a complex one on pairs of real and imaginary parts."""
    blocks = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return jnp.asarray(blocks.transpose(2, 0, 3, 1).reshape(2 * a.shape[0], 2 * a.shape[1]))


def pairs(x):
    """The real and imaginary parts of each entry, one after the other."""
    x = jnp.asarray(x)
    return jnp.stack([x.real, x.imag], -1).reshape(*x.shape[:-1], -1)


def by_pairs(operator):
    """A real operator that shrinks the two parts of a number as one."""
    return lambda v, scale: operator(v.reshape(-1, 2), scale).ravel()


def twice(make, **theta):
    return make(), make(), theta


def with_prox(make, **theta):
    return make(prox.soft), make(by_pairs(prox.group)), theta


def difference(v):
    return v[1:] - v[:-1]


def difference_of_pairs(v):
    return v[2:] - v[:-2]


def with_difference(make, **theta):
    return make(prox.soft, difference), make(by_pairs(prox.group), difference_of_pairs), theta


# What real and complex algorithm, and which constants, do the same.
SPLIT = {"penalty": 1.3, "relax": 1.2, "lam": 0.1}
SAME = {
    "gradient_descent": twice(solvers.gradient_descent, step=0.05, lam=0.3),
    "heavy_ball": twice(solvers.heavy_ball, step=0.05, momentum=0.4, lam=0.3),
    "nesterov": twice(solvers.nesterov, step=0.05, momentum=0.4, lam=0.3),
    "chebyshev": twice(solvers.chebyshev, upper=20.0, lower=0.7, lam=0.3),
    "projected_gradient": (
        solvers.projected_gradient(lambda v, radius: v / jnp.maximum(1, jnp.abs(v) / radius)),
        solvers.projected_gradient(lambda v, radius: v - by_pairs(prox.group)(v, radius)),
        {"step": 0.05, "radius": 0.3},
    ),
    "admm": with_prox(solvers.admm, **SPLIT),
    "admm with K": with_difference(solvers.admm, **SPLIT),
    "half_quadratic_splitting": with_prox(solvers.half_quadratic_splitting, penalty=1.3, lam=0.1),
    "half_quadratic_splitting with K": with_difference(solvers.half_quadratic_splitting, penalty=1.3, lam=0.1),
    "douglas_rachford": with_prox(solvers.douglas_rachford, step=0.3, relax=1.2, lam=0.1),
    "chambolle_pock": with_prox(solvers.chambolle_pock, tau=0.2, sigma=0.2, momentum=0.9, lam=0.1),
    "chambolle_pock with K": with_difference(solvers.chambolle_pock, tau=0.2, sigma=0.2, momentum=0.9, lam=0.1),
    "jacobi": twice(solvers.jacobi, relax=0.4),
    "sor": twice(solvers.sor, relax=1.3),
    "tpg": twice(solvers.tpg, step=0.8, temperature=0.6, alpha=0.4),
    "consensus": twice(solvers.consensus, step=0.1),
    "power_iteration": twice(solvers.power_iteration, shift=0.3, momentum=0.2),
}
SQUARE = ("jacobi", "sor", "consensus", "power_iteration")  # take a Hermitian matrix


def problem_of(a, y, name):
    """A Hermitian matrix goes by each name that algorithms give it."""
    a, y = jnp.asarray(a), jnp.asarray(y)
    start = {"start": y} if name == "power_iteration" else {}
    return SimpleNamespace(A=a, laplacian=a, y=y, **start)


def gradient_and_answers(algorithm, theta, problem, truth, flat=lambda x: x):
    def loss(theta):
        answers = flat(algorithm.run(theta, problem, steps=STEPS))
        return ((answers[-1] - truth) ** 2).sum(), answers

    return jit(jax.grad(loss, has_aux=True))(theta)


@pytest.mark.parametrize("name", [*SAME, "admm of an operator"])
def test_a_complex_problem_and_its_twin_in_real_numbers_have_the_same_iterates_and_derivatives(name):
    a, y = draw((M, N)), draw(M, 1)
    if name in SQUARE:
        a, y = a.conj().T @ a, a.conj().T @ y
    one, other = problem_of(a, y, name), problem_of(doubled(a), pairs(y), name)
    if name == "admm of an operator":
        one.A = lineax.FunctionLinearOperator(lambda x: jnp.asarray(a) @ x, jax.ShapeDtypeStruct((N,), a.dtype))
    method, real, theta = SAME[name.removesuffix(" of an operator")]
    truth = pairs(draw(N, 2))
    grad, answers = gradient_and_answers(method, theta, one, truth, pairs)
    expected, those = gradient_and_answers(real, theta, other, truth)
    assert np.abs(those[-1] - those[-2]).max() > 1e-4
    np.testing.assert_allclose(answers, those, atol=1e-10)
    for key in theta:
        assert float(grad[key]) == pytest.approx(float(expected[key]), rel=1e-7), key


# --- sparse recovery, against NumPy --------------------------------------------------------------------------------------

SPARSE_M, SPARSE_N, RATE, VARIANCE, NOISE = 12, 20, 0.2, 1.3, 0.1


def sparse(m=SPARSE_M, n=SPARSE_N, seed=0):
    """Of complex problems, generators give x and noise of variances E |.|^2, too."""
    of = problems.SparseRecovery(jnp.asarray(draw((m, n), seed) / np.sqrt(m)), RATE, NOISE)
    return of.whole(of.draw(jax.random.key(seed)))


def soft(v, threshold, through=0):
    """Literal soft thresholding, which lets some of the largest entries through where they are above the threshold."""
    out = v * np.maximum(1 - threshold / np.abs(v), 0)
    for i in np.argsort(-np.abs(v))[:through]:
        out[i] = v[i] if abs(v[i]) > threshold else out[i]
    return out


def posterior_mean(r, tau2):
    """By the densities of a circular Gaussian."""
    density = {s: np.exp(-(np.abs(r) ** 2) / s) / (np.pi * s) for s in (tau2, tau2 + VARIANCE)}
    on = RATE * density[tau2 + VARIANCE]
    return on / (on + (1 - RATE) * density[tau2]) * VARIANCE / (VARIANCE + tau2) * r


def divergence(function, r):
    """Half the trace of the derivative by real and imaginary parts, by finite differences of each entry."""
    real, imaginary = ((function(r + d) - function(r - d)) / 2e-6 for d in (1e-6, 1e-6j))
    return (real.real + imaginary.imag) / 2


def shrunk(name, theta, a, y):
    """The iterates of ISTA and its learned forms."""
    high = np.linalg.norm(a, 2) ** 2
    w = {
        "lista_cpss": a / high,
        "ista": theta["step"] * a,
        "fista": theta["step"] * a,
        "lista": a / high,
    }.get(name, theta["step"] * np.asarray(solvers.analytic_weights(a)))
    x = before = np.zeros(a.shape[1], complex)
    weight, xs = 0.0, [x]
    for t in range(1, STEPS + 1):
        after = (1 + np.sqrt(1 + 4 * weight**2)) / 2
        z = x + theta["momentum"] * (weight - 1) / after * (x - before) if name == "fista" else x
        through = int(round(min(0.1 * t, 0.35) * a.shape[1], 6)) if name in ("lista_cpss", "tilista", "alista") else 0
        before, weight = x, after
        x = soft(z + w.conj().T @ (y - a @ z), theta["threshold"], through)
        xs.append(x)
    return np.array(xs)


def estimated(name, theta, a, y):
    """The iterates of TISTA and OAMP."""
    m, n = a.shape
    w = np.linalg.pinv(a)
    factor = theta["step"] * (n / m if name == "oamp" else 1)
    x = free = np.zeros(n, complex)
    xs = [x]
    for _ in range(STEPS):
        residual = y - a @ free
        error = max((np.linalg.norm(residual) ** 2 - m * NOISE**2) / np.linalg.norm(a) ** 2, 1e-9)
        tau2 = error * (1 + (factor**2 - 2 * factor) * m / n) + factor**2 * NOISE**2 * np.linalg.norm(w) ** 2 / n
        r = free + factor * w @ residual
        x = free = posterior_mean(r, tau2)
        if name == "oamp":
            d = theta["removed"] * divergence(lambda r, tau2=tau2: posterior_mean(r, tau2), r).mean()
            free = (x - d * r) / (1 - d)
        xs.append(x)
    return np.array(xs)


def passed(name, theta, a, y):
    """The iterates of AMP."""
    m, n = a.shape
    x, residual, xs = np.zeros(n, complex), y, [np.zeros(n, complex)]
    for _ in range(STEPS):
        threshold = theta["threshold"] * np.linalg.norm(residual) / np.sqrt(m)
        v = x + a.conj().T @ residual
        x = soft(v, threshold)
        residual = y - a @ x + divergence(lambda v, at=threshold: soft(v, at), v).sum() / m * residual
        xs.append(x)
    return np.array(xs)


SPARSE = {
    "ista": (lambda a: solvers.ista(), shrunk),
    "fista": (lambda a: solvers.fista(), shrunk),
    "lista": (lambda a: solvers.lista(), shrunk),
    "lista_cpss": (lambda a: solvers.lista_cpss(0.1, 0.35), shrunk),
    "tilista": (lambda a: solvers.tilista(0.1, 0.35), shrunk),
    "alista": (lambda a: solvers.alista(a, 0.1, 0.35), shrunk),
    "tista": (lambda a: solvers.tista(a, rate=RATE, variance=VARIANCE), estimated),
    "tista of any A": (lambda a: solvers.tista(rate=RATE, variance=VARIANCE), estimated),
    "oamp": (lambda a: solvers.oamp(a, rate=RATE, variance=VARIANCE), estimated),
    "amp": (lambda a: solvers.amp(), passed),
}


@pytest.mark.parametrize("name", SPARSE)
def test_complex_sparse_recovery_is_its_formulas_and_has_finite_derivatives(name):
    problem, (make, literal) = sparse(), SPARSE[name]
    method = make(problem.A)
    theta = method.params() if name[:5] in ("alist", "tista", "oamp") else method.params(problem.A)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(theta))  # so that it can be trained
    theta |= {"step": jnp.asarray(0.8), "threshold": jnp.asarray(0.15), "momentum": 0.7, "removed": 0.9}
    expected = literal(name, {key: np.asarray(number) for key, number in theta.items()}, *map(np.asarray, problem[:2]))
    grad, answers = gradient_and_answers(method, theta, problem, pairs(problem.x), pairs)
    assert np.abs(expected[-1] - expected[-2]).max() > 1e-4
    np.testing.assert_allclose(answers, pairs(expected), atol=1e-7 if name in ("oamp", "amp") else 1e-12)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))


def test_lmmse_and_bit_errors_of_symbols_are_those_of_their_bits():
    h, noise, symbols = draw((6, 5)), 0.3, np.sign(draw(5, 1).real) + 1j * np.sign(draw(5, 1).imag)
    y = h @ symbols + noise * draw(6, 2)
    one, other = (SimpleNamespace(A=a, y=each, noise=noise) for a, each in ((h, y), (doubled(h), pairs(y))))
    np.testing.assert_allclose(pairs(solvers.lmmse(one)), solvers.lmmse(other), atol=1e-12)
    guess = jnp.asarray(symbols).at[1].multiply(-1).at[3].set(1j - symbols[3].real)
    wrong = 2 + (2 if symbols[3].imag < 0 else 1)
    assert float(solvers.bit_error_rate(guess, symbols)) == pytest.approx(wrong / 10)
    assert float(solvers.bit_error_rate(guess, symbols)) == float(solvers.bit_error_rate(pairs(guess), pairs(symbols)))


def test_sinkhorn_refuses_what_has_a_phase():
    problem = SimpleNamespace(cost=jnp.ones((2, 2), complex), a=jnp.ones(2), b=jnp.ones(2))
    with pytest.raises(
        StructureError, match=r"sinkhorn: problem\.cost, a and b must be real, got complex128 among them"
    ):
        solvers.sinkhorn().start(problem)


# --- what large random problems show -------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_amps_threshold_is_the_minimax_one(kind, delta):
    """The share e of entries that are not 0 and the threshold a at which min_a e (1 + a^2) + (1 - e) R(a) = delta."""
    size = (
        (lambda s: 2 * s * np.exp(-s * s)) if kind == "complex" else (lambda s: np.sqrt(2 / np.pi) * np.exp(-s * s / 2))
    )
    found = float(
        solvers.amp().params(jnp.ones((int(100 * delta), 100), complex if kind == "complex" else float))["threshold"]
    )

    def risk(a):
        return quad(lambda s: (s - a) ** 2 * size(s), a, np.inf, epsabs=1e-13)[0]

    share = (delta - risk(found)) / (1 + found**2 - risk(found))  # at which its risk is delta
    others = [share * (1 + a * a) + (1 - share) * risk(a) for a in (found - 0.02, found, found + 0.02)]
    assert 0 < share < 1
    assert others[1] == pytest.approx(delta)
    assert others[1] < min(others[0], others[2])


def test_complex_amp_follows_its_state_evolution():
    """Mean squared errors of 4 problems of 800 entries, for the signals that there are, within 8 %."""
    drawn = [sparse(400, 800, seed) for seed in range(4)]
    run = jit(lambda problem: solvers.amp().run({"threshold": 1.1}, problem, steps=6))
    found = [(np.abs(np.asarray(run(problem)) - np.asarray(problem.x)) ** 2).mean(-1) for problem in drawn]
    x = np.tile(np.concatenate([problem.x for problem in drawn]), 20)
    error = (np.abs(x) ** 2).mean()
    for t, seen in enumerate(np.mean(found, 0)):
        assert seen == pytest.approx(error, rel=0.08), t
        tau = np.sqrt(NOISE**2 + 2 * error)
        error = (np.abs(soft(x + tau * draw(x.size, 4 + t), 1.1 * tau) - x) ** 2).mean()
    assert error < 0.2 * (np.abs(x) ** 2).mean()


def test_the_error_that_tista_and_oamp_reckon_with_is_the_error():
    """Means over 30 problems of 200 entries within 5 % of each other, of numbers that have 6,000 draws each (z = 3.9)."""
    m, n = 100, 200
    a, truth, wrong, noise = draw((m, n), 0) / np.sqrt(m), draw((30, n), 1), 0.3 * draw((30, n), 2), draw((30, m), 3)
    w = np.linalg.pinv(a)
    residuals = [a @ (x - z) + NOISE * e for x, z, e in zip(truth, truth + wrong, noise, strict=True)]
    problem = SimpleNamespace(A=jnp.asarray(a), noise=NOISE)
    for step in (0.7, 1.0, 2.0):
        said = jit(jax.vmap(lambda residual, step=step: error_variance(step, residual, problem, w)))(
            jnp.array(residuals)
        )
        seen = (np.abs(wrong + step * np.array(residuals) @ w.T) ** 2).mean()
        assert said.mean() == pytest.approx(seen, rel=0.05), step
