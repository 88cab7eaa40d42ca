"""`unrollax unfold` and `unrollax export`: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unrollax.cli._failure import fail


def unfold(
    target: Annotated[
        str, typer.Argument(help="linear, mimo, ridge, sparse, path/to/file.py:name, or an earlier run.toml.")
    ],
    algorithm: Annotated[str | None, typer.Option(help="gradient-descent, heavy-ball, ista, tista, ...")] = None,
    depth: Annotated[int | None, typer.Option(help="Iterations to unfold.")] = None,
    period: Annotated[
        int | None, typer.Option(help="Entries that repeat; by default each iteration has its own.")
    ] = None,
    plan: Annotated[str | None, typer.Option(help="one-shot, incremental or random depths.")] = None,
    loss: Annotated[str | None, typer.Option(help="final, or anytime for all iterations.")] = None,
    init: Annotated[str | None, typer.Option(help="usual constants, or chebyshev steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates to make.")] = None,
    batch: Annotated[int | None, typer.Option(help="Fresh problems to an update.")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate at first; it falls to 0.")] = None,
    seed: Annotated[int | None, typer.Option(help="All randomness comes from it.")] = None,
    search: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Try N settings, and keep the best one as the run.")
    ] = None,
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME=LOW:HIGH",
            help="What a search looks through, or NAME=CHOICE,CHOICE; by default the learning rate.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; a new one under runs/ by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the target.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Train the numbers of an iterative algorithm, and show its errors beside those of others."""
    from unrollax._run import is_taken
    from unrollax.cli._config import UsageError, parse_set
    from unrollax.cli._search_config import search_of
    from unrollax.cli._unfold_config import resolve

    given: dict[str, Any] = {"algorithm": algorithm, "depth": depth, "period": period, "plan": plan, "loss": loss}
    given |= {"init": init, "steps": steps, "batch": batch, "lr": lr}
    try:
        options, more = parse_set(set_ or [])
        if more:
            raise UsageError("unfold trains by backpropagation at the plan's depth: it takes no --set estimator.KEY.")
        config = resolve(target, given, seed, options)
        wanted = search_of(search, range_ or [], config)
    except UsageError as error:
        fail(str(error))
    if out is not None and is_taken(out):
        fail(f"--out must be a new or empty folder, got {out}. Choose another, or remove it.")
    from unrollax.cli._unfold import unfold_target

    raise typer.Exit(unfold_target(config, out, as_json=as_json, quiet=quiet, search=wanted))


def export(
    run: Annotated[Path, typer.Argument(help="A run folder of unrollax unfold.")],
    to: Annotated[str, typer.Option(help="csv, npz or numpy: a module of plain NumPy.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="The file to write; by default in the run folder.")] = None,
) -> None:
    """Write the trained numbers of an unfolding as a table, as arrays, or as a NumPy function with the same outputs."""
    from unrollax.cli._config import UsageError
    from unrollax.cli._unfold_config import resolve

    if to not in ("csv", "npz", "numpy"):
        fail(f"--to must be csv, npz or numpy, got {to}.")
    path = run / "run.toml" if run.is_dir() else run
    if not path.is_file() or path.name != "run.toml":
        fail(f"RUN must be a run folder of unrollax unfold, or its run.toml, got {run}. Make one with: unrollax unfold")
    if out is not None and out.exists():
        fail(f"--out must be a new file, got {out}. Choose another, or remove it.")
    try:
        config = resolve(str(path), {}, None, {})
    except UsageError as error:
        fail(str(error))
    from unrollax.cli._export import export_run

    raise typer.Exit(export_run(config, path.parent, to, out))
