"""What LocoProp and its solvers say when they can't be made, or do not fit a net or its data."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux

KEY = jax.random.key(0)
SIZES = [4, 5, 2]
DENSE = ux.dense_layers(SIZES, "tanh")
BATCH = 6
DATA = np.ones((BATCH, 4)), np.ones((BATCH, 2))


def squares(y, target):
    return ((y - target) ** 2).sum(-1)


PARAMS = jax.tree.map(
    lambda leaf: np.ones(leaf.shape), jax.eval_shape(ux.layered(DENSE, squares).params, jax.random.key(0))
)
make = functools.partial(ux.LocoProp, DENSE, squares)
OWN = ux.Layer(lambda own, x: x @ own, "tanh", lambda key: jax.random.normal(key, (2, 2)))


NO_SLOPE = ux.Transfer("mine", jnp.arctan, lambda a: (a * jnp.arctan(a) - 0.5 * jnp.log1p(a**2)).sum(-1))


class Plain:
    """A layer whose transfer has no matching loss."""

    def pre(self, params, x):
        return x

    def transfer(self, a):
        return jnp.sin(a)


def estimate(loco, params=PARAMS, data=DATA):
    jax.eval_shape(lambda params, data: loco.estimate(params, loco.init(KEY, params), data), params, data)


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: make(variant="X"), "LocoProp: variant must be one of 'M', 'S', got variant='X'. Choose one of them."),
        (
            lambda: make(targets="nat"),
            "LocoProp: targets must be one of 'gradient', 'natural', 'normalized', got targets='nat'. Choose one of them.",
        ),
        (lambda: make(steps=0), "LocoProp: steps must be a positive whole number, got steps=0. Give 1 or more."),
        (lambda: make(steps=2.0), "LocoProp: steps must be a positive whole number, got steps=2.0."),
        (lambda: make(reach=0.0), "LocoProp: reach must be a positive number, got reach=0.0. Give one."),
        (lambda: make(reach=np.inf), "LocoProp: reach must be a positive number, got reach=inf."),
        (lambda: make(reach="far"), "LocoProp: reach must be a positive number, got reach='far'."),
        (lambda: make(pull=-1.0), "LocoProp: pull must be a finite number of at least 0, got pull=-1.0. Give one."),
        (
            lambda: ux.LocoProp(DENSE, "squares"),
            "LocoProp: loss must be a function loss(y, target) -> [batch], got loss=",
        ),
        (lambda: ux.LocoProp([], squares), "LocoProp: layers must hold at least one layer, got none."),
        (lambda: ux.LocoProp(DENSE[0], squares), "LocoProp: layers must be a list of layers, got DenseLayer."),
        (
            lambda: ux.LocoProp([*DENSE, "dense"], squares),
            "LocoProp: layers[2] must have pre(params, x) and transfer(a), got str without pre and transfer.",
        ),
        (
            lambda: ux.LocoProp(DENSE[::-1], squares),
            "LocoProp: layers[1], DenseLayer(4, 5), must take the 2 numbers on the last axis that layers[0], "
            "DenseLayer(5, 2), gives, got inputs=4.",
        ),
        *(
            pytest.param(
                functools.partial(make, inner=inner), f"or SpectralFilter, got inner={inner!r}. Pass one such", id=name
            )
            for name, inner in {"maker": optax.sgd, "number": 0.1, "none": None, "class": ux.Curvature}.items()
        ),
        (
            lambda: make(inner=ux.SpectralFilter(0.1), variant="M"),
            "LocoProp: SpectralFilter must have variant='S', got variant='M'. Only steps on a squared loss are linear; take "
            "Curvature for M.",
        ),
        (
            lambda: ux.LocoProp([ux.DenseLayer(4, 2, ux.Transfer("mine", jnp.sin))], squares, "M"),
            "LocoProp: layers[0], DenseLayer(4, 2), must have a transfer with a matching loss for variant='M', got mine. "
            "Give it one, Transfer(name, function, potential), or take variant='S', which needs none.",
        ),
        (
            lambda: ux.LocoProp([DENSE[0], ux.DenseLayer(5, 2, NO_SLOPE)], squares, "M", ux.Curvature()),
            "LocoProp: layers[1], DenseLayer(5, 2), must have a transfer with a largest slope for Curvature and variant='M', "
            "got mine, slope=None. Give Transfer(name, function, potential, slope), or take variant='S' or an optax inner "
            "optimizer.",
        ),
        (
            lambda: ux.LocoProp(ux.dense_layers(SIZES, "softmax"), squares, "M"),
            "LocoProp: layers[0], DenseLayer(4, 5), must not be a softmax unless it is the last, for variant='M': targets "
            "beside the simplex are those of no pre-activation. Take variant='S', or another transfer there.",
        ),
        (
            lambda: ux.Curvature(damping=-1.0),
            "Curvature: damping must be a finite number of at least 0, got damping=-1.0.",
        ),
        (
            lambda: ux.Curvature(every=0),
            "Curvature: every must be a positive whole number, got every=0. Give 1 or more.",
        ),
        (lambda: ux.Curvature(memory=1.5), "Curvature: memory must be a number in [0, 1], got memory=1.5. Give one."),
        (lambda: ux.Curvature(trust=0.0), "Curvature: trust must be a positive number, got trust=0.0. Give one."),
        (
            lambda: ux.Curvature(iterations=0),
            "Curvature: iterations must be a positive whole number, got iterations=0.",
        ),
        (lambda: ux.SpectralFilter(0.0), "SpectralFilter: lr must be a positive number, got lr=0.0. Give one."),
    ],
)
def test_what_cannot_be_is_told_at_construction(run, message):
    with raises(ux.InvalidArgument, message):
        run()


@pytest.mark.parametrize(
    ("loco", "message"),
    [
        (make(reach=0), "LocoProp: reach must be a positive number, got reach=0. Give one."),
        (make(pull=-1), "LocoProp: pull must be a finite number of at least 0, got pull=-1."),
        (make(inner=ux.Curvature(trust=-1)), "Curvature: trust must be a positive number, got trust=-1."),
        (make(inner=ux.Curvature(memory=2)), "Curvature: memory must be a number in [0, 1], got memory=2."),
        (make(inner=ux.SpectralFilter(0), variant="S"), "SpectralFilter: lr must be a positive number, got lr=0."),
        (
            make(inner=optax.lbfgs(), variant="S"),
            "LocoProp: inner must update params from their gradient alone, got an optimizer that also needs losses: ",
        ),
    ],
)
def test_whole_numbers_and_what_only_a_run_shows_are_told_with_the_first_estimate(loco, message):
    """JAX rebuilds values with whole numbers in the place of others, which may be axes."""
    with raises(ux.InvalidArgument, message):
        estimate(loco)


X, TARGET = DATA


@pytest.mark.parametrize(
    ("params", "data", "message"),
    [
        (
            PARAMS[:1],
            DATA,
            "LocoProp: params must be a list with one entry for each of the 2 layers, got 1 entries. Take them from "
            "params(key); None stands for a layer without.",
        ),
        (PARAMS[0], DATA, "LocoProp: params must be a list with one entry for each of the 2 layers, got dict."),
        (
            PARAMS[::-1],
            DATA,
            "LocoProp: layers[0]: DenseLayer(4, 5): params leaf ['w'] must be [4, 5], got float64[5,2].",
        ),
        (
            [None, PARAMS[1]],
            DATA,
            "LocoProp: layers[0]: DenseLayer(4, 5): params leaf ['w'] must be [4, 5], got NoneType.",
        ),
        (
            [None, None],
            DATA,
            "LocoProp: params must hold at least one array, got [None, None]. Put in what is trained.",
        ),
        (PARAMS, X, "LocoProp: data must be a pair (x, target), leaves [batch, ...], got float64[6,4]. Pass both."),
        (PARAMS, (X, TARGET, X), "LocoProp: data must be a pair (x, target), leaves [batch, ...], got tuple of 3."),
        (
            PARAMS,
            (X, TARGET[:3]),
            "LocoProp: data leaf [1] must be [batch, ...], here [6, ...], got float64[3,2]. Pair each x with its target.",
        ),
        (
            PARAMS,
            (X[:0], TARGET[:0]),
            "LocoProp: data leaf [0] must be [batch, ...], of some examples, got float64[0,4].",
        ),
        (PARAMS, (X, 1.0), "LocoProp: data leaf [1] must be [batch, ...], here [6, ...], got float64[]."),
        (
            PARAMS,
            (np.ones((BATCH, 3)), TARGET),
            "LocoProp: layers[0]: DenseLayer(4, 5): x must be [batch, ..., 4], got float64[6,3].",
        ),
    ],
)
@pytest.mark.parametrize("inner", [ux.Curvature(), optax.sgd(0.1)], ids=["curvature", "sgd"])
def test_params_and_data_that_do_not_fit_are_told_while_tracing(params, data, message, inner):
    targets = "natural" if isinstance(inner, ux.Curvature) else "gradient"
    loco = make(inner=inner, targets=targets)
    with raises(ux.StructureError, message):
        estimate(loco, params, data)


def test_a_loss_must_have_one_number_an_example():
    loco = ux.LocoProp(DENSE, lambda y, target: squares(y, target).mean())
    with raises(
        ux.StructureError,
        "LocoProp: loss must return floating [batch] losses, one an example, here [6], got float64[] for predictions "
        "float64[6,2].",
    ):
        estimate(loco)


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({"targets": "natural", "inner": optax.sgd(0.1)}, "targets='natural'"),
        ({"targets": "gradient", "inner": ux.Curvature()}, "Curvature"),
        ({"targets": "gradient", "inner": ux.SpectralFilter(0.1), "variant": "S"}, "SpectralFilter"),
    ],
)
def test_a_layer_that_is_not_linear_in_its_params_is_told_where_it_must_be(options, who):
    params = [*PARAMS, np.ones((2, 2))]
    with raises(
        ux.StructureError,
        f"LocoProp: layers[2] must have features, matrix and from_matrix for {who}, got Layer without. Take "
        "targets='gradient' and an optax optimizer as inner, or give it these three.",
    ):
        estimate(ux.LocoProp([*DENSE, OWN], squares, **options), params)
    estimate(ux.LocoProp([*DENSE, OWN], squares, inner=optax.sgd(0.1), targets="gradient"), params)


class Unlike:
    """A dense layer of which one part is another's."""

    def __init__(self, **parts):
        self.__dict__.update(parts)

    def __getattr__(self, name):
        return getattr(DENSE[0], name)


