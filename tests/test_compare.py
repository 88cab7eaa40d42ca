"""The figures of `compare`, against closed forms, literal loops and simulation."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax._kit import analytic, quadratic, some_data, start, vector
from unrollax.diagnosis._costs import BY_OTHERS, BY_TIME, UNKNOWN, steps_of
from unrollax.diagnosis._gradients import Problem
from unrollax.diagnosis._horizons import Plan, plan_of, sample_all
from unrollax.diagnosis._reference import Search, find_reference
from unrollax.diagnosis._sweep import name_for
from unrollax.diagnosis._verdict import Row, cost_to, error_at, moments, recommend

T = 6
DATA = some_data(3)
TIME = {"window": 2, "horizon": T}
NOISE = {"std": 0.05, "pairs": 4}
TRACES = []


@pytest.fixture(autouse=True)
def quickly_compiled():
    """The same programs in two thirds of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def line(params, state, x, key):
    """A loss that is linear in the parameters."""
    TRACES.append(1)
    return state, jnp.array([1.0, 2.0]) @ params


linear = ux.system(init=lambda key, params: (), step=line)
SLOPE = np.array([1.0, 2.0])


def carry(params, state, x, key):
    state = 0.5 * state + params * x
    return state, state**2


leak = ux.system(init=lambda key, params: 0.0, step=carry)


def wave(rate):
    return ux.system(init=lambda key, params: (), step=lambda p, s, x, k: (s, jnp.sin(rate * p)))


def search(key, **changes):
    return Search(key, **{"scale": 0.1, "tolerance": 0.1, "samples": 32, "observe": print, **changes})


def row(name, **changes):
    figures = dict.fromkeys(("bias", "bias_error", "std", "cosine", "snr", "nonfinite", "cost_to"), 0.0)
    return Row(
        **{
            "name": name,
            **figures,
            "resolved": True,
            "steps": 10.0,
            "seconds": 1.0,
            "bytes": 0,
            "updates": 1,
            "note": "",
        }
        | changes
    )


def test_bias_of_truncation_is_that_of_the_analytic_gradients(key):
    windows = ux.sweep(ux.TBPTT(quadratic(), window=1, horizon=T), window=(1, 2, 6))
    found = ux.compare(windows, start(), DATA, key=key, samples=4)
    exact = analytic(quadratic(), None, DATA)
    assert found.reference.kind == "exact"
    np.testing.assert_allclose(found.reference.norm, np.linalg.norm(exact), rtol=1e-12)
    for seen, window in zip(found.rows[:2], (1, 2), strict=True):
        short = analytic(quadratic(), window, DATA)
        np.testing.assert_allclose(seen.bias, np.linalg.norm(short - exact) / np.linalg.norm(exact), rtol=1e-10)
        np.testing.assert_allclose(
            seen.cosine, short @ exact / np.linalg.norm(short) / np.linalg.norm(exact), rtol=1e-10
        )
        assert (seen.std, seen.snr, seen.resolved) == (0, math.inf, True)
    assert not found.rows[2].resolved
    assert found.rows[2].limit < 1e-13


def test_spread_of_an_evolution_strategy_is_the_analytic_one(key):
    """Of (g z) z, averaged over pairs, the variances sum to (d + 1) |g|^2 / pairs; |z| < 4 by the spread of a simulation."""
    samples, pairs = 2000, 4
    found = ux.compare([ux.FullES(linear, std=0.1, horizon=2, pairs=pairs)], jnp.zeros(2), key=key, samples=samples)
    z = np.random.default_rng(0).normal(size=(50_000, pairs, 2))
    means = ((z @ SLOPE)[..., None] * z).mean(1) - SLOPE
    error = np.square(means).sum(1).std() / 5 / math.sqrt(samples)
    assert abs(found.rows[0].std ** 2 - 3 / pairs) < 4 * error
    assert not found.rows[0].resolved
    assert abs(found.rows[0].snr * found.rows[0].std ** 2 - 1) < 4 * math.sqrt(4 * 3 / pairs / samples)


