"""The HTTP API."""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from sqlalchemy import Connection, text
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Match

from smart_audit import __version__, documents, queue, trace, uploads
from smart_audit.database import Database
from smart_audit.embedding import embed
from smart_audit.errors import Unavailable
from smart_audit.metrics import Metrics
from smart_audit.middleware import BodyLimit, OriginCheck, Telemetry, client_address
from smart_audit.migrations import revisions
from smart_audit.objectstore import ObjectStore
from smart_audit.passwords import verify_password
from smart_audit.problems import MEDIA_TYPE, Problem, ProblemDetails, unavailable
from smart_audit.sessions import COOKIE, Sessions, User, find_user
from smart_audit.settings import ServeSettings

log = logging.getLogger(__name__)

_OBJECT_STORE_PROBE_SECONDS = 10.0
# More threads than connections, because uploads wait for the bucket without one.
_SPARE_THREADS = 8


class Services:
    """What the routes work with; one per process."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url, settings.database_pool_size, "smart-audit-serve")
        self.valkey = queue.connect(settings.valkey_url)
        self.stream = queue.DocumentStream(self.valkey, "none")
        self.throttle = queue.Throttle(self.valkey)
        self.objects = ObjectStore(settings.object_store)
        self.sessions = Sessions(settings.session_secret, settings.session_hours)
        self.metrics = Metrics(lambda: self.database.read(documents.backlog), self.stream.length)
        self.database.on_wait = self.metrics.pool_wait.observe
        self.known_revisions = revisions()
        self.draining = False
        self._probed_at = float("-inf")
        self._probe_result = "not asked yet"

    def object_store_state(self) -> str:
        """Return `ok` or what is wrong; asked at most every ten seconds, because a dead service takes seconds to ask."""
        if time.monotonic() - self._probed_at > _OBJECT_STORE_PROBE_SECONDS:
            self._probed_at = time.monotonic()
            self._probe_result = _state(self.objects.probe)
        return self._probe_result


def _state(check: Callable[[], object]) -> str:
    try:
        check()
    except Unavailable as error:
        log.warning("not ready", extra={"fields": {"error": str(error)}})
        return f"{error.service} does not answer"
    return "ok"


# Not for waiting, but because FastAPI would send a plain function to another thread and back for one attribute.
async def services(request: Request) -> Services:
    """Return the process's services."""
    found: Services = request.app.state.services
    return found


Tools = Annotated[Services, Depends(services)]


def current_user(request: Request, tools: Tools) -> User:
    """Return who is logged in, by one query.

    Raises:
        Problem: 401, nobody is.
    """
    token = request.cookies.get(COOKIE)
    if token:
        user = tools.database.read(lambda connection: tools.sessions.check(connection, token))
        if user:
            return user
    raise Problem(401, "not-logged-in", "Log in first.", {"WWW-Authenticate": 'Cookie realm="smart-audit"'})


CurrentUser = Annotated[User, Depends(current_user)]


class Credentials(BaseModel):
    """User name and password."""

    username: str = Field(min_length=1, max_length=200)
    password: str = Field(min_length=1, max_length=1000)


class SessionOut(BaseModel):
    """Who is logged in."""

    username: str


class DocumentOut(BaseModel):
    """A document; `reason` is there when `status` is `failed`."""

    id: uuid.UUID
    filename: str
    content_type: str
    size_bytes: int
    status: str
    reason: str | None
    passages: int
    created_at: datetime
    processed_at: datetime | None


class AcceptedOut(BaseModel):
    """A document that was accepted and will be processed."""

    id: uuid.UUID
    status: str


class HitOut(BaseModel):
    """A passage and its cosine distance to the question: 0 is nearest, 2 farthest."""

    document_id: uuid.UUID
    filename: str
    passage: str
    distance: float


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {status: {"description": "A problem.", "content": {MEDIA_TYPE: schema}} for status in (*statuses, 503)}


api = APIRouter(prefix="/api")
operations = APIRouter(include_in_schema=False)


@api.post("/login", responses=_problems(403, 401, 415, 422, 429))
def login(credentials: Credentials, request: Request, response: Response, tools: Tools) -> SessionOut:
    """Log in; the answer sets the session's cookie."""
    username, address = credentials.username, client_address(request.scope)
    wait_seconds = tools.throttle.count(username, address)
    if wait_seconds:
        tools.metrics.login_failures.inc()
        log.warning("login throttled", extra={"fields": {"client": address}})
        raise Problem(
            429,
            "too-many-attempts",
            f"Too many failed attempts. Try again in {wait_seconds} s.",
            {"Retry-After": str(wait_seconds)},
        )
    found = tools.database.read(lambda connection: find_user(connection, username))
    # No connection is held while the password is hashed: that takes as long as a hundred queries.
    if not verify_password(credentials.password, found[1] if found else None) or not found:
        tools.metrics.login_failures.inc()
        log.warning("login refused", extra={"fields": {"client": address}})
        raise Problem(401, "wrong-credentials", "User name or password is wrong.")
    user_id = found[0]
    token = tools.database.read(lambda connection: tools.sessions.open(connection, user_id))
    tools.throttle.forgive(username, address)
    response.set_cookie(COOKIE, token, max_age=tools.sessions.seconds, path="/", secure=True, httponly=True, samesite="strict")
    log.info("logged in", extra={"fields": {"user": user_id, "client": address}})
    return SessionOut(username=username)


