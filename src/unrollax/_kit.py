"""What the conformance kit runs and how it compares: its systems, its enumeration of noise, its oracles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._count import mark
from unrollax._system import FunctionSystem, system
from unrollax._tree import leaves_with_names, to_arrays
from unrollax._types import Data, Estimate, Key, Params, State, System

SIZE, WINDOW, WINDOWS = 2, 2, 3  # parameters, steps of a window, windows of a horizon: 2^6 sign patterns
HORIZON = WINDOW * WINDOWS


def quadratic(scale: float = 1.0) -> FunctionSystem:
    """Return a system whose losses are quadratic in the parameters of every window, and whose init depends on them."""
    across = jnp.array([[0.6, 0.3, 0.0], [-0.2, 0.7, 0.1], [0.0, 0.4, -0.5]])
    into = jnp.array([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]])

    def init(key: Key, params: Params) -> State:
        return into @ (vector(params) + 1)

    def step(params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        state = across @ state + into @ vector(params) + x
        return state, scale * (0.5 * (state**2).sum() + vector(params) @ state[:2])

    return system(init=init, step=step)


def marked() -> FunctionSystem:
    """Return `quadratic` with a mark in each step, for counting."""
    plain = quadratic()

    def step(params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        state = state.at[0].set(mark(state[0] + 0 * vector(params).sum()))
        return plain.step(params, state, x, key)

    return system(init=plain.init, step=step)


def documented(estimator: Any) -> dict[str, float]:
    """Return the passes that an estimator's traits promise for a system with `SIZE` parameters and 3 states."""
    names = {"params": SIZE, "states": 3, "min": min, "max": max}
    fields = {f.name: getattr(estimator, f.name) for f in dataclasses.fields(estimator)}
    for name in ("window", "horizon"):
        fields[name] = getattr(estimator, name, None)
    formulas = estimator.traits.cost._asdict()
    return {kind: eval(text, {"__builtins__": {}}, {**fields, **names}) for kind, text in formulas.items()}


