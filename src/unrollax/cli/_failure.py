"""How a command ends that can't go on: one message, an exit code, and of the user's files only the user's frames."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, NoReturn

import typer

from unrollax._errors import InvalidArgument, StructureError

USAGE, SYSTEM, DIVERGED, INTERRUPTED = 2, 3, 4, 130  # exit codes


class Failure(NamedTuple):
    """Why a command ended early, and with which exit code."""

    message: str
    code: int


def fail(message: str) -> NoReturn:
    """End with a message on stderr and the exit code of wrong usage."""
    raise typer.Exit(say(Failure(message, USAGE)))


def say(failure: Failure) -> int:
    """Print a failure on stderr and return its exit code."""
    typer.echo(f"unrollax: {failure.message}", err=True)
    return failure.code


def explain(target: str, error: Exception) -> Failure:
    """Cut an error's traceback to the user's files; an error that never passed them is ours and is shown whole."""
    import traceback

    from unrollax.cli._config import is_file_target  # brings pydantic, which help need not wait for

    if isinstance(error, InvalidArgument):
        return Failure(str(error), USAGE)
    if isinstance(error, StructureError):
        return Failure(str(error), SYSTEM)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if is_file_target(target) and (frames or (isinstance(error, SyntaxError) and error.filename)):
        says = "".join(traceback.format_exception_only(error)).partition("\n----")[0]  # then JAX speaks of its frames
        return Failure(f"{target} raised\n{''.join(traceback.format_list(frames))}{says}".rstrip(), SYSTEM)
    if isinstance(error, OSError) and error.strerror:
        return Failure(f"can't write {error.filename or 'the run folder'}: {error.strerror}.", 1)
    raise error


def slug(target: str) -> str:
    """Return a target's name as part of a folder's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(target).name.replace(".py", "")).strip("-")


def _is_users(filename: str) -> bool:
    """Whether a file is neither ours, nor Python's, nor an installed package's."""
    import sysconfig

    path = Path(filename).resolve()
    installed = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    others = [Path(__file__).parents[1], *map(Path, installed)]
    return path.is_file() and not any(path.is_relative_to(other.resolve()) for other in others)
