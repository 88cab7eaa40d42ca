"""The schemes of `processes.py`: each returns a compiled window of `NRES` on a mesh of pairs, and the state to start from."""

import functools

import jax
import jax.numpy as jnp
from evolution_memory import STD, UNITS, WINDOW
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

import unrollax as ux

PAIRS, CHUNK, PARTS = 128, 4, 4
SPREAD, WHOLE = PartitionSpec("pairs"), PartitionSpec()


def nres(system, pairs, chunk):
    return ux.NRES(system, STD, WINDOW, 100 * WINDOW, pairs=pairs, noise="regenerated", chunk=chunk)


def sharded(mesh, system, params):
    """The library's estimator, with everything that has an axis of pairs spread over the mesh."""
    estimator = nres(system, PAIRS, PAIRS)

    def place(leaf):
        return NamedSharding(mesh, SPREAD if leaf.shape[:1] == (PAIRS,) else WHOLE)

    key = jax.random.key(1)
    places = jax.tree.map(place, jax.eval_shape(estimator.init, key, params))
    state = jax.jit(estimator.init, out_shardings=places)(key, params)

    def run(params, state, data):
        state, estimate = estimator.estimate(params, state, data)
        return state, estimate.grad

    return jax.jit(run, out_shardings=(places, NamedSharding(mesh, WHOLE))), state


def averaged(mesh, system, params):
    """One estimator for each quarter of the pairs, with a key of its own; a process has some of them."""
    estimator = nres(system, PAIRS // PARTS, CHUNK)
    state = jax.jit(
        lambda keys: jax.vmap(lambda key: estimator.init(key, params))(keys), out_shardings=NamedSharding(mesh, SPREAD)
    )(jax.random.split(jax.random.key(1), PARTS))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(WHOLE, SPREAD, WHOLE), out_specs=(SPREAD, WHOLE), check_vma=False
    )
    def run(params, state, data):
        def one(state):
            state, estimate = estimator.estimate(params, state, data)
            return state, estimate.grad

        state, grads = jax.lax.map(one, state)
        flat, unravel = ravel_pytree(jax.tree.map(lambda g: g.sum(0) / PARTS, grads))
        return state, unravel(jax.lax.psum(flat, "pairs"))

    return jax.jit(run), state


def losses(mesh, system, params):
    """The rule of `NRES` by hand: own pairs are run, losses gathered, and the noise of all pairs is drawn again."""
    theta, unravel = ravel_pytree(params)
    own = PAIRS // mesh.size
    seeds = jax.random.split(jax.random.key(1), PAIRS)
    inner = jax.jit(lambda: jnp.zeros((PAIRS, 2, UNITS)), out_shardings=NamedSharding(mesh, SPREAD))()

    def noise(seed):
        return ux.normal(seed, theta.shape, theta.dtype)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(WHOLE, SPREAD, WHOLE), out_specs=(SPREAD, WHOLE), check_vma=False
    )
    def run(params, inner, data):
        theta = ravel_pytree(params)[0]

        def twin(inner, params):
            inner, losses = ux.unroll(system, unravel(params), inner, data, jax.random.key(2))
            return inner, losses.mean()

        def pair(args):
            seed, inner = args
            shift = STD * noise(seed)
            return jax.vmap(twin)(inner, theta + jnp.stack([shift, -shift]))

        first = own * jax.lax.axis_index("pairs")
        inner, mine = jax.lax.map(
            pair, (jax.lax.dynamic_slice_in_dim(seeds, first, own), inner), batch_size=min(CHUNK, own)
        )
        every = jax.lax.all_gather(mine, "pairs", tiled=True)
        weights = (every[:, 0] - every[:, 1]) / (2 * STD * PAIRS)

        def weigh(total, some):
            seeds, weights = some
            return total + weights @ jax.vmap(noise)(seeds), None

        chunks = seeds.reshape(-1, CHUNK), weights.reshape(-1, CHUNK)
        return inner, unravel(jax.lax.scan(weigh, jnp.zeros_like(theta), chunks)[0])

    return jax.jit(run), inner
