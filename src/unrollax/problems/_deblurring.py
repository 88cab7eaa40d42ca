"""Patches of two photographs behind a Gaussian blur, by FFT as a linear operator."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import NOT_NEGATIVE, POSITIVE, check_counts, check_number
from unrollax._errors import InvalidArgument
from unrollax._types import Key
from unrollax._value import static, value
from unrollax.problems._problem import Problem, measured

GREY = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue look


@value
class Blur:
    """A circular convolution of images `[size, size]`, as a linear operator; made by `deblurring`.

    Attributes:
        transfer: the real FFT of the kernel, `[size, size // 2 + 1]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from unrollax.problems import Blur
        >>> down = Blur(jnp.fft.rfft2(jnp.zeros((4, 4)).at[1, 0].set(1.0)))  # by one row
        >>> image = jnp.arange(16.0).reshape(4, 4)
        >>> bool(jnp.allclose(down.mv(image), jnp.roll(image, 1, 0), atol=1e-5))
        True
    """

    transfer: jax.Array

    def mv(self, x: jax.Array) -> jax.Array:
        """Return the blurred image."""
        blurred: jax.Array = jnp.fft.irfft2(jnp.fft.rfft2(x) * self.transfer, s=x.shape)
        return blurred.astype(x.dtype)

    def transpose(self) -> Blur:
        """Return the operator of the mirrored kernel."""
        return Blur(jnp.conj(self.transfer))

    @property
    def T(self) -> Blur:
        """The transpose."""
        return self.transpose()


@value
class Deblurring:
    """Blurred patches of images; made by `deblurring`.

    Attributes:
        size: height and width of a patch.
        images: grey images in [0, 1], `[images, height, width]`.
        A: the blur.
        noise: the standard deviation of the noise.
    """

    size: int = static()
    images: jax.Array
    A: Blur
    noise: Any

    def draw(self, key: Key) -> tuple[jax.Array, jax.Array]:
        """Return a blurred patch under noise and the patch, `[size, size]` each."""
        which, noise = jax.random.split(key)
        room = jnp.array([self.images.shape[0], *(side - self.size + 1 for side in self.images.shape[1:])])
        corner = jax.random.randint(which, (3,), 0, room)
        x = jax.lax.dynamic_slice(self.images, corner, (1, self.size, self.size))[0]
        return measured(noise, self.A.mv(x), self.noise), x

    def whole(self, own: tuple[jax.Array, jax.Array]) -> Problem:
        """Return the problem of what `draw` gave."""
        return Problem(self.A, *own, noise=self.noise)


def deblurring(size: int = 64, width: float = 1.5, noise: float = 0.01) -> Deblurring:
    """Sharpen patches of scikit-learn's two photographs, behind a Gaussian blur and noise.

    A patch is cut at random and blurred as if it went round at its edges, which an FFT does exactly: y = A x + noise e.
    A is an operator with `mv` and `transpose()`; its largest singular value is 1. It needs the extra `recipes`
    (scikit-learn) and pillow.

    Args:
        size: height and width of a patch, at most 427.
        width: standard deviation of the Gaussian, in pixels; larger values blur more.
        noise: standard deviation of the noise; grey goes from 0 to 1.

    Raises:
        InvalidArgument: size is no whole number from 1 to 427, or width is not positive, or noise is negative.

    Example:
        >>> import jax
        >>> from unrollax.problems import deblurring
        >>> problems = deblurring(size=32)
        >>> problem = problems.whole(problems.draw(jax.random.key(0)))
        >>> problem.y.shape, problem.A.mv(problem.x).shape
        ((32, 32), (32, 32))
    """
    check_counts("deblurring", size=size)
    check_number("deblurring", "width", width, POSITIVE, used=True)
    check_number("deblurring", "noise", noise, NOT_NEGATIVE, used=True)
    images = _photographs()
    if size > min(images.shape[1:]):
        raise InvalidArgument(
            f"deblurring: size must be at most {min(images.shape[1:])}, the images' height, got size={size}. Give less."
        )
    away = np.minimum(np.arange(size), size - np.arange(size))  # pixels from the middle, the circle round
    line = np.exp(-0.5 * (away / width) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    transfer = np.fft.rfft2(kernel).real  # the kernel is its own mirror image
    return Deblurring(size, jnp.asarray(images), Blur(jnp.asarray(transfer)), float(noise))


@functools.cache
def _photographs() -> np.ndarray:
    """Return scikit-learn's photographs in grey, `[2, 427, 640]`, in [0, 1]."""
    from sklearn.datasets import load_sample_image

    return np.stack([load_sample_image(name) @ GREY / 255 for name in ("china.jpg", "flower.jpg")])