@pytest.mark.parametrize("bias", [0.0, 0.6])
def test_squared_bias_is_unbiased_and_its_error_is_its_spread(bias):
    """Over 2,000 sets of samples and references, |z| < 4 for the mean; the stated error is the spread within a third."""
    rng, count, lanes = np.random.default_rng(1), 16, 8
    scale = np.array([0.6, 0.3, 0.1])
    truth = np.array([1.0, 0.0, 0.0])
    found = []
    for _ in range(2000):
        samples = truth + [0, bias, 0] + scale * rng.normal(size=(count, 3))
        parts = truth + 0.2 * scale[::-1] * rng.normal(size=(lanes, 3))
        roots = (parts - parts.mean(0)) / math.sqrt(lanes * (lanes - 1))
        found.append(moments(samples, parts.mean(0), roots, 1e-16).bias)
    squares, errors = np.array([(each.square, each.error) for each in found]).T
    assert abs(squares.mean() - bias**2) < 4 * squares.std() / math.sqrt(len(squares))
    assert 0.75 < np.sqrt(np.square(errors).mean()) / squares.std() < 1.35
    resolved = np.mean([each.resolved for each in found])
    assert resolved < 0.06 if bias == 0 else resolved > 0.8


def test_samples_are_means_over_the_windows_of_a_literal_loop(key):
    """Also of staggered pairs, after a first horizon."""
    system, params = quadratic(), start()
    estimators = {"tbptt": ux.TBPTT(system, **TIME), "staggered": ux.PES(system, **TIME, **NOISE, stagger=True)}
    sampled = sample_all(estimators, Problem(system, params, DATA, T), 4, key, print)
    for name, estimator in estimators.items():
        estimate = jax.jit(estimator.estimate)
        warm = 3 * (name == "staggered")
        for index, own in enumerate(jax.random.split(key, 4)[:2]):
            state, grads = estimator.init(own, params), []
            for number in range(warm + 3):
                state, (_, grad, _) = estimate(params, state, DATA[number % 3 * 2 :][:2])
                grads.append(np.asarray(vector(grad)))
            np.testing.assert_allclose(sampled[name].grads[index], np.mean(grads[warm:], 0), rtol=1e-10)
        assert sampled[name].plan == Plan(windows=3, window=2, warm=int(warm > 0))


def test_a_sweep_over_std_compiles_once(key):
    def traces(stds):
        begun = len(TRACES)
        system = ux.system(init=linear.init, step=lambda *args: line(*args))  # nothing that was traced before
        swept = ux.sweep(ux.FullES(system, std=0.1, horizon=2, pairs=2), std=stds)
        ux.compare(swept, jnp.zeros(2), key=key, samples=4, reference=SLOPE)
        return len(TRACES) - begun

    once = traces((0.1,))
    assert once > 0
    assert traces((0.1, 0.2, 0.3)) == once


def test_reference_is_exact_in_float64_for_float32_params(key):
    """s_t = x_t + ... + x_1 / 2^(t - 1) times p: d mean s^2 / d p = 2 p mean h^2, to 1e-13, and what runs is float32."""
    data, carried = np.arange(1, 7, dtype=np.float32) / 3, []
    for x in data.astype(np.float64):
        carried.append(x + 0.5 * carried[-1] if carried else x)
    with jax.enable_x64(False):
        found = ux.compare([ux.BPTT(leak, T)], jnp.float32(0.3), data, key=key, samples=4)
    truth = 2 * float(np.float32(0.3)) * np.mean(np.square(carried))
    assert found.reference.dtype == "float64"
    np.testing.assert_allclose(found.reference.grad, truth, rtol=1e-13)
    assert 0 <= found.rows[0].bias < found.rows[0].limit < 1e-5


