"""A trained algorithm for those who run it elsewhere: its numbers as CSV or arrays, its code as plain NumPy."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice
from unrollax._errors import InvalidArgument
from unrollax._schedule import is_schedule, resolve, values_of
from unrollax._tree import describe, strong, to_arrays
from unrollax._types import Params
from unrollax.plain import Source
from unrollax.plain._block import Writer
from unrollax.plain._source import RULES, function_source, module_text
from unrollax.plain._text import broken, constant
from unrollax.plain._trees import Rebuild
from unrollax.systems import Unfold

WIDEST = 256  # columns of a CSV file
INLINE = 1024  # numbers of a coefficient that is written into the source


def export(
    net: Unfold,
    params: Params,
    to: Literal["csv", "npz", "numpy"] = "numpy",
    *,
    answer: Callable[[Any], Any] | None = None,
) -> str | dict[str, np.ndarray] | Source:
    """Return a trained algorithm in a form that needs neither JAX nor unrollax.

    Args:
        net: the unfolded algorithm.
        params: schedules and whatever else was trained.
        to: `"csv"`: text with a row an iteration and a column a coefficient; `"npz"`: arrays by path for `numpy.savez`,
            `[horizon, ...]` for schedules and as they are for what is none; `"numpy"`: the source of a module with
            `step(theta, x, problem)` and `solve(problem, iterations)`, whose large arrays belong into an `.npz` of the same
            name beside it.
        answer: `answer(x)`, the solution in the algorithm's x, such as that of a `unrollax.solvers` algorithm; x itself if
            not given.

    Raises:
        InvalidArgument: there is no such form, more than 256 columns, or a primitive without a NumPy form.

    Example:
        >>> import jax
        >>> from unrollax._export import export
        >>> from unrollax._schedules import per_step
        >>> from unrollax.systems import Unfold
        >>> net = Unfold(iteration=lambda theta, x, problem: x - theta["eta"] * (x - problem), start=jnp.zeros_like,
        ...              error=lambda x, problem: ((x - problem) ** 2).sum(),
        ...              sample=lambda key: jax.random.normal(key, (3,)), horizon=2, batch=10)
        >>> print(export(net, {"eta": per_step(jnp.array([0.5, 0.25]), 2)}, to="csv"))
        iteration,eta
        0,0.5
        1,0.25
        <BLANKLINE>
    """
    check_choice("export", "to", to, ("csv", "npz", "numpy"))
    if to == "csv":
        return export_csv(params, net.horizon)
    return export_npz(params, net.horizon) if to == "npz" else export_numpy(net, params, answer=answer)


def export_npz(params: Params, iterations: int) -> dict[str, np.ndarray]:
    """Return the coefficients by path: `[iterations, ...]` for schedules, and other leaves as they are."""
    return to_arrays(values_of(params, iterations))


def export_csv(params: Params, iterations: int) -> str:
    """Return the coefficients as text: a row an iteration, a column a number; what is no schedule is the same in all rows."""
    columns: dict[str, np.ndarray] = {}
    for (path, leaf), values in zip(_parts(params), _leaves(values_of(params, iterations)), strict=True):
        numbers = np.asarray(values, jnp.result_type(values))
        rows = numbers if is_schedule(leaf) else np.broadcast_to(numbers, (iterations, *numbers.shape))
        places = np.ndindex(*rows.shape[1:])
        columns |= {f"{path}{list(place) if place else ''}".replace(" ", ""): rows[:, *place] for place in places}
        if len(columns) > WIDEST:
            raise InvalidArgument(
                f"export: a CSV file must have at most {WIDEST} columns, got more, by leaf {path} {describe(numbers)}. "
                'Use to="npz".'
            )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["iteration", *columns])
    writer.writerows([t, *(str(column[t]) for column in columns.values())] for t in range(iterations))
    return text.getvalue()


def _parts(params: Params) -> list[tuple[str, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_schedule)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/") or "value", leaf) for path, leaf in flat]


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)


def export_numpy(net: Unfold, params: Params, *, answer: Callable[[Any], Any] | None = None) -> Source:
    """Return the source of a module that runs the algorithm with its trained numbers, and the arrays beside it."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    problem = jax.eval_shape(lambda key: strong(net.sample.whole(net.sample.draw(key))), key)
    x = jax.eval_shape(lambda problem: strong(net.start(problem)), problem)
    theta = jax.eval_shape(lambda params: strong(resolve(params, 0)), params)
    writer, rebuild = Writer(RULES, 64, holder="ARRAYS"), Rebuild()
    names = ["start", "step", "solve", "problem", "iterations", "t", "found", *(["answer"] if answer else [])]
    writer.taken |= set(names)
    texts = [_coefficients(writer, path, leaf, values) for path, leaf, values in _numbers(params, net.horizon)]
    given = rebuild.text(theta, [expression for expression, _ in texts])
    parts: list[str] = [
        function_source(
            writer, rebuild, net.start, (problem,), "start", ["problem"], "Return where the iterations start."
        ),
        function_source(
            writer,
            rebuild,
            net.iteration,
            (theta, x, problem),
            "step",
            ["theta", "x", "problem"],
            "Return x after an iteration.",
        ),
    ]
    if answer is not None:
        parts.append(function_source(writer, rebuild, answer, (x,), "answer", ["x"], "Return the solution in x."))
    parts.append(_solve(net.horizon, given, "answer(x)" if answer is not None else "x"))
    lines = [line for _, lines in texts for line in lines]
    if writer.arrays:
        lines = ['with np.load(__file__.removesuffix(".py") + ".npz") as found:', "    ARRAYS = dict(found)", *lines]
    return Source(module_text(writer, rebuild, parts, _head(net, writer), "\n".join(lines)), writer.arrays)


def _numbers(params: Params, iterations: int) -> list[tuple[str, Any, np.ndarray]]:
    values = _leaves(values_of(params, iterations))
    found = zip(_parts(params), values, strict=True)
    return [(path, leaf, np.asarray(numbers, jnp.result_type(numbers))) for (path, leaf), numbers in found]


def _coefficients(writer: Writer, path: str, leaf: Any, values: np.ndarray) -> tuple[str, list[str]]:
    """Return what stands for a coefficient at iteration t, and the lines that define it."""
    name = writer.fresh(path.replace("/", "_").upper())
    at = f"{name}[t]" if is_schedule(leaf) else name
    if values.size > INLINE:
        writer.arrays[name] = values
        return at, [f'{name} = ARRAYS["{name}"]']
    return at, broken(f"{name} = {constant(values)}")


def _solve(horizon: int, theta: str, answer: str) -> str:
    call = broken(f"        x = step({theta}, x, problem)")
    return "\n".join(
        [
            f"def solve(problem, iterations={horizon}):",
            f'    """Return the answer for a problem after some iterations, at most {horizon}."""',
            "    x = start(problem)",
            "    for t in range(iterations):",
            *call,
            f"    return {answer}",
            "",
        ]
    )


def _head(net: Unfold, writer: Writer) -> str:
    read = {name: shown for name, shown in writer.reads.items() if name.startswith("problem")}
    name = getattr(net.iteration, "__name__", "iteration")
    return "\n".join(
        [
            f'"""The trained algorithm `{name}`, {net.horizon} iterations, in plain NumPy.',
            "",
            "`solve(problem)` runs it. What is read of a problem, with dtypes and shapes:",
            *(f"    {expression}: {read[expression]}" for expression in sorted(read)),
            '"""',
        ]
    )
