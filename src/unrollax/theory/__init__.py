"""What can be computed before training: errors of schedules on quadratics in closed form, optima, and certificates."""

from unrollax.theory._baselines import Baselines, baselines
from unrollax.theory._certificate import Certificate, amplification, certificate, rounding_floor, smooth_log_rate
from unrollax.theory._conjugate import conjugate_gradient_error
from unrollax.theory._constants import (
    Momentum,
    chebyshev_steps,
    gradient_step,
    heavy_ball_constants,
    nesterov_constants,
    stable_order,
)
from unrollax.theory._error import log_schedule_error, momentum_error, schedule_error
from unrollax.theory._oracle import oracle, oracle_steps
from unrollax.theory._periodic import best_periodic
from unrollax.theory._spectrum import Quadratic, quadratic

__all__ = [
    "Baselines",
    "Certificate",
    "Momentum",
    "Quadratic",
    "amplification",
    "baselines",
    "best_periodic",
    "certificate",
    "chebyshev_steps",
    "conjugate_gradient_error",
    "gradient_step",
    "heavy_ball_constants",
    "log_schedule_error",
    "momentum_error",
    "nesterov_constants",
    "oracle",
    "oracle_steps",
    "quadratic",
    "rounding_floor",
    "schedule_error",
    "smooth_log_rate",
    "stable_order",
]
