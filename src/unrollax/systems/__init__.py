"""Ready systems: recurrent networks over sequences."""

from unrollax.systems._cells import Dense, GRUCell, LSTMCell, RNNCell
from unrollax.systems._recurrent import Frame, Recurrent, cross_entropy, recurrent, sequence, squared_error

__all__ = [
    "Dense",
    "Frame",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "cross_entropy",
    "recurrent",
    "sequence",
    "squared_error",
]
