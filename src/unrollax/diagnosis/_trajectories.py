"""How optimizers run down a valley of two parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unrollax._check import check_counts
from unrollax._errors import InvalidArgument, StructureError
from unrollax._tree import describe
from unrollax.diagnosis._text import aligned, plain
from unrollax.optimizers import adagrad_plain, momentum

GRID = 61  # points of the contour along each axis
START = (-7.0, 2.0)

Loss = Callable[[Any], Any]


class Trajectories(NamedTuple):
    """Paths of optimizers over a loss of two parameters; see `trajectories`.

    Attributes:
        paths: by optimizer, `[steps + 1, 2]` parameters before the first and after each update.
        losses: by optimizer, `[steps + 1]` loss there.
        x: `[61]` first parameter, for a contour of the loss around the paths.
        y: `[61]` second parameter.
        grid: `[61, 61]` loss at `(x[j], y[i])`: rows are y, as contour plots take it.
    """

    paths: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray
    grid: np.ndarray

    def __str__(self) -> str:
        first = next(iter(self.paths.values()))[0]
        head = ("optimizer", "last loss", "lowest loss", "updates to 1 %", "length of path", "turns across")
        rows = [head, *((name, *self._row(name)) for name in self.paths)]
        steps = len(next(iter(self.paths.values()))) - 1
        return f"Trajectories: {steps} updates from ({first[0]:g}, {first[1]:g})\n{aligned(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python numbers and lists, by field."""
        return plain(self)

    def _row(self, name: str) -> tuple[str, ...]:
        """Return one optimizer's cells: an update across the valley turns where the second parameter's step changes sign."""
        path, losses = self.paths[name], self.losses[name]
        with np.errstate(invalid="ignore", over="ignore"):
            moves = np.diff(path, axis=0)
            length = float(np.hypot(*moves.T).sum())
        target = self.grid[np.isfinite(self.grid)].min(initial=losses[0])
        target = min(target, np.nanmin(losses))
        near = losses <= target + 0.01 * (losses[0] - target)
        reached = str(int(np.argmax(near))) if near.any() and losses[0] > target else "never"
        turns = int((np.sign(moves[1:, 1]) * np.sign(moves[:-1, 1]) < 0).sum())
        return (
            f"{losses[-1]:.4g}",
            f"{np.nanmin(losses):.4g}",
            reached,
            f"{length:.4g}",
            str(turns),
        )


def valley(theta: Any) -> Any:
    """Return x**2 / 20 + y**2 of theta = (x, y): a valley twenty times as steep across as along.

    Example:
        >>> float(valley(jnp.array([2.0, 3.0])))
        9.199...
    """
    return theta[0] ** 2 / 20 + theta[1] ** 2


def _defaults() -> dict[str, optax.GradientTransformation]:
    """Return the five optimizers, in the forms and with the names that `trajectories` documents."""
    return {
        "GD": optax.sgd(0.95),
        "momentum": momentum(1.0),
        "AdaGrad": adagrad_plain(1.5),
        "RMSProp": optax.rmsprop(0.1, decay=0.99, eps=1e-8),
        "Adam": optax.adam(0.3),
    }


