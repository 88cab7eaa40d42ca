"""`unrollax diagnose` and `unrollax compare` on files that a user writes, and what they say of wrong ones."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli_usage import python
from typer.testing import CliRunner

import unrollax as ux
from unrollax.cli._app import app
from unrollax.cli._config import UsageError
from unrollax.cli._diagnose import _can_follow
from unrollax.cli._progress import StatusLine
from unrollax.cli._study import nearest_divisors, parse_estimators, study
from unrollax.cli._subject import find_subject

MINE = """
import jax
import jax.numpy as jnp
import jax.numpy as jnp
import optax
import unrollax as ux

print("hello from the file")


def step(params, state, x, key):
    state = params["keep"] * state + x
    return state, (state - 1.0) ** 2


system = ux.system(init=lambda key, params: jnp.zeros(()), step=step)
params = {"keep": jnp.float32(0.5)}
data = jnp.arange(8.0)
"""
MORE = """
other = ux.system(init=lambda key, params: jnp.zeros(()), step=step)
estimator = ux.TBPTT(system, window=2, horizon=6)
experiment = ux.Experiment(system, estimator, optax.sgd(0.1), params, lambda t, steps: t + jnp.arange(1.0 * steps))
whole = experiment._replace(data=ux.episodes(lambda number: jnp.arange(6.0), 6), estimator=ux.BPTT(system, 6))
endless = experiment._replace(estimator=ux.TBPTT(system, window=2))
windows = experiment._replace(data=[jnp.arange(2.0), 2 + jnp.arange(2.0), 4 + jnp.arange(2.0)])
drawn = lambda key: {"keep": jax.random.uniform(key)}
stream = lambda t, steps: t + jnp.arange(1.0 * steps)
numbered = lambda number: 4 * number + jnp.arange(4.0)
listed = [jnp.arange(4.0), 4 + jnp.arange(4.0)]
iterator = iter(listed)
numbers = [0.0, 1.0, 2.0, 3.0]
short = jnp.arange(3.0)
nothing = None
same = ux.repeat(jnp.float32(1.0))
scalar = {"x": jnp.float32(1.0)}


def make(rate=1.0):
    return ux.system(init=lambda key, params: rate * jnp.zeros(()), step=step)


def breaks(params, state, x, key):
    raise ValueError("my own mistake")


