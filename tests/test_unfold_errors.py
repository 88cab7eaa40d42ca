"""What an `Unfold` says of a part that does not fit."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import unrollax as ux
from unrollax import InvalidArgument, StructureError
from unrollax._schedules import per_step, periodic, shared
from unrollax._unfolding import unfold
from unrollax.systems import Unfold

KEY = jax.random.key(11)
BATCH = 5
PARAMS = {"eta": per_step(0.1, 4)}


def draw(key):
    return jax.random.normal(key, (3,))


net = Unfold(
    lambda theta, x, problem: x - theta["eta"] * (x - problem),
    lambda problem: jnp.zeros(3),
    lambda x, problem: jnp.sum((x - problem) ** 2),
    draw,
    horizon=4,
    batch=BATCH,
)


class Half:
    def draw(self, key):
        return key


class NoObject(Half):
    def whole(self, own):
        return own


FIELDS = {
    "horizon must be a positive whole number, got horizon=0": {"horizon": 0},
    "batch must be a positive whole number": {"batch": 2.5},
    "scale must be one of 'log', 'raw', got scale='db'": {"scale": "db"},
    "loss must be one of 'final', 'anytime'.*, got loss='last'": {"loss": "last"},
    r"error must be a function error\(x, problem\), got str": {"error": "mse"},
    r"iteration must be a function iteration\(theta, x, problem\)": {"iteration": None},
    r"sample must be a function sample\(key\) -> problem, or an object with draw\(key\) and whole\(own\), got dict": {
        "sample": {"y": 1}
    },
    "sample must be .* got the class NoObject": {"sample": NoObject},
    "sample must be .* without whole": {"sample": Half()},
}


@pytest.mark.parametrize("message", FIELDS)
def test_a_field_that_can_not_be_is_told(message):
    with pytest.raises(InvalidArgument, match=f"Unfold: {message}"):
        dataclasses.replace(net, **FIELDS[message])


PYTREE = {"start": lambda problem: {"u": jnp.zeros(3), "v": jnp.zeros(3)}, "error": lambda x, problem: x["u"].sum()}
TRACED = {
    r"\['u'\] was float64\[3\] from start, got float64\[3,3\]": PYTREE
    | {"iteration": lambda theta, x, p: {"u": jnp.outer(x["u"], x["u"]), "v": x["v"]}},
    r"\['v'\] was float64\[3\] from start, got complex128\[3\]. Let start return complex128\[3\]": PYTREE
    | {"iteration": lambda theta, x, p: {"u": x["u"], "v": x["v"] * 1j}},
    r"\(root\) was float32\[3\] from start, got float64\[3\]": {"start": lambda problem: jnp.zeros(3, jnp.float32)},
    "an x with the structure that start gave": PYTREE | {"iteration": lambda theta, x, p: {"u": x["u"]}},
    r"error must return a real floating scalar for one problem, got float64\[3\]": {"error": lambda x, p: (x - p) ** 2},
    r"error must return a real floating scalar for one problem, got complex128\[\]": {
        "error": lambda x, p: 1j * x.sum()
    },
    r"error must return a real floating scalar for one problem, got int\d+\[\]": {"error": lambda x, p: (x > 0).sum()},
    "error must return a real floating scalar for one problem, got NoneType": {"error": lambda x, p: None},
    r"draw must return arrays or numbers, got str at leaf \['name'\]": {"sample": lambda key: {"name": "a"}},
    r"start must return arrays or numbers, got str at leaf \(root\)": {"start": lambda problem: "zero"},
    r"loss must return a real scalar, the weight of iteration t, got float64\[3\]": {"loss": lambda t, n: jnp.ones(3)},
    "loss must return a real scalar, the weight of iteration t, got str": {"loss": lambda t, n: "a"},
    "the structure that start gave, .* got .*, .*Return every part of x": {"iteration": lambda theta, x, p: (x, x)},
}


@pytest.mark.parametrize("message", TRACED)
def test_an_algorithm_that_does_not_fit_is_told_when_it_is_traced(message):
    system = dataclasses.replace(net, **TRACED[message])
    with pytest.raises(StructureError, match=f"Unfold: .*{message}"):
        system.run(PARAMS, system.init(KEY, PARAMS))


def test_schedules_that_do_not_fit_the_depth_are_told():
    with pytest.raises(
        InvalidArgument, match=r"Unfold: per-step schedule \['eta'\] .* each of the 4 iterations, got 3"
    ):
        net.init(KEY, {"eta": per_step(0.1, 3)})
    with pytest.raises(InvalidArgument, match=r"Unfold: the period of schedule \['eta'\] .* got period=5 for depth=4"):
        net.init(KEY, {"eta": periodic(0.1, 5)})
    assert net.init(KEY, {"eta": per_step(0.1, 5)}).x.shape == (BATCH, 3)


def test_something_that_is_no_algorithm_is_told():
    for wrong in (NoObject, None, {"step": 1}):
        with pytest.raises(InvalidArgument, match=r"unfold: algorithm must have step\(theta, x, problem\) and start"):
            unfold(wrong, draw, horizon=3)


# --- params, problems and plans that lack what is read -----------------------------------------------------------------


class Problem(NamedTuple):
    A: jax.Array
    y: jax.Array
    x: jax.Array | None = None


def own(x=None):
    return lambda key: Problem(jnp.eye(3), draw(key), x)


WITHOUT = {
    "got 'beta', 'eta'": {"eta": shared(0.1), "beta": shared(0.1)},
    r"got float64\[\]": shared(0.1),
    "got nothing": {},
}


@pytest.mark.parametrize("got", WITHOUT)
def test_params_without_a_number_that_a_solver_reads_are_told_by_its_name(got):
    system = unfold(ux.solvers.gradient_descent(), own(jnp.ones(3)), horizon=2)
    with pytest.raises(StructureError, match=f"Unfold: params must hold 'step', which the iteration reads, {got}"):
        system.errors(WITHOUT[got], KEY)


def test_a_name_that_something_else_lacks_stays_the_error_that_it_is():
    system = dataclasses.replace(net, iteration=lambda theta, x, problem: x - theta["eta"] * {}["step"])
    with pytest.raises(KeyError, match="step"):
        system.errors(PARAMS, KEY)
    with pytest.raises(TypeError, match="positional argument"):
        dataclasses.replace(net, iteration=lambda x: x).errors(PARAMS, KEY)


def test_an_algorithm_that_runs_without_a_number_names_it():
    with pytest.raises(StructureError, match=r"Algorithm\.run: params must hold 'step', .*, got 'eta'"):
        ux.solvers.gradient_descent().run({"eta": 0.1}, own()(KEY), steps=2)


def test_the_default_error_needs_an_answer_of_the_same_shape():
    method, params = ux.solvers.gradient_descent(), shared({"step": 0.1})
    with pytest.raises(
        StructureError, match=r"unfold: problem must hold the answer x .*, got Problem without it. Pass"
    ):
        unfold(method, own(), horizon=2).errors(params, KEY)
    with pytest.raises(StructureError, match=r"the shape of problem.x, float64\[1\], .* got float64\[3\]"):
        unfold(method, own(jnp.ones(1)), horizon=2).errors(params, KEY)
    heavy = dataclasses.replace(ux.solvers.heavy_ball(), answer=lambda x: x)  # it forgets which part is the answer
    with pytest.raises(StructureError, match=r"the shape of problem.x, float64\[3\], .* got Moving"):
        unfold(heavy, own(jnp.ones(3)), horizon=2).errors(shared({"step": 0.1, "momentum": 0.1}), KEY)


def test_parts_of_an_unfolding_that_can_not_be_called_are_told():
    class Still:
        step = staticmethod(lambda theta, x, problem: x)
        start = staticmethod(lambda problem: jnp.zeros(3))

    class Answers(Still):
        answer = (3,)

    for message, make in {
        r"error must be a function error\(answer, problem\), got str": lambda: unfold(
            Still(), own(), error="mse", horizon=2
        ),
        r"error must be a function error\(answer, problem\), got None": lambda: unfold(
            Still(), own(), error=None, horizon=2
        ),
        r"answer must be a function answer\(x\), got tuple": lambda: unfold(Answers(), own(), horizon=2),
        r"problems must have draw\(key\) and whole\(own\).*, got None": lambda: unfold(Still(), None, horizon=2),
    }.items():
        with pytest.raises(InvalidArgument, match=f"unfold: {message}"):
            make()


DEPTHS = {
    "depth must be 1 to longest=4, got depth=9. Make longest larger": {"depth": 9},
    "depth must be 1 to longest=2, got depth=3": {"depth": jnp.array(3), "longest": 2},
    "depth must be a positive whole number, got depth=0": {"depth": 0},
    "depth must be a positive whole number, got depth=2.5": {"depth": 2.5},
    "longest must be a positive whole number, got longest=0": {"longest": 0},
    r"per-step schedule \['eta'\] .* each of the 9 iterations, got 4": {"depth": 9, "longest": 9},
}


@pytest.mark.parametrize("message", DEPTHS)
def test_a_depth_that_the_buffer_or_the_schedules_do_not_have_is_told(message):
    """Rows beyond the buffer would be dropped, and the gradient be wrong without a word."""
    with pytest.raises(InvalidArgument, match=f"Unfold.run: {message}"):
        net.run(PARAMS, net.init(KEY, PARAMS), **DEPTHS[message])


def fit(net=net, *, plan=None, optimizer=None, **more):
    return ux.fit_unfold(net, PARAMS, plan or ux.one_shot(4, 3), optimizer or optax.sgd(0.1), key=KEY, **more)


FITS = {
    "fit_unfold: net must be an Unfold, got None": {"net": None},
    "UnfoldBPTT: system must be an Unfold, got Algorithm": {"net": ux.solvers.ista()},
    "fit_unfold: plan must be callable and have steps and longest, got int64": {"plan": 100},
    "fit: optimizer must have init and update, got function": {"optimizer": optax.adam},
    "fit: observe must be a function of a Progress, got int": {"observe": 3},
    "fit_unfold: steps must be a positive whole number, got steps=0": {"steps": 0},
}


@pytest.mark.parametrize("message", FITS)
def test_a_fit_of_parts_that_are_none_is_told(message):
    with pytest.raises(InvalidArgument, match=message):
        fit(**FITS[message])


def test_a_loss_that_is_not_finite_ends_the_fit_by_its_number():
    with pytest.raises(ux.Diverged, match=r"got NaN or infinity at step 1 \(loss nan, .* Lower the learning rate"):
        fit(dataclasses.replace(net, error=lambda x, problem: jnp.log(-1 - (x**2).sum())))
    with pytest.raises(ux.Diverged, match=r"got NaN or infinity at step 2 \(loss (nan|inf)"):
        fit(dataclasses.replace(net, scale="raw"), optimizer=optax.sgd(1e300))


def test_constants_are_made_of_finite_matrices_of_a_rank_and_runs_of_whole_steps():
    method, a = ux.solvers.gradient_descent(), jnp.eye(3)
    with pytest.raises(InvalidArgument, match="A must hold finite numbers, got 1 that are not"):
        method.params(a.at[0, 0].set(jnp.nan))
    with pytest.raises(StructureError, match=r"A must be \[m, n\] with m <= n, .* got float64\[4,3\]"):
        ux.solvers.analytic_weights(jnp.ones((4, 3)))
    with pytest.raises(InvalidArgument, match=r"A must have rank m, .* got float64\[2,3\] of a lower rank"):
        ux.solvers.analytic_weights(jnp.ones((2, 3)))
    for steps in (-1, 2.5):
        with pytest.raises(
            InvalidArgument, match=f"Algorithm.run: steps must be a positive whole number, got .*{steps}"
        ):
            method.run(method.params(a), own()(KEY), steps=steps)
    assert method.run(method.params(a), own()(KEY), steps=0).shape == (1, 3)
