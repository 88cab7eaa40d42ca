"""`unrollax unfold` as a user meets it: what it prints and leaves behind, their own files, and every wrong argument."""

import json
import subprocess
import sys
import tomllib
import types

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import unrollax as ux
from unrollax.cli import _findings, _unfold, _unfold_config
from unrollax.cli._app import app
from unrollax.diagnosis._schedule_report import Finding, ScheduleEntries, ScheduleReport
from unrollax.recipes._unfold_options import UNFOLDINGS

SMALL = "unfold ridge --set rows=20 --set columns=10 --depth 6 --steps 30 --batch 20 -q"
MINE = """
import jax, jax.numpy as jnp, optax
import unrollax as ux

h = jnp.array([1.0, 4.0])


def mine(rate=0.05, *, seed=0):
    net = ux.Unfold(lambda theta, x, problem: x - theta["eta"] * h * (x - problem), lambda problem: jnp.zeros(2),
                    lambda x, problem: ((x - problem) ** 2).sum(), lambda key: jax.random.normal(key, (2,)), 2, 10)
    params = {"eta": ux.per_step(jnp.array([0.3, 0.4]), 2, transform="log")}
    return ux.Unfolding(net, params, ux.one_shot(2, 200), optax.adam(rate))


wrong = 3
"""


pytestmark = pytest.mark.usefixtures("here")


TIED = Finding("tied", "['step']", "entries 0, 1 have equal numbers", "Start apart.")
ENTRIES = ScheduleEntries("periodic", np.ones(4), np.ones(4), np.ones(6), (), (), ((0, 1),))
FOUND = ScheduleReport({"['step']": ENTRIES}, np.ones(7), None, None, None, None, None, (TIED,))


@pytest.fixture(autouse=True)
def found(request, monkeypatch):
    """What is found of schedules is set, since measuring it takes as long as all else; but not where `measured` is."""
    if "measured" not in request.fixturenames:
        monkeypatch.setattr(_unfold, "diagnosed", lambda *_: FOUND)


@pytest.fixture
def measured():
    """Schedules are diagnosed."""


def run(arguments, code=0):
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == code, done.output
    return done


