"""Claim: a training step of the recurrent kernels is faster than PyTorch's and than autodiff of the plain scan, on a CPU.

Forward and backward of sum(outputs x random weights) with respect to the parameters, float32, in one process with PyTorch,
in turn, A B A B. With `--cores 1` everything runs on one thread and CPU time is measured, with `--cores 2` wall time: PyTorch
gets as many threads, `split` is the batch over as many cores as `use_cores` gives. `products` is what the matrix products of
the step would take alone, at the best rate that this machine reached on any of them.

It needs an environment of its own:

    python3 -m venv .torch && .torch/bin/pip install torch==2.13.0 -e . equinox flax
    .torch/bin/python benchmarks/recurrent.py [--cores 2] [--sizes S,M,L] [--kinds LSTM,GRU,RNN,MinGRU] [--others] [--json]
"""

import argparse
import json
import os
import statistics
import time

PAUSE = 0.02
SIZES = {"S": (32, 100, 64, 128), "M": (64, 256, 128, 256), "L": (16, 1000, 32, 64)}  # N, T, D, H
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "MinGRU": 2}
INCUMBENT = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "RNN", "MinGRU": "GRU"}  # PyTorch has no minGRU


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--sizes", default="S,M,L")
    parser.add_argument("--kinds", default="LSTM,GRU,RNN,MinGRU")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--others", action="store_true", help="Equinox and Flax NNX too, where they are installed")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


OPTIONS = arguments()
if OPTIONS.cores == 1:  # before anything that starts threads
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import unrollax as ux  # noqa: E402
from unrollax import kernels  # noqa: E402

torch.set_num_threads(OPTIONS.cores)
if OPTIONS.cores > 1:
    ux.use_cores(OPTIONS.cores)
CELLS = {"LSTM": ux.LSTMCell, "GRU": ux.GRUCell, "RNN": ux.RNNCell, "MinGRU": ux.MinGRUCell}
KERNELS = {"LSTM": kernels.lstm, "GRU": kernels.gru, "RNN": kernels.rnn, "MinGRU": kernels.mingru}


def torch_step(kind, size, x, weights):
    _, _, inputs, hidden = size
    net = getattr(torch.nn, INCUMBENT[kind])(inputs, hidden)
    x, weights = torch.tensor(x), torch.tensor(weights)

    def run():
        net.zero_grad(set_to_none=True)
        (net(x)[0] * weights).sum().backward()

    return run


def jax_step(forward, params, x, weights):
    @jax.jit
    def step(params, x, weights):
        return jax.value_and_grad(lambda params: (forward(params, x) * weights).sum())(params)

    x, weights = jnp.asarray(x), jnp.asarray(weights)
    return lambda: jax.block_until_ready(step(params, x, weights))


def plain(cell):
    def forward(params, x):
        state = jax.tree.map(lambda leaf: jnp.zeros((x.shape[1], *leaf.shape)), cell.init(params))
        return jax.lax.scan(lambda state, x: jax.vmap(cell.step, (None, 0, 0))(params, state, x), state, x)[1]

    return forward


def split(kernel):
    """The batch over the cores, as `batched` does it."""
    from unrollax._cores import over_cores

    def forward(params, x):
        def run(params, state, x, keys):
            return state, kernel(params, x)[1]

        return over_cores(run)(params, (), x, jnp.zeros(x.shape[:2]))[1]

    return forward


