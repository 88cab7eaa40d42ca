"""Deep autoencoders of images: the benchmark of optimizers that see more than a gradient's components one by one.

The net is mirrored about a small linear code, all other layers are tanh (or ReLU), and the last one gives logits. The loss of
an image is the cross-entropy of its pixels as probabilities of ink, summed over them, in nats. Soft pixels have an entropy,
below which no net can go: 23.0 nats for an image of CURVES. The scores give the cross-entropy, its excess over that entropy,
and the squared error summed over the pixels, which is what papers often report.

    unrollax train autoencoder                                                      # CURVES, 784-250-125-60-15 mirrored
    unrollax train autoencoder --set data=digits                                    # seconds
    unrollax train autoencoder --set data=mnist --set sizes=784-1000-500-250-30     # the folder mnist/ holds MNIST's files
    unrollax train autoencoder --set estimator.variant=M --set estimator.steps=3    # the other LocoProp
    unrollax train autoencoder --estimator bptt --optimizer rmsprop --lr 1e-3       # backpropagation, first order

It is trained by LocoProp (variant S in closed form, natural targets), whose steps shrink to 0 in a line. `--lr` is the share
of a whole step that is made at first; how long a whole step is, says `--set estimator.trust=`, 0.3 unless it is given.

A folder holds `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, as they are or as `.gz`; labels are not read.
`examples/autoencoder.py` races all methods on this net.

References: Hinton and Salakhutdinov, Science 2006 (net and data); Martens, ICML 2010 (sparse start); Amid, Anil and Warmuth,
AISTATS 2022.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrollax._experiment import Artifact, Experiment, episodes
from unrollax._types import Params
from unrollax._value import static, value
from unrollax.local import Layered, LocoProp, dense_layers, layered
from unrollax.recipes._images import load
from unrollax.recipes._options import Autoencoder

SCORED = 5_000  # training images that are scored, at most
SHOWN = 12  # test images in the picture
STEPS = 1000


@value
class Batches:
    """Random batches of images, by the number of the update: each is its own target."""

    images: jax.Array  # [n, pixels]
    key: jax.Array
    batch: int = static()

    def __call__(self, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (x, target), leaves `[batch, pixels]`, drawn with replacement."""
        chosen = jax.random.randint(jax.random.fold_in(self.key, number), (self.batch,), 0, len(self.images))
        x = self.images[chosen]
        return x, x


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Return the cross-entropy of each image in nats, summed over its pixels, `[batch, pixels]` to `[batch]`.

    A pixel's target y in [0, 1] is a probability of ink; for a logit a the pixel adds `log(1 + e^a) - y a`, which is the
    sigmoid's matching loss. Where y is neither 0 nor 1 its least value is y's entropy and not 0: see `entropy`.
    """
    return (jax.nn.softplus(logits) - target * logits).sum(-1)


def entropy(target: jax.Array) -> jax.Array:
    """Return the entropy of each image's pixels, the least that `cross_entropy` can be, `[batch]`."""
    return -(jax.scipy.special.xlogy(target, target) + jax.scipy.special.xlog1py(1 - target, -target)).sum(-1)


def net(widths: Sequence[int], transfer: str = "tanh", initial: str = "auto") -> Layered:
    """Return the autoencoder of `widths` from the pixels to the code, mirrored behind it; code and logits are linear.

    Example:
        >>> [(layer.outputs, layer.transfer.name) for layer in net((784, 250, 30)).layers]
        [(250, 'tanh'), (30, 'identity'), (250, 'tanh'), (784, 'identity')]
    """
    start: Any = None if initial == "auto" else initial
    there, back = (dense_layers(sizes, transfer, initial=start) for sizes in (widths, tuple(widths)[::-1]))
    return layered([*there, *back], cross_entropy)


def flat(images: np.ndarray) -> jax.Array:
    """Return images as rows of pixels, `[n, pixels]`."""
    return jnp.asarray(images.reshape(len(images), -1))


def build(options: Autoencoder, seed: int, steps: int | None) -> Experiment:
    """Make the experiment."""
    images = load(options.data)
    (_, *shape), (train, test) = images.test.shape, map(flat, images)
    system = net(options.widths(), options.transfer, options.initial)
    start, draws = jax.random.split(jax.random.key(seed))
    steps = steps or STEPS
    return Experiment(
        system=system,
        estimator=LocoProp(system.layers, system.loss),
        optimizer=optax.sgd(optax.linear_schedule(options.lr, 0.0, steps)),
        params=jax.jit(system.params)(start),
        data=episodes(Batches(train, draws, options.batch), options.batch),
        evaluate=lambda params: scores(system, params, train[:SCORED], test),
        steps=steps,
        artifacts=lambda params: artifacts(system, params, test, shape),
    )


def scores(system: Layered, params: Params, train: jax.Array, test: jax.Array) -> dict[str, float]:
    """Return means over images, in nats an image: the cross-entropy, its excess over the images' entropy, which is the
    Kullback-Leibler divergence that training can remove, and the squared error summed over pixels, as papers give it.
    """
    found: dict[str, float] = {}
    for name, images in (("train", train), ("test", test)):
        losses, floor, squared = (float(each.mean()) for each in by_image(system, params, images))
        found |= {f"{name} cross-entropy": losses, f"{name} excess over entropy": losses - floor}
        found[f"{name} squared error"] = squared
    return found


@jax.jit
def by_image(system: Layered, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return cross-entropy, entropy and squared error of each image, `[n]` each."""
    logits = system.predict(params, images)
    squared = ((jax.nn.sigmoid(logits) - images) ** 2).sum(-1)
    return cross_entropy(logits, images), entropy(images), squared


def artifacts(system: Layered, params: Params, test: jax.Array, shape: Sequence[int]) -> dict[str, Artifact]:
    """Return how the errors of test images are spread, and a picture of some, from the best to the worst."""
    losses, floors, squared = (np.asarray(each) for each in by_image(system, params, test))
    excess = losses - floors
    percent = np.linspace(0, 100, 101)
    table = {
        "percent of test images": percent.tolist(),
        "excess over entropy": np.percentile(excess, percent).tolist(),
        "squared error": np.percentile(squared, percent).tolist(),
    }
    order = np.argsort(excess, kind="stable")
    chosen = test[order[np.linspace(0, len(order) - 1, SHOWN).round().astype(int)]]
    made = jax.nn.sigmoid(system.predict(params, chosen))
    return {
        "test images by error": table,
        "reconstructions.svg": picture(np.stack([chosen, made]).reshape(2, -1, *shape)),
    }


def picture(images: np.ndarray) -> str:
    """Draw images `[rows of them, columns of them, pixels, pixels]` in [0, 1], ink on white, as SVG."""
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    grid = framed.swapaxes(1, 2).reshape(framed.shape[0] * framed.shape[2], -1)
    rows, columns = grid.shape
    data = base64.b64encode(_png(np.round(255 * (1 - grid)).astype(np.uint8))).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * columns}" height="{3 * rows}" viewBox="0 0 {columns} {rows}">\n'
        "<title>Test images, from the best to the worst, and below each what the net makes of its code</title>\n"
        f'<image width="{columns}" height="{rows}" style="image-rendering: pixelated" href="data:image/png;base64,{data}"/>\n'
        "</svg>\n"
    )


def _png(grey: np.ndarray) -> bytes:
    """Return 8-bit grey levels as a PNG file."""
    rows, columns = grey.shape
    lines = np.pad(grey, ((0, 0), (1, 0))).tobytes()  # each line says first that it is not filtered
    header = struct.pack(">2I5B", columns, rows, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
