"""`unrollax unfold` on files that do not fit: one message, an exit code, no traceback of ours."""

import numpy as np
import pytest
from typer.testing import CliRunner

from unrollax.cli._app import app

pytestmark = pytest.mark.usefixtures("here")

MINE = """
import jax, jax.numpy as jnp, optax
import unrollax as ux

def iteration(theta, x, problem):
    return {iteration}

net = ux.Unfold(iteration, lambda problem: jnp.zeros(2), lambda x, problem: {error}, lambda key: jax.random.normal(key, (2,)),
                3, 5)
mine = ux.Unfolding({net}, {params}, {plan}, optax.sgd(0.1), {baselines})
"""
PLAIN = {
    "iteration": "x - theta['eta'] * (x - problem)",
    "error": "((x - problem) ** 2).sum()",
    "net": "net",
    "params": "{'eta': ux.per_step(0.1, 3)}",
    "plan": "ux.one_shot(3, 5)",
    "baselines": "{}",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(arguments, code):
    done = CliRunner().invoke(app, ["unfold", *arguments.split(), "-q"])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.stderr
    return done.stderr


FILES = {
    "the iteration must keep the shape and dtype of each leaf of x, (root) was float64[2] from start, got float32[2].": (
        {"iteration": "(x - theta['eta'] * (x - problem)).astype(jnp.float32)"},
        3,
    ),
    "params must hold 'lr', which the iteration reads, got 'eta'.": ({"iteration": "theta['lr'] * x"}, 3),
    "line 6, in iteration\n    return x @ jnp.ones(7)": ({"iteration": "x @ jnp.ones(7)"}, 3),
    "error must return a real floating scalar for one problem, got complex128[].": ({"error": "1j * x.sum()"}, 3),
    "per-step schedule ['eta'] must have an entry for each of the 3 iterations, got 2.": (
        {"params": "{'eta': ux.per_step(0.1, 2)}"},
        2,
    ),
    "the period of schedule ['eta'] must be at most the depth, or entries have no use, got period=9 for depth=3.": (
        {"params": "{'eta': ux.periodic(0.1, 9)}"},
        2,
    ),
    "mine.py:mine: net must be an Unfold, got NoneType.": ({"net": "None"}, 2),
    "mine.py:mine: plan must be a plan, got int.": ({"plan": "100"}, 2),
    "mine.py:mine: baselines must be a mapping, got list.": ({"baselines": "[1.0]"}, 2),
    "mine.py:mine: baseline 'gd' must have the errors after 0 to 3 iterations, [4], got [2].": (
        {"baselines": "{'gd': [1.0, 0.5]}"},
        2,
    ),
    "got NaN or infinity at step 1 (loss nan": ({"error": "jnp.log(-1 - (x**2).sum())"}, 4),
}


@pytest.mark.parametrize("says", FILES)
def test_a_file_of_ones_own_is_answered(says, tmp_path):
    parts, code = FILES[says]
    (tmp_path / "mine.py").write_text(MINE.format(**PLAIN | parts))
    assert says in run("mine.py:mine", code)


A, Y = np.random.default_rng(0).normal(size=(6, 4)), np.ones((20, 6))
HOLED = np.where(A[0, 0] == A, np.nan, A)
ARRAYS = {
    "y must be [6] or [count, 6], with an entry for a row of A float64[6,4], got float64[20,5].": ({"y": Y[:, :5]}, 3),
    "A must hold finite numbers, got 1 that are not.": ({"A": HOLED}, 2),
    "A must not be zero": ({"A": 0 * A}, 2),
    "A of own.npz must have finite squares, got numbers up to": ({"A": 1e200 * A}, 2),
    "noise of own.npz must be one real number": ({"noise": np.ones(3)}, 2),
    "own.npz must hold arrays of numbers, got: Object arrays": ({"A": np.array([{}], dtype=object)}, 2),
}


@pytest.mark.parametrize("says", ARRAYS)
def test_arrays_of_ones_own_are_answered(says):
    parts, code = ARRAYS[says]
    np.savez("own.npz", **{"A": A, "y": Y} | parts)
    assert says in run("linear --set path=own.npz --depth 3 --steps 5", code)


def test_tables_of_ones_own_are_answered(tmp_path):
    (tmp_path / "A.csv").write_text("1,2\n3,four\n")
    (tmp_path / "y.csv").write_text("1,2\n")
    says = run(f"linear --set path={tmp_path}", 2)
    assert "A.csv must hold numbers with commas between, got: could not convert string 'four'" in says


def test_numbers_that_can_not_be_are_answered():
    assert "--depth must be 1 or more, got 0." in run("ridge --depth 0", 2)
    assert "fewer measurements than unknowns, got float64[5,3]" in run(
        "sparse --depth 2 --set rows=5 --set columns=3 --algorithm alista", 3
    )
    assert "at step 2 (loss nan" in run("ridge --set rows=6 --set columns=4 --depth 3 --steps 5 --lr 1e9", 4)