@pytest.mark.parametrize(
    ("layer", "got"),
    [
        (Unlike(features=lambda x: x), "features float64[6,4] and a matrix [5, 5]"),
        (Unlike(features=lambda x: DENSE[0].features(x)[:3]), "features float64[3,5] and a matrix [5, 5]"),
        (Unlike(matrix=lambda own: own["w"][:, :2]), "features float64[6,5] and a matrix [4, 2]"),
        (Unlike(matrix=lambda own: own["w"].ravel()), "float64[20]"),
    ],
    ids=["no ones", "rows", "outputs", "axes"],
)
@pytest.mark.parametrize("owner", ["LocoProp", "LocoProp, gradient", "KFAC"])
def test_features_that_do_not_fit_their_matrix_are_told(layer, got, owner):
    layers = [layer, DENSE[1]]
    step = {
        "LocoProp": lambda: ux.LocoProp(layers, squares),
        "LocoProp, gradient": lambda: ux.LocoProp(layers, squares, inner=optax.sgd(0.1), targets="gradient"),
        "KFAC": lambda: ux.KFAC(ux.layered(layers, squares)),
    }[owner]()
    must = "features [6, n] and a matrix [n, 5] for its y, float64[6,5]" if "and" in got else "a matrix [n, m]"
    message = (
        f"{owner.partition(',')[0]}: layers[0], Unlike(4, 5), must have {must}, got {got}. Make pre(params, x) the rows "
        "features(x) @ matrix(params)."
    )
    with raises(ux.StructureError, message):
        estimate(step)


