import functools
import re
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import entr

import unrollax as ux

NAMES = ["identity", "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "softmax"]
ELEMENTWISE = NAMES[:-1]
close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
A, B, TARGET = (2.5 * jax.random.normal(key, (200, 5)) for key in jax.random.split(jax.random.key(0), 3))
all_transfers = pytest.mark.parametrize("name", NAMES)
elementwise = pytest.mark.parametrize("name", ELEMENTWISE)

# What the functions are, in NumPy alone.
LITERAL = {
    "identity": lambda a: a,
    "relu": lambda a: np.where(a > 0, a, 0.0),
    "leaky_relu": lambda a: np.where(a > 0, a, 0.01 * a),
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "softplus": lambda a: np.log1p(np.exp(a)),
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True),
}


def quadrature(function, low, high, pieces=150, order=12):
    """Return the integral of a scalar function by Gauss and Legendre, with 0 on an edge of the pieces."""
    points, weights = np.polynomial.legendre.leggauss(order)
    total = 0.0
    edges = sorted({*np.linspace(low, high, pieces), *([0.0] if min(low, high) < 0 < max(low, high) else [])})
    for left, right in pairwise(edges):
        total += (right - left) / 2 * (weights @ function((left + right) / 2 + (right - left) / 2 * points))
    return total if high > low else -total


@all_transfers
def test_a_transfer_is_the_function_of_its_name(name):
    close(ux.transfer(name)(A), LITERAL[name](np.asarray(A)))


@all_transfers
def test_the_gradient_of_the_matching_loss_is_output_minus_target(name):
    f = ux.transfer(name)
    grad = jax.jit(jax.grad(lambda a: f.matching_loss(a, TARGET).sum()))(A)
    close(grad, LITERAL[name](np.asarray(A)) - TARGET)


@all_transfers
def test_the_function_is_the_gradient_of_its_potential_by_differences(name):
    f, step = ux.transfer(name), 1e-4
    potential = jax.jit(f.potential)
    for axis in range(A.shape[1]):
        unit = step * np.eye(A.shape[1])[[axis]]
        slope = (potential(A + unit) - potential(A - unit)) / (2 * step)
        np.testing.assert_allclose(slope, f(A)[:, axis], atol=3e-8 if name not in ("relu", "leaky_relu") else 1e-4)


@elementwise
def test_a_potential_is_the_integral_of_its_function(name):
    f = ux.transfer(name)
    ends = np.array([-30.0, -3.0, -0.9, -1e-3, 1e-3, 0.9, 1.1, 3.0, 30.0])
    found = f.potential(ends[:, None]) - f.potential(np.zeros((9, 1)))
    expected = [quadrature(LITERAL[name], 0.0, end) for end in ends]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)


@elementwise
def test_a_divergence_is_the_integral_of_the_difference_of_outputs(name):
    f, literal = ux.transfer(name), LITERAL[name]
    a, b = A[:10, :1], B[:10, :1]
    expected = [quadrature(lambda z, y=y: literal(z) - literal(y), y, x) for x, y in np.c_[a, b]]
    np.testing.assert_allclose(f.bregman(a, b), expected, rtol=1e-10, atol=1e-14)


@all_transfers
def test_a_divergence_is_not_negative_and_zero_where_outputs_are_equal(name):
    f = ux.transfer(name)
    bregman = jax.jit(f.bregman)
    near = A + 1e-9 * B
    assert (bregman(A, near) >= 0).all()
    assert (bregman(near, A) >= 0).all()
    assert (bregman(A, A) == 0).all()
    different = (np.abs(f(A) - f(B)) > 1e-3).any(-1)
    assert different.sum() > 150
    assert (np.asarray(bregman(A, B))[different] > 1e-8).all()


def test_preactivations_with_equal_outputs_have_no_divergence():
    relu, softmax = ux.transfer("relu"), ux.transfer("softmax")
    close(relu.bregman(-jnp.abs(A), -jnp.abs(B)), 0)
    close(softmax.bregman(A + 3.0, A), 0)


@all_transfers
def test_the_gradient_of_a_divergence_is_the_difference_of_outputs_even_where_rounding_rules(name):
    f = ux.transfer(name)
    near = A + 1e-9 * B
    grad = jax.jit(jax.grad(lambda a: f.bregman(a, near).sum()))(A)
    np.testing.assert_allclose(grad, f(A) - f(near), rtol=1e-5, atol=1e-15)


