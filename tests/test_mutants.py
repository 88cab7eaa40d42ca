"""The kit itself is tested: each mutant has one classic defect, and the check that is named must catch it.

Mutants are estimators that differ from the real ones in one place, so every row also shows what a check is for.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

import unrollax as ux
from unrollax import _checkpointed, testing
from unrollax._tree import is_inexact, ravel
from unrollax.estimators import (
    _antithetic,
    _backprop,
    _forward,
    _influence,
    _randomized,
    _uoro,
)
from unrollax.testing import CHECKS, checks_for


def pes(system, *, window, horizon, cls=ux.PES, **options):
    return cls(system, **{"std": 0.1, "pairs": 4, **options}, window=window, horizon=horizon)


def member(base, **methods):
    """A member of a family with other methods, as a value of its own."""
    return ux.value(type(base.__name__, (base,), {"__annotations__": {}, **methods}))


def evolution(base=ux.PES, options=None, **methods):
    """A maker of an evolution strategy with other methods."""
    cls = member(base, **methods)
    return lambda system, **time: pes(system, cls=cls, **(options or {}), **time)


def other(base, options=None, **methods):
    """A maker of an estimator with other methods, which needs no noise."""
    cls = member(base, **methods)
    return lambda system, **time: cls(system, **time, **(options or {}))


def tampered(change, base=ux.PES, make=evolution, options=None):
    """A maker of an estimator whose state or estimate is changed after the fact."""

    def estimate(self, params, state, data):
        return change(self, state, *base.estimate(self, params, state, data))

    return make(base, options, estimate=estimate)


def forgotten_half(self, before, after, estimate):
    return after, estimate._replace(grad=jax.tree.map(lambda g: 2 * g, estimate.grad))


def reused_key(self, before, after, estimate):
    return after._replace(key=before.key), estimate


def summed_loss(self, before, after, estimate):
    return after, estimate._replace(grad=jax.tree.map(lambda g: self.window * g, estimate.grad))


def blind_to_one_step(self, before, after, estimate):
    """The bug of a well-known public code: a window of one step gives silent zeros."""
    return after, estimate._replace(grad=jax.tree.map(lambda g: g * (self.window > 1), estimate.grad))


def clock_of_floats(self, before, after, estimate):
    return after._replace(left=after.left.astype(float)), estimate


def weak_clock(self, before, after, estimate):
    return after._replace(
        left=jax.lax.convert_element_type_p.bind(after.left, new_dtype=after.left.dtype, weak_type=True, sharding=None)
    ), estimate


def grad_of_float32(self, before, after, estimate):
    return after, estimate._replace(grad=jax.tree.map(lambda g: g.astype(jnp.float32), estimate.grad))


def unit_length(self, before, after, estimate):
    norm = jnp.sqrt(sum((g.astype(float) ** 2).sum() for g in jax.tree.leaves(estimate.grad)))
    return after, estimate._replace(grad=jax.tree.map(lambda g: g / norm.astype(g.dtype), estimate.grad))


def poison_kept(self, before, after, estimate):
    total = sum(jnp.sum(leaf * 0) for leaf in jax.tree.leaves(before) if is_inexact(leaf))
    return after, estimate._replace(loss=estimate.loss + total.astype(estimate.loss.dtype))


def loss_of_each_pair(self, before, after, estimate):
    return after, estimate._replace(loss=jnp.stack([estimate.loss]))


def seven_times_the_loss(self, before, after, estimate):
    return after, estimate._replace(loss=7 * estimate.loss)


def rolled_by_host(self, before, after, estimate):
    calls.append(1)
    return after, estimate._replace(loss=estimate.loss + len(calls))


calls = []


def never_reset(left, window, horizon):
    return jnp.ones_like(left)


def late(left, window, horizon):
    """One window too late: the clock is looked at after it was advanced."""
    return jnp.where(left <= 0, left + horizon + window, left) - window


def since_reset(pairs, noise):
    """What a pair was credited with before this window, 0 at a reset."""
    return jnp.where(pairs.reset[:, None], 0.0, noise)


def fresh_credit(self, pairs, noise, window):
    return self._draw_at(pairs, pairs.age, window)


def last_window_fresh(self, pairs, noise, window):
    """The bug of a well-known public code: the window that ends an episode is credited with its own noise only."""
    shift, fresh = self._draw_at(pairs, pairs.age, window)
    last = (pairs.age + 1) * self.window == self.horizon
    return shift, fresh + jnp.where(last[:, None], 0.0, since_reset(pairs, noise))


def kept_for_ever(self, pairs, noise, window):
    shift, fresh = self._draw_at(pairs, pairs.age, window)
    return shift, fresh + noise


def multiplied_reset(self, pairs, noise, window):
    shift, fresh = self._draw_at(pairs, pairs.age, window)
    return shift, fresh + noise * (1 - pairs.reset[:, None].astype(noise.dtype))


def fresh_perturbation(self, pairs, noise, window):
    """NRES that perturbs with new noise but credits the old."""
    return ux.PES._draw_at(self, pairs, pairs.age, window)[0], ux.NRES._rule(self, pairs, noise, window)[1]


def earlier_keys_changed(self, pairs, noise, window):
    """The windows of the past are drawn from other keys than they were run with."""
    shift, fresh = self._draw_at(pairs, pairs.age, window)
    others = pairs._replace(seeds=jax.vmap(lambda seed: jax.random.fold_in(seed, 7))(pairs.seeds))
    return shift, fresh + ux.PES._rule(self, others, None, window)[1] - self._draw_at(others, pairs.age, window)[1]


def new_key_each_window(self, pairs, noise, window):
    """NRES that folds the window into the key that it draws its noise from again."""
    seeds = jax.vmap(jax.random.fold_in)(pairs.seeds, pairs.age)
    return ux.NRES._rule(self, pairs._replace(seeds=seeds), noise, window)


def todays_std(self, pairs, kept, window):
    """NRES under a schedule: the noise has the std of its reset, the credit that of today."""
    return self._in_std(kept, pairs.born + pairs.age, window)[1]


def shrinking(windows):
    return 0.1 / (1 + windows)


def unperturbed_start(self, pairs, twins, stand):
    middle = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf.mean(0, keepdims=True), leaf.shape), twins)
    return ux.PES._begin(self, pairs, middle, stand)


def separate_twin_keys(self, pairs, kept, window):
    """Each particle folds what it is into the keys of its steps."""

    def step(params, state, x, key):
        return self.system.step(params, state, x, jax.random.fold_in(key, (1e6 * ravel(params)[0][0]).astype(int)))

    apart = dataclasses.replace(self, system=ux.system(init=self.system.init, step=step))
    return ux.PES._run(apart, pairs, kept, window)


def shared_pair_keys(self, pairs, kept, window):
    return ux.PES._run(self, pairs._replace(run=jnp.broadcast_to(pairs.run[:1], pairs.run.shape)), kept, window)


def remainder_dropped(self, pairs, kept, window):
    """Where the chunk is no divisor of the pairs, the smaller chunk at the end adds nothing."""
    kept, losses, part = ux.PES._run(self, pairs, kept, window)
    return kept, losses, part if len(losses) == self.chunk else jnp.zeros_like(part)


def slope_not_added(self, pairs, kept, window):
    kept, losses, grad = ux.PES._sweep(self, pairs, kept, window)
    return kept, losses, grad - window.slope


def slope_explains(times):
    """The rise between twins along the slope is 2 shift . slope: a forgotten or a second 2."""

    def run(self, pairs, kept, window):
        return ux.PES._run(self, pairs, kept, window._replace(slope=times * window.slope))

    return run


def mean_of_each_device(x):
    return x.mean()


local_mean = custom_partitioning(mean_of_each_device)
local_mean.def_partition(
    partition=lambda mesh, arguments, result: (
        mesh, mean_of_each_device, NamedSharding(mesh, PartitionSpec()), (arguments[0].sharding,)
    ),
    infer_sharding_from_operands=lambda mesh, *_: NamedSharding(mesh, PartitionSpec()),
    sharding_rule="i -> ",
)  # fmt: skip


def mean_without_the_others(self, pairs, kept, window):
    """The loss is averaged over the pairs of a device, and devices do not hear of each other."""
    kept, losses, grad = ux.PES._sweep(self, pairs, kept, window)
    return kept, jnp.broadcast_to(local_mean(losses.mean(1)), losses.shape), grad


def influence_not_begun(self, params, start, draw):
    influence, inner = ux.RTRL._restart(self, params, start, draw)
    return jax.tree.map(jnp.zeros_like, influence), inner


def unweighted(self, *where):
    return ux.RandomizedTBPTT._back(dataclasses.replace(self, survival=1.0), *where)


def untied(system, *, window, horizon):
    """Rebuilt with a static std it compiles anew each time."""

    class Fresh(ux.PES):
        pass

    return ux.value(Fresh)(system, 0.1, window, horizon, 4)


def no_tangents(self, params, state, data):
    state = state._replace(tangents=jax.tree.map(jnp.zeros_like, state.tangents))
    return ux.ForwardGradient.estimate(self, params, state, data)


def forward(system, *, window, horizon, cls=ux.ForwardGradient):
    return cls(system, window=window, horizon=horizon, directions=4)


def tbptt(system, **time):
    return ux.TBPTT(system, **time)


def documented(base, **cost):
    """The traits of an estimator with another cost."""
    return base.traits._replace(cost=base.traits.cost._replace(**cost))


MEAN = r"mean gradient over the first episode"
CHANCE = r"mean gradient is off by"
REGENERATED = {"noise": "regenerated"}
ANALYTIC = {"control": "analytic"}

# What is wrong: how to make it, the check that must kill it, and what the check must say.
MUTANTS = {
    "the factor 1/2 is forgotten": (tampered(forgotten_half), "mean_is_exact", MEAN),
    "the key is not advanced": (tampered(reused_key), "keys_advance", "saw the key of an earlier window"),
    "the loss is summed over the window": (tampered(summed_loss), "mean_is_exact", MEAN),
    "the clock becomes a float": (tampered(clock_of_floats), "state_is_a_fixed_point", "the state changed"),
    "the clock becomes weakly typed": (tampered(weak_clock), "state_is_a_fixed_point", "the state changed"),
    "the gradient is cast to float32": (tampered(grad_of_float32), "state_is_a_fixed_point", "leaves of params"),
    "the gradient is normalised": (tampered(unit_length), "scale_equivariance", "three times the loss"),
    "the loss depends on the old state": (tampered(poison_kept), "reset_forgets", "after a reset: 1/loss differs"),
    "the loss is no scalar": (tampered(loss_of_each_pair), "state_is_a_fixed_point", "loss must be a scalar"),
    "the loss is seven times too large": (tampered(seven_times_the_loss), "loss_is_the_mean", "loss"),
    "the host keeps count": (tampered(rolled_by_host), "resume_is_bitwise", "resumed in a new process: 1/loss differs"),
    "only this window's noise is credited": (evolution(_rule=fresh_credit), "mean_is_exact", MEAN),
    "the last window is credited with its noise": (evolution(_rule=last_window_fresh), "mean_is_exact", MEAN),
    "the noise is never reset": (
        evolution(_rule=kept_for_ever), "mean_is_exact", "mean gradient over the second episode"),
    "the noise is reset by a product": (evolution(_rule=multiplied_reset), "reset_forgets", "after a reset"),
    "NRES perturbs anew": (evolution(ux.NRES, _rule=fresh_perturbation), "mean_is_exact", MEAN),
    "noise that is drawn again forgets earlier windows": (
        evolution(options=REGENERATED, _rule=fresh_credit), "mean_is_exact", CHANCE),
    "earlier noise is drawn again from other keys": (
        evolution(options=REGENERATED, _rule=earlier_keys_changed), "mean_is_exact", CHANCE),
    "held noise is drawn again from another key": (
        evolution(ux.NRES, REGENERATED, _rule=new_key_each_window), "mean_is_exact", CHANCE),
    "held noise is credited with the std of today": (
        evolution(ux.NRES, {**REGENERATED, "std": shrinking}, _credit=todays_std), "mean_is_exact", CHANCE),
    "the start is not perturbed": (evolution(_begin=unperturbed_start), "mean_is_exact", MEAN),
    "a whole horizon starts unperturbed": (evolution(ux.ES, _begin=unperturbed_start), "window_is_horizon", MEAN),
    "a window of one step is not seen": (tampered(blind_to_one_step), "any_window_adds_up", MEAN),
    "twins have keys of their own": (evolution(_run=separate_twin_keys), "common_random_numbers", "pure noise gave"),
    "pairs share their keys": (evolution(_run=shared_pair_keys), "keys_advance", "4 pairs shared 1 keys"),
    "the pairs of the last chunk are dropped": (
        evolution(options={"pairs": 5, "chunk": 3}, _run=remainder_dropped), "mean_is_exact", CHANCE),
    "the slope is not added back": (evolution(options=ANALYTIC, _sweep=slope_not_added), "mean_is_exact", MEAN),
    "the slope explains twice the rise": (evolution(options=ANALYTIC, _run=slope_explains(2)), "mean_is_exact", MEAN),
    "the slope explains half the rise": (evolution(options=ANALYTIC, _run=slope_explains(0.5)), "mean_is_exact", MEAN),
    "each device has a loss of its own": (evolution(_sweep=mean_without_the_others), "sharding_invariance", "loss"),
    "another class each time": (untied, "traces_once", "estimate was traced [2-9] times"),
    "tangents are dropped": (
        lambda s, **t: forward(s, cls=member(ux.ForwardGradient, estimate=no_tangents), **t), "mean_is_exact", MEAN),
    "truncation is called exact": (other(ux.TBPTT, traits=ux.BPTT.traits), "mean_is_exact", CHANCE),
    "RTRL forgets that init depends on params": (other(ux.RTRL, _restart=influence_not_begun), "mean_is_exact", CHANCE),
    "UORO draws the same signs in each window": (tampered(reused_key, ux.UORO, other), "mean_is_exact", CHANCE),
    "lengths are drawn but not weighed": (other(ux.RandomizedTBPTT, _back=unweighted), "mean_is_exact", CHANCE),
    "the cost is that of one twin": (evolution(_passes=lambda self: "pairs"), "cost_is_documented", "forward passes"),
    "a whole horizon is billed for a trajectory that it does not advance": (
        evolution(ux.ES, _passes=lambda self: "2 * pairs + 1"), "cost_is_documented", "forward passes with .* 6 steps"),
    "a cost is promised that depends on chance": (
        other(ux.RandomizedTBPTT, traits=ux.RandomizedTBPTT.traits._replace(cost=ux.TBPTT.traits.cost)),
        "cost_is_documented", "document no cost"),
    "tangents are free": (
        other(ux.ForwardGradient, traits=documented(ux.ForwardGradient, jvp="0")), "cost_is_documented", "jvp passes"),
    "the cotangent of the loss is forgotten": (
        other(ux.UORO, traits=documented(ux.UORO, vjp="directions")), "cost_is_documented", "vjp passes"),
}  # fmt: skip


def caught(make, name):
    """What the check says to an estimator; a mutant that cannot run is no mutant, so other errors are raised."""
    check = next(check for check in checks_for(make) if check.__name__ == f"check_{name}")
    try:
        check(make)
    except AssertionError as failure:
        return str(failure)
    return ""


@pytest.mark.parametrize("name", MUTANTS)
def test_the_kit_kills(name):
    make, check, says = MUTANTS[name]
    failure = caught(make, check)
    assert failure, f"{check} let it live: {name}"
    assert re.search(says, failure), f"{check} killed it for another reason: {failure}"


def test_every_check_has_a_mutant_to_kill():
    assert {f"check_{check}" for _, check, _ in MUTANTS.values()} == {check.__name__ for check in CHECKS}


def test_only_windows_of_one_step_show_that_these_are_not_seen():
    assert not caught(tampered(blind_to_one_step), "mean_is_exact")


REAL = _antithetic.draw_vector


def one_key_for_every_leaf(owner, sampler, key, like):
    return jnp.concatenate([sampler(key, (1,), like.dtype) for _ in range(like.size)])


def one_number_for_all_leaves(owner, sampler, key, like):
    return jnp.broadcast_to(REAL(owner, sampler, key, like)[:1], like.shape)


def noise_on_one_leaf(owner, sampler, key, like):
    return REAL(owner, sampler, key, like).at[1:].set(0)


@pytest.mark.parametrize(
    ("draw", "check", "says"),
    [
        (one_key_for_every_leaf, "keys_advance", "a key drew noise twice"),
        (one_number_for_all_leaves, "mean_is_exact", MEAN),
        (noise_on_one_leaf, "mean_is_exact", MEAN),
    ],
)
@pytest.mark.parametrize(("where", "make"), [("estimators._antithetic", pes), ("_estimate", forward)])
def test_the_kit_kills_noise_that_leaves_share(where, make, draw, check, says, monkeypatch):
    monkeypatch.setattr(f"unrollax.{where}.draw_vector", draw)
    assert re.search(says, caught(make, check))


def rtrl(system, **time):
    return ux.RTRL(system, **time)


def randomized(system, **time):
    return ux.RandomizedTBPTT(system, survival=1.0, **time)


CLOCKS = {_antithetic: pes, _backprop: tbptt, _forward: forward, _influence: rtrl, _randomized: randomized}


@pytest.mark.parametrize("module", CLOCKS, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("tick", [never_reset, late])
def test_the_kit_kills_a_wrong_clock(module, tick, monkeypatch):
    monkeypatch.setattr(module, "tick", tick)
    assert "mean gradient" in caught(CLOCKS[module], "mean_is_exact")


def test_the_kit_kills_signs_that_differ_between_the_factors_of_a_product(monkeypatch):
    """UORO's tangent and its credit must share their signs: with others the influence has mean 0 on the diagonal."""
    monkeypatch.setattr(_uoro, "_conj", lambda signs: [sign[::-1] for sign in signs])
    assert re.search(CHANCE, caught(other(ux.UORO), "mean_is_exact"))


