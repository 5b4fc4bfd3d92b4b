"""Restores to every kind of target, taken back, cut short, and refused."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager

import past
import pytest
from database import DATABASE, ask
from testinfra.host import Host

from tools.playbook import play_on

DATA = "/var/lib/postgresql/17/main"
PROGRAM = "/usr/bin/pgbackrest"
CONF = "/etc/pgbackrest/pgbackrest.conf"
REPOSITORY = "/var/lib/pgbackrest"
APP = "/etc/systemd/system/app@.service"
UNITS = "pgbouncer.service app@blue.service"


def _restore(host: Host, *words: str, expected: int = 0) -> str:
    """Run `holdfast restore`, and return what it printed, the last line on standard error last."""
    done = host.run(f"timeout 300 holdfast restore {shlex.join(words)} 2>&1")
    assert done.rc == expected, done.stdout
    return str(done.stdout)


def _now(host: Host) -> str:
    """Return this moment, with a second before it and after it in which nothing is written."""
    time.sleep(1.1)
    moment = host.check_output("date --utc '+%Y-%m-%d %H:%M:%S.%N+00'")
    time.sleep(1.1)
    return str(moment)


def _write(host: Host, note: str) -> None:
    ask(host, f"INSERT INTO notes (note) VALUES ('{note}')")


def _notes(host: Host) -> list[str]:
    return ask(host, "SELECT note FROM notes ORDER BY id").splitlines()


def _kept(host: Host) -> list[str]:
    return list(host.run(f"ls --directory {DATA}.replaced-* 2>/dev/null").stdout.split())


@pytest.fixture(scope="module", autouse=True)
def _past(host: Host) -> None:
    """Give the database a past: vectors, notes, and a unit that stands for the application."""
    host.check_output(
        f"printf '[Service]\\nExecStart=/usr/bin/sleep infinity\\n' > {APP} && systemctl daemon-reload && systemctl start app@blue.service"
    )
    ask(
        host,
        "CREATE EXTENSION IF NOT EXISTS vector; DROP TABLE IF EXISTS notes, vectors;"
        "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);"
        "CREATE TABLE vectors AS SELECT i AS id, ARRAY[random(), random(), random()]::vector(3) AS v FROM generate_series(1, 2000) i;"
        "CREATE INDEX vectors_v ON vectors USING hnsw (v vector_cosine_ops)",
    )
    host.check_output("timeout 300 holdfast backup incr && holdfast restore clean")


@contextmanager
def _instead(host: Host, path: str, command: str) -> Iterator[None]:
    """Change a file by a command, and put it back."""
    host.check_output(f"cp --archive {path} {path}.before && {command}")
    try:
        yield
    finally:
        host.check_output(f"mv {path}.before {path}")


def test_playbook_restores_to_a_moment(host: Host, host_name: str) -> None:
    """The playbook refuses no target and a wrong name; with the right name the database is as at that moment, and all runs again."""
    _write(host, "kept")
    moment = _now(host)
    _write(host, "lost")
    nowhere = play_on(host_name, "playbooks/restore.yml", restore_confirm=DATABASE)
    assert nowhere.returncode != 0 and "restore_target is empty: write -e restore_target=" in nowhere.stdout
    refused = play_on(host_name, "playbooks/restore.yml", restore_target=moment, restore_confirm="production")
    assert refused.returncode != 0 and "type that name" in refused.stdout and _notes(host) == ["kept", "lost"]
    done = play_on(host_name, "playbooks/restore.yml", restore_target=moment, restore_confirm=DATABASE)
    assert done.returncode == 0, done.stdout
    assert "LOST: everything that was written in the last" in done.stdout and "amcheck finds every index" in done.stdout
    assert "vector search by vectors_v" in done.stdout
    assert _notes(host) == ["kept"]
    assert host.check_output(f"systemctl is-active {UNITS}").split() == ["active", "active"]
    assert len(_kept(host)) == 1


def test_later_moment_of_before_the_restore(host: Host) -> None:
    """Who went too far back gets the later moment that was, not the one on the new timeline."""
    moments = []
    for note in ("first", "second", "third"):
        _write(host, note)
        moments.append(_now(host))
    _restore(host, "run", moments[0], "--confirm", DATABASE)
    _write(host, "after")
    _restore(host, "run", moments[1], "--confirm", DATABASE)
    assert _notes(host)[-2:] == ["first", "second"]


def test_named_point(host: Host) -> None:
    """A named restore point is reached exactly, and `latest` loses nothing."""
    _write(host, "before the point")
    name = f"point-{time.time():.0f}"
    _restore(host, "point", name)
    _write(host, "last")
    _restore(host, "run", f"name:{name}", "--confirm", DATABASE)
    assert _notes(host)[-1] == "before the point"
    _write(host, "written just now")
    _restore(host, "run", "latest", "--confirm", DATABASE)
    assert _notes(host)[-1] == "written just now"


def test_undo_and_label(host: Host) -> None:
    """A restore to a backup's end is taken back with everything that was written before it, and what is archived then is found again."""
    label = host.check_output("holdfast restore list | grep --only-matching --extended-regexp '[0-9]{8}-[0-9]{6}F[_0-9DI-]*' | head -1")
    _write(host, "precious")
    before = _notes(host)
    assert "LOST: everything" in _restore(host, "plan", label)
    _restore(host, "run", label, "--confirm", DATABASE)
    assert host.run("runuser -u postgres -- psql -XAtd smart_audit -c 'SELECT 1 FROM notes'").rc != 0, "that backup is older than the table"
    _restore(host, "undo")
    assert _notes(host) == before
    _write(host, "after the undo")
    _restore(host, "run", "latest", "--confirm", DATABASE)
    assert _notes(host) == [*before, "after the undo"]


