"""`diagnose_schedules` and `fixed_point_depends` against literal loops and closed forms; `Implicit` on an `Unfold`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax.theory import chebyshev_steps, quadratic

KEY = jax.random.key(5)
H = np.array([1.0, 4.0])
DEPTH, BATCH = 3, 6


def descend(theta, x, problem):
    """Gradient descent on sum_j h_j (x_j - problem_j)^2 / 2 + lam |x|^2 / 2."""
    return x - theta["eta"] * (jnp.asarray(H, x.dtype) * (x - problem) + theta.get("lam", 0.0) * x)


def distance(x, problem):
    return ((x - problem) ** 2).sum()


def unfolded(iteration=descend, horizon=DEPTH, **options):
    start = lambda problem: jnp.zeros_like(problem)
    return ux.Unfold(iteration, start, distance, lambda key: jax.random.normal(key, (2,)), horizon, BATCH, **options)


def targets_of(net, params):
    """The problems that the report's batch holds, for a literal loop: |x - problem|^2 is |problem|^2 at the start."""
    return np.asarray(net.init(jax.random.fold_in(KEY, 0), params).own)


def literal_errors(targets, etas, lams):
    x, errors = np.zeros_like(targets), [np.square(targets).sum(1).mean()]
    for eta, lam in zip(etas, lams, strict=True):
        x = x - eta * (H * (x - targets) + lam * x)
        errors.append(np.square(x - targets).sum(1).mean())
    return np.array(errors)


ETAS, LAMS = np.array([0.1, 0.3, 0.2]), np.array([0.5, 0.5, 0.7])
PAIR = {"eta": ux.per_step(ETAS, DEPTH, transform="log"), "lam": ux.per_step(LAMS, DEPTH)}


@pytest.fixture(scope="module")
def report():
    return ux.diagnose_schedules(unfolded(), PAIR, key=KEY)


def slopes(loss, numbers, step=1e-6):
    """Central differences."""
    moves = step * np.eye(len(numbers))
    return np.array([(loss(numbers + move) - loss(numbers - move)) / (2 * step) for move in moves])


def test_the_regularisers_first_entry_has_no_influence_from_x_0_and_all_others_have(report):
    assert report.schedules["['lam']"].unused == (0,)
    assert report.schedules["['lam']"].grad[0] == 0
    assert report.schedules["['eta']"].unused == ()
    assert [(f.kind, f.where) for f in report.findings] == [("unused", "['lam']")]
    assert "entry 0 has no influence" in str(report)


