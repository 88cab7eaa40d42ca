"""Claim: a step for d = 100,000 parameters and 1,024 particles peaks at 1.5 x (pairs x d x 4 B) over base with stored noise.

With `noise="regenerated"` the claim is 0.6. A tanh RNN of 312 units, 512 pairs, window 10, float32, Adam. Two measures, both
in units of pairs x d x 4 B = 205 MB: what the compiled step takes (`memory_analysis()`: temporaries, arguments and outputs,
less what is donated), and what a process that does nothing else takes (the kernel's peak of resident memory over two
horizons, less what was resident when all was compiled and nothing allocated). Beside them a straightforward PES: all noise at
once, all particles under one `vmap`. Times are CPU seconds of a step, the mean over the second horizon, medians of
processes that ran in turn.

    .venv/bin/python benchmarks/evolution_memory.py [--rounds 3] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

UNITS, INPUTS, OUTPUTS = 312, 8, 160  # 312 * 312 + 312 * 8 + 160 = 100,000
PAIRS, WINDOW, HORIZON, STD = 512, 10, 50, 0.01
CASES = ("PES stored", "PES regenerated", "NRES stored", "NRES regenerated", "ES", "straightforward PES")


def problem():
    """The system, its parameters and one window of data."""
    import jax
    import jax.numpy as jnp

    import unrollax as ux

    def init(key, params):
        return jnp.zeros(UNITS)

    def step(params, state, x, key):
        state = jnp.tanh(params["w"] @ state + params["u"] @ x)
        return state, (params["o"] @ state[:OUTPUTS]) ** 2

    one, two, three, four = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": jax.random.normal(one, (UNITS, UNITS)) / UNITS**0.5,
        "u": jax.random.normal(two, (UNITS, INPUTS)),
        "o": jax.random.normal(three, (OUTPUTS,)) / OUTPUTS**0.5,
    }
    return ux.system(init=init, step=step), params, jax.random.normal(four, (WINDOW, INPUTS))


def straightforward(system):
    """PES as its paper writes it: everything for all particles at once; an estimator like all others."""
    import jax
    import jax.numpy as jnp

    import unrollax as ux

    class Straightforward:
        def init(self, key, params):
            twins = jnp.broadcast_to(system.init(key, params), (2, PAIRS, UNITS))
            return key, jnp.zeros((), jnp.int32), twins, jax.tree.map(lambda p: jnp.zeros((PAIRS, *p.shape)), params)

        def estimate(self, params, state, data):
            key, done, twins, total = state
            key, draw, run = jax.random.split(key, 3)
            parts = dict(zip(params, jax.random.split(draw, len(params)), strict=True))
            noise = {name: STD * jax.random.normal(parts[name], (PAIRS, *p.shape)) for name, p in params.items()}

            def particle(params, inner):
                inner, losses = ux.unroll(system, params, inner, data, run)
                return inner, losses.mean()

            plus = jax.tree.map(lambda p, e: p + e, params, noise)
            minus = jax.tree.map(lambda p, e: p - e, params, noise)
            twins = jnp.where(done % HORIZON == 0, 0.0, twins)
            total = jax.tree.map(lambda t, e: jnp.where(done % HORIZON == 0, 0.0, t) + e, total, noise)
            one, up = jax.vmap(particle)(plus, twins[0])
            two, down = jax.vmap(particle)(minus, twins[1])
            weights = (up - down) / (2 * STD**2 * PAIRS)
            grad = jax.tree.map(lambda t: jnp.tensordot(weights, t, 1), total)
            state = key, done + WINDOW, jnp.stack([one, two]), total
            return state, ux.Estimate((up + down).mean() / 2, grad)

    return Straightforward()


def estimator(case, system):
    import unrollax as ux

    if case == "straightforward PES":
        return straightforward(system)
    name, _, noise = case.partition(" ")
    options = {"std": STD, "window": WINDOW, "horizon": HORIZON, "pairs": PAIRS, "noise": noise or "stored"}
    return {"PES": ux.PES, "NRES": ux.NRES, "ES": ux.ES}[name](system, **options)


def status(field):
    """Return a line of this process's status in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def alone(case):
    """Measure one case in this process, and print it."""
    import jax
    import optax

    import unrollax as ux

    system, params, data = problem()
    training = ux.Training(estimator(case, system), optax.adam(1e-3))
    begin = jax.jit(training.init).lower(jax.random.key(1), params).compile()
    shapes = jax.eval_shape(training.init, jax.random.key(1), params)
    step = jax.jit(training.step, donate_argnums=0).lower(shapes, data).compile()
    key = jax.random.key(1)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of compilation
    base = status("VmRSS")
    state, times = begin(key, params), []
    for _ in range(2 * HORIZON // WINDOW):
        start = time.process_time()
        state, metrics = jax.block_until_ready(step(state, data))
        times.append(time.process_time() - start)
    unit = PAIRS * sum(p.size for p in params.values()) * 4
    analysis = step.memory_analysis()
    taken = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    row = {
        "case": case,
        "analysis": (taken - analysis.alias_size_in_bytes) / unit,
        "process": (status("VmHWM") - base) / unit,
        "seconds": statistics.mean(times[HORIZON // WINDOW :]),
        "loss": float(metrics.loss),
    }
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", choices=CASES, help="measure one case in this process")
    options = parser.parse_args()
    if options.alone:
        alone(options.alone)
        return
    rows = {case: [] for case in CASES}
    for _ in range(options.rounds):
        for case in CASES:
            command = [sys.executable, __file__, "--alone", case]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
            rows[case].append(json.loads(done.stdout))
    plain = statistics.median(row["seconds"] for row in rows["straightforward PES"])
    for case, found in rows.items():
        row = {"case": case, "analysis": found[0]["analysis"], "process": max(row["process"] for row in found)}
        row["seconds"] = statistics.median(row["seconds"] for row in found)
        row["ratio"] = row["seconds"] / plain
        text = "{case:20} compiled {analysis:5.2f}  process {process:5.2f}  CPU {seconds:6.2f} s  ratio {ratio:.2f}"
        print(json.dumps(row) if options.json else text.format(**row), flush=True)


if __name__ == "__main__":
    main()
