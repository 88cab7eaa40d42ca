"""Plug-and-play deblurring: a small net in the prox's place, trained through the iterations that it serves in.

Patches of two photographs behind a Gaussian blur of 1.5 pixels with noise of 0.01 (grey goes from 0 to 1). All that is tuned
or trained sees patches of the one photograph only, and is tested on the other. Figures are peak signal-to-noise ratios,
10 log10(1 / mean squared error), in dB.

All but Tikhonov's are half-quadratic splitting of six iterations, z = prox(K x, lam / penalty), then the x nearest to y and
z, by FFT. They differ in the prox:

- total variation: K x the differences, shrunk in pairs; Haar: soft thresholding of undecimated Haar wavelets. Constants are
  the best of a grid. For the best of these rivals the penalty and lam of each iteration are trained as well.
- learned: to the shrunk differences a net of three convolutions adds what it makes of them and of what the threshold took
  from them, the same net in all iterations. It is a leaf of params, starts at 0, which is total variation with the best
  constants, and is trained end to end with the penalties and lam, each at its own learning rate, in as many updates.

    .venv/bin/python examples/unfold_deblurring.py [--quick] [--json] [--out FILE] [--golden]

All runs in float32. References: Wang, Yang, Yin and Zhang 2008 (total variation); Venkatakrishnan, Bouman and Wohlberg 2013
(plug-and-play); Zhang, Zuo, Gu and Zhang 2017.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import Claim, above, between
from _unfold import main

import unrollax as ux

DEPTH, CHANNELS, SIZE, BATCH, UPDATES, TESTS = 6, 12, 32, 4, 250, 64
RATES = {"net": 3e-3, "numbers": 3e-2}
RIVALS = {"Tikhonov": (29.5, 30.1), "total variation": (30.9, 31.5), "Haar": (30.4, 31.0)}  # dB
GRID = {"penalty": (0.003, 0.01, 0.03), "lam": (1e-4, 3e-4, 1e-3)}


@ux.value
class Spectral:
    """A circular blur that solves its own normal equations.

    Attributes:
        blur: the operator of the problems.
        prior: K^H K in the basis of the FFT, `[size, size // 2 + 1]`.
    """

    blur: Any
    prior: jax.Array

    def mv(self, x: jax.Array) -> jax.Array:
        """Return the blurred image."""
        return self.blur.mv(x)

    def transpose(self) -> Any:
        """Return the operator of the mirrored kernel."""
        return self.blur.transpose()

    def solve(self, right: jax.Array, shift: Any) -> jax.Array:
        """Return (A^H A + shift K^H K)^-1 right."""
        spectrum = jnp.abs(self.blur.transfer) ** 2 + shift * self.prior
        return jnp.fft.irfft2(jnp.fft.rfft2(right) / spectrum, s=right.shape).astype(right.dtype)


def differences(x: jax.Array) -> jax.Array:
    """Return the differences to the next pixel down and to the right, `[2, size, size]`."""
    return jnp.stack([jnp.roll(x, -1, axis) - x for axis in (0, 1)])


def patches(which: int, *, along_edges: bool) -> Any:
    """Return the patches of one photograph, behind a blur that solves with K = differences, or without K."""
    of = ux.problems.deblurring(size=SIZE)
    waves = [2 - 2 * np.cos(2 * np.pi * np.fft.fftfreq(SIZE)), 2 - 2 * np.cos(2 * np.pi * np.fft.rfftfreq(SIZE))]
    prior = waves[0][:, None] + waves[1] if along_edges else np.ones(of.A.transfer.shape)
    return dataclasses.replace(
        of, images=of.images[which : which + 1], A=Spectral(of.A, jnp.asarray(prior, jnp.float32))
    )


def pairs(v: jax.Array, scale: Any) -> jax.Array:
    """Shrink the two differences at a pixel as one, for the isotropic total variation."""
    return ux.prox.group(v, scale, axis=0)


def haar(v: jax.Array, scale: Any) -> jax.Array:
    """Shrink the details of undecimated Haar wavelets of two levels."""
    coarse, fine = v, jnp.zeros_like(v)
    for reach in (1, 2):
        for axis in (0, 1):
            ahead = jnp.roll(coarse, -reach, axis)
            detail = ux.prox.soft((coarse - ahead) / 2, scale)
            fine += (detail - jnp.roll(detail, reach, axis)) / 2
            coarse = (coarse + ahead) / 2
            coarse = (coarse + jnp.roll(coarse, reach, axis)) / 2
    return coarse + fine


def learned(net: Any, v: jax.Array, scale: Any) -> jax.Array:
    """Shrink differences, and add what a net makes of them in units of the threshold."""
    shrunk = pairs(v, scale)
    x = jnp.moveaxis(jnp.concatenate([shrunk, v - shrunk]) / scale, 0, -1)[None]
    for index, (kernel, bias) in enumerate(net):
        x = jnp.pad(jax.nn.relu(x) if index else x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x + bias.reshape(1, 1, 1, -1)
    return shrunk + scale * jnp.moveaxis(x[0], -1, 0)


def fresh(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Return a net's weights; those of its last layer are 0, with which it adds nothing."""
    shapes = [(3, 3, 4, CHANNELS), (3, 3, CHANNELS, CHANNELS), (3, 3, CHANNELS, 2)]
    keys = jax.random.split(key, 3)
    kernels = [jax.nn.initializers.he_normal()(k, s) for k, s in zip(keys, shapes, strict=True)]
    kernels[-1] = 0 * kernels[-1]
    return [(kernel, jnp.zeros(kernel.shape[-1])) for kernel in kernels]


