"""Linear maps whose transpose was derived by hand, for a `jax.custom_jvp` that must also be fast in reverse.

`jax.custom_vjp` refuses forward mode, and `jax.custom_derivatives.linear_call` refuses `vmap` and a derivative with respect
to its residuals. Here a rule gives the transpose; reverse mode runs it as it stands, forward mode runs the transpose of it,
and higher derivatives differentiate through its code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

Leaves = Sequence[Any]
Pull = Callable[[Any, Any], Any]  # (residuals, cotangents of the outputs) -> cotangents of the inputs

LINEAR = core.Primitive("linear_by_transpose")
LINEAR.multiple_results = True


def linear_by_transpose(pull: Pull, residuals: Any, tangents: Any, like: Any) -> Any:
    """Return the value at `tangents` of the linear map whose transpose is `pull`.

    Args:
        pull: `pull(residuals, cotangents)` returns a tree like `tangents`, linear in the cotangents, which are like `like`.
        residuals: what `pull` needs beside the cotangents; a derivative with respect to it goes through `pull`'s code.
        tangents: where the map is evaluated, a tree of inexact arrays.
        like: arrays of the structure, shapes and dtypes of the result.
    """
    kept, kept_tree = jax.tree.flatten(residuals)
    moved = jax.tree.leaves(tangents)
    outs, out_tree = jax.tree.flatten(like)

    def flat(kept: Leaves, cotangents: Leaves) -> Leaves:
        pulled = pull(jax.tree.unflatten(kept_tree, kept), jax.tree.unflatten(out_tree, cotangents))
        return jax.tree.leaves(pulled)

    result = LINEAR.bind(*kept, *moved, pull=flat, count=len(kept), outs=tuple(map(jax.typeof, outs)))
    return jax.tree.unflatten(out_tree, result)


def _push(*args: Any, pull: Any, count: int, outs: Any) -> list[Any]:
    like = [jax.ShapeDtypeStruct(out.shape, out.dtype) for out in outs]
    pushed = jax.linear_transpose(lambda *cotangents: pull(args[:count], cotangents), *like)(list(args[count:]))
    return list(pushed)


def _jvp(primals: Leaves, tangents: Leaves, **params: Any) -> tuple[list[Any], list[Any]]:
    count = params["count"]
    moved = [ad.instantiate_zeros(t) for t in tangents]
    if all(isinstance(t, ad.Zero) for t in tangents[:count]):
        return LINEAR.bind(*primals, **params), LINEAR.bind(*primals[:count], *moved[count:], **params)
    return jax.jvp(lambda *args: _push(*args, **params), tuple(primals), tuple(moved))


def _transpose(cotangents: Leaves, *args: Any, pull: Any, count: int, outs: Any) -> list[Any]:
    pulled = pull(args[:count], [ad.instantiate_zeros(ct) for ct in cotangents])
    wanted = [ad.is_undefined_primal(arg) for arg in args[count:]]
    return [None] * count + [ct if want else None for ct, want in zip(pulled, wanted, strict=True)]


def _batch(args: Leaves, axes: Leaves, *, pull: Any, count: int, outs: Any) -> tuple[list[Any], list[int]]:
    """Map the transpose; where an input is shared by the batch, its cotangents add up."""
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
    args = [arg if axis is None else jax.numpy.moveaxis(arg, axis, 0) for arg, axis in zip(args, axes, strict=True)]
    mapped = [None if axis is None else 0 for axis in axes]

    def batched_pull(kept: Leaves, cotangents: Leaves) -> Leaves:
        pulled = jax.vmap(pull, in_axes=(mapped[:count], 0), axis_size=size)(list(kept), list(cotangents))
        return [ct.sum(0) if axis is None else ct for ct, axis in zip(pulled, mapped[count:], strict=True)]

    wider = tuple(out.update(shape=(size, *out.shape)) for out in outs)
    return LINEAR.bind(*args, pull=batched_pull, count=count, outs=wider), [0] * len(outs)


LINEAR.def_impl(_push)
LINEAR.def_abstract_eval(lambda *_, outs, **__: outs)
mlir.register_lowering(LINEAR, mlir.lower_fun(_push, multiple_results=True))
ad.primitive_jvps[LINEAR] = _jvp
ad.primitive_transposes[LINEAR] = _transpose
batching.primitive_batchers[LINEAR] = _batch
