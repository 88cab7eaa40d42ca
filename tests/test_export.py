"""An exported algorithm computes what the unfolded one does, without JAX."""

import csv
import importlib.util
import io
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax._export import export
from unrollax._schedules import per_step, periodic, resolve, shared
from unrollax.systems import Unfold

A = np.random.RandomState(0).randn(6, 10) / 3


class Sparse:
    def draw(self, key):
        x = jax.random.normal(key, (10,)) * (jax.random.uniform(key, (10,)) < 0.3)
        return A @ x, x

    def whole(self, own):
        return Measured(jnp.asarray(A), *own)


@ux.value
class Measured:
    A: jax.Array
    y: jax.Array
    x: jax.Array


def soft(v, threshold):
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - threshold, 0.0)


def iteration(theta, x, problem):
    x, before = x["x"], x["before"]
    z = x + theta["momentum"] * (x - before)
    v = z + theta["step"] * theta["matrix"] @ (problem.y - problem.A @ z)
    return {"x": soft(v, theta["lam"]), "before": x}


def start(problem):
    zero = jnp.zeros(problem.A.shape[1], problem.A.dtype)
    return {"x": zero, "before": zero}


NET = Unfold(
    iteration=iteration,
    start=start,
    error=lambda x, problem: jnp.mean((x["x"] - problem.x) ** 2),
    sample=Sparse(),
    horizon=6,
    batch=4,
)


def params(matrix=A.T):
    return {
        "step": per_step(jnp.linspace(0.1, 0.3, 6), 6, transform="log"),
        "lam": periodic(jnp.array([0.1, 0.05]), 2),
        "momentum": shared(0.2),
        "matrix": jnp.asarray(matrix),
    }


def solved(params, problem, iterations):
    x = start(problem)
    for t in range(iterations):
        x = iteration(resolve(params, t), x, problem)
    return x


def module_of(source, folder):
    """Save a source as a module, its arrays beside it, and import it."""
    path = folder / "exported.py"
    path.write_text(source.text, encoding="utf-8")
    if source.arrays:
        np.savez(path.with_suffix(".npz"), **source.arrays)
    spec = importlib.util.spec_from_file_location("exported", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def problem():
    return Sparse().whole(Sparse().draw(jax.random.key(1)))


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_an_exported_module_solves_as_the_trained_net_does(tmp_path, problem, iterations):
    module = module_of(export(NET, params(), answer=lambda x: x["x"]), tmp_path)
    got = module.solve(SimpleNamespace(A=A, y=np.asarray(problem.y)), iterations)
    want = solved(params(), problem, iterations)["x"]
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_without_an_answer_a_module_gives_the_state(tmp_path, problem):
    got = module_of(export(NET, params()), tmp_path).solve(problem)
    want = solved(params(), problem, 6)
    np.testing.assert_allclose(got["before"], want["before"], rtol=1e-12, atol=1e-12)


def test_large_arrays_lie_beside_the_module(tmp_path):
    wide = np.random.RandomState(1).randn(40, 30)
    net = Unfold(
        iteration=lambda theta, x, problem: x - theta["step"] * theta["w"].T @ (theta["w"] @ x - problem),
        start=lambda problem: jnp.zeros(30),
        error=lambda x, problem: jnp.sum(x**2),
        sample=lambda key: jax.random.normal(key, (40,)),
        horizon=3,
        batch=2,
    )
    source = export(net, {"step": per_step(0.01, 3), "w": jnp.asarray(wide)})
    assert list(source.arrays) == ["W"]
    y, x = np.random.RandomState(2).randn(40), np.zeros(30)
    for _ in range(3):
        x = x - 0.01 * wide.T @ (wide @ x - y)
    np.testing.assert_allclose(module_of(source, tmp_path).solve(y), x, rtol=1e-12, atol=1e-12)


def test_a_module_runs_where_jax_can_not_be_imported(tmp_path):
    module_of(export(NET, params(), answer=lambda x: x["x"]), tmp_path)
    code = (
        "import sys, types; sys.modules['jax'] = None; import numpy as np, exported;"
        "print(exported.solve(types.SimpleNamespace(A=np.ones((6, 10)), y=np.ones(6))).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(10,)", done.stderr


def test_a_module_says_what_a_problem_must_have():
    text = export(NET, params()).text
    assert "problem.A: float64[6,10]" in text.split('"""')[1]
    assert "problem.y: float64[6]" in text.split('"""')[1]
    assert "problem.x" not in text  # the truth is not read
    assert max(map(len, text.splitlines())) < 120
    assert text == export(NET, params()).text


def test_csv_has_a_row_an_iteration_and_a_column_a_number():
    rows = list(csv.reader(io.StringIO(export(NET, {**params(), "matrix": jnp.array([3.0, 4.0])}, to="csv"))))
    assert rows[0] == ["iteration", "lam", "matrix[0]", "matrix[1]", "momentum", "step"]
    assert [row[0] for row in rows[1:]] == list("012345")
    numbers = np.array(rows[1:], float)
    np.testing.assert_array_equal(numbers[:, 1], [0.1, 0.05] * 3)
    np.testing.assert_array_equal(numbers[:, 2:5], [[3.0, 4.0, 0.2]] * 6)
    np.testing.assert_array_equal(numbers[:, 5], [float(resolve(params(), t)["step"]) for t in range(6)])


def test_npz_has_the_numbers_of_all_iterations():
    arrays = export(NET, params(), to="npz")
    assert {name: array.shape for name, array in arrays.items()} == {
        "lam": (6,),
        "matrix": (10, 6),
        "momentum": (6,),
        "step": (6,),
    }
    np.testing.assert_allclose(arrays["step"], np.linspace(0.1, 0.3, 6), rtol=1e-12)


def test_a_csv_file_too_wide_is_refused():
    with pytest.raises(ux.InvalidArgument, match='Use to="npz"'):
        export(NET, params(np.ones((30, 30))), to="csv")


def test_an_unknown_form_is_refused():
    with pytest.raises(ux.InvalidArgument, match="export: to must be one of"):
        export(NET, params(), to="c")
