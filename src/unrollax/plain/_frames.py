"""Where in somebody's code an operation comes from, and what is assigned there."""

from __future__ import annotations

import ast
import functools
import linecache
from pathlib import Path
from typing import Any

import jax
import jaxlib

from unrollax.plain._program import Frame

_LIBRARIES = tuple(str(Path(str(module.__file__)).parent) for module in (jax, jaxlib))
_OURS = str(Path(__file__).parent)


def frames_of(source_info: Any) -> tuple[Frame, ...]:
    """Return the lines that led to an operation, from the traced function inwards, without those of JAX."""
    traceback = getattr(source_info, "traceback", None)
    frames: list[Frame] = []
    for frame in traceback.frames if traceback is not None else ():
        if frame.file_name.startswith(_OURS):  # all that is outside of it called for the source
            break
        if not frame.file_name.startswith(_LIBRARIES):
            frames.append(Frame(frame.file_name, frame.function_name, frame.line_num))
    return tuple(reversed(frames))


def describe(frames: tuple[Frame, ...]) -> str:
    """Return `shrinkage.py:12 (in shrink)` for the innermost line."""
    if not frames:
        return "an unknown line"
    last = frames[-1]
    return f"{Path(last.file).name}:{last.line} (in {last.function})"


def assigned(frames: tuple[Frame, ...]) -> tuple[tuple[Frame, int], str] | None:
    """Return the outermost statement on the way that gives a value one name, and this name."""
    for depth, frame in enumerate(frames):
        target = _targets(frame.file).get(frame.line)
        if target:
            statement, name = target
            return (frame._replace(line=statement), depth), name
    return None


@functools.lru_cache(maxsize=256)
def _targets(file: str) -> dict[int, tuple[int, str]]:
    """Return, for each line of `name = ...`, where the statement starts and the name."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    found: dict[int, tuple[int, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target: ast.AST = node.targets[0]
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and not _holds_code(node):
            found.update(
                dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), (node.lineno, target.id))
            )
    return found


def _holds_code(node: ast.AST) -> bool:
    """Whether a statement defines a function, whose lines are none of its value's."""
    return any(isinstance(each, ast.Lambda) for each in ast.walk(node))


def inside_call(site: tuple[Frame, ...], frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """Return the lines of an operation within a call.

    What a call traced before is kept by JAX with the lines of that time, so they only count where they start with the call's.
    """
    return frames if frames[: len(site)] == site else site
