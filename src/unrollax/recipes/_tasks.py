"""Tasks that need a long memory, made endlessly: adding, copying, and the order of two symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unrollax._experiment import Experiment, episodes
from unrollax._types import Key, Params
from unrollax._value import static, value
from unrollax._wrap import batched
from unrollax.estimators import BPTT
from unrollax.recipes._common import decayed_adam, make_cell
from unrollax.recipes._options import Adding, Copy, TemporalOrder
from unrollax.systems import Dense, Frame, Recurrent, cross_entropy, recurrent, sequence, squared_error

TEST = 5000  # sequences, the same in every run
SYMBOLS, RECALLED = 8, 10  # of the copy task; then a blank and a mark
ORDERED = 2  # symbols whose order counts; then four that don't
DISTRACTORS = 4


class Task(NamedTuple):
    """A task for one size.

    Attributes:
        example: `example(key)` draws one sequence, a `Frame` of leaves `[steps, ...]`.
        steps: its length.
        inputs: size of what the network reads.
        outputs: size of what it says.
        loss: of one step.
        score: `score(predictions, frames)` of a test set, leaves `[sequences, steps, ...]`, returns named scalars.
        known: scores of what has no memory, by name.
    """

    example: Callable[[Key], Frame]
    steps: int
    inputs: int
    outputs: int
    loss: Callable[[Any, Any], jax.Array]
    score: Callable[[jax.Array, Frame], dict[str, jax.Array]]
    known: dict[str, float]


def adding(length: int) -> Task:
    """Return the adding task: say the sum of the two values that are marked, one in each half of the sequence.

    A step reads a value of U[0, 1] and a mark of 0 or 1; the loss is the squared error at the end. To say 1 always has an
    error of 1/6.

    References: Hochreiter and Schmidhuber, Neural Computation 1997; in the form of Arjovsky et al., ICML 2016.
    """

    def example(key: Key) -> Frame:
        values, first, second = jax.random.split(key, 3)
        half = length // 2
        places = jnp.stack([jax.random.randint(first, (), 0, half), jax.random.randint(second, (), half, length)])
        x = jax.random.uniform(values, (length,))
        marks = (jnp.arange(length)[:, None] == places[None]).any(1).astype(float)
        return sequence(jnp.stack([x, marks], axis=1), x[places].sum()[None], loss_at="end")

    def score(predictions: jax.Array, frames: Frame) -> dict[str, jax.Array]:
        return {"test MSE": ((predictions[:, -1] - frames.target[:, -1]) ** 2).mean()}

    known = {"test MSE, always saying 1": 1 / 6}
    return Task(example, length, 2, 1, squared_error, score, known)


def copying(length: int) -> Task:
    """Return the copy task: read ten of eight symbols, then `length` blanks with a mark at the last, then say the ten.

    At the steps before, the answer is a blank. The loss is the cross-entropy at each of the length + 20 steps; without a
    memory it is 10 log 8 / (length + 20) at best.

    References: Hochreiter and Schmidhuber, Neural Computation 1997; in the form of Arjovsky et al., ICML 2016.
    """
    blank, mark = SYMBOLS, SYMBOLS + 1
    steps = length + 2 * RECALLED

    def example(key: Key) -> Frame:
        symbols = jax.random.randint(key, (RECALLED,), 0, SYMBOLS)
        blanks = jnp.full(length + RECALLED, blank, symbols.dtype)
        codes = jnp.concatenate([symbols, blanks]).at[RECALLED + length - 1].set(mark)
        return sequence(jax.nn.one_hot(codes, SYMBOLS + 2), jnp.concatenate([blanks, symbols]))

    def score(predictions: jax.Array, frames: Frame) -> dict[str, jax.Array]:
        losses = jax.vmap(jax.vmap(cross_entropy))(predictions, frames.target)
        right = predictions.argmax(-1)[:, -RECALLED:] == frames.target[:, -RECALLED:]
        return {"test accuracy": right.mean(), "test cross-entropy": losses.mean()}

    known = {
        "test accuracy, without memory": 1 / SYMBOLS,
        "test cross-entropy, without memory": float(RECALLED * jnp.log(SYMBOLS)) / steps,
    }
    return Task(example, steps, SYMBOLS + 2, SYMBOLS + 1, cross_entropy, score, known)


def ordering(length: int) -> Task:
    """Return the temporal-order task: say which of XX, XY, YX and YY came, one early and one at half of the sequence.

    The first stands in the second tenth of the sequence, the other in its fifth tenth; all else are four symbols that say
    nothing. The loss is the cross-entropy at the end.

    References: Hochreiter and Schmidhuber, Neural Computation 1997 (task 6a); in the form of Pascanu et al., ICML 2013.
    """

    def example(key: Key) -> Frame:
        noise, symbols, first, second = jax.random.split(key, 4)
        codes = jax.random.randint(noise, (length,), ORDERED, ORDERED + DISTRACTORS)
        pair = jax.random.randint(symbols, (2,), 0, ORDERED)
        early = jax.random.randint(first, (), length // 10, length // 5)
        late = jax.random.randint(second, (), 2 * length // 5, length // 2)
        codes = codes.at[jnp.stack([early, late])].set(pair)
        return sequence(jax.nn.one_hot(codes, ORDERED + DISTRACTORS), ORDERED * pair[0] + pair[1], loss_at="end")

    def score(predictions: jax.Array, frames: Frame) -> dict[str, jax.Array]:
        losses = jax.vmap(cross_entropy)(predictions[:, -1], frames.target[:, -1])
        right = predictions[:, -1].argmax(-1) == frames.target[:, -1]
        return {"test accuracy": right.mean(), "test cross-entropy": losses.mean()}

    known = {"test accuracy, by chance": 1 / ORDERED**2}
    return Task(example, length, ORDERED + DISTRACTORS, ORDERED**2, cross_entropy, score, known)


TASKS = {
    Adding: (adding, 1000),
    Copy: (copying, 3000),
    TemporalOrder: (ordering, 1000),
}  # how, and for how many updates


@value
class Draws:
    """Batches of fresh sequences, by the number of the episode."""

    key: Key
    example: Callable[[Key], Frame] = static()
    batch: int = static()

    def __call__(self, number: jax.Array) -> Frame:
        """Return one batch, leaves `[steps, batch, ...]`."""
        frames: Frame = jax.vmap(self.example, out_axes=1)(
            jax.random.split(jax.random.fold_in(self.key, number), self.batch)
        )
        return frames


def build(options: Adding | Copy | TemporalOrder, seed: int, steps: int | None) -> Experiment:
    """Make the experiment."""
    make, usual = TASKS[type(options)]
    task, steps = make(options.length), steps or usual
    cell = make_cell(options.cell, task.inputs, options.hidden, chrono=max(3, task.steps), layers=options.layers)
    net = recurrent(cell, Dense(options.hidden, task.outputs), task.loss)
    start, draws = jax.random.split(jax.random.key(seed))
    system = batched(net, options.batch)
    test = jax.jit(jax.vmap(task.example))(jax.random.split(jax.random.key(2**32 - 1), TEST))

    @jax.jit
    def scores(params: Params) -> dict[str, jax.Array]:
        return task.score(predictions(net, params, test.input), test)

    return Experiment(
        system=system,
        estimator=BPTT(system, task.steps),
        optimizer=decayed_adam(options.lr, steps),
        params=jax.jit(net.params)(start),
        data=episodes(Draws(draws, task.example, options.batch), task.steps),
        evaluate=lambda params: {**{name: float(x) for name, x in scores(params).items()}, **task.known},
        steps=steps,
    )


def predictions(net: Recurrent, params: Params, inputs: jax.Array) -> jax.Array:
    """Return what the network says of each sequence, `[sequences, steps, outputs]`."""
    said: jax.Array = jax.vmap(lambda x: net.predict(params, x))(inputs)
    return said
