"""The gradient that estimators are compared with: exact, of the smoothed loss, or given.

The exact gradient is one backward pass over the horizon, in float64 where the system takes that. It is *usable* if it
predicts what the loss does at the distance of one update: with central differences D(v) = (L(p + v) - L(p - v)) / 2 of
length |v| = scale, both D(scale g / |g|) within a factor of 2 of scale |g|, and most of D(v) explained by g . v over random
directions. A chaotic system fails this, as does a loss with jumps. There, and where a step has no derivative in
reverse, as with a callback or a loop of unknown length, the reference is the gradient of
E L(p + scale z), z ~ N(0, I), as a long average of antithetic pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from unrollax._check import check_choice, check_like
from unrollax._errors import InvalidArgument
from unrollax._tree import ravel
from unrollax._types import Key, Params
from unrollax.diagnosis._gradients import (
    LANES,
    UNDERIVED,
    Average,
    Problem,
    exact_for,
    lacking,
    pairs_each,
    pairs_for,
    rises_for,
    widest,
)

OWNER = "compare"
DIRECTIONS = 8  # random ones, in which a gradient is tested
USABLE = (0.5, 2.0)  # of the rise along the gradient over its norm
EXPLAINED = 0.5  # of the squared rises in random directions
BELOW = {"exact": 10.0, "smoothed": 3.0}  # how many times its error is to be below the tolerance
TESTS, PERTURBATIONS = 2**30, 2**30 + 1  # what their keys are folded from; calls count from 0
KEYS_EACH, PAIRS_EACH = 16, 512  # at most so many keys or pairs for each sample of an estimator


class Reference(NamedTuple):
    """The gradient that estimators are compared with.

    Attributes:
        kind: `exact`, `smoothed` or `given`.
        grad: it, a tree like params of NumPy arrays.
        norm: its Euclidean norm, in units of loss over units of params.
        error: its standard error, relative to the norm; 0 if nothing in it is random.
        dtype: what it was computed in.
        samples: keys (`exact`) or antithetic pairs (`smoothed`) that it averages; 1 if the loss draws nothing.
        scale: the distance at which the exact gradient was tested, in units of params, and the std of `smoothed`.
        ratio: rise of the loss along the exact gradient over what that predicts, at this distance; 1 if the loss is linear.
        explained: share of the squared rises in random directions that the exact gradient explains; 1 if linear.
        note: why it is this one.
    """

    kind: str
    grad: Any
    norm: float
    error: float
    dtype: str
    samples: int
    scale: float
    ratio: float
    explained: float
    note: str

    def __str__(self) -> str:
        error = f" +- {100 * self.error:.2g} %" if self.error else ""
        return f"{self.kind} gradient in {self.dtype}, norm {self.norm:.4g}{error}: {self.note}"


class Target(NamedTuple):
    """A reference as vectors: itself, and `[lanes, d]` whose rows' outer products sum to its covariance."""

    reference: Reference
    mean: np.ndarray
    roots: np.ndarray


class Search(NamedTuple):
    """How a reference is looked for; see `compare` for the fields."""

    key: Key
    scale: float
    tolerance: float
    samples: int
    observe: Callable[[str], None]


class _Test(NamedTuple):
    """What the exact gradient predicts at a distance; see `Reference`."""

    ratio: float = np.nan
    explained: float = np.nan

    @property
    def usable(self) -> bool:
        along = np.isnan(self.ratio) or USABLE[0] <= self.ratio <= USABLE[1]
        return bool(along and self.explained >= EXPLAINED)


def find_reference(problem: Problem, asked: Any, search: Search) -> Target:
    """Return the reference; see `compare` for what can be asked for."""
    if not isinstance(asked, str):
        return _given(problem.params, asked, search.scale)
    check_choice(OWNER, "reference", asked, ("auto", "bptt", "smoothed"))
    with widest(problem) as (problem, dtype), np.errstate(over="ignore", invalid="ignore"):
        if asked == "smoothed":
            return _smoothed(problem, search, dtype, _Test(), "as asked for")
        search.observe("reference: exact gradient")
        try:
            exact, test = _exact(problem, search)
        except UNDERIVED as error:
            return _without(problem, asked, search, dtype, error)
        finite = bool(np.isfinite(exact.mean).all())
        if asked == "bptt" and not finite:
            raise InvalidArgument(
                f'{OWNER}: reference="bptt" must be finite, got NaN or infinity in {dtype}. Take reference="auto", which '
                "averages over perturbations where that is so."
            )
        if asked == "bptt" or (finite and test.usable):
            return _as_target(problem.params, "exact", exact, dtype, search.scale, test, _praise(test, exact))
        why = f"the exact gradient is no use at a distance of {search.scale:.3g} ({_blame(test, finite)})"
        return _smoothed(problem, search, dtype, test, why)


def _without(problem: Problem, asked: str, search: Search, dtype: str, error: Exception) -> Target:
    """Return the smoothed reference of a step without a derivative; raise what went wrong if it has one."""
    said = lacking(problem)
    if said is None:
        raise error
    why = f"the step has no derivative in reverse mode ({said})"
    if asked == "bptt":
        raise InvalidArgument(
            f'{OWNER}: reference="bptt" must be a gradient, but {why}. Take reference="smoothed".'
        ) from error
    return _smoothed(problem, search, dtype, _Test(), why)


