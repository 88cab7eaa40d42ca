"""Progress on stderr: one live line on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from unrollax._train import Progress

PLAIN_EVERY = 5.0  # seconds between two plain lines


class StatusLine:
    """One line that changes on a terminal, plain lines now and then elsewhere; use it as a context manager."""

    def __init__(self, quiet: bool, first: str) -> None:
        self.quiet, self.first = quiet, first
        self.live = not quiet and sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self.shown = 0.0
        self.phases: set[str] = set()

    def __enter__(self) -> StatusLine:
        if self.live:
            from rich.console import Console
            from rich.status import Status

            self._status = Status(self.first, console=Console(stderr=True))
            self._status.start()
        else:
            self.print(self.first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._status.stop()

    def update(self, line: str, *, last: bool = False) -> None:
        """Show what goes on; where lines stay, what is new by its first word, every few seconds, and the last one."""
        phase = line.split()[0]
        if self.live:
            self._status.update(line)
        elif phase not in self.phases or time.monotonic() - self.shown > PLAIN_EVERY or last:
            self.shown = time.monotonic()
            self.phases.add(phase)
            self.print(line)

    def print(self, line: str) -> None:
        """Print a line that stays."""
        if self.quiet:
            return
        if self.live:
            self._status.console.print(line, style="dim", highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


class ProgressLine:
    """Show loss, gradient norm, steps per second and the time left; use it as a context manager."""

    def __init__(self, quiet: bool) -> None:
        self.line = StatusLine(quiet, "compiling ...")
        self.live = self.line.live
        self.compiled = False

    def __enter__(self) -> ProgressLine:
        self.line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.line.__exit__(kind, error, trace)

    def update(self, progress: Progress) -> None:
        """Show one block."""
        if not self.compiled:
            self.compiled = True
            self.line.print(f"compiled in {progress.compile_seconds:.1f} s")
        self.line.update(str(progress), last=progress.step == progress.end)
