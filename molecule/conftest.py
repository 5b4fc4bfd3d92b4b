"""What scenarios' own tests share: the application as a person's program would use it, from another machine, over TLS."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from testinfra.host import Host

from tools import demo, host as test_host, secrets
from tools.shell import run

DOMAIN = "localhost"
USERNAME = "auditor"
ORIGIN = "https://localhost:8443"


def wait_until(condition: Callable[[], object], what: str, patience_seconds: float = 60) -> None:
    """Wait until a condition holds, and fail with its name when it does not."""
    deadline = time.monotonic() + patience_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} had not happened after {patience_seconds:.0f} s"
        time.sleep(0.3)


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


class _Connection(http.client.HTTPSConnection):
    """Connects to an address of the test network, and checks the certificate for the application's name."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        super().__init__(DOMAIN, 443, context=context, timeout=15)
        self._address, self._tls = address, context

    def connect(self) -> None:
        """Connect to the address, and speak TLS with the name."""
        plain = socket.create_connection((self._address, 443), timeout=15)
        self.sock = self._tls.wrap_socket(plain, server_hostname=DOMAIN)


@dataclass
class Application:
    """A client of the reference application: log in, upload, ask."""

    address: str
    context: ssl.SSLContext
    password: str
    cookie: str = field(default="")

    def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send one request with the session's cookie."""
        connection = _Connection(self.address, self.context)
        try:
            sent = {"Origin": ORIGIN, **({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})}
            connection.request(method, path, body or None, sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def answers(self) -> bool:
        """Say whether the application answers a person who is logged in."""
        try:
            return self.call("GET", "/api/documents").status == 200
        except OSError:
            return False

    def login(self) -> Answer:
        """Log in and keep the cookie."""
        body = json.dumps({"username": USERNAME, "password": self.password}).encode()
        answer = self.call("POST", "/api/login", body, {"Content-Type": "application/json"})
        assert answer.status in (200, 204), answer.body
        self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer

    def upload(self, text: str, name: str = "finding.txt") -> str:
        """Upload a document, and return its id."""
        mark = uuid.uuid4().hex
        body = (
            f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain\r\n\r\n{text}\r\n--{mark}--\r\n'
        ).encode()
        answer = self.call("POST", "/api/documents", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    def status(self, document: str) -> str:
        """Return a document's status."""
        return str(self.call("GET", f"/api/documents/{document}").json["status"])

    def wait_done(self, *documents: str, patience_seconds: float = 60) -> None:
        """Wait until documents are searchable."""
        for document in documents:
            wait_until(lambda document=document: self.status(document) == "done", f"the end of {document}", patience_seconds)  # type: ignore[misc]  # a default binds the loop's value

    def search(self, question: str, limit: int = 5) -> list[dict[str, Any]]:
        """Ask a question, and return the nearest passages."""
        from urllib.parse import urlencode

        answer = self.call("GET", f"/api/search?{urlencode({'q': question, 'limit': limit})}")
        assert answer.status == 200, answer.body
        found: list[dict[str, Any]] = answer.json
        return found


@pytest.fixture(scope="module")
def host_name(host: Host) -> str:
    """Name the container that carries the host."""
    return str(host.backend.name)


@pytest.fixture(scope="module")
def application(host: Host, host_name: str) -> Iterator[Application]:
    """Reach the application on the host's address, logged in, trusting only the host's own authority."""
    template = f"{{{{(index .NetworkSettings.Networks \"{test_host.NETWORK}\").IPAddress}}}}"
    address = run(["docker", "inspect", "--format", template, host_name]).stdout.strip()
    context = ssl.create_default_context(cadata=host.check_output(f"cat {demo.CADDY_ROOT}"))
    client = Application(address, context, secrets.read("demo")["app_admin_password"])
    client.login()
    yield client
    client.call("POST", "/api/logout")
