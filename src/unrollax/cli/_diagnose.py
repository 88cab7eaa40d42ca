"""`unrollax diagnose`: where the gradient of the user's own system dies or explodes, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable

from unrollax._diagnose import Diagnosis, diagnose
from unrollax._errors import InvalidArgument
from unrollax._experiment import Episodes, Experiment
from unrollax.cli._study import Output, StudyConfig
from unrollax.cli._study_run import Measure, Study, key_of, run_study
from unrollax.cli._subject import Subject
from unrollax.diagnosis import depth_flow
from unrollax.local import Layered


def diagnose_target(config: StudyConfig, verify: bool, output: Output, train: str) -> int:
    """Diagnose a target and return the exit code; `train` is the command that trains it as it is."""

    def prepare(subject: Subject) -> Measure:
        if isinstance(subject.system, Layered):
            return _depth_of(subject.system, subject, verify)

        def measure(observe: Callable[[str], None]) -> Diagnosis:
            found = diagnose(
                subject.system,
                subject.params,
                subject.data,
                key=key_of(config),
                horizon=subject.horizon,
                verify=verify,
                observe=observe,
            )
            return _with_commands(found, subject.experiment, train)

        return measure

    return run_study(Study("diagnose", "diagnosis.json", prepare), config, output)


def _depth_of(net: Layered, subject: Subject, verify: bool) -> Measure:
    """Follow the gradient back through a net's layers: between the examples of a batch, its steps, nothing goes on."""
    if verify:
        raise InvalidArgument("--verify is for systems with a state: a net of layers is followed through its depth.")
    x, target = subject.data
    loss = lambda y: net.loss(y, target).mean()
    return lambda _: depth_flow(net.layers, subject.params, x, loss)


def _with_commands(found: Diagnosis, experiment: Experiment | None, train: str) -> Diagnosis:
    """Make each piece of advice a whole command, where there is something to train that can follow it."""
    advice = [
        piece._replace(
            command=f"{train} {piece.command}" if piece.command and _can_follow(experiment, piece.command) else ""
        )
        for piece in found.advice
    ]
    return found._replace(advice=advice)


def _can_follow(experiment: Experiment | None, options: str) -> bool:
    """Whether a target is one to train, and an estimator with these options fits its data, which may come in pieces."""
    if experiment is None:
        return False
    given = {name: int(number) for name, number in re.findall(r"--(window|horizon) (\d+)", options)}
    data, own = experiment.data, experiment.estimator
    horizon = given.get("horizon", getattr(own, "horizon", None))
    if isinstance(data, Episodes):
        return horizon == data.horizon
    if data is None or callable(data):
        return True
    return given.get("window", horizon) == getattr(own, "window", None)
