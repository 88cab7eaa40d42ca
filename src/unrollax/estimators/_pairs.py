"""What the evolution family passes around: the state between windows, and what one window reads and changes of its pairs."""

from __future__ import annotations

from typing import NamedTuple

import jax

from unrollax._tree import Unravel
from unrollax._types import Data, Key, State
from unrollax.estimators._std import Std


class EvolutionState(NamedTuple):
    """What the next window needs.

    Attributes:
        key: the key of all later draws.
        windows: int32 scalar, the windows so far.
        left: int32 `[trajectories]`, the steps left of each trajectory's episode; 0 or less means a reset comes first.
        age: int32 `[trajectories]`, the windows of the episode so far.
        inner: the system's states, `[pairs, 2, ...]`; for `ES` those of the unperturbed trajectories, `[trajectories, ...]`.
        seeds: `[pairs]` keys, from which each pair draws the noise of its episode; `None` for `ES`.
        noise: what each pair keeps, `[pairs, numbers in params]`: for `PES` what it is credited with (its twin with the
            negative; with a learned `std` also the scores of its logarithms), for `NRES` and `ESSingle` the noise in units
            of `std`; `None` for `ES` and for `noise="regenerated"`.
        control: the unperturbed state of `control="analytic"`, else `None`.
    """

    key: Key
    windows: jax.Array
    left: jax.Array
    age: jax.Array
    inner: State
    seeds: Key | None
    noise: jax.Array | None
    control: State


class Pairs(NamedTuple):
    """What a window reads of some pairs, leaves `[pairs, ...]`; `born` is the window in which the episode began."""

    reset: jax.Array
    age: jax.Array
    born: jax.Array
    seeds: Key
    start: Key
    run: Key
    shared: State


class Kept(NamedTuple):
    """What a window changes of some pairs, leaves `[pairs, ...]`."""

    inner: State
    noise: jax.Array | None


class Window(NamedTuple):
    """What all pairs have in common; `number` counts windows, `slope` is the gradient that `control` knows, or `None`."""

    theta: jax.Array
    unravel: Unravel
    std: Std
    number: jax.Array
    data: Data
    slope: jax.Array | None
