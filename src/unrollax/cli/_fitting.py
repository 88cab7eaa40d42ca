"""What the training of `train` and of `unfold` share: progress on stderr, and how it ends early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from unrollax._errors import Diverged
from unrollax._run import RunFolder
from unrollax._train import Progress
from unrollax.cli._failure import DIVERGED, INTERRUPTED, Failure, explain
from unrollax.cli._progress import ProgressLine


class Training(Protocol):
    """A run that trains in a folder; whoever observes it sets `last`, and updates `line`."""

    folder: RunFolder
    quiet: bool
    last: Progress | None
    line: ProgressLine


def train_in(run: Training, target: str, train: Callable[[], Any]) -> Failure | None:
    """Train, and return why it ended early, if it did.

    Raises:
        Exception: whatever `train` raises before the first update was seen; the folder is gone then.
    """
    try:
        with ProgressLine(run.quiet) as run.line:
            train()
    except Diverged as error:
        return Failure(f"{error} {_kept(run)}", DIVERGED)
    except KeyboardInterrupt:
        return Failure(f"interrupted. {_kept(run)}", INTERRUPTED)
    except Exception as error:
        if run.last is None:
            run.folder.discard()
            raise
        message, code = explain(target, error)
        return Failure(f"{message}\n{_kept(run)}", code)
    return None


def params_of(progress: Progress) -> Any:
    """Return a copy of the parameters, whose buffers are used again."""
    return jax.tree.map(lambda leaf: np.array(leaf), progress.state.params)


def _kept(run: Training) -> str:
    return f"The parameters of {f'update {run.last.step}' if run.last else 'the start'} are in {run.folder.path}."
