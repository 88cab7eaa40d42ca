"""Optimizers that optax lacks: the seed's own forms and the Kronecker-factored ones."""

from unrollax.optimizers._adagrad import adagrad_plain
from unrollax.optimizers._kfac import KFAC
from unrollax.optimizers._momentum import momentum
from unrollax.optimizers._shampoo import ShampooState, shampoo
from unrollax.optimizers._soap import SOAPState, soap

__all__ = ["KFAC", "SOAPState", "ShampooState", "adagrad_plain", "momentum", "shampoo", "soap"]
