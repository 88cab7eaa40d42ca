"""`unrollax diagnose` and `unrollax compare`: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unrollax.cli._failure import fail

Target = Annotated[
    str,
    typer.Argument(
        help="path/to/file.py:NAME of a system, of an Experiment or of a function that returns one; or a recipe."
    ),
]
Horizon = Annotated[
    int | None,
    typer.Option(help="Steps from a reset to the end; by default the data's, or an estimator's in the file."),
]
Params = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The parameters in the file, or a function of a key; by default params."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The data in the file: leaves [steps, ...], data(n) for window n, or data(t, steps); by default data.",
    ),
]
Seed = Annotated[int | None, typer.Option(help="All randomness comes from it.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of a recipe, or of a function.")
]
Out = Annotated[Path | None, typer.Option(help="The folder to write; a new one under runs/ by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]


def diagnose(
    context: typer.Context,
    target: Target,
    horizon: Horizon = None,
    params: Params = None,
    data: Data = None,
    seed: Seed = None,
    verify: Annotated[bool, typer.Option("--verify", help="Measure whether the advice does what it says.")] = False,
    set_: Set = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure where the gradient of a system dies or explodes, and say what to do about it."""
    from unrollax.cli._config import UsageError, parse_set
    from unrollax.cli._study import Output, study

    _check_out(out)
    try:
        options, more = parse_set(set_ or [], target)
        if more:
            fail("diagnose looks at a system, whatever the estimator: it takes no --set estimator.KEY.")
        config = study(target=target, horizon=horizon, params=params, data=data, seed=seed, options=options)
    except UsageError as error:
        fail(str(error))
    from unrollax.cli._diagnose import diagnose_target

    output = Output(_repeat(context), out, as_json, quiet)
    raise typer.Exit(diagnose_target(config, verify, output, _repeat(context, "train", ("seed", "set_"))))


def compare(
    context: typer.Context,
    target: Target,
    estimators: Annotated[
        str, typer.Option(help="Names, each with its window after a colon if it takes one.")
    ] = "bptt,tbptt,es,pes,nres",
    window: Annotated[str | None, typer.Option(metavar="K,K", help="Windows to try, where a name has none.")] = None,
    std: Annotated[str | None, typer.Option(metavar="STD,STD", help="Noise of evolution strategies to try.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Antithetic pairs of evolution strategies.")] = None,
    samples: Annotated[int | None, typer.Option(help="Gradients of each; more make errors smaller.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Relative error of the gradient that is aimed at.")] = None,
    unit: Annotated[str | None, typer.Option(metavar="seconds|steps", help="What cost is counted in.")] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="auto|bptt|smoothed", help="What the estimates are compared with.")
    ] = None,
    horizon: Horizon = None,
    params: Params = None,
    data: Data = None,
    seed: Seed = None,
    set_: Set = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure bias, noise and cost of gradient estimators on a system, and say which one pays."""
    from unrollax.cli._config import UsageError, parse_set
    from unrollax.cli._study import Output, comparison, parse_estimators, study

    _check_out(out)
    try:
        options, more = parse_set(set_ or [], target)
        made = parse_estimators(estimators, window, std, {"pairs": pairs, **more}, horizon)
        how = comparison(samples=samples, tolerance=tolerance, unit=unit, reference=reference)
        config = study(target=target, horizon=horizon, params=params, data=data, seed=seed, options=options)
    except UsageError as error:
        fail(str(error))
    from unrollax.cli._compare import compare_target

    raise typer.Exit(compare_target(config, made, how, Output(_repeat(context), out, as_json, quiet)))


def _repeat(context: typer.Context, command: str | None = None, kept: tuple[str, ...] | None = None) -> str:
    """Return the command line, without what only says where the result goes; or another command with some of its options."""
    import shlex

    words = ["unrollax", command or str(context.info_name), context.params["target"]]
    for option in context.command.params:
        given = context.params[str(option.name)]
        if option.name in ("target", "out", "as_json", "quiet") or given in (None, (), []) or given == option.default:
            continue
        if kept is not None and option.name not in kept:
            continue
        for each in given if isinstance(given, (list, tuple)) else [given]:
            words += [option.opts[0]] if each is True else [option.opts[0], str(each)]
    return shlex.join(words)


def _check_out(out: Path | None) -> None:
    from unrollax._run import is_taken

    if out is not None and is_taken(out):
        fail(f"--out must be a new or empty folder, got {out}. Choose another, or remove it.")
