"""LocoProp's steps against plain backpropagation and against a literal transcription in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax._tree import to_arrays
from unrollax.local import _problem
from unrollax.local._problem import How, Problem, local_gradient
from unrollax.local._scales import DECAY, FLOOR, scale_of

close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
KEY, DATA, TARGET = jax.random.split(jax.random.key(5), 3)
BATCH = 6
READY = ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "softmax")


def squares(y, target):
    return ((y - target) ** 2).reshape(len(y), -1).sum(-1)


def shorten(params, x):
    return x[:, :3]


def draw(key):
    return jax.random.normal(key, (3, 3))


def sine(params, x):
    """Pre-activations that are not linear in their params."""
    return jnp.sin(x @ params) + (params**2).sum(0)[None]


# Layers, and the shapes of x and target of one example. Softmax comes last.
NETS = {
    "transfers": ([ux.DenseLayer(4, 4, name) for name in READY], (4,), (4,)),
    "conv": (
        [
            ux.ConvLayer(1, 2, 3, "relu"),
            ux.Layer(lambda params, x: x.reshape(len(x), -1)),
            ux.DenseLayer(24, 3, "sigmoid"),
        ],
        (4, 3, 1),
        (3,),
    ),
    "recurrent": ([ux.RecurrentLayer(2, 4), ux.DenseLayer(4, 3, "softplus", bias=False)], (5, 2), (5, 3)),
    "own": (
        [ux.DenseLayer(4, 5, "tanh"), ux.Layer(shorten), ux.Layer(sine, "tanh", draw), ux.DenseLayer(3, 3)],
        (4,),
        (3,),
    ),
}
every = pytest.mark.parametrize("name", NETS)
variants = pytest.mark.parametrize("variant", ["S", "M"])


@functools.cache
def made(name):
    """Params, data, and the gradient of the mean loss by plain backpropagation."""
    layers, x, target = NETS[name]
    params = jax.jit(ux.layered(layers, squares).params)(KEY)
    data = jax.random.normal(DATA, (BATCH, *x)), jax.random.normal(TARGET, (BATCH, *target))

    def loss(params):
        y = data[0]
        for layer, own in zip(layers, params, strict=True):
            y = layer.transfer(layer.pre(own, y))
        return squares(y, data[1]).mean()

    return params, data, *jax.jit(jax.value_and_grad(loss))(params)


def first(loco, params, data):
    """Make the first estimate."""
    return jax.jit(loco.estimate)(params, loco.init(KEY, params), data)[1]


def same(got, expected, equal=close):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(equal, got, expected)


@every
@variants
def test_one_local_step_of_sgd_is_a_gradient_step(name, variant):
    """Of rate lr reach, whatever the layers and transfers are."""
    params, data, loss, grad = made(name)
    loco = ux.LocoProp(
        NETS[name][0], squares, variant, inner=optax.sgd(0.3), reach=0.7, pull=0.4, steps=1, targets="gradient"
    )
    found = first(loco, params, data)
    close(found.loss, loss)
    same(found.grad, jax.tree.map(lambda g: 0.3 * 0.7 * g, grad))


@variants
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.rmsprop(1e-2),
        optax.adam(1e-2),
        optax.lion(1e-2),
        optax.adamw(1e-2, weight_decay=0.1),
        optax.sgd(1e-2, momentum=0.9, nesterov=True),
        optax.rmsprop(optax.linear_schedule(1e-2, 0, 10)),
        optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0)),
    ],
    ids=["rmsprop", "adam", "lion", "adamw", "nesterov", "schedule", "clipped"],
)
def test_one_local_step_of_an_optimizer_is_its_own_on_reach_times_the_gradient(optimizer, variant):
    params, data, _, grad = made("recurrent")
    loco = ux.LocoProp(NETS["recurrent"][0], squares, variant, inner=optimizer, reach=0.7, targets="gradient")

    @jax.jit
    def expected(grad, params):  # a layer's problem is its own: nothing is shared across layers
        return [
            jax.tree.map(
                jnp.negative, optimizer.update(jax.tree.map(lambda leaf: 0.7 * leaf, g), optimizer.init(own), own)[0]
            )
            for g, own in zip(grad, params, strict=True)
        ]

    same(first(loco, params, data).grad, expected(grad, params))


# A net of two dense layers in literal NumPy: tanh, then sigmoid, and the squared error.


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


F = (np.tanh, sigmoid)
SLOPES = (lambda y: 1 - y**2, lambda y: y * (1 - y))
DENSE = ux.dense_layers([3, 4, 2], "tanh", "sigmoid")


@functools.cache
def numbers():
    rng = np.random.default_rng(0)
    params = [{"w": rng.normal(size=shape), "b": rng.normal(size=shape[1])} for shape in ((3, 4), (4, 2))]
    return params, (rng.normal(size=(BATCH, 3)), rng.uniform(size=(BATCH, 2)))


def seen_by_hand(params, x, target):
    """Inputs, pre-activations, activations, and each example's own d loss / d a of each layer."""
    inputs, pre, post = [], [], []
    for own, f in zip(params, F, strict=True):
        inputs.append(x)
        pre.append(x @ own["w"] + own["b"])
        x = f(pre[-1])
        post.append(x)
    last = 2 * (post[1] - target) * SLOPES[1](post[1])
    return inputs, pre, post, [last @ params[1]["w"].T * SLOPES[0](post[0]), last]


