"""Variance: what one antithetic pair costs in noise, in closed form and on a small LSTM, and who is unbiased.

1. Losses linear in the noise. With q_ab the gradient, through window b, of all losses of windows >= max(a, b), and
   G = sum_a q_aa, the estimate of a horizon by one pair in D dimensions has a covariance of trace
     NRES and full ES   (D + 1) |G|^2,
     PES                sum_a (D + 1) |q_aa|^2 + sum_{a != b} (D |q_ab|^2 + q_ab . q_ba).
2. An LSTM over 1,000 steps, cut into 1 to 1,000 windows. Where every step has a random target of its own, the gradients of
   windows are unrelated, and PES pays for crediting old noise with losses that it did not cause. Where all steps are alike,
   the many draws of noise average out. NRES has the variance of a full ES whatever the cut.
3. A tanh RNN: the mean of many forward gradients, and of UORO, is backpropagation's gradient; RTRL is that gradient.

    .venv/bin/python examples/variance.py [--quick] [--seeds N] [--json] [--plot FILE] [--golden]

References: Vicol, Metz and Sohl-Dickstein, ICML 2021; Li et al., NeurIPS 2023; Tallec and Ollivier, ICLR 2018.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import COLOURS, Claim, Result, below, between, horizon_gradients, main

import unrollax as ux

PARTS = ("linear", "LSTM", "RNN")

# --- losses linear in the noise: row b of the state is what params were in window b -------------------------------------

WINDOWS, D = 6, 8


def linear_init(key: jax.Array, params: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return what params were in each window so far, and the number of the window."""
    return jnp.zeros((WINDOWS, D), params.dtype), jnp.int32(0)


