"""Plain NumPy source computes what JAX does: each primitive, each usual iteration, in the same dtypes."""

import ast
import functools
import inspect
import typing
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import unrollax as ux
import unrollax.problems
import unrollax.solvers
from unrollax.plain import numpy_source

SEED = np.random.RandomState(0)
X, Y, Z = SEED.randn(3, 4), SEED.randn(3, 4), SEED.randn(4)
M, B = SEED.randn(4, 4), SEED.randn(4)
SPD = M @ M.T + np.eye(4)
C = SEED.randn(3, 4) + 1j * SEED.randn(3, 4)
WHOLE = SEED.randint(-9, 9, (3, 4)).astype(np.int32)


@pytest.fixture(autouse=True)
def broadcasting():
    """Let ranks be promoted: how NumPy broadcasts is what is tested here."""
    with jax.numpy_rank_promotion("allow"):
        yield


def load(source, name="step"):
    """Run the source where nothing else is, and return its function."""
    space = {"__name__": "alone"}
    exec(compile(source.text, "<source>", "exec"), space)
    assert "jax" not in space
    function = space[name]
    return (lambda *args: function(*args, source.arrays)) if source.arrays else function


def _is_object(tree):
    return type(tree).__module__ == "alone"


def agree(got, want, tolerance, what=""):
    got = [leaf for item in jax.tree.leaves(got) for leaf in vars(item).values()] if _is_object(got) else got
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), what
        scale = max(1.0, np.max(np.abs(b), where=np.isfinite(b), initial=0.0)) if b.dtype.kind in "fc" else 1
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=str(what))


def compiled(function, *args):
    """Compile as `jax.jit` does, in a hurry, and run."""
    program = jax.jit(function).lower(*args)
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return program.compile(compiler_options=options)(*args)


def check(function, *args, tolerance=1e-12):
    """The source's outputs are those of `jax.jit`; return its text."""
    source = numpy_source(function, *args)
    agree(load(source)(*args), compiled(function, *args), tolerance, source.text)
    longest = max(map(len, source.text.splitlines()))
    assert longest < 120, source.text
    imports = [node for node in ast.walk(ast.parse(source.text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {alias.name for node in imports for alias in node.names} <= {"numpy", "math"}
    return source.text


def check_group(functions, *args, tolerance=1e-12):
    """Each of some functions of the same arguments, in one compilation by JAX, but in sources of their own."""
    wanted = compiled(lambda *args: {name: function(*args) for name, function in functions.items()}, *args)
    for name, function in functions.items():
        source = numpy_source(function, *args)
        agree(load(source)(*args), wanted[name], tolerance, (name, source.text))
        assert max(map(len, source.text.splitlines())) < 120


UNARY = {
    **{
        name: getattr(jnp, name)
        for name in ("exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh", "tanh", "arctan", "arcsinh", "sign")
    },
    **{
        name: getattr(jnp, name) for name in ("abs", "negative", "floor", "ceil", "cbrt", "square", "isfinite", "trunc")
    },
    **{
        f"{name} of a positive": lambda x, name=name: getattr(jnp, name)(jnp.abs(x) + 0.5)
        for name in ("log", "log1p", "sqrt")
    },
    "arcsin": lambda x: jnp.arcsin(jnp.tanh(x)),
    "arccos": lambda x: jnp.arccos(jnp.tanh(x)),
    "arctanh": lambda x: jnp.arctanh(jnp.tanh(x)),
    "arccosh": lambda x: jnp.arccosh(1 + x * x),
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x)),
    "logistic": jax.nn.sigmoid,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "lgamma": lax.lgamma,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "softmax": jax.nn.softmax,
    "integer_pow": lambda x: x**3 + x**-2 + 1 / x**1,
    "pow": lambda x: jnp.abs(x) ** 1.7 + jnp.power(jnp.abs(x), jnp.abs(x)) + 2.0**x,
    "round to even": lambda x: jnp.round(x * 2) + jnp.round(jnp.array([0.5, 1.5, -2.5, 3.5], x.dtype)),
    "round away": lambda x: lax.round(x) + lax.round(jnp.array([0.5, 1.5, -2.5, 3.5], x.dtype)),
    "to whole numbers": lambda x: (x * 3).astype(jnp.int32) + (x > 0).astype(jnp.int32),
    "to half": lambda x: x.astype(jnp.float16).astype(jnp.float32) if x.dtype == jnp.float64 else x,
    "bits": lambda x: lax.bitcast_convert_type(x, jnp.int64 if x.dtype == jnp.float64 else jnp.int32),
    "log of zero": lambda x: (jnp.log(x * 0), 1 / (x * 0), jnp.sqrt(-jnp.abs(x))),
}
BINARY = {
    "arithmetic": lambda x, y: (x + y, x - y, x * y, x / y, x - (y - x), x / (y * x), (x + y) * x, -(x + y), (-x) ** 2),
    "compare": lambda x, y: (x < y, x <= y, x > y, x >= y, x == y, x != y, (x < y) == (y < 0)),
    "logic": lambda x, y: ((x < y) & (y > 0) | ~(x > 0), (x < y) ^ (y > 0)),
    "extrema": lambda x, y: (jnp.maximum(x, y), jnp.minimum(x, y), jnp.maximum(0.0, x), jnp.clip(x, -0.5, 0.5)),
    "clamp": lambda x, y: (lax.clamp(x.dtype.type(-0.1), x, x.dtype.type(0.2)), lax.clamp(y - 1, x, y)),
    "select": lambda x, y: (jnp.where(x > y, x, y), jnp.where(x > 0, 1.0, 0.0), jnp.where(x > 0, x, 2.0)),
    "select of many": lambda x, y: lax.select_n((x > 0).astype(jnp.int32) + (y > 0), x, y, x + y),
    "rem": lambda x, y: (lax.rem(x, y), jnp.mod(x, y), jnp.floor_divide(x, y)),
    "atan2": lambda x, y: (jnp.arctan2(x, y), jnp.hypot(x, y), jnp.logaddexp(x, y), jnp.nextafter(x, y)),
    "literals": lambda x, y: (x * 0.1 + 1e-30, x + jnp.inf, jnp.where(x > 9, -jnp.inf, jnp.nan), 3 * x - -2.5),
    "broadcasts": lambda x, y: (
        x[:, None] * y,
        x + y[0],
        x[:, :1] - y,
        jnp.outer(x[0], y[:, 1]),
        x - x.mean(1, keepdims=True),
    ),
    "broadcast outputs": lambda x, y: (jnp.broadcast_to(x[0], (2, 3, 4)), jnp.zeros((2, 3)), jnp.ones(4) * x[0, 0]),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 3e-6)])
