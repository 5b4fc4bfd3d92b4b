"""The role postgresql under faults, with wrong input, and with roles that try what they may not."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from database import DATABASE, ask, converge, login
from testinfra.host import Host

from tools.application import wait_until
from tools.shell import ROOT, run

UNIT = "postgresql@17-main.service"
HBA = "/etc/postgresql/17/main/pg_hba.conf"
PATIENCE_SECONDS = 30


@pytest.fixture(scope="module", autouse=True)
def _table(host: Host) -> None:
    """Have the owner make a table, as a migration does."""
    host.check_output(f'{login("owner")} --command "DROP TABLE IF EXISTS finding; CREATE TABLE finding (id serial PRIMARY KEY, body text)"')


@pytest.fixture
def converged_again(host: Host) -> Iterator[None]:
    """Put the scenario's own inputs in force again after a test."""
    yield
    done = converge(host, "postgresql")
    assert done.returncode == 0, done.stdout


def _postmaster(host: Host) -> str:
    return host.check_output(f"systemctl show --property MainPID --value {UNIT}")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "CREATE SCHEMA mine",
        "DROP TABLE finding",
        "ALTER TABLE finding ADD COLUMN more text",
        "TRUNCATE finding",
        "CREATE INDEX ON finding (body)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ],
)
def test_application_defines_nothing(host: Host, statement: str) -> None:
    """The application's role is refused every statement that defines something."""
    done = host.run(f'{login("app")} --command "{statement}"')
    assert done.rc != 0
    assert "permission denied" in done.stderr or "must be owner" in done.stderr


def test_application_changes_rows(host: Host) -> None:
    """The application's role reads and writes the rows of a table that a migration made."""
    statements = (
        "INSERT INTO finding (body) VALUES ('a'); UPDATE finding SET body = 'b'; SELECT DISTINCT body FROM finding; DELETE FROM finding"
    )
    assert host.check_output(f'{login("app")} --command "{statements}"') == "b"


@pytest.mark.parametrize("statement", ["INSERT INTO finding (body) VALUES ('a')", "UPDATE finding SET body = ''", "DELETE FROM finding"])
def test_reader_writes_nothing(host: Host, statement: str) -> None:
    """The read-only role reads, and is refused to write even where it asks for a transaction that writes."""
    assert host.check_output(f'{login("read")} --command "SELECT count(*) FROM finding"').isdigit()
    done = host.run(f'{login("read")} --command "SET default_transaction_read_only = off" --command "{statement}"')
    assert done.rc != 0
    assert "permission denied" in done.stderr


def test_monitoring_sees_statistics_only(host: Host) -> None:
    """The monitoring role sees what everybody runs, and no row of a table."""
    assert host.check_output(f'{login("monitoring")} --command "SELECT count(*) > 0 FROM pg_stat_activity"') == "t"
    assert "permission denied" in host.run(f'{login("monitoring")} --command "SELECT * FROM public.finding"').stderr


@pytest.mark.parametrize("role", ["owner", "app", "read", "monitoring"])
def test_wrong_password_is_refused(host: Host, role: str) -> None:
    """A wrong password is refused, and so is no password."""
    for secret in ("wrong", ""):
        assert host.run(f'{login(role, secret=secret)} --no-password --command "SELECT 1"').rc != 0


def test_no_way_in_over_tcp(host: Host) -> None:
    """Nobody gets in over the loopback address."""
    done = host.run(f'{login("app", folder="127.0.0.1")} --command "SELECT 1"')
    assert "Connection refused" in done.stderr


def test_peer_is_for_the_system_user_only(host: Host) -> None:
    """Root and other system users do not get in as postgres."""
    for user in ("root", "nobody"):
        assert host.run(f"timeout 20 runuser -u {user} -- psql --no-password --username postgres --command 'SELECT 1' postgres").rc != 0


def test_statement_limit(host: Host) -> None:
    """A statement of the application that runs too long is ended."""
    begun = time.monotonic()
    done = host.run(f'{login("app")} --command "SELECT pg_sleep(50)"')
    assert "statement timeout" in done.stderr
    assert time.monotonic() - begun < 40


def test_lock_limit(host: Host) -> None:
    """The application waits a few seconds for a lock, not for ever."""
    host.check_output(f"({login('owner')} --command 'BEGIN; LOCK TABLE finding; SELECT pg_sleep(9)' >/dev/null 2>&1 &)")
    time.sleep(1)
    begun = time.monotonic()
    done = host.run(f'{login("app")} --command "SELECT * FROM finding"')
    assert "lock timeout" in done.stderr
    assert time.monotonic() - begun < 12


def test_idle_transaction_limit(host: Host) -> None:
    """A transaction that is left idle is ended by the server; the limit is shortened here to be seen."""
    limits = "SET idle_in_transaction_session_timeout = '1s'; BEGIN; SELECT 1;"
    done = host.run(f'(echo "{limits}"; sleep 3; echo "SELECT 2;") | {login("app")}')
    assert "idle-in-transaction timeout" in done.stderr
    shown = host.check_output(f'{login("app")} --command "SHOW idle_in_transaction_session_timeout"')
    assert shown == "1min"


def test_slow_statements_are_in_the_journal(host: Host) -> None:
    """A slow statement is in the journal, without its parameters."""
    host.check_output(f'{login("app")} --command "SELECT pg_sleep(0.7), 4711"')
    # The server's line passes through journald, which has its own pace.
    told = f"journalctl --unit {UNIT} --since -60s --grep 'pg_sleep.*4711' --output cat"
    wait_until(lambda: host.run(told).stdout, "the statement in the journal", 30)