def steps_by_hand(variant, params, data, rates, reach, pull):
    inputs, pre, post, slopes = seen_by_hand(params, *data)
    solved = []
    for own, f, x, a0, y0, g in zip(params, F, inputs, pre, post, slopes, strict=True):
        w, b = own["w"].copy(), own["b"].copy()
        for rate in rates:
            a = x @ w + b
            e = a - (a0 - reach * g) if variant == "S" else f(a) - (y0 - reach * g)
            dw, db = x.T @ e / len(x) + pull * (w - own["w"]), e.mean(0) + pull * (b - own["b"])
            w, b = w - rate * dw, b - rate * db
        solved.append({"w": w, "b": b})
    return solved


@variants
@pytest.mark.parametrize(
    "steps", [2, 16]
)  # powers of 2: the schedule's rates are float32. With 16 S is by the Gram form
def test_steps_are_those_of_a_literal_loop_and_sgd_of_rate_one_applies_them(variant, steps):
    """With a rate that falls over the local steps, as in the paper."""
    params, data = numbers()
    rate = optax.linear_schedule(0.5, 0.0, steps)
    loco = ux.LocoProp(
        DENSE, squares, variant, inner=optax.sgd(rate), steps=steps, reach=0.6, pull=0.2, targets="gradient"
    )
    training = ux.Training(loco, optax.sgd(1.0))
    state = jax.jit(training.step)(training.init(KEY, params), data)[0]
    rates = [0.5 * (1 - step / steps) for step in range(steps)]
    same(state.params, steps_by_hand(variant, params, data, rates, 0.6, 0.2))


@pytest.mark.parametrize("name", READY)
def test_the_gradient_of_the_local_loss_in_m_is_that_of_the_matching_loss(name):
    """X^T(f(a) - target) / batch + pull (W - W_0), by central differences of the definition."""
    rng = np.random.default_rng(1)
    layer = ux.DenseLayer(3, 2, name)
    start, now, slope, x = (
        layer.from_matrix(jnp.asarray(rng.normal(size=(4, 2)))),
        jnp.asarray(rng.normal(size=(4, 2))),
        jnp.asarray(rng.normal(size=(BATCH, 2))),
        jnp.asarray(rng.normal(size=(BATCH, 3))),
    )
    y = layer.transfer(layer.pre(start, x))
    problem, how = Problem(layer, start, x, y, slope, ()), How("M", 1, 0.3, 0.2, 1.0)

    @jax.jit
    def value(matrix):
        a = layer.pre(layer.from_matrix(matrix), x)
        away = matrix - layer.matrix(start)
        return layer.transfer.matching_loss(a, y - 0.3 * slope).mean() + 0.1 * (away**2).sum()

    found = layer.matrix(local_gradient(problem, how, 0.3)(layer.from_matrix(now)))
    ones = np.concatenate([x, np.ones((BATCH, 1))], axis=1)
    residual = layer.transfer(layer.pre(layer.from_matrix(now), x)) - (y - 0.3 * slope)
    close(found, ones.T @ residual / BATCH + 0.2 * (now - layer.matrix(start)))
    for index in np.ndindex(4, 2):
        h = jnp.zeros((4, 2)).at[index].set(1e-5)
        np.testing.assert_allclose(found[index], (value(now + h) - value(now - h)) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "inner",
    [optax.sgd(0.1), optax.rmsprop(1e-2), ux.Curvature(every=1, trust=None, share=None)],
    ids=["sgd", "rmsprop", "curvature"],
)
def test_m_is_s_bit_for_bit_on_identity_layers(inner):
    params, data = numbers()
    found = [
        first(ux.LocoProp(ux.dense_layers([3, 4, 2], "identity"), squares, variant, inner, steps=5), params, data)
        for variant in "SM"
    ]
    for s, m in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.asarray(s).tobytes() == np.asarray(m).tobytes()


