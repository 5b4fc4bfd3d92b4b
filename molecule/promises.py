"""What the scenarios share that break a promise on purpose: ask a host for some of its promises."""

from __future__ import annotations

from pathlib import Path

from testinfra.host import Host

from tools.shell import ROOT, VENV_BIN, run

KEPT, BROKEN = 0, 1
SECONDS = 180


def broken(host: Host, role: str, *names: str) -> str:
    """Ask a host for promises of a role, and return what pytest says where one is broken; nothing where all are kept."""
    file = ROOT / "files" / "promises" / f"test_{role}.py"
    words: list[str | Path] = [VENV_BIN / "pytest", "--quiet", f"--hosts=docker://{host.backend.name}"]
    done = run([*words, *(f"{file}::{name}" for name in names)], check=False, timeout_seconds=SECONDS)
    assert done.returncode in (KEPT, BROKEN), done.stdout
    return done.stdout if done.returncode == BROKEN else ""
