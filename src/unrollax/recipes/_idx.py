"""Images in IDX files, as MNIST and Fashion-MNIST come.

Needs the standard library alone, so that a wrong folder is answered before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

PARTS = ("train-images", "t10k-images")  # to learn from, and to test on
ENDS = ("-idx3-ubyte", ".idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte.gz")
IMAGES, LABELS = 2051, 2049  # magic numbers: two zeros, 8 for unsigned bytes, and the number of axes
HEADER = 16  # bytes

Shape = tuple[int, int, int]


class Fault(ValueError):
    """A folder or file that can't be used: what must be, what is, and what to do."""

    def __init__(self, must: str, got: str, remedy: str) -> None:
        super().__init__(f"{must}, got {got}. {remedy}")


def shapes(folder: str | Path) -> tuple[Shape, Shape]:
    """Return the sizes of the training and test images by the headers of their files: images, rows, columns.

    Raises:
        Fault: there is no such folder, a file is missing or is no file of images, or the two differ in rows or columns.
    """
    paths = [find(folder, part) for part in PARTS]
    train, test = map(shape, paths)
    if train[1:] != test[1:]:
        raise Fault(
            f"{paths[1]} must have images of {train[1]} x {train[2]} pixels as {paths[0].name} has",
            f"{test[1]} x {test[2]}",
            "Take both files from one data set.",
        )
    return train, test


def find(folder: str | Path, part: str) -> Path:
    """Return the file of a part, the one that is not compressed if there are both.

    Raises:
        Fault: there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise Fault(f"{folder} must be a folder", got, f"Give the one that holds {part}{ENDS[0]}.")
    for end in ENDS:
        if (folder / (part + end)).is_file():
            return folder / (part + end)
    there = sorted(path.name for path in folder.iterdir())
    got = f"{len(there)} others ({', '.join(there[:4])}{', ...' if there[4:] else ''})" if there else "an empty folder"
    raise Fault(f"{folder} must hold {part}{ENDS[0]} or {part}{ENDS[2]}", got, "Put the files of images there.")


def shape(path: Path) -> Shape:
    """Return images, rows and columns by a file's header.

    Raises:
        Fault: it can't be read, is no IDX file of images, or, where it is not compressed, is not as long as it says.
    """
    with _reading(path) as file:
        found = _header(path, file.read(HEADER))
    if not _compressed(path):
        _check_length(path, found, path.stat().st_size - HEADER)
    return found


def read(path: Path) -> tuple[Shape, bytes]:
    """Return a file's images, rows and columns, and all of its pixels.

    Raises:
        Fault: as for `shape`, or it is damaged further on.
    """
    with _reading(path) as file:
        found = _header(path, file.read(HEADER))
        pixels = file.read()
    _check_length(path, found, len(pixels))
    return found, pixels


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if it is compressed, whatever its name; what goes wrong becomes a fault."""
    try:
        with gzip.open(path) if _compressed(path) else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise Fault(
            f"{path} must be whole", "compressed data that are damaged or end early", "Fetch it again."
        ) from error
    except OSError as error:
        raise Fault(f"{path} must be readable", f"{error.strerror}", "Mend that.") from error


def _compressed(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError:
        return False  # whoever reads on will say why


def _header(path: Path, start: bytes) -> Shape:
    if len(start) < HEADER:
        raise Fault(
            f"{path} must start with a header of {HEADER} bytes", f"{len(start)} bytes in all", "Fetch it again."
        )
    magic, images, rows, columns = struct.unpack(">4I", start)
    if magic != IMAGES:
        must = f"{path} must start with {IMAGES}, the magic number of IDX images of unsigned bytes"
        raise Fault(must, *_other(magic, start))
    if not images * rows * columns:
        got = f"{images} images of {rows} x {columns} pixels"
        raise Fault(f"{path} must hold images", got, "Put the file of images in its place.")
    return images, rows, columns


def _other(magic: int, start: bytes) -> tuple[str, str]:
    """Say what a file is that is none of images."""
    remedy = "Put the file of images in its place."
    if magic == LABELS:
        return f"{LABELS}, which is of labels", remedy
    if magic >> 16 == 0 and 8 <= magic >> 8 <= 14:
        kind = "unsigned bytes" if magic >> 8 == 8 else "another type"
        return f"{magic}, which is of {kind} along {magic & 255} axes", remedy
    return f"{start[:4]!r}, which is no IDX file", "Fetch it again; a page that says why there is no file may lie here."


def _check_length(path: Path, found: Shape, length: int) -> None:
    images, rows, columns = found
    expected = images * rows * columns
    if length != expected:
        says = f"{path} must hold {expected} pixels after its header ({images} images of {rows} x {columns})"
        raise Fault(says, str(length), "It ends early: fetch it again." if length < expected else "Fetch it again.")
