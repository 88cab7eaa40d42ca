"""The run folder: what was run, where, what it said, and what came of it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from unrollax._errors import InvalidArgument

PACKAGES = ("unrollax", "jax", "jaxlib", "optax", "numpy")
# Nothing else is read.
VARIABLES = ("NPROC", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "JAX_ENABLE_X64", "XLA_FLAGS", "OMP_NUM_THREADS")


class RunFolder:
    """A folder with `run.toml`, `env.json`, `metrics.jsonl`, `params.safetensors` and `report.html`."""

    def __init__(self, path: Path) -> None:
        self._made = not path.exists()
        self.path = new_folder(path)
        self._records = os.open(path / "metrics.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @classmethod
    def numbered(cls, parent: Path, name: str) -> RunFolder:
        """Make the first free one of `parent/name-1`, `parent/name-2`, ...; two processes never get the same."""
        folder = cls(numbered_folder(parent, name))
        folder._made = True
        return folder

    def write_config(self, config: Mapping[str, Any], *notes: str) -> None:
        """Write `run.toml`, from which the run can be repeated, headed by notes as comments."""
        import tomli_w

        head = "".join(f"# {' '.join(note.split())}\n" for note in notes)
        (self.path / "run.toml").write_text(head + tomli_w.dumps(config), encoding="utf-8")

    def write_environment(self) -> dict[str, Any]:
        """Write `env.json`: versions, devices and the variables that change results, by a list of what is allowed."""
        environment = describe_environment()
        (self.path / "env.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
        return environment

    def record(self, **fields: Any) -> None:
        """Append one line to `metrics.jsonl` by a single write, so that a reader never sees half of it."""
        line = json.dumps({name: plain(item) for name, item in fields.items()}, allow_nan=False) + "\n"
        os.write(self._records, line.encode())

    def save(self, params: Any) -> None:
        """Write `params.safetensors`."""
        from unrollax._checkpoint import save_params  # brings JAX, which a refused folder need not wait for

        save_params(self.path / "params.safetensors", params)

    def discard(self) -> None:
        """Remove the folder of a run that never made an update, so that its name is free again; empty one that was there."""
        self.close()
        for file in self.path.iterdir():
            file.unlink()
        if self._made:
            self.path.rmdir()

    def close(self) -> None:
        """Close `metrics.jsonl`."""
        os.close(self._records)


def new_folder(path: Path) -> Path:
    """Make a folder, or take an empty one.

    Raises:
        InvalidArgument: it holds something.
    """
    if is_taken(path):
        raise InvalidArgument(f"run: out must be a new or empty folder, got {path}. Choose another, or remove it.")
    path.mkdir(parents=True, exist_ok=True)
    return path


def numbered_folder(parent: Path, name: str) -> Path:
    """Make the first free one of `parent/name-1`, `parent/name-2`, ...; two processes never get the same."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / f"{name}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return parent / f"{name}-{number}"


def is_taken(path: Path) -> bool:
    """Whether a path is there already and no empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _cores() -> int:
    """Return the cores that this process may use, on which results can depend in the last digit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plain(item: Any) -> Any:
    """Return a number as JSON has it: NaN and infinity, which it lacks, as strings."""
    if isinstance(item, (str, bool, int)) or item is None:
        return item
    number = float(item)
    return number if math.isfinite(number) else str(number)


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, by names with points between."""
    found: dict[str, Any] = {}
    for name, item in tables.items():
        found |= flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return found


def describe_environment() -> dict[str, Any]:
    """Return versions, devices, cores and the allowed environment variables."""
    import jax

    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "platform": {"system": platform.system(), "machine": platform.machine(), "cores": _cores()},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
