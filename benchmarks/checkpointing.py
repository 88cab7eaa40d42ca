"""Claim: at T = 100,000 `BPTT(memory="sqrt")` takes at most 1/200 of the plain scan's temporaries and 1.05 times its time.

A tanh RNN cell of width 64 on 4 inputs, float32, batches of 1 and of 8. The programs are compiled first, which tells their
temporaries, and then run in turn, A B A B; times are medians of `time.process_time`, ratios are to `memory="full"`.

    .venv/bin/python benchmarks/checkpointing.py [--steps 100000] [--repeats 9] [--bytes 4000000] [--json]
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

import unrollax as ux

WIDTH, INPUTS = 64, 4
BATCHES = (1, 8)


def problem(steps, batch):
    """The cell with a batch axis of its own: one product a step."""

    def init(key, params):
        return jnp.zeros((batch, WIDTH))

    def step(params, state, x, key):
        state = jnp.tanh(state @ params["w"] + x @ params["u"] + params["b"])
        return state, (state**2).mean()

    one, two, three = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(one, (WIDTH, WIDTH)) / 8,
        "u": jax.random.normal(two, (INPUTS, WIDTH)),
        "b": jnp.zeros(WIDTH),
    }
    return ux.system(init=init, step=step), params, jax.random.normal(three, (steps, batch, INPUTS))


def estimators(system, steps, budget):
    return {
        "full": ux.BPTT(system, steps),
        "remat(system)": ux.BPTT(ux.remat(system), steps),
        "sqrt": ux.BPTT(system, steps, memory="sqrt"),
        "log": ux.BPTT(system, steps, memory="log"),
        f"{budget} bytes": ux.BPTT(system, steps, memory=budget),
    }


def seconds(run, *args):
    start = time.process_time()
    jax.block_until_ready(run(*args))
    return time.process_time() - start


def measure(steps, batch, repeats, budget):
    system, params, data = problem(steps, batch)
    programs, states = {}, {}
    for name, estimator in estimators(system, steps, budget).items():
        states[name] = estimator.init(jax.random.key(1), params)
        programs[name] = jax.jit(estimator.estimate).lower(params, states[name], data).compile()
        seconds(programs[name], params, states[name], data)
    times = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            times[name].append(seconds(run, params, states[name], data))
    memory = {name: run.memory_analysis().temp_size_in_bytes for name, run in programs.items()}
    took = {name: statistics.median(values) for name, values in times.items()}
    for name in programs:
        yield {
            "batch": batch,
            "memory": name,
            "mb": memory[name] / 1e6,
            "part": memory["full"] / memory[name],
            "seconds": took[name],
            "ratio": took[name] / took["full"],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--bytes", type=int, default=4_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for batch in BATCHES:
        for row in measure(options.steps, batch, options.repeats, options.bytes):
            text = "batch {batch}  {memory:14} {mb:9.2f} MB  1/{part:<6.0f} {seconds:7.3f} s  ratio {ratio:.2f}"
            print(json.dumps(row) if options.json else text.format(**row), flush=True)


if __name__ == "__main__":
    main()