@pytest.mark.parametrize("targets", ["natural", "normalized", "gradient"])
def test_a_layer_without_params_may_be_anything(targets):
    """Nothing is solved there: no matching loss, slope or simplex is asked for."""
    softmax, no_slope = (ux.Layer(lambda own, x: x, f) for f in ("softmax", NO_SLOPE))
    layers = [DENSE[0], softmax, Plain(), no_slope, DENSE[1]]
    params = [PARAMS[0], None, None, None, PARAMS[1]]
    for variant, inner in (
        ("S", ux.Curvature()),
        ("M", ux.Curvature()),
        ("S", ux.SpectralFilter(0.1)),
        ("M", optax.adam(0.1)),
    ):
        estimate(ux.LocoProp(layers, squares, variant, inner, targets=targets), params)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [*DENSE, Plain()],
            "LocoProp: layers[2], Plain, must have a transfer with a matching loss for variant='M', got Plain.transfer.",
        ),
        (
            [*DENSE, ux.Layer(OWN.pre, "softmax", OWN.params), ux.Layer(lambda own, x: x)],
            "LocoProp: layers[2], Layer, must not be a softmax unless it is the last, for variant='M'",
        ),
    ],
)
def test_a_layer_that_only_params_show_to_have_some_is_told_at_init(layers, message):
    """A user's layer may have params or none; built-in ones that are linear in theirs are judged at construction."""
    loco = ux.LocoProp(layers, squares, "M", optax.sgd(0.1), targets="gradient")
    params = [*PARAMS, np.ones((2, 2)), None][: len(layers)]
    with raises(ux.InvalidArgument, message):
        loco.init(KEY, params)