def test_no_verifier_in_the_journal(host: Host) -> None:
    """No password and no verifier of one is in the journal or in the server's log."""
    assert host.run("journalctl --output cat | grep --fixed-strings 'SCRAM-SHA-256$'").rc == 1
    assert host.run("grep --recursive --fixed-strings 'SCRAM-SHA-256$' /var/log/postgresql").rc == 1


def test_killed_server_comes_back(host: Host) -> None:
    """A server that is killed with its first process is back within seconds, with what was committed."""
    host.check_output(f"{login('app')} --command \"INSERT INTO finding (body) VALUES ('committed')\"")
    before = _postmaster(host)
    host.check_output(f"kill -KILL {before}")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while host.run(f'{login("app")} --command "SELECT 1"').rc:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert _postmaster(host) != before
    assert host.check_output(f"{login('app')} --command \"SELECT body FROM finding WHERE body = 'committed'\"") == "committed"


def test_wrong_rule_is_refused(host: Host) -> None:
    """A rule for logins that the server would not understand, or that trusts somebody, is refused before the host is touched."""
    before = host.file(HBA).sha256sum
    for rule in ('{"database": "all", "role": "all", "method": "trust"}', '{"database": "all", "role": "x y\\nz", "method": "peer"}'):
        done = converge(host, "postgresql", "-e", f'{{"postgresql_hba_rules": [{rule}]}}')
        assert done.returncode != 0
        assert "Nothing was changed" in done.stdout
        assert "postgresql_hba_rules" in done.stdout
    assert host.file(HBA).sha256sum == before


def test_broken_file_never_lands(host: Host) -> None:
    """A broken pg_hba.conf is neither loaded nor left for the next start: the last good one is put back."""
    before = host.file(HBA).sha256sum
    host.check_output(f"echo 'local all all no-such-method' >> {HBA}")
    script = (ROOT / "roles/postgresql/files/reload-postgresql").read_text(encoding="utf-8")
    done = run(["docker", "exec", "--interactive", host.backend.name, "bash", "-s"], stdin=script, check=False)
    assert done.returncode != 0
    assert "no-such-method" in done.stdout
    assert host.file(HBA).sha256sum == before
    host.check_output(f"timeout 60 systemctl restart {UNIT}")
    assert host.check_output(f'{login("app")} --command "SELECT 1"') == "1"


def test_setting_without_restart(host: Host, converged_again: None) -> None:
    """A changed setting that needs no restart is in force, and the server was not restarted."""
    before = _postmaster(host)
    done = converge(host, "postgresql", "-e", "postgresql_log_min_duration_statement_ms=777", "--tags", "postgresql:configure")
    assert done.returncode == 0, done.stdout
    assert ask(host, "SHOW log_min_duration_statement") == "777ms"
    assert _postmaster(host) == before


def test_setting_with_restart_and_new_password(host: Host, converged_again: None) -> None:
    """A changed setting that needs a restart is in force, nothing waits; a changed password is in force, and the old one is refused."""
    before = _postmaster(host)
    secret = "a-new-password-of-the-test"
    given = ("-e", "postgresql_max_connections=70", "-e", '{"postgresql_settings": {"max_locks_per_transaction": 100}}')
    check = converge(host, "postgresql", *given, "-e", f"postgresql_app_password={secret}", "--check", "--diff")
    assert check.returncode == 0, check.stdout
    assert secret not in check.stdout
    assert "SCRAM-SHA-256$" not in check.stdout
    assert ask(host, "SHOW max_connections") == "60"
    assert host.run(f'{login("app", secret=secret)} --command "SELECT 1"').rc != 0

    done = converge(host, "postgresql", *given, "-e", f"postgresql_app_password={secret}")
    assert done.returncode == 0, done.stdout
    assert ask(host, "SHOW max_connections") == "70"
    assert ask(host, "SHOW max_locks_per_transaction") == "100"
    assert ask(host, "SELECT count(*) FROM pg_settings WHERE pending_restart") == "0"
    assert _postmaster(host) != before
    assert host.check_output(f'{login("app", secret=secret)} --command "SELECT 1"') == "1"
    assert host.run(f'{login("app")} --command "SELECT 1"').rc != 0


def test_sizes_follow_the_input(host: Host) -> None:
    """The demo's memory is divided by the stated formulas."""
    names = ("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem")
    assert [ask(host, f"SHOW {name}") for name in names] == ["512MB", "1536MB", "128MB", "4MB"]


def test_what_a_migration_takes_away_stays_away(host: Host) -> None:
    """A migration that takes a right away from the application is not undone by the next run."""
    host.check_output(f'{login("owner")} --command "REVOKE DELETE ON finding FROM {DATABASE}_app"')
    done = converge(host, "postgresql")
    assert "changed=0" in done.stdout
    assert "permission denied" in host.run(f'{login("app")} --command "DELETE FROM finding"').stderr


def test_drift_is_taken_back(host: Host) -> None:
    """A right that somebody gave by hand is seen by a check, and taken back by a run."""
    ask(host, f"GRANT CREATE ON SCHEMA public TO {DATABASE}_app; ALTER ROLE {DATABASE}_read CREATEDB")
    assert "changed=1" in converge(host, "postgresql", "--check").stdout
    assert "changed=1" in converge(host, "postgresql").stdout
    assert "permission denied" in host.run(f'{login("app")} --command "CREATE TABLE mine (id int)"').stderr
    assert "changed=0" in converge(host, "postgresql").stdout


def test_check_before_the_server_runs(host: Host) -> None:
    """A check of a host whose server does not run, as after a run that broke off, says what a run would do."""
    host.check_output(f"systemctl stop {UNIT}")
    try:
        done = converge(host, "postgresql", "--check")
        assert done.returncode == 0, done.stdout
        assert "changed=0" not in done.stdout
    finally:
        host.check_output(f"systemctl start {UNIT}")
