"""Shampoo and SOAP are their papers' algorithms, written out in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux

RNG = np.random.default_rng(0)


def gradients(shape, steps=12):
    """Gradients of sizes that differ along both sides, so that there is something to whiten."""
    scale = np.multiply.outer(2.0 ** np.arange(shape[0]), 3.0 ** -np.arange(shape[1])) if len(shape) == 2 else 1.0
    return [RNG.standard_normal(shape) * scale for _ in range(steps)]


def updates_of(optimizer, grads):
    """The updates, gradient by gradient, of a compiled optimizer."""
    params = jnp.zeros_like(jnp.asarray(grads[0]))
    state, update, found = optimizer.init(params), jax.jit(optimizer.update), []
    for grad in grads:
        step, state = update(jnp.asarray(grad), state, params)
        found.append(np.asarray(step))
    return np.array(found)


def power(matrix, exponent, eps):
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, 0) + eps * values.max()
    return vectors @ np.diag(values**exponent) @ vectors.T


def diagonal_blocks(matrix, size):
    inside = np.arange(len(matrix)) // size
    return matrix * (inside[:, None] == inside[None])


def shampoo(grads, *, lr, b1, b2, eps, every, graft, left=99, right=99):
    """Gupta et al. 2018, algorithm 1, with Anil et al. 2020's averages and grafting."""
    m, n = grads[0].shape
    row, column, second, velocity = np.zeros((m, m)), np.zeros((n, n)), np.zeros((m, n)), np.zeros((m, n))
    for t, g in enumerate(grads, 1):
        old, new = (1, 1) if b2 is None else (b2, 1 - b2)
        row = old * row + new * diagonal_blocks(g @ g.T, left)
        column = old * column + new * diagonal_blocks(g.T @ g, right)
        second = old * second + new * g**2
        lack = 1 if b2 is None else 1 - b2**t
        if (t - 1) % every == 0:
            roots = power(row / lack, -1 / 4, eps), power(column / lack, -1 / 4, eps)
        step = roots[0] @ g @ roots[1]
        if graft is not None:
            size = np.linalg.norm(g / (np.sqrt(second / lack) + 1e-8) if graft == "rmsprop" else g)
            step = step * size / np.linalg.norm(step)
        velocity = b1 * velocity + (1 - b1) * step
        yield -lr * velocity


SETTINGS = {
    "the first paper's": {"b1": 0.0, "b2": None, "eps": 1e-6, "every": 1, "graft": None},
    "grafted to RMSProp": {"b1": 0.9, "b2": 0.9, "eps": 1e-4, "every": 1, "graft": "rmsprop"},
    "grafted to SGD, renewed now and then": {"b1": 0.5, "b2": 0.99, "eps": 1e-3, "every": 5, "graft": "sgd"},
    "grafted to AdaGrad": {"b1": 0.9, "b2": None, "eps": 1e-6, "every": 3, "graft": "rmsprop"},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_shampoo_is_the_papers_algorithm(name, shape):
    grads = gradients(shape)
    want = np.array([*shampoo(grads, lr=0.3, **SETTINGS[name])])
    np.testing.assert_allclose(updates_of(ux.shampoo(0.3, **SETTINGS[name]), grads), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("block", "longest", "left", "right"), [(3, 99, 3, 2), (4, 99, 3, 4), (9, 4, 1, 4)])
def test_blocks_cut_each_side_by_itself_and_the_longest_sides_have_a_diagonal(block, longest, left, right):
    options = SETTINGS["grafted to RMSProp"]
    grads = gradients((5, 4))
    want = np.array([*shampoo(grads, lr=0.3, left=left, right=right, **options)])
    optimizer = ux.shampoo(0.3, block=block, longest=longest, **options)
    np.testing.assert_allclose(updates_of(optimizer, grads), want, rtol=1e-9, atol=1e-9)


def test_on_a_vector_shampoo_is_adagrad_up_to_the_ridge():
    grads = gradients((4,))
    got = updates_of(ux.shampoo(0.3, b1=0.0, b2=None, eps=1e-14, every=1, graft=None), grads)
    np.testing.assert_allclose(got, updates_of(ux.adagrad_plain(0.3), grads), rtol=1e-9)


@pytest.mark.parametrize("graft", ["rmsprop", "sgd"])
def test_a_grafted_step_is_as_long_as_the_other_optimizers(graft):
    grads = gradients((4, 3))
    other = {"rmsprop": optax.rmsprop(0.1, 0.9, 1e-8, eps_in_sqrt=False, bias_correction=True), "sgd": optax.sgd(0.1)}
    got = updates_of(ux.shampoo(0.1, b1=0.0, b2=0.9, graft=graft), grads)
    want = updates_of(other[graft], grads)
    np.testing.assert_allclose(np.linalg.norm(got, axis=(1, 2)), np.linalg.norm(want, axis=(1, 2)), rtol=1e-10)


def kronecker(seed=0):
    """A quadratic whose Hessian is A (x) B: sum(W * (A W B)) / 2, conditioned 1e4."""
    rng = np.random.default_rng(seed)
    turns = [np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2)]
    a, b = (jnp.asarray(turn @ np.diag(10.0 ** np.linspace(0, -2, 6)) @ turn.T) for turn in turns)
    return (lambda w: (w * (a @ w @ b)).sum() / 2), jnp.asarray(rng.standard_normal((6, 6)))