def _average(draw: Callable[[int], np.ndarray], kind: str, each: int, most: int, search: Search) -> Average:
    """Average calls of `draw` `[LANES, d]` until the standard error is low enough, or `most` gradients went in."""
    total, calls = np.zeros(()), 0
    while True:
        total, calls = total + draw(calls), calls + 1
        lanes = total / calls
        mean = lanes.mean(0)
        now = Average(mean, (lanes - mean) / np.sqrt(LANES * (LANES - 1)), calls * LANES * each)
        share = now.error / now.norm if now.norm else np.inf
        search.observe(f"reference: {kind}, mean of {now.number}, with an error of {100 * share:.2g} % of its norm")
        if not share > search.tolerance / BELOW[kind] or not np.isfinite(share) or now.number + LANES * each > most:
            return now


def _exact(problem: Problem, search: Search) -> tuple[Average, _Test]:
    """Return the exact gradient, averaged over keys if the loss draws anything, and its test at a distance."""

    def keys(call: int) -> Key:
        return jax.random.split(jax.random.fold_in(search.key, call), LANES)

    first = exact_for(problem, keys(0))
    if np.array_equal(first, np.broadcast_to(first[0], first.shape), equal_nan=True):
        average, seen = Average(first[0], np.zeros_like(first[:1]), 1), keys(0)[:1]
    else:
        draw: Callable[[int], np.ndarray] = lambda call: exact_for(problem, keys(call)) if call else first
        average, seen = _average(draw, "exact", 1, KEYS_EACH * search.samples, search), keys(0)
    if not np.isfinite(average.mean).all():
        return average, _Test()
    return average, _test(problem, first.mean(0), seen, search)


def _test(problem: Problem, grad: np.ndarray, keys: Key, search: Search) -> _Test:
    """Compare what the gradient for some keys predicts at a distance with what the loss does for these keys."""
    norm = float(np.linalg.norm(grad))
    random = np.asarray(jax.random.normal(jax.random.fold_in(search.key, TESTS), (DIRECTIONS, grad.size)), np.float64)
    along = grad[None] / (norm or 1.0)
    units = np.concatenate([along, random / np.linalg.norm(random, axis=1, keepdims=True)])
    rises, size = rises_for(problem, search.scale * units, keys)
    slopes, predicted = rises / search.scale, units @ grad
    if not np.isfinite(slopes).all():
        return _Test()
    rounding = 4 * float(np.finfo(ravel(problem.params)[0].dtype).eps) * size / search.scale
    left = np.square(np.maximum(np.abs(slopes - predicted) - rounding, 0))[1:].sum()
    whole = np.square(slopes[1:]).sum()
    explained = 1.0 if left == 0 else (1 - left / whole if whole else -np.inf)
    return _Test(float(slopes[0] / norm) if norm else np.nan, float(explained))


def _smoothed(problem: Problem, search: Search, dtype: str, test: _Test, why: str) -> Target:
    key, scale = jax.random.fold_in(search.key, PERTURBATIONS), search.scale
    draw: Callable[[int], np.ndarray] = lambda call: pairs_for(problem, jax.random.fold_in(key, call), scale)
    average = _average(draw, "smoothed", pairs_each(problem), PAIRS_EACH * search.samples, search)
    if not np.isfinite(average.mean).all():
        raise InvalidArgument(
            f"{OWNER}: the loss must be finite under noise of std {scale:.3g} in params, got NaN or infinity. Pass a "
            "smaller scale=, or bound the loss with unrollax.clip_loss."
        )
    note = f"{why}; of the loss under noise of std {scale:.3g}, by {average.number:,} pairs"
    return _as_target(problem.params, "smoothed", average, dtype, scale, test, note)


def _given(params: Params, grad: Any, scale: float) -> Target:
    got, like = (jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), tree) for tree in (grad, params))
    check_like(OWNER, "reference", got, like, 'Pass a tree like params, or one of "auto", "bptt" and "smoothed".')
    vector = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(grad)])
    if not np.isfinite(vector).all():
        raise InvalidArgument(f"{OWNER}: reference must be finite, got NaN or infinity. Pass a finite gradient.")
    average = Average(vector, np.zeros((1, vector.size)), 1)
    return _as_target(params, "given", average, "float64", scale, _Test(), "taken as exact")


def _as_target(params: Params, kind: str, average: Average, dtype: str, scale: float, test: _Test, note: str) -> Target:
    leaves, treedef = jax.tree.flatten(params)
    pieces = np.split(average.mean, np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
    shaped = [piece.reshape(np.shape(leaf)) for piece, leaf in zip(pieces, leaves, strict=True)]
    norm = average.norm
    unit = norm or 1.0
    reference = Reference(
        kind=kind,
        grad=jax.tree.unflatten(treedef, shaped),
        norm=norm,
        error=average.error / unit,
        dtype=dtype,
        samples=average.number,
        scale=scale,
        ratio=test.ratio,
        explained=test.explained,
        note=note if norm else f"{note}; it is 0, so all figures are absolute",
    )
    return Target(reference, average.mean / unit, average.roots / unit)


def _praise(test: _Test, exact: Average) -> str:
    said = "backpropagation" + (f", the mean over {exact.number} keys" if exact.number > 1 else "")
    return said if test.usable else f"{said}, as asked for, though of no use for an update ({_blame(test, True)})"


def _blame(test: _Test, finite: bool) -> str:
    if not finite:
        return "it is not finite"
    if np.isnan(test.explained):
        return "the loss is not finite there"
    if not np.isnan(test.ratio) and not USABLE[0] <= test.ratio <= USABLE[1]:
        return f"along it the loss rises {test.ratio:.2g} times as much as it says"
    return f"it explains {100 * max(test.explained, 0):.2g} % of what the loss does in random directions"