def test_elementwise_primitives_agree(dtype, tolerance):
    check_group(UNARY, X.astype(dtype), tolerance=tolerance)
    check_group(BINARY, X.astype(dtype), Y.astype(dtype), tolerance=tolerance)


def test_whole_numbers_keep_their_dtypes():
    check_group(
        {
            "arithmetic": lambda x: (
                x + 1,
                x * x,
                x // 3,
                x % 5,
                lax.div(x, jnp.int32(4)),
                lax.rem(x, jnp.int32(4)),
                -x,
            ),
            "sums": lambda x: (x.sum(dtype=jnp.int32), lax.cumsum(x), x.prod(0, dtype=jnp.int32), lax.cumprod(x, 1)),
            "bits": lambda x: (x & 3, x | 4, x ^ 5, ~x, x << 2, x >> 1, lax.population_count(x), lax.sign(x)),
            "sort": lambda x: (jnp.sort(x, 0), jnp.argsort(x), lax.top_k(x, 2), x.argmax(1), x.max()),
            "to floating": lambda x: (x * 0.5, x.astype(jnp.float32) / 3, x / 2, jnp.sqrt(jnp.abs(x))),
            "reduced bits": lambda x: (jnp.bitwise_and.reduce(x, axis=1), jnp.bitwise_or.reduce(x, axis=0)),
            "unsigned": lambda x: (x.astype(jnp.uint8) >> 1, x.astype(jnp.uint32) // 3),
            "power": lambda x: (x**2, jnp.float32(2) ** x),
        },
        WHOLE,
        tolerance=1e-6,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.complex128, 1e-12), (np.complex64, 3e-6)])
def test_complex_primitives_agree(dtype, tolerance):
    check_group(
        {
            "parts": lambda z: (z.real, z.imag, z.conj(), jnp.abs(z), jnp.angle(z), lax.complex(z.imag, z.real)),
            "arithmetic": lambda z: (z * 2, z * (1 + 2j), z / z.conj(), 1j * z, z**2, -z, z == z.conj(), z + z.real),
            "functions": lambda z: (jnp.exp(z), jnp.sqrt(z), jnp.sign(z), jnp.tanh(z), jnp.where(z.real > 0, z, 0)),
            "products": lambda z: (z.conj().T @ z, z @ z.T, z.sum(0), jnp.vdot(z, z), (z @ jnp.ones(4, z.dtype))),
            "norm": lambda z: (jnp.linalg.norm(z), z / jnp.maximum(jnp.abs(z), 1e-3)),
        },
        C.astype(dtype),
        tolerance=tolerance,
    )


def test_infinite_parts_of_complex_numbers_stay_apart():
    text = check(lambda x: lax.complex(x / 0.0, x), X)
    assert "_complex" in text


