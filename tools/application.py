"""The reference application as a person's program uses it: from another machine, over TLS."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlencode

DOMAIN = "localhost"
USERNAME = "auditor"
ORIGIN = "https://localhost:8443"
PATIENCE_SECONDS = 120.0


def wait_until(condition: Callable[[], object], what: str, patience_seconds: float = PATIENCE_SECONDS) -> float:
    """Wait until a condition holds, and return the seconds that it took; fail with its name when it does not."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < patience_seconds, f"waited {patience_seconds:.0f} s in vain for {what}"
        # Each question may take half a second of a slow machine's processor, which the awaited needs as well.
        time.sleep(0.3 if time.monotonic() - begun < 3 else 1)
    return time.monotonic() - begun


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

    def __init__(self, address: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(DOMAIN, 443, context=context, timeout=15)
        self._peer, self._tls = (address, port), context

    def connect(self) -> None:
        """Connect to the address, and speak TLS with the name."""
        plain = socket.create_connection(self._peer, timeout=15)
        self.sock = self._tls.wrap_socket(plain, server_hostname=DOMAIN)


@dataclass
class Application:
    """A client of the reference application: log in, upload, ask."""

    address: str
    context: ssl.SSLContext
    password: str
    cookie: str = field(default="")
    port: int = 443

    def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send one request with the session's cookie."""
        connection = _Connection(self.address, self.port, self.context)
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
        except (OSError, http.client.HTTPException):
            return False

    def login(self) -> Answer:
        """Log in and keep the cookie."""
        body = json.dumps({"username": USERNAME, "password": self.password}).encode()
        answer = self.call("POST", "/api/login", body, {"Content-Type": "application/json"})
        assert answer.status in (200, 204), answer.body
        self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer

    def upload(self, text: str, name: str = "finding.txt") -> str:
        """Upload a document, and return its id; a 503 says to try again, so it is tried again."""
        mark = uuid.uuid4().hex
        body = (
            f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            f"Content-Type: text/plain\r\n\r\n{text}\r\n--{mark}--\r\n"
        ).encode()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self.call("POST", "/api/documents", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})
            if answer.status != 503 or time.monotonic() > deadline:
                break
            time.sleep(float(answer.headers["Retry-After"]))
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    def status(self, document: str) -> str:
        """Return a document's status."""
        return str(self.call("GET", f"/api/documents/{document}").json["status"])

    def _done(self, document: str) -> bool:
        return self.status(document) == "done"

    def wait_done(self, *documents: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until documents are searchable."""
        for document in documents:
            wait_until(partial(self._done, document), f"the end of {document}", patience_seconds)

    def search(self, question: str, limit: int = 5) -> list[dict[str, Any]]:
        """Ask a question, and return the nearest passages."""
        answer = self.call("GET", f"/api/search?{urlencode({'q': question, 'limit': limit})}")
        assert answer.status == 200, answer.body
        found: list[dict[str, Any]] = answer.json
        return found
