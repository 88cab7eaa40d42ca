"""K-FAC against closed forms, enumeration of all signs, and a literal NumPy transcription with the explicit matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrollax as ux
from unrollax.optimizers import KFAC
from unrollax.optimizers._factors import factors_of, inverted
from unrollax.optimizers._net import linearized
from unrollax.optimizers._output_hessian import output_hessian
from unrollax.optimizers._quadratic import Quadratic, minimum
from unrollax.recipes import _autoencoder as recipe
from unrollax.recipes._images import curves


def squares(y, target):
    return 0.5 * ((y - target) ** 2).reshape(len(y), -1).sum(-1)


def sigmoids(y, target):
    return (jnp.logaddexp(0.0, y) - y * target).sum(-1)


def labels(y, target):
    return -jnp.take_along_axis(jax.nn.log_softmax(y), target[:, None], axis=1)[:, 0]


def shares(y, target):
    return -(target * jax.nn.log_softmax(y)).sum(-1)


FLAT = ux.Layer(lambda params, x: x.reshape(len(x), -1))


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def doubled(params):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)


def small(loss=squares, sizes=(4, 3, 2), batch=6):
    net = ux.layered(ux.dense_layers(sizes, "tanh"), loss)
    params = doubled(net.params(jax.random.key(0)))
    return net, params, (numbers(1, batch, sizes[0]), jax.nn.sigmoid(numbers(2, batch, sizes[-1])))


def apply(params, estimate):
    return jax.tree.map(jnp.subtract, params, estimate.grad)


def test_one_step_without_damping_solves_least_squares(key):
    net = ux.layered([ux.DenseLayer(5, 1)], squares)
    x, target = numbers(1, 40, 5), numbers(2, 40, 1)
    params = doubled(net.params(jax.random.key(3)))
    kfac = KFAC(net, damping=1e-13, adapt=False)
    params = apply(params, jax.jit(kfac.estimate)(params, kfac.init(key, params), (x, target))[1])
    best = np.linalg.lstsq(np.c_[x, np.ones(40)], np.asarray(target), rcond=None)[0]
    np.testing.assert_allclose(net.layers[0].matrix(params[0]), best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [1, 4, 6])
def test_the_factor_of_the_inputs_is_the_average_of_the_covariances_that_were_due(key, every):
    net, params, (x, target) = small()
    kfac = KFAC(net, lr=0.0, momentum=0.0, every=every)  # the parameters stay
    state, expected, times, estimate = kfac.init(key, params), 0.0, 0, jax.jit(kfac.estimate)
    for step in range(24):
        now = x * (step + 1)
        state, _ = estimate(params, state, (now, target))
        if step % every == 0:
            times += 1
            rows, keep = np.c_[now, np.ones(len(x))], min(1 - 1 / times, max(0.95**every, 0.8))
            expected = keep * expected + (1 - keep) * rows.T @ rows / len(x)
        np.testing.assert_allclose(state.factors[0].inputs, expected, rtol=1e-10)
    assert times == {1: 24, 4: 6, 6: 4}[every]


@pytest.mark.parametrize(("loss", "outputs"), [(sigmoids, "independent"), (shares, "softmax")])
def test_over_all_signs_the_factor_of_the_outputs_is_that_of_the_gauss_newton_matrix(loss, outputs):
    net, params, (x, target) = small(loss, batch=2)
    target = target / target.sum(-1, keepdims=True)
    made = linearized("test", net.layers, params, x)
    root, found = output_hessian(loss, made.y, target, outputs)[1], 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        pulled = made.pull(root(jnp.array(signs).reshape(2, 2)))[0]
        found += factors_of(made.features[0], pulled, 2).outputs / 16
    expected = 0.0
    for row, goal in zip(x, target, strict=True):

        def tail(a, row=row):
            return net.layers[1].forward(params[1], net.layers[0].transfer(a)[None])[0][0]

        a = net.layers[0].pre(params[0], row[None])[0]
        jacobian = jax.jacobian(tail)(a)
        hessian = jax.hessian(lambda y, goal=goal: loss(y[None], goal[None])[0])(tail(a))
        expected += jacobian.T @ hessian @ jacobian / 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_last_factor_of_independent_outputs_is_exact_from_any_signs(key):
    net = ux.layered(ux.dense_layers((4, 3, 2), "tanh", "sigmoid"), squares)
    params = doubled(net.params(jax.random.key(0)))
    x, target = numbers(1, 6, 4), numbers(2, 6, 2)
    state, _ = jax.jit(KFAC(net).estimate)(params, KFAC(net).init(key, params), (x, target))
    a = net.layers[1].pre(params[1], net.layers[0].transfer(net.layers[0].pre(params[0], x)))
    slopes = jax.vmap(jax.jacobian(net.layers[1].transfer))(a)
    exact = jnp.einsum("bij,bik->jk", slopes, slopes) / len(x)
    np.testing.assert_allclose(jnp.diag(state.factors[1].outputs), exact, atol=1e-12)


def test_a_last_layer_that_mixes_its_pre_activations_keeps_the_whole_factor(key):
    for last, outputs in (("softmax", "independent"), ("identity", "softmax")):
        net = ux.layered(ux.dense_layers((4, 3, 2), "tanh", last), squares)
        state = KFAC(net, outputs=outputs).init(key, net.params(key))
        assert state.factors[1].outputs.shape == (2, 2)
    net = ux.layered([ux.RecurrentLayer(4, 2)], squares)
    assert KFAC(net).init(key, net.params(key)).factors[0].outputs.shape == (2, 2)


def flat_curvature(net, params, x, target):
    """The Gauss-Newton matrix and the gradient in the stacked matrices, from explicit Jacobians."""
    matrices = [layer.matrix(p) for layer, p in zip(net.layers, params, strict=True)]
    vector, unravel = jax.flatten_util.ravel_pytree(matrices)

    def predict(v):
        own = [layer.from_matrix(m) for layer, m in zip(net.layers, unravel(v), strict=True)]
        return net.predict(own, x)

    y = predict(vector)
    jacobian = jax.jacobian(predict)(vector).reshape(y.size, -1)
    hessian = jax.hessian(lambda y: net.loss(y.reshape(len(x), -1), target).mean())(y.reshape(-1))
    grad = jax.grad(lambda v: net.loss(predict(v), target).mean())(vector)
    objective = lambda v: float(net.loss(predict(v), target).mean())
    return [np.asarray(part) for part in (vector, jacobian.T @ hessian @ jacobian, grad)], unravel, objective


def literal_inverse(factors, gamma):
    a, g = (np.diag(part) if part.ndim == 1 else np.asarray(part) for part in factors)
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    return np.linalg.inv(a + pi * gamma * np.eye(len(a))), np.linalg.inv(g + gamma / pi * np.eye(len(g)))


@pytest.mark.parametrize(("loss", "outputs"), [(sigmoids, "independent"), (shares, "softmax")])
def test_updates_equal_the_literal_algorithm(key, loss, outputs):
    net, params, (x, target) = small(loss, batch=9, sizes=(4, 3, 3))
    data = x, target / target.sum(-1, keepdims=True) if outputs == "softmax" else target
    l2, every = 0.03, 2
    kfac = KFAC(net, outputs=outputs, damping=0.7, every=every, l2=l2)
    state = kfac.init(key, params)
    damping, velocity, run = 0.7, None, jax.jit(kfac.estimate)
    for k in range(6):
        after, estimate = run(params, state, data)
        (theta, curvature, grad), unravel, objective = flat_curvature(net, params, *data)
        grad = grad + l2 * theta
        if k % every == 0:
            inverses = [literal_inverse(pair, np.sqrt(damping + l2)) for pair in after.factors]
        steps = [-(a @ np.asarray(w) @ g) for (a, g), w in zip(inverses, unravel(jnp.asarray(grad)), strict=True)]
        proposal = np.concatenate([step.ravel() for step in steps])
        damped = curvature + (damping + l2) * np.eye(len(theta))
        span = proposal[:, None] if velocity is None else np.stack([proposal, velocity], axis=1)
        weights = np.linalg.solve(span.T @ damped @ span, -span.T @ grad)
        velocity = span @ weights
        got = np.concatenate([np.ravel(layer.matrix(g)) for layer, g in zip(net.layers, estimate.grad, strict=True)])
        np.testing.assert_allclose(-got, velocity, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(estimate.info.grad_norm, np.linalg.norm(grad), rtol=1e-10)
        if (k + 1) % every == 0:
            model = 0.5 * velocity @ damped @ velocity + grad @ velocity
            old, new = (objective(v) + l2 / 2 * v @ v for v in (theta, theta + velocity))
            ratio = (new - old) / model
            np.testing.assert_allclose(estimate.info.ratio, ratio, rtol=1e-6)
            damping *= 0.95**every if ratio > 0.75 else 1 if ratio >= 0.25 else 0.95**-every
        else:
            assert np.isnan(estimate.info.ratio)
        np.testing.assert_allclose(after.damping, damping, rtol=1e-12)
        params, state = apply(params, estimate), after
    assert damping != 0.7


def test_the_multiples_minimise_the_quadratic_model_whichever_are_fixed():
    root = np.asarray(numbers(4, 2, 2))
    quadratic, linear = root @ root.T, np.asarray(numbers(5, 2))
    for fixed in ((None, None), (0.3, None), (None, 0.6)):
        w = np.asarray(minimum(Quadratic(jnp.asarray(quadratic), jnp.asarray(linear)), fixed))
        slope = quadratic @ w + linear
        for index in (0, 1):
            if fixed[index] is None:
                assert abs(slope[index]) < 1e-9
            else:
                assert w[index] == fixed[index]


def test_a_direction_that_repeats_the_other_or_is_zero_gets_no_multiple():
    for second in (0.0, 2.0):
        quadratic = jnp.array([[1.0, second], [second, second**2]])
        model = Quadratic(quadratic, jnp.array([-3.0, -3.0 * second]))
        np.testing.assert_allclose(minimum(model, (None, None)), [3.0, 0.0])


def test_gradients_of_every_kind_of_layer_are_autodiffs():
    nets = {
        "dense, on the last of three axes": (ux.dense_layers([3, 4, 2], "tanh"), (5, 7, 3), (5, 7, 2)),
        "recurrent": ((ux.RecurrentLayer(3, 4), ux.DenseLayer(4, 2)), (5, 7, 3), (5, 7, 2)),
        "convolution": (
            (ux.ConvLayer(2, 3, 2, "tanh", strides=2), FLAT, ux.DenseLayer(12, 2)),
            (5, 4, 3, 2),
            (5, 2),
        ),
        "no params between": (
            (ux.DenseLayer(3, 4), ux.Layer(lambda params, a: a**2), ux.DenseLayer(4, 2)),
            (5, 3),
            (5, 2),
        ),
    }
    for name, (layers, shape, goal) in nets.items():
        net = ux.layered(layers, squares)
        params = doubled(net.params(jax.random.key(1)))
        x, target = numbers(1, *shape), numbers(2, *goal)
        made = linearized("test", net.layers, params, x)
        found = made.grads((made.y - target) / len(x))
        grad = jax.grad(lambda p, net=net, x=x, target=target: net.loss(net.predict(p, x), target).mean())(params)
        expected = [layer.matrix(g) for layer, g in zip(net.layers, grad, strict=True) if g is not None]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)


def test_push_is_the_derivative_along_a_direction_of_the_matrices():
    net, params, (x, _) = small()
    made = linearized("test", net.layers, params, x)
    direction = [numbers(7, 5, 3), numbers(8, 4, 2)]
    tangent = [layer.from_matrix(d) for layer, d in zip(net.layers, direction, strict=True)]
    expected = jax.jvp(lambda p: net.predict(p, x), (params,), (tangent,))[1]
    np.testing.assert_allclose(made.push(direction), expected, atol=1e-12)


def test_an_autoencoder_learns_faster_than_by_the_best_gradient_descent(key):
    net = ux.layered(ux.dense_layers([12, 8, 3, 8, 12], "tanh"), sigmoids)
    x = jax.nn.sigmoid(3 * numbers(1, 64, 3) @ numbers(2, 3, 12))
    params = doubled(net.params(jax.random.key(0)))
    floor = float(-(x * jnp.log(x) + (1 - x) * jnp.log(1 - x)).sum(-1).mean())  # the entropy of the targets
    objective = lambda params: net.loss(net.predict(params, x), x).mean() - floor

    def descend(lr):
        move = lambda _, p: jax.tree.map(lambda w, g: w - lr * g, p, jax.grad(objective)(p))
        return objective(jax.lax.fori_loop(0, 60, move, params))

    best = np.nanmin(jax.jit(jax.vmap(descend))(2.0 ** jnp.arange(-8, 3)))
    run = ux.fit(KFAC(net), optax.sgd(1.0), params, lambda step: (x, x), key=key, steps=61)
    assert run.metrics.loss[60] - floor < 0.05 * (run.metrics.loss[0] - floor)
    assert run.metrics.loss[60] - floor < 0.25 * best


def test_a_run_that_is_continued_gives_the_bits_of_one_that_was_not(key):
    net, params, data = small()
    run = lambda steps, state=None: ux.fit(
        KFAC(net, damping=1.0, every=3),
        optax.sgd(1.0),
        params,
        lambda step: data,
        key=key,
        steps=steps,
        every=4,
        state=state,
    )
    whole, halves = run(8), run(4, run(4).state)
    same = jax.tree.map(
        lambda a, b: (
            bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
            else bool((a == b).all())
        ),
        whole.state,
        halves.state,
    )
    assert all(jax.tree.leaves(same))


def test_inverses_change_only_when_it_is_time(key):
    net, params, data = small()
    kfac = KFAC(net, damping=1.0, every=3)
    state, changed, run = kfac.init(key, params), [], jax.jit(kfac.estimate)
    for _ in range(7):
        after, estimate = run(params, state, data)
        changed.append(bool((after.inverses[0].inputs != state.inverses[0].inputs).any()))
        params, state = apply(params, estimate), after
    assert changed == [True, False, False, True, False, False, True]


def test_a_recurrent_net_learns_with_labels(key):
    last = ux.Layer(lambda params, y: y[:, -1])
    net = ux.layered([ux.RecurrentLayer(2, 6), last, ux.DenseLayer(6, 3)], labels)
    x, target = numbers(1, 30, 5, 2), jnp.arange(30) % 3
    params = doubled(net.params(jax.random.key(0)))
    kfac = KFAC(net, outputs="softmax", damping=1.0)
    run = ux.fit(kfac, optax.sgd(1.0), params, lambda step: (x, target), key=key, steps=40)
    assert run.metrics.loss[-1] < 0.5 * run.metrics.loss[0]


@pytest.mark.parametrize(
    ("loss", "outputs", "says"),
    [
        (shares, "independent", 'outputs="independent", got one with another Hessian'),
        (sigmoids, "softmax", 'outputs="softmax", got one with another Hessian'),
        (lambda y, t: 2 * shares(y, t), "softmax", "unscaled softmax cross-entropy"),
        (lambda y, t: -squares(y, t), "independent", "curves downwards"),
        (lambda y, t: (y - t).sum(-1), "independent", "linear in the outputs"),
    ],
)
def test_a_loss_with_another_curvature_than_stated_is_refused(key, loss, outputs, says):
    net, params, data = small(loss)
    kfac = KFAC(net, outputs=outputs)
    with pytest.raises(ux.InvalidArgument, match=says):
        jax.jit(kfac.estimate)(params, kfac.init(key, params), data)


def test_a_scaled_loss_of_independent_outputs_is_taken(key):
    net, params, data = small(lambda y, t: ((y - t) ** 2).mean(-1))
    kfac = KFAC(net)
    assert jax.jit(kfac.estimate)(params, kfac.init(key, params), data)[1].loss.shape == ()


def test_what_does_not_fit_is_named(key):
    net, params, (x, target) = small()
    scaled = ux.layered([ux.Layer(lambda p, x: p * x, "tanh", lambda key: jnp.ones((1, 4)))], squares)
    cases = [
        (
            lambda: KFAC(net, outputs="sigmoid"),
            ux.InvalidArgument,
            "KFAC: outputs must be one of 'independent', 'softmax'",
        ),
        (lambda: KFAC(net, damping=0.0), ux.InvalidArgument, "KFAC: damping must be a positive number"),
        (lambda: KFAC(net, every=0), ux.InvalidArgument, "KFAC: every must be a positive whole number"),
        (lambda: KFAC(net, lr="adaptive"), ux.InvalidArgument, "KFAC: lr must be"),
        (lambda: KFAC(net.layers), ux.InvalidArgument, r"net must have layers and loss.*ux|unrollax.layered"),
        (
            lambda: KFAC(scaled).init(key, [jnp.ones((1, 4))]),
            ux.InvalidArgument,
            r"features, matrix and from_matrix, got layers\[0\], Layer, without",
        ),
        (lambda: KFAC(net).init(key, params[:1]), ux.StructureError, "one entry for each of the 2 layers, got 1"),
        (
            lambda: KFAC(net).estimate(params, KFAC(net).init(key, params), x),
            ux.StructureError,
            r"data must be a pair \(x, target\)",
        ),
        (
            lambda: KFAC(net).estimate(params, KFAC(net).init(key, params), (x[:0], target[:0])),
            ux.StructureError,
            r"KFAC: data leaf \[0\] must be \[batch, ...\], of some examples, got float64\[0,4\]",
        ),
        (
            lambda: KFAC(net).estimate(params, KFAC(net).init(key, params), (x, target[:4])),
            ux.StructureError,
            r"KFAC: data leaf \[1\] must be \[batch, ...\], here \[6, ...\], got float64\[4,2\]",
        ),
    ]
    for call, kind, says in cases:
        with pytest.raises(kind, match=says):
            call()
    summed = ux.layered(net.layers, lambda y, t: squares(y, t).sum())
    with pytest.raises(ux.StructureError, match="loss must return"):
        KFAC(summed).estimate(params, KFAC(summed).init(key, params), (x, target))


def test_one_step_solves_least_squares_of_a_convolution_whose_outputs_are_independent(key):
    net = ux.layered([ux.ConvLayer(2, 3, (2, 3), padding="VALID")], squares)
    x, target = numbers(1, 9, 5, 6, 2), numbers(2, 9, 4, 4, 3)
    params = doubled(net.params(jax.random.key(3)))
    kfac = KFAC(net, damping=1e-13, adapt=False)
    state, estimate = jax.jit(kfac.estimate)(params, kfac.init(key, params), (x, target))
    patches = [[np.ravel(x[b, i : i + 2, j : j + 3]) for i in range(4) for j in range(4)] for b in range(9)]
    rows = np.c_[np.concatenate(patches), np.ones(9 * 16)]
    best = np.linalg.lstsq(rows, np.asarray(target).reshape(-1, 3), rcond=None)[0]
    np.testing.assert_allclose(net.layers[0].matrix(apply(params, estimate)[0]), best, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.factors[0].inputs, rows.T @ rows / len(rows), rtol=1e-12)  # a mean over places
    np.testing.assert_allclose(state.factors[0].outputs, [16.0] * 3, rtol=1e-12)  # a sum


def test_the_factor_of_a_convolutions_outputs_sums_over_its_places_the_gauss_newton_blocks():
    net = ux.layered([ux.ConvLayer(1, 2, 2, "tanh", strides=2), FLAT, ux.DenseLayer(8, 2)], sigmoids)
    params = doubled(net.params(jax.random.key(0)))
    x, target = numbers(1, 2, 4, 4, 1), jax.nn.sigmoid(numbers(2, 2, 2))
    made = linearized("test", net.layers, params, x)
    root, found = output_hessian(net.loss, made.y, target, "independent")[1], 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        found += factors_of(made.features[0], made.pull(root(jnp.array(signs).reshape(2, 2)))[0], 2).outputs / 16
    first, last = net.layers[0], net.layers[2]
    tail = lambda a: last.pre(params[2], first.transfer(a).reshape(1, 8))[0]
    expected = 0.0
    for a in first.pre(params[0], x).reshape(2, 4, 2):
        p, jacobian = jax.nn.sigmoid(tail(a)), jax.jacobian(tail)(a)  # [output, place, channel]
        expected += jnp.einsum("o,opc,opd->cd", p * (1 - p), jacobian, jacobian) / 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_inverses_of_factors_that_lack_rank_stay_positive_in_float32():
    rows = numbers(1, 30, 100).astype(jnp.float32)  # fewer than features: 70 of their directions have no second moment
    inverse = inverted(factors_of(rows, rows[:, :5], 30), jnp.float32(1e-8))
    for part in inverse:
        values = np.linalg.eigvalsh(np.asarray(part, np.float64))
        assert values[0] > -1e-4 * values[-1]  # by jnp.linalg.inv -0.9 of it, by a Cholesky factor NaN


def test_little_damping_stays_finite_and_goes_down_in_float32(key):
    net = ux.layered(ux.dense_layers([70, 6, 70], "tanh"), sigmoids)
    places = jnp.arange(70.0, dtype=jnp.float32)
    spots = 70 * jax.random.uniform(jax.random.key(1), (40, 1), jnp.float32)
    x = jnp.exp(-((places[None] - spots) ** 2) / 8)  # fewer images than pixels, most of which are 0
    floor = jax.scipy.special.entr(x).sum(-1).mean() + jax.scipy.special.entr(1 - x).sum(-1).mean()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), net.params(jax.random.key(0)))
    kfac = KFAC(net, damping=1e-8, every=3)
    run = ux.fit(kfac, optax.sgd(1.0), params, lambda step: (30 * x, x), key=key, steps=60)
    assert run.metrics.loss.dtype == jnp.float32
    assert np.isfinite(run.metrics.loss).all()
    assert run.metrics.loss[-1] - floor < 0.1 * (run.metrics.loss[0] - floor)


@pytest.mark.parametrize("every", [3, 100_000])
def test_the_damping_falls_while_the_model_is_right_however_seldom_it_changes(key, every):
    net, params, data = small()
    kfac = KFAC(net, damping=1.0, every=every)
    run = jax.jit(kfac.estimate)
    state, _ = run(params, kfac.init(key, params), data)  # which has inverses now
    state, estimate = run(params, state._replace(step=jnp.int32(every - 1)), data)
    assert estimate.info.ratio > 0.75
    np.testing.assert_allclose(state.damping, 0.95 ** min(every, 100), rtol=1e-6)


@pytest.mark.slow
def test_a_deep_autoencoder_of_curves_trains_in_float32(key):
    net = recipe.net((784, 250, 125, 60, 15))
    images = recipe.flat(curves(5000, 0)).astype(jnp.float32)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), net.params(jax.random.key(0)))
    batches = recipe.Batches(images, jax.random.key(1), 500)
    run = ux.fit(KFAC(net), optax.sgd(1.0), params, batches, key=key, steps=400)
    assert run.metrics.loss.dtype == jnp.float32
    assert np.isfinite(run.metrics.loss).all()
    assert run.metrics.loss[-20:].mean() < 47  # nats, 23 of them the images' entropy; 51 if more is renewed at first
