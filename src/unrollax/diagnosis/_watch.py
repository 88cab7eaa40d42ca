"""Watching a gradient while training: its norm by leaf, and what two independent halves of it say about its noise."""

from __future__ import annotations

import functools
import re
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._check import check_choice, check_key, check_params
from unrollax._tree import to_arrays
from unrollax._types import Data, Estimate, GradientEstimator, Key, Params, Scalar, State
from unrollax._value import static, value
from unrollax.diagnosis._halves import half_of, halved_by, halves_of, stack
from unrollax.estimators._antithetic import Antithetic
from unrollax.estimators._parts import Combined, mean_of_copies, nonfinite_of

HALVES = "They take an even number of pairs, directions, copies or examples, no shaping and no learned std"


class Watched(NamedTuple):
    """What `watch` reports; in the metrics of `fit` each leaf has a first axis of updates.

    With a and b the estimates of the two halves and (a + b) / 2 the whole, |whole|^2 = noise + signal. All but `leaves` and
    `nonfinite` are NaN where there are no halves.

    Attributes:
        info: the estimator's own info; of both halves, `[2, ...]`, where there are halves.
        nonfinite: share of the trajectories whose loss was not finite.
        leaves: norm of the gradient by leaf, a tree like params of scalars.
        cosine: of the angle between a and b: near 1 a clean gradient, near 0 one that is mostly noise.
        noise: |a - b|^2 / 4, whose mean is the trace of the covariance of the estimate.
        signal: <a, b>, whose mean is the squared norm of the mean gradient; one update's may be negative.
        noise_scale: noise / signal, infinite where the signal is not positive: how many estimates must be averaged for their
            noise to fall to the signal. The ratio of two means, `.mean().noise_scale`, is steadier than that of one update.
    """

    info: Any
    nonfinite: Scalar
    leaves: Params
    cosine: Scalar
    noise: Scalar
    signal: Scalar
    noise_scale: Scalar

    def mean(self) -> Watched:
        """Return the means over updates, with the noise scale of the mean noise and the mean signal."""
        if np.ndim(self.cosine) == 0:
            return self
        means = jax.tree.map(lambda leaf: np.asarray(leaf).mean(0), self)
        return means._replace(noise_scale=np.asarray(_ratio(means.noise, means.signal)))

    def to_dict(self) -> dict[str, Any]:
        """Return the means over updates as plain numbers, `leaves` by path."""
        means = self.mean()
        named = {
            name: float(getattr(means, name)) for name in ("nonfinite", "cosine", "noise", "signal", "noise_scale")
        }
        return {**named, "leaves": {name: float(norm) for name, norm in to_arrays(means.leaves).items()}}

    def __str__(self) -> str:
        told = self.to_dict()
        width = max(map(len, told["leaves"]))
        rows = [f"  {name:<{width}}  {norm:.4g}" for name, norm in told["leaves"].items()]
        over = f"means over {len(self.cosine)} updates" if np.ndim(self.cosine) else "one update"
        head = (
            f"cosine of the halves {told['cosine']:.3f}, noise {told['noise']:.4g}, signal {told['signal']:.4g}, "
            f"noise scale {told['noise_scale']:.4g} estimates ({over})"
        )
        known = not all(np.isnan(told[name]) for name in ("cosine", "noise", "signal"))
        if not known and np.isfinite(list(told["leaves"].values())).all():
            head = f"no halves: nothing is known of the noise. {HALVES} ({over})."
        return "\n".join([head, "gradient norm by leaf", *rows])


class Halves(NamedTuple):
    """The states of both halves: not stacked, so that a large one is changed in place."""

    first: State
    second: State


