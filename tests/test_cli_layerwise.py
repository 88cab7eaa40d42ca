"""LocoProp and K-FAC on the command line: on nets of layers, repeatable, and answered elsewhere."""

import json
import tomllib
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

import unrollax as ux
from unrollax._experiment import in_windows
from unrollax.cli import _layerwise, _target
from unrollax.cli._app import app
from unrollax.cli._config import resolve
from unrollax.cli._names import EstimatorConfig, OptimizerConfig

pytestmark = pytest.mark.usefixtures("here")
MINE = """
import jax
import jax.numpy as jnp
import optax
import unrollax as ux

net = ux.layered(ux.dense_layers([3, 4, 2], "tanh"), lambda y, target: ((y - target) ** 2).sum(-1))
params = net.params(jax.random.key(0))


def pairs(t, steps):
    x = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), (steps, 3))
    return x, jnp.tanh(x[:, :2])


stream = ux.Experiment(net, ux.TBPTT(net, 16), optax.adam(1e-2), params, pairs)
batches = stream._replace(data=ux.episodes(lambda number: pairs(number, 8), 8), estimator=ux.BPTT(net, 8))
own = batches._replace(estimator=ux.LocoProp(net.layers, net.loss, reach=0.5), optimizer=optax.sgd(0.1))
plain = ux.system(init=lambda key, params: 0.0, step=lambda params, state, x, key: (state, params**2))
other = ux.Experiment(plain, ux.BPTT(plain, 8), optax.sgd(0.1), 1.0, None)
"""
NOTHING = {"estimator": {"name": None}, "optimizer": {}, "steps": None, "seed": None}