MOVES = {
    "reshape": lambda x: (x.reshape(2, 6), x.ravel(), x.T, x[None], x.reshape(4, 3).T, x.T.T),
    "transpose": lambda x: jnp.transpose(x.reshape(3, 2, 2), (2, 0, 1)),
    "slices": lambda x: (x[1], x[:, 1], x[1:, ::2], x[-1, -1], x[0, 1:3], x[:2, -1:], x[2:2]),
    "stack": lambda x: (jnp.stack([x[0], x[1]]), jnp.concatenate([x, x], 1), jnp.hstack([x, x]), jnp.tile(x, 2)),
    "split": lambda x: (jnp.split(x, 2, 1), jnp.array_split(x, 2), jnp.split(x + 1, [1, 3], axis=1)),
    "pad": lambda x: (jnp.pad(x, ((1, 2), (0, 3))), jnp.pad(x, 1, constant_values=2.0), jnp.pad(x, 1, mode="reflect")),
    "pad between": lambda x: (
        lax.pad(x, x.dtype.type(0.5), ((1, -1, 2), (-1, 2, 0))),
        lax.pad(x, x.dtype.type(0), ((0, 0, 1), (2, 2, 0))),
    ),
    "flip": lambda x: (x[::-1], jnp.flip(x), x[0][::-1], jnp.roll(x, 1), jnp.roll(x, (1, 2), (0, 1)), jnp.rot90(x)),
    "reduce": lambda x: (
        x.sum(),
        x.sum(0),
        x.max(1),
        x.min(),
        x.prod(0),
        (x > 0).all(1),
        (x > 0).any(),
        x.mean(),
        x.std(),
    ),
    "where reduce": lambda x: (jnp.argmax(x), jnp.argmin(x, 1), jnp.max(x, initial=9.0), jnp.count_nonzero(x > 0)),
    "accumulate": lambda x: (jnp.cumsum(x), jnp.cumsum(x, 1), jnp.cumprod(x, 0), lax.cummax(x, 1), lax.cummin(x, 0)),
    "accumulate back": lambda x: (lax.cumsum(x, 1, reverse=True), lax.cummax(x, 0, reverse=True), lax.cumlogsumexp(x)),
    "sort": lambda x: (jnp.sort(x), jnp.sort(x, 0), jnp.argsort(x, 1), jnp.sort(x[0])[::-1], jnp.median(x)),
    "sort many": lambda x: (lax.sort((x, x + 1, -x), dimension=0), jnp.lexsort((x[0], x[1] > 0))),
    "top": lambda x: (lax.top_k(x, 3), lax.top_k(x[0], 2), lax.top_k(jnp.abs(x), 1)[1]),
    "iota": lambda x: (
        jnp.arange(3.0) + x[:, 0],
        x * jnp.arange(4),
        lax.iota(jnp.int32, 3),
        jnp.linspace(0, 1, 5) * x[0, 0],
    ),
    "masks": lambda x: (
        jnp.tril(x),
        jnp.triu(x, 1),
        jnp.eye(4) * x[0],
        jnp.diag(x[0]),
        jnp.trace(x),
        jnp.diag(x @ x.T),
    ),
    "diff": lambda x: (jnp.diff(x), jnp.diff(x, axis=0), jnp.gradient(x[0]), jnp.interp(0.3, jnp.arange(4.0), x[0])),
    "search": lambda x: jnp.searchsorted(jnp.sort(x[0]), x[1]),
    "places": lambda x: (
        x[jnp.array([0, 2])],
        x[:, jnp.array([1, 1])],
        x[jnp.array([0, 1]), jnp.array([2, 3])],
        x[np.eye(3, 4) > 0],
    ),
    "takes": lambda x: (
        jnp.take(x, jnp.array([0, -1]), 1),
        jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
        x[:, None, np.array([0, 1])],
    ),
    "set": lambda x: (
        x.at[1].set(3.0),
        x.at[:, 1].add(2.0),
        x.at[0, 1].multiply(5.0),
        x.at[1:, :2].set(0.0),
        x.at[np.array([0, 0])].add(1.0),
    ),
    "set extrema": lambda x: (
        x.at[np.array([0, 2])].max(0.5),
        x.at[:, np.array([1, 1])].min(0.1),
        x.at[jnp.array([0, 1]), jnp.array([2, 3])].set(7.0),
    ),
    "filled": lambda x: (
        jnp.take(x, jnp.array([0, 7]), 0, mode="fill"),
        jnp.take(x, jnp.array([0, 7]), 0, mode="clip"),
    ),
    "update": lambda x: (
        lax.dynamic_update_slice(x, x[:2, :2] + 1, (1, 1)),
        lax.dynamic_update_index_in_dim(x, x[0], 2, 0),
    ),
    "einsum": lambda x: (jnp.einsum("ij,kj->ik", x, x), jnp.einsum("ij,ij->i", x, x), jnp.einsum("ij,kl->iljk", x, x)),
    "products": lambda x: (x @ x.T, x.T @ x, x @ x[0], x[0] @ x[1], x.T @ x[:, 0], jnp.vdot(x, x), jnp.kron(x, x)),
    "batched": lambda x: (
        jax.vmap(lambda a: jnp.outer(a, a) @ a)(x),
        jnp.matmul(x[:, None], x[..., None]),
        jnp.tensordot(x, x, 2),
    ),
    "contractions": lambda x: lax.dot_general(x.reshape(3, 2, 2), x.reshape(3, 2, 2), (((1,), (1,)), ((0,), (0,)))),
    "norms": lambda x: (jnp.linalg.norm(x), jnp.linalg.norm(x, axis=1), jnp.abs(x).max(0), jnp.var(x, 1)),
}


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_moves_reductions_and_places_agree(dtype, tolerance, part):
    check_group(dict(list(MOVES.items())[part::3]), X.astype(dtype), tolerance=tolerance)


