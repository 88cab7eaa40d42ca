"""Claim: a compiled PES, NRES or ES step costs at most 1.10 times the bare compiled `vmap(scan(step))` of its particles.

The bare program gets the perturbed parameters, the states and the data ready made and returns the losses and the states (for
ES it also runs the unperturbed trajectory); a step also draws and keeps noise, perturbs, resets, weighs and takes Adam's
update. Where 100 updates of a two-parameter toy go to one dispatch, the claim is 2 times. Last, what a reset costs: with a
dear `init`, the extra time of a window that starts with a reset, in units of one `init` of all particles.

Programs run in one process in turn, A B A B; figures are medians of CPU time (`time.process_time`), ratios are of medians.
Threads that wait burn CPU time too: set the variable `NPROC` to 1 to count work alone.
`in chunks` is the bare program with as many particles at once as the estimator runs: what is left is the estimator's own.

    NPROC=1 .venv/bin/python benchmarks/overhead.py [--repeats 15] [--json] [--case NAME]
"""

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import unrollax as ux
from unrollax.estimators._chunks import pairs_in_cache

MEMBERS = {"PES": ux.PES, "NRES": ux.NRES, "ES": ux.ES}
RATE = 1e-8  # so small that parameters stay where the bare program has them: denormal numbers would cost more elsewhere
UPDATES, DISPATCHES = 100, 20  # of a toy: updates to a dispatch, dispatches to a measurement


class Case(NamedTuple):
    """A system, its parameters, one window of data, options of the estimator, and updates to a dispatch."""

    system: Any
    params: Any
    data: Any
    options: dict[str, Any]
    updates: int = 1


def rnn(batch, window):
    """A tanh RNN with 16k parameters, 64 pairs, on `batch` random sequences."""
    net = ux.recurrent(ux.RNNCell(16, 116), ux.Dense(116, 10))
    inputs = jax.random.normal(jax.random.key(1), (batch, window, 16))
    data = jax.vmap(ux.sequence, out_axes=1)(inputs, jnp.zeros((batch, window), int) + jnp.arange(window) % 10)
    options = {"pairs": 64, "std": 0.01, "window": window, "horizon": 10 * window}
    return Case(ux.batched(net, batch), net.params(jax.random.key(0)), data, options)


def inner_mlp():
    """Momentum training of an MLP 64-32-10 on batches of 128, tuned by 4 hyperparameters, 20 pairs, window 10."""

    def forward(weights, x):
        hidden = jnp.tanh(x @ weights["w1"] + weights["b1"])
        return hidden @ weights["w2"] + weights["b2"]

    def loss(weights, x, y, decay):
        logits = forward(weights, x)
        penalty = sum((w**2).sum() for w in jax.tree.leaves(weights))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean() + decay * penalty

    def init(key, theta):
        one, two = jax.random.split(key)
        scale = jnp.exp(theta["log_scale"])
        weights = {
            "w1": scale * jax.random.normal(one, (64, 32)) / 8,
            "b1": jnp.zeros(32),
            "w2": scale * jax.random.normal(two, (32, 10)) / 6,
            "b2": jnp.zeros(10),
        }
        return weights, jax.tree.map(jnp.zeros_like, weights)

    def step(theta, state, batch, key):
        del key
        weights, velocity = state
        value, grad = jax.value_and_grad(loss)(weights, *batch, jnp.exp(theta["log_decay"]))
        momentum = jax.nn.sigmoid(theta["momentum"])
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grad)
        weights = jax.tree.map(lambda w, v: w - jnp.exp(theta["log_rate"]) * v, weights, velocity)
        return (weights, velocity), value

    theta = {"log_rate": -3.0, "momentum": 2.0, "log_decay": -9.0, "log_scale": 0.0}
    theta = jax.tree.map(jnp.float32, theta)
    data = (
        jax.random.normal(jax.random.key(1), (10, 128, 64)),
        jax.random.randint(jax.random.key(2), (10, 128), 0, 10),
    )
    return Case(ux.system(init=init, step=step), theta, data, {"pairs": 20, "std": 0.01, "window": 10, "horizon": 200})