def lowest(loss, start, optimizer, steps=200):
    def step(carry, _):
        w, state = carry
        grad = jax.grad(loss)(w)
        update, state = optimizer.update(grad, state, w)
        return (w + update, state), None

    return float(loss(jax.jit(lambda c: jax.lax.scan(step, c, None, steps))((start, optimizer.init(start)))[0][0]))


def test_on_a_kronecker_hessian_shampoo_and_soap_get_far_below_gradient_descent_at_its_best_rate():
    loss, start = kronecker()
    plain = min(lowest(loss, start, optax.sgd(lr)) for lr in (1.0, 1.9))
    assert lowest(loss, start, ux.shampoo(0.03, every=5)) < 0.3 * plain
    assert lowest(loss, start, ux.soap(0.03)) < 0.3 * plain


# -------------------------------------------------------------------------------------------------------------- SOAP


def soap(grads, *, lr, b1, b2, eps, every, left=99, right=99):
    """Vyas et al. 2025, algorithms 3 and 4; the first gradient only sets the bases, columns are sorted before each QR."""
    m, n = grads[0].shape
    row, column, first, second = np.zeros((m, m)), np.zeros((n, n)), np.zeros((m, n)), np.zeros((m, n))
    for t, g in enumerate(grads):
        row = b2 * row + (1 - b2) * g @ g.T
        column = b2 * column + (1 - b2) * g.T @ g
        if t == 0:
            p, q = np.linalg.eigh(row)[1][:, ::-1], np.linalg.eigh(column)[1][:, ::-1]
            yield np.zeros((m, n))
            continue
        first = b1 * first + (1 - b1) * g
        second = b2 * second + (1 - b2) * (p.T @ g @ q) ** 2
        step = (p.T @ first @ q / (1 - b1**t)) / (np.sqrt(second / (1 - b2**t)) + eps)
        yield -lr * p @ step @ q.T
        if (t + 1) % every == 0:
            rows, columns = np.argsort(-np.diag(p.T @ row @ p)), np.argsort(-np.diag(q.T @ column @ q))
            second = second[rows][:, columns]
            p, q = np.linalg.qr(row @ p[:, rows])[0], np.linalg.qr(column @ q[:, columns])[0]


@pytest.mark.parametrize("every", [2, 3, 100])
def test_soap_is_the_papers_algorithm(every):
    grads = gradients((4, 4))
    options = {"b1": 0.9, "b2": 0.8, "eps": 1e-8, "every": every}
    want = np.array([*soap(grads, lr=0.3, **options)])
    np.testing.assert_allclose(updates_of(ux.soap(0.3, **options), grads), want, rtol=1e-9, atol=1e-9)