def test_a_system_that_fixes_float32_is_compared_in_it_and_that_is_said(key):
    fixed = ux.system(
        init=lambda k, p: jnp.zeros((), jnp.float32), step=lambda p, s, x, k: ((0.5 * s + p).astype(jnp.float32), s * s)
    )
    with jax.enable_x64(False):
        found = ux.compare([ux.BPTT(fixed, 4)], jnp.float32(0.5), key=key, samples=4)
    assert found.reference.dtype == "float32"
    assert "float32" in str(found)


def test_of_a_system_that_draws_the_reference_is_a_mean_with_an_error_that_covers_the_truth(key):
    """s = p + n with n = N(0, 1): d E s^2 / d p = 2 p; |z| < 4. Estimators that see other keys are not biased then."""
    noisy = ux.system(init=lambda k, p: (), step=lambda p, s, x, k: (s, (p + jax.random.normal(k)) ** 2))
    found = ux.compare([ux.BPTT(noisy, 4)], jnp.asarray(1.5), key=key, samples=64)
    reference = found.reference
    assert reference.samples > 16
    assert abs(float(reference.grad) - 3) < 4 * reference.error * reference.norm
    assert 0 < reference.error < 0.011
    assert abs(found.rows[0].std - 1 / 3) < 4 * 1 / 3 / math.sqrt(2 * 64)  # 2 n / sqrt(4), over 3
    assert not found.rows[0].resolved


def test_smoothed_reference_is_the_gradient_of_the_smoothed_loss(key):
    """Of p^3 under noise of std s it is 3 p^2 + 3 s^2; |z| < 4."""
    cube = ux.system(init=lambda k, p: (), step=lambda p, s, x, k: (s, p**3))
    got = find_reference(Problem(cube, jnp.asarray(0.4), None, 2), "smoothed", search(key, scale=0.5)).reference
    truth = 3 * 0.4**2 + 3 * 0.5**2
    assert got.kind == "smoothed"
    assert abs(float(got.grad) - truth) < 4 * got.error * got.norm
    assert 0 < got.error < 0.1 / 3


@pytest.mark.parametrize(("angle", "kind"), [(0.5, "exact"), (1.6, "exact"), (2.1, "smoothed"), (30.0, "smoothed")])
def test_the_exact_gradient_is_used_while_it_predicts_the_loss_at_the_distance_of_an_update(angle, kind, key):
    """Of sin(p / 0.1 angle) at 0, a rise at a distance of 0.1 is sin(angle) / angle of what the gradient says."""
    got = find_reference(Problem(wave(angle / 0.1), jnp.asarray(0.0), None, 1), "auto", search(key)).reference
    np.testing.assert_allclose(got.ratio, math.sin(angle) / angle, rtol=1e-9)
    assert got.kind == kind


def test_a_gradient_that_is_zero_beside_jumps_is_no_reference(key):
    stairs = ux.system(
        init=lambda k, p: (), step=lambda p, s, x, k: (s, jnp.floor(p[0] + x) + 1e-3 * p[1])
    )  # 0 of the jumps, exact of the rest
    for scale in (0.1, 1.0):
        problem = Problem(stairs, jnp.zeros(2), np.linspace(0, 1, 20), 20)
        got = find_reference(problem, "auto", search(key, scale=scale)).reference
        assert got.kind == "smoothed"
        np.testing.assert_allclose(got.grad, [1.0, 1e-3], atol=4 * got.error * got.norm)
        np.testing.assert_allclose(got.ratio, 1, rtol=1e-9)  # along the gradient alone nothing is amiss


