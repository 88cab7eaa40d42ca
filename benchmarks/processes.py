"""What crosses the network when the pairs of an evolution estimator are spread over processes, and what it costs.

Two schemes, for `NRES` on a tanh RNN with d = 100,000 parameters, 128 pairs, window 10, its noise drawn again from keys:

- `gradient`: each process runs its own pairs and weighs their noise; one all-reduce of d numbers gives all the gradient.
  Twice: the estimator of the library as it is with its pairs sharded (`sharded`), and one estimator for each process, the
  estimates averaged (`averaged`), which runs its pairs in chunks that stay in cache;
- `losses`: all processes gather 2 losses a pair, and each of them draws the noise of all pairs and forms the gradient.

Each runs at 1, 2 and 4 processes of this machine, one thread each, over loopback (`jax.distributed`, gloo). What crosses
is read in the compiled programs, the gradients are compared with those of one process, and a window's time is the median:
on the clock, and of the first process's CPU. Last, the model of `process_model.py` with what was measured here.

    .venv/bin/python benchmarks/processes.py [--windows 15] [--json] [--plot docs/scale.svg]
"""

import argparse
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evolution_memory import problem
from process_model import SIZE, describe, draw

PAIRS, CHUNK = 128, 4  # as in process_schemes.py, which imports jax
PROCESSES = (1, 2, 4)
MANY = 4_000_000  # numbers, from which the bandwidth is found
SCHEMES = ("sharded", "averaged", "losses")
LIMIT = 300  # seconds, after which a process is ended


def crossing(text):
    """Return the bytes of the results of a program's collectives, by their kind."""
    found = {}
    for result, kind in re.findall(r"= (.+?) (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text):
        for letters, bits, shape in re.findall(r"\b(pred|[a-z]+)(\d*)\[([\d,]*)\]", result):
            width = 1 if letters == "pred" else int(bits) // 8
            found[kind] = found.get(kind, 0) + width * math.prod(int(n) for n in shape.split(",") if n)
    return found


def worker(index, count, port, windows, file):
    """Run all schemes as one of several processes; the first of them writes what it saw."""
    os.environ |= {"NPROC": "1", "JAX_PLATFORMS": "cpu"}
    if not socket.gethostbyname(socket.gethostname()).startswith("127."):
        raise SystemExit("processes.py: the name of this machine must resolve to loopback, where gloo listens.")
    import jax
    import numpy as np
    import process_schemes

    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        place = f"127.0.0.1:{port}"
        jax.distributed.initialize(
            place, count, index, coordinator_bind_address=place, initialization_timeout=60, shutdown_timeout_seconds=60
        )
    mesh = jax.make_mesh((count,), ("pairs",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    system, params, data = problem()
    params, data = jax.jit(lambda: (params, data), out_shardings=whole)()
    found = {"processes": count, "network": network(mesh, windows), "draw": drawing()}
    arrays = {}
    for name in SCHEMES:
        run, state = getattr(process_schemes, name)(mesh, system, params)
        run = run.lower(params, state, data).compile()
        times, busy, grads = [], [], []
        for number in range(windows + 1):
            start, began = time.perf_counter(), time.process_time()
            state, grad = jax.block_until_ready(run(params, state, data))
            times.append(time.perf_counter() - start)
            busy.append(time.process_time() - began)
            if number < 3:
                grads.append(np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(grad)]))
        arrays[name] = np.stack(grads)
        found[name] = {
            "seconds": statistics.median(times[1:]),
            "cpu": statistics.median(busy[1:]),
            "crossing": crossing(run.as_text()) if count > 1 else {},
        }
    if index == 0:
        np.savez(f"{file}.npz", **arrays)
        Path(file).write_text(json.dumps(found))
    if count > 1:
        jax.distributed.shutdown()


def network(mesh, repeats):
    """Return the time of an all-reduce of one number, and of many: the least of some, as others can only slow it down."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    spread, took = PartitionSpec("pairs"), []
    for size in (1, MANY):
        run = jax.shard_map(
            lambda x: jax.lax.psum(x[0], "pairs"), mesh=mesh, in_specs=spread, out_specs=PartitionSpec()
        )
        place = jax.sharding.NamedSharding(mesh, spread)
        given = jax.jit(lambda size=size: jnp.ones((mesh.size, size)), out_shardings=place)()
        times, run = [], jax.jit(run)
        for _ in range(3 * repeats):
            start = time.perf_counter()
            jax.block_until_ready(run(given))
            times.append(time.perf_counter() - start)
        took.append(min(times))
    return took


def drawing():
    """Return the time to draw one number and weigh it."""
    import jax
    import jax.numpy as jnp

    import unrollax as ux

    @jax.jit
    def run(seeds):
        return jnp.ones(CHUNK) @ jax.vmap(lambda seed: ux.normal(seed, (SIZE,), jnp.float32))(seeds)

    seeds, times = jax.random.split(jax.random.key(0), CHUNK), []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(run(seeds))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / CHUNK / SIZE


def measure(windows):
    """Run each number of processes; return what was seen, with the distance of each gradient from one process's."""
    import numpy as np

    rows, exact = [], {}
    for count in PROCESSES:
        with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            file = str(Path(folder) / "found")
            command = [sys.executable, __file__, "--windows", str(windows), "--worker"]
            started = [subprocess.Popen([*command, f"{i},{count},{port},{file}"]) for i in range(count)]
            try:
                codes = [process.wait(LIMIT) for process in started]
            finally:
                for process in started:
                    process.kill()
            if any(codes):
                raise SystemExit(f"processes.py: {count} processes ended with {codes}.")
            row = json.loads(Path(file).read_text())
            arrays = dict(np.load(f"{file}.npz"))
        for name, grads in arrays.items():
            first = exact.setdefault(name, grads)
            row[name]["apart"] = float(np.abs(grads - first).max() / np.abs(first).max())
        rows.append(row)
    return rows


def report(rows, as_json):
    """Print what was seen, and the model with these constants; return them."""
    text = "{processes} processes  {scheme:9} {seconds:.4f} s  CPU {cpu:.4f} s  efficiency {efficiency:.2f} (CPU {work:.2f})"
    text += "  apart {apart:.1e}  {crossing}"
    for row in rows:
        for name in SCHEMES:
            seen, one = row[name], rows[0][name]
            many = row["processes"]
            shares = {"efficiency": one["seconds"] / seen["seconds"] / many, "work": one["cpu"] / seen["cpu"] / many}
            out = {"processes": many, "scheme": name, **seen, **shares}
            print(json.dumps(out) if as_json else text.format(**out))
    small, large = rows[1]["network"]
    constants = {
        "pair": rows[0]["averaged"]["cpu"] / PAIRS,
        "number": rows[0]["draw"],
        "latency": small,
        "bandwidth": 4 * MANY / (large - small),  # of two processes each sends what there is, once
    }
    print(json.dumps(constants) if as_json else " ".join(f"{name} {value:.3g}" for name, value in constants.items()))
    return constants


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the model to FILE (.svg or .png)")
    parser.add_argument("--worker", help="be one of the processes: index,count,port,file")
    options = parser.parse_args()
    if options.worker:
        index, count, port, file = options.worker.split(",")
        worker(int(index), int(count), int(port), options.windows, file)
        return
    constants = report(measure(options.windows), options.json)
    if not options.json:
        describe(constants)
    if options.plot:
        draw(constants, options.plot)


if __name__ == "__main__":
    main()
