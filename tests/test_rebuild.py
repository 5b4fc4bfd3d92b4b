"""What `holdfast rebuild` decides: which host it refuses, what it brings back once only, and what it calls an answer."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from holdfast import offsite, postgres, rebuild, restore
from holdfast.failure import Failure
from holdfast.offsite import Copied
from holdfast.proof import Proof
from holdfast.rclone import Bucket
from holdfast.rebuild import PARTS, Question, Site, State

BUCKET = Bucket("s3.test", "r", "backups", "k", "s")
SETTINGS = offsite.Settings(BUCKET, "/offsite", "p", documents=BUCKET)


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a host on which nothing is."""
    monkeypatch.setattr(rebuild, "FOLDER", tmp_path / "rebuild")
    monkeypatch.setattr(rebuild, "STATE", tmp_path / "rebuild" / "state.json")
    monkeypatch.setattr(rebuild, "CLUSTERS", tmp_path / "postgresql")
    monkeypatch.setattr(rebuild, "LIVE", tmp_path / "app" / "live")
    monkeypatch.setattr(postgres, "DATA", tmp_path / "postgresql" / "17" / "main")
    monkeypatch.setattr(restore, "STATE", tmp_path / "restore.json")
    monkeypatch.setattr(restore, "PRIVATE", tmp_path / "run")


