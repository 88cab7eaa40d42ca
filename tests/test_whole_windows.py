"""A system's own `unroll` is its steps: the same state, loss and gradient, under every estimator that takes it."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax import _cores

KEY = jax.random.key(3)
STEPS, N, D, H = 12, 4, 2, 3
CELLS = {
    "rnn": ux.RNNCell(D, H),
    "relu": ux.RNNCell(D, H, activation="relu"),
    "lstm": ux.LSTMCell(D, H),
    "gru": ux.GRUCell(D, H),
    "mingru": ux.MinGRUCell(D, H),
    "lru": ux.LRUCell(D, H),
    "stacked": ux.stacked(ux.LSTMCell(D, H), ux.GRUCell(H, H), residual=True, between=jnp.sin),
    "mixed": ux.stacked(ux.LRUCell(D, 4, H), ux.stacked(ux.RNNCell(H, H), ux.MinGRUCell(H, H))),
}
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # the same program in half the time


class Steps:
    """A system without its `unroll`."""

    def __init__(self, system):
        self.init, self.step = system.init, system.step


def ragged(seed=0, steps=STEPS, shape=(N,)):
    """Sequences of all lengths, one without a step, one with a gap; NaN and a class of -100 where nothing is real."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    lengths = np.array([steps, 0, *rng.integers(1, steps + 1, count)])[:count]
    mask = np.arange(steps)[:, None] < lengths
    mask[1] &= np.arange(count) != 0
    x = np.where(mask[..., None], rng.normal(size=(steps, count, D)), np.nan)
    frame = ux.Frame(x, np.where(mask, rng.integers(0, 3, mask.shape), -100), mask, rng.random(mask.shape))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.reshape(steps, *shape, *leaf.shape[2:])), frame)


def problem(name):
    net = ux.recurrent(CELLS[name], ux.Dense(H, 3))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), net.params(KEY))
    return net, params


def windows(estimator, params, data, count):
    """State and estimate of each of so many windows."""
    state, out = estimator.init(KEY, params), []
    estimate = jit(estimator.estimate)
    for index in range(count):
        begin = index * estimator.window % STEPS
        some = jax.tree.map(lambda leaf, b=begin: leaf[b : b + estimator.window], data)
        state, found = estimate(params, state, some)
        out.append((state.inner, found.loss, found.grad))
    return out


def agree(got, expected, within=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        bound = within * float(jnp.abs(b).max(initial=0)) + 1e-300
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


def prove(name, make, count=1):
    """`make(system)` is an estimator."""
    net, params = problem(name)
    many, data = ux.batched(net, N), ragged()
    got = windows(make(many), params, data, count)
    agree(got, windows(make(Steps(many)), params, data, count))
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(got[0][2]["cell"]))


def tbptt(overlap, memory, system):
    return ux.TBPTT(system, 4, STEPS, overlap=overlap, x=jax.tree.map(lambda leaf: leaf[0], ragged()), memory=memory)


@pytest.mark.parametrize("name", ["relu", "lstm", "stacked", "mixed"])  # which have every cell in them
def test_bptt_by_windows_is_bptt_by_steps(name):
    prove(name, lambda system: ux.BPTT(system, STEPS))


@pytest.mark.parametrize("memory", ["sqrt", 7000])
def test_bptt_by_windows_is_bptt_by_steps_in_less_memory(memory):
    prove("lstm", lambda system: ux.BPTT(system, STEPS, memory=memory))


@pytest.mark.parametrize(("name", "overlap"), [("gru", 0), ("lstm", 2)])
def test_tbptt_by_windows_is_tbptt_by_steps_across_resets(name, overlap):
    """Five windows: an episode of three, and into the next."""
    prove(name, partial(tbptt, overlap, "full"), 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlap", "memory"),
    [(None, "full"), (None, "sqrt"), (None, "log"), (None, 20_000), (0, "log"), (2, "sqrt"), (8, "full"), (8, 60_000)],
)
@pytest.mark.parametrize("name", CELLS)
def test_windows_are_steps_in_many_ways(name, overlap, memory):
    if overlap is None:
        prove(name, lambda system: ux.BPTT(system, STEPS, memory=memory))
    else:
        prove(name, partial(tbptt, overlap, memory), 5)


def test_a_window_of_one_example_is_its_steps():
    net, params = problem("lstm")
    data = ragged(shape=())
    made = [windows(ux.BPTT(system, STEPS), params, data, 1) for system in (net, Steps(net))]
    agree(*made)


