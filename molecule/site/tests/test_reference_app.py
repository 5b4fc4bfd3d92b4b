"""The reference application on a whole host: used over TLS, and not one accepted document lost to a fault."""

from __future__ import annotations

import uuid

from testinfra.host import Host

from tools.application import Application, wait_until

PSQL = "runuser -u postgres -- psql --dbname smart_audit --no-psqlrc --tuples-only --no-align --command"


def _finding() -> tuple[str, str]:
    """Make a document that nothing else resembles, and a question that only it answers."""
    words = [f"zq{uuid.uuid4().hex[:10]}" for _ in range(12)]
    return " ".join(["Finding:", *words * 3]), " ".join(words[:8])


def _container(host: Host, service: str) -> str:
    return host.check_output(f"docker ps --all --quiet --filter label=com.docker.compose.service={service}")


def test_upload_and_ask(application: Application) -> None:
    """A person uploads a document, asks a question, and gets the nearest passage of that document first."""
    text, question = _finding()
    document = application.upload(text)
    application.wait_done(document)
    found = application.search(question)
    assert found[0]["document_id"] == document
    assert found[0]["distance"] == min(passage["distance"] for passage in found)
    assert application.call("DELETE", f"/api/documents/{document}").status == 204
    assert document not in {passage["document_id"] for passage in application.search(question)}


def test_session_cookie(application: Application) -> None:
    """The session's cookie is sent over TLS only, not to other sites, and is out of reach of scripts."""
    cookie = application.login().headers["Set-Cookie"].lower()
    for flag in ("secure", "httponly", "samesite="):
        assert flag in cookie


def test_strangers_are_refused(application: Application) -> None:
    """Without a session nothing is answered but the login, and problems are told as RFC 9457 asks."""
    stranger = Application(application.address, application.context, "")
    for path in ("/api/documents", "/api/search?q=x"):
        answer = stranger.call("GET", path)
        assert answer.status == 401
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert answer.json["status"] == 401
    for path in ("/metrics", "/healthz", "/readyz", "/api/metrics"):
        assert stranger.call("GET", path).status in (401, 404), path


def test_killed_worker(host: Host, application: Application) -> None:
    """Documents that were accepted are processed exactly once, although the worker is killed while it works on them."""
    findings = [_finding() for _ in range(6)]
    documents = []
    for number, (text, _) in enumerate(findings):
        documents.append(application.upload(f"{text} " * 100))
        if number % 2:
            host.run(f"docker kill {_container(host, 'worker-1')}")
    application.wait_done(*documents, patience_seconds=120)
    for document, (_, question) in zip(documents, findings, strict=True):
        assert application.search(question)[0]["document_id"] == document
    identities = ", ".join(f"'{document}'" for document in documents)
    stored = "select count(*) from chunks where document_id = documents.id"
    wrong = f"select count(*) from documents where id in ({identities}) and passages <> ({stored})"
    assert host.check_output(f'{PSQL} "{wrong}"') == "0"


def test_flushed_queue(host: Host, application: Application) -> None:
    """Documents that were accepted are processed although the queue is emptied behind the application's back."""
    host.check_output("timeout 60 systemctl stop valkey-server.service")
    host.check_output("rm -rf /var/lib/valkey/appendonlydir /var/lib/valkey/dump.rdb")
    host.check_output("timeout 60 systemctl start valkey-server.service")
    text, question = _finding()
    wait_until(application.answers, "an answer after the queue was lost")
    document = application.upload(text)
    application.wait_done(document, patience_seconds=90)
    assert application.search(question)[0]["document_id"] == document


def test_restarts_of_services(host: Host, application: Application) -> None:
    """The application answers again by itself after each service below it was restarted."""
    for unit in ("pgbouncer.service", "valkey-server.service", "postgresql@17-main.service", "object-store.service", "caddy.service"):
        host.check_output(f"timeout 90 systemctl restart {unit}")
        wait_until(application.answers, f"an answer after the restart of {unit}")
    text, question = _finding()
    document = application.upload(text)
    application.wait_done(document)
    assert application.search(question)[0]["document_id"] == document


def test_killed_backend(host: Host, application: Application) -> None:
    """While one backend is killed the other answers, and the killed one comes back."""
    host.check_output(f"docker kill {_container(host, 'backend-1')}")
    for _ in range(20):
        assert application.call("GET", "/api/documents").status == 200
    state = f"docker inspect --format {{{{.State.Health.Status}}}} {_container(host, 'backend-1')}"
    wait_until(lambda: host.check_output(state) == "healthy", "the return of a killed backend")
