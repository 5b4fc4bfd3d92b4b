"""The loss that `make bench` measures: a host is destroyed under steady writes at ten random moments, and what is missing is counted."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools import bucket, host
from tools.playbook import CONTAINER, inventory, play
from tools.shell import Failure, run, step
from tools.writer import Writer

ROLES = "base,holdfast,postgresql,pgbackrest"
TIMES = 10
WRITING_SECONDS = (5, 25)
GOAL_SECONDS = 15
FOLDER = "/var/lib/postgresql/loss"
# Another host restores out of the bucket alone, so that the one that was destroyed can be used again.
RESTORE = r"""
set -euo pipefail
cd "$1"
bin=/usr/lib/postgresql/17/bin
trap '$bin/pg_ctl --silent --mode=immediate --pgdata=data stop; rm -rf data' EXIT
rm -rf data && install -d -m 0700 data spool lock
pgbackrest --config="$1/etc/pgbackrest.conf" --stanza=main --pg1-path="$1/data" --lock-path="$1/lock" --spool-path="$1/spool" \
    --archive-mode=off restore
cat > data/postgresql.conf << EOF
listen_addresses = ''
unix_socket_directories = '$1'
max_connections = 200
max_worker_processes = 64
EOF
echo 'local all postgres peer' > data/pg_hba.conf
: > data/pg_ident.conf
$bin/pg_ctl --silent --wait --timeout=150 --pgdata=data --log=log start
ask() { psql --no-psqlrc --quiet --tuples-only --no-align --host="$PWD" --dbname=smart_audit --command="$1"; }
until [ "$(ask 'SELECT pg_is_in_recovery()')" = f ]; do sleep 0.3; done
ask 'SELECT id FROM written'
"""


@dataclass(frozen=True)
class Loss:
    """What one destroyed host cost.

    Attributes:
        rows: rows that were acknowledged.
        missing: of these, the rows that are missing.
        seconds: how long before the last acknowledged row the first of them was acknowledged.
    """

    rows: int
    missing: int
    seconds: float


def _once(name: str, reader: str) -> Loss:
    with Writer(name) as writer:
        time.sleep(random.uniform(*WRITING_SECONDS))  # noqa: S311  # no secret is made of it
        run(["docker", "kill", name])
    words = ["docker", "exec", "--interactive", reader, "runuser", "-u", "postgres", "--", "bash", "-s", FOLDER]
    missing, seconds = writer.loss(run(words, stdin=RESTORE, timeout_seconds=300).stdout)
    run(["docker", "start", name])
    host.wait_booted(name)
    return Loss(len(writer.acknowledged()), missing, seconds)


def measure(reader: str, folder: Path) -> list[str]:
    """Measure with a host of its own, and return the report's section.

    Args:
        reader: another host, with PostgreSQL and pgBackRest.
        folder: where the inventory is written.
    """
    name = f"{reader}-loss"
    try:
        bucket.up(name)
        host.up(name)
        done = play(inventory(folder, {name: CONTAINER}), "site.yml", "--tags", ROLES)
        if done.returncode:
            raise Failure(f"The host to destroy did not converge:\n{done.stdout[-2000:]}")
        run(["docker", "exec", reader, "install", "-d", "-o", "postgres", "-m", "0700", FOLDER, f"{FOLDER}/etc"])
        config = run(["docker", "exec", name, "cat", "/etc/pgbackrest/pgbackrest.conf"]).stdout
        target = f"{FOLDER}/etc/pgbackrest.conf"
        run(["docker", "exec", "--interactive", "--user", "postgres", reader, "sh", "-c", f"umask 077; cat > {target}"], stdin=config)
        losses = []
        for number in range(TIMES):
            with step(f"Destroy a host ({number + 1} of {TIMES})"):
                losses.append(_once(name, reader))
    finally:
        host.down(name)
        bucket.down(name)
    run(["docker", "exec", reader, "rm", "-rf", FOLDER])
    return _report(losses)


def _report(losses: list[Loss]) -> list[str]:
    seconds = sorted(each.seconds for each in losses)
    return [
        "## Loss when the host is destroyed (RPO)",
        "",
        "About a hundred rows a second are committed one after the other. The host is killed at a random moment, and another one restores",
        f"out of the bucket alone. Goal: at most {GOAL_SECONDS} s of writes are missing.",
        "",
        f"Measured: at least {seconds[0]:.1f} s, median {median(seconds):.1f} s, at most {seconds[-1]:.1f} s.",
        "",
        "| acknowledged rows | missing | seconds of writes |",
        "|---|---|---|",
        *(f"| {each.rows} | {each.missing} | {each.seconds:.1f} |" for each in losses),
        "",
    ]
