"""One command makes the environment, on a fresh machine and after anything that went wrong before."""

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

INPUTS = ("bootstrap.py", "requirements.lock", "pyproject.toml")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
PIN = re.compile(r"[A-Za-z0-9._-]+==\S+( ; .+)? \\")


@pytest.fixture
def copy(root, tmp_path):
    """The files that an environment is made from, in a folder with a space in its name."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in INPUTS:
        shutil.copy(root / name, folder)
    return folder


def load(folder):
    spec = importlib.util.spec_from_file_location("bootstrap", folder / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bootstrap(copy):
    return load(copy)


@pytest.fixture
def steps(bootstrap, monkeypatch):
    """Record the two halves of the work rather than do it."""
    steps = []
    monkeypatch.setattr(bootstrap, "make_venv", lambda: (steps.append("venv"), bootstrap.VENV.mkdir(exist_ok=True)))
    monkeypatch.setattr(bootstrap, "install", lambda: steps.append("install"))
    return steps


@pytest.fixture
def commands(bootstrap, monkeypatch):
    """Record the commands rather than run them; each does what it should."""
    commands = []

    def record(command, **options):
        assert not options.get("shell")
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bootstrap.subprocess, "run", record)
    return commands


def ending(function, *arguments):
    """The one line that a function ends the program with."""
    with pytest.raises(SystemExit) as end:
        function(*arguments)
    message = end.value.code
    assert isinstance(message, str)
    assert message.startswith("bootstrap: ")
    assert "\n" not in message
    return message


def test_the_lock_names_no_host_and_pins_every_requirement_with_a_hash(root):
    lines = (root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    starts = [index for index, line in enumerate(lines) if not line.startswith(" ")]
    assert len(starts) > 20
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        assert PIN.fullmatch(lines[start]), lines[start]
        hashes = lines[start + 1 : end]
        assert hashes, lines[start]
        assert all(HASH.fullmatch(line) for line in hashes), lines[start]
        assert [line.endswith("\\") for line in hashes] == [True] * (len(hashes) - 1) + [False]


def test_the_lock_holds_all_that_the_project_asks_for(root):
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    pinned = {line.partition("==")[0] for line in (root / "requirements.lock").read_text(encoding="utf-8").splitlines()}
    for name in (
        "jax",
        "optax",
        "numpy",
        "lazy-loader",
        "typer",
        "safetensors",
        "pytest",
        "hatchling",
        "editables",
        "uv",
    ):
        assert f'"{name}>=' in project
        assert name in pinned


def test_the_requirement_of_uv_is_its_pin_and_its_hashes_and_nothing_else(bootstrap):
    lock = bootstrap.LOCK.read_text(encoding="utf-8")
    (block,) = re.findall(r"^uv==.*\n(?:    --hash.*\n)+", lock, re.M)
    assert bootstrap.uv_requirement() == block
    assert block.count("==") == 1
    assert "--hash=sha256:" in block


def test_the_first_run_does_everything_and_the_second_nothing(bootstrap, steps, capsys):
    bootstrap.main()
    assert steps == ["venv", "install"]
    assert capsys.readouterr().out == "bootstrap: done\n"
    bootstrap.main()
    assert steps == ["venv", "install"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("stale", [*INPUTS, "half a stamp", "no stamp", "another Python"])
def test_a_stamp_that_is_not_current_means_all_over_again(bootstrap, steps, stale, monkeypatch):
    bootstrap.main()
    if stale in INPUTS:
        with (bootstrap.ROOT / stale).open("a") as file:
            file.write("# changed\n")
    elif stale == "half a stamp":
        bootstrap.STAMP.write_text(bootstrap.STAMP.read_text()[:30])
    elif stale == "no stamp":
        bootstrap.STAMP.unlink()
    else:
        monkeypatch.setattr(bootstrap, "BASE", "/elsewhere/bin/python3")
    bootstrap.main()
    assert steps == ["venv", "install"] * 2


def test_a_folder_that_was_moved_is_made_anew(bootstrap, steps, tmp_path):
    bootstrap.main()
    moved = load(bootstrap.ROOT.rename(tmp_path / "elsewhere"))
    assert moved.STAMP.read_text() != moved.fingerprint()


def test_a_failing_install_leaves_no_stamp(bootstrap, steps, monkeypatch):
    monkeypatch.setattr(bootstrap, "install", lambda: bootstrap.fail("no luck"))
    assert ending(bootstrap.main) == "bootstrap: no luck"
    assert steps == ["venv"]
    assert list(bootstrap.VENV.iterdir()) == []


def test_half_an_environment_is_removed_first(bootstrap, commands):
    (bootstrap.VENV / "bin").mkdir(parents=True)
    (bootstrap.VENV / "bin" / "python").write_text("half of it")
    bootstrap.make_venv()
    assert not bootstrap.VENV.exists()
    assert commands == [[bootstrap.BASE, "-m", "venv", str(bootstrap.VENV)]]


def test_the_environment_is_never_made_by_its_own_python(bootstrap):
    """Run from an activated `.venv`, it would remove the interpreter that is to make the next."""
    assert Path(bootstrap.BASE).exists()
    if sys.prefix != sys.base_prefix:
        assert not Path(bootstrap.BASE).is_relative_to(sys.prefix)


def test_every_command_is_a_list_in_which_the_folder_with_a_space_is_one_word(bootstrap, commands):
    bootstrap.VENV.mkdir()
    bootstrap.install()
    assert len(commands) == 3
    for command in commands:
        assert isinstance(command, list)
        assert all(isinstance(word, str) for word in command)
        assert command[0] == str(bootstrap.PYTHON)
        for word in command:
            assert "a folder" not in word or word.startswith(str(bootstrap.ROOT))
    assert commands[2][-2:] == ["-e", str(bootstrap.ROOT)]


def test_everything_from_the_index_is_checked_by_hash(bootstrap, commands):
    bootstrap.VENV.mkdir()
    bootstrap.install()
    pip, sync, project = commands
    assert {"--require-hashes", "--no-deps"} <= set(pip)
    assert Path(pip[-1]).read_text() == bootstrap.uv_requirement()
    assert "--require-hashes" in sync
    assert sync[-1] == str(bootstrap.LOCK)
    assert {"--no-deps", "--no-build-isolation"} <= set(project)


def failing(bootstrap, monkeypatch, stderr):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 2, "", stderr)

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    return ending(bootstrap.run, "installing the lock", "uv")


@pytest.mark.parametrize(
    "stderr",
    [
        "error: Request failed\n  Caused by: error sending request for url\n  Caused by: Connection refused (os error 111)",
        "WARNING: Retrying after connection broken by 'NewConnectionError'",
        "curl: (6) Could not resolve host: index",
        "ERROR: No matching distribution found for uv",
        "error: operation timed out",
    ],
)
def test_a_network_that_fails_is_said_in_one_line(bootstrap, monkeypatch, capsys, stderr):
    message = failing(bootstrap, monkeypatch, stderr)
    assert "no package index could be reached while installing the lock. Check the network or the proxy" in message
    assert capsys.readouterr().err.strip() == stderr


def test_any_other_failure_shows_the_end_of_what_was_printed(bootstrap, monkeypatch, capsys):
    message = failing(bootstrap, monkeypatch, "x" * 5000 + "error: hash mismatch for jax")
    assert message == "bootstrap: installing the lock failed (exit status 2); the lines above say why."
    error = capsys.readouterr().err
    assert error.endswith("error: hash mismatch for jax\n")
    assert len(error) < 2500


@pytest.mark.parametrize("module", ["ensurepip", "venv"])
def test_a_python_without_venv_is_told_what_to_install(bootstrap, monkeypatch, module):
    bootstrap.VENV.mkdir()
    monkeypatch.setitem(sys.modules, module, None)
    assert "apt install python3-venv" in ending(bootstrap.make_venv)
    assert bootstrap.VENV.exists()


def test_an_old_python_can_read_the_file_and_is_told(bootstrap, steps, monkeypatch):
    ast.parse((bootstrap.ROOT / "bootstrap.py").read_text(encoding="utf-8"), feature_version=(3, 5))
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert ending(bootstrap.main).startswith("bootstrap: Python 3.11 or newer is needed, this is 3.9.")
    assert steps == []


def test_the_oldest_python_is_that_of_the_project(bootstrap):
    assert f'requires-python = ">={".".join(map(str, bootstrap.OLDEST))}"' in (bootstrap.ROOT / INPUTS[2]).read_text()


def test_a_disk_that_refuses_is_said_in_one_line(copy):
    (copy / ".venv").write_text("a file in the way")
    done = subprocess.run([sys.executable, copy / "bootstrap.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("bootstrap: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_it_really_works_in_a_folder_with_a_space_twice_and_after_a_kill(copy, root):
    shutil.copytree(root / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    python, version = sys.executable, [copy / ".venv/bin/unrollax", "--version"]

    def run():
        done = subprocess.run([python, "bootstrap.py"], cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with subprocess.Popen(
        [python, "bootstrap.py"], cwd=copy, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as killed:
        assert "bootstrap: installing the lock\n" in iter(killed.stdout.readline, "")
        os.killpg(killed.pid, signal.SIGKILL)
    assert not (copy / ".venv/.unrollax-stamp").exists()
    assert run()[-1] == "bootstrap: done"
    subprocess.run(version, check=True)
    assert run() == []
    again = subprocess.run([copy / ".venv/bin/python", "bootstrap.py"], cwd=copy, capture_output=True, check=False)
    assert (again.returncode, again.stdout) == (0, b"")
