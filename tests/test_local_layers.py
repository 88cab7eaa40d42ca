import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
KEY, DATA, NUDGE = jax.random.split(jax.random.key(5), 3)


def perturbed(params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape))


# A layer and the shape of a batch for it.
LAYERS = {
    "dense": (ux.DenseLayer(4, 3, "tanh"), (6, 4)),
    "dense over time": (ux.DenseLayer(4, 3, "softmax"), (2, 5, 4)),
    "dense without bias": (ux.DenseLayer(4, 3, "relu", bias=False), (6, 4)),
    "conv": (ux.ConvLayer(2, 3, 3, "relu"), (2, 5, 6, 2)),
    "conv valid": (ux.ConvLayer(2, 3, (3, 2), "tanh", padding="VALID"), (2, 5, 6, 2)),
    "conv strides": (ux.ConvLayer(2, 3, (3, 4), "sigmoid", strides=(2, 3)), (2, 7, 8, 2)),
    "conv valid strides": (ux.ConvLayer(1, 2, 2, strides=3, padding="VALID"), (2, 7, 8, 1)),
    "conv without bias": (ux.ConvLayer(2, 3, 1, "softplus", bias=False), (2, 3, 4, 2)),
    "recurrent": (ux.RecurrentLayer(4, 3), (2, 5, 4)),
    "recurrent relu": (ux.RecurrentLayer(1, 4, "relu"), (3, 4, 1)),
}
every = pytest.mark.parametrize("name", LAYERS)


@functools.cache
def made(name):
    layer, shape = LAYERS[name]
    return layer, perturbed(jax.jit(layer.params)(KEY)), jax.random.normal(DATA, shape)


@functools.cache
def seen(name):
    """All that a layer says of a batch, compiled at once."""
    layer, params, x = made(name)
    a = jax.eval_shape(layer.pre, params, x)
    nudge, weight = (np.asarray(jax.random.normal(key, a.shape)) for key in jax.random.split(NUDGE))

    def loss(params, nudge):
        y, inputs = layer.forward(params, x, nudge)
        return (weight * y).sum(), inputs

    def look(params):
        y, inputs = layer.forward(params, x, None)
        nudged, saw = layer.forward(params, x, nudge)
        grads, at = jax.grad(loss, (0, 1), has_aux=True)(params, 0 * weight)
        rows = layer.features(at).T @ grads[1].reshape(-1, layer.outputs)
        return {
            "a": layer.pre(params, x),
            "a of inputs": layer.pre(params, inputs),
            "y": y,
            "y of a": layer.transfer(layer.pre(params, x)),
            "features": layer.features(inputs),
            "matrix": layer.matrix(params),
            "back": layer.from_matrix(layer.matrix(params)),
            "nudged": nudged,
            "saw": saw,
            "y of what it saw": layer.transfer(layer.pre(params, saw) + nudge),
            "grad": grads[0],
            "grad by features": layer.from_matrix(rows),
        }

    return jax.tree.map(np.asarray, jax.jit(look)(params))


def literal(layer, params, x):
    """The outputs in NumPy loops."""
    p, x = {name: np.asarray(leaf) for name, leaf in params.items()}, np.asarray(x)
    if isinstance(layer, ux.DenseLayer):
        a = np.einsum("...i,ij->...j", x, p["w"]) + p.get("b", 0.0)
    elif isinstance(layer, ux.RecurrentLayer):
        h, a = np.zeros((len(x), layer.outputs)), []
        for t in range(x.shape[1]):
            a.append(h @ p["wh"] + x[:, t] @ p["wx"] + p["b"])
            h = np.asarray(layer.transfer(a[-1]))
        a = np.stack(a, 1)
    else:
        a = conv(layer, p, x)
    return a, np.asarray(layer.transfer(a))


