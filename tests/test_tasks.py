"""The tasks that need a memory: each sequence against its definition, scores against literal loops, baselines by theory."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import unrollax as ux
from unrollax.cli._app import app
from unrollax.recipes import _tasks
from unrollax.recipes._options import RECIPES, Adding, Copy, TemporalOrder

NAMES = {"adding": Adding, "copy": Copy, "temporal-order": TemporalOrder}


@functools.cache
def many(make, length, count=400):
    """Many sequences, leaves `[count, steps, ...]`, as NumPy arrays."""
    frames = jax.vmap(make(length).example)(jax.random.split(jax.random.key(0), count))
    return jax.tree.map(np.asarray, frames)


@functools.cache
def adding():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tasks, "TEST", 20)
        return _tasks.build(Adding(length=12, hidden=3, batch=4), seed=0, steps=5)


@pytest.mark.parametrize("length", [10, 11, 100])
def test_the_sum_is_that_of_the_two_marked_values_one_in_each_half(length):
    frames = many(_tasks.adding, length)
    assert frames.input.shape == (400, length, 2)
    marked = set()
    for x, target, weight in zip(frames.input, frames.target, frames.weight, strict=True):
        first, second = np.flatnonzero(x[:, 1])
        assert first < length // 2 <= second
        marked |= {int(first), int(second)}
        assert set(x[:, 1]) == {0, 1}
        np.testing.assert_allclose(target[:, 0], x[first, 0] + x[second, 0], rtol=1e-12)
        np.testing.assert_array_equal(weight, [0] * (length - 1) + [length])
    assert length == 100 or marked == set(range(length))
    values = frames.input[..., 0]
    assert values.min() >= 0
    assert values.max() <= 1
    z = 4 / math.sqrt(values.size)
    assert values.mean() == pytest.approx(1 / 2, abs=z * math.sqrt(1 / 12))


def test_to_say_one_has_an_error_of_a_sixth():
    frames = many(_tasks.adding, 10, 20_000)
    task = _tasks.adding(10)
    error = float(task.score(np.ones((20_000, 10, 1)), frames)["test MSE"])
    squares = (frames.target[:, -1] - 1) ** 2
    assert error == pytest.approx(squares.mean(), rel=1e-12)
    assert error == pytest.approx(task.known["test MSE, always saying 1"], abs=4 * squares.std() / math.sqrt(20_000))
    assert task.known == {"test MSE, always saying 1": 1 / 6}


@pytest.mark.parametrize("length", [1, 2, 30])
def test_a_copy_is_ten_symbols_a_wait_with_a_mark_at_its_end_and_the_ten_again(length):
    frames = many(_tasks.copying, length)
    steps = length + 20
    assert frames.input.shape == (400, steps, 10)
    for x, target in zip(frames.input, frames.target, strict=True):
        np.testing.assert_array_equal(x.sum(1), np.ones(steps))
        codes = x.argmax(1)
        symbols = codes[:10]
        assert symbols.max() < 8
        np.testing.assert_array_equal(codes[10:], [8] * (length - 1) + [9] + [8] * 10)
        np.testing.assert_array_equal(target, [8] * (length + 10) + symbols.tolist())
    assert (frames.weight == 1).all()
    assert set(frames.target[:, -10:].ravel()) == set(range(8))


def test_without_a_memory_a_copy_costs_ten_log_8_in_all():
    task, frames = _tasks.copying(30), many(_tasks.copying, 30)
    blanks, guesses = np.full(9, -1e9), np.zeros(9)
    blanks[8], guesses[8] = 0, -1e9
    said = np.tile(np.array([blanks] * 40 + [guesses] * 10), (400, 1, 1))
    scores = task.score(jnp.asarray(said), frames)
    assert scores["test cross-entropy"] == pytest.approx(10 * math.log(8) / 50, rel=1e-9)
    assert task.known["test cross-entropy, without memory"] == pytest.approx(10 * math.log(8) / 50, rel=1e-9)
    assert scores["test accuracy"] == pytest.approx(1 / 8, abs=4 * math.sqrt(7 / 64 / 4000))
    assert task.known["test accuracy, without memory"] == 1 / 8


@pytest.mark.parametrize("length", [10, 19, 100])
def test_the_order_is_that_of_an_early_and_a_late_symbol_among_others(length):
    frames = many(_tasks.ordering, length)
    assert frames.input.shape == (400, length, 6)
    places = []
    for x, target, weight in zip(frames.input, frames.target, frames.weight, strict=True):
        codes = x.argmax(1)
        early, late = np.flatnonzero(codes < 2)
        assert length // 10 <= early < length // 5
        assert 2 * length // 5 <= late < length // 2
        places.append((early, late))
        np.testing.assert_array_equal(target, np.full(length, 2 * codes[early] + codes[late]))
        np.testing.assert_array_equal(weight, [0] * (length - 1) + [length])
    counts = np.bincount(frames.target[:, 0], minlength=4)
    assert (np.abs(counts - 100) < 4 * math.sqrt(400 * 3 / 16)).all()
    possible = (length // 5 - length // 10) * (length // 2 - 2 * length // 5)
    assert len(set(places)) >= 0.9 * min(possible, 90)


def test_batches_are_fresh_and_repeat_with_their_number_and_key():
    draws = adding().data
    assert (draws.horizon, adding().estimator.horizon, type(adding().estimator)) == (12, 12, ux.BPTT)
    other = dataclasses.replace(draws, make=dataclasses.replace(draws.make, key=jax.random.key(1)))
    first, again, second, third = (
        np.asarray(stream(t, 12).input) for stream, t in ((draws, 0), (draws, 0), (draws, 12), (other, 0))
    )
    assert first.shape == (12, 4, 2)
    np.testing.assert_array_equal(first, again)
    assert len({x[:, n].tobytes() for x in (first, second, third) for n in range(4)}) == 12


@pytest.mark.parametrize("make", [_tasks.adding, _tasks.copying, _tasks.ordering])
def test_scores_are_those_of_a_literal_loop(make):
    task, frames = make(10), many(make, 10)
    outputs = np.random.default_rng(0).normal(size=(400, task.steps, task.outputs))
    squares, right, losses = [], [], []
    for said, target in zip(outputs, frames.target, strict=True):
        for step in range(task.steps) if make is _tasks.copying else [9]:
            if make is _tasks.adding:
                squares.append((said[step, 0] - target[step, 0]) ** 2)
                continue
            losses.append(np.log(np.exp(said[step]).sum()) - said[step, target[step]])
            if make is not _tasks.copying or step >= 20:
                right.append(said[step].argmax() == target[step])
    scores = task.score(jnp.asarray(outputs), frames)
    expected = {"test MSE": squares, "test accuracy": right, "test cross-entropy": losses}
    assert set(scores) == {score for score, each in expected.items() if each}
    for score in scores:
        assert float(scores[score]) == pytest.approx(np.mean(expected[score]), rel=1e-6)


def test_evaluate_scores_what_the_network_says_of_20_fresh_sequences():
    experiment, task = adding(), _tasks.adding(12)
    net, params = experiment.system.system, experiment.params
    frames = jax.vmap(task.example)(jax.random.split(jax.random.key(2**32 - 1), 20))
    said = np.array([net.predict(params, x)[-1, 0] for x in frames.input])
    scores = experiment.evaluate(params)
    assert scores.pop("test MSE") == pytest.approx(np.mean((said - np.asarray(frames.target)[:, -1, 0]) ** 2), rel=1e-6)
    assert scores == task.known


@pytest.mark.parametrize(
    ("name", "setting"),
    [("temporal-order", ["cell=gru"]), ("copy", ["cell=mingru", "layers=2"])],
)
def test_a_task_trains_with_another_cell(name, setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_tasks, "TEST", 8)
    monkeypatch.setattr("unrollax.cli._train.render", lambda *parts: "")
    pairs = [f"--set={pair}" for pair in (*setting, "hidden=3", "batch=2", "length=10")]
    result = CliRunner().invoke(app, ["train", name, "-q", "--json", "--steps", "2", *pairs], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["updates"] == 2


def test_every_task_is_a_recipe():
    assert {name for name, recipe in RECIPES.items() if recipe.module == _tasks.__name__} == set(NAMES)
    assert set(_tasks.TASKS) == set(NAMES.values())


def learned(name, *setting, tmp_path):
    with jax.enable_x64(False):
        arguments = ["train", name, "-q", "--json", "--out", str(tmp_path / "-".join(setting)), *setting]
        return json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)


@pytest.mark.slow
def test_the_lstm_adds_over_100_steps_where_the_plain_network_does_not(tmp_path):
    lstm = learned("adding", tmp_path=tmp_path)
    plain = learned("adding", "--set=cell=rnn", tmp_path=tmp_path)
    assert lstm["updates"] == plain["updates"]
    assert lstm["test_MSE"] < 0.01
    assert plain["test_MSE"] > 0.15


@pytest.mark.slow
def test_the_lstm_tells_the_order_over_100_steps_where_the_plain_network_does_not(tmp_path):
    assert learned("temporal-order", tmp_path=tmp_path)["test_accuracy"] > 0.99
    assert learned("temporal-order", "--set=cell=rnn", tmp_path=tmp_path)["test_accuracy"] < 0.35
