"""The kit itself is tested: each mutant has one classic defect, and the check that is named must catch it.

Mutants are estimators that differ from the real ones in one place, so every row also shows what a check is for.
"""

import jax
import jax.numpy as jnp
import pytest

import unrollax as ux
from unrollax import testing
from unrollax._tree import is_inexact
from unrollax.estimators import _antithetic, _backprop, _forward
from unrollax.testing import checks_for


@ux.value
class Mutant:
    """An estimator whose state or estimate is tampered with after the fact."""

    real: ux.GradientEstimator
    tamper: object = ux.static()

    @property
    def window(self):
        return self.real.window

    @property
    def traits(self):
        return self.real.traits

    @property
    def pairs(self):
        return self.real.pairs

    def init(self, key, params):
        return self.real.init(key, params)

    def estimate(self, params, state, data):
        after, estimate = self.real.estimate(params, state, data)
        return self.tamper(self, state, after, estimate)


def pes(system, *, window, horizon, cls=ux.PES, **options):
    return cls(system, **{"std": 0.1, "pairs": 4, **options}, window=window, horizon=horizon)


def tampered(change, real=pes):
    return lambda system, **time: Mutant(real(system, **time), change)


def member(base, **methods):
    """A member of a family with other methods, as a value of its own."""
    return ux.value(type(base.__name__, (base,), {"__annotations__": {}, **methods}))


def forgotten_half(self, before, after, estimate):
    return after, estimate._replace(grad=jax.tree.map(lambda g: 2 * g, estimate.grad))


def reused_key(self, before, after, estimate):
    return after._replace(key=before.key), estimate


def summed_loss(self, before, after, estimate):
    return after, estimate._replace(grad=jax.tree.map(lambda g: self.window * g, estimate.grad))


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


def own_rule(rule):
    return member(_antithetic.Antithetic, _rule=rule, traits=ux.PES.traits)


def fresh_credit(self, reset, draw, kept):
    fresh = draw()
    return fresh, fresh, fresh


def last_window_fresh(self, reset, draw, kept):
    """The bug of a well-known public code: the window that ends an episode is credited with its own noise only."""
    fresh = draw()
    _, total, _ = ux.PES._rule(self, reset, lambda: fresh, kept)
    last = jax.tree.map(lambda k: jnp.broadcast_to(jnp.abs(k).max() > 1.5, k.shape), total)
    return fresh, jax.tree.map(jnp.where, last, fresh, total), total


def kept_for_ever(self, reset, draw, kept):
    fresh = draw()
    total = jax.tree.map(jnp.add, kept, fresh)
    return fresh, total, total


def multiplied_reset(self, reset, draw, kept):
    fresh = draw()
    total = jax.tree.map(lambda k, z: z + k * (1 - reset.reshape(-1, *[1] * (k.ndim - 1)).astype(k.dtype)), kept, fresh)
    return fresh, total, total


def fresh_perturbation(self, reset, draw, kept):
    """NRES that perturbs with new noise but credits the old."""
    held = _antithetic.where(reset, draw(), kept)
    return draw(), held, held


def unperturbed_start(self, keys, twins, state):
    middle = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf.mean((0, 1), keepdims=True), leaf.shape), twins)
    return ux.PES._begin(self, keys, middle, state)


def separate_twin_keys(self, twins, inner, data, keys):
    def run(params, inner, key):
        return _antithetic.window_loss("mutant", self.system, params, inner, data, key, self.window)

    both = jax.vmap(lambda key: jax.random.split(key))(keys)
    return jax.vmap(jax.vmap(run))(twins, inner, both)


def shared_pair_keys(self, twins, inner, data, keys):
    return ux.PES._run(self, twins, inner, data, jnp.broadcast_to(keys[:1], keys.shape))


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


