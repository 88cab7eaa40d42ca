"""A user's own A and y, from arrays and from files: what does not fit is told by name and shape."""

import numpy as np
import pytest

from unrollax import InvalidArgument, StructureError
from unrollax.problems import from_arrays, load

A, Y = np.arange(24.0).reshape(6, 4), np.ones((20, 6))
HOLED = np.where(np.arange(24).reshape(6, 4) == 3, np.nan, A)

SHAPES = {
    r"y must be \[6\] or \[count, 6\], with an entry for a row of A float64\[6,4\], got float64\[20,5\]": (A, Y[:, :5]),
    r"y must be .* got float64\[6,20\]. Transpose it": (A, Y.T),
    r"x must have an answer for each of the 20 measurements, got float64\[3,4\]": (A, Y, np.ones((3, 4))),
    r"x must be \[4\] or \[count, 4\], .* got float64\[20,3\]": (A, Y, np.ones((20, 3))),
    r"A must be a matrix \[m, n\], got float64\[4\]": (A[0], Y),
    "A must hold numbers, got object": (None, Y),
    "A must hold as many numbers in each row, got: .* Fill the rows up": ([[1, 2], [3]], Y),
    "A must hold numbers, got .*'a'": (np.zeros((6, 4), dtype=[("a", float)]), Y),
}


@pytest.mark.parametrize("message", SHAPES)
def test_arrays_that_do_not_fit_are_told_by_shape(message):
    with pytest.raises(StructureError, match=f"from_arrays: {message}"):
        from_arrays(*SHAPES[message])


def test_numbers_that_are_not_finite_are_counted():
    with pytest.raises(InvalidArgument, match="from_arrays: A must hold finite numbers, got 1 that are not"):
        from_arrays(HOLED, Y)
    with pytest.raises(InvalidArgument, match="from_arrays: y must hold finite numbers, got 120 that are not"):
        from_arrays(A, Y * np.inf)


ARCHIVES = {
    "must hold A and y, got A. Add y": {"A": A},
    "must hold A and y, got nothing. Add A": {},
    "A must hold finite numbers, got 1 that are not": {"A": HOLED, "y": Y},
    r"noise of .* must be one real number, got float64\[3\]": {"A": A, "y": Y, "noise": np.ones(3)},
    "lam of .* must be one real number, got <U1": {"A": A, "y": Y, "lam": "a"},
    "must hold arrays of numbers, got: Object arrays cannot be loaded": {"A": np.array([{}], dtype=object), "y": Y},
}


@pytest.mark.parametrize("message", ARCHIVES)
def test_an_archive_with_something_else_in_it_is_told(message, tmp_path):
    np.savez(tmp_path / "own.npz", **ARCHIVES[message])
    with pytest.raises(InvalidArgument, match=message):
        load(tmp_path / "own.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and then nothing"])
def test_a_file_that_is_no_archive_is_told(content, tmp_path):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"load: .*own\.npz must be an .npz file, got one of another kind"):
        load(tmp_path / "own.npz")


def test_an_archive_with_damaged_numbers_is_told(tmp_path):
    np.savez_compressed(tmp_path / "own.npz", A=A, y=np.random.default_rng(0).normal(size=(20, 6)))
    whole = bytearray((tmp_path / "own.npz").read_bytes())
    whole[300:600] = bytes(300)
    (tmp_path / "own.npz").write_bytes(whole)
    with pytest.raises(InvalidArgument, match=r"load: .*own\.npz must hold arrays of numbers, got: "):
        load(tmp_path / "own.npz")


TABLES = {
    "A.csv must hold numbers with commas between, got: could not convert string 'a' .* column 1. Mend that line": "a,b\n1,2",
    r"A.csv must hold .* got: the number of columns changed from 4 to 2 at row 2. Mend": "1,2,3,4\n1,2",
    "A.csv must hold numbers with commas between, got an empty file. Fill it": " \n",
    "A must hold finite numbers, got 1 that are not": "1,nan\n3,4",
}


@pytest.mark.parametrize("message", TABLES)
def test_a_table_with_something_else_in_it_is_told(message, tmp_path):
    (tmp_path / "A.csv").write_text(TABLES[message])
    (tmp_path / "y.csv").write_text("1,2\n3,4\n")
    with pytest.raises(InvalidArgument, match=message):
        load(tmp_path)


def test_a_path_to_nothing_is_told(tmp_path):
    for path, says in (
        (tmp_path / "none.npz", "none.npz must be a file, got none"),
        (tmp_path / "none", "path must be an .npz file or a folder with A.csv and y.csv, got .*none"),
        (tmp_path, "must hold A and y, got nothing"),
        (None, "path must be the path of a file or a folder, got NoneType"),
        (3, "path must be the path of a file or a folder, got int"),
    ):
        with pytest.raises(InvalidArgument, match=f"load: .*{says}"):
            load(path)
