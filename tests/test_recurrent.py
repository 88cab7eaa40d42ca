from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux

KEY = jax.random.key(2)
CELLS = [ux.RNNCell, ux.LSTMCell, ux.GRUCell]
REAL, PADDED = 3, 5
INPUT = jax.random.normal(KEY, (PADDED, 2))  # what stands at padded steps must not matter
CLASSES = jnp.array([2, 0, 1, 1, 2])
MASK = jnp.arange(PADDED) < REAL
lstm = ux.recurrent(ux.LSTMCell(2, 4), ux.Dense(4, 3))
PARAMS = lstm.params(KEY)


def run(net, params, data, start=None):
    start = net.init(KEY, params) if start is None else start
    return ux.unroll(net, params, start, data, KEY)


def cut(leaf):
    return leaf[:REAL]


def predictions(net, params, inputs):
    """Step the cell and apply the readout, one after another."""
    state, out = net.cell.init(params["cell"]), []
    for x in inputs:
        state, h = net.cell.step(params["cell"], state, x)
        out.append(net.readout.apply(params["readout"], h))
    return np.stack(out), state


def nll(logits, label):
    return float(np.log(np.exp(np.asarray(logits)).sum()) - logits[label])


@pytest.mark.parametrize("make", CELLS)
@pytest.mark.parametrize("loss_at", ["each", "end"])
def test_a_padded_sequence_has_the_loss_and_the_state_of_the_bare_one(make, loss_at):
    net = ux.recurrent(make(2, 4), ux.Dense(4, 3))
    params = net.params(KEY)
    target = CLASSES if loss_at == "each" else 2
    bare_target = cut(CLASSES) if loss_at == "each" else 2
    mean = jax.jit(jax.value_and_grad(lambda p, data: run(net, p, data)[1].mean()))
    value, grad = mean(params, ux.sequence(INPUT, target, mask=MASK, loss_at=loss_at))
    bare, bare_grad = mean(params, ux.sequence(cut(INPUT), bare_target, loss_at=loss_at))
    np.testing.assert_allclose(value, bare, rtol=1e-13)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-14), grad, bare_grad)
    state = run(net, params, ux.sequence(INPUT, target, mask=MASK, loss_at=loss_at))[0]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-13), state, predictions(net, params, cut(INPUT))[1])


def test_a_padded_step_leaves_the_state_to_the_bit_and_has_no_loss():
    start = (jnp.linspace(-1, 1, 4), jnp.linspace(2, 3, 4))
    data = ux.sequence(INPUT, CLASSES, mask=jnp.zeros(PADDED, bool))
    state, losses = run(lstm, PARAMS, data, start)
    jax.tree.map(np.testing.assert_array_equal, state, start)
    np.testing.assert_array_equal(losses, np.zeros(PADDED))


def test_a_gap_in_the_middle_is_skipped():
    mask = jnp.array([True, False, True, False, True])
    data = ux.sequence(INPUT, CLASSES, mask=mask)
    state, losses = run(lstm, PARAMS, data)
    logits, expected = predictions(lstm, PARAMS, INPUT[::2])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-13), state, expected)
    np.testing.assert_allclose(losses.mean(), np.mean([nll(z, y) for z, y in zip(logits, CLASSES[::2], strict=True)]))


@pytest.mark.parametrize(
    ("mask", "last"), [(None, 4), (MASK, 2), (jnp.array([0, 1, 0, 1, 0]), 3), ([1, 0, 0, 0, 0], 0)]
)
def test_a_loss_at_the_end_is_that_of_the_last_real_step(mask, last):
    frame = ux.sequence(INPUT, 1, mask=mask, loss_at="end")
    expected = np.zeros(PADDED)
    expected[last] = PADDED
    np.testing.assert_array_equal(frame.weight, expected)
    _, losses = run(lstm, PARAMS, frame)
    real = np.ones(PADDED, bool) if mask is None else np.asarray(mask, bool)
    logits = predictions(lstm, PARAMS, np.asarray(INPUT)[real])[0]
    np.testing.assert_allclose(losses.mean(), nll(logits[-1], 1), rtol=1e-13)