def test_a_run_prints_errors_beside_the_optimum_and_leaves_all_of_it(tmp_path):
    done = run(f"{SMALL} --period 2")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert {"trained", "untrained", "gd", "heavy_ball", "cg", "oracle"} <= set(rows)
    assert "found  step: entries 0, 1 have equal numbers. Start apart." in done.stdout
    folder = tmp_path / "runs" / "ridge-1"
    assert {file.name for file in folder.iterdir()} == {
        "run.toml",
        "env.json",
        "metrics.jsonl",
        "params.safetensors",
        "report.html",
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Schedule step" in page
    assert "<td>Entries 0, 1 have equal numbers.</td><td>Start apart.</td>" in page
    assert page.count("<svg") >= 6
    config = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    assert config["settings"]["algorithm"] == "gradient-descent"
    assert config["options"]["rows"] == 20


def test_the_untrained_errors_are_the_closed_form_and_training_lowers_them():
    result = json.loads(run(f"{SMALL} --json --steps 300").stdout)
    errors = {name: np.array(row) for name, row in result["errors"].items()}
    a = np.random.RandomState(0).randn(20, 10)
    h = np.linalg.eigvalsh(a.T @ a) + 3.0
    factors = np.cumprod(np.broadcast_to(1 - 2 / (h.max() + h.min()) * h, (6, 10)), axis=0)
    expected = ((h - 3) / h**2 * factors**2).sum(1)
    np.testing.assert_allclose(errors["gd"][1:], expected, rtol=1e-9)
    assert errors["trained"][-1] < 0.3 * errors["untrained"][-1]
    assert errors["trained"][-1] > 0.8 * errors["oracle"][-1]
    assert len(result["schedules"]["step"]) == 6
    assert result["findings"] == [TIED._asdict() | {"where": "step"}]


def test_run_toml_repeats_the_run_to_the_bit_and_arguments_stand_above_it(tmp_path):
    first = json.loads(run(f"{SMALL} --json --out one").stdout)
    again = json.loads(run("unfold one/run.toml -q --json --out two").stdout)
    assert again["errors"] == first["errors"]
    shorter = json.loads(run("unfold one/run.toml -q --json --out three --steps 5").stdout)
    assert shorter["updates"] == 5


def test_chebyshev_steps_are_a_start():
    result = json.loads(run(f"{SMALL} --json --init chebyshev --period 3").stdout)
    a = np.random.RandomState(0).randn(20, 10)
    h = np.linalg.eigvalsh(a.T @ a) + 3.0
    steps = np.asarray(ux.theory.chebyshev_steps(3, h.max(), h.min(), order="ascending"))
    errors = ux.theory.schedule_error(np.resize(steps, 6), h, (h - 3) / h**2)
    np.testing.assert_allclose(result["errors"]["untrained"][1:], errors[1:], rtol=0.1)  # 500 problems


@pytest.mark.parametrize("plan", ["incremental", "random"])
def test_plans_are_chosen_by_name(tmp_path, plan):
    run(f"{SMALL} --plan {plan} --out run")
    depths = [json.loads(line)["depth"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(set(depths)) > 2
    assert max(depths) <= 6


@pytest.mark.usefixtures("measured")
def test_ones_own_file_is_trained_to_its_optimum_and_its_schedule_diagnosed(tmp_path):
    """Two steps on two curvatures: 1 and 1/4, in either order, leave nothing."""
    result = json.loads(run("unfold mine.py:mine --set rate=0.05 -q --json").stdout)
    assert result["updates"] == 200
    np.testing.assert_allclose(sorted(result["schedules"]["eta"]), [0.25, 1.0], rtol=0.1)
    assert result["findings"] == []
    assert "Nothing to mend was found." in (tmp_path / result["out"] / "report.html").read_text(encoding="utf-8")
    assert result["errors"]["trained"][-1] < 0.2 * result["errors"]["untrained"][-1]


def test_ones_own_matrix_has_the_answers_of_least_squares(tmp_path):
    rng = np.random.default_rng(0)
    a, y = rng.standard_normal((12, 4)), rng.standard_normal((30, 12))
    np.savez(tmp_path / "own.npz", A=a, y=y)
    result = json.loads(run("unfold linear --set path=own.npz --depth 5 --steps 100 -q --json").stdout)
    x = np.linalg.lstsq(a, y.T, rcond=None)[0]
    np.testing.assert_allclose(result["errors"]["trained"][0], (x**2).sum(0).mean(), rtol=0.2)  # drawn with repetition
    assert result["errors"]["trained"][-1] < 0.5 * result["errors"]["untrained"][-1]


@pytest.mark.parametrize(
    "arguments",
    [
        "sparse --set rows=20 --set columns=40 --depth 3 --algorithm tista",
        "sparse --set rows=20 --set columns=40 --depth 3 --algorithm lista",
        "sparse --set rows=20 --set columns=40 --depth 3 --algorithm alista",
        "mimo --set transmit=4 --set receive=4 --depth 3",
    ],
)
def test_every_kind_of_problem_is_trained(arguments):
    result = json.loads(run(f"unfold {arguments} --steps 20 --batch 20 -q --json").stdout)
    assert result["updates"] == 20
    assert np.isfinite(result["errors"]["trained"]).all()
    assert result["errors"]["trained"] != result["errors"]["untrained"]


@pytest.mark.parametrize("name", UNFOLDINGS)
def test_what_an_unfolding_can_be_set_to_is_described(name):
    for field in UNFOLDINGS[name].options.model_fields.values():
        assert field.description


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("rigde", "no unfolding is called 'rigde'. Did you mean ridge?"),
        (
            "ridge --algorithm ista",
            "--algorithm of ridge must be gradient-descent or heavy-ball or nesterov, got ista.",
        ),
        ("ridge --period 60", "--period must be at most --depth, got 60 for 50."),
        ("ridge --plan steep", "plan"),
        ("ridge --set rows=0", "rows"),
        ("ridge --set estimator.name=pes", "takes no --set estimator.KEY"),
        ("ridge --algorithm heavy-ball --init chebyshev", "--init chebyshev must have --algorithm gradient-descent"),
        ("linear", "path"),
        ("linear --set path=nothing.npz", "there must be such a file or folder"),
        ("mine.py:mine --depth 3", "mine.py:mine sets all by itself, got --depth."),
        ("mine.py:wrong", "must be an unrollax.Unfolding"),
        ("nothing.py:mine", "no file nothing.py"),
    ],
)
def test_wrong_arguments_are_answered(arguments, says):
    assert says in run(f"unfold {arguments} -q", code=2).stderr


def test_a_run_that_diverges_says_so_and_keeps_what_it_has(tmp_path):
    done = run("unfold mine.py:mine --set rate=1e300 -q --out gone", code=4)
    assert "parameters must stay finite" in done.stderr
    assert (tmp_path / "gone" / "report.html").exists()


def test_a_run_that_diverges_is_json_all_the_same():
    result = json.loads(run(f"{SMALL} --lr 1e300 --json", code=4).stdout)
    numbers = [*result["schedules"]["step"], *result["errors"]["trained"]]
    assert {"nan", "inf"} & {number for number in numbers if isinstance(number, str)}
    assert result["findings"] is None


def test_an_interrupted_run_leaves_its_parameters(tmp_path, monkeypatch):
    seen = _unfold.Run._observe

    def stop(self, progress):
        seen(self, progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(_unfold.Run, "_observe", stop)
    done = run(f"{SMALL} --out half", code=130)
    assert "interrupted" in done.stderr
    assert (tmp_path / "half" / "params.safetensors").exists()


def of_findings(kind, unused=(), single=1.0):
    """A report with one finding, of four entries, and an error in float32 that ends at `single`."""
    schedules = {"['step']": ENTRIES._replace(unused=unused)}
    finding = TIED._replace(kind=kind)
    return FOUND._replace(schedules=schedules, float32=single and np.array([1.0, single]), findings=(finding,))


@pytest.mark.parametrize(
    ("report", "printed"),
    [
        (of_findings("tied"), True),
        (of_findings("rounding", single=1e-3), True),
        (of_findings("rounding", single=np.nan), True),
        (of_findings("rounding", single=1e-11), False),  # as small as float32 can make it
        (of_findings("growth", single=1e-3), False),  # what comes of it was measured
        (of_findings("growth", single=None), True),
        (of_findings("unused", unused=(0, 1)), False),  # a momentum, at first
        (of_findings("unused", unused=(0, 1, 2)), True),
        (of_findings("unused", unused=(3,)), True),
    ],
)
def test_only_findings_that_matter_are_printed(report, printed):
    assert [finding.where for finding in _findings.worth_a_line(report)] == ["step"] * printed
    assert len(_findings.as_json(report)) == 1


def test_rounding_is_answered_in_the_words_of_a_command_that_computes_in_double(monkeypatch):
    report = of_findings("rounding")
    monkeypatch.setattr(_findings, "diagnose_schedules", lambda net, params, key: report)
    net = ux.unfold(ux.solvers.gradient_descent(), ux.problems.ridge(4, 2), horizon=2, batch=3)
    unfolding = ux.Unfolding(net, None, None, None)
    (finding,) = _findings.diagnosed(unfolding, ux.shared({"step": 0.1}), 0).findings
    assert "float64" in finding.remedy
    assert _findings.diagnosed(unfolding, {"step": 0.1}, 0) is None


def test_double_precision_is_on(monkeypatch):
    seen = []
    monkeypatch.setattr(jax.config, "update", lambda *pair: seen.append(pair))
    run(SMALL)
    assert ("jax_enable_x64", True) in seen


@pytest.fixture
def trained(tmp_path):
    """The folder of a run on sparse recovery, and its result."""
    arguments = "unfold sparse --algorithm ista --set rows=20 --set columns=40 --depth 3 --steps 20 --batch 20"
    return tmp_path / "trained", json.loads(run(f"{arguments} -q --json --out trained").stdout)


def test_export_to_csv_is_the_table_of_the_trained_numbers(trained):
    folder, result = trained
    assert str(folder / "coefficients.csv") in run(f"export {folder}").stdout
    rows = np.genfromtxt(folder / "coefficients.csv", delimiter=",", names=True)
    np.testing.assert_allclose(rows["step"], result["schedules"]["step"], rtol=1e-12)
    assert rows["iteration"].tolist() == [0, 1, 2]


def test_export_to_npz_holds_the_trained_numbers(trained):
    folder, result = trained
    run(f"export {folder}/run.toml --to npz --out mine.npz")
    with np.load("mine.npz") as arrays:
        np.testing.assert_allclose(arrays["threshold"], result["schedules"]["threshold"], rtol=1e-12)


def test_export_to_numpy_computes_the_same_without_jax(trained):
    folder, _ = trained
    run(f"export {folder} --to numpy")
    script = (
        "import sys, types, numpy as np; import coefficients as c\n"
        "a = np.random.RandomState(0).randn(20, 40) / np.sqrt(20)\n"
        "problem = types.SimpleNamespace(A=a, y=a[:, 3])\n"
        "np.save('x.npy', c.solve(problem)); assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = _unfold_config.resolve(str(folder / "run.toml"), {}, None, {})
    unfolding = _unfold.load(config)
    params = ux.load_params(folder / "params.safetensors", like=unfolding.params)
    a = np.random.RandomState(0).randn(20, 40) / np.sqrt(20)
    problem, x = types.SimpleNamespace(A=a, y=a[:, 3]), np.zeros(40)
    for t in range(3):
        x = unfolding.algorithm.step(ux.resolve(params, t), x, problem)
    np.testing.assert_allclose(np.load(folder / "x.npy"), x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("export nothing", "RUN must be a run folder of unrollax unfold, or its run.toml, got nothing."),
        ("export trained --to c", "--to must be csv, npz or numpy, got c."),
        ("export trained --out mine.py", "--out must be a new file, got mine.py."),
    ],
)
def test_wrong_exports_are_answered(trained, arguments, says):
    assert says in run(arguments, code=2).stderr


def test_train_sends_a_run_of_unfold_to_its_command(trained):
    folder, _ = trained
    assert f"Run: unrollax unfold {folder}/run.toml" in run(f"train {folder}/run.toml", code=2).stderr


def test_a_run_of_another_command_has_nothing_to_export(tmp_path):
    (tmp_path / "run.toml").write_text('target = "text"\n', encoding="utf-8")
    assert "must be the run.toml of unrollax unfold" in run("export .", code=2).stderr
