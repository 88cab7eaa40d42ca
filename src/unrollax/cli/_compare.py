"""`unrollax compare`: estimators side by side on the user's own system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optax

from unrollax._experiment import Experiment
from unrollax._system import cut
from unrollax._types import GradientEstimator
from unrollax.cli._names import ESTIMATORS, EstimatorConfig
from unrollax.cli._study import CompareConfig, Output, StudyConfig, check_windows
from unrollax.cli._study_run import Measure, Study, key_of, run_study
from unrollax.cli._subject import Subject
from unrollax.cli._target import make_estimator
from unrollax.diagnosis import compare
from unrollax.estimators import BPTT


def compare_target(
    config: StudyConfig, estimators: Sequence[EstimatorConfig], how: CompareConfig, output: Output
) -> int:
    """Compare estimators on a target and return the exit code."""

    def prepare(subject: Subject) -> Measure:
        check_windows(estimators, subject.horizon)
        made = [_make(each, subject) for each in estimators]
        options = how.model_dump(exclude_none=True)
        about = {"key": key_of(config), "horizon": subject.horizon, **options}
        return lambda observe: compare(made, subject.params, subject.data, observe=observe, **about)

    return run_study(Study("compare", "comparison.json", prepare), config, output)


def _make(config: EstimatorConfig, subject: Subject) -> GradientEstimator:
    """Return an estimator on the target's system; what was not given comes from the target's own."""
    own = subject.estimator or BPTT(subject.system, subject.horizon)
    data = None if subject.data is None else lambda _, steps: cut(subject.data, 0, steps)
    experiment = Experiment(subject.system, own, optax.identity(), subject.params, data)
    settings: dict[str, Any] = {"horizon": subject.horizon}
    if "stagger" in ESTIMATORS[str(config.name)] and config.stagger is None:
        settings["stagger"] = False  # staggered pairs see the data of other steps
    return make_estimator(config.model_copy(update=settings), experiment)
