"""Deep autoencoders: every optimizer on one net and one set of images, each tuned over the same number of trials.

The net is that of `unrollax train autoencoder`: tanh layers, mirrored, a linear code, sigmoid cross-entropy summed over the
pixels. Three stages, for each method:

1. A search: `--trials` settings, spread evenly over ranges of the learning rate and one more number, `--steps` steps each.
2. The best ones: `--seeds` runs from other starts; a step of each method is timed in turn with the others', compiled.
3. For each of `--seconds` a search of its own, with as many steps as fit by the times of stage 2: all settings for the
   first, the better half of them for the next, and so on.

Losses are of 5,000 training images; those of CURVES can't fall below the entropy of their soft edges, which is given beside.

    .venv/bin/python examples/autoencoder.py --quick                     # a minute: digits, a small net
    .venv/bin/python examples/autoencoder.py --out race                  # CURVES; race/autoencoder.json and .svg
    .venv/bin/python examples/autoencoder.py --data mnist --sizes 784-1000-500-250-30 --methods rmsprop,kfac

References: Hinton and Salakhutdinov, Science 2006; Martens, ICML 2010; Amid, Anil and Warmuth, AISTATS 2022.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from _race import Course, Lane, Method, Trial, at_times, progress, run_trial, search, size, time_steps
from _race_shown import clean, draw, notes, table
from pydantic import ValidationError

import unrollax as ux
from unrollax._run import describe_environment
from unrollax.recipes import _autoencoder as recipe
from unrollax.recipes._images import load
from unrollax.recipes._options import Autoencoder

QUICK = {"data": "digits", "steps": 100, "trials": 3, "seeds": 2, "seconds": "0.5,1"}
USUAL = {"data": "curves", "steps": 400, "trials": 8, "seeds": 3, "seconds": "15,60"}
PAPER_STEPS = 10  # local steps of the paper's LocoProp
REST = (0.001, 0.3)  # 1 - the decay of an average


def methods(net: Any, batch: int) -> dict[str, Method]:
    """Return all methods by name; "rest" is 1 minus the decay of the average that the method lives by."""
    bptt = ux.BPTT(net, horizon=batch)

    def optimizer(make: Callable[..., Any], lr: tuple[float, float], **knobs: tuple[float, float]) -> Method:
        return Method(lambda settings: ux.Training(bptt, make(**settings)), {"lr": lr, **knobs})

    def estimator(make: Callable[..., Any], **knobs: tuple[float, float]) -> Method:
        return Method(lambda settings: ux.Training(make(**settings), optax.sgd(1.0)), knobs)

    return {
        "sgd": optimizer(lambda lr: optax.sgd(lr), (1e-4, 1e-1)),
        "momentum": optimizer(lambda lr, rest: ux.momentum(lr, 1 - rest), (1e-4, 1e-1), rest=(0.003, 0.3)),
        "nesterov": optimizer(
            lambda lr, rest: optax.sgd(rest * lr, 1 - rest, nesterov=True), (1e-4, 1e-1), rest=(0.003, 0.3)
        ),
        "adagrad": optimizer(
            lambda lr, start: optax.adagrad(lr, initial_accumulator_value=start), (1e-3, 1e-1), start=(1e-6, 1.0)
        ),
        "rmsprop": optimizer(lambda lr, rest: optax.rmsprop(lr, decay=1 - rest), (1e-4, 1e-2), rest=REST),
        "adam": optimizer(lambda lr, rest: optax.adam(lr, b2=1 - rest), (3e-4, 3e-2), rest=REST),
        "lion": optimizer(lambda lr, rest: optax.lion(lr, b2=1 - rest), (1e-5, 1e-2), rest=REST),
        "muon": optimizer(
            lambda lr, rest: optax.contrib.muon(lr, beta=1 - rest, consistent_rms=0.2), (1e-3, 1e-1), rest=(0.01, 0.3)
        ),
        "shampoo": optimizer(lambda lr, eps: ux.shampoo(lr, eps=eps), (1e-4, 3e-2), eps=(1e-9, 1e-3)),
        "soap": optimizer(lambda lr, rest: ux.soap(lr, b2=1 - rest), (3e-4, 3e-2), rest=(0.005, 0.3)),
        **second_order(net, estimator),
    }


def second_order(net: Any, estimator: Callable[..., Method]) -> dict[str, Method]:
    """Return the methods that see the net's layers: LocoProp's variants by what solves the layers' problems, and K-FAC."""

    def loco(make: Callable[..., Any], variant: str, steps: int, targets: str = "natural") -> Callable[..., Any]:
        """Return LocoProp with the inner solver that `make` makes of the settings; `reach` is its own."""

        def made(reach: Any = 1.0, **settings: Any) -> Any:
            return ux.LocoProp(net.layers, net.loss, variant, make(**settings), steps, reach, targets=targets)

        return made

    # The paper's: RMSProp on the local loss, whose rate falls to 0 over the local steps.
    paper = lambda lr: optax.rmsprop(optax.linear_schedule(lr, 0.0, PAPER_STEPS))
    curved = {"trust": (0.1, 30.0), "damping": (0.003, 0.3)}
    rates = {"lr": (3e-5, 3e-3), "reach": (1.0, 100.0)}
    nesterov = loco(lambda **settings: ux.Curvature(every=5, **settings), "S", 1)
    return {
        "locoprop-s": estimator(loco(lambda **settings: ux.Curvature(**settings), "S", 1), **curved),
        "locoprop-s-nesterov": Method(
            lambda settings: ux.Training(nesterov(**settings), optax.sgd(1.0, 0.5, True)), curved
        ),
        "locoprop-m": estimator(loco(lambda **settings: ux.Curvature(**settings), "M", 3), **curved),
        "locoprop-s-paper": estimator(loco(paper, "S", PAPER_STEPS, "gradient"), **rates),
        "locoprop-m-paper": estimator(loco(paper, "M", PAPER_STEPS, "gradient"), **rates),
        "kfac": estimator(lambda damping: ux.KFAC(net, damping=damping), damping=(0.03, 100.0)),
        "kfac-fixed": estimator(
            lambda damping, lr: ux.KFAC(net, damping=damping, lr=lr, momentum=0.9, adapt=False),
            damping=(0.3, 100.0),
            lr=(0.01, 1.0),
        ),
    }