def _timeline(host: Host) -> int:
    return int(ask(host, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")[:8], 16)


def test_undo_while_the_repository_is_away(host: Host) -> None:
    """A restore is taken back though nobody answers for the archive, and on a timeline that none had before; then the archive drains."""
    _write(host, "precious")
    before, moment = _notes(host), _now(host)
    _write(host, "lost")
    _restore(host, "run", moment, "--confirm", DATABASE)
    restored = _timeline(host)
    past.archived(host)
    # Its guard would have a backup made.
    host.check_output("systemctl stop holdfast-archive.timer holdfast-archive.service")
    mode = host.check_output(f"stat --format=%a {REPOSITORY}")
    host.check_output(f"chmod 0 {REPOSITORY}")
    try:
        assert "The database is back and everything runs, but it has no new backup yet" in _restore(host, "undo", expected=1)
    finally:
        host.check_output(f"chmod {mode} {REPOSITORY} && systemctl start holdfast-archive.timer")
    assert _notes(host) == [*before, "lost"] and _timeline(host) == restored + 1
    past.archived(host)
    _restore(host, "run", "latest", "--confirm", DATABASE)
    assert _notes(host) == [*before, "lost"]


def test_cut_short(host: Host) -> None:
    """A restore that fails after all was stopped says how it stands; run again or taken back, nothing is lost."""
    _write(host, "survives")
    before = _notes(host)
    moment = _now(host)
    # The backup is restored, and then the archive gives nothing.
    real, off = f"{PROGRAM}.before", f"echo \"restore_command = 'false'\" >> {DATA}/postgresql.auto.conf"
    script = f'#!/bin/sh\ncase "$*" in *" restore "*) {real} "$@" && {off}; exit;; esac\nexec {real} "$@"\n'
    with _instead(host, PROGRAM, f"printf %s {shlex.quote(script)} > {PROGRAM}"):
        said = _restore(host, "run", moment, "--confirm", DATABASE, expected=1)
    assert "holdfast restore undo" in said and "It ended at 'roll forward" in said
    assert "is not finished" in _restore(host, "status")
    # As it lies there where a restore was killed while it rolled forward; no process has this number.
    host.check_output(f"echo 4194304 > {DATA}/postmaster.pid && chown postgres: {DATA}/postmaster.pid")
    assert "may need it" in _restore(host, "clean", expected=1)
    kept = _kept(host)
    assert "goes on from there" in _restore(host, "run", moment, "--confirm", DATABASE)
    assert _notes(host) == before and _kept(host) == kept
    assert host.check_output(f"systemctl is-active {UNITS}").split() == ["active", "active"]
    assert "MB are free again" in _restore(host, "clean") and _kept(host) == []


def test_data_directory_is_gone(host: Host) -> None:
    """Where somebody removed the data directory a restore to `latest` brings it back, and nothing is left to take back."""
    _write(host, "archived")
    past.archived(host)
    before, kept = _notes(host), _kept(host)
    # The server runs, and writes meanwhile.
    host.check_output(f"timeout 30 sh -c 'until rm -rf {DATA}; do sleep 0.2; done'")
    _restore(host, "run", "latest", "--confirm", DATABASE)
    assert _notes(host) == before and _kept(host) == kept
    assert host.check_output(f"systemctl is-active {UNITS}").split() == ["active", "active"]
    assert "nothing to put back" in _refused(host, "undo")


def test_nothing_expires_while_a_restore_waits(host: Host) -> None:
    """A backup's unit sees, as the system user postgres, that a restore holds its lock, and lets no older backup go."""
    host.check_output("timeout 300 flock /var/lib/holdfast-restore systemctl start holdfast-backup@incr.service")
    said = host.check_output("journalctl --unit holdfast-backup@incr.service --since=-60s --output=cat")
    assert "a restore waits, and may need what is old" in said


def test_wal_that_cant_be_read_is_not_the_end(host: Host) -> None:
    """Where a segment is there and does not open, a restore or an extract to `latest` stops instead of losing the rest."""
    unread = "A repository can't be read, so nobody knows where the archive ends"
    _write(host, "in the last segment")
    before = _notes(host)
    segment = past.archived(host)
    path = host.check_output(f"ls {REPOSITORY}/archive/main/*/*/{segment}-*")
    with _instead(host, path, f"echo damaged > {path}"):
        extracted = host.run("timeout 300 holdfast extract %s --table notes", DATABASE)
        assert extracted.rc == 1 and unread in extracted.stderr
        said = _restore(host, "run", "latest", "--confirm", DATABASE, expected=1)
        assert unread in said and "The application is down" in said
    _restore(host, "run", "latest", "--confirm", DATABASE)
    assert _notes(host) == before


def test_missing_segment_is_not_the_end(host: Host) -> None:
    """Where a segment is gone, restores and extracts to `latest` are refused and name it; who accepts it gets all from before it."""
    # Its guard would have a backup made that needs nothing of it.
    host.check_output("systemctl stop holdfast-archive.timer holdfast-archive.service")
    _write(host, "before the gap")
    past.archived(host)
    _write(host, "in the gap")
    gap = past.archived(host)
    _write(host, "after the gap")
    past.archived(host)
    before = _notes(host)
    path = host.check_output(f"ls {REPOSITORY}/archive/main/*/*/{gap}-*")
    host.check_output(f"mv {path} /root/")
    try:
        assert f"The segment {gap} of WAL is missing" in _refused(host, "run", "latest", "--confirm", DATABASE)
        extracted = host.run("timeout 300 holdfast extract %s --table notes", DATABASE)
        assert extracted.rc == 1 and f"The segment {gap} of WAL is missing" in extracted.stderr
        _restore(host, "run", "until-gap", "--confirm", DATABASE)
        notes = _notes(host)
        assert "before the gap" in notes and "after the gap" not in notes
    finally:
        host.check_output(f"mv /root/{gap}-* {path.rsplit('/', 1)[0]}/ && systemctl start holdfast-archive.timer")
    _restore(host, "undo")
    assert _notes(host) == before


def test_application_does_not_start(host: Host) -> None:
    """Who worked on after a restore that could not start the application loses nothing by the next restore."""
    with _instead(host, APP, f"printf '[Service]\\nType=oneshot\\nExecStart=/usr/bin/false\\n' > {APP} && systemctl daemon-reload"):
        assert "It ended at 'start app@blue.service'" in _restore(host, "run", "latest", "--confirm", DATABASE, expected=1)
    host.check_output("systemctl daemon-reload && systemctl start app@blue.service")
    moment = _now(host)
    _write(host, "written since")
    before = _notes(host)
    assert "begins anew, and keeps what is here now" in _restore(host, "run", moment, "--confirm", DATABASE)
    assert _notes(host) == before[:-1]
    _restore(host, "undo")
    assert _notes(host) == before


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("2026-11-23 10:15:00", "has no time zone"),
        ("2999-01-01 00:00:00+00", "is in the future"),
        ("2020-01-01 00:00:00+00", "can't be reached, the oldest backup that leads to it ended at"),
        ("20200101-000000F", "There is no backup '20200101-000000F': the newest are"),
        ("xid:4000000000", "has not been yet, the next one is"),
        ("xid:3", "can't be reached"),
        ("name:never_made", "The restore point 'never_made' is none that"),
        ("yesterday", "The target 'yesterday' is none: write a time with its zone"),
    ],
)
def test_refused_target(host: Host, target: str, said: str) -> None:
    """A target that can't be reached is refused in one sentence before anything is stopped."""
    assert said in _refused(host, "run", target, "--confirm", DATABASE)