@pytest.mark.parametrize("loss_at", ["each", "end"])
def test_a_sequence_without_a_real_step_has_no_weight(loss_at):
    target = CLASSES if loss_at == "each" else 0
    frame = ux.sequence(INPUT, target, mask=jnp.zeros(PADDED), loss_at=loss_at)
    np.testing.assert_array_equal(frame.weight, np.zeros(PADDED))


@pytest.mark.parametrize(("mask", "weight"), [(None, [1] * 5), (MASK, [5 / 3, 5 / 3, 5 / 3, 0, 0])])
def test_weights_make_the_mean_over_all_steps_the_mean_over_real_ones(mask, weight):
    frame = ux.sequence({"a": INPUT}, CLASSES, mask=mask)
    np.testing.assert_allclose(frame.weight, weight, rtol=1e-15)
    assert frame.mask.dtype == bool
    assert frame.target is CLASSES


def test_sequences_are_mapped_over_examples_and_batched():
    inputs, masks = jax.random.normal(KEY, (2, PADDED, 2)), jnp.stack([MASK, ~MASK])
    frames = jax.vmap(lambda x, y, m: ux.sequence(x, y, mask=m, loss_at="end"))(inputs, jnp.array([0, 2]), masks)
    data = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), frames)
    _, losses = run(ux.batched(lstm, 2), PARAMS, data)
    ends = [predictions(lstm, PARAMS, inputs[i][masks[i]])[0][-1] for i in range(2)]
    np.testing.assert_allclose(losses.mean(), (nll(ends[0], 0) + nll(ends[1], 2)) / 2, rtol=1e-12)


@pytest.mark.parametrize("make", CELLS)
def test_predict_is_what_unroll_compares_with_the_targets(make):
    net = ux.recurrent(make(2, 4), ux.Dense(4, 3), ux.squared_error)
    params = net.params(KEY)
    predicted = net.predict(params, INPUT)
    np.testing.assert_allclose(predicted, predictions(net, params, INPUT)[0], rtol=1e-13)
    np.testing.assert_allclose(run(net, params, ux.sequence(INPUT, predicted))[1], np.zeros(PADDED), atol=1e-30)
    np.testing.assert_allclose(run(net, params, ux.sequence(INPUT, predicted + 2.0))[1], np.full(PADDED, 4), rtol=1e-12)


def test_predictions_after_a_masked_step_come_from_the_state_before_it():
    mask = jnp.array([True, False, True, True, False])
    predicted = lstm.predict(PARAMS, INPUT, mask)
    np.testing.assert_allclose(predicted[mask], predictions(lstm, PARAMS, INPUT[mask])[0], rtol=1e-13)


@pytest.mark.parametrize("make", CELLS)
def test_gradients_agree_with_finite_differences(make):
    net = ux.recurrent(make(1, 2), ux.Dense(2, 1), ux.squared_error)
    data = ux.sequence(INPUT[:, :1], jnp.sin(INPUT[:, :1]), mask=MASK)
    flat, unravel = jax.flatten_util.ravel_pytree(net.params(KEY))
    loss = jax.jit(lambda vector: run(net, unravel(vector), data)[1].mean())
    estimator = ux.BPTT(net, horizon=PADDED)
    params = unravel(flat)
    grad = jax.flatten_util.ravel_pytree(estimator.estimate(params, estimator.init(KEY, params), data)[1].grad)[0]
    step = 1e-6 * np.eye(len(flat))
    numeric = [(loss(flat + e) - loss(flat - e)) / 2e-6 for e in step]
    np.testing.assert_allclose(grad, numeric, rtol=1e-6, atol=1e-9)


def test_encode_is_applied_before_the_cell_in_training_and_in_prediction():
    tokens = jnp.array([1, 0, 1, 1, 0])
    encode = partial(jax.nn.one_hot, num_classes=2)
    net = ux.recurrent(ux.LSTMCell(2, 4), ux.Dense(4, 3), encode=encode)
    coded, plain = ux.sequence(tokens, CLASSES), ux.sequence(encode(tokens), CLASSES)
    np.testing.assert_array_equal(run(net, PARAMS, coded)[1], run(lstm, PARAMS, plain)[1])
    np.testing.assert_array_equal(net.predict(PARAMS, tokens), lstm.predict(PARAMS, encode(tokens)))


