"""The autoencoder: net, losses, batches and scores against literal ones, and the race of methods against literal loops."""

import base64
import dataclasses
import gzip
import importlib
import io
import itertools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

import unrollax as ux
from unrollax._experiment import in_windows
from unrollax.cli._app import app
from unrollax.recipes import _autoencoder, _images
from unrollax.recipes._options import Autoencoder

OPTIONS = Autoencoder(data="digits", sizes="64-10-4", batch=20)


@pytest.fixture(scope="module")
def experiment():
    return _autoencoder.build(OPTIONS, seed=0, steps=30)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def literal_logits(params, x):
    """64-10-4-10-64 with tanh, a linear code and linear logits."""
    for index, layer in enumerate(params):
        x = x @ np.asarray(layer["w"], float) + np.asarray(layer["b"], float)
        x = np.tanh(x) if index in (0, 2) else x
    return x


def literal_losses(logits, target):
    p = sigmoid(logits)
    return -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(1)


# The recipe


@pytest.mark.parametrize("transfer", ["tanh", "relu"])
@pytest.mark.parametrize("initial", ["auto", "glorot", "sparse"])
def test_the_net_is_mirrored_with_a_linear_code_and_logits(transfer, initial):
    net = _autoencoder.net(Autoencoder(sizes="784-1000-500-250-30").widths(), transfer, initial)
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    assert [(layer.inputs, layer.outputs) for layer in net.layers] == list(itertools.pairwise(sizes))
    assert [layer.transfer.name for layer in net.layers] == [*[transfer] * 3, "identity", *[transfer] * 3, "identity"]
    assert {layer.initial for layer in net.layers} == {None if initial == "auto" else initial}


