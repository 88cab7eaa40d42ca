r"""A deep sigmoid net whose gradient shrinks by about 4 a layer, there and back: what trains it, and how deep?

A layer y = sigmoid(W x + b) with weights N(0, 1/n) multiplies what tells examples apart by about 1/4 on the way forward, and
the gradient by as much on the way back: 50 layers leave 4^-50 = 1e-30 of either. Below some 13 layers in float32 (26 in
float64) the outputs of two examples are the same number. The task is as easy as can be: tell handwritten zeros from ones.

- `sgd`, `adam`, `muon`: the gradient, as it is; with the size of each weight's; with the size of each matrix's.
- `gradient`, `natural`: LocoProp-S in closed form. Natural targets divide by the mean square of a unit's gradient, and where
  that has shrunk by 4^-k, targets lie 4^k too far away: the first layers saturate in one step.
- `normalized`: LocoProp-S whose targets lie at the same distance in each layer: each unit's g over its root mean square.
- `normalized gradient`: the same targets, and a gradient step rather than the solved local problem.

    .venv/bin/python examples/deep_sigmoid.py             # 10, 20, 30 and 50 layers, some minutes
    .venv/bin/python examples/deep_sigmoid.py --quick     # 20 layers

References: Hochreiter, Diploma thesis, TU Munich 1991; Glorot and Bengio, AISTATS 2010; Amid, Anil and Warmuth, AISTATS 2022.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _layerwise import cross_entropy

import unrollax as ux
from unrollax.recipes._digits import load

REACH = 0.1
DEPTHS, QUICK = "10,20,30,50", "20"


def task(classes: int, per_class: int, dtype: Any) -> tuple[Any, Any]:
    """Return as many training and all test digits of the first classes: `(x [n, 64], label [n])` each, pixels centred."""
    (x, label), (test_x, test_label) = load(rows=True)
    centre = x.mean(0)
    chosen = np.concatenate([np.flatnonzero(label == one)[:per_class] for one in range(classes)])
    held = test_label < classes
    flat = lambda images: jnp.asarray((images - centre).reshape(-1, 64), dtype)
    return (flat(x[chosen]), jnp.asarray(label[chosen])), (flat(test_x[held]), jnp.asarray(test_label[held]))


def start(net: ux.Layered, std: float, dtype: Any, seed: int) -> list[Any]:
    """Draw weights N(0, std^2 / n); biases are 0."""
    keys = jax.random.split(jax.random.key(seed), len(net.layers))
    return [
        {
            "w": std / layer.inputs**0.5 * jax.random.normal(key, (layer.inputs, layer.outputs), dtype),
            "b": jnp.zeros(layer.outputs, dtype),
        }
        for layer, key in zip(net.layers, keys, strict=True)
    ]


def methods(net: ux.Layered, batch: int, steps: int, damping: float) -> dict[str, ux.Training]:
    """Return all methods by name; rates fall to 0 in a line."""
    bptt = ux.BPTT(net, horizon=batch)
    rate = lambda lr: optax.linear_schedule(lr, 0.0, steps)

    def loco(inner: Any, targets: str) -> ux.LocoProp:
        return ux.LocoProp(net.layers, net.loss, "S", inner, reach=REACH, targets=targets)

    curved = ux.Curvature(damping=damping, trust=None)
    return {
        "sgd": ux.Training(bptt, optax.sgd(rate(1.0))),
        "adam": ux.Training(bptt, optax.adam(rate(0.01))),
        "muon": ux.Training(bptt, ux.optimizer("muon", rate(0.02))),
        "gradient": ux.Training(loco(curved, "gradient"), optax.sgd(rate(1.0))),
        "natural": ux.Training(ux.LocoProp(net.layers, net.loss), optax.sgd(rate(1.0))),
        "normalized": ux.Training(loco(curved, "normalized"), optax.sgd(rate(1.0))),
        "normalized gradient": ux.Training(loco(optax.sgd(1.0), "normalized"), optax.sgd(rate(1.0))),
    }


def spread(net: ux.Layered, params: Any, x: Any) -> float:
    """Return by how much the outputs of the last sigmoid layer differ from example to example."""
    for layer, own in zip(net.layers[:-1], params, strict=False):
        x, _ = layer.forward(own, x)
    return float(x.std(0).mean())


def race(depth: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train one depth by all methods, each on the whole of the examples at each step."""
    dtype = jnp.float64 if arguments.float64 else jnp.float32
    train, test = task(arguments.classes, arguments.examples, dtype)
    sizes = [64, *[arguments.width] * depth, arguments.classes]
    net = ux.layered(ux.dense_layers(sizes, "sigmoid"), cross_entropy)
    params = start(net, arguments.std, dtype, arguments.seed)
    flow = ux.depth_flow(net.layers, params, train[0], lambda y: cross_entropy(y, train[1]).mean())
    print(f"\n{depth} layers: the gradient's factor a layer is {flow.factor:.3f}", end="")
    print(f"; the last sigmoid's outputs differ by {spread(net, params, train[0]):.1e}\n")
    print("| method | loss | training accuracy | test accuracy | last outputs differ by |\n|---|---|---|---|---|")
    found = {}
    made = methods(net, len(train[1]), arguments.steps, arguments.damping)
    for name in arguments.methods.split(",") if arguments.methods else made:
        found[name] = one = trained(net, made[name], params, train, test, arguments.steps)
        print(
            f"| {name} | {one['loss']:.4f} | {one['train']:.1%} | {one['test']:.1%} | {one['spread']:.1e} |", flush=True
        )
    return found


def trained(net: Any, training: ux.Training, params: Any, train: Any, test: Any, steps: int) -> dict[str, float]:
    """Train and return what came of it."""
    update = jax.jit(
        lambda state: jax.lax.fori_loop(0, steps, lambda _, now: training.step(now, train)[0], state).params
    )
    after = update(training.init(jax.random.key(0), params))
    right = lambda data: float((net.predict(after, data[0]).argmax(-1) == data[1]).mean())
    loss = float(cross_entropy(net.predict(after, train[0]), train[1]).mean())
    return {"loss": loss, "train": right(train), "test": right(test), "spread": spread(net, after, train[0])}


def main(given: list[str] | None = None) -> dict[int, dict[str, dict[str, float]]]:
    """Read the command line and race at all depths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} layers only")
    parser.add_argument("--depths", help=f"sigmoid layers, with commas between; {DEPTHS} unless given")
    parser.add_argument("--methods", default="", help="names with commas between; all by default")
    usual = {"width": 16, "classes": 2, "examples": 40, "steps": 200, "seed": 0}
    for name, number in usual.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"{number} unless given")
    parser.add_argument("--std", type=float, default=1.0, help="of the weights, times the root of a unit's inputs")
    parser.add_argument("--damping", type=float, default=0.1, help="of the curvature")
    parser.add_argument("--float64", action="store_true")
    arguments = parser.parse_args(given)
    depths = (arguments.depths or (QUICK if arguments.quick else DEPTHS)).split(",")
    if not all(depth.isdecimal() and int(depth) for depth in depths):
        parser.error(f"--depths must be numbers with commas between, got {arguments.depths}")
    with jax.enable_x64(True) if arguments.float64 else jax.enable_x64(False):
        return {int(depth): race(int(depth), arguments) for depth in depths}


if __name__ == "__main__":
    main()
