"""What `make bench` measures of access, firewall, hardening and integrity: what they add to a run, and the firewall to each answer."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping

from tools.shell import run

ROLES = ("access", "firewall", "hardening", "integrity")
GOAL_SECONDS = 12
ROUNDS = 5
TABLE = "inet holdfast"
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


def tasks(said: str) -> dict[str, int]:
    """Count the tasks and handlers of each role in what a playbook printed, those of its preflight too."""
    found = re.findall(r"^(?:TASK|RUNNING HANDLER) \[(\w+) : ", said, re.MULTILINE)
    return {role: found.count(role) for role in ROLES}


def milliseconds(text: str) -> float:
    """Read a time as wrk writes it."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]  # wrk writes no other
    return float(number) * UNITS[unit]


def added(seconds: Mapping[str, float], said: str) -> list[str]:
    """Tell what the roles add to a run that changes nothing, over the container connection."""
    counted = tasks(said)
    total = sum(seconds.get(role, 0) for role in ROLES)
    return [
        "## What confinement costs",
        "",
        "In the run that changes nothing, over the container connection; what a role's preflight asks of the host is counted too:",
        "",
        "| role | seconds | tasks |",
        "|---|---|---|",
        *(f"| {role} | {seconds.get(role, 0):.1f} | {counted[role]} |" for role in ROLES),
        f"| **together** (goal: {GOAL_SECONDS} s) | **{total:.1f}** | **{sum(counted.values())}** |",
    ]


def firewall(name: str, load: Callable[[], Mapping[str, str]]) -> list[str]:
    """Tell the p99 of the API with the firewall's table and without it, in turns.

    Args:
        name: the host.
        load: asks the API for some seconds, and returns `p99`, and how many answers were `errors`.
    """
    measured: dict[bool, list[float]] = {True: [], False: []}
    errors = 0
    try:
        for _ in range(ROUNDS):
            for there, found in measured.items():
                _switch(name, there=there)
                answer = load()
                found.append(milliseconds(answer["p99"]))
                errors += int(answer["errors"])
    finally:
        _switch(name, there=True)
    with_it, without = (statistics.median(measured[there]) for there in (True, False))
    each = [
        f"| {'with' if there else 'without'} | {statistics.median(found):.1f} | {', '.join(f'{one:.1f}' for one in found)} |"
        for there, found in measured.items()
    ]
    return [
        "",
        f"p99 of the session's answer in ms, with the firewall's table and without it, {ROUNDS} times each in turns; {errors} errors:",
        "",
        "| firewall | median | each |",
        "|---|---|---|",
        *each,
        f"| **ratio** | **{with_it / without:.2f}** | |",
    ]


def _switch(name: str, *, there: bool) -> None:
    """Load the firewall's table, or take it away."""
    command = "systemctl restart holdfast-firewall.service" if there else f"nft delete table {TABLE}"
    run(["docker", "exec", name, "sh", "-c", command], timeout_seconds=60)