def toy(window):
    """The toy regression of `examples/toy_regression.py`: two logarithms of learning rates, 50 pairs."""

    def f(x):
        bowl = jnp.sqrt(x[0] ** 2 + 5) - jnp.sqrt(5.0)
        return bowl + jnp.sin(x[1]) ** 2 * jnp.exp(-5 * x[0] ** 2) + 0.25 * jnp.abs(x[1] - 100)

    def init(key, theta):
        return jnp.ones(2), jnp.zeros(())

    def step(theta, state, x, key):
        point, t = state
        rate = jnp.exp(theta[0]) * (100 - t) / 100 + jnp.exp(theta[1]) * t / 100
        point = point - rate * jax.grad(f)(point)
        return (point, jnp.where(t == 99, 0, t + 1)), f(point)  # without resets, too, t ends at 100

    options = {"pairs": 50, "std": 0.3, "window": window, "horizon": 100}
    return Case(ux.system(init=init, step=step), jnp.array([-4.0, -4.0]), None, options, UPDATES)


def dear_init():
    """A system of 64 numbers whose `init` costs about as much as 1,000 of its steps; 16 pairs, window 20, 5 to a horizon."""

    def advance(params, state):
        return jnp.tanh(params["w"] @ state)

    def init(key, params):
        return jax.lax.fori_loop(0, 1000, lambda _, s: advance(params, s), jax.random.normal(key, (64,)))

    def step(params, state, x, key):
        state = advance(params, state)
        return state, (state**2).mean()

    params = {"w": jax.random.normal(jax.random.key(0), (64, 64)) / 8}
    return Case(ux.system(init=init, step=step), params, None, {"pairs": 16, "std": 0.01, "window": 20, "horizon": 100})


CASES = {
    "rnn, batch 8, window 50": partial(rnn, 8, 50),
    "rnn, batch 1, window 100": partial(rnn, 1, 100),
    "rnn, batch 1, window 50": partial(rnn, 1, 50),
    "inner MLP training": inner_mlp,
    "toy, window 10, 100 to a dispatch": partial(toy, 10),
    "toy, window 1, 100 to a dispatch": partial(toy, 1),
}


def ours(case, member):
    """Return the step of a training run, and its state."""
    training = ux.Training(MEMBERS[member](case.system, **case.options), optax.adam(RATE))

    def run(state, data):
        return jax.lax.fori_loop(0, case.updates, lambda _, s: training.step(s, data)[0], state)

    return jax.jit(run, donate_argnums=0), training.init(jax.random.key(3), case.params)


def bare(case, member, chunk=None):
    """Return the bare program, and what it is given: perturbed parameters, states and keys, ready made."""
    pairs, window, std = (case.options[name] for name in ("pairs", "window", "std"))
    keys = jax.random.split(jax.random.key(4), 2 * pairs)
    perturbed = jax.tree.map(lambda p: p[None] + std * jax.random.normal(keys[0], (2 * pairs, *p.shape)), case.params)
    start = case.system.init(jax.random.key(5), case.params)
    spread = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2 * pairs), start)

    def particle(params, inner, key, data):
        def body(inner, now):
            return case.system.step(params, inner, *now)

        inner, losses = jax.lax.scan(body, inner, (data, jax.random.split(key, window)))
        return inner, losses.mean()

    def once(params, particles, inner, lone, keys, data):
        if chunk is None or chunk >= pairs:
            inner, losses = jax.vmap(partial(particle, data=data))(particles, inner, keys)
        else:
            inner, losses = jax.lax.map(
                lambda a: particle(*a, data), (particles, inner, keys), batch_size=min(2 * chunk, 2 * pairs)
            )
        return inner, particle(params, lone, keys[0], data)[0] if member == "ES" else lone, losses

    def run(params, particles, inner, lone, keys, data):
        def again(_, carry):
            inner, lone, total = carry
            inner, lone, losses = once(params, particles, inner, lone, keys, data)
            return inner, lone, total + losses

        return jax.lax.fori_loop(0, case.updates, again, (inner, lone, jnp.zeros(2 * pairs)))

    return jax.jit(run), (case.params, perturbed, spread, start, keys, case.data)


