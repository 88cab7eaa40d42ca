"""What combinators of estimators share: their parts, what follows from them, and statistics over independent copies."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias, cast

import jax
import jax.numpy as jnp

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument
from unrollax._estimate import share_nonfinite
from unrollax._tree import all_finite
from unrollax._types import Cost, Data, Estimate, GradientEstimator, Key, Params, Scalar, State, Traits
from unrollax._value import static, value

Target: TypeAlias = Literal["exact", "smoothed", "truncated", "pseudo"]
Needs: TypeAlias = Literal["forward", "jvp", "vjp"]

TARGETS: tuple[Target, ...] = ("exact", "smoothed", "truncated", "pseudo")  # each promises less than the one before
NEEDS: tuple[Needs, ...] = ("forward", "jvp", "vjp")  # each asks for more than the one before
SAID = ("window", "horizon", "traits")  # what an estimator may say of itself
NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
FEWEST, COPIES = 3, 4  # all copies but one give a variance


@value
class FunctionEstimator:
    """An estimator made of an object that is no pytree: its two methods and what it says of itself."""

    init: Callable[..., State] = static()
    estimate: Callable[..., tuple[State, Estimate]] = static()
    said: tuple[tuple[str, Any], ...] = static()

    def __getattr__(self, name: str) -> Any:
        """Return what the object said, and nothing that it didn't."""
        for known, said in object.__getattribute__(self, "said"):
            if name == known:
                return said
        raise AttributeError(name)


def as_estimator(owner: str, field: str, candidate: Any) -> GradientEstimator:
    """Return `candidate` as an estimator that can be a field of a value: any object with `init` and `estimate` will do."""
    if candidate is None:  # no estimator, but how `vmap` is told to leave this field alone
        return cast(GradientEstimator, candidate)
    lacking = [name for name in ("init", "estimate") if not callable(getattr(candidate, name, None))]
    if lacking or isinstance(candidate, type):
        got = f"{type(candidate).__name__} without {' or '.join(lacking)}"
        raise InvalidArgument(
            f"{owner}: {field} must have init(key, params) and estimate(params, state, data), got "
            f"{f'the class {candidate.__name__}' if isinstance(candidate, type) else got}. "
            "Pass an estimator such as unrollax.PES(system, ...)."
        )
    if not jax.tree_util.all_leaves([candidate]):
        return cast(GradientEstimator, candidate)
    said = tuple((name, getattr(candidate, name)) for name in SAID if hasattr(candidate, name))
    return cast(GradientEstimator, FunctionEstimator(candidate.init, candidate.estimate, said))


def check_same_windows(owner: str, parts: dict[str, Any]) -> None:
    """Raise if parts don't go through the same windows, as far as they say."""
    for name in ("window", "horizon"):
        known = {field: getattr(part, name) for field, part in parts.items() if hasattr(part, name)}
        if len(set(known.values())) > 1:
            got = ", ".join(f"{field} with {name}={number}" for field, number in known.items())
            raise InvalidArgument(f"{owner}: the parts must have the same {name}, got {got}. Give both the same.")


class Combined(abc.ABC):
    """An estimator made of others. What none of them says, it doesn't say either."""

    owner: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    times: ClassVar[str] = "1"

    def _take_parts(self) -> None:
        """Make each part a value, and refuse parts that don't go through the same windows."""
        parts = {field: as_estimator(self.owner, field, getattr(self, field)) for field in self.fields}
        for field, part in parts.items():
            object.__setattr__(self, field, part)
        check_same_windows(self.owner, parts)

    @property
    def window(self) -> int:
        """Steps of a call: those of its parts."""
        return int(_said(self, "window"))

    @property
    def horizon(self) -> int | None:
        """Steps between resets: those of its parts."""
        return cast("int | None", _said(self, "horizon"))

    @property
    def traits(self) -> Traits:
        """The weakest target of its parts, the strongest need, and the sum of their costs."""
        parts = [(field, getattr(self, field).traits) for field in self.fields]
        target = max((traits.target for _, traits in parts), key=TARGETS.index)
        needs = max((traits.needs for _, traits in parts), key=NEEDS.index)
        if any(traits.cost is None for _, traits in parts):
            return Traits(target, needs)
        sums = (" + ".join(self._formula(field, traits.cost[kind]) for field, traits in parts) for kind in range(3))
        return Traits(target, needs, Cost(*(f"{self.times} * ({total})" for total in sums)))

    def _formula(self, field: str, formula: str) -> str:
        """Return a part's formula with the part's fields named from here: `2 * pairs` as `(2 * first.pairs)`."""
        part = getattr(self, field)

        def name(found: re.Match[str]) -> str:
            return f"{field}.{found[0]}" if hasattr(part, found[0]) else found[0]

        return f"({NAME.sub(name, formula)})"