def test_losses_are_what_they_say():
    logits = jnp.array([0.5, -1.0, 2.0])
    np.testing.assert_allclose(ux.cross_entropy(logits, 1), nll(np.asarray(logits), 1), rtol=1e-14)
    np.testing.assert_allclose(ux.cross_entropy(logits + 1e4, 2), nll(np.asarray(logits), 2), rtol=1e-10)
    np.testing.assert_allclose(ux.squared_error(logits, jnp.array([0.5, 0.0, 0.0])), 5 / 3, rtol=1e-15)


@pytest.mark.parametrize(
    ("target", "options", "got"),
    [
        (2, {}, r"got int64\[\]"),
        (CLASSES[:4], {}, r"got int64\[4\]\. For one target at the end pass it without a time axis"),
        (CLASSES, {"mask": jnp.ones(4)}, r"got bool\[4\]"),
        (2, {"mask": jnp.ones(4), "loss_at": "end"}, r"got bool\[4\]"),
    ],
)
def test_leaves_of_other_lengths_are_named(target, options, got):
    with pytest.raises(
        ux.StructureError, match=rf"^sequence: input, target and mask must have the same 5 steps, {got}"
    ):
        ux.sequence(INPUT, target, **options)


def test_a_second_input_of_another_length_is_named():
    with pytest.raises(ux.StructureError, match=r"must have the same 5 steps, got float64\[3,2\]"):
        ux.sequence({"a": INPUT, "b": INPUT[:3]}, CLASSES)


def test_another_place_for_the_loss_is_named():
    with pytest.raises(ux.InvalidArgument, match=r"^sequence: loss_at must be 'each' or 'end', got 'start'\."):
        ux.sequence(INPUT, CLASSES, loss_at="start")


@pytest.mark.parametrize("loss", [ux.cross_entropy, ux.squared_error])
def test_what_stands_in_a_padding_reaches_neither_loss_nor_gradient(loss):
    """A label of -100 or a NaN is a usual padding, and 0 times NaN is NaN."""
    classes = loss is ux.cross_entropy
    net = ux.recurrent(ux.GRUCell(2, 3), ux.Dense(3, 2), loss)
    params = net.params(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (5, 2))
    targets = jnp.array([0, 1, 1, 0, 1]) if classes else jax.random.normal(jax.random.key(2), (5, 2))
    mask = jnp.array([True, True, True, False, False])
    spoilt = ux.sequence(
        jnp.where(mask[:, None], inputs, jnp.nan),
        jnp.where(mask, targets, -100) if classes else jnp.where(mask[:, None], targets, jnp.nan),
        mask=mask,
    )
    estimates = []
    for data in (ux.sequence(inputs, targets, mask=mask), spoilt):
        bptt = ux.BPTT(net, 5)
        estimates.append(bptt.estimate(params, bptt.init(jax.random.key(3), params), data)[1])
    jax.tree.map(np.testing.assert_array_equal, estimates[1], estimates[0])
    assert np.isfinite(estimates[1].loss)


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_a_mask_of_any_numbers_means_the_same(dtype):
    inputs = jax.random.normal(KEY, (PADDED, 2))
    np.testing.assert_array_equal(lstm.predict(PARAMS, inputs, MASK.astype(dtype)), lstm.predict(PARAMS, inputs, MASK))


@pytest.mark.parametrize(
    "shapes", [((3,), ()), ((3,), (1,)), ((3, 1), (3,)), ((2,), (3,)), ((1, 3), (3, 1)), ((3,), (1, 3))]
)
def test_a_squared_error_never_broadcasts(shapes):
    prediction, target = (jnp.zeros(shape) for shape in shapes)
    for pair in ((prediction, target), (target, prediction)):
        with pytest.raises(
            ux.StructureError, match=r"^squared_error: target must have the shape of the prediction, float64"
        ):
            ux.squared_error(*pair)


def test_one_number_is_compared_with_one_number_whatever_their_axes():
    for prediction, target in ((jnp.array([3.0]), 1), (jnp.array(3.0), jnp.array([[1.0]])), (jnp.ones((1, 1)), 3.0)):
        assert ux.squared_error(prediction, target) == 4
    with pytest.raises(ux.StructureError, match=r"^squared_error: prediction must be one array, got list\."):
        ux.squared_error([1.0], 1.0)


