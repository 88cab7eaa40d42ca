"""Claim: the exact gradient of an LSTM through T = 100,000 steps takes under 10 MB beside the data, with `memory="sqrt"`.

H = 32, 8 sequences, 4 inputs and 3 classes a step, float32. The programs are compiled and not run: the figures are the
temporaries that the compiler plans. By the formula of the kernel, `memory="full"` takes 8 T N H numbers; predictions, losses
and keys come on top.

    .venv/bin/python benchmarks/recurrent_memory.py [--steps 100000] [--json]
"""

import argparse
import json

import jax
import jax.numpy as jnp

import unrollax as ux

INPUTS, HIDDEN, CLASSES, EXAMPLES = 4, 32, 3, 8
BOUND = 10_000_000


def temporaries(steps, memory, *, whole=True):
    """Return the bytes that the compiled gradient takes beside its arguments and results."""
    net = ux.recurrent(ux.LSTMCell(INPUTS, HIDDEN), ux.Dense(HIDDEN, CLASSES))
    params = net.params(jax.random.key(0))
    many = ux.batched(net, EXAMPLES)
    bptt = ux.BPTT(many if whole else ux.system(init=many.init, step=many.step), steps, memory=memory)
    state = bptt.init(jax.random.key(1), params)
    row = lambda dtype, *shape: jax.ShapeDtypeStruct((steps, EXAMPLES, *shape), dtype)
    data = ux.Frame(row(jnp.float32, INPUTS), row(jnp.int32), row(bool), row(jnp.float32))
    return jax.jit(bptt.estimate).lower(params, state, data).compile().memory_analysis().temp_size_in_bytes


def formula(steps):
    """What the backward pass of the LSTM reads, a step and sequence: 4H slopes, and H each of `through`, f, h and dh."""
    return 8 * steps * EXAMPLES * HIDDEN * 4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {memory: temporaries(options.steps, memory) for memory in ("sqrt", "log", "full")}
    found["full, step by step"] = temporaries(options.steps, "full", whole=False)
    if options.json:
        print(json.dumps({"steps": options.steps, "formula": formula(options.steps), "temporaries": found}))
    else:
        for name, size in found.items():
            print(f"{name:20} {size / 1e6:9.2f} MB  1/{found['full'] / size:.0f}")
        print(f"{'8 T N H numbers':20} {formula(options.steps) / 1e6:9.2f} MB")
    assert max(found["sqrt"], found["log"]) < BOUND


if __name__ == "__main__":
    main()
