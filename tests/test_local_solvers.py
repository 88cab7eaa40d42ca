"""How local problems are solved: Gram forms, spectral filters and curvature, against literal linear algebra in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax.local import _descent
from unrollax.local._curvature import EARLY
from unrollax.local._descent import spectral_filter
from unrollax.local._problem import How, Problem, gram_gradient, gram_pays, local_gradient

close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
KEY = jax.random.key(0)
BATCH = 12
EXACT = ux.Curvature(every=1, memory=0.0, damping=0.0, trust=None, share=None)


def squares(y, target):
    return ((y - target) ** 2).reshape(len(y), -1).sum(-1)


# Layers, and the shapes of x and target of one example.
NETS = {
    "dense": (ux.dense_layers([3, 4, 2], "tanh", "sigmoid"), (3,), (2,)),
    "conv": (
        [ux.ConvLayer(1, 2, 2, "relu"), ux.Layer(lambda own, x: x.reshape(len(x), -1)), ux.DenseLayer(12, 3)],
        (3, 2, 1),
        (3,),
    ),
    "recurrent": ([ux.RecurrentLayer(2, 3), ux.DenseLayer(3, 2, "softplus", bias=False)], (5, 2), (5, 2)),
}


@functools.cache
def made(name, batch=BATCH):
    layers, x, target = NETS[name]
    rng = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)),
        jax.eval_shape(ux.layered(layers, squares).params, KEY),
    )
    return layers, params, (rng.normal(size=(batch, *x)), rng.uniform(size=(batch, *target)))


@functools.cache
def seen(name, batch=BATCH):
    """Of each layer with params: features, each example's own d loss / d a as rows, both in NumPy, and the layer's place."""
    layers, params, (x, target) = made(name, batch)

    @jax.jit
    def run(params):
        def total(nudges):
            y, inputs = x, []
            for layer, own, nudge in zip(layers, params, nudges, strict=True):
                y, saw = layer.forward(own, y, nudge)
                inputs.append(saw)
            return squares(y, target).sum(), inputs

        zeros, y = [], x
        for layer, own in zip(layers, params, strict=True):
            y = layer.forward(own, y, None)[0]
            zeros.append(jnp.zeros_like(y))
        slopes, inputs = jax.grad(total, has_aux=True)(zeros)
        return {
            place: (layer.features(saw), slope.reshape(-1, slope.shape[-1]))
            for place, (layer, saw, slope) in enumerate(zip(layers, inputs, slopes, strict=True))
            if isinstance(layer, (ux.DenseLayer, ux.ConvLayer, ux.RecurrentLayer))
        }

    return {place: tuple(map(np.asarray, pair)) for place, pair in run(params).items()}


def first(loco, params, data):
    return jax.jit(loco.estimate)(params, loco.init(KEY, params), data)[1]


def check(found, name, expected, equal=close):
    """Compare an estimate's gradient, as matrices, with `expected(features, slopes)` of each layer."""
    layers = NETS[name][0]
    for place, (x, g) in seen(name).items():
        equal(layers[place].matrix(found.grad[place]), expected(x, g), err_msg=f"layer {place}")


def problem_of(rows, n, m):
    rng = np.random.default_rng(0)
    layer = ux.DenseLayer(n, m, "tanh", bias=False)
    params = {"w": jnp.asarray(rng.normal(size=(n, m)))}
    x, slope = (jnp.asarray(rng.normal(size=(rows, size))) for size in (n, m))
    return Problem(layer, params, x, layer.transfer(layer.pre(params, x)), slope, ())


# Gradient steps


@pytest.mark.parametrize("name", NETS)
def test_the_gram_form_is_the_direct_form(name, monkeypatch):
    """Both forced, in S of all layers, with an optimizer that has a state; without, by hand."""
    layers, params, data = made(name)
    loco = ux.LocoProp(
        layers, squares, "S", optax.sgd(0.01, momentum=0.9), steps=5, reach=0.7, pull=0.3, targets="gradient"
    )
    found = []
    for form in (True, False):
        monkeypatch.setattr(_descent, "gram_pays", lambda problem, how, form=form: form)
        found.append(first(loco, params, data))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), found[0].grad, found[1].grad)

    def literal(x, g):
        away, speed = np.zeros((x.shape[1], g.shape[1])), 0
        for _ in range(5):
            grad = x.T @ (x @ away + 0.7 * g) / BATCH + 0.3 * away
            speed = 0.9 * speed + grad
            away = away - 0.01 * speed
        return -away

    check(found[0], name, literal)


