"""Forecasts of a series, each made from the values before it alone, beside the linear ones that they have to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrollax._errors import InvalidArgument
from unrollax._experiment import Experiment, episodes
from unrollax._types import Key, Params, State
from unrollax._value import static, value
from unrollax._wrap import Batched, batched
from unrollax.estimators import BPTT
from unrollax.recipes._baselines import Scale, autoregression, best_order, choose_scale, make_scale, rmse
from unrollax.recipes._common import decayed_adam, make_cell
from unrollax.recipes._options import Forecast
from unrollax.recipes._series import SHORTEST, Series, read
from unrollax.systems import Dense, Frame, Recurrent, recurrent, squared_error

SHIPPED_TEST = 100  # years of the sunspots
SHARES = {"test": 5, "validation": 4}  # a fifth is the test, a quarter of what is left validates


class Split(NamedTuple):
    """A series whose first `train` values may be learned from; the others are forecast.

    Attributes:
        series: up to the end of what is forecast.
        train: values to learn from, the scale included.
        ahead: a forecast reads the values up to this many steps before.
        scored: `test` or `validation`, the name of what is forecast.
    """

    series: Series
    train: int
    ahead: int
    scored: str


@value
class Ensemble:
    """Networks of different starts that train side by side, each on data of its own: leaves get an axis of members."""

    system: Batched
    members: int = static()

    def params(self, key: Key) -> Params:
        """Draw the parameters of every member, leaves `[members, ...]`."""
        return jax.vmap(self.system.system.params)(jax.random.split(key, self.members))  # type: ignore[attr-defined]

    def init(self, key: Key, params: Params) -> State:
        """Return every member's state."""
        return jax.vmap(self.system.init)(jax.random.split(key, self.members), params)

    def step(self, params: Params, state: State, x: Any, key: Key) -> tuple[State, jax.Array]:
        """Step every member; the loss is the mean over them."""
        after, losses = jax.vmap(self.system.step)(params, state, x, jax.random.split(key, self.members))
        return after, losses.mean()


@value
class Stretches:
    """Random stretches of a series, by the number of the episode: read with noise, the change ahead is the target."""

    values: jax.Array  # [n], standardised
    key: jax.Array
    noise: jax.Array
    length: int = static()
    ahead: int = static()
    shape: tuple[int, int] = static()  # members, batch

    def __call__(self, number: jax.Array) -> Frame:
        """Return leaves `[length, members, batch]`, input and target with a last axis of 1."""
        places, blur = jax.random.split(jax.random.fold_in(self.key, number))
        last = self.values.shape[0] - self.length - self.ahead
        steps = jnp.arange(self.length)[:, None, None]
        now = jax.random.randint(places, self.shape, 0, last + 1)[None] + steps
        noise = self.noise * jax.random.normal(blur, now.shape)
        ones = jnp.ones(now.shape)
        change = self.values[now + self.ahead] - self.values[now]
        return Frame((self.values[now] + noise)[..., None], change[..., None], ones.astype(bool), ones)


