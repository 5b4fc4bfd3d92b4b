"""`holdfast idle`: wait until no unit of some kind runs, so that what comes next does not end it halfway."""

from __future__ import annotations

import argparse
import logging
import subprocess
import time

from holdfast.failure import Failure

PAUSE_SECONDS = 2
BUSY = "active,activating,deactivating,reloading"

log = logging.getLogger("holdfast.idle")


def busy(patterns: list[str]) -> list[str]:
    """Return the names of the units that run, of those whose name is like one of the patterns."""
    done = subprocess.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--full", f"--state={BUSY}", *patterns],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return [line.split()[0] for line in done.stdout.splitlines()]


def wait(patterns: list[str], patience_seconds: float) -> None:
    """Wait until none of the units runs.

    Raises:
        Failure: one still ran when patience was over.
    """
    deadline = time.monotonic() + patience_seconds
    told: list[str] = []
    while running := busy(patterns):
        if running != told:
            log.info("waiting for %s", ", ".join(running))
            told = running
        if time.monotonic() > deadline:
            raise Failure(f"{', '.join(running)} still ran after {patience_seconds:.0f} s; look at it with `systemctl status`.")
        time.sleep(PAUSE_SECONDS)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `idle` to the command line."""
    parser = commands.add_parser("idle", help="wait until no unit of some kind runs")
    parser.add_argument("units", nargs="+", help="names of units; * stands for anything")
    parser.add_argument("--patience-seconds", type=float, default=14400, help="when to give up (14400)")
    parser.set_defaults(call=lambda given: wait(given.units, given.patience_seconds))
