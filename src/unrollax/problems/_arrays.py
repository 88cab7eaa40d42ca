"""A user's own A and y, from arrays or from files."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import NOT_NEGATIVE, check_number
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe, is_inexact
from unrollax._types import Key
from unrollax._value import value
from unrollax.problems._problem import Problem


@value
class Arrays:
    """Given measurements, drawn at random; made by `from_arrays` or `load`.

    Attributes:
        A: the matrix that all problems share, or an operator.
        y: all measurements, `[count, m]`.
        x: their answers, `[count, n]`, or `None`.
        noise: the standard deviation of the noise, as far as known.
        lam: the weight of the regulariser, for algorithms that read it.
    """

    A: Any
    y: jax.Array
    x: Any = None
    noise: Any = 0.0
    lam: Any = 0.0

    def draw(self, key: Key) -> tuple[jax.Array, Any]:
        """Return one of the measurements, `[m]`, and its answer, `[n]` or `None`."""
        row = jax.random.randint(key, (), 0, self.y.shape[0])
        return self.y[row], None if self.x is None else self.x[row]

    def whole(self, own: tuple[jax.Array, Any]) -> Problem:
        """Return the problem of what `draw` gave."""
        return Problem(self.A, *own, self.noise, self.lam)


def from_arrays(A: Any, y: Any, x: Any = None, *, noise: float = 0.0, lam: float = 0.0) -> Arrays:
    """Make problems of your own measurements y = A x + noise e; each draw takes one of them at random.

    Args:
        A: a matrix `[m, n]`, real or complex, or a linear operator with `mv(x)` and `transpose()`.
        y: one measurement `[m]`, or one a row, `[count, m]`. For an operator, `count` comes first.
        x: the answers, `[n]` or `[count, n]`, to train on. Without them, give what trains an error of your own, such as the
            residual `lambda x, problem: ((problem.A @ x - problem.y) ** 2).mean()`.
        noise: standard deviation of the noise, which TISTA, OAMP and LMMSE need.
        lam: weight of the regulariser, for algorithms that read it.

    Raises:
        StructureError: the shapes don't fit, or something holds no numbers.
        InvalidArgument: a number is not finite, or noise or lam is negative.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from unrollax.problems import from_arrays
        >>> problems = from_arrays(np.eye(3), np.ones((20, 3)), np.ones((20, 3)))
        >>> problems.whole(problems.draw(jax.random.key(0))).y.shape
        (3,)
    """
    owner = "from_arrays"
    check_number(owner, "noise", noise, NOT_NEGATIVE, used=True)
    check_number(owner, "lam", lam, NOT_NEGATIVE, used=True)
    y = _numbers(owner, "y", y)
    x = None if x is None else _numbers(owner, "x", x)
    if not hasattr(A, "mv"):
        A = _numbers(owner, "A", A)
        if A.ndim != 2:
            raise StructureError(
                f"{owner}: A must be a matrix [m, n], got {describe(A)}. Pass two axes, or an operator."
            )
        y = _rows(owner, "y", y, A.shape[0], f"a row of A {describe(A)}")
        x = x if x is None else _rows(owner, "x", x, A.shape[1], f"a column of A {describe(A)}")
    if x is not None and x.shape[0] != y.shape[0]:
        raise StructureError(
            f"{owner}: x must have an answer for each of the {y.shape[0]} measurements, got {describe(x)}. "
            "Drop what has none."
        )
    return Arrays(A, y, x, noise, lam)


def load(path: str | Path) -> Arrays:
    """Load your own A and y, and x if it is there: see `from_arrays`.

    Args:
        path: an `.npz` file with arrays named A, y and perhaps x, noise and lam; or a folder with A.csv, y.csv and perhaps
            x.csv, of numbers with commas between: a row of A a line, a measurement a line, an answer a line.

    Raises:
        InvalidArgument: there is no such file, it is of another kind, or something in it is missing or no number.
        StructureError: the shapes don't fit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from unrollax.problems import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/mine.npz", A=np.eye(3), y=np.ones((20, 3)))
        ...     load(f"{folder}/mine.npz")
        Arrays(A=float32[3, 3], y=float32[20, 3], x=None, noise=0.0, lam=0.0)
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgument(f"load: path must be the path of a file or a folder, got {describe(path)}. Pass one.")
    path = Path(path)
    found = _npz(path) if path.suffix == ".npz" else _folder(path)
    for name in ("A", "y"):
        if name not in found:
            held = ", ".join(sorted(found)) or "nothing"
            raise InvalidArgument(f"load: {path} must hold A and y, got {held}. Add {name}, by that name.")
    scalars = {name: _scalar(path, name, found[name]) for name in ("noise", "lam") if name in found}
    return from_arrays(found["A"], found["y"], found.get("x"), **scalars)