def test_a_class_that_is_not_there_has_no_loss_unless_its_weight_is_0():
    logits = jnp.array([0.5, -1.0, 2.0])
    for label in (-1, -100, 3):
        assert np.isnan(ux.cross_entropy(logits, label))
    labels = jnp.array([2, -100, 1, -1, 0])
    ignored = ux.sequence(INPUT, labels)
    ignored = ignored._replace(weight=jnp.where(labels < 0, 0, ignored.weight))
    losses = run(lstm, PARAMS, ignored)[1]
    expected = [0 if y < 0 else nll(z, y) for z, y in zip(predictions(lstm, PARAMS, INPUT)[0], labels, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert np.isnan(run(lstm, PARAMS, ux.sequence(INPUT, labels))[1]).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (jnp.zeros(3), 1.0, r"an integer class of shape \[\] under the logits .*, got float64\[\]\. Convert it"),
        (jnp.zeros(3), True, r"an integer class .*, got bool\[\]\. Convert it: target.astype\(int\)\."),
        (jnp.zeros(3), jnp.eye(3)[1], r"got float64\[3\]\. Turn a one-hot code into its class by target.argmax"),
        (jnp.zeros(3), jnp.array([1]), r"got int64\[1\]\. Drop its last axis: target\[\.\.\., 0\]\."),
        (jnp.zeros(3), jnp.array([0, 1]), r"got int64\[2\]\. Pass one class for each prediction\."),
        (jnp.array(0.5), 1, r"prediction must be floating logits \[classes\], got float64\[\]\. Take Dense"),
        (jnp.zeros(3, int), 1, r"prediction must be floating logits \[classes\], got int64\[3\]"),
        (jnp.zeros(3), [1], r"target must be one array, got list\."),
    ],
)
def test_a_class_or_logits_of_another_kind_are_named(prediction, target, says):
    with pytest.raises(ux.StructureError, match=rf"^cross_entropy: .*{says}"):
        ux.cross_entropy(prediction, target)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((ux.LSTMCell, ux.Dense(4, 3)), r"cell must have .*, got the class LSTMCell and no object of it\."),
        (
            (ux.LSTMCell(2, 4), ux.Dense),
            r"readout must have params\(key\) and apply\(params, h\), got the class Dense and no",
        ),
        (
            (ux.LSTMCell(2, 4), ux.squared_error),
            r"readout must have .*, got function without params and apply\. Pass rec",
        ),
        ((ux.Dense(4, 3), ux.LSTMCell(2, 4)), r"cell must have .*, got Dense without init and step\. Take LSTMCell"),
        (
            (ux.LSTMCell(2, 4), ux.Dense(4, 3), "mse"),
            r"loss must be a function, got 'mse'\. Pass one such as unrollax\.",
        ),
    ],
)
def test_parts_that_are_none_are_named(parts, says):
    with pytest.raises(ux.InvalidArgument, match=rf"^recurrent: {says}"):
        ux.recurrent(*parts)
    with pytest.raises(ux.InvalidArgument, match=r"^recurrent: encode must be a function, got 3\."):
        ux.recurrent(ux.LSTMCell(2, 4), ux.Dense(4, 3), encode=3)
    for make in (ux.stacked, lambda cell: ux.bidirectional(ux.LSTMCell(2, 4), cell)):
        with pytest.raises(
            ux.InvalidArgument, match=r"a cell must have .*, got the class GRUCell and no object of it\."
        ):
            make(ux.GRUCell)


def estimated(net, params, data, estimator=ux.BPTT):
    """By whole windows, and step by step."""
    made = estimator(net, horizon=PADDED)
    return made.estimate(params, made.init(KEY, params), data)


FRAME = ux.sequence(INPUT, CLASSES)
MANY = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], 1), FRAME)
summed = ux.recurrent(ux.LSTMCell(2, 4), ux.Dense(4, 3), lambda prediction, target: prediction - target)
WRONG = {
    "pair": (lstm, (INPUT, CLASSES), r"^recurrent: data must be a Frame of input, .*, got tuple of 2\. Make one with"),
    "dict": (lstm, {"x": INPUT}, r"^recurrent: data must be a Frame of input, .*, got dict\."),
    "loss": (
        summed,
        FRAME,
        r"^recurrent: loss must return a floating scalar .*, got float64\[3\] from .* int64\[\]\. Red",
    ),
    "unbatched": (lstm, MANY, r"^recurrent: mask must be .* For many examples wrap the system: batched\(system, 2\)\."),
    "weight": (lstm, FRAME._replace(weight=MANY.weight), r"^recurrent: weight must be .*batched\(system, 2\)\."),
    "mask": (ux.batched(lstm, 2), MANY._replace(mask=MANY.mask[..., None]), r"^recurrent: mask must be .*batched"),
    "target": (
        ux.batched(lstm, 2),
        MANY._replace(target=CLASSES),
        r"^batched: data leaf .target must have 2 examples on",
    ),
    "examples": (
        ux.batched(lstm, 3),
        MANY,
        r"^batched: data leaf .input must have 3 examples on .*\[window, 3, \.\.\.\]",
    ),
}


