"""Proximal operators: functions `(v, scale) -> x` that minimise scale g(x) + |x - v|^2 / 2.

Complex numbers count by their magnitudes. Projections, the proximal operators of sets, are in `optax.projections`. Any
function of the same form, of a user or of another library, serves wherever one of these does; an option is set by
`functools.partial`.
"""

from unrollax.prox._bernoulli_gauss import bernoulli_gauss
from unrollax.prox._entries import elastic_net, hard, huber, soft, squared_l2, top_k
from unrollax.prox._norms import group, l2, nuclear
from unrollax.prox._total_variation import total_variation

__all__ = [
    "bernoulli_gauss",
    "elastic_net",
    "group",
    "hard",
    "huber",
    "l2",
    "nuclear",
    "soft",
    "squared_l2",
    "top_k",
    "total_variation",
]
