import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax._check import check_params
from unrollax._tree import from_arrays, to_arrays

close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
KEY, DATA, TARGET = jax.random.split(jax.random.key(3), 3)
BATCH = 6


def squares(y, target):
    return ((y - target) ** 2).reshape(len(y), -1).sum(-1)


def flatten(params, x):
    return x.reshape(len(x), -1)


class Scale:
    """A layer that is no pytree, with an initialiser."""

    def params(self, key):
        return {"scale": jax.random.normal(key, (1, 1))}

    def pre(self, params, x):
        return params["scale"] * x

    def transfer(self, a):
        return jnp.sin(a)


@ux.value
class Features:
    """A layer with arrays of its own."""

    w: jax.Array

    def pre(self, params, x):
        return x @ self.w

    def transfer(self, a):
        return jnp.cos(a)


# Layers, and the shapes of x and target of one example.
NETS = {
    "dense": (ux.dense_layers([4, 5, 3], "tanh", "sigmoid"), (4,), (3,)),
    "conv": ([ux.ConvLayer(1, 2, 3, "relu"), ux.Layer(flatten), ux.DenseLayer(24, 3)], (4, 3, 1), (3,)),
    "recurrent": ([ux.RecurrentLayer(2, 4), ux.DenseLayer(4, 3)], (5, 2), (5, 3)),
    "own": ([Features(jnp.eye(4)), ux.DenseLayer(4, 3), Scale()], (4,), (3,)),
}
every = pytest.mark.parametrize("name", NETS)


@functools.cache
def made(name):
    layers, x, target = NETS[name]
    net = ux.layered(layers, squares)
    data = jax.random.normal(DATA, (BATCH, *x)), jax.random.normal(TARGET, (BATCH, *target))
    return net, jax.jit(net.params)(KEY), data


def by_hand(name, params, x):
    for layer, own in zip(NETS[name][0], params, strict=True):
        x = layer.transfer(layer.pre(own, x))
    return x


def same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(close, got, expected)


def estimate(estimator, params, data, calls=1):
    state, found = estimator.init(jax.random.key(1), params), []
    window = jax.tree.leaves(data)[0].shape[0] // calls
    run = jax.jit(estimator.estimate)
    for call in range(calls):
        part = jax.tree.map(lambda leaf, call=call: leaf[call * window : (call + 1) * window], data)
        state, one = run(params, state, part)
        found.append(one)
    return found


@every
def test_backpropagation_through_the_system_is_the_gradient_of_the_mean_loss(name):
    net, params, (x, target) = made(name)

    @jax.jit
    def hand(params):
        loss, grad = jax.value_and_grad(lambda params: squares(by_hand(name, params, x), target).mean())(params)
        return loss, grad, by_hand(name, params, x), net.predict(params, x)

    loss, grad, y, predicted = hand(params)
    (found,) = estimate(ux.BPTT(net, horizon=BATCH), params, (x, target))
    close(found.loss, loss)
    same(found.grad, grad)
    close(predicted, y)


@every
def test_a_step_is_one_example_of_the_whole_window(name):
    """`unroll` scans over steps: the definition, against which the whole form stands."""
    net, params, data = made(name)
    state, losses = jax.jit(net.unroll)(params, (), data, jax.random.split(KEY, BATCH))
    assert state == ()
    close(
        losses, jax.jit(functools.partial(ux.unroll, ux.system(init=net.init, step=net.step)))(params, (), data, KEY)[1]
    )
    after, last = jax.jit(net.step)(params, (), jax.tree.map(lambda leaf: leaf[-1], data), KEY)
    assert after == ()
    close(last, losses[-1])


def test_the_gradient_by_steps_is_that_of_the_batch():
    net, params, data = made("dense")
    (whole,) = estimate(ux.BPTT(net, horizon=BATCH), params, data)
    (steps,) = estimate(ux.BPTT(ux.system(init=net.init, step=net.step), horizon=BATCH), params, data)
    (pieces,) = estimate(ux.BPTT(net, horizon=BATCH, memory="sqrt"), params, data)
    same(steps.grad, whole.grad)
    same(pieces.grad, whole.grad)


def test_the_gradients_of_parts_of_a_batch_average_to_that_of_the_whole():
    net, params, data = made("dense")
    (whole,) = estimate(ux.BPTT(net, horizon=BATCH), params, data)
    parts = estimate(ux.TBPTT(net, window=2, horizon=BATCH), params, data, calls=3)
    same(jax.tree.map(lambda *grads: sum(grads) / 3, *[part.grad for part in parts]), whole.grad)


def test_a_batch_of_batches_is_the_mean_over_both_axes():
    net, params, (x, target) = made("dense")
    (whole,) = estimate(ux.BPTT(net, horizon=BATCH), params, (x, target))
    data = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), (x, target))
    (found,) = estimate(ux.BPTT(ux.batched(net, 3), horizon=2), params, data)
    close(found.loss, whole.loss)
    same(found.grad, whole.grad)