def test_places_known_at_run_time_agree_also_outside():
    functions = {
        "one": lambda x, i: (x[i], x[:, i], x[i, i], lax.dynamic_slice(x, (i, 0), (2, 2)), x[0, i]),
        "many": lambda x, i: (x[jnp.stack([i, 0 * i])], x[:, jnp.arange(2) + 0 * i]),
        "set": lambda x, i: (
            x.at[i].set(1.0),
            x.at[i, 1].add(2.0),
            x.at[:, i].multiply(x[:, 0]),
            x.at[i, :2].set(x[0, :2]),
        ),
        "sets": lambda x, i: (x.at[jnp.stack([i, 0 * i])].set(x[:2]), x.at[jnp.stack([i, i])].add(1.0)),
        "window": lambda x, i: (lax.dynamic_update_slice(x, x[:2, :2], (i, i)), lax.dynamic_slice_in_dim(x, i, 2, 1)),
        "filled": lambda x, i: (jnp.take(x, i, 0), x.at[i].get(mode="fill", fill_value=5.0), x.at[i].get(mode="clip")),
    }
    for i in (0, 1, 2, -1, -3):
        check_group(functions, X, jnp.array(i))
    outside = {name: functions[name] for name in ("set", "window", "filled")} | {"one": lambda x, i: x[i]}
    check_group(outside, X, jnp.array(5))


LINEAR = {
    "cholesky": lambda a, b: (jnp.linalg.cholesky(a), jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), b)),
    "solves": lambda a, b: (jnp.linalg.solve(a, b), jnp.linalg.solve(a, a + 1), jnp.linalg.inv(a)),
    "lower": lambda a, b: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b),
    "triangular": lambda a, b: [
        jax.scipy.linalg.solve_triangular(a, b, lower=lower, trans=trans, unit_diagonal=unit)
        for lower in (False, True)
        for trans in (0, 1)
        for unit in (False, True)
    ],
    "right": lambda a, b: [
        lax.linalg.triangular_solve(a, a[:2], left_side=False, lower=t, transpose_a=t) for t in (0, 1)
    ],
    "eigh": lambda a, b: (jnp.linalg.eigvalsh(a), (lambda w, v: (v * jnp.sqrt(w)) @ v.T)(*jnp.linalg.eigh(a))),
    "svd": lambda a, b: (
        (lambda u, s, v: (u * jnp.maximum(s - 1, 0)) @ v)(*jnp.linalg.svd(a)),
        jnp.linalg.svd(a[:2])[1],
    ),
    "thin svd": lambda a, b: (lambda u, s, v: (u * s) @ v)(*jnp.linalg.svd(a[:3], full_matrices=False)),
    "singular values": lambda a, b: (jnp.linalg.svd(a, compute_uv=False), jnp.linalg.norm(a, 2), jnp.linalg.pinv(a)),
    "qr": lambda a, b: (lambda q, r: (q @ r, jnp.abs(r)))(*jnp.linalg.qr(a[:, :3])),
    "lu": lambda a, b: (jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(a), b), jnp.linalg.slogdet(a)[1]),
    "tridiagonal": lambda a, b: lax.linalg.tridiagonal_solve(b * 0 + 1, b * 0 + 4, b * 0 + 1, a),
    "batched": lambda a, b: (jnp.linalg.cholesky(jnp.stack([a, 2 * a])), jnp.linalg.solve(jnp.stack([a, 2 * a]), a)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-4)])
def test_factorisations_and_solves_agree(dtype, tolerance):
    check_group(LINEAR, SPD.astype(dtype), B.astype(dtype), tolerance=tolerance)


def test_a_solve_is_one_line():
    assert "np.linalg.solve(a, b)" in check(lambda a, b: jnp.linalg.solve(a, b), SPD, B)
    text = check(lambda a, b: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b), SPD, B)
    assert "return np.linalg.solve(factor.T, np.linalg.solve(factor, b))" in text


