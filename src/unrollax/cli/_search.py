"""`unrollax unfold --search`: try settings, and keep the best one as the run."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import optuna

from unrollax._errors import Diverged, InvalidArgument
from unrollax._train import Progress
from unrollax._unfolded import Unfolding, scorer_of
from unrollax.cli._failure import DIVERGED, INTERRUPTED, Failure, explain, say
from unrollax.cli._fitting import params_of
from unrollax.cli._progress import StatusLine
from unrollax.cli._search_config import Choices, Interval, Ranges, Search, size, usual, with_values
from unrollax.cli._search_report import Trial, as_json, say_values, section, text, write_csv
from unrollax.cli._unfold import PROBLEMS, Beside, Run, load, row_of, train
from unrollax.cli._unfold_config import UnfoldConfig

DRAWN = 2**31 - 2  # the key of the problems that trials are compared on; those of a run's own table have another one
DRAWS = 4  # times as many problems as for the table: a few of them can have most of the error
UNTIL = 4  # trials are done before one is stopped early
# A trial is stopped that is worse than so many per cent after so much of its updates. Halfway the rates that end best are
# among the worse half, since theirs fall later: on ridge of period 8, 0.1 was fifth of seven halfway and first in the end.
WORSE, AFTER = 75.0, 0.5


def search_for(
    config: UnfoldConfig, search: Search, run_of: Callable[[UnfoldConfig, Unfolding], Run], *, quiet: bool
) -> int:
    """Try settings, let the best be the run, and return the exit code."""
    return _Searching(config, search, run_of, quiet).go()


class _Attempt:
    """A trial while it is made, and as long as it is the best."""

    def __init__(self, number: int, values: dict[str, Any], config: UnfoldConfig) -> None:
        self.number, self.values, self.config = number, values, with_values(config, values)
        self.began, self.seconds = time.perf_counter(), 0.0
        self.state, self.error = "interrupted", math.inf
        self.rows: list[dict[str, Any]] = []
        self.last: Progress | None = None

    def load(self) -> None:
        """Build what is trained."""
        self.unfolding = load(self.config)
        self.params = self.unfolding.params
        # What it is like on the way can be compared with others of this kind only.
        self.kind = (self.unfolding.plan, self.unfolding.net.loss, self.unfolding.net.scale)

    def go(self, watch: Callable[[dict[str, Any]], None]) -> None:
        """Train, and measure the error after the last iteration; what isn't finite diverged."""

        def observe(progress: Progress) -> None:
            self.last, self.params = progress, params_of(progress)
            self.rows.append(row_of(progress))
            watch(self.rows[-1])

        train(self.config, self.unfolding, observe)
        key = jax.random.fold_in(jax.random.key(self.config.seed), DRAWN)
        scorer = scorer_of(self.unfolding, problems=PROBLEMS)
        error = sum(float(scorer(self.params, each)[-1]) for each in jax.random.split(key, DRAWS)) / DRAWS
        if not math.isfinite(error):
            raise Diverged("the error is not finite", step=self.updates, nonfinite=None)
        self.state, self.error = "done", error

    @property
    def updates(self) -> int:
        """Updates that were made."""
        return self.last.step if self.last else 0

    def trial(self) -> Trial:
        """Return what is kept of it in any case."""
        error = self.error if self.state == "done" else None
        return Trial(self.number, self.values, self.state, error, self.updates, self.seconds)

    def become(self, run: Run) -> None:
        """Make a run of it."""
        run.config, run.unfolding, run.params, run.last = self.config, self.unfolding, self.params, self.last
        run.history = [(row["step"], row["loss"]) for row in self.rows]
        run.write_config()
        run.folder.save(run.params)


