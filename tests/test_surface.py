import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import unrollax as ux

KEY = jax.random.key(0)

# ---------------------------------------------------------------------------------------------------- loss_surface


def test_given_directions_span_the_plane_that_they_say():
    matrix = np.random.default_rng(0).normal(size=(4, 4))
    loss = lambda params: params["w"] @ matrix @ params["w"] + params["b"] ** 3
    params = {"w": jnp.arange(4.0), "b": jnp.array(0.5)}
    first = {"w": jnp.array([1.0, 0.0, 2.0, 0.0]), "b": jnp.array(0.0)}
    second = {"w": jnp.zeros(4), "b": jnp.array(2.0)}
    found = ux.loss_surface(loss, params, directions=(first, second), span=0.5, points=7)
    assert found.losses.shape == (7, 7)
    np.testing.assert_allclose(found.a, np.linspace(-0.5, 0.5, 7))
    for i, a in enumerate(found.a):
        for j, b in enumerate(found.b):
            w = np.arange(4.0) + a * np.array([1.0, 0.0, 2.0, 0.0])
            np.testing.assert_allclose(found.losses[i, j], w @ matrix @ w + (0.5 + 2 * b) ** 3, rtol=1e-12)
    np.testing.assert_allclose(found.center, found.losses[3, 3], rtol=1e-12)


@ux.value
class Pick:
    """A loss that is one of the numbers: a value, so that it compiles once."""

    weights: jax.Array

    def __call__(self, params):
        return self.weights @ ravel_pytree(params)[0]


def test_random_directions_are_as_long_as_the_params_slice_by_slice():
    params = {
        "kernel": jax.random.normal(KEY, (2, 2, 3)) * jnp.arange(3.0)[None, None],
        "bias": jnp.arange(4.0),
        "gain": jnp.array(2.0),
    }
    # a linear loss in one number reads off that number's direction: loss(1, 0) - loss(0, 0)
    vector, unravel = ravel_pytree(params)
    directions = np.zeros((2, len(vector)))
    for index in range(len(vector)):
        found = ux.loss_surface(Pick(jnp.eye(len(vector))[index]), params, key=jax.random.key(7), points=3)
        directions[:, index] = found.losses[2, 1] - found.center, found.losses[1, 2] - found.center
    for direction in directions:
        tree = unravel(jnp.asarray(direction))
        norms = lambda leaf: np.sqrt(np.square(leaf).sum((0, 1)))
        np.testing.assert_allclose(norms(tree["kernel"]), norms(params["kernel"]), rtol=1e-10)
        np.testing.assert_allclose(np.linalg.norm(tree["bias"]), np.linalg.norm(params["bias"]), rtol=1e-10)
        np.testing.assert_allclose(abs(tree["gain"]), 2.0, rtol=1e-10)
    cosine = directions[0] @ directions[1] / np.linalg.norm(directions[0]) / np.linalg.norm(directions[1])
    assert abs(cosine) < 0.9  # drawn apart


def test_a_rescaled_unit_has_the_same_picture():
    """Li et al.: with w_in x 10 and w_out / 10 of a ReLU net the function is the same, and so is its surface."""
    x = jax.random.normal(jax.random.key(1), (6, 3))
    loss = lambda params: ((jax.nn.relu(x @ params["in"]) @ params["out"]) ** 2).mean()
    params = {"in": jax.random.normal(KEY, (3, 1)), "out": jnp.ones((1, 2))}
    scaled = {"in": 10 * params["in"], "out": params["out"] / 10}
    first, second = (ux.loss_surface(loss, each, key=KEY, points=5) for each in (params, scaled))
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-10, atol=1e-20)


def test_a_surface_of_a_system_is_its_mean_step_loss():
    system = ux.system(init=lambda key, params: jnp.ones(()), step=lambda p, s, x, k: (p * s, (p * s - x) ** 2))
    data = jnp.linspace(0.0, 1.0, 4)
    loss = lambda params: ux.unroll(system, params, system.init(KEY, params), data, KEY)[1].mean()
    found = ux.loss_surface(loss, 0.5, directions=(1.0, 2.0), span=0.1, points=2)
    p = 0.5 + 0.1 - 0.2
    np.testing.assert_allclose(
        found.losses[1, 0], np.mean((p ** np.arange(1, 5) - np.linspace(0, 1, 4)) ** 2), rtol=1e-12
    )


def test_points_where_the_loss_is_not_finite_are_counted_not_hidden():
    found = ux.loss_surface(
        lambda p: jnp.log(p[0]), jnp.array([0.5, 0.0]), directions=(jnp.eye(2)[0], jnp.eye(2)[1]), points=5
    )
    assert np.isnan(found.losses[0]).all()
    assert "% of the points are infinite or NaN" in str(found)
    assert "lowest" in str(found)
    nowhere = ux.loss_surface(lambda p: jnp.nan * p.sum(), jnp.ones(2), key=KEY, points=3)
    assert "100.0 % of the points" in str(nowhere)
    assert len(nowhere.to_dict()["losses"]) == 3


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({}, ux.InvalidArgument, "directions or a key must be given"),
        ({"key": 3}, ux.InvalidArgument, "key must be a single PRNG key"),
        ({"key": KEY, "span": 0.0}, ux.InvalidArgument, "span must be a positive number"),
        ({"key": KEY, "points": 0}, ux.InvalidArgument, "points must be a positive whole number"),
        ({"directions": jnp.ones(2)}, ux.InvalidArgument, "directions must be two trees"),
        (
            {"directions": (jnp.ones(2), jnp.ones(3))},
            ux.StructureError,
            r"directions\[1\] leaf .*float64\[2\], got float64\[3\]",
        ),
        ({"key": KEY, "loss": lambda p: p}, ux.StructureError, "must return a scalar"),
        ({"key": KEY, "loss": 1.0}, ux.InvalidArgument, "loss must be a function"),
    ],
)
def test_loss_surface_says_what_does_not_fit(options, kind, says):
    options = {"loss": lambda p: p.sum(), **options}
    with pytest.raises(kind, match=f"loss_surface: .*{says}"):
        ux.loss_surface(options.pop("loss"), jnp.ones(2), **options)


