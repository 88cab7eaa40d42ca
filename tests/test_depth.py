import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erf

import unrollax as ux

ROOT2 = 2**0.5


def dense(transfer):
    return (lambda params, x: x @ params, transfer)


def product(params, x):
    return x @ params


def random_net(transfer, weight_std, seed, *, width, depth, batch):
    """Weights of N(0, weight_std^2 / n), inputs and a cotangent of N(0, 1) that know nothing of one another."""
    rng = np.random.default_rng(seed)
    params = list(jnp.asarray(rng.normal(size=(depth, width, width)) * weight_std / np.sqrt(width)))
    x, weights = (jnp.asarray(rng.normal(size=(batch, width))) for _ in range(2))
    return ux.depth_flow([(product, transfer)] * depth, params, x, Head(weights))


@ux.value
class Head:
    """A random linear loss: a value, so that its numbers don't compile anew."""

    weights: jax.Array

    def __call__(self, y):
        return (y * self.weights).sum()


# ------------------------------------------------------------------------------------------------------ depth_flow


@pytest.mark.parametrize("m", [1, 2, 7, 40])
def test_a_chain_of_m_sigmoids_at_zero_has_the_factor_4_to_the_minus_m(m):
    layer = (lambda params, x: params * x, lambda a: jax.nn.sigmoid(a) - 0.5)  # each output is 0 again
    found = ux.depth_flow([layer] * m, [jnp.ones(())] * m, jnp.zeros((1, 1)), lambda y: y.sum())
    np.testing.assert_allclose(found.input_gradient, 4.0**-m, rtol=1e-15)
    np.testing.assert_allclose(found.gradients, 4.0 ** -np.arange(m - 1, -1, -1), rtol=1e-15)
    np.testing.assert_allclose(found.factors, 0.25, rtol=1e-15)
    assert abs(found.factor - 0.25) < 1e-15


# Five nets each; the standard error of the mean over the nets is stated, and z is 4.
@pytest.mark.parametrize(
    ("transfer", "weight_std", "depth", "says", "within"),
    [(jax.nn.sigmoid, 1.0, 20, 0.234, 0.002), (jax.nn.relu, ROOT2, 20, 1.00, 0.01), (jnp.tanh, 1.0, 30, 0.94, 0.01)],
)
def test_random_nets_multiply_the_gradient_by_what_mean_field_theory_says(transfer, weight_std, depth, says, within):
    nets = [random_net(transfer, weight_std, seed, width=128, depth=depth, batch=32) for seed in range(5)]
    factors = np.array([net.factor for net in nets])
    theory = ux.mean_field(transfer, weight_std=weight_std, depth=depth).factor
    error = factors.std(ddof=1) / np.sqrt(len(nets))
    assert abs(factors.mean() - says) < within
    assert abs(theory - says) < within
    assert abs(factors.mean() - theory) < 4 * error + 0.003  # 0.003: the width is 128, not infinite
    assert all(abs(net.predicted - theory) < 0.01 for net in nets)  # from the measured weights and activations


def test_the_spread_of_the_factor_over_nets_is_the_error_that_it_states():
    nets = [random_net(jax.nn.relu, ROOT2, seed, width=32, depth=12, batch=8) for seed in range(30)]
    spread = np.log([net.factor for net in nets]).std(ddof=1)
    stated = np.sqrt(np.mean([(net.error / net.factor) ** 2 for net in nets]))
    assert (
        0.6 < stated / spread < 1.6
    )  # of 30 nets the spread itself is known to 13 %, z = 3; layers are correlated a little