@pytest.mark.parametrize(
    ("inner", "variant"), [(optax.adam(1e-2), "M"), (ux.SpectralFilter(0.1), "S")], ids=["adam", "spectral"]
)
def test_layers_alike_are_solved_side_by_side_to_the_same_result(inner, variant, monkeypatch):
    layers = ux.dense_layers([4] * 7, "tanh", "tanh")  # six of one shape
    params = jax.jit(ux.layered(layers, squares).params)(KEY)
    data = jax.random.normal(DATA, (BATCH, 4)), jax.random.normal(TARGET, (BATCH, 4))
    groups, own = [], _problem.alike
    monkeypatch.setattr(_problem, "alike", lambda problem: groups.append(own(problem)) or groups[-1])
    loco = ux.LocoProp(layers, squares, variant, inner, steps=4)
    together = first(loco, params, data)
    assert len(groups) == 6
    assert len(set(groups)) == 1
    monkeypatch.setattr(_problem, "alike", lambda problem: object())
    alone = first(loco, params, data)
    same(together.grad, alone.grad)


# Natural and normalized targets

POWERS = {"natural": 1.0, "normalized": 0.5}  # of the mean square that g is divided by
scaled = pytest.mark.parametrize("targets", POWERS)


def moves_by_hand(targets, slopes, rms, t):
    """From batch t's gradients: the moves, and the averaged root mean squares."""
    squares_now = DECAY * rms**2 + (1 - DECAY) * (slopes**2).mean(0)
    fair = squares_now / (1 - DECAY**t)
    return slopes / (fair + FLOOR * fair.mean()) ** POWERS[targets], np.sqrt(squares_now)


@variants
@scaled
def test_natural_and_normalized_targets_are_those_of_a_literal_transcription(variant, targets):
    params, data = numbers()
    loco = ux.LocoProp(DENSE, squares, variant, optax.sgd(0.1), reach=0.4, targets=targets)
    estimate, state = jax.jit(loco.estimate), loco.init(KEY, params)
    rms = [np.zeros(4), np.zeros(2)]
    for t, scale in enumerate((1.0, 0.3, 2.0), 1):
        batch = scale * data[0], data[1]
        state, found = estimate(params, state, batch)
        inputs, _, _, slopes = seen_by_hand(params, *batch)
        for layer in range(2):
            move, rms[layer] = moves_by_hand(targets, slopes[layer], rms[layer], t)
            step = 0.1 * 0.4 / BATCH
            close(found.grad[layer]["w"], step * inputs[layer].T @ move)
            close(found.grad[layer]["b"], step * move.sum(0))
        same(state.rms, rms)