def test_an_overflowing_gradient_is_no_reference_and_its_estimator_never_gets_there(key):
    wild = ux.system(init=lambda k, p: jnp.asarray(0.1), step=lambda p, s, x, k: (1e9 * jnp.sin(p * s), jnp.cos(p * s)))
    found = ux.compare([ux.BPTT(wild, 60)], jnp.asarray(1.0), key=key, samples=4)
    assert found.reference.kind == "smoothed"
    assert "not finite" in found.reference.note
    assert (found.rows[0].nonfinite, found.rows[0].cost_to) == (1.0, math.inf)
    assert "no estimator is finite" in found.reason
    with pytest.raises(ux.InvalidArgument, match='reference="bptt" must be finite'):
        ux.compare([ux.BPTT(wild, 60)], jnp.asarray(1.0), key=key, samples=4, reference="bptt")


def called(p, x):
    """p^2 x^2, by NumPy."""
    return jax.pure_callback(np.square, jax.ShapeDtypeStruct((), p.dtype), p * x, vmap_method="expand_dims")


def looped(p, x):
    """The same, by a loop that could be of any length."""
    return jax.lax.while_loop(lambda c: c[1] < 2, lambda c: (c[0] * p * x, c[1] + 1), (jnp.ones_like(p), 0))[0]


@jax.custom_vjp
def one_way(p, x):
    """The same, with a derivative in reverse and in float32 only."""
    return (p * x) ** 2


def one_way_back(residual, above):
    p, x = residual
    return (2 * p * x**2 * above).astype(jnp.float32), (2 * p**2 * x * above).astype(jnp.float32)


one_way.defvjp(lambda p, x: ((p * x) ** 2, (p, x)), one_way_back)
squares = {
    loss: ux.system(init=lambda k, p: (), step=lambda p, s, x, k, loss=loss: (s, loss(p, x)))
    for loss in (called, looped, one_way)
}
UNDERIVED = {called: "Pure callbacks do not support JVP", looped: "Reverse-mode differentiation does not work for lax"}


@pytest.mark.parametrize("loss", UNDERIVED)
def test_a_step_without_a_derivative_has_the_smoothed_reference_and_that_is_said(loss, key):
    """Smoothing adds std^2 to p^2, and nothing to the slope 2 p; |z| < 4."""
    problem = Problem(squares[loss], jnp.asarray(0.7), np.ones(3), 3)
    got = find_reference(problem, "auto", search(key)).reference
    assert got.kind == "smoothed"
    assert f"the step has no derivative in reverse mode ({UNDERIVED[loss]}" in got.note
    assert abs(float(got.grad) - 1.4) < 4 * got.error * got.norm
    with pytest.raises(ux.InvalidArgument, match='reference="bptt" must be a gradient, but the step has no derivative'):
        find_reference(problem, "bptt", search(key))


@pytest.mark.parametrize(
    ("loss", "make", "says"),
    [
        (called, lambda s: ux.BPTT(s, 2), "in reverse mode for bptt, got none .Pure callbacks"),
        (looped, lambda s: ux.TBPTT(s, window=1, horizon=2), "in reverse mode for tbptt:1, got none .Reverse-mode"),
        (one_way, lambda s: ux.ForwardGradient(s, window=1, horizon=2), "in forward mode for forward-gradient:1, got"),
    ],
)
def test_an_estimator_that_takes_a_derivative_that_is_not_there_is_named(loss, make, says, key):
    params = jnp.float32(0.7)
    with pytest.raises(ux.InvalidArgument, match=says):
        ux.compare([make(squares[loss])], params, np.ones(2, np.float32), key=key, samples=4, reference=params)


def test_an_error_of_the_step_itself_is_told_as_it_is(key):
    def breaks(params, state, x, key):
        raise ValueError("mine")

    broken = ux.system(init=lambda key, params: (), step=breaks)
    with pytest.raises(ValueError, match=r"^mine"):
        ux.compare([ux.ES(broken, std=0.1, window=1, horizon=2)], jnp.asarray(1.0), key=key, samples=4)


def test_a_derivative_that_fixes_float32_is_the_reference_in_it(key):
    problem = Problem(squares[one_way], jnp.float32(0.7), np.ones(2, np.float32), 2)
    got = find_reference(problem, "auto", search(key)).reference
    assert (got.kind, got.dtype) == ("exact", "float32")
    np.testing.assert_allclose(got.grad, 1.4, rtol=1e-6)