TRANSFORMS = {
    "fft": lambda x: (
        jnp.fft.fft(x),
        jnp.fft.ifft(x),
        jnp.fft.rfft(x),
        jnp.fft.fft2(x),
        jnp.fft.ifft2(x),
        jnp.fft.rfft2(x),
    ),
    "back": lambda x: (
        jnp.fft.irfft(jnp.fft.rfft(x), 4),
        jnp.fft.irfft2(jnp.fft.rfft2(x), (3, 4)),
        jnp.fft.fft(x, axis=0),
    ),
    "convolve": lambda x: (jnp.convolve(x[0], x[1]), jnp.convolve(x[0], x[1, :2], "same"), jnp.correlate(x[0], x[1])),
    "convolve 2": lambda x: jax.scipy.signal.convolve2d(x, x[:2, :2], "same"),
    "strides": lambda x: lax.conv_general_dilated(
        x[None, None], x[None, None, :2, :2], (2, 1), [(1, 0), (2, 1)], (2, 1), (1, 2)
    ),
    "transposed": lambda x: lax.conv_transpose(
        x[None, None], x[None, None, :2, :2], (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
    ),
    "channels": lambda x: lax.conv_general_dilated(
        x.reshape(1, 6, 2),
        jnp.stack([x.ravel(), -x.ravel()]).reshape(2, 2, 6),
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    "groups": lambda x: lax.conv_general_dilated(
        x.reshape(1, 2, 6), x[:2, :3].reshape(2, 1, 3), (1,), "VALID", feature_group_count=2
    ),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_transforms_and_convolutions_agree(dtype, tolerance):
    check_group(TRANSFORMS, X.astype(dtype), tolerance=tolerance)


def soft(v, threshold):
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - threshold, 0.0)


LOOPS = {
    "scan": lambda x: lax.scan(lambda c, v: (c + v, c * v), x[0], x),
    "scan back": lambda x: lax.scan(lambda c, v: (c + v, c), x[0], x, reverse=True),
    "counter": lambda x: lax.scan(lambda c, v: ((c[0] + 1, c[1] * c[0] + v), c[0]), (0, x[0]), x),
    "counter back": lambda x: lax.scan(lambda c, v: ((c[0] + 1, c[1] * c[0] + v), c[0]), (3, x[0]), x, reverse=True),
    "fori": lambda x: lax.fori_loop(0, 3, lambda i, c: c * 0.5 + x[i] * i, x[0]),
    "fori set": lambda x: lax.fori_loop(1, 3, lambda i, c: c.at[i].set(c[i - 1] * 2 + 1).at[i, 0].add(i), x),
    "fori places": lambda x: lax.fori_loop(
        0, 4, lambda i, c: c + x[:, i] * x[0, i] + lax.dynamic_slice(x[0], (i,), (1,)), x[:, 0]
    ),
    "swap": lambda x: lax.fori_loop(0, 3, lambda i, c: (c[1], c[0] + i), (x, 2 * x)),
    "none": lambda x: lax.scan(lambda c, v: (c + v, c), x[0], x[:0]),
    "only rows": lambda x: lax.map(lambda v: soft(v, 0.1).sum(), x),
    "no rows": lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, length=3)[0],
    "nested": lambda x: lax.scan(lambda c, v: lax.scan(lambda a, b: (a + b * v, a), c, x[0]), x[1, 0], x[0]),
    "while": lambda x: lax.while_loop(
        lambda c: c[1] > 1e-3, lambda c: (c[0] / 2, jnp.abs(c[0]).max() * c[2], c[2]), (x, 9.0, 0.5)
    ),
    "while of many lines": lambda x: lax.while_loop(
        lambda c: jnp.sort(soft(c, 0.1).ravel() * jnp.arange(12)).sum() > 1, lambda c: c / 2, x
    ),
    "newton": lambda x: lax.while_loop(
        lambda t: jnp.any(jnp.abs(t * t - 2) > 1e-5), lambda t: (t + 2 / t) / 2, jnp.ones_like(x)
    ),
    "cond": lambda x: (
        lax.cond(x[0, 0] > 0, jnp.sin, lambda v: jnp.cos(v) + v.sum(), x),
        lax.cond(x.sum() > 99, lambda: 1.0, lambda: 0.0),
    ),
    "switch": lambda x: [
        lax.switch(x.argmax() - n, [jnp.sin, jnp.cos, lambda v: (v * 2).at[0].set(1.0)], x) for n in (0, 4, 8, 20)
    ],
    "cond in scan": lambda x: lax.scan(
        lambda c, v: (lax.cond(v[0] > 0, lambda: c + v, lambda: c - v), c.sum()), x[0], x
    ),
    "branches alike": lambda x: lax.cond(x[0, 0] > 0, lambda v: (v, v), lambda v: (v, v + 1), x),
    "remat": lambda x: jax.checkpoint(lambda v: jnp.sin(v) * 2)(x),
    "vmapped while": jax.vmap(
        lambda v: lax.while_loop(lambda c: jnp.abs(c[0]).max() > 0.1, lambda c: (c[0] / 2, c[1] + 1), (v, 0))
    ),
    "custom": jax.nn.relu,
    "cumulative": lambda x: lax.associative_scan(jnp.add, x),
}


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_loops_and_branches_agree(dtype, tolerance, part):
    with jax.numpy_dtype_promotion("standard"):
        check_group(dict(list(LOOPS.items())[part::2]), X.astype(dtype), tolerance=tolerance)


def test_a_loop_is_a_loop():
    def halve(x):
        return lax.fori_loop(0, 1000, lambda i, c: c * 0.5 + i, x)

    text = check(halve, X)
    assert "for i in np.arange(1000, dtype=np.int64):" in text
    assert len(text.splitlines()) < 40


@ux.value
class Problem:
    A: typing.Any
    y: typing.Any


class Momentum(typing.NamedTuple):
    x: typing.Any
    z: typing.Any
    t: typing.Any


def ista(theta, x, problem):
    residual = problem.y - problem.A @ x
    v = x + theta["step"] * (problem.A.T @ residual)
    return soft(v, theta["step"] * theta["lam"])


def fista(theta, x, problem):
    gradient = problem.A.T @ (problem.A @ x.z - problem.y)
    new = soft(x.z - theta["step"] * gradient, theta["step"] * theta["lam"])
    t = (1 + jnp.sqrt(1 + 4 * x.t**2)) / 2
    return Momentum(new, new + (x.t - 1) / t * (new - x.x), t)


def chebyshev(theta, x, problem):
    r = problem.A.T @ (problem.y - problem.A @ x["x"])
    d = theta["alpha"] * r + theta["beta"] * x["d"]
    return {"x": x["x"] + d, "d": d}


def tista(theta, x, problem):
    residual = problem.y - problem.A @ x
    variance = jnp.maximum((residual @ residual - 3 * theta["noise"]) / jnp.trace(problem.A.T @ problem.A), 1e-9)
    r = x + theta["gamma"] * jnp.linalg.pinv(problem.A) @ residual
    odds = jnp.log1p(-theta["p"]) - jnp.log(theta["p"]) + 0.5 * jnp.log((variance + 1) / variance)
    weight = jax.nn.sigmoid(-odds + r**2 / 2 * (1 / variance - 1 / (1 + variance)))
    return weight * r / (1 + variance)


def amp(theta, x, problem):
    m, (x, z) = problem.y.shape[0], x
    v = x + problem.A.T @ z
    threshold = theta["alpha"] * jnp.linalg.norm(z) / jnp.sqrt(m)
    new = soft(v, threshold)
    return new, problem.y - problem.A @ new + z * jnp.mean(jnp.abs(new) > 0) * new.size / m


def admm(theta, x, problem):
    x, z, u = x
    n = problem.A.shape[1]
    factor = jax.scipy.linalg.cho_factor(problem.A.T @ problem.A + theta["rho"] * jnp.eye(n), lower=True)
    x = jax.scipy.linalg.cho_solve(factor, problem.A.T @ problem.y + theta["rho"] * (z - u))
    z = soft(x + u, theta["lam"] / theta["rho"])
    return x, z, u + x - z


def mimo(theta, x, problem):
    r = x + theta["step"] * problem.A.T @ (problem.y - problem.A @ x)
    return jnp.tanh(r / jnp.abs(theta["temperature"]))


def complex_ista(theta, x, problem):
    v = x + theta["step"] * jnp.conj(problem.A.T) @ (problem.y - problem.A @ x)
    size = jnp.abs(v)
    return v * jnp.maximum(1 - theta["lam"] / jnp.maximum(size, 1e-12), 0)


def deblur(theta, x, problem):
    spectrum = jnp.fft.fft2(x)
    gradient = jnp.fft.ifft2(jnp.conj(problem.A) * (problem.A * spectrum - problem.y)).real
    return jnp.clip(x - theta["step"] * gradient, 0, 1)


def hard(theta, x, problem):
    v = x - theta["step"] * problem.A.T @ (problem.A @ x - problem.y)
    _, kept = lax.top_k(jnp.abs(v), 2)
    return jnp.zeros_like(v).at[kept].set(v[kept])


def simplex(theta, x, problem):
    v = x - theta["step"] * problem.A.T @ (problem.A @ x - problem.y)
    ordered = jnp.sort(v)[::-1]
    sums = jnp.cumsum(ordered) - 1
    many = jnp.sum(ordered - sums / jnp.arange(1, v.size + 1) > 0)
    return jnp.maximum(v - sums[many - 1] / many, 0)


PLAIN = Problem(X, X @ Z + 0.1)
ZC = Z + 1j * B
ITERATIONS = {
    "ista": (ista, {"step": 0.1, "lam": 0.2}, Z, PLAIN),
    "fista": (fista, {"step": 0.1, "lam": 0.2}, Momentum(Z, B, 1.0), PLAIN),
    "chebyshev": (chebyshev, {"alpha": 0.1, "beta": 0.3}, {"x": Z, "d": B}, PLAIN),
    "tista": (tista, {"gamma": 0.9, "noise": 0.01, "p": 0.1}, Z, PLAIN),
    "amp": (amp, {"alpha": 1.1}, (Z, X @ Z), PLAIN),
    "admm": (admm, {"rho": 0.7, "lam": 0.1}, (Z, B, Z), PLAIN),
    "mimo": (mimo, {"step": 0.1, "temperature": 0.5}, Z, PLAIN),
    "complex ista": (complex_ista, {"step": 0.1, "lam": 0.2}, ZC, Problem(C, C @ ZC + 0.1)),
    "deblur": (deblur, {"step": 0.5}, X, Problem(np.fft.fft2(Y), np.fft.fft2(X))),
    "hard": (hard, {"step": 0.1}, Z, PLAIN),
    "simplex": (simplex, {"step": 0.1}, Z, PLAIN),
}


@pytest.mark.parametrize("name", ITERATIONS)
def test_iterations_agree_in_both_precisions(name):
    step, theta, x, problem = ITERATIONS[name]
    check(step, theta, x, problem, tolerance=1e-11)

    def halved(leaf):
        return np.asarray(leaf, np.complex64 if np.iscomplexobj(leaf) else np.float32)

    check(step, *jax.tree.map(halved, (theta, x, problem)), tolerance=2e-5)


@pytest.mark.parametrize("name", ["ista", "fista", "amp", "admm", "chambolle_pock", "tista"])
def test_the_librarys_own_algorithms_agree(name):
    algorithm = getattr(ux.solvers, name)()
    problem = ux.problems.sparse_recovery(m=8, n=16)
    one = problem.whole(problem.draw(jax.random.key(0)))
    wanted = inspect.signature(algorithm.params).parameters
    theta = algorithm.params(**{k: one.A if k == "A" else 0.1 for k, p in wanted.items() if p.default is p.empty})
    check(algorithm.step, theta, algorithm.start(one), one, tolerance=1e-11)


def test_a_source_reads_as_its_function_does():
    text = numpy_source(ista, {"step": 0.1, "lam": 0.2}, Z, PLAIN).text
    body = text.split('"""')[-1].strip().splitlines()
    assert [line.strip() for line in body if "_array(" not in line] == [
        "residual = problem_y - problem_A @ x",
        "v = x + theta_step * (problem_A.T @ residual)",
        "return np.sign(v) * np.maximum(np.abs(v) - theta_step * theta_lam, 0.0)",
    ]


def test_what_a_step_returns_can_be_given_to_the_next():
    step = load(numpy_source(fista, {"step": 0.1, "lam": 0.2}, Momentum(Z, Z, 1.0), PLAIN))
    got, want = Momentum(Z, Z, 1.0), Momentum(Z, Z, 1.0)
    problem = SimpleNamespace(A=PLAIN.A, y=PLAIN.y)
    for _ in range(5):
        got, want = step({"step": 0.1, "lam": 0.2}, got, problem), fista({"step": 0.1, "lam": 0.2}, want, PLAIN)
    agree((got.x, got.z, got.t), tuple(want), 1e-12)


def test_trees_of_all_kinds_go_in_and_out():
    tree = {"a": [Z, (B, None)], "b": {"c": {}, "d": Momentum(1.0, 2, True)}, "e": ()}

    def turned(tree):
        return [tree["a"][0] + tree["b"]["d"].x, {"z": None, "y": (tree["a"][1][0],)}, Problem(tree["b"]["d"].z, [])]

    got = load(numpy_source(turned, tree))(tree)
    agree(got[0], Z + 1.0, 1e-12)
    assert got[1]["z"] is None
    agree(got[1]["y"], (B,), 0)
    assert got[2].A == 2
    assert got[2].y == []


def test_large_constants_are_arrays_beside_the_text():
    matrix, vector = SEED.randn(4, 40), SEED.randn(4)
    source = numpy_source(lambda x: vector * (matrix @ (matrix.T @ x)) + jnp.zeros(4), Z)
    assert {array.shape for array in source.arrays.values()} <= {(4, 40), (40, 4)}
    assert source.arrays
    assert "def step(x, arrays):" in source.text
    agree(load(source)(Z), vector * (matrix @ (matrix.T @ Z)), 1e-12)
    all_inline = numpy_source(lambda x: matrix.T @ x, Z, inline=1000)
    assert not all_inline.arrays
    assert max(map(len, all_inline.text.splitlines())) < 120
    agree(load(all_inline)(Z), matrix.T @ Z, 1e-12)


def test_numbers_come_back_to_the_bit():
    numbers = np.concatenate([SEED.randn(40) * 10.0 ** SEED.randint(-30, 30, 40), [np.inf, -np.inf, np.nan, 0.0]])
    for dtype in (np.float64, np.float32):
        given = numbers.astype(dtype)
        got = load(numpy_source(lambda x, given=given: given + 0 * x, dtype(1)))(dtype(1))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, given)
        for number in given[:40]:
            assert load(numpy_source(lambda x, n=number: x * n, dtype(1)))(dtype(1)) == number