MUTANTS = {
    "the factor 1/2 is forgotten": (tampered(forgotten_half), "mean_is_exact"),
    "the key is not advanced": (tampered(reused_key), "keys_advance"),
    "the loss is summed over the window": (tampered(summed_loss), "mean_is_exact"),
    "the clock becomes a float": (tampered(clock_of_floats), "state_is_a_fixed_point"),
    "the clock becomes weakly typed": (tampered(weak_clock), "state_is_a_fixed_point"),
    "the gradient is cast to float32": (tampered(grad_of_float32), "state_is_a_fixed_point"),
    "the gradient is normalised": (tampered(unit_length), "scale_equivariance"),
    "the loss depends on the old state": (tampered(poison_kept), "reset_forgets"),
    "the loss is no scalar": (tampered(loss_of_each_pair), "state_is_a_fixed_point"),
    "the loss is seven times too large": (tampered(seven_times_the_loss), "loss_is_the_mean"),
    "the host keeps count": (tampered(rolled_by_host), "resume_is_bitwise"),
    "only this window's noise is credited": (lambda s, **t: pes(s, cls=own_rule(fresh_credit), **t), "mean_is_exact"),
    "the last window is credited with its noise": (
        lambda s, **t: pes(s, cls=own_rule(last_window_fresh), **t), "mean_is_exact"),
    "the noise is never reset": (lambda s, **t: pes(s, cls=own_rule(kept_for_ever), **t), "mean_is_exact"),
    "the noise is reset by a product": (lambda s, **t: pes(s, cls=own_rule(multiplied_reset), **t), "reset_forgets"),
    "NRES perturbs anew": (lambda s, **t: pes(s, cls=own_rule(fresh_perturbation), **t), "mean_is_exact"),
    "the start is not perturbed": (
        lambda s, **t: pes(s, cls=member(ux.PES, _begin=unperturbed_start), **t), "mean_is_exact"),
    "twins have keys of their own": (
        lambda s, **t: pes(s, cls=member(ux.PES, _run=separate_twin_keys), **t), "common_random_numbers"),
    "pairs share their keys": (lambda s, **t: pes(s, cls=member(ux.PES, _run=shared_pair_keys), **t), "keys_advance"),
    "another class each time": (untied, "traces_once"),
    "tangents are dropped": (
        lambda s, **t: forward(s, cls=member(ux.ForwardGradient, estimate=no_tangents), **t), "mean_is_exact"),
    "truncation is called exact": (
        lambda s, **t: member(ux.TBPTT, traits=ux.BPTT.traits)(s, **t), "mean_is_exact"),
}  # fmt: skip


def caught(make, name):
    check = next(check for check in checks_for(make) if check.__name__ == f"check_{name}")
    try:
        check(make)
    except (AssertionError, TypeError) as failure:
        return str(failure)
    return ""


@pytest.mark.parametrize("name", MUTANTS)
def test_the_kit_kills(name):
    make, check = MUTANTS[name]
    assert caught(make, check), f"{check} let it live: {name}"


def same_key_for_all_leaves(sampler, key, count, params):
    return jax.tree.map(lambda p: sampler(key, (count, *p.shape), p.dtype), params)


def noise_on_one_leaf(sampler, key, count, params):
    leaves, treedef = jax.tree.flatten(same_key_for_all_leaves(sampler, key, count, params))
    return jax.tree.unflatten(treedef, [leaves[0], *(jnp.zeros_like(leaf) for leaf in leaves[1:])])


@pytest.mark.parametrize(
    ("draw", "check"), [(same_key_for_all_leaves, "keys_advance"), (noise_on_one_leaf, "mean_is_exact")]
)
def test_the_kit_kills_noise_that_leaves_share(draw, check, monkeypatch):
    monkeypatch.setattr(_antithetic, "draw_noise", draw)
    assert caught(pes, check)


@pytest.mark.parametrize("module", [_antithetic, _backprop, _forward])
@pytest.mark.parametrize("tick", [never_reset, late])
def test_the_kit_kills_a_wrong_clock(module, tick, monkeypatch):
    make = {_antithetic: pes, _backprop: tbptt, _forward: forward}[module]
    monkeypatch.setattr(module, "tick", tick)
    assert caught(make, "mean_is_exact")


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
