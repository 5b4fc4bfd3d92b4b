"""What stands around every request: trace, log line, metrics, limits, and the check of where it comes from."""

import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smart_audit import trace
from smart_audit.metrics import Metrics
from smart_audit.problems import Problem

log = logging.getLogger("smart_audit.access")

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
_METHODS = _SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
# Multipart boundaries, part headers and the file's name come on top of the file itself.
FORM_OVERHEAD_BYTES = 64 * 1024
_JSON_LIMIT_BYTES = 64 * 1024
_UPLOAD_PATH = "/api/documents"


class Telemetry:
    """Outermost: gives the request its trace, counts and logs it, and turns what nobody caught into a problem."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_in_flight: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        answered = False

        async def send_and_note(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = True
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Trace-Id"] = current.trace_id
            await send(message)

        with trace.use(trace.continue_from(Headers(scope=scope).get("traceparent"))) as current:
            self._in_flight += 1
            self._metrics.in_flight.set(self._in_flight)
            try:
                if self._in_flight > self._max_in_flight and scope["path"].startswith("/api/"):
                    overloaded = Problem(503, "overloaded", "Too many requests at once. Try again in 1 s.", {"Retry-After": "1"})
                    await overloaded.response(scope["path"])(scope, receive, send_and_note)
                else:
                    await self._app(scope, receive, send_and_note)
            except Exception:
                log.exception("unhandled error")
                if not answered:
                    problem = Problem(500, "internal", f"Something went wrong here. Tell the operator the trace {current.trace_id}.")
                    await problem.response(scope["path"])(scope, receive, send_and_note)
            finally:
                self._in_flight -= 1
                self._metrics.in_flight.set(self._in_flight)
                self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The template, not the path: a label for every document would never stop growing. The same for made-up methods.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.requests.labels(method, route, str(status)).observe(seconds)
        quiet = route in ("/healthz", "/readyz", "/metrics") and status < 400
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "path": scope["path"],
            "status": status,
            "duration_ms": round(seconds * 1000, 2),
            "client": client_address(scope),
        }
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


def client_address(scope: Scope) -> str:
    """Return the address of the client as the proxy saw it.

    Only the proxy can reach the unix socket, and it appends what it saw itself; whatever stands before that was written by the
    client.
    """
    forwarded = Headers(scope=scope).get("x-forwarded-for", "")
    last = forwarded.rsplit(",", 1)[-1].strip()
    return last or "local"


class BodyLimit:
    """Refuses bodies that are too long: at once by their declared length, else when the limit is passed."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = scope["path"] == _UPLOAD_PATH
        limit = self._max_upload_bytes + FORM_OVERHEAD_BYTES if upload else _JSON_LIMIT_BYTES
        problem = too_large(self._max_upload_bytes if upload else limit)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await problem.response(scope["path"])(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # FastAPI hides other exceptions behind "error parsing the body" while it reads a request.
                raise HTTPException(413, problem.detail)
            return message

        await self._app(scope, receive_limited, send)


def too_large(limit_bytes: int) -> Problem:
    """Return the problem of a body that is longer than `limit_bytes`."""
    size = f"{limit_bytes / 1024 / 1024:.3g} MiB" if limit_bytes >= 1024 * 1024 else f"{limit_bytes} bytes"
    return Problem(413, "too-large", f"That is too large: at most {size} are accepted.", limit_bytes=limit_bytes)


class OriginCheck:
    """Refuses requests that change something and that a browser sends for another site.

    Browsers say where such a request comes from; a program that says nothing has no cookie that somebody else could abuse.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app = app
        self._allowed = allowed

    def _refused(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin.lower() not in self._allowed
        return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS and self._refused(Headers(scope=scope)):
            problem = Problem(403, "foreign-origin", "This request comes from another site and was refused.")
            await problem.response(scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)
