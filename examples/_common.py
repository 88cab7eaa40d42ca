"""What the examples share: options, a training run for several seeds, the table of claims, golden curves and pictures."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import unrollax as ux

GOLDEN = Path(__file__).parent.parent / "benchmarks" / "golden"
CHUNK = 250  # estimates at once: what they need stays in cache
# Colours that readers with any colour vision can tell apart (Okabe and Ito), black last.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#000000")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


class Claim(NamedTuple):
    """One published figure: what it is of, the limits that it must keep, and what was seen here."""

    text: str
    low: float
    high: float
    seen: float

    @property
    def ok(self) -> bool:
        """Whether the figure is within its limits; a figure that overflowed counts as infinite."""
        return self.low <= (math.inf if math.isnan(self.seen) else self.seen) <= self.high

    def expected(self) -> str:
        """Return the limits in words."""
        if math.isinf(self.high):
            return f"above {self.low:.4g}"
        return f"below {self.high:.4g}" if math.isinf(self.low) else f"{self.low:.4g} to {self.high:.4g}"


class Result(NamedTuple):
    """What a script found: its setting, its claims, the curve to keep, and more for its picture."""

    config: dict[str, Any]
    claims: list[Claim]
    curve: dict[str, Any]
    extra: Any = None


def below(text: str, limit: float, seen: Any) -> Claim:
    """Claim that a figure is below a limit."""
    return Claim(text, -math.inf, limit, float(seen))


def above(text: str, limit: float, seen: Any) -> Claim:
    """Claim that a figure is above a limit."""
    return Claim(text, limit, math.inf, float(seen))


def between(text: str, low: float, high: float, seen: Any) -> Claim:
    """Claim that a figure is within two limits."""
    return Claim(text, low, high, float(seen))


def trained(
    training: ux.Training, params: Any, data: Any, *, seeds: Sequence[int], updates: int, every: int
) -> tuple[Any, np.ndarray]:
    """Train once for each seed.

    Seeds run one after the other: what one of them needs stays in cache, and a reset is not computed where there is none.

    Returns:
        The parameters before update 0, `every`, 2 `every`, ... , leaves `[seeds, updates / every + 1, ...]`, and the mean
        of the training loss over each of these blocks, `[seeds, updates / every]`.
    """

    def one(key: jax.Array) -> tuple[Any, jax.Array]:
        def update(state: ux.TrainState, _: Any) -> tuple[ux.TrainState, jax.Array]:
            state, metrics = training.step(state, data)
            return state, metrics.loss

        def block(state: ux.TrainState, _: Any) -> tuple[ux.TrainState, tuple[Any, jax.Array]]:
            before = state.params
            state, losses = jax.lax.scan(update, state, length=every)
            return state, (before, losses.mean())

        state, (seen, losses) = jax.lax.scan(block, training.init(key, params), length=updates // every)
        return jax.tree.map(lambda s, p: jnp.concatenate([s, p[None]]), seen, state.params), losses

    run = jax.jit(one)
    parts = [jax.device_get(run(jax.random.key(seed))) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


@functools.partial(jax.jit, static_argnames="windows")
def horizon_gradients(estimator: Any, params: Any, data: Any, keys: jax.Array, windows: int) -> jax.Array:
    """Return, for each key, the mean over the windows of a horizon of the estimates, flat, `[keys, params]`."""
    parts = jax.tree.map(lambda leaf: leaf.reshape(windows, -1, *leaf.shape[1:]), data)

    def one(key: jax.Array) -> jax.Array:
        def body(carry: Any, rows: Any) -> tuple[Any, None]:
            state, total = carry
            state, estimate = estimator.estimate(params, state, rows)
            return (state, jax.tree.map(jnp.add, total, estimate.grad)), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        (_, total), _ = jax.lax.scan(body, (estimator.init(key, params), zeros), parts, length=windows)
        return ravel_pytree(total)[0] / windows

    if len(keys) <= CHUNK:
        return jax.vmap(one)(keys)
    return jax.lax.map(one, keys, batch_size=CHUNK)


def medians(values: np.ndarray) -> np.ndarray:
    """Return medians over the first axis, the seeds; what overflowed counts as infinite."""
    return np.median(np.where(np.isnan(values), np.inf, values), axis=0)


def numbers(values: Any) -> Any:
    """Return nested lists of numbers of nine digits, `None` for what is not finite: JSON has no infinity."""
    if isinstance(values, dict):
        return {name: numbers(part) for name, part in values.items()}
    if np.ndim(values):
        return [numbers(part) for part in values]
    if np.issubdtype(np.result_type(values), np.integer):
        return int(values)
    return float(f"{float(values):.9g}") if np.isfinite(values) else None


def table(claims: Sequence[Claim]) -> str:
    """Return what was expected beside what was seen, a line a claim."""
    rows = [(claim.text, claim.expected(), f"{claim.seen:.4g}", "PASS" if claim.ok else "MISS") for claim in claims]
    rows = [("claim", "expected", "seen", ""), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 4], strict=True)) for row in rows
    )


def main(
    file: str,
    doc: str,
    run: Callable[..., Result],
    draw: Callable[[Result, Any], None],
    *,
    seeds: int,
    tolerance: float,
    size: tuple[float, float],
) -> None:
    """Read the options, run, and print, draw or write what was found."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the golden file's content instead of the table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture to FILE (.svg or .png)")
    parser.add_argument("--quick", action="store_true", help="a short run, too short for most claims")
    parser.add_argument("--seeds", type=int, default=seeds, help="runs from different seeds, or pairs to draw")
    parser.add_argument("--golden", action="store_true", help="write benchmarks/golden/ (a full and a quick run)")
    options = parser.parse_args()
    with jax.enable_x64(True):
        began = time.perf_counter()
        result = run(seeds=options.seeds, quick=options.quick)
        seconds = time.perf_counter() - began
        if options.golden or options.json:
            quick = run(seeds=seeds, quick=True)
            content = golden_text(Path(file).name, options.seeds, result, quick, tolerance)
    if options.golden:
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{Path(file).stem}.json").write_text(content)
    if options.plot:
        _picture(draw, result, options.plot, size)
    if options.json:
        print(content, end="")
        return
    print(table(result.claims))
    print(f"{seconds:.0f} s on {os.cpu_count()} cores" + "; too short for most claims" * options.quick)