def test_norms_are_those_of_gradients_written_out():
    rng = np.random.default_rng(0)
    w, v, x = rng.normal(size=(3, 5)), rng.normal(size=(5, 2)), rng.normal(size=(4, 3))
    bias = rng.normal(size=5)
    layers = [(lambda p, x: x @ p["w"] + p["b"][None], jnp.tanh), lambda p, x: (x @ p) ** 2]
    found = ux.depth_flow(layers, [{"w": w, "b": bias}, v], x, lambda y: (y**3).sum(), names=["in", "out"])

    h = np.tanh(x @ w + bias)
    y = (h @ v) ** 2
    at_y = 3 * y**2
    at_square = at_y * 2 * (h @ v)
    at_h = at_square @ v.T
    at_a = at_h * (1 - h**2)
    norm = np.linalg.norm
    np.testing.assert_allclose(found.loss, (y**3).sum(), rtol=1e-12)
    np.testing.assert_allclose(found.norms, [norm(h), norm(y)], rtol=1e-12)
    np.testing.assert_allclose(found.activations, [np.sqrt((h**2).mean()), np.sqrt((y**2).mean())], rtol=1e-12)
    np.testing.assert_allclose(found.gradients, [norm(at_h), norm(at_y)], rtol=1e-12)
    np.testing.assert_allclose(found.input_gradient, norm(at_a @ w.T), rtol=1e-12)
    by_hand = [np.hypot(norm(x.T @ at_a), norm(at_a.sum(0))), norm(h.T @ at_square)]
    np.testing.assert_allclose(found.params, by_hand, rtol=1e-12)
    np.testing.assert_allclose(found.factors, [norm(at_a @ w.T) / norm(at_h), norm(at_h) / norm(at_y)], rtol=1e-12)
    assert found.names == ["in", "out"]
    sw = np.sqrt((w**2).mean() * 3)
    spread = np.sqrt(((x @ w + bias) ** 2).mean())
    slope = quad(lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * np.cosh(spread * z) ** -4, -9, 9)[0]
    np.testing.assert_allclose(found.predictions, [sw * np.sqrt(slope), np.nan], rtol=1e-8)


def test_saturated_and_dead_are_counted():
    a = np.array([[-1.0, 2.0, -3.0, 0.5], [-0.5, -1.0, -2.0, 0.0]])
    found = ux.depth_flow([(lambda params, x: x, jax.nn.relu)], [None], a, lambda y: y.sum())
    assert found.dead == [0.5]  # the first and third unit never pass a gradient
    assert found.saturated == [6 / 8]  # the slope at 0 is 0
    assert found.params == [0]
    edge = np.arccosh(np.sqrt(20.0))  # where tanh' is 5 % of 1
    found = ux.depth_flow(
        [(lambda params, x: x, jnp.tanh)], [None], np.array([[edge + 0.01, edge - 0.01, -edge - 0.01, 0.0]]), jnp.sum
    )
    assert found.saturated == [0.5]
    assert found.dead == [0]


def test_a_layer_that_is_one_function_has_dead_units_by_its_outputs():
    x = jnp.array([[1.0, -1.0, 3.0], [2.0, -2.0, 3.0]])
    found = ux.depth_flow([lambda params, x: jax.nn.relu(x)], [None], x, lambda y: y.sum())
    assert found.dead == [2 / 3]
    assert np.isnan(found.saturated).all()
    assert found.predicted is None
    assert np.isnan(ux.depth_flow([lambda params, x: x], [None], x[:1], lambda y: y.sum()).dead).all()


def test_a_transfer_that_mixes_units_is_treated_as_one_function():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    found = ux.depth_flow([(product, jax.nn.softmax)], [jnp.eye(4)], x, lambda y: y[:, 0].sum())
    assert np.isnan(found.saturated).all()
    assert found.dead == [0]
    assert found.predicted is None


def test_an_object_with_pre_and_transfer_is_a_layer_and_so_is_a_value():
    class Plain:
        __hash__ = None
        pre = staticmethod(product)
        transfer = staticmethod(jnp.tanh)

    @ux.value
    class Scaled:
        scale: jax.Array

        def pre(self, params, x):
            return self.scale * (x @ params)

        def transfer(self, a):
            return jnp.tanh(a)

    params, x = [jnp.eye(3)] * 2, jnp.ones((2, 3))
    expected = ux.depth_flow([dense(jnp.tanh), dense(jnp.tanh)], params, x, lambda y: y.sum())
    found = ux.depth_flow([Plain(), Scaled(jnp.ones(()))], params, x, lambda y: y.sum())
    np.testing.assert_allclose(found.gradients, expected.gradients, rtol=1e-14)
    np.testing.assert_allclose(found.saturated, expected.saturated)