def _refused(host: Host, *words: str) -> str:
    begun = host.check_output(f"systemctl show --property=ActiveEnterTimestampMonotonic postgresql@17-main.service {UNITS}")
    said = _restore(host, *words, expected=1)
    assert re.fullmatch(r"holdfast: [^\n]+\n?", said), said
    assert host.check_output(f"systemctl show --property=ActiveEnterTimestampMonotonic postgresql@17-main.service {UNITS}") == begun
    return said


def test_refused_passphrase(host: Host) -> None:
    """A wrong passphrase is named, and a missing repository too."""
    with _instead(host, CONF, f"sed -i 's/^repo1-cipher-pass=.*/repo1-cipher-pass=another/' {CONF}"):
        assert "write the pgbackrest_cipher_passphrase with which it was begun" in _refused(host, "plan", "latest")
    with _instead(host, CONF, f"sed -i 's/^repo1-cipher-pass=.*//' {CONF}"):
        assert "requires option: repo1-cipher-pass" in _refused(host, "plan", "latest")
    with _instead(host, CONF, f"sed -i 's,^repo1-path=.*,repo1-path=/var/lib/empty-repository,' {CONF}"):
        assert "it holds no backup" in _refused(host, "plan", "latest")


def test_refused_repository_of_another_cluster(host: Host) -> None:
    """The past of another cluster is never restored over this one."""
    other, data = "/var/lib/postgresql/other-repository", "/var/lib/postgresql/other"
    as_postgres = "timeout 120 runuser -u postgres --"
    # The live server's archiving holds the ordinary locks every now and then.
    apart = f"--lock-path={other}-locks"
    host.check_output(f"{as_postgres} /usr/lib/postgresql/17/bin/initdb --no-sync {data}")
    # Its guard would miss the archive there, and have a backup made.
    host.check_output("systemctl stop holdfast-archive.timer holdfast-archive.service")
    try:
        with _instead(host, CONF, f"sed -i 's,^repo1-path=.*,repo1-path={other},; s,^pg1-path=.*,pg1-path={data},' {CONF}"):
            host.check_output(f"{as_postgres} pgbackrest --stanza=main {apart} --no-online stanza-create")
            host.check_output(f"{as_postgres} pgbackrest --stanza=main {apart} --no-online --type=full backup")
            assert "holds the past of another database (system identifier" in _refused(host, "plan", "latest")
    finally:
        host.check_output(f"rm -rf {other} {other}-locks {data} && systemctl start holdfast-archive.timer")


