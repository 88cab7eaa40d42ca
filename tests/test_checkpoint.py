"""Parameters on disk: what was saved comes back to the bit, and damage is said."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import unrollax as ux


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


def nested():
    w = jax.random.normal(jax.random.key(0), (3, 2))
    return {
        "cell": Layer(w.astype(jnp.bfloat16), jnp.float16([1.5, -2.0])),
        "stack": [jnp.float32(0.1) * w.astype(jnp.float32), (w, jnp.zeros((0, 4)))],
        "count": jnp.int32(7),
        "mask": jnp.array([True, False]),
        "none": None,
    }


def same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.result_type(b)
        assert np.asarray(a).tobytes() == np.asarray(b, a.dtype).tobytes()
        assert a.shape == jnp.shape(b)


def test_nested_params_of_every_dtype_come_back_to_the_bit(tmp_path):
    ux.save_params(tmp_path / "p.safetensors", nested())
    same(ux.load_params(str(tmp_path / "p.safetensors"), like=nested()), nested())


DTYPES = "bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 complex64 bool"


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_a_dtype_comes_back(tmp_path, dtype):
    params = [jnp.arange(-2, 4).reshape(2, 3).astype(dtype)]
    ux.save_params(tmp_path / "p", params)
    same(ux.load_params(tmp_path / "p", like=params), params)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(10.0)[::2],
        np.arange(10.0)[::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(2.5, (3, 2)),
    ],
    ids=["transposed", "strided", "reversed", "fortran", "broadcast"],
)
def test_a_numpy_array_of_any_memory_layout_comes_back(tmp_path, array):
    ux.save_params(tmp_path / "p", {"a": array})
    np.testing.assert_array_equal(ux.load_params(tmp_path / "p", like={"a": array.astype(float)})["a"], array)


@pytest.mark.parametrize("x64", [False, True])
def test_python_and_numpy_numbers_come_back_at_either_precision(tmp_path, x64):
    with jax.enable_x64(x64):
        params = {"a": 0.1, "b": np.float64(0.1), "c": 3}
        ux.save_params(tmp_path / "p", params)
        same(ux.load_params(tmp_path / "p", like=params), params)


def test_a_tensor_is_named_by_the_slash_path_of_its_leaf(tmp_path):
    ux.save_params(tmp_path / "p.safetensors", nested())
    with safe_open(tmp_path / "p.safetensors", "np") as file:
        assert set(file.keys()) == {"cell/w", "cell/b", "stack/0", "stack/1/0", "stack/1/1", "count", "mask"}
        np.testing.assert_array_equal(file.get_tensor("stack/1/0"), nested()["stack"][1][0])
    ux.save_params(tmp_path / "one.safetensors", jnp.ones(2))
    with safe_open(tmp_path / "one.safetensors", "np") as file:
        assert list(file.keys()) == ["(root)"]


def test_two_leaves_of_one_path_are_refused_before_one_is_lost(tmp_path):
    with pytest.raises(ux.StructureError, match="a path of its own, got a/b twice"):
        ux.save_params(tmp_path / "p", {"a": {"b": 1.0}, "a/b": 2.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "p.safetensors"
    ux.save_params(path, {"w": jnp.ones(2)})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    if broken == "fsync":
        monkeypatch.setattr("os.fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        ux.save_params(path, {"w": jnp.zeros(2)})
    monkeypatch.undo()
    np.testing.assert_array_equal(ux.load_params(path, like={"w": jnp.zeros(2)})["w"], [1, 1])
    ux.save_params(path, {"w": jnp.zeros(2)})
    np.testing.assert_array_equal(ux.load_params(path, like={"w": jnp.zeros(2)})["w"], [0, 0])
    assert [each.name for each in tmp_path.iterdir()] == ["p.safetensors"]


def cut(data):
    return data[:-1]


def flip(data):
    return b"\xff" * 16 + data[16:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", lambda data: data + b"more"])
def test_a_damaged_file_is_said(tmp_path, damage):
    path = tmp_path / "p.safetensors"
    ux.save_params(path, nested())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ux.StructureError, match=r"p\.safetensors must be a whole safetensors file, got damage"):
        ux.load_params(path, like=nested())


def test_a_dtype_of_another_library_is_said(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "p").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ux.StructureError, match="dtypes that NumPy and JAX share, got F8_E5M2"):
        ux.load_params(tmp_path / "p", like={"w": jnp.zeros(1)})


@pytest.mark.parametrize(
    ("like", "says"),
    [
        ({"v": jnp.zeros(2)}, r"missing \['v'\], left over \['w'\]"),
        ({"w": jnp.zeros(2), "v": 0.0}, r"missing \['v'\], left over \[\]"),
        ({}, r"missing \[\], left over \['w'\]"),
        ({"w": jnp.zeros(3)}, r"leaf w must be float64\[3\], got float64\[2\]"),
        ({"w": jnp.zeros(2, jnp.float32)}, r"leaf w must be float32\[2\], got float64\[2\]"),
    ],
)
def test_params_of_another_structure_are_refused(tmp_path, like, says):
    ux.save_params(tmp_path / "p", {"w": jnp.ones(2)})
    with pytest.raises(ux.StructureError, match=f"load_params: .*{says}"):
        ux.load_params(tmp_path / "p", like=like)


def test_a_missing_file_and_a_missing_folder_are_the_systems_own_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        ux.load_params(tmp_path / "p", like=1.0)
    with pytest.raises(FileNotFoundError):
        ux.save_params(tmp_path / "nowhere" / "p", 1.0)
