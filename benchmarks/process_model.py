"""A model of a window of an evolution estimator over N processes: compute / N + latency * log2 N + bytes / bandwidth.

With `gradient` each process runs and weighs its own pairs and 4 d bytes are summed over all (a ring sends twice that, a tree
waits log2 N times). With `losses` 8 bytes a pair are gathered, and each process draws the noise of all pairs. The constants
of compute are those of one core that `processes.py` measured; networks are that of its processes, and assumed ones.

    .venv/bin/python benchmarks/process_model.py [--pair S] [--number S] [--plot docs/scale.svg]
"""

import argparse
import math
from pathlib import Path

SIZE, PAIRS = 100_000, 10_240  # numbers in params, and the pairs that all processes share
NETWORKS = {  # seconds of latency, bytes a second: assumptions
    "wide area": (20e-3, 12.5e6),
    "10 Gbit/s": (30e-6, 1.25e9),
    "200 Gbit/s": (5e-6, 25e9),
}
MANY = (1, 4, 16, 64, 256, 1024, 4096, 10_000)
HERE = {"pair": 7.3e-4, "number": 3.3e-9, "latency": 4.1e-5, "bandwidth": 1.6e9}  # see docs/scale.md


def modelled(constants, network, count):
    """Return the seconds of a window by each scheme."""
    latency, bandwidth = network
    own = math.ceil(PAIRS / count)
    hops, share = latency * math.ceil(math.log2(count)), (count - 1) / count
    compute = own * constants["pair"] + hops
    gradient = compute + 2 * share * 4 * SIZE / bandwidth
    return gradient, compute + (PAIRS - own) * SIZE * constants["number"] + share * 8 * PAIRS / bandwidth


def networks_of(constants):
    return {"loopback": (constants["latency"], constants["bandwidth"]), **NETWORKS}


def describe(constants):
    """Print the model's table, and below how many pairs in all the losses are cheaper than the gradient."""
    for name, network in networks_of(constants).items():
        even = 8 / (network[1] * constants["number"])
        print(
            f"{name}: latency {network[0]:.2g} s, {network[1]:.2g} B/s; losses win below {even:.2g} pairs, whatever d"
        )
        for count in MANY:
            gradient, losses = modelled(constants, network, count)
            best = modelled(constants, network, 1)[0] / count
            print(
                f"  N {count:6}  gradient {gradient:9.3g} s  efficiency {best / gradient:.2f}  losses {losses:9.3g} s"
            )


def draw(constants, path):
    """Draw both schemes against the number of processes; with losses all networks are much the same."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"svg.hashsalt": "unrollax", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(7.5, 3.3), layout="constrained")
    lines = (  # in colours that any colour vision can tell apart
        ("losses, 200 Gbit/s", "#000000", "s", "--", NETWORKS["200 Gbit/s"], 1),
        ("gradient, wide area", "#d55e00", "^", "-", NETWORKS["wide area"], 0),
        ("gradient, 10 Gbit/s", "#009e73", "D", "-", NETWORKS["10 Gbit/s"], 0),
        ("gradient, 200 Gbit/s", "#0072b2", "o", "-", NETWORKS["200 Gbit/s"], 0),
        ("compute alone", "#999999", None, ":", (0, math.inf), 0),
    )
    for label, colour, marker, dash, network, scheme in lines:
        times = [modelled(constants, network, count)[scheme] for count in MANY]
        axes.loglog(MANY, times, dash, color=colour, marker=marker, markersize=4, label=label)
    axes.set_xlabel("processes N")
    axes.set_title(f"seconds of a window, modelled: {PAIRS:,} pairs, d = {SIZE:,}", fontsize=9, loc="left")
    axes.grid(alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=float, default=HERE["pair"], help="seconds of compute for a pair's window")
    parser.add_argument("--number", type=float, default=HERE["number"], help="seconds to draw and weigh one number")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw to FILE (.svg or .png)")
    options = parser.parse_args()
    constants = {**HERE, "pair": options.pair, "number": options.number}
    describe(constants)
    if options.plot:
        draw(constants, options.plot)


if __name__ == "__main__":
    main()
