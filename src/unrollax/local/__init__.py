"""Nets as explicit lists of layers, and what learns them layer by layer."""

from unrollax.local._conv import ConvLayer
from unrollax.local._curvature import Curvature
from unrollax.local._dense import DenseLayer, dense_layers
from unrollax.local._descent import SpectralFilter
from unrollax.local._equinox import equinox_layers
from unrollax.local._flax import flax_layers
from unrollax.local._from_modules import ModuleLayers
from unrollax.local._layered import Layered, layered
from unrollax.local._layers import Layer
from unrollax.local._locoprop import LocoProp
from unrollax.local._recurrent import RecurrentLayer
from unrollax.local._transfers import Transfer, transfer

__all__ = [
    "ConvLayer",
    "Curvature",
    "DenseLayer",
    "Layer",
    "Layered",
    "LocoProp",
    "ModuleLayers",
    "RecurrentLayer",
    "SpectralFilter",
    "Transfer",
    "dense_layers",
    "equinox_layers",
    "flax_layers",
    "layered",
    "transfer",
]
