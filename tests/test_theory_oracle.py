"""The lower bound of schedules and the best periodic ones, against exact and independent computations."""

from fractions import Fraction

import numpy as np
import pytest

from unrollax._errors import InvalidArgument
from unrollax.theory import (
    Baselines,
    Quadratic,
    baselines,
    best_periodic,
    chebyshev_steps,
    log_schedule_error,
    oracle,
    oracle_steps,
    quadratic,
    schedule_error,
)

AT = [4, 8, 16, 32, 50]
SHOWN = {  # the table, to the digits that it gives
    "gd": [1.36e-1, 4.79e-2, 8.66e-3, 4.53e-4, 2.11e-5],
    "heavy_ball": [4.47e-2, 3.01e-3, 1.21e-5, 8.34e-11, 7.66e-17],
    "chebyshev_4": [5.54e-2, 5.80e-3, 8.59e-5, 2.57e-8, 4.33e-12],
    "chebyshev_8": [2.18e-1, 2.45e-3, 1.06e-5, 2.60e-10, 4.04e-15],
    "oracle": [4.10e-2, 1.82e-3, 1.17e-6, 5.8e-15, 0.0],
}


def ridge(seed):
    return quadratic(np.random.RandomState(seed).randn(100, 50), 3.0)


@pytest.fixture(scope="module")
def table():
    return baselines(np.random.RandomState(0).randn(100, 50), 50, lam=3.0)


@pytest.mark.parametrize("method", SHOWN)
def test_baselines_are_the_published_figures(table, method):
    np.testing.assert_allclose(table[method][AT], SHOWN[method], rtol=4e-3)


def test_the_condition_number_and_the_other_seeds_oracles_are_the_published_ones():
    assert ridge(0).condition == pytest.approx(24.5, abs=0.05)
    np.testing.assert_allclose(oracle(ridge(0), 8)[[4, 8]], [4.099e-2, 1.8216e-3], rtol=1e-4)
    np.testing.assert_allclose(oracle(ridge(1), 8)[[4, 8]], [3.2455e-2, 1.1919e-3], rtol=2e-5)


def solved(rows, right):
    """Solve linear equations in fractions."""
    rows = [[*row, b] for row, b in zip(rows, right, strict=True)]
    for i in range(len(rows)):
        rows[i] = [number / rows[i][i] for number in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[-1] for row in rows]


def test_the_oracle_is_the_least_squares_solution_in_exact_fractions():
    h = [Fraction(k, 8) for k in (3, 5, 6, 10, 11, 17, 25, 40, 41, 42, 60, 99)]
    w = [Fraction(1, 2 ** (k % 5)) for k in range(12)]
    found = oracle(Quadratic(h=[float(x) for x in h], w=[float(x) for x in w], L=99 / 8, mu=3 / 8), 12)
    for degree in (1, 5, 9, 11):
        powers = range(1, degree + 1)
        moments = [[sum(b * x ** (i + k) for b, x in zip(w, h, strict=True)) for k in powers] for i in powers]
        right = [-sum(b * x**i for b, x in zip(w, h, strict=True)) for i in powers]
        p = [Fraction(1), *solved(moments, right)]
        squares = [b * sum(a * x**i for i, a in enumerate(p)) ** 2 for b, x in zip(w, h, strict=True)]
        assert found[degree] == pytest.approx(float(sum(squares)), rel=1e-14)
    assert found[12] == 0


def test_the_oracle_is_christoffels_sum_down_to_1e_33():
    # 1 / sum_k q_k(0)^2, with the orthonormal polynomials of w by Lanczos' method in float64, orthogonalised anew
    problem, degree = ridge(0), 49
    h, w = problem.h, problem.w
    vectors, at_zero, sides = [np.sqrt(w / w.sum())], [1 / np.sqrt(w.sum())], []
    for k in range(degree):
        v = h * vectors[-1]
        alpha = vectors[-1] @ v
        for _ in range(2):
            for u in vectors:
                v = v - (u @ v) * u
        before = sides[-1] * at_zero[-2] if k else 0.0
        sides.append(np.linalg.norm(v))
        vectors.append(v / sides[-1])
        at_zero.append((-alpha * at_zero[-1] - before) / sides[-1])
    np.testing.assert_allclose(oracle(problem, degree), 1 / np.cumsum(np.square(at_zero)), rtol=1e-8)


@pytest.mark.parametrize(("n", "digits"), [(1, 1e-14), (4, 1e-13), (16, 1e-12), (32, 1e-8)])
def test_the_oracles_steps_reach_it(n, digits):
    problem = ridge(0)
    steps = oracle_steps(problem, n)
    assert schedule_error(steps, problem.h, problem.w)[-1] == pytest.approx(oracle(problem, n)[-1], rel=digits)
    assert (steps >= 1 / problem.L).all()
    assert (steps < 1 / problem.mu).all()


def test_no_schedule_is_below_the_oracle():
    problem, random = ridge(1), np.random.RandomState(0)
    bound = oracle(problem, 8)
    for scale in np.logspace(-3, 0, 30):
        steps = oracle_steps(problem, 8) * (1 + scale * random.randn(8))
        assert (schedule_error(steps, problem.h, problem.w) >= bound * (1 - 1e-12)).all()


def test_steps_beyond_the_spectrum_change_nothing():
    problem = Quadratic(h=[1.0, 2.0, 2.0], w=[0.5, 0.25, 0.25], L=2.0, mu=1.0)
    assert oracle(problem, 4)[2:].tolist() == [0.0, 0.0, 0.0]
    assert schedule_error(oracle_steps(problem, 4), problem.h, problem.w)[-1] == 0
    weightless = Quadratic(h=[1.0, 2.0, 7.0], w=[0.5, 0.5, 0.0], L=2.0, mu=1.0)
    np.testing.assert_array_equal(oracle(weightless, 4), oracle(problem, 4))


