"""Problems for iterative algorithms to solve, drawn at random: what is measured, by what, and the answer."""

from unrollax.problems._arrays import Arrays, from_arrays, load
from unrollax.problems._deblurring import Blur, Deblurring, deblurring
from unrollax.problems._mimo import MIMO, mimo
from unrollax.problems._piecewise import PiecewiseConstant, piecewise_constant
from unrollax.problems._problem import Problem
from unrollax.problems._ridge import Ridge, ridge
from unrollax.problems._sparse import SparseRecovery, du_ista, sparse_recovery

__all__ = [
    "MIMO",
    "Arrays",
    "Blur",
    "Deblurring",
    "PiecewiseConstant",
    "Problem",
    "Ridge",
    "SparseRecovery",
    "deblurring",
    "du_ista",
    "from_arrays",
    "load",
    "mimo",
    "piecewise_constant",
    "ridge",
    "sparse_recovery",
]