@value
class Watch(Combined):
    """An estimator that reports on its gradient; see `watch`."""

    estimator: GradientEstimator
    halves: bool = static(default=True)

    owner: ClassVar[str] = "watch"
    fields: ClassVar[tuple[str, ...]] = ("estimator",)

    def __post_init__(self) -> None:
        check_choice(self.owner, "halves", self.halves, (True, False))
        self._take_parts()

    @property
    def system(self) -> Any:
        """What is unrolled."""
        return self.estimator.system  # type: ignore[attr-defined]

    @property
    def halved(self) -> str | None:
        """What the halves have half of: "pairs", "directions", "repeats" or "examples"; `None` if there are no halves."""
        return halved_by(self.estimator) if self.halves else None

    def init(self, key: Key, params: Params) -> State:
        """Return the estimator's state, or `Halves` of them."""
        params, key = check_params(self.owner, params), check_key(self.owner, key)
        if self.halved is None:
            return self.estimator.init(key, params)
        half = half_of(self.estimator, self.halved)
        states = [half.init(key, params) for key in jax.random.split(key)]
        if (
            isinstance(self.estimator, Antithetic) and self.estimator.stagger
        ):  # every other clock of the whole's, so that all are there
            clocks = self.estimator.init(key, params).left
            states = [state._replace(left=clocks[first::2]) for first, state in enumerate(states)]
        return Halves(*states)

    def estimate(self, params: Params, state: State, data: Data) -> tuple[State, Estimate]:
        """Return the estimator's own estimate, or the mean of its halves', and what they say."""
        params = check_params(self.owner, params)
        if self.halved is None:
            state, each = self.estimator.estimate(params, state, data)
            (loss, grad), about = each[:2], _nothing(each.grad)
        else:
            state, each = self._both(params, state, data)
            (loss, grad), about = mean_of_copies(each[:2]), _compared(each.grad)
        return state, Estimate(loss, grad, Watched(each.info, nonfinite_of(each), jax.tree.map(_norm, grad), *about))

    def _both(self, params: Params, state: Halves, data: Data) -> tuple[Halves, Estimate]:
        """Run both halves: one after the other where a chunk of pairs is what fits a cache, else at once."""
        assert self.halved is not None
        half = half_of(self.estimator, self.halved)
        by_examples = self.halved == "examples"
        if not by_examples and jax.default_backend() == "cpu":
            call = jax.jit(half.estimate)  # traced once
            runs = [call(params, each, data) for each in state]
            return Halves(*(after for after, _ in runs)), stack(*(estimate for _, estimate in runs))
        pieces = halves_of(data, half.system.count) if by_examples else data
        stacked, each = jax.vmap(half.estimate, (None, 0, 0 if by_examples else None))(params, stack(*state), pieces)
        return Halves(*(jax.tree.map(lambda leaf, at=at: leaf[at], stacked) for at in range(2))), each

    def _formula(self, field: str, formula: str) -> str:
        """Return the cost of both halves: as many examples in all, or twice that of half as many draws."""
        whole = Combined._formula(self, field, formula)
        if self.halved in (None, "examples"):
            return whole
        count = re.compile(rf"(?<![\w.])estimator\.{self.halved}\b")
        return f"2 * {count.sub(f'(estimator.{self.halved} // 2)', whole)}"


