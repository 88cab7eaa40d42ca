"""`unrollax unfold`: train an unfolding, and show what came of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import typer

from unrollax._errors import Diverged, InvalidArgument
from unrollax._figures import Plot
from unrollax._report import Curve, Section, render
from unrollax._run import RunFolder, flat, plain
from unrollax._schedule import schedules_of, values_of
from unrollax._train import Progress
from unrollax._unfolded import Unfolding, scores_of
from unrollax._unfolding import fit_unfold
from unrollax.cli._config import is_file_target
from unrollax.cli._failure import DIVERGED, INTERRUPTED, Failure, explain, say, slug
from unrollax.cli._load import from_file
from unrollax.cli._progress import ProgressLine
from unrollax.cli._unfold_config import UnfoldConfig
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
        return found
    recipe: Any = UNFOLDINGS[config.target]
    build = importlib.import_module(recipe.module).build
    made: Unfolding = build(recipe.options(**config.options), config.seed, config.settings)
    return made


def unfold_target(config: UnfoldConfig, out: Path | None, *, as_json: bool, quiet: bool) -> int:
    """Run a checked configuration and return the exit code."""
    try:
        unfolding = load(config)
        folder = RunFolder(out) if out else RunFolder.numbered(Path("runs"), slug(config.target))
        return _Run(config, unfolding, folder, as_json=as_json, quiet=quiet).go()
    except KeyboardInterrupt:
        return say(Failure("interrupted", INTERRUPTED))
    except Exception as error:
        return say(explain(config.target, error))


class _Run:
    """One training: what it saw on the way, and the folder that it fills."""

    def __init__(
        self, config: UnfoldConfig, unfolding: Unfolding, folder: RunFolder, *, as_json: bool, quiet: bool
    ) -> None:
        self.config, self.unfolding, self.folder = config, unfolding, folder
        self.as_json, self.quiet = as_json, quiet
        self.params = unfolding.params
        self.history: list[tuple[int, float]] = []
        self.last: Progress | None = None

    def go(self) -> int:
        """Train, measure, and write all of it; also what there is of it when training ends early."""
        self.folder.write_config(
            self.config.model_dump(exclude_none=True), "Repeat it: unrollax unfold, and the path of this file."
        )
        environment = self.folder.write_environment()
        failure = self._fit()
        self.folder.save(self.params)
        scores = self._scores()
        self._write_report(environment, scores, failure)
        self.folder.close()
        self._print(scores)
        return say(failure) if failure else 0

    def _fit(self) -> Failure | None:
        plan = self.unfolding.plan
        try:
            with ProgressLine(self.quiet) as self.line:
                fit_unfold(
                    self.unfolding.net,
                    self.unfolding.params,
                    plan,
                    self.unfolding.optimizer,
                    key=jax.random.key(self.config.seed),
                    every=max(1, min(100, plan.steps // BLOCKS)),
                    observe=self._observe,
                )
        except Diverged as error:
            return Failure(f"{error} The parameters of {self._when()} are in {self.folder.path}.", DIVERGED)
        except KeyboardInterrupt:
            return Failure(f"interrupted. The parameters of {self._when()} are in {self.folder.path}.", INTERRUPTED)
        except Exception:
            if self.last is None:
                self.folder.discard()
            raise
        return None

    def _when(self) -> str:
        return f"update {self.last.step}" if self.last else "the start"

    def _observe(self, progress: Progress) -> None:
        self.last = progress
        self.params = jax.tree.map(lambda leaf: np.array(leaf), progress.state.params)  # its buffers are used again
        loss = float(progress.metrics.loss.mean())
        self.history.append((progress.step, loss))
        self.line.update(progress)
        self.folder.record(
            step=progress.step,
            loss=loss,
            depth=int(progress.metrics.info.depth[-1]),
            seconds=round(progress.seconds, 3),
        )

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
            "out": str(self.folder.path),
        }

    def _print(self, scores: Mapping[str, Sequence[float]]) -> None:
        result = self._result(scores)
        if self.as_json:
            typer.echo(json.dumps(result, allow_nan=False))
            return
        typer.echo(table(self.unfolding.unit, scores))
        typer.echo(
            f"{result['updates']} updates in {result['seconds']:.1f} s, {result['compile_seconds']:.1f} s to compile"
        )
        typer.echo(f"report  {self.folder.path / 'report.html'}")

    def _write_report(
        self, environment: Mapping[str, Any], scores: Mapping[str, Sequence[float]], failure: Failure | None
    ) -> None:
        page = render(
            f"unrollax: {self.config.target} unfolded",
            {"state": failure.message if failure else "done", **self._summary(scores)},
            [*plots(self.unfolding, self.params, scores), *self._curves()],
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
    return {name.strip(".[]'\""): numbers.tolist() for name, numbers in found.items() if numbers.ndim == 1}
