"""A batch over the cores of a CPU.

XLA runs the steps of a recurrence one after another, and a step of a small network is too little work for two cores. Two
halves of the batch are enough for them: JAX takes each core for a device, and each device takes its share of the examples.
"""

from __future__ import annotations

import os
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument

AXIS = "examples"


def use_cores(count: int | None = None) -> int:
    """Let `batched` systems be split over cores; call it before anything else runs on JAX.

    From then on, JAX shows `count` CPU devices. `BPTT` and `TBPTT` give each an equal share of the examples of a `batched`
    system that offers `unroll` (recurrent networks do), where count divides their number; all else runs as before. Gradients
    are the same up to rounding. With an accelerator nothing is split.

    Args:
        count: cores; `None` for all that the process may use.

    Returns:
        The number of cores.

    Raises:
        InvalidArgument: count is no positive whole number, or JAX has run something already.

    Example:
        >>> import subprocess, sys
        >>> code = "import unrollax as ux; ux.use_cores(2); import jax; print(jax.device_count())"
        >>> subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        '2'
    """
    count = available() if count is None else count
    check_counts("use_cores", count=count)
    try:
        jax.config.update("jax_num_cpu_devices", int(count))
    except RuntimeError as error:
        raise InvalidArgument(
            f"use_cores: must be called before JAX runs anything, got a call after that ({error}). Call it right after "
            "import unrollax."
        ) from error
    return int(count)


def available() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares(examples: int) -> int:
    """Return into how many shares a batch is split: 1 unless `use_cores` was called, and all is on this CPU."""
    count = int(jax.config.jax_num_cpu_devices)
    alone = jax.default_backend() == "cpu" and jax.process_count() == 1 and jax.device_count() == count
    inside = jax.sharding.get_abstract_mesh().shape  # of the caller's own shard_map, or mesh
    return count if count > 1 and alone and examples % count == 0 and not inside else 1


def over_cores(run: Any, examples: int) -> Any:
    """Return `run(params, state, data, keys) -> (state, losses)` with its examples split.

    States have leaves `[examples, ...]`, data, keys and losses `[steps, examples, ...]`.
    """
    count = shares(examples)
    if count == 1:
        return run
    whole, first, second = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    mesh = jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,))
    specs = (whole, first, second, second)
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(first, second), check_vma=False)