def test_gradients_are_those_of_a_literal_loop(report):
    targets = targets_of(unfolded(), PAIR)
    level = lambda etas, lams: np.log(literal_errors(targets, etas, lams)[-1])
    by_eta, by_lam = slopes(lambda e: level(e, LAMS), ETAS), slopes(lambda m: level(ETAS, m), LAMS)
    eta, lam = report.schedules["['eta']"], report.schedules["['lam']"]
    np.testing.assert_allclose(eta.by_iteration, np.abs(by_eta), rtol=1e-6)
    np.testing.assert_allclose(eta.grad, np.abs(by_eta) * ETAS, rtol=1e-6)  # raw is the logarithm
    np.testing.assert_allclose(lam.by_iteration, np.abs(by_lam), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(report.errors, literal_errors(targets, ETAS, LAMS), rtol=1e-12)


def test_a_tied_entry_is_the_sum_of_its_iterations():
    params = {"eta": ux.shared(0.1)}
    each = ux.diagnose_schedules(unfolded(loss="anytime", scale="raw"), params, key=KEY).schedules["['eta']"]
    targets = targets_of(unfolded(), params)
    slope = slopes(lambda etas: literal_errors(targets, etas, np.zeros(3))[1:].mean(), np.full(3, 0.1))
    np.testing.assert_allclose(each.by_iteration, np.abs(slope), rtol=1e-6)
    np.testing.assert_allclose(each.grad, [abs(slope.sum())], rtol=1e-6)
    assert (each.values.shape, each.tied) == ((1,), ())


def test_an_entry_that_no_iteration_reads_is_unused_and_equal_numbers_with_gradients_of_their_own_are_not_tied():
    params = {"eta": ux.per_step(jnp.array([0.1, 0.2, 0.3, 0.3, 0.3]), 5), "lam": ux.per_step(0.5, DEPTH)}
    found = ux.diagnose_schedules(unfolded(), params, key=KEY).schedules
    assert (found["['eta']"].unused, found["['eta']"].tied) == ((3, 4), ())
    assert (found["['lam']"].unused, found["['lam']"].tied) == ((0,), ())


def test_an_entry_behind_a_jump_is_flat_but_not_unused():
    step = lambda theta, x, problem: x - jnp.round(theta) * 0.1 * H * (x - problem)
    found = ux.diagnose_schedules(unfolded(step), ux.per_step(jnp.array([0.45, 1.2, 0.48]), 3), key=KEY)
    each = found.schedules["(root)"]
    assert (each.unused, each.flat) == ((), (0, 1, 2))  # 1.2 + 10 % rounds to 1 as before, but 2.4 doesn't
    assert [f.kind for f in found.findings if f.where] == ["flat"]


def test_equal_steps_are_tied_since_their_factors_change_places(report):
    found = ux.diagnose_schedules(
        unfolded(), ux.per_step({"eta": jnp.array([0.1, 0.2, 0.1])}, 3, transform="log"), key=KEY
    )
    assert found.schedules["['eta']"].tied == ((0, 2),)
    assert [f.kind for f in found.findings if "ux.jitter" in f.remedy] == ["tied"]
    assert report.schedules["['eta']"].tied == ()


def test_growth_on_one_eigenvalue_is_the_product_of_the_factors():
    """Noise of +-1 after each iteration has the variance sum_s prod_{k > s} a_k^2; 2,000 problems, z = 5."""
    etas, h = np.array([3.0, 0.5, 2.5]), 1.0
    net = ux.Unfold(lambda theta, x, p: x - theta * h * (x - p), jnp.zeros_like, distance,
                    lambda key: jax.random.normal(key, (1,)), 3, 2000)  # fmt: skip
    found = ux.diagnose_schedules(net, ux.per_step(etas, 3), key=KEY)
    factors = 1 - etas * h
    np.testing.assert_allclose(found.amplification, np.abs(np.cumprod([1, *factors])), rtol=1e-12)
    expected, signs = [1.0], np.array([[1.0], [-1.0]])
    for factor in factors:
        signs = np.concatenate([factor * signs + 1, factor * signs - 1])  # all outcomes, equally likely
        squares = signs**2
        expected.append(squares.mean())
        measured = found.accumulation[len(expected) - 1] ** 2
        assert abs(measured - squares.mean()) <= 5 * squares.std() / np.sqrt(2000) + 1e-9
    assert np.allclose(expected[1], factors[0] ** 2 + 1)


STEPS = chebyshev_steps(20, 24.5, 1.0, "ascending")
WIDE = np.linspace(1, 24.5, 12)


def on_wide(steps):
    wide = lambda x: jnp.asarray(WIDE, x.dtype)
    net = ux.Unfold(lambda theta, x, b: x - theta * (wide(x) * x - b), jnp.zeros_like,
                    lambda x, b: ((x - b / wide(x)) ** 2).sum(),
                    lambda key: jax.random.normal(key, (12,)), len(steps), BATCH)  # fmt: skip
    return ux.diagnose_schedules(net, ux.per_step(steps, len(steps)), key=KEY, quadratic=quadratic(L=24.5, mu=1.0))


def test_ascending_chebyshev_steps_are_ruined_by_rounding_and_stable_ones_less():
    found = on_wide(STEPS)
    factors = 1 - STEPS[:, None] * WIDE
    own = found.float64[0] * np.square(np.prod(factors, 0)).max()
    assert found.float64[-1] < 3 * own  # no worse than the worst eigenvalue
    assert found.float32[-1] > 100 * found.float64[-1]
    assert {"rounding", "growth", "floor"} <= {f.kind for f in found.findings}
    assert any("stable_order" in f.remedy for f in found.findings)
    stable = on_wide(np.asarray(ux.theory.stable_order(STEPS)))
    assert stable.accumulation.max() < found.accumulation.max() / 100
    assert "growth" not in {f.kind for f in stable.findings}
    assert stable.float32[-1] < found.float32[-1] / 100


def test_a_short_schedule_is_the_same_in_both_precisions(report):
    np.testing.assert_allclose(report.float32, report.errors, rtol=1e-5)
    np.testing.assert_allclose(report.float64, report.errors, rtol=1e-5)  # of the problems rounded to float32
    assert np.abs(report.float64 / report.errors - 1).max() < np.abs(report.float32 / report.errors - 1).max() + 1e-6


def test_theory_is_that_of_the_steps_in_closed_form():
    steps = np.array([1.0, 0.25])
    net = unfolded(horizon=2)
    params = {"eta": ux.per_step(steps, 2), "lam": ux.shared(0.0)}
    found = ux.diagnose_schedules(net, params, key=KEY, quadratic=quadratic(L=4.0, mu=1.0), eta="['eta']")
    # |1 - h| is 3 at h = 4; |(1 - h)(1 - h / 4)| is 9/16 at h = 5/2
    np.testing.assert_allclose(found.theory.amplification, [1, 3, 9 / 16], rtol=5e-3)
    assert 0 == found.theory.floor[0] < found.theory.floor[1] < 1e-12
    assert not [f for f in found.findings if f.kind == "floor"]


def test_what_an_iteration_does_not_support_is_left_out():
    @jax.custom_vjp
    def own(x):
        return x

    own.defvjp(lambda x: (x, None), lambda _, g: (g,))

    def fixed(theta, x, problem):
        if x.dtype != jnp.float64:
            raise TypeError("float64 only")
        return own(descend(theta, x, problem))

    found = ux.diagnose_schedules(unfolded(fixed), {"eta": ux.per_step(ETAS, 3)}, key=KEY)
    assert (found.amplification, found.accumulation, found.float32) == (None, None, None)
    assert found.schedules["['eta']"].grad.all()
    np.testing.assert_allclose(found.float64, found.errors, rtol=1e-5)
    assert "error in float32" not in str(found)


def test_complex_x_and_arrays_as_entries_are_read_too():
    step = lambda theta, x, p: x - theta * (x - p)
    net = ux.Unfold(step, jnp.zeros_like, lambda x, p: (jnp.abs(x - p) ** 2).sum(),
                    lambda key: jax.random.normal(key, (2,), complex), 2, BATCH)  # fmt: skip
    found = ux.diagnose_schedules(net, ux.per_step(np.array([[0.5, 1.5], [0.25, 0.5]]), 2), key=KEY)
    assert found.schedules["(root)"].values.shape == (2, 2)
    assert found.amplification[-1] <= 0.5 * 0.75 + 1e-12  # the larger of the products of the factors


def test_gradients_that_are_not_finite_are_told():
    step = lambda theta, x, p: x - theta * x**3 * 1e200 + p
    found = ux.diagnose_schedules(unfolded(step, horizon=4), ux.per_step(jnp.array([1.0, 2.0, 3.0, 4.0]), 4), key=KEY)
    assert found.findings[0].kind == "not finite"


def test_a_report_is_plain_data_and_a_page(report):
    whole = json.loads(json.dumps(report.to_dict()))
    assert whole["schedules"]["['lam']"]["unused"] == [0]
    assert whole["findings"][0]["kind"] == "unused"
    assert report.schedules["['eta']"].to_dict()["kind"] == "per_step"
    assert "Nothing to mend." in str(report._replace(findings=()))


@pytest.mark.parametrize(
    ("net", "params", "options", "message"),
    [
        (3, PAIR, {}, "net must be an Unfold, got int"),
        (unfolded(), {"eta": jnp.ones(3)}, {}, "params must hold a schedule, got none"),
        (unfolded(), PAIR, {"eta": "['etta']"}, "eta must be the path of a schedule, .* Did you mean"),
        (unfolded(), PAIR, {}, "eta must name the schedule of step sizes"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(net, params, options, message):
    with pytest.raises(ux.InvalidArgument, match=f"diagnose_schedules: {message}"):
        ux.diagnose_schedules(net, params, key=KEY, quadratic=quadratic(L=4.0, mu=1.0), **options)


# --- fixed points -----------------------------------------------------------------------------------------------------

SETTLE = {"key": KEY, "steps": 200}


def test_a_step_size_is_refused_by_name_and_a_regulariser_is_not():
    net = unfolded(loss="anytime")
    with pytest.raises(ux.InvalidArgument, match=r"fixed_point_depends: .* got none on \['eta'\]"):
        ux.fixed_point_depends(net, {"eta": jnp.array(0.2), "lam": jnp.array(0.5)}, **SETTLE)
    constant = unfolded(lambda lam, x, problem: descend({"eta": 0.2, "lam": lam}, x, problem), loss="anytime")
    assert ux.fixed_point_depends(constant, jnp.array(0.5), **SETTLE)["(root)"] > 1e-3


@pytest.mark.parametrize("transform", [None, "log", "softplus", (0.0, 1.0)])
def test_no_transform_hides_a_step_size(transform):
    params = {"eta": ux.shared(0.2, transform=transform), "lam": ux.shared(0.5, transform=transform)}
    with pytest.raises(ux.InvalidArgument, match=r"got none on \['eta'\].raw"):
        ux.fixed_point_depends(unfolded(loss="anytime"), params, **SETTLE)


def test_influences_are_those_of_the_last_step():
    """s' = s / 2 + a + b^2: the parts a ds'/da and b ds'/db are in the ratio a : 2 b^2."""

    def step(p, s, x, key):
        s = 0.5 * s + p["a"] + p["b"] ** 2
        return s, s * p["readout"]

    found = ux.fixed_point_depends(
        ux.system(init=lambda key, p: jnp.zeros(()), step=step), {"a": 3.0, "b": 2.0, "readout": 1.0}, **SETTLE
    )
    np.testing.assert_allclose(found["['b']"] / found["['a']"], 8 / 3, rtol=1e-12)
    assert found["['readout']"] == 0  # the loss alone reads it, which Implicit gets right


def test_steps_that_do_not_settle_and_a_final_loss_are_refused():
    with pytest.raises(ux.InvalidArgument, match=r"the steps must settle, got .* after 3 steps"):
        ux.fixed_point_depends(unfolded(loss="anytime"), {"eta": jnp.array(0.1)}, key=KEY, steps=3)
    with pytest.raises(ux.InvalidArgument, match='loss="final", which is 0 at every fixed point'):
        ux.fixed_point_depends(unfolded(), {"eta": jnp.array(0.1)}, **SETTLE)


@pytest.mark.parametrize(("solver", "terms"), [("gmres", 15), ("dense", 1)])
def test_implicit_has_the_closed_form_gradient_of_lambda_and_says_that_eta_has_none(solver, terms):
    """x* = h p / (h + lam), so the error is sum_j (lam / (h_j + lam))^2 p_j^2; the problems in the state are constants."""
    params = {"eta": jnp.array(0.2), "lam": jnp.array(0.5)}
    implicit = ux.Implicit(unfolded(loss="anytime"), window=200, solver=solver, terms=terms, tol=1e-13)
    state, got = jax.jit(implicit.estimate)(params, implicit.init(KEY, params), None)
    squares = np.square(np.asarray(state.inner.own)).mean(0)
    error = (squares * (0.5 / (H + 0.5)) ** 2).sum()
    slope = (squares * 2 * 0.5 * H / (H + 0.5) ** 3).sum()
    np.testing.assert_allclose(got.grad["lam"], slope / error, rtol=1e-8)
    assert abs(got.grad["eta"]) < 1e-12
    assert got.info.faint == 0.5
    assert got.info.solve < 1e-10