@api.post("/logout", status_code=204, responses=_problems(403))
def logout(request: Request, tools: Tools) -> Response:
    """End the session, if there is one."""
    token = request.cookies.get(COOKIE)
    if token:
        tools.database.read(lambda connection: tools.sessions.end(connection, token))
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
    return response


@api.get("/session", responses=_problems(401))
async def session(user: CurrentUser) -> SessionOut:
    """Tell who is logged in."""
    return SessionOut(username=user.username)


_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


# The form is read in the function, not declared as a parameter: FastAPI would read a declared one before it asks who is there.
@api.post("/documents", status_code=202, responses=_problems(401, 403, 413, 415, 422), openapi_extra=_UPLOAD_BODY)
async def upload(request: Request, response: Response, user: CurrentUser, tools: Tools) -> AcceptedOut:
    """Accept a text document; it is processed later, certainly and once."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "unsupported-type", "Send the file as multipart/form-data in a field named 'file'.")
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(422, "no-file", "The form has no file in a field named 'file'.")
        document_id = await run_in_threadpool(_store, tools, user, file)
    response.headers["Location"] = f"/api/documents/{document_id}"
    return AcceptedOut(id=document_id, status="queued")


def _store(tools: Services, user: User, file: UploadFile) -> uuid.UUID:
    checked = uploads.check(file.file, file.content_type, file.filename or "", tools.settings.max_upload_bytes)
    document_id = uuid.uuid4()
    object_key = f"documents/{document_id}"
    current = trace.current()
    traceparent = (current or trace.continue_from(None)).traceparent
    # First a note to remove the object, then the object, then the row, which takes the note back: whatever stops us in between,
    # the worker finds the note and nothing stays behind.
    note_id = tools.database.read(lambda connection: documents.announce_object(connection, object_key, traceparent))
    tools.objects.put(object_key, file.file, checked.size_bytes, checked.sha256.hex(), checked.content_type)
    inserted = tools.database.transaction(
        lambda connection: documents.insert(
            connection,
            note_id,
            document_id,
            checked.filename,
            checked.content_type,
            checked.size_bytes,
            checked.sha256,
            object_key,
            traceparent,
            user.user_id,
        )
    )
    if not inserted:
        raise Unavailable("object store", "the upload took longer than its note is kept")
    log.info("document accepted", extra={"fields": {"document_id": document_id, "size_bytes": checked.size_bytes}})
    return document_id


@api.get("/documents", responses=_problems(401, 422))
def list_documents(
    _user: CurrentUser,
    tools: Tools,
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 100,
    before: Annotated[uuid.UUID | None, Query(description="Id of the last document of the page before.")] = None,
) -> list[DocumentOut]:
    """List documents, newest first."""
    found = tools.database.read(lambda connection: documents.newest(connection, limit, before))
    return [DocumentOut(**vars(document)) for document in found]


def _document_id(document_id: str) -> uuid.UUID:
    try:
        return uuid.UUID(document_id)
    except ValueError:
        raise _no_document() from None


def _no_document() -> Problem:
    return Problem(404, "no-such-document", "There is no document of that id.")


@api.get("/documents/{document_id}", responses=_problems(401, 404))
def get_document(document_id: str, _user: CurrentUser, tools: Tools) -> DocumentOut:
    """Tell about one document; `status` is queued, processing, done or failed."""
    wanted = _document_id(document_id)
    document = tools.database.read(lambda connection: documents.get(connection, wanted))
    if document is None:
        raise _no_document()
    return DocumentOut(**vars(document))


@api.delete("/documents/{document_id}", status_code=204, responses=_problems(401, 403, 404))
def delete_document(document_id: str, _user: CurrentUser, tools: Tools) -> Response:
    """Delete a document, its passages at once and its file soon after."""
    wanted = _document_id(document_id)
    current = trace.current()
    traceparent = (current or trace.continue_from(None)).traceparent
    if not tools.database.transaction(lambda connection: documents.delete(connection, wanted, traceparent)):
        raise _no_document()
    log.info("document deleted", extra={"fields": {"document_id": wanted}})
    return Response(status_code=204)


@api.get("/search", responses=_problems(401, 422))
def search(
    _user: CurrentUser,
    tools: Tools,
    q: Annotated[str, Query(min_length=1, max_length=1000, description="The question.")],
    limit: Annotated[int, Query(ge=1, le=50, description="How many passages at most.")] = 5,
) -> list[HitOut]:
    """Return the passages nearest to the question, nearest first."""
    embedding = embed(q)
    if embedding is None:
        raise Problem(422, "invalid", "q: write at least one word.")
    hits = tools.database.transaction(lambda connection: documents.search(connection, embedding, limit))
    return [HitOut(**vars(hit)) for hit in hits]


@operations.get("/healthz")
async def healthz() -> JSONResponse:
    """Tell that the process is alive; asks nobody else, so that an outage elsewhere restarts nothing."""
    return JSONResponse({"status": "alive", "version": __version__})


def _database_state(tools: Services, connection: Connection) -> str:
    exists = connection.execute(text("SELECT to_regclass('alembic_version') IS NOT NULL")).scalar_one()
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if exists else None
    # A revision that we do not know was made by a newer release, beside which this one keeps serving until it is replaced.
    behind = revision is None or revision in tools.known_revisions[:-1]
    return f"schema is at {revision}, run `smart-audit migrate`" if behind else "ok"


@operations.get("/readyz")
def readyz(tools: Tools) -> Response:
    """Tell whether requests can be answered: database with an up-to-date schema, Valkey.

    A problem of the object store is reported and does not count: everything but uploading works without it.
    """
    try:
        database = tools.database.read(lambda connection: _database_state(tools, connection))
    except Unavailable as error:
        log.warning("not ready", extra={"fields": {"error": str(error)}})
        database = "database does not answer"
    checks = {
        "database": database,
        "valkey": _state(lambda: queue.ping(tools.valkey)),
        "object_store": tools.object_store_state(),
    }
    if tools.draining:
        checks["process"] = "draining"
    if checks["database"] == checks["valkey"] == "ok" and not tools.draining:
        return JSONResponse({"status": "ready", "checks": checks})
    raise Problem(503, "not-ready", "Not ready to answer requests.", {"Retry-After": "2"}, checks=checks)


@operations.get("/metrics")
def metrics(tools: Tools) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(generate_latest(tools.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request.url.path)


async def _on_unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)
    log.warning("unavailable", extra={"fields": {"error": str(error)}})
    return unavailable(error.service, error.retry_after_seconds).response(request.url.path)


_SLUGS = {400: "bad-request", 404: "no-such-route", 405: "method-not-allowed", 413: "too-large"}
_DETAILS = {404: "There is nothing at this address.", 405: "This address does not take that method."}


def _methods_at(request: Request) -> set[str]:
    return {
        method
        for route in (*api.routes, *operations.routes)
        if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = _DETAILS.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The framework names only the methods of the first route that it found.
        headers["Allow"] = ", ".join(sorted(_methods_at(request)))
    problem = Problem(error.status_code, _SLUGS.get(error.status_code, "http"), detail, headers)
    return problem.response(request.url.path)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if request.method == "POST" and content_type != "application/json":
        return Problem(415, "unsupported-type", "Send the body as application/json.").response(request.url.path)
    # Where and what, never the value: it may be a password.
    errors = [{"where": ".".join(str(part) for part in item["loc"]), "detail": str(item["msg"])} for item in error.errors()]
    detail = "; ".join(f"{item['where']}: {item['detail']}" for item in errors)
    return Problem(422, "invalid", f"{detail}.", errors=errors).response(request.url.path)


@dataclass(frozen=True)
class Application:
    """The ASGI application and the services behind it."""

    asgi: FastAPI
    services: Services


def create_app(settings: ServeSettings) -> Application:
    """Return the application; it connects to nothing until the first request."""
    tools = Services(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = settings.database_pool_size + _SPARE_THREADS
        yield
        tools.database.close()
        tools.valkey.close()

    app = FastAPI(
        title="Smart Audit",
        version=__version__,
        summary="Upload documents, ask questions, read the nearest passages.",
        openapi_url="/api/openapi.json",
        # Their pages load scripts from elsewhere, which the content security policy forbids and an audit would ask about.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={"default": {"model": ProblemDetails, "description": "A problem.", "content": {MEDIA_TYPE: {}}}},
    )
    app.state.services = tools
    app.include_router(api)
    app.include_router(operations)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(Unavailable, _on_unavailable)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    # The last one added is the outermost.
    if settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origins,
            allow_credentials=True,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Content-Type", "Traceparent"],
        )
    app.add_middleware(OriginCheck, allowed=frozenset((settings.public_origin, *settings.cors_allow_origins)))
    app.add_middleware(BodyLimit, max_upload_bytes=settings.max_upload_bytes)
    app.add_middleware(Telemetry, metrics=tools.metrics, max_in_flight=settings.max_in_flight)
    return Application(app, tools)
