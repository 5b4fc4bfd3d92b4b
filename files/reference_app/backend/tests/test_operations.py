"""What an operator relies on: settings, migrations, health, metrics, logs, outages, starting and stopping."""

import re
import socket
import stat
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smart_audit.settings import Environment, MigrateSettings, ServeSettings, SettingsError, WorkerSettings
from smart_audit.uploads import clean_filename
from tests.conftest import App, Client, connect, log_in, run_migrate, start_backend
from tests.host import SMART_AUDIT, USERNAME, Platform, wait_for

REQUIRED = {
    "serve": (
        "DATABASE_URL_FILE",
        "VALKEY_URL_FILE",
        "S3_ENDPOINT_URL",
        "S3_BUCKET",
        "S3_ACCESS_KEY_FILE",
        "S3_SECRET_KEY_FILE",
        "SESSION_SECRET_FILE",
        "PUBLIC_ORIGIN",
        "UDS_PATH",
    ),
    "worker": (
        "DATABASE_URL_FILE",
        "VALKEY_URL_FILE",
        "S3_ENDPOINT_URL",
        "S3_BUCKET",
        "S3_ACCESS_KEY_FILE",
        "S3_SECRET_KEY_FILE",
    ),
    "migrate": ("MIGRATION_DATABASE_URL_FILE", "ADMIN_USERNAME", "ADMIN_PASSWORD_FILE"),
}
READ = {"serve": ServeSettings.read, "worker": WorkerSettings.read, "migrate": MigrateSettings.read}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command, names in REQUIRED.items() for name in names])
def test_missing_setting_is_named(platform: Platform, tmp_path: Path, command: str, name: str) -> None:
    """A setting that is missing, or whose file is empty or absent, is refused in a sentence that names it."""
    values = platform.environment(**{name: ""})
    with pytest.raises(SettingsError, match=name):
        READ[command](Environment(values))
    if name.endswith("_FILE"):
        empty = tmp_path / "empty"
        empty.write_text("\n", encoding="utf-8")
        with pytest.raises(SettingsError, match=f"{name} .*is empty"):
            READ[command](Environment({**values, name: str(empty)}))
        with pytest.raises(SettingsError, match=f"{name} .*cannot be read"):
            READ[command](Environment({**values, name: str(tmp_path / "absent")}))
        with pytest.raises(SettingsError, match=f"stands in the environment.*{name}"):
            READ[command](Environment({**values, name.removesuffix("_FILE"): "secret"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_UPLOAD_BYTES", "ten"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("DATABASE_POOL_SIZE", "-1"),
        ("PUBLIC_ORIGIN", "audit.test"),
        ("PUBLIC_ORIGIN", "https://audit.test/"),
        ("CORS_ALLOW_ORIGINS", "*"),
        ("LOG_LEVEL", "LOUD"),
        ("S3_ENDPOINT_URL", "localhost:8333"),
        ("S3_CA_FILE", "/absent.pem"),
    ],
)
def test_wrong_setting_is_named(platform: Platform, name: str, value: str) -> None:
    """A setting of the wrong form is refused in a sentence that names it and repeats it."""
    with pytest.raises(SettingsError, match=rf"{name} .*{re.escape(value)}.*\.$"):
        ServeSettings.read(Environment(platform.environment(**{name: value})))


def test_short_secret_is_refused_without_showing_it(platform: Platform, tmp_path: Path) -> None:
    """A session secret or password that could be guessed is refused, and not repeated."""
    short = tmp_path / "short"
    short.write_text("hunter2", encoding="utf-8")
    for command, name in (("serve", "SESSION_SECRET_FILE"), ("migrate", "ADMIN_PASSWORD_FILE")):
        with pytest.raises(SettingsError, match="has 7 characters") as caught:
            READ[command](Environment(platform.environment(**{name: str(short)})))
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("command", ["serve", "worker", "migrate"])
def test_refusal_is_one_sentence_and_a_status(platform: Platform, command: str) -> None:
    """The process itself ends with status 78 and one line, no traceback."""
    name = "MIGRATION_DATABASE_URL_FILE" if command == "migrate" else "DATABASE_URL_FILE"
    environment = platform.environment(**{name: ""})
    result = subprocess.run([SMART_AUDIT, command], env=environment, capture_output=True, text=True, timeout=20)
    assert result.returncode == 78 and result.stdout == ""
    assert name in result.stderr and result.stderr.count("\n") == 1


def test_migrations_from_empty_and_again(platform: Platform) -> None:
    """An empty database is migrated; the second run, and two at once, change nothing; the application's role can only do DML."""
    with platform.superuser("postgres") as connection:
        connection.execute("CREATE DATABASE fresh OWNER smart_audit_owner")
    with platform.superuser("fresh") as connection:
        connection.execute("CREATE EXTENSION vector")
    url = (platform.secrets / "migration_database_url").read_text(encoding="utf-8")
    fresh_url = platform.root / "fresh_url"
    fresh_url.write_text(url.replace("/smart_audit?", "/fresh?"), encoding="utf-8")

    def dump() -> list[tuple[object, ...]]:
        with platform.superuser("fresh") as connection:
            tables = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
            return connection.execute(f"{tables} ORDER BY 1, 2").fetchall() + connection.execute("TABLE users").fetchall()

    environment = platform.environment(MIGRATION_DATABASE_URL_FILE=str(fresh_url))
    both = [subprocess.Popen([SMART_AUDIT, "migrate"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output.decode()
    first = dump()
    assert len(first) > 30
    assert run_migrate(platform, MIGRATION_DATABASE_URL_FILE=str(fresh_url)).returncode == 0
    assert dump() == first


def test_migrations_are_named_after_their_revisions() -> None:
    """What the web process reads from the files' names is what Alembic finds in them, in one line without branches."""
    from alembic.script import ScriptDirectory

    from smart_audit.migrate import alembic_config
    from smart_audit.migrations import revisions

    script = ScriptDirectory.from_config(alembic_config())
    assert revisions() == [step.revision for step in script.walk_revisions()][::-1]
    assert script.get_current_head() == revisions()[-1]


def test_application_role_cannot_change_the_schema(platform: Platform) -> None:
    """The role that serves has rows to read and write, and nothing else."""
    import psycopg

    dsn = (platform.secrets / "database_url").read_text(encoding="utf-8").strip()
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)
        for statement in ("CREATE TABLE x (y int)", "DROP TABLE users", "ALTER TABLE users ADD x int", "TRUNCATE users"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_rotated_password_ends_old_sessions(stranger: Client, platform: Platform, backend: App, tmp_path: Path) -> None:
    """`migrate` with a new password makes it valid, the old one invalid, and logs everybody out; again changes nothing."""
    other = tmp_path / "password"
    other.write_text("another-password", encoding="utf-8")
    assert '"user": "unchanged"' in run_migrate(platform).stdout
    extra = {"ADMIN_USERNAME": "rotating"}
    assert '"user": "created"' in run_migrate(platform, **extra).stdout
    login = {"username": "rotating", "password": platform.password}
    answer = stranger.post("/api/login", json=login)
    member = connect(backend.environment["UDS_PATH"], answer.headers["set-cookie"].split(";")[0].split("=", 1)[1])
    assert member.get("/api/session").status_code == 200
    assert '"user": "password changed"' in run_migrate(platform, ADMIN_PASSWORD_FILE=str(other), **extra).stdout
    assert member.get("/api/session").status_code == 401
    assert stranger.post("/api/login", json=login).status_code == 401
    assert stranger.post("/api/login", json={**login, "password": "another-password"}).status_code == 200
    with platform.superuser() as connection:
        connection.execute("DELETE FROM users WHERE username = 'rotating'")


def test_failed_migration_says_why(platform: Platform, tmp_path: Path) -> None:
    """A migration that cannot connect ends with one line and status 1."""
    url = tmp_path / "url"
    url.write_text(f"postgresql://smart_audit_owner:wrong@/smart_audit?host={platform.run}", encoding="utf-8")
    result = run_migrate(platform, MIGRATION_DATABASE_URL_FILE=str(url))
    assert result.returncode == 1 and "password authentication failed" in result.stderr
    assert "Traceback" not in result.stderr


def test_alive_and_ready(stranger: Client, backend: App) -> None:
    """Both are answered to anybody on the socket; ready tells of each service."""
    assert stranger.get("/healthz").json()["status"] == "alive"
    checks = stranger.get("/readyz").json()["checks"]
    assert checks == {"database": "ok", "valkey": "ok", "object_store": "ok"}
    assert backend.healthcheck().returncode == backend.healthcheck("--ready").returncode == 0


def test_not_ready_with_an_old_schema(stranger: Client, platform: Platform) -> None:
    """Not ready before the migration, but ready beside a newer release."""
    with platform.superuser() as connection:
        try:
            connection.execute("DELETE FROM alembic_version")
            answer = stranger.get("/readyz")
            assert answer.status_code == 503 and "smart-audit migrate" in answer.json()["checks"]["database"]
            connection.execute("INSERT INTO alembic_version VALUES ('9999')")
            assert stranger.get("/readyz").status_code == 200
        finally:
            connection.execute("DELETE FROM alembic_version")
            connection.execute("INSERT INTO alembic_version VALUES ('0001')")


def samples(client: Client) -> dict[str, float]:
    """Return the metrics by name and labels."""
    text = client.get("/metrics").text
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_metrics(client: Client) -> None:
    """Requests by route template, requests in flight, pool wait, queue depth, memory."""
    before = samples(client)
    labels = 'method="GET",route="/api/documents/{document_id}",status="404"'
    for _ in range(3):
        client.get(f"/api/documents/{uuid.uuid4()}")
    client.accepted("waiting for a worker")
    client.request("PROPFIND", "/coffee")
    after = samples(client)
    name = "smart_audit_http_request_duration_seconds_count"
    assert after[f"{name}{{{labels}}}"] - before.get(f"{name}{{{labels}}}", 0) == 3
    assert after[f'{name}{{method="OTHER",route="unmatched",status="404"}}'] >= 1
    assert f'smart_audit_http_request_duration_seconds_bucket{{le="0.05",{labels}}}' in after
    assert after["smart_audit_http_requests_in_flight"] == 1
    assert after["smart_audit_database_pool_wait_seconds_count"] > before["smart_audit_database_pool_wait_seconds_count"]
    assert after["smart_audit_queue_depth"] == after['smart_audit_documents{status="queued"}'] == 1
    assert after['smart_audit_outbox_due{kind="process"}'] == 1
    assert after["smart_audit_stream_length"] == 0
    assert after["smart_audit_oldest_unfinished_document_seconds"] > 0
    assert after['smart_audit_dependency_up{service="database"}'] == 1
    assert after["process_resident_memory_bytes"] > 0
    assert not [series for series in after if "coffee" in series]


def test_backend_is_small(client: Client, backend: App, platform: Platform) -> None:
    """A backend that has answered requests, hashed passwords side by side and taken uploads stays under 120 MiB."""
    for _ in range(50):
        client.get("/api/search?q=small")
    for _ in range(5):
        client.upload(b"word " * 400_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: log_in(connect(backend.environment["UDS_PATH"]), platform), range(16)))
    assert backend.memory_mib() < 120


def test_every_log_line_is_json_with_a_trace(client: Client, backend: App) -> None:
    """Each line is one JSON object with time, level, message and trace id; no line repeats a question or a password."""
    answer = client.get("/api/search?q=confidential-question", headers={"traceparent": "malformed"})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-trace-id"])
    # The line follows the last byte of the answer.
    wait_for(lambda: backend.logged("request", trace_id=answer.headers["x-trace-id"]), "the request's line")
    (line,) = backend.logged("request", trace_id=answer.headers["x-trace-id"])
    assert (line["method"], line["route"], line["status"], line["level"]) == ("GET", "/api/search", 200, "info")
    assert all({"time", "level", "logger", "message", "trace_id"} <= set(line) for line in backend.log())
    assert "confidential-question" not in backend.log_file.read_text(encoding="utf-8")


def test_session_check_is_one_query(client: Client, platform: Platform, stranger: Client) -> None:
    """A request pays for its login with one statement and no transaction around it."""
    with platform.superuser() as connection:
        connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        connection.execute("SELECT pg_reload_conf()")
        client.get("/api/session")
        time.sleep(0.3)
        log = platform.root / "postgres.log"
        offset = log.stat().st_size
        client.get("/api/session")
        time.sleep(0.2)
        text = log.read_bytes()[offset:].decode()
        connection.execute("ALTER SYSTEM RESET log_statement")
        connection.execute("SELECT pg_reload_conf()")
    statements = re.findall(r"LOG:  (?:statement|execute \S+): (.*)", text)
    assert len(statements) == 1 and "FROM sessions" in statements[0], statements


def assert_unavailable(client: Client, method: str, path: str, **keywords: object) -> None:
    """Check that a request is answered with 503 and when to come back."""
    answer = client.request(method, path, **keywords)
    assert answer.status_code == 503 and answer.headers["content-type"] == "application/problem+json", answer.text
    assert int(answer.headers["retry-after"]) > 0 and answer.json()["type"] == "urn:smart-audit:problem:unavailable"


def test_database_outage(client: Client, platform: Platform, worker: App) -> None:
    """While PgBouncer is away requests are told when to come back; when it is back, so are we, with the same processes."""
    assert client.get("/api/documents").status_code == 200
    platform.pgbouncer.stop()
    try:
        assert_unavailable(client, "GET", "/api/documents")
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
        assert samples(client)['smart_audit_dependency_up{service="database"}'] == 0
        wait_for(lambda: worker.logged("waiting for a service"), "the worker to notice")
    finally:
        platform.pgbouncer.start()
    assert client.get("/api/documents").status_code == 200
    client.wait_until_done(client.accepted("after the outage"))
    assert worker.healthcheck().returncode == 0


def test_restart_is_not_noticed(client: Client, platform: Platform, worker: App) -> None:
    """Idle connections that a restart of PgBouncer or Valkey closes fail no request afterwards."""
    for _ in range(3):
        client.get("/api/documents")
        platform.pgbouncer.stop()
        platform.pgbouncer.start()
        for _ in range(5):
            assert client.get("/api/documents").status_code == 200
        platform.valkey_server.stop()
        platform.valkey_server.start()
        assert client.get("/readyz").status_code == 200
    client.wait_until_done(client.accepted("after the restarts"))


def test_postgres_restart(client: Client, platform: Platform, worker: App) -> None:
    """Postgres itself may restart behind PgBouncer."""
    platform.postgres.stop()
    try:
        assert_unavailable(client, "GET", "/api/documents")
    finally:
        platform.postgres.start()
    wait_for(lambda: client.get("/api/documents").status_code == 200, "the backend to recover")
    client.wait_until_done(client.accepted("after the restart"))


def test_valkey_outage(client: Client, platform: Platform, worker: App) -> None:
    """Without Valkey nobody can log in (guessing could not be limited), but those who are can work; nothing is lost."""
    platform.valkey_server.stop()
    try:
        assert_unavailable(client, "POST", "/api/login", json={"username": USERNAME, "password": platform.password})
        assert client.get("/readyz").status_code == 503
        document_id = client.accepted("uploaded during the outage")
        assert client.get("/api/search?q=outage").status_code == 200
    finally:
        platform.valkey_server.start()
    client.wait_until_done(document_id)
    log_in(client, platform)


def test_object_store_outage(client: Client, platform: Platform, worker: App) -> None:
    """Without the bucket uploads are refused and leave no document; what was accepted before waits and is no attempt poorer."""
    document_id = client.accepted("accepted before")
    client.wait_until_done(document_id)
    platform.s3_relay.stop()
    try:
        file = {"file": ("a.txt", b"refused", "text/plain")}
        assert_unavailable(client, "POST", "/api/documents", files=file)
        assert len(client.get("/api/documents").json()) == 1
        assert client.get("/readyz").status_code == 200
        with platform.superuser() as connection:
            connection.execute("UPDATE documents SET status = 'queued'")
            connection.execute("DELETE FROM chunks")
        wait_for(lambda: worker.logged("document released"), "the worker to put it back")
        with platform.superuser() as connection:
            assert connection.execute("SELECT attempts FROM documents").fetchone() == (1,)
    finally:
        platform.s3_relay.start()
    client.wait_until_done(document_id)


def test_stop_lets_requests_end(platform: Platform, clean: None, token: str) -> None:
    """SIGTERM: first "not ready", still answering; an upload that is under way is accepted; then exit status 0, socket gone."""
    path = str(platform.run / "drain.sock")
    app = start_backend(platform, UDS_PATH=path, DRAIN_MILLISECONDS="3000")
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
        b"a slow upload\r\n--b--\r\n"
    )
    head = (
        f"POST /api/documents HTTP/1.1\r\nHost: audit.test\r\nCookie: __Host-session={token}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(path)
        connection.sendall(head.encode() + body[:50])
        time.sleep(0.3)
        app.process.terminate()
        wait_for(lambda: connect(path).get("/readyz").status_code == 503, "not ready", 2.5)
        assert connect(path, token).get("/api/documents").status_code == 200

        def refused() -> bool:
            with socket.socket(socket.AF_UNIX) as late:
                return late.connect_ex(path) != 0

        wait_for(refused, "the socket to close")
        assert app.process.poll() is None
        connection.sendall(body[50:])
        assert b" 202 " in connection.recv(4096).split(b"\r\n")[0]
    assert app.process.wait(10) == 0 and not Path(path).exists()
    assert app.logged("stopped")


def test_socket_left_by_a_crash(platform: Platform, clean: None) -> None:
    """A socket that a killed backend left is replaced; the new one can be reached by everybody who may enter the directory."""
    path = str(platform.run / "stale.sock")
    start_backend(platform, UDS_PATH=path).kill()
    assert stat.S_ISSOCK(Path(path).stat().st_mode)
    app = start_backend(platform, UDS_PATH=path)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o666
    assert connect(path).get("/healthz").status_code == 200
    # A second one on the same path would steal the first one's requests.
    second = subprocess.run([SMART_AUDIT, "serve"], env=app.environment, capture_output=True, text=True, timeout=20)
    assert second.returncode == 78 and "UDS_PATH" in second.stderr
    assert connect(path).get("/healthz").status_code == 200
    assert app.terminate() == 0


def test_socket_cannot_be_made(platform: Platform, tmp_path: Path) -> None:
    """A path that is no socket, or whose directory is not there, is refused by name."""
    occupied = tmp_path / "file"
    occupied.touch()
    for path in (occupied, tmp_path / "absent" / "x.sock"):
        environment = platform.environment(UDS_PATH=str(path), TMPDIR=str(tmp_path))
        result = subprocess.run([SMART_AUDIT, "serve"], env=environment, capture_output=True, text=True, timeout=20)
        assert result.returncode == 78 and f"UDS_PATH names {path}" in result.stderr
    assert occupied.exists()


def test_more_clients_than_connections(client: Client, backend: App, token: str) -> None:
    """Forty clients at once on a pool of eight connections: nobody is refused."""

    def ask(_number: int) -> int:
        return connect(backend.environment["UDS_PATH"], token).get("/api/search?q=crowd").status_code

    with ThreadPoolExecutor(40) as pool:
        assert set(pool.map(ask, range(200))) == {200}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("a\x00\n\u202eb.txt", "ab.txt"),
        ("", "document.txt"),
        ("/", "document.txt"),
        ("x" * 500, "x" * 200),
    ],
)
def test_file_names_are_cleaned(name: str, expected: str) -> None:
    """A name keeps its last part, without characters that move the cursor, end a line or turn the writing round."""
    assert clean_filename(name) == expected
