import functools
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
KEY = jax.random.key(4)
KEYS = jax.random.split(KEY, 6)
X = jax.random.normal(KEY, (5, 4))
IMAGES = jax.random.normal(KEY, (3, 6, 7, 2))
FIRST = jnp.moveaxis(IMAGES, -1, 1)
nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
double = {"param_dtype": jnp.float64}


def squares(y, target):
    return ((y - target) ** 2).reshape(len(y), -1).sum(-1)


def linear(i, inputs, outputs, **options):
    return eqx.nn.Linear(inputs, outputs, key=KEYS[i], **options)


def conv(i, inputs, outputs, size, **options):
    return eqx.nn.Conv2d(inputs, outputs, size, key=KEYS[i], **options)


def sequential(*parts):
    return eqx.nn.Sequential([eqx.nn.Lambda(part) if not isinstance(part, eqx.Module) else part for part in parts])


def names_of(layers):
    return [(type(layer).__name__, layer.transfer.name) for layer in layers]


# Equinox's modules, a batch, and the layers that must come of them.
MODULES = {
    "mlp": (lambda: eqx.nn.MLP(4, 2, 8, 2, key=KEY), X, [("DenseLayer", "relu")] * 2 + [("DenseLayer", "identity")]),
    "mlp sigmoid": (
        lambda: eqx.nn.MLP(4, 2, 8, 1, jnp.tanh, jax.nn.sigmoid, use_bias=False, use_final_bias=True, key=KEY),
        X,
        [("DenseLayer", "tanh"), ("DenseLayer", "sigmoid")],
    ),
    "mlp of one layer": (lambda: eqx.nn.MLP(4, 2, 8, 0, key=KEY), X, [("DenseLayer", "identity")]),
    "sequential": (
        lambda: sequential(
            jax.nn.relu,
            linear(0, 4, 3),
            eqx.nn.Identity(),
            jnp.tanh,
            jnp.tanh,
            linear(1, 3, 5),
            linear(2, 5, 3),
            jax.nn.softmax,
        ),
        X,
        [
            ("Layer", "relu"),
            ("DenseLayer", "tanh"),
            ("Layer", "tanh"),
            ("DenseLayer", "identity"),
            ("DenseLayer", "softmax"),
        ],
    ),
    "nested": (
        lambda: sequential(
            sequential(linear(0, 4, 3), jax.nn.softplus), eqx.nn.MLP(3, 2, 4, 1, jax.nn.leaky_relu, key=KEY)
        ),
        X,
        [("DenseLayer", "softplus"), ("DenseLayer", "leaky_relu"), ("DenseLayer", "identity")],
    ),
    "conv": (
        lambda: sequential(
            conv(0, 2, 3, 3, padding=1),
            jax.nn.relu,
            conv(1, 3, 4, (2, 3), stride=(2, 1)),
            jnp.tanh,
            jnp.ravel,
            linear(2, 60, 2, use_bias=False),
        ),
        FIRST,
        [
            ("Layer", "identity"),
            ("ConvLayer", "relu"),
            ("ConvLayer", "tanh"),
            ("Layer", "identity"),
            ("DenseLayer", "identity"),
        ],
    ),
    "conv alone": (
        lambda: sequential(conv(0, 2, 3, 3, padding="SAME", stride=2, use_bias=False), jax.nn.sigmoid),
        FIRST,
        [("Layer", "identity"), ("ConvLayer", "sigmoid"), ("Layer", "identity")],
    ),
}


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, **double)(x.reshape(len(x), -1))