def course(options: Autoencoder, *, decay: bool) -> tuple[Any, Course, dict[str, Any]]:
    """Return the net, the course, and what is to be known of its images."""
    train, test = map(recipe.flat, load(options.data))
    net = recipe.net(options.widths(), options.transfer, options.initial)
    scored, start = train[: recipe.SCORED], jax.jit(net.params)
    loss = jax.jit(lambda params, x: recipe.cross_entropy(net.predict(params, x), x).mean())
    made = Course(
        params=lambda seed: start(jax.random.key(seed)),
        batches=lambda seed: recipe.Batches(train, jax.random.key(seed + 2**31), options.batch),
        loss=lambda params: float(loss(params, scored)),
        test=lambda params: float(loss(params, test)),
        decay=decay,
    )
    floors = {name: float(recipe.entropy(x).mean()) for name, x in (("train", scored), ("test", test))}
    bytes_of_params = size(jax.eval_shape(start, jax.random.key(0)))
    return net, made, {"images": [len(train), len(test)], "entropy": floors, "params bytes": bytes_of_params}


def race(arguments: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run all stages and return what came of them; `keep` is given what there is after each part."""
    options = Autoencoder(**{key: getattr(arguments, key) for key in ("data", "sizes", "transfer", "batch")})
    net, ground, known = course(options, decay=arguments.decay)
    made = methods(net, options.batch)
    names = arguments.methods.split(",") if arguments.methods else list(made)
    lanes = {name: Lane(name, made[name], ground) for name in names}
    result = {"setting": setting(arguments, options) | known, "environment": describe_environment(), "methods": {}}
    found = result["methods"]
    for name, lane in lanes.items():
        tried = search(lane, arguments.trials, arguments.steps)
        settings = tried[0].settings
        runs = [
            run_trial(lane, settings, seed, arguments.steps, f"seed {seed}") for seed in range(1, arguments.seeds + 1)
        ]
        found[name] = {
            "settings": settings,
            **spread(runs),
            "trials": [[trial.settings, trial.loss] for trial in tried],
        }
        keep(result)
    reference = "rmsprop" if "rmsprop" in lanes else names[0]
    timed = time_steps(lanes, {name: found[name]["settings"] for name in lanes}, reference)
    for name, lane in lanes.items():
        found[name] |= timed[name]
        found[name]["at"] = at_times(lane, arguments.trials, arguments.seconds, found[name]["seconds a step"])
        keep(result)
    return result


def setting(arguments: argparse.Namespace, options: Autoencoder) -> dict[str, Any]:
    """Return what was raced on."""
    widths = "-".join(map(str, options.widths()))
    named = {key: getattr(arguments, key) for key in ("steps", "trials", "seeds", "seconds", "decay")}
    return {"data": options.data, "sizes": widths, "transfer": options.transfer, "batch": options.batch, **named}


def spread(runs: list[Trial]) -> dict[str, Any]:
    """Return the losses of all seeds at the end, their mean and standard deviation, and the median curve."""
    ends = {"train": [trial.loss for trial in runs], "test": [trial.test for trial in runs]}
    curve = np.median([trial.losses for trial in runs], axis=0).tolist()
    found: dict[str, Any] = {"losses": ends, "curve": {"steps": runs[0].steps, "loss": curve}}
    for name, losses in ends.items():
        finite = all(map(math.isfinite, losses))
        found[name] = float(np.mean(losses)) if finite else math.inf
        found[f"{name} std"] = float(np.std(losses, ddof=1)) if finite and len(losses) > 1 else math.nan
    return found


def parse(given: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits and a small net: about a minute")
    parser.add_argument("--data", help="curves, digits or a folder of IDX files")
    parser.add_argument("--sizes", default="", help="units from the pixels to the code, such as 784-1000-500-250-30")
    parser.add_argument("--transfer", choices=("tanh", "relu"), default="tanh")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--methods", help="names with commas between; all by default")
    for name, what in (("steps", "of a run"), ("trials", "of each method"), ("seeds", "of the best settings")):
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--seconds", help='times to compare at, such as "15,60,300"; "" leaves them out')
    parser.add_argument("--decay", action="store_true", help="let the updates of all methods shrink linearly to 0")
    parser.add_argument("--out", type=Path, help="a folder for autoencoder.json and autoencoder.svg, kept up to date")
    parser.add_argument("--json", action="store_true", help="print JSON rather than the table")
    arguments = parser.parse_args(given)
    for name, usual in (QUICK if arguments.quick else USUAL).items():
        setattr(arguments, name, usual if getattr(arguments, name) is None else getattr(arguments, name))
    try:
        arguments.seconds = [float(part) for part in arguments.seconds.split(",") if part]
    except ValueError:
        parser.error(f"--seconds must be numbers with commas between, got {arguments.seconds!r}")
    check(parser, arguments)
    return arguments


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Answer what can't be run."""
    counts = {name: getattr(arguments, name) for name in ("steps", "trials", "seeds", "batch")}
    for name, count in counts.items():
        if count < 1:
            parser.error(f"--{name} must be 1 or more, got {count}")
    if any(seconds <= 0 for seconds in arguments.seconds):
        parser.error(f"--seconds must be above 0, got {arguments.seconds}")
    try:
        Autoencoder(data=arguments.data, sizes=arguments.sizes)
    except ValidationError as error:
        wrong = error.errors()[0]
        parser.error(f"--{wrong['loc'][0]}: {wrong['msg'].removeprefix('Value error, ')}")
    known = methods(recipe.net((2, 1)), 1)
    unknown = [name for name in (arguments.methods or "").split(",") if name and name not in known]
    if unknown:
        parser.error(f"--methods: there is no {unknown[0]!r}. The choices are {', '.join(sorted(known))}.")


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Race, and show what came of it."""
    arguments = parse(given)

    def keep(result: dict[str, Any]) -> None:
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "autoencoder.json").write_text(
                json.dumps(clean(result), indent=1) + "\n", encoding="utf-8"
            )
            draw(result, arguments.out / "autoencoder.svg")

    result = race(arguments, keep)
    progress("", done=False)
    print(json.dumps(clean(result)) if arguments.json else f"\n{table(result)}\n\n{notes(result)}")
    return result


if __name__ == "__main__":
    main()
