"""A race of training methods: a search of settings for each, loss at equal steps, cost of a step, loss at equal time.

A method is whatever has `init(key, params)` and `step(state, data)` with `state.params`, as `unrollax.Training`. Whatever is
drawn (params, batches) is drawn by the seed alone, so that all methods start alike and see the same batches.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Settings = dict[str, Any]
POINTS = 16  # of a curve
PERIOD = 20  # steps: what a method does now and then, it does at least so often
ROUNDS = 7  # in which the methods' steps are timed in turn
LEAST = 0.1  # seconds of a timed block


class Method(NamedTuple):
    """A method and what is searched of it.

    Attributes:
        make: `make(settings)` returns what has `init` and `step`.
        knobs: the range of each setting; numbers with a point are searched on a logarithmic scale, whole ones are rounded.
        compiled: whether a step can be part of a compiled loop, with settings that are traced; else it is called from Python.
    """

    make: Callable[[Settings], Any]
    knobs: dict[str, tuple[float, float]]
    compiled: bool = True


class Course(NamedTuple):
    """What all methods run on.

    Attributes:
        params: `params(seed)` returns those to start from.
        batches: `batches(seed)` returns a pytree that, called with a step's number, returns its data.
        loss: `loss(params)` returns the training loss, which the race is about.
        test: `test(params)` returns the test loss, which is only reported.
        decay: whether updates shrink linearly to 0 over a run.
    """

    params: Callable[[int], Any]
    batches: Callable[[int], Any]
    loss: Callable[[Any], float]
    test: Callable[[Any], float]
    decay: bool = False


class Lane:
    """A method on the course, with its compiled programs."""

    def __init__(self, name: str, method: Method, course: Course) -> None:
        self.name, self.method, self.course = name, method, course
        self._programs: dict[tuple[Any, ...], Any] = {}
        self.temporary = math.nan  # bytes, once a program is compiled

    def settings(self, trial: int) -> Settings:
        """Return the settings of a trial: points that fill the ranges evenly, however many there are."""
        return dict(zip(self.method.knobs, points(self.method.knobs.values(), trial), strict=True))

    def start(self, settings: Settings, seed: int, end: int) -> Run:
        """Return a run of `end` steps that has made none."""
        training = self.method.make(settings)
        state = training.init(jax.random.key(seed), self.course.params(seed))
        return Run(self, settings, state, self.course.batches(seed), end)

    def advance(self, run: Run, count: int) -> Any:
        """Return the state after `count` more steps."""
        if not self.method.compiled:
            return self._by_hand(run, count)
        whole = {name: item for name, item in run.settings.items() if isinstance(item, int)}
        traced = {name: jnp.float32(item) for name, item in run.settings.items() if name not in whole}
        arguments = (traced, run.state, run.batches, *map(jnp.int32, (run.done, count, run.end)))
        key = tuple(whole.items())
        if key not in self._programs:
            self._programs[key] = self._compile(whole, arguments)
        return self._programs[key](*arguments)

    def _compile(self, whole: Settings, arguments: tuple[Any, ...]) -> Any:
        def block(traced: Settings, state: Any, batches: Any, done: Any, count: Any, end: Any) -> Any:
            training = self.method.make({**whole, **traced})

            def update(index: Any, state: Any) -> Any:
                after = training.step(state, batches(done + index))[0]
                return slowed(state, after, 1 - (done + index) / end) if self.course.decay else after

            return jax.lax.fori_loop(0, count, update, state)

        program = jax.jit(block, donate_argnums=(1,)).lower(*arguments).compile()
        self.temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", math.nan)
        return program

    def _by_hand(self, run: Run, count: int) -> Any:
        training, state = self.method.make(run.settings), run.state
        for number in range(run.done, run.done + count):
            after = training.step(state, draw(run.batches, jnp.int32(number)))[0]
            state = slowed(state, after, 1 - number / run.end) if self.course.decay else after
        return state


class Run:
    """A training run that goes as far as it is told."""

    def __init__(self, lane: Lane, settings: Settings, state: Any, batches: Any, end: int) -> None:
        self.lane, self.settings, self.state, self.batches, self.end = lane, settings, state, batches, end
        self.done = 0

    def go(self, to: int) -> float:
        """Go on to a step and return the seconds that it took, compilation left out."""
        if self.lane.method.compiled:
            self.state = self.lane.advance(self, 0)  # compiles
        jax.block_until_ready(self.state)
        began = time.perf_counter()
        self.state = jax.block_until_ready(self.lane.advance(self, to - self.done))
        self.done = to
        return time.perf_counter() - began

    def curve(self, tell: Callable[[int, float], None]) -> tuple[list[int], list[float]]:
        """Go to the end and return some steps and the losses there; a run that overflows ends early, at infinity."""
        marks = sorted({0, *np.geomspace(1, self.end, POINTS).round().astype(int).tolist()})
        losses: list[float] = []
        for mark in marks:
            self.go(mark)
            losses.append(self.lane.course.loss(self.state.params))
            tell(mark, losses[-1])
            if not math.isfinite(losses[-1]):
                return marks, losses[:-1] + [math.inf] * (len(marks) - len(losses) + 1)
        return marks, losses


@jax.jit
def draw(batches: Any, number: Any) -> Any:
    """Return the data of a step."""
    return batches(number)


def slowed(before: Any, after: Any, share: Any) -> Any:
    """Return a state whose params went only a share of the way."""
    part = jax.tree.map(lambda old, new: old + (share * (new - old)).astype(old.dtype), before.params, after.params)
    return after._replace(params=part)


def points(ranges: Any, trial: int) -> list[Any]:
    """Return point number `trial` of an additive recurrence that starts in the middle of the ranges."""
    ranges = list(ranges)
    ratio = 2.0
    for _ in range(50):
        ratio = (1 + ratio) ** (1 / (len(ranges) + 1))  # the root of x^(d + 1) = x + 1
    found = []
    for axis, (low, high) in enumerate(ranges):
        share = (0.5 + trial * ratio ** -(axis + 1)) % 1
        at = low * (high / low) ** share
        found.append(round(at) if isinstance(low, int) else float(f"{at:.3g}"))
    return found


class Trial(NamedTuple):
    """What a run with some settings came to."""

    settings: Settings
    steps: list[int]
    losses: list[float]
    test: float

    @property
    def loss(self) -> float:
        """The loss at the end."""
        return self.losses[-1]


def run_trial(lane: Lane, settings: Settings, seed: int, end: int, stage: str) -> Trial:
    """Run once from start to end."""
    says = f"{lane.name}: {stage}, " + ", ".join(f"{name} {item:.3g}" for name, item in settings.items())
    run = lane.start(settings, seed, end)
    steps, losses = run.curve(lambda step, loss: progress(f"{says}: step {step}/{end}, loss {loss:.2f}"))
    progress(f"{says}: loss {losses[-1]:.2f} after {end} steps", done=True)
    return Trial(settings, steps, losses, lane.course.test(run.state.params))


def search(lane: Lane, trials: int, steps: int) -> list[Trial]:
    """Try settings and return what they came to after so many steps, the best first."""
    tried = [
        run_trial(lane, lane.settings(number), 0, steps, f"trial {number + 1}/{trials}") for number in range(trials)
    ]
    return sorted(tried, key=lambda trial: trial.loss)


def time_steps(lanes: dict[str, Lane], settings: dict[str, Settings], reference: str) -> dict[str, dict[str, float]]:
    """Time a step of each method: blocks in turn, A B C A B C; medians of the blocks, and of each round's ratios."""
    runs = {name: lane.start(settings[name], 0, 10**9) for name, lane in lanes.items()}
    blocks, seconds = {}, {name: [] for name in lanes}
    for name, run in runs.items():  # warms up
        progress(f"{name}: timing")
        run.go(PERIOD)
        once = run.go(2 * PERIOD)
        blocks[name] = PERIOD * math.ceil(min(LEAST / once, 50))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            seconds[name].append(run.go(run.done + blocks[name]) / blocks[name])
    unit = np.array(seconds[reference])
    return {
        name: {
            "seconds a step": float(np.median(each)),
            "ratio": float(np.median(np.array(each) / unit)),
            "state bytes": size(runs[name].state) - size(runs[name].state.params),
            "temporary bytes": lanes[name].temporary,
        }
        for name, each in seconds.items()
    }