def others(kind, size):
    """The same step through other libraries' cells, where they have one."""
    _, _, inputs, hidden = size
    if kind not in ("LSTM", "GRU"):
        return
    import equinox
    from flax import nnx

    cell = getattr(equinox.nn, f"{kind}Cell")(inputs, hidden, key=jax.random.key(0))
    params, rest = equinox.partition(cell, equinox.is_array)

    def forward(params, x):
        cell, zeros = equinox.combine(params, rest), jnp.zeros((x.shape[1], hidden))

        def body(state, x):
            state = jax.vmap(cell)(x, state)
            return state, state[0] if kind == "LSTM" else state

        return jax.lax.scan(body, (zeros, zeros) if kind == "LSTM" else zeros, x)[1]

    yield "equinox", forward, params
    graph, weights, rest_of = nnx.split(getattr(nnx, f"{kind}Cell")(inputs, hidden, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def scanned(params, x):
        cell, zeros = nnx.merge(graph, params, rest_of), jnp.zeros((x.shape[1], hidden))
        return jax.lax.scan(cell, (zeros, zeros) if kind == "LSTM" else zeros, x)[1]

    yield "flax nnx", scanned, weights


def rate(kind, size):
    """Seconds of the products alone: the fastest of three kinds of product tells how fast all could be."""
    examples, steps, inputs, hidden = size
    width = GATES[kind] * hidden
    one, many = 2 * examples * hidden * width, 2 * examples * steps * hidden * width
    draw = np.random.default_rng(0)
    h, wh = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in ((examples, hidden), (hidden, width)))
    hs, dz = (jnp.asarray(draw.normal(size=(examples * steps, n)), jnp.float32) for n in (hidden, width))
    chain = jax.jit(
        lambda h, wh: jax.lax.scan(lambda h, _: ((h @ wh)[:, :hidden] * 0.01, None), h, None, length=steps)[0]
    )
    outer, across = jax.jit(lambda a, b: a.T @ b), jax.jit(lambda a, b: a @ b)
    runs = [
        (lambda: chain(h, wh), one * steps),
        (lambda: outer(hs, dz), many),
        (lambda: across(hs, wh), many),
    ]
    best = max(flops / min(seconds(run) for _ in range(5)) for run, flops in runs)
    recurrent = 0 if kind == "MinGRU" else 3 * many
    return (recurrent + 2 * many * inputs / hidden) / best


def seconds(run):
    time.sleep(PAUSE)  # until the threads of the program before, that wait for more, have gone to sleep
    clock = time.process_time if OPTIONS.cores == 1 else time.perf_counter
    start = clock()
    jax.block_until_ready(run())
    return clock() - start


def measure(kind, name):
    size = examples, steps, inputs, hidden = SIZES[name]
    draw = np.random.default_rng(0)
    x = draw.normal(size=(steps, examples, inputs)).astype(np.float32)
    weights = draw.normal(size=(steps, examples, hidden)).astype(np.float32)
    cell = CELLS[kind](inputs, hidden)
    params = cell.params(jax.random.key(0))
    kernel = KERNELS[kind]
    programs = {
        "torch": torch_step(kind, size, x, weights),
        "kernel": jax_step(lambda params, x: kernel(params, x)[1], params, x, weights),
        "plain scan": jax_step(plain(cell), params, x, weights),
    }
    if OPTIONS.cores > 1:
        programs["split"] = jax_step(split(kernel), params, x, weights)
    if OPTIONS.others:
        programs |= {other: jax_step(forward, own, x, weights) for other, forward, own in others(kind, size)}
    for run in programs.values():
        run(), run()
    times = {program: [] for program in programs}
    for _ in range(OPTIONS.repeats):
        for program, run in programs.items():
            times[program].append(seconds(run))
    incumbent = statistics.median(times["torch"])
    row = {"kind": kind, "size": name, "torch_ms": 1e3 * incumbent, "products": rate(kind, size) / incumbent}
    for program in programs:
        row[program] = statistics.median(a / b for a, b in zip(times[program], times["torch"], strict=True))
    return row


def main():
    rows = [measure(kind, name) for kind in OPTIONS.kinds.split(",") for name in OPTIONS.sizes.split(",")]
    if OPTIONS.json:
        print(json.dumps(rows))
        return
    columns = [column for column in rows[0] if column not in ("kind", "size", "torch_ms", "torch")]
    print(f"{'':12}{'torch, ms':>11}" + "".join(f"{column:>12}" for column in columns))
    for row in rows:
        figures = "".join(f"{row[column]:12.2f}" if column in row else f"{'':12}" for column in columns)
        print(f"{row['kind'] + ' ' + row['size']:12}{row['torch_ms']:11.1f}{figures}")


if __name__ == "__main__":
    main()