def test_a_transfer_of_one_shape_alone_still_has_its_factor_and_dead_units():
    slopes = jnp.array([[0.0, 0.5, 1.0]])
    found = ux.depth_flow(
        [(lambda params, x: x, lambda a: jnp.where(a > 0, a, slopes * a))], [None], -jnp.ones((4, 3)), lambda y: y.sum()
    )
    np.testing.assert_allclose(found.factors, np.sqrt(1.25 / 3))
    assert found.dead == [1 / 3]


def test_inputs_that_are_whole_numbers_have_no_gradient():
    layers = [lambda params, x: params[x], dense(jnp.tanh)]
    found = ux.depth_flow(layers, [jnp.eye(5), jnp.ones((5, 2))], jnp.arange(5), lambda y: y.sum())
    assert np.isnan(found.input_gradient)
    np.testing.assert_array_equal(np.isnan(found.factors), [True, False])
    assert found.verdict == "healthy"
    np.testing.assert_allclose(found.params[0], found.gradients[0])  # each row of the table is used once


def test_underflow_names_the_last_layer_that_it_reaches_and_the_factor_is_of_what_is_left():
    halve = lambda params, x: x * jnp.float32(2.0**-20)
    found = ux.depth_flow([halve] * 10, [None] * 10, jnp.ones((2, 3), jnp.float32), lambda y: y.sum())
    # |d loss / d y_l| = sqrt(6) 2^(-20 (10 - l)): below 2^-126 for 10 - l = 7, that is l = 3, the layer of index 2
    assert found.underflow == 2
    assert found.verdict == "vanishing"
    np.testing.assert_allclose(found.factor, 2.0**-20, rtol=1e-6)
    assert "underflows from layer 3 on" in str(found)


def test_overflow_is_exploding():
    grow = lambda params, x: x * jnp.float32(2.0**50)
    found = ux.depth_flow([grow] * 4, [None] * 4, jnp.full((1, 1), 1e-30, jnp.float32), lambda y: (1e-30 * y).sum())
    assert found.verdict == "exploding"
    found = ux.depth_flow([lambda params, x: jnp.sqrt(x)] * 2, [None] * 2, jnp.zeros((1, 1)), lambda y: y.sum())
    assert (found.verdict, found.overflow) == ("exploding", 0)


def test_small_norms_are_not_lost_in_squares():
    found = ux.depth_flow(
        [lambda params, x: x * jnp.float32(1e-30)], [None], jnp.ones((3, 4), jnp.float32), lambda y: y.sum()
    )
    np.testing.assert_allclose(found.input_gradient, 1e-30 * np.sqrt(12), rtol=1e-6)


def test_the_same_layer_is_compiled_once():
    traces = []

    def pre(params, x):
        traces.append(1)
        return x @ params

    layer = (pre, jnp.tanh)
    ux.depth_flow([layer] * 2, [jnp.eye(3)] * 2, jnp.ones((2, 3)), lambda y: y.sum())
    before = len(traces)
    ux.depth_flow([layer] * 30, [jnp.eye(3)] * 30, jnp.ones((2, 3)), lambda y: y.sum())
    assert len(traces) == before


def test_a_depth_is_shown_and_is_plain():
    found = ux.depth_flow([dense(jnp.tanh)] * 50, [jnp.eye(3)] * 50, jnp.ones((2, 3)), lambda y: y.sum())
    lines = str(found).splitlines()
    assert lines[0].startswith("Depth: ")
    assert "layer 20 " in str(found)
    assert "layer 21 " not in str(found)
    plain = found.to_dict()
    assert len(plain["factors"]) == 50
    assert all(type(number) is float for number in plain["factors"])