def test_a_batch_of_batches_is_its_steps():
    net, params = problem("gru")
    nested, data = ux.batched(ux.batched(net, 2), 3), ragged(shape=(3, 2))
    made = [windows(ux.BPTT(system, STEPS), params, data, 1) for system in (nested, Steps(nested))]
    agree(*made)
    flat = jax.tree.map(lambda leaf: leaf.reshape(STEPS, 6, *leaf.shape[3:]), data)
    agree(made[0][0][1:], windows(ux.BPTT(ux.batched(net, 6), STEPS), params, flat, 1)[0][1:])


def test_windows_are_mapped_over_parameters():
    """As `vmap` over members, seeds or hyperparameters does."""
    net, params = problem("lstm")
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    bptt, data = ux.BPTT(ux.batched(net, N), STEPS), ragged()
    state = bptt.init(KEY, params)
    mapped = jit(jax.vmap(bptt.estimate, (0, None, None)))(members, state, data)[1].grad
    alone = jit(bptt.estimate)
    each = [alone(jax.tree.map(lambda leaf, n=n: leaf[n], members), state, data)[1].grad for n in range(2)]
    agree(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


def test_a_second_derivative_through_an_estimate_is_that_of_the_steps():
    net, params = problem("gru")
    data = ragged()

    def squared(system, params):
        bptt = ux.BPTT(system, STEPS)
        return optax.tree.norm(bptt.estimate(params, bptt.init(KEY, params), data)[1].grad, squared=True)

    many = ux.batched(net, N)
    agree(*[jit(jax.grad(partial(squared, system)))(params) for system in (many, Steps(many))])


def own(unroll):
    """A system that has a window form alone: a step raises."""

    def step(params, state, x, key):
        raise AssertionError("a step was run")

    return ux.system(init=lambda key, params: {"s": params * jnp.ones(2)}, step=step, unroll=unroll)


def double(params, state, data, keys):
    return {"s": state["s"] + data.sum()}, params * data


def estimate(system, data, estimator=ux.BPTT):
    made = estimator(system, STEPS)
    return made.estimate(2.0, made.init(KEY, 2.0), data)[1]


DATA = jnp.arange(STEPS, dtype=float)


def test_bptt_and_tbptt_run_a_systems_own_window():
    for estimator in (ux.BPTT, ux.TBPTT):
        found = estimate(own(double), DATA, estimator)
        np.testing.assert_allclose((found.loss, found.grad), (2 * DATA.mean(), DATA.mean()))


@pytest.mark.parametrize("estimator", [ux.ForwardGradient, partial(ux.TBPTT, overlap=1, x=0.0)])
def test_what_needs_steps_runs_steps(estimator):
    with pytest.raises(AssertionError, match="a step was run"):
        estimate(own(double), DATA, estimator)


def test_unroll_itself_runs_steps():
    with pytest.raises(AssertionError, match="a step was run"):
        ux.unroll(own(double), 2.0, {"s": jnp.ones(2)}, DATA, KEY)


def test_repeated_data_are_read_step_by_step():
    net, params = problem("lstm")
    many, frame = ux.batched(net, N), ragged()
    data = frame._replace(input=ux.repeat(jnp.ones((N, D))))
    spread = frame._replace(input=jnp.ones((STEPS, N, D)))
    bptt = ux.BPTT(many, STEPS)
    made = [jit(bptt.estimate)(params, bptt.init(KEY, params), some)[1] for some in (data, spread)]
    agree(*[found[:2] for found in made])
    with pytest.raises(AssertionError, match="a step was run"):
        estimate(own(double), ux.repeat(1.0))


@pytest.mark.parametrize(
    ("wrap", "options"),
    [(ux.clip_loss, {"at": 0.3}), (ux.remat, {}), (ux.bounded, {"bounds": {"cell": None, "readout": None}})],
)
def test_other_wrappers_run_steps_around_a_batch_and_inside_it(wrap, options):
    net, params = problem("lstm")
    data = ragged()
    around, inside = wrap(ux.batched(net, N), **options), ux.batched(wrap(net, **options), N)
    plain = wrap(Steps(ux.batched(net, N)), **options)
    clipped = wrap is ux.clip_loss
    expected = windows(ux.BPTT(plain, STEPS), params, data, 1)
    agree(windows(ux.BPTT(around, STEPS), params, data, 1), expected)
    if not clipped:  # the bound on a mean is another than on its parts
        agree(windows(ux.BPTT(inside, STEPS), params, data, 1), expected)


@pytest.mark.parametrize("memory", ["sqrt", "log", 10**6])
@pytest.mark.parametrize("make", [lambda net, **o: ux.BPTT(net, STEPS, **o), lambda net, **o: ux.TBPTT(net, 4, **o)])
def test_a_net_that_reads_ahead_is_not_cut(make, memory):
    net = ux.batched(ux.recurrent(ux.bidirectional(ux.LSTMCell(D, H), ux.GRUCell(D, H)), ux.Dense(2 * H, 3)), N)
    params = net.system.params(KEY)
    estimator = make(net, memory=memory)
    owner, data = type(estimator).__name__, jax.tree.map(lambda leaf: leaf[: estimator.window], ragged())
    message = rf'^{owner}: memory must be "full" for a system that reads ahead, got memory={memory!r}\. A window can\'t'
    with pytest.raises(ux.InvalidArgument, match=message):
        estimator.estimate(params, estimator.init(KEY, params), data)


@pytest.mark.parametrize("make", [lambda net: ux.BPTT(net, STEPS), lambda net: ux.TBPTT(net, 4)])
def test_a_net_that_reads_ahead_has_a_gradient_by_windows(make):
    """That of the same two directions by `predict`, which knows no estimator."""
    net = ux.recurrent(ux.bidirectional(ux.LSTMCell(D, H), ux.GRUCell(D, H)), ux.Dense(2 * H, 3), ux.squared_error)
    params, estimator = net.params(KEY), make(ux.batched(net, N))
    data = jax.tree.map(lambda leaf: leaf[: estimator.window], ragged())
    data = data._replace(target=jnp.where(data.mask[..., None], jnp.sin(data.input @ jnp.ones((D, 3))), 0))

    def loss(params):
        predicted = jax.vmap(partial(net.predict, params), 1, 1)(data.input, data.mask)
        squares = ((predicted - data.target) ** 2).mean(-1)
        return (jnp.where(data.mask, data.weight, 0) * squares).mean()

    found = jit(estimator.estimate)(params, estimator.init(KEY, params), data)[1]
    agree(tuple(found[:2]), jit(jax.value_and_grad(loss))(params))


def test_what_runs_steps_refuses_a_net_that_reads_ahead_in_its_own_words():
    net = ux.batched(ux.recurrent(ux.bidirectional(ux.LSTMCell(D, H), ux.GRUCell(D, H)), ux.Dense(2 * H, 3)), N)
    ahead = r"system must be one that runs step by step, got one that reads ahead \(bidirectional\)\."
    for system in (net, net.system, ux.batched(net, 2)):
        with pytest.raises(ux.InvalidArgument, match=rf"^clip_loss: {ahead} Bound the loss of recurrent itself"):
            ux.clip_loss(system, at=1.0)
        with pytest.raises(ux.InvalidArgument, match=rf"^remat: {ahead} For less memory take shorter windows"):
            ux.remat(system)
        with pytest.raises(
            ux.InvalidArgument, match=r"^TBPTT: overlap must be 0 for a system that reads ahead .* overlap=2"
        ):
            ux.TBPTT(system, 3, 6, overlap=2, x=ragged())
    params = net.system.params(KEY)
    forward = ux.ForwardGradient(net, STEPS, STEPS)
    with pytest.raises(
        ux.InvalidArgument, match=r"^bidirectional: needs a whole window at once, got one step .* BPTT, or"
    ):
        forward.estimate(params, forward.init(KEY, params), ragged())


def test_a_stack_that_reads_ahead_is_not_cut_either():
    ahead = ux.stacked(ux.bidirectional(ux.GRUCell(D, H), ux.GRUCell(D, H)), ux.LSTMCell(2 * H, H))
    net = ux.batched(ux.recurrent(ahead, ux.Dense(H, 3)), N)
    bptt = ux.BPTT(net, STEPS, memory="sqrt")
    params = net.system.params(KEY)
    with pytest.raises(ux.InvalidArgument, match="for a system that reads ahead"):
        bptt.estimate(params, bptt.init(KEY, params), ragged())


WRONG = {
    "structure": (lambda p, s, d, k: (s["s"], p * d), r"unroll must return a state with the structure that init gave"),
    "shape": (lambda p, s, d, k: ({"s": jnp.ones(3)}, p * d), r"unroll must keep each state leaf's shape .* \['s'\]"),
    "dtype": (
        lambda p, s, d, k: ({"s": s["s"].astype(int)}, p * d),
        r"unroll must keep .*, got int64\[2\]\. .*in unroll",
    ),
    "pair": (lambda p, s, d, k: s, r"unroll must return \(state, losses\), got dict"),
    "mean": (
        lambda p, s, d, k: (s, (p * d).mean()),
        r"unroll must return a floating loss for each of the 12 steps, got",
    ),
    "whole": (lambda p, s, d, k: (s, d.astype(int)), r"unroll must return a floating loss .*, got int64\[12\]"),
}


@pytest.mark.parametrize(("unroll", "message"), WRONG.values(), ids=WRONG)
def test_a_window_form_that_returns_something_else_is_named(unroll, message):
    with pytest.raises(ux.StructureError, match=f"^BPTT: {message}"):
        estimate(own(unroll), DATA)


CORES = """
import sys
import unrollax as ux
assert ux.use_cores(2) == 2
from unrollax import _cores
_cores.SMALLEST, _cores.WORK = 1, 0  # split whatever can be: this problem is too small to gain
import jax, jax.numpy as jnp, numpy as np, optax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[1])
from test_whole_windows import KEY, N, STEPS, Steps, agree, problem, ragged, windows

assert jax.device_count() == 2
net, params = problem("lstm")
data = ragged()
many = ux.batched(net, N)
program = lambda bptt: jax.jit(bptt.estimate).lower(params, bptt.init(KEY, params), data).as_text()
bptt = ux.BPTT(many, STEPS)
assert "manual_computation" in program(bptt)
assert "manual_computation" not in program(ux.BPTT(Steps(many), STEPS))
found = windows(bptt, params, data, 1)
agree(found, windows(ux.BPTT(Steps(many), STEPS), params, data, 1))
if sys.argv[2:]:
    agree(windows(ux.BPTT(many, STEPS, memory="sqrt"), params, data, 1), found)
    three, nested = ux.batched(net, 3), ux.batched(ux.batched(net, 2), 2)
    odd, pairs = (ragged(shape=shape) for shape in ((3,), (2, 2)))
    for system, some in ((three, odd), (nested, pairs)):
        agree(*[windows(ux.BPTT(s, STEPS), params, some, 1) for s in (system, Steps(system))])
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    twins = jax.jit(jax.vmap(bptt.estimate, (0, None, None)))(members, bptt.init(KEY, params), data)[1].grad
    agree(jax.tree.map(lambda leaf: leaf[1], twins), found[0][2])
first, second = jax.devices()
fit = lambda system, params, some, steps: ux.fit(
    ux.BPTT(system, STEPS), optax.adam(1e-2), params, lambda n: some, key=KEY, steps=steps
)
run = fit(many, jax.device_put(params, second), data, 20)  # arrays that are tied to one core
assert run.metrics.loss[-1] < run.metrics.loss[0]
x = jnp.ones((STEPS, 2))
expected = net.predict(jax.device_get(run.params), x)
for device in (first, second):
    agree(net.predict(run.params, jax.device_put(x, device)), expected)
if sys.argv[2:]:
    for n in (3, 6):  # goes on where nothing is split, and where the shares are others
        assert np.isfinite(fit(ux.batched(net, n), run.params, ragged(shape=(n,)), 2).metrics.loss).all()
try:
    ux.use_cores(1)
except ux.InvalidArgument as error:
    print(str(error).startswith("use_cores: must be called before JAX runs anything"))
print(float(found[0][1]), float(optax.tree.norm(found[0][2])))
"""


@pytest.mark.parametrize("more", [(), pytest.param(("more",), marks=pytest.mark.slow)])
def test_over_cores_is_on_one_core(root, more):
    """In a process of its own: the number of devices is fixed when JAX starts."""
    here = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}  # which sets devices of its own
    done = subprocess.run(
        [sys.executable, "-c", CORES, root / "tests", *more], capture_output=True, text=True, check=False, env=here
    )
    assert done.returncode == 0, done.stderr
    raised, numbers = done.stdout.strip().splitlines()
    assert raised == "True"
    net, params = problem("lstm")
    _, loss, grad = windows(ux.BPTT(ux.batched(net, N), STEPS), params, ragged(), 1)[0]
    np.testing.assert_allclose([float(n) for n in numbers.split()], [loss, optax.tree.norm(grad)], rtol=1e-12)


@pytest.mark.parametrize(
    ("examples", "count", "split"),
    [(32, 4, True), (64, 4, True), (30, 4, False), (28, 4, False), (30, 2, True), (30, 1, False)],
)
def test_a_batch_is_split_over_all_cores_or_none(monkeypatch, examples, count, split):
    """On two of four cores its results could not be mixed with those of a batch on all four."""
    monkeypatch.setattr(_cores, "cores", lambda: count)
    assert _cores.is_split(10**4, examples, 10**4) == split
    assert not _cores.is_split(10, examples, 10)  # too little work


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_cores_are_counted(count):
    with pytest.raises(ux.InvalidArgument, match=r"^use_cores: count must be a positive whole number"):
        ux.use_cores(count)


def test_cores_are_chosen_before_jax_starts():
    jax.devices()
    with pytest.raises(
        ux.InvalidArgument, match=r"^use_cores: must be called before JAX runs anything, got a call after"
    ):
        ux.use_cores(2)