def test_refused_disk(host: Host) -> None:
    """Too little room is told before anything is stopped."""
    assert "make room there" in _refused(host, "run", "latest", "--spare-mb", "99999999", "--confirm", DATABASE)


def test_refused_while_archiving_stands_still(host: Host) -> None:
    """`latest` and a moment of after are refused while what was written does not leave the host, and a moment of before is not."""
    moment = _now(host)
    past.archived(host)
    ask(host, "ALTER SYSTEM SET archive_command = 'false'")
    ask(host, "SELECT pg_reload_conf()")
    try:
        time.sleep(1)
        _write(host, "on this host only")
        segment = ask(host, "SELECT pg_walfile_name(pg_switch_wal() - 1)")
        waiting = f"{DATA}/pg_wal/archive_status/{segment}.ready"
        host.check_output(f"test -e {waiting} && touch --date '10 minutes ago' {waiting}")
        for action in ("plan", "run"):
            said = _refused(host, action, "latest")
            assert "is not in repository 1, and latest would lose it: " in said and "`holdfast archive` says why" in said
        assert "may lie in it: `holdfast archive` says why" in _refused(host, "run", _now(host), "--confirm", DATABASE)
        assert "LOST: everything" in _restore(host, "plan", moment)
    finally:
        ask(host, "ALTER SYSTEM RESET archive_command")
        ask(host, "SELECT pg_reload_conf()")
    past.archived(host)


def test_new_host_has_no_tables(host: Host) -> None:
    """A rebuild's restore never overwrites rows."""
    assert "so the host is not new" in _refused(host, "run", "latest", "--new-host")


def test_transaction(host: Host) -> None:
    """A transaction is reached exactly, and refused while its number may mean another one of before a restore."""
    _write(host, "transaction")
    transaction = ask(host, "SELECT max(xmin::text::bigint) FROM notes")
    _write(host, "last")
    assert "may have been given to two transactions" in _refused(host, "run", f"xid:{transaction}", "--confirm", DATABASE)
    # Now no backup leads to what earlier restores left behind.
    host.check_output("timeout 300 holdfast backup full")
    past.pgbackrest(host, "--repo1-retention-full-type=count", "--repo1-retention-full=1", "expire")
    _write(host, "transaction")
    transaction = ask(host, "SELECT max(xmin::text::bigint) FROM notes")
    _write(host, "last")
    _restore(host, "run", f"xid:{transaction}", "--confirm", DATABASE)
    assert _notes(host)[-1] == "transaction"
