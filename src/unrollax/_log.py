"""Observers of `fit` that write: one line a block to a file, or what TensorBoard draws."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from unrollax._check import POSITIVE, check_number
from unrollax._errors import InvalidArgument
from unrollax._run import plain
from unrollax._train import Progress
from unrollax.diagnosis import Watched


class Monitor(Protocol):
    """Anything that has named numbers to log, such as a `FlowMonitor`."""

    def scalars(self) -> dict[str, float]:
        """Return them as they are now."""
        ...


def scalars_of(progress: Progress) -> dict[str, float]:
    """Return the means over a block as named numbers: loss, gradient norm, and what the estimator's info has to say."""
    metrics, info = progress.metrics, progress.metrics.info
    told = {
        "loss": float(metrics.loss.mean()),
        "grad_norm": float(metrics.grad_norm.mean()),
        "updates_per_second": progress.done / max(progress.seconds, 1e-9),
    }
    if isinstance(info, Watched):
        known = info.to_dict()
        leaves = known.pop("leaves")
        halves = not np.isnan(info.cosine).all()
        told |= {name: known[name] for name in known if halves or name == "nonfinite"}
        told |= {f"grad_norm/{name}": norm for name, norm in leaves.items()}
    elif hasattr(info, "nonfinite"):
        told["nonfinite"] = float(np.mean(info.nonfinite))
    return told


class JSONLines:
    """An `observe` for `fit` that appends one line of JSON a block: `step`, `seconds`, and means over its updates.

    Lines have `loss`, `grad_norm` and `nonfinite`; with `watch`, also `cosine`, `noise`, `signal`, `noise_scale` and the
    norms by leaf, as `grad_norm/path`. NaN and infinity, which JSON lacks, are strings. A line is one write, so that a
    reader never sees half of it. A file that is there is continued.

    Args:
        path: the file; folders above it are made.
        monitors: objects with `.scalars()`, such as `FlowMonitor`, that are called before this one.

    Example:
        >>> import jax, optax, pathlib, tempfile, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: 1.0, step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
        >>> with ux.JSONLines(path) as log:
        ...     run = ux.fit(ux.BPTT(decay, 3), optax.sgd(0.1), 0.5, None, key=jax.random.key(0), steps=200, observe=log)
        >>> import json
        >>> [json.loads(line)["step"] for line in path.read_text().splitlines()]
        [100, 200]
    """

    def __init__(self, path: str | os.PathLike[str], *, monitors: Iterable[Monitor] = ()) -> None:
        self.path, self.monitors = Path(path), _checked("JSONLines", monitors)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, progress: Progress) -> None:
        """Write one line."""
        if self._file is None:
            raise InvalidArgument(f"JSONLines: the file must be open, got {self.path} after close(). Make another one.")
        told = {"step": progress.step, "seconds": progress.seconds, **_all(progress, self.monitors)}
        line = json.dumps({name: plain(item) for name, item in told.items()}, allow_nan=False) + "\n"
        os.write(self._file, line.encode())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> JSONLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorBoard:
    """An `observe` for `fit` that writes for TensorBoard: one point a block and curve, the mean over its updates.

    Curves are `loss`, `grad_norm`, `updates_per_second` and `nonfinite`; with `watch` also `cosine`, `noise`, `signal`,
    `noise_scale` (of the mean noise and the mean signal) and the norms by leaf, as `grad_norm/path`; and those of `monitors`.
    Needs the extra `tensorboard`, which is small; TensorBoard itself is needed to look at the curves only:
    `tensorboard --logdir logs`.

    Args:
        folder: where to write; each run has one of its own.
        monitors: objects with `.scalars()`, such as `FlowMonitor`, that are called before this one.
        flush: seconds after which what was written can be seen, at the latest; writing goes on beside the training.

    Raises:
        InvalidArgument: the extra is not installed, flush is no positive number, or a monitor has no scalars.

    Example:
        >>> import jax, jax.numpy as jnp, optax, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> def train():
        ...     estimator = ux.watch(ux.PES(decay, std=0.1, window=2, horizon=8))
        ...     monitor = ux.FlowMonitor(decay, None, key=jax.random.key(1), horizon=8)
        ...     with ux.TensorBoard("logs/first", monitors=[monitor]) as board:
        ...         observe = ux.observers(print, monitor, board)
        ...         return ux.fit(
        ...             estimator, optax.adam(1e-3), 0.5, None, key=jax.random.key(0), steps=1000, observe=observe
        ...         )
        >>> train()  # doctest: +SKIP
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, monitors: Iterable[Monitor] = (), flush: float = 10.0
    ) -> None:
        check_number("TensorBoard", "flush", flush, POSITIVE, used=True)
        self.folder, self.monitors, self.flush = Path(folder), _checked("TensorBoard", monitors), flush
        self._writer = _writer(str(self.folder), flush)

    def __call__(self, progress: Progress) -> None:
        """Write one point of each curve."""
        for name, number in _all(progress, self.monitors).items():
            self._writer.add_scalar(name, number, progress.step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _all(progress: Progress, monitors: tuple[Monitor, ...]) -> dict[str, float]:
    told = scalars_of(progress)
    for monitor in monitors:
        told |= monitor.scalars()
    return told


def _checked(owner: str, monitors: Iterable[Monitor]) -> tuple[Monitor, ...]:
    kept = tuple(monitors) if isinstance(monitors, Iterable) else (monitors,)
    for monitor in kept:
        if not callable(getattr(monitor, "scalars", None)):
            raise InvalidArgument(
                f"{owner}: each of monitors must have scalars(), got {type(monitor).__name__}. Pass a list such as "
                "[FlowMonitor(...)]."
            )
    return kept


def _writer(folder: str, flush: float) -> Any:
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            f"TensorBoard: {error.name} must be installed, got no such module. Install it with: "
            "pip install 'unrollax[tensorboard]', or log with unrollax.JSONLines."
        ) from error
    return SummaryWriter(folder, flush_secs=flush)  # its own flush() leaves behind what still waits in its queue