def products(jaxpr):
    """Multiplications in the matrix products of a traced program without loops."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (over, _), _ = equation.params["dimension_numbers"]
            summed = np.prod([equation.invars[0].aval.shape[axis] for axis in over])
            count += int(np.prod(equation.outvars[0].aval.shape) * summed)
        count += sum(products(inner.jaxpr) for inner in equation.params.values() if hasattr(inner, "jaxpr"))
    return count


@pytest.mark.parametrize("sizes", [(500, 20, 16), (30, 60, 10), (30, 20, 300), (400, 80, 3), (60, 90, 90)])
@pytest.mark.parametrize("steps", [2, 5, 60])
def test_the_form_with_fewer_operations_is_chosen(sizes, steps):
    """Counted in the traced program of all steps after the first, whose gradient costs the same in both."""
    problem, how = problem_of(*sizes), How("S", steps, 1.0, 0.0, 1.0)

    def run(form, params):
        gradient = form(problem, how, 1.0)
        for _ in range(steps - 1):
            params = jax.tree.map(jnp.add, params, gradient(params))
        return params

    gram, direct = (
        products(jax.make_jaxpr(functools.partial(run, form))(problem.params).jaxpr)
        for form in (gram_gradient, local_gradient)
    )
    assert abs(gram - direct) > 0.02 * direct
    assert gram_pays(problem, how) == (gram < direct)


def test_the_gram_form_is_for_squared_losses_of_linear_layers_only():
    tanh, many = problem_of(500, 20, 10), How("M", 60, 1.0, 0.0, 1.0)
    assert not gram_pays(tanh, many)
    identity = tanh._replace(layer=ux.DenseLayer(20, 10, bias=False))
    assert gram_pays(identity, many)
    own = ux.Layer(lambda own, x: x @ own["w"])
    assert not gram_pays(tanh._replace(layer=own), many._replace(variant="S"))


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 37, 256])
@pytest.mark.parametrize("form", ["steps", "filter"])
def test_gradient_steps_are_a_filter_on_the_spectrum_of_the_covariance(steps, form):
    """T steps are -(reach) [I - (I - eta C)^T] C^-1 G, by eigenvalues in NumPy."""
    layers, params, data = made("dense")
    inner = optax.sgd(0.2) if form == "steps" else ux.SpectralFilter(0.2)
    estimate = jax.jit(lambda loco, params, state: loco.estimate(params, state, data))
    for pull in (0.0, 0.3):
        loco = ux.LocoProp(layers, squares, "S", inner, steps=steps, reach=0.7, pull=pull, targets="gradient")
        found = estimate(loco, params, loco.init(KEY, params))[1]

        def literal(x, g, pull=pull):
            values, vectors = np.linalg.eigh(x.T @ x / BATCH + pull * np.eye(x.shape[1]))
            filtered = (1 - (1 - 0.2 * values) ** steps) / values
            return 0.7 * (vectors * filtered) @ vectors.T @ (x.T @ g / BATCH)

        check(found, "dense", literal)


def test_doubling_adds_up_every_number_of_steps():
    curvature = np.diag([0.1, 1.0, 2.5]) + 0.05
    powers = [np.linalg.matrix_power(np.eye(3) - 0.3 * curvature, k) for k in range(40)]
    for steps in range(1, 41):
        close(spectral_filter(jnp.asarray(curvature), 0.3, steps), 0.3 * sum(powers[:steps]), rtol=1e-12)


# The closed form


def regularised(x, g, reach, pull):
    """Least squares with the regulariser as rows: min |x d - reach g|^2 / batch + pull |d|^2."""
    n = x.shape[1]
    rows = np.concatenate([x, np.sqrt(pull * BATCH) * np.eye(n)])
    return np.linalg.lstsq(rows, np.concatenate([reach * g, np.zeros((n, g.shape[1]))]), rcond=None)[0]


@pytest.mark.parametrize("name", NETS)
def test_the_closed_form_solves_the_regularised_problem(name):
    layers, params, data = made(name)
    loco = ux.LocoProp(layers, squares, "S", EXACT, reach=0.7, pull=0.2, targets="gradient")
    expected = functools.partial(regularised, reach=0.7, pull=0.2)
    check(first(loco, params, data), name, expected)
    by_gradients = ux.LocoProp(
        layers,
        squares,
        "S",
        ux.Curvature(damping=0.0, trust=None, share=None, iterations=40),
        reach=0.7,
        pull=0.2,
        targets="gradient",
    )
    check(first(by_gradients, params, data), name, expected, functools.partial(close, rtol=1e-7, atol=1e-10))


def test_the_closed_form_is_the_limit_of_many_steps():
    layers, params, data = made("dense")
    common = {"reach": 0.7, "pull": 0.1, "targets": "gradient"}
    closed = first(ux.LocoProp(layers, squares, "S", EXACT, **common), params, data)
    steps = first(ux.LocoProp(layers, squares, "S", ux.SpectralFilter(0.1), steps=2**14, **common), params, data)
    jax.tree.map(close, steps.grad, closed.grad)


def test_solving_without_a_regulariser_is_the_right_factor_of_kfac():
    """A^-1 G, A the second moment of a layer's inputs and a one for its bias, without a factor of the outputs."""
    layers, params, data = made("dense")
    found = first(ux.LocoProp(layers, squares, "S", EXACT, reach=0.7, targets="gradient"), params, data)
    x = data[0]
    for layer, own, one in zip(layers, params, found.grad, strict=True):
        a = np.concatenate([x, np.ones((BATCH, 1))], axis=1)
        g = seen("dense")[layers.index(layer)][1]
        second_moment = sum(np.outer(row, row) for row in a) / BATCH
        gradient = sum(np.outer(row, of_a) for row, of_a in zip(a, g, strict=True)) / BATCH
        expected = 0.7 * np.linalg.inv(second_moment) @ gradient
        close(np.concatenate([one["w"], one["b"][None]]), expected, rtol=1e-7)
        x = np.asarray(layer.transfer(x @ np.asarray(own["w"]) + np.asarray(own["b"])))


