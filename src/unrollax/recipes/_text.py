"""A character model on any text file."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument
from unrollax._experiment import Experiment
from unrollax._types import Key, Params, State
from unrollax._value import static, value
from unrollax._wrap import batched
from unrollax.estimators import TBPTT
from unrollax.recipes._common import decayed_adam, make_cell
from unrollax.recipes._options import ALPHABET, Text
from unrollax.systems import Dense, Frame, Recurrent, recurrent

HELD_OUT = 0.1
SHORTEST = 1000  # characters
PIECE = 200  # characters of held-out text that are read from one start; the first ones are read without a memory


@value
class Lanes:
    """A text read at `batch` evenly spaced places side by side, for ever: a stream."""

    codes: jax.Array  # [characters]
    batch: int = static()

    def __call__(self, t: jax.Array, steps: int) -> Frame:
        """Return characters and their successors, leaves `[steps, batch]`."""
        size = self.codes.shape[0]
        places = t + jnp.arange(steps)[:, None] + (jnp.arange(self.batch) * (size // self.batch))[None, :]
        ones = jnp.ones((steps, self.batch))
        return Frame(self.codes[places % size], self.codes[(places + 1) % size], ones.astype(bool), ones)


def read(path: str) -> str:
    """Return the user's text, or the one that is shipped.

    Raises:
        InvalidArgument: no such file, no UTF-8, or too short.
    """
    try:
        text = Path(path).read_text(encoding="utf-8") if path else _shipped()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidArgument(f"text: path must be a readable UTF-8 text file, got {path!r}: {reason}.") from error
    if len(text) < SHORTEST:
        raise InvalidArgument(f"text: the file must have at least {SHORTEST} characters, got {len(text)} in {path!r}.")
    return text


def _shipped() -> str:
    return (resources.files("unrollax.recipes") / "genesis.txt").read_text(encoding="utf-8")


def model(options: Text, characters: int) -> Recurrent:
    """Return the network for an alphabet of so many characters."""
    one_hot = functools.partial(jax.nn.one_hot, num_classes=characters)
    cell = make_cell(options.cell, characters, options.hidden, layers=options.layers)
    return recurrent(cell, Dense(options.hidden, characters), encode=one_hot)


def build(options: Text, seed: int, steps: int | None) -> Experiment:
    """Make the experiment."""
    text = read(options.path)
    alphabet = sorted(set(text))
    number = {character: index for index, character in enumerate(alphabet)}
    codes = np.array([number[character] for character in text], np.int32)
    train, test = np.split(codes, [int((1 - HELD_OUT) * len(codes))])
    steps = steps or 2000
    net = model(options, len(alphabet))
    system = batched(net, options.batch)
    return Experiment(
        system=system,
        estimator=TBPTT(system, window=options.window, horizon=20 * options.window),
        optimizer=decayed_adam(options.lr, steps),
        params=jax.jit(net.params)(jax.random.key(seed)),
        data=Lanes(jnp.asarray(train), options.batch),
        evaluate=lambda params: {"bits per character, held out": float(bits(net, params, _pieces(test)))},
        steps=steps,
        artifacts=lambda _: {ALPHABET: json.dumps("".join(alphabet), ensure_ascii=False) + "\n"},
    )


def _pieces(codes: np.ndarray) -> jax.Array:
    """Cut held-out text into pieces that share one character, `[pieces, PIECE + 1]`, dropping a rest."""
    length = min(PIECE, len(codes) - 1)
    starts = np.arange((len(codes) - 1) // length) * length
    return jnp.asarray(codes[starts[:, None] + np.arange(length + 1)])


@jax.jit
def bits(net: Recurrent, params: Params, pieces: jax.Array) -> jax.Array:
    """Return the mean negative log2-probability of each character given those before it in its piece."""

    def piece(codes: jax.Array) -> jax.Array:
        logits = net.predict(params, codes[:-1])
        return jax.vmap(net.loss)(logits, codes[1:]).mean()

    return jax.vmap(piece)(pieces).mean() / jnp.log(2)


def continuation(net: Recurrent, params: Params, prompt: Sequence[int], key: Key, temperature: float) -> Iterator[int]:
    """Read the codes of a prompt and yield codes that go on from it, for ever.

    Args:
        net: the network.
        params: its parameters.
        prompt: one code or more.
        key: all that is drawn comes from it.
        temperature: what logits are divided by; at 0 the likeliest code is taken each time.
    """
    state = net.cell.init(params["cell"])
    for code in prompt:
        state, logits = _read_one(net, params, state, code)
    for number in itertools.count():
        code = int(_draw(jax.random.fold_in(key, number), logits, temperature))
        yield code
        state, logits = _read_one(net, params, state, code)


@jax.jit
def _read_one(net: Recurrent, params: Params, state: State, code: int) -> tuple[State, jax.Array]:
    state, output = net.cell.step(params["cell"], state, net.encode(jnp.asarray(code)))
    return state, net.readout.apply(params["readout"], output)


@jax.jit
def _draw(key: Key, logits: jax.Array, temperature: float) -> jax.Array:
    drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1))
    return jnp.where(temperature > 0, drawn, logits.argmax())
