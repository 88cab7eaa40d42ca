"""The source of a traced function in plain NumPy."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax.plain import _arrays, _control, _elementwise, _frames, _indexing, _linalg
from unrollax.plain._block import Block, Rule, Writer
from unrollax.plain._flatten import Missing, flatten
from unrollax.plain._helpers import HELPERS, NEEDS
from unrollax.plain._program import Program
from unrollax.plain._text import ATOM, WIDTH, Text, broken, constant, kind, tuple_of
from unrollax.plain._trees import Rebuild, is_array, names_of, reads

RULES: dict[str, Rule] = {
    **_elementwise.RULES,
    **_arrays.RULES,
    **_indexing.RULES,
    **_linalg.RULES,
    **_control.RULES,
    "slice": _indexing.RULES["index"],
    "dynamic_slice": _indexing.RULES["index"],
}


class Source(NamedTuple):
    """Python source, and the arrays that it reads.

    Attributes:
        text: the source of a module, which imports `numpy`, and `math` where it must, and nothing else.
        arrays: constants that are too large for the text, by name; where there are any, the function takes them as its last
            argument, `arrays`, a mapping such as `numpy.load` of an `.npz` gives. Save them with `numpy.savez`.
    """

    text: str
    arrays: dict[str, np.ndarray]


def numpy_source(
    function: Callable[..., Any], *examples: Any, name: str = "step", doc: str | None = None, inline: int = 64
) -> Source:
    """Write what a function of arrays computes as plain NumPy, for those who port it to C or to hardware.

    The function is traced by JAX at the shapes and dtypes of the examples. Calls are inlined, constants worked out, dead code
    and what NumPy does by itself (broadcasting) left out; loops and branches become Python's. Names are those of the
    arguments' leaves and of the function's own assignments. The outputs are those of `jax.jit(function)` to rounding, in the
    same dtypes.

    Args:
        function: takes and gives pytrees of arrays; draws nothing at random, calls nothing outside of JAX.
        examples: its arguments, or `jax.ShapeDtypeStruct`s in the place of their arrays; other leaves are taken as
            they are.
        name: of the function in the source.
        doc: the first line of its docstring.
        inline: constants of up to so many numbers are written into the source.

    Raises:
        InvalidArgument: a primitive has no NumPy form here; it names the primitive and the line.
        StructureError: a leaf of an argument can't be reached by keys and attributes.

    Example:
        >>> import jax.numpy as jnp
        >>> from unrollax.plain import numpy_source
        >>> def shrink(x, threshold):
        ...     return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)
        >>> source = numpy_source(shrink, jnp.ones(3), jnp.ones(()), name="shrink")
        >>> print(source.text.split("shape)")[-1].strip().splitlines()[-1].strip())
        return np.sign(x) * np.maximum(np.abs(x) - threshold, 0.0)
    """
    check_counts("numpy_source", inline=inline + 1)
    if not name.isidentifier():
        raise InvalidArgument(
            f"numpy_source: name must be a name in Python, got name={name!r}. Give one such as 'step'."
        )
    writer, rebuild = Writer(RULES, inline), Rebuild()
    arguments = names_of(function, len(examples))
    made = function_source(writer, rebuild, function, examples, name, arguments, doc or f"Compute `{name}`.")
    return Source(module_text(writer, rebuild, [made]), writer.arrays)


def function_source(
    writer: Writer,
    rebuild: Rebuild,
    function: Callable[..., Any],
    examples: tuple[Any, ...],
    name: str,
    arguments: list[str],
    doc: str,
) -> str:
    """Return the source of one function; what it needs around it is noted in the writer and in what rebuilds trees."""
    around = writer.taken | {name}
    writer.taken = around | set(arguments)
    program, result = _traced(function, examples)
    head, body = _body(writer, rebuild, program, result, arguments, examples)
    writer.taken = around | set(writer.constants) | set(writer.arrays)
    lines = _doc(doc, head, program, writer)
    given = [*arguments, "arrays"] if writer.arrays and writer.holder == "arrays" else arguments
    silent = '@np.errstate(all="ignore")  # infinity and NaN are numbers here'
    return "\n".join([silent, f"def {name}({', '.join(given)}):", *lines, *body]) + "\n"


def module_text(writer: Writer, rebuild: Rebuild, parts: list[str], head: str = "", constants: str = "") -> str:
    """Return the source of a module: its docstring, imports, constants, helpers, classes, and the functions given."""
    needed = {*writer.helpers, *(needs for helper in writer.helpers for needs in NEEDS.get(helper, ()))}
    helpers = [HELPERS[helper] for helper in HELPERS if helper in needed]
    imports = ["import math", ""] if any("math." in helper for helper in helpers) else []
    lines = [line for name, array in writer.constants.items() for line in broken(f"{name} = {constant(array)}")]
    lines = [*([constants.rstrip()] if constants else []), *lines]
    top = [*([head, ""] if head else []), *imports, "import numpy as np", *(["", *lines] if lines else [])]
    return "\n\n".join(["\n".join(top) + "\n", *helpers, *rebuild.sources(), *parts])


def _traced(function: Callable[..., Any], examples: tuple[Any, ...]) -> tuple[Program, Any]:
    leaves, treedef = jax.tree.flatten(examples)
    places = [place for place, leaf in enumerate(leaves) if is_array(leaf)]

    def flat(*arrays: Any) -> Any:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return function(*jax.tree.unflatten(treedef, filled))

    closed, result = jax.make_jaxpr(flat, return_shape=True)(*(leaves[place] for place in places))
    _check_inputs(closed.in_avals)
    program, missing = flatten(closed, RULES.keys())
    if missing:
        raise InvalidArgument(_refusal(missing))
    return program, result


def _check_inputs(avals: list[Any]) -> None:
    for aval in avals:
        if not isinstance(aval.dtype, np.dtype) or aval.dtype.kind not in "biufc":
            raise StructureError(
                f"numpy_source: inputs must be numbers that NumPy has, got {aval.dtype}. Draw outside of the function and "
                "pass what is drawn; use float32 in the place of bfloat16."
            )


def _refusal(missing: Missing) -> str:
    name, frames = missing[0]
    others = sorted({other for other, _ in missing} - {name})
    also = f" (and {', '.join(others)})" if others else ""
    drawn = name.startswith(("random_", "threefry"))
    called = "callback" in name
    advice = "Write it with other functions of jax.numpy, or work it out before and pass it in."
    if drawn:
        advice = "Draw outside of the function and pass what is drawn."
    if called:
        advice = "Leave the callback out; its Python code can be called by hand."
    return f"numpy_source: every primitive must have a NumPy form, got {name}{also} at {_frames.describe(frames)}. {advice}"


def _body(
    writer: Writer, rebuild: Rebuild, program: Program, result: Any, arguments: list[str], examples: tuple[Any, ...]
) -> tuple[list[str], list[str]]:
    """Return the lines on the arguments, the statements, and what the results need."""
    found = [
        read for name, tree in zip(arguments, examples, strict=True) for read in reads(name, tree) if is_array(read[2])
    ]
    uses, block, head = program.uses(), Block(writer, {}), []
    for (expression, word, _), value in zip(found, program.ins, strict=True):
        if uses[value]:
            head.append(f"{expression}: {_shown(value)}")
            writer.reads[expression] = _shown(value)
            name = word if word in arguments else writer.fresh(word)
            shape = tuple_of(value.shape)
            block.write(
                f"{name} = {writer.helper('_array')}({_quote(expression)}, {expression}, {kind(value.dtype)}, {shape})"
            )
            block.texts[value] = Text(name, ATOM, value.shape)
    block.run(program)
    outs = [block.own(out).text for out in program.outs]
    block.write(f"return {rebuild.text(result, outs)}")
    return head, block.lines


def _quote(expression: str) -> str:
    return f"'{expression}'" if '"' in expression and "'" not in expression else f'"{expression}"'


def _shown(value: Any) -> str:
    return describe(jax.ShapeDtypeStruct(value.shape, value.dtype))


def _doc(first: str, head: list[str], program: Program, writer: Writer) -> list[str]:
    lines = [f'"""{first}', "", *(["Reads:"] if head else []), *(f"    {line}" for line in head)]
    if writer.arrays and writer.holder == "arrays":
        lines += ["    arrays: large constants, by name"]
        lines += [f"        {name}: {describe(array)}" for name, array in writer.arrays.items()]
    outs = ", ".join(_shown(out) for out in program.outs)
    wrapped = [part for line in [*lines, *([""] if lines[-1] else []), f"Returns {outs}."] for part in _wrapped(line)]
    return [f"    {line}".rstrip() for line in [*wrapped, '"""']]


def _wrapped(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())] + "    "
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False) or [""]