def test_without_a_gradient_figures_are_absolute(key):
    flat = ux.system(init=lambda k, p: (), step=lambda p, s, x, k: (s, p**2))
    found = ux.compare([ux.BPTT(flat, 2)], jnp.asarray(0.0), key=key, samples=4)
    assert (found.reference.kind, found.reference.norm, found.rows[0].bias) == ("exact", 0.0, 0.0)
    assert "figures are absolute" in found.reference.note


def test_a_given_reference_is_taken(key):
    found = ux.compare([ux.BPTT(linear, 2)], jnp.zeros(2), key=key, samples=4, reference=np.array([3.0, 4.0]))
    np.testing.assert_allclose(found.rows[0].bias, np.linalg.norm(SLOPE - [3, 4]) / 5, rtol=1e-12)
    assert found.reference.kind == "given"


COSTED = {
    "bptt": (lambda s: ux.BPTT(s, T), 3),
    "sqrt": (lambda s: ux.BPTT(s, T, memory="sqrt"), 4),
    "overlap": (lambda s: ux.TBPTT(s, **TIME, overlap=2, x=DATA[0]), 6),
    "rtrl": (lambda s: ux.RTRL(s, **TIME, mode="forward"), 3),
    "uoro": (lambda s: ux.UORO(s, **TIME), 6),
    "forward": (lambda s: ux.ForwardGradient(s, **TIME, directions=5), 6),
    "nres": (lambda s: ux.NRES(s, **TIME, **NOISE), 8),
    "mean": (lambda s: ux.mean_over(ux.ES(s, **TIME, **NOISE), 3), 27),
    "implicit": (lambda s: ux.Implicit(s, **TIME, solver="dense"), 6),
}


@pytest.mark.parametrize("name", COSTED)
def test_steps_are_those_of_the_formula_and_of_counting(name, key, monkeypatch):
    """A step forward is 1, a tangent 1, a cotangent 2; counted in the traced program of an estimator that says nothing."""
    make, steps = COSTED[name]
    estimator = make(quadratic())
    piece = DATA[: estimator.window]
    assert steps_of(estimator, start(), piece, key).each == steps
    monkeypatch.setattr(type(estimator), "traits", None)
    counted = steps_of(estimator, start(), piece, key)
    assert (counted.each, counted.note) == (pytest.approx(steps), "steps counted")


def test_steps_of_a_loop_of_unknown_length_are_by_the_clock(key):
    found = ux.compare([ux.Implicit(leak, window=2)], 0.5, np.ones(T), key=key, samples=4, horizon=T, reference=1.0)
    assert found.rows[0].note == BY_TIME
    assert found.rows[0].steps > 0


def test_steps_by_the_clock_are_in_those_of_the_others(key):
    """Formula steps and clock steps are in proportion to seconds, of which there is one scale for both."""
    some = {"cut": ux.TBPTT(leak, window=2, horizon=T), "fixed": ux.Implicit(leak, window=2)}
    found = ux.compare(some, 0.5, np.ones(T), key=key, samples=4, horizon=T, reference=1.0, unit="steps")
    cut, fixed = found.rows
    assert (cut.steps, cut.note, fixed.note) == (3 * T, "", BY_OTHERS)
    np.testing.assert_allclose(fixed.steps / cut.steps, fixed.seconds / cut.seconds, rtol=1e-12)


class Known:
    """An estimator that always returns the same, and says nothing of itself."""

    def init(self, key, params):
        return ()

    def estimate(self, params, state, data):
        return state, ux.Estimate(jnp.zeros(()), params, ())


