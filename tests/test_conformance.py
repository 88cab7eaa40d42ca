"""Every estimator passes every check; a new one is one row here."""

import unrollax as ux
from unrollax.testing import parametrize_with_checks

NOISE = {"std": 0.1, "pairs": 4}

ESTIMATORS = {
    "BPTT": lambda system, *, window, horizon: ux.BPTT(system, horizon),
    "BPTT-remat": lambda system, *, window, horizon: ux.BPTT(ux.remat(system), horizon),
    "TBPTT": lambda system, **time: ux.TBPTT(system, **time),
    "ES": lambda system, **time: ux.ES(system, **NOISE, **time),
    "PES": lambda system, **time: ux.PES(system, **NOISE, **time),
    "PES-chunked": lambda system, **time: ux.PES(system, **NOISE, **time, chunk=3),
    "NRES": lambda system, **time: ux.NRES(system, **NOISE, **time),
    "ESSingle": lambda system, **time: ux.ESSingle(system, **NOISE, **time),
    "ForwardGradient": lambda system, **time: ux.ForwardGradient(system, directions=4, **time),
}


@parametrize_with_checks(ESTIMATORS)
def test_conformance(check):
    check()
