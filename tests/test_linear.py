"""A linear map that is given by its transpose behaves as the matrix that it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrollax._linear import linear_by_transpose

RNG = np.random.default_rng(0)
MATRIX = jnp.asarray(RNG.normal(size=(3, 4)))
OTHER = jnp.asarray(RNG.normal(size=(3, 2)))
X, Y = jnp.asarray(RNG.normal(size=4)), jnp.asarray(RNG.normal(size=2))
BACK = jnp.asarray(RNG.normal(size=3))


def pull(residuals, cotangent):
    """The transpose of (x, y) -> A x + 2 B y, and no more."""
    a, b = residuals
    return {"x": a.T @ cotangent["out"], "y": 2 * b.T @ cotangent["out"]}


def by_transpose(a, b, x, y):
    return linear_by_transpose(pull, (a, b), {"x": x, "y": y}, {"out": jnp.zeros(3)})["out"]


def literal(a, b, x, y):
    return a @ x + 2 * b @ y


ARGS = (MATRIX, OTHER, X, Y)


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14), got, expected)


@pytest.fixture(params=[lambda f: f, jax.jit], ids=["plain", "jit"])
def compiled(request):
    return request.param


def test_it_is_the_transpose_of_the_pull(compiled):
    close(compiled(by_transpose)(*ARGS), literal(*ARGS))


def test_its_derivative_along_inputs_is_itself(compiled):
    tangents = (X[::-1], 3 * Y)
    got = compiled(lambda x, y: jax.jvp(lambda *z: by_transpose(MATRIX, OTHER, *z), (x, y), tangents))(X, Y)
    close(got, (literal(*ARGS), literal(MATRIX, OTHER, *tangents)))


def test_reverse_mode_runs_the_pull_as_it_stands(compiled):
    """A pull of other numbers, zero for y: reverse mode returns these, with respect to whatever is asked for."""

    def odd(residuals, cotangent):
        return {"x": residuals.T @ cotangent, "y": jnp.zeros(2)}

    def run(x, y):
        return linear_by_transpose(odd, MATRIX, {"x": x, "y": y}, jnp.zeros(3))

    out, back = jax.vjp(compiled(run), X, Y)
    close(out, MATRIX @ X)
    close(back(BACK), (MATRIX.T @ BACK, jnp.zeros(2)))
    close(jax.grad(lambda y: run(X, y).sum())(Y), jnp.zeros(2))
    close(jax.grad(lambda x: run(x, Y).sum())(X), MATRIX.sum(0))


def test_the_pull_is_called_once_to_transpose_and_not_transposed_back():
    """Nothing but the pull is in the program of the gradient: a product with A^T, none with A."""
    calls = []

    def counting(residuals, cotangent):
        calls.append(cotangent)
        return pull(residuals, cotangent)

    def loss(x):
        return linear_by_transpose(counting, (MATRIX, OTHER), {"x": x, "y": Y}, {"out": jnp.zeros(3)})["out"] @ BACK

    program = jax.make_jaxpr(lambda x: jax.vjp(loss, x)[1](1.0))(X)
    assert len(calls) == 1
    assert "linear_by_transpose" in str(program)


@pytest.mark.parametrize("order", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("then", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_go_through_the_residuals(order, then):
    """d/dA of the gradient of (A x + 2 B y)^3 reads x and y as well."""

    def loss(run):
        return lambda *args: (run(*args) ** 3).sum()

    made = [
        jax.jit(then(order(loss(run), argnums=(0, 1, 2, 3)), argnums=(0, 2)))(*ARGS) for run in (by_transpose, literal)
    ]
    close(*made)


@pytest.mark.parametrize("axes", [(0, None, None, None), (None, None, 0, None), (0, 0, 0, 0), (None, 1, None, 0)])
def test_it_is_mapped_over_any_of_its_arguments(axes):
    many = tuple(
        arg if axis is None else jnp.stack([arg, -2 * arg, arg + 1], axis) for arg, axis in zip(ARGS, axes, strict=True)
    )
    made = [jax.jit(jax.vmap(run, in_axes=axes))(*many) for run in (by_transpose, literal)]
    close(*made)
    sums = [
        jax.jit(jax.grad(lambda *z, run=run: (jax.vmap(run, in_axes=axes)(*z) ** 2).sum(), (0, 1, 2, 3)))(*many)
        for run in (by_transpose, literal)
    ]
    close(*sums)  # the cotangents of what the batch shares add up


def test_it_is_mapped_twice_and_over_an_outer_axis_of_the_result(compiled):
    many = jnp.stack([jnp.stack([X, 2 * X]), jnp.stack([3 * X, 4 * X]), jnp.stack([5 * X, X])])
    matrices = jnp.stack([MATRIX, -MATRIX])
    inner = lambda run: jax.vmap(lambda a, x: run(a, OTHER, x, Y), out_axes=1)
    made = [
        compiled(jax.grad(lambda a, x, run=run: (jax.vmap(inner(run), (None, 0))(a, x) ** 2).sum(), (0, 1)))(
            matrices, many
        )
        for run in (by_transpose, literal)
    ]
    close(*made)


def test_each_example_of_a_mapped_gradient_has_its_own():
    """The map is outside the gradient: nothing adds up."""
    xs = jnp.stack([X, 2 * X])
    each = [
        jax.jit(jax.vmap(jax.grad(lambda a, x, run=run: (run(a, OTHER, x, Y) ** 2).sum(), (0, 1)), (None, 0)))(
            MATRIX, xs
        )
        for run in (by_transpose, literal)
    ]
    close(*each)


def test_it_goes_through_scan_and_checkpoint():
    def run(step):
        def loss(x):
            return jax.lax.scan(lambda h, y: (jnp.tanh(step(MATRIX, OTHER, h, y) @ MATRIX), None), x, Y[None])[0].sum()

        return jax.jit(jax.grad(loss))(X)

    close(run(by_transpose), run(literal))
    close(run(jax.checkpoint(by_transpose)), run(literal))


def test_a_complex_map_is_transposed_without_conjugation():
    a = MATRIX + 1j * MATRIX[::-1]

    def run(x):
        return linear_by_transpose(lambda a, ct: a.T @ ct, a, x, jnp.zeros(3, complex))

    x = X + 1j
    close(run(x), a @ x)
    close(jax.vjp(run, x)[1](BACK + 0j), jax.vjp(lambda x: a @ x, x)[1](BACK + 0j))


def test_a_residual_without_a_derivative_is_borne():
    mask = jnp.array([True, False, True])

    def run(x):
        return linear_by_transpose(lambda kept, ct: kept[0].T @ jnp.where(kept[1], ct, 0), (MATRIX, mask), x, BACK)

    expected = lambda x: jnp.where(mask, MATRIX @ x, 0)
    close(run(X), expected(X))
    close(jax.hessian(lambda x: (run(x) ** 3).sum())(X), jax.hessian(lambda x: (expected(x) ** 3).sum())(X))
