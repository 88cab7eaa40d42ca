"""`unrollax sample`: read a prompt, and write on."""

from __future__ import annotations

import gc
import itertools
import json

import jax
import typer

from unrollax._checkpoint import load_params
from unrollax._errors import StructureError
from unrollax.cli._text_run import TextRun
from unrollax.recipes import _text

USAGE, INTERRUPTED = 2, 130  # exit codes


def sample_text(run: TextRun, prompt: str, *, length: int, temperature: float, seed: int, as_json: bool) -> int:
    """Write the prompt and `length` characters after it, each as it comes, and return the exit code."""
    gc.enable()
    net = _text.model(run.options, len(run.alphabet))
    like = jax.eval_shape(net.params, jax.random.key(0))
    try:
        params = load_params(run.folder / "params.safetensors", like=like)
        codes = _text.continuation(net, params, run.codes(prompt), jax.random.key(seed), temperature)
        characters = (run.alphabet[code] for code in itertools.islice(codes, length))
        if as_json:
            about = {"run": str(run.folder), "prompt": prompt, "temperature": temperature, "seed": seed}
            typer.echo(json.dumps({**about, "text": "".join(characters)}))
            return 0
        typer.echo(prompt, nl=False)
        for character in characters:
            typer.echo(character, nl=False)
    except StructureError as error:
        typer.echo(f"unrollax: {error}", err=True)
        return USAGE
    except KeyboardInterrupt:
        typer.echo()
        return INTERRUPTED
    typer.echo()
    return 0