@pytest.mark.parametrize("estimator", [ux.BPTT, partial(ux.ForwardGradient, window=PADDED)])
@pytest.mark.parametrize(("net", "data", "says"), WRONG.values(), ids=WRONG)
def test_data_and_losses_that_do_not_fit_are_named(net, data, says, estimator):
    """Whole windows and single steps say the same."""
    with pytest.raises(ux.StructureError, match=says):
        estimated(net, PARAMS, data, estimator)


def test_a_readout_of_another_size_is_named():
    for readout in (ux.Dense(7, 3), ux.MixtureDense(7, 2, 2)):
        net, name = ux.recurrent(ux.LSTMCell(2, 4), readout), type(readout).__name__
        says = rf"^{name}: h must have the 7 components of inputs=7, got float64\[4\]\. Take {name}\(inputs=4, \.\.\.\)"
        with pytest.raises(ux.StructureError, match=says):
            estimated(net, net.params(KEY), FRAME)
    with pytest.raises(
        ux.StructureError, match=r"^mixture_nll: prediction must be a Mixture, got float64\[3\]\. Take Mix"
    ):
        ux.mixture_nll(jnp.zeros(3), jnp.zeros(3))


def test_a_sequence_of_lists_is_named():
    for given, got in (([1.0, 2.0], r"float\d+\[\]"), (None, "no leaf"), ({"a": jnp.ones(5), "b": 2}, r"int\d+\[\]")):
        with pytest.raises(
            ux.StructureError, match=rf"^sequence: input must have leaves \[T, \.\.\.\], .*, got {got}\."
        ):
            ux.sequence(given, CLASSES)


def test_a_prediction_is_of_one_sequence():
    one = r"^Recurrent.predict: inputs must be one sequence \[T, "
    for inputs, got in (
        (jnp.stack([INPUT] * 3, 1), r"float64\[5,3,2\]"),
        ([1.0, 2.0], ".*"),
        ({"a": INPUT, "b": INPUT[1:]}, ".*"),
    ):
        with pytest.raises(ux.StructureError, match=rf"{one}2\], got {got}\. For many sequences jax.vmap it"):
            lstm.predict(PARAMS, inputs)
    tokens = ux.recurrent(ux.GRUCell(2, 4), ux.Dense(4, 3), encode=partial(jax.nn.one_hot, num_classes=2))
    with pytest.raises(ux.StructureError, match=rf"{one}\.\.\.\], got int64\[5,2\]\. For many"):
        tokens.predict(tokens.params(KEY), jnp.zeros((5, 2), int))
    for mask in (jnp.ones(4), jnp.ones((5, 1)), True):
        with pytest.raises(
            ux.StructureError, match=r"^Recurrent.predict: mask must be \[5\], one boolean for each step, got"
        ):
            lstm.predict(PARAMS, INPUT, mask)
    with pytest.raises(ux.StructureError, match=r"^lstm: x must be .*, as wx has 2 rows, got float64\[5,3\]"):
        lstm.predict(PARAMS, jnp.ones((5, 3)))


def test_without_a_mask_a_cell_is_given_none():
    class Seen:
        def params(self, key):
            return ()

        def init(self, params):
            return jnp.zeros(2)

        def step(self, params, state, x):
            raise AssertionError

        def unroll(self, params, state, xs, mask):
            assert mask is None
            return state, xs

    net = ux.recurrent(Seen(), ux.Dense(2, 3))
    assert net.predict({"cell": (), "readout": PARAMS["readout"] | {"w": jnp.ones((2, 3))}}, INPUT).shape == (5, 3)
