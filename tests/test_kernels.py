"""Each kernel is autodiff through the plain scan of the cell's `step`, and the LSTM is NumPy by hand as well."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax import kernels

D, H = 3, 5


class Kernel(NamedTuple):
    cell: Any
    run: Any


KERNELS = {
    "lstm": Kernel(ux.LSTMCell(D, H), kernels.lstm),
    "gru": Kernel(ux.GRUCell(D, H), kernels.gru),
    "rnn": Kernel(ux.RNNCell(D, H), kernels.rnn),
    "rnn-relu": Kernel(ux.RNNCell(D, H, activation="relu"), partial(kernels.rnn, activation="relu")),
    "mingru": Kernel(ux.MinGRUCell(D, H), kernels.mingru),
    "mingru-tree": Kernel(ux.MinGRUCell(D, H), partial(kernels.mingru, method="associative")),
    "lru": Kernel(ux.LRUCell(D, H, 4), kernels.lru),
    "lru-tree": Kernel(ux.LRUCell(D, H, 4), partial(kernels.lru, method="associative")),
}
ONE_OF_EACH = ["lstm", "gru", "rnn", "mingru", "lru"]
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # the same program in half the time


class Problem(NamedTuple):
    """What a kernel is run on, `args = (params, x, state)`, and directions for its derivatives."""

    args: Any
    mask: Any
    tangents: Any


def draw(rng, like, scale=1.0):
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=jnp.shape(leaf))), like)


def problem(name, steps, batch=(3,), *, masked=False, shared=False, seed=0):
    """Random arguments; with a mask, sequences of all lengths from 0 with a gap, and NaN where nothing is real."""
    rng, cell = np.random.default_rng(seed), KERNELS[name].cell
    params = draw(rng, cell.params(jax.random.key(0)), 0.4)
    x, mask = jnp.asarray(rng.normal(size=(steps, *batch, D))), None
    if masked:
        count = int(np.prod(batch))
        lengths = np.array([steps, 0, *rng.integers(0, steps + 1, count)])[:count]
        real = (np.arange(steps)[:, None] < lengths) & (np.arange(steps)[:, None] != steps // 3)
        mask = jnp.asarray(real.reshape(steps, *batch))
        x = jnp.where(mask[..., None], x, jnp.nan)
    state = draw(rng, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape if shared else (*batch, H)), cell.init(params)))
    args = (params, x, state)
    return Problem(args, mask, draw(rng, args))


def by_kernel(name, mask, params, x, state):
    last, outputs = KERNELS[name].run(params, x, state, mask=mask)
    return last, outputs if mask is None else jnp.where(mask[..., None], outputs, 0)


def by_scan(name, mask, params, x, state):
    """Step the cell, one example after another; an output at a masked step doesn't count, and is 0."""
    batch = x.shape[1:-1]
    mask = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    state = jax.tree.map(lambda leaf: spread(leaf, batch), state)

    def one(x, state, mask):
        def body(state, row):
            x, real = row
            after, output = KERNELS[name].cell.step(params, state, jnp.where(real, x, 0))
            return jax.tree.map(partial(jnp.where, real), after, state), jnp.where(real, output, 0)

        return jax.lax.scan(body, state, (x, mask))

    for _ in batch:
        one = jax.vmap(one, in_axes=(1, 0, 1), out_axes=(0, 1))
    return one(x, state, mask)


def spread(leaf, batch):
    return jnp.broadcast_to(leaf.reshape((1,) * (len(batch) + 1 - leaf.ndim) + leaf.shape), (*batch, leaf.shape[-1]))


def weighted(run, seed=1):
    """A loss that reads everything that `run` returns."""

    def loss(*args):
        out = run(*args)
        weights = draw(np.random.default_rng(seed), out)
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(out), strict=True))

    return loss


def derivatives(run, args, tangents):
    """Values, gradients of everything, and the derivative along the tangents."""
    out, moved = jax.jvp(run, args, tangents)
    return out, jax.grad(weighted(run), (0, 1, 2))(*args), moved