def _said(combined: Combined, name: str) -> Any:
    """Return what the first part that says it says; raises `AttributeError` if none does."""
    parts = [getattr(combined, field) for field in combined.fields]
    return getattr(next((part for part in parts if hasattr(part, name)), parts[0]), name)


def check_copies(owner: str, samples: int) -> None:
    """Raise unless there are copies enough to leave one out."""
    check_counts(owner, samples=samples)
    if samples < FEWEST:
        raise InvalidArgument(
            f"{owner}: samples must be at least {FEWEST}, got samples={samples}. All but one give a variance."
        )


def init_copies(estimator: GradientEstimator, key: Key, params: Params, count: int) -> State:
    """Return the states of `count` independent copies, `[count, ...]`."""
    return jax.vmap(estimator.init, (0, None))(jax.random.split(key, count), params)


def estimate_copies(estimator: GradientEstimator, params: Params, state: State, data: Data) -> tuple[State, Estimate]:
    """Run every copy through the same data."""
    out: tuple[State, Estimate] = jax.vmap(estimator.estimate, (None, 0, None))(params, state, data)
    return out


def mean_of_copies(tree: Any) -> Any:
    """Return the mean over the leading axis, summed in at least float32 and given in each leaf's dtype."""
    return jax.tree.map(lambda leaf: leaf.mean(0, dtype=_wide(leaf)).astype(leaf.dtype), tree)


def nonfinite_of(*estimates: Estimate) -> Scalar:
    """Return the largest share of trajectories that one of the estimates reports as not finite."""
    shares = [getattr(estimate.info, "nonfinite", None) for estimate in estimates]
    known = [
        share_nonfinite(estimate.loss) if share is None else jnp.mean(share)
        for estimate, share in zip(estimates, shares, strict=True)
    ]
    return jnp.stack(known).max()


def combine(weight: Scalar, first: Any, second: Any) -> Any:
    """Return (1 - weight) first + weight second, where a part of weight 0 leaves no trace, not even its NaN."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        w = weight.astype(_wide(a))
        mixed = (1 - w) * a.astype(w.dtype) + w * b.astype(w.dtype)
        return jnp.where(w == 0, a.astype(w.dtype), jnp.where(w == 1, b.astype(w.dtype), mixed)).astype(a.dtype)

    return jax.tree.map(leaf, first, second)


def minus(first: Params, times: Scalar, second: Params) -> Params:
    """Return first - times second, in each leaf's dtype."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = _wide(a)
        return (a.astype(wide) - times.astype(wide) * b.astype(wide)).astype(a.dtype)

    return jax.tree.map(leaf, first, second)


def is_finite(estimate: Estimate) -> jax.Array:
    """Whether a loss and its gradient are finite."""
    return all_finite((estimate.loss, estimate.grad))


def without_own(first: Params, second: Params) -> jax.Array:
    """Return for each copy the sum of <a_j - a_k, b_j - b_k> over all pairs of the OTHER copies, `[copies]`.

    It is their covariance times a number, and independent of what the copy itself has drawn: a weight that is made of such
    sums leaves the copy's estimate unbiased. The sum over pairs has no mean to subtract, and so nothing cancels.

    Args:
        first: a tree like params with leaves `[copies, ...]`, the a.
        second: another such tree, the b; the same one gives the variance.
    """
    pairs = sum(_differences(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    assert isinstance(pairs, jax.Array)
    count = len(pairs)
    other = ~jnp.eye(count, dtype=bool)
    return jnp.where(other[:, :, None] & other[:, None, :], pairs[None], 0).sum((1, 2))


def _differences(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return <a_j - a_k, b_j - b_k> for all j and k, a row at a time."""
    a, b = (leaf.reshape(len(leaf), -1).astype(_wide(leaf)) for leaf in (a, b))
    return jax.lax.map(lambda row: ((a - row[0][None]) * (b - row[1][None])).sum(-1), (a, b))


def keep_sums(old: jax.Array, new: jax.Array, decay: float) -> jax.Array:
    """Return decayed sums `[2, copies]`; a call whose sums aren't finite adds nothing, and a broken past is dropped."""
    decayed = jnp.asarray(decay, new.dtype) * jnp.where(jnp.isfinite(old).all(0), old, 0).astype(new.dtype)
    return jnp.where(jnp.isfinite(new).all(0), decayed + new, decayed).astype(old.dtype)


def zero_sums(params: Params, count: int) -> jax.Array:
    """Return the sums of no call at all, `[2, copies]`."""
    return jnp.zeros((2, count), jnp.result_type(jnp.float32, *jax.tree.leaves(params)))


def _wide(leaf: jax.Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