def without_the_last_piece(owner, step, params, state, xs, steps, memory, whole=None):
    size = math.prod(_checkpointed.inner_lengths(owner, memory, steps, lambda: None))
    fewer = steps - (steps % size or size) if size > 1 else steps
    rows = jax.tree.map(lambda leaf: leaf[:fewer], xs)
    return SCAN(owner, step, params, state, rows, fewer, memory, whole)


SCAN = _checkpointed.scan


@pytest.mark.parametrize(
    ("base", "check"), [(ux.TBPTT, "any_window_adds_up"), (ux.TBPTT, "window_is_horizon"), (ux.BPTT, "mean_is_exact")]
)
def test_the_kit_kills_pieces_that_are_not_run(base, check, monkeypatch):
    def make(system, *, window, horizon):
        time = {"window": window, "horizon": horizon} if base is ux.TBPTT else {"horizon": horizon}
        return base(system, memory="sqrt", **time)

    assert not caught(make, check)
    monkeypatch.setattr(_checkpointed, "scan", without_the_last_piece)
    assert re.search(CHANCE, caught(make, check))


def test_the_kit_kills_one_key_for_all_steps(monkeypatch):
    real = jax.random.split

    def split(key, num=2):
        return jnp.broadcast_to(key, (num,)) if num == testing.WINDOW else real(key, num)

    monkeypatch.setattr("unrollax._system.jax.random.split", split)
    assert "at two different steps" in caught(tbptt, "keys_advance")


def test_a_member_with_nothing_changed_is_not_killed():
    same = member(ux.PES)
    for name in ("mean_is_exact", "traces_once", "resume_is_bitwise", "keys_advance"):
        assert not caught(lambda s, **t: pes(s, cls=same, **t), name)