def trajectories(
    loss: Loss | None = None,
    start: Any = None,
    optimizers: Mapping[str, optax.GradientTransformation] | None = None,
    *,
    steps: int = 100,
) -> Trajectories:
    """Follow optimizers down a loss of two parameters, with exact gradients.

    By default the valley `x**2 / 20 + y**2` from (-7, 2), and five optimizers; g is the gradient, operations are by number:

        GD        theta -= 0.95 g
        momentum  v = 0.9 v - 0.1 g,                                  theta += v
        AdaGrad   w = w + g**2,                                       theta -= 1.5 g / sqrt(w)
        RMSProp   w = 0.99 w + 0.01 g**2,                             theta -= 0.1 g / sqrt(w + 1e-8)
        Adam      v = 0.9 v + 0.1 g,  w = 0.999 w + 0.001 g**2,       theta -= 0.3 v' / (sqrt(w') + 1e-8)
                  with v' = v / (1 - 0.9**t), w' = w / (1 - 0.999**t)

    Gradient descent swings across the valley, since its rate is near 2 / curvature there; the others damp it or rescale it.

    Args:
        loss: `loss(theta)` of an array `[2]`, a scalar.
        start: where all start, two numbers; by default (-7, 2).
        optimizers: optax optimizers by name.
        steps: updates.

    Raises:
        InvalidArgument: a start that isn't two numbers, or an optimizer that is none.
        StructureError: a loss that is no scalar.

    Example:
        >>> import unrollax as ux
        >>> found = ux.trajectories(steps=50)
        >>> {name: round(float(losses[-1]), 2) for name, losses in found.losses.items()}
        {'GD': 0.0, 'momentum': 0.01, 'AdaGrad': 0.0, 'RMSProp': 0.0, 'Adam': 0.01}

    References: Polyak, 1964 (momentum; this form has the gradient's weight 1 - alpha); Duchi et al., JMLR 2011 (AdaGrad);
        Tieleman and Hinton, 2012 (RMSProp); Kingma and Ba, ICLR 2015 (Adam).
    """
    check_counts("trajectories", steps=steps)
    loss = valley if loss is None else loss
    theta = jnp.asarray(START if start is None else start, float)
    if theta.shape != (2,) or not np.isfinite(theta).all():
        raise InvalidArgument(
            f"trajectories: start must be two finite numbers, got {start!r}. Pass such as (-7.0, 2.0)."
        )
    optimizers = _defaults() if optimizers is None else dict(optimizers)
    _check_optimizers(optimizers)
    value = jax.eval_shape(loss, theta) if callable(loss) else loss
    if not callable(loss) or jnp.shape(value) != ():
        got = describe(value)
        raise StructureError(f"trajectories: loss must be a function of theta [2] to a scalar, got {got}. Reduce it.")
    ran = {name: _descend(loss, optimizer, theta, steps) for name, optimizer in optimizers.items()}
    paths = {name: np.asarray(path, np.float64) for name, (path, _) in ran.items()}
    losses = {name: np.asarray(values, np.float64) for name, (_, values) in ran.items()}
    x, y = _around(np.concatenate(list(paths.values())), np.concatenate(list(losses.values())))
    return Trajectories(
        paths, losses, x, y, np.asarray(_contour(loss, jnp.asarray(x, float), jnp.asarray(y, float)), float)
    )


def _check_optimizers(optimizers: dict[str, Any]) -> None:
    for name, optimizer in optimizers.items():
        if not all(callable(getattr(optimizer, part, None)) for part in ("init", "update")):
            raise InvalidArgument(
                f"trajectories: optimizers must be optax optimizers by name, got {type(optimizer).__name__} for {name}. Pass "
                "such as {'Adam': optax.adam(0.3)}."
            )
    if not optimizers:
        raise InvalidArgument(
            "trajectories: optimizers must hold at least one, got none. Leave it out for the defaults."
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _descend(loss: Loss, optimizer: optax.GradientTransformation, theta: Any, steps: int) -> tuple[Any, Any]:
    def update(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        theta, state = carry
        value, grad = jax.value_and_grad(loss)(theta)
        updates, state = optimizer.update(grad, state, theta)
        return (optax.apply_updates(theta, updates), state), (theta, value)

    (last, _), (path, losses) = jax.lax.scan(update, (theta, optimizer.init(theta)), None, length=steps)
    return jnp.concatenate([path, last[None]]), jnp.append(losses, loss(last))


@functools.partial(jax.jit, static_argnums=0)
def _contour(loss: Loss, x: Any, y: Any) -> Any:
    return jax.vmap(lambda b: jax.vmap(lambda a: loss(jnp.stack([a, b])))(x))(y)


def _around(points: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the axes of a grid around the points, a tenth wider on each side; not of those that went far up."""
    points = points[np.isfinite(points).all(1) & (losses <= losses[0] + 3 * abs(losses[0]))]
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, np.maximum(0.6 * (high - low), 1e-3 + 0.1 * np.abs(points).max())
    x, y = np.linspace(middle - half, middle + half, GRID).T
    return x, y