@pytest.mark.parametrize(
    "inner",
    [optax.sgd(0.1), ux.Curvature(share=None), ux.Curvature(share=None, iterations=4)],
    ids=["sgd", "direct", "cg"],
)
def test_natural_targets_have_one_direction_however_small_the_loss_is(inner):
    """A loss of 1e-30 in float32, whose gradients' squares are far below the smallest number."""
    params, data = jax.tree.map(lambda leaf: np.float32(leaf), numbers())

    def direction(scale):
        loco = ux.LocoProp(DENSE, lambda y, target: jnp.float32(scale) * squares(y, target), "S", inner)
        found = first(loco, params, data)
        vectors = [np.float64(np.concatenate([one["w"].ravel(), one["b"]])) for one in found.grad]
        return [vector / np.linalg.norm(vector) for vector in vectors], float(found.info.reach)

    (small, reach), (plain, expected) = direction(1e-30), direction(1.0)
    np.testing.assert_allclose(reach, expected, rtol=1e-4)
    for one, other in zip(small, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@variants
@pytest.mark.parametrize("iterations", [None, 5], ids=["direct", "cg"])
def test_a_normalized_step_by_curvature_is_the_solution_of_a_literal_transcription(variant, iterations):
    """In M with the largest slopes of tanh and sigmoid; as many conjugate gradients as inputs solve it exactly."""
    params, data = numbers()
    inner = ux.Curvature(damping=0.5, trust=None, share=None, iterations=iterations)
    loco = ux.LocoProp(DENSE, squares, variant, inner, reach=0.1, targets="normalized")
    found = first(loco, params, data).grad
    inputs, _, _, slopes = seen_by_hand(params, *data)
    for layer, largest in enumerate((1.0, 0.25) if variant == "M" else (1.0, 1.0)):
        move = moves_by_hand("normalized", slopes[layer], 0.0, 1)[0]
        rows = np.c_[inputs[layer], np.ones(BATCH)]
        curvature = largest * rows.T @ rows / BATCH
        n = len(curvature)
        added = 0.5 * np.trace(curvature) / n * np.eye(n)
        expected = 0.1 * np.linalg.solve(curvature + added, rows.T @ move / BATCH)
        np.testing.assert_allclose(np.r_[found[layer]["w"], found[layer]["b"][None]], expected, rtol=1e-9, atol=1e-12)


@variants
@pytest.mark.parametrize(
    ("inner", "steps"),
    [
        (optax.sgd(0.1), 3),
        (optax.adam(0.01), 2),
        (ux.Curvature(trust=None, share=None), 2),
        (ux.Curvature(trust=None, share=None, iterations=4), 1),
    ],
    ids=["sgd", "adam", "direct", "cg"],
)
def test_a_normalized_step_is_the_same_however_small_the_loss_is(variant, inner, steps):
    """The whole step, its length too, to float32's precision, at losses of 1e-30 and 1e-33."""
    params, data = jax.tree.map(lambda leaf: np.float32(leaf), numbers())

    def step(scale):
        loss = lambda y, target: jnp.float32(scale) * squares(y, target)
        loco = ux.LocoProp(DENSE, loss, variant, inner, steps, reach=0.1, targets="normalized")
        found = first(loco, params, data)
        assert found.info.reach == np.float32(0.1)
        return found.grad

    plain = step(1.0)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(plain))
    for scale in (1e-30, 1e-33):
        same(step(scale), plain, functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6))


def test_natural_steps_grow_as_the_gradient_vanishes_and_trust_does_not_see_it():
    params, data = numbers()

    def step(scale):
        loco = ux.LocoProp(
            DENSE, lambda y, target: scale * squares(y, target), "S", ux.Curvature(trust=0.01, share=None)
        )
        return first(loco, params, data)

    plain, small = step(1.0), step(1e-6)
    close(small.info.reach, plain.info.reach, rtol=1e-9)
    same(small.grad, jax.tree.map(lambda leaf: 1e6 * leaf, plain.grad), functools.partial(close, rtol=1e-9))


def test_natural_steps_bounded_by_share_alone_do_not_depend_on_the_unit_of_the_loss():
    params, data = numbers()

    def step(scale):
        inner = ux.Curvature(trust=None, share=0.1)
        loco = ux.LocoProp(DENSE, lambda y, target: scale * squares(y, target), "S", inner, reach=1e12)
        return first(loco, params, data)

    plain = step(1.0)
    for scale in (1e-6, 1e6):
        same(step(scale).grad, plain.grad, functools.partial(close, rtol=1e-9))