def watch(estimator: GradientEstimator, *, halves: bool = True) -> Watch:
    """Let an estimator report on its gradient: norms by leaf, and how much of it is noise.

    The estimate is run as two halves with keys of their own, a and b, each with half of the pairs. Their mean is distributed
    as the estimate of the whole, so that training stays what it was. As a and b are independent with one mean mu,

        E <a, b> = |mu|^2,    E |a - b|^2 / 4 = tr Cov((a + b) / 2),

    and the ratio is the noise scale: how many such estimates must be averaged for noise and signal to be equal. Times `pairs`
    it is the number of pairs from which on more of them hardly help; times the examples, that of examples.

    | estimator | halves | differs from the whole |
    |---|---|---|
    | `PES`, `NRES`, `ESSingle`, `FullES` | of the pairs | in nothing but with `control`: each half takes a gradient |
    | `ES` | of the pairs | each half has an unperturbed trajectory of its own: one more pass, unless staggered |
    | `ForwardGradient`, `UORO` | of the directions | each half runs the system: one more pass (and cotangent) |
    | `mean_over` | of the copies | in nothing |
    | `BPTT`, `TBPTT`, `RTRL` on a `batched` system | of the examples | in nothing; the noise is that of examples |
    | anything else, odd numbers, `shaping`, a learned `std` | none | it is run as it is, with norms by leaf only |

    The noise is that of what the halves have of their own: for pairs the perturbations and the system's keys but not the
    data, which both see. With `stagger`, a has every other clock and b the rest: the difference of their means counts as
    noise.

    Args:
        estimator: any object with `init` and `estimate`.
        halves: whether to run halves where there are some. Without, nothing is added but the norms.

    Returns:
        An estimator with the window, horizon, target and needs of the one watched, whose info is a `Watched`. Its state
        holds those of both halves: a run continues watched as it began.

    Raises:
        InvalidArgument: estimator lacks a method, or halves is no bool.
        StructureError: halves of the examples, and a data leaf has no axis of them after time.

    Example:
        >>> import optax, unrollax as ux
        >>> decay = ux.system(init=lambda k, p: jnp.ones(()), step=lambda p, s, x, k: (p * s, (p * s) ** 2))
        >>> watched = ux.watch(ux.PES(decay, std=0.1, window=2, horizon=4, pairs=8))
        >>> run = ux.fit(watched, optax.sgd(0.1), 0.5, None, key=jax.random.key(0), steps=20)
        >>> watched.halved, run.metrics.info.cosine.shape  # a single parameter: the halves agree but for the sign
        ('pairs', (20,))
        >>> bool(0 < run.metrics.info.mean().noise_scale < 1)
        True

    References: McCandlish et al., arXiv 2018 (the gradient noise scale, from batches of two sizes there).
    """
    return Watch(estimator, halves)


def _nothing(grad: Params) -> tuple[Scalar, ...]:
    return (jnp.full((), jnp.nan, _wide(grad)),) * 4


def _compared(each: Params) -> tuple[Scalar, ...]:
    """Return cosine, noise, signal and noise scale of gradients `[2, ...]`, without over- or underflow of the cosine."""
    pairs = [(leaf[0].astype(_wide(each)), leaf[1].astype(_wide(each))) for leaf in jax.tree.leaves(each)]
    scale = _scale([leaf for pair in pairs for leaf in pair])
    pairs = [(a / scale, b / scale) for a, b in pairs]
    over_leaves = functools.partial(functools.reduce, jnp.add)
    ab, aa, bb = (over_leaves([(p[i] * p[j]).sum() for p in pairs]) for i, j in ((0, 1), (0, 0), (1, 1)))
    apart = over_leaves([((a - b) ** 2).sum() for a, b in pairs])
    cosine, signal, noise = ab / (jnp.sqrt(aa) * jnp.sqrt(bb)), ab * scale**2, apart * scale**2 / 4
    return cosine, noise, signal, _ratio(noise, signal)


def _ratio(noise: Any, signal: Any) -> Scalar:
    """Return noise / signal, infinite where the signal drowns, NaN where one of them is."""
    ratio = noise / jnp.where(signal > 0, signal, 1)
    return jnp.where(signal <= 0, jnp.inf, ratio + 0 * signal)


def _norm(leaf: jax.Array) -> Scalar:
    """Return the Euclidean norm in at least float32, without over- or underflow."""
    wide = leaf.astype(_wide(leaf))
    scale = _scale([wide])
    return scale * jnp.sqrt(((wide / scale) ** 2).sum())


def _scale(leaves: list[jax.Array]) -> Scalar:
    """Return the largest absolute value, or 1 where that is nothing to divide by."""
    largest = functools.reduce(jnp.maximum, (jnp.abs(leaf).max() for leaf in leaves))
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def _wide(tree: Any) -> Any:
    return jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