# ---------------------------------------------------------------------------------------------------- trajectories


def gradient(theta):
    return np.array([theta[0] / 10, 2 * theta[1]])


def descent(theta, steps):
    for _ in range(steps):
        theta = theta - 0.95 * gradient(theta)
        yield theta


def momentum(theta, steps):
    """The seed's (1) and (2), with alpha = 0.9 and eta = 1."""
    v = np.zeros(2)
    for _ in range(steps):
        v = -(1 - 0.9) * gradient(theta) + 0.9 * v
        theta = theta + 1.0 * v
        yield theta


def adagrad(theta, steps):
    """The seed's (6) and (7)."""
    w = np.zeros(2)
    for _ in range(steps):
        w = w + gradient(theta) ** 2
        theta = theta - 1.5 / np.sqrt(w) * gradient(theta)
        yield theta


def rmsprop(theta, steps):
    """The seed's (8) and (9) with rho = 0.99, and the usual small number under the root."""
    w = np.zeros(2)
    for _ in range(steps):
        w = 0.99 * w + 0.01 * gradient(theta) ** 2
        theta = theta - 0.1 / np.sqrt(w + 1e-8) * gradient(theta)
        yield theta


def adam(theta, steps):
    """The seed's (13) to (15) with (16) to (22), and the usual small number beside the root."""
    v, w = np.zeros(2), np.zeros(2)
    for t in range(1, steps + 1):
        v = -(1 - 0.9) * gradient(theta) + 0.9 * v
        w = 0.999 * w + (1 - 0.999) * gradient(theta) ** 2
        theta = theta + 0.3 / (np.sqrt(w / (1 - 0.999**t)) + 1e-8) * v / (1 - 0.9**t)
        yield theta


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        return ux.trajectories(steps=100)


@pytest.mark.parametrize(
    ("name", "recurrence"),
    [("GD", descent), ("momentum", momentum), ("AdaGrad", adagrad), ("RMSProp", rmsprop), ("Adam", adam)],
)
def test_a_path_is_its_recurrence_written_out(found, name, recurrence):
    start = np.array([-7.0, 2.0])
    path = np.array([start, *recurrence(start, 100)])
    np.testing.assert_allclose(found.paths[name], path, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.losses[name], path[:, 0] ** 2 / 20 + path[:, 1] ** 2, rtol=0, atol=1e-12)


def test_all_five_reach_the_valleys_end_and_only_descent_swings_across_at_every_update(found):
    assert list(found.paths) == ["GD", "momentum", "AdaGrad", "RMSProp", "Adam"]
    assert all(losses[-1] < 1e-3 < losses[0] for losses in found.losses.values())
    turns = {name: (np.diff(path[:, 1])[1:] * np.diff(path[:, 1])[:-1] < 0).sum() for name, path in found.paths.items()}
    assert turns["GD"] == 99
    assert max(count for name, count in turns.items() if name != "GD") < 20


def test_the_grid_is_the_loss_around_the_paths(found):
    assert found.grid.shape == (61, 61)
    np.testing.assert_allclose(found.grid, found.x[None] ** 2 / 20 + found.y[:, None] ** 2, rtol=1e-12)
    everywhere = np.concatenate(list(found.paths.values()))
    assert (everywhere > [found.x[0], found.y[0]]).all()
    assert (everywhere < [found.x[-1], found.y[-1]]).all()


def test_another_loss_start_and_optimizer():
    saddle = lambda theta: theta[0] ** 2 - theta[1] ** 2
    got = ux.trajectories(saddle, (1.0, 0.0), {"sgd": optax.sgd(0.1)}, steps=3)
    np.testing.assert_allclose(got.paths["sgd"], [[1, 0], [0.8, 0], [0.64, 0], [0.512, 0]], rtol=1e-12)
    assert "sgd" in str(got)
    assert got.to_dict()["losses"]["sgd"] == pytest.approx([1, 0.64, 0.4096, 0.262144])


def test_a_path_that_leaves_the_numbers_is_kept_and_the_grid_is_finite():
    got = ux.trajectories(lambda theta: (theta**4).sum(), (2.0, 2.0), {"far": optax.sgd(10.0)}, steps=8)
    assert not np.isfinite(got.paths["far"][-1]).any()
    assert np.isfinite(got.x).all()
    assert "far" in str(got)


@pytest.mark.parametrize(
    ("args", "kind", "says"),
    [
        ((None, (1.0,)), ux.InvalidArgument, "start must be two finite numbers"),
        ((None, (1.0, np.nan)), ux.InvalidArgument, "start must be two finite numbers"),
        ((None, None, {"adam": optax.adam}), ux.InvalidArgument, "got function for adam"),
        ((None, None, {}), ux.InvalidArgument, "at least one"),
        ((lambda theta: theta,), ux.StructureError, r"got float64\[2\]"),
        ((1.0,), ux.StructureError, "to a scalar, got"),
    ],
)
def test_trajectories_says_what_does_not_fit(args, kind, says):
    with pytest.raises(kind, match=f"trajectories: .*{says}"):
        ux.trajectories(*args, steps=3)
