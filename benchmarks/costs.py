"""Claim: what one window costs with each estimator, in time, in memory while it runs and in memory between windows.

One tanh RNN (32 units, 4 inputs, 1,316 parameters with its readout), windows of 10 steps, a horizon of 100, float32. Time
is CPU time in units of the same steps run bare (`unrollax.unroll`), interleaved with it, the least of all repeats, 50 windows
to a dispatch; memory is that of one compiled call. `UnfoldBPTT` sees the net as an algorithm whose iterations are its steps.

    NPROC=1 .venv/bin/python benchmarks/costs.py [--repeats 30] [--write]

`--write` keeps the figures in benchmarks/golden/costs.json, from which `scripts/choose` makes the table of docs/choose.md.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import unrollax as ux

WINDOW, HORIZON, UNITS, INPUTS = 10, 100, 32, 4
WINDOWS = 50  # of one measurement
KEY = jax.random.key(0).dtype
GOLDEN = Path(__file__).parent / "golden" / "costs.json"

TIME = {"window": WINDOW, "horizon": HORIZON}
NOISE = {"std": 0.05, "pairs": 32}


def example(system):
    """One step of data, for the estimators that keep some."""
    return {"x": jax.tree.map(lambda leaf: leaf[0], data(1))} if system else {}


@ux.value
class Unfolded:
    """`UnfoldBPTT` on a recurrent net: its steps are the iterations of one problem, their losses the errors."""

    system: ux.System
    window: int = ux.static()
    traits = ux.Traits(target="exact", needs="vjp", cost=ux.Cost(forward="1", vjp="1"))

    def init(self, key, params):
        return key

    def estimate(self, params, state, rows):
        def iteration(theta, x, key):
            inner, t, _ = x
            inner, loss = self.system.step(theta, inner, jax.tree.map(lambda leaf: leaf[t], rows), key)
            return inner, t + 1, loss

        start = lambda key: (self.system.init(key, params), 0, jnp.zeros(()))
        net = ux.Unfold(iteration, start, lambda x, _: x[2], lambda key: key, self.window, 1, "anytime", "raw")
        return ux.UnfoldBPTT(net).estimate(params, state, None)


MAKERS = {
    "BPTT": lambda s: ux.BPTT(s, HORIZON),
    'BPTT(memory="sqrt")': lambda s: ux.BPTT(s, HORIZON, memory="sqrt"),
    "UnfoldBPTT": lambda s: Unfolded(s, HORIZON),
    "TBPTT": lambda s: ux.TBPTT(s, **TIME),
    "TBPTT(overlap=10)": lambda s: ux.TBPTT(s, **TIME, overlap=10, **example(s)),
    "RandomizedTBPTT": lambda s: ux.RandomizedTBPTT(s, **TIME, **example(s)),
    "RTRL": lambda s: ux.RTRL(s, **TIME),
    "SnAp": lambda s: ux.SnAp(s, **TIME, **example(s)),
    "UORO": lambda s: ux.UORO(s, **TIME),
    "ForwardGradient": lambda s: ux.ForwardGradient(s, **TIME, directions=32),
    "ES": lambda s: ux.ES(s, **TIME, **NOISE),
    "FullES": lambda s: ux.FullES(s, horizon=HORIZON, **NOISE),
    "PES": lambda s: ux.PES(s, **TIME, **NOISE),
    'PES(control="analytic")': lambda s: ux.PES(s, **TIME, **NOISE, control="analytic"),
    "NRES, ESSingle": lambda s: ux.NRES(s, **TIME, **NOISE),
    'NRES(noise="regenerated")': lambda s: ux.NRES(s, **TIME, **NOISE, noise="regenerated"),
    "GuidedES": lambda s: ux.GuidedES(s, **TIME, **NOISE),
    "Implicit": lambda s: ux.Implicit(s, **TIME),
}


def net():
    return ux.recurrent(ux.RNNCell(INPUTS, UNITS), ux.Dense(UNITS, 4))


def data(steps):
    inputs = jax.random.normal(jax.random.key(0), (steps, INPUTS))
    return ux.sequence(inputs, jnp.arange(steps) % 4)


def cpu(call, *args):
    begin = time.process_time()
    jax.block_until_ready(call(*args))
    return time.process_time() - begin


def measure(make, repeats):
    system = net()
    params = system.params(jax.random.key(1))
    estimator = make(system)
    steps = estimator.window
    rows = data(steps)
    state = estimator.init(jax.random.key(2), params)
    call = jax.jit(estimator.estimate).lower(params, state, rows).compile()
    inner = system.init(jax.random.key(3), params)
    ours = jax.jit(lambda state: jax.lax.scan(lambda s, _: estimator.estimate(params, s, rows), state, length=WINDOWS))
    bare = jax.jit(
        lambda inner: jax.lax.scan(
            lambda s, key: ux.unroll(system, params, s, rows, key), inner, jax.random.split(jax.random.key(4), WINDOWS)
        )
    )
    times = [(cpu(ours, state), cpu(bare, inner)) for _ in range(repeats + 1)][1:]  # the first compiles
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.dtype != KEY)
    return {
        "time": min(ours for ours, _ in times) / min(bare for _, bare in times),  # other processes only add to either
        "state_bytes": kept,
        "temporary_bytes": call.memory_analysis().temp_size_in_bytes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = {}
    for name, make in MAKERS.items():
        rows[name] = measure(make, options.repeats)
        print(
            "{:28} time {time:8.1f}  state {state_bytes:10,d} B  temporaries {temporary_bytes:10,d} B".format(
                name, **rows[name]
            )
        )
    if options.write:
        count = sum(leaf.size for leaf in jax.tree.leaves(net().params(jax.random.key(1))))
        config = {
            "params": count,
            "units": UNITS,
            "inputs": INPUTS,
            **TIME,
            **NOISE,
            "directions": 32,
            "jax": jax.__version__,
        }
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(
            json.dumps({"command": "NPROC=1 benchmarks/costs.py --write", "config": config, "rows": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