def test_a_loss_below_0_sets_no_bound_by_share():
    params, data = numbers()

    def step(share, shift):
        inner = ux.Curvature(trust=0.01, share=share)
        return first(ux.LocoProp(DENSE, lambda y, target: squares(y, target) - shift, "S", inner), params, data)

    assert step(1e-6, 0.0).info.reach < step(None, 0.0).info.reach
    close(step(1e-6, 1e3).info.reach, step(None, 1e3).info.reach)


def test_at_a_constant_rate_a_net_fits_all_and_stays_fitted():
    """Without `share` the steps grow where nothing is left to be gained."""
    x = jax.random.normal(KEY, (40, 4))
    data, layers = (x, jnp.tanh(x @ jnp.ones((4, 3)))), ux.dense_layers([4, 16, 3], "tanh")
    params = ux.layered(layers, squares).params(KEY)

    def losses(share):
        loco = ux.LocoProp(layers, squares, inner=ux.Curvature(share=share))
        return ux.fit(loco, optax.sgd(1.0), params, lambda step: data, key=KEY, steps=300).metrics.loss

    kept, unbounded = losses(1.0), losses(None)
    assert kept[-50:].max() < 1e-3 * kept[0]
    assert unbounded[-50:].max() > 1e3 * kept[-50:].max()


@pytest.mark.parametrize("first_rows", [0.0, 1e-25], ids=["zero", "tiny"])
def test_natural_targets_are_not_misled_by_the_first_examples(first_rows):
    """A fitted batch begins with examples whose gradient is nothing beside that of one that is not."""
    slopes = np.full((20, 3), first_rows)
    slopes[11] = 1e-4, -2.0, 0.5
    expected, rms = moves_by_hand("natural", slopes, np.zeros(3), 1)
    run = jax.jit(scale_of)
    root, found = map(np.asarray, run(np.float32(slopes), np.zeros(3, np.float32), jnp.int32(1)))
    np.testing.assert_allclose(found, rms, rtol=1e-5)
    np.testing.assert_allclose(slopes * root * root, expected, rtol=1e-5)
    tiny, small = map(np.asarray, run(np.float32(1e-30 * slopes), np.zeros(3, np.float32), jnp.int32(1)))
    np.testing.assert_allclose(small, 1e-30 * rms, rtol=1e-5)
    np.testing.assert_allclose(1e-30 * tiny, root, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-40, 1e-38, 1.5e-38, 1e-37])
def test_normalized_moves_are_finite_where_gradients_underflow(size):
    """Near the smallest normal float32, 1.2e-38, whose reciprocal times the root of 10 units is infinite."""
    slopes = np.float32(size * np.random.default_rng(2).normal(size=(20, 100)))
    slopes[:, 1:] = 0
    scale, rms = jax.jit(scale_of)(slopes, np.zeros(100, np.float32), jnp.int32(1))
    move = np.asarray(Problem(None, None, None, None, jnp.asarray(slopes), (scale,)).move)
    assert np.isfinite(rms).all()
    assert (np.abs(move) < 10).all()
    assert (move[:, 1:] == 0).all()


def test_a_layer_that_the_loss_does_not_see_stays_as_it_is():
    params, data = numbers()
    blind = ux.layered([*DENSE, ux.Layer(lambda own, x: jax.lax.stop_gradient(x)), ux.DenseLayer(2, 2)], squares)
    params = [*params, None, {"w": np.eye(2), "b": np.zeros(2)}]
    for inner in (optax.rmsprop(0.1), ux.Curvature()):
        found = first(ux.LocoProp(blind.layers, squares, "M", inner, steps=2), params, data)
        for leaf in jax.tree.leaves(found.grad[:2]):
            assert (leaf == 0).all()
        assert jnp.abs(found.grad[3]["w"]).max() > 0
        assert np.isfinite(found.info.moved).all()


# In a training run

LOCO = {
    "curvature": ux.LocoProp(DENSE, squares, "M", ux.Curvature(every=3), steps=2),
    "memoryless": ux.LocoProp(DENSE, squares, "S", ux.Curvature(every=3, memory=0.0)),
    "anew": ux.LocoProp(DENSE, squares, "S", ux.Curvature(every=1)),
    "conjugate": ux.LocoProp(DENSE, squares, "M", ux.Curvature(iterations=3), steps=2),
    "adam": ux.LocoProp(DENSE, squares, "S", optax.adam(1e-2), steps=12, targets="gradient"),
    "rmsprop": ux.LocoProp(DENSE, squares, "M", optax.rmsprop(1e-3), steps=3),
    "spectral": ux.LocoProp(DENSE, squares, "S", ux.SpectralFilter(0.05), steps=5, targets="normalized"),
}
each = pytest.mark.parametrize("name", LOCO)


