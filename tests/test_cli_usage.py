"""Arguments: a wrong one is answered with one line and exit code 2, and a right one means what it says."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner

import unrollax as ux
from unrollax import _optimizer
from unrollax.cli import _target
from unrollax.cli._app import app
from unrollax.cli._config import resolve
from unrollax.cli._names import ALL, ESTIMATORS, LAYERWISE, OPTIMIZERS, EstimatorConfig, OptimizerConfig
from unrollax.cli._progress import ProgressLine

pytestmark = pytest.mark.usefixtures("here")
MINE = """
import optax
import unrollax as ux

net = ux.system(init=lambda key, params: 0.0, step=lambda params, state, x, key: (state, params * x))
experiment = ux.Experiment(net, ux.BPTT(net, 8), optax.sgd(0.1), 1.0, None)
endless = experiment._replace(estimator=ux.TBPTT(net, 4))


def make(rate=0.05):
    return experiment


def needs(rate):
    return experiment
"""


def command(*arguments):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
        ("recipes txt", "Did you mean text?"),
        ("train sequental-digits", "Did you mean sequential-digits?"),
        ("train text --set hiden=3", "Did you mean hidden?"),
        ("train text --set hidden", "--set must be KEY=VALUE, got 'hidden'."),
        ("train text --set =3", "--set must be KEY=VALUE"),
        ("train text --set hidden=many", "text: hidden: input should be a valid integer, got 'many'."),
        ("train text --set hidden=0", "greater than or equal to 1, got 0."),
        ("train text --set path=nowhere.txt", "text: path: there must be such a file, got 'nowhere.txt'."),
        ("train text --set path=mine.py:x", "there must be such a file"),
        ("train mine.py:experiment --estimator pes --set estimator.shaping=ranks", "estimator.shaping: "),
        (
            "train mine.py:experiment --estimator pes --set estimator.memory=sqrt",
            "pes takes no --set estimator.memory.",
        ),
        (
            "train mine.py:experiment --set estimator.shap=rank",
            "there is no option 'estimator.shap'. Did you mean shaping",
        ),
        ("train mine.py:experiment --estimator pse", "no estimator is called 'pse'. Did you mean pes"),
        ("train mine.py:experiment --optimizer adm", "no optimizer is called 'adm'. Did you mean adam"),
        ("train mine.py:experiment --pair 3", "No such option: --pair"),
        ("train mine.py:experiment --window few", "Invalid value for '--window'"),
        (
            "train mine.py:experiment --estimator bptt --std 0.1",
            "bptt takes no --std. It takes --horizon, --set estimator.memory.",
        ),
        ("train mine.py:experiment --std 0.1", "bptt takes no --std. It takes --horizon, --set estimator.memory."),
        ("train mine.py:experiment --window 20 --horizon 110", "got 110 and 20. The nearest is 100."),
        ("train mine.py:experiment --estimator tbptt --window 3", "The nearest is horizon=9."),
        ("train mine.py:endless --estimator bptt", "bptt needs --horizon"),
        ("train mine.py:experiment --lr -1", "optimizer.lr: input should be greater than 0, got -1.0."),
        ("train mine.py:experiment --lr nan", "got nan."),
        ("train mine.py:experiment --seed -1", "seed: input should be greater than or equal to 0, got -1."),
        ("train mine.py:experiment --steps 0", "steps: input should be greater than or equal to 1, got 0."),
        ("train mine.py:experiment --set rate=1", "mine.py:experiment is no function, so it takes no --set, got rate."),
        ("train mine.py:make --set rte=1", "takes no option 'rte'. Did you mean rate?"),
        ("train mine.py:needs", "missing a required argument: 'rate'. Give it with --set KEY=VALUE."),
        ("train mine.py:experimnt", "mine.py has no 'experimnt'. Did you mean experiment?"),
        ("train mine.py:net", "must be an unrollax.Experiment or a function that returns one, got FunctionSystem."),
        ("train mine.py", "mine.py must say which name of the file to take: mine.py:NAME"),
        ("train mine.py:3x", "'3x' is no Python name."),
        (
            "train nowhere.py:x",
            "no file nowhere.py. A target is a recipe (adding, autoencoder, copy, forecast, ",
        ),
        ("train gone.toml", "gone.toml: No such file or directory."),
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
    ("toml", "says"),
    [
        ("target = ", "bad.toml must be TOML: Invalid value"),
        ("target = '\xff'", "bad.toml must be TOML: 'utf-8' codec"),
        ("steps = 3", "target is missing."),
        ("target = 'mine.py:experiment'\nstpes = 3", "there is no option 'stpes'. Did you mean steps?"),
        ("target = 'mine.py:experiment'\nsteps = '3'", "steps: input should be a valid integer, got '3'."),
        ("target = 'mine.py:experiment'\nestimator = 'pes'", "bad.toml: estimator must be a table, got 'pes'."),
        ("target = 'mine.py:experiment'\noptions = 3", "bad.toml: options must be a table, got 3."),
        (
            "target = 'mine.py:experiment'\n[estimator]\nwindwo = 3",
            "no option 'estimator.windwo'. Did you mean window?",
        ),
        ("target = 'mine.py:experiment'\n[estimator]\nname = 'pse'", "Did you mean pes"),
        ("target = 'mine.py:experiment'\n[optimizer]\nlr = -1.0", "optimizer.lr: input should be greater than 0"),
    ],
)
def test_a_run_toml_that_cannot_be_used_says_why(toml, says):
    Path("bad.toml").write_bytes(toml.encode("latin-1"))
    result = command("train", "bad.toml")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_is_not_given_comes_from_the_targets_own_estimator():
    net = ux.system(init=lambda key, params: params, step=lambda params, state, x, key: (state, params))
    own = ux.NRES(net, std=0.2, window=2, horizon=8, pairs=6, stagger=True, sampler=jax.random.rademacher)
    experiment = ux.Experiment(net, own, None, 1.0, None)

    def make(**given):
        return _target.make_estimator(EstimatorConfig(**given), experiment)

    assert make(pairs=8) == dataclasses.replace(own, pairs=8)
    assert make(name="pes", horizon=16) == ux.PES(net, 0.2, 2, 16, 6, True, jax.random.rademacher)
    assert make(name="forward-gradient") == ux.ForwardGradient(net, 2, 8, 16, jax.random.rademacher)
    assert make(name="tbptt", horizon=9).window == 3  # the next divisor from a quarter upwards
    assert make(name="bptt") == ux.BPTT(net, 8)


@pytest.mark.parametrize(("quiet", "variable", "live"), [(False, None, True), (False, "1", False), (True, None, False)])
def test_a_terminal_gets_one_live_line_unless_no_color_is_set(quiet, variable, live, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable:
        monkeypatch.setenv("NO_COLOR", variable)
    with ProgressLine(quiet) as line:
        assert line.live == live
    assert ("\x1b" in terminal.getvalue()) == live


def test_an_option_of_a_recipe_stands_above_the_run_toml_too():
    nothing = {"estimator": {"name": None}, "optimizer": {}, "steps": None, "seed": None}
    config = resolve("text", nothing, {"window": 10, "hidden": 2})
    experiment = _target.load(config)
    assert (experiment.estimator.window, experiment.estimator.horizon) == (10, 200)
    Path("run.toml").write_text(tomli_w.dumps(_target.resolved(config, experiment).to_toml()))
    again = _target.load(resolve("run.toml", nothing, {"window": 5}))
    assert (again.estimator.window, again.estimator.horizon, again.steps) == (5, 100, 2000)


def test_the_tables_of_names_agree_with_each_other_and_with_the_classes():
    assert list(_target.CLASSES) == list(ESTIMATORS)
    assert list(_optimizer.OPTIMIZERS) == list(OPTIMIZERS)
    for name, options in ESTIMATORS.items():
        fields = {field.name for field in dataclasses.fields(_target.CLASSES[name])}
        fields -= {"window"} if name in _target.WHOLE else set()
        assert set(options) == fields & set(EstimatorConfig.model_fields), name
    assert list(_target.LAYERED) == list(LAYERWISE)
    inner = {field.name for field in dataclasses.fields(ux.Curvature)} | {"inner_lr"}
    for name, more in {"locoprop": inner, "kfac": set()}.items():
        fields = {field.name for field in dataclasses.fields(_target.LAYERED[name])} - {"layers", "loss", "net"}
        assert set(LAYERWISE[name]) == fields | more, name
    assert set(EstimatorConfig.model_fields) == {"name"}.union(*ALL.values())


@pytest.mark.parametrize("optimizer", ["shampoo", "momentum"])
def test_the_command_line_makes_the_named_optimizer_at_its_usual_rate_or_a_given_one(optimizer):
    params = jax.numpy.ones(3)
    updates = []
    for lr in (None, 1.0, 2.0):
        made = _target.make_optimizer(OptimizerConfig(name=optimizer, lr=lr))
        updates.append(made.update(params, made.init(params), params)[0])
    assert (updates[0] < 0).all()
    np.testing.assert_allclose(2 * updates[1], updates[2], rtol=1e-12)


def test_recipes_say_what_can_be_set():
    assert "sequential-digits" in command("recipes").stdout
    assert "--set hidden=128" in command("recipes", "text").stdout
    about = json.loads(command("recipes", "--json").stdout)
    assert about["sequential-digits"]["options"]["rows"]["default"] is False


def python(*arguments):
    environment = {name: item for name, item in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("--help", 0, "Exit codes: 0 done, 2 usage"),
        ("--version", 0, metadata.version("unrollax")),
        ("train text --set hidden=0", 2, "greater than or equal to 1, got 0."),
        ("train mine.py:experiment --estimator pse", 2, "Did you mean pes"),
        ("sample --help", 0, "each character as it comes"),
        ("sample runs/nowhere", 2, "no run folder runs/nowhere."),
        ("train forecast --set path=nowhere.csv", 2, "path: there must be such a file, got 'nowhere.csv'."),
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
    assert says in result.stdout + result.stderr
    assert result.stdout.endswith("imported: set()\n")


def test_the_module_is_the_command():
    result = python("-m", "unrollax", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, metadata.version("unrollax") + "\n", "")
    result = python("-m", "unrollax", "train", "mine.py:")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


def test_a_window_that_fills_no_episode_is_answered_with_those_that_do(tmp_path):
    options = ["--set", "rows=true", "--estimator", "tbptt", "--window", "3", "--out", str(tmp_path / "run")]
    said = CliRunner().invoke(app, ["train", "sequential-digits", *options])
    assert said.exit_code == 2
    assert said.stderr.strip() == (
        "unrollax: --window must divide the target's episodes of 8 steps, got 3. It may be 1, 2, 4, 8."
    )
