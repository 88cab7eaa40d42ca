"""Images to learn codes of: generated curves, scikit-learn's digits, and what the user has in IDX files such as MNIST's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax.recipes._idx import PARTS, Fault, find, read, shapes

SIDE = 28  # pixels of a curve's image
INSIDE = 10.0  # the three points lie this far from the centre at most, along each axis
RADIUS = 1.0  # of the pen; a pixel is 1
SEGMENTS = 32  # straight pieces of a curve: it strays from its parabola by 0.03 pixels at the very most
CHUNK = 32  # images that are drawn at once: what they need stays in cache
TRAIN, TEST = 20_000, 10_000
DIGITS_TEST = 0.2


class Images(NamedTuple):
    """Images to learn from and images to test on, float32 `[n, rows, columns]` in [0, 1]."""

    train: np.ndarray
    test: np.ndarray


def load(data: str) -> Images:
    """Return the images that an option names.

    Args:
        data: `curves` (20,000 and 10,000 that are generated), `digits` (scikit-learn's 1,438 and 359, the same ones as in
            `sequential-digits`) or a folder that holds `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, each as it
            is or as `.gz`: MNIST and Fashion-MNIST come so.

    Raises:
        InvalidArgument: there is no such folder, or a file in it is missing, damaged or holds no images.

    Example:
        >>> load("digits").test.shape
        (359, 8, 8)
    """
    if data == "curves":
        return Images(curves(TRAIN, 0), curves(TEST, 1))
    return digits() if data == "digits" else idx(data)


def idx(folder: str | Path) -> Images:
    """Return the images of a folder's IDX files, 255 as 1.

    Raises:
        InvalidArgument: the folder or a file in it can't be used.
    """
    try:
        shapes(folder)  # before either is read whole
        train, test = (read(find(folder, part)) for part in PARTS)
    except Fault as fault:
        raise InvalidArgument(f"images: {fault}") from fault
    return Images(
        *(np.frombuffer(pixels, np.uint8).reshape(shape) / np.float32(255) for shape, pixels in (train, test))
    )


def digits() -> Images:
    """Return scikit-learn's digits, 8 x 8, split as in `sequential-digits`."""
    from sklearn.datasets import load_digits

    images = (load_digits().images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [int(DIGITS_TEST * len(order))])
    return Images(images[train], images[test])


def curves(count: int, seed: int) -> np.ndarray:
    """Draw CURVES: strokes of 28 x 28 pixels through three random points.

    The points a, b, c are uniform in the square that reaches 10 pixels from the centre. The stroke is the parabola
    `p(t) = a (1 - t)(1 - 2t) + 4 b t (1 - t) + c t (2t - 1)`, which starts in a, passes b half-way and ends in c; it strays
    at most 12.5 pixels from the centre along either axis. The pen is round, of radius 1, with a soft edge of one pixel: a
    pixel whose centre is d from the stroke has the ink `clip(1.5 - d, 0, 1)`. A stroke is within the image with all its ink.

    Image number i depends on i and the seed alone. All that is done to the points is sums, products, quotients and square
    roots of float32, which IEEE 754 rounds alike everywhere.

    Args:
        count: images to draw.
        seed: of NumPy's PCG64; images of different seeds are independent.

    Returns:
        float32 `[count, 28, 28]` in [0, 1], rows from the top.

    Raises:
        InvalidArgument: count is no positive whole number.

    Example:
        >>> images = curves(2, seed=0)
        >>> images.shape, float(images.min()), float(images.max())
        ((2, 28, 28), 0.0, 1.0)

    References: Hinton and Salakhutdinov, Science 2006, supplement: 20,000 + 10,000 images of curves that three random
    points in two dimensions define. Deviation: their pen and their interpolation are not published.
    """
    check_counts("curves", count=count)
    points = three_points(count, seed).astype(np.float32)
    return np.concatenate([_ink(points[at : at + CHUNK]) for at in range(0, count, CHUNK)])


def three_points(count: int, seed: int) -> np.ndarray:
    """Return the points of each curve, float64 `[count, 3, 2]`, as x from the left and y from the top in pixels."""
    return SIDE / 2 + INSIDE * (2 * np.random.Generator(np.random.PCG64(seed)).random((count, 3, 2)) - 1)


def _ink(points: np.ndarray) -> np.ndarray:
    """Draw the strokes through points `[n, 3, 2]`."""
    t = (np.arange(SEGMENTS + 1, dtype=np.float32) / np.float32(SEGMENTS))[:, None, None]
    first, middle, last = points.swapaxes(0, 1)
    lines = first * ((1 - t) * (1 - 2 * t)) + middle * (4 * t * (1 - t)) + last * (t * (2 * t - 1))
    distance = np.sqrt(np.maximum(_squared_distance(lines), 0))
    return np.clip(np.float32(RADIUS + 0.5) - distance, 0, 1)


def _squared_distance(lines: np.ndarray) -> np.ndarray:
    """Return from each pixel's centre the squared distance to its polyline, `[points, n, 2]` to `[n, SIDE, SIDE]`."""
    centres = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    best = np.full((lines.shape[1], SIDE, SIDE), np.inf, np.float32)
    for start, end in pairwise(lines):
        along = end - start
        length = np.maximum(np.sqrt(along[:, 0] * along[:, 0] + along[:, 1] * along[:, 1]), np.float32(1e-12))
        unit = along / length[:, None]
        x, y = centres - start[:, :1], centres - start[:, 1:]  # [n, SIDE]
        place = (x * unit[:, :1])[:, None, :] + (y * unit[:, 1:])[:, :, None]
        nearest = np.clip(place, 0, length[:, None, None])
        squared = (x * x)[:, None, :] + (y * y)[:, :, None]
        np.minimum(best, squared - nearest * (2 * place - nearest), out=best)
    return best
