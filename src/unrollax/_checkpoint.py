"""Parameters on disk: safetensors, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unrollax._errors import StructureError
from unrollax._tree import from_arrays, to_arrays
from unrollax._types import Params

# safetensors' names of dtypes; its own reader for NumPy lacks bfloat16.
DTYPES: dict[str, Any] = {
    "BF16": jnp.bfloat16,
    "BOOL": np.bool_,
    "C64": np.complex64,
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def save_params(path: str | os.PathLike[str], params: Params) -> None:
    """Write parameters to a safetensors file, one tensor a leaf, named by its path (`cell/wx`).

    The file is replaced in one step: a reader never sees half of it, and a full disk leaves the old one.

    Args:
        path: the file to write.
        params: a pytree of arrays.

    Raises:
        OSError: the file can't be written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_params(folder + "/p.safetensors", {"w": jnp.ones(2)})
        ...     load_params(folder + "/p.safetensors", like={"w": jnp.zeros(2)})
        {'w': Array([1., 1.], dtype=float32)}
    """
    from safetensors.numpy import save

    path = Path(path)
    arrays = {name: np.asarray(array, order="C") for name, array in to_arrays(params).items()}  # it reads raw memory
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(save(arrays))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_params(path: str | os.PathLike[str], *, like: Params) -> Any:
    """Read parameters that `save_params` wrote.

    Args:
        path: the file.
        like: parameters of the same structure, shapes and dtypes.

    Raises:
        FileNotFoundError: there is no such file.
        StructureError: the file is damaged, or its leaves are others than those of `like`.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_params(folder + "/p.safetensors", [jnp.arange(3), {"b": 0.5}])
        ...     load_params(folder + "/p.safetensors", like=[jnp.zeros(3, int), {"b": 0.0}])
        [Array([0, 1, 2], dtype=int32), {'b': Array(0.5, dtype=float32)}]
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(Path(path).read_bytes()))
    except SafetensorError as error:
        raise StructureError(f"load_params: {path} must be a whole safetensors file, got damage: {error}.") from error
    unknown = sorted({tensor["dtype"] for tensor in tensors.values()} - set(DTYPES))
    if unknown:
        raise StructureError(
            f"load_params: {path} must hold dtypes that NumPy and JAX share, got {', '.join(unknown)}."
        )
    arrays = {
        name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in tensors.items()
    }
    return from_arrays(like, arrays, owner="load_params")
