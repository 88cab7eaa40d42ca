"""Passes through a marked step, counted in the traced program, against counts by hand.

A mark is an identity that shows in the program how often a step runs: forward, along tangents, and back.
"""

import jax
import jax.numpy as jnp
import pytest

from unrollax._count import count_marks, mark

X = jnp.array(0.5)
MANY = jnp.ones(4)


def counts(function, *args):
    """The passes `(forward, jvp, vjp)`."""
    found = count_marks(function, *args)
    return None if found is None else (found["forward"], found["jvp"], found["vjp"])


def once(x):
    """One step whose derivative needs its value, so that it has to be run again where that was not kept."""
    return jnp.sin(mark(x))


def twice(x):
    return once(once(x))


def chain(steps, body=once):
    """`steps` steps in a scan."""
    return lambda x: jax.lax.scan(lambda carry, _: (body(carry), None), x, None, length=steps)[0]


def along(function):
    """The derivatives along four tangents at one point."""
    return lambda x: jax.vmap(lambda tangent: jax.jvp(function, (x,), (tangent,))[1])(MANY)


def back(function):
    """Four cotangents pulled back to one point."""
    return lambda x: jax.vmap(jax.vjp(function, x)[1])(MANY)


FORWARD = {
    "no mark": (jnp.sin, (0, 0, 0)),
    "one step": (once, (1, 0, 0)),
    "two steps": (twice, (2, 0, 0)),
    "a scan": (chain(7), (7, 0, 0)),
    "a scan of two steps each": (chain(7, twice), (14, 0, 0)),
    "nested scans": (chain(3, chain(5, chain(2))), (30, 0, 0)),
    "a scan between steps": (lambda x: once(chain(3)(once(x))), (5, 0, 0)),
    "a loop of a length that is known": (lambda x: jax.lax.fori_loop(2, 7, lambda _, x: once(x), x), (5, 0, 0)),
    "a batch": (lambda x: jax.vmap(once)(x * MANY), (4, 0, 0)),
    "a batch of batches": (lambda x: jax.vmap(jax.vmap(once))(x * jnp.ones((3, 4))), (12, 0, 0)),
    "a scan of batches": (chain(7, lambda x: jax.vmap(once)(x * MANY).sum()), (28, 0, 0)),
    "a batch of scans": (lambda x: jax.vmap(chain(7))(x * MANY), (28, 0, 0)),
    "a step that the batch shares": (lambda x: jax.vmap(lambda y: y * once(x))(MANY), (1, 0, 0)),
    "a map in pieces of 4 and 2": (lambda x: jax.lax.map(once, x * jnp.ones(6), batch_size=4), (6, 0, 0)),
    "a loop without marks whose length is not known": (
        lambda x: once(jax.lax.while_loop(lambda x: x < 3, lambda x: x + 1, x)), (1, 0, 0)),
}  # fmt: skip

DERIVATIVES = {
    "a tangent": (lambda x: jax.jvp(chain(7), (x,), (x,)), (7, 7, 0)),
    "a gradient": (jax.grad(chain(7)), (7, 0, 7)),
    "four tangents share the pass forward": (along(chain(7)), (7, 28, 0)),
    "four tangents of a linear function": (lambda x: jax.vmap(jax.linearize(chain(7), x)[1])(MANY), (7, 28, 0)),
    "four cotangents share the pass forward": (back(chain(7)), (7, 0, 28)),
    "a batch of gradients": (lambda x: jax.vmap(jax.grad(chain(7)))(x * MANY), (28, 0, 28)),
    "tangents and a cotangent": (lambda x: (along(chain(7))(x), jax.grad(chain(7))(x)), (14, 28, 7)),
    "a gradient of nested scans": (jax.grad(chain(3, chain(5))), (15, 0, 15)),
    "a gradient that is stopped": (jax.grad(lambda x: x * once(jax.lax.stop_gradient(x))), (1, 0, 0)),
    "a gradient that skips a step": (jax.grad(lambda x: once(x) + once(jax.lax.stop_gradient(x))), (2, 0, 1)),
    "each step run again": (jax.grad(chain(7, jax.checkpoint(once))), (14, 0, 7)),
    "pieces run again": (jax.grad(chain(3, jax.checkpoint(chain(5)))), (30, 0, 15)),
    "pieces of pieces run again": (
        jax.grad(chain(2, jax.checkpoint(chain(3, jax.checkpoint(chain(5)))))), (90, 0, 30)),
    "all kept in spite of a checkpoint": (
        jax.grad(chain(7, jax.checkpoint(once, policy=jax.checkpoint_policies.everything_saveable))), (7, 0, 7)),
    "a linear step need not run again": (jax.grad(chain(7, jax.checkpoint(lambda x: 2 * mark(x)))), (7, 0, 7)),
    "a checkpoint without a derivative": (chain(7, jax.checkpoint(once)), (7, 0, 0)),
    "a tangent through a checkpoint": (lambda x: jax.jvp(chain(7, jax.checkpoint(once)), (x,), (x,)), (7, 7, 0)),
}  # fmt: skip