def test_evolution_strategies_take_it_with_params_that_hold_none():
    net, params, data = made("conv")
    assert params[1] is None
    assert check_params("PES", params)[1] is None
    (found,) = estimate(ux.PES(net, window=BATCH, horizon=BATCH, std=0.1, pairs=2), params, data)
    assert jax.tree.map(jnp.shape, found.grad) == jax.tree.map(jnp.shape, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found.grad))


def test_params_of_a_net_go_through_plain_arrays_and_optax():
    _, params, _ = made("conv")
    assert sorted(to_arrays(params)) == ["0/b", "0/w", "2/b", "2/w"]
    same(from_arrays(params, to_arrays(params)), params)
    optimizer = optax.adam(1e-3)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_it_trains():
    net, params, (x, _) = made("dense")
    data = (x, jnp.full((BATCH, 3), 0.5) + 0.2 * x[:, :3])
    bptt, optimizer = ux.BPTT(net, horizon=BATCH), optax.adam(0.05)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state, moments = carry
            state, found = bptt.estimate(params, state, data)
            updates, moments = optimizer.update(found.grad, moments)
            return (optax.apply_updates(params, updates), state, moments), found.loss

        return jax.lax.scan(step, (params, bptt.init(KEY, params), optimizer.init(params)), length=300)[1]

    losses = train(params)
    assert losses[-1] < 0.05 * losses[0]


def test_a_net_is_a_value_that_compiles_once():
    traces = []

    @jax.jit
    def predict(net, params, x):
        traces.append(1)
        return net.predict(params, x)

    for name in ("dense", "conv"):
        net, params, (x, _) = made(name)
        predict(net, params, x)
        predict(ux.layered(NETS[name][0], squares), params, x)
    assert len(traces) == 2
    own = NETS["own"][0]
    net, params, (x, _) = made("own")
    predict(net, params, x)
    predict(ux.layered([Features(2 * jnp.eye(4)), *own[1:]], squares), params, x)
    assert len(traces) == 3


@pytest.mark.parametrize("name", ["recurrent", "own"])
def test_depth_flow_takes_the_layers_as_they_are(name):
    net, params, (x, target) = made(name)

    def loss(x):
        return squares(by_hand(name, params, x), target).mean()

    value, grad = jax.jit(jax.value_and_grad(loss))(x)
    for layers in (NETS[name][0], net.layers)[: 1 + (name == "own")]:
        found = ux.depth_flow(layers, params, x, lambda y: squares(y, target).mean())
        np.testing.assert_allclose(found.loss, value, rtol=1e-6)
        np.testing.assert_allclose(found.input_gradient, jnp.linalg.norm(grad), rtol=1e-6)


def test_layers_without_an_initialiser_have_no_params_and_keys_do_not_recur():
    net = ux.layered([Features(jnp.eye(4)), ux.DenseLayer(4, 4), ux.DenseLayer(4, 4)], squares)
    params = net.params(KEY)
    assert params[0] is None
    assert jnp.abs(params[1]["w"] - params[2]["w"]).max() > 0.1


class NoTransfer:
    pre = staticmethod(flatten)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "layered: layers must hold at least one layer, got none. Pass them first to last."),
        (ux.DenseLayer(4, 3), "layered: layers must be a list of layers, got DenseLayer. Pass [first, ..., last]."),
        ("dense", "layered: layers must be a list of layers, got str."),
        (
            [ux.DenseLayer(4, 3), NoTransfer()],
            "layered: layers[1] must have pre(params, x) and transfer(a), got NoTransfer",
        ),
        (
            [flatten],
            "layered: layers[0] must have pre(params, x) and transfer(a), got function without pre and transfer.",
        ),
        (
            [Scale],
            "layered: layers[0] must have pre(params, x) and transfer(a), got the class Scale and no object of it.",
        ),
        (
            [ux.DenseLayer(4, 5), ux.DenseLayer(6, 3)],
            "layered: layers[1], DenseLayer(6, 3), must take the 5 numbers on the last axis that layers[0], DenseLayer(4, 5),"
            " gives, got inputs=6.",
        ),
        (
            [ux.ConvLayer(1, 4, 3), ux.DenseLayer(36, 3)],
            "gives, got inputs=36. Change one, or put what reshapes between them, such as unrollax.Layer(lambda params, x: "
            "x.reshape(len(x), -1)) behind a convolution.",
        ),
    ],
)
def test_a_wrong_list_of_layers_is_told_by_index(layers, message):
    with pytest.raises(ux.InvalidArgument, match=re.escape(message)):
        ux.layered(layers, squares)