def test_a_source_is_the_same_each_time():
    one, two = (numpy_source(fista, {"step": 0.1, "lam": 0.2}, Momentum(Z, Z, 1.0), PLAIN) for _ in range(2))
    assert one.text == two.text
    assert (
        numpy_source(lambda x: (jnp.sin(x), jnp.sort(x)), Z).text
        == numpy_source(lambda x: (jnp.sin(x), jnp.sort(x)), Z).text
    )


def test_dead_code_is_left_out():
    def wasteful(x):
        unused = jnp.linalg.svd(jnp.outer(x, x))
        state, _ = lax.scan(lambda c, v: ((c[0] + v, jnp.cos(c[1])), unused[1]), (0.0, 1.0), x)
        return state[0]

    text = check(wasteful, Z)
    assert "svd" not in text
    assert "cos" not in text


def test_inputs_are_not_changed():
    x = Z.copy()
    step = load(numpy_source(lambda x: lax.fori_loop(0, 3, lambda i, c: c.at[i].set(0.0), x), x))
    step(x)
    np.testing.assert_array_equal(x, Z)


def test_outputs_can_be_written_to():
    got = load(numpy_source(lambda x: (jnp.zeros((2, 2)), jnp.broadcast_to(x, (2, 4)), jnp.full(3, x[0])), Z))(Z)
    for array in got:
        array += 1