def command(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


def load(target, estimator=None, optimizer=None, **options):
    given = {"name": estimator, **options}
    return _target.load(resolve(target, {**NOTHING, "estimator": given, "optimizer": optimizer or {}}, {}))


def sizes(optimizer, count=3):
    """Return what an optimizer makes of a gradient of 1, update by update."""
    one = jax.numpy.ones(())
    state, made = optimizer.init(one), []
    for _ in range(count):
        update, state = optimizer.update(one, state)
        made.append(float(-update))
    return made


@pytest.mark.parametrize(("name", "target"), [("locoprop", "stream"), ("kfac", "batches")])
def test_a_net_of_layers_trains_and_its_run_toml_runs_again_to_the_same_parameters(name, target):
    for out, what in (("one", [f"mine.py:{target}", "--estimator", name, "--steps", 12]), ("two", ["one/run.toml"])):
        result = command("train", *what, "-q", "--out", out, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["estimator"] == name
    rows = [json.loads(line)["loss"] for line in Path("one/metrics.jsonl").read_text().splitlines()]
    assert rows[-1] < 0.5 * rows[0]
    assert Path("one/params.safetensors").read_bytes() == Path("two/params.safetensors").read_bytes()
    config = tomllib.loads(Path("one/run.toml").read_text())
    assert config["estimator"]["name"] == name
    assert config == tomllib.loads(Path("two/run.toml").read_text())


def test_a_window_is_a_batch_of_the_targets_own():
    for target, batch in (("stream", 16), ("batches", 8)):
        experiment = load(f"mine.py:{target}", "locoprop")
        x, _ = in_windows(experiment.data, experiment.estimator)(jax.numpy.int32(0))
        assert x.shape == (batch, 3)


def test_options_make_the_inner_solver_and_what_is_not_given_comes_from_the_targets_own():
    found = load("mine.py:own", variant="M", steps=3, pull=0.1, damping=0.5, trust="none", memory=1, every=2)
    assert isinstance(found.estimator, ux.LocoProp)
    assert found.estimator.inner == ux.Curvature(damping=0.5, trust=None, memory=1, every=2)
    assert (found.estimator.variant, found.estimator.steps, found.estimator.pull) == ("M", 3, 0.1)
    assert found.estimator.reach == 0.5
    assert sizes(found.optimizer) == pytest.approx([0.1] * 3)  # the target's own
    spectral = load("mine.py:own", "locoprop", inner="spectral", inner_lr=0.05, steps=8)
    assert spectral.estimator.inner == ux.SpectralFilter(0.05)
    kfac = load("mine.py:own", "kfac", lr=0.1, momentum=0.5, adapt=False, damping=2.0, every=3, l2=0.01)
    assert (kfac.estimator.lr, kfac.estimator.momentum, kfac.estimator.damping) == (0.1, 0.5, 2.0)
    assert (kfac.estimator.adapt, kfac.estimator.every, kfac.estimator.l2) == (False, 3, 0.01)


def test_any_optimizer_solves_local_problems_by_its_name():
    found = load("mine.py:own", "locoprop", inner="sgd", inner_lr=0.25, targets="gradient")
    plain = ux.LocoProp(found.system.layers, found.system.loss, inner=optax.sgd(0.25), reach=0.5, targets="gradient")
    data = found.data(jax.numpy.int32(0), 8)
    got, expected = (
        each.estimate(found.params, each.init(jax.random.key(0), found.params), data)[1].grad
        for each in (found.estimator, plain)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_directions_are_applied_whole_and_those_that_keep_their_length_shrink_to_0():
    steps = {"steps": 4}
    make = lambda name, lr=None, **options: (
        _target.load(
            resolve(
                "mine.py:batches",
                {**NOTHING, **steps, "estimator": {"name": name, **options}, "optimizer": lr or {}},
                {},
            )
        ).optimizer
    )
    assert sizes(make("locoprop")) == pytest.approx([1.0, 0.75, 0.5])
    assert sizes(make("locoprop", {"lr": 0.5})) == pytest.approx([0.5, 0.375, 0.25])
    assert sizes(make("locoprop", targets="normalized")) == pytest.approx([1.0, 0.75, 0.5])
    assert sizes(make("locoprop", targets="gradient")) == pytest.approx([1.0] * 3)
    assert sizes(make("kfac")) == pytest.approx([1.0] * 3)
    assert sizes(make("locoprop", {"name": "sgd", "lr": 0.2})) == pytest.approx([0.2] * 3)
    assert sizes(make("bptt")) == pytest.approx(sizes(optax.adam(1e-2)))  # the target's own


def test_rates_for_directions_are_none_for_gradients():
    assert sizes(load("mine.py:own", "bptt").optimizer) == pytest.approx(sizes(optax.adam(1e-3)))
    first = resolve("autoencoder", {**NOTHING, "estimator": {"name": "bptt"}, "optimizer": {"lr": 0.01}}, {})
    assert (first.optimizer.lr, first.options["lr"]) == (0.01, 1.0)
    for name in (None, "locoprop", "kfac"):
        config = resolve("autoencoder", {**NOTHING, "estimator": {"name": name}, "optimizer": {"lr": 0.5}}, {})
        assert (config.optimizer.lr, config.options["lr"]) == (None, 0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            "train mine.py:other --estimator locoprop",
            "LocoProp needs a net of layers, ux.layered(...), as the target's",
        ),
        ("train mine.py:other --estimator kfac", "K-FAC needs a net of layers, ux.layered(...), as the target's"),
        (
            "train mine.py:own --estimator locoprop --window 4",
            "locoprop takes no --window. It takes --set estimator.var",
        ),
        ("train mine.py:own --set estimator.inner=adm", "no inner solver is called 'adm'. Did you mean adam, adamw?"),
        ("train mine.py:own --set estimator.inner=spectral", "inner=spectral needs --set estimator.inner_lr"),
        (
            "train mine.py:own --set estimator.inner=adam --set estimator.damping=1",
            "inner=adam takes no --set estimator.damping. It takes --set estimator.inner_lr.",
        ),
        (
            "train mine.py:own --set estimator.inner=curvature --set estimator.inner_lr=1",
            "inner=curvature takes no --set estimator.inner_lr. It takes --set estimator.damping,",
        ),
        ("train mine.py:own --set estimator.variant=L", "estimator.variant: input should be 'S' or 'M', got 'L'."),
        ("train mine.py:own --set estimator.memory=half", "Curvature: memory must be a number in [0, 1], got"),
        ("train mine.py:batches --set estimator.trust=1", "bptt takes no --set estimator.trust."),
        (
            "compare mine.py:own --estimators bptt,locoprop",
            "locoprop can't be compared: its directions are no gradients.",
        ),
    ],
)
def test_what_cannot_be_is_answered_with_one_line(arguments, says):
    result = command(*arguments.split())
    assert result.exit_code == 2, result.output
    assert says in result.stderr.splitlines()[-1]
    assert not Path("runs").exists()


def test_a_repeated_run_is_told_all_numbers():
    made = load("mine.py:own", "locoprop", inner="rmsprop", inner_lr=0.01).estimator
    options = _layerwise.options_of(made, {"inner": "rmsprop", "inner_lr": 0.01})
    assert options == {
        "variant": "S",
        "steps": 1,
        "reach": 0.5,
        "pull": 0.0,
        "targets": "natural",
        "inner": "rmsprop",
        "inner_lr": 0.01,
    }
    assert OptimizerConfig().lr is None
    assert EstimatorConfig(name="locoprop", **options).reach == 0.5


def test_a_net_of_layers_is_diagnosed_through_its_depth():
    told = command("diagnose", "mine.py:own", "-q", "--json", "--out", "d")
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    experiment = load("mine.py:own")
    x, target = experiment.data(jax.numpy.int32(0), 8)
    net = experiment.system
    flow = ux.depth_flow(net.layers, experiment.params, x, lambda y: net.loss(y, target).mean())
    np.testing.assert_allclose(found["gradients"], flow.gradients, rtol=1e-6)
    assert Path("d/report.html").exists()
    assert "--verify is for systems with a state" in command("diagnose", "mine.py:own", "--verify", "-q").stderr


@pytest.mark.slow
def test_the_gradients_of_a_net_of_layers_are_compared():
    options = ("--estimators", "bptt,es:8", "--samples", 4)
    compared = command("compare", "mine.py:own", *options, "-q", "--json", "--out", "c")
    assert compared.exit_code == 0, compared.stderr
