"""Claim: exact forward mode costs a pass for each parameter, reverse mode one pass, at a memory that grows with the steps.

A tanh RNN of n units on 4 inputs with a scalar loss: P = n * n + 5 n numbers in params and S = n in the state; float32.
One gradient over a whole horizon of T steps, by backpropagation (`BPTT`, which keeps all steps, or about the square root of
their number), by forward mode (`jax.jacfwd`: P tangents at once, the loss summed on the way) and by RTRL in windows of 10
steps in both of its modes. First P grows at T = 200, up to where a method becomes slow, then T at n = 16. Time is also in
units of one pass forward without a derivative, by medians of CPU time with the programs in turn; memory is the temporaries of
the compiled program. Slopes are of log against log, by least squares over the three largest sizes of a method.

    NPROC=1 .venv/bin/python benchmarks/forward_reverse.py [--repeats 5] [--json] [--plot docs/forward_reverse.svg]
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import unrollax as ux

INPUTS, WINDOW = 4, 10
UNITS, STEPS = (8, 16, 32, 64, 128, 256), 200  # as P grows
WIDTH, HORIZONS = 16, (100, 1000, 10_000)  # as T grows
PASS = "one pass"
LARGEST = {"forward, all tangents": 64, "RTRL, forward": 64, "RTRL, reverse": 128}  # units
STYLES = {  # colours that any colour vision can tell apart, and a marker and a dash each
    "reverse, all kept": ("#0072b2", "o", "-"),
    "reverse, sqrt": ("#56b4e9", "s", "--"),
    "forward, all tangents": ("#d55e00", "^", "-"),
    "RTRL, forward": ("#e69f00", "v", "--"),
    "RTRL, reverse": ("#009e73", "D", "-."),
}


def problem(units, steps):
    def init(key, params):
        return jnp.zeros(units)

    def step(params, state, x, key):
        state = jnp.tanh(params["w"] @ state + params["u"] @ x + params["b"])
        return state, (state**2).mean()

    one, two, three = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(one, (units, units)) / units**0.5,
        "u": jax.random.normal(two, (units, INPUTS)),
        "b": jnp.zeros(units),
    }
    return ux.system(init=init, step=step), params, jax.random.normal(three, (steps, INPUTS))


def programs(system, steps):
    """Return functions of the parameters and the data: the loss, and its gradient in several ways."""
    key = jax.random.key(1)

    def loss(params, data):
        return ux.unroll(system, params, system.init(key, params), data, key)[1].mean()

    def whole(estimator):
        return lambda params, data: estimator.estimate(params, estimator.init(key, params), data)[1].grad

    def online(mode, params, data):
        rtrl = ux.RTRL(system, WINDOW, steps, mode=mode)
        windows = data.reshape(steps // WINDOW, WINDOW, INPUTS)

        def body(carry, window):
            state, total = carry
            state, estimate = rtrl.estimate(params, state, window)
            return (state, jax.tree.map(jnp.add, total, estimate.grad)), None

        (_, total), _ = jax.lax.scan(body, (rtrl.init(key, params), jax.tree.map(jnp.zeros_like, params)), windows)
        return jax.tree.map(lambda leaf: leaf * WINDOW / steps, total)

    def summed(params, data):
        """Return the same loss without a step loss, and the tangents of one, kept for each step."""

        def body(carry, x):
            state, total = carry
            state, value = system.step(params, state, x, key)
            return (state, total + value / steps), None

        return jax.lax.scan(body, (system.init(key, params), jnp.zeros(())), data)[0][1]

    return {
        PASS: loss,
        "reverse, all kept": whole(ux.BPTT(system, steps)),
        "reverse, sqrt": whole(ux.BPTT(system, steps, memory="sqrt")),
        "forward, all tangents": jax.jacfwd(summed),
        "RTRL, forward": functools.partial(online, "forward"),
        "RTRL, reverse": functools.partial(online, "reverse"),
    }


def seconds(run, params, data, least=0.02):
    """Return the CPU time of one call, and the mean of as many as take at least `least` seconds."""
    start, count = time.process_time(), 0
    while count == 0 or time.process_time() - start < least:
        jax.block_until_ready(run(params, data))
        count += 1
    return (time.process_time() - start) / count


def measure(units, steps, repeats):
    system, params, data = problem(units, steps)
    runs = {name: run for name, run in programs(system, steps).items() if units <= LARGEST.get(name, units)}
    compiled = {name: jax.jit(run).lower(params, data).compile() for name, run in runs.items()}
    exact = compiled["reverse, all kept"](params, data)
    for name, run in compiled.items():
        if name != PASS:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), run(params, data), exact)
    times = {name: [] for name in compiled}
    for _ in range(repeats):
        for name, run in compiled.items():
            times[name].append(seconds(run, params, data))
    took = {name: statistics.median(values) for name, values in times.items()}
    for name, run in compiled.items():
        yield {
            "program": name,
            "parameters": sum(p.size for p in params.values()),
            "states": units,
            "steps": steps,
            "ms": 1e3 * took[name],
            "passes": took[name] / took[PASS],
            "bytes": run.memory_analysis().temp_size_in_bytes,
        }


def curve(rows, name, x, y):
    """Return what a program took, `y` against `x`."""
    return np.array([(row[x], row[y]) for row in rows if row["program"] == name], float).T


def slope(rows, name, x, y):
    """Return the exponent of a power law through the three largest sizes."""
    across, up = np.log(curve(rows, name, x, y)[:, -3:])
    return float(np.polyfit(across, up, 1)[0])


def draw(wide, long, path):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"svg.hashsalt": "unrollax", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
    panels = (
        (left, wide, "parameters", "passes", f"time in passes forward, T = {STEPS}", "parameters P"),
        (right, long, "steps", "bytes", f"temporaries in bytes, P = {WIDTH * (WIDTH + INPUTS + 1)}", "steps T"),
    )
    for axes, rows, x, y, title, label in panels:
        for name, (colour, marker, dash) in STYLES.items():
            axes.loglog(*curve(rows, name, x, y), dash, color=colour, marker=marker, markersize=4, label=name)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(label)
        axes.grid(alpha=0.25, which="major")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture to FILE (.svg or .png)")
    options = parser.parse_args()
    text = "P {parameters:5} T {steps:6}  {program:22} {ms:10.3f} ms  {passes:8.2f} passes  {bytes:12,} bytes"
    wide, long = [], []
    for rows, settings in ((wide, [(n, STEPS) for n in UNITS]), (long, [(WIDTH, steps) for steps in HORIZONS])):
        for setting in settings:
            for row in measure(*setting, options.repeats):
                rows.append(row)
                print(json.dumps(row) if options.json else text.format(**row), flush=True)
    for name in (PASS, *STYLES):
        exponents = {
            "time_by_parameters": slope(wide, name, "parameters", "ms"),
            "passes_by_parameters": slope(wide, name, "parameters", "passes"),
            "bytes_by_parameters": slope(wide, name, "parameters", "bytes"),
            "time_by_steps": slope(long, name, "steps", "ms"),
            "bytes_by_steps": slope(long, name, "steps", "bytes"),
        }
        line = "  ".join(f"{what.replace('_', ' ')} {exponent:5.2f}" for what, exponent in exponents.items())
        print(json.dumps({"slopes": name, **exponents}) if options.json else f"{name:22} slopes: {line}")
    if options.plot:
        draw(wide, long, options.plot)


if __name__ == "__main__":
    main()