def golden_text(name: str, seeds: int, result: Result, quick: Result, tolerance: float) -> str:
    """Return a golden file: one line for each list of numbers, so that a change is a readable diff."""
    claims = [{"claim": c.text, "expected": c.expected(), "seen": numbers(c.seen), "ok": c.ok} for c in result.claims]
    parts = {
        "command": f"examples/{name} --golden",
        "seeds": seeds,
        "config": result.config,
        "claims": claims,
        "tolerance": {"relative": tolerance},
        "curve": numbers(result.curve),
        "quick": {"config": quick.config, "curve": numbers(quick.curve)},
    }
    return _indent(parts) + "\n"


def _indent(part: Any, depth: int = 0) -> str:
    """Return JSON where a list of numbers, or of lists of numbers, is one line each."""
    inner = "  " * (depth + 1)
    if isinstance(part, dict):
        rows = [f"{inner}{json.dumps(name)}: {_indent(value, depth + 1)}" for name, value in part.items()]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * depth + "}" if rows else "{}"
    if isinstance(part, list) and part and isinstance(part[0], (dict, list)):
        rows = [inner + (json.dumps(row) if isinstance(row, dict) else _indent(row, depth + 1)) for row in part]
        return "[\n" + ",\n".join(rows) + "\n" + "  " * depth + "]"
    return json.dumps(part)


def _picture(draw: Callable[[Result, Any], None], result: Result, path: Path, size: tuple[float, float]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "unrollax"}
    )
    figure = plt.figure(figsize=size, layout="constrained")
    draw(result, figure)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
