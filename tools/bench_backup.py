"""The backups' part of `make bench`: throughput against the disk's own, and what the bucket takes in a day."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import bucket
from tools.shell import Failure, run

# pgbench's scales that make about 1 GB and 10 GB.
SCALES = (70, 700)
WATCH_SECONDS = 120
RATE = 50
SCRATCH = "/var/lib/postgresql/scratch"
READY = "/var/lib/postgresql/17/main/pg_wal/archive_status/*.ready"
BENCH = "/usr/lib/postgresql/17/bin/pgbench"
GOAL_PERCENT = 80
# What runs beside the requests; each lasts longer than they do.
BESIDE = {"a full backup": "holdfast-backup@full.service", "a restore drill": "holdfast-drill.service"}


@dataclass(frozen=True)
class Growth:
    """What was added to the bucket in a day, by what was in some seconds."""

    objects: int
    megabytes: float


@dataclass(frozen=True)
class Speeds:
    """What was measured at one size of the database.

    Attributes:
        megabytes: size of the database.
        disk: what dd with fdatasync writes, in MB a second.
        backup: what a full backup reads, in MB a second.
        restore: what a restore writes, in MB a second.
        stored: MB that the full backup takes in the bucket.
        busy_percent: how busy the machine's cores were meanwhile.
    """

    megabytes: float
    disk: float
    backup: float
    restore: float
    stored: float
    busy_percent: float


def _on(name: str, *words: str, timeout_seconds: float = 900) -> str:
    return run(["docker", "exec", name, *words], timeout_seconds=timeout_seconds).stdout.strip()


def _as_postgres(name: str, *words: str) -> str:
    return _on(name, "runuser", "-u", "postgres", "--", *words)


def _held(name: str) -> tuple[int, int]:
    """Count the objects in a host's bucket, and their bytes."""
    pages = bucket.client(name).get_paginator("list_objects_v2").paginate(Bucket=bucket.BUCKET)
    sizes = [each["Size"] for page in pages for each in page.get("Contents", [])]
    return len(sizes), sum(sizes)


def _growth(name: str, *, load: bool) -> Growth:
    before, begun = _held(name), time.monotonic()
    if load:
        _as_postgres(name, BENCH, "--no-vacuum", f"--rate={RATE}", "--client=4", f"--time={WATCH_SECONDS}", "bench")
        time.sleep(15)  # the last segment is switched and sent
    else:
        time.sleep(WATCH_SECONDS)
    after, day = _held(name), 86400 / (time.monotonic() - begun)
    return Growth(round((after[0] - before[0]) * day), (after[1] - before[1]) * day / 1e6)


def _disk(name: str) -> float:
    """Return what dd writes where the bucket keeps its objects, in MB a second."""
    said = run(
        ["docker", "exec", bucket.name_of(name), "sh", "-c",
         "dd if=/dev/zero of=/data/dd bs=1M count=1024 conv=fdatasync 2>&1; rm /data/dd"],
        timeout_seconds=300,
    ).stdout  # fmt: skip
    found = re.search(r"(\d+) bytes .* copied, ([\d.]+) s", said)
    if not found:
        raise Failure(f"dd told no speed: {said}")
    return int(found[1]) / float(found[2]) / 1e6


def _ticks() -> tuple[int, int]:
    values = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def _speeds(name: str) -> Speeds:
    disk = _disk(name)
    busy, total = _ticks()
    _on(name, "holdfast", "backup", "full")
    stanza: dict[str, Any] = json.loads(_as_postgres(name, "pgbackrest", "--stanza=main", "--output=json", "info"))[0]
    newest = [each for each in stanza["backup"] if each["type"] == "full"][-1]
    size = newest["info"]["size"] / 1e6
    seconds = newest["timestamp"]["stop"] - newest["timestamp"]["start"]
    _on(name, "install", "-d", "-o", "postgres", "-g", "postgres", "-m", "0700", SCRATCH)
    begun = time.monotonic()
    _as_postgres(name, "pgbackrest", "--stanza=main", f"--pg1-path={SCRATCH}", "--archive-mode=off", "restore")
    restore = time.monotonic() - begun
    busy_after, total_after = _ticks()
    _on(name, "rm", "-rf", SCRATCH)
    stored = newest["info"]["repository"]["delta"] / 1e6
    return Speeds(size, disk, size / max(seconds, 1), size / restore, stored, (busy_after - busy) / (total_after - total) * 100)


