"""How every test runs: float64, no silent broadcasting of ranks, eight virtual devices, one compilation cache a run."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

# Before jax is imported. Workers of xdist inherit the cache folder from the process that started them.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
OWNED = "JAX_COMPILATION_CACHE_DIR" not in os.environ
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="unrollax-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure(config):
    if OWNED:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def precision(request):
    """Docstrings show what a user sees, in float32."""
    with jax.enable_x64(not isinstance(request.node, pytest.DoctestItem)):
        yield


@pytest.fixture(autouse=True)
def forgetting(request):
    """Let go of compiled programs now and then: thousands of them slow down what follows."""
    yield
    request.config.tests_run = getattr(request.config, "tests_run", 0) + 1
    if request.config.tests_run % 100 == 0:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def here(request, tmp_path, monkeypatch):
    """Run in a folder of the test's own, where mine.py is the text MINE of its file, anew in each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    Path("mine.py").write_text(request.module.MINE)


@pytest.fixture
def root():
    return Path(__file__).parent