def test_one_closed_form_step_of_a_linear_layer_is_the_least_squares_fit():
    """Its local problem is the whole one: the loss's gradient is 2 (y - target), so that reach 1/2 asks for the target."""
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(30, 3)) * [100.0, 1.0, 0.01], rng.normal(size=(30, 2))
    params = [{"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}]
    expected = np.linalg.lstsq(np.concatenate([x, np.ones((30, 1))], axis=1), target, rcond=None)[0]
    for variant in "SM":
        loco = ux.LocoProp([ux.DenseLayer(3, 2)], squares, variant, EXACT, reach=0.5, targets="gradient")
        run = ux.fit(loco, optax.sgd(1.0), params, lambda step: (x, target), key=KEY, steps=2)
        close(run.params[0]["w"], expected[:3], rtol=1e-6)
        close(run.params[0]["b"], expected[3], rtol=1e-6)


# What Curvature keeps, and how far it goes


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("memory", [0.0, 0.6, 1.0])
def test_the_inverse_is_that_of_an_average_made_anew_now_and_then(every, memory):
    """A literal loop over batches: the covariances' average, biased to none, and batches that take an older inverse."""
    layers, params, (x, target) = made("dense")
    scales = np.exp(np.random.default_rng(1).normal(size=EARLY + 8))
    curvature = ux.Curvature(damping=0.3, every=every, memory=memory, trust=None, share=None)
    loco = ux.LocoProp(layers[:1], squares, "S", curvature, reach=0.7, pull=0.1, targets="gradient")
    target = np.concatenate([target, target], axis=1)

    @jax.jit
    def run(state):
        def batch(state, scale):
            state, found = loco.estimate(params[:1], state, (scale * x, target))
            return state, found.grad[0]["w"]

        return jax.lax.scan(batch, state, scales)

    state, found = run(loco.init(KEY, params[:1]))
    average, averaged, inverse = np.zeros((4, 4)), 0, None
    w, b = (np.asarray(params[0][name]) for name in "wb")
    for t, scale in enumerate(scales):
        rows = np.concatenate([scale * x, np.ones((BATCH, 1))], axis=1)
        y = np.tanh(scale * x @ w + b)
        if t < EARLY or t % every == 0:
            share = min(memory, averaged / (averaged + 1))
            average = share * average + (1 - share) * rows.T @ rows / BATCH
            averaged += 1
            inverse = np.linalg.inv(average + (0.1 + 0.3 * np.trace(average) / 4) * np.eye(4))
        gradient = rows.T @ (2 * (y - target) * (1 - y**2)) / BATCH
        close(found[t], (0.7 * inverse @ gradient)[:3], err_msg=f"batch {t}")
    assert state.inner.t == len(scales)
    assert [leaf.ndim for leaf in state.inner.covariances] == [2 if memory else 0]
    assert [leaf.ndim for leaf in state.inner.inverses] == [2 if every > 1 else 0]


def test_conjugate_gradients_keep_no_matrices():
    layers, params, data = made("dense")
    loco = ux.LocoProp(layers, squares, "S", ux.Curvature(iterations=2))
    after = jax.eval_shape(loco.estimate, params, loco.init(KEY, params), data)[0]
    assert all(leaf.ndim == 0 for leaf in jax.tree.leaves(after.inner))


@pytest.mark.parametrize("targets", ["gradient", "natural"])
def test_trust_and_share_bound_the_step_exactly(targets):
    """r^2 <P G, gradient> and r <P G, gradient> / loss, G the gradient to the moves, P by NumPy; no bound met anyway."""
    layers, params, data = made("dense")
    estimate = jax.jit(lambda loco, params, state: loco.estimate(params, state, data))

    def literal(x, g):
        mean = (g**2).mean(0)
        scale = 1.0 if targets == "gradient" else 1 / (mean + 0.1 * mean.mean())
        curvature = x.T @ x / BATCH
        p = np.linalg.inv(curvature + 0.2 * np.trace(curvature) / len(curvature) * np.eye(len(curvature)))
        return p @ (x.T @ (g * scale) / BATCH)

    product = sum((literal(x, g) * (x.T @ g / BATCH)).sum() for x, g in seen("dense").values())
    plain = ux.LocoProp(layers, squares)
    loss = float(estimate(plain, params, plain.init(KEY, params))[1].loss)
    for trust, share, reach in (
        (0.01, 1e9, 1.0),
        (0.01, None, 20.0),
        (1e9, 1e9, 2.0),
        (None, 1e-3, 20.0),
        (0.01, 1e-6, 1),
    ):
        inner = ux.Curvature(damping=0.2, trust=trust, share=share)
        loco = ux.LocoProp(layers, squares, "S", inner, reach=reach, targets=targets)
        found = estimate(loco, params, loco.init(KEY, params))[1]
        by_trust = np.inf if trust is None else np.sqrt(trust / product)
        by_share = np.inf if share is None else share * loss / product
        used = min(reach, by_trust, by_share)
        close(found.info.reach, used)
        assert (used < reach) == (trust != 1e9)
        if used == by_trust:
            close(found.info.reach**2 * product, trust)
        if used == by_share:
            close(found.info.reach * product / loss, share)
        check(found, "dense", lambda x, g, used=used: used * literal(x, g))


# LocoProp-M by curvature


@pytest.mark.parametrize(("trust", "share"), [(0.01, None), (None, 1e-3), (0.01, 1e-3), (None, None)])
def test_several_steps_together_gain_no_more_than_the_longest_first_one(trust, share):
    layers, params, data = made("dense")
    found = {}
    for steps in (1, 5):
        inner = ux.Curvature(damping=0.2, trust=trust, share=share)
        loco = ux.LocoProp(layers, squares, "M", inner, steps, reach=3.0, targets="gradient")
        found[steps] = loco.estimate(params, loco.init(KEY, params), data)[1]
    gradient = ux.BPTT(ux.layered(layers, squares), BATCH)
    slope = gradient.estimate(params, gradient.init(KEY, params), data)[1].grad
    pairs = {k: list(zip(jax.tree.leaves(one.grad), jax.tree.leaves(slope), strict=True)) for k, one in found.items()}
    one, five = (sum(float((a * b).sum()) for a, b in pairs[k]) for k in (1, 5))
    if trust is share is None:
        assert five > 1.2 * one
    else:
        close(five, one)
    assert any(np.abs(a - b).max() > 1e-6 for (a, _), (b, _) in zip(pairs[1], pairs[5], strict=True))


MIXED = [ux.DenseLayer(4, 4, name) for name in ("relu", "tanh", "sigmoid", "softplus", "softmax")]


@functools.cache
def problems(count=40):
    """Random nets with all transfers, inputs and targets, of all scales."""
    rng = np.random.default_rng(7)

    def some(*shape):
        return jnp.asarray(rng.normal(size=(count, *shape)) * np.exp(rng.normal(size=(count,) + (1,) * len(shape))))

    return [{"w": some(4, 4), "b": some(4)} for _ in MIXED], (some(BATCH, 4), some(BATCH, 4))


def local_losses(params, data, moved, reach, pull):
    """Each layer's local loss in M, by the definition, at the params that it moved to."""
    y, nudged = data[0], []
    zeros = [jnp.zeros((BATCH, 4)) for _ in MIXED]

    def total(nudges):
        y = data[0]
        for layer, own, nudge in zip(MIXED, params, nudges, strict=True):
            y = layer.transfer(layer.pre(own, y) + nudge)
        return squares(y, data[1]).sum()

    for layer, own, change, g in zip(MIXED, params, moved, jax.grad(total)(zeros), strict=True):
        now = jax.tree.map(jnp.subtract, own, change)
        target = layer.transfer(layer.pre(own, y)) - reach * g
        away = 0.5 * pull * sum((leaf**2).sum() for leaf in jax.tree.leaves(change))
        nudged.append(layer.transfer.matching_loss(layer.pre(now, y), target).mean() + away)
        y = layer.transfer(layer.pre(own, y))
    return jnp.stack(nudged)


STEPS = (0, 1, 3, 300)
RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


@functools.cache
def after(inner, *steps):
    """The local losses `[steps, rates, problems, layers]` after so many steps of `inner(rate)`."""

    def one(rate, count, params, data):
        if not count:
            return local_losses(params, data, jax.tree.map(jnp.zeros_like, params), 0.5, 1e-3)
        loco = ux.LocoProp(MIXED, squares, "M", inner(rate), count, 0.5, 1e-3, "gradient")
        found = loco.estimate(params, loco.init(KEY, params), data)[1].grad
        return local_losses(params, data, found, 0.5, 1e-3)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None), out_axes=1)
    @functools.partial(jax.vmap, in_axes=(None, 0), out_axes=1)
    def run(rate, batch):
        return jnp.stack([one(rate, count, *batch) for count in steps])

    return np.asarray(run(jnp.asarray(RATES[-1:] if inner is exact else RATES), problems()))


def exact(rate):
    return EXACT


def test_each_step_by_curvature_lowers_the_local_loss_in_m():
    """The bound lies above the loss and touches it: on 40 random nets with transfers of all kinds and numbers of all scales.

    Where the first step does not, the gradient is 0, as of a dead ReLU.
    """
    losses = after(exact, *STEPS)
    for before, now in itertools.pairwise(losses):
        assert (now <= before + 1e-10 * np.maximum(1, np.abs(before))).all()
    assert (losses[1] < losses[0]).mean() > 0.8


def test_three_steps_by_curvature_reach_what_ten_of_other_optimizers_do():
    """The share that is done of the fall in the local loss, in the median over nets and layers; others at their best rates.

    Seen: 0.96 by curvature in 3 steps, 0.85 by RMSProp and 0.59 by gradient descent in 10.
    """
    start, _, three, least = after(exact, *STEPS)[:, 0]
    falls = start - least > 1e-6

    def done(losses):
        return np.median((start - losses)[..., falls] / (start - least)[falls], axis=-1).max()

    assert done(three) > 0.93
    for optimizer in (optax.rmsprop, optax.sgd):
        assert done(after(optimizer, 10)[0]) < 0.88