def _effects(name: str, p99: Callable[[], float]) -> list[str]:
    """Measure requests alone and beside each unit, and return the rows of the report."""
    alone = p99()
    rows = [f"| nothing | {alone:.0f} | |"]
    for what, unit in BESIDE.items():
        _on(name, "systemctl", "start", "--no-block", unit)
        slowed = p99()
        still = _on(name, "systemctl", "show", "--property=ActiveState", "--value", unit) == "activating"
        ended = f"while systemctl show --property=ActiveState --value {unit} | grep -q activating; do sleep 1; done"
        _on(name, "timeout", "900", "sh", "-c", ended)
        rows.append(f"| {what}{'' if still else ' (it had ended before the requests did)'} | {slowed:.0f} | {slowed / alone:.2f} |")
    return rows


def measure(name: str, p99: Callable[[], float]) -> list[str]:
    """Measure on a host that has its bucket, and return the report's section.

    Args:
        name: the host.
        p99: what measures the application's requests, in milliseconds.
    """
    idle = _growth(name, load=False)
    speeds = []
    for scale in SCALES:
        _fill(name, scale)
        speeds.append(_speeds(name))
    load = _growth(name, load=True)
    # The largest is there still: what reads it lasts longer than the requests.
    effects = _effects(name, p99)
    _as_postgres(name, "dropdb", "bench")
    return _report(speeds, idle, load, effects)


def _fill(name: str, scale: int) -> None:
    """Have a database of pgbench's tables, and wait until the archive has caught up with it."""
    _as_postgres(name, "dropdb", "--if-exists", "bench")
    _as_postgres(name, "createdb", "bench")
    _as_postgres(name, BENCH, "--initialize", f"--scale={scale}", "--quiet", "bench")
    _as_postgres(name, "psql", "--quiet", "--dbname=bench", "--command=CHECKPOINT")
    _on(name, "timeout", "600", "sh", "-c", f"until ! ls {READY} >/dev/null 2>&1; do sleep 1; done")


def _report(speeds: list[Speeds], idle: Growth, load: Growth, effects: list[str]) -> list[str]:
    def row(what: str, figure: Callable[[Speeds], float]) -> str:
        cells = " | ".join(f"{figure(each):.0f} | {figure(each) / each.disk * 100:.0f} %" for each in speeds)
        return f"| {what} | {cells} |"

    return [
        "## Backups",
        "",
        "Host and bucket share the machine's disk and its cores. Speeds in MB a second, and as a share of the disk's own in the same run",
        f"(goal: {GOAL_PERCENT} %, where the disk is the limit and not the cores).",
        "",
        f"| what | {' | '.join(f'{each.megabytes / 1000:.1f} GB | of the disk' for each in speeds)} |",
        f"|---|{'---|---|' * len(speeds)}",
        row("disk (`dd`, `fdatasync`)", lambda each: each.disk),
        row("full backup (compressed, encrypted, over TLS)", lambda each: each.backup),
        row("restore", lambda each: each.restore),
        "",
        *(
            f"- {each.megabytes / 1000:.1f} GB take {each.stored:.0f} MB in the bucket; cores: {each.busy_percent:.0f} % busy."
            for each in speeds
        ),
        "",
        f"What the bucket takes in a day, from {WATCH_SECONDS} s each:",
        "",
        "| when | objects a day | MB a day |",
        "|---|---|---|",
        f"| idle | {idle.objects} | {idle.megabytes:.0f} |",
        f"| {RATE} transactions a second (pgbench) | {load.objects} | {load.megabytes:.0f} |",
        "",
        "Requests (list of documents, as above) beside what reads or restores the larger of these databases:",
        "",
        "| beside | p99 in ms | ratio |",
        "|---|---|---|",
        *effects,
        "",
    ]
