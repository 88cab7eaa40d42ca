"""Recurrent cells of other libraries, with their arrays as params: none of those libraries is imported before it is used."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._tree import is_inexact, strong
from unrollax._types import Key, Params, State
from unrollax._value import static, value


class Layout(NamedTuple):
    """What rebuilds a module from its arrays: the structure, a name for each trained leaf, and what is no array."""

    treedef: Any
    names: tuple[str | None, ...]
    others: tuple[Hashable, ...]


def _take_apart(module: Any) -> tuple[dict[str, jax.Array], list[Any], Layout]:
    """Split a module into its floating JAX arrays by name, its other arrays, and the rest."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(module)
    leaves = [leaf for _, leaf in flat]
    names = tuple(
        jax.tree_util.keystr(path, simple=True, separator=".")
        if isinstance(leaf, jax.Array) and is_inexact(leaf)
        else None
        for path, leaf in flat
    )
    params = {name: leaf for name, leaf in zip(names, leaves, strict=True) if name is not None}
    arrays = [leaf if hasattr(leaf, "dtype") else None for leaf in leaves]
    fixed = [leaf if name is None else None for name, leaf in zip(names, arrays, strict=True)]
    others = tuple(None if hasattr(leaf, "dtype") else leaf for leaf in leaves)
    return params, fixed, Layout(treedef, names, others)


@value
class EquinoxCell:
    """A module called as `module(x, state)`, as a cell; see `equinox_cell`."""

    own: dict[str, jax.Array]
    fixed: list[Any]
    start: State
    layout: Layout = static()
    output: Callable[[State], Any] = static()
    make: Callable[[Key], Any] | None = static(default=None)

    def params(self, key: Key) -> dict[str, jax.Array]:
        """Return the arrays of a module that is made anew, or those of the one that was given, by name."""
        return _copy(self.own) if self.make is None else _take_apart(self.make(key))[0]

    def init(self, params: dict[str, jax.Array]) -> State:
        """Return the state before the first step."""
        return _copy(self.start)

    def step(self, params: dict[str, jax.Array], state: State, x: Any) -> tuple[State, Any]:
        """Call the module, and return its state and what `output` makes of it."""
        after = self.module(params)(x, state)
        return after, self.output(after)

    def module(self, params: dict[str, jax.Array]) -> Any:
        """Return the module with these params, such as trained ones."""
        names, others = self.layout.names, self.layout.others
        leaves = [
            params[name] if name is not None else (other if array is None else array)
            for name, array, other in zip(names, self.fixed, others, strict=True)
        ]
        return jax.tree.unflatten(self.layout.treedef, leaves)


def _makes_one(module: Any) -> bool:
    """Whether something is a function that makes a module rather than a module, which is a tree."""
    return callable(module) and not isinstance(module, type) and jax.tree_util.all_leaves([module])


def _copy(tree: Any) -> Any:
    """Copy what a value keeps: a training run may give its buffers away."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def _first(state: State) -> Any:
    return jax.tree.leaves(state)[0]


def equinox_cell(module: Any, *, state: State = None, output: Callable[[State], Any] = _first) -> EquinoxCell:
    """Make a cell of an Equinox module that is called as `module(x, state)` and returns the next state.

    Args:
        module: `eqx.nn.GRUCell`, `eqx.nn.LSTMCell` or another such module, whose arrays are then what `params` returns; or
            a function `key -> module`, by which `params(key)` draws anew.
        state: the state before the first step; `None` for the zeros of Equinox's two cells.
        output: what the readout sees of a state; by default its first leaf, which is h.

    Returns:
        A cell whose params are the module's floating arrays in a flat dict by name, such as `weight_ih`, and with
        `.module(params)`, the module with trained arrays. Other arrays of the module are kept as they are.

    Raises:
        InvalidArgument: what was passed can't be called, is no pytree with floating arrays, or needs `state`.

    Example:
        >>> import equinox as eqx
        >>> cell = equinox_cell(lambda key: eqx.nn.GRUCell(2, 5, key=key))
        >>> params = cell.params(jax.random.key(0))
        >>> h, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> sorted(params), output.shape
        (['bias', 'bias_n', 'weight_hh', 'weight_ih'], (5,))
    """
    make = module if _makes_one(module) else None
    made = module if make is None else make(jax.random.key(0))
    own, fixed, layout = _take_apart(made)
    if not callable(made) or not own:
        lack = "floating arrays" if callable(made) else "__call__"
        got = f"the class {made.__name__}" if isinstance(made, type) else f"{type(made).__name__} without {lack}"
        raise InvalidArgument(
            f"equinox_cell: module must be a pytree of arrays called as module(x, state), got {got}. "
            "Pass eqx.nn.GRUCell(...), eqx.nn.LSTMCell(...) or a function key -> module."
        )
    start = _zeros(made, own) if state is None else strong(state)
    return EquinoxCell(own, fixed, start, layout, output, make)


def _zeros(module: Any, own: dict[str, jax.Array]) -> State:
    """Return the zeros that Equinox's own cells start from."""
    names = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.partition(".")[0] == "equinox"}
    if not names & {"GRUCell", "LSTMCell"}:
        raise InvalidArgument(
            f"equinox_cell: state must be given for a {type(module).__name__}, got state=None. Only eqx.nn.GRUCell and "
            "eqx.nn.LSTMCell say how they start. Pass the state before the first step."
        )
    zeros = jnp.zeros(module.hidden_size, jnp.result_type(*own.values()))
    return (zeros, zeros) if "LSTMCell" in names else zeros


