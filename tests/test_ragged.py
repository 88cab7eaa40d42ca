import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(8)
RNG = np.random.default_rng(8)
LENGTHS = (4, 0, 1, 6)
PAIRS = [(RNG.normal(size=(n, 2)), RNG.integers(0, 3, n)) for n in LENGTHS]
LABELS = (2, 0, 1, 1)
ENDS = [(given, label) for (given, _), label in zip(PAIRS, LABELS, strict=True)]
NET = ux.recurrent(ux.GRUCell(2, 4), ux.Dense(4, 3))
PARAMS = NET.params(KEY)


def losses_of(given, targets):
    """The loss at each step of one bare sequence."""
    state, losses = NET.cell.init(PARAMS["cell"]), []
    for x, y in zip(given, targets, strict=True):
        state, h = NET.cell.step(PARAMS["cell"], state, jnp.asarray(x))
        logits = np.asarray(NET.readout.apply(PARAMS["readout"], h))
        losses.append(np.log(np.exp(logits).sum()) - logits[y])
    return np.array(losses)


def mean_loss(data):
    net = ux.batched(NET, data.weight.shape[1])
    run = jax.jit(lambda data: ux.unroll(net, PARAMS, net.init(KEY, PARAMS), data, KEY)[1].mean())
    return run(data)


@pytest.mark.parametrize("length", [None, 9])
def test_the_mean_over_sequences_is_that_of_each_ones_mean(length):
    each = [losses_of(*pair).mean() for pair in PAIRS if len(pair[0])]
    np.testing.assert_allclose(mean_loss(ux.pad_sequences(PAIRS, length=length)), np.mean(each), rtol=1e-12)


@pytest.mark.parametrize("length", [None, 9])
def test_the_mean_over_steps_counts_all_real_steps_alike(length):
    every = np.concatenate([losses_of(*pair) for pair in PAIRS])
    data = ux.pad_sequences(PAIRS, mean="steps", length=length)
    np.testing.assert_allclose(mean_loss(data), every.mean(), rtol=1e-12)


@pytest.mark.parametrize("mean", ["sequences", "steps"])
@pytest.mark.parametrize("length", [None, 9])
def test_a_loss_at_the_end_is_that_of_each_sequences_own_last_step(mean, length):
    ends = [losses_of(given, np.full(len(given), label))[-1] for given, label in ENDS if len(given)]
    data = ux.pad_sequences(ENDS, loss_at="end", mean=mean, length=length)
    np.testing.assert_allclose(mean_loss(data), np.mean(ends), rtol=1e-12)
    assert data.target.shape == data.weight.shape


@pytest.mark.parametrize("loss_at", ["each", "end"])
def test_a_batch_without_padding_is_what_sequence_makes(loss_at):
    pairs = [(RNG.normal(size=(5, 2)), RNG.integers(0, 3, 5) if loss_at == "each" else 1) for _ in range(3)]
    stacked = [jnp.stack([jnp.asarray(pair[k]) for pair in pairs]) for k in range(2)]
    frames = jax.vmap(lambda x, y: ux.sequence(x, y, loss_at=loss_at))(*stacked)
    expected = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), frames)
    jax.tree.map(np.testing.assert_array_equal, ux.pad_sequences(pairs, loss_at=loss_at), expected)


def test_data_stand_at_the_start_and_zeros_after_them():
    data = ux.pad_sequences(PAIRS, length=7)
    for n, (given, target) in enumerate(PAIRS):
        np.testing.assert_array_equal(data.input[: len(given), n], given)
        np.testing.assert_array_equal(data.target[: len(given), n], target)
        assert not np.any(data.input[len(given) :, n])
        np.testing.assert_array_equal(data.mask[:, n], np.arange(7) < len(given))
    assert (data.input.shape, data.target.shape, data.weight.shape) == ((7, 4, 2), (7, 4), (7, 4))
    assert (data.input.dtype, data.target.dtype, data.mask.dtype) == (jnp.float64, jnp.int64, bool)


def test_inputs_and_targets_may_be_trees_and_a_sequence_without_steps_of_any_shape():
    make = lambda n: ({"a": np.ones((n, 2)), "b": np.arange(n)}, (np.zeros((n, 3)), np.ones(n, bool)))
    empty = ({"a": np.array([]), "b": np.array([])}, (np.array([]), np.array([])))
    data = ux.pad_sequences([make(3), empty, make(2)])
    assert jax.tree.map(jnp.shape, data.input) == {"a": (3, 3, 2), "b": (3, 3)}
    assert jax.tree.map(lambda leaf: leaf.dtype.name, data.target) == ("float64", "bool")
    np.testing.assert_array_equal(data.input["b"][:, 2], [0, 1, 0])
    np.testing.assert_array_equal(data.weight[:, 1], np.zeros(3))
    assert data.input["b"].dtype == jnp.int64


def test_a_sequence_without_a_step_changes_nothing_for_the_others():
    without = [pair for pair in PAIRS if len(pair[0])]
    np.testing.assert_allclose(mean_loss(ux.pad_sequences(PAIRS)), mean_loss(ux.pad_sequences(without)), rtol=1e-13)


@pytest.mark.parametrize("pairs", [[], PAIRS[1:2]])
def test_a_batch_without_any_step_is_named(pairs):
    with pytest.raises(ux.InvalidArgument, match=r"^pad_sequences: at least one sequence must have a step, got"):
        ux.pad_sequences(pairs)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_at": "start"}, r"loss_at must be one of 'each', 'end', got loss_at='start'"),
        ({"mean": "all"}, r"mean must be one of 'sequences', 'steps', got mean='all'"),
        ({"length": 0}, r"length must be a positive whole number, got length=0"),
        ({"length": 5}, r"length must be at least that of the longest sequence, got length=5, 6 steps in sequence 3"),
    ],
)
def test_an_option_that_cannot_be_is_named(options, expected):
    with pytest.raises(ux.InvalidArgument, match=rf"^pad_sequences: {expected}\."):
        ux.pad_sequences(PAIRS, **options)


STEPS = r"the leaves of sequence 1 must have the same steps on their first axis, got"


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((np.ones((3, 2)), np.zeros(4, int)), STEPS + r" float64\[3,2\], int64\[4\]"),
        ((np.ones((3, 2)), 1), STEPS + r" float64\[3,2\], int64\[\]"),
        (([1.0, 2.0], [0, 1]), STEPS + r" float64\[\], float64\[\]"),
        (
            np.ones((2, 2)),
            r"sequence 1 must be a pair \(input, target\), got float64\[2,2\]\. Pass a list of such pairs",
        ),
        ((np.ones((3, 2)),), r"sequence 1 must be a pair \(input, target\), got tuple of 1\."),
        ({"x": 1, "y": 2}, r"sequence 1 must be a pair \(input, target\), got dict\."),
        (((), ()), STEPS + r" no leaf"),
        (
            (np.ones((3, 5)), np.zeros(3, int)),
            r"one step of the input must have one shape, that of float64\[4,2\], got",
        ),
        ((np.ones((3, 2)), np.zeros((3, 1))), r"one step of the target must have one shape, that of int64\[4\], got"),
        (({"a": np.ones((3, 2))}, np.zeros(3, int)), r"the input of every sequence must have one structure"),
    ],
)
def test_leaves_that_do_not_fit_are_named(second, expected):
    with pytest.raises(ux.StructureError, match=rf"^pad_sequences: {expected}"):
        ux.pad_sequences([PAIRS[0], second])