def test_the_loss_is_binary_cross_entropy_and_its_gradient_the_error_of_the_prediction():
    rng = np.random.default_rng(0)
    logits, target = 3 * rng.normal(size=(5, 7)), rng.random((5, 7))
    np.testing.assert_allclose(_autoencoder.cross_entropy(logits, target), literal_losses(logits, target), rtol=1e-12)
    grad = jax.grad(lambda a: _autoencoder.cross_entropy(a, target).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(grad, sigmoid(logits) - target, atol=1e-14)


def test_the_entropy_is_the_least_cross_entropy_and_0_for_black_and_white():
    target = np.random.default_rng(1).uniform(0.01, 0.99, (4, 6))
    logits = np.log(target / (1 - target))
    floor = _autoencoder.entropy(jnp.asarray(target))
    np.testing.assert_allclose(floor, _autoencoder.cross_entropy(logits, target), rtol=1e-12)
    assert (floor < _autoencoder.cross_entropy(logits + 0.1, target)).all()
    np.testing.assert_array_equal(_autoencoder.entropy(jnp.array([[0.0, 1.0, 1.0]])), [0.0])


def test_batches_are_training_images_drawn_anew_with_themselves_as_targets(experiment):
    draw = jax.jit(lambda t: experiment.data(t, 20))
    x, target = draw(40)
    assert x.shape == (20, 64)
    np.testing.assert_array_equal(x, target)
    np.testing.assert_array_equal(x, draw(40)[0])
    known = {row.tobytes() for row in _images.digits().train.reshape(-1, 64)}
    assert {row.tobytes() for row in np.asarray(x)} <= known
    assert not np.array_equal(x, draw(60)[0])
    other = _autoencoder.build(OPTIONS, seed=1, steps=30)
    assert not np.array_equal(x, other.data(40, 20)[0])
    assert not np.array_equal(experiment.params[0]["w"], other.params[0]["w"])


def test_one_gradient_step_on_the_local_problems_follows_the_literal_gradient_of_the_mean_loss(experiment):
    x, _ = experiment.data(0, 20)
    step = dataclasses.replace(experiment.estimator, inner=optax.sgd(1.0), targets="gradient")
    state = step.init(jax.random.key(0), experiment.params)
    _, estimate = step.estimate(experiment.params, state, (x, x))
    target = np.asarray(x, float)
    logits = literal_logits(experiment.params, target)
    assert estimate.loss == pytest.approx(literal_losses(logits, target).mean(), rel=1e-6)
    np.testing.assert_allclose(estimate.grad[3]["b"], (sigmoid(logits) - target).mean(0), atol=1e-6)


def test_the_steps_of_locoprop_shrink_from_lr_to_0_in_a_line():
    experiment = _autoencoder.build(OPTIONS.model_copy(update={"lr": 0.5}), seed=0, steps=4)
    assert isinstance(experiment.estimator, ux.LocoProp)
    one = jnp.float32(1)
    state, shares = experiment.optimizer.init(one), []
    for _ in range(4):
        update, state = experiment.optimizer.update(one, state)
        shares.append(float(-update))
    np.testing.assert_allclose(shares, [0.5, 0.375, 0.25, 0.125], rtol=1e-6)


def test_scores_are_those_of_literal_losses_over_all_images(experiment):
    scores = experiment.evaluate(experiment.params)
    for name, images in zip(("train", "test"), _images.digits(), strict=True):
        target = images.reshape(-1, 64).astype(float)
        logits = literal_logits(experiment.params, target)
        losses = literal_losses(logits, target)
        safe = np.clip(target, 1e-300, 1)
        floor = -(target * np.log(safe) + (1 - target) * np.log(np.where(target < 1, 1 - target, 1))).sum(1)
        assert scores[f"{name} cross-entropy"] == pytest.approx(losses.mean(), rel=1e-5)
        assert scores[f"{name} excess over entropy"] == pytest.approx((losses - floor).mean(), rel=1e-4)
        squared = ((sigmoid(logits) - target) ** 2).sum(1).mean()
        assert scores[f"{name} squared error"] == pytest.approx(squared, rel=1e-5)
    assert len(scores) == 6


def test_the_picture_shows_test_images_from_the_best_to_the_worst_above_what_is_made_of_them(experiment):
    kept = experiment.artifacts(experiment.params)
    table, svg = kept["test images by error"], kept["reconstructions.svg"]
    assert table["percent of test images"] == list(range(101))
    for column in ("excess over entropy", "squared error"):
        assert (np.diff(table[column]) >= 0).all()
    mean = experiment.evaluate(experiment.params)["test excess over entropy"]
    assert np.mean(table["excess over entropy"]) == pytest.approx(mean, rel=0.01)
    png = base64.b64decode(re.search(r"base64,([^\"]+)", svg)[1])
    seen = 1 - imread(io.BytesIO(png))
    assert seen.shape == (2 * 10, 12 * 10)
    above, below = seen.reshape(2, 10, 12, 10)[:, 1:-1, :, 1:-1].swapaxes(1, 2)
    test = _images.digits().test
    order = [int(np.abs(test - image).sum((1, 2)).argmin()) for image in above]
    np.testing.assert_allclose(above, test[order], atol=0.5 / 255 + 1e-6)
    made = sigmoid(literal_logits(experiment.params, test[order].reshape(12, 64).astype(float))).reshape(12, 8, 8)
    np.testing.assert_allclose(below, made, atol=0.5 / 255 + 1e-5)
    errors = table["excess over entropy"]
    excess = _autoencoder.by_image(experiment.system, experiment.params, test[order].reshape(12, 64))
    np.testing.assert_allclose((excess[0] - excess[1])[np.array([0, -1])], [errors[0], errors[-1]], rtol=1e-4)


def test_a_short_run_learns():
    experiment = _autoencoder.build(OPTIONS, seed=0, steps=60)
    before = experiment.evaluate(experiment.params)["test cross-entropy"]
    data = in_windows(experiment.data, experiment.estimator)
    run = ux.fit(experiment.estimator, experiment.optimizer, experiment.params, data, key=jax.random.key(0), steps=60)
    assert experiment.evaluate(run.params)["test cross-entropy"] < 0.75 * before


def invoke(*arguments):
    return CliRunner().invoke(app, ["train", "autoencoder", "-q", *arguments])


def test_first_order_methods_are_two_words_on_the_command_line(tmp_path):
    out = tmp_path / "run"
    names = ("--estimator", "bptt", "--optimizer", "adam", "--lr", "0.01", "--steps", "2", "--json", "--out", str(out))
    result = invoke("--set", "data=digits", "--set", "sizes=64-5-2", "--set", "batch=10", *names)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["test_cross_entropy"] > json.loads(result.stdout)["test_excess_over_entropy"] > 0
    assert (out / "reconstructions.svg").read_text().startswith("<svg")
    assert (out / "test-images-by-error.csv").read_text().count("\n") == 102
    assert "horizon = 10" in (out / "run.toml").read_text()


def test_a_folder_of_idx_files_is_trained_on(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 3), np.uint8)
    content = np.array([2051, 9, 4, 3], ">u4").tobytes() + pixels.tobytes()
    for part in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / part).write_bytes(content)
    experiment = _autoencoder.build(Autoencoder(data=str(tmp_path), sizes="12-2", batch=50), seed=0, steps=1)
    assert experiment.params[0]["w"].shape == (12, 2)
    rows = {row.tobytes() for row in (pixels.reshape(9, 12) / np.float32(255))}
    assert {row.tobytes() for row in np.asarray(experiment.data(0, 50)[0])} == rows
    assert experiment.artifacts(experiment.params)["reconstructions.svg"].startswith(
        '<svg xmlns="http://www.w3.org/2000/svg"'
    )


