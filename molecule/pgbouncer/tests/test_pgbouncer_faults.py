"""The role pgbouncer with many clients, under faults, and with those who may not get in."""

from __future__ import annotations

import re
import time

import pytest
from database import ask, converge, login, password
from testinfra.host import Host

FOLDER = "/run/pgbouncer"
PORT = 6432
PATIENCE_SECONDS = 30
BENCH = "/usr/lib/postgresql/17/bin/pgbench"
CLIENTS = 500
POOL = 20


def _pooled(role: str, *, secret: str | None = None, database: str | None = None) -> str:
    given = {"database": database} if database else {}
    return login(role, secret=secret, folder=FOLDER, port=PORT, **given)


def _bench(role: str, folder: str, port: int) -> str:
    return f"PGPASSWORD={password(role)} PGHOST={folder} PGPORT={port} PGUSER=smart_audit_{role} PGDATABASE=smart_audit timeout 240 {BENCH}"


def _answers(host: Host) -> bool:
    return host.run(f'{_pooled("app")} --command "SELECT 1"').stdout.strip() == "1"


def _wait(host: Host) -> float:
    begun = time.monotonic()
    while not _answers(host):
        assert time.monotonic() - begun < PATIENCE_SECONDS
        time.sleep(0.3)
    return time.monotonic() - begun


def _inode(host: Host) -> str:
    return host.check_output(f"stat --format %i {FOLDER}")


def _process(host: Host) -> str:
    return host.check_output("systemctl show --property MainPID --value pgbouncer.service")


@pytest.fixture(scope="module", autouse=True)
def _tables(host: Host) -> None:
    """Have the owner make what pgbench needs; the application's role gets its rights as on every table."""
    host.check_output(f"{_bench('owner', '/run/postgresql', 5432)} --initialize --init-steps=dtgp --quiet")


def test_many_clients_on_few_connections(host: Host) -> None:
    """500 clients with prepared statements run on 20 server connections, and nobody is refused."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'smart_audit_app'"
    watch = f'while sleep 0.2; do runuser -u postgres -- psql -XAtc "{count}"; done > /tmp/connections'
    transactions = 20
    # A thread for each client: pgbench prepares without looking after the other clients of its thread, which would hold their server
    # connections meanwhile. All clients are connected before the first transaction; the simple update spares them one hot row.
    bench = (
        f"{_bench('app', FOLDER, PORT)} --no-vacuum --builtin simple-update --protocol prepared --client {CLIENTS} --jobs {CLIENTS} "
        f"--transactions {transactions}"
    )
    done = host.run(f"ulimit -n 4096; ({watch}) & watcher=$!; {bench} 2>&1; rc=$?; kill $watcher; exit $rc")
    assert done.rc == 0, done.stdout
    assert f"number of transactions actually processed: {CLIENTS * transactions}/{CLIENTS * transactions}" in done.stdout
    assert re.search(r"number of failed transactions: 0 ", done.stdout)
    seen = [int(line) for line in host.file("/tmp/connections").content_string.split()]
    assert POOL / 2 < max(seen) <= POOL, seen


def test_prepared_statement_follows_its_client(host: Host) -> None:
    """Sixty clients prepare once and execute fifty times, on a third as many server connections: each finds its statement."""
    bench = f"{_bench('app', FOLDER, PORT)} --no-vacuum --select-only --protocol prepared --client 60 --jobs 60 --transactions 50"
    assert "number of failed transactions: 0 " in host.check_output(bench)


@pytest.mark.parametrize("role", ["owner", "app", "read", "monitoring"])
def test_wrong_password_is_refused(host: Host, role: str) -> None:
    """The right password gets in, a wrong one and none do not."""
    assert host.check_output(f'{_pooled(role)} --command "SELECT session_user"').endswith(role)
    for secret in ("wrong", ""):
        assert host.run(f'{_pooled(role, secret=secret)} --no-password --command "SELECT 1"').rc != 0


def test_password_change_passes_through(host: Host) -> None:
    """A password that is changed in the database works at once, and the old one is refused."""
    changed = "changed-behind-the-pooler"
    ask(host, f"ALTER ROLE smart_audit_read PASSWORD '{changed}'")
    assert host.check_output(f'{_pooled("read", secret=changed)} --command "SELECT 1"') == "1"
    assert host.run(f'{_pooled("read")} --command "SELECT 1"').rc != 0
    assert converge(host, "pgbouncer", "--tags", "postgresql").returncode == 0
    assert host.check_output(f'{_pooled("read")} --command "SELECT 1"') == "1"


def test_superuser_is_refused(host: Host) -> None:
    """The superuser can't get in through the pooler, even when somebody gave it a password."""
    ask(host, "ALTER ROLE postgres PASSWORD 'a-password-for-a-moment'")
    try:
        command = f"timeout 20 psql --no-psqlrc --host {FOLDER} --port {PORT} --username postgres --dbname %s --command 'SELECT 1'"
        for database in ("smart_audit", "postgres", "pgbouncer"):
            assert host.run(f"PGPASSWORD=a-password-for-a-moment {command}", database).rc != 0
            assert host.run(f"runuser -u postgres -- {command}", database).rc != 0
    finally:
        ask(host, "ALTER ROLE postgres PASSWORD NULL")