def test_an_input_of_another_shape_is_refused():
    step = load(numpy_source(ista, {"step": 0.1, "lam": 0.2}, Z, PLAIN))
    with pytest.raises(ValueError, match=r"problem.A must have shape \(3, 4\), got \(4, 3\)"):
        step({"step": 0.1, "lam": 0.2}, Z, Problem(X.T, PLAIN.y))


def test_what_numpy_lacks_is_named_with_its_line():
    def shrink(x):
        y = jnp.sin(x)
        return jax.scipy.special.gammainc(y + 2, x)

    with pytest.raises(ux.InvalidArgument) as failure:
        numpy_source(shrink, np.abs(Z))
    line = shrink.__code__.co_firstlineno + 2
    assert str(failure.value).startswith("numpy_source: every primitive must have a NumPy form, got igamma at ")
    assert f"test_numpy_source.py:{line} (in " in str(failure.value)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x + jax.random.normal(jax.random.key(0), x.shape), "Draw outside"),
        (lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x), "callback"),
        (lambda x: x.astype(jnp.bfloat16), "bfloat16"),
        (
            lambda x: jax.vmap(lax.linalg.tridiagonal_solve)(x[None], x[None], x[None], x[None, :, None]),
            "Call it for each",
        ),
        (lambda x: lax.scan(lambda c, v: (lax.digamma(c), v), x[0], x), "digamma"),
    ],
)
def test_what_is_not_supported_is_refused(function, says):
    with pytest.raises(ux.InvalidArgument, match=says):
        numpy_source(function, Z)


