"""Gradient estimators: each is one swap away from another, and every one passes `unrollax.testing`."""

from unrollax.estimators._backprop import BPTT, TBPTT
from unrollax.estimators._evolution import ES, NRES, PES, ESSingle
from unrollax.estimators._forward import ForwardGradient

__all__ = ["BPTT", "ES", "NRES", "PES", "TBPTT", "ESSingle", "ForwardGradient"]