def test_an_unknown_cost_is_no_bias(key):
    def once(unit):
        return ux.compare(
            {"mine": Known()}, jnp.ones(2), key=key, samples=4, horizon=2, reference=np.ones(2), unit=unit
        )

    found = once("steps")
    assert found.recommended == "mine"
    assert found.reason.startswith("mine reaches a relative error of 0.1 in the least time, ")
    assert found.reason.endswith("; what it costs in steps is unknown.")
    assert found.rows[0].note == UNKNOWN
    assert str(found).splitlines()[3].split()[-1] == "unknown"
    assert found.error_at(1e9) == {"mine": math.inf}
    assert once("seconds").reason.startswith("mine reaches a relative error of 0.1 for")
    other = row("other", cost_to=10.0)
    assert "; what mine costs in steps is unknown." in recommend([other, found.rows[0]], "steps", 0.1)[1]


def test_the_nearest_is_said_with_what_its_bias_is_below():
    vague = row("vague", bias=0.0, bias_error=0.3, resolved=False, cost_to=math.inf)
    assert recommend([vague], "steps", 0.1)[1].endswith("vague comes nearest, with a bias below 0.4.")
    sure = row("sure", bias=0.2, cost_to=math.inf)
    assert recommend([sure], "steps", 0.1)[1].endswith("sure comes nearest, with a bias of 0.2.")


def test_memory_grows_with_the_window_of_the_backward_pass(key):
    """BPTT keeps at least a number of each of its steps, a window of one step does not."""
    steps = 4096
    bent = ux.system(init=lambda k, p: jnp.zeros(()), step=lambda p, s, x, k: (jnp.tanh(p * s + 1), s))
    found = ux.compare(
        [ux.BPTT(bent, steps), ux.TBPTT(bent, window=1, horizon=steps)], 0.5, key=key, samples=4, reference=1.0
    )
    whole, short = found.rows
    assert whole.bytes >= 8 * steps > short.bytes
    assert (whole.updates, short.updates) == (1, steps)


def test_cost_is_that_of_as_many_samples_as_the_error_needs():
    noisy = row("noisy", bias=0.06, std=0.8)
    needed = cost_to(noisy, 10.0, 0.1)
    np.testing.assert_allclose(needed, 10 * 0.64 / 0.0064)
    np.testing.assert_allclose(error_at(noisy, 10.0, needed), 0.1)
    assert error_at(noisy, 10.0, 9.0) == math.inf
    assert cost_to(row("sure", bias=0.06), 10.0, 0.1) == 10
    assert cost_to(row("biased", bias=0.1), 10.0, 0.1) == math.inf
    assert cost_to(row("unresolved", bias=0.2, resolved=False, unbiased=True), 10.0, 0.1) == 10
    assert cost_to(row("broken", nonfinite=0.1), 10.0, 0.1) == math.inf


