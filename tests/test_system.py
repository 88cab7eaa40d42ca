import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

ESTIMATORS = {
    "BPTT": lambda system, **kw: ux.BPTT(system, horizon=2),
    "TBPTT": lambda system, **kw: ux.TBPTT(system, **{"window": 2, "horizon": 4} | kw),
    "ForwardGradient": lambda system, **kw: ux.ForwardGradient(system, **{"window": 2, "horizon": 4} | kw),
    **{
        cls.__name__: partial(lambda cls, system, **kw: cls(system, **{"std": 0.1, "window": 2, "pairs": 2} | kw), cls)
        for cls in (ux.ES, ux.PES, ux.NRES, ux.ESSingle)
    },
}
EVOLUTION = ["ES", "PES", "NRES", "ESSingle"]
KEY = jax.random.key(7)


def start(key, params):
    return {"h": jnp.zeros(2), "n": jnp.int32(0)}


def step(params, state, x, key):
    h = jnp.tanh(params["w"] * state["h"] + x["u"] + 0.1 * jax.random.normal(key, (2,)))
    return {"h": h, "n": state["n"] + 1}, ((h - x["y"]) ** 2).sum() + params["b"]


net = ux.system(init=start, step=step)
PARAMS = {"w": jnp.array([0.5, -0.3]), "b": jnp.array(0.25)}
DATA = {"u": jnp.linspace(-1, 1, 4)[:, None] * jnp.ones((1, 2)), "y": jnp.arange(4.0)[:, None] * jnp.ones((1, 2))}


class Counter:
    def __init__(self, gain):
        self.gain = gain

    def init(self, key, params):
        return jnp.ones(())

    def step(self, params, state, x, key):
        return self.gain * params * state, (params * state) ** 2


@dataclasses.dataclass
class PlainDataclass(Counter):
    gain: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Registered(Counter):
    gain: jax.Array


def by_loop(params, state, rows, key):
    losses = []
    for x, step_key in zip(rows, jax.random.split(key, len(rows)), strict=True):
        noise = 0.1 * np.asarray(jax.random.normal(step_key, (2,)))
        h = np.tanh(np.asarray(params["w"]) * state["h"] + x["u"] + noise)
        losses.append(((h - x["y"]) ** 2).sum() + float(params["b"]))
        state = {"h": h, "n": state["n"] + 1}
    return state, np.array(losses)


@pytest.mark.parametrize("repeated", [(), ("u",), ("y",), ("u", "y")])
def test_unroll_is_a_loop_over_steps_with_a_key_each(repeated):
    data = {name: ux.repeat(leaf[1]) if name in repeated else leaf for name, leaf in DATA.items()}
    rows = [{name: np.asarray(leaf[1 if name in repeated else t]) for name, leaf in DATA.items()} for t in range(4)]
    state, losses = jax.jit(partial(ux.unroll, net, steps=4))(PARAMS, start(None, None), data, KEY)
    expected, expected_losses = by_loop(PARAMS, {"h": np.zeros(2), "n": 0}, rows, KEY)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-13)
    np.testing.assert_allclose(state["h"], expected["h"], rtol=1e-13)
    assert state["n"] == 4


def test_repeat_of_the_whole_data_gives_each_step_the_whole():
    seen = ux.system(init=lambda key, params: 0.0, step=lambda p, s, x, key: (s + x["a"].sum(), x["b"][1]))
    data = ux.repeat({"a": jnp.arange(3.0), "b": jnp.array([5.0, 6.0])})
    state, losses = ux.unroll(seen, 1.0, 0.0, data, KEY, steps=2)
    np.testing.assert_array_equal(losses, [6, 6])
    assert state == 6


def test_data_may_be_absent_when_the_steps_are_given():
    decay = ux.system(init=None, step=lambda p, s, x, key: (p * s, jnp.where(x is None, s, jnp.nan)))
    state, losses = ux.unroll(decay, 0.5, 1.0, None, KEY, steps=3)
    np.testing.assert_array_equal(losses, [1, 0.5, 0.25])
    assert state == 0.125


@pytest.mark.parametrize("data", [None, ux.repeat(1.0), {"a": ux.repeat(jnp.ones(3))}])
def test_data_without_a_time_axis_need_the_steps(data):
    with pytest.raises(ux.InvalidArgument, match=r"^unroll: no data leaf has a time axis .* Pass steps=\."):
        ux.unroll(net, PARAMS, start(None, None), data, KEY)


def test_steps_must_be_those_of_the_data():
    with pytest.raises(ux.StructureError, match=r"^unroll: data leaf \['u'\] .* with 3 steps .* got float64\[4,2\]"):
        ux.unroll(net, PARAMS, start(None, None), DATA, KEY, steps=3)