@value
class LinenCell:
    """A cell of flax.linen; see `flax_cell`."""

    start: State
    linen: Any = static()
    inputs: int = static()

    def params(self, key: Key) -> Params:
        """Draw the module's `params` collection."""
        return self.linen.init(key, self.start, jnp.zeros(self.inputs))["params"]

    def init(self, params: Params) -> State:
        """Return the carry before the first step."""
        return _copy(self.start)

    def step(self, params: Params, state: State, x: Any) -> tuple[State, Any]:
        """Return the next carry and the output."""
        out: tuple[State, Any] = self.linen.apply({"params": params}, state, x)
        return out


@value
class NNXCell:
    """A cell of flax.nnx; see `flax_cell`."""

    own: Params
    fixed: Any
    start: State
    graph: Any = static()
    make: Callable[[Key], Any] | None = static(default=None)

    def params(self, key: Key) -> Params:
        """Return the parameters of a module that is made anew, or those of the one that was given."""
        return _copy(self.own) if self.make is None else _split(self.make(key))[1]

    def init(self, params: Params) -> State:
        """Return the carry before the first step."""
        return _copy(self.start)

    def step(self, params: Params, state: State, x: Any) -> tuple[State, Any]:
        """Return the next carry and the output."""
        out: tuple[State, Any] = self.module(params)(state, x)
        return out

    def module(self, params: Params) -> Any:
        """Return the module with these params, such as trained ones."""
        from flax import nnx

        return nnx.merge(self.graph, params, self.fixed)


def _split(module: Any) -> tuple[Any, Params, Any]:
    """Return the graph of a module of flax.nnx, its parameters as plain dicts, and its other arrays."""
    from flax import nnx

    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, params, rest = parts
    return graph, nnx.to_pure_dict(params), rest


def flax_cell(module: Any, *, inputs: int | None = None) -> LinenCell | NNXCell:
    """Make a cell of a recurrent module of Flax, of either API.

    Args:
        module: a cell of `flax.linen`, such as `nn.LSTMCell(features)`; one of `flax.nnx`, such as
            `nnx.LSTMCell(inputs, hidden, rngs=rngs)`, whose arrays are then what `params` returns; or a function
            `key -> module` that makes one of `flax.nnx`, by which `params(key)` draws anew.
        inputs: size of x; needed where the module doesn't say it, as in `flax.linen`.

    Returns:
        A cell whose params are the module's own, as plain nested dicts, and whose state is its carry, which starts as it does
        with key 0. One of `flax.nnx` has `.module(params)`, the module with trained arrays, and keeps all other variables as
        they are.

    Raises:
        InvalidArgument: what was passed is no such cell, its input size isn't known, or it has collections beside `params`.

    Example:
        >>> from flax import nnx
        >>> cell = flax_cell(lambda key: nnx.GRUCell(2, 5, rngs=nnx.Rngs(key)))
        >>> params = cell.params(jax.random.key(0))
        >>> h, output = cell.step(params, cell.init(params), jnp.ones(2))
        >>> sorted(params), output.shape
        (['dense_h', 'dense_i'], (5,))
    """
    make = module if _makes_one(module) and not hasattr(module, "apply") else None
    made = module if make is None else make(jax.random.key(0))
    if isinstance(made, type) or not hasattr(made, "initialize_carry"):
        got = (
            f"the class {made.__name__}"
            if isinstance(made, type)
            else f"{type(made).__name__} without initialize_carry"
        )
        raise InvalidArgument(
            f"flax_cell: module must be a recurrent cell with initialize_carry, called as module(carry, x), got {got}. "
            "Pass nn.LSTMCell(features), nnx.LSTMCell(inputs, hidden, rngs=rngs) or a function key -> module."
        )
    inputs = getattr(made, "in_features", None) if inputs is None else inputs
    if inputs is None:
        raise InvalidArgument(
            f"flax_cell: inputs must be given for a {type(made).__name__}, got inputs=None. Pass the size of x."
        )
    check_counts("flax_cell", inputs=inputs)
    return _linen(made, inputs) if hasattr(made, "apply") else _nnx(made, inputs, make)


def _linen(module: Any, inputs: int) -> LinenCell:
    start = strong(module.initialize_carry(jax.random.key(0), (inputs,)))
    others = set(jax.eval_shape(module.init, jax.random.key(0), start, jnp.zeros(inputs))) - {"params"}
    if others:
        raise InvalidArgument(
            f"flax_cell: a cell must keep its numbers in params and in its carry, got the collections "
            f"{', '.join(sorted(others))}. Write an object with params, init and step that carries them in its state."
        )
    return LinenCell(start, module, inputs)


def _nnx(module: Any, inputs: int, make: Callable[[Key], Any] | None) -> NNXCell:
    from flax import nnx

    graph, own, fixed = _split(module)
    return NNXCell(own, fixed, strong(module.initialize_carry((inputs,), nnx.Rngs(0))), graph, make)
