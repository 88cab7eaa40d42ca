"""The public names: listed once, documented, annotated, and loaded only when they are used."""

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from importlib import resources

import pytest

import unrollax as ux
import unrollax.testing

SPACES = ("problems", "prox", "solvers", "theory")  # names that are reached through a package, `ux.prox.soft`
FLAT = [name for name in ux.__all__ if name not in SPACES]
NAMES = FLAT + [f"{space}.{name}" for space in SPACES for name in importlib.import_module(f"unrollax.{space}").__all__]
STUB = ast.parse((resources.files("unrollax") / "__init__.pyi").read_text(encoding="utf-8"))
LISTED = [(node.module, alias.name, alias.asname) for node in STUB.body for alias in node.names]


def named(name):
    """The thing that a name stands for."""
    return functools.reduce(getattr, name.split("."), ux)


def is_used_by_its_example(thing):
    """Errors are caught, protocols are written and NamedTuples are returned; all else a user calls."""
    if not inspect.isclass(thing):
        return inspect.isfunction(thing)
    is_tuple, is_protocol = issubclass(thing, tuple), getattr(thing, "_is_protocol", False)
    return not (issubclass(thing, Exception) or is_tuple or is_protocol)


def own_members(cls):
    """The public methods and properties that a class and its bases in unrollax define."""
    for base in cls.__mro__:
        if base.__module__.startswith("unrollax"):
            for name, member in vars(base).items():
                member = getattr(member, "__func__", getattr(member, "fget", member))
                is_method = inspect.isfunction(member) and name not in getattr(cls, "__dataclass_fields__", {})
                if is_method and not name.startswith("_"):
                    yield name, member


def functions_of(thing):
    return [(thing.__name__, thing)] if inspect.isfunction(thing) else list(own_members(thing))


def test_the_stub_lists_each_name_once_with_its_own_name():
    assert all(name == alias for _, name, alias in LISTED)
    assert sorted(name for _, name, _ in LISTED) == sorted(ux.__all__)
    assert {name for module, name, _ in LISTED if module is None} == set(SPACES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("space", SPACES)
def test_a_package_of_names_is_documented_and_lists_each_once(space):
    module = getattr(ux, space)
    assert re.match(r"[A-Z].*\.", module.__doc__)
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, name, _ in LISTED if module])
def test_a_name_is_that_of_the_module_the_stub_says(module, name):
    assert getattr(ux, name) is getattr(importlib.import_module(f"unrollax.{module}"), name)
    assert not name.startswith("_")


def test_dir_is_sorted_and_an_unknown_name_is_an_attribute_error():
    assert sorted(ux.__all__) == ux.__all__
    assert dir(ux) == ux.__all__
    with pytest.raises(AttributeError, match="no_such_name"):
        ux.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_documented_and_what_one_calls_has_an_example(name):
    thing = named(name)
    text = inspect.getdoc(thing)
    assert text
    assert re.match(r"[A-Z`].*[.:;]", text), "one sentence says what it is"
    referred = re.search(r"; (?:see|made by) `(\w+)`", text.partition("\n\n")[0])
    if referred:  # the class behind a function, or the other way round
        space = sys.modules[thing.__module__.rpartition(".")[0]] if "." in name else ux
        text = inspect.getdoc(getattr(space, referred[1]))
    if is_used_by_its_example(thing):
        assert "Example:\n    >>> " in text


@pytest.mark.parametrize("name", [name for name in NAMES if getattr(named(name), "_fields", None)])
def test_a_result_says_what_each_of_its_fields_is(name):
    text = inspect.getdoc(named(name))
    for field in named(name)._fields:
        assert re.search(rf"^    {field}: ", text, re.M) or ("Attributes:" not in text and field in text.lower()), field


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_its_methods_are_fully_annotated(name):
    for owner, function in functions_of(named(name)):
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, owner
        for parameter in signature.parameters.values():
            assert parameter.name in ("self", "cls") or parameter.annotation is not parameter.empty, (owner, parameter)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_method_is_documented(name):
    for owner, function in functions_of(named(name)):
        assert inspect.getdoc(function), owner


def test_the_kit_is_public_and_documents_every_check():
    table = set(re.findall(r"^\| `(check_\w+)` \|", unrollax.testing.__doc__, re.M))
    assert table == {name for name in vars(unrollax.testing) if re.fullmatch(r"check_\w+", name)}
    assert all(inspect.getdoc(getattr(unrollax.testing, name)) for name in table)


def test_type_checkers_are_told_to_look():
    assert (resources.files("unrollax") / "py.typed").is_file()


def test_importing_it_imports_no_jax_until_a_name_is_used():
    script = (
        "import sys, unrollax\n"
        "assert not {'jax', 'optax', 'numpy', 'typer'} & set(sys.modules)\n"
        "unrollax.InvalidArgument, dir(unrollax)\n"
        "assert 'jax' not in sys.modules\n"
        "from unrollax import PES\n"
        "assert 'jax' in sys.modules\n"
        "assert not {'typer', 'pydantic', 'matplotlib', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
