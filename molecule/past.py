"""What the scenarios of the backups share: a look into a restored copy, the bucket cut off."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from database import ask
from testinfra.host import Host

from tools import bucket
from tools.application import wait_until
from tools.playbook import play_on
from tools.shell import run

SCRATCH = "/var/lib/postgresql/scratch"
BIN = "/usr/lib/postgresql/17/bin"
# Where the first repository is away, it is asked in vain for each segment before the next one is.
RECOVERY_SECONDS = 300
METRICS = "/var/lib/prometheus/node-exporter"


def pgbackrest(host: Host, *words: str) -> str:
    """Run pgBackRest on the host's stanza, and return what it printed."""
    return host.check_output(f"timeout 300 runuser -u postgres -- pgbackrest --stanza=main {' '.join(words)}")


def stanza(host: Host) -> dict[str, Any]:
    """Return what the repositories hold."""
    found: list[dict[str, Any]] = json.loads(pgbackrest(host, "--output=json", "info"))
    return found[0]


def metric(host: Host, topic: str, name: str) -> float:
    """Return one figure that a program of the host has measured; -1 where it has not."""
    text = host.run(f"cat {METRICS}/holdfast_{topic}.prom").stdout
    return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} ")), -1)


def restored(host: Host, question: str, *options: str) -> str:
    """Restore into a scratch cluster beside the live one, put a question to its application's database, and remove it."""
    host.check_output(f"rm -rf {SCRATCH} && install -d -o postgres -g postgres -m 0700 {SCRATCH}")
    try:
        pgbackrest(host, f"--pg1-path={SCRATCH}", "--archive-mode=off", *options, "restore")
        names = "'max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction'"
        settings = ask(host, f"SELECT name || ' = ' || setting FROM pg_settings WHERE name IN ({names})").splitlines()
        settings += ["listen_addresses = ''", f"unix_socket_directories = '{SCRATCH}'", "shared_buffers = 64MB"]
        host.check_output(f"printf '%%s\\n' %s > {SCRATCH}/postgresql.conf", "\n".join(settings))
        host.check_output(f"echo 'local all postgres peer' > {SCRATCH}/pg_hba.conf; : > {SCRATCH}/pg_ident.conf")
        as_postgres = "timeout 180 runuser -u postgres --"
        host.check_output(f"{as_postgres} {BIN}/pg_ctl --silent --wait --timeout=150 --pgdata={SCRATCH} --log={SCRATCH}/log start")
        psql = (
            f"{as_postgres} psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --host {SCRATCH} --dbname smart_audit"
        )
        wait_until(
            lambda: host.check_output(f"{psql} --command 'SELECT pg_is_in_recovery()'") == "f", "the end of recovery", RECOVERY_SECONDS
        )
        return host.check_output(f"{psql} --command %s", question)
    finally:
        host.run(f"timeout 60 runuser -u postgres -- {BIN}/pg_ctl --mode=immediate --pgdata={SCRATCH} stop; rm -rf {SCRATCH}")


def follow(host: Host, host_name: str, command: str, **inputs: Any) -> str:
    """Do what a page says: a playbook is run from here, everything else on the host; return what it printed."""
    words = shlex.split(command)
    if words[0] != "ansible-playbook":
        return host.check_output(f"timeout 300 {command}")
    done = play_on(host_name, words[1], *words[2:], **inputs)
    assert done.returncode == 0, done.stdout
    return done.stdout


def archived(host: Host) -> str:
    """Wait until all that is written now is in every repository, and return the segment that ends with it."""
    # Where nothing was written since the last one, no segment would end. Where archive_timeout ends one first, the answer is its boundary,
    # which is named as the segment that begins there.
    ask(host, "SELECT pg_current_xact_id()")
    segment = ask(host, "SELECT pg_walfile_name(pg_switch_wal() - 1)")
    wait_archived(host, segment)
    return segment


def written(host: Host) -> str:
    """Write one transaction, and return the segment that it lies in, which nothing ends but time."""
    name = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())"
    while True:
        segment = ask(host, name)
        ask(host, "SELECT pg_current_xact_id()")
        if ask(host, name) == segment:
            return segment


def wait_archived(host: Host, segment: str, seconds: float = 120) -> None:
    """Wait until a segment is in every repository."""
    # A checkpoint removes the mark of a segment that it no longer needs; the statistics remember the last, and begin anew after a crash.
    marked = f"EXISTS (SELECT FROM pg_ls_archive_statusdir() WHERE name = '{segment}.done')"
    passed = f"SELECT last_archived_wal ~ '^[0-9A-F]{{24}}' AND last_archived_wal >= '{segment}' FROM pg_stat_archiver"
    wait_until(lambda: ask(host, f"SELECT {marked} OR ({passed})") == "t", f"the archiving of {segment}", seconds)


@contextmanager
def bucket_away(host_name: str) -> Iterator[None]:
    """Have the bucket answer nobody, without a word, as a cut line does."""
    run(["docker", "pause", bucket.name_of(host_name)])
    try:
        yield
    finally:
        run(["docker", "unpause", bucket.name_of(host_name)])
