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
from unrollax._types import Key, Params, State, Whole

AXIS = "examples"
SMALLEST = 8  # examples of a share: fewer are too little work for a core
WORK = 150_000_000  # steps x examples x parameters of a window: about 10 ms; at a third of it the split gains nothing


def use_cores(count: int | None = None) -> int:
    """Let `batched` systems be split over cores; call it before anything else runs on JAX.

    From then on, JAX shows `count` CPU devices. `BPTT` and `TBPTT` deal the examples of a `batched` system that offers
    `unroll` (recurrent networks do) to as many of them as divide their number and get at least 8 each, where the window is
    work enough; all else runs as before. Gradients are the same up to rounding. With an accelerator nothing is split.
    `unrollax train` does this by itself.

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


def over_cores(run: Whole) -> Whole:
    """Return `run(params, state, data, keys) -> (state, losses)` with its examples dealt to the cores, where that pays.

    States have leaves `[examples, ...]`, data, keys and losses `[steps, examples, ...]`.
    """
    whole, first, second = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    specs = (whole, first, second, second)

    def dealt(params: Params, state: State, data: Any, keys: Key) -> tuple[State, jax.Array]:
        steps, examples = keys.shape[:2]
        count = shares(steps, examples, sum(leaf.size for leaf in jax.tree.leaves(params)))
        if count == 1:
            return run(params, state, data, keys)
        mesh = jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
        many = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(first, second), check_vma=False)
        out: tuple[State, jax.Array] = many(params, state, data, keys)
        return out

    return dealt


def shares(steps: int, examples: int, numbers: int) -> int:
    """Return into how many shares a batch is split: 1 unless `use_cores` was called, all is on this CPU, and it pays.

    The shares meet once a window, to add up their gradients, which must not take longer than they save.
    """
    count = int(jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined]
    alone = jax.default_backend() == "cpu" and jax.process_count() == 1
    inside = jax.sharding.get_abstract_mesh().shape  # of the caller's own shard_map, or mesh
    if count < 2 or not alone or inside or steps * examples * numbers < WORK:
        return 1
    fair = (share for share in range(1, count + 1) if examples % share == 0 and examples // share >= SMALLEST)
    return max(fair, default=1)
