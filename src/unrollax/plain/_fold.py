"""What is known while the source is written: constants, bounds of whole numbers, and operations that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unrollax.plain._program import Value

LARGEST = 4096  # numbers of a constant that is worked out at once

_BINARY: dict[str, Callable[..., Any]] = {
    "pow": np.power,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _iota(_: list[Any], p: dict[str, Any]) -> Any:
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = -1
    return np.broadcast_to(np.arange(p["shape"][p["dimension"]], dtype=p["dtype"]).reshape(shape), p["shape"])


def _broadcast(xs: list[Any], p: dict[str, Any]) -> Any:
    return np.broadcast_to(aligned(xs[0], p["shape"], p["broadcast_dimensions"]), p["shape"])


def aligned(x: Any, shape: Any, dimensions: Any) -> Any:
    """Return `x` with axes of size 1 put in, so that it broadcasts to `shape`."""
    sizes = [1] * len(shape)
    for own, dimension in enumerate(dimensions):
        sizes[dimension] = x.shape[own]
    return x.reshape(sizes)


def _division(xs: list[Any], _: dict[str, Any]) -> Any:
    return xs[0] / xs[1] if xs[0].dtype.kind in "fc" else np.sign(xs[0]) * np.sign(xs[1]) * (abs(xs[0]) // abs(xs[1]))


_UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": np.negative,
    "not": np.invert,
    "sqrt": np.sqrt,
    "square": np.square,
    "floor": np.floor,
    "ceil": np.ceil,
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
}
_FOLD: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "div": _division,
    "convert_element_type": lambda xs, p: xs[0].astype(p["new_dtype"]),
    "select_n": lambda xs, _: np.where(xs[0], xs[2], xs[1]) if len(xs) == 3 else np.choose(xs[0], xs[1:]),
    "clamp": lambda xs, _: np.clip(xs[1], xs[0], xs[2]),
    "reshape": lambda xs, p: xs[0].reshape(p["new_sizes"]),
    "squeeze": lambda xs, p: np.squeeze(xs[0], tuple(p["dimensions"])),
    "transpose": lambda xs, p: np.transpose(xs[0], p["permutation"]),
    "concatenate": lambda xs, p: np.concatenate(xs, p["dimension"]),
    "rev": lambda xs, p: np.flip(xs[0], tuple(p["dimensions"])),
    "integer_pow": lambda xs, p: xs[0] ** p["y"],
}


def folded(name: str, params: dict[str, Any], ins: list[Value], out: Value) -> Value | None:
    """Return the result as a constant, if all inputs are known and it is not large."""
    size = max([int(np.prod(out.shape)), *(int(np.prod(value.shape)) for value in ins)])
    rule = _FOLD.get(name) or _by_name(name)
    if rule is None or size > LARGEST or any(value.known is None for value in ins):
        return None
    with np.errstate(all="ignore"):
        return Value.of(rule([value.known for value in ins], params), out.dtype)


def _by_name(name: str) -> Callable[[list[Any], dict[str, Any]], Any] | None:
    function = _BINARY.get(name) or _UNARY.get(name)
    return None if function is None else lambda xs, _: function(*xs)


def bound(name: str, params: dict[str, Any], ins: list[Value], out: Value) -> None:
    """Note the bounds of a whole number."""
    if out.dtype.kind not in "iu" or any(value.bounds is None for value in ins if value.dtype.kind in "iu"):
        return
    ends = [value.bounds for value in ins if value.bounds is not None]
    if len(ends) == 2 and name in ("add", "sub", "max", "min"):
        (a, b), (c, d) = ends
        changed = {
            "add": (a + c, b + d),
            "sub": (a - d, b - c),
            "max": (max(a, c), max(b, d)),
            "min": (min(a, c), min(b, d)),
        }
        out.bounds = changed[name]
    elif len(ends) == 1 and name in ("convert_element_type", "broadcast_in_dim", "reshape", "squeeze"):
        out.bounds = ends[0]
    elif len(ends) == 3 and name == "clamp":
        out.bounds = max(ends[0][0], min(ends[1][0], ends[2][0])), min(ends[2][1], max(ends[1][1], ends[0][1]))
    elif ends and name == "select_n":
        out.bounds = min(end[0] for end in ends), max(end[1] for end in ends)


_ALWAYS: dict[str, Callable[[int, int, int, int], bool | None]] = {
    "lt": lambda a, b, c, d: True if b < c else (False if a >= d else None),
    "ge": lambda a, b, c, d: True if a >= d else (False if b < c else None),
}


def decided(name: str, ins: list[Value], out: Value) -> Value | None:
    """Return a comparison of whole numbers as a constant, if their bounds decide it."""
    if name not in _ALWAYS or ins[0].bounds is None or ins[1].bounds is None:
        return None
    answer = _ALWAYS[name](*ins[0].bounds, *ins[1].bounds)
    return None if answer is None else Value.of(np.full(out.shape, answer))


def unchanged(name: str, params: dict[str, Any], ins: list[Value], out: Value) -> Value | None:
    """Return the input that an operation returns as it is."""
    chosen: Value | None
    if name == "select_n" and ins[0].dtype.kind == "b" and ins[0].uniform is not None:
        chosen = ins[2] if ins[0].uniform else ins[1]
    elif name == "select_n":
        chosen = _lower_already(ins)
    elif len(ins) == 2:
        chosen = _neutral(name, ins)
    elif name in _SAME_SHAPE or (name in _REDUCTIONS and not params["axes"]):
        chosen = ins[0]
    elif name == "transpose":
        chosen = _turned_back(params, ins[0])
    else:
        return None
    same = chosen is not None and chosen.shape == out.shape and chosen.dtype == out.dtype
    return chosen if same else None


_SAME_SHAPE = ("convert_element_type", "broadcast_in_dim", "reshape", "squeeze")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")


def _neutral(name: str, ins: list[Value]) -> Any:
    a, b = (value.uniform for value in ins)
    whole = ins[0].dtype.kind in "iu"
    if b is not None and ((name in ("mul", "div") and b == 1) or (whole and name in ("add", "sub") and b == 0)):
        return ins[0]
    if a is not None and ((name == "mul" and a == 1) or (whole and name == "add" and a == 0)):
        return ins[1]
    if name == "max" and a is not None and ins[0].dtype.kind == "f" and a == -np.inf:
        return ins[1]
    return None


def _turned_back(params: dict[str, Any], value: Value) -> Value | None:
    order, maker = [int(axis) for axis in params["permutation"]], value.maker
    if order == sorted(order):
        return value
    if (
        maker is not None
        and maker.name == "transpose"
        and [maker.params["permutation"][axis] for axis in order] == sorted(order)
    ):
        return maker.ins[0]
    return None


def triangle(value: Value) -> str:
    """Return `"lower"` or `"upper"` for a Cholesky factor or its transpose, else nothing."""
    maker = value.maker
    if maker is not None and maker.name == "cholesky":
        return "lower"
    if maker is not None and maker.name == "transpose" and list(maker.params["permutation"]) == [1, 0]:
        return {"lower": "upper", "upper": "lower"}.get(triangle(maker.ins[0]), "")
    return ""


def _lower_already(ins: list[Value]) -> Value | None:
    """Return the Cholesky factor that a mask makes lower triangular: NumPy's is so already."""
    if len(ins) != 3 or len(ins[0].shape) < 2 or triangle(ins[2]) != "lower" or ins[1].uniform != 0:
        return None
    return ins[2] if _is_lower(ins[0]) else None


def _is_lower(mask: Value) -> bool:
    if mask.known is not None:
        return bool((mask.known == np.tril(np.ones(mask.shape, bool))).all())
    made, rank = [value.maker for value in mask.maker.ins] if mask.maker is not None else [], len(mask.shape)
    if mask.maker is None or mask.maker.name != "ge" or any(maker is None or maker.name != "iota" for maker in made):
        return False
    return [maker.params["dimension"] for maker in made if maker is not None] == [rank - 2, rank - 1]


def counts(body: Any, place: int, out: int, init: Value) -> bool:
    """Whether a loop's carried number is its counter: a known whole number, and 1 more each time."""
    if init.known is None or init.shape or init.dtype.kind not in "iu":
        return False
    for eqn in body.eqns:
        if eqn.outvars[0] is body.outvars[out] and eqn.primitive.name == "add":
            a, b = eqn.invars
            return a is body.invars[place] and getattr(b, "val", None) is not None and b.val == 1
    return False