def test_a_loss_must_be_a_function_with_one_number_an_example():
    with pytest.raises(
        ux.InvalidArgument, match=re.escape("layered: loss must be a function loss(y, target) -> [batch]")
    ):
        ux.layered([ux.DenseLayer(4, 3)], "squares")
    _, params, data = made("dense")
    wrong = {
        "float64[]": lambda y, target: squares(y, target).mean(),
        "float64[6,3]": lambda y, target: (y - target) ** 2,
        "int64[6]": lambda y, target: jnp.zeros(6, int),
    }
    for got, loss in wrong.items():
        message = (
            f"layered: loss must return floating [batch] losses, one an example, here [6], got {got} for predictions "
            "float64[6,3]. Reduce all axes but the first, for example with .sum(-1)."
        )
        with pytest.raises(ux.StructureError, match=re.escape(message)):
            estimate(ux.BPTT(ux.layered(NETS["dense"][0], loss), horizon=BATCH), params, data)


@pytest.mark.parametrize(
    "estimator",
    [lambda net: ux.BPTT(net, BATCH), ux.KFAC, lambda net: ux.LocoProp(net.layers, net.loss)],
    ids=["layered", "KFAC", "LocoProp"],
)
@pytest.mark.parametrize(
    ("layers", "shape", "predicted", "why"),
    [
        (ux.dense_layers([4, 3]), (4,), "6,3", "sub got incompatible shapes for broadcasting: (6, 3), (6, 2)"),
        (
            [ux.ConvLayer(1, 4, 3), ux.DenseLayer(4, 2)],
            (5, 5, 1),
            "6,5,5,2",
            "(6, 5, 5, 2)",
        ),
    ],
    ids=["another width", "not flattened"],
)
def test_a_loss_that_cannot_take_its_target_is_told_with_both_shapes(estimator, layers, shape, predicted, why):
    made = estimator(ux.layered(layers, lambda y, target: ((y - target) ** 2).reshape(len(y), -1).sum(-1)))
    params = ux.layered(layers, squares).params(KEY)
    with pytest.raises(ux.StructureError) as told:
        estimate(made, params, (jnp.ones((BATCH, *shape)), jnp.ones((BATCH, 2))))
    message = str(told.value)
    assert re.match(r"(layered|KFAC|LocoProp): loss must take predictions ", message)
    assert f"predictions float64[{predicted}] with a target float64[6,2], got " in message
    assert re.search(rf", got \w+Error: .*{re.escape(why)}.*\. Give them shapes that fit: flatten", message)
    assert isinstance(told.value.__cause__, (TypeError, ValueError))


def test_what_a_loss_itself_refuses_is_told_as_it_is():
    _, params, data = made("dense")
    told = ux.StructureError("mine: target must be labels. Give them.")

    def loss(y, target):
        raise told

    with pytest.raises(ux.StructureError) as found:
        estimate(ux.BPTT(ux.layered(NETS["dense"][0], loss), horizon=BATCH), params, data)
    assert found.value is told
    with pytest.raises(jax.errors.TracerBoolConversionError):
        estimate(
            ux.BPTT(ux.layered(NETS["dense"][0], lambda y, t: y if (y > 0).all() else t), horizon=BATCH), params, data
        )


X = np.zeros((6, 4))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda net, params: net.predict(params, np.zeros((6, 5))),
            "layered: layers[0]: DenseLayer(4, 5): x must be [batch, ..., 4], got float64[6,5].",
        ),
        (
            lambda net, params: net.predict(params[:1], X),
            "layered: params must be a list with one entry for each of the 2 layers, got 1 entries.",
        ),
        (
            lambda net, params: net.predict({"w": X}, X),
            "for each of the 2 layers, got dict. Take them from params(key)",
        ),
        (
            lambda net, params: net.predict(params[::-1], X),
            "layered: layers[0]: DenseLayer(4, 5): params leaf ['w'] must be [4, 5], got float64[5,3].",
        ),
        (
            lambda net, params: net.unroll(params, (), X, jax.random.split(KEY, 6)),
            "layered: data must be a pair (x, target), leaves [batch, ...], got float64[6,4]. Pass both.",
        ),
        (
            lambda net, params: net.unroll(params, (), (X,), jax.random.split(KEY, 6)),
            "layered: data must be a pair (x, target), leaves [batch, ...], got tuple of 1. Pass both.",
        ),
        (
            lambda net, params: ux.layered([*net.layers, ux.Layer(lambda p, x: x.sum(0))], squares).predict(
                [*params, None], X
            ),
            "layered: layers[2], Layer, must return floating numbers with the batch on the first axis, got float64[3] for "
            "float64[6,3]. Keep that axis.",
        ),
        (
            lambda net, params: ux.layered([*net.layers, ux.Layer(lambda p, x: x @ np.ones((4, 2)))], squares).predict(
                [*params, None], X
            ),
            "layered: layers[2]: Layer can't take float64[6,3]: ",
        ),
    ],
)
def test_what_does_not_fit_a_net_is_told_while_tracing(run, message):
    net, params, _ = made("dense")
    with pytest.raises(ux.StructureError, match=re.escape(message)):
        jax.eval_shape(lambda params: run(net, params), params)
