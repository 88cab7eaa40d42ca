"""`unrollax train` as a user meets it: a file of their own, what a run leaves behind, and every way in which it can end."""

import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

import unrollax as ux
from unrollax.cli import _train
from unrollax.cli._app import app
from unrollax.cli._names import ESTIMATORS

MINE = """
import jax.numpy as jnp
import optax
import unrollax as ux


def step(params, state, x, key):
    state = jnp.tanh(params["w"] * state + params["b"] + x)
    return state, ((state - 0.4) ** 2).mean()


def with_system(step, state=0.0):
    net = ux.system(init=lambda key, params: jnp.full(2, state), step=step)
    return experiment._replace(system=net, estimator=ux.BPTT(net, 8))


net = ux.system(init=lambda key, params: jnp.zeros(2), step=step)
PARAMS = {"w": jnp.array([0.5, -0.3]), "b": jnp.zeros(2)}
STREAM = ux.episodes(lambda number: 0.1 * jnp.sin(number + jnp.arange(8.0)), 8)
experiment = ux.Experiment(net, ux.BPTT(net, 8), optax.adam(0.05), PARAMS, STREAM, steps=40)
windows = experiment._replace(data=[0.1 * jnp.ones(8)] * 6, steps=6)
short = experiment._replace(data=[0.1 * jnp.ones(8)] * 3, steps=6)
score = experiment._replace(evaluate=lambda params: 1.0)
clash = experiment._replace(evaluate=lambda params: {"loss": 7.0, "test error": 8.0}, steps=3)


def rated(rate):
    return experiment._replace(optimizer=optax.adam(rate), steps=5)


def make(rate=0.05, *, seed, steps=None):
    seen = {"rate": rate, "seed": seed, "steps": -1 if steps is None else steps}
    return experiment._replace(optimizer=optax.adam(rate), evaluate=lambda params: seen, steps=steps or 5)


def nodata():
    net = ux.system(init=lambda key, params: jnp.zeros(2), step=lambda p, s, x, k: step(p, s, 0.1, k))
    return experiment._replace(system=net, estimator=ux.TBPTT(net, 4), data=None)


def wild():
    net = ux.system(init=lambda key, params: (), step=lambda params, state, x, key: ((), params**2))
    return ux.Experiment(net, ux.BPTT(net, 4), optax.sgd(1e6), 1.0, None, steps=100)


def bad_step():
    def step(params, state, x, key):
        raise ValueError("my own mistake")
    return with_system(step)


def bad_evaluate():
    def evaluate(params):
        return {"error": open("nowhere.npy")}
    return experiment._replace(evaluate=evaluate)


def grows():
    return with_system(lambda params, state, x, key: (jnp.zeros(3), state.sum()))


def interrupted():
    calls = []
    def evaluate(params):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"calls": 1.0}
    return experiment._replace(evaluate=evaluate)
"""
FILES = {"run.toml", "env.json", "metrics.jsonl", "params.safetensors", "report.html"}
START = {"w": np.zeros(2), "b": np.zeros(2)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("mine", "broken"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    Path("mine.py").write_text(MINE)


@pytest.fixture
def unreported(monkeypatch):
    """Many runs in one test: drawing takes half of a short run."""
    monkeypatch.setattr(_train, "render", lambda *parts: "")


def command(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def train(target, *arguments, code=0):
    result = command("train", target, *arguments)
    assert result.exit_code == code, result.stderr
    return result


def records(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def params_bytes(folder):
    return Path(folder, "params.safetensors").read_bytes()


def strict_json(text):
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_file_trains_under_every_estimator_with_nothing_else_changed(estimator):
    train("mine.py:experiment", "--estimator", estimator, "--steps", 60, "--out", "r")
    rows = records("r")
    assert rows[-1]["step"] == 60
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]
    config = tomllib.loads(Path("r/run.toml").read_text())["estimator"]
    assert {"name", "horizon"} <= set(config) <= {"name", *ESTIMATORS[estimator]}
    assert config["horizon"] == 8


@pytest.mark.parametrize("target", ["nodata", "windows"])
def test_no_data_and_an_iterable_of_windows_train_too(target):
    train(f"mine.py:{target}", "--out", "r")
    assert records("r")[-1]["loss"] < records("r")[0]["loss"]


def test_a_run_leaves_a_folder_that_says_what_came_of_it():
    result = train("mine.py:experiment", "--steps", 200)
    folder = Path("runs/mine-experiment-1")
    assert {path.name for path in folder.iterdir()} == FILES
    assert [row["step"] for row in records(folder)] == list(range(2, 201, 2))
    assert set(records(folder)[0]) == {"step", "loss", "grad_norm", "seconds"}
    saved = ux.load_params(folder / "params.safetensors", like=START)
    assert not np.allclose(saved["w"], [0.5, -0.3])
    assert f"report  {folder / 'report.html'}" in result.stdout
    assert "BPTT(system=FunctionSystem(" in (folder / "report.html").read_text()
    assert tomllib.loads((folder / "run.toml").read_text()) == {
        "target": "mine.py:experiment",
        "steps": 200,
        "seed": 0,
    }
    train("mine.py:experiment", "--steps", 1)
    assert Path("runs/mine-experiment-2/report.html").exists()


def test_a_function_gets_its_options_the_seed_and_the_steps():
    result = train("mine.py:make", "--set", "rate=0.25", "--seed", 3, "--json")
    assert strict_json(result.stdout).items() >= {"rate": 0.25, "seed": 3, "steps": -1, "updates": 5}.items()


def test_own_names_of_the_run_are_kept_from_scores():
    result = train("mine.py:clash", "--out", "r", "--json")
    assert strict_json(result.stdout).items() >= {"evaluate_loss": 7.0, "test_error": 8.0}.items()
    assert strict_json(result.stdout)["loss"] == records("r")[-1]["loss"] != 7.0
    assert records("r")[-1]["evaluate_loss"] == 7.0


def test_what_evaluate_must_return_is_said():
    stderr = train("mine.py:score", "-q", code=2).stderr
    assert "evaluate must return named numbers such as {'test accuracy': 0.9}, got float." in stderr


@pytest.mark.parametrize("write", ["raise ValueError('my own mistake')", "x = (", "import nothing_of_this_name"])
def test_a_file_that_cannot_be_imported_is_shown_and_nothing_else(write):
    Path("broken.py").write_text("import unrollax\n\n" + write + "\n")
    stderr = train("broken.py:x", code=3).stderr
    assert "broken.py raised" in stderr.replace(":x", "")
    assert 'broken.py", line 3' in stderr
    assert stderr.count("  File ") == 1


@pytest.mark.parametrize(
    ("target", "says", "where"),
    [
        ("bad_step", "ValueError: my own mistake", "in step"),
        ("bad_evaluate", "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.npy'", "in evaluate"),
    ],
)
def test_the_users_exception_is_shown_with_the_users_frames_only(target, says, where):
    stderr = train(f"mine.py:{target}", "-q", code=3).stderr
    assert stderr.startswith(f"unrollax: mine.py:{target} raised\n")
    assert says in stderr
    files = [line for line in stderr.splitlines() if line.startswith("  File ")]
    assert where in files[-1]
    assert all("mine.py" in line for line in files)
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("target", "code", "updates"), [("bad_evaluate", 3, 4), ("short", 2, 3)])
def test_what_was_trained_before_an_error_is_kept(target, code, updates):
    stderr = train(f"mine.py:{target}", "-q", "--out", "r", code=code).stderr
    assert stderr.endswith(f"The parameters of update {updates} are in r.\n")
    assert {path.name for path in Path("r").iterdir()} == FILES
    assert not np.allclose(ux.load_params("r/params.safetensors", like=START)["w"], [0.5, -0.3])


def test_a_step_that_changes_its_state_is_the_users_error():
    stderr = train("mine.py:grows", "-q", code=3).stderr
    assert "step must keep each state leaf's shape and dtype" in stderr
    assert stderr.count("\n") == 1


def test_divergence_has_its_exit_code_and_leaves_the_last_finite_params():
    result = train("mine.py:wild", "-q", "--json", "--out", "r", code=4)
    assert "parameters must stay finite" in result.stderr
    last = records("r")[-1]["step"]
    assert result.stderr.endswith(f"The parameters of update {last} are in r.\n")
    assert last > 2
    params = ux.load_params("r/params.safetensors", like=np.ones(()))
    assert np.isfinite(params)
    assert params != 1.0
    assert strict_json(result.stdout).items() >= {"loss": "inf", "updates": last}.items()
    assert "parameters must stay finite" in Path("r/report.html").read_text()


def test_ctrl_c_keeps_what_there_is():
    stderr = train("mine.py:interrupted", "-q", "--out", "r", code=130).stderr
    assert stderr == "unrollax: interrupted. The parameters of update 8 are in r.\n"
    assert {path.name for path in Path("r").iterdir()} == FILES
    assert not np.allclose(ux.load_params("r/params.safetensors", like=START)["w"], [0.5, -0.3])


def test_json_is_all_that_stands_on_stdout():
    result = train("mine.py:experiment", "--steps", 3, "--json", "--out", "r")
    assert result.stdout.count("\n") == 1
    row = strict_json(result.stdout)
    assert row.items() >= {"target": "mine.py:experiment", "estimator": "bptt", "updates": 3, "out": "r"}.items()
    assert row["loss"] == records("r")[-1]["loss"]


def test_quiet_prints_no_progress_and_no_terminal_gets_plain_lines():
    assert train("mine.py:experiment", "--steps", 3, "-q").stderr == ""
    lines = train("mine.py:experiment", "--steps", 3).stderr.splitlines()
    assert lines[0] == "compiling ..."
    assert lines[1].startswith("compiled in ")
    assert lines[-1].startswith("update 3/3  loss ")
    assert "\x1b" not in "".join(lines)


@pytest.mark.usefixtures("unreported")
def test_run_toml_repeats_the_run_to_the_bit_and_arguments_stand_above_it():
    train("mine.py:rated", "--estimator", "pes", "--pairs", 4, "--seed", 3, "--set", "rate=0.1", "--out", "a")
    train("a/run.toml", "--out", "b")
    assert params_bytes("a") == params_bytes("b")
    assert Path("a/run.toml").read_text() == Path("b/run.toml").read_text()
    assert [row["loss"] for row in records("a")] == [row["loss"] for row in records("b")]
    for argument in ("--seed=4", "--set=rate=0.2", "--pairs=5", "--lr=0.2", "--std=0.1", "--steps=6"):
        train("a/run.toml", argument, "--out", argument)
        assert params_bytes("a") != params_bytes(argument)
    train("a/run.toml", "--estimator", "bptt", "--out", "c")
    assert tomllib.loads(Path("c/run.toml").read_text())["estimator"] == {
        "name": "bptt",
        "horizon": 8,
        "memory": "full",
    }


@pytest.mark.usefixtures("unreported")
def test_all_randomness_comes_from_the_seed():
    for out, seed in (("a", 5), ("b", 5), ("c", 6)):
        train("mine.py:experiment", "--estimator", "nres", "--steps", 3, "--seed", seed, "--out", out)
    assert params_bytes("a") == params_bytes("b") != params_bytes("c")


def test_a_folder_that_holds_something_is_left_alone():
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    stderr = train("mine.py:experiment", "--out", "full", code=2).stderr
    assert stderr == "unrollax: --out must be a new or empty folder, got full. Choose another, or remove it.\n"
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]
    train("mine.py:experiment", "--out", "mine.py", code=2)
    Path("empty").mkdir()
    train("mine.py:experiment", "--steps", 1, "--out", "empty")


def test_a_folder_that_cannot_be_made_is_answered_with_one_line():
    stderr = train("mine.py:experiment", "--out", "mine.py/r", code=1).stderr
    assert stderr == "unrollax: can't write mine.py/r: Not a directory.\n"
    Path("runs").write_text("in the way")
    assert train("mine.py:experiment", code=1).stderr == "unrollax: can't write runs: File exists.\n"


def test_an_exception_in_a_module_beside_the_users_file_is_the_users_too():
    Path("helper.py").write_text("def step(params, state, x, key):\n    raise KeyError('lost')\n")
    Path("outer.py").write_text(MINE + "\nimport helper\n\ndef outer():\n    return with_system(helper.step)\n")
    stderr = train("outer.py:outer", "-q", "--out", "r", code=3).stderr
    files = [line for line in stderr.splitlines() if line.startswith("  File ")]
    assert "helper.py" in files[-1]
    assert "KeyError: 'lost'" in stderr
    assert not Path("r").exists(), "a run without an update frees its name"


def test_resets_inside_an_episode_are_refused():
    stderr = train("mine.py:experiment", "--estimator", "tbptt", "--horizon", 4, "--window", 2, code=2).stderr
    assert "horizon must be the length of the target's episodes, 8, got horizon=4" in stderr


def test_a_value_that_prints_on_many_lines_leaves_a_readable_run_toml():
    Path("wide.py").write_text(
        MINE
        + """
@ux.value
class Wide:
    table: dict
    def init(self, key, params):
        return jnp.zeros(2)
    def step(self, params, state, x, key):
        return step(params, state, x + self.table["a"].sum(), key)
wide = experiment._replace(estimator=ux.BPTT(Wide({"a": jnp.ones((5, 8)), "b": jnp.ones((3, 3))}), 8), steps=2)
"""
    )
    train("wide.py:wide", "-q", "--out", "r")
    train("r/run.toml", "-q", "--out", "again")
    assert Path("again/params.safetensors").read_bytes() == Path("r/params.safetensors").read_bytes()
