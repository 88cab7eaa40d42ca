"""The kernels compute what PyTorch's layers compute, and all their gradients, with the weights carried over."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrollax import kernels

RUN = {
    "lstm": kernels.lstm,
    "gru": kernels.gru,
    "rnn": kernels.rnn,
    "rnn-relu": partial(kernels.rnn, activation="relu"),
}
ORDER = {"lstm": (0, 1, 3, 2), "gru": (0, 1, 2), "rnn": (0,), "rnn-relu": (0,)}  # torch: i, f, g, o and r, z, n


def columns(name, leaf):
    """Turn torch's `[gates * H, ...]` into ours, `[..., gates * H]` with the gates in our order."""
    gates = np.split(np.asarray(leaf, np.float32), len(ORDER[name]))
    return jnp.asarray(np.concatenate([gates[index] for index in ORDER[name]]).T)


def from_torch(name, weights):
    """Carry one layer's weights over; torch has two biases, which add up but for the candidate n of the GRU."""
    wx, wh, b, across = (
        columns(name, weights[f"{key}_l0"]) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    if name != "gru":
        return {"wx": wx, "wh": wh, "b": b + across}
    hidden = wh.shape[0]
    return {"wx": wx, "wh": wh, "b": b + across.at[2 * hidden :].set(0), "bn": across[2 * hidden :]}


def gradients_from_torch(name, grads):
    """The gradient of a sum of biases is that of either."""
    wx, wh, b, across = (columns(name, grads[f"{key}_l0"]) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return {"wx": wx, "wh": wh, "b": b} | ({"bn": across[2 * wh.shape[0] :]} if name == "gru" else {})


@pytest.fixture(scope="module")
def golden(request):
    path = request.config.rootpath / "benchmarks" / "golden" / "torch_recurrent.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", RUN)
def test_outputs_states_and_all_gradients_are_those_of_pytorch(name, golden):
    kept = golden["layers"][name]
    one = lambda parts: tuple(parts) if name == "lstm" else parts[0]
    states = lambda parts: one([jnp.asarray(part, jnp.float32) for part in parts])
    params, x, state = from_torch(name, kept["weights"]), jnp.asarray(kept["x"], jnp.float32), states(kept["state"])
    cotangent = (states(kept["cotangents"]["last"]), jnp.asarray(kept["cotangents"]["outputs"], jnp.float32))

    @jax.jit
    def everything(params, x, state):
        out, pull = jax.vjp(RUN[name], params, x, state)
        return out, pull(cotangent)

    got = everything(params, x, state)
    grads = kept["gradients"]
    expected = (
        (states(kept["last"]), np.asarray(kept["outputs"])),
        (gradients_from_torch(name, grads["weights"]), np.asarray(grads["x"]), states(grads["state"])),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, expected)
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(expected))  # 1e-5 is small beside every leaf


def test_the_golden_file_is_of_the_sizes_that_it_states(golden):
    count, steps, inputs, hidden = golden["sizes"].values()
    for kept in golden["layers"].values():
        assert np.shape(kept["x"]) == (steps, count, inputs)
        assert np.shape(kept["outputs"]) == (steps, count, hidden)
