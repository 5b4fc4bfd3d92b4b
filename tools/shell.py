"""Run commands, show progress, and fail in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV_BIN = ROOT / ".venv" / "bin"

_started = time.monotonic()


class Failure(Exception):
    """What went wrong and the way out, in one sentence for a person."""


def say(text: str) -> None:
    """Print a line of progress with the seconds since the program started."""
    print(f"[{time.monotonic() - _started:6.1f} s] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Announce a step when it starts and how long it took when it ends."""
    say(f"{name} …")
    begun = time.monotonic()
    yield
    say(f"{name}: done in {time.monotonic() - begun:.1f} s")


def run(
    command: Sequence[str | Path],
    *,
    timeout_seconds: float = 600,
    root: bool = False,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    show: bool = False,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed.

    Args:
        command: program and arguments.
        timeout_seconds: ended after this many seconds.
        root: put sudo in front where the user is not root; it asks on the terminal if it has to.
        cwd: working directory.
        env: added to the environment.
        stdin: text for standard input; nothing by default, so that no command waits for a terminal.
        show: let the output through to the terminal instead of capturing it.
        check: raise when the exit code is not 0.

    Raises:
        Failure: the program is missing, timed out, or (with check) failed; its last lines are in the text.
    """
    words = [str(word) for word in command]
    if root and os.geteuid() != 0:
        kept = [f"{key}={value}" for key, value in (env or {}).items()]
        words = ["sudo", *(["env", *kept] if kept else []), *words]
    try:
        done = subprocess.run(
            words,
            check=False,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
        )
    except FileNotFoundError as error:
        raise Failure(f"The program {words[0]} is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"`{' '.join(words[:6])}` had not ended after {timeout_seconds:.0f} s.") from error
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout or "").strip().splitlines()[-15:])
        raise Failure(f"`{' '.join(words[:6])}` failed with exit code {done.returncode}.\n{tail}".rstrip())
    return done


def fail(text: str) -> NoReturn:
    """End the program with one sentence on standard error and exit code 1."""
    print(f"\nholdfast: {text}", file=sys.stderr)
    sys.exit(1)
