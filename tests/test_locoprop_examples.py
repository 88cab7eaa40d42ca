"""The examples of LocoProp: their parts against literal ones, and tiny runs of all that they do."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "examples")
    yield importlib.import_module
    for name in ("deep_sigmoid", "locoprop_conv", "locoprop_recurrent", "_layerwise", "_race"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [pytest.param("locoprop_conv", marks=pytest.mark.slow), "locoprop_recurrent"])
def test_a_tiny_run_compares_all_methods_at_equal_steps_and_equal_seconds(script, name, capsys):
    found = script(name).main(["--steps", "2", "--trials", "1", "--batch", "4"])
    assert found.keys() == {"adam", "locoprop-s", "locoprop-m"}
    slowest = max(one["seconds a step"] for one in found.values())
    for one in found.values():
        assert one["steps"]["steps"] == 2
        assert one["seconds"]["steps"] == max(1, round(2 * slowest / one["seconds a step"]))
        for what in ("steps", "seconds"):
            assert np.isfinite(one[what]["loss"])
            assert 0 <= one[what]["accuracy"] <= 1
    assert capsys.readouterr().out.count("\n| ") == 3


@pytest.mark.parametrize("name", ["locoprop_conv", "locoprop_recurrent"])
def test_loss_and_accuracy_are_literal_ones_over_all_digits(script, name):
    task = script(name).task()
    course = script("_layerwise").course(task, 4)
    params = course.params(0)
    for (x, label), found in ((task.train, course.loss(params)), (task.test, None)):
        logits = np.asarray(task.net.predict(params, x), float)
        if found is None:
            assert course.test(params) == pytest.approx((logits.argmax(1) == np.asarray(label)).mean())
            continue
        chosen = logits[np.arange(len(label)), np.asarray(label)]
        assert found == pytest.approx((np.log(np.exp(logits).sum(1)) - chosen).mean(), rel=1e-4)


def literal_slopes(params, x, label):
    """d loss_i / d a of a sigmoid net with a softmax, by hand."""
    ys = [x]
    for index, one in enumerate(params):
        a = ys[-1] @ one["w"] + one["b"]
        ys.append(a if index + 1 == len(params) else 1 / (1 + np.exp(-a)))
    share = np.exp(ys[-1]) / np.exp(ys[-1]).sum(1, keepdims=True)
    slopes = [share - np.eye(share.shape[1])[label]]
    for y, one in zip(ys[-2:0:-1], params[:0:-1], strict=True):
        slopes.insert(0, (slopes[0] @ one["w"].T) * y * (1 - y))
    return slopes


def test_normalized_targets_lie_at_one_distance_in_every_layer(script):
    deep = script("deep_sigmoid")
    net = ux.layered(ux.dense_layers([3, 4, 4, 2], "sigmoid"), deep.cross_entropy)
    params = deep.start(net, 1.0, jnp.float64, 0)
    rng = np.random.default_rng(0)
    x, label = rng.standard_normal((6, 3)), rng.integers(0, 2, 6)
    reach, damping = 0.1, 0.2
    loco = deep.methods(net, 6, 10, damping)["normalized"].estimator
    _, estimate = jax.jit(loco.estimate)(params, loco.init(jax.random.key(0), params), (jnp.asarray(x), label))
    plain = jax.tree.map(np.asarray, params)
    for layer, slope, grad in zip(range(3), literal_slopes(plain, x, label), estimate.grad, strict=True):
        inputs = x
        for one in plain[:layer]:
            inputs = 1 / (1 + np.exp(-(inputs @ one["w"] + one["b"])))
        rows = np.c_[inputs, np.ones(6)]
        squares = (slope**2).mean(0)
        move = slope / np.sqrt(squares + 0.1 * squares.mean())
        covariance = rows.T @ rows / 6
        added = damping * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        expected = reach * np.linalg.solve(covariance + added, rows.T @ move / 6)
        np.testing.assert_allclose(np.r_[grad["w"], grad["b"][None]], expected, rtol=1e-9, atol=1e-12)


def test_methods_are_trained_from_one_start_on_a_deep_sigmoid_net(script, capsys):
    arguments = ["--depths", "2", "--width", "4", "--steps", "2", "--examples", "5", "--methods", "sgd,normalized"]
    found = script("deep_sigmoid").main(arguments)
    assert found[2].keys() == {"sgd", "normalized"}
    for one in found[2].values():
        assert np.isfinite(one["loss"])
    out = capsys.readouterr().out
    assert "2 layers: the gradient's factor a layer is 0." in out
    assert out.count("\n| ") == 3


@pytest.mark.slow
def test_normalized_targets_train_fifty_sigmoid_layers_that_gradients_cannot_move(script):
    arguments = ["--depths", "50", "--methods", "sgd,adam,muon,natural,normalized"]
    found = script("deep_sigmoid").main(arguments)[50]
    assert found["normalized"]["loss"] < 0.05
    assert found["normalized"]["train"] == 1
    for name in ("sgd", "adam", "muon"):
        assert found[name]["loss"] == pytest.approx(np.log(2), abs=0.02)
        assert found[name]["spread"] < 1e-6
