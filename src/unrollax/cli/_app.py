"""The commands and their options."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from unrollax.cli._failure import fail
from unrollax.cli._study_app import compare, diagnose
from unrollax.cli._unfold_app import export, unfold

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learning through anything you can unroll: write one step, swap the gradient estimator.",
    epilog="Exit codes: 0 done, 2 usage, 3 the user's system raised, 4 diverged.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("unrollax"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold options that stand before a command."""


@app.command()
def train(
    target: Annotated[str, typer.Argument(help="A recipe, path/to/file.py:name, or the run.toml of an earlier run.")],
    estimator: Annotated[
        str | None,
        typer.Option(help="bptt, tbptt, rtrl, es, pes, nres, ...; its other options: --set estimator.KEY=VALUE."),
    ] = None,
    window: Annotated[int | None, typer.Option(help="Steps to an update.")] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps between resets, a multiple of the window.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Antithetic pairs of an evolution strategy.")] = None,
    std: Annotated[float | None, typer.Option(help="Standard deviation of an evolution strategy's noise.")] = None,
    directions: Annotated[int | None, typer.Option(help="Directions of forward-gradient or uoro.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, momentum, adam, muon, shampoo, soap, ...; see docs/optimizers.md.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates to make.")] = None,
    seed: Annotated[int | None, typer.Option(help="All randomness comes from it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; a new one under runs/ by default.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the target, or estimator.KEY=VALUE."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Train a target and write a run folder with its metrics, parameters and a report."""
    from unrollax._run import is_taken
    from unrollax.cli._config import UsageError, parse_set, resolve

    try:
        options, more = parse_set(set_ or [], target)
    except UsageError as error:
        fail(str(error))
    given: dict[str, Any] = {
        "estimator": {
            **more,
            "name": estimator,
            "window": window,
            "horizon": horizon,
            "pairs": pairs,
            "std": std,
            "directions": directions,
        },
        "optimizer": {"name": optimizer, "lr": lr},
        "steps": steps,
        "seed": seed,
    }
    if out is not None and is_taken(out):
        fail(f"--out must be a new or empty folder, got {out}. Choose another, or remove it.")
    try:
        config = resolve(target, given, options)
    except UsageError as error:
        fail(str(error))
    from unrollax.cli._train import train_target

    raise typer.Exit(train_target(config, out, as_json=as_json, quiet=quiet))


app.command()(diagnose)
app.command()(compare)
app.command()(unfold)
app.command()(export)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A run folder of the recipe text, or its run.toml.")],
    prompt: Annotated[
        str | None, typer.Option(help="The text to go on from; by default a line's end, or else a blank.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Characters to write.")] = 400,
    temperature: Annotated[
        float, typer.Option(help="Below 1 likelier characters, above 1 rarer ones; 0: the likeliest each time.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="All randomness comes from it.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON, when all is written.")] = False,
) -> None:
    """Write text with a trained character model, each character as it comes."""
    from unrollax.cli._config import UsageError
    from unrollax.cli._text_run import find_text_run

    if not temperature >= 0:
        fail(f"--temperature must be 0 or more, got {temperature}.")
    if prompt == "":
        fail("--prompt must have a character or more, got none.")
    try:
        found = find_text_run(run)
        prompt = found.opening if prompt is None else prompt
        found.codes(prompt)
    except UsageError as error:
        fail(str(error))
    from unrollax.cli._sample import sample_text

    raise typer.Exit(sample_text(found, prompt, length=length, temperature=temperature, seed=seed, as_json=as_json))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show what can be set on this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the built-in recipes, or what can be set on one of them."""
    from unrollax.cli._config import UsageError, find_recipe
    from unrollax.recipes._options import RECIPES

    try:
        chosen = {name: find_recipe(name)} if name else RECIPES
    except UsageError as error:
        fail(str(error))
    about = {
        each: {
            "about": (recipe.options.__doc__ or "").strip(),
            "options": {
                option: {"default": field.default, "about": field.description}
                for option, field in recipe.options.model_fields.items()
            },
        }
        for each, recipe in chosen.items()
    }
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    for each, row in about.items():
        typer.echo(f"{each:<20} {row['about']}")
        for option, field in row["options"].items() if name else ():  # type: ignore[attr-defined]
            typer.echo(f"    --set {option}={json.dumps(field['default'])}".ljust(32) + field["about"])
    if not name:
        typer.echo("\nOptions of one: unrollax recipes NAME. Run one: unrollax train NAME")
