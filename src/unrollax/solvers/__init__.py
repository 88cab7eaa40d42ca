"""Iterative algorithms, one iteration as a function, to be run with constants or unfolded and trained."""

from unrollax.solvers._algorithm import Algorithm
from unrollax.solvers._amp import Message, Orthogonal, amp, oamp
from unrollax.solvers._chebyshev import chebyshev
from unrollax.solvers._examples import Potentials, consensus, coupling, power_iteration, sinkhorn
from unrollax.solvers._gradient import gradient_descent, heavy_ball, nesterov
from unrollax.solvers._inner import Factored, factored
from unrollax.solvers._ista import Accelerated, fista, ista
from unrollax.solvers._lista import alista, lista, lista_cpss, tilista
from unrollax.solvers._mimo import bit_error_rate, lmmse, tpg
from unrollax.solvers._primal_dual import chambolle_pock, projected_gradient
from unrollax.solvers._selection import Counted
from unrollax.solvers._splitting import admm, douglas_rachford, half_quadratic_splitting
from unrollax.solvers._stationary import jacobi, sor
from unrollax.solvers._tista import tista
from unrollax.solvers._weights import analytic_weights

__all__ = [
    "Accelerated",
    "Algorithm",
    "Counted",
    "Factored",
    "Message",
    "Orthogonal",
    "Potentials",
    "admm",
    "alista",
    "amp",
    "analytic_weights",
    "bit_error_rate",
    "chambolle_pock",
    "chebyshev",
    "consensus",
    "coupling",
    "douglas_rachford",
    "factored",
    "fista",
    "gradient_descent",
    "half_quadratic_splitting",
    "heavy_ball",
    "ista",
    "jacobi",
    "lista",
    "lista_cpss",
    "lmmse",
    "nesterov",
    "oamp",
    "power_iteration",
    "projected_gradient",
    "sinkhorn",
    "sor",
    "tilista",
    "tista",
    "tpg",
]
