"""`unrollax diagnose`: where the gradient of the user's own system dies or explodes, and what to do about it."""

from __future__ import annotations

from unrollax._diagnose import diagnose
from unrollax.cli._study import Output, StudyConfig
from unrollax.cli._study_run import Measure, Study, key_of, run_study
from unrollax.cli._subject import Subject


def diagnose_target(config: StudyConfig, verify: bool, output: Output) -> int:
    """Diagnose a target and return the exit code."""

    def prepare(subject: Subject) -> Measure:
        return lambda observe: diagnose(
            subject.system,
            subject.params,
            subject.data,
            key=key_of(config),
            horizon=subject.horizon,
            verify=verify,
            observe=observe,
        )

    return run_study(Study("diagnose", "diagnosis.json", prepare), config, output)