@jax.custom_vjp
def told(x):
    return once(x)


def pull_told(x, cotangent):
    """The backward rule runs the step again, and pulls a cotangent through it."""
    return (jax.vjp(once, x)[1](cotangent)[0],)


told.defvjp(lambda x: (told(x), x), pull_told)


@jax.custom_vjp
def free(x):
    return once(x)


free.defvjp(lambda x: (free(x), x), lambda x, cotangent: (cotangent * jnp.cos(x),))


@jax.custom_jvp
def pushed(x):
    return once(x)


pushed.defjvp(lambda at, along: (pushed(*at), along[0] * jnp.cos(at[0])))

RULES = {
    "a rule of its own, not differentiated": (told, (1, 0, 0)),
    "a rule that runs the step again": (jax.grad(told), (2, 0, 1)),
    "that rule in a scan": (jax.grad(chain(7, told)), (14, 0, 7)),
    "a rule that runs nothing": (jax.grad(free), (1, 0, 0)),
    "that rule for a batch": (lambda x: jax.vmap(jax.grad(free))(x * MANY), (4, 0, 0)),
    "a rule for tangents, not differentiated": (pushed, (1, 0, 0)),
    "a rule for tangents that runs nothing": (lambda x: jax.jvp(pushed, (x,), (x,)), (1, 0, 0)),
}


def fork(x, left=twice, right=once):
    return jax.lax.cond(x > 0, left, right, x)


BRANCHES = {
    "the dearest of two": (fork, (2, 0, 0)),
    "the dearest is the second": (lambda x: fork(x, once, twice), (2, 0, 0)),
    "one of them is free": (lambda x: fork(x, jnp.sin, once), (1, 0, 0)),
    "none costs anything": (lambda x: fork(x, jnp.sin, jnp.cos), (0, 0, 0)),
    "the dearest of three": (lambda x: jax.lax.switch(1, [once, chain(3), twice], x), (3, 0, 0)),
    "in each step of a scan": (chain(7, fork), (14, 0, 0)),
    "a scan in a branch": (lambda x: fork(x, chain(5, fork), twice), (10, 0, 0)),
    "the dearest by all its passes": (lambda x: fork(x, lambda x: jnp.sum(along(once)(x)), chain(4)), (1, 4, 0)),
    "differentiated": (jax.grad(chain(7, fork)), (14, 0, 14)),
    "a choice for the whole batch": (lambda x: jax.vmap(lambda y: jax.lax.cond(x > 0, twice, once, y))(MANY), (8, 0, 0)),
    "a choice for each of a batch runs both": (lambda x: jax.vmap(fork)(x * MANY), (12, 0, 0)),
    "computed on both sides": (lambda x: jnp.where(x > 0, twice(x), once(x)), (3, 0, 0)),
}  # fmt: skip

KNOWN = FORWARD | DERIVATIVES | RULES | BRANCHES


@pytest.mark.parametrize("name", KNOWN)
def test_passes_are_those_counted_by_hand(name):
    function, expected = KNOWN[name]
    assert counts(function, X) == expected


@pytest.mark.parametrize("name", KNOWN)
def test_compiled_programs_count_the_same(name):
    function, expected = KNOWN[name]
    assert counts(jax.jit(lambda x: jax.jit(function)(x)), X) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.lax.while_loop(lambda x: x < 3, lambda x: once(x) + 1, x),
        lambda x: jax.lax.while_loop(lambda x: once(x) < 3, lambda x: x + 1, x),
        lambda x: jax.lax.fori_loop(0, x.astype(int), lambda _, x: once(x), x),
        lambda x: fork(x, twice, lambda x: jax.lax.while_loop(lambda x: x < 3, once, x)),
        chain(3, lambda x: jax.lax.while_loop(lambda x: x < 3, once, x)),
        lambda x: jax.lax.while_loop(lambda x: x < 3, chain(3), x),
        jax.jit(lambda x: once(jax.lax.while_loop(lambda x: x < 3, once, x))),
    ],
    ids=["body", "condition", "length", "branch", "scan", "scan inside", "jit"],
)
def test_a_loop_whose_length_is_not_known_leaves_the_count_unknown(function):
    assert counts(function, X) is None


def test_arguments_may_be_any_tree():
    def function(tree, flag):
        return fork(tree["a"][0]) + jnp.where(flag, 1.0, 0.0)

    assert counts(function, {"a": (X, None), "key": jax.random.key(0)}, True) == (2, 0, 0)