def _numbers(owner: str, name: str, got: Any) -> jax.Array:
    """Return an array of finite floating numbers, whole ones turned to such; raise if it is none."""
    try:
        plain = np.asarray(got)
    except ValueError as error:
        raise StructureError(
            f"{owner}: {name} must hold as many numbers in each row, got: {_said(error)}. Fill the rows up."
        ) from error
    if plain.dtype.kind not in "biufcV" or plain.dtype.names or plain.size == 0:
        raise StructureError(f"{owner}: {name} must hold numbers, got {describe(plain)}. Pass an array of them.")
    array = jnp.asarray(got)
    array = array if is_inexact(array) else array.astype(jnp.result_type(float))
    wrong = int((~np.isfinite(np.asarray(array))).sum())
    if wrong:
        raise InvalidArgument(
            f"{owner}: {name} must hold finite numbers, got {wrong} that are not. Leave these rows out."
        )
    return array


def _rows(owner: str, name: str, got: jax.Array, size: int, of: str) -> jax.Array:
    """Return one vector, or one a row, as rows; raise unless they have `size` entries."""
    rows = got[None] if got.ndim == 1 else got
    if rows.ndim != 2 or rows.shape[1] != size:
        hint = " Transpose it." if rows.ndim == 2 and rows.shape[0] == size else ""
        raise StructureError(
            f"{owner}: {name} must be [{size}] or [count, {size}], with an entry for {of}, got {describe(got)}."
            + (hint or " Check which of the two is meant.")
        )
    return rows


def _npz(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidArgument(f"load: {path} must be a file, got none. Check the path.")
    if not zipfile.is_zipfile(path):
        raise InvalidArgument(f"load: {path} must be an .npz file, got one of another kind. Write it with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidArgument(
            f"load: {path} must hold arrays of numbers, got: {_said(error)}. Write it with numpy.savez."
        ) from error


def _folder(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise InvalidArgument(
            f"load: path must be an .npz file or a folder with A.csv and y.csv, got {path}. Pass either."
        )
    return {name: _csv(path / f"{name}.csv") for name in ("A", "y", "x") if (path / f"{name}.csv").is_file()}


def _csv(path: Path) -> np.ndarray:
    if not path.read_bytes().strip():
        raise InvalidArgument(f"load: {path} must hold numbers with commas between, got an empty file. Fill it.")
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise InvalidArgument(
            f"load: {path} must hold numbers with commas between, got: {_said(error)}. Mend that line."
        ) from error


def _scalar(path: Path, name: str, got: np.ndarray) -> float:
    """Return noise or lam of a file as a number."""
    if got.size != 1 or got.dtype.kind not in "biuf":
        raise InvalidArgument(f"load: {name} of {path} must be one real number, got {describe(got)}. Save it as one.")
    return float(got.reshape(()))


def _said(error: Exception) -> str:
    """Return what an error of NumPy says, without its advice."""
    return str(error).partition(";")[0].rstrip(".")
