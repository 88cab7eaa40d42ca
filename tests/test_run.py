"""The run folder: nobody gets another's, records are whole lines, and nothing private is written."""

import json
import os
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import unrollax as ux
from unrollax._run import VARIABLES, RunFolder, describe_environment, plain


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "r")
    yield folder
    folder.close()


def lines(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_threads_that_start_at_once_get_distinct_folders_without_a_gap(tmp_path):
    together = threading.Barrier(16)

    def make(_):
        together.wait()
        folder = RunFolder.numbered(tmp_path / "runs", "decay")
        folder.record(step=1)
        folder.close()
        return folder.path.name

    with ThreadPoolExecutor(16) as pool:
        names = list(pool.map(make, range(16)))
    assert sorted(names) == sorted(f"decay-{number}" for number in range(1, 17))
    assert all(len((tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()) == 1 for name in names)


def test_a_record_is_one_write_of_one_line(folder, monkeypatch):
    written, write = [], os.write

    def count(descriptor, line):
        written.append(line)
        return write(descriptor, line)

    monkeypatch.setattr(os, "write", count)
    folder.record(step=1, loss=0.5, note="two\nlines", long="x" * 10_000)
    monkeypatch.undo()
    assert len(written) == 1
    assert written[0].count(b"\n") == 1
    assert written[0].endswith(b"\n")
    assert lines(folder) == [{"step": 1, "loss": 0.5, "note": "two\nlines", "long": "x" * 10_000}]


def test_records_of_threads_are_never_torn(folder):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: folder.record(step=number, text="x" * 500), range(200)))
    assert sorted(row["step"] for row in lines(folder)) == list(range(200))


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-np.float32("inf"), "-inf"),
        (jnp.array(jnp.nan), "nan"),
        (jnp.array(0.5), 0.5),
        (np.float64(1 / 3), 1 / 3),
        (3, 3),
        (True, True),
        ("text", "text"),
        (None, None),
    ],
)
def test_every_number_survives_as_valid_json(folder, number, kept):
    assert plain(number) == kept
    folder.record(number=number)
    text = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"number": kept}


def test_the_environment_holds_the_allowed_variables_and_no_secret(folder, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NPROC", "3")
    monkeypatch.setenv("SERVICE_TOKEN", "not-for-others")
    assert folder.write_environment() == describe_environment()
    text = (folder.path / "env.json").read_text()
    assert json.loads(text)["variables"] == {"NPROC": "3"}
    assert "not-for-others" not in text
    assert "SERVICE_TOKEN" not in text
    assert str(Path.home()) not in text
    assert set(json.loads(text)) == {"versions", "platform", "devices", "variables"}
    assert json.loads(text)["versions"]["numpy"] == np.__version__


def test_the_configuration_is_read_back_as_it_was(folder):
    config = {"target": 'a"b\\c.py:x', "steps": 3, "optimizer": {"lr": 1e-30}, "options": {"rows": True, "é": "ü"}}
    folder.write_config(config)
    assert tomllib.loads((folder.path / "run.toml").read_text(encoding="utf-8")) == config


def test_params_are_saved_under_their_name(folder):
    folder.save({"w": jnp.arange(3.0)})
    loaded = ux.load_params(folder.path / "params.safetensors", like={"w": jnp.zeros(3)})
    np.testing.assert_array_equal(loaded["w"], [0, 1, 2])


@pytest.mark.parametrize("occupied", ["file", "full"])
def test_what_exists_is_never_written_over(tmp_path, occupied):
    path = tmp_path / "r"
    if occupied == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / ".hidden").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ux.InvalidArgument, match=r"out must be a new or empty folder, got .*r\. Choose another"):
        RunFolder(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_and_a_deep_new_one_will_do(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b"):
        RunFolder(path).close()
        assert (path / "metrics.jsonl").read_text() == ""
