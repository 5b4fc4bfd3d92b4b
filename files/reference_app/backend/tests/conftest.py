"""Fixtures: the platform (once a session), the application's processes, a logged-in client."""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from smart_audit.sessions import COOKIE
from tests.host import SMART_AUDIT, USERNAME, Platform, wait_for


class App:
    """One process of the application, with its log."""

    def __init__(self, platform: Platform, command: str, **overrides: str) -> None:
        directory = platform.root / f"{command}-{uuid.uuid4().hex[:6]}"
        directory.mkdir()
        self.environment = platform.environment(TMPDIR=str(directory), **overrides)
        self.log_file = directory / "log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen([SMART_AUDIT, command], env=self.environment, stdout=log, stderr=subprocess.STDOUT, cwd="/tmp")

    def log(self) -> list[dict[str, Any]]:
        """Return the log's complete lines; each of them must be a JSON object."""
        text = self.log_file.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def logged(self, message: str, **fields: str) -> list[dict[str, Any]]:
        """Return the lines with that message and those members."""
        return [
            line for line in self.log() if line["message"] == message and all(line.get(name) == value for name, value in fields.items())
        ]

    def healthcheck(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the container's health check beside it."""
        return subprocess.run([SMART_AUDIT, "healthcheck", *arguments], env=self.environment, capture_output=True, text=True, timeout=10)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(5)

    def terminate(self) -> int:
        """Ask it to stop; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def memory_mib(self) -> float:
        """Return its resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@dataclass
class Client:
    """Speaks HTTP to a backend's unix socket, as the proxy does."""

    http: httpx.Client

    def request(self, method: str, path: str, **keywords: Any) -> httpx.Response:
        """Send a request."""
        return self.http.request(method, path, **keywords)

    def get(self, path: str, **keywords: Any) -> httpx.Response:
        """Send a GET."""
        return self.request("GET", path, **keywords)

    def post(self, path: str, **keywords: Any) -> httpx.Response:
        """Send a POST."""
        return self.request("POST", path, **keywords)

    def upload(self, content: str | bytes, name: str = "note.txt", kind: str | None = "text/plain") -> httpx.Response:
        """Upload a file."""
        body = content.encode() if isinstance(content, str) else content
        file = (name, body, kind) if kind else (name, body)
        return self.post("/api/documents", files={"file": file})

    def accepted(self, content: str, name: str = "note.txt") -> str:
        """Upload a file that must be accepted; return its id."""
        answer = self.upload(content, name)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def document(self, document_id: str) -> dict[str, Any]:
        """Return a document."""
        answer = self.get(f"/api/documents/{document_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_until_done(self, *document_ids: str, seconds: float = 30) -> None:
        """Wait until documents are done, and none has failed."""
        for document_id in document_ids:
            deadline = time.monotonic() + seconds
            while (document := self.document(document_id))["status"] != "done":
                assert document["status"] != "failed", document
                assert time.monotonic() < deadline, document
                time.sleep(0.05)

    def wait_until_failed(self, document_id: str) -> str:
        """Wait until a document has failed; return the reason."""
        wait_for(lambda: self.document(document_id)["status"] == "failed", "the document to fail")
        return str(self.document(document_id)["reason"])


def connect(uds_path: str, cookie: str | None = None) -> Client:
    """Return a client of the backend on that socket."""
    headers = {"Cookie": f"{COOKIE}={cookie}"} if cookie else {}
    transport = httpx.HTTPTransport(uds=uds_path, retries=0)
    return Client(httpx.Client(transport=transport, base_url="http://audit.test", headers=headers, timeout=30))


def start_backend(platform: Platform, **overrides: str) -> App:
    """Start a backend and wait until it is ready."""
    app = App(platform, "serve", **overrides)

    def ready() -> bool:
        assert app.process.poll() is None, app.log_file.read_text(encoding="utf-8")
        return app.healthcheck("--ready").returncode == 0

    wait_for(ready, "the backend")
    return app


def log_in(client: Client, platform: Platform) -> str:
    """Log in; return the session's token."""
    answer = client.post("/api/login", json={"username": USERNAME, "password": platform.password})
    assert answer.status_code == 200, answer.text
    return answer.headers["set-cookie"].split(";")[0].split("=", 1)[1]


def run_migrate(platform: Platform, **overrides: str) -> subprocess.CompletedProcess[str]:
    """Run `smart-audit migrate`."""
    return subprocess.run([SMART_AUDIT, "migrate"], env=platform.environment(**overrides), capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The services, with a migrated database."""
    built = Platform(tmp_path_factory.mktemp("p"))
    migrated = run_migrate(built)
    assert migrated.returncode == 0, migrated.stdout + migrated.stderr
    yield built
    built.stop()


@pytest.fixture(scope="session")
def shared_backend(platform: Platform) -> Iterator[App]:
    """One backend for all tests that do it no harm."""
    app = start_backend(platform)
    yield app
    app.terminate()


@pytest.fixture(scope="session")
def token(platform: Platform, shared_backend: App) -> str:
    """The token of a session: hashing a password takes too long to do it in every test."""
    return log_in(connect(shared_backend.environment["UDS_PATH"]), platform)


@pytest.fixture
def backend(shared_backend: App) -> App:
    """The backend, which must be running."""
    assert shared_backend.process.poll() is None, "an earlier test has ended the shared backend"
    return shared_backend


@pytest.fixture
def stranger(backend: App, clean: None) -> Client:
    """A client that is not logged in."""
    return connect(backend.environment["UDS_PATH"])


@pytest.fixture
def client(backend: App, token: str, clean: None) -> Client:
    """A client that is logged in."""
    return connect(backend.environment["UDS_PATH"], token)


@pytest.fixture
def clean(platform: Platform) -> None:
    """No documents, nothing in the outbox, nothing in Valkey."""
    with platform.superuser() as connection:
        connection.execute("TRUNCATE documents, outbox CASCADE")
    platform.valkey.flushall()


@pytest.fixture
def start_worker(platform: Platform) -> Iterator[Callable[..., App]]:
    """Starts workers, which end with the test."""
    started: list[App] = []

    def start(**overrides: str) -> App:
        app = App(platform, "worker", **overrides)
        started.append(app)
        wait_for(lambda: app.log_file.read_bytes().count(b"\n") > 0, "the worker's first line")
        return app

    yield start
    for app in started:
        if app.process.poll() is None:
            os.kill(app.process.pid, signal.SIGCONT)
            app.kill()


@pytest.fixture
def worker(start_worker: Callable[..., App]) -> App:
    """A running worker."""
    return start_worker()