def size(tree: Any) -> int:
    """Return the bytes of a tree's arrays, keys as the numbers that they are."""
    keys = jax.dtypes.prng_key
    plain = [
        jax.eval_shape(jax.random.key_data, leaf) if jnp.issubdtype(jnp.result_type(leaf), keys) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return sum(math.prod(jnp.shape(leaf)) * jnp.result_type(leaf).itemsize for leaf in plain)


def at_times(lane: Lane, trials: int, times: Sequence[float], step: float) -> dict[str, Any]:
    """Search again for each wall time: all trials run for the first, the better half for the next, and so on.

    A run of T seconds makes T / `step` steps, so that what else runs on the machine meanwhile does not count.
    """
    chosen, found = [lane.settings(number) for number in range(trials)], {}
    for seconds in sorted(times):
        end = max(1, round(seconds / step))
        tried = [run_trial(lane, settings, 0, end, f"{seconds:g} s") for settings in chosen]
        best = sorted(tried, key=lambda trial: trial.loss)
        curve = {"seconds": [step * at for at in best[0].steps], "loss": best[0].losses}
        found[f"{seconds:g}"] = {"loss": best[0].loss, "steps": end, "settings": best[0].settings, "curve": curve}
        chosen = [trial.settings for trial in best[: math.ceil(len(best) / 2)]]
    return found


@functools.cache
def _started() -> float:
    return time.perf_counter()


def progress(text: str, *, done: bool = False) -> None:
    """Say what is going on, on one line that is written over; where nobody watches, only what is done."""
    text = f"{time.perf_counter() - _started():6.0f} s  {text}"
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:150]}", end="", file=sys.stderr, flush=True)
    elif done:
        print(text, file=sys.stderr, flush=True)
