"""Aim: the table of `gradient_flow` at 40, 25 and 4 times the speed of a loop over losses and steps in compiled JAX.

The first of the three is missed, and all of them against the tightest loop; the figures are in benchmarks/README.md.

|| d loss_t / d params_s || for all t and s <= t of an LSTM with a readout, by leaf of params, three ways, each one compiled
program (of ours: one for the forward pass and one for each 64 losses):

- `ours`: 64 losses' cotangents through one backward pass;
- `passes`: for each loss one backward pass through all steps, with a copy of the params for each step, as one writes it
  with `jax.grad`: the loop over steps is that of the scan;
- `pulls`: for each loss, for each step back from it, one `jax.vjp` of the step from the kept state: the tightest loop.

Programs run in one process in turn, A B C A B C; figures are medians of wall time on 2 cores. `call` is the whole of
`gradient_flow(..., windows=())`, with the gradient, the sums' check and the fit of the decay, on the host.

    .venv/bin/python benchmarks/gradient_flow.py [--repeats 7] [--json] [--case NAME]
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import unrollax as ux
from unrollax._system import rows_of
from unrollax.diagnosis import _table
from unrollax.diagnosis._flow import TOGETHER
from unrollax.diagnosis._forward import follow

CASES = {
    "T = 64, batch 1, H = 32": (64, 1, 32),
    "T = 256, batch 1, H = 32": (256, 1, 32),
    "T = 256, batch 16, H = 64": (256, 16, 64),
}
AIMS = {"T = 64, batch 1, H = 32": 40, "T = 256, batch 1, H = 32": 25, "T = 256, batch 16, H = 64": 4}
INPUTS, CLASSES = 32, 10
KEY = jax.random.key(3)


def problem(steps, batch, hidden):
    """An LSTM on random inputs, with a class to predict at each step."""
    net = ux.recurrent(ux.LSTMCell(INPUTS, hidden), ux.Dense(hidden, CLASSES))
    x = jax.random.normal(jax.random.key(1), (steps, batch, INPUTS))
    y = jax.random.randint(jax.random.key(2), (steps, batch), 0, CLASSES)
    frames = ux.Frame(x, y, jnp.ones((steps, batch)), jnp.ones((steps, batch), bool))
    return ux.batched(net, batch), net.params(jax.random.key(0)), rows_of("benchmark", frames, steps)


def norms(grads, axis=None):
    """Norms by leaf, over all axes but the first `axis`."""
    return jnp.stack([jnp.sqrt(jnp.square(g).sum(tuple(range(axis or 0, g.ndim)))) for g in jax.tree.leaves(grads)], -1)


def ours(system, params, rows, steps):
    def run():
        path = follow(system, params, rows, KEY, steps)
        some = [np.arange(at, at + TOGETHER, dtype=np.int32) for at in range(0, steps, TOGETHER)]
        return [_table.norms_back(system, params, path, at) for at in some]

    def table():
        parts = [np.ldexp(np.asarray(part.leaves, float), np.asarray(part.powers)[..., None]) for part, _ in run()]
        return np.concatenate(parts, 1).swapaxes(0, 1)

    return run, table


def passes(system, params, rows, steps):
    path = follow(system, params, rows, KEY, steps)
    first = jax.tree.map(lambda leaf: leaf[0], path.states)

    def loss(copies, t):
        def body(state, now):
            params, row, key, s = now
            state, loss = system.step(params, state, row, key)
            return state, jnp.where(s == t, loss, 0)

        return jax.lax.scan(body, first, (copies, path.rows, path.keys, jnp.arange(steps)))[1].sum()

    def one(t):
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, *leaf.shape)), params)
        return norms(jax.grad(loss)(copies, t), 1)

    run = jax.jit(lambda: jax.lax.map(one, jnp.arange(steps)))
    return run, run


def pulls(system, params, rows, steps):
    path = follow(system, params, rows, KEY, steps)

    def step(params, state, s):
        row, key = jax.tree.map(lambda leaf: leaf[s], (path.rows, path.keys))
        return system.step(params, state, row, key)

    def of_loss(t, table):
        def back(lag, carry):
            cotangent, table = carry
            state = jax.tree.map(lambda leaf: leaf[t - lag], path.states)
            pull = jax.vjp(lambda params, state: step(params, state, t - lag), params, state)[1]
            grad, cotangent = pull((cotangent, (lag == 0).astype(path.losses.dtype)))
            return cotangent, table.at[t, t - lag].set(norms(grad))

        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), path.states)
        return jax.lax.fori_loop(0, t + 1, back, (zeros, table))[1]

    empty = jnp.zeros((steps, steps, len(jax.tree.leaves(params))))
    run = jax.jit(lambda: jax.lax.fori_loop(0, steps, of_loss, empty))
    return run, run


def seconds(run):
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def measure(name, repeats):
    """Check that the three tables agree, and time them in turn."""
    system, params, rows = problem(*CASES[name])
    steps = CASES[name][0]
    made = {f.__name__: f(system, params, rows, steps) for f in (ours, passes, pulls)}
    tables = {each: np.asarray(table()) for each, (_, table) in made.items()}
    for each in ("passes", "pulls"):
        np.testing.assert_allclose(tables["ours"], tables[each], rtol=1e-3, atol=1e-6 * tables[each].max())
    runs = {each: run for each, (run, _) in made.items()}
    runs["call"] = lambda: ux.gradient_flow(system, params, rows, key=KEY, windows=()).table
    for run in runs.values():
        jax.block_until_ready(run())
    times = {each: [] for each in runs}
    for _ in range(repeats):
        for each, run in runs.items():
            times[each].append(seconds(run))
    middle = {each: statistics.median(found) for each, found in times.items()}
    return {each: 1e3 * found for each, found in middle.items()} | {
        "passes / ours": middle["passes"] / middle["ours"],
        "pulls / ours": middle["pulls"] / middle["ours"],
        "aim": AIMS[name],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {name: measure(name, args.repeats) for name in args.case or CASES}
    if args.json:
        print(json.dumps(found))
        return
    print(
        f"{'milliseconds':<28}{'ours':>9}{'call':>9}{'passes':>9}{'pulls':>9}{'passes/ours':>13}{'pulls/ours':>12}{'aim':>6}"
    )
    for name, row in found.items():
        cells = f"{row['ours']:>9.2f}{row['call']:>9.2f}{row['passes']:>9.1f}{row['pulls']:>9.1f}"
        print(f"{name:<28}{cells}{row['passes / ours']:>13.1f}{row['pulls / ours']:>12.1f}{row['aim']:>6}")


if __name__ == "__main__":
    main()