def plugged(theta: Any, x: Any, problem: Any) -> Any:
    """Make an iteration of half-quadratic splitting with the prox that theta has."""
    splitting = ux.solvers.half_quadratic_splitting(lambda v, scale: learned(theta["net"], v, scale), differences)
    return splitting.step(theta, x, problem)


def unfolded(method: Any, problems: Any) -> Any:
    """Return the system."""
    return ux.unfold(method, problems, horizon=DEPTH, batch=BATCH)


@functools.partial(jax.jit, static_argnums=(2, 3))
def decibels(net: Any, params: Any, tests: int, seed: int) -> jax.Array:
    """Return the ratio after all iterations, of the mean over so many patches."""
    errors = dataclasses.replace(net, batch=tests).errors(params, jax.random.key(seed))
    return -10 * jnp.log10(errors[-1])


def trained(method: Any, params: Any, problems: Any, updates: int) -> Any:
    """Train by Adam, weights and numbers each at their own rate, which falls along a cosine."""
    rates = {group: optax.adam(optax.cosine_decay_schedule(rate, updates)) for group, rate in RATES.items()}
    labels = {name: "net" if name == "net" else "numbers" for name in params}
    plan = ux.one_shot(DEPTH, updates)
    return ux.fit_unfold(
        unfolded(method, problems), params, plan, optax.partition(rates, labels), key=jax.random.key(1)
    ).params


def tuned(net: Any, tests: int, **grid: Any) -> tuple[float, Any]:
    """Return the best ratio of a grid of constants, and these."""
    found = []
    for numbers in itertools.product(*grid.values()):
        params = ux.per_step(dict(zip(grid, numbers, strict=True)), DEPTH, transform="log")
        found.append((float(decibels(net, params, tests, 7)), params))
    return max(found, key=lambda each: each[0])


def tikhonov() -> Any:
    """Return the x of least |A x - y|^2 / 2 + lam |K x|^2 / 2 as an algorithm that is there at once."""
    return ux.solvers.Algorithm(
        step=lambda theta, _, problem: problem.A.solve(problem.A.transpose().mv(problem.y), theta["lam"]),
        start=lambda problem: problem.y,
        params=lambda: {"lam": 1e-3},
    )


def deblurring(quick: bool) -> list[Claim]:
    """Tune and train on the one photograph, test on the other."""
    updates, tests = (4, 8) if quick else (UPDATES, TESTS)
    edges, pixels = ((patches(0, along_edges=k), patches(1, along_edges=k)) for k in (True, False))
    splitting = ux.solvers.half_quadratic_splitting
    rivals = {
        "Tikhonov": (tikhonov(), edges, {"lam": np.geomspace(1e-4, 1e-1, 16)}),
        "total variation": (splitting(pairs, differences), edges, GRID),
        "Haar": (splitting(haar), pixels, GRID),
    }
    seen, best = {}, {}
    for name, (method, (train, test), grid) in rivals.items():
        best[name] = tuned(unfolded(method, train), tests, **grid)
        seen[name] = float(decibels(unfolded(method, test), best[name][1], tests, 99))
    first = max(seen, key=lambda name: best[name][0])  # on the photograph that it was tuned on
    method, (train, test), _ = rivals[first]
    numbers = trained(method, best[first][1], train, updates)
    better = float(decibels(unfolded(method, test), numbers, tests, 99))
    start = {"net": fresh(jax.random.key(0)), **best["total variation"][1]}
    plug = dataclasses.replace(splitting(K=differences), step=plugged)
    params = trained(plug, start, edges[0], updates)
    after = float(decibels(unfolded(plug, edges[1]), params, tests, 99))
    return [
        *(between(f"{name}, best constants: dB", *RIVALS[name], ratio) for name, ratio in seen.items()),
        between(f"{first}, trained numbers: dB", 31.6, 32.2, better),
        above("learned: dB", 32.2, after),
        above("learned: dB above the best constants", 1.0, after - max(seen.values())),
        above("learned: dB above the best rival with trained numbers", 0.3, after - better),
    ]


PARTS: dict[str, Callable[[bool], list[Claim]]] = {"deblurring": deblurring}
CONFIG = {"depth": DEPTH, "channels": CHANNELS, "size": SIZE, "batch": BATCH, "updates": UPDATES, "tests": TESTS}

if __name__ == "__main__":
    main(__file__, __doc__, PARTS, CONFIG)