@pytest.mark.parametrize("name", ["TBPTT", "ForwardGradient", "ES", "PES"])
@pytest.mark.parametrize("thing", [Counter(0.9), PlainDataclass(0.9), Registered(jnp.array(0.9))])
def test_any_object_with_init_and_step_is_a_system_that_goes_through_jit(name, thing):
    traces = []

    @jax.jit
    def run(estimator, params):
        traces.append(1)
        return estimator.estimate(params, estimator.init(KEY, params), None)[1].loss

    make = partial(ESTIMATORS[name], **({"std": 1e-6} if name in EVOLUTION else {}))
    for params in (0.5, -1.5):
        expected = (params**2 + (0.9 * params**2) ** 2) / 2
        np.testing.assert_allclose(run(make(thing), params), expected, rtol=1e-9 if name in EVOLUTION else 1e-14)
    assert len(traces) == 1


class Half:
    def init(self, key, params):
        return 0.0


WRAPPERS = {
    "batched": lambda system: ux.batched(system, 2),
    "clip_loss": lambda system: ux.clip_loss(system, at=1.0),
    "remat": ux.remat,
}


@pytest.mark.parametrize("owner", [*ESTIMATORS, *WRAPPERS])
@pytest.mark.parametrize(
    ("candidate", "got"),
    [
        (3, "int without init or step"),
        (Half(), "Half without step"),
        ((start, step), "tuple without init or step"),
        ({"init": start, "step": step}, "dict without init or step"),
    ],
)
def test_a_system_that_lacks_methods_is_named(owner, candidate, got):
    expected = (
        rf"^{owner}: system must have init\(key, params\) and step\(params, state, x, key\), got {got}\. Write one"
    )
    with pytest.raises(ux.InvalidArgument, match=expected):
        (ESTIMATORS | WRAPPERS)[owner](candidate)


def bad(state, loss):
    """A step that returns what these two functions make of the right answer."""
    return ux.system(
        init=lambda key, p: {"a": jnp.ones(2), "b": 0}, step=lambda p, s, x, key: (state(s, p), loss(s, p))
    )


keep = lambda s, p: s
good = lambda s, p: (p * s["a"]).sum()
BROKEN_STEPS = {
    "shape": (
        bad(lambda s, p: s | {"a": jnp.ones(3)}, good),
        r"leaf's shape and dtype, \['a'\] was float64\[2\], got float64\[3\]\. Start it in init as float64\[3\]",
    ),
    "dtype": (
        bad(lambda s, p: s | {"a": s["a"].astype(jnp.float32)}, good),
        r"\['a'\] was float64\[2\], got float32\[2\]\. .* cast it back in step",
    ),
    "dtype of a number": (bad(lambda s, p: s | {"b": s["b"] + 0.5}, good), r"\['b'\] was int64\[\], got float64\[\]"),
    "structure": (
        bad(lambda s, p: {"a": s["a"]}, good),
        r"the structure that init gave, PyTreeDef\(\{'a': \*, 'b': \*\}\), got PyTreeDef\(\{'a': \*\}\)\. Return every part",
    ),
    "loss of a shape": (bad(keep, lambda s, p: p * s["a"]), r"a floating scalar loss, got float64\[2\]\. Reduce it"),
    "integer loss": (bad(keep, lambda s, p: s["b"]), r"a floating scalar loss, got int64\[\]"),
    "complex loss": (bad(keep, lambda s, p: 1j * p), r"a floating scalar loss, got complex128\[\]"),
}


def run_once(owner, system):
    if owner == "unroll":
        return ux.unroll(system, 0.5, system.init(None, 0.5), None, KEY, steps=2)
    estimator = ESTIMATORS[owner](system)
    return estimator.estimate(0.5, estimator.init(KEY, 0.5), None)


@pytest.mark.parametrize("owner", ["unroll", *ESTIMATORS])
@pytest.mark.parametrize("fault", BROKEN_STEPS)
def test_a_step_that_breaks_its_promise_is_named(owner, fault):
    system, message = BROKEN_STEPS[fault]
    with pytest.raises(ux.StructureError, match=rf"^{owner}: step must .*{message}"):
        run_once(owner, system)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"u": jnp.ones((3, 2))}, r"\['u'\] must be time-major with 2 steps on its first axis, got float64\[3,2\]"),
        ({"y": 1.0}, r"\['y'\] must be time-major with 2 steps on its first axis, got float64\[\]"),
        ({"y": jnp.float32(1)}, r"\['y'\] must be time-major .* got float32\[\]\. Cut the data .* or pass repeat\(x\)"),
    ],
)
def test_data_that_are_not_one_window_are_named(name, change, got):
    estimator = ESTIMATORS[name](net)
    data = jax.tree.map(lambda leaf: leaf[:2], DATA) | change
    with pytest.raises(ux.StructureError, match=rf"^{name}: data leaf {got}"):
        estimator.estimate(PARAMS, estimator.init(KEY, PARAMS), data)


