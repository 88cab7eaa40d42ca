"""Make `.venv` beside this file: the locked dependencies, hashes checked, then unrollax itself.

Standard library only, so that a fresh machine needs Python alone. Run it as often as you like: a stamp, written last, says
that everything is in place for this lock, this project file and this interpreter; without it every step is done again.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / ".unrollax-stamp"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
OLDEST = (3, 11)
BASE = getattr(sys, "_base_executable", None) or sys.executable  # never .venv's own Python, which is removed on the way


def fail(message):
    """End with one line that says what is wrong and what to do."""
    sys.exit("bootstrap: " + message)


def fingerprint():
    """What the environment is made from; a change of any of it makes the stamp stale."""
    digest = hashlib.sha256(repr((sys.version, os.path.realpath(BASE), str(ROOT))).encode())
    for path in (LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(doing, *command):
    """Run one step; on failure show the end of what it printed and one line on the likely cause."""
    print("bootstrap: " + doing, flush=True)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=str(ROOT))
    if done.returncode:
        output = (done.stdout + done.stderr).strip()
        print(output[-2000:], file=sys.stderr)
        signs = (
            "connection",
            "resolve host",
            "dns",
            "network",
            "timed out",
            "error sending request",
            "no matching distribution",
        )
        if any(sign in output.lower() for sign in signs):
            fail("no package index could be reached while %s. Check the network or the proxy and run me again." % doing)
        fail("%s failed (exit status %d); the lines above say why." % (doing, done.returncode))


def uv_requirement():
    """The lines of the lock that pin uv, with their hashes: pip installs it, uv installs all the rest."""
    lines, keep = [], False
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        keep = line.startswith("uv==") or (keep and line.startswith(" "))
        if keep:
            lines.append(line)
    return "\n".join(lines) + "\n"


def make_venv():
    """A fresh environment; half of one, left by a killed run, is removed first."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail("this Python has no venv or ensurepip. On Debian or Ubuntu: apt install python3-venv.")
    if VENV.exists():
        shutil.rmtree(str(VENV))
    run("making .venv", BASE, "-m", "venv", VENV)


def install():
    """The lock, with hashes checked, then the project itself without touching its dependencies."""
    pin = VENV / "uv.txt"
    pin.write_text(uv_requirement(), encoding="utf-8")
    quiet = ("--quiet", "--disable-pip-version-check")
    run("installing uv", PYTHON, "-m", "pip", "install", *quiet, "--require-hashes", "--no-deps", "-r", pin)
    uv = (PYTHON, "-m", "uv", "pip")
    run("installing the lock", *uv, "sync", "--quiet", "--require-hashes", "--python", PYTHON, LOCK)
    run(
        "installing unrollax",
        *uv,
        "install",
        "--quiet",
        "--python",
        PYTHON,
        "--no-deps",
        "--no-build-isolation",
        "-e",
        ROOT,
    )


def main():
    """Do nothing if the stamp is current, else everything."""
    if sys.version_info < OLDEST:
        fail(
            "Python %d.%d or newer is needed, this is %d.%d. Run me with a newer one." % (OLDEST + sys.version_info[:2])
        )
    stamp = fingerprint()
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == stamp:
        return
    make_venv()
    install()
    partial = STAMP.with_suffix(".new")
    partial.write_text(stamp, encoding="utf-8")
    partial.replace(STAMP)
    print("bootstrap: done")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; run me again to finish.")
    except OSError as error:
        fail("%s. Free some disk or fix the permissions, then run me again." % error)
