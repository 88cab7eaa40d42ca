"""Parameters on disk: safetensors, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unrollax._errors import StructureError
from unrollax._tree import from_arrays, to_arrays
from unrollax._types import Params


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
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(save(to_arrays(params)))
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
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(Path(path).read_bytes())
    except SafetensorError as error:
        raise StructureError(f"load_params: {path} must be a whole safetensors file, got damage: {error}.") from error
    return from_arrays(like, arrays, owner="load_params")