def split(options: Forecast) -> Split:
    """Read the series and cut it.

    Raises:
        InvalidArgument: the file or the column can't be used, or too few values are left to learn from.
    """
    series = read(options.path, options.target or ("" if options.path else "sunspots"))
    size = len(series.values)
    held = options.test or (size // SHARES["test"] if options.path else SHIPPED_TEST)
    train = size - held
    if options.score == "validation":
        size, train = train, train - train // SHARES["validation"]
    least = SHORTEST // 2 + 2 * options.ahead
    if train < least:
        raise InvalidArgument(
            f"forecast: at least {least} values must be left to learn from, got {max(train, 0)}. "
            "Lower test or ahead, or give a longer series."
        )
    cut = series._replace(values=series.values[:size], x=series.x[:size])
    return Split(cut, train, options.ahead, options.score)


class Linear(NamedTuple):
    """The scale to learn on, and the linear forecasts of every value, `[n]` each; what they learn ends where ours does.

    Attributes:
        scale: where an autoregression's errors depend least on the level, unless another was asked for.
        on_scale: the autoregression's forecasts there, by its name.
        forecasts: those to beat, by name.
    """

    scale: Scale
    on_scale: dict[str, np.ndarray]
    forecasts: dict[str, np.ndarray]


def linear(options: Forecast, data: Split) -> Linear:
    """Measure the scale and make the linear forecasts.

    Raises:
        InvalidArgument: the order is too large, or the values have no such scale.
    """
    values, ahead = data.series.values, data.ahead
    train = values[: data.train]
    order = options.ar or best_order(train, ahead)
    if 2 * (order + 1) + ahead > data.train:
        raise InvalidArgument(f"forecast: ar must be small beside the {data.train} training values, got {order}.")
    named = options.scale != "auto"
    scale = make_scale(options.scale, train) if named else choose_scale(train, order, ahead)
    there = f"AR({order})" + ("" if scale.name == "linear" else f" of {scale.name}s")
    on_scale = autoregression(scale.forward(values), data.train, order, ahead)
    forecasts = {
        there: scale.back(on_scale),
        f"AR({order})": autoregression(values, data.train, order, ahead),
        "persistence": np.concatenate([np.full(ahead, np.nan), values[:-ahead]]),
    }
    return Linear(scale, {there: on_scale}, forecasts)


class Forecaster(NamedTuple):
    """Networks beside linear forecasts: what is said of every value of a series, `values`, `[n]` and on the scale."""

    net: Recurrent
    values: jax.Array
    ahead: int
    linear: Linear

    def __call__(self, params: Params) -> dict[str, np.ndarray]:
        """Return all forecasts by name, `[n]` each: the networks' (no name), their mean with a linear one, the linear."""
        made = np.asarray(outlook(self.net, params, self.values), np.float64)[: len(self.values) - self.ahead]
        ours = np.concatenate([np.full(self.ahead, np.nan), made])
        (name, *_), back = self.linear.on_scale, self.linear.scale.back
        mean = (ours + self.linear.on_scale[name]) / 2
        return {"": back(ours), f"mean with {name}": back(mean), **self.linear.forecasts}


@jax.jit
def outlook(net: Recurrent, params: Params, values: jax.Array) -> jax.Array:
    """Return at each step what the members forecast on average, the present value and a change, `[n]`."""
    changes = jax.vmap(lambda member: net.predict(member, values[:, None])[:, 0])(params)
    return values + changes.mean(0)


def build(options: Forecast, seed: int, steps: int | None) -> Experiment:
    """Make the experiment."""
    data = split(options)
    others = linear(options, data)
    values = jnp.asarray(others.scale.forward(data.series.values), jnp.float32)
    steps = steps or 300
    length = min(options.length, data.train - data.ahead)
    net = recurrent(make_cell(options.cell, 1, options.hidden), Dense(options.hidden, 1), squared_error)
    system = Ensemble(batched(net, options.batch), options.members)
    start, draws = jax.random.split(jax.random.key(seed))
    noise, shape = jnp.float32(options.noise), (options.members, options.batch)
    stretches = Stretches(values[: data.train], draws, noise, length, data.ahead, shape)
    forecast = Forecaster(net, values, data.ahead, others)
    return Experiment(
        system=system,
        estimator=BPTT(system, length),
        optimizer=decayed_adam(options.lr, steps),
        params=jax.jit(system.params)(start),
        data=episodes(stretches, length),
        evaluate=lambda params: scores(data, forecast(params)),
        steps=steps,
        artifacts=lambda params: {f"{data.scored} span": table(data, forecast(params))},
    )


def scores(data: Split, forecasts: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the root mean squared error of each over the scored span."""
    truth = data.series.values[data.train :]
    return {
        f"{data.scored} RMSE" + (f", {name}" if name else ""): rmse(forecast[data.train :], truth)
        for name, forecast in forecasts.items()
    }


def table(data: Split, forecasts: dict[str, np.ndarray]) -> dict[str, Sequence[float]]:
    """Return the scored span as columns: what the series stands over, the truth, ours and the autoregressions."""
    drawn = {name or "forecast": column for name, column in forecasts.items() if not name or name.startswith("AR(")}
    columns = {"truth": data.series.values, **drawn}
    over = "row" if data.series.over in columns else data.series.over
    return {name: column[data.train :].tolist() for name, column in {over: data.series.x, **columns}.items()}