def linear_step(params: jax.Array, state: Any, g: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
    """Note the params, and return a loss that is linear in all of them."""
    seen, window = state
    seen = seen.at[window].set(params)
    return (seen, window + 1), (g * seen).sum()


LINEAR = ux.system(init=linear_init, step=linear_step)


def influence() -> np.ndarray:
    """Return g[c, b], the gradient of window c's loss through the params of window b <= c; related, and then not."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(WINDOWS, WINDOWS, D)) + rng.normal(size=D)
    return g * np.tril(np.ones((WINDOWS, WINDOWS)))[:, :, None]


def traces(g: np.ndarray) -> dict[str, float]:
    """Return the closed forms, of the mean over windows of the estimates."""
    q = np.array([[g[max(a, b) :, b].sum(0) for b in range(WINDOWS)] for a in range(WINDOWS)]) / WINDOWS
    own, whole = np.einsum("aad,aad->", q, q), np.einsum("aad->d", q)
    crossed = D * ((q**2).sum() - own) + np.einsum("abd,bad->", q, q) - own
    one = (D + 1) * (whole @ whole)
    return {"NRES": one, "full ES": one, "PES": (D + 1) * own + crossed}


def linear_claims(count: int, curve: dict[str, Any]) -> list[Claim]:
    """Match the closed forms by Monte Carlo."""
    g = influence()
    params, claims = jnp.zeros(D), []
    mean = np.einsum("cbd->d", g) / WINDOWS
    options = {"std": 0.5, "horizon": WINDOWS, "pairs": 1}
    estimators = {
        "NRES": (ux.NRES(LINEAR, window=1, **options), WINDOWS),
        "full ES": (ux.FullES(LINEAR, **options), 1),
        "PES": (ux.PES(LINEAR, window=1, **options), WINDOWS),
    }
    for index, (name, expected) in enumerate(traces(g).items()):
        keys = jax.random.split(jax.random.key(10 + index), count)
        grads = np.asarray(horizon_gradients(estimators[name][0], params, jnp.asarray(g), keys, estimators[name][1]))
        seen = ((grads - mean) ** 2).sum(1).mean()
        curve[f"linear, {name}"] = {"closed form": expected, "Monte Carlo": seen}
        claims.append(between(f"linear losses, {name}: trace / closed form", 0.98, 1.02, seen / expected))
    return claims


# --- a small LSTM -------------------------------------------------------------------------------------------------------

STEPS, INPUTS, HIDDEN, CLASSES = 1000, 7, 10, 7
CUTS = (1, 4, 20, 100, 1000)
NET = ux.recurrent(ux.LSTMCell(INPUTS, HIDDEN), ux.Dense(HIDDEN, CLASSES), loss=ux.cross_entropy)


def lstm_data(steps: int) -> dict[str, ux.Frame]:
    """Return a sequence of random inputs and targets, and one of the same input and target at all steps."""
    inputs = jax.random.normal(jax.random.key(2), (steps, INPUTS))
    targets = jax.random.randint(jax.random.key(3), (steps,), 0, CLASSES)
    fresh = ux.sequence(inputs, targets)
    return {
        "fresh": fresh,
        "repeated": ux.sequence(jnp.broadcast_to(inputs[0], inputs.shape), jnp.broadcast_to(targets[0], steps)),
    }


def lstm_claims(steps: int, cuts: tuple[int, ...], count: int, curve: dict[str, Any]) -> list[Claim]:
    """Measure the trace of one pair's covariance over |G|^2 for each number of windows."""
    params = NET.params(jax.random.key(4))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    keys = jax.random.split(jax.random.key(5), count)
    curve["windows"], claims = list(cuts), [between("parameters of the LSTM", 780, 820, size)]
    for kind, data in lstm_data(steps).items():
        bptt = ux.BPTT(NET, horizon=steps)
        whole = np.asarray(horizon_gradients(bptt, params, data, keys[:1], 1))[0]
        for member in (ux.PES, ux.NRES):
            seen = []
            for windows in cuts:
                estimator = member(NET, std=1e-3, window=steps // windows, horizon=steps, pairs=1)
                grads = np.asarray(horizon_gradients(estimator, params, data, keys, windows))
                seen.append(((grads - whole) ** 2).sum(1).mean() / (whole @ whole))
            curve[f"{member.__name__}, {kind}"] = seen
        growth = curve[f"PES, {kind}"][-1] / curve[f"PES, {kind}"][0]
        limits = (100, 1000) if kind == "fresh" else (0.35, 0.75)
        claims.append(between(f"LSTM, {kind} targets: PES, {cuts[-1]} windows / 1", *limits, growth))
        off = np.abs(np.array(curve[f"NRES, {kind}"]) / (size + 1) - 1).max()
        claims.append(below(f"LSTM, {kind} targets: NRES, largest |variance / (D + 1) - 1|", 0.25, off))
    curve["D + 1"] = size + 1
    return claims


# --- a tanh RNN, where backpropagation tells what is right ------------------------------------------------------------------

RNN = ux.recurrent(ux.RNNCell(2, 4), ux.Dense(4, 1), loss=ux.squared_error)
HORIZON, WINDOW = 12, 3


def rnn_claims(count: int, curve: dict[str, Any]) -> list[Claim]:
    """Compare means of many estimates with backpropagation: the largest |z| of all parameters."""
    params = RNN.params(jax.random.key(6))
    rng = np.random.default_rng(1)
    data = ux.sequence(jnp.asarray(rng.normal(size=(HORIZON, 2))), jnp.asarray(rng.normal(size=(HORIZON, 1))))
    keys = jax.random.split(jax.random.key(7), count)
    options = {"window": WINDOW, "horizon": HORIZON}
    whole = np.asarray(horizon_gradients(ux.BPTT(RNN, horizon=HORIZON), params, data, keys[:1], 1))[0]
    random = {
        "forward gradient, kept directions": ux.ForwardGradient(RNN, **options),
        "forward gradient, fresh directions": ux.ForwardGradient(RNN, resample=True, **options),
        "UORO": ux.UORO(RNN, **options),
    }
    claims = []
    for name, estimator in random.items():
        grads = np.asarray(horizon_gradients(estimator, params, data, keys, HORIZON // WINDOW))
        # Parameters that only the readout has are exact but for rounding, and without a spread.
        error = np.maximum(grads.std(0) / np.sqrt(count), 1e-9 * np.linalg.norm(whole))
        z = (grads.mean(0) - whole) / error
        curve[f"z, {name}"] = z
        claims.append(below(f"tanh RNN, {name}: largest |z|", 4, np.abs(z).max()))
    rtrl = np.asarray(horizon_gradients(ux.RTRL(RNN, **options), params, data, keys[:1], HORIZON // WINDOW))[0]
    curve["RTRL"], curve["BPTT"] = rtrl, whole
    claims.append(below("tanh RNN: |RTRL - BPTT| / |BPTT|", 1e-7, np.linalg.norm(rtrl - whole) / np.linalg.norm(whole)))
    return claims


def settings(*, seeds: int, quick: bool) -> dict[str, Any]:
    """Return the numbers of draws and the lengths; `seeds` pairs are drawn for the LSTM."""
    draws = {"linear draws": 2000, "RNN draws": 500} if quick else {"linear draws": 400_000, "RNN draws": 20_000}
    return draws | {"LSTM steps": 60 if quick else STEPS, "LSTM pairs": 20 if quick else seeds}


def measure(part: str, config: dict[str, Any], curve: dict[str, Any]) -> list[Claim]:
    """Measure one part: `linear`, `LSTM` or `RNN`."""
    if part == "LSTM":
        cuts = CUTS if config["LSTM steps"] == STEPS else (1, config["LSTM steps"])
        return lstm_claims(config["LSTM steps"], cuts, config["LSTM pairs"], curve)
    return (linear_claims if part == "linear" else rnn_claims)(config[f"{part} draws"], curve)


def run(*, seeds: int, quick: bool) -> Result:
    """Measure all three parts."""
    config, curve = settings(seeds=seeds, quick=quick), {}
    claims = [claim for part in PARTS for claim in measure(part, config, curve)]
    return Result(config, claims, curve)


def draw(result: Result, figure: Any) -> None:
    """Draw the variance on the LSTM against the number of windows, and the z of the unbiased ones."""
    left, right = figure.subplots(1, 2)
    lines = {
        "PES, fresh": ("-", "o"),
        "PES, repeated": ("--", "s"),
        "NRES, fresh": ("-", "^"),
        "NRES, repeated": ("--", "v"),
    }
    for (name, (dash, marker)), colour in zip(lines.items(), COLOURS, strict=False):
        left.plot(
            result.curve["windows"], result.curve[name], dash, marker=marker, color=colour, label=f"{name} targets"
        )
    left.axhline(result.curve["D + 1"], color="black", linewidth=0.8, label="D + 1")
    left.set(xscale="log", yscale="log", xlabel="windows in 1,000 steps", ylabel="trace of the covariance / |G|²")
    left.set_title("One antithetic pair on an LSTM", loc="left")
    left.legend(frameon=False)
    named = {name[3:]: values for name, values in result.curve.items() if name.startswith("z, ")}
    for index, (name, z) in enumerate(named.items()):
        right.plot(z, np.full(len(z), -index), "|", markersize=18, color=COLOURS[index])
        right.text(-5.8, 0.25 - index, name, color=COLOURS[index])
    right.axvspan(-4, 4, color="#eeeeee", zorder=0)
    right.set(xlabel="z of each parameter's mean gradient against BPTT", xlim=(-6, 6), ylim=(-len(named) + 0.5, 0.6))
    right.set_yticks([])
    right.set_title("Unbiased on a tanh RNN", loc="left")


if __name__ == "__main__":
    main(__file__, __doc__, run, draw, seeds=250, tolerance=1e-6, size=(10, 4.2))
