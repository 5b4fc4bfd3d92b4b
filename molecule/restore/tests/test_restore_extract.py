"""One table and one database out of the past, beside the live one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from database import DATABASE, ask
from testinfra.host import Host

from tools.playbook import play_on

SCRATCH = "/var/lib/postgresql/extract/scratch"
UNIT = "holdfast-extract.service"
INTO = "smart_audit_past"


@pytest.fixture(scope="module", name="moment")
def _moment(host: Host) -> str:
    """Lose a table by mistake, and return a moment before that."""
    ask(
        host,
        "CREATE EXTENSION IF NOT EXISTS vector; DROP TABLE IF EXISTS part, whole;"
        "CREATE TABLE whole (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v vector(3));"
        "CREATE TABLE part (id int PRIMARY KEY, whole bigint REFERENCES whole, v vector(3));"
        "INSERT INTO whole (v) SELECT '[1,2,3]' FROM generate_series(1, 100);"
        "INSERT INTO part SELECT i, i, '[1,2,3]' FROM generate_series(1, 100) i",
    )
    host.check_output(f"timeout 300 holdfast backup incr; runuser -u postgres -- dropdb --if-exists {INTO}")
    time.sleep(1.1)
    moment = host.check_output("date --utc '+%Y-%m-%d %H:%M:%S+00'")
    time.sleep(1.1)
    ask(host, "DROP TABLE part; INSERT INTO whole (v) VALUES ('[1,2,3]')")
    return str(moment)


def _extract(host: Host, words: str, expected: int = 0) -> str:
    done = host.run(f"timeout 300 holdfast extract {words} 2>&1")
    assert done.rc == expected, done.stdout
    assert not host.file(SCRATCH).exists
    return str(done.stdout)


def test_dropped_table_comes_back(host: Host, host_name: str, moment: str) -> None:
    """A table that was dropped by mistake comes back as of the second before; the live database does not stop, nor change."""
    begun = host.check_output("systemctl show --property=ActiveEnterTimestampMonotonic postgresql@17-main.service")
    done = play_on(
        host_name, "playbooks/extract.yml", restore_database=DATABASE, restore_table="part", restore_target=moment, restore_into=INTO
    )
    assert done.returncode == 0 and "The table public.part of smart_audit, 100 rows" in done.stdout, done.stdout
    assert ask(host, "SELECT count(*), min(v::text) FROM part", INTO) == "100|[1,2,3]"
    assert ask(host, "SELECT to_regclass('part') IS NULL, count(*) FROM whole") == "t|101"
    assert host.check_output("systemctl show --property=ActiveEnterTimestampMonotonic postgresql@17-main.service") == begun


def test_whole_database(host: Host, moment: str) -> None:
    """A whole database is dumped as of a moment, with what refers to what, and loads into a new one."""
    other = f"{INTO}_whole"
    ask(host, f"DROP DATABASE IF EXISTS {other}")
    _extract(host, f"{DATABASE} --target '{moment}' --into {other}")
    assert ask(host, "SELECT count(*) FROM part JOIN whole ON whole.id = part.whole", other) == "100"
    ask(host, f"DROP DATABASE {other}")


def test_killed(host: Host, host_name: str, moment: str) -> None:
    """An extract that is killed leaves no copy behind, and one that a power cut left is gone after the next boot."""
    with ThreadPoolExecutor() as pool:
        played = pool.submit(play_on, host_name, "playbooks/extract.yml", restore_database=DATABASE, restore_target=moment)
        host.check_output(f"timeout 300 sh -c 'until test -e {SCRATCH}/data/PG_VERSION; do sleep 0.2; done'")
        host.check_output(f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")
        host.check_output(f"timeout 60 sh -c 'while systemctl is-active --quiet {UNIT} || test -e {SCRATCH}; do sleep 0.2; done'")
        assert played.result().returncode != 0
    host.check_output(f"runuser -u postgres -- mkdir {SCRATCH}")
    host.check_output("systemd-tmpfiles --remove --boot /etc/tmpfiles.d/holdfast-extract.conf")
    assert not host.file(SCRATCH).exists


def test_restore_is_refused_meanwhile(host: Host) -> None:
    """While an extract holds its folder no restore begins, as both would take the same room."""
    folder = SCRATCH.rpartition("/")[0]
    host.check_output(f"install -d -m 0700 -o postgres -g postgres {folder}")
    refused = host.run(f"timeout 120 flock {folder} holdfast restore plan latest")
    assert refused.rc == 1 and "An extract is under way" in refused.stderr
    host.check_output("timeout 120 holdfast restore plan latest")


def test_refused(host: Host, moment: str) -> None:
    """A table, a database or a moment that is not there is refused, and no database is ever overwritten."""
    assert "had no table public.never" in _extract(host, f"{DATABASE} --table never --target '{moment}'", 1)
    assert "has no database 'never'" in _extract(host, "never", 1)
    assert "exists, and nothing is ever extracted over one" in _extract(host, f"{DATABASE} --into {DATABASE}", 1)
    assert "is no name of a new database" in _extract(host, f"{DATABASE} --into 'a b'", 1)
    assert "has no time zone" in _extract(host, f"{DATABASE} --target '2026-11-23 10:15:00'", 1)
    assert "make room, or a larger disk" in _extract(host, f"{DATABASE} --spare-mb 99999999", 1)