def conv(layer, p, x):
    (tall, broad), (down, right) = layer.size, layer.strides
    height, width = x.shape[1:3]
    if layer.padding == "SAME":
        shape = (-(-height // down), -(-width // right))
        more = [max(0, (shape[0] - 1) * down + tall - height), max(0, (shape[1] - 1) * right + broad - width)]
        x = np.pad(x, [(0, 0), *[(each // 2, each - each // 2) for each in more], (0, 0)])
    else:
        shape = ((height - tall) // down + 1, (width - broad) // right + 1)
    a = np.zeros((len(x), *shape, layer.outputs))
    for i, j in np.ndindex(*shape):
        patch = x[:, i * down : i * down + tall, j * right : j * right + broad]
        a[:, i, j] = np.einsum("bhwi,hwio->bo", patch, p["w"]) + p.get("b", 0.0)
    return a


@every
def test_a_layer_is_what_its_formula_says(name):
    a, y = literal(*made(name))
    close(seen(name)["a"], a)
    close(seen(name)["y of a"], y)
    close(seen(name)["y"], y)


@every
def test_preactivations_are_features_times_matrix_with_the_bias(name):
    layer, params, x = made(name)
    a, _ = literal(layer, params, x)
    features, matrix = seen(name)["features"], seen(name)["matrix"]
    close(features @ matrix, a.reshape(-1, layer.outputs))
    close(seen(name)["a of inputs"], a)
    assert matrix.shape == (features.shape[1], layer.outputs)
    assert (features[:, -1] == 1).all() == ("b" in params)


@every
def test_a_matrix_is_turned_back_bit_for_bit(name):
    params, back = made(name)[1], seen(name)["back"]
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@every
def test_a_nudge_is_added_to_the_preactivations_that_the_returned_inputs_give(name):
    found = seen(name)
    close(found["nudged"], found["y of what it saw"])
    assert np.abs(found["nudged"] - found["y"]).max() > 0.01


def test_what_a_recurrent_layer_saw_is_its_own_last_output_and_the_input_also_when_nudged():
    found, x = seen("recurrent"), made("recurrent")[2]
    np.testing.assert_array_equal(found["saw"][:, 0, :3], 0)
    np.testing.assert_array_equal(found["saw"][:, 1:, :3], found["nudged"][:, :-1])
    np.testing.assert_array_equal(found["saw"][..., 3:], x)


@every
def test_features_and_the_gradient_by_a_nudge_make_the_gradient_of_the_params(name):
    jax.tree.map(functools.partial(close, atol=1e-11), seen(name)["grad by features"], seen(name)["grad"])


@pytest.mark.parametrize("name", ["dense", "conv", "recurrent"])
def test_a_layer_is_a_value_that_compiles_once(name):
    layer, params, x = made(name)
    traces = []

    @jax.jit
    def run(layer, params, x):
        traces.append(1)
        return layer.forward(params, x)[0]

    run(layer, params, x)
    run(dataclasses.replace(layer), params, x)
    assert len(traces) == 1
    assert jax.tree.leaves(layer) == []
    assert hash(layer) == hash(dataclasses.replace(layer))
    assert type(layer).__name__ in repr(layer)


@pytest.mark.parametrize("name", ["dense", "conv", "recurrent"])
def test_a_layer_computes_in_the_dtype_of_params_and_inputs(name):
    layer, params, x = made(name)
    for kind in (jnp.bfloat16, jnp.float32):
        low = jax.tree.map(lambda leaf, kind=kind: leaf.astype(kind), params)
        y, inputs = jax.jit(layer.forward)(low, x.astype(kind))
        assert y.dtype == inputs.dtype == kind
        assert jax.eval_shape(layer.features, inputs).dtype == jax.eval_shape(layer.matrix, low).dtype == kind
        eps = float(jnp.finfo(kind).eps)
        np.testing.assert_allclose(np.float64(y), seen(name)["y"], rtol=40 * eps, atol=40 * eps)


def test_strings_and_functions_become_transfers_at_construction():
    for layer in (ux.DenseLayer(1, 1, "relu"), ux.DenseLayer(1, 1, jax.nn.relu), ux.Layer(lambda p, x: x, jax.nn.relu)):
        assert layer.transfer is ux.transfer("relu")
    assert ux.DenseLayer(2, 3) == ux.DenseLayer(2, 3, "identity")


def test_weights_start_with_the_variance_that_is_said():
    dense = functools.partial(ux.DenseLayer, 200, 150)

    def weights(layer):
        return np.asarray(jax.jit(layer.params)(KEY)["w"])

    # 30,000 draws: z = 5 standard errors of a variance, sqrt(2 / 30,000), less for these light tails.
    np.testing.assert_allclose(weights(dense("tanh")).var(), 2 / 350, rtol=0.04)
    assert np.abs(weights(dense("tanh"))).max() <= np.sqrt(6 / 350)
    for name in ("relu", "leaky_relu", "softplus"):
        np.testing.assert_allclose(weights(dense(name)).var(), 2 / 200, rtol=0.04)
    np.testing.assert_array_equal(weights(dense("relu", initial="glorot")), weights(dense("tanh")))
    np.testing.assert_allclose(weights(ux.ConvLayer(16, 75, 5, "relu")).var(), 2 / (16 * 25), rtol=0.04)
    assert (dense("tanh").params(KEY)["b"] == 0).all()


def test_a_sparse_start_gives_each_unit_fifteen_standard_normal_weights():
    w = np.asarray(jax.jit(ux.DenseLayer(200, 500, "tanh", initial="sparse").params)(KEY)["w"])
    np.testing.assert_array_equal((w != 0).sum(0), 15)
    chosen = w[w != 0]
    assert abs(chosen.mean()) < 5 / np.sqrt(chosen.size)  # z = 5
    np.testing.assert_allclose(chosen.var(), 1, atol=5 * np.sqrt(2 / chosen.size))  # z = 5
    used = (w != 0).sum(1)  # binomial(500, 15 / 200), a little less spread
    np.testing.assert_allclose(used.mean(), 37.5)
    assert np.abs(used - 37.5).max() < 5 * np.sqrt(37.5)
    few = np.asarray(jax.jit(ux.DenseLayer(7, 5, initial="sparse").params)(KEY)["w"])
    assert (few != 0).all()


def test_a_recurrent_layer_starts_with_an_orthogonal_matrix():
    wh = ux.RecurrentLayer(2, 6).params(KEY)["wh"]
    close(wh @ wh.T, np.eye(6), atol=1e-12)


def test_dense_layers_are_the_layers_between_sizes():
    net = ux.dense_layers([784, 250, 30, 784], "relu", "sigmoid", initial="sparse")
    assert [(layer.inputs, layer.outputs, layer.transfer.name) for layer in net] == [
        (784, 250, "relu"),
        (250, 30, "relu"),
        (30, 784, "sigmoid"),
    ]
    assert {layer.initial for layer in net} == {"sparse"}


def test_a_layer_of_ones_own_has_the_params_it_draws_or_none():
    pool = ux.Layer(lambda params, x: x.reshape(len(x), -1, 2).mean(-1))
    assert pool.params(KEY) is None
    x = jax.random.normal(DATA, (3, 8))
    y, inputs = pool.forward(None, x, None)
    close(y, (x[:, ::2] + x[:, 1::2]) / 2)
    assert inputs is x
    scale = ux.Layer(lambda params, x: params * x, "tanh", lambda key: jax.random.normal(key, (1, 8)))
    params = scale.params(KEY)
    close(scale.forward(params, x, x)[0], jnp.tanh(params * x + x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ux.DenseLayer(0, 3), "DenseLayer: inputs must be a positive whole number, got inputs=0."),
        (lambda: ux.DenseLayer(3, 2.5), "DenseLayer: outputs must be a positive whole number, got outputs=2.5."),
        (
            lambda: ux.DenseLayer(3, 2, "tan"),
            "DenseLayer: transfer: 'tan' must be the name of a transfer function. Did you",
        ),
        (
            lambda: ux.DenseLayer(3, 2, initial="zeros"),
            "DenseLayer: initial must be one of None, 'glorot', 'he', 'sparse'",
        ),
        (lambda: ux.ConvLayer(3, 2, 0), "ConvLayer: size must be a positive whole number, got size=0."),
        (
            lambda: ux.ConvLayer(3, 2, (3, 3, 3)),
            "ConvLayer: size must be one whole number or two, down and to the right",
        ),
        (
            lambda: ux.ConvLayer(3, 2, 3, strides=(1, 0)),
            "ConvLayer: strides must be a positive whole number, got strides=0.",
        ),
        (lambda: ux.ConvLayer(3, 2, 3, padding="FULL"), "ConvLayer: padding must be one of 'SAME', 'VALID', got"),
        (lambda: ux.RecurrentLayer(3, -1), "RecurrentLayer: outputs must be a positive whole number, got outputs=-1."),
        (lambda: ux.RecurrentLayer(3, 1, jnp.sin), "RecurrentLayer: transfer: a function must be that of one of"),
        (lambda: ux.Layer("pre"), "Layer: pre must be a function pre(params, x), got pre='pre'. Pass one."),
        (lambda: ux.Layer(jnp.add, params=3), "Layer: params must be a function params(key), got params=3. Pass one."),
        (
            lambda: ux.dense_layers([3]),
            "dense_layers: sizes must hold those of the input and of at least one layer, got [3].",
        ),
        (
            lambda: ux.dense_layers(3),
            "dense_layers: sizes must hold those of the input and of at least one layer, got [3].",
        ),
        (lambda: ux.dense_layers([3, 0]), "dense_layers: sizes[1] must be a positive whole number, got sizes[1]=0."),
    ],
)
def test_a_wrong_layer_is_told_with_a_remedy(wrong, message):
    with pytest.raises(ux.InvalidArgument, match=re.escape(message)):
        wrong()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "dense",
            (6, 5),
            "DenseLayer(4, 3): x must be [batch, ..., 4], got float64[6,5]. Reshape it or make inputs=5.",
        ),
        (
            "dense",
            (4,),
            "DenseLayer(4, 3): x must be [batch, ..., 4], got float64[4]. Give one example a batch axis: x[None].",
        ),
        (
            "conv",
            (5, 6, 2),
            "ConvLayer(2, 3): x must be [batch, height, width, 2], got float64[5,6,2]. Give one example a",
        ),
        (
            "conv",
            (1, 2, 5, 6, 2),
            "ConvLayer(2, 3): x must be [batch, height, width, 2], got float64[1,2,5,6,2]. Reshape it.",
        ),
        (
            "conv",
            (2, 2, 5, 6),
            "ConvLayer(2, 3): x must be [batch, height, width, 2], got float64[2,2,5,6]. Reshape it or",
        ),
        ("conv valid", (2, 2, 6, 2), 'got float64[2,2,6,2]. It holds no patch of (3, 2): take padding="SAME".'),
        ("recurrent", (5, 4), "RecurrentLayer(4, 3): x must be sequences [batch, T, 4], got float64[5,4]. Give one"),
    ],
)
def test_inputs_that_do_not_fit_are_told_while_tracing(name, shape, message):
    layer, params, _ = made(name)
    with pytest.raises(ux.StructureError, match=re.escape(message)):
        jax.eval_shape(layer.forward, params, jnp.zeros(shape))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("dense", {"w": np.zeros((4, 2)), "b": np.zeros(3)}, "DenseLayer(4, 3): params leaf ['w'] must be [4, 3], got"),
        ("dense", {"w": np.zeros((4, 3))}, "DenseLayer(4, 3): params leaf ['b'] must be [3], got NoneType."),
        (
            "conv",
            None,
            "ConvLayer(2, 3): params leaf ['w'] must be [3, 3, 2, 3], got NoneType. Take them from params(key).",
        ),
        ("recurrent", {"wh": np.zeros(3)}, "RecurrentLayer(4, 3): params leaf ['wh'] must be [3, 3], got float64[3]."),
    ],
)
def test_params_that_do_not_fit_are_told_while_tracing(name, params, message):
    layer, _, x = made(name)
    for use in (lambda: layer.forward(params, x), lambda: layer.matrix(params)):
        with pytest.raises(ux.StructureError, match=re.escape(message)):
            jax.eval_shape(use)