def binary_kl(p, q):
    return (-entr(p) - p * jnp.log(q) - entr(1 - p) - (1 - p) * jnp.log(1 - q)).sum(-1)


CLOSED = {
    "identity": lambda a, b: 0.5 * ((a - b) ** 2).sum(-1),
    "sigmoid": lambda a, b: binary_kl(jax.nn.sigmoid(b), jax.nn.sigmoid(a)),
    "softmax": lambda a, b: (jax.nn.softmax(b) * (jax.nn.log_softmax(b) - jax.nn.log_softmax(a))).sum(-1),
    "relu": lambda a, b: (
        jnp.where(b > 0, jnp.where(a > 0, (a - b) ** 2, b * b - 2 * a * b), jnp.maximum(a, 0) ** 2).sum(-1) / 2
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_divergence_has_its_closed_form(name):
    np.testing.assert_allclose(ux.transfer(name).bregman(A, B), CLOSED[name](A, B), rtol=1e-11, atol=1e-13)


@all_transfers
def test_the_matching_loss_is_the_divergence_from_the_targets_preactivation_and_a_constant(name):
    f = ux.transfer(name)
    constant = f.matching_loss(A, f(B)) - f.bregman(A, B)
    close(constant, f.matching_loss(B, f(B)), atol=1e-11)


@elementwise
def test_the_slope_is_the_largest_slope_and_is_reached(name):
    f = ux.transfer(name)
    grid = jnp.concatenate([jnp.linspace(-40, 40, 2001), jnp.zeros(1)])[:, None]
    slopes = jax.jit(jax.vmap(jax.jacfwd(f)))(grid)
    assert slopes.max() <= f.slope
    close(slopes.max(), f.slope)


def test_the_slope_of_softmax_is_the_largest_eigenvalue_of_its_jacobian_and_is_reached():
    f = ux.transfer("softmax")
    largest = np.linalg.eigvalsh(jax.jit(jax.vmap(jax.jacfwd(f)))(A)).max(-1)
    assert (largest < f.slope).all()
    assert largest.max() > 0.4
    two = jnp.array([0.0, 0.0, -200.0])  # two classes of 1/2 each
    close(np.linalg.eigvalsh(jax.jacfwd(f)(two)).max(), f.slope)


@all_transfers
def test_potentials_and_their_gradients_neither_overflow_nor_vanish_in_float32(name):
    f = ux.transfer(name)

    @jax.jit
    @jax.vmap
    def look(a):
        grads = jax.grad(f.potential)(a), jax.grad(f.bregman)(a, a[::-1])
        return (*grads, f.potential(a), f.bregman(a, a[::-1]), jax.hessian(f.potential)(a), f(a))

    a = jnp.array([1e-30, 1.0, 1e3, 1e15], jnp.float32)[:, None] * jnp.array([[-1.0, 0.0, 1.0]], jnp.float32)
    seen = look(a)
    assert all(jnp.isfinite(found).all() for found in seen)
    np.testing.assert_allclose(seen[0], seen[-1], rtol=1e-6, atol=1e-30)


def test_log_cosh_and_the_dilogarithm_keep_their_relative_accuracy_in_float32():
    small = jnp.array([[1e-5]], jnp.float32)
    np.testing.assert_allclose(ux.transfer("tanh").potential(small), [0.5e-10], rtol=1e-5)
    low = jnp.array([[-30.0]], jnp.float32)
    np.testing.assert_allclose(ux.transfer("softplus").potential(low), np.exp([-30.0]), rtol=1e-5)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float32])
def test_dtypes_are_kept_and_losses_are_at_least_float32(kind):
    def look(f, a, target):
        grad = jax.grad(lambda a: f.matching_loss(a, target).sum())(a)
        return f(a), grad, f.potential(a), f.matching_loss(a, target), f.bregman(a, target)

    fs = [ux.transfer(name) for name in NAMES]
    a, target = A.astype(kind), TARGET.astype(kind)
    for y, grad, *losses in jax.jit(lambda a, target: [look(f, a, target) for f in fs])(a, target):
        assert y.dtype == grad.dtype == kind
        assert {loss.dtype for loss in losses} == {jnp.dtype(jnp.float32)}
        eps = float(jnp.finfo(kind).eps)
        np.testing.assert_allclose(np.float64(grad), np.float64(y) - np.float64(target), rtol=8 * eps, atol=8 * eps)


