"""Problems: what is drawn has the moments that are stated, answers are answers, and what doesn't fit is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrollax import InvalidArgument, StructureError, problems

Z = 4.5  # standard errors that a mean may be off: a chance of 7e-6 a figure, and the seeds are fixed
MADE = {
    "ridge": lambda: problems.ridge(m=8, n=5),
    "sparse_recovery": lambda: problems.sparse_recovery(m=6, n=9),
    "du_ista": lambda: problems.du_ista(n=9, m=6),
    "mimo": lambda: problems.mimo(n=4, m=3),
    "piecewise_constant": lambda: problems.piecewise_constant(n=7),
    "deblurring": lambda: problems.deblurring(size=9),
    "from_arrays": lambda: problems.from_arrays(np.eye(3), np.ones((4, 3)), np.ones((4, 3))),
}


def many(of, count, seed=0):
    return jax.jit(jax.vmap(of.draw))(jax.random.split(jax.random.key(seed), count))


def agrees(samples, expected):
    """Whether the mean of independent samples is what is expected, to Z standard errors."""
    samples = np.asarray(samples, float).ravel()
    return abs(samples.mean() - expected) < Z * samples.std() / np.sqrt(samples.size)


@pytest.mark.parametrize("name", MADE)
def test_a_draw_is_made_whole_under_jit_and_vmap_and_keeps_its_dtype(name, key):
    of = MADE[name]()
    own = of.draw(key)
    problem = of.whole(own)
    assert isinstance(problem, problems.Problem)
    together = jax.jit(lambda of, keys: jax.vmap(lambda key: of.whole(of.draw(key)).y)(keys))(
        of, jax.random.split(key, 3)
    )
    assert together.shape == (3, *problem.y.shape)
    assert problem.y.dtype == problem.x.dtype == jnp.float64
    product = problem.A.mv(problem.x) if hasattr(problem.A, "mv") else problem.A @ problem.x
    assert product.shape == problem.y.shape
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), own, of.draw(key)))


# --- ridge ---------------------------------------------------------------------------------------------------------------


def test_ridge_is_the_seeds_problem_and_its_answer_has_gradient_zero():
    of = problems.ridge()
    a = np.random.RandomState(0).randn(100, 50)
    np.testing.assert_array_equal(of.A, a)
    curvature = np.linalg.eigvalsh(a.T @ a) + 3
    assert curvature[-1] / curvature[0] == pytest.approx(24.5, abs=0.05)
    y, x = many(of, 400)
    np.testing.assert_allclose((x @ a.T - y) @ a + 3 * x, 0, atol=1e-10)
    assert agrees(y, 0)
    assert agrees(y**2, 1)
    assert of.whole((y[0], x[0])).lam == 3


# --- sparse recovery -----------------------------------------------------------------------------------------------------


def test_bernoulli_gauss_signals_have_their_moments():
    _, x = many(problems.sparse_recovery(m=20, n=50, p=0.15), 4000)
    assert agrees(x != 0, 0.15)
    assert agrees(x, 0)
    assert agrees(x**2, 0.15)
    assert agrees(x**4, 3 * 0.15)
    assert agrees(x[:, :-1] ** 2 * x[:, 1:] ** 2, 0.15**2)  # entries are independent
    assert agrees(x[1:, 0] ** 2 * x[:-1, 0] ** 2, 0.15**2)  # and so are signals


def test_noise_has_the_ratio_to_the_signal_that_is_asked_for():
    of = problems.sparse_recovery(m=20, n=50, p=0.15, snr_db=13.0, seed=3)
    a = np.random.RandomState(3).randn(20, 50) / np.sqrt(20)
    np.testing.assert_allclose(of.A, a, rtol=1e-15)
    y, x = many(of, 4000)
    clean = x @ a.T
    assert agrees((y - clean) ** 2, of.noise**2)
    assert agrees((clean**2).sum(1) - 10**1.3 * ((y - clean) ** 2).sum(1), 0)
    assert of.noise**2 == pytest.approx(0.15 * (a**2).sum() / 20 / 10**1.3)
    quiet = problems.sparse_recovery(m=20, n=50, snr_db=None)
    y, x = many(quiet, 3)
    np.testing.assert_allclose(y, x @ np.asarray(quiet.A).T, atol=1e-14)


def test_the_books_problem_has_a_matrix_of_unit_variance_and_noise_of_a_tenth():
    of = problems.du_ista()
    np.testing.assert_array_equal(of.A, np.random.RandomState(0).randn(64, 128))
    y, x = many(of, 500)
    assert agrees((y - x @ np.asarray(of.A).T) ** 2, 0.01)
    assert agrees(x != 0, 0.05)


# --- mimo ----------------------------------------------------------------------------------------------------------------


def test_a_channel_is_a_complex_one_in_real_numbers():
    of = problems.mimo(n=5, m=3, snr_db=300.0)
    a, y, x = many(of, 50)
    h = np.asarray(a[:, :3, :5] + 1j * a[:, 3:, :5])
    symbols = np.asarray(x[:, :5] + 1j * x[:, 5:])
    received = np.einsum("kij,kj->ki", h, symbols)
    np.testing.assert_allclose(y, np.concatenate([received.real, received.imag], 1), atol=1e-12)
    np.testing.assert_array_equal(a[:, :3, 5:], -a[:, 3:, :5])
    np.testing.assert_array_equal(a[:, 3:, 5:], a[:, :3, :5])
    assert set(np.unique(x)) == {-1.0, 1.0}


def test_channels_bits_and_noise_have_their_moments():
    of = problems.mimo(n=6, m=4, snr_db=7.0)
    a, y, x = many(of, 4000)
    h = a[:, :4, :6] + 1j * a[:, 4:, :6]
    assert agrees(jnp.abs(h) ** 2, 1)
    assert agrees(h.real * h.imag, 0)
    assert agrees(x, 0)
    clean = jnp.einsum("kij,kj->ki", a, x)
    assert agrees((y - clean) ** 2, of.noise**2)
    assert agrees(clean[:, 0] ** 2 - 10**0.7 * (y - clean)[:, 0] ** 2, 0)
    assert len(np.unique(a[:, 0, 0])) == 4000


# --- piecewise constant signals ------------------------------------------------------------------------------------------


def test_signals_jump_as_often_as_stated_by_a_standard_normal():
    of = problems.piecewise_constant(n=40, p=0.1, noise=0.3, lam=0.7)
    y, x = many(of, 4000)
    jumps = np.diff(x, axis=1)
    jumped = np.abs(jumps) > 1e-9
    assert agrees(jumped, 0.1)
    assert agrees(jumps[jumped] ** 2, 1)
    assert agrees(x[:, 0] ** 2, 1)
    assert agrees((y - x) ** 2, 0.09)
    problem = of.whole((y[0], x[0]))
    np.testing.assert_array_equal(problem.A @ problem.x, problem.x)
    assert (problem.noise, problem.lam) == (0.3, 0.7)


# --- deblurring ----------------------------------------------------------------------------------------------------------


def test_the_blur_is_a_circular_convolution_with_a_gaussian(key):
    of = problems.deblurring(size=12, width=1.3)
    x = jax.random.normal(key, (12, 12))
    away = [min(i, 12 - i) for i in range(12)]
    line = np.exp(-0.5 * (np.array(away) / 1.3) ** 2)
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    expected = sum(kernel[i, j] * np.roll(x, (i, j), (0, 1)) for i in range(12) for j in range(12))
    np.testing.assert_allclose(of.A.mv(x), expected, atol=1e-13)


@pytest.mark.parametrize("size", [7, 8])
def test_a_blurs_transpose_is_its_transpose(size, key):
    kernel = jax.random.normal(key, (size, size))  # one that is not its own mirror image
    blur = problems.Blur(jnp.fft.rfft2(kernel))
    x, y = jax.random.normal(jax.random.key(1), (2, size, size))
    for transposed in (blur.transpose(), blur.T):
        np.testing.assert_allclose((blur.mv(x) * y).sum(), (x * transposed.mv(y)).sum(), rtol=1e-11)
    flat = jax.vmap(lambda one: blur.mv(one.reshape(size, size)).ravel())(jnp.eye(size * size))
    np.testing.assert_allclose(np.linalg.norm(flat, 2), jnp.abs(blur.transfer).max(), rtol=1e-10)


def test_patches_are_cut_from_all_over_the_photographs():
    of = problems.deblurring(size=100, noise=0.02)
    assert of.images.shape == (2, 427, 640)
    assert 0 <= of.images.min() < 0.1
    assert 0.9 < of.images.max() <= 1
    np.testing.assert_allclose(jnp.abs(of.A.transfer).max(), 1, rtol=1e-12)
    y, x = many(of, 30)
    images, places = np.asarray(of.images), []
    for patch in np.asarray(x):
        corners = np.argwhere(images[:, :328, :541] == patch[0, 0])
        places += [at for at in corners if (images[at[0], at[1] : at[1] + 100, at[2] : at[2] + 100] == patch).all()]
    assert len(places) == 30
    assert {place[0] for place in places} == {0, 1}
    assert np.ptp([place[1] for place in places]) > 200
    assert agrees((y - jax.vmap(of.A.mv)(x)) ** 2, 0.02**2)


# --- one's own arrays ----------------------------------------------------------------------------------------------------


def test_each_of_the_given_measurements_is_drawn_alike_with_its_own_answer():
    a, x = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3)
    of = problems.from_arrays(a, x @ a.T, x, noise=0.1, lam=2.0)
    y, answers = many(of, 4000)
    np.testing.assert_array_equal(y, answers @ a.T)
    for row in range(4):
        assert agrees(answers[:, 0] == 3 * row, 0.25)
    problem = of.whole((y[0], answers[0]))
    assert (problem.noise, problem.lam) == (0.1, 2.0)


def test_one_measurement_complex_numbers_and_operators_will_do(key):
    one = problems.from_arrays(np.eye(3), [1, 2, 3])
    problem = one.whole(one.draw(key))
    assert problem.y.tolist() == [1.0, 2.0, 3.0]
    assert problem.y.dtype == jnp.float64
    assert problem.x is None
    turned = problems.from_arrays(1j * np.eye(2), np.ones((5, 2)) * 1j)
    assert turned.draw(key)[0].dtype == jnp.complex128
    blur = problems.deblurring(size=8).A
    image = problems.from_arrays(blur, np.ones((3, 8, 8)), np.ones((3, 8, 8)))
    assert image.whole(image.draw(key)).x.shape == (8, 8)


@pytest.mark.parametrize("ending", ["npz", "folder"])
def test_what_was_saved_is_loaded(ending, tmp_path):
    a, x = np.random.RandomState(0).randn(4, 3), np.random.RandomState(1).randn(5, 3)
    if ending == "npz":
        path = tmp_path / "mine.npz"
        np.savez(path, A=a, y=x @ a.T, x=x, noise=0.5)
    else:
        path = tmp_path
        for name, numbers in (("A", a), ("y", x @ a.T), ("x", x)):
            np.savetxt(path / f"{name}.csv", numbers, delimiter=",", fmt="%.17g")
    of = problems.load(path)
    np.testing.assert_array_equal(of.A, a)
    np.testing.assert_array_equal(of.x, x)
    np.testing.assert_array_equal(of.y, x @ a.T)
    assert of.noise == (0.5 if ending == "npz" else 0.0)


def test_arrays_that_dont_fit_are_refused_by_name_and_shape():
    a = np.ones((4, 3))
    for wrong, says in (
        (lambda: problems.from_arrays(np.ones(4), np.ones(4)), r"A must be a matrix \[m, n\], got float64\[4\]"),
        (lambda: problems.from_arrays(a, np.ones(3)), r"y must be \[4\] or \[count, 4\].*got float64\[3\]"),
        (lambda: problems.from_arrays(a, np.ones((4, 7))), r"got float64\[4,7\]. Transpose it"),
        (lambda: problems.from_arrays(a, np.ones(4), np.ones(4)), r"x must be \[3\].*a column of A float64\[4,3\]"),
        (lambda: problems.from_arrays(a, np.ones((2, 4)), np.ones(3)), r"an answer for each of the 2 measurements"),
        (lambda: problems.from_arrays(a, ["one"] * 4), r"y must hold numbers"),
    ):
        with pytest.raises(StructureError, match=says):
            wrong()
    with pytest.raises(InvalidArgument, match="y must hold finite numbers, got 1 that are not"):
        problems.from_arrays(a, [1, 2, np.nan, 4])
    with pytest.raises(InvalidArgument, match="noise must be a finite number of at least 0"):
        problems.from_arrays(a, np.ones(4), noise=-1.0)


def test_files_that_lack_something_are_refused_by_name(tmp_path):
    with pytest.raises(InvalidArgument, match=r"load: path must be an .npz file or a folder"):
        problems.load(tmp_path / "none.txt")
    with pytest.raises(InvalidArgument, match=r"must be a file, got none"):
        problems.load(tmp_path / "none.npz")
    (tmp_path / "A.csv").write_text("1,2\n3,4\n")
    with pytest.raises(InvalidArgument, match=r"must hold A and y, got A. Add y"):
        problems.load(tmp_path)
    (tmp_path / "y.csv").write_text("1,two\n")
    with pytest.raises(InvalidArgument, match=r"y.csv must hold numbers with commas between"):
        problems.load(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: problems.ridge(n=0), "ridge: n must be a positive whole number, got n=0"),
        (lambda: problems.ridge(lam=0.0), "ridge: lam must be a positive number"),
        (lambda: problems.sparse_recovery(p=1.5), r"sparse_recovery: p must be a number in \(0, 1\]"),
        (lambda: problems.sparse_recovery(snr_db=np.inf), "sparse_recovery: snr_db must be a finite number"),
        (lambda: problems.du_ista(sigma=-0.1), "du_ista: sigma must be"),
        (lambda: problems.mimo(m=2.5), "mimo: m must be a positive whole number"),
        (lambda: problems.piecewise_constant(p=0.0), "piecewise_constant: p must be"),
        (lambda: problems.deblurring(size=500), "deblurring: size must be at most 427"),
    ],
)
def test_what_no_problem_can_have_is_refused_where_it_is_made(make, says):
    with pytest.raises(InvalidArgument, match=says):
        make()
