"""Claim: a compiled PES step costs at most 1.15 times the bare compiled `vmap(scan(step))` of its particles.

The bare program gets the perturbed parameters, the states and the data ready made and returns the losses and the states;
the PES step also draws and keeps noise, perturbs, resets, weighs and takes the optimizer's update. Both run in one process,
interleaved; the figure is the ratio of medians.

    .venv/bin/python benchmarks/overhead.py [--repeats 40] [--json]
"""

import argparse
import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax

import unrollax as ux


def rnn(batch, window):
    """A tanh RNN with 16k parameters, 64 pairs, on `batch` random sequences."""
    net = ux.recurrent(ux.RNNCell(16, 116), ux.Dense(116, 10))
    params = net.params(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (batch, window, 16))
    data = jax.vmap(ux.sequence, out_axes=1)(inputs, jnp.zeros((batch, window), int) + jnp.arange(window) % 10)
    return (
        ux.batched(net, batch),
        params,
        data,
        {"pairs": 64, "std": 0.01, "window": window, "horizon": 10 * window},
    )


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
    return (
        ux.system(init=init, step=step),
        theta,
        data,
        {"pairs": 20, "std": 0.01, "window": 10, "horizon": 200},
    )


CASES = {
    "rnn, batch 8, window 50": partial(rnn, 8, 50),
    "rnn, batch 1, window 100": partial(rnn, 1, 100),
    "rnn, batch 1, window 50": partial(rnn, 1, 50),
    "inner MLP training": inner_mlp,
}


def bare(system, window):
    def run(params, inner, data, keys):
        def particle(params, inner, key):
            inner, losses = jax.lax.scan(
                lambda s, now: system.step(params, s, *now), inner, (data, jax.random.split(key, window))
            )
            return inner, losses.mean()

        return jax.vmap(particle)(params, inner, keys)

    return jax.jit(run)


def seconds(run, *args):
    start = time.perf_counter()
    out = jax.block_until_ready(run(*args))
    return time.perf_counter() - start, out


def measure(name, case, repeats):
    system, params, data, options = case()
    training = ux.Training(ux.PES(system, **options), optax.adam(1e-3))
    state = training.init(jax.random.key(3), params)
    pes = jax.jit(training.step, donate_argnums=0)
    state, _ = pes(state, data)
    spread = partial(jax.tree.map, lambda a: jnp.stack([a] * 2 * options["pairs"]))
    keys = jax.random.split(jax.random.key(4), 2 * options["pairs"])
    particles = jax.tree.map(
        lambda p: p[None] + 0.01 * jax.random.normal(keys[0], (2 * options["pairs"], *p.shape)), params
    )
    inner = spread(system.init(jax.random.key(5), params))
    floor = bare(system, options["window"])
    floor(particles, inner, data, keys)
    ours, theirs = [], []
    for _ in range(repeats):
        took, (state, _) = seconds(pes, state, data)
        ours.append(took)
        took, (inner_after, _) = seconds(floor, particles, inner, data, keys)
        theirs.append(took)
    del inner_after
    pes_ms, bare_ms = 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs)
    return {"case": name, "pes_ms": pes_ms, "bare_ms": bare_ms, "ratio": pes_ms / bare_ms}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name, case in CASES.items():
        row = measure(name, case, options.repeats)
        print(
            json.dumps(row)
            if options.json
            else "{case:28} PES {pes_ms:8.2f} ms  bare {bare_ms:8.2f} ms  ratio {ratio:.3f}".format(**row)
        )


if __name__ == "__main__":
    main()
