"""Counting passes through a system: marks in its step that survive differentiation, counted in the traced program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching


def _mark(kind: str) -> core.Primitive:
    """Return an identity on one array, which a trace shows by its name."""
    primitive = core.Primitive(f"unrollax_{kind}")
    primitive.def_abstract_eval(lambda x: x)
    batching.primitive_batchers[primitive] = lambda args, axes: (primitive.bind(args[0]), axes[0])
    return primitive


FORWARD, JVP, VJP = (_mark(kind) for kind in ("forward", "jvp", "vjp"))


def _push(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    return FORWARD.bind(x), t if isinstance(t, ad.Zero) else JVP.bind(t)


ad.primitive_jvps[FORWARD] = _push
ad.primitive_jvps[JVP] = lambda primals, tangents: (JVP.bind(*primals), tangents[0])
ad.primitive_transposes[JVP] = lambda cotangent, _: [
    cotangent if isinstance(cotangent, ad.Zero) else VJP.bind(cotangent)
]


def mark(x: jax.Array) -> jax.Array:
    """Return `x`, a scalar that depends on the parameters; each derivative taken through it leaves a mark of its own."""
    out: jax.Array = FORWARD.bind(x)
    return out


def count_marks(function: Callable[..., Any], *args: Any) -> dict[str, int] | None:
    """Return how often a call passes its marks in each direction; `None` if a loop's length is known at run time only."""
    counts: Counter[str] = Counter()
    known = _count(jax.make_jaxpr(function)(*args).jaxpr, 1, counts)
    return {kind: counts[f"unrollax_{kind}"] for kind in ("forward", "jvp", "vjp")} if known else None


def _count(jaxpr: Any, times: int, counts: Counter[str]) -> bool:
    """Add the marks of a program that runs `times` times; of a conditional's branches, those of the dearest."""
    known = True
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name.startswith("unrollax_"):
            counts[name] += times * math.prod(equation.outvars[0].aval.shape)
        parts = _parts(equation)
        inside = [Counter[str]() for _ in parts]
        for part, marks in zip(parts, inside, strict=True):
            known = _count(part, times * (equation.params["length"] if name == "scan" else 1), marks) and known
        if name == "cond":
            inside = [max(inside, key=lambda marks: sum(marks.values()))]
        if name == "while" and any(inside):
            known = False
        for marks in inside:
            counts.update(marks)
    return known


def _parts(equation: Any) -> list[Any]:
    """Return the programs inside an equation."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if _is_jaxpr(leaf)]


def _is_jaxpr(leaf: Any) -> bool:
    return isinstance(leaf, (core.Jaxpr, core.ClosedJaxpr))
