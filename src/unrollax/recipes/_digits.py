"""Handwritten digits as sequences: the 1,797 images of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._experiment import Experiment, episodes
from unrollax._types import Key, Params
from unrollax._value import static, value
from unrollax._wrap import batched
from unrollax.estimators import BPTT
from unrollax.recipes._common import decayed_adam, make_cell
from unrollax.recipes._options import SequentialDigits
from unrollax.systems import Dense, Frame, Recurrent, recurrent, sequence

TEST_SHARE = 0.2
SIDE = 8  # pixels
MEAN, STD = 0.3, 0.37  # of a pixel
TURN, RESIZE, SLANT, SHIFT, NOISE = 0.2, 0.15, 0.15, 1.0, 0.15  # radians, log, share, pixels, of the range of a pixel

Labelled = tuple[np.ndarray, np.ndarray]


@value
class Batches:
    """Random batches of labelled sequences, by the number of the episode."""

    inputs: jax.Array  # [examples, steps, features]
    labels: jax.Array
    key: jax.Array
    batch: int = static()
    augment: bool = static()

    def __call__(self, number: jax.Array) -> Frame:
        """Return one batch, leaves `[steps, batch, ...]`, with the loss at the end."""
        draw, change = jax.random.split(jax.random.fold_in(self.key, number))
        chosen = jax.random.randint(draw, (self.batch,), 0, len(self.labels))
        inputs = self.inputs[chosen]
        if self.augment:
            images = inputs.reshape(self.batch, SIDE, SIDE)
            inputs = jax.vmap(distorted)(jax.random.split(change, self.batch), images).reshape(inputs.shape)

        def example(x: jax.Array, label: jax.Array) -> Frame:
            return sequence(x, label, loss_at="end")

        frames: Frame = jax.vmap(example, out_axes=1)(inputs, self.labels[chosen])
        return frames


def distorted(key: Key, image: jax.Array) -> jax.Array:
    """Return an image `[8, 8]` shifted, turned, resized and slanted a little, with noise on each pixel.

    Each amount is uniform between its greatest and its negative. The new pixel at p, from the centre, is read at
    A p + shift, A = sizes . turn . slant, between four pixels of the old image, which is 0 outside.
    """
    place, noise = jax.random.split(key)
    amounts = jax.random.uniform(place, (6,), image.dtype, -1)
    cos, sin = jnp.cos(TURN * amounts[0]), jnp.sin(TURN * amounts[0])
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    slant = jnp.eye(2, dtype=image.dtype).at[1, 0].set(SLANT * amounts[1])
    matrix = jnp.exp(RESIZE * amounts[2:4])[:, None] * (turn @ slant)
    centre = (SIDE - 1) / 2
    grid = jnp.indices((SIDE, SIDE)).astype(image.dtype) - centre
    where = jnp.tensordot(matrix, grid, 1) + centre + SHIFT * amounts[4:][:, None, None]
    moved = jax.scipy.ndimage.map_coordinates(image, list(where), order=1)
    return moved + NOISE * jax.random.normal(noise, image.shape, image.dtype)


def load(rows: bool) -> tuple[Labelled, Labelled]:
    """Return (inputs, labels) for training and for the test, split by a fixed seed, pixels in [0, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = (images / 16).reshape(-1, SIDE, SIDE) if rows else (images / 16).reshape(-1, SIDE * SIDE, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [int(TEST_SHARE * len(order))])
    return (inputs[train].astype(np.float32), labels[train]), (inputs[test].astype(np.float32), labels[test])


def without_test(train: Labelled) -> tuple[Labelled, Labelled]:
    """Return two parts of the training digits, which are in random order: to train on, and to choose options by."""
    cut = int(TEST_SHARE * len(train[1]))
    (held, inputs), (known, labels) = (np.split(leaf, [cut]) for leaf in train)
    return (inputs, labels), (held, known)


def standardized(x: jax.Array) -> jax.Array:
    """Return what the cell reads of pixels: about zero mean and unit variance, else it learns to see them slowly."""
    return (x - MEAN) / STD


def build(options: SequentialDigits, seed: int, steps: int | None) -> Experiment:
    """Make the experiment."""
    train, test = load(options.rows)
    if options.score == "validation":
        train, test = without_test(train)
    inputs, labels = map(jnp.asarray, train)
    horizon, features = inputs.shape[1:]
    steps = steps or (1000 if options.rows else 4000)
    cell = make_cell(options.cell, features, options.hidden, chrono=None if options.rows else horizon)
    net = recurrent(cell, Dense(options.hidden, 10), encode=standardized)
    start, draws = jax.random.split(jax.random.key(seed))
    system = batched(net, options.batch)
    name = f"{options.score} accuracy"
    return Experiment(
        system=system,
        estimator=BPTT(system, horizon),
        optimizer=decayed_adam(options.lr, steps),
        params=jax.jit(net.params)(start),
        data=episodes(Batches(inputs, labels, draws, options.batch, options.augment), horizon),
        evaluate=lambda params: {name: float(accuracy(net, params, *map(jnp.asarray, test)))},
        steps=steps,
    )


@jax.jit
def accuracy(net: Recurrent, params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of sequences whose last prediction is right."""
    last = jax.vmap(lambda x: net.predict(params, x)[-1])(inputs)
    return (last.argmax(-1) == labels).mean()
