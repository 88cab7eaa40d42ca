"""What PyTorch's LSTM, GRU and RNN compute on fixed numbers, with all gradients: an oracle that is not JAX.

Writes `benchmarks/golden/torch_recurrent.json`, which tests/test_torch.py compares the kernels with. Float32, small sizes,
random weights, inputs, initial states and cotangents; the loss is `sum(dout * outputs) + sum(dh * h_n) (+ sum(dc * c_n))`.
Torch is in no extra of ours: take any environment that has it.

    python benchmarks/torch_recurrent.py
"""

import json
from pathlib import Path

import torch

PATH = Path(__file__).parent / "golden" / "torch_recurrent.json"
SIZES = {"N": 3, "T": 9, "D": 4, "H": 5}
LAYERS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN, "rnn-relu": torch.nn.RNN}


def numbers(tensor):
    """Nine significant digits: those that tell one float32 from the next."""
    listed = tensor.tolist()
    round_ = lambda item: [round_(i) for i in item] if isinstance(item, list) else float(f"{item:.9g}")
    return round_(listed)


def measure(name, make, generator):
    count, steps, inputs, hidden = SIZES.values()
    layer = make(inputs, hidden, **({"nonlinearity": "relu"} if name == "rnn-relu" else {}))  # time-major
    draw = lambda *shape: 0.5 * torch.randn(*shape, generator=generator)
    with torch.no_grad():
        for leaf in layer.parameters():
            leaf.copy_(draw(*leaf.shape))
    parts = 2 if name == "lstm" else 1
    x = draw(steps, count, inputs).requires_grad_()
    state = [draw(1, count, hidden).requires_grad_() for _ in range(parts)]
    outputs, last = layer(x, tuple(state) if parts == 2 else state[0])
    last = list(last) if parts == 2 else [last]
    cotangents = [draw(*leaf.shape) for leaf in (outputs, *last)]
    sum((a * b).sum() for a, b in zip(cotangents, (outputs, *last), strict=True)).backward()
    weights = dict(layer.named_parameters())
    return {
        "x": numbers(x),
        "state": [numbers(leaf[0]) for leaf in state],
        "weights": {key: numbers(leaf) for key, leaf in weights.items()},
        "cotangents": {"outputs": numbers(cotangents[0]), "last": [numbers(leaf[0]) for leaf in cotangents[1:]]},
        "outputs": numbers(outputs),
        "last": [numbers(leaf[0]) for leaf in last],
        "gradients": {
            "x": numbers(x.grad),
            "state": [numbers(leaf.grad[0]) for leaf in state],
            "weights": {key: numbers(leaf.grad) for key, leaf in weights.items()},
        },
    }


def main():
    generator = torch.Generator().manual_seed(0)
    layers = {name: measure(name, make, generator) for name, make in LAYERS.items()}
    golden = {"torch": torch.__version__, "sizes": SIZES, "layers": layers}
    PATH.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{PATH.name}: {', '.join(layers)} by torch {torch.__version__}")


if __name__ == "__main__":
    main()
