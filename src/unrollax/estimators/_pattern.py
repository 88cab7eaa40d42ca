"""Which number of a state or of params can change which number of the next state, found by looking at a step.

Only shapes and the whole numbers of a system count, so that a pattern is the same inside and outside of `jax.jit`: params,
states, data and the floating numbers of a system are drawn at random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument
from unrollax._system import Repeat
from unrollax._tree import is_inexact, is_key, is_numeric, leaves_with_names, strong
from unrollax._types import Key, Params, State, System
from unrollax.estimators._influence import flat, numbers, with_numbers

QUIET = 24  # looks without a new entry after which a pattern is complete: of what shows at half of all places 2^-24 is missed
SCALES = (1.0, 0.25, 4.0, 0.0625)  # of the numbers looked at: large ones saturate, small ones stay below thresholds
TOKENS = 8  # whole numbers in data are below
ROWS = 32  # rows of a Jacobian that are taken at once


class Pattern(NamedTuple):
    """Booleans: where derivatives are not always 0, by numbers of the state (S) and of params (P).

    Attributes:
        state: `[S, S]`, the state after a step by the state before it.
        step: `[S, P]`, the state after a step by params.
        start: `[S, P]`, the state that `init` gives by params.
    """

    state: np.ndarray
    step: np.ndarray
    start: np.ndarray


class Leaf(NamedTuple):
    """What is known of a leaf without its values: shape, dtype, and the values of what is no floating number."""

    shape: tuple[int, ...]
    dtype: Any
    content: Hashable


class Shapes(NamedTuple):
    """What a pattern depends on; hashable."""

    treedef: Any
    leaves: tuple[Leaf, ...]

    def fill(self, make: Callable[[Leaf], Any]) -> Any:
        """Return the tree with a new leaf for each."""
        return jax.tree.unflatten(self.treedef, [make(leaf) for leaf in self.leaves])


def pattern_of(owner: str, system: System, params: Params, x: Any) -> Pattern:
    """Return the pattern of a step of the system, for params and data of these shapes."""
    own = jax.tree.structure(system), tuple(_fixed(owner, *named) for named in leaves_with_names(system))
    return _pattern(owner, Shapes(*own), _shapes(params), _shapes(x), jnp.result_type(float))


def _shapes(tree: Any) -> Shapes:
    leaves, treedef = jax.tree.flatten(tree)
    return Shapes(treedef, tuple(Leaf(jnp.shape(leaf), jnp.result_type(leaf), is_key(leaf)) for leaf in leaves))


def _fixed(owner: str, name: str, leaf: Any) -> Leaf:
    """Describe a leaf of the system itself. Whole numbers may be indices, so their values count."""
    if not is_numeric(leaf):
        return Leaf((), None, leaf)
    if is_inexact(leaf):
        return Leaf(jnp.shape(leaf), jnp.result_type(leaf), isinstance(leaf, (float, complex)))
    if isinstance(leaf, jax.core.Tracer):
        raise InvalidArgument(
            f"{owner}: the system's leaf {name} must be known when the step is traced, as whole numbers say what "
            "influences what, got a traced one. Close over the estimator rather than pass it to jax.jit or jax.vmap."
        )
    if is_key(leaf):
        return Leaf(leaf.shape, str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes())
    if isinstance(leaf, (bool, int)):
        return Leaf((), None, leaf)
    return Leaf(jnp.shape(leaf), jnp.result_type(leaf), np.asarray(leaf).tobytes())


@functools.lru_cache(maxsize=32)
def _pattern(owner: str, own: Shapes, params: Shapes, x: Shapes, default: Any) -> Pattern:
    """Look at the step until nothing new is seen."""
    del default  # the dtype that Python's numbers become: only tells one pattern from another
    with jax.ensure_compile_time_eval():
        system = own.fill(_constant)
        like = params.fill(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
        look = functools.partial(_look, owner, system, like, x)
        inner = strong(system.init(jax.random.key(0), like))
        seen = [np.asarray(part) for part in jax.jit(functools.partial(_complete, look))(inner)]
    state, step, start, loss = seen
    unread = ~(step.any(0) | start.any(0) | loss)
    return Pattern(state, *(_tables(params, unread, part) for part in (step, start)))


def _complete(look: Callable[[State, jax.Array], tuple[list[jax.Array], State]], inner: State) -> list[jax.Array]:
    """Look until nothing new was seen for a while."""

    def again(carry: Any) -> Any:
        seen, inner, index, quiet = carry
        found, inner = look(inner, index)
        new = functools.reduce(jnp.logical_or, [(f & ~s).any() for f, s in zip(found, seen, strict=True)])
        return [f | s for f, s in zip(found, seen, strict=True)], inner, index + 1, jnp.where(new, 0, quiet + 1)

    nothing = [jnp.zeros(part.shape, bool) for part in jax.eval_shape(look, inner, 0)[0]]
    zero = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[-1] < QUIET, again, (nothing, inner, zero, zero))[0]


def _constant(leaf: Leaf) -> Any:
    """Stand in for a leaf of the system: floating numbers by some of order 1, all else by itself."""
    if leaf.dtype is None:
        return leaf.content
    if isinstance(leaf.dtype, str):
        words = np.frombuffer(leaf.content, np.uint32).reshape(*leaf.shape, -1)  # type: ignore[call-overload]
        return jax.random.wrap_key_data(jnp.asarray(words), impl=leaf.dtype)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.asarray(np.frombuffer(leaf.content, leaf.dtype).reshape(leaf.shape))  # type: ignore[call-overload]
    drawn = np.random.default_rng(0).uniform(0.5, 1.5, leaf.shape)
    return float(drawn) if leaf.content else jnp.asarray(drawn, leaf.dtype)


def _look(
    owner: str, system: System, like: Params, x: Shapes, inner: State, index: jax.Array
) -> tuple[list[jax.Array], State]:
    """Return where derivatives at one random place are not 0, and the state after a step from there."""
    keys = iter(jax.random.split(jax.random.key(index), 5 + len(x.leaves)))
    scale = jnp.array(SCALES)[index % len(SCALES)]
    params = _random(next(keys), like, scale)

    def begin(params: Params) -> jax.Array:
        return numbers(strong(system.init(start, params)))

    start, run = next(keys), next(keys)
    vector, pull = jax.vjp(begin, params)
    (by_start,) = _nonzero(pull, vector.size, vector.dtype)
    inner = with_numbers(inner, scale * jax.random.normal(next(keys), vector.shape, vector.dtype))
    row = x.fill(lambda leaf: _example(next(keys), leaf, index))
    step = flat(owner, system, inner, Repeat(row), run, 1)
    (loss, after), back, inner = jax.vjp(step, params, numbers(inner), has_aux=True)
    by_step, by_state = _nonzero(lambda row: back((jnp.zeros_like(loss), row)), vector.size, vector.dtype)
    by_loss = numbers(back((jnp.ones_like(loss), jnp.zeros_like(after)))[0]) != 0
    return [by_state, by_step, by_start, by_loss], inner


def _nonzero(pull: Callable[[jax.Array], Any], size: int, dtype: Any) -> list[jax.Array]:
    """Return where rows of Jacobians are not 0, `[size, ...]` each; NaN is not 0."""

    def row(cotangent: jax.Array) -> list[jax.Array]:
        return [numbers(part) != 0 for part in pull(cotangent)]

    return jax.lax.map(row, jnp.eye(size, dtype=dtype), batch_size=ROWS)


def _random(key: Key, like: Any, scale: jax.Array) -> Any:
    vector = numbers(like)
    return with_numbers(like, scale * jax.random.normal(key, vector.shape, vector.dtype))


def _example(key: Key, leaf: Leaf, index: jax.Array) -> jax.Array:
    """Draw data: any numbers, small whole ones, and true at three of four looks, as most masks say what is real."""
    if leaf.content:
        return jax.random.split(key, leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        return jnp.broadcast_to(index // len(SCALES) % 4 != 3, leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jax.random.randint(key, leaf.shape, 0, TOKENS).astype(leaf.dtype)
    return jax.random.normal(key, leaf.shape, leaf.dtype)


def _tables(params: Shapes, unread: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Give rows of a table that no look met what the other rows of the table have: data choose among them."""
    return np.concatenate([_table(*block) for block in _cut(params, unread, pattern)], axis=1)


def _cut(params: Shapes, unread: np.ndarray, pattern: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in params.leaves])
    parts = np.split(unread, ends[:-1]), np.split(pattern, ends[:-1], axis=1)
    for leaf, never, block in zip(params.leaves, *parts, strict=True):
        rows = leaf.shape[0] if leaf.shape else 1
        yield never.reshape(rows, -1), block.reshape(len(block), rows, -1)


def _table(never: np.ndarray, block: np.ndarray) -> np.ndarray:
    filled = np.where(np.all(never, axis=1)[None, :, None], np.any(block, axis=1, keepdims=True), block)
    return filled.reshape(len(block), -1)