@pytest.mark.parametrize(
    ("layers", "params", "loss", "kind", "says"),
    [
        ([], [], jnp.sum, ux.InvalidArgument, "at least one layer"),
        ([3], [None], jnp.sum, ux.InvalidArgument, r"layers\[0\] must be a pair"),
        ([(product,)], [None], jnp.sum, ux.InvalidArgument, r"layers\[0\] must be a pair"),
        ([product], [None, None], jnp.sum, ux.InvalidArgument, "params must hold one for each of the 1 layers, got 2"),
        ([product], [jnp.eye(3)], 1.0, ux.InvalidArgument, "loss must be a function"),
        ([product], [jnp.eye(3)], lambda y: y, ux.StructureError, "floating scalar"),
        ([lambda params, x: x.sum()], [None], jnp.sum, ux.StructureError, "batch on the first axis"),
        ([lambda params, x: (x, x)], [None], jnp.sum, ux.StructureError, "batch on the first axis"),
    ],
)
def test_depth_flow_says_what_does_not_fit(layers, params, loss, kind, says):
    with pytest.raises(kind, match=says):
        ux.depth_flow(layers, params, jnp.ones((2, 3)), loss)


# ------------------------------------------------------------------------------------------------------ mean_field


class Closed(NamedTuple):
    """Moments of a transfer in closed form, as functions of the variance q (and correlation c)."""

    squares: object
    slopes: object
    both: object = None


ERF = Closed(
    lambda q: 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)),
    lambda q: 4 / np.pi / np.sqrt(1 + 4 * q),
    lambda q, c: 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q)),  # Williams, NIPS 1997
)


@pytest.mark.parametrize("weight_std", [0.7, 1.0, 1.5, 3.0])
def test_an_erf_net_follows_its_closed_form(weight_std):
    found = ux.mean_field(jax.lax.erf, weight_std=weight_std, bias_std=0.3, depth=6)
    q = weight_std**2 + 0.09
    for layer in range(6):
        np.testing.assert_allclose(found.lengths[layer], q, rtol=1e-13)
        np.testing.assert_allclose(found.factors[layer], weight_std * np.sqrt(ERF.slopes(q)), rtol=1e-13)
        q = weight_std**2 * ERF.squares(q) + 0.09
    for _ in range(5000):
        q = weight_std**2 * ERF.squares(q) + 0.09
    np.testing.assert_allclose(found.q, q, rtol=1e-10)
    np.testing.assert_allclose(found.chi, weight_std**2 * ERF.slopes(q), rtol=1e-10)
    c = 0.0
    for _ in range(5000):
        c = (weight_std**2 * ERF.both(q, c) + 0.09) / q
    np.testing.assert_allclose(found.correlation, c, rtol=1e-8)
    h = 1e-4
    slope = weight_std**2 * (ERF.both(q, c) - ERF.both(q, c - h)) / (q * h)
    np.testing.assert_allclose(found.slope, slope, rtol=1e-3)
    assert found.verdict == ("exploding" if found.chi > 1 else "vanishing")
    np.testing.assert_allclose(found.depth_scale, 1 / abs(np.log(found.chi)))


def test_relu_with_he_initialisation_is_critical_to_the_last_digit():
    found = ux.mean_field(jax.nn.relu, weight_std=ROOT2, depth=100)
    np.testing.assert_allclose(found.factors, 1, atol=1e-15)
    np.testing.assert_allclose(found.lengths, 2, rtol=1e-12)
    assert abs(found.chi - 1) < 1e-15
    assert (found.verdict, found.depth_scale) == ("critical", math.inf)


@pytest.mark.parametrize(("weight_std", "q", "verdict"), [(1.0, 0.0, "vanishing"), (1.6, math.inf, "exploding")])
def test_relu_shrinks_or_grows_for_ever_elsewhere(weight_std, q, verdict):
    found = ux.mean_field(jax.nn.relu, weight_std=weight_std)
    np.testing.assert_allclose(found.chi, weight_std**2 / 2, rtol=1e-14)
    assert (found.q, found.verdict) == (q, verdict)


