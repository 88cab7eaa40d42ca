from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrollax import StructureError
from unrollax._tree import (
    all_finite,
    combine,
    describe,
    from_arrays,
    is_inexact,
    is_key,
    leaves_with_names,
    partition,
    strong,
    to_arrays,
    where,
)


class Pair(NamedTuple):
    first: object
    second: object


def a_tree():
    key = jax.random.key(3)
    return {
        "cell": {"wx": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(2, jnp.bfloat16) / 3},
        "pair": Pair(jnp.int32(7), None),
        "list": [jnp.array([True, False]), (jnp.float32(0.1), jnp.array(1 + 2j))],
        "key": key,
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
        "empty": {},
        "none": jnp.zeros((0, 3)),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        words = [np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf).tobytes() for leaf in (x, y)]
        assert words[0] == words[1]


def test_a_tree_comes_back_from_plain_arrays_to_the_bit():
    tree = a_tree()
    arrays = to_arrays(tree)
    assert all(type(array) is np.ndarray for array in arrays.values())
    same(from_arrays(jax.tree.map(jnp.zeros_like, tree), arrays), tree)


def test_plain_arrays_are_named_by_path():
    names = {"cell/wx", "cell/b", "pair/first", "list/0", "list/1/0", "list/1/1", "key", "keys", "none"}
    arrays = to_arrays(a_tree())
    assert set(arrays) == names
    assert arrays["key"].dtype == np.uint32
    assert arrays["keys"].shape == (2, 3, 4)
    assert set(to_arrays(jnp.ones(2))) == {"(root)"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("key"), r"missing \['key'\], left over \[\]"),
        (lambda a: a.update(extra=np.ones(1)), r"missing \[\], left over \['extra'\]"),
        (lambda a: a.update({"list/0": np.ones(3, bool)}), r"leaf list/0 must be bool\[2\], got bool\[3\]"),
        (lambda a: a.update({"cell/b": np.ones(2)}), r"leaf cell/b must be bfloat16\[2\], got float64\[2\]"),
        (lambda a: a.update(key=np.ones(4, np.uint32)), r"leaf key must be uint32\[2\], got uint32\[4\]"),
        (lambda a: a.update(keys=a["keys"][:1]), r"leaf keys must be uint32\[2,3,4\], got uint32\[1,3,4\]"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message):
    arrays = to_arrays(a_tree())
    change(arrays)
    with pytest.raises(StructureError, match=f"^Checkpoint: .*{message}"):
        from_arrays(a_tree(), arrays, owner="Checkpoint")


def test_leaves_are_named_by_path_and_a_lone_leaf_is_the_root():
    names = [name for name, _ in leaves_with_names({"a": [1, {"b": 2}], "c": Pair(3, None)})]
    assert names == ["['a'][0]", "['a'][1]['b']", "['c'].first"]
    assert leaves_with_names(5) == [("(root)", 5)]
    assert leaves_with_names(None) == []
    assert leaves_with_names({"a": (1, 2)}, is_leaf=lambda x: isinstance(x, tuple)) == [("['a']", (1, 2))]


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (jnp.zeros((3, 4), jnp.float32), "float32[3,4]"),
        (np.zeros(2, bool), "bool[2]"),
        (1, "int64[]"),
        (0.5, "float64[]"),
        (1j, "complex128[]"),
        (jnp.bfloat16(1), "bfloat16[]"),
        (jax.random.key(0), "key<fry>[]"),
        (jax.ShapeDtypeStruct((2, 3), np.int8), "int8[2,3]"),
        ("text", "str"),
        (test_a_tree_comes_back_from_plain_arrays_to_the_bit, "function"),
    ],
)
def test_a_leaf_is_described_by_dtype_and_shape(leaf, text):
    assert describe(leaf) == text


@pytest.mark.parametrize(
    ("leaf", "inexact"),
    [
        (1.0, True),
        (1j, True),
        (jnp.bfloat16(1), True),
        (1, False),
        (True, False),
        (jax.random.key(0), False),
        ("a", False),
    ],
)
def test_only_floating_numbers_are_inexact(leaf, inexact):
    assert is_inexact(leaf) is inexact


def test_a_partition_combines_to_the_tree_and_traces_its_numbers_only():
    tree = {
        "f": jnp.tanh,
        "n": 3,
        "w": jnp.ones(2),
        "s": "text",
        "none": None,
        "on": True,
        "np": np.float32(2),
        "k": jax.random.key(0),
    }
    arrays, rest = partition(tree)
    assert all(combine(arrays, rest)[name] is leaf for name, leaf in tree.items())
    assert [other for other in rest.others if other is not None] == [jnp.tanh, 3, True, "text"]
    doubled = combine(jax.jit(lambda a: [None if x is None else x for x in a])(arrays), rest)
    assert doubled["f"] is jnp.tanh
    assert doubled["s"] == "text"
    assert doubled["n"] == 3
    assert is_key(doubled["k"])


def test_what_is_not_traced_is_hashable_and_blind_to_numbers():
    first, second, third = ({"f": f, "w": w} for f, w in [(jnp.tanh, 1.0), (jnp.tanh, 2.0), (jnp.sin, 1.0)])
    assert hash(partition(first)[1]) == hash(partition(second)[1])
    assert partition(first)[1] == partition(second)[1] != partition(third)[1]


def test_strong_leaves_have_their_own_dtype_and_no_weak_type():
    tree = strong({"a": 1, "b": 0.5, "c": True, "d": jnp.float32(1), "k": jax.random.key(0), "n": None})
    assert {name: describe(leaf) for name, leaf in tree.items() if leaf is not None} == {
        "a": "int64[]", "b": "float64[]", "c": "bool[]", "d": "float32[]", "k": "key<fry>[]",
    }  # fmt: skip
    assert not any(leaf.weak_type for name, leaf in tree.items() if name in "abcd")


def test_where_chooses_by_leading_axes():
    keys = jax.random.split(jax.random.key(0), (2, 3))
    new = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 3)), "k": keys}
    old = {"a": jnp.zeros((2, 3, 4)), "b": jnp.zeros((2, 3)), "k": keys[::-1]}
    flag = jnp.array([[True, False, True], [False, False, True]])
    chosen = where(flag, new, old)
    np.testing.assert_array_equal(chosen["a"], np.repeat(np.asarray(flag)[..., None], 4, 2))
    np.testing.assert_array_equal(chosen["b"], flag)
    expected = np.where(flag[..., None], jax.random.key_data(keys), jax.random.key_data(keys[::-1]))
    np.testing.assert_array_equal(jax.random.key_data(chosen["k"]), expected)


@pytest.mark.parametrize(
    ("tree", "finite"),
    [
        ({"a": jnp.ones(3), "n": jnp.int32(1)}, True),
        ({"a": jnp.ones(3), "b": jnp.array([0.0, jnp.inf])}, False),
        ({"a": jnp.bfloat16(jnp.nan)}, False),
        ({"k": jax.random.key(0), "n": 1, "none": None}, True),
    ],
)
def test_all_finite_sees_every_floating_leaf(tree, finite):
    assert bool(all_finite(tree)) is finite