class _Searching:
    """What was tried so far, the best of it, and the run that this becomes."""

    def __init__(
        self, config: UnfoldConfig, search: Search, run_of: Callable[[UnfoldConfig, Unfolding], Run], quiet: bool
    ) -> None:
        self.config, self.ranges, self.run_of = config, search.ranges, run_of
        self.count = int(min(search.trials, size(search.ranges)))
        self.line = StatusLine(quiet, "searching ...")
        self.trials: list[Trial] = []
        self.best: _Attempt | None = None
        self.run: Run | None = None
        self.kind: Any = None

    def go(self) -> int:
        """Search, and finish the run of the best."""
        failure = None
        try:
            with self.line:
                self._search()
        except KeyboardInterrupt:
            failure = Failure(f"interrupted in trial {len(self.trials)} of {self.count}.", INTERRUPTED)
        except Exception as error:
            if self._is_nothing():
                raise
            failure = explain(self.config.target, error)
        finally:
            if self.run is not None and self._is_nothing():
                self.run.folder.discard()
                self.run = None
        if failure is None and all(trial.error is None for trial in self.trials):
            failure = Failure("no trial came to its end. Search in another range.", DIVERGED)
        if self.run is None or self.best is None:
            return say(failure or Failure("interrupted", INTERRUPTED))
        if failure is not None:
            failure = failure._replace(message=f"{failure.message}\nThe best so far is in {self.run.folder.path}.")
        return self._finish(self.run, self.best, failure)

    def _is_nothing(self) -> bool:
        """Whether there was no update yet that is worth a folder."""
        return not any(trial.updates for trial in self.trials)

    def _search(self) -> None:
        study = _study(self.ranges, self.config, self.count)
        seen: dict[Any, Trial] = {}
        for _ in range(self.count):
            asked = study.ask()
            values = {name: _suggest(asked, name, found) for name, found in self.ranges.items()}
            key = tuple(values.values())
            if key not in seen:
                attempt = _Attempt(len(self.trials) + 1, values, self.config)
                try:
                    self._try(attempt, asked)
                finally:
                    attempt.seconds = time.perf_counter() - attempt.began
                    self.trials.append(attempt.trial())
                seen[key] = self._note(attempt)
            _tell(study, asked, seen[key])

    def _try(self, attempt: _Attempt, asked: optuna.Trial) -> None:
        """Train with some values. The first trial must be possible: else it isn't the values that are wrong."""
        try:
            attempt.load()
            if self.best is None:  # then it is the best there is, also if it is interrupted
                self.best, self.kind = attempt, attempt.kind
                self.run = self.run_of(attempt.config, attempt.unfolding)
            attempt.go(lambda row: self._watch(attempt, asked, row))
        except optuna.TrialPruned:
            attempt.state = "stopped early"
        except Diverged:
            attempt.state = "diverged"
        except InvalidArgument:
            if self.best is None:
                raise
            attempt.state = "impossible"
        except Exception:
            attempt.state = "failed"
            raise

    def _watch(self, attempt: _Attempt, asked: optuna.Trial, row: dict[str, Any]) -> None:
        """Show a block of updates, and stop a trial that is worse than most were by then."""
        assert self.best is not None
        step, steps = row["step"], attempt.unfolding.plan.steps
        best = f"  best {self.best.error:.3g}" if self.best.state == "done" else ""
        self.line.update(f"trial {attempt.number}/{self.count}  update {step}/{steps}  loss {row['loss']:.4g}{best}")
        if attempt.kind == self.kind:
            asked.report(row["loss"], step)
            if AFTER * steps <= step < steps and asked.should_prune():
                raise optuna.TrialPruned

    def _note(self, attempt: _Attempt) -> Trial:
        """Say what came of a trial, and keep it if it is the best."""
        assert self.best is not None
        assert self.run is not None
        says = attempt.state
        if attempt.state == "done":
            says = f"{attempt.unfolding.unit} {attempt.error:.4g}"
            if attempt.error < self.best.error or attempt is self.best:
                self.best, says = attempt, f"{says}, the best so far"
                attempt.become(self.run)
        self.line.print(f"trial {attempt.number}/{self.count}: {says}  ({say_values(attempt.values)})")
        write_csv(self.run.folder.path / "search.csv", self.trials)
        return self.trials[-1]

    def _finish(self, run: Run, best: _Attempt, failure: Failure | None) -> int:
        """Write all of the best trial as of a run of its own."""
        best.become(run)
        for row in best.rows:
            run.folder.record(**row)
        path = run.folder.path / "search.csv"
        write_csv(path, self.trials)
        shown = [section(self.trials, self.ranges, run.unfolding.unit)]
        run.beside = Beside(text(self.trials, path), shown, {"search": as_json(self.trials)})
        return run.finish(run.folder.write_environment(), failure)


def _study(ranges: Ranges, config: UnfoldConfig, count: int) -> optuna.Study:
    """Return a study that begins with what is usual; with all there is where that is no more than what is asked for."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=max(UNTIL, min(10, count // 3)))
    pruner = optuna.pruners.PercentilePruner(WORSE, n_startup_trials=UNTIL)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    first = usual(config, ranges)
    if size(ranges) <= count:
        every = [dict(zip(ranges, values, strict=True)) for values in itertools.product(*map(_values, ranges.values()))]
        for values in sorted(every, key=lambda values: not first.items() <= values.items()):
            study.enqueue_trial(values)
    elif first:
        study.enqueue_trial(first)
    return study


def _values(found: Choices | Interval) -> tuple[Any, ...]:
    """Return all values of a finite range."""
    return found.values if isinstance(found, Choices) else tuple(range(int(found.low), int(found.high) + 1))


def _suggest(asked: optuna.Trial, name: str, found: Choices | Interval) -> Any:
    if isinstance(found, Choices):
        return asked.suggest_categorical(name, found.values)
    if found.whole:
        return asked.suggest_int(name, int(found.low), int(found.high), log=found.log)
    return asked.suggest_float(name, found.low, found.high, log=found.log)


def _tell(study: optuna.Study, asked: optuna.Trial, trial: Trial) -> None:
    """Tell a study what came of a trial; one that can't be done is as bad as can be."""
    if trial.state == "stopped early":
        study.tell(asked, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(asked, math.inf if trial.error is None else trial.error)