def test_a_transfer_is_found_by_the_functions_of_jax_and_of_other_libraries():
    linen = pytest.importorskip("flax.linen")
    functions = {
        "tanh": [jnp.tanh, jax.nn.tanh, jax.lax.tanh, linen.tanh],
        "relu": [jax.nn.relu, linen.relu, eqx.nn.MLP(1, 1, 1, 1, key=jax.random.key(0)).activation],
        "sigmoid": [jax.nn.sigmoid, jax.lax.logistic, linen.sigmoid],
        "softplus": [jax.nn.softplus, linen.softplus],
        "leaky_relu": [jax.nn.leaky_relu, linen.leaky_relu],
        "softmax": [jax.nn.softmax, linen.softmax],
        "identity": [jax.nn.identity],
    }
    assert sorted(functions) == sorted(NAMES)
    for name, given in functions.items():
        assert all(ux.transfer(each) is ux.transfer(name) for each in given)


def test_a_transfer_of_ones_own_has_what_the_ready_ones_have():
    square = ux.Transfer("cubic", lambda a: a**3, lambda a: (a**4).sum(-1) / 4)
    assert ux.transfer(square) is square
    close(jax.grad(lambda a: square.matching_loss(a, TARGET).sum())(A), A**3 - TARGET)
    close(square.bregman(A, B), ((A**4 - B**4) / 4 - B**3 * (A - B)).sum(-1), atol=1e-10)
    assert square.slope is None


def test_a_transfer_compiles_once_however_often_it_is_made():
    traces = []

    @jax.jit
    def loss(f, a):
        traces.append(f)
        return f.matching_loss(a, a)

    for f in (
        ux.transfer("tanh"),
        ux.transfer(jnp.tanh),
        ux.Transfer("tanh", jnp.tanh, ux.transfer("tanh").potential, 1.0),
    ):
        loss(f, A)
    assert len(traces) == 1
    assert jax.tree.leaves(ux.transfer("tanh")) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ux.transfer("tanhh"), "transfer: 'tanhh' must be the name of a transfer function. Did you mean tanh?"),
        (
            lambda: ux.transfer(jnp.sin),
            "identity, leaky_relu, relu, sigmoid, softmax, softplus, tanh, got sin. For another",
        ),
        (lambda: ux.transfer(lambda a: a), "For another make Transfer(name, function, potential)."),
        (
            lambda: ux.Transfer("f", 3.0),
            "Transfer: function must be a function of an array [..., m], got function=3.0.",
        ),
        (lambda: ux.Transfer("f", jnp.sin, "cos"), "Transfer: potential must be a function of an array"),
        (lambda: ux.Transfer("f", jnp.sin, None, -1.0), "Transfer: slope must be a positive number, got slope=-1.0."),
        (
            lambda: ux.Transfer("sin", jnp.sin).matching_loss(A, A),
            "Transfer: 'sin' must have a potential for a matching loss, got potential=None.",
        ),
    ],
)
def test_a_wrong_transfer_is_told_with_a_remedy(wrong, message):
    with pytest.raises(ux.InvalidArgument, match=re.escape(message)):
        wrong()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: ux.transfer("tanh").matching_loss(A, A[0]),
            "Transfer.matching_loss: a and target must be [..., m] with the same shape, got float64[200,5] and float64[5].",
        ),
        (
            lambda: ux.transfer("tanh").bregman(1.0, 2.0),
            "Transfer.bregman: a and b must be [..., m] with the same shape",
        ),
        (
            lambda: ux.Transfer("sin", jnp.sin, lambda a: -jnp.cos(a)).bregman(A, A),
            "the potential of 'sin' must be [200] for float64[200,5], got float64[200,5]. Sum it over the last axis alone.",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_told_while_tracing(wrong, message):
    with pytest.raises(ux.StructureError, match=re.escape(message)):
        jax.jit(wrong)()
