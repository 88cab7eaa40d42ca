"""Ready systems: recurrent networks over sequences."""

from unrollax.systems._adapters import equinox_cell, flax_cell
from unrollax.systems._cells import GRUCell, LSTMCell, RNNCell
from unrollax.systems._frames import Frame, cross_entropy, sequence, squared_error
from unrollax.systems._heads import Dense, Mixture, MixtureDense, mixture_nll
from unrollax.systems._linear_cells import LRUCell, MinGRUCell
from unrollax.systems._ragged import pad_sequences
from unrollax.systems._recurrent import Recurrent, recurrent
from unrollax.systems._stack import bidirectional, stacked
from unrollax.systems._unfold import Unfold

__all__ = [
    "Dense",
    "Frame",
    "GRUCell",
    "LRUCell",
    "LSTMCell",
    "MinGRUCell",
    "Mixture",
    "MixtureDense",
    "RNNCell",
    "Recurrent",
    "Unfold",
    "bidirectional",
    "cross_entropy",
    "equinox_cell",
    "flax_cell",
    "mixture_nll",
    "pad_sequences",
    "recurrent",
    "sequence",
    "squared_error",
    "stacked",
]