def clock() -> FunctionSystem:
    """Return a system whose loss is its data."""

    def step(params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        return state, x + 0 * vector(params).sum()

    return system(init=lambda *_: jnp.zeros(()), step=step)


def noise_only() -> FunctionSystem:
    """Return a random walk that the parameters do not touch."""

    def init(key: Key, params: Params) -> State:
        return jax.random.normal(key, ())

    def step(params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        state = state + jax.random.normal(key, ())
        return state, state

    return system(init=init, step=step)


def mixed() -> FunctionSystem:
    """Return a system whose parameters and state hold all kinds of leaves."""

    def init(key: Key, params: Params) -> State:
        return {
            "h": jnp.zeros(3),
            "count": 0,
            "half": jnp.zeros((), jnp.bfloat16),
            "on": True,
            "none": None,
            "key": key,
        }

    def step(params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        h = jnp.tanh(state["h"] * params["a"] + params["inner"][0].astype(float))
        state = {
            **state,
            "h": h,
            "count": state["count"] + 1,
            "half": state["half"] + 1,
            "on": ~state["on"],
            "key": key,
        }
        return state, (h**2).sum()

    return system(init=init, step=step)


MIXED = {"a": np.float64(0.3), "inner": [jnp.full(3, 0.2, jnp.bfloat16), None]}


def start() -> dict[str, jax.Array]:
    """Return the parameters of the checks: two leaves, told apart by their rank, so that leaves can't be mixed up."""
    return {"a": jnp.array([0.4]), "b": jnp.array([[-0.7]])}


def vector(params: Params) -> jax.Array:
    """Return parameters or a gradient as one vector, `[SIZE]`."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])


def some_data(windows: int) -> np.ndarray:
    """Return fixed inputs for `quadratic`, `[windows * WINDOW, 3]`."""
    return np.random.default_rng(0).normal(size=(windows * WINDOW, 3))


def deal(rows: Any) -> Callable[..., jax.Array]:
    """Return a sampler that gives row i of an array `[draws, numbers in params]` to draw i of a window."""
    rows = jnp.asarray(rows)

    @jax.custom_batching.custom_vmap
    def take(key: jax.Array) -> jax.Array:
        return rows[0]

    @take.def_vmap
    def _(axis_size: int, in_batched: list[bool], key: jax.Array) -> tuple[jax.Array, bool]:
        assert axis_size <= len(rows), f"the sampler was asked for {axis_size} draws, there are {len(rows)}"
        return rows[:axis_size], True

    return lambda key, shape, dtype: take(jax.random.key_data(key)).astype(dtype).reshape(shape)


def signs(index: int, windows: int) -> np.ndarray:
    """Return all sign patterns of `windows` windows as they are dealt out in window `index`, `[patterns, SIZE]`."""
    bits = np.arange(2 ** (SIZE * windows))[:, None] >> (index * SIZE + np.arange(SIZE))
    return 1.0 - 2 * (bits & 1)


def count_of(estimator: Any) -> str | None:
    """Return the field that holds an estimator's number of draws, `None` if it has no such field."""
    return next((name for name in ("pairs", "directions") if has_field(estimator, name)), None)


def has_field(estimator: Any, name: str) -> bool:
    """Whether `dataclasses.replace` can change a field."""
    return dataclasses.is_dataclass(estimator) and name in {field.name for field in dataclasses.fields(estimator)}


def enumerated(estimator: Any, windows: int) -> np.ndarray | None:
    """Return all sign patterns as the draws of each window, `[windows, draws, SIZE]`; `None` if they can't be dealt."""
    chunked = getattr(estimator, "chunk", None) or getattr(estimator, "noise", None) == "regenerated"
    if count_of(estimator) is None or not has_field(estimator, "sampler") or chunked:
        return None
    return np.stack([signs(index, windows) for index in range(windows)])


def length(estimator: Any) -> int:
    """Return the steps of a call."""
    return int(getattr(estimator, "window", WINDOW))


def run(
    estimator: Any, windows: int, params: Params, data: Data, key: Key, rows: np.ndarray | None = None
) -> tuple[list[State], list[Estimate]]:
    """Run windows on consecutive pieces of `data` (or none); `rows` are dealt as noise. States before and after."""
    if rows is not None:
        estimator = dataclasses.replace(estimator, **{str(count_of(estimator)): rows.shape[1]})

    @jax.jit
    def call(noise: Any, state: State, piece: Data) -> tuple[State, Estimate]:
        now = estimator if noise is None else dataclasses.replace(estimator, sampler=deal(noise))
        out: tuple[State, Estimate] = now.estimate(params, state, piece)
        return out

    state, steps = estimator.init(key, params), length(estimator)
    states, estimates = [state], []
    for index in range(windows):
        piece = None if data is None else data[index * steps : (index + 1) * steps]
        state, estimate = call(None if rows is None else rows[index], state, piece)
        states.append(state)
        estimates.append(estimate)
    return states, estimates


def mean_grad(estimates: list[Estimate]) -> np.ndarray:
    """Return the mean of the windows' gradients."""
    return np.mean([np.asarray(vector(estimate.grad)) for estimate in estimates], axis=0)


def analytic(system: System, window: int | None, data: np.ndarray) -> np.ndarray:
    """Return the gradient of the mean step loss by `jax.grad`, without what crosses windows unless `window` is `None`."""

    def total(params: Params) -> jax.Array:
        state, losses = system.init(jax.random.key(0), params), []
        for now, x in enumerate(data):
            if window is not None and now and now % window == 0:
                state = jax.lax.stop_gradient(state)
            state, loss = system.step(params, state, x, jax.random.key(0))
            losses.append(loss)
        return jnp.stack(losses).mean()

    return np.asarray(vector(jax.grad(total)(start())))


def close(what: str, got: Any, expected: Any, tolerance: float) -> None:
    """Raise `AssertionError` unless two arrays agree to `tolerance`, absolute and relative."""
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=what)


def equal(what: str, got: Any, expected: Any) -> None:
    """Raise `AssertionError` unless two trees have the same arrays to the bit."""
    got, expected = to_arrays(got), to_arrays(expected)
    assert got.keys() == expected.keys(), f"{what}: leaves {sorted(got)} against {sorted(expected)}"
    for name, array in got.items():
        assert array.tobytes() == expected[name].tobytes(), f"{what}: {name} differs, {array} against {expected[name]}"


def build(make: Callable[..., Any], system: System, x: Any, window: int = WINDOW, horizon: int = HORIZON) -> Any:
    """Make an estimator; one that keeps data, in a field `x`, is shown one step of them."""
    estimator = make(system, window=window, horizon=horizon)
    return dataclasses.replace(estimator, x=x) if has_field(estimator, "x") else estimator


def recorder(record: list[tuple[int, bytes]]) -> FunctionSystem:
    """Return a system that notes its time (-1 in init) and key at every step."""

    def note(now: Any, key: Any) -> None:
        record.append((int(now), np.asarray(key).tobytes()))

    def init(key: Key, params: Params) -> State:
        jax.debug.callback(note, -1, jax.random.key_data(key))
        return jnp.zeros((), jnp.int32), vector(params).sum()

    def step(params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        now, total = state
        jax.debug.callback(note, now, jax.random.key_data(key))
        return (now + 1, total), total

    return system(init=init, step=step)


def recording(sampler: Callable[..., jax.Array], record: list[bytes]) -> Callable[..., jax.Array]:
    def draw(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        jax.debug.callback(lambda data: record.append(np.asarray(data).tobytes()), jax.random.key_data(key))
        return sampler(key, shape, dtype)

    return draw


def signature(state: State) -> list[Any]:
    """Return what makes `jit` trace anew: path, shape, dtype and weak type of every leaf."""
    return [
        (name, leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for name, leaf in leaves_with_names(state)
    ]


def shard(leaf: jax.Array) -> jax.Array:
    """Spread a leaf over all devices along its first axis, if the axis can be divided; else copy it to each."""
    mesh = jax.make_mesh((len(jax.devices()),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = leaf.ndim > 0 and leaf.shape[0] % mesh.size == 0
    spec = jax.sharding.PartitionSpec("all") if divided else jax.sharding.PartitionSpec()
    return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))