def test_console_is_for_its_own_user(host: Host) -> None:
    """Only the pooler's system user commands it; monitoring reads figures; the application does neither."""
    console = f"timeout 20 psql --no-psqlrc --host {FOLDER} --port {PORT} --username pgbouncer --no-password --dbname pgbouncer --command"
    assert host.run(f"runuser -u pgbouncer -- {console} 'RELOAD'").rc == 0
    assert host.run(f"{console} 'SHOW POOLS'").rc != 0
    assert host.run(f"runuser -u nobody -- {console} 'SHOW POOLS'").rc != 0
    assert host.run(f'{_pooled("monitoring", database="pgbouncer")} --command "SHOW POOLS"').rc == 0
    assert host.run(f'{_pooled("monitoring", database="pgbouncer")} --command "PAUSE"').rc != 0
    assert host.run(f'{_pooled("app", database="pgbouncer")} --command "SHOW POOLS"').rc != 0


def test_any_system_user_reaches_the_socket(host: Host) -> None:
    """A process under a foreign number, as in a container, gets in with the application's password."""
    words = _pooled("app")
    assert host.check_output(f"setpriv --reuid 10001 --regid 10001 --clear-groups sh -c '{words} --command \"SELECT 1\"'") == "1"


def test_client_survives_restart_of_the_server(host: Host) -> None:
    """A client that is connected while PostgreSQL restarts goes on afterwards, on the same connection to the pooler."""
    session = f'(echo "SELECT 1;"; timeout 60 systemctl restart postgresql@17-main.service; sleep 1; echo "SELECT 2;") | {_pooled("app")}'
    assert host.check_output(session).split() == ["1", "2"]


def test_clients_wait_while_the_server_is_away(host: Host) -> None:
    """A client that comes while PostgreSQL is away waits for it and gets its answer."""
    host.check_output("timeout 60 systemctl stop postgresql@17-main.service")
    host.check_output("(sleep 4; systemctl start postgresql@17-main.service) >/dev/null 2>&1 &")
    begun = time.monotonic()
    assert _wait(host) < PATIENCE_SECONDS
    assert time.monotonic() - begun > 2


def test_reload_keeps_clients(host: Host) -> None:
    """A changed setting is in force without a restart, and a connected client stays connected."""
    before = _process(host)
    host.check_output(f'((echo "SELECT 1;"; sleep 25; echo "SELECT 2;") | {_pooled("app")} > /tmp/session 2>&1 &)')
    time.sleep(1)
    done = converge(host, "pgbouncer", "-e", "pgbouncer_default_pool_size=15", "--tags", "pgbouncer:configure")
    assert done.returncode == 0, done.stdout
    console = f"runuser -u pgbouncer -- psql --no-psqlrc --tuples-only --no-align --host {FOLDER} --port {PORT} --dbname pgbouncer"
    assert "\ndefault_pool_size|15|" in host.check_output(f"timeout 20 {console} --command 'SHOW CONFIG'")
    assert _process(host) == before
    deadline = time.monotonic() + 60
    while host.file("/tmp/session").content_string.split() != ["1", "2"]:
        assert time.monotonic() < deadline, host.file("/tmp/session").content_string
        time.sleep(1)
    assert converge(host, "pgbouncer", "--tags", "pgbouncer:configure").returncode == 0


def test_restart_keeps_the_folder(host: Host) -> None:
    """A restart leaves the folder that containers mount the same folder."""
    before = _inode(host)
    host.check_output("timeout 60 systemctl restart pgbouncer.service")
    _wait(host)
    assert _inode(host) == before


def test_killed_pooler_comes_back(host: Host) -> None:
    """A pooler that is killed is back within seconds, in the same folder."""
    before, inode = _process(host), _inode(host)
    host.check_output(f"kill -KILL {before}")
    _wait(host)
    assert _process(host) != before
    assert _inode(host) == inode


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("pgbouncer_port=0", "pgbouncer_port is 0"),
        ("pgbouncer_default_pool_size=0", "pgbouncer_default_pool_size is 0"),
        ("pgbouncer_max_db_connections=60", "so that ten are left"),
        ('{"pgbouncer_settings": {"listen_addr": "*"}}', "keeps for itself"),
    ],
)
def test_wrong_input_is_refused(host: Host, given: str, sentence: str) -> None:
    """A port, a pool or a setting that can't work is refused before the host is touched."""
    done = converge(host, "pgbouncer", "-e", given)
    assert done.returncode != 0
    assert "Nothing was changed" in done.stdout
    assert sentence in " ".join(done.stdout.split())
