"""What `holdfast rebuild` decides: which host it refuses, what it brings back once only, and what it calls an answer."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

from holdfast import fingerprint, idle, lock, offsite, postgres, rebuild, restore
from holdfast.failure import Failure
from holdfast.fingerprint import Fingerprint
from holdfast.offsite import Copied
from holdfast.proof import Proof
from holdfast.rclone import Bucket
from holdfast.rebuild import PARTS, Question, Site, State
from tools.shell import ROOT, VENV_BIN

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
    monkeypatch.setattr(rebuild, "APPLICATION_UNIT", tmp_path / "app@.service")
    monkeypatch.setattr(idle, "busy", lambda _: [])
    monkeypatch.setattr(restore, "FOLDER", tmp_path / "restore")
    monkeypatch.setattr(restore, "STATE", tmp_path / "restore.json")
    monkeypatch.setattr(restore, "CONFIG", tmp_path / "etc" / "postgresql.conf")
    monkeypatch.setattr(restore, "PRIVATE", tmp_path / "run")


@pytest.fixture(name="brought")
def _brought(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a bucket with a copy of everything, and note what is brought back from it."""
    found: list[str] = []

    def database(text: str, *, new_host: bool) -> Proof:
        assert new_host
        found.append("database" if text == "latest" else f"database {text}")
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