def test_tanh_at_one_is_critical_but_thirty_layers_are_not_enough_to_see_it():
    found = ux.mean_field(jnp.tanh, depth=30)
    assert (found.q, found.verdict) == (0.0, "critical")
    mean = lambda f, q: quad(lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * f(np.sqrt(q) * z), -10, 10)[0]
    q, chis = 1.0, []
    for _ in range(30):
        chis.append(mean(lambda a: np.cosh(a) ** -4, q))
        q = mean(lambda a: np.tanh(a) ** 2, q)
    np.testing.assert_allclose(found.factors, np.sqrt(chis), rtol=1e-8)
    np.testing.assert_allclose(found.factor, np.exp(0.5 * np.log(chis).mean()), rtol=1e-8)
    assert f"{found.factor:.2f}" == "0.94"


def test_sigmoids_multiply_the_gradient_by_0_236():
    found = ux.mean_field(jax.nn.sigmoid)
    assert f"{np.sqrt(found.chi):.3f}" == "0.236"
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    density = lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    square = quad(lambda z: density(z) * sigmoid(np.sqrt(found.q) * z) ** 2, -10, 10)[0]
    np.testing.assert_allclose(found.q, square, rtol=1e-9)


@pytest.mark.parametrize("q", [0.01, 0.3, 1.0, 40.0])
def test_kinks_off_zero_are_integrated_exactly_where_they_are_named(q):
    found = ux.mean_field(jax.nn.hard_tanh, weight_std=1.3, q=q, depth=2, kinks=(-1.0, 1.0))
    inside = erf(1 / np.sqrt(2 * q))
    np.testing.assert_allclose(found.factors[0] ** 2, 1.69 * inside, rtol=1e-13)
    tail = q * inside - np.sqrt(2 * q / np.pi) * np.exp(-1 / (2 * q)) + 1 - inside
    np.testing.assert_allclose(found.lengths[1], 1.69 * tail, rtol=1e-12)


def test_the_edge_of_chaos_separates_the_phases():
    verdicts = [ux.mean_field(jnp.tanh, weight_std=sw).verdict for sw in (0.99, 1.0, 1.01)]
    assert verdicts == ["vanishing", "critical", "exploding"]


def test_in_chaos_inputs_drift_apart_and_in_order_together():
    assert ux.mean_field(jnp.tanh, weight_std=2.0).correlation == 0.0
    found = ux.mean_field(jnp.tanh, weight_std=2.0, bias_std=0.3)
    assert 0 < found.correlation < 1
    assert found.slope < 1 < found.chi
    found = ux.mean_field(jnp.tanh, weight_std=0.9, bias_std=0.3)
    assert found.correlation == 1.0
    np.testing.assert_allclose(found.slope, found.chi, rtol=1e-10)


def test_a_mean_field_is_shown_and_is_plain():
    found = ux.mean_field(jax.nn.relu, weight_std=ROOT2, depth=3)
    assert str(found).startswith("Mean field: critical.")
    assert len(found.to_dict()["factors"]) == 3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (partial(ux.mean_field, jnp.tanh, weight_std=0.0), "weight_std must be a positive number"),
        (partial(ux.mean_field, jnp.tanh, bias_std=-1.0), "bias_std must be"),
        (partial(ux.mean_field, jnp.tanh, q=0.0), "q must be a positive number"),
        (partial(ux.mean_field, jnp.tanh, depth=0), "depth must be a positive whole number"),
        (partial(ux.mean_field, jnp.tanh, kinks=(np.inf,)), "kinks must be a finite number"),
        (partial(ux.mean_field, jax.nn.softmax), "acts on each number, got softmax"),
        (partial(ux.mean_field, "tanh"), "acts on each number, got 'tanh'"),
    ],
)
def test_mean_field_says_what_is_out_of_range(call, says):
    with pytest.raises(ux.InvalidArgument, match=says):
        call()
