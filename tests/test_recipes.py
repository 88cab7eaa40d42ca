"""The recipes: their data against literal indexing, their scores against literal loops, and that they learn."""

import functools
import importlib
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits
from typer.testing import CliRunner

import unrollax as ux
from unrollax._experiment import Windows
from unrollax.cli._app import app
from unrollax.recipes import _digits, _text
from unrollax.recipes._options import RECIPES, SequentialDigits, Text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_what_each_option_does(name):
    recipe = RECIPES[name]
    assert recipe.options.__doc__
    for option, field in recipe.options.model_fields.items():
        assert field.description, option
        assert recipe.options(**{option: field.default}) == recipe.options()
    assert callable(importlib.import_module(recipe.module).build)
    with pytest.raises(ValidationError):
        recipe.options(no_such_option=1)


# Digits


@functools.cache
def digits(rows, seed=0, **options):
    return _digits.build(SequentialDigits(rows=rows, batch=5, hidden=3, **options), seed=seed, steps=10)


def digits_batch(rows, t, steps, seed=0, **options):
    data = digits(rows, seed, **options).data
    return jax.jit(lambda t: data(t, steps))(t)


def rows_of(inputs, labels):
    return sorted((image.reshape(64).tobytes(), int(label)) for image, label in zip(inputs, labels, strict=True))


