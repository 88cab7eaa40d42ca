"""How a tree of arrays is read from arguments and put together again, in source."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax

from unrollax._errors import StructureError
from unrollax._tree import is_numeric


def names_of(function: Callable[..., Any], count: int) -> list[str]:
    """Return the names of a function's positional arguments, or `a0`, `a1`, ... where it doesn't say."""
    try:
        found = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        found = []
    names = [name for name in found[:count] if name not in ("np", "math", "arrays")]
    return names if len(names) == count and len(set(names)) == count else [f"a{place}" for place in range(count)]


def is_array(leaf: Any) -> bool:
    """Whether a leaf is, or stands for, an array."""
    return is_numeric(leaf) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))


def reads(name: str, tree: Any) -> list[tuple[str, str, Any]]:
    """Return (expression, name, leaf) for the leaves of an argument: (`theta["step"]`, `theta_step`, leaf)."""
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        text, words = name, [name]
        for key in path:
            text += _access(key, name)
            words.append(str(_key(key)))
        found.append((text, "_".join(words), leaf))
    return found


def _key(key: Any) -> Any:
    return getattr(key, "name", getattr(key, "key", getattr(key, "idx", None)))


def _access(key: Any, name: str) -> str:
    if isinstance(key, jax.tree_util.GetAttrKey):
        return f".{key.name}"
    if isinstance(key, (jax.tree_util.DictKey, jax.tree_util.SequenceKey)):
        return f"[{_quoted(_key(key))}]"
    raise StructureError(
        f"numpy_source: every leaf must have a name, got {key} in argument {name}. "
        "Register the class with jax.tree_util.register_pytree_with_keys, or make it a unrollax.value."
    )


def _quoted(item: Any) -> str:
    if isinstance(item, (str, int)):
        return repr(item) if not isinstance(item, str) or '"' in item or "\\" in item else f'"{item}"'
    raise StructureError(f"numpy_source: the keys of dicts must be strings or whole numbers, got {item!r}. Use names.")


class Rebuild:
    """Writes trees of expressions, and the small classes that hold what was an object."""

    def __init__(self) -> None:
        self.classes: dict[str, tuple[str, ...]] = {}

    def text(self, tree: Any, leaves: list[str]) -> str:
        """Return the source of a tree, with these expressions for its leaves."""
        waiting = iter(leaves)
        return self._text(tree, lambda: next(waiting))

    def _text(self, tree: Any, take: Callable[[], str]) -> str:
        if tree is None:
            return "None"
        if isinstance(tree, Mapping):
            items = {key: self._text(tree[key], take) for key in _keys(tree)}
            return f"{{{', '.join(f'{_quoted(key)}: {text}' for key, text in items.items())}}}"
        if isinstance(tree, list):
            return f"[{', '.join(self._text(item, take) for item in tree)}]"
        if type(tree) is tuple:
            return f"({', '.join(self._text(item, take) for item in tree)}{',' if len(tree) == 1 else ''})"
        children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
        if len(children) == 1 and not children[0][0]:
            return take()
        return self._object(tree, children, take)

    def _object(self, tree: Any, children: list[Any], take: Callable[[], str]) -> str:
        if not all(isinstance(path[0], jax.tree_util.GetAttrKey) for path, _ in children):
            raise StructureError(
                f"numpy_source: what is returned must be made of dicts, tuples, lists and objects with named fields, got "
                f"{type(tree).__name__}. Return a dict or a unrollax.value."
            )
        fields = tuple(path[0].name for path, _ in children)
        name = type(tree).__name__
        while self.classes.setdefault(name, fields) != fields:
            name += "_"
        return f"{name}({', '.join(self._text(child, take) for _, child in children)})"

    def sources(self) -> list[str]:
        """Return the source of each class."""
        return [
            _CLASS.format(name=name, fields=", ".join(fields), each=_each(fields))
            for name, fields in self.classes.items()
        ]


def _each(fields: tuple[str, ...]) -> str:
    return "\n".join(f"        self.{field} = {field}" for field in fields)


_CLASS = '''class {name}:
    """Holds {fields}."""

    def __init__(self, {fields}):
{each}
'''


def _keys(tree: Mapping[Any, Any]) -> list[Any]:
    """Return a mapping's keys in the order of its leaves."""
    return list(tree) if isinstance(tree, OrderedDict) else sorted(tree)
