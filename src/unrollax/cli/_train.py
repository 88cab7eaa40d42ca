"""`unrollax train`: fit, and everything around it that a person wants to see afterwards."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import typer

from unrollax._errors import InvalidArgument
from unrollax._experiment import Experiment, in_windows
from unrollax._figures import Plot
from unrollax._report import Curve, render, score_plots
from unrollax._run import RunFolder, flat, plain
from unrollax._train import Progress, fit
from unrollax.cli import _artifacts, _target
from unrollax.cli._config import RunConfig
from unrollax.cli._failure import INTERRUPTED, Failure, explain, say, slug
from unrollax.cli._fitting import params_of, train_in
from unrollax.cli._progress import ProgressLine

BLOCKS = 100  # observations of a run
EVALUATIONS = 10
OWN = ("step", "loss", "grad_norm", "target", "estimator", "updates", "seconds", "compile_seconds", "out")  # no scores


def train_target(config: RunConfig, out: Path | None, *, as_json: bool, quiet: bool) -> int:
    """Run a checked configuration and return the exit code."""
    gc.enable()
    try:
        experiment = _target.load(config)
        config = _target.resolved(config, experiment)
        folder = RunFolder(out) if out else RunFolder.numbered(Path("runs"), slug(config.target))
        return _Run(config, experiment, folder, as_json=as_json, quiet=quiet).go()
    except KeyboardInterrupt:
        return say(Failure("interrupted", INTERRUPTED))
    except Exception as error:
        return say(explain(config.target, error))


class _Run:
    """One run: what it saw on the way, and the folder that it fills."""

    line: ProgressLine

    def __init__(
        self, config: RunConfig, experiment: Experiment, folder: RunFolder, *, as_json: bool, quiet: bool
    ) -> None:
        self.config, self.experiment, self.folder = config, experiment, folder
        self.as_json, self.quiet = as_json, quiet
        self.steps = config.steps or experiment.steps
        self.params = experiment.params
        self.history: list[tuple[int, float, float]] = []
        self.scores: dict[str, list[tuple[int, float]]] = {}
        self.plots: list[Plot] = []
        self.last: Progress | None = None

    def go(self) -> int:
        """Train, then write parameters, report and result; also what there is of them when the run ends early."""
        notes = ("Repeat it: unrollax train, and the path of this file.", f"Estimator: {self.experiment.estimator}")
        self.folder.write_config(self.config.to_toml(), *notes)
        environment = self.folder.write_environment()
        failure = self._fit()
        try:
            self._keep()
        except Exception as error:
            failure = failure or explain(self.config.target, error)
        self._write_report(environment, failure)
        self.folder.close()
        self._print_result()
        return say(failure) if failure else 0

    def _fit(self) -> Failure | None:
        experiment = self.experiment
        data = in_windows(experiment.data, experiment.estimator)
        every = _whole_episodes(max(1, min(100, self.steps // BLOCKS)), experiment.estimator)
        return train_in(
            self,
            self.config.target,
            lambda: fit(
                experiment.estimator,
                experiment.optimizer,
                experiment.params,
                data,
                key=jax.random.key(self.config.seed),
                steps=self.steps,
                every=every,
                observe=self._observe,
            ),
        )

    def _observe(self, progress: Progress) -> None:
        self.last, self.params = progress, params_of(progress)
        loss, norm = float(progress.metrics.loss.mean()), float(progress.metrics.grad_norm.mean())
        self.history.append((progress.step, loss, norm))
        scores = self._evaluate(progress.step, progress.step == progress.end)
        self.line.update(progress)
        self.folder.record(
            step=progress.step, loss=loss, grad_norm=norm, seconds=round(progress.seconds, 3), **_snake(scores)
        )

    def _evaluate(self, step: int, last: bool) -> Mapping[str, float]:
        """Evaluate about `EVALUATIONS` times in a run, and at its end."""
        done = max((len(points) for points in self.scores.values()), default=0)
        if self.experiment.evaluate is None or not (last or step * EVALUATIONS >= (done + 1) * self.steps):
            return {}
        scores = self.experiment.evaluate(self.params)
        if not isinstance(scores, Mapping):
            raise InvalidArgument(
                "evaluate must return named numbers such as {'test accuracy': 0.9}, got " + type(scores).__name__ + "."
            )
        for name, score in scores.items():
            self.scores.setdefault(name, []).append((step, float(score)))
        self._keep()  # for those who can't wait for the end, or don't reach it
        return scores

    def _keep(self) -> None:
        self.folder.save(self.params)
        if self.experiment.artifacts is not None:
            self.plots = _artifacts.keep(self.folder.path, self.experiment.artifacts(self.params))

    def _result(self) -> dict[str, Any]:
        final = {name: points[-1][1] for name, points in self.scores.items()}
        return {
            "target": self.config.target,
            "estimator": _target.name_of(self.experiment.estimator) or type(self.experiment.estimator).__name__,
            "updates": self.last.step if self.last else 0,
            "loss": self.history[-1][1] if self.history else None,
            **_snake(final),
            "seconds": round(self.last.seconds, 2) if self.last else 0.0,
            "compile_seconds": round(self.last.compile_seconds, 2) if self.last else 0.0,
            "out": str(self.folder.path),
        }

    def _print_result(self) -> None:
        if self.as_json:
            typer.echo(json.dumps({name: plain(item) for name, item in self._result().items()}, allow_nan=False))
            return
        result = self._result()
        for name, points in self.scores.items():
            typer.echo(f"{name}  {points[-1][1]:.4f}")
        if result["loss"] is not None:
            typer.echo(
                f"training loss  {result['loss']:.4g}, after {result['updates']} updates in {result['seconds']:.1f} s"
            )
        typer.echo(f"report  {self.folder.path / 'report.html'}")

    def _write_report(self, environment: Mapping[str, Any], failure: Failure | None) -> None:
        steps, losses, norms = zip(*self.history, strict=True) if self.history else ((), (), ())
        curves: list[Curve | Plot] = [*self.plots, *score_plots(self.scores)]
        if self.history:
            curves.append(Curve("Training loss", "mean step loss", steps, losses))
            curves.append(Curve("Gradient", "norm of the estimate", steps, norms))
        summary = {name.replace("_", " "): item for name, item in self._result().items() if item is not None}
        tables = {
            "Configuration": {**flat(self.config.to_toml()), "estimator": self.experiment.estimator},
            "Environment": flat(environment),
        }
        page = render(
            f"unrollax: {self.config.target}",
            {"state": failure.message if failure else "done", **summary},
            curves,
            tables,
            f"unrollax train {self.folder.path / 'run.toml'}",
        )
        (self.folder.path / "report.html").write_text(page, encoding="utf-8")


def _whole_episodes(every: int, estimator: Any) -> int:
    """Round a number of windows up to whole horizons, so that the mean loss of a block is that of an episode."""
    window, horizon = getattr(estimator, "window", None), getattr(estimator, "horizon", None)
    windows = horizon // window if window and horizon else 1
    return -(-every // windows) * windows


def _snake(scores: Mapping[str, Any]) -> dict[str, Any]:
    names = {name: re.sub(r"\W+", "_", name).strip("_") or "_" for name in scores}
    return {f"evaluate_{key}" if key in OWN else key: scores[name] for name, key in names.items()}
