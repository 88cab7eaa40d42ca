"""What an unfolded algorithm is made of: where its problems come from, and what its iterations and errors must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe, is_numeric, leaves_with_names, strong
from unrollax._types import Key, Scalar
from unrollax._value import static, value


@value
class Source:
    """Where an `Unfold` gets its problems from, made of two functions.

    Args:
        draw: `draw(key) -> own`, the own part of a random problem.
        whole: `whole(own) -> problem`, with what all problems share.
    """

    draw: Callable[[Key], Any] = static()
    whole: Callable[[Any], Any] = static()


def as_source(sample: Any) -> Any:
    """Return what problems are drawn from as an object with `draw` and `whole` that can be a field of a value."""
    if sample is None:  # how `vmap` is told to leave this field alone
        return sample
    draws = [callable(getattr(sample, name, None)) for name in ("draw", "whole")]
    if all(draws) and not isinstance(sample, type):
        return Source(sample.draw, sample.whole) if jax.tree_util.all_leaves([sample]) else sample
    if callable(sample) and not any(draws):
        return Source(sample, _itself)
    lacking = " or ".join(name for name, has in zip(("draw", "whole"), draws, strict=True) if not has)
    got = f"the class {sample.__name__}" if isinstance(sample, type) else f"{type(sample).__name__} without {lacking}"
    raise InvalidArgument(
        f"Unfold: sample must be a function sample(key) -> problem, or an object with draw(key) and whole(own), got {got}. "
        "Pass one such as lambda key: jax.random.normal(key, (100,))."
    )


def _itself(own: Any) -> Any:
    return own


class _Asked(dict[str, Any]):
    """A dict that says which name was read and is not there."""

    def __missing__(self, name: str) -> Any:
        raise _NotThere(name)


class _NotThere(Exception):
    pass


def iterate(owner: str, iteration: Callable[..., Any], theta: Any, x: Any, problem: Any) -> Any:
    """Run an iteration; raise by name if it reads a number that theta does not have."""
    try:
        return iteration(theta, x, problem)
    except (KeyError, TypeError, IndexError) as error:
        name = _lacking(iteration, theta, x, problem)
        if name is None:  # it is about something else
            raise
        got = ", ".join(map(repr, theta)) or "nothing" if isinstance(theta, dict) else describe(theta)
        raise StructureError(
            f"{owner}: params must hold {name!r}, which the iteration reads, got {got}. Add it, in a dict, under that name."
        ) from error


def _lacking(iteration: Callable[..., Any], theta: Any, x: Any, problem: Any) -> str | None:
    """Return the name that an iteration reads in vain; `None` if there is none, or theta is neither dict nor number."""
    if not isinstance(theta, dict) and not is_numeric(theta):
        return None
    try:
        iteration(_Asked(theta if isinstance(theta, dict) else {}), x, problem)
    except _NotThere as asked:
        return str(asked)
    except Exception:
        return None
    return None


def as_arrays(part: str, tree: Any) -> Any:
    """Return what `start` or `draw` gave as arrays; raise unless each leaf can be one."""
    for name, leaf in leaves_with_names(tree):
        if not is_numeric(leaf):
            raise StructureError(
                f"Unfold: {part} must return arrays or numbers, got {describe(leaf)} at leaf {name}. Leave out what is none."
            )
    return strong(tree)


def check_run(depth: Any, longest: Any) -> None:
    """Raise unless a depth is a whole number from 1 to longest; of a traced one the number is not known."""
    check_counts("Unfold.run", longest=longest)
    if isinstance(depth, jax.Array) and depth.shape == () and jnp.issubdtype(depth.dtype, jnp.integer):
        if isinstance(depth, jax.core.Tracer):
            return
        depth = int(depth)
    check_counts("Unfold.run", depth=depth)
    if depth > longest:
        raise InvalidArgument(
            f"Unfold.run: depth must be 1 to longest={longest}, got depth={depth}. Make longest larger."
        )


def check_weight(weight: Any) -> Any:
    """Return the weight of an iteration's level; raise unless it is a real scalar."""
    if not is_numeric(weight) or jnp.shape(weight) != () or jnp.iscomplexobj(weight):
        raise StructureError(
            f"Unfold: loss must return a real scalar, the weight of iteration t, got {describe(weight)}. Return one number."
        )
    return weight


def check_x(before: Any, after: Any) -> Any:
    """Return x after an iteration; raise unless each of its leaves is as it was before."""
    given, got = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if given != got:
        raise StructureError(
            f"Unfold: the iteration must return an x with the structure that start gave, {given}, got {got}. Return every "
            "part of x."
        )
    for (name, old), new in zip(leaves_with_names(before), jax.tree.leaves(after), strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise StructureError(
                f"Unfold: the iteration must keep the shape and dtype of each leaf of x, {name} was {describe(old)} from "
                f"start, got {describe(new)}. Let start return {describe(new)}, or cast it back in the iteration."
            )
    return after


def check_error(error: Any) -> Scalar:
    """Return an error; raise unless it is a real floating scalar."""
    if not is_numeric(error) or jnp.shape(error) != () or not jnp.issubdtype(jnp.result_type(error), jnp.floating):
        raise StructureError(
            f"Unfold: error must return a real floating scalar for one problem, got {describe(error)}. Reduce it, as in "
            "jnp.sum(jnp.abs(x - problem.x) ** 2)."
        )
    return jnp.asarray(error)