def agree(got, expected, within=1e-12):
    """Compare leaf by leaf, relative to the largest number of each."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, path
        bound = within * np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


def prove(name, given):
    made = [
        jit(partial(derivatives, partial(run, name, given.mask)))(given.args, given.tangents)
        for run in (by_kernel, by_scan)
    ]
    agree(*made)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made[0]))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_autodiff_through_the_scan_of_its_cell_with_ragged_and_empty_sequences(name):
    prove(name, problem(name, 131, masked=True))  # pieces of 64 steps, and a rest


@pytest.mark.parametrize(("name", "steps"), [("lstm", 1), ("lstm", 96), ("rnn", 96), ("gru", 17)])
def test_a_kernel_needs_no_mask(name, steps):
    prove(name, problem(name, steps))  # 96: two pieces without a rest


@pytest.mark.parametrize("name", KERNELS)
def test_no_step_leaves_the_state_and_has_no_gradient(name):
    given = problem(name, 0)
    (last, outputs), grads, _ = jit(partial(derivatives, partial(by_kernel, name, None)))(given.args, given.tangents)
    jax.tree.map(np.testing.assert_array_equal, last, given.args[2])
    assert outputs.shape[:2] == (0, 3)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads[:2]))
    agree(grads[2], draw(np.random.default_rng(1), (last, outputs))[0])  # as `weighted` weighs it


@pytest.mark.parametrize(("name", "batch"), [("lstm", (2, 2)), ("lru", ())])
def test_sequences_have_any_batch_axes_and_may_share_a_state(name, batch):
    prove(name, problem(name, 9, batch, masked=True, shared=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "masked", "shared"), [((), False, False), ((), True, True), ((3,), True, False), ((2, 2), False, True)]
)
@pytest.mark.parametrize("steps", [2, 40, 200])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_autodiff_through_the_scan_of_its_cell_in_many_ways(name, steps, batch, masked, shared):
    prove(name, problem(name, steps, batch, masked=masked, shared=shared, seed=steps))


@pytest.mark.parametrize("batch", [(), (2, 2)])
@pytest.mark.parametrize("name", ["lstm", "mingru-tree", "lru"])
def test_batch_major_is_the_same_with_time_behind_the_batch(name, batch):
    (params, x, state), mask, _ = problem(name, 9, batch, masked=True)
    run = KERNELS[name].run

    @jit
    def both(params, x, state):
        turned = (jnp.moveaxis(x, 0, -2), state)
        last, outputs = run(params, x, state, mask=mask)
        behind = run(params, *turned, mask=jnp.moveaxis(mask, 0, -1), batch_major=True)
        return behind, (last, jnp.moveaxis(outputs, 0, -2))

    jax.tree.map(np.testing.assert_array_equal, *both(params, x, state))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "mingru-tree", "lru"])
def test_without_a_state_a_kernel_starts_from_the_cells(name):
    (params, x, _), _, _ = problem(name, 4)
    cell, run = KERNELS[name]
    both = jit(lambda params, x: (run(params, x), run(params, x, cell.init(params))))
    jax.tree.map(np.testing.assert_array_equal, *both(params, x))


def forward_over_reverse(run, args, tangents):
    return jax.jvp(jax.grad(weighted(run), (0, 1, 2)), args, tangents)[1]


def reverse_over_reverse(run, args, tangents):
    gradient = jax.grad(weighted(run), (0, 1, 2))
    pairs = lambda *args: zip(jax.tree.leaves(gradient(*args)), jax.tree.leaves(tangents), strict=True)
    return jax.grad(lambda *args: sum(jnp.vdot(a, b) for a, b in pairs(*args)), (0, 1, 2))(*args)


def reverse_over_forward(run, args, tangents):
    return jax.grad(lambda *args: jax.jvp(weighted(run), args, tangents)[1], (0, 1, 2))(*args)


SECOND = [forward_over_reverse, reverse_over_reverse, reverse_over_forward]


def prove_second(name, order, given):
    made = [
        jit(partial(order, partial(run, name, given.mask)))(given.args, given.tangents) for run in (by_kernel, by_scan)
    ]
    agree(*made)


@pytest.mark.parametrize(
    ("name", "order"), [*(("lstm", order) for order in SECOND[:2]), ("gru", SECOND[0]), ("lru", SECOND[1])]
)
def test_second_derivatives_are_those_of_the_scan(name, order):
    prove_second(name, order, problem(name, 7, masked=True))


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "masked"), [(1, False), (67, True)])
@pytest.mark.parametrize("order", SECOND)
@pytest.mark.parametrize("name", KERNELS)
def test_second_derivatives_are_those_of_the_scan_in_many_ways(name, order, masked, steps):
    prove_second(name, order, problem(name, steps, masked=masked))


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_a_third_derivative_is_that_of_the_scan(name):
    given = problem(name, 5, ())

    def third(run, args, tangents):
        return jax.jvp(lambda *args: forward_over_reverse(run, args, tangents), args, tangents)[1]

    made = [jit(partial(third, partial(run, name, None)))(*given[::2]) for run in (by_kernel, by_scan)]
    agree(*made)


@pytest.mark.slow
def test_a_hessian_is_that_of_the_scan():
    (params, x, state), _, _ = problem("lstm", 3, ())
    made = [
        jit(jax.hessian(lambda b, run=run: weighted(partial(run, "lstm", None))(params | {"b": b}, x, state)))(
            params["b"]
        )
        for run in (by_kernel, by_scan)
    ]
    agree(*made)


def value_and_gradient(run, args):
    return jax.value_and_grad(weighted(run), (0, 1, 2))(*args)


@pytest.mark.parametrize(("name", "over"), [("lstm", 0), ("gru", 1), ("lru", 0)])
def test_a_kernel_is_mapped_over_params_and_over_sequences(name, over):
    """Where an argument is shared, each example still gets a gradient of its own."""
    given = problem(name, 8, masked=True)
    axes = tuple(0 if index == over else None for index in range(3))
    many = tuple(
        jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), arg) if index == over else arg
        for index, arg in enumerate(given.args)
    )
    run = partial(value_and_gradient, partial(by_kernel, name, given.mask))
    alone = jit(run)
    mapped = jit(jax.vmap(lambda *args: run(args), in_axes=axes))(*many)

    def chosen(n):
        return tuple(
            jax.tree.map(lambda leaf: leaf[n], arg) if axis == 0 else arg for arg, axis in zip(many, axes, strict=True)
        )

    expected = [alone(chosen(n)) for n in range(2)]
    agree(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


@pytest.mark.parametrize("name", ["lstm", "lru"])
def test_the_gradient_of_a_mapped_sum_adds_up_over_the_map(name):
    (params, x, state), mask, _ = problem(name, 8, masked=True)
    xs, masks = jnp.stack([x, 2 * x]), jnp.stack([mask, mask & (jnp.arange(8) < 5)[:, None]])

    def total(params, state):
        each = jax.vmap(lambda x, mask: weighted(partial(by_kernel, name, mask))(params, x, state))
        return each(xs, masks).sum()

    def one_by_one(params, state):
        return sum(weighted(partial(by_scan, name, mask))(params, x, state) for x, mask in zip(xs, masks, strict=True))

    agree(jit(jax.grad(total, (0, 1)))(params, state), jit(jax.grad(one_by_one, (0, 1)))(params, state))


def test_a_mapped_derivative_along_a_tangent_is_that_of_each():
    (params, x, state), _, (moved, *rest) = problem("lstm", 6)
    tangents = jax.tree.map(lambda leaf: jnp.stack([leaf, -3 * leaf]), moved)
    along = lambda tangent: jax.jvp(partial(by_kernel, "lstm", None), (params, x, state), (tangent, *rest))[1]
    alone = jit(along)
    expected = [alone(jax.tree.map(lambda leaf, n=n: leaf[n], tangents)) for n in range(2)]
    agree(jit(jax.vmap(along))(tangents), jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


def test_checkpointing_changes_nothing():
    given = problem("lstm", 20, masked=True)
    run = partial(by_kernel, "lstm", given.mask)
    plain, checkpointed = (jit(partial(value_and_gradient, some))(given.args) for some in (run, jax.checkpoint(run)))
    agree(checkpointed, plain, 1e-14)


def test_a_kernel_runs_without_jit():
    given = problem("lstm", 3, masked=True)
    run = partial(value_and_gradient, partial(by_kernel, "lstm", given.mask))
    agree(run(given.args), jit(run)(given.args), 1e-14)


PRECISION = {"float32": 1e-5, "bfloat16": 0.05}  # the largest error of a leaf over its largest number


@pytest.mark.parametrize(
    ("name", "dtype"), [*(("lstm", dtype) for dtype in PRECISION), ("lru", "bfloat16"), ("mingru-tree", "bfloat16")]
)
def test_a_narrow_kernel_is_the_float64_one_rounded(name, dtype):
    prove_narrow(name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in KERNELS for dtype in PRECISION],
)
def test_every_narrow_kernel_is_the_float64_one_rounded(name, dtype):
    prove_narrow(name, dtype)


def prove_narrow(name, dtype):
    """Outputs, states and gradients have the dtype of the arguments."""
    given = problem(name, 40, masked=True)
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), (given.args, given.tangents))
    run = jit(partial(derivatives, partial(by_kernel, name, given.mask)))
    got = run(*narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    agree(got, run(*jax.tree.map(lambda leaf: leaf.astype(float), narrow)), PRECISION[dtype])


def test_a_wider_state_keeps_its_dtype_and_every_argument_its_gradients():
    (params, x, (h, c)), _, _ = problem("lstm", 4)
    args = (jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params), x.astype("bfloat16"), (h, c.astype("float32")))
    (last, outputs), grads = jit(
        lambda *args: (kernels.lstm(*args), jax.grad(weighted(kernels.lstm), (0, 1, 2))(*args))
    )(*args)
    assert (last[0].dtype, last[1].dtype, outputs.dtype) == (h.dtype, jnp.float32, h.dtype)
    assert jax.tree.map(lambda leaf: leaf.dtype, grads) == jax.tree.map(lambda leaf: leaf.dtype, args)


@pytest.mark.parametrize("name", ["lru", "mingru", "mingru-tree"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_linear_kernel_keeps_narrow_dtypes_whatever_its_method(name, dtype):
    """Whole sequences are computed in float32 and rounded at the end: as good as the float64 result, rounded."""
    (params, x, state), _, _ = problem(name, 40)
    args = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))
    last, outputs = KERNELS[name].run(*args, jax.tree.map(lambda leaf: leaf.astype("float32"), state))
    assert {leaf.dtype for leaf in jax.tree.leaves(last)} == {jnp.dtype("float32")}
    assert outputs.dtype == jnp.float32  # the widest of the arguments
    last, outputs = KERNELS[name].run(*args)
    assert {leaf.dtype for leaf in jax.tree.leaves((last, outputs))} == {jnp.dtype(dtype)}
    exact = KERNELS[name].run(*jax.tree.map(lambda leaf: leaf.astype(float), args))
    agree((last, outputs), exact, 1.1 * float(jnp.finfo(dtype).eps) / 2)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_state_that_is_no_floating_numbers_is_named(name):
    """Whole numbers would cut the last state to whole numbers."""
    (params, x, state), _, _ = problem(name, 4)
    run = KERNELS[name].run
    for kind in (int, complex, bool):
        with pytest.raises(ux.StructureError, match=rf"^{name}: state must be real floating numbers, got \w+\[3,5\]\."):
            run(params, x, jax.tree.map(lambda leaf, kind=kind: leaf.astype(kind), state))
    with pytest.raises(ux.StructureError, match=rf"^{name}: state must be real floating numbers, got dict\."):
        run(params, x, jax.tree.map(lambda leaf: {}, state))


@pytest.mark.parametrize("name", ["lstm", "lru", "mingru-tree"])
def test_a_state_may_be_lists_of_numbers(name):
    (params, x, state), _, _ = problem(name, 4)
    listed = jax.tree.map(lambda leaf: leaf.tolist(), state)
    jax.tree.map(
        np.testing.assert_array_equal, KERNELS[name].run(params, x, listed), KERNELS[name].run(params, x, state)
    )


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm_by_hand(params, x, h, c, dout, dh, dc):
    """Values and all gradients of `sum(dout outputs) + sum(dh h_T) + sum(dc c_T)`, a step and a gate at a time."""
    wx, wh, b = params["wx"], params["wh"], params["b"]
    cache, outputs = [], []
    for xt in x:
        i, f, o, g = np.split(xt @ wx + h @ wh + b, 4, axis=-1)
        i, f, o, g = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
        after = f * c + i * g
        cache.append((xt, h, c, i, f, o, g, np.tanh(after)))
        h, c = o * np.tanh(after), after
        outputs.append(h)
    grads, dx = {name: np.zeros_like(leaf) for name, leaf in params.items()}, np.zeros_like(x)
    for t in reversed(range(len(x))):
        xt, h_before, c_before, i, f, o, g, squashed = cache[t]
        dh = dh + dout[t]
        dc = dc + dh * o * (1 - squashed**2)
        da = [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dh * squashed * o * (1 - o), dc * i * (1 - g**2)]
        da = np.concatenate(da, axis=-1)
        grads["wx"] += xt.T @ da
        grads["wh"] += h_before.T @ da
        grads["b"] += da.sum(0)
        dx[t], dh, dc = da @ wx.T, da @ wh.T, dc * f
    return ((h, c), np.stack(outputs)), (grads, dx, (dh, dc))


@pytest.mark.parametrize("steps", [1, 131])
def test_the_lstm_is_numpy_by_hand(steps):
    """An oracle without any automatic differentiation."""
    (params, x, (h, c)), _, _ = problem("lstm", steps)
    rng = np.random.default_rng(3)
    cotangent = ((rng.normal(size=h.shape), rng.normal(size=c.shape)), rng.normal(size=(*x.shape[:-1], H)))
    (dh, dc), dout = cotangent
    arrays = jax.tree.map(np.asarray, (params, x, h, c))
    out, pull = jax.vjp(jax.jit(kernels.lstm), params, x, (h, c))
    expected = lstm_by_hand(*arrays, dout, dh, dc)
    agree((out, pull(jax.tree.map(jnp.asarray, cotangent))), expected)


@pytest.mark.parametrize("name", ["rnn-relu", "lru"])
def test_gradients_agree_with_finite_differences(name):
    given = problem(name, 6, (2,), masked=True)
    flat, unravel = jax.flatten_util.ravel_pytree((given.args[0], given.args[2]))
    loss = weighted(partial(by_kernel, name, given.mask))
    at = jit(jax.vmap(lambda vector: loss(unravel(vector)[0], given.args[1], unravel(vector)[1])))
    steps = 1e-5 * jnp.eye(len(flat))
    numeric = (at(flat[None] + steps) - at(flat[None] - steps)) / 2e-5
    grads = jit(jax.grad(loss, (0, 2)))(*given.args)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0], numeric, rtol=1e-7, atol=1e-8)


PARAMS = KERNELS["lstm"].cell.params(jax.random.key(0))
X = jnp.zeros((7, 2, D))
BATCHED = r"\[2, 5\], one for each sequence, or \[5\], the same for all"
WRONG = {
    "features": ((PARAMS, X[..., :2]), {}, r"x must be \[T, \*batch, 3\], as wx has 3 rows, got float\d+\[7,2,2\]"),
    "no time": ((PARAMS, X[0, 0]), {}, r"x must be \[T, \*batch, 3\], .* got float\d+\[3\]"),
    "batch-major": ((PARAMS, X[0, 0]), {"batch_major": True}, r"x must be \[\*batch, T, 3\]"),
    "mask": ((PARAMS, X), {"mask": jnp.ones((7, 1))}, r"mask must be \[T, \*batch\] like x, \[7, 2\], got \[7, 1\]"),
    "hidden": ((PARAMS, X, (jnp.zeros(4),) * 2), {}, rf"state must be {BATCHED}, got float\d+\[4\]"),
    "sequences": ((PARAMS, X, (jnp.zeros((1, 5)),) * 2), {}, rf"state must be {BATCHED}, got float\d+\[1,5\]"),
    "number": ((PARAMS, X, (0.0, 0.0)), {}, rf"state must be {BATCHED}, got float\d+\[\]"),
    "one part": ((PARAMS, X, jnp.zeros((2, 5))), {}, r"state must be the pair \(h, c\), got float\d+\[2,5\]"),
    "parts": ((PARAMS, X, (jnp.zeros(5),) * 3), {}, r"state must be the pair \(h, c\), got 3 parts"),
    "gates": ((PARAMS | {"wx": jnp.zeros((3, 5))}, X), {}, r"wx \[D, 4H\], .* got wx \[3, 5\], wh \[5, 20\], b \[20\]"),
    "lacking": (({"wx": PARAMS["wx"]}, X), {}, r"wx \[D, 4H\], wh \[H, 4H\], b \[4H\], got wx \[3, 20\]\. Draw them"),
}


@pytest.mark.parametrize(("args", "options", "message"), WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_agree_are_named(args, options, message):
    with pytest.raises(ux.StructureError, match=f"^lstm: .*{message}"):
        kernels.lstm(*args, **options)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_names_its_shapes(name):
    owner = name.split("-")[0]
    (params, x, state), _, _ = problem(name, 4)
    run = KERNELS[name].run
    with pytest.raises(ux.StructureError, match=rf"^{owner}: x must be \[T, \*batch, 3\]"):
        run(params, x[..., :2], state)
    with pytest.raises(ux.StructureError, match=rf"^{owner}: mask must be \[T, \*batch\] like x, \[4, 3\], got \[3\]"):
        run(params, x, state, mask=jnp.ones(3))
    with pytest.raises(ux.StructureError, match=rf"^{owner}: state must be \[3, 5\], .* got float64\[3,4\]"):
        run(params, x, jax.tree.map(lambda leaf: leaf[:, :4], state))
    with pytest.raises(ux.StructureError, match=rf"^{owner}: params must have the shapes .* got"):
        run({key: leaf[..., :1] for key, leaf in params.items()}, x, state)


def test_another_method_or_activation_is_named():
    for name, options in (("mingru", {"method": "tree"}), ("lru", {"method": "tree"}), ("rnn", {"activation": "elu"})):
        (params, x, _), _, _ = problem(name, 4)
        with pytest.raises(ux.InvalidArgument, match=rf"^\w+: {next(iter(options))} must be"):
            getattr(kernels, name)(params, x, **options)


def recurrence(method, mask, a, b, start):
    return kernels.linear_recurrence(a, b, start, mask=mask, method=method)[::-1]


def recurrence_by_loop(mask, a, b, start):
    h, outputs = start, []
    for t in range(len(a)):
        h = jnp.where(mask[t].reshape(mask[t].shape + (1,) * (h.ndim - mask[t].ndim)), a[t] * h + b[t], h)
        outputs.append(h)
    return jnp.stack(outputs), h


@pytest.mark.parametrize("method", ["scan", "associative"])
@pytest.mark.parametrize(("complex_", "masked"), [(False, 1), (True, 2)])
def test_a_linear_recurrence_is_its_loop(method, complex_, masked):
    rng = np.random.default_rng(0)
    part = lambda *shape: jnp.asarray(rng.normal(size=shape))
    draw = lambda *shape: jax.lax.complex(part(*shape), part(*shape)) if complex_ else part(*shape)
    args, tangents = ((draw(6, 2, 3), draw(6, 2, 3), draw(2, 3)) for _ in range(2))
    mask = jnp.asarray(rng.random((6, 2)[:masked]) < 0.7)

    def both(run):
        out, pull = jax.vjp(run, *args)
        return out, pull(jax.tree.map(lambda leaf: leaf * 0.3 + 1, out)), jax.jvp(run, args, tangents)[1]

    made = jit(lambda: (both(partial(recurrence, method, mask)), both(partial(recurrence_by_loop, mask))))()
    agree(*jax.tree.map(lambda leaf: (leaf.real, leaf.imag), made))


@pytest.mark.parametrize(
    ("shapes", "mask", "message"),
    [
        (((3, 2), (3,), (2,)), None, r"got \[3, 2\], \[3\] and \[2\]\. Broadcast them first"),
        (((3, 2), (3, 2), ()), None, r"got \[3, 2\], \[3, 2\] and \[\]"),
        (((), (), ()), None, r"got \[\], \[\] and \[\]"),
        (((3, 2), (3, 2), (2,)), (2,), r"mask must be \[T\] and leading axes of a, \[3, 2\], got \[2\]"),
        (((3, 2), (3, 2), (2,)), (), r"mask must be .*, got \[\]"),
    ],
)
def test_a_linear_recurrence_names_shapes_that_do_not_agree(shapes, mask, message):
    mask = None if mask is None else jnp.ones(mask, bool)
    with pytest.raises(ux.StructureError, match=f"^linear_recurrence: .*{message}"):
        kernels.linear_recurrence(*map(jnp.zeros, shapes), mask=mask)
