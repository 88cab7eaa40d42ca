"""Gradient estimators: each is one swap away from another, and every one passes `unrollax.testing`."""

from unrollax.estimators._backprop import BPTT, TBPTT
from unrollax.estimators._combine import mean_over, mix
from unrollax.estimators._control_variate import control_variate
from unrollax.estimators._evolution import ES, NRES, PES, ESSingle, FullES
from unrollax.estimators._forward import ForwardGradient
from unrollax.estimators._guided import GuidedES
from unrollax.estimators._implicit import Implicit
from unrollax.estimators._randomized import RandomizedTBPTT
from unrollax.estimators._rtrl import RTRL
from unrollax.estimators._snap import SnAp
from unrollax.estimators._std import Gaussian
from unrollax.estimators._unfold_bptt import UnfoldBPTT
from unrollax.estimators._uoro import UORO

__all__ = [
    "BPTT",
    "ES",
    "NRES",
    "PES",
    "RTRL",
    "TBPTT",
    "UORO",
    "ESSingle",
    "ForwardGradient",
    "FullES",
    "Gaussian",
    "GuidedES",
    "Implicit",
    "RandomizedTBPTT",
    "SnAp",
    "UnfoldBPTT",
    "control_variate",
    "mean_over",
    "mix",
]
