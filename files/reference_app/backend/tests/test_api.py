"""The API: what it accepts, what it refuses, and in which words."""

import json
import uuid
from typing import Any

import httpx
import pytest

from smart_audit.sessions import COOKIE
from tests.conftest import App, Client, connect, log_in, start_backend
from tests.host import ORIGIN, USERNAME, Platform, wait_for


def assert_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check that an answer is that problem, complete; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:smart-audit:problem:{kind}"
    assert problem["status"] == status
    assert problem["title"] and problem["detail"] and problem["instance"]
    assert problem["trace_id"] == answer.headers["x-trace-id"]
    return problem


def test_cookie_is_out_of_reach(stranger: Client, platform: Platform) -> None:
    """The session's cookie is secure, same-site, http-only, for this host alone, and the session is not in the answer."""
    answer = stranger.post("/api/login", json={"username": USERNAME, "password": platform.password})
    assert answer.json() == {"username": USERNAME}
    name_and_value, *flags = (part.strip().lower() for part in answer.headers["set-cookie"].split(";"))
    assert name_and_value.startswith(f"{COOKIE.lower()}=") and COOKIE.startswith("__Host-")
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= set(flags)
    assert not any(flag.startswith("domain") for flag in flags)


def test_logout_ends_the_session_for_good(stranger: Client, backend: App, platform: Platform) -> None:
    """After a logout the old cookie is worth nothing, though somebody may have copied it."""
    member = connect(backend.environment["UDS_PATH"], log_in(stranger, platform))
    assert member.get("/api/session").json() == {"username": USERNAME}
    answer = member.post("/api/logout")
    assert answer.status_code == 204 and "max-age=0" in answer.headers["set-cookie"].lower()
    assert_problem(member.get("/api/session"), 401, "not-logged-in")
    assert member.post("/api/logout").status_code == 204


def test_session_expires(client: Client, platform: Platform, stranger: Client, backend: App) -> None:
    """A session that has run out is refused, though its row is still there."""
    member = connect(backend.environment["UDS_PATH"], log_in(stranger, platform))
    with platform.superuser() as connection:
        newest = "(SELECT max(created_at) FROM sessions)"
        connection.execute(f"UPDATE sessions SET expires_at = now() - interval '1 s' WHERE created_at = {newest}")
    assert_problem(member.get("/api/session"), 401, "not-logged-in")
    assert client.get("/api/session").status_code == 200


def test_database_holds_no_usable_secret(client: Client, token: str, platform: Platform) -> None:
    """Neither passwords nor session tokens can be read out of the tables."""
    with platform.superuser() as connection:
        stored = str(connection.execute("SELECT password_hash FROM users").fetchall())
        stored += str(connection.execute("SELECT encode(token_hash, 'escape') FROM sessions").fetchall())
    assert "scrypt$" in stored and platform.password not in stored and token not in stored


@pytest.mark.parametrize("username", [USERNAME, "nobody"])
def test_wrong_login_is_refused_without_telling_why(stranger: Client, username: str) -> None:
    """A wrong password and an unknown user get the same answer, and no cookie."""
    answer = stranger.post("/api/login", json={"username": username, "password": "wrong password"})
    problem = assert_problem(answer, 401, "wrong-credentials")
    assert problem["detail"] == "User name or password is wrong." and "set-cookie" not in answer.headers


def test_guessing_is_throttled(stranger: Client, platform: Platform) -> None:
    """After some failures from one address even the right password waits there, and only there."""
    guesser = {"X-Forwarded-For": "198.51.100.7"}
    for _ in range(8):
        wrong = stranger.post("/api/login", json={"username": USERNAME, "password": "guess"}, headers=guesser)
        assert wrong.status_code == 401
    right = {"username": USERNAME, "password": platform.password}
    refused = stranger.post("/api/login", json=right, headers=guesser)
    assert_problem(refused, 429, "too-many-attempts")
    assert 0 < int(refused.headers["retry-after"]) <= 300
    # What a client writes into the header itself does not count, only what the proxy appended.
    forged = {"X-Forwarded-For": "203.0.113.1, 198.51.100.7"}
    assert stranger.post("/api/login", json=right, headers=forged).status_code == 429
    assert stranger.post("/api/login", json=right, headers={"X-Forwarded-For": "198.51.100.8"}).status_code == 200


