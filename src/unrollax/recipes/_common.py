"""What recipes share."""

from __future__ import annotations

import optax


def decayed_adam(lr: float, steps: int) -> optax.GradientTransformation:
    """Return Adam on gradients of norm at most 1, its learning rate decayed to 0 by a cosine over the run."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, steps)))