broken = ux.system(init=lambda key, params: jnp.zeros(()), step=breaks)
"""
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("mine", "bare", "first"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    Path("bare.py").write_text(MINE)
    Path("mine.py").write_text(MINE + MORE)


def command(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def subject(target, **given):
    return find_subject(study(target=target, options=given.pop("options", {}), **given))


def strict_json(text):
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("diagnose", "Missing argument"),
        ("diagnose mine.py", "mine.py must say which name of the file to take: mine.py:NAME"),
        ("diagnose nowhere.py:x", "no file nowhere.py."),
        ("diagnose sequental-digits", "Did you mean sequential-digits?"),
        ("diagnose text --set hiden=3", "Did you mean hidden?"),
        ("diagnose text --params mine", "--params is for a system in a file of your own"),
        ("diagnose mine.py:system --set estimator.std=1", "it takes no --set estimator.KEY."),
        ("diagnose mine.py:system --horizon 0", "horizon: input should be greater than or equal to 1, got 0."),
        ("diagnose mine.py:system --params 3x", "--params must be a name in the file, got '3x'."),
        ("diagnose mine.py:system --out mine.py", "--out must be a new or empty folder, got mine.py."),
        ("compare mine.py:system --estimators pse", "no estimator is called 'pse'. Did you mean pes"),
        ("compare mine.py:system --estimators bptt:3", "bptt:3: bptt takes no window."),
        ("compare mine.py:system --estimators tbptt:x", "a positive whole number, got 'x'."),
        ("compare mine.py:system --estimators tbptt:0", "a positive whole number, got '0'."),
        ("compare mine.py:system --estimators tbptt:30 --horizon 100", "The nearest is 25 or 50."),
        ("compare mine.py:system --estimators tbptt --window 30 --horizon 100", "The nearest is 25 or 50."),
        ("compare mine.py:system --estimators ,", "--estimators must name one or more"),
        ("compare mine.py:system --estimators es --std 0.1,-1", "--std must be positive numbers"),
        ("compare mine.py:system --estimators es --window 5,few", "--window must be positive numbers such as 5,10,20"),
        ("compare mine.py:system --estimators es --window 2.5", "--window must be positive numbers"),
        ("compare mine.py:system --estimators bptt --window 5", "--window has no use. None of bptt takes it."),
        ("compare mine.py:system --estimators es:5 --window 5", "--window has no use. None of es:5 takes it."),
        ("compare mine.py:system --estimators tbptt --pairs 3", "--pairs has no use. None of tbptt takes it."),
        ("compare mine.py:system --set estimator.shap=rank", "has no use. Did you mean shaping"),
        ("compare mine.py:system --unit flops", "--unit: input should be 'seconds' or 'steps', got 'flops'."),
        ("compare mine.py:system --reference best", "--reference: input should be 'auto', 'bptt' or 'smoothed'"),
        ("compare mine.py:system --samples 1", "--samples: input should be greater than or equal to 4, got 1."),
        ("compare mine.py:system --tolerance 0", "--tolerance: input should be greater than 0, got 0.0."),
    ],
)
def test_a_wrong_argument_is_answered_with_one_line_and_exit_code_2(arguments, says):
    result = command(*arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr.splitlines()[-1]
    assert result.stderr.startswith("Usage: ") or result.stderr.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("diagnose mine.py:sytem", "mine.py has no 'sytem'. Did you mean system"),
        ("diagnose mine.py:estimator", "must be a system (with init and step), an unrollax.Experiment, or a function"),
        ("diagnose mine.py:system --params parms", "mine.py has no 'parms'. Did you mean params?"),
        ("diagnose mine.py:system --data dta", "mine.py has no 'dta'. Did you mean data"),
        ("diagnose mine.py:system --set rate=1", "mine.py:system is no function, so it takes no --set, got rate."),
        ("diagnose mine.py:make --set rte=1", "takes no option 'rte'. Did you mean rate?"),
        ("diagnose mine.py:experiment --params params", "the experiment mine.py:experiment has its own."),
        ("diagnose mine.py:endless", "Say how many steps there are from a reset to the end, with --horizon."),
        ("diagnose bare.py:system --data nothing", "bare.py has no 'nothing'."),
        ("diagnose mine.py:system --horizon 9", "a step for each of the horizon, got 8 for --horizon 9."),
        ("diagnose mine.py:system --data short --horizon 6", "a step for each of the horizon, got 3 for --horizon 6."),
        ("diagnose mine.py:system --data listed --horizon 9", "must fill the horizon of 9 steps, got 8 in all."),
        ("diagnose mine.py:system --data scalar", "must be arrays with one row for each step, got a leaf float32[]"),
        ("diagnose mine.py:whole --horizon 4", "window must divide the episodes' 6 steps, got window=4."),
        (
            "compare mine.py:system --estimators tbptt:3",
            "a window must divide the horizon of 8 steps. The nearest is 2 or 4",
        ),
    ],
)
def test_what_the_file_lacks_is_said_in_one_line(arguments, says):
    result = command(*arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr.splitlines()[-1]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("target", "given", "data"),
    [
        ("bare.py:system", {}, range(8)),
        ("bare.py:system", {"horizon": 5}, range(5)),
        ("mine.py:system", {"data": "stream"}, range(6)),
        ("mine.py:system", {"data": "stream", "horizon": 7}, range(7)),
        ("mine.py:system", {"data": "numbered"}, range(6)),
        ("mine.py:system", {"data": "numbered", "horizon": 9}, range(9)),
        ("mine.py:system", {"data": "listed", "horizon": 8}, range(8)),
        ("mine.py:system", {"data": "iterator"}, range(6)),
        ("mine.py:system", {"data": "numbers"}, range(4)),
        ("mine.py:make", {}, range(8)),
        ("mine.py:experiment", {}, range(6)),
        ("mine.py:experiment", {"horizon": 9}, range(9)),
        ("mine.py:whole", {}, range(6)),
        ("mine.py:whole", {"horizon": 3}, range(3)),
        ("mine.py:windows", {}, range(6)),
        ("mine.py:endless", {"horizon": 4}, range(4)),
    ],
)
def test_one_horizon_is_found_in_every_kind_of_data(target, given, data):
    found = subject(target, **given)
    assert found.horizon == len(data)
    np.testing.assert_array_equal(found.data, np.asarray(data, float))
    assert found.params == {"keep": 0.5}


@pytest.mark.parametrize(("name", "kind"), [("nothing", type(None)), ("same", type(ux.repeat(1.0)))])
def test_without_a_step_of_data_the_horizon_is_that_of_the_estimator(name, kind):
    found = subject("mine.py:system", data=name)
    assert isinstance(found.data, kind)
    assert found.horizon == 6
    assert subject("mine.py:system", data=name, horizon=3).horizon == 3


def test_the_estimator_is_the_one_of_the_system():
    assert subject("bare.py:system").estimator is None
    Path("mine.py").write_text(MINE + MORE + "\nnamed = ux.BPTT(other, 4)\n")
    assert subject("mine.py:system").estimator.horizon == 6
    assert subject("mine.py:other", data="stream").horizon == 4


def test_parameters_come_from_the_file_a_function_or_the_system():
    drawn = subject("mine.py:system", params="drawn", seed=3).params["keep"]
    assert drawn == jax.random.uniform(jax.random.key(3))
    Path("mine.py").write_text(
        "import unrollax as ux, jax.numpy as jnp\n"
        "net = ux.recurrent(ux.RNNCell(1, 2), ux.Dense(2, 1), ux.squared_error)\n"
        "data = ux.sequence(jnp.ones((5, 1)), jnp.ones((5, 1)))\n"
        "plain = ux.system(init=lambda key, params: 0.0, step=lambda params, state, x, key: (state, state))\n"
    )
    found = subject("mine.py:net", seed=1)
    assert found.horizon == 5
    assert (found.params["cell"]["wh"] == subject("mine.py:net", seed=1).params["cell"]["wh"]).all()
    with pytest.raises(ux.InvalidArgument, match=r"Add params = \.\.\., a tree of arrays or a function of a key"):
        subject("mine.py:plain")


def test_estimators_are_swept_over_what_they_take_and_have_not():
    made = parse_estimators("bptt,tbptt:4,es,pes:5", "5,10", "0.1,0.2", {"pairs": 3}, None)
    assert [(each.name, each.window, each.std, each.pairs) for each in made] == [
        ("bptt", None, None, None),
        ("tbptt", 4, None, None),
        ("es", 5, 0.1, 3),
        ("es", 5, 0.2, 3),
        ("es", 10, 0.1, 3),
        ("es", 10, 0.2, 3),
        ("pes", 5, 0.1, 3),
        ("pes", 5, 0.2, 3),
    ]
    assert len(parse_estimators("bptt,bptt,tbptt:2,tbptt", "2", None, {}, None)) == 2
    with pytest.raises(UsageError, match="nothing"):
        parse_estimators("nothing", None, None, {}, None)


@pytest.mark.parametrize("number", [1, 2, 12, 97, 360])
def test_the_nearest_divisors_are_the_ones_around(number):
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    for near in range(1, number + 3):
        found = nearest_divisors(number, near)
        assert set(found) <= set(divisors)
        assert not [each for each in divisors if found[0] < each <= near]
        assert len(found) == 1 or not [each for each in divisors if near < each < found[1]]


def test_compare_says_which_estimator_pays_and_writes_it_down():
    arguments = ("compare", "bare.py:system", "--estimators", "bptt,tbptt:1", "--samples", 4, "--unit", "steps")
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    found = strict_json(result.stdout)
    folder = Path("runs/bare-system-compare-1")
    assert found["out"] == str(folder)
    assert (found["target"], found["horizon"], found["unit"]) == ("bare.py:system", 8, "steps")
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"bptt", "tbptt:1"}
    assert rows["bptt"]["bias"] < 1e-5
    exact, cut = gradients()
    assert rows["tbptt:1"]["bias"] == pytest.approx(abs(cut - exact) / abs(exact), rel=1e-4)
    assert found["recommended"] == "bptt"
    assert found["command"] == "unrollax " + " ".join(map(str, arguments))
    assert {path.name for path in folder.iterdir()} == {"comparison.json", "report.html"}
    written = strict_json((folder / "comparison.json").read_text())
    assert written.items() >= {**found, "rows": written["rows"]}.items()
    assert "Recommended: bptt." in (folder / "report.html").read_text()
    assert "hello from the file" in result.stderr
    lines = [line for line in result.stderr.splitlines() if line != "hello from the file"]
    assert lines[0] == "compiling ..."


def gradients():
    """d/dk of the mean over t of (s_t - 1)^2, s_t = k s_{t-1} + t from s_0 = 0; exact, and with s_{t-1} held."""
    keep, state, slope, exact, cut = 0.5, 0.0, 0.0, 0.0, 0.0
    for t in range(8):
        slope, before = state + keep * slope, state
        state = keep * state + t
        exact += 2 * (state - 1) * slope / 8
        cut += 2 * (state - 1) * before / 8
    return exact, cut


def test_quiet_is_quiet_and_a_taken_folder_is_left_alone():
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    assert command("compare", "mine.py:system", "--out", "full").exit_code == 2
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["diagnose", "compare"])
def test_an_exception_of_the_user_is_shown_with_the_users_frames_only(name):
    result = command(name, "mine.py:broken", "-q")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "mine.py:broken raised\n" in result.stderr
    assert result.stderr.endswith("ValueError: my own mistake\n")
    files = [line for line in result.stderr.splitlines() if line.startswith("  File ")]
    assert files
    assert all("mine.py" in line for line in files)
    assert not list(Path("runs").iterdir()), "what has no result leaves no folder"
    Path("own").mkdir()
    assert command(name, "mine.py:broken", "-q", "--out", "own").exit_code == 3
    assert not list(Path("own").iterdir()), "a folder that was there stays"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("diagnose --help", 0, "Measure where the gradient of a system dies or explodes"),
        ("compare --help", 0, "say which one pays"),
        ("compare mine.py:system --estimators pse", 2, "Did you mean pes"),
        ("diagnose mine.py:system --horizon 0", 2, "greater than or equal to 1"),
    ],
)
def test_help_and_usage_errors_never_import_jax(arguments, code, says):
    script = (
        "import atexit, sys, unrollax, unrollax.cli\n"
        f"sys.argv = ['unrollax', *{arguments.split()!r}]\n"
        "atexit.register(lambda: print('imported:', {'jax', 'optax', 'numpy', 'matplotlib'} & set(sys.modules)))\n"
        "unrollax.cli.main()"
    )
    result = python("-c", script)
    assert result.returncode == code
    assert says in " ".join((result.stdout + result.stderr).split())
    assert result.stdout.endswith("imported: set()\n")


def readme_first():
    return re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]


def test_a_file_with_the_first_lines_of_the_readme_can_be_diagnosed_and_compared():
    Path("first.py").write_text(readme_first().replace("steps=500", "steps=5"))
    result = command("diagnose", "first.py:system", "--verify", "--json")
    assert result.exit_code == 0, result.stderr
    found = strict_json(result.stdout)
    assert found["horizon"] == 100, "the estimator's; its windows of 20 are joined"
    table = np.array(found["flow"]["table"])
    assert table.shape == (100, 100)
    assert not np.triu(table, 1).any()
    folder = Path("runs/first-system-diagnose-1")
    assert {path.name for path in folder.iterdir()} == {"diagnosis.json", "report.html"}
    page = (folder / "report.html").read_text()
    for heading in ("Advice", "Gradient flow", "Dynamics"):
        assert f"<h2>{heading}</h2>" in page
    assert "unrollax diagnose first.py:system --verify" in page
    result = command("compare", "first.py:system", "--estimators", "bptt,es", "--samples", 4, "--pairs", 2, "-q")
    assert result.exit_code == 0, result.stderr
    assert "es:20" in result.stdout, "the window of the file's estimator"
    assert result.stdout.endswith("report  runs/first-system-compare-1/report.html\n")


def test_advice_on_an_experiment_is_a_whole_command_that_runs():
    result = command("diagnose", "mine.py:experiment", "--horizon", 60, "--seed", 3, "--out", "found")
    assert result.exit_code == 0, result.stderr
    written = strict_json(Path("found/diagnosis.json").read_text())
    commands = [piece["command"] for piece in written["advice"] if piece["command"]]
    assert commands
    for each in commands:
        assert each.startswith("unrollax train mine.py:experiment --seed 3 --estimator ")
        assert f"\n   {each}\n" in result.stdout
        assert each in Path("found/report.html").read_text()
    result = command(*commands[0].split()[1:], "--steps", 2, "-q")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("target", "options", "can"),
    [
        ("experiment", "--estimator tbptt --window 5 --horizon 60", True),
        ("whole", "--estimator tbptt --window 2 --horizon 6", True),
        ("whole", "--estimator bptt --horizon 3", False),
        ("windows", "--estimator tbptt --window 2 --horizon 4", True),
        ("windows", "--estimator tbptt --window 3 --horizon 6", False),
        ("windows", "--estimator bptt --horizon 6", False),
    ],
)
def test_only_what_fits_the_data_of_an_experiment_is_advised_as_a_command(target, options, can):
    assert _can_follow(subject(f"mine.py:{target}").experiment, options) is can


def test_the_summary_of_a_diagnosis_is_the_librarys():
    result = command("diagnose", "bare.py:system", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    found = ux.diagnose(
        ux.system(init=lambda key, params: jnp.zeros(()), step=step),
        {"keep": jnp.float32(0.5)},
        jnp.arange(8.0),
        key=jax.random.key(3),
    )
    # No command trains what is a system alone.
    found = found._replace(advice=[piece._replace(command="") for piece in found.advice])
    assert result.stdout == f"{found}\n\nreport  runs/bare-system-diagnose-1/report.html\n"
    assert "unrollax train" not in result.stdout + Path("runs/bare-system-diagnose-1/report.html").read_text()
    lines = result.stderr.splitlines()
    assert lines[:2] == ["hello from the file", "compiling ..."]
    assert "\x1b" not in result.stderr


def step(params, state, x, key):
    state = params["keep"] * state + x
    return state, (state - 1.0) ** 2


def test_progress_without_a_terminal_prints_each_kind_of_line_once(capsys):
    with StatusLine(False, "compiling ...") as line:
        for text in ("bptt: 1 of 3", "es: 1 of 3", "bptt: 2 of 3", "es: 2 of 3", "writing"):
            line.update(text)
    assert capsys.readouterr().err.splitlines() == ["compiling ...", "bptt: 1 of 3", "es: 1 of 3", "writing"]
    with StatusLine(True, "compiling ...") as line:
        line.update("bptt: 1 of 3", last=True)
    assert capsys.readouterr().err == ""
