"""What an `Unfold` says of a part that does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from unrollax import InvalidArgument, StructureError
from unrollax._schedules import per_step, periodic
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
