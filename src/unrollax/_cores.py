"""A batch over the cores of a CPU.

XLA runs the steps of a recurrence one after another, and a step of a small network is too little work for two cores. Two
halves of the batch are enough for them: JAX takes each core for a device, and each device takes its share of the examples.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._tree import is_key
from unrollax._types import Key, Params, State, Whole

AXIS = "examples"
SMALLEST = 8  # examples of a share: fewer are too little work for a core
WORK = 150_000_000  # steps x examples x parameters of a window: about 10 ms; at a third of it the split gains nothing


def use_cores(count: int | None = None) -> int:
    """Let `batched` systems be split over cores; call it before anything else runs on JAX.

    From then on, JAX shows `count` CPU devices. `BPTT` and `TBPTT` deal the examples of a `batched` system that offers
    `unroll` (recurrent networks do) to all of them, where their number divides that of the examples, each gets at least 8,
    and the window is work enough; all else runs as before. Gradients are the same up to rounding. With an accelerator
    nothing is split. `unrollax train` does this by itself.

    `fit` takes arrays wherever they are, and gives back such as JAX would make itself. In a loop of your own under `jax.jit`,
    leave arrays where JAX puts them: what a split window returns lies on all cores, and JAX refuses to mix that with what
    `jax.device_put(x, device)` has tied to one; `jax.device_get` frees either.

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
        if not is_split(steps, examples, sum(leaf.size for leaf in jax.tree.leaves(params))):
            return run(params, state, data, keys)
        # one mesh whatever the batch: JAX refuses arrays of one in a program on another
        mesh = jax.make_mesh((cores(),), (AXIS,), axis_types=(AxisType.Auto,))
        many = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(first, second), check_vma=False)
        out: tuple[State, jax.Array] = many(params, state, data, keys)
        return out

    return dealt


def cores() -> int:
    """Return over how many cores batches are split: 1 unless `use_cores` was called and all is on this CPU."""
    alone = jax.default_backend() == "cpu" and jax.process_count() == 1
    return max(1, int(jax.config.jax_num_cpu_devices)) if alone else 1  # type: ignore[attr-defined]


def is_split(steps: int, examples: int, numbers: int) -> bool:
    """Whether a batch is split over the cores: into equal shares, and where it pays.

    The shares meet once a window, to add up their gradients, which must not take longer than they save.
    """
    inside = jax.sharding.get_abstract_mesh().shape  # of the caller's own shard_map, or mesh
    count = cores()
    fair = examples % count == 0 and examples // count >= SMALLEST
    return count > 1 and fair and not inside and steps * examples * numbers >= WORK


def freed(tree: Any) -> Any:
    """Return a tree with arrays that are tied to no core: those that are, tied to one or spread over all, are copied.

    JAX ties what a program over many devices returns to these, and refuses to mix it with what is tied to others.
    """
    return jax.tree.map(_free, tree) if cores() > 1 else tree


def _free(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not leaf.committed:
        return leaf
    if len(leaf.sharding.device_set) not in (1, cores()):
        return leaf  # laid out by the user
    if is_key(leaf):
        return jax.random.wrap_key_data(_free(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return jnp.array(np.asarray(leaf), leaf.dtype)