def test_rebuild_that_runs_is_not_begun_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside a rebuild nor beside a restore is anything looked at or taken away: both go on when the connection is cut."""
    (tmp_path / "restore").mkdir()
    restore.STATE.write_text(json.dumps({"target": "latest", "new_host": True}))
    for call in (rebuild.look, rebuild.clear):
        with lock.alone(restore.FOLDER, "held"), pytest.raises(Failure, match="`holdfast restore status` says how far the database is"):
            call()
    monkeypatch.setattr(idle, "busy", lambda patterns: patterns)
    for call in (rebuild.look, rebuild.clear):
        with pytest.raises(Failure, match=r"The host is being rebuilt.*`journalctl --unit holdfast-rebuild\.service`"):
            call()
    assert restore.STATE.exists()


@pytest.fixture(name="half")
def _half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Have half a database, as a new host's restore leaves it that was cut short; note which programs are run."""
    found: list[tuple[str, ...]] = []
    for path in (postgres.DATA / "PG_VERSION", restore.CONFIG):
        path.parent.mkdir(parents=True)
        path.touch()
    restore.STATE.write_text(json.dumps({"target": "latest", "step": "restore the backup", "new_host": True}))
    State(time.time(), {"host": 1, "certificates": 1, "release": 1}).write()

    def run(words: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        found.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_half_a_database_is_taken_away(half: list[tuple[str, ...]]) -> None:
    """Where a restore was cut short, the server is made anew, once; what is written to it from then on is refused like any other's rows."""
    assert rebuild.clear() == "changed"
    assert half == [("systemctl", "stop", restore.UNIT), ("pg_createcluster", "17", "main")]
    assert not postgres.DATA.exists() and not restore.CONFIG.parent.exists()
    assert "is not finished; done so far: host, certificates, release" in rebuild.look()
    assert rebuild.clear() == "unchanged"
    assert len(half) == 2


@pytest.mark.parametrize("part", ["complete", "finished"])
def test_whole_database_stays(half: list[tuple[str, ...]], part: str) -> None:
    """What a restore has brought back whole is never taken away, and neither is a server that was not a new host's."""
    for state in ({"new_host": True, part: True}, {"new_host": False}):
        restore.STATE.write_text(json.dumps({"target": "latest", **state}))
        assert rebuild.clear() == "unchanged"
    assert half == [] and (postgres.DATA / "PG_VERSION").exists()


def test_half_a_database_that_somebody_uses_stays(half: list[tuple[str, ...]], brought: list[str]) -> None:
    """Where the application came to a host whose restore was cut short, nothing is replaced: it may have written rows."""
    rebuild.APPLICATION_UNIT.touch()
    for call in (rebuild.look, rebuild.clear, lambda: rebuild.run(SETTINGS, 1)):
        with pytest.raises(Failure, match="the application has been installed since"):
            call()
    assert half == [] and brought == [] and (postgres.DATA / "PG_VERSION").exists()


def test_server_that_can_not_be_made_anew(half: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is told, and the next run of the playbook does it again."""
    done = subprocess.CompletedProcess("", 1, "", "Error: no space left")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(Failure, match=r"`systemctl stop \S+` failed \(Error: no space left\).*Run playbooks/rebuild\.yml again"):
        rebuild.clear()
    assert (postgres.DATA / "PG_VERSION").exists() and restore.STATE.exists()


def test_upgrades_wait_for_every_long_command() -> None:
    """Upgrades and reboots wait for each unit in which a role starts a long command of ours."""
    started = {
        f"{word.removeprefix('--unit=')}.service"
        for file in ROOT.glob("roles/*/tasks/*.yml")
        for word in file.read_text(encoding="utf-8").split()
        if word.startswith("--unit=holdfast-")
    }
    waited_for = yaml.safe_load((ROOT / "roles" / "base" / "defaults" / "main.yml").read_text(encoding="utf-8"))["base_uninterrupted_units"]
    assert "holdfast-rebuild.service" in started
    assert started <= set(waited_for)


def test_plan_opens_the_bucket_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bucket has to bring back is told part by part, also what it has no copy of."""
    copies = MagicMock()
    copies.backups.return_value, copies.dumps.return_value = ["20261126-010203F"], []
    copies.tool.entries.return_value = [{"Size": 30}]
    copies.kept.side_effect = lambda part: ["20261126T010203Z-abc"] if part == "release" else []
    opened = MagicMock()
    opened.return_value.__enter__.return_value = copies
    monkeypatch.setattr(offsite, "offsite", opened)
    assert rebuild.plan(SETTINGS)[-3:] == [
        "Documents: 1, 30 bytes.",
        "Certificates: the bucket has no copy, so the proxy gets new ones.",
        "Release: as of 2026-11-26 01:02:03+00.",
    ]
    opened.assert_called_once()


def test_another_target_goes_on_where_latest_is_refused(brought: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who accepts what a gap in the archive costs gets the rest back; what was recorded after the gap is not asked for."""
    whole = restore.run
    monkeypatch.setattr(restore, "run", MagicMock(side_effect=Failure("A segment is missing.")))
    with pytest.raises(Failure, match=r"A segment is missing\. Run playbooks/rebuild\.yml again"):
        rebuild.run(SETTINGS, 1)
    monkeypatch.setattr(restore, "run", whole)
    state = rebuild.run(SETTINGS, 1, "until-gap")
    assert brought == ["certificates", "release", "database until-gap", "documents"]
    assert "it is back at until-gap, as was asked for" in "\n".join(state.lines())
    for name in ("_compare_rows", "_compare_documents", "_compare_release"):
        monkeypatch.setattr(rebuild, name, lambda _, name=name: ([f"{name} held"], []))
    monkeypatch.setattr(rebuild, "_compare_certificate", lambda *_: [])
    monkeypatch.setattr(offsite, "offsite", MagicMock())
    checked = rebuild.check(SETTINGS, {"url": "https://app.test", "ca_file": "", "questions": []}, 1)
    assert checked.said["check"][1:] == ["_compare_documents held", "_compare_release held"]
    assert checked.said["check"][0].startswith("Rows: not compared")


def test_restored_by_hand(brought: list[str]) -> None:
    """What a person has restored on the host is what the rebuild goes on with."""
    restore.STATE.write_text(json.dumps({"target": "until-gap", "new_host": True, "finished": True}))
    rebuild.run(SETTINGS, 1)
    assert "database" not in brought
    found = State.read()
    assert found and found.target == "until-gap"


@pytest.mark.parametrize(
    ("target", "said"),
    [("yesterday", "The target 'yesterday' is none"), ("2026-11-23 10:15:00", "has no time zone"), ("latest 10:15", "is none")],
)
def test_target_that_is_none_is_refused_first(target: str, said: str) -> None:
    """A target that is none is refused while nothing was touched, and again where the bucket is asked."""
    for call in (lambda: rebuild.look(target), lambda: rebuild.plan(SETTINGS, target)):
        with pytest.raises(Failure, match=said):
            call()


@pytest.mark.parametrize("role", ["restore", "disaster_recovery"])
def test_time_on_the_command_line_stays_whole(tmp_path: Path, role: str) -> None:
    """Of `-e disaster_recovery_target='2026-11-23 10:15:00+00'` Ansible makes two variables, and the role one time again."""
    moment, name = "2026-11-23 10:15:00+00", f"{role}_target"
    for step in ("plan", "run"):
        assert not re.search(rf"(?<!_){name}\b", (ROOT / "roles" / role / "tasks" / f"{step}.yml").read_text(encoding="utf-8"))
    play = {
        "name": "Play",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars_files": [str(ROOT / "roles" / role / "vars" / "main.yml")],
        "tasks": [{"name": "Say", "ansible.builtin.debug": {"msg": f"<{{{{ __{name} }}}}>"}}],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    words = [str(VENV_BIN / "ansible-playbook"), "-i", "localhost,", str(tmp_path / "play.yml"), "-e", f"{name}={moment}"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert f"<{moment}>" in said.stdout, said.stdout + said.stderr


def print_of(*buckets: tuple[int, str]) -> Fingerprint:
    """Return the fingerprint of a table."""
    return Fingerprint("9", {"public.rows": {str(number): bucket for number, bucket in enumerate(buckets)}})


@pytest.mark.parametrize(
    ("after", "holds", "faults"),
    [
        pytest.param(print_of((2, "5"), (1, "7")), "Rows: 3 have the checksums that the lost host recorded", "", id="the same"),
        pytest.param(print_of((1, "2"), (1, "7")), "; 1 have changed since", "", id="one was deleted"),
        pytest.param(
            print_of((2, "6"), (1, "7")),
            "",
            "Rows of public.rows (1 of 64 buckets of rows) in shop are not what the lost host",
            id="damaged",
        ),
        pytest.param(print_of((2, "5"), (3, "7")), "", "Rows of public.rows", id="more of them"),
    ],
)
def test_rows_are_compared(monkeypatch: pytest.MonkeyPatch, after: Fingerprint, holds: str, faults: str) -> None:
    """Rows that nobody changed since have the checksums that were recorded."""
    copies = MagicMock()
    copies.manifest.return_value = {"time": 0, "databases": {"shop": print_of((2, "5"), (1, "7")).dump()}}
    monkeypatch.setattr(fingerprint, "again", lambda name, before: after)
    said, wrong = rebuild._compare_rows(copies)
    assert holds in " ".join(said) and faults in " ".join(wrong)
    assert (len(said), len(wrong)) == ((0, 1) if faults else (1, 0))
    copies.dumps.return_value = []
    assert rebuild._compare_rows(copies)[1] == []


HISTORY = "1\t0/5000000\tbefore 2026-11-25 20:00:00+00\n\n2\t0/9000000\tno recovery target specified\n"


@pytest.mark.parametrize(
    ("timeline", "lsn", "compared"),
    [
        pytest.param(1, "0/4FFFFFF", True, id="before a restore went back"),
        pytest.param(1, "0/5000001", False, id="given up by a restore"),
        pytest.param(2, "0/9000000", True, id="up to the loss"),
        pytest.param(2, "1/0", False, id="lost with the host"),
        pytest.param(3, "0/A000000", True, id="the rebuilt host's own"),
        pytest.param(4, "0/1", False, id="on another way"),
    ],
)
def test_only_rows_of_this_past_are_compared(monkeypatch: pytest.MonkeyPatch, timeline: int, lsn: str, *, compared: bool) -> None:
    """Checksums of a past that a restore gave up after they were recorded say nothing of what is back, so the rebuild can end green."""
    copies = MagicMock()
    position = {"timeline": timeline, "lsn": lsn}
    copies.manifest.return_value = {"time": 0, "position": position, "databases": {"shop": print_of((2, "5")).dump()}}
    monkeypatch.setattr(postgres, "psql", lambda _: json.dumps(["00000003", "0/A000100", HISTORY]))
    monkeypatch.setattr(fingerprint, "again", lambda name, before: print_of((3, "7")))
    said, wrong = rebuild._compare_rows(copies)
    assert bool(wrong) == compared
    assert compared or "not compared, as the lost host recorded checksums at 1970-01-01 00:00:00+00, on a past that was given up" in said[0]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([{"Path": "a", "Size": 3}, {"Path": "b", "Size": 4}], "Documents: each of the 1 copied is there in its size"),
        ([{"Path": "a", "Size": 2}], "1 documents are not what was copied, such as a: `holdfast offsite restore documents`"),
        ([], "1 documents are not what was copied, such as a"),
    ],
)
def test_documents_are_compared(there: list[dict[str, object]], said: str) -> None:
    """Each document that was copied is there in its size; what else is there is newer."""
    copies = MagicMock(settings=SETTINGS)
    copies.tool.entries.side_effect = lambda where, recursive: [{"Path": "a", "Size": 3}] if where == offsite.CURRENT else there
    found = rebuild._compare_documents(copies)
    assert said in " ".join(found[0] + found[1]) and bool(found[1]) == ("are not" in said)
    copies.settings = offsite.Settings(BUCKET, "/offsite", "p")
    assert rebuild._compare_documents(copies) == ([], [])


@pytest.mark.parametrize(
    ("live", "said"),
    [("blue", "Release: blue of app@1 is live, as it was."), ("green", "The live release is green of {'app': 'app@1'}, and was blue of")],
)
def test_release_is_compared(tmp_path: Path, live: str, said: str) -> None:
    """The release that was live is live."""
    release = {"colour": "blue", "images": {"app": "app@1"}}
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "release.json").write_text(json.dumps({**release, "colour": live}))
    copies = MagicMock()
    copies.settings.app_path = str(tmp_path)
    copies.newest.return_value = json.dumps(release).encode()
    holds, wrong = rebuild._compare_release(copies)
    assert said in " ".join(holds + wrong) and bool(wrong) == (live != "blue")
    copies.kept.return_value = []
    assert rebuild._compare_release(copies) == ([], [])


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