@pytest.fixture(name="brought")
def _brought(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a bucket with a copy of everything, and note what is brought back from it."""
    found: list[str] = []

    def database(text: str, *, new_host: bool) -> Proof:
        assert (text, new_host) == ("latest", True)
        found.append("database")
        return Proof({"shop": {"public.rows": 7}}, ["7 rows of 1 tables were read"])

    def copy(_: offsite.Settings, what: str) -> Copied:
        found.append(what)
        return Copied(3, 30)

    monkeypatch.setattr(restore, "run", database)
    monkeypatch.setattr(offsite, "restore", copy)
    monkeypatch.setattr(rebuild, "kept", lambda *_: ["20261126T010203Z-abc"])
    return found


def test_bare_host_is_new() -> None:
    assert rebuild.look() == "The host is new."


@pytest.mark.parametrize(
    ("made", "said"),
    [
        pytest.param("postgresql/17/main/PG_VERSION", "a server that does not run", id="stopped server"),
        pytest.param("postgresql/16/main/PG_VERSION", "another PostgreSQL server's data", id="another cluster"),
        pytest.param("app/live/release.json", "names a release", id="live release"),
    ],
)
def test_host_in_use_is_refused(tmp_path: Path, made: str, said: str) -> None:
    """A host on which something could be lost is refused in a sentence."""
    (tmp_path / made).parent.mkdir(parents=True)
    (tmp_path / made).touch()
    with pytest.raises(Failure, match=said):
        rebuild.look()


def test_tables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database with tables is somebody's; an empty one is what the role postgresql has just made."""
    monkeypatch.setattr(restore, "_answers", lambda: True)
    tables: dict[str, dict[str, int]] = {"shop": {}}
    monkeypatch.setattr("holdfast.proof.count", lambda _: tables)
    assert rebuild.look() == "The host is new."
    tables["shop"]["public.rows"] = 0
    with pytest.raises(Failure, match="The database shop of this host has 1 tables, so the host is not new"):
        rebuild.look()


def test_restore_cut_short_goes_on(tmp_path: Path) -> None:
    """A server that a rebuild's own restore left half done is no reason to refuse."""
    (tmp_path / "postgresql" / "17" / "main").mkdir(parents=True)
    (tmp_path / "postgresql" / "17" / "main" / "PG_VERSION").touch()
    restore.STATE.write_text(json.dumps({"target": "latest", "new_host": True}))
    assert rebuild.look() == "The host is new."


def test_everything_is_brought_back_in_order(brought: list[str]) -> None:
    """The certificates and the release are there before the proxy and the application start, and the state says what is done."""
    restore.PRIVATE.mkdir()
    (restore.PRIVATE / "log").write_text("LOG:  last completed transaction was at log time 2026-11-26 02:20:59.489496+00\n")
    state = rebuild.run(SETTINGS, 12.5)
    assert brought == list(PARTS)
    assert state.seconds["host"] == 12.5
    text = "\n".join(state.lines())
    assert "Certificates: as of 2026-11-26 01:02:03+00." in text and "7 rows" in text and "in all" in text
    assert "all that was archived is back, the last one of 2026-11-26 02:20:59.489496+00;" in text
    assert "is not finished; done so far: host, certificates, release, database, documents" in rebuild.look()


def test_goes_on_where_it_ended(brought: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is back is not brought back twice, and the sentence says what to do."""

    def cut(*_: object, **__: object) -> Proof:
        raise Failure("The bucket is away.")

    whole = restore.run
    monkeypatch.setattr(restore, "run", cut)
    with pytest.raises(
        Failure, match=r"The database could not be brought back \(certificates, release are\)\. The bucket is away\. Run .* again"
    ):
        rebuild.run(SETTINGS, 1)
    monkeypatch.setattr(restore, "run", whole)
    rebuild.run(SETTINGS, 2)
    assert brought == list(PARTS)


def test_restored_database_is_not_restored_again(brought: list[str]) -> None:
    """A power cut between the restore and the note of it costs nothing."""
    restore.STATE.write_text(json.dumps({"target": "latest", "new_host": True, "finished": True}))
    State(time.time(), {"certificates": 1, "release": 1}).write()
    rebuild.run(SETTINGS, 1)
    assert brought == ["documents"]


def test_finished_rebuild_is_never_begun_again(brought: list[str]) -> None:
    """A host that was rebuilt is in use."""
    State(time.time(), dict.fromkeys(PARTS, 1.0), finished=time.time()).write()
    for call in (rebuild.look, lambda: rebuild.run(SETTINGS, 1)):
        with pytest.raises(Failure, match="is in use since"):
            call()
    assert brought == []


def test_host_that_made_no_copy(brought: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was lost before its first copies comes back without them, and says so."""
    monkeypatch.setattr(rebuild, "kept", lambda *_: [])
    state = rebuild.run(offsite.Settings(BUCKET, "/offsite", "p"), 1)
    assert brought == ["database"]
    assert state.said["certificates"] == ["Certificates: the bucket has no copy, so the proxy gets new ones."]
    assert state.said["documents"] == []


def test_nothing_to_check() -> None:
    with pytest.raises(Failure, match="Nothing was brought back yet"):
        rebuild.check(SETTINGS, {}, 1)


def test_damaged_state(tmp_path: Path) -> None:
    (tmp_path / "rebuild").mkdir()
    rebuild.STATE.write_text("{")
    with pytest.raises(Failure, match="nobody knows what was brought back"):
        rebuild.look()


class _Application(BaseHTTPRequestHandler):
    """Logs in whoever sends the right JSON from its own origin, and answers with a cookie only."""

    starting = 0

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Log in."""
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        right = sent == {"password": "p"} and self.headers["Origin"] == "https://app.test:8443"
        self._answer(200 if right else 401, "session=secret; Path=/; Secure; HttpOnly")

    def do_GET(self) -> None:
        """Answer a search."""
        if type(self).starting:
            type(self).starting -= 1
            self._answer(503)
        else:
            self._answer(200 if self.headers["Cookie"] == "session=secret" and self.path == "/search?q=x" else 401)

    def _answer(self, status: int, cookie: str = "") -> None:
        self.send_response(status)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")


@pytest.fixture(scope="module", name="served")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, tuple[str, int]]]:
    """Serve an application under a name that no DNS knows; give its authority and its address."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=app.test", "-addext", "subjectAltName=DNS:app.test", "-keyout", folder / "key", "-out", folder / "crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = HTTPServer(("127.0.0.1", 0), _Application)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield str(folder / "crt"), ("127.0.0.1", server.server_address[1])
    server.shutdown()
    server.server_close()


LOGIN = Question("/login", "POST", {"password": "p"})
SEARCH = Question("/search?q=x")


def test_application_answers(served: tuple[str, tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cookie of the login is sent with the search, and an application that is still starting is waited for."""
    monkeypatch.setattr(rebuild, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(_Application, "starting", 2)
    site = Site("https://app.test:8443", served[0], served[1])
    assert site.ask(LOGIN).startswith("POST /login answered 200 over TLS with 2 bytes")
    assert site.ask(SEARCH).startswith("GET /search answered 200")
    assert ssl.DER_cert_to_PEM_cert(site.certificate) == Path(served[0]).read_text()


def test_refusal_is_no_answer(served: tuple[str, tuple[str, int]]) -> None:
    with pytest.raises(Failure, match=r"https://app\.test:8443/search answers 401 to GET, and 200 was expected"):
        Site("https://app.test:8443", served[0], served[1]).ask(SEARCH)


def test_silence_is_no_answer(served: tuple[str, tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "ANSWER_SECONDS", 0)
    with pytest.raises(Failure, match="does not answer"):
        Site("https://app.test", served[0], ("127.0.0.1", 9)).ask(SEARCH)


def test_certificate_of_another_name(served: tuple[str, tuple[str, int]]) -> None:
    """A certificate that does not hold for the name is told, and no login is sent."""
    with pytest.raises(Failure, match=r"The certificate of other\.test does not hold"):
        Site("https://other.test", served[0], served[1]).ask(LOGIN)
    with pytest.raises(Failure, match="no readable file of certificates"):
        Site("https://app.test", "/nowhere.crt")