def dispatches(case):
    """Return how many dispatches make a time that the clock of CPU time can tell."""
    return DISPATCHES if case.updates > 1 else 1


def seconds(run, *args, times=1):
    start = time.process_time()
    for _ in range(times):
        out = jax.block_until_ready(run(*args))
    return (time.process_time() - start) / times, out


def seconds_on(step, state, data, times=1):
    """`seconds` of a step that takes the state that it gave."""
    start = time.process_time()
    for _ in range(times):
        state = jax.block_until_ready(step(state, data))
    return (time.process_time() - start) / times, state


def measure(name, member, repeats):
    case = CASES[name]()
    step, state = ours(case, member)
    start = case.system.init(jax.random.key(5), case.params)
    chunk = pairs_in_cache((start, case.params, case.params))
    programs = {"bare": bare(case, member), "chunked": bare(case, member, chunk)}
    _, state = seconds_on(step, state, case.data)
    for run, given in programs.values():
        seconds(run, *given)
    times = {"step": [], "bare": [], "chunked": []}
    for _ in range(repeats):
        took, state = seconds_on(step, state, case.data, dispatches(case))
        times["step"].append(took)
        for which, (run, given) in programs.items():
            times[which].append(seconds(run, *given, times=dispatches(case))[0])
    ms = {which: 1e3 * statistics.median(values) / case.updates for which, values in times.items()}
    return {
        "case": name,
        "member": member,
        **{f"{which}_ms": value for which, value in ms.items()},
        "ratio": ms["step"] / ms["bare"],
        "ratio_chunked": ms["step"] / ms["chunked"],
    }


def resets(member, repeats):
    """Return the time of a window with and without a reset, of the bare window, and of one `init` of all particles."""
    case = dear_init()
    step, state = ours(case, member)
    floor, given = bare(case, member)
    inits = jax.jit(jax.vmap(case.system.init))
    windows = case.options["horizon"] // case.options["window"]
    for _ in range(windows):
        _, state = seconds_on(step, state, case.data)
    seconds(floor, *given)
    seconds(inits, given[4], given[1])
    times = {"with": [], "without": [], "bare": [], "init": []}
    for index in range(repeats * windows):
        took, state = seconds_on(step, state, case.data)
        times["without" if index % windows else "with"].append(took)
        times["bare"].append(seconds(floor, *given)[0])
        times["init"].append(seconds(inits, given[4], given[1])[0])
    ms = {which: 1e3 * statistics.median(values) for which, values in times.items()}
    return {"member": member, **ms, "inits": (ms["with"] - ms["without"]) / ms["init"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", default="", help="only cases whose name starts with this; `reset` is the last")
    options = parser.parse_args()
    text = "{case:34} {member:4} {step_ms:8.3f} ms  bare {bare_ms:8.3f} ms  ratio {ratio:.3f}  in chunks {ratio_chunked:.3f}"
    for name in filter(lambda name: name.startswith(options.case), CASES):
        for member in MEMBERS:
            row = measure(name, member, options.repeats)
            print(json.dumps(row) if options.json else text.format(**row), flush=True)
    text = "a reset, dear init: {member:4} {with:6.2f} ms with, {without:6.2f} ms without, bare {bare:6.2f} ms; "
    text += "{inits:.2f} inits of all particles ({init:.2f} ms)"
    for member in MEMBERS if "reset".startswith(options.case) else ():
        row = resets(member, options.repeats)
        print(json.dumps(row) if options.json else text.format(**row), flush=True)


if __name__ == "__main__":
    main()
