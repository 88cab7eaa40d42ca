import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux


@ux.value
class Line:
    slope: Any
    bias: Any = 0.0
    name: str = ux.static(default="line")
    bend: Callable = ux.static(default=jnp.square)

    def __post_init__(self):
        if not self.name:
            raise ux.InvalidArgument("Line: name must not be empty.")

    def at(self, x):
        return self.bend(self.slope * x + self.bias)


def wave(x):
    return jnp.sin(x)


decay = ux.system(init=lambda key, params: jnp.ones(()), step=lambda p, s, x, key: (p * s, p * s))
LINE = Line(2.0)


@pytest.mark.parametrize("field", ["slope", "name", "fresh"])
def test_a_value_is_frozen(field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(LINE, field, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(LINE, field)


def test_a_values_leaves_are_its_fields_without_the_static_ones():
    leaves, treedef = jax.tree.flatten(Line(1.0, {"a": 2.0, "b": None}))
    assert leaves == [1.0, 2.0]
    assert jax.tree.unflatten(treedef, leaves) == Line(1.0, {"a": 2.0, "b": None})


def test_the_path_of_a_leaf_names_its_field():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(LINE)[0]]
    assert paths == [".slope", ".bias"]


@pytest.mark.parametrize("change", [{"slope": 3.0}, {"bias": 1.0}, {"name": "other"}, {"bend": wave}])
def test_replace_makes_another_value_and_leaves_the_first(change):
    other = dataclasses.replace(LINE, **change)
    assert Line(2.0) == LINE != other
    assert all(getattr(other, name) == item for name, item in change.items())


def test_replace_validates_again():
    with pytest.raises(ux.InvalidArgument, match="name must not be empty"):
        dataclasses.replace(LINE, name="")


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (2.0, "2.0"),
        (None, "None"),
        ("text", "'text'"),
        (jnp.ones((2, 3), jnp.bfloat16), "bfloat16[2, 3]"),
        (np.zeros(4, np.int32), "int32[4]"),
        (np.float64(0.5), "np.float64(0.5)"),
        (jax.random.split(jax.random.key(0), 2), "key<fry>[2]"),
        (wave, "wave"),
        (jax.jit(wave), "wave"),
        (Line, "Line"),
        (Line(1.0, bend=wave), "Line(slope=1.0, bias=0.0, name='line', bend=wave)"),
    ],
)
def test_a_value_prints_arrays_by_dtype_and_shape_and_functions_by_name(item, shown):
    assert repr(Line(item, bend=wave)) == f"Line(slope={shown}, bias=0.0, name='line', bend=wave)"


def test_a_field_without_repr_is_not_printed():
    @ux.value
    class Quiet:
        loud: float
        hidden: float = dataclasses.field(default=1.0, repr=False)

    assert repr(Quiet(2.0)).endswith("Quiet(loud=2.0)")


def test_a_value_prints_on_one_line_inside_jit():
    shown = []
    jax.jit(lambda line: shown.append(repr(line)))(Line(jnp.ones(3)))
    assert shown[0].startswith("Line(slope=float64[3], bias=")


def test_an_estimator_prints_as_it_is_written():
    shown = repr(ux.PES(ux.clip_loss(decay, at=5.0), std=0.1, window=2, horizon=4))
    assert shown == (
        "PES(system=ClippedLoss(system=FunctionSystem(init=<lambda>, step=<lambda>), at=5.0), std=0.1, window=2, "
        "horizon=4, pairs=32, stagger=False, sampler=normal, chunk=None, shaping=None, control=None, noise='stored')"
    )


def test_a_value_rebuilt_with_other_numbers_does_not_retrace():
    traces = []

    @jax.jit
    def at(line, x):
        traces.append(line.name)
        return line.at(x)

    results = [float(at(Line(slope, bias), 1.0)) for slope, bias in [(1.0, 2.0), (3.0, 4.0), (5.0, 0.0)]]
    assert results == [9.0, 49.0, 25.0]
    assert traces == ["line"]
    assert float(at(Line(1.0, 2.0, "other", wave), 1.0)) == pytest.approx(np.sin(3.0))
    assert traces == ["line", "other"]


@pytest.mark.parametrize(
    ("make", "traced_anew"),
    [
        (lambda std: ux.PES(decay, std=std, window=2), False),
        (lambda std: ux.ES(ux.clip_loss(decay, at=10 * std), std=0.1, window=2), False),
        (lambda std: ux.NRES(ux.batched(decay, 2), std=std, window=2), False),
        (lambda std: ux.PES(decay, std=0.1, window=2, pairs=int(10 * std)), True),
    ],
)
def test_an_estimator_rebuilt_with_other_numbers_does_not_retrace(make, traced_anew):
    traces = []
    init = jax.jit(lambda estimator, key: (traces.append(1), estimator.init(key, 0.5))[1])
    for std in (0.1, 0.2, 0.4):
        init(make(std), jax.random.key(0))
    assert len(traces) == (3 if traced_anew else 1)


def test_a_value_goes_through_jit_vmap_and_grad():
    lines = Line(jnp.arange(3.0))
    assert jax.jit(lambda line: line)(Line(1.0)).name == "line"
    at = jax.vmap(Line.at, (Line(0, None), None))(lines, 2.0)
    np.testing.assert_array_equal(at, (np.arange(3.0) * 2) ** 2)
    slope = jax.grad(lambda line: line.at(3.0))(Line(2.0))
    assert (slope.slope, slope.bias, slope.name) == (36.0, 12.0, "line")


def test_static_values_are_equal_and_hash_alike():
    assert ux.BPTT(decay, horizon=3) == ux.BPTT(decay, horizon=3) != ux.BPTT(decay, horizon=4)
    assert len({ux.BPTT(decay, horizon=3), ux.BPTT(decay, horizon=3)}) == 1


def test_static_passes_its_options_to_the_field():
    @ux.value
    class Holder:
        items: tuple = ux.static(default_factory=tuple, kw_only=True)

    assert Holder().items == ()
    with pytest.raises(TypeError):
        Holder((1,))


@ux.value
class Curve:
    slope: Any
    bias: Any = 0.0
    name: str = ux.static(default="line")
    bend: Callable = ux.static(default=jnp.square)


def test_values_of_two_classes_have_structures_that_differ():
    """Else `jit` may run the program of one for the other."""
    first, second = jax.tree.structure(LINE), jax.tree.structure(Curve(2.0))
    assert first != second
    assert first == jax.tree.structure(Line(3.0))
    made = [jax.tree.structure(make(decay, std=0.1, window=2)) for make in (ux.ES, ux.PES, ux.NRES, ux.ESSingle)]
    assert not any(a == b for i, a in enumerate(made) for b in made[:i])
