"""The code that the documents show is run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(page for name in ("docs", "examples", "benchmarks") for page in sorted((ROOT / name).rglob("*.md"))),
]
BLOCKS = [
    pytest.param(page, block, id=f"{page.relative_to(ROOT)}-{index}")
    for page in PAGES
    for index, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_python_block_of_the_documents_runs(page, block, tmp_path):
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    done = subprocess.run([sys.executable, "block.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readmes_own_experiment_trains_under_every_estimator(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from unrollax.cli._app import app
    from unrollax.cli._names import ESTIMATORS

    block = next(block.values[1] for block in BLOCKS if "def decay" in block.values[1])
    (tmp_path / "mine.py").write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ESTIMATORS:
        result = CliRunner().invoke(app, ["train", "mine.py:decay", "--estimator", name, "--steps", "20", "-q"])
        assert result.exit_code == 0, result.output


def test_the_page_of_choices_is_what_the_traits_and_the_measured_costs_make():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "choose", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


LINKS = [
    pytest.param(page, target, id=f"{page.relative_to(ROOT)}->{target}")
    for page in PAGES
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_link_inside_the_documents_leads_somewhere(page, target):
    assert (page.parent / target).exists()
