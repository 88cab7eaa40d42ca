"""Handwritten digits as sequences: the 1,797 images of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._experiment import Experiment, episodes
from unrollax._types import Params
from unrollax._value import static, value
from unrollax._wrap import batched
from unrollax.estimators import BPTT
from unrollax.recipes._common import decayed_adam
from unrollax.recipes._options import SequentialDigits
from unrollax.systems import Dense, Frame, LSTMCell, Recurrent, recurrent, sequence

TEST_SHARE = 0.2


@value
class Batches:
    """Random batches of labelled sequences, by the number of the episode."""

    inputs: jax.Array  # [examples, steps, features]
    labels: jax.Array
    key: jax.Array
    batch: int = static()

    def __call__(self, number: jax.Array) -> Frame:
        """Return one batch, leaves `[steps, batch, ...]`, with the loss at the end."""
        chosen = jax.random.randint(jax.random.fold_in(self.key, number), (self.batch,), 0, len(self.labels))

        def example(x: jax.Array, label: jax.Array) -> Frame:
            return sequence(x, label, loss_at="end")

        frames: Frame = jax.vmap(example, out_axes=1)(self.inputs[chosen], self.labels[chosen])
        return frames


def load(rows: bool) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return (inputs, labels) for training and for the test, split by a fixed seed, pixels in [0, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = (images / 16).reshape(-1, 8, 8) if rows else (images / 16).reshape(-1, 64, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [int(TEST_SHARE * len(order))])
    return (inputs[train].astype(np.float32), labels[train]), (inputs[test].astype(np.float32), labels[test])


def build(options: SequentialDigits, seed: int, steps: int | None) -> Experiment:
    """Make the experiment."""
    (inputs, labels), test = load(options.rows)
    horizon, features = inputs.shape[1:]
    steps = steps or (1500 if options.rows else 3000)
    cell = LSTMCell(features, options.hidden, chrono=None if options.rows else horizon)
    net = recurrent(cell, Dense(options.hidden, 10))
    start, draws = jax.random.split(jax.random.key(seed))
    system = batched(net, options.batch)
    return Experiment(
        system=system,
        estimator=BPTT(system, horizon),
        optimizer=decayed_adam(options.lr, steps),
        params=jax.jit(net.params)(start),
        data=episodes(Batches(jnp.asarray(inputs), jnp.asarray(labels), draws, options.batch), horizon),
        evaluate=lambda params: {"test accuracy": float(accuracy(net, params, *map(jnp.asarray, test)))},
        steps=steps,
    )


@jax.jit
def accuracy(net: Recurrent, params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of sequences whose last prediction is right."""
    last = jax.vmap(lambda x: net.predict(params, x)[-1])(inputs)
    return (last.argmax(-1) == labels).mean()
