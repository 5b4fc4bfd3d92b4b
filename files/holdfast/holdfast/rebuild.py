"""`holdfast rebuild`: bring back onto a new host, out of the bucket, what a lost one had.

Each part is done once: the state on disk says which are, so a rebuild that ended halfway goes on where it was, and one that is finished
is never begun again.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from holdfast import durable, fingerprint, idle, lock, offsite, postgres, restore
from holdfast.failure import Failure
from holdfast.fingerprint import Fingerprint, Position
from holdfast.offsite import CURRENT, DOCUMENTS, SETTINGS, Offsite, Settings
from holdfast.recovery import LATEST, Target

FOLDER = Path("/var/lib/holdfast-rebuild")
STATE = FOLDER / "state.json"
CLUSTERS = Path("/var/lib/postgresql")
LIVE = Path("/srv/app/live")
UNIT = "holdfast-rebuild.service"
# The role app writes it, and a rebuild comes to that role only once the database is back.
APPLICATION_UNIT = Path("/etc/systemd/system/app@.service")
CLUSTER_SECONDS = 600
HOST, APPLICATION, CHECK = "host", "application", "check"
# The proxy must find its certificates, and the application its release, when they start for the first time.
PARTS = ("certificates", "release", "database", "documents")
STOPWATCH = (HOST, "database", "documents", "certificates", "release", APPLICATION, CHECK)
# What becomes of a host that was lost before its first copy.
WITHOUT = {"certificates": "the proxy gets new ones", "release": "the images that the inventory names become the live ones"}
LAST_WRITE = re.compile(r"last completed transaction was at log time (\S+ \S+)")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
HTTPS_PORT = 443
ANSWER_SECONDS = 60
PAUSE_SECONDS = 1
AGAIN = "Run playbooks/rebuild.yml again: it goes on from there."

log = logging.getLogger("holdfast.rebuild")


@dataclass
class State:
    """How far a rebuild of this host is.

    Attributes:
        began: when it began to bring something back, in seconds since 1970.
        seconds: what each part that is done took.
        finished: when all of it was checked; 0 before.
        said: what was brought back, in sentences.
        target: what the database was to come back to.
    """

    began: float
    seconds: dict[str, float] = field(default_factory=dict)
    finished: float = 0
    said: dict[str, list[str]] = field(default_factory=dict)
    target: str = LATEST

    @classmethod
    def read(cls) -> State | None:
        """Return the state; nothing where this host was not rebuilt.

        Raises:
            Failure: it can't be read.
        """
        try:
            return cls(**json.loads(STATE.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise Failure(f"{STATE} can't be read ({error}), so nobody knows what was brought back: look at the host first.") from error

    def write(self) -> None:
        """Keep it, on the disk itself."""
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(STATE, json.dumps(asdict(self)).encode())

    def done(self, part: str, seconds: float, said: list[str]) -> None:
        """Note that a part is done."""
        self.seconds[part] = seconds
        self.said[part] = said
        self.write()

    def lines(self) -> list[str]:
        """Say it to a person, the stopwatch last."""
        lines = [sentence for part in STOPWATCH for sentence in self.said.get(part, [])]
        watch = [f"{part:>12} {self.seconds[part]:6.1f} s" for part in STOPWATCH if part in self.seconds]
        return [*lines, "Stopwatch:", *watch, f"{'in all':>12} {sum(self.seconds.values()):6.1f} s"]


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S+00")


def _copied_at(name: str) -> str:
    """Say when a copy was made, by its name."""
    return _utc(offsite.made(name))


def look(target: str = LATEST) -> str:
    """Refuse a host on which something could be lost, or on which a rebuild runs already; nothing is changed.

    Raises:
        Failure: the host is in use, or the target is none.
    """
    Target.parse(target, time.time())
    _refuse_running()
    return _progress()


def _refuse_running() -> None:
    """Refuse to go on beside a rebuild or a restore, which go on when the connection is cut."""
    if idle.busy([UNIT]) or lock.held(restore.FOLDER):
        raise Failure(
            "The host is being rebuilt, or its database restored, which goes on when the connection is cut: `holdfast restore status` says "
            f"how far the database is, and `journalctl --unit {UNIT}` when the rebuild has ended. Then run playbooks/rebuild.yml again."
        )


def _progress() -> str:
    """Say how far this host is, and refuse one that is in use.

    Raises:
        Failure: it is in use.
    """
    state = State.read()
    if state and state.finished:
        raise Failure(
            f"The host was rebuilt at {_utc(state.finished)} and is in use since: site.yml keeps it, and playbooks/restore.yml brings an "
            "older state of its database back."
        )
    unfinished = _cut_short()
    if state:
        return f"A rebuild that began at {_utc(state.began)} is not finished; done so far: {', '.join(state.seconds) or 'nothing'}."
    for version in sorted(CLUSTERS.glob("*/*/PG_VERSION")):
        if version.parent != postgres.DATA:
            raise Failure(f"{version.parent} holds another PostgreSQL server's data: take it away from the host, or rebuild on a new one.")
    if not unfinished:
        restore.refuse_data()
    if LIVE.exists():
        raise Failure(f"{LIVE} names a release, so the host has an application: site.yml keeps it; rebuild on a new host.")
    return "The host is new."


def _cut_short() -> restore.State | None:
    """Return the restore of this new host's database that was cut short; nothing where there is none.

    What it left is replaced, so nobody may have written to it.

    Raises:
        Failure: the application may have.
    """
    state = restore.State.read()
    if state is None or not state.new_host or state.finished:
        return None
    if APPLICATION_UNIT.exists():
        raise Failure(
            f"The restore of the database to {state.target} was cut short, and the application has been installed since "
            f"({APPLICATION_UNIT}) and may have written to it: site.yml keeps what is there; rebuild on a new host."
        )
    return state


def clear() -> str:
    """Make the server anew where a restore was cut short: the role postgresql can't start half a data directory.

    Raises:
        Failure: it could not be made, or somebody may have written to it.
    """
    _refuse_running()
    unfinished = _cut_short()
    if unfinished is None or unfinished.complete:
        return "unchanged"
    _do("systemctl", "stop", restore.UNIT)
    for folder in (postgres.DATA, restore.CONFIG.parent):
        if folder.exists():
            shutil.rmtree(folder)
    # With the options that the role postgresql wrote for new clusters; the rest of its configuration the roles write again.
    _do("pg_createcluster", postgres.DATA.parent.name, postgres.DATA.name)
    # From here on it is a new host's server, and is refused like any other where somebody has filled it.
    restore.STATE.unlink()
    return "changed"


def _do(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=CLUSTER_SECONDS)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise Failure(f"`{' '.join(words)}` failed ({why}), so what a restore left that was cut short is there still. {AGAIN}")


def plan(settings: Settings, target: str = LATEST) -> list[str]:
    """Say what the bucket has to bring back; nothing is changed.

    Raises:
        Failure: the bucket does not open, or has no backup of the database, or the target is none.
    """
    wanted = Target.parse(target, time.time())
    # The service that will have the documents may not be there yet.
    with offsite.offsite(replace(settings, documents=None)) as copies:
        copies.check()
        lines = [f"The bucket {settings.bucket.bucket} at {settings.bucket.endpoint} opens."]
        if settings.repository_path:
            found = copies.backups()
            if not found:
                raise Failure(f"{settings.repository_path} opens and has no backup of the database: nothing can be brought back from it.")
            forward = "all WAL after it is rolled forward" if target == LATEST else f"the database is brought back to {wanted}"
            lines.append(f"Database: the newest of {len(found)} backups is {found[-1]}; {forward}.")
        dumps = copies.dumps()
        lines.append(f"Checksums of rows: {f'recorded at {_copied_at(dumps[-1])}' if dumps else 'none were recorded'}.")
        if settings.documents:
            listed = copies.tool.entries(CURRENT, recursive=True)
            lines.append(f"Documents: {len(listed)}, {sum(each['Size'] for each in listed)} bytes.")
        lines += [_as_of(part, copies.kept(part)) for part in WITHOUT]
    return lines


def kept(settings: Settings, part: str) -> list[str]:
    """Name the copies of a part, the newest last."""
    with offsite.offsite(replace(settings, documents=None)) as copies:
        return copies.kept(part)


def _as_of(part: str, names: list[str]) -> str:
    return f"{part.capitalize()}: {f'as of {_copied_at(names[-1])}' if names else f'the bucket has no copy, so {WITHOUT[part]}'}."


# Bringing back


def _database(state: State) -> list[str]:
    """Bring the database to the last archived moment, or to another one that was asked for."""
    before, target = restore.State.read(), state.target
    if before and before.new_host and before.finished:
        state.target = before.target
        return ["Database: it was back already."]
    _cut_short()
    found = restore.run(target, new_host=True)
    rows = sum(sum(tables.values()) for tables in found.rows.values())
    written = LAST_WRITE.findall(_recovery_log())
    upto = f", the last one of {written[-1]}" if written else ""
    what = "all that was archived is back" if target == LATEST else f"it is back at {target}, as was asked for"
    return [f"Database: {what}{upto}; {rows} rows. Proven: {'; '.join(found.said)}."]


def _recovery_log() -> str:
    try:
        return (restore.PRIVATE / "log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _copy(settings: Settings, part: str) -> list[str]:
    """Put the newest copy of a part in its place; the lost host may never have made one."""
    if part == "documents":
        copied = offsite.restore(settings, part) if settings.documents else None
        return [f"Documents: {copied.objects}, {copied.size} bytes."] if copied else []
    if names := kept(settings, part):
        offsite.restore(settings, part)
    return [_as_of(part, names)]


def run(settings: Settings, host_seconds: float, target: str = LATEST) -> State:
    """Bring back each part that is not back yet.

    Args:
        settings: what the role offsite wrote.
        host_seconds: how long the host itself took to prepare.
        target: what the database comes back to.

    Raises:
        Failure: a part could not be brought back; those before it are.
    """
    state = State.read()
    if state is None or state.finished:
        _progress()
        state = State(time.time())
    if "database" not in state.seconds:
        state.target = target
    state.done(HOST, host_seconds, [])
    for part in PARTS:
        if part in state.seconds:
            log.info("%s: back already", part)
            continue
        log.info("%s …", part)
        begun = time.monotonic()
        try:
            said = _database(state) if part == "database" else _copy(settings, part)
        except Failure as failure:
            done = [each for each in PARTS if each in state.seconds]
            raise Failure(f"The {part} could not be brought back ({', '.join(done) or 'none'} are). {failure} {AGAIN}") from failure
        state.done(part, time.monotonic() - begun, said)
    return state


# Checking


@dataclass(frozen=True)
class Question:
    """One request to the application.

    Attributes:
        path: path and query.
        method: HTTP method.
        body: what is sent, as JSON; nothing where empty.
        status: status of the right answer.
    """

    path: str
    method: str = "GET"
    body: dict[str, Any] = field(default_factory=dict)
    status: int = 200


class Site:
    """The application at its own address, asked on this host: names elsewhere may still lead to the lost one."""

    def __init__(self, url: str, ca_file: str, address: tuple[str, int] = ("127.0.0.1", HTTPS_PORT)) -> None:
        """Take the address that people type, and who signed its certificate: the system's authorities where that is empty."""
        self._url = url.rstrip("/")
        self._name = urlsplit(url).hostname or ""
        self._address = address
        try:
            self._context = ssl.create_default_context(cafile=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise Failure(f"{ca_file} is no readable file of certificates ({error}): correct disaster_recovery_ca_file.") from error
        self._cookies: SimpleCookie = SimpleCookie()
        self.certificate = b""

    def ask(self, question: Question) -> str:
        """Ask, and say what came back.

        Raises:
            Failure: it was not the right answer.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        begun = time.monotonic()
        path = question.path.split("?", maxsplit=1)[0]
        while True:
            try:
                status, size = self._ask(question)
                said = f"answers {status}"
            except ssl.SSLCertVerificationError as error:
                raise Failure(
                    f"The certificate of {self._name} does not hold ({error.verify_message}): `journalctl --unit caddy` says why."
                ) from error
            except (OSError, http.client.HTTPException) as error:
                status, size, said = 0, 0, f"does not answer ({error})"
            if status == question.status:
                seconds = time.monotonic() - begun
                return f"{question.method} {path} answered {status} over TLS with {size} bytes after {seconds:.1f} s"
            # What has just been started may not be ready; a refusal stays one.
            if 400 <= status < 500 or time.monotonic() > deadline:
                raise Failure(
                    f"{self._url}{path} {said} to {question.method}, and {question.status} was expected: "
                    "`journalctl --unit 'app@*' --unit caddy` says why."
                )
            time.sleep(PAUSE_SECONDS)

    def _ask(self, question: Question) -> tuple[int, int]:
        connection = http.client.HTTPSConnection(self._name, self._address[1], context=self._context, timeout=30)
        plain = socket.create_connection(self._address, timeout=30)
        connection.sock = self._context.wrap_socket(plain, server_hostname=self._name)
        try:
            self.certificate = connection.sock.getpeercert(binary_form=True) or b""
            headers = {"Host": self._name, "Origin": self._url}
            if self._cookies:
                headers["Cookie"] = "; ".join(f"{name}={morsel.value}" for name, morsel in self._cookies.items())
            if question.body:
                headers["Content-Type"] = "application/json"
            connection.request(question.method, question.path, json.dumps(question.body) if question.body else None, headers)
            answer = connection.getresponse()
            content = answer.read()
            for value in answer.headers.get_all("Set-Cookie", []):
                self._cookies.load(value)
            return answer.status, len(content)
        finally:
            connection.close()


def _compare_rows(copies: Offsite) -> tuple[list[str], list[str]]:
    """Compare the rows with the checksums that the lost host recorded; return what holds, and what does not."""
    if not copies.dumps():
        return ["Rows: the lost host had recorded no checksums, so there are none to compare with."], []
    manifest = copies.manifest()
    # A copy of before a restore is of rows that the restore gave up; one without a position is older than this question.
    if (position := manifest.get("position")) and not Position(**position).is_past():
        return [f"Rows: not compared, as the lost host recorded checksums at {_utc(manifest['time'])}, on a past that was given up."], []
    faults, rows, changed = [], 0, 0
    for name, content in manifest["databases"].items():
        before = Fingerprint.read(content)
        after = fingerprint.again(name, before)
        rows += after.rows
        changed += fingerprint.changed(before, after)
        faults += [f"Rows of {each} in {name} are not what the lost host recorded." for each in fingerprint.faults(before, after)]
    told = f"Rows: {rows} have the checksums that the lost host recorded at {_utc(manifest['time'])}; {changed} have changed since."
    return ([] if faults else [told]), faults


def _compare_documents(copies: Offsite) -> tuple[list[str], list[str]]:
    if not copies.settings.documents:
        return [], []
    sizes = {each["Path"]: each["Size"] for each in copies.tool.entries(f"{DOCUMENTS}:{copies.settings.documents.bucket}", recursive=True)}
    listed = copies.tool.entries(CURRENT, recursive=True)
    wrong = [each["Path"] for each in listed if sizes.get(each["Path"]) != each["Size"]]
    if wrong:
        return [], [f"{len(wrong)} documents are not what was copied, such as {wrong[0]}: `holdfast offsite restore documents`."]
    return [f"Documents: each of the {len(listed)} copied is there in its size."], []


def _compare_certificate(copies: Offsite, served: bytes) -> list[str]:
    """Say whether what the proxy shows is what the lost host's showed; a newer one is none of our faults."""
    if not copies.kept("certificates"):
        return []
    with tarfile.open(fileobj=io.BytesIO(copies.newest("certificates"))) as archive:
        files = [archive.extractfile(each) for each in archive if each.isfile() and each.name.endswith(".crt")]
        texts = [file.read().decode("ascii", "replace") for file in files if file]
    known = {ssl.PEM_cert_to_DER_cert(found) for text in texts for found in CERTIFICATE.findall(text)[:1]}
    return [f"Certificate: {'the one that the lost host showed' if served in known else 'a newer one than the lost host copied'}."]


def _compare_release(copies: Offsite) -> tuple[list[str], list[str]]:
    if not copies.kept("release"):
        return [], []
    before = json.loads(copies.newest("release"))
    now = json.loads((Path(copies.settings.app_path) / "live" / "release.json").read_text(encoding="utf-8"))
    if (before["colour"], before["images"]) != (now["colour"], now["images"]):
        return [], [f"The live release is {now['colour']} of {now['images']}, and was {before['colour']} of {before['images']}."]
    return [f"Release: {now['colour']} of {', '.join(sorted(now['images'].values()))} is live, as it was."], []


def check(settings: Settings, given: dict[str, Any], application_seconds: float) -> State:
    """Ask the application, and compare what is back with what the lost host had recorded of itself.

    Args:
        settings: what the role offsite wrote.
        given: `url`, `ca_file` and `questions`.
        application_seconds: how long the application took to come up.

    Raises:
        Failure: something is not as it was, or the application does not answer.
    """
    state = State.read()
    if state is None or any(part not in state.seconds for part in PARTS):
        raise Failure(f"Nothing was brought back yet, or not all of it. {AGAIN}")
    begun = time.monotonic()
    state.done(APPLICATION, application_seconds, [])
    site = Site(given["url"], given["ca_file"])
    said = [f"Application: {site.ask(Question(**question))}." for question in given["questions"]]
    faults: list[str] = []
    # The host makes copies of its own by now, which would be compared with itself.
    with offsite.offsite(settings, until=state.began) as copies:
        said += _compare_certificate(copies, site.certificate)
        if state.target != LATEST:
            said.append("Rows: not compared, as the lost host may have recorded checksums after the moment that was asked for.")
        for compare in (*([_compare_rows] if state.target == LATEST else []), _compare_documents, _compare_release):
            holds, wrong = compare(copies)
            said += holds
            faults += wrong
    if faults:
        raise Failure(f"The host is up, and not all is as it was. {' '.join(faults)} {AGAIN}")
    state.done(CHECK, time.monotonic() - begun, said)
    state.finished = time.time()
    state.write()
    return state


def _report() -> str:
    state = State.read()
    if state is None:
        return "This host was not rebuilt."
    if not state.finished:
        return _progress()
    return "\n".join([f"This host was rebuilt at {_utc(state.finished)}.", *state.lines()])


def _given() -> dict[str, Any]:
    """Read what to ask from standard input, as a login is among it."""
    try:
        content: dict[str, Any] = json.load(sys.stdin)
    except ValueError as error:
        raise Failure(f"What to ask the application can't be read ({error}): playbooks/rebuild.yml gives it on standard input.") from error
    return content


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `rebuild` to the command line."""
    parser = commands.add_parser("rebuild", help="bring back onto a new host what a lost one had")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help=argparse.SUPPRESS)
    actions = parser.add_subparsers(dest="action", required=True)

    def add(name: str, told: str, call: Callable[[argparse.Namespace], str]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=told)
        action.set_defaults(call=lambda given: print(call(given)))
        return action

    looked = add("look", "refuse a host on which something could be lost", lambda given: look(given.target))
    add("clear", "make the server anew where a restore of it was cut short", lambda _: clear())
    planned = add(
        "plan", "say what the bucket has to bring back", lambda given: "\n".join(plan(Settings.read(given.settings), given.target))
    )
    action = add(
        "run",
        "bring back what is not back yet",
        lambda given: "\n".join(run(Settings.read(given.settings), given.host_seconds, given.target).lines()),
    )
    for each in (looked, planned, action):
        each.add_argument("--target", default=LATEST, help="what the database comes back to (default %(default)s)")
    action.add_argument("--host-seconds", type=float, default=0, help="how long the host took to prepare")
    action = add(
        "check",
        "ask the application, and compare with what the lost host recorded",
        lambda given: "\n".join(check(Settings.read(given.settings), _given(), given.application_seconds).lines()),
    )
    action.add_argument("--application-seconds", type=float, default=0, help="how long the application took to come up")
    add("report", "say how the rebuild of this host went", lambda _: _report())
