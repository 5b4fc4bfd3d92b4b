"""The virtual environment of the controller, made from the locked requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys

from tools import packages
from tools.shell import ROOT, Failure, run, step

VENV = ROOT / ".venv"
STAMP = VENV / ".requirements.sha256"
# ansible-core 2.19 supports these on a controller.
OLDEST, NEWEST = (3, 11), (3, 13)
UNUSED = "/ansible_collections/(?!ansible/|community/docker/)"
DISTRIBUTIONS = "/usr/bin/python3"


def _interpreter() -> str:
    """Find a Python that ansible-core supports: the one that make's PYTHON names, the distribution's, this one, then any other.

    What version managers build is often compiled without optimizations, and Ansible took 1.5 to 2 times as long with it.
    """
    named = [sys.executable] if "PYTHON" in os.environ else []
    others = [found for minor in range(NEWEST[1], OLDEST[1] - 1, -1) if (found := shutil.which(f"python3.{minor}"))]
    for python in [*named, DISTRIBUTIONS, sys.executable, *others]:
        if _supported(python):
            return python
    raise Failure(f"Install Python 3.{OLDEST[1]} to 3.{NEWEST[1]}: ansible-core 2.19 runs on no other.")


def _supported(python: str) -> bool:
    if not shutil.which(python):
        return False
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
