"""The virtual environment of the controller, made from the locked requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tools import packages
from tools.shell import ROOT, VENV_BIN, Failure, run, step

VENV = ROOT / ".venv"
STAMP = VENV / ".requirements.sha256"
# ansible-core 2.19 supports these on a controller.
OLDEST, NEWEST = (3, 11), (3, 13)
UNUSED = "/ansible_collections/(?!ansible/|community/docker/)"
DISTRIBUTIONS = "/usr/bin/python3"


def _interpreter() -> str:
    """Find a Python that ansible-core supports: the one that make's PYTHON names, the distribution's, then any other.

    What version managers build is often compiled without optimizations, and Ansible took 1.5 to 2 times as long with it.
    """
    # Never the environment's own, which is about to go.
    path = os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != VENV_BIN)
    minors = range(NEWEST[1], OLDEST[1] - 1, -1)
    for name in [os.environ.get("PYTHON", DISTRIBUTIONS), DISTRIBUTIONS, "python3", *(f"python3.{minor}" for minor in minors)]:
        python = shutil.which(name, path=path)
        if python and _supported(python):
            return python
    raise Failure(f"Install Python 3.{OLDEST[1]} to 3.{NEWEST[1]}: ansible-core 2.19 runs on no other.")


def _supported(python: str) -> bool:
    told = run([python, "-c", "import sys; print(*sys.version_info[:2])"], check=False).stdout.split()
    return len(told) == 2 and OLDEST <= (int(told[0]), int(told[1])) <= NEWEST


def ensure() -> None:
    """Make the environment again when the lock file has changed; do nothing else."""
    wanted = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    python = _interpreter()
    if run([python, "-c", "import ensurepip, venv"], check=False).returncode:
        packages.install("python3-venv")
    with step("Make the virtual environment .venv"):
        shutil.rmtree(VENV, ignore_errors=True)
        run([python, "-m", "venv", VENV])
        run(
            [VENV / "bin" / "pip", "install", "--quiet", "--no-compile", "--require-hashes", "--requirement", "requirements.txt"],
            timeout_seconds=900,
        )
        # On all cores, which pip can't; of the hundred collections that come with Ansible only those that a run here loads. Some files that
        # packages carry are for other Pythons, so its exit code says nothing.
        run([VENV / "bin" / "python", "-m", "compileall", "-q", "-j", "0", "-x", UNUSED, VENV / "lib"], check=False, timeout_seconds=600)
        STAMP.write_text(wanted)
