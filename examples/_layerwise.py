"""LocoProp against Adam on a net of layers that classifies: equal steps, cost of a step, equal seconds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _race import PERIOD, ROUNDS, Course, Lane, Method, progress, run_trial, search

import unrollax as ux


class Task(NamedTuple):
    """A net, and the training and test examples `(x, label)`."""

    net: Any
    train: tuple[Any, Any]
    test: tuple[Any, Any]


@ux.value
class Examples:
    """Random batches of examples, by the number of the update."""

    x: jax.Array
    label: jax.Array
    key: jax.Array
    batch: int = ux.static()

    def __call__(self, number: Any) -> tuple[jax.Array, jax.Array]:
        """Return (x, label), leaves `[batch, ...]`, drawn with replacement."""
        chosen = jax.random.randint(jax.random.fold_in(self.key, number), (self.batch,), 0, len(self.x))
        return self.x[chosen], self.label[chosen]


def cross_entropy(logits: Any, label: Any) -> jax.Array:
    """Return the cross-entropy of each example's softmax, `[batch]`."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


def methods(net: Any, batch: int) -> dict[str, Method]:
    """Return Adam, and LocoProp's variants, each with two numbers to search."""
    bptt = ux.BPTT(net, horizon=batch)

    def loco(variant: str, steps: int) -> Method:
        def make(settings: dict[str, Any]) -> ux.Training:
            return ux.Training(
                ux.LocoProp(net.layers, net.loss, variant, ux.Curvature(**settings), steps), optax.sgd(1.0)
            )

        return Method(make, {"trust": (0.03, 3.0), "damping": (0.01, 1.0)})

    adam = lambda settings: ux.Training(bptt, optax.adam(settings["lr"], b2=1 - settings["rest"]))
    return {
        "adam": Method(adam, {"lr": (1e-3, 3e-2), "rest": (0.001, 0.1)}),
        "locoprop-s": loco("S", 1),
        "locoprop-m": loco("M", 3),
    }


def course(task: Task, batch: int) -> Course:
    """Return what all methods run on: the loss of all training examples, and the share of test examples that are right."""
    start = jax.jit(task.net.params)
    loss = jax.jit(lambda params: cross_entropy(task.net.predict(params, task.train[0]), task.train[1]).mean())
    right = jax.jit(lambda params: (task.net.predict(params, task.test[0]).argmax(-1) == task.test[1]).mean())
    return Course(
        params=lambda seed: start(jax.random.key(seed)),
        batches=lambda seed: Examples(*task.train, jax.random.key(seed + 2**31), batch),
        loss=lambda params: float(loss(params)),
        test=lambda params: float(right(params)),
        decay=True,
    )


def run(task: Task, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Tune all methods over as many trials, then run each from another start for equal steps, and for equal seconds."""
    made = course(task, arguments.batch)
    lanes = {name: Lane(name, one, made) for name, one in methods(task.net, arguments.batch).items()}
    settings = {name: search(lane, arguments.trials, arguments.steps)[0].settings for name, lane in lanes.items()}
    timed = fastest(lanes, settings, min(PERIOD, arguments.steps))
    longest = arguments.steps * max(timed.values())
    found: dict[str, dict[str, Any]] = {}
    for name, lane in lanes.items():
        step = timed[name]
        found[name] = {"settings": settings[name], "seconds a step": step, "ratio": step / timed["adam"]}
        ends = {"steps": arguments.steps, "seconds": max(1, round(longest / step))}
        for what, end in ends.items():
            trial = run_trial(lane, settings[name], 1, end, f"equal {what}")
            found[name][what] = {"steps": end, "loss": trial.loss, "accuracy": trial.test}
    progress("", done=False)
    return found


def fastest(lanes: dict[str, Lane], settings: dict[str, Any], block: int) -> dict[str, float]:
    """Return the seconds of a step of each method, from its fastest block of steps: what else runs disturbs that least."""
    runs = {name: lane.start(settings[name], 0, 10**9) for name, lane in lanes.items()}
    for run in runs.values():
        run.go(PERIOD if block == PERIOD else 1)
    blocks = [{name: run.go(run.done + block) / block for name, run in runs.items()} for _ in range(ROUNDS)]
    return {name: min(block[name] for block in blocks) for name in runs}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    first = next(iter(found.values()))
    seconds = first["seconds"]["steps"] * first["seconds a step"]
    lines = [
        f"| method | settings | loss after {first['steps']['steps']} steps | test accuracy | ms a step | x adam "
        f"| steps in {seconds:.1f} s | loss | test accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        cells = [
            name,
            ", ".join(f"{knob} {item:.3g}" for knob, item in one["settings"].items()),
            f"{one['steps']['loss']:.4f}",
            f"{one['steps']['accuracy']:.1%}",
            f"{1000 * one['seconds a step']:.2f}",
            f"{one['ratio']:.1f}",
            f"{one['seconds']['steps']}",
            f"{one['seconds']['loss']:.4f}",
            f"{one['seconds']['accuracy']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(about: str, make: Callable[[], Task], given: list[str] | None, usual: dict[str, int]) -> dict[str, Any]:
    """Read the command line, run, and print the table."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, 2 trials")
    for name, number in usual.items():
        parser.add_argument(f"--{name}", type=int, help=f"{number} unless given")
    arguments = parser.parse_args(given)
    quick = {"steps": max(1, usual["steps"] // 10), "trials": 2} if arguments.quick else {}
    for name, number in {**usual, **quick}.items():
        chosen = getattr(arguments, name)
        setattr(arguments, name, number if chosen is None else chosen)
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {chosen}")
    found = run(make(), arguments)
    print(table(found))
    return found
