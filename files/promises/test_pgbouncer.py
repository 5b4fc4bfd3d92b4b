"""What the role pgbouncer promises of every host."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

FOLDER = "/run/pgbouncer"


@pytest.fixture(name="settings")
def _settings(host: Host) -> dict[str, str]:
    """Ask the pooler's console, as its own system user, for what is in force."""
    port = host.check_output("sed --quiet 's/^listen_port = //p' /etc/pgbouncer/pgbouncer.ini")
    shown = host.check_output(
        f"timeout 30 runuser -u pgbouncer -- psql --no-psqlrc --tuples-only --no-align --host {FOLDER} --port {port} --dbname pgbouncer "
        "--command 'SHOW CONFIG'"
    )
    return {line.split("|")[0]: line.split("|")[1] for line in shown.splitlines()}


def test_service(host: Host, settings: dict[str, str]) -> None:
    """The pooler runs as its own user, starts at boot, pools transactions, and is started again when it is killed."""
    assert settings["pool_mode"] == "transaction"
    assert host.service("pgbouncer.service").is_enabled
    assert host.check_output("systemctl show --property User --property Restart --value pgbouncer.service").split() == [
        "on-failure",
        "pgbouncer",
    ]


def test_unix_socket_only(host: Host, settings: dict[str, str]) -> None:
    """The pooler listens on a unix socket that containers may connect to, and on no TCP port."""
    assert settings["listen_addr"] == ""
    assert host.file(f"{FOLDER}/.s.PGSQL.{settings['listen_port']}").mode == 0o777
    assert "pgbouncer" not in host.check_output("ss --no-header --tcp --listening --numeric --processes")


def test_file_is_in_force(host: Host, settings: dict[str, str]) -> None:
    """What the file says is in force."""
    written = host.file("/etc/pgbouncer/pgbouncer.ini").content_string.split("[pgbouncer]")[1]
    for name, value in re.findall(r"^(\w+) = ?(.*)$", written, re.MULTILINE):
        # It shows a mode of files in decimal digits.
        assert settings[name] == (str(int(value, 8)) if name == "unix_socket_mode" else value)


def test_room_for_clients(host: Host, settings: dict[str, str]) -> None:
    """A thousand clients may connect, as many files may be open, and the pools leave the server connections for others."""
    assert int(settings["max_client_conn"]) >= 1000
    process = host.check_output("systemctl show --property MainPID --value pgbouncer.service")
    files = int(host.check_output(f"awk '/^Max open files/ {{print $4}}' /proc/{process}/limits"))
    assert files > int(settings["max_client_conn"]) + int(settings["max_db_connections"])
    server = host.check_output(
        "timeout 30 runuser -u postgres -- psql --no-psqlrc --tuples-only --no-align --command 'SHOW max_connections'"
    )
    assert int(settings["max_db_connections"]) <= int(server) - 10


def test_no_password_is_stored(host: Host) -> None:
    """No file of the pooler holds a password or a verifier of one."""
    assert (
        host.run("grep --recursive --extended-regexp 'SCRAM-SHA-256|password|md5[0-9a-f]{32}' /etc/pgbouncer --exclude '*.dpkg-*'").rc == 1
    )
    assert host.file("/etc/pgbouncer/userlist.txt").size == 0


def test_superuser_is_not_looked_up(host: Host, settings: dict[str, str]) -> None:
    """The lookup that the pooler uses finds the application's role, and no superuser, and nobody else may call it."""
    database = settings["auth_dbname"]
    ask = f"timeout 30 runuser -u %s -- psql --no-psqlrc --tuples-only --no-align --dbname {database} --command %s"
    lookup = "SELECT count(*) FROM pgbouncer.get_auth('{}')"
    assert host.check_output(ask, "pgbouncer", lookup.format("postgres")) == "0"
    assert host.check_output(ask, "pgbouncer", lookup.format(f"{database}_app")) == "1"
    right = "SELECT rolname FROM pg_roles WHERE NOT rolsuper AND has_function_privilege(rolname, 'pgbouncer.get_auth(text)', 'EXECUTE')"
    assert host.check_output(ask, "postgres", f"{right} ORDER BY 1").split() == ["pgbouncer", "pgbouncer_lookup"]