BAD_PARAMS = [
    (
        {"w": jnp.ones(2), "n": 3},
        r"leaf \['n'\] must be real floating numbers, got int64\[\]\. Keep what is not trained",
    ),
    ({"w": [jnp.ones(2, jnp.int32)]}, r"leaf \['w'\]\[0\] must be real floating numbers, got int32\[2\]"),
    ({"on": True}, r"leaf \['on'\] must be real floating numbers, got bool\[\]"),
    (1j, r"leaf \(root\) must be real floating numbers, got complex128\[\]"),
    ({"k": jax.random.key(0)}, r"leaf \['k'\] must be real floating numbers, got key<fry>\[\]"),
    ({"f": jnp.tanh}, r"leaf \['f'\] must be real floating numbers, got PjitFunction"),
    ({"w": jnp.ones((2, 0))}, r"leaf \['w'\] must not be empty, got float64\[2,0\]\. Leave it out"),
    ({}, r"must hold at least one array, got \{\}"),
    (None, r"must hold at least one array, got None"),
]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("params", "got"), BAD_PARAMS)
def test_params_that_cannot_be_trained_are_named(name, params, got):
    estimator = ESTIMATORS[name](net)
    data = jax.tree.map(lambda leaf: leaf[:2], DATA)
    for call in (lambda: estimator.init(KEY, params), lambda: estimator.estimate(params, None, data)):
        with pytest.raises(ux.StructureError, match=rf"^{name}: params {got}"):
            call()


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("bad_key", "got"),
    [(0, "0"), (None, "None"), (jax.random.split(KEY, 2), r"key<fry>\[2\]"), (jnp.zeros(2), r"float64\[2\]")],
)
def test_what_is_no_single_key_is_named(name, bad_key, got):
    with pytest.raises(ux.InvalidArgument, match=rf"^{name}: key must be a single PRNG key, got {got}\. Make one with"):
        ESTIMATORS[name](net).init(bad_key, PARAMS)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_raw_key_of_the_older_kind_is_taken(name):
    raw, typed = (ESTIMATORS[name](net).init(key, PARAMS).key for key in (jax.random.PRNGKey(3), jax.random.key(3)))
    np.testing.assert_array_equal(jax.random.key_data(raw), jax.random.key_data(typed))


WINDOWED = [name for name in ESTIMATORS if name != "BPTT"]


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(
    ("horizon", "window", "nearest"),
    [(110, 20, 100), (111, 20, 120), (109, 20, 100), (3, 20, 20), (7, 2, 6), (1, 2, 2)],
)
def test_a_window_that_does_not_divide_the_horizon_gets_the_nearest_that_does(name, horizon, window, nearest):
    message = (
        f"{name}: horizon must be a multiple of window, got horizon={horizon}, window={window}. "
        f"The nearest is horizon={nearest}."
    )
    with pytest.raises(ux.InvalidArgument, match=f"^{re.escape(message)}$"):
        ESTIMATORS[name](net, window=window, horizon=horizon)


COUNTS = [(name, field) for name in WINDOWED for field in ("window", "horizon")]
COUNTS += [(name, "pairs") for name in EVOLUTION] + [("ForwardGradient", "directions")]


@pytest.mark.parametrize(("name", "field"), COUNTS)
@pytest.mark.parametrize("count", [0, -1, True, 1.0, "2"])
def test_a_count_that_is_no_positive_whole_number_is_named(name, field, count):
    message = f"{name}: {field} must be a positive whole number, got {field}={count!r}. Give 1 or more."
    with pytest.raises(ux.InvalidArgument, match=f"^{re.escape(message)}$"):
        ESTIMATORS[name](net, **{field: count})


@pytest.mark.parametrize("horizon", [0, -1, True, 2.0, None])
def test_the_horizon_of_bptt_is_a_positive_whole_number(horizon):
    with pytest.raises(
        ux.InvalidArgument, match=rf"^BPTT: horizon must be a positive whole number, got horizon={horizon}"
    ):
        ux.BPTT(net, horizon=horizon)


@pytest.mark.parametrize("name", EVOLUTION)
def test_staggering_needs_a_horizon(name):
    with pytest.raises(ux.InvalidArgument, match=rf"^{name}: stagger=True .* got horizon=None\. Give a horizon"):
        ESTIMATORS[name](net, stagger=True)


def test_every_error_is_an_unrollax_error_and_a_builtin_one():
    assert issubclass(ux.InvalidArgument, (ux.UnrollaxError, ValueError))
    assert issubclass(ux.StructureError, ux.UnrollaxError)
    assert issubclass(ux.StructureError, TypeError)
    assert issubclass(ux.Diverged, ux.UnrollaxError)
    assert issubclass(ux.Diverged, ArithmeticError)


@pytest.mark.parametrize(
    ("step", "got"),
    [
        (lambda p, s, x, k: s, r"float64\[\]"),
        (lambda p, s, x, k: (s, s, s), "3 parts"),
        (lambda p, s, x, k: {"a": s}, "dict"),
    ],
)
def test_a_step_that_returns_no_pair_is_told_so(step, got):
    with pytest.raises(ux.StructureError, match=rf"unroll: step must return \(state, loss\), got {got}\. Return both"):
        ux.unroll(ux.system(init=None, step=step), 1.0, 1.0, None, jax.random.key(0), steps=2)
