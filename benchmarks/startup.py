"""Claim: `unrollax --help` and usage errors answer within 0.4 s of CPU time; `import unrollax` adds at most 0.3 s to jax.

Each command runs in a process of its own, interleaved; the figures are medians of CPU time, with compiled bytecode in place.

    .venv/bin/python benchmarks/startup.py [--repeats 7]
"""

import argparse
import resource
import statistics
import subprocess
import sys

EAGER = "import unrollax; [getattr(unrollax, name) for name in unrollax.__all__]"
COMMANDS = {
    "--help": ["-m", "unrollax", "--help"],
    "train --help": ["-m", "unrollax", "train", "--help"],
    "unknown recipe": ["-m", "unrollax", "train", "sequential-digit"],
    "unknown option": ["-m", "unrollax", "train", "sequential-digits", "--set", "row=true"],
    "import jax": ["-c", "import jax"],
    "import jax, unrollax and every name": ["-c", "import jax; " + EAGER],
    "import jax, optax": ["-c", "import jax, optax"],
}


def cpu_seconds(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    times = {name: [] for name in COMMANDS}
    for _ in range(parser.parse_args().repeats + 1):
        for name, arguments in COMMANDS.items():
            times[name].append(cpu_seconds(arguments))
    for name, seconds in times.items():
        print(f"{name:38} {statistics.median(seconds[1:]):.2f} s")


if __name__ == "__main__":
    main()