@pytest.mark.parametrize("rows", [False, True])
def test_the_split_is_fixed_disjoint_and_covers_all_1797_digits(rows):
    train, test = _digits.load(rows)
    assert (len(train[0]), len(test[0])) == (1438, 359)
    images, labels = load_digits(return_X_y=True)
    together = [np.concatenate(parts) for parts in zip(train, test, strict=True)]
    assert rows_of(*together) == rows_of((images / 16).astype(np.float32), labels)
    assert not set(rows_of(*train)) & set(rows_of(*test))
    assert test[1][:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    for again, before in zip(_digits.load(not rows), (train, test), strict=True):
        np.testing.assert_array_equal(again[0].reshape(-1, 64), before[0].reshape(-1, 64))
        np.testing.assert_array_equal(again[1], before[1])
    assert train[0].min() == 0
    assert train[0].max() == 1


@pytest.mark.parametrize(("rows", "steps", "features"), [(False, 64, 1), (True, 8, 8)])
def test_a_batch_of_digits_holds_training_images_with_the_loss_at_the_end(rows, steps, features):
    frames = digits_batch(rows, 0, steps, augment=False)
    assert frames.input.shape == (steps, 5, features)
    assert frames.target.shape == frames.mask.shape == frames.weight.shape == (steps, 5)
    assert frames.mask.all()
    np.testing.assert_array_equal(frames.weight, [[0] * 5] * (steps - 1) + [[steps] * 5])
    np.testing.assert_array_equal(frames.target, frames.target[-1:].repeat(steps, 0))
    train, _ = _digits.load(rows)
    drawn = rows_of(np.asarray(frames.input).swapaxes(0, 1), frames.target[-1])
    assert set(drawn) <= set(rows_of(*train))


@pytest.mark.parametrize("augment", [False, True])
def test_batches_are_drawn_anew_and_repeat_with_their_number_and_seed(augment):
    def inputs(seed, t):
        return np.asarray(digits_batch(True, t, 8, seed, augment=augment).input)

    np.testing.assert_array_equal(inputs(0, 24), inputs(0, 24))
    assert not np.array_equal(inputs(0, 24), inputs(0, 32))
    assert not np.array_equal(inputs(0, 24), inputs(1, 24))


@pytest.mark.parametrize(("rows", "steps"), [(False, 64), (True, 8)])
def test_augmentation_keeps_labels_and_order_and_every_window_of_an_episode_sees_the_same_images(rows, steps):
    plain, changed = (digits_batch(rows, 3 * steps, steps, augment=augment) for augment in (False, True))
    np.testing.assert_array_equal(plain.target, changed.target)
    np.testing.assert_array_equal(plain.weight, changed.weight)
    assert changed.input.dtype == plain.input.dtype
    images = [np.asarray(frames.input).swapaxes(0, 1).reshape(5, 64) for frames in (plain, changed)]
    likeness = np.corrcoef(*images)[:5, 5:]
    assert (likeness.argmax(1) == np.arange(5)).all()
    assert np.abs(images[0] - images[1]).max(1).min() > 0.1
    halves = [digits_batch(rows, 3 * steps + half, steps // 2).input for half in (0, steps // 2)]
    np.testing.assert_allclose(np.concatenate(halves), changed.input, rtol=1e-6, atol=1e-6)


def literally_distorted(key, image):
    """Return what `distorted` says it does, pixel by pixel."""
    place, noise = jax.random.split(key)
    turn, slant, tall, wide, down, right = np.asarray(jax.random.uniform(place, (6,), image.dtype, -1), float)
    out = _digits.NOISE * np.asarray(jax.random.normal(noise, (8, 8), image.dtype), float)
    angle = _digits.TURN * turn
    for row, column in itertools.product(range(8), repeat=2):
        y, x = row - 3.5, column - 3.5
        x += _digits.SLANT * slant * y
        y, x = math.cos(angle) * y - math.sin(angle) * x, math.sin(angle) * y + math.cos(angle) * x
        y = y * math.exp(_digits.RESIZE * tall) + 3.5 + _digits.SHIFT * down
        x = x * math.exp(_digits.RESIZE * wide) + 3.5 + _digits.SHIFT * right
        for i, j in itertools.product(range(8), repeat=2):
            out[row, column] += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * image[i, j]
    return out


def test_a_distorted_digit_is_the_literal_interpolation():
    (inputs, _), _ = _digits.load(True)
    distorted = jax.jit(_digits.distorted)
    for seed, image in enumerate(inputs[:5]):
        key = jax.random.key(seed)
        np.testing.assert_allclose(distorted(key, image), literally_distorted(key, image), atol=1e-5)


def test_the_test_images_are_never_distorted_and_the_validation_leaves_them_out(monkeypatch):
    seen = []
    monkeypatch.setattr(_digits, "accuracy", lambda net, params, *data: seen.append(data) or 0.0)
    for score in ("test", "validation"):
        experiment = digits(True, score=score)
        assert experiment.evaluate(experiment.params) == {f"{score} accuracy": 0.0}
    (inputs, labels), test = _digits.load(True)
    assert rows_of(*map(np.asarray, seen[0])) == rows_of(*test)
    held, known = rows_of(*map(np.asarray, seen[1])), rows_of(*digits_of(experiment))
    assert (len(held), len(known)) == (287, 1151)
    assert sorted(held + known) == rows_of(inputs, labels)


def digits_of(experiment):
    batches = experiment.data.make
    return np.asarray(batches.inputs), np.asarray(batches.labels)


def test_the_mean_step_loss_is_the_cross_entropy_of_the_last_prediction():
    experiment = digits(True)
    net, params, frames = experiment.system.system, experiment.params, digits_batch(True, 0, 8)
    start = experiment.system.init(jax.random.key(0), params)
    losses = ux.unroll(experiment.system, params, start, frames, jax.random.key(1))[1]
    expected = 0.0
    for example in range(5):
        logits = np.asarray(net.predict(params, frames.input[:, example])[-1])
        expected += math.log(np.exp(logits).sum()) - logits[int(frames.target[0, example])]
    assert losses.mean() == pytest.approx(expected / 5, rel=1e-6)
    assert isinstance(experiment.estimator, ux.BPTT)
    assert experiment.estimator.horizon == 8


def test_a_short_run_on_rows_learns_to_read():
    with jax.enable_x64(False):
        experiment = _digits.build(SequentialDigits(rows=True, hidden=32), seed=0, steps=300)
        assert experiment.evaluate(experiment.params)["test accuracy"] < 0.3
        run = ux.fit(
            experiment.estimator,
            experiment.optimizer,
            experiment.params,
            Windows(experiment.data, 8),
            key=jax.random.key(0),
            steps=300,
        )
        assert experiment.evaluate(run.params)["test accuracy"] > 0.9


def test_accuracy_is_the_share_of_right_last_predictions():
    net, params = digits(True).system.system, digits(True).params
    (inputs, labels), _ = _digits.load(True)
    right = [np.argmax(net.predict(params, x)[-1]) == label for x, label in zip(inputs[:20], labels[:20], strict=True)]
    assert _digits.accuracy(net, params, inputs[:20], labels[:20]) == pytest.approx(sum(right) / 20)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--set", "rows=true"]], ids=["pixels", "rows"])
def test_the_digits_recipe_reaches_97_percent_with_nothing_set(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False):
        result = CliRunner().invoke(app, ["train", "sequential-digits", "-q", "--json", *arguments])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["test_accuracy"] >= 0.97


# Text

ENGLISH = "the quick brown fox jumps over the lazy dog, «twice» 🙂.\n" * 30


def write(folder, text):
    (folder / "my.txt").write_text(text, encoding="utf-8")
    return str(folder / "my.txt")


def build(path):
    return _text.build(Text(path=path, hidden=3, batch=2, window=5, lr=0.05), seed=0, steps=4)


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return build(write(tmp_path_factory.mktemp("text"), ENGLISH))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("t", "steps"), [(0, 4), (19, 4), (23, 1), (1000, 30)])
def test_lanes_read_the_text_as_literal_indexing_does(t, steps, traced):
    codes = np.random.default_rng(0).integers(0, 9, 23)
    lanes = _text.Lanes(jnp.asarray(codes), 3)
    frames = (jax.jit(lambda t: lanes(t, steps)) if traced else lambda t: lanes(t, steps))(jnp.int32(t))
    for step in range(steps):
        for lane in range(3):
            place = t + step + lane * (23 // 3)
            assert frames.input[step, lane] == codes[place % 23]
            assert frames.target[step, lane] == codes[(place + 1) % 23]
    assert frames.mask.all()
    assert frames.mask.dtype == bool
    np.testing.assert_array_equal(frames.weight, np.ones((steps, 3)))


def test_the_alphabet_is_that_of_the_text_and_codes_read_back(english):
    alphabet = sorted(set(ENGLISH))
    assert english.system.system.cell.inputs == english.system.system.readout.outputs == len(alphabet)
    assert "".join(alphabet[code] for code in np.asarray(english.data.codes)) == ENGLISH[: int(0.9 * len(ENGLISH))]


def test_the_held_out_end_is_never_read_in_training(tmp_path, english):
    cut = int(0.9 * len(ENGLISH))
    other = ENGLISH[:cut] + "".join(reversed(ENGLISH[cut:]))
    one, two = english, build(write(tmp_path, other))
    for t in (0, 5, cut // 2 - 5, cut - 5, cut, 10 * cut + 1):
        jax.tree.map(np.testing.assert_array_equal, one.data(t, 5), two.data(t, 5))
    (score,), (other_score,) = (each.evaluate(one.params).values() for each in (one, two))
    assert score != other_score


@pytest.mark.parametrize("count", [2, 100, 200, 201, 202, 401, 1000])
def test_pieces_hold_each_held_out_character_but_a_rest_once_as_a_target(count):
    codes = np.arange(count)
    pieces = _text._pieces(codes)
    length = min(200, count - 1)
    assert pieces.shape == ((count - 1) // length, length + 1)
    np.testing.assert_array_equal(pieces[:, 1:].ravel(), codes[1 : 1 + pieces.shape[0] * length])
    np.testing.assert_array_equal(pieces[:, 0], codes[: pieces.shape[0] * length : length])


def test_bits_are_those_of_a_literal_loop():
    net = ux.recurrent(ux.RNNCell(4, 3), ux.Dense(3, 4), encode=functools.partial(jax.nn.one_hot, num_classes=4))
    params = jax.tree.map(lambda leaf: leaf + 0.3, net.params(jax.random.key(0)))
    pieces = np.array([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])
    cell, readout = (jax.tree.map(np.asarray, params[part]) for part in ("cell", "readout"))
    total = 0.0
    for piece in pieces:
        h = np.zeros(3)
        for now, after in itertools.pairwise(piece):
            h = np.tanh(cell["wx"][now] + h @ cell["wh"] + cell["b"])
            odds = np.exp(h @ readout["w"] + readout["b"])
            total -= math.log2(odds[after] / odds.sum())
    assert _text.bits(net, params, jnp.asarray(pieces)) == pytest.approx(total / 8, rel=1e-12)


def test_a_text_of_the_users_is_trained_on(english):
    (before,) = english.evaluate(english.params).values()
    data = Windows(english.data, english.estimator.window)
    run = ux.fit(english.estimator, english.optimizer, english.params, data, key=jax.random.key(0), steps=4)
    (after,) = english.evaluate(run.params).values()
    assert english.estimator.window == 5
    assert after < before < math.log2(len(set(ENGLISH))) + 1


def test_the_shipped_text_is_genesis():
    text = _text.read("")
    assert text.startswith("In the beginning God created the heaven and the earth.")
    assert len(text) > 100_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"x" * 999, "must have at least 1000 characters, got 999 in "),
        (b"", "got 0 in "),
        (b"caf\xe9 " * 300, "must be a readable UTF-8 text file, got .*: it is not UTF-8"),
        (None, "must be a readable UTF-8 text file, got .*: No such file or directory"),
    ],
)
def test_a_text_that_cannot_be_used_says_why(tmp_path, content, says):
    path = tmp_path / "my.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ux.InvalidArgument, match=says):
        _text.read(str(path))
