"""Progress on stderr: one live line on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from unrollax._train import Progress

PLAIN_EVERY = 5.0  # seconds between two plain lines


class ProgressLine:
    """Show loss, gradient norm, steps per second and the time left; use it as a context manager."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self.compiled = False
        self.shown = 0.0

    def __enter__(self) -> ProgressLine:
        if self.live:
            from rich.console import Console
            from rich.status import Status

            self._status = Status("compiling ...", console=Console(stderr=True))
            self._status.start()
        else:
            self._print("compiling ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._status.stop()

    def update(self, progress: Progress) -> None:
        """Show one block."""
        if not self.compiled:
            self.compiled = True
            self._print(f"compiled in {progress.compile_seconds:.1f} s")
        line = str(progress)
        if self.live:
            self._status.update(line)
        elif time.monotonic() - self.shown > PLAIN_EVERY or progress.step == progress.end:
            self.shown = time.monotonic()
            self._print(line)

    def _print(self, line: str) -> None:
        if self.quiet:
            return
        if self.live:
            self._status.console.print(line, style="dim", highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
