"""Claim: `unrollax.normal` costs at most 0.6 of `jax.random.normal` where evolution strategies use it.

Each program draws the noise of 64 pairs of 16.5k parameters, adds it to what the pairs keep, perturbs both twins and forms
the gradient: what a PES step does beside running the system. Interleaved in one process; the figure is the ratio of medians.

    .venv/bin/python benchmarks/noise.py [--repeats 60]
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

import unrollax as ux

PAIRS, SIZE = 64, 16500


def program(sampler):
    @jax.jit
    def run(key, kept, params, weights):
        noise = sampler(key, (PAIRS, SIZE), jnp.float32)
        total = kept + noise
        return params + 0.01 * jnp.stack([noise, -noise], 1), total, jnp.tensordot(weights, total, axes=1)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    repeats = parser.parse_args().repeats
    programs = {"jax.random.normal": program(jax.random.normal), "unrollax.normal": program(ux.normal)}
    args = (jax.random.key(0), jnp.zeros((PAIRS, SIZE)), jnp.zeros(SIZE), jnp.ones(PAIRS))
    times = {name: [] for name in programs}
    for run in programs.values():
        jax.block_until_ready(run(*args))
    for _ in range(repeats):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*args))
            times[name].append(time.perf_counter() - start)
    theirs, ours = (1e3 * statistics.median(times[name]) for name in programs)
    print(f"jax.random.normal {theirs:.2f} ms  unrollax.normal {ours:.2f} ms  ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