def test_right_logins_are_not_counted(stranger: Client, platform: Platform) -> None:
    """A program that logs in often is no guesser."""
    for _ in range(10):
        log_in(stranger, platform)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/session"),
        ("GET", "/api/documents"),
        ("POST", "/api/documents"),
        ("GET", f"/api/documents/{uuid.uuid4()}"),
        ("DELETE", f"/api/documents/{uuid.uuid4()}"),
        ("GET", "/api/search?q=x"),
    ],
)
def test_nothing_without_login(stranger: Client, method: str, path: str) -> None:
    """Every route but login, logout and the description wants a session."""
    assert_problem(stranger.request(method, path), 401, "not-logged-in")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": f"{ORIGIN}.evil.test"},
        {"Origin": ORIGIN.replace("https", "http")},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.test", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_other_sites_cannot_act(client: Client, headers: dict[str, str]) -> None:
    """A request that changes something is refused when a browser sends it for another site, valid cookie or not."""
    for method, path in (("POST", "/api/documents"), ("DELETE", f"/api/documents/{uuid.uuid4()}"), ("POST", "/api/login")):
        assert_problem(client.request(method, path, headers=headers), 403, "foreign-origin")


def test_own_site_can_act(client: Client) -> None:
    """The frontend's own requests pass."""
    headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
    assert client.request("DELETE", f"/api/documents/{uuid.uuid4()}", headers=headers).status_code == 404
    # A link on another site may be followed: it changes nothing.
    assert client.get("/api/documents", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_cors_is_closed(client: Client) -> None:
    """No other origin is told that it may read."""
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": "https://evil.test", "Access-Control-Request-Method": "GET"}
        answer = client.request(method, "/api/documents", headers=headers)
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_cors_opens_for_those_named(platform: Platform, token: str, clean: None) -> None:
    """An origin that the operator names may read and act, another may not."""
    path = str(platform.run / "cors.sock")
    app = start_backend(platform, UDS_PATH=path, CORS_ALLOW_ORIGINS="https://friend.test")
    member = connect(path, token)
    friend = member.get("/api/documents", headers={"Origin": "https://friend.test"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.test"
    assert member.post("/api/logout", headers={"Origin": "https://evil.test"}).status_code == 403
    evil = member.get("/api/documents", headers={"Origin": "https://evil.test"})
    assert "access-control-allow-origin" not in evil.headers
    app.kill()


def test_errors_are_problems(client: Client) -> None:
    """Unknown addresses, wrong methods and wrong input are all answered with problem details."""
    assert_problem(client.get("/api/nothing"), 404, "no-such-route")
    assert_problem(client.get("/nothing"), 404, "no-such-route")
    wrong_method = client.request("PUT", "/api/documents")
    assert_problem(wrong_method, 405, "method-not-allowed")
    assert wrong_method.headers["allow"] == "GET, POST"
    assert_problem(client.get("/api/documents/not-an-id"), 404, "no-such-document")
    assert_problem(client.get(f"/api/documents/{uuid.uuid4()}"), 404, "no-such-document")
    assert_problem(client.request("DELETE", f"/api/documents/{uuid.uuid4()}"), 404, "no-such-document")
    for query in ("", "?q=", "?q=x&limit=0", "?q=x&limit=51", "?q=x&limit=many", "?q=%21%3F", f"?q={'x' * 1001}"):
        assert_problem(client.get(f"/api/search{query}"), 422, "invalid")


def test_invalid_login_does_not_repeat_the_password(stranger: Client) -> None:
    """Wrong input is named by its place, never by its value."""
    answer = stranger.post("/api/login", json={"username": "", "password": "hunter2" * 200})
    problem = assert_problem(answer, 422, "invalid")
    assert [error["where"] for error in problem["errors"]] == ["body.username", "body.password"]
    assert "hunter2" not in answer.text
    typed_wrongly = stranger.post("/api/login", content="username=a", headers={"Content-Type": "text/plain"})
    assert_problem(typed_wrongly, 415, "unsupported-type")
    assert_problem(stranger.post("/api/login", content="{", headers={"Content-Type": "application/json"}), 422, "invalid")


def test_internal_error_tells_nothing_but_the_trace(client: Client, platform: Platform, backend: App) -> None:
    """A fault of ours is a problem with a trace id; what happened stands in the log, not in the answer."""
    with platform.superuser() as connection:
        connection.execute("ALTER TABLE documents ADD CONSTRAINT refuse CHECK (filename <> 'fault.txt')")
    try:
        problem = assert_problem(client.upload("text", "fault.txt"), 500, "internal")
    finally:
        with platform.superuser() as connection:
            connection.execute("ALTER TABLE documents DROP CONSTRAINT refuse")
    assert "refuse" not in json.dumps(problem) and problem["trace_id"] in problem["detail"]
    (line,) = backend.logged("unhandled error", trace_id=problem["trace_id"])
    assert "CheckViolation" in line["exception"]


def test_upload_is_accepted(client: Client, platform: Platform) -> None:
    """A text document is answered with 202, its id and where to ask; file and row are there."""
    answer = client.upload("Grüße aus dem Audit.\n", "../bericht 1.txt")
    assert answer.status_code == 202 and answer.json()["status"] == "queued"
    document_id = answer.json()["id"]
    assert answer.headers["location"] == f"/api/documents/{document_id}"
    document = client.document(document_id)
    assert (document["status"], document["reason"], document["filename"]) == ("queued", None, "bericht 1.txt")
    assert document["size_bytes"] == len("Grüße aus dem Audit.\n".encode())
    assert platform.objects.get(f"documents/{document_id}", 100).decode() == "Grüße aus dem Audit.\n"
    assert [item["id"] for item in client.get("/api/documents").json()] == [document_id]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.md", "text/markdown", "text/markdown"),
        ("a.md", "application/octet-stream", "text/markdown"),
        ("a.txt", "text/plain; charset=UTF-8", "text/plain"),
        ("a.csv", "text/csv", "text/csv"),
    ],
)
def test_kinds_of_text(client: Client, name: str, kind: str, expected: str) -> None:
    """Plain text, Markdown and CSV are accepted, also from browsers that do not know the suffix."""
    answer = client.upload("some words", name, kind)
    assert client.document(answer.json()["id"])["content_type"] == expected


@pytest.mark.parametrize(
    ("content", "name", "kind", "status", "problem"),
    [
        (b"%PDF-1.7", "a.pdf", "application/pdf", 415, "unsupported-type"),
        (b"text", "a.bin", "application/octet-stream", 415, "unsupported-type"),
        (b"text", "a.txt", "text/plain; charset=iso-8859-1", 415, "unsupported-type"),
        (b"<p>", "a.html", "text/html", 415, "unsupported-type"),
        (b"\x7fELF\x00\x01", "a.txt", "text/plain", 415, "binary"),
        (b"gr\xfc\xdfe", "a.txt", "text/plain", 422, "not-utf-8"),
        (b"cut \xe2\x82", "a.txt", "text/plain", 422, "not-utf-8"),
        (b"", "a.txt", "text/plain", 422, "empty"),
        (b"\xef\xbb\xbf \n\t\r\n", "a.txt", "text/plain", 422, "empty"),
        (b"x" * (2 * 1024 * 1024 + 1), "a.txt", "text/plain", 413, "too-large"),
        (b"x" * (3 * 1024 * 1024), "a.txt", "text/plain", 413, "too-large"),
    ],
)
def test_refused_uploads(client: Client, platform: Platform, content: bytes, name: str, kind: str, status: int, problem: str) -> None:
    """What is no text, not UTF-8, empty or too large is refused with the reason, and leaves nothing behind."""
    assert_problem(client.upload(content, name, kind), status, problem)
    assert client.get("/api/documents").json() == []
    with platform.superuser() as connection:
        assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


def test_largest_upload_is_accepted(client: Client) -> None:
    """The limit itself is still allowed."""
    assert client.upload(b"word " * (2 * 1024 * 1024 // 5)).status_code == 202


def test_undeclared_length_is_limited(client: Client) -> None:
    """A body that does not say how long it is gets cut off at the limit."""

    def pieces() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
        for _ in range(48):
            yield b"x" * 65536
        yield b"\r\n--b--\r\n"

    answer = client.post("/api/documents", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert_problem(answer, 413, "too-large")


def test_wrong_forms(client: Client) -> None:
    """A body that is no form, or a form without the file, is answered with what to send."""
    assert_problem(client.post("/api/documents", json={"file": "x"}), 415, "unsupported-type")
    assert_problem(client.post("/api/documents", files={"other": ("a.txt", b"x", "text/plain")}), 422, "no-file")
    no_boundary = client.post("/api/documents", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert_problem(no_boundary, 400, "bad-request")
    assert_problem(client.post("/api/login", content=b"x" * 70_000), 413, "too-large")


def test_list_goes_on_where_it_ended(client: Client) -> None:
    """The list is newest first and can be read page by page."""
    ids = [client.accepted(f"text {number}") for number in range(5)]
    first = [item["id"] for item in client.get("/api/documents?limit=2").json()]
    rest = [item["id"] for item in client.get(f"/api/documents?limit=100&before={first[-1]}").json()]
    assert first + rest == ids[::-1]


def test_description(stranger: Client) -> None:
    """The API describes itself, problems included, to anybody."""
    description = stranger.get("/api/openapi.json").json()
    assert {"/api/login", "/api/documents", "/api/documents/{document_id}", "/api/search"} <= set(description["paths"])
    upload = description["paths"]["/api/documents"]["post"]
    assert "multipart/form-data" in upload["requestBody"]["content"]
    assert "application/problem+json" in upload["responses"]["413"]["content"]
    assert "ProblemDetails" in description["components"]["schemas"]


def test_search_finds_the_nearest_first(client: Client, worker: App) -> None:
    """Passages come back with their distance, nearest first, as many as asked for."""
    texts = {
        "invoices": "Invoices above ten thousand euros need the approval of two managers before payment.",
        "passwords": "Passwords of administrators are rotated every ninety days and stored in the vault.",
        "backups": "Backups of the database are encrypted and restored once a week for a test.",
    }
    ids = {name: client.accepted(text, f"{name}.txt") for name, text in texts.items()}
    client.wait_until_done(*ids.values())
    for question, expected in (
        ("Who has to approve an invoice?", "invoices"),
        ("How often are the administrators' passwords rotated?", "passwords"),
        ("Are database backups encrypted?", "backups"),
    ):
        hits = client.get("/api/search", params={"q": question}).json()
        assert [set(hit) for hit in hits] == [{"document_id", "filename", "passage", "distance"}] * 3
        assert hits[0]["document_id"] == ids[expected] and hits[0]["passage"] == texts[expected]
        distances = [hit["distance"] for hit in hits]
        assert distances == sorted(distances) and 0 <= distances[0] < distances[1] <= 2
    assert len(client.get("/api/search?q=database&limit=1").json()) == 1
    exact = client.get("/api/search", params={"q": texts["backups"]}).json()
    assert exact[0]["distance"] == pytest.approx(0, abs=1e-5)


def test_search_uses_the_index(platform: Platform, clean: None) -> None:
    """The search's order and operator are the HNSW index's, so that it is used where there is much to search."""
    with platform.superuser() as connection:
        connection.execute("SET enable_seqscan = off")
        vector = "[" + ",".join(["0.05"] * 384) + "]"
        plan = connection.execute(f"EXPLAIN SELECT passage FROM chunks ORDER BY embedding <=> '{vector}'::vector LIMIT 5").fetchall()
    assert "chunks_embedding" in str(plan)


def test_deleting_takes_everything_away(client: Client, platform: Platform, worker: App) -> None:
    """A deleted document is gone from list and search at once, and its file from the bucket soon after."""
    document_id = client.accepted("The quarterly report mentions zebras.")
    client.wait_until_done(document_id)
    assert client.get("/api/search?q=zebras").json()
    assert client.request("DELETE", f"/api/documents/{document_id}").status_code == 204
    assert_problem(client.get(f"/api/documents/{document_id}"), 404, "no-such-document")
    assert client.get("/api/search?q=zebras").json() == []
    wait_for(lambda: worker.logged("object removed", object_key=f"documents/{document_id}"), "the object to go")
    with pytest.raises(Exception, match=document_id):
        platform.objects.get(f"documents/{document_id}", 100)
    assert_problem(client.request("DELETE", f"/api/documents/{document_id}"), 404, "no-such-document")
