"""The command line. Nothing here imports JAX before the arguments are known to be right."""

from __future__ import annotations

import gc
import os
import sys

CORES = "JAX_NUM_CPU_DEVICES"  # read by JAX when it is imported


def main() -> None:
    """Run the `unrollax` command."""
    gc.disable()  # imports make no garbage, and looking for it takes a quarter of the start; a command enables it again
    try:
        from unrollax.cli._app import app
    except ImportError as error:
        if error.name not in ("typer", "rich", "pydantic", "tomli_w"):
            raise
        sys.exit(f"unrollax: the command line needs {error.name}. Install it with: pip install 'unrollax[cli]'")
    _use_cores()
    app(prog_name="unrollax")


def _use_cores() -> None:
    """Do what `unrollax.use_cores` does, without importing JAX, unless the user has said how many devices there are."""
    if CORES in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ[CORES] = os.environ.get("NPROC", str(cores))
