"""A host is lost with its disk while it is written to, and rebuilt on a bare one from the page, a clone and the bucket.

The commands are those of docs/recovery.md. HOLDFAST_FILL_MB says how much data the database has beside the rest.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import documents
import past
import pytest
import recovery
from database import DATABASE, ask
from testinfra.host import Host

from tools import bench_rebuild, bucket, demo, secrets
from tools import host as test_host
from tools.application import DOMAIN, Application, wait_until
from tools.page import commands
from tools.playbook import CONTAINER, ENVIRONMENT, PLAIN, inventory
from tools.shell import ROOT, VENV_BIN, run
from tools.writer import Writer

PAGE = ROOT / "docs" / "recovery.md"
BEFORE, LOST = "Before anything happens", "The machine is lost"
FILL_MB = int(os.environ.get(bench_rebuild.FILL, "50"))
TABLE = "DROP TABLE IF EXISTS filling; CREATE TABLE filling (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)"
# Two kilobytes a row, of which compression makes little less.
FILL = (
    f"head --bytes={FILL_MB * 750}K /dev/urandom | base64 --wrap=2000 | timeout 900 runuser -u postgres -- psql --no-psqlrc --quiet "
    f"--dbname {DATABASE} --command '\\copy filling (body) FROM STDIN'"
)
CHECKSUM = "SELECT count(*) || ' ' || coalesce(sum(('x' || left(md5({0}::text), 15))::bit(60)::bigint), 0) FROM {0}"
HELD = "SELECT id FROM written"
LOSS_SECONDS = 15
RELEASE = "/srv/app/live/release.json"
NOBODY = "sha256:" + "0" * 64
STATE, RESTORE_STATE = "/var/lib/holdfast-rebuild/state.json", "/var/lib/holdfast-restore/state.json"
DATA = "/var/lib/postgresql/17/main"
UNIT_FILE = "/etc/systemd/system/app@.service"
# The roles that have to do with the database: the others find the host as they left it.
ITS_ROLES = "preflight,postgresql,pgvector,pgbouncer,pgbackrest,disaster_recovery,app"


@dataclass
class Known:
    """What the owner has, and what a client remembers of the lost host."""

    page: Path
    clone: Path
    authority: str
    certificate: bytes
    release: str
    question: str
    document: str
    texts: dict[str, str]
    checksum: str
    backups: list[str]
    writer: Writer


def _application(host_name: str, authority: str) -> Application:
    client = Application(
        test_host.address(host_name), ssl.create_default_context(cadata=authority), secrets.read("demo")["app_admin_password"]
    )
    client.login()
    return client


def _certificate(host_name: str, authority: str) -> bytes:
    """Return the certificate that is shown to a client who trusts the lost host's authority."""
    context = ssl.create_default_context(cadata=authority)
    with (
        socket.create_connection((test_host.address(host_name), 443), timeout=15) as plain,
        context.wrap_socket(plain, server_hostname=DOMAIN) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def _texts(host: Host) -> dict[str, str]:
    return {name: documents.ask(host, "GET", name) for name in documents.digests(host)}


def _backups(host: Host) -> list[str]:
    return re.findall(r"^\s+(\d{8}-\d{6}F\S*)", host.check_output("timeout 120 holdfast restore list"), re.MULTILINE)


def _typed(checkout: Path, command: str, host_name: str, *words: str) -> str:
    """Type a command that has to succeed, and return what it said."""
    done = recovery.type_in(checkout, command, host_name, *words)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def _refused(checkout: Path, host_name: str) -> str:
    """Rebuild where that has to be refused before anything is touched, and return what was said."""
    done = recovery.type_in(checkout, commands(PAGE, LOST)[-2], host_name)
    assert done.returncode != 0 and "changed=0" in done.stdout, done.stdout[-6000:]
    assert "Nothing was changed on" in done.stdout, done.stdout[-6000:]
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recovery")


@pytest.fixture(scope="module", name="owner")
def _owner(folder: Path, host_name: str) -> Path:
    """Have the owner's checkout."""
    return recovery.owner(folder / "owner", host_name)


@pytest.fixture(scope="module", name="known")
def _known(host: Host, host_name: str, owner: Path, folder: Path) -> Known:
    """Fill the host, have the copies made while it is written to, write the kit outside, and take the host away."""
    authority = host.check_output(f"cat {demo.CADDY_ROOT}")
    application = _application(host_name, authority)
    words = [f"zq{uuid.uuid4().hex[:10]}" for _ in range(12)]
    text = " ".join(["Finding:", *words * 3])
    document = application.upload(text)
    others = [application.upload(f"Finding {number}: {uuid.uuid4().hex} " * 20) for number in range(4)]
    application.wait_done(document, *others)
    ask(host, TABLE)
    host.check_output(FILL)
    host.check_output("timeout 600 holdfast backup incr")
    with Writer(host_name) as writer:
        host.check_output("timeout 600 systemctl start holdfast-offsite@dumps.service holdfast-offsite@files.service")
        for command in commands(PAGE, BEFORE):
            _typed(owner, command.replace("recovery-kit-production.txt", f"recovery-kit-{host_name}.txt"), host_name)
        known = Known(
            page=owner / f"recovery-kit-{host_name}.txt",
            clone=recovery.with_cache(recovery.clone(folder / "clone")),
            authority=authority,
            certificate=_certificate(host_name, authority),
            release=host.check_output(f"cat {RELEASE}"),
            question=" ".join(words[:8]),
            document=document,
            texts=_texts(host),
            checksum=ask(host, CHECKSUM.format("filling")),
            backups=_backups(host),
            writer=writer,
        )
        writer.wait(500)
        test_host.down(host_name)
        writer.stop()
        test_host.up(host_name)
    return known


@pytest.fixture(scope="module", name="said")
def _said(known: Known, host_name: str) -> str:
    """Type what the page says, and return what the rebuild said.

    The inventory has other images by now, so that the release which was live is known from the bucket alone.
    """
    (known.clone / "kit.txt").write_text(known.page.read_text())
    *first, rebuild, _ = commands(PAGE, LOST)
    for command in first:
        _typed(known.clone, command, host_name)
    images = json.loads(known.release)["images"]
    given = known.clone / "given.json"
    given.write_text(json.dumps({"app_images": {name: f"{image.split('@')[0]}@{NOBODY}" for name, image in images.items()}}))
    begun = time.monotonic()
    said = _typed(known.clone, rebuild, host_name, "-e", f"@{given}")
    recovery.note("database filled with, MB", FILL_MB)
    for part, seconds in re.findall(r"\b([a-z ]+?) +(\d+\.\d) s", said[said.rindex("Stopwatch:") :]):
        recovery.note(f"{part.strip()}, s", seconds)
    recovery.note(bench_rebuild.WHOLE, f"{time.monotonic() - begun:.0f}")
    return said


def test_host_in_use_is_refused(host: Host, host_name: str, owner: Path) -> None:
    """A host that has a database is refused before anything is touched."""
    assert "so the host is not new" in _refused(owner, host_name)
    assert host.service("app@blue.service").is_running


def test_bad_input_is_refused(known: Known, host_name: str, tmp_path: Path) -> None:
    """An empty bucket, one without backups, a wrong key, passphrase or address: each is told in a sentence, and the host stays bare."""
    client = bucket.client(host_name)
    client.copy_object(
        Bucket=bucket.BUCKET, Key="nobackup/archive/main/archive.info", CopySource=f"{bucket.BUCKET}/pgbackrest/archive/main/archive.info"
    )
    good = {
        "type": "s3", "path": "/pgbackrest", "bucket": bucket.BUCKET, "endpoint": f"{bucket.name_of(host_name)}:{bucket.PORT}",
        "region": bucket.REGION, "access_key": bucket.ACCESS_KEY, "secret_key": secrets.read("demo")[bucket.SECRET],
        "ca": bucket.AUTHORITY.read_text(),
    }  # fmt: skip
    cases: dict[str, tuple[str, dict[str, object]]] = {
        "empty": ("is empty: nothing was ever kept there", {"pgbackrest_repositories": [{**good, "path": "/elsewhere"}]}),
        "nobackup": ("holds no backup: WAL alone brings nothing back", {"pgbackrest_repositories": [{**good, "path": "/nobackup"}]}),
        "wrongkey": ("SignatureDoesNotMatch", {"pgbackrest_repositories": [{**good, "secret_key": "w" * 32}]}),
        "passphrase": (
            "encrypted with another passphrase",
            {"pgbackrest_repositories": [good], "pgbackrest_cipher_passphrase": "w" * 32},
        ),
        "nodrill": (
            "restore_drill_schedule is 'some day'",
            {"pgbackrest_repositories": [good], "restore_drill_schedule": "some day"},
        ),
        "nourl": (
            "disaster_recovery_url is 'http://app.test'",
            {"pgbackrest_repositories": [good], "disaster_recovery_url": "http://app.test"},
        ),
        "nozone": (
            "The target '2026-11-23 10:15:00' has no time zone",
            {"pgbackrest_repositories": [good], "disaster_recovery_target": "2026-11-23 10:15:00"},
        ),
    }
    hosts = {name: {**CONTAINER, "ansible_host": host_name, **given} for name, (_, given) in cases.items()}
    source = inventory(tmp_path / "bad", hosts)
    before = run(["docker", "diff", host_name]).stdout
    # The hosts here are cases: the fault of one must not end the others.
    alone = {**ENVIRONMENT, **PLAIN, "ANSIBLE_ANY_ERRORS_FATAL": "false"}
    done = run([VENV_BIN / "ansible-playbook", "-i", source, "playbooks/rebuild.yml", "--tags", "preflight"], env=alone, check=False)
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    for name, (words, _) in cases.items():
        assert re.search(rf"Nothing was changed on {name}\. [^\[]*{re.escape(words)}", told), done.stdout[-8000:]
        assert re.search(rf"{name} +: ok=\d+ +changed=0", done.stdout)
    assert "w" * 32 not in done.stdout
    # What a login and apt's cache leave is no change.
    passing = re.compile(r"^\w /(root|tmp|run|var/cache/apt)\b|__pycache__")
    changed = set(run(["docker", "diff", host_name]).stdout.splitlines()) - set(before.splitlines())
    assert not [line for line in changed if not passing.search(line)], changed


def test_stopwatch(said: str) -> None:
    """The rebuild ends with the application's answers, the comparison and a stopwatch per phase."""
    for words in ("POST /api/login answered 200", "GET /api/search answered 200", "have the checksums that the lost host recorded"):
        assert words in said, said[-6000:]
    for part in ("host", "database", "documents", "certificates", "application", "check", "in all"):
        assert re.search(rf"\b{part} +\d+\.\d s", said), said[-6000:]


def test_rows(host: Host, known: Known, said: str) -> None:
    """Of the rows that were acknowledged only those of the last 15 seconds are missing, and all others are as they were."""
    assert said
    missing, loss = known.writer.loss(ask(host, HELD))
    recovery.note("acknowledged rows, missing", f"{len(known.writer.acknowledged())}, {missing}")
    recovery.note("writes that are missing, s", f"{loss:.1f}")
    assert loss <= LOSS_SECONDS
    assert ask(host, CHECKSUM.format("filling")) == known.checksum


def test_documents(host: Host, known: Known, said: str) -> None:
    """Every document is there, byte for byte."""
    assert said
    assert len(known.texts) >= 5
    assert _texts(host) == known.texts


def test_certificate(known: Known, host_name: str, said: str) -> None:
    """Whoever trusted the lost host sees the very same certificate."""
    assert "the one that the lost host showed" in said
    assert _certificate(host_name, known.authority) == known.certificate


def test_release(host: Host, known: Known, said: str) -> None:
    """The release that was live is live, whatever images the inventory names by now."""
    assert NOBODY not in said
    assert json.loads(host.check_output(f"cat {RELEASE}")) == json.loads(known.release)
    assert host.service("app@blue.service").is_running


def test_application_answers(known: Known, host_name: str, said: str) -> None:
    """A person logs in with the old password, finds the old document by its meaning, and uploads a new one."""
    assert said
    application = _application(host_name, known.authority)
    assert application.search(known.question)[0]["document_id"] == known.document
    application.wait_done(application.upload(f"Finding: {uuid.uuid4().hex} " * 20))


def test_past_goes_on(host: Host, known: Known, said: str) -> None:
    """The bucket's older backups are still there, the next backup succeeds, and what is written now is archived."""
    assert said
    host.check_output("timeout 600 holdfast backup incr")
    backups = _backups(host)
    assert set(known.backups) < set(backups)
    past.archived(host)
    wait_until(lambda: past.metric(host, "archive", "holdfast_archive_healthy") == 1, "a green archive")
    host.check_output("timeout 600 systemctl start holdfast-offsite@files.service")


def test_goes_on_where_it_was(host: Host, said: str) -> None:
    """A rebuild that ended before its check goes on there, and brings nothing back twice."""
    assert said
    ask(host, "INSERT INTO written VALUES (-1, 'written since')")
    unfinished = "import json, sys; state = json.load(sys.stdin); state['finished'] = 0; print(json.dumps(state))"
    host.check_output(f"cp {STATE} /tmp/state && python3 -c %s < /tmp/state > {STATE}", unfinished)
    try:
        assert "is not finished; done so far: host" in host.check_output("holdfast rebuild look")
        again = host.run("timeout 300 holdfast rebuild run")
        assert again.rc == 0 and again.stderr.count("back already") == 4, again.stderr
    finally:
        host.check_output(f"cp /tmp/state {STATE}")
    assert ask(host, "SELECT body FROM written WHERE id = -1") == "written since"


def test_second_rebuild_is_refused(host: Host, known: Known, host_name: str, said: str) -> None:
    """A rebuilt host that is in use is not rebuilt again, and says since when it is."""
    assert said
    assert "and is in use since" in _refused(known.clone, host_name)
    assert host.service("app@blue.service").is_running
    report = host.check_output(commands(PAGE, LOST)[-1])
    assert "This host was rebuilt at" in report and "Stopwatch:" in report


def test_restore_cut_short_goes_on(host: Host, known: Known, host_name: str, said: str) -> None:
    """From half a data directory the playbook goes on when it runs again, and brings the same rows back; in a host's use it stays away."""
    assert said
    past.archived(host)
    # As the restore leaves it that is cut short while it copies: the timers are not started yet, and pgBackRest writes this file last.
    host.check_output("systemctl stop holdfast-backups.target 'app@*.service' pgbouncer.service postgresql@17-main.service")
    host.check_output(f"rm {DATA}/global/pg_control")
    state = json.loads(host.check_output(f"cat {STATE}"))
    state["finished"] = 0
    for part in ("database", "application", "check"):
        del state["seconds"][part]
    unfinished = {"target": "latest", "step": "restore the backup", "new_host": True}
    for file, content in ((STATE, state), (RESTORE_STATE, unfinished)):
        host.check_output(f"printf %%s %s > {file}", json.dumps(content))
    refused = host.run("timeout 60 holdfast rebuild look")
    assert refused.rc == 1 and "the application has been installed since" in refused.stderr, refused.stderr
    host.check_output(f"rm {UNIT_FILE}")
    given = known.clone / "given.json"
    again = _typed(known.clone, commands(PAGE, LOST)[-2], host_name, "-e", f"@{given}", "--tags", ITS_ROLES)
    assert "have the checksums that the lost host recorded" in again, again[-6000:]
    assert ask(host, CHECKSUM.format("filling")) == known.checksum
    assert ask(host, "SHOW data_checksums") == "on"
    assert host.service("app@blue.service").is_running
