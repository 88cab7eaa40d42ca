"""What `diagnose` and `compare` have in common: load the target, measure, write the folder, print."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import typer

from unrollax._report import render
from unrollax._run import describe_environment, new_folder, numbered_folder, plain
from unrollax._sections import sections_of
from unrollax.cli._config import UsageError
from unrollax.cli._failure import INTERRUPTED, USAGE, Failure, explain, say, slug
from unrollax.cli._progress import StatusLine
from unrollax.cli._study import Output, StudyConfig
from unrollax.cli._subject import Subject, find_subject

REPORT = "report.html"
Measure: TypeAlias = Callable[[Callable[[str], None]], Any]  # told whom to tell of its progress


class Study(NamedTuple):
    """A kind of measurement: its name, the file that it writes, and what returns what measures, if the target can be so."""

    name: str
    file: str
    prepare: Callable[[Subject], Measure]


def run_study(study: Study, config: StudyConfig, output: Output) -> int:
    """Measure a target and return the exit code. What the user's file prints goes to stderr: stdout is the result's."""
    gc.enable()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            subject = find_subject(config)
            measure = study.prepare(subject)
            kept = output.out is not None and output.out.exists()
            folder = _folder(study, config, output.out)
            found, text = _measured(study, config, subject, measure, folder, output, kept=kept)
    except KeyboardInterrupt:
        return say(Failure("interrupted", INTERRUPTED))
    except UsageError as error:
        return say(Failure(str(error), USAGE))
    except Exception as error:
        return say(explain(config.target, error))
    typer.echo(text if output.as_json else f"{found}\n\nreport  {folder / REPORT}")
    return 0


def _folder(study: Study, config: StudyConfig, out: Path | None) -> Path:
    return new_folder(out) if out else numbered_folder(Path("runs"), f"{slug(config.target)}-{study.name}")


def _measured(
    study: Study, config: StudyConfig, subject: Subject, measure: Measure, folder: Path, output: Output, *, kept: bool
) -> tuple[Any, str]:
    """Return the result and it as JSON, both written; where there is none, remove what was made, the folder unless `kept`."""
    try:
        with StatusLine(output.quiet, "compiling ...") as line:
            found = measure(line.update)
            line.update("writing the report ...")
            return found, _write(study, config, subject, found, folder, output)
    except BaseException:
        if not kept:
            shutil.rmtree(folder)
        for name in (study.file, REPORT) if kept else ():
            (folder / name).unlink(missing_ok=True)
        raise


def _write(study: Study, config: StudyConfig, subject: Subject, found: Any, folder: Path, output: Output) -> str:
    environment = describe_environment()
    about = {"target": config.target, "horizon": subject.horizon, "seed": config.seed, "command": output.repeat}
    record = {**about, "out": str(folder), **found.to_dict()}
    text = json.dumps(json_ready(record), allow_nan=False)
    (folder / study.file).write_text(json.dumps(json_ready({**record, "environment": environment})) + "\n", "utf-8")
    summary: dict[str, Any] = {
        "target": config.target,
        "steps": subject.horizon,
        "numbers in params": _count(subject.params),
    }
    page = render(
        f"unrollax {study.name}: {config.target}",
        {**summary, "devices": ", ".join(sorted(set(environment["devices"])))},
        sections_of(found),
        {},
        output.repeat,
    )
    (folder / REPORT).write_text(page, encoding="utf-8")
    return text


def _count(params: Any) -> int:
    return sum(int(jax.numpy.size(leaf)) for leaf in jax.tree.leaves(params))


def json_ready(item: Any) -> Any:
    """Return what JSON can hold: NaN and infinity, which it lacks, as strings."""
    if isinstance(item, Mapping):
        return {str(name): json_ready(part) for name, part in item.items()}
    if isinstance(item, (list, tuple)):
        return [json_ready(part) for part in item]
    return plain(item)


def key_of(config: StudyConfig) -> jax.Array:
    """Return the key that all randomness comes from."""
    return jax.random.key(config.seed)
