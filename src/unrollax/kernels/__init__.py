"""Recurrent layers over whole sequences, with backward passes derived by hand."""

from unrollax.kernels._gru import gru
from unrollax.kernels._lru import lru
from unrollax.kernels._lstm import lstm
from unrollax.kernels._mingru import mingru
from unrollax.kernels._recurrence import linear_recurrence
from unrollax.kernels._rnn import rnn

__all__ = ["gru", "linear_recurrence", "lru", "lstm", "mingru", "rnn"]