def kinds(tree):
    return [(name, leaf.shape, leaf.dtype, leaf.weak_type) for name, leaf in named(tree)], jax.tree.structure(tree)


def named(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@each
@pytest.mark.parametrize(
    ("kind", "of_data"), [("float32", "float64"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_the_state_is_a_fixed_point_and_the_gradient_has_the_kinds_of_params(name, kind, of_data):
    """Whatever data and the numbers of the estimator are: here float64, which is wider, and no weak type."""
    params, data = numbers()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, kind), params)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf, of_data), data)
    loco = jax.tree.map(lambda number: np.float64(0.5) * number, LOCO[name])
    state = loco.init(KEY, params)
    after, found = jax.eval_shape(loco.estimate, params, state, data)
    assert kinds(after) == kinds(state)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(found.grad)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)
    ]
    assert jax.tree.structure(found.grad) == jax.tree.structure(params)


def test_params_in_a_tuple_have_a_gradient_in_one():
    params, data = numbers()
    loco = LOCO["adam"]
    found = jax.eval_shape(loco.estimate, tuple(params), loco.init(KEY, tuple(params)), data)[1]
    assert jax.tree.structure(found.grad) == jax.tree.structure(tuple(params))


@pytest.mark.parametrize("name", ["curvature", "spectral"])
def test_values_rebuilt_with_other_numbers_compile_once(name):
    params, data = numbers()
    traces = []

    @jax.jit
    def estimate(loco, params, state, data):
        traces.append(1)
        return loco.estimate(params, state, data)

    for scale in (1.0, 0.5, 1.0):
        loco = jax.tree.map(lambda number, scale=scale: scale * number, LOCO[name])
        state = loco.init(KEY, params)
        for _ in range(2):
            state, found = estimate(loco, jax.tree.map(lambda leaf, scale=scale: scale * leaf, params), state, data)
    assert len(traces) == 1
    assert jnp.isfinite(found.loss)


@each
def test_the_state_stays_inside_a_program_that_does_not_know_the_numbers(name):
    """As in `fit`, where all numbers are traced: a memory of 0 is then not known to be none."""
    params, data = numbers()
    loco = LOCO[name]
    state = loco.init(KEY, params)
    after, _ = jax.eval_shape(lambda loco, state: loco.estimate(params, state, data), loco, state)
    assert kinds(after) == kinds(state)


def test_a_run_resumes_to_the_bit_and_takes_data_from_anywhere():
    params, (x, target) = numbers()
    optimizer = optax.adam(1e-2)  # any optimizer may be on top

    def batch(step):
        return x * (1 + 0.1 * step), target

    run = functools.partial(ux.fit, LOCO["curvature"], optimizer, params, key=KEY)
    whole = run(batch, steps=14, every=7)
    parts = run(batch, steps=7, every=7)
    parts = run(batch, steps=7, every=7, state=parts.state)
    listed = run([batch(float(step)) for step in range(14)], steps=14, every=7)
    expected = to_arrays(whole.state)
    for got in (parts, listed):
        for path, array in to_arrays(got.state).items():
            np.testing.assert_allclose(array, expected[path], rtol=0 if got is parts else 1e-12, err_msg=path)
    assert whole.metrics.info.moved.shape == (14, 2)


def test_nan_in_a_target_is_told_with_the_data_that_hold_it():
    params, (x, target) = numbers()

    def batch(step):
        return x, jnp.where((jnp.arange(2) == 1)[None] & (step == 3), jnp.nan, target)

    with pytest.raises(ux.Diverged, match=r"at step 4 .*The data of that window hold NaN or infinity in \[1\]") as told:
        ux.fit(LOCO["curvature"], optax.sgd(1.0), params, batch, key=KEY, steps=6)
    assert told.value.step == 4
    assert told.value.nonfinite == 1