def test_keys_and_names_are_refused_as_inputs():
    with pytest.raises(ux.StructureError, match="Draw outside"):
        numpy_source(lambda key: jax.random.key_data(key), jax.random.key(0))
    with pytest.raises(ux.InvalidArgument, match="name must be a name"):
        numpy_source(jnp.sin, Z, name="a step")


SHAPES = st.tuples(*[st.sampled_from([1, 3])] * 3)


@hypothesis.given(SHAPES, SHAPES, st.integers(0, 3), st.integers(0, 3), st.sampled_from([np.float32, np.float64]))
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_broadcasts_agrees(one, two, drop_one, drop_two, dtype):
    a = np.asarray(np.random.RandomState(1).randn(*one[drop_one:]), dtype)
    b = np.asarray(np.random.RandomState(2).randn(*two[drop_two:]), dtype)

    def function(xp, a, b):
        total = a * b + xp.exp(-xp.abs(b))
        wide = xp.broadcast_to(b, (2, 3, 3, 3))
        return total - total.max(), xp.where(a > 0, total, b), wide * 2 + total, wide.sum(0) / (1 + a * a)

    source = numpy_source(functools.partial(function, jnp), a, b)
    agree(load(source)(a, b), function(np, a, b), 1e-5 if dtype == np.float32 else 1e-12, source.text)


def test_derivatives_can_be_written_too():
    text = check(jax.grad(lambda x: 0.5 * jnp.sum((X @ x - 1) ** 2) + jnp.sum(jnp.logaddexp(x, 0))), Z)
    assert "@" in text