def test_a_wrong_folder_and_wrong_sizes_are_usage_errors(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x01" + b"\0" * 12)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"")
    for setting, says in (
        (
            f"data={tmp_path}",
            f"autoencoder: data: {tmp_path}/train-images-idx3-ubyte must start with 2051, the magic number of IDX images of "
            "unsigned bytes, got 2049, which is of labels. Put the file of images in its place.",
        ),
        (
            "data=Nowhere",
            "autoencoder: data: it must be curves, digits or a folder that holds train-images-idx3-ubyte and "
            "t10k-images-idx3-ubyte, got 'Nowhere', where nothing is. Give one of these.",
        ),
        ("sizes=64-3", "autoencoder: sizes: sizes must begin with the 784 pixels of an image, got '64-3'."),
    ):
        result = invoke("--set", setting)
        assert result.exit_code == 2
        assert " ".join(result.output.split()).endswith(says)


def test_damage_in_a_compressed_file_of_images_is_a_usage_error_that_names_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 3), np.uint8)
    content = gzip.compress(np.array([2051, 50, 4, 3], ">u4").tobytes() + pixels.tobytes())
    for part, kept in (("train-images-idx3-ubyte.gz", content[:-200]), ("t10k-images-idx3-ubyte.gz", content)):
        (tmp_path / part).write_bytes(kept)
    result = invoke("--set", f"data={tmp_path}")
    assert result.exit_code == 2
    says = f"{tmp_path}/train-images-idx3-ubyte.gz must be whole, got compressed data that are damaged or end early. Fetch it"
    assert says in " ".join(result.output.split())


# The race


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    yield importlib.import_module
    for name in ("autoencoder", "_race", "_race_shown", "_common"):
        sys.modules.pop(name, None)


SMALL = ["--data", "digits", "--sizes", "64-6-2", "--batch", "16", "--steps", "7", "--trials", "2", "--seeds", "2"]


def test_the_race_runs_every_method_over_as_many_trials_and_writes_table_json_and_picture(script, tmp_path, capsys):
    arguments = [*SMALL, "--seconds", "0.001,0.002", "--methods", "sgd,rmsprop", "--out", str(tmp_path)]
    result = script("autoencoder").main(arguments)
    kept = json.loads((tmp_path / "autoencoder.json").read_text())
    assert kept["setting"]["sizes"] == "64-6-2"
    assert kept["methods"].keys() == {"sgd", "rmsprop"}
    for one in kept["methods"].values():
        assert len(one["trials"]) == 2
        assert one["settings"] == min(one["trials"], key=lambda trial: trial[1])[0]
        assert len(one["losses"]["train"]) == len(one["losses"]["test"]) == 2
        assert one["train"] == pytest.approx(np.mean(one["losses"]["train"]))
        assert one["train std"] == pytest.approx(abs(np.subtract(*one["losses"]["train"])) / np.sqrt(2))
        assert one["curve"]["steps"] == [0, 1, 2, 3, 4, 5, 6, 7]
        assert one["at"].keys() == {"0.001", "0.002"}
        assert one["seconds a step"] > 0
        assert one["temporary bytes"] > 0
    assert kept["methods"]["rmsprop"]["ratio"] == 1

    more = kept["methods"]["rmsprop"]["state bytes"] - kept["methods"]["sgd"]["state bytes"]
    assert more == kept["setting"]["params bytes"]  # the mean square of each gradient
    assert (tmp_path / "autoencoder.svg").read_text().count("<path") > 10
    out = capsys.readouterr().out
    assert out.count("\n| ") == 4
    assert "digits, 1,438 + 359 images, 64-6-2 mirrored" in out
    assert result["methods"]["sgd"]["settings"] == kept["methods"]["sgd"]["settings"]