class Linen(nn.Module):
    """Names by a user, by Flax and inside another module."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 2), strides=(2, 1), name="first", **double)(x))
        x = nn.Conv(2, (2, 2), padding="VALID", use_bias=False, **double)(x)
        x = nn.tanh(Inner()(x))
        return nn.sigmoid(nn.Dense(2, use_bias=False, **double)(x))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(2, 3, (3, 2), strides=(2, 1), rngs=rngs, **double)])
        self.second = nnx.Conv(3, 2, (2, 2), padding="VALID", use_bias=False, rngs=rngs, **double)
        self.head = nnx.Sequential(nnx.Linear(24, 6, rngs=rngs, **double), jnp.tanh)
        self.last = nnx.Linear(6, 2, use_bias=False, rngs=rngs, **double)

    def __call__(self, x):
        x = self.second(nnx.relu(self.convs[0](x)))
        return nnx.sigmoid(self.last(self.head(x.reshape(len(x), -1))))


FLATTEN = ux.Layer(lambda params, x: x.reshape(len(x), -1))
LINEN_NAMES = [
    ("first", "relu"),
    ("Conv_0", "identity"),
    FLATTEN,
    ("Inner_0.Dense_0", jnp.tanh),
    ("Dense_0", "sigmoid"),
]
NNX_NAMES = [("convs.0", nnx.relu), ("second", "identity"), FLATTEN, ("head.layers.0", "tanh"), ("last", "sigmoid")]


@functools.cache
def linen():
    module = Linen()
    return module, jax.jit(module.init)(KEY, IMAGES)


@functools.cache
def made(name):
    """Return the layers, what runs the module with params, and its batch."""
    if name == "linen":
        module, variables = linen()
        layers = ux.flax_layers(module, LINEN_NAMES, variables=variables, x=IMAGES)
        return layers, lambda params, x: module.apply(layers.module(params), x), IMAGES
    if name == "nnx":
        layers = ux.flax_layers(NNX(nnx.Rngs(0)), NNX_NAMES, x=IMAGES)
        return layers, lambda params, x: layers.module(params)(x), IMAGES
    layers = ux.equinox_layers(MODULES[name][0](), MODULES[name][1])
    return layers, lambda params, x: jax.vmap(layers.module(params))(x), MODULES[name][1]


every = pytest.mark.parametrize("name", [*MODULES, "linen", "nnx"])


def moved(params):
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(
        treedef, [leaf + 0.1 * np.random.default_rng(0).normal(size=leaf.shape) for leaf in leaves]
    )


@every
def test_the_layers_predict_what_the_module_does_and_give_trained_params_back(name):
    layers, run, x = made(name)
    predict = jax.jit(ux.layered(layers.layers, squares).predict)
    run = run if name == "nnx" else jax.jit(run)  # one of nnx can't be changed while it is traced
    for params in (layers.params, moved(layers.params)):
        close(predict(params, x), run(params, x))


@pytest.mark.parametrize("name", ["conv", "linen"])
def test_gradients_by_the_layers_are_those_by_the_module(name):
    layers, run, x = made(name)
    net = ux.layered(layers.layers, squares)

    @jax.jit
    def both(params):
        return [
            jax.grad(lambda params, predict=predict: squares(predict(params, x), 0.5).mean())(params)
            for predict in (net.predict, run)
        ]

    jax.tree.map(close, *both(moved(layers.params)))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_equinox_becomes_the_layers_that_it_names(name):
    layers, _, _ = made(name)
    assert names_of(layers.layers) == MODULES[name][2]
    module = MODULES[name][0]()
    back = layers.module(layers.params)
    assert jax.tree.structure(back) == jax.tree.structure(module)
    jax.tree.map(np.testing.assert_array_equal, eqx.filter(back, eqx.is_array), eqx.filter(module, eqx.is_array))


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_a_module_of_flax_becomes_the_layers_that_are_named(name):
    layers, _, _ = made(name)
    kinds = ["ConvLayer", "ConvLayer", "Layer", "DenseLayer", "DenseLayer"]
    assert names_of(layers.layers) == list(zip(kinds, ["relu", "identity", "identity", "tanh", "sigmoid"], strict=True))
    assert layers.layers[2] is FLATTEN
    assert layers.params[2] is None
    assert [layer.strides for layer in layers.layers[:2]] == [(2, 1), (1, 1)]
    assert [layer.padding for layer in layers.layers[:2]] == ["SAME", "VALID"]


def test_params_are_copies_and_the_module_stays_as_it_was():
    module = NNX(nnx.Rngs(0))
    layers = ux.flax_layers(module, NNX_NAMES)
    before = np.asarray(module.last.kernel[...])
    trained = layers.module(moved(layers.params))
    assert np.abs(trained.last.kernel[...] - before).max() > 0.01
    np.testing.assert_array_equal(module.last.kernel[...], before)
    for leaf in jax.tree.leaves(layers.params):
        leaf.delete()  # as a training run that gives buffers away does
    np.testing.assert_array_equal(layers.params[-1]["w"], before)
    module, variables = linen()
    made("linen")[0].module(moved(made("linen")[0].params))
    assert variables is linen()[1]
    close(module.apply(variables, IMAGES), made("linen")[1](made("linen")[0].params, IMAGES))


def test_a_module_of_dense_layers_alone_needs_no_example():
    net = nn.Sequential([nn.Dense(8, **double), jnp.tanh, nn.Dense(2, **double)])
    variables = net.init(KEY, X)
    layers = ux.flax_layers(net, [("layers_0", "tanh"), ("layers_2", "identity")], variables=variables)
    close(ux.layered(layers.layers, squares).predict(layers.params, X), net.apply(variables, X))


def test_layers_of_a_module_are_trained_like_any_others():
    layers, run, x = made("mlp")
    net = ux.layered(layers.layers, squares)
    bptt = ux.BPTT(net, horizon=5)
    data = (x, jnp.zeros((5, 2)))
    params = layers.params
    found = jax.jit(bptt.estimate)(params, bptt.init(KEY, params), data)[1]
    close(found.loss, squares(run(params, x), 0).mean())


TWICE = eqx.nn.Linear(4, 4, key=KEY)


def refused(*parts):
    return lambda: ux.equinox_layers(sequential(*parts))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            refused(linear(0, 4, 3), eqx.nn.Dropout(0.5)),
            "module.layers[1] must be a Linear, a Conv2d, an Identity or a Lambda of",
        ),
        (
            refused(linear(0, 4, 3), eqx.nn.LayerNorm(3)),
            "a Lambda of a known function, got LayerNorm. Leave it out, or",
        ),
        (
            refused(linear(0, 4, 3), sequential(jnp.tanh, jnp.sin)),
            "module.layers[1].layers[1] must be the function of one of",
        ),
        (refused(linear(0, 4, 3), lambda a: a), "module.layers[1] must be the function of one of identity, leaky_relu"),
        (
            refused(conv(0, 2, 3, 3), linear(0, 4, 3)),
            "module.layers[1] must not see an image, got a Linear after a Conv2d.",
        ),
        (refused(linear(0, 4, 3), conv(0, 2, 3, 3)), "module.layers[1] must come first or after another Conv2d"),
        (refused(conv(0, 2, 3, 3), jax.nn.softmax), "got softmax over the last axis of an image."),
        (
            refused(conv(0, 2, 2, 3, groups=2)),
            "module.layers[0] must be a convolution of one group, without dilation or mask",
        ),
        (refused(conv(0, 2, 2, 3, dilation=2)), "module.layers[0] must be a convolution of one group"),
        (
            refused(conv(0, 2, 2, 3, padding=1, padding_mode="CIRCULAR")),
            "got padding=((1, 1), (1, 1)) and one of the others.",
        ),
        (refused(conv(0, 2, 2, 3, padding=1, stride=2)), "got padding=((1, 1), (1, 1)). Write it as unrollax.Layer"),
        (refused(conv(0, 2, 2, 3, padding=2)), "got padding=((2, 2), (2, 2)). Write it as"),
        (
            refused(linear(0, "scalar", 3)),
            'module.layers[0] must have whole numbers as sizes, got a Linear with a "scalar" side.',
        ),
        (
            lambda: ux.equinox_layers(eqx.nn.Sequential([TWICE, eqx.nn.Lambda(jnp.tanh), TWICE])),
            "equinox_layers: module.layers[2] must be a module of its own, got the Linear that is module.layers[0] too. "
            "Layers can't share params: make another,",
        ),
        (
            lambda: ux.equinox_layers(sequential(TWICE, sequential(jnp.tanh, sequential(TWICE)))),
            "module.layers[1].layers[1].layers[0] must be a module of its own, got the Linear that is module.layers[0] too.",
        ),
        (
            lambda: ux.equinox_layers(eqx.nn.MLP(4, 2, 3, 1, key=KEY), jnp.ones((5, 3))),
            "equinox_layers: x must be a batch of examples that the module takes, [batch, ...], got float64[5,3], for which "
            "it raises TypeError: dot_general requires contracting dimensions to have the same shape, got (4,) and (3,). ",
        ),
        (
            lambda: ux.equinox_layers(eqx.nn.MLP(4, 2, 3, 1, key=KEY), jnp.ones(4)),
            "[batch, ...], got float64[4], for which it raises ",
        ),
        (lambda: ux.equinox_layers(eqx.nn.MLP(4, 2, 3, 1, key=KEY), 1.0), "[batch, ...], got float64[], for which it"),
        (refused(jnp.tanh), "module must hold a Linear or a Conv2d, got Sequential. Pass a whole net."),
        (lambda: ux.equinox_layers(jnp.tanh), "equinox_layers: module must be a Linear"),
        (
            lambda: ux.equinox_layers(eqx.nn.MLP(4, 2, 3, 1, jnp.sin, key=KEY)),
            "equinox_layers: module.activation must be the function of one of",
        ),
        (
            lambda: ux.equinox_layers(eqx.nn.MLP(4, 2, 3, 1, final_activation=jax.nn.softmax, key=KEY)),
            "equinox_layers: module.final_activation must be the function of one of identity, leaky_relu, relu, sigmoid, "
            "softmax, softplus, tanh, or jnp.ravel, got softmax of each number by itself.",
        ),
    ],
)
def test_a_part_of_a_module_of_equinox_that_is_no_layer_is_named(wrong, message):
    with pytest.raises(ux.InvalidArgument, match=re.escape(message)):
        wrong()


def test_a_function_may_come_twice_in_a_module_of_equinox():
    tanh = eqx.nn.Lambda(jnp.tanh)
    layers = ux.equinox_layers(sequential(linear(0, 4, 4), tanh, linear(1, 4, 2), tanh), X)
    assert names_of(layers.layers) == [("DenseLayer", "tanh")] * 2


class Hidden(eqx.nn.Linear):
    """A Linear that computes something else."""

    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x)


def test_a_subclass_is_not_taken_for_what_it_may_not_be():
    with pytest.raises(ux.InvalidArgument, match=re.escape("module.layers[0] must be a Linear, a Conv2d")):
        ux.equinox_layers(sequential(Hidden(4, 3, key=KEY)))


def flax_refused(change, x=IMAGES):
    names = list(LINEN_NAMES)
    for index, entry in change.items():
        names[index] = entry
    return lambda: ux.flax_layers(linen()[0], [name for name in names if name], variables=linen()[1], x=x)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm(**double)(nn.Dense(3, dtype=jnp.float32, **double)(x))


def normed(names):
    return lambda: ux.flax_layers(Normed(), names, variables=Normed().init(KEY, X), x=X)


def nnx_refused(names, x=None, **options):
    return lambda: ux.flax_layers(NNX(nnx.Rngs(0)), names, x=x, **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            flax_refused({0: ("frist", "relu")}),
            "'frist' must be the name of a submodule, got no 'frist'. Did you mean first?",
        ),
        (flax_refused({3: ("Inner_0.Dense_1", "tanh")}), "got no 'Dense_1'. Did you mean Dense_0?"),
        (
            flax_refused({3: ("Inner_0", "tanh")}),
            "'Inner_0' must be a Dense, a Linear or a Conv, got Inner with Dense_0.",
        ),
        (
            flax_refused({3: ("first.kernel", "tanh")}),
            "'first.kernel' must be a Dense, a Linear or a Conv, got a submodule with",
        ),
        (
            flax_refused({4: None}),
            "names must hold whatever has params, got none for 'Dense_0.kernel', float64[6,2]. Add",
        ),
        (
            flax_refused({4: ("Dense_0", "tanh")}),
            "flax_layers: the layers must compute what the module computes on x, got outputs",
        ),
        (
            flax_refused({4: ("Dense_0", "tan")}),
            "flax_layers: names[4]: transfer: 'tan' must be the name of a transfer",
        ),
        (
            flax_refused({4: "Dense_0"}),
            'flax_layers: names[4] must be a pair such as ("Dense_0", "tanh") or a layer, got \'De',
        ),
        (flax_refused({4: ("first", "relu")}), "flax_layers: names must hold each submodule once, got 'first' twice."),
        (
            flax_refused({}, x=None),
            "'first' must be a Dense, or a Conv over two axes whose options are known, got a kernel",
        ),
        (
            lambda: ux.flax_layers(linen()[0], LINEN_NAMES),
            "variables must be given for a module of flax.linen, with params, got",
        ),
        (
            lambda: ux.flax_layers(linen()[0], [], variables=linen()[1]),
            "flax_layers: names must be a list of pairs such as",
        ),
        (
            normed([("Dense_0", "tanh")]),
            "'Dense_0' must compute in the dtype of its params, float64, got dtype=float32.",
        ),
        (
            normed([("LayerNorm_0", "tanh")]),
            "'LayerNorm_0' must be a Dense, a Linear or a Conv, got LayerNorm with bias, scale.",
        ),
        (
            nnx_refused([("convs.1", "relu")]),
            "'convs.1' must be the name of a submodule, got no '1'. The choices are 0.",
        ),
        (nnx_refused([("lost", "relu")]), "'lost' must be the name of a submodule, got no 'lost'. Did you mean last?"),
        (nnx_refused([("head", "relu")]), "'head' must be a Dense, a Linear or a Conv, got Sequential with no params."),
        (nnx_refused(NNX_NAMES[1:]), "names must hold whatever has params, got none for 'convs.0.bias', float64[3]."),
        (
            nnx_refused([*NNX_NAMES[:-1], ("last", "identity")], IMAGES),
            "the layers must compute what the module computes on x",
        ),
        (nnx_refused(NNX_NAMES, variables={}), "got variables for one that holds its own. Pass one."),
        (
            lambda: ux.flax_layers(jnp.tanh, NNX_NAMES),
            "module must be one of flax.linen with its variables, or one of flax.nnx",
        ),
    ],
)
def test_a_name_that_does_not_fit_a_module_of_flax_is_told(wrong, message):
    with pytest.raises(ux.InvalidArgument, match=re.escape(message)):
        wrong()


def test_params_that_do_not_fit_the_module_are_told():
    layers, _, _ = made("mlp")
    wrong = layers.params
    wrong[1]["b"] = wrong[1]["b"][:2]
    with pytest.raises(
        ux.StructureError, match=re.escape("ModuleLayers.module: params leaf [1]['b'] must be float64[8], got")
    ):
        layers.module(wrong)


def test_neither_library_is_imported_before_it_is_used():
    script = "import sys, unrollax as ux; ux.flax_layers, ux.layered; assert not {'equinox', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