def test_for_an_interval_chebyshev_steps_are_the_oracle():
    interval = quadratic(L=24.5, mu=1.0)
    bound = oracle(interval, 8)
    for n in (1, 3, 8):
        steps = chebyshev_steps(n, 24.5, 1.0)
        assert schedule_error(steps, interval.h)[-1] == pytest.approx(bound[n], rel=1e-9)
        assert sorted(oracle_steps(interval, n)) == sorted(steps)
    assert oracle((2.0, 2.0), 3).tolist() == [1.0, 0.0, 0.0, 0.0]


# The 9.41e-16 for period 8 is the optimum in which the fourth and fifth step are used once more; the second and
# third do better.
@pytest.mark.parametrize(("period", "published", "best"), [(4, 2.04e-12, 2.0437e-12), (8, 9.41e-16, 8.8536e-16)])
def test_the_best_periodic_schedules_are_the_published_ones_or_better(period, published, best):
    problem = ridge(0)
    steps = best_periodic(problem, period, 50)
    error = schedule_error(np.resize(steps, 50), problem.h, problem.w)[-1]
    assert error == pytest.approx(best, rel=1e-4)
    assert error < published * 1.003
    random = np.random.RandomState(0)
    for scale in (1e-4, 1e-2, 0.3):
        for _ in range(50):
            near = np.resize(steps * (1 + scale * random.randn(period)), 50)
            assert schedule_error(near, problem.h, problem.w)[-1] > error


def test_the_best_schedule_that_is_not_repeated_is_the_oracles():
    problem = ridge(0)
    np.testing.assert_allclose(np.sort(best_periodic(problem, 5, 5)), np.sort(oracle_steps(problem, 5)), rtol=1e-7)


def test_the_best_of_period_1_is_the_best_constant():
    problem = ridge(0)
    grid = np.linspace(1 / problem.L, 2 / problem.L, 2001)
    errors = [schedule_error(np.full(20, step), problem.h, problem.w)[-1] for step in grid]
    assert best_periodic(problem, 1, 20)[0] == pytest.approx(grid[np.argmin(errors)], abs=grid[1] - grid[0])


def test_many_choices_of_a_remainder_are_not_all_tried():
    problem = ridge(0)
    steps = best_periodic(problem, 12, 18)
    log_error = lambda steps: log_schedule_error(np.resize(steps, 18), problem.h, problem.w)[-1]
    for nudge in 1e-5 * np.eye(12):
        slope = (log_error(steps * (1 + nudge)) - log_error(steps * (1 - nudge))) / 2e-5
        assert slope == pytest.approx(0, abs=1e-4)
    chebyshev = np.resize(chebyshev_steps(12, problem.L, problem.mu, "ascending"), 18)
    after = [schedule_error(eta, problem.h, problem.w)[-1] for eta in (np.resize(steps, 18), chebyshev)]
    assert after[0] < after[1]


def test_baselines_print_a_table_and_are_data(table):
    lines = str(table).splitlines()
    assert lines[0].split() == ["iterations", "4", "8", "16", "32", "50"]
    assert lines[1].split() == ["gd", "1.36e-01", "4.79e-02", "8.66e-03", "4.53e-04", "2.11e-05"]
    assert table.table(at=[1]).splitlines()[0].split() == ["iterations", "1"]
    assert table.to_dict()["oracle"][50] == 0.0
    assert isinstance(table.to_dict()["cg"][3], float)
    problem = table.quadratic
    for method, steps in table.steps.items():
        at = 32 if method != "oracle" else 0
        assert schedule_error(steps, problem.h, problem.w)[at] == pytest.approx(table[method][at], rel=1e-12)


def test_every_method_is_above_the_oracle_and_conjugate_gradients_need_not_be(table):
    for method in set(table.errors) - {"cg"}:
        assert (table[method] >= table["oracle"] * (1 - 1e-9)).all(), method
    assert table["cg"][16] < table["oracle"][16]


def test_baselines_of_an_interval_are_the_worst_case():
    found = baselines((24.5, 1.0), 12)
    assert isinstance(found, Baselines)
    assert "cg" not in found.errors
    rate = (24.5 - 1) / (24.5 + 1)
    np.testing.assert_allclose(found["gd"], rate ** (2 * np.arange(13)), rtol=1e-12)
    np.testing.assert_allclose(found["semi_iteration"], found["oracle"], rtol=1e-9)
    assert found["chebyshev_4"][8] == pytest.approx(found["oracle"][4] ** 2, rel=1e-9)
    assert baselines((2.0, 2.0), 3)["semi_iteration"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_messages_name_what_is_wrong():
    with pytest.raises(InvalidArgument, match="expected a matrix, a pair"):
        baselines("A", 3)
    with pytest.raises(InvalidArgument, match=r"bounds must be a pair \(L, mu\), got 3 numbers"):
        oracle((1.0, 2.0, 3.0), 3)
    with pytest.raises(InvalidArgument, match="period must be at most n, got period=8, n=4"):
        best_periodic(ridge(0), 8, 4)
    with pytest.raises(InvalidArgument, match="Take chebyshev_steps"):
        best_periodic((2.0, 1.0), 2, 4)
    with pytest.raises(InvalidArgument, match="period must be a positive whole number, got period=0"):
        baselines((2.0, 1.0), 4, periods=[0])
