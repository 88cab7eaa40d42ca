"""`unrollax unfold`: train an unfolding, and show what came of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import typer

from unrollax._errors import InvalidArgument
from unrollax._figures import Plot
from unrollax._report import Curve, Section, render
from unrollax._run import RunFolder, flat, plain
from unrollax._schedule import schedules_of, values_of
from unrollax._sections import sections_of
from unrollax._train import Progress
from unrollax._unfolded import Unfolding, check_unfolding, scores_of
from unrollax._unfolding import fit_unfold
from unrollax.cli._config import is_file_target
from unrollax.cli._failure import INTERRUPTED, Failure, explain, say, slug
from unrollax.cli._findings import as_json, diagnosed, short_path, worth_a_line
from unrollax.cli._fitting import params_of, train_in
from unrollax.cli._load import from_file
from unrollax.cli._progress import ProgressLine, StatusLine
from unrollax.cli._search_config import Search
from unrollax.cli._unfold_config import UnfoldConfig
from unrollax.diagnosis._schedule_report import ScheduleReport
from unrollax.recipes._unfold_options import UNFOLDINGS

SHOWN = (1, 2, 4, 8, 12, 16, 32, 50)  # iterations of the table
PROBLEMS = 500  # fresh ones that errors are measured on
BLOCKS = 100  # observations of a run


def load(config: UnfoldConfig) -> Unfolding:
    """Return what a configuration names, in double precision: errors of 1e-12 are no rarity here."""
    jax.config.update("jax_enable_x64", True)
    if is_file_target(config.target):
        found = from_file(config)[1]
        if not isinstance(found, Unfolding):
            raise InvalidArgument(
                f"{config.target} must be an unrollax.Unfolding, or a function that returns one, got "
                f"{type(found).__name__}. Make one of net, params, plan and optimizer."
            )
        return check_unfolding(config.target, found)
    recipe: Any = UNFOLDINGS[config.target]
    build = importlib.import_module(recipe.module).build
    made: Unfolding = build(recipe.options(**config.options), config.seed, config.settings)
    return made


def train(config: UnfoldConfig, unfolding: Unfolding, observe: Callable[[Progress], None]) -> None:
    """Train what a configuration names."""
    fit_unfold(
        unfolding.net,
        unfolding.params,
        unfolding.plan,
        unfolding.optimizer,
        key=jax.random.key(config.seed),
        every=max(1, min(100, unfolding.plan.steps // BLOCKS)),
        observe=observe,
    )


def row_of(progress: Progress) -> dict[str, Any]:
    """Return what is recorded of a block of updates."""
    return {
        "step": progress.step,
        "loss": float(progress.metrics.loss.mean()),
        "depth": int(progress.metrics.info.depth[-1]),
        "seconds": round(progress.seconds, 3),
    }


def unfold_target(
    config: UnfoldConfig, out: Path | None, *, as_json: bool, quiet: bool, search: Search | None = None
) -> int:
    """Run a checked configuration, or the best that a search finds, and return the exit code."""

    def run_of(config: UnfoldConfig, unfolding: Unfolding) -> Run:
        folder = RunFolder(out) if out else RunFolder.numbered(Path("runs"), slug(config.target))
        return Run(config, unfolding, folder, as_json=as_json, quiet=quiet)

    try:
        if search is not None:
            from unrollax.cli._search import search_for  # brings optuna

            return search_for(config, search, run_of, quiet=quiet)
        return run_of(config, load(config)).go()
    except KeyboardInterrupt:
        return say(Failure("interrupted", INTERRUPTED))
    except Exception as error:
        return say(explain(config.target, error))


class Beside(NamedTuple):
    """What is shown of a run besides itself: before its table, in its report and in its JSON."""

    text: str = ""
    sections: Sequence[Section] = ()
    fields: Mapping[str, Any] = {}


class Run:
    """One training: what it saw on the way, and the folder that it fills."""

    line: ProgressLine

    def __init__(
        self, config: UnfoldConfig, unfolding: Unfolding, folder: RunFolder, *, as_json: bool, quiet: bool
    ) -> None:
        self.config, self.unfolding, self.folder = config, unfolding, folder
        self.as_json, self.quiet = as_json, quiet
        self.params = unfolding.params
        self.history: list[tuple[int, float]] = []
        self.last: Progress | None = None
        self.beside = Beside()
        self.diagnosis: ScheduleReport | None = None

    def go(self) -> int:
        """Train, measure, and write all of it; also what there is of it when training ends early."""
        self.write_config()
        environment = self.folder.write_environment()
        failure = train_in(self, self.config.target, lambda: train(self.config, self.unfolding, self._observe))
        return self.finish(environment, failure)

    def write_config(self) -> None:
        """Write what the run can be repeated from."""
        self.folder.write_config(
            self.config.model_dump(exclude_none=True), "Repeat it: unrollax unfold, and the path of this file."
        )

    def finish(self, environment: Mapping[str, Any], failure: Failure | None) -> int:
        """Measure what was trained, write all of it, and return the exit code."""
        self.folder.save(self.params)
        with StatusLine(self.quiet, "measuring ..."):
            scores = self._scores()
            if failure is None:
                self.diagnosis = diagnosed(self.unfolding, self.params, self.config.seed)
        self._write_report(environment, scores, failure)
        self.folder.close()
        self._print(scores)
        return say(failure) if failure else 0

    def _observe(self, progress: Progress) -> None:
        self.last, self.params, row = progress, params_of(progress), row_of(progress)
        self.history.append((progress.step, row["loss"]))
        self.line.update(progress)
        self.folder.record(**row)

    def _scores(self) -> dict[str, list[float]]:
        """Return what is shown after 0, 1, ... iterations: trained, as it was at first, and of the baselines."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 2**31 - 1)
        of_all = {"trained": self.params, "untrained": self.unfolding.params}
        own = {name: scores_of(self.unfolding, of, key, problems=PROBLEMS).tolist() for name, of in of_all.items()}
        return own | {name: np.asarray(errors).tolist() for name, errors in self.unfolding.baselines.items()}

    def _result(self, scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        last = self.last
        return {
            "target": self.config.target,
            "updates": last.step if last else 0,
            "depth": self.unfolding.net.horizon,
            "unit": self.unfolding.unit,
            "errors": {name: [plain(error) for error in errors] for name, errors in scores.items()},
            "schedules": {
                name: [plain(number) for number in numbers]
                for name, numbers in _numbers(self.params, self.unfolding.net.horizon).items()
            },
            "seconds": round(last.seconds, 2) if last else 0.0,
            "compile_seconds": round(last.compile_seconds, 2) if last else 0.0,
            "findings": as_json(self.diagnosis),
            "out": str(self.folder.path),
            **self.beside.fields,
        }

    def _print(self, scores: Mapping[str, Sequence[float]]) -> None:
        result = self._result(scores)
        if self.as_json:
            typer.echo(json.dumps(result, allow_nan=False))
            return
        if self.beside.text:
            typer.echo(self.beside.text + "\n")
        typer.echo(table(self.unfolding.unit, scores))
        typer.echo(
            f"{result['updates']} updates in {result['seconds']:.1f} s, {result['compile_seconds']:.1f} s to compile"
        )
        for finding in worth_a_line(self.diagnosis):
            typer.echo(f"found  {finding}")
        typer.echo(f"report  {self.folder.path / 'report.html'}")

    def _write_report(
        self, environment: Mapping[str, Any], scores: Mapping[str, Sequence[float]], failure: Failure | None
    ) -> None:
        found = sections_of(self.diagnosis) if self.diagnosis else []
        page = render(
            f"unrollax: {self.config.target} unfolded",
            {"state": failure.message if failure else "done", **self._summary(scores)},
            [*plots(self.unfolding, self.params, scores), *self._curves(), *found, *self.beside.sections],
            {"Configuration": flat(self.config.model_dump(exclude_none=True)), "Environment": flat(environment)},
            f"unrollax unfold {self.folder.path / 'run.toml'}",
        )
        (self.folder.path / "report.html").write_text(page, encoding="utf-8")

    def _summary(self, scores: Mapping[str, Sequence[float]]) -> dict[str, str]:
        depth = self.unfolding.net.horizon
        ends = {
            f"{self.unfolding.unit} after {depth}, {name}": f"{errors[depth]:.4g}" for name, errors in scores.items()
        }
        return ends | {"updates": str(self.last.step if self.last else 0)}

    def _curves(self) -> list[Curve]:
        if not self.history:
            return []
        steps, losses = zip(*self.history, strict=True)
        return [Curve("Training loss", "mean step loss", steps, losses)]


def table(unit: str, scores: Mapping[str, Sequence[float]]) -> str:
    """Return errors at some iterations as text."""
    last = min(len(errors) for errors in scores.values()) - 1
    at = sorted({*(t for t in SHOWN if t < last), last})
    width = max(len(unit), *(len(name) for name in scores))
    rows = [[f"{unit:{width}}", *(f"{t:>9}" for t in at)]]
    rows += [[f"{name:{width}}", *(f"{errors[t]:9.2e}" for t in at)] for name, errors in scores.items()]
    return "\n".join("  ".join(row) for row in rows)


def plots(unfolding: Unfolding, params: Any, scores: Mapping[str, Sequence[float]]) -> list[Plot | Section]:
    """Return error against iteration, and what each schedule became."""
    depth, unit = unfolding.net.horizon, unfolding.unit
    whole = {name: list(errors)[: depth + 1] for name, errors in scores.items()}
    found: list[Plot | Section] = [Plot("Error", "iteration", range(depth + 1), whole, up=unit, log="y")]
    before, after = (_numbers(tree, depth) for tree in (unfolding.params, params))
    for name, numbers in after.items():
        positive = min(map(min, (numbers, before[name]))) > 0
        lines = {"trained": numbers, "untrained": before[name]}
        found.append(Plot(f"Schedule {name}", "iteration", range(depth), lines, up=name, log="y" if positive else None))
    return found


def _numbers(params: Any, depth: int) -> dict[str, list[float]]:
    """Return the numbers of all schedules of one number an iteration, by their path."""
    found = {name: np.asarray(values_of(schedule, depth)) for name, schedule in schedules_of(params)}
    return {short_path(name): numbers.tolist() for name, numbers in found.items() if numbers.ndim == 1}