OTHER = ux.LocoProp(ux.dense_layers([4, 3, 2], "tanh"), squares)
DEEPER = ux.LocoProp(ux.dense_layers([4, 5, 5, 2], "tanh"), squares)
REMEDY = "Make the state with init(key, params) for this net and these settings."


@pytest.mark.parametrize(
    ("loco", "other", "message"),
    [
        (make(), OTHER, f"LocoProp: state leaf .rms[0] must be [5], got [3]. {REMEDY}"),
        (make(), DEEPER, f"LocoProp: state leaf .rms[1] must be [2], got [5]. {REMEDY}"),
        (make(targets="gradient"), make(), f"LocoProp: state leaf .rms[0] must be nothing, got [5]. {REMEDY}"),
        (
            make(targets="gradient"),
            dataclasses.replace(DEEPER, targets="gradient"),
            "LocoProp: state leaf .inner.covariances[2] must be nothing, got [6, 6].",
        ),
        (make(), make(inner=optax.sgd(0.1)), "LocoProp: state leaf .inner.t must be [], got nothing."),
        (make(inner=optax.sgd(0.1)), make(), "LocoProp: state leaf .inner.t must be nothing, got []."),
        (make(), None, "LocoProp: state leaf .t must be [], got nothing."),
    ],
)
def test_the_state_of_another_net_or_solver_is_told_while_tracing(loco, other, message):
    params = [] if other is None else jax.tree.map(jnp.zeros_like, ux.layered(other.layers, squares).params(KEY))
    state = () if other is None else other.init(KEY, params)
    with raises(ux.StructureError, message):
        jax.eval_shape(loco.estimate, PARAMS, state, DATA)


def test_diagnoses_take_it_as_any_estimator_or_say_what_they_need():
    loco = make(inner=optax.sgd(0.1), targets="gradient", variant="S")
    watched = ux.watch(loco)
    found = jax.eval_shape(lambda: watched.estimate(PARAMS, watched.init(KEY, PARAMS), DATA)[1])
    assert watched.halved is None
    assert sorted(found.info.leaves[0]) == ["b", "w"]
    tested = ux.lr_range_test(loco, optax.sgd, PARAMS, lambda step: DATA, key=KEY, low=1e-3, high=10.0, steps=20)
    assert 1e-3 <= tested.best <= 10
    with raises(
        ux.InvalidArgument, "diagnose: system must have init(key, params) and step(params, state, x, key), got"
    ):
        ux.diagnose(loco, PARAMS, DATA, key=KEY)
