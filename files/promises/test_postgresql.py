"""What the role postgresql promises of every host."""

from __future__ import annotations

import pytest
from testinfra.host import Host

UNIT = "postgresql@17-main.service"


def _ask(host: Host, query: str, database: str = "postgres") -> str:
    """Ask the server as its superuser, who needs no password on the host itself."""
    psql = "psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
    return host.check_output(f"timeout 30 runuser -u postgres -- {psql} --dbname %s --command %s", database, query)


@pytest.fixture(name="database")
def _database(host: Host) -> str:
    """Name the application's database: the one whose owner has its name."""
    return _ask(host, "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = datname || '_owner'")


def test_service(host: Host) -> None:
    """The server runs, starts at boot, and is started again when it is killed."""
    assert _ask(host, "SELECT 40 + 2") == "42"
    assert host.service(UNIT).is_enabled
    assert host.check_output(f"systemctl show --property Restart --value {UNIT}") == "on-failure"


def test_checksums(host: Host) -> None:
    """Every page carries a checksum, and none has failed."""
    assert _ask(host, "SHOW data_checksums") == "on"
    assert _ask(host, "SELECT sum(checksum_failures) FROM pg_stat_database") == "0"


def test_folder_is_closed(host: Host) -> None:
    """Whoever is not postgres can't look into the server's folder."""
    assert host.run("runuser -u nobody -- ls /var/lib/postgresql/17").rc != 0
    assert host.run("runuser -u postgres -- ls /var/lib/postgresql/17").rc == 0


def test_unix_socket_only(host: Host) -> None:
    """The server listens on no TCP port."""
    assert _ask(host, "SHOW listen_addresses") == ""
    assert "postgres" not in host.check_output("ss --no-header --tcp --listening --numeric --processes")


def test_scram_only(host: Host) -> None:
    """Nobody is trusted: whoever is not a system user with a right to it shows a SCRAM proof."""
    rules = _ask(host, "SELECT DISTINCT type || ' ' || auth_method FROM pg_hba_file_rules").splitlines()
    assert set(rules) <= {"local peer", "local scram-sha-256", "local reject"}
    assert _ask(host, "SELECT count(*) FROM pg_authid WHERE rolpassword NOT LIKE 'SCRAM-SHA-256$%'") == "0"


def test_configuration_is_in_force(host: Host) -> None:
    """What the files say is in force: nothing has an error or waits for a reload or a restart."""
    assert _ask(host, "SELECT name FROM pg_settings WHERE pending_restart") == ""
    assert _ask(host, "SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL") == ""
    assert _ask(host, "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL") == ""
    loaded = int(_ask(host, "SELECT ceil(extract(epoch FROM pg_conf_load_time()))::bigint"))
    for name in ("pg_hba.conf", "conf.d/holdfast.conf"):
        assert host.file(f"/etc/postgresql/17/main/{name}").mtime.timestamp() <= loaded, f"{name} is newer than what is loaded"


def test_sized_by_the_formulas(host: Host) -> None:
    """Memory is divided by the formulas, and fits the host."""
    megabytes = "SELECT pg_size_bytes(current_setting('{}')) / 1048576"
    shared, cache, maintenance, work = (
        int(_ask(host, megabytes.format(name))) for name in ("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem")
    )
    connections = int(_ask(host, "SHOW max_connections"))
    total = int(host.check_output("awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo"))
    memory = shared * 2
    assert memory <= total
    assert abs(cache - memory * 3 / 2) <= 2
    assert abs(maintenance - min(max(memory / 8, 64), 1024)) <= 1
    assert abs(work - max(memory // 4 // connections, 4)) <= 1


def test_application_defines_nothing(host: Host, database: str) -> None:
    """The application's role and the read-only role can create nothing, anywhere, and own nothing."""
    query = """
        WITH roles AS (
            SELECT oid AS role, rolname FROM pg_roles WHERE rolname IN (current_database() || '_app', current_database() || '_read'))
        SELECT 'roles', count(*)::text FROM roles
        UNION ALL SELECT rolname, datname FROM roles, pg_database
            WHERE datallowconn AND (has_database_privilege(role, oid, 'CREATE') OR has_database_privilege(role, oid, 'TEMPORARY'))
        UNION ALL SELECT rolname, nspname FROM roles, pg_namespace WHERE has_schema_privilege(role, oid, 'CREATE')
        UNION ALL SELECT rolname, relname FROM roles, pg_class WHERE relowner = role
    """
    assert _ask(host, query, database) == "roles|2"


def test_reader_writes_nothing(host: Host, database: str) -> None:
    """The read-only role has no right to write to any table of the application."""
    query = """
        SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'f')
        AND has_table_privilege(current_database() || '_read', oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
    """
    assert _ask(host, query, database) == ""


def test_nobody_has_rights_by_default(host: Host, database: str) -> None:
    """Being able to log in gives no right to connect to a database or to look into its schema."""
    open_databases = "SELECT datname FROM pg_database WHERE datallowconn AND array_to_string(datacl, ' ') ~ '(^| )='"
    open_schema = "SELECT nspacl FROM pg_namespace WHERE nspname = 'public' AND array_to_string(nspacl, ' ') ~ '(^| )='"
    assert _ask(host, open_databases) == ""
    assert _ask(host, open_schema, database) == ""


def test_no_superuser_but_postgres(host: Host) -> None:
    """Only the role postgres is a superuser, and it has no password."""
    assert _ask(host, "SELECT rolname, rolpassword IS NULL FROM pg_authid WHERE rolsuper") == "postgres|t"


def test_time_limits(host: Host, database: str) -> None:
    """Every role of the application has limits for statements, locks and idle transactions."""
    query = """
        SELECT rolname, setting FROM pg_roles
        CROSS JOIN unnest(ARRAY['statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout']) AS setting
        WHERE rolname ~ ('^' || current_database() || '_(owner|app|read)$')
        AND NOT EXISTS (SELECT FROM unnest(rolconfig) AS given WHERE given LIKE setting || '=%')
    """
    assert _ask(host, query, database) == ""
