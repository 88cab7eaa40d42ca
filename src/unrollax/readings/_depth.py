"""A deep net layer by layer, as measured and as mean-field theory predicts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unrollax._figures import Plot, Table
from unrollax._report import Section
from unrollax.readings._words import paragraphs, short


def read_depth(depth: Any) -> list[Section]:
    """Return what a `Depth` says."""
    factors = np.asarray(depth.factors, float)
    layers = np.arange(1, len(depth.names) + 1)
    lines = {
        "output": depth.activations,
        "gradient at the output": depth.gradients,
        "gradient of the params": depth.params,
    }
    by_layer = Plot("Norms by layer", "layer", layers, lines, "norm", "y")
    ratio = {"measured": factors, **_predictions(depth, len(factors))}
    figures = [by_layer, Plot("Factor by layer", "layer", layers[len(layers) - len(factors) :], ratio, "factor")]
    shares = {"saturated": np.asarray(depth.saturated, float), "dead": np.asarray(depth.dead, float)}
    shares = {name: share for name, share in shares.items() if np.nanmax(share, initial=0.0) > 0}
    if shares:
        figures.append(Plot("Saturated activations, dead units", "layer", layers, shares, "share"))
    return [Section("Depth", _text(depth, factors), figures, {"": _table(depth)})]


def _text(depth: Any, factors: np.ndarray) -> str:
    fine = factors[np.isfinite(factors) & (factors > 0)]
    mean = float(np.exp(np.log(fine).mean())) if len(fine) else math.nan
    theory = "" if depth.predicted is None else f" Mean-field theory predicts {short(depth.predicted)}."
    verdict = getattr(depth, "verdict", None)
    dead = np.asarray(depth.dead, float)
    worst = int(np.nanargmax(dead)) if np.isfinite(dead).any() else None
    return paragraphs(
        f"Verdict: {verdict}." if verdict else "",
        f"Going back, a layer multiplies the gradient's norm by {short(mean)} on average, and all {len(depth.names)} of them "
        f"by {short(mean ** len(factors))}.{theory}",
        f"In {depth.names[worst]} {dead[worst]:.0%} of the units pass no gradient for any example."
        if worst is not None and dead[worst] > 0
        else "",
    )


def _predictions(depth: Any, count: int) -> dict[str, Any]:
    predictions = getattr(depth, "predictions", None)
    if predictions is None and depth.predicted is not None:
        predictions = np.full(count, depth.predicted)
    return {} if predictions is None or not np.isfinite(predictions).any() else {"mean field": predictions}


def _table(depth: Any) -> Table:
    factors = [math.nan] * (len(depth.names) - len(depth.factors)) + [float(factor) for factor in depth.factors]
    columns = (depth.activations, depth.gradients, factors, depth.params)
    rows = [
        (name, *(f"{number:.4g}" for number in row), *(_share(part[i]) for part in (depth.saturated, depth.dead)))
        for i, (name, *row) in enumerate(zip(depth.names, *columns, strict=True))
    ]
    return Table(("layer", "output", "gradient at the output", "factor", "of the params", "saturated", "dead"), rows)


def _share(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else ""


def read_mean_field(found: Any) -> list[Section]:
    """Return what a `MeanField` says."""
    layers = np.arange(1, len(found.factors) + 1)
    text = paragraphs(
        f"Verdict of theory: {found.verdict}. With weights of standard deviation {short(found.weight_std)} / sqrt(inputs) "
        f"and biases of {short(found.bias_std)}, a layer multiplies the gradient's norm by {short(found.factor)} on average "
        f"over {len(layers)} layers, and by {short(math.sqrt(found.chi))} where the variance has settled.",
        f"What two inputs have in common is lost or found after about {short(found.depth_scale)} layers."
        if math.isfinite(found.depth_scale)
        else "Signals and gradients keep their size at any depth.",
    )
    figures = [
        Plot("Factor of the gradient by layer, in theory", "layer", layers, {"factor": found.factors}),
        Plot("Variance of the activations, in theory", "layer", layers, {"variance": found.lengths}),
    ]
    return [Section("Mean field", text, figures)]
