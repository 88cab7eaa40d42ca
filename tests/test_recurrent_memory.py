"""The claim of `benchmarks/recurrent_memory.py`: what the compiler plans for the gradient of a long sequence."""

import runpy

import jax
import pytest


@pytest.fixture
def benchmark(root):
    return runpy.run_path(str(root / "benchmarks" / "recurrent_memory.py"))


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["sqrt", "log"])
def test_a_gradient_through_100_000_steps_takes_less_than_10_megabytes(benchmark, memory):
    with jax.enable_x64(False):
        assert benchmark["temporaries"](100_000, memory) < benchmark["BOUND"] == 10_000_000


def test_all_of_a_window_takes_what_the_derivation_says(benchmark):
    """8 T N H numbers, and at most a tenth more for predictions, losses and keys."""
    with jax.enable_x64(False):
        assert 0.8 < benchmark["temporaries"](2000, "full") / benchmark["formula"](2000) < 1.1