MB = 2**20
VERDICTS = {
    "least cost": ([{"cost_to": 10.0, "bytes": 9 * MB}, {"cost_to": 16.0, "updates": 9}], 0),
    "then memory": ([{"cost_to": 10.0, "bytes": 9 * MB, "updates": 9}, {"cost_to": 14.0, "bytes": 8 * MB}], 1),
    "a tenth of it is none": (
        [{"cost_to": 14.0, "bytes": 21 * MB, "updates": 2}, {"cost_to": 10.0, "bytes": 20 * MB}],
        0,
    ),
    "nor what a cache holds": ([{"cost_to": 14.0, "bytes": MB, "updates": 2}, {"cost_to": 10.0, "bytes": 10}], 0),
    "then cost": ([{"cost_to": 11.0}, {"cost_to": 10.0}], 1),
    "else the least bias": ([{"cost_to": math.inf, "bias": 0.3}, {"cost_to": math.inf, "bias": 0.2}], 1),
    "finite first": ([{"cost_to": math.inf, "bias": 0.3}, {"cost_to": math.inf, "nonfinite": 0.5}], 0),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_rule_of_the_recommendation(name):
    rows, best = VERDICTS[name]
    chosen, reason = recommend([row(str(i), **changes) for i, changes in enumerate(rows)], "steps", 0.1)
    assert chosen == str(best)
    assert reason.startswith(("none reaches", chosen))


def test_a_comparison_prints_a_table_and_becomes_json(key):
    long = {"a name that is far too long for any table at all": ux.NRES(linear, window=1, horizon=2, **NOISE)}
    found = ux.compare({**long, "bptt": ux.BPTT(linear, 2)}, jnp.ones(2), key=key, samples=8, unit="steps")
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 120
    assert next(each for each in lines if each.startswith("bptt")).split()[1] == "<"  # nothing but rounding
    back = json.loads(json.dumps(found.to_dict()))
    assert back["recommended"] == found.recommended == "bptt"
    assert back["rows"][1]["steps"] == 6
    assert back["frontier"] == ["bptt"]
    assert len(back["curves"]["compute"]) == len(back["curves"]["error"]["bptt"])
    np.testing.assert_allclose(found.error_at(100.0)["bptt"], 0, atol=1e-12)
    nres = found.rows[0]
    np.testing.assert_allclose(found.error_at(1600.0)[nres.name], nres.std / 10, rtol=1e-12)


def test_a_stream_is_read_from_its_start_and_longer_data_are_cut(key):
    def stream(t, steps):
        return jnp.asarray(DATA[:, 0])[t : t + steps]

    tbptt, rows = [ux.TBPTT(leak, window=2, horizon=4)], DATA[:, 0]
    biases = [ux.compare(tbptt, 0.5, data, key=key, samples=4).rows[0].bias for data in (stream, rows, rows[:4])]
    assert biases[0] == biases[1] == biases[2] > 0


def test_repeated_data_have_no_time_axis(key):
    scaled = ux.system(init=lambda k, p: (), step=lambda p, s, x, k: (s, p @ x))
    found = ux.compare([ux.TBPTT(scaled, window=1, horizon=3)], jnp.zeros(2), ux.repeat(SLOPE), key=key, samples=4)
    np.testing.assert_allclose(found.reference.grad, SLOPE)


def test_all_of_a_call_follows_from_its_key(key):
    def once(key):
        found = ux.compare(
            [ux.NRES(linear, window=1, horizon=2, **NOISE)], jnp.ones(2), key=key, samples=4, unit="steps"
        )
        return list(found.rows[0]._replace(seconds=0))

    assert once(key) == once(key) != once(jax.random.key(1))


def test_names_are_those_of_the_command_line():
    names = [
        ux.BPTT(linear, 4),
        ux.TBPTT(linear, window=2, horizon=4),
        ux.RandomizedTBPTT(linear, window=2, horizon=4),
        ux.FullES(linear, std=0.1, horizon=4),
        ux.ESSingle(linear, std={"a": 0.1}, window=2, horizon=4),
        ux.SnAp(linear, window=2),
        ux.ForwardGradient(linear, window=2),
    ]
    expected = [
        "bptt",
        "tbptt:2",
        "randomized-tbptt:2",
        "full-es std=0.1",
        "es-single:2",
        "snap:2",
        "forward-gradient:2",
    ]
    assert [name_for(estimator) for estimator in names] == expected
    same = ux.compare([ux.BPTT(linear, 2), ux.BPTT(linear, 2)], jnp.ones(2), key=jax.random.key(0), samples=4)
    assert [each.name for each in same.rows] == ["bptt", "bptt #2"]


def test_staggering_inside_a_combination_is_seen():
    nres = ux.NRES(linear, **TIME, **NOISE)
    assert plan_of(ux.mean_over(nres, 2), T).warm == 0
    assert plan_of(ux.mean_over(replace(nres, stagger=True), 2), T).warm == 1


bptt = ux.BPTT(linear, 4)
MISUSES = {
    "at least one, got none": {"estimators": {}},
    "must have init and estimate, got the class BPTT for 'a'": {"estimators": {"a": ux.BPTT}},
    "must have init and estimate, got int": {"estimators": [3]},
    "same horizon, got 4 for bptt against 8": {"estimators": [bptt, ux.BPTT(linear, 8)]},
    "Pass horizon=": {"estimators": [ux.TBPTT(linear, window=2)]},
    "multiple of each window, got horizon=5, window=2 for tbptt:2": {
        "estimators": [ux.TBPTT(linear, window=2)],
        "horizon": 5,
    },
    "at least 4 steps on its first axis, got float64\\[3,2\\]": {"data": np.zeros((3, 2))},
    "must be one horizon of data or a stream data.t, steps., got generator": {"data": (i for i in range(3))},
    "reference leaf .root. must be float64\\[2\\], got float64\\[3\\]": {"reference": np.zeros(3)},
    "reference must be finite": {"reference": np.array([np.nan, 0])},
    "reference must be one of": {"reference": "exact"},
    "samples must be at least 4": {"samples": 2},
    "tolerance must be a positive number": {"tolerance": 0.0},
    "scale must be a positive number": {"scale": -1.0},
    "unit must be one of": {"unit": "hours"},
    "params must be those of the system, got a Gaussian": {"params": ux.Gaussian(jnp.zeros(2), jnp.zeros(()))},
    "params leaf .root. must be real floating": {"params": np.zeros(2, int)},
}


@pytest.mark.parametrize("message", MISUSES)
def test_misuse_is_told(message, key):
    given = {"estimators": [bptt], "params": jnp.zeros(2), "data": None} | MISUSES[message]
    with pytest.raises((ux.InvalidArgument, ux.StructureError), match=message):
        ux.compare(given.pop("estimators"), given.pop("params"), given.pop("data"), key=key, **given)


def test_an_infinite_loss_near_by_is_told(key):
    edge = ux.system(init=lambda k, p: (), step=lambda p, s, x, k: (s, jnp.log(p)))
    with pytest.raises(ux.InvalidArgument, match="loss must be finite under noise of std 1"):
        ux.compare([ux.BPTT(edge, 2)], jnp.asarray(1e-3), key=key, samples=4, scale=1.0)


def test_misuse_of_a_sweep_is_told():
    with pytest.raises(ux.InvalidArgument, match="BPTT must have a field window"):
        ux.sweep(bptt, window=(1, 2))
    with pytest.raises(ux.InvalidArgument, match="horizon must be a multiple of window, got horizon=6, window=4"):
        ux.sweep(ux.TBPTT(linear, **TIME), window=(2, 4))
    with pytest.raises(ux.InvalidArgument, match="std must be a positive number"):
        ux.sweep(ux.PES(linear, **TIME, **NOISE), std=(0.1, -1.0))


def test_a_bias_that_the_samples_cannot_tell_is_no_proof_for_those_that_may_have_one():
    unclear = row("some", bias=0.05, bias_error=0.3, resolved=False, std=0.1)
    assert unclear.limit > 0.1
    assert cost_to(unclear, 10.0, 0.1) == np.inf
    assert cost_to(unclear._replace(unbiased=True), 10.0, 0.1) == 10.0
    rows = [
        unclear._replace(cost_to=np.inf),
        row("exact", unbiased=True, resolved=False, cost_to=10.0),
    ]
    assert "some may be too biased (below" in recommend(rows, "steps", 0.1)[1]


def test_an_uncertain_reference_is_said(key):
    """A loss whose slope is drawn anew at each step with 30 times its mean: few keys can't tell the mean."""
    wild = ux.system(
        init=lambda key, params: (), step=lambda p, s, x, k: (s, (p * (1 + 30 * jax.random.normal(k, (3,)))).sum())
    )
    some = {"bptt": ux.BPTT(wild, horizon=2)}
    found = ux.compare(some, jnp.zeros(3), None, key=key, samples=4, unit="steps", tolerance=0.02)
    assert found.reference.error > 0.02
    assert "the reference itself is only known to" in found.reason
