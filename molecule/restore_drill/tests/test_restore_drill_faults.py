"""Drills against damaged backups, missing WAL, wrong keys, empty repositories and full disks; each turns red and says what to do."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import past
import pytest
from database import ask
from testinfra.host import Host

UNIT = "holdfast-drill.service"
CONF = "/etc/pgbackrest/pgbackrest.conf"
SETTINGS = "/etc/pgbackrest/drill.json"
REPOSITORY = "/var/lib/pgbackrest"
SCRATCH = "/var/lib/postgresql/drill/scratch"
METRICS = "/var/lib/prometheus/node-exporter/holdfast_drill.prom"


@pytest.fixture(scope="module", autouse=True)
def _past(host: Host) -> None:
    """Give the database rows and vectors, and the repository a backup of them."""
    ask(
        host,
        "CREATE EXTENSION IF NOT EXISTS vector; DROP TABLE IF EXISTS notes, vectors;"
        "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);"
        "INSERT INTO notes (note) SELECT md5(i::text) FROM generate_series(1, 5000) i;"
        "CREATE TABLE vectors AS SELECT i AS id, ARRAY[random(), random(), random()]::vector(3) AS v FROM generate_series(1, 2000) i;"
        "CREATE INDEX vectors_v ON vectors USING hnsw (v vector_cosine_ops)",
    )
    host.check_output("timeout 300 holdfast backup full")
    # The night's own would join one of these, begun before what it has to find.
    host.check_output("systemctl stop holdfast-drill.timer")


def _histories(host: Host) -> str:
    return str(host.check_output(f"find {REPOSITORY}/archive -name '*.history' | sort"))


def _drill(host: Host) -> str:
    """Hold a drill by its unit, and return the report."""
    host.run(f"timeout 600 systemctl start {UNIT}")
    assert not host.file(SCRATCH).exists, "the copy is still there"
    return str(host.check_output("holdfast drill report"))


def _metric(host: Host, name: str) -> float:
    lines = host.file(METRICS).content_string.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


def _red(host: Host) -> str:
    """Hold a drill that has to fail: it says why, and the last success stays the one before."""
    before = _metric(host, "holdfast_drill_last_success_timestamp_seconds")
    said = _drill(host)
    assert "FAILED" in said, said
    assert host.run(f"systemctl is-failed --quiet {UNIT}").rc == 0
    assert _metric(host, "holdfast_drill_success") == 0
    assert _metric(host, "holdfast_drill_last_success_timestamp_seconds") == before
    return said


@contextmanager
def _instead(host: Host, path: str, command: str) -> Iterator[None]:
    """Change a file by a command, and put it back."""
    quoted = shlex.quote(path)
    host.check_output(f"cp --archive {quoted} /root/before && {command}")
    try:
        yield
    finally:
        host.check_output(f"mv /root/before {quoted}")


def test_green(host: Host) -> None:
    """A drill beside a working database proves the row, the rows, the indexes, the vectors and the migrations, and changes nothing."""
    begun = host.check_output("systemctl show --property=ActiveEnterTimestampMonotonic --value postgresql@17-main.service")
    histories = _histories(host)
    said = _drill(host)
    assert "passed" in said, said
    for proven in (
        "is there, to the microsecond",
        "checksums that they have",
        "vector search by vectors_v",
        "amcheck",
        "the migrations are at",
    ):
        assert proven in said, said
    assert _metric(host, "holdfast_drill_success") == 1
    assert 0 < _metric(host, "holdfast_drill_rpo_seconds") < 20
    assert host.check_output("systemctl show --property=ActiveEnterTimestampMonotonic --value postgresql@17-main.service") == begun
    assert _histories(host) == histories, "the copy archived the timeline that it began"


def test_damaged_backup(host: Host) -> None:
    """A file of the backup that was changed on the storage is found, by the drill and by the weekly proof of all backups."""
    bundle = host.check_output(f"find {REPOSITORY}/backup/main/*F/bundle -type f -size +100k | sort | tail -1")
    damage = f"dd if=/dev/urandom of={bundle} bs=1k seek=40 count=4 conv=notrunc status=none"
    with _instead(host, bundle, damage):
        said = _red(host)
        proof = host.run("timeout 120 holdfast backup verify 2>&1")
        assert proof.rc != 0 and re.search(r"repository 1: \d+ of \d+ files of the backup \S+F are damaged or gone", proof.stdout), (
            proof.stdout
        )
    assert not host.run("timeout 120 holdfast backup verify").rc
    assert "can't be restored" in said and "a file of it is damaged or gone. `holdfast backup full` makes one" in said


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("rm", "WAL is missing in the repository. `holdfast backup full` makes a backup that does not need it"),
        ("echo damaged >", "A repository can't be read, so nobody knows where the archive ends"),
    ],
)
def test_missing_segment(host: Host, command: str, told: str) -> None:
    """A segment of WAL that is gone from the storage is found, and what was written after it; so is one that does not open."""
    past.archived(host)
    ask(host, "INSERT INTO notes (note) VALUES ('in the gap')")
    segment = past.archived(host)
    path = host.check_output(f"ls {REPOSITORY}/archive/main/*/*/{segment}-*")
    with _instead(host, path, f"{command} {path}"):
        assert told in _red(host)


def test_wrong_key(host: Host) -> None:
    """A passphrase that does not open the repository is found."""
    with _instead(host, CONF, f"sed -i 's/^repo1-cipher-pass=.*/repo1-cipher-pass=another/' {CONF}"):
        assert "write the pgbackrest_cipher_passphrase with which it was begun" in _red(host)


def test_empty_repository(host: Host) -> None:
    """A repository without a backup is found."""
    with _instead(host, CONF, f"sed -i 's,^repo1-path=.*,repo1-path=/var/lib/empty-repository,' {CONF}"):
        assert "it holds no backup" in _red(host)


def test_empty_second_repository(host: Host) -> None:
    """Where one of several repositories holds nothing, that is found on every day, not only when it is its turn."""
    with _instead(host, CONF, f"sed -i 's,^repo1-path=.*,&\\nrepo2-path=/var/lib/empty-repository,' {CONF}"):
        assert "repository 2: it holds no backup" in _red(host)


def test_not_enough_disk(host: Host) -> None:
    """Where the copy would take the database's own room, no drill is held, and that is told."""
    changed = json.dumps({**json.loads(host.file(SETTINGS).content_string), "spare_mb": 99999999})
    with _instead(host, SETTINGS, f"echo {shlex.quote(changed)} > {SETTINGS}"):
        assert "MB are free: make room, or a larger disk" in _red(host)


def test_not_archived(host: Host) -> None:
    """A row that does not leave the host is found."""
    ask(host, "ALTER SYSTEM SET archive_command = 'false'")
    ask(host, "SELECT pg_reload_conf()")
    try:
        assert "is on this host only, and would be lost with it: `holdfast archive` says why" in _red(host)
    finally:
        ask(host, "ALTER SYSTEM RESET archive_command")
        ask(host, "SELECT pg_reload_conf()")


def test_killed(host: Host) -> None:
    """A drill that is killed leaves nothing behind, and the next one is green."""
    host.check_output(f"systemctl start --no-block {UNIT}")
    host.check_output(f"timeout 120 sh -c 'until test -e {SCRATCH}/data/PG_VERSION; do sleep 0.2; done'")
    host.check_output(f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")
    # What says so is written after the copy is gone.
    host.check_output(f"timeout 60 sh -c 'while systemctl is-active {UNIT} | grep activating; do sleep 0.2; done'")
    assert not host.file(SCRATCH).exists
    assert "was ended from outside (signal)" in host.check_output("holdfast drill report") and _metric(host, "holdfast_drill_success") == 0
    assert "passed" in _drill(host)
