"""Random directions that cost less than `jax.random.normal`."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from unrollax._types import Key

# Before scaling, the 65,536 values have a mean square just below 1; with it the variance is 1 to the last digit.
_SCALE = math.sqrt(2 / 0.9999797186525821)


def normal(key: Key, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """Draw standard normal numbers from 16 random bits each: evolution strategies need no finer ones.

    The numbers take 65,536 equally likely values, symmetric about 0, of variance exactly 1, kurtosis 2.999 and absolute
    value at most 4.33. A draw costs about 0.4 of `jax.random.normal`'s time on a CPU. Any sampler with the signature of
    `jax.random.normal` can be passed to an estimator in its place.

    Args:
        key: a PRNG key.
        shape: of the result.
        dtype: a floating dtype.

    Example:
        >>> normal(jax.random.key(0), (3, 2)).shape
        (3, 2)
    """
    count, dtype = math.prod(shape), jax.dtypes.canonicalize_dtype(dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    words = _words(key, -(-count // 2))
    halves = [(half.astype(jnp.int32).astype(wide) - 32767.5) / 32768 for half in (words >> 16, words & 0xFFFF)]
    numbers = jnp.concatenate([_SCALE * jax.lax.erf_inv(half) for half in halves])
    return numbers[:count].reshape(shape).astype(dtype)


def threefry(key: Key) -> Key:
    """Return a Threefry key made of any key: bits of other kinds depend, under `vmap`, on the whole batch of keys."""
    if _is_threefry(key):
        return key
    words = jax.random.key_data(key).ravel()
    first = jax.random.key(0, impl="threefry2x32")
    return functools.reduce(jax.random.fold_in, [words[i] for i in range(words.size)], first)


def _is_threefry(key: Key) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


def _words(key: Key, count: int) -> jax.Array:
    """Return `[count]` words of 32 random bits; each Threefry block gives two, of which `jax.random.bits` uses one."""
    if not _is_threefry(key):
        return jax.random.bits(key, (count,), jnp.uint32)
    words: jax.Array = threefry_2x32(jax.random.key_data(key), jax.lax.iota(jnp.uint32, count))
    return words