def test_soap_in_blocks_along_the_rows_is_soap_of_each_block_where_columns_are_not_turned():
    grads = [RNG.standard_normal((6, 8)) for _ in range(12)]
    optimizer = ux.soap(0.1, block=3, longest=6)
    parts = [updates_of(optimizer, [g[rows] for g in grads]) for rows in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(updates_of(optimizer, grads), np.concatenate(parts, 1), rtol=1e-9, atol=1e-12)


def test_on_vectors_and_on_sides_that_are_too_long_soap_is_adam_from_the_second_gradient_on():
    adam = optax.adam(0.3, b1=0.95, b2=0.95)
    for shape, longest in (((4,), 99), ((), 99), ((4, 3), 2)):
        grads = [RNG.standard_normal(shape) for _ in range(12)]
        got = updates_of(ux.soap(0.3, longest=longest), grads)
        assert (got[0] == 0).all()
        np.testing.assert_allclose(got[1:], updates_of(adam, grads[1:]), rtol=1e-12)


def test_a_convolutions_kernel_counts_as_a_matrix_of_its_last_axis():
    grads = [RNG.standard_normal((2, 2, 2, 3)) for _ in range(12)]
    flat = [g.reshape(8, 3) for g in grads]
    for optimizer in (ux.shampoo(0.1, every=3, block=5), ux.soap(0.1, every=3, block=5)):
        got = updates_of(optimizer, grads)
        np.testing.assert_allclose(got.reshape(-1, 8, 3), updates_of(optimizer, flat), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- both

BOTH = {"shampoo": ux.shampoo, "soap": ux.soap}


@pytest.mark.parametrize("name", BOTH)
def test_turning_both_sides_turns_the_update(name):
    """The update of P g Q is P (the update of g) Q: neither knows the axes, unlike Adam."""
    grads = gradients((4, 4))
    p, q = (np.linalg.qr(RNG.standard_normal((4, 4)))[0] for _ in range(2))
    options = {"graft": "sgd"} if name == "shampoo" else {}
    got = updates_of(BOTH[name](0.1, **options), [p @ g @ q for g in grads])
    np.testing.assert_allclose(got, p @ updates_of(BOTH[name](0.1, **options), grads) @ q, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", BOTH)
def test_no_gradient_no_step_and_no_nan_afterwards(name):
    zero, some = np.zeros((3, 2)), np.ones((3, 2))
    got = updates_of(BOTH[name](0.1), [zero, zero, some, zero, some])
    assert np.isfinite(got).all()
    assert (got[:2] == 0).all()
    assert (got[2] < 0).all()


@pytest.mark.parametrize("name", BOTH)
def test_many_layers_do_not_stop_the_program(name):
    """Decompositions that may run at once wait for ever under jaxlib 0.10.2, so each must need what the last one found."""
    params = [jnp.asarray(RNG.standard_normal((20 + i, 30)), jnp.float32) for i in range(8)]
    optimizer = BOTH[name](0.1, every=2)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update).lower(params, state).compile()
    needs, last, found = {}, None, 0
    for line in update.as_text().splitlines():
        last = last if line.startswith(" ") else None  # another branch
        named, _, made = line.strip().removeprefix("ROOT ").partition(" = ")
        operands = re.findall(r"%[\w.-]+", made.split(", metadata=")[0])
        needs[named] = set(operands).union(*(needs.get(each, ()) for each in operands))
        if "lapack_" in made:
            assert last is None or last in needs[named]
            last, found = named, found + 1
    assert found >= 16
    for _ in range(4):
        got, state = update(params, state)
    assert all(np.isfinite(leaf).all() for leaf in got)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("shampoo", {"b1": 1.0}, "b1 must be a number in"),
        ("shampoo", {"b2": -0.1}, "b2 must be a number in"),
        ("shampoo", {"eps": 0.0}, "eps must be a positive"),
        ("shampoo", {"every": 0}, "every must be a positive whole number"),
        ("shampoo", {"block": 2.5}, "block must be a positive whole number"),
        ("shampoo", {"longest": 0}, "longest must be a positive whole number"),
        ("shampoo", {"graft": "adam"}, "graft must be one of 'rmsprop', 'sgd', None"),
        ("shampoo", {"weight_decay": -1.0}, "weight_decay must be"),
        ("shampoo", {"lr": -1.0}, "lr must be"),
        ("soap", {"b1": 1.0}, "b1 must be a number in"),
        ("soap", {"b2": 1.0}, "b2 must be a number in"),
        ("soap", {"eps": -1.0}, "eps must be"),
        ("soap", {"every": True}, "every must be a positive whole number"),
        ("soap", {"lr": float("nan")}, "lr must be"),
    ],
)
def test_a_number_out_of_its_range_is_named(name, options, says):
    with pytest.raises(ux.InvalidArgument, match=f"{name}: {says}"):
        BOTH[name](**options)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("leaf", [jnp.zeros(2, jnp.int32), jnp.zeros(2, complex)])
def test_a_parameter_that_is_not_real_is_named(name, leaf):
    with pytest.raises(ux.StructureError, match=rf"{name}: params leaf \['w'\] must be real floating"):
        BOTH[name]().init({"w": leaf})


@pytest.mark.parametrize("name", BOTH)
def test_weight_decay_takes_off_a_share_of_the_params(name):
    params, grad = jnp.full((2, 2), 4.0), jnp.eye(2)
    updates = []
    for decay in (0.0, 0.5):
        optimizer = BOTH[name](0.1, weight_decay=decay)
        updates.append(optimizer.update(grad, optimizer.init(params), params)[0])
    np.testing.assert_allclose(updates[1] - updates[0], -0.1 * 0.5 * params, rtol=1e-12)
