"""`unrollax export`: the numbers of a trained unfolding, for where there is no JAX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer

from unrollax._checkpoint import load_params
from unrollax._export import export_csv, export_npz, export_numpy
from unrollax._unfolded import Unfolding
from unrollax.cli._failure import explain, say
from unrollax.cli._unfold import load
from unrollax.cli._unfold_config import UnfoldConfig

NAMES = {"csv": "coefficients.csv", "npz": "coefficients.npz", "numpy": "coefficients.py"}


def export_run(config: UnfoldConfig, folder: Path, to: str, out: Path | None) -> int:
    """Write a run's trained numbers and return the exit code."""
    try:
        unfolding = load(config)
        params = load_params(folder / "params.safetensors", like=unfolding.params)
        path = out or folder / NAMES[to]
        for written in _write(unfolding, params, to, path):
            typer.echo(written)
    except Exception as error:
        return say(explain(config.target, error))
    return 0


def _write(unfolding: Unfolding, params: object, to: str, path: Path) -> list[Path]:
    """Write one format; return the files."""
    net = unfolding.net
    if to == "csv":
        path.write_text(export_csv(params, net.horizon), encoding="utf-8")
        return [path]
    if to == "npz":
        _savez(path, export_npz(params, net.horizon))
        return [path]
    source = export_numpy(net, params, answer=getattr(unfolding.algorithm, "answer", None))
    path.write_text(source.text, encoding="utf-8")
    if not source.arrays:
        return [path]
    _savez(path.with_suffix(".npz"), source.arrays)
    return [path, path.with_suffix(".npz")]


def _savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, allow_pickle=False, **arrays)