@pytest.mark.parametrize("decay", [False, True])
def test_methods_start_alike_see_the_same_batches_and_make_literal_steps(script, decay):
    race, autoencoder = script("_race"), script("autoencoder")
    net, course, _ = autoencoder.course(OPTIONS, decay=decay)
    method = autoencoder.methods(net, 20)["sgd"]
    ways = (method, method._replace(compiled=False))
    runs = [race.Lane("sgd", way, course).start({"lr": 0.01}, 3, 5) for way in ways]
    for run in runs:
        run.go(2)
        run.go(5)

    @jax.jit
    def literal(params, number):
        x, _ = course.batches(3)(number)
        grad = jax.grad(lambda p: _autoencoder.cross_entropy(net.predict(p, x), x).mean())(params)
        rate = 0.01 * ((1 - number / 5) if decay else 1)
        return jax.tree.map(lambda p, g: p - rate * g, params, grad)

    params = course.params(3)
    for number in range(5):
        params = literal(params, jnp.int32(number))
    for run in runs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), run.state.params, params)
    for loss, images in zip((course.loss, course.test), _images.digits(), strict=True):
        target = images.reshape(-1, 64).astype(float)
        losses = literal_losses(literal_logits(params, target), target)
        assert loss(params) == pytest.approx(losses.mean(), rel=1e-5)


def test_settings_fill_their_ranges_evenly_on_a_logarithmic_scale(script):
    race = script("_race")
    assert race.points([(1e-4, 1e-2)], 0) == [1e-3]
    rows = np.log10([race.points([(1e-4, 1e-1), (1e-3, 1.0)], trial) for trial in range(64)])
    shares = (rows - [-4, -3]) / 3
    assert shares.min() >= 0
    assert shares.max() <= 1
    for axis in shares.T:  # eight bins of eight
        assert np.histogram(axis, 8, (0, 1))[0].tolist() == pytest.approx([8] * 8, abs=2)
    assert np.abs(np.corrcoef(shares.T)[0, 1]) < 0.1
    whole = {race.points([(1, 8)], trial)[0] for trial in range(30)}
    assert whole == set(range(1, 9))


def test_a_run_that_overflows_counts_as_infinite_and_ends_last(script):
    race, autoencoder = script("_race"), script("autoencoder")
    with jax.enable_x64(False):
        net, course, _ = autoencoder.course(OPTIONS, decay=False)
        lane = race.Lane("sgd", autoencoder.methods(net, 20)["sgd"]._replace(knobs={"lr": (1e-2, 1e36)}), course)
        best, *_, worst = race.search(lane, trials=3, steps=8)
    assert np.isfinite(best.loss)
    assert worst.loss == np.inf
    assert len(worst.losses) == len(worst.steps) == 9
    shown = script("_race_shown")
    assert shown.clean({"loss": worst.loss, "trials": [(1, np.nan)]}) == {"loss": None, "trials": [[1, None]]}


def test_every_method_makes_a_step_with_settings_that_are_traced(script):
    race, autoencoder = script("_race"), script("autoencoder")
    net, course, _ = autoencoder.course(OPTIONS, decay=False)
    params = course.params(0)
    for name, method in autoencoder.methods(net, 20).items():
        settings = race.Lane(name, method, course).settings(0)
        traced = {knob: item for knob, item in settings.items() if isinstance(item, float)}

        def step(traced, method=method, settings=settings):
            training = method.make(settings | traced)
            return training.step(training.init(jax.random.key(0), params), course.batches(0)(0))[0].params

        jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), jax.eval_shape(step, traced), params)


@pytest.mark.slow
def test_every_method_learns_with_one_of_its_first_settings(script):
    race, autoencoder = script("_race"), script("autoencoder")
    with jax.enable_x64(False):
        net, course, _ = autoencoder.course(OPTIONS, decay=False)
        start = course.loss(course.params(0))
        for name, method in autoencoder.methods(net, 20).items():
            best = race.search(race.Lane(name, method, course), trials=4, steps=200)[0]
            assert best.loss < 0.8 * start, name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "sgd,adamm"], "there is no 'adamm'. The choices are adagrad"),
        (["--data", "nowhere"], "--data: it must be curves, digits or a folder that holds"),
        (["--data", "digits", "--sizes", "784-3"], "--sizes: sizes must begin with the 64 pixels"),
        (["--seconds", "a"], "--seconds must be numbers with commas between"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--trials", "0"], "--trials must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_raced_is_a_usage_error(script, capsys, arguments, says):
    with pytest.raises(SystemExit):
        script("autoencoder").main(arguments)
    assert says in " ".join(capsys.readouterr().err.split())
