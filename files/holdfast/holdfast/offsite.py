"""`holdfast offsite`: what pgBackRest does not keep, encrypted in the bucket off the host, and the way back from there.

dumps         a logical dump of the roles and of each database, and the fingerprints of their rows: a second way out
documents     the application's object bucket; what is deleted or replaced there stays here for the time of retention
certificates  Caddy's storage: its account, its certificates, its own authority
release       which release is live
inventory     the inventory as Ansible saw it; its vault is encrypted with the recovery key

Nothing lies on the host's disk on its way.
"""

from __future__ import annotations

import argparse
import datetime as dt
import fcntl
import hashlib
import io
import itertools
import json
import logging
import math
import os
import pwd
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast import durable, fingerprint, metrics, postgres
from holdfast.failure import Failure
from holdfast.rclone import TRANSFER_SECONDS, Bucket, Rclone, environment, rclone
from holdfast.unit import ended_from_outside

SETTINGS = Path("/etc/holdfast-offsite.json")
LOCK_SECONDS = 3600
KEPT = ("certificates", "release", "inventory")
WHAT = ("dumps", "documents", *KEPT)
# The documents as they were when they were copied last: size and time by name.
LISTED = Path("/var/lib/holdfast-offsite/documents.json")
# A bucket tells times in whole seconds.
SURE_SECONDS = 5
FILES = "files"
REMOTE, DOCUMENTS, ENCRYPTED = "bucket", "documents", "offsite"
MANIFEST = "manifest.json"
STAMP = "%Y%m%dT%H%M%SZ"
CURRENT, REMOVED = f"{ENCRYPTED}:documents/current", f"{ENCRYPTED}:documents/removed"

log = logging.getLogger("holdfast.offsite")


@dataclass(frozen=True)
class Settings:
    """What the role offsite wrote.

    Attributes:
        bucket: the bucket off the host.
        path: folder in it.
        passphrase: encrypts names and content in that folder.
        retention_days: how long what is superseded stays.
        documents: the application's bucket; none where there is none.
        certificates_path: Caddy's storage.
        certificates_owner: who owns it.
        app_path: folder of the releases.
        inventory_path: archive of the inventory on this host.
        repository_path: folder in the bucket with pgBackRest's repository; only a recovery kit names it.
        repository_passphrase: passphrase of that repository.
    """

    bucket: Bucket
    path: str
    passphrase: str = field(repr=False)
    retention_days: int = 30
    documents: Bucket | None = None
    certificates_path: str = ""
    certificates_owner: str = ""
    app_path: str = ""
    inventory_path: str = ""
    repository_path: str = ""
    repository_passphrase: str = field(default="", repr=False)

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read the settings.

        Raises:
            Failure: there are none, or they can't be read.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            documents = content.pop("documents", None)
            return cls(bucket=Bucket(**content.pop("bucket")), documents=Bucket(**documents) if documents else None, **content)
        except FileNotFoundError as error:
            raise Failure(f"{path} is missing: run `ansible-playbook site.yml --tags offsite`.") from error
        except PermissionError as error:
            raise Failure(f"{path} is for root alone: use sudo.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise Failure(f"{path} can't be read ({error}): run `ansible-playbook site.yml --tags offsite`.") from error


@dataclass(frozen=True)
class Copied:
    """What one copy came to: objects and bytes that lie in the bucket now."""

    objects: int
    size: int


class Offsite:
    """The copies in the bucket; those made after `until`, in seconds since 1970, are as if they were not there."""

    def __init__(self, settings: Settings, tool: Rclone, until: float = math.inf) -> None:
        """Take the settings, and rclone with its remotes."""
        self.settings, self.tool, self.until = settings, tool, until

    def check(self) -> None:
        """Find out whether the bucket can be read and the passphrase is the right one.

        Raises:
            Failure: it can't, holds nothing, or holds what this passphrase does not open.
        """
        place = f"{self.settings.bucket.bucket}{self.settings.path} at {self.settings.bucket.endpoint}"
        if not self.tool.names(f"{REMOTE}:{self.settings.bucket.bucket}{self.settings.path}"):
            raise Failure(
                f"The bucket {place} is empty: nothing was ever copied there, or offsite_bucket or offsite_path names another place."
            )
        # With a wrong passphrase one name in 256 is padded as it should be, and comes out as another one.
        if not set(WHAT) & set(self.tool.names(f"{ENCRYPTED}:")):
            raise Failure(
                f"What lies in {place} does not open with offsite_passphrase: take the vault that was in force when it was written."
            )

    def backups(self) -> list[str]:
        """Name the database's backups, out of the list that pgBackRest encrypts with its passphrase.

        Raises:
            Failure: there is none, or it does not open.
        """
        name = f"{self.settings.repository_path}/backup/{postgres.STANZA}/backup.info"
        sealed = self.tool.read(f"{REMOTE}:{self.settings.bucket.bucket}{name}")
        opened = _open_sealed(sealed, self.settings.repository_passphrase)
        listed = opened.split("[backup:current]", 1)
        if "[backrest]" not in opened:
            raise Failure(f"{name} does not open with the passphrase of the backups: take the vault that was in force when it was written.")
        section = listed[1].split("\n[", 1)[0] if len(listed) > 1 else ""
        return sorted(line.split("=", 1)[0] for line in section.splitlines() if "=" in line)

    # Copying

    def copy(self, what: str) -> Copied:
        """Make one copy.

        Raises:
            Failure: it could not be made.
        """
        if what == "dumps":
            return self._copy_dumps()
        if what == "documents":
            return self._copy_documents()
        return self._keep(what, getattr(self, f"_{what}")())

    def _copy_dumps(self) -> Copied:
        folder = f"{ENCRYPTED}:dumps/{_stamp()}"
        names = fingerprint.databases()
        self.tool.stream(["pg_dumpall", "--roles-only", "--host", postgres.SOCKETS], f"{folder}/roles.sql")
        prints = {}
        for name in names:
            words = ["pg_dump", "--format=custom", "--compress=zstd:3", "--host", postgres.SOCKETS, "--dbname", name]
            self.tool.stream(words, f"{folder}/{name}.dump")
            prints[name] = fingerprint.take(name).dump()
        manifest = {"time": time.time(), "position": asdict(fingerprint.Position.now()), "databases": prints}
        # A folder without it is a copy that was cut short.
        self.tool.write(f"{folder}/{MANIFEST}", json.dumps(manifest).encode())
        self._expire_dumps()
        listed = self.tool.entries(folder)
        return Copied(len(listed), sum(each["Size"] for each in listed))

    def _copy_documents(self) -> Copied:
        source, begun = self._source(), time.time()
        now = {each["Path"]: [each["Size"], each["ModTime"]] for each in self.tool.entries(source, recursive=True)}
        if not now and self.tool.entries(CURRENT):
            raise Failure(
                f"The bucket {source.split(':')[1]} is empty while its copy is not, so nothing was taken away from the copy: "
                "`holdfast offsite restore documents` brings them back."
            )
        keep = ("--backup-dir", f"{REMOVED}/{_stamp()}")
        # A copy that is younger than the document passes for one of it; it is one of the document before, where that was replaced while it
        # was copied, or where the clock of the bucket's service is ahead.
        if replaced := self._replaced(now):
            words = ("copy", source, CURRENT, "--ignore-times", "--files-from-raw", "-", *keep)
            self.tool.run(*words, timeout_seconds=TRANSFER_SECONDS, stdin="\n".join(replaced))
        self.tool.run("sync", source, CURRENT, "--update", *keep, timeout_seconds=TRANSFER_SECONDS)
        # What has just been written may be replaced within the same second.
        sure = {path: what if _written_at(what[1]) < begun - SURE_SECONDS else None for path, what in now.items()}
        try:
            LISTED.parent.mkdir(mode=0o700, exist_ok=True)
            durable.write(LISTED, json.dumps({"of": self._of(), "documents": sure}).encode())
        except OSError as error:
            raise Failure(f"The documents are copied, and {LISTED} can't be written: {error.strerror}.") from error
        for stamp in self.tool.names(REMOVED):
            if _age_days(stamp) > self.settings.retention_days:
                self.tool.delete(f"{REMOVED}/{stamp}")
        listed = self.tool.entries(CURRENT, recursive=True)
        return Copied(len(listed), sum(each["Size"] for each in listed))

    def _replaced(self, now: dict[str, list[Any]]) -> list[str]:
        """Name the documents that are not those of the last listing."""
        try:
            last = json.loads(LISTED.read_text(encoding="utf-8"))
            before = last["documents"] if last["of"] == self._of() else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []
        return [path for path, what in now.items() if path in before and before[path] != what]

    def _of(self) -> list[str]:
        """Say of which documents a listing is, and where their copies are."""
        here, there = self.settings.documents, self.settings.bucket
        return [here.endpoint if here else "", self._source(), there.endpoint, there.bucket, self.settings.path]

    def _source(self) -> str:
        if not self.settings.documents:
            raise Failure("No bucket of documents is named: set offsite_documents_bucket, or copy the rest only.")
        return f"{DOCUMENTS}:{self.settings.documents.bucket}"

    def _keep(self, what: str, content: bytes) -> Copied:
        """Keep a small file under its time and digest; what is there already is not written again."""
        digest = hashlib.sha256(content).hexdigest()[:16]
        kept = self.kept(what)
        if not kept or kept[-1].split("-")[1] != digest:
            self.tool.write(f"{ENCRYPTED}:{what}/{_stamp()}-{digest}", content)
        # One that was superseded within the time of retention stays.
        for older, newer in itertools.pairwise(kept):
            if _age_days(newer) > self.settings.retention_days:
                self.tool.run("deletefile", f"{ENCRYPTED}:{what}/{older}")
        return Copied(1, len(content))

    def _certificates(self) -> bytes:
        folder = Path(self.settings.certificates_path)
        if not folder.is_dir():
            raise Failure(f"{folder} is missing: Caddy has not run yet, or offsite_certificates_path is wrong.")
        return _archive(folder, leave_out=("locks",))

    def _release(self) -> bytes:
        path = Path(self.settings.app_path) / "live" / "release.json"
        if not path.is_file():
            raise Failure(f"{path} is missing: no release is live, or offsite_app_path is wrong.")
        return path.read_bytes()

    def _inventory(self) -> bytes:
        path = Path(self.settings.inventory_path)
        if not path.is_file():
            raise Failure(f"{path} is missing: run `ansible-playbook site.yml --tags offsite`.")
        return path.read_bytes()

    def _expire_dumps(self) -> None:
        """Delete dumps that are too old or were cut short; the newest whole one stays, however old."""
        whole = self.dumps()
        for stamp in self.tool.names(f"{ENCRYPTED}:dumps"):
            if stamp != whole[-1] and (_age_days(stamp) > self.settings.retention_days or stamp not in whole):
                self.tool.delete(f"{ENCRYPTED}:dumps/{stamp}")

    # Looking

    def dumps(self) -> list[str]:
        """Name the whole dumps by their time, the newest last."""
        listed = self.tool.entries(f"{ENCRYPTED}:dumps", recursive=True)
        whole = sorted(each["Path"].split("/", maxsplit=1)[0] for each in listed if each["Path"].endswith(f"/{MANIFEST}"))
        return [stamp for stamp in whole if made(stamp) <= self.until]

    def kept(self, what: str) -> list[str]:
        """Name the copies of the certificates, the release or the inventory, the newest last."""
        return [name for name in self.tool.names(f"{ENCRYPTED}:{what}") if made(name) <= self.until]

    def manifest(self) -> dict[str, Any]:
        """Return what the newest dump recorded of itself.

        Raises:
            Failure: there is no whole dump.
        """
        if not (found := self.dumps()):
            raise Failure("The bucket has no whole dump: `holdfast offsite copy dumps` makes one.")
        content: dict[str, Any] = json.loads(self.tool.read(f"{ENCRYPTED}:dumps/{found[-1]}/{MANIFEST}"))
        return content

    def newest(self, what: str) -> bytes:
        """Return the newest copy of the certificates, the release or the inventory.

        Raises:
            Failure: there is none.
        """
        if not (kept := self.kept(what)):
            raise Failure(f"The bucket has no copy of the {what}.")
        return self.tool.read(f"{ENCRYPTED}:{what}/{kept[-1]}")

    def report(self) -> Iterator[str]:
        """Say what the bucket has, one line a copy."""
        for stamp in self.dumps():
            for each in self.tool.entries(f"{ENCRYPTED}:dumps/{stamp}"):
                yield f"dumps/{stamp}/{each['Path']}  {each['Size']} bytes"
        for what in KEPT:
            yield from (f"{what}/{each['Path']}  {each['Size']} bytes" for each in self.tool.entries(f"{ENCRYPTED}:{what}"))
        listed = self.tool.entries(CURRENT, recursive=True)
        yield f"documents/current  {len(listed)} objects, {sum(each['Size'] for each in listed)} bytes"
        yield from (f"documents/removed/{stamp}" for stamp in self.tool.names(REMOVED))

    # The way back

    def restore(self, what: str) -> Copied:
        """Put the newest copy back where it came from; what is there stays unless the copy has it too.

        Raises:
            Failure: there is none, or its place can't be written.
        """
        if what == "documents":
            self.tool.run("copy", CURRENT, self._source(), "--ignore-existing", "--checkers", "16", timeout_seconds=TRANSFER_SECONDS)
            listed = self.tool.entries(CURRENT, recursive=True)
            return Copied(len(listed), sum(each["Size"] for each in listed))
        content = self.newest(what)
        if what == "certificates":
            self._restore_certificates(content)
        elif what == "release":
            self._restore_release(content)
        else:
            raise Failure(f"There is no place on the host for the {what}: `holdfast offsite fetch` brings it into a folder.")
        return Copied(1, len(content))

    def _restore_certificates(self, content: bytes) -> None:
        folder = Path(self.settings.certificates_path)
        found = _user(self.settings.certificates_owner, home=folder.parents[2])
        if folder.exists():
            shutil.rmtree(folder)
        for parent in (*reversed([each for each in folder.parents if not each.exists()]), folder):
            parent.mkdir(mode=0o700)
            os.chown(parent, found.pw_uid, found.pw_gid)
        extract(content, folder)
        for path in folder.rglob("*"):
            os.chown(path, found.pw_uid, found.pw_gid)

    def _restore_release(self, content: bytes) -> None:
        base = Path(self.settings.app_path)
        colour = str(json.loads(content)["colour"])
        if (base / "live").exists() and str((base / "live").readlink()) != colour:
            raise Failure(f"{base / 'live'} is there already: the host knows which release is live.")
        (base / colour).mkdir(mode=0o755, parents=True, exist_ok=True)
        (base / colour / "release.json").write_bytes(content)
        if not (base / "live").exists():
            (base / "live").symlink_to(colour)


def _written_at(time_of_object: str) -> float:
    """Return when an object was written, in seconds since 1970."""
    return dt.datetime.fromisoformat(time_of_object).timestamp()


def _user(name: str, home: Path) -> pwd.struct_passwd:
    """Return a service's user; where its package is not installed yet, make it as the package would.

    A proxy that found an empty storage would ask for a new account, and for certificates that may be given only so many times a week.

    Raises:
        Failure: it could not be made.
    """
    try:
        return pwd.getpwnam(name)
    except KeyError:
        words = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(home), "--shell", "/usr/sbin/nologin", name]
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Failure(f"The user {name}, whom the certificates are for, could not be made: {done.stderr.strip()}") from None
        return pwd.getpwnam(name)


def _stamp() -> str:
    return dt.datetime.now(dt.UTC).strftime(STAMP)


def made(name: str) -> float:
    """Say when a copy was made, by its name, in seconds since 1970; of what has no such name it is not known."""
    try:
        return dt.datetime.strptime(name.split("-", maxsplit=1)[0], STAMP).replace(tzinfo=dt.UTC).timestamp()
    except ValueError:
        return math.inf


def _age_days(name: str) -> float:
    """Say how old a copy is by its name."""
    # What is not ours is never old enough to be deleted.
    return max(time.time() - made(name), 0) / 86400


def _archive(folder: Path, leave_out: tuple[str, ...] = ()) -> bytes:
    """Pack a folder, the same bytes from the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if name.split("/", maxsplit=1)[0] not in leave_out and (path.is_dir() or path.is_file()):
                archive.add(path, name, recursive=False)
    return buffer.getvalue()


def _stays_inside(member: tarfile.TarInfo, folder: Path) -> bool:
    """Say whether a file, a folder or a link lies in a folder, and what a link leads to as well."""
    place = folder / member.name
    leads_to = place.parent / member.linkname if member.issym() else folder / member.linkname if member.islnk() else place
    plain = member.isreg() or member.isdir() or member.issym() or member.islnk()
    return plain and all(path.resolve().is_relative_to(folder.resolve()) for path in (place, leads_to))


def extract(content: bytes, folder: Path) -> None:
    """Unpack an archive; nothing lands outside the folder.

    Raises:
        Failure: it holds what would.
    """
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            if not _stays_inside(member, folder):
                raise Failure(f"The copy holds {member.name}, which does not lie in its own folder: nothing of it was unpacked.")
        # The filter leaves out owners and loose modes. A controller's Python may be Debian 12's 3.11.2, which has none yet.
        filters: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **filters)  # noqa: S202 - each member was looked at


def _open_sealed(content: bytes, passphrase: str) -> str:
    """Decrypt what pgBackRest wrote: OpenSSL's salted format, with the key derived by SHA-1; nothing where it does not open."""
    read, write = os.pipe()
    os.write(write, passphrase.encode() + b"\n")
    os.close(write)
    try:
        words = ["openssl", "enc", "-d", "-aes-256-cbc", "-md", "sha1", "-pass", f"fd:{read}"]
        done = subprocess.run(words, check=False, input=content, capture_output=True, timeout=60, pass_fds=(read,))
    except FileNotFoundError as error:
        raise Failure("The program openssl is not installed.") from error
    finally:
        os.close(read)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


@contextmanager
def offsite(settings: Settings, until: float = math.inf) -> Iterator[Offsite]:
    """Open the copies, or those of before a moment in seconds since 1970."""
    buckets = {REMOTE: settings.bucket} | ({DOCUMENTS: settings.documents} if settings.documents else {})
    with rclone(buckets, ENCRYPTED, f"{REMOTE}:{settings.bucket.bucket}{settings.path}", settings.passphrase) as tool:
        yield Offsite(settings, tool, until)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other copy is under way."""
    with SETTINGS.open() as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Failure(
                        f"Another copy had not ended after {LOCK_SECONDS / 60:.0f} minutes: `systemctl status 'holdfast-offsite@*'`."
                    ) from None
                time.sleep(1)
        yield


def _record(what: str, copied: Copied | None, seconds: float) -> None:
    """Write the metrics of one copy; of one that failed, what the last success wrote stays."""
    topic, labels = f"offsite_{what}", (("what", what),)
    prefix = "holdfast_offsite_"
    before = metrics.read(topic)
    now = time.time()

    def held(name: str) -> float:
        return before.get(f'{prefix}{name}{{what="{what}"}}', 0.0)

    values = {
        "success": ("Whether the last copy off the host succeeded.", float(copied is not None)),
        "last_run_timestamp_seconds": ("When the last copy off the host ended, in Unix time.", now),
        "last_success_timestamp_seconds": (
            "When the last copy off the host that succeeded ended, in Unix time.",
            now if copied else held("last_success_timestamp_seconds"),
        ),
        "duration_seconds": ("Time that the last copy off the host took, in seconds.", seconds),
        "objects": ("Objects of the last copy off the host that succeeded.", copied.objects if copied else held("objects")),
        "bytes": ("Size of the last copy off the host that succeeded, in bytes.", copied.size if copied else held("bytes")),
    }
    metrics.write(topic, [metrics.Gauge(f"{prefix}{name}", told, labelled={labels: value}) for name, (told, value) in values.items()])


def _parts(wanted: list[str], *, documents: bool) -> list[str]:
    files = [*(["documents"] if documents else []), *KEPT]
    return list(dict.fromkeys(part for what in wanted for part in (files if what == FILES else [what])))


def _record_untried(wanted: list[str]) -> None:
    """Record copies that failed before they were tried, where the settings may not even be readable."""
    # Why they failed is what a person has to read, even where nothing can be recorded.
    with suppress(Failure):
        for what in _parts(wanted, documents=bool(metrics.read("offsite_documents"))):
            _record(what, None, 0)


def copy(settings: Settings, wanted: list[str]) -> None:
    """Make copies, each for itself: one that fails does not keep the others.

    Raises:
        Failure: one or more could not be made; the text says which, and why.
    """
    faults = []
    left = _parts(wanted, documents=settings.documents is not None)
    try:
        with _alone(), offsite(settings) as copies:
            while left:
                what, begun, copied = left.pop(0), time.monotonic(), None
                try:
                    copied = copies.copy(what)
                    log.info("%s: %d objects, %d bytes", what, copied.objects, copied.size)
                except Failure as failure:
                    faults.append(f"{what.capitalize()} could not be copied. {failure}")
                _record(what, copied, time.monotonic() - begun)
    except Failure:
        _record_untried(left)
        raise
    if faults:
        raise Failure(" ".join(faults))


def restore(settings: Settings, what: str) -> Copied:
    """Put the newest copy back where it came from.

    Raises:
        Failure: it could not be.
    """
    with _alone(), offsite(settings) as copies:
        return copies.restore(what)


def fetch(settings: Settings, what: str, folder: Path) -> None:
    """Bring the newest copy into a folder.

    Raises:
        Failure: there is none.
    """
    with offsite(settings) as copies:
        copies.check()
        # What it holds is nobody else's.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if what == "documents":
            copies.tool.run("copy", CURRENT, str(folder), timeout_seconds=TRANSFER_SECONDS)
        elif what == "dumps":
            copies.manifest()
            copies.tool.run("copy", f"{ENCRYPTED}:dumps/{copies.dumps()[-1]}", str(folder), timeout_seconds=TRANSFER_SECONDS)
        elif what == "release":
            (folder / "release.json").write_bytes(copies.newest(what))
        else:
            extract(copies.newest(what), folder)


def _copy(given: argparse.Namespace) -> None:
    if given.ended:
        if result := ended_from_outside():
            _record_untried(given.what)
            log.error("The copy was ended from outside (%s): `journalctl --unit 'holdfast-offsite@*'` says by what.", result)
        return
    try:
        settings = Settings.read(given.settings)
    except Failure:
        _record_untried(given.what)
        raise
    copy(settings, given.what)


def _cat(settings: Settings, path: str) -> None:
    with offsite(settings) as copies:
        done = subprocess.run(copies.tool.words("cat", f"{ENCRYPTED}:{path}"), check=False, stdin=subprocess.DEVNULL, env=environment())
    if done.returncode:
        raise Failure(f"{path} could not be read: `holdfast offsite list` names what is there.")


def _check(settings: Settings) -> None:
    with offsite(settings) as copies:
        copies.check()
        place = f"{settings.bucket.bucket} at {settings.bucket.endpoint}"
        print(f"The bucket {place} answers over TLS, and what lies in {settings.path} opens.")
        if settings.repository_path:
            found = copies.backups()
            if not found:
                raise Failure(f"{settings.repository_path} opens and has no backup of the database: `holdfast backup full` makes one.")
            print(f"The database's backups open; the newest of {len(found)} is {found[-1]}.")


def _list(settings: Settings) -> None:
    with offsite(settings) as copies:
        copies.check()
        print("\n".join(copies.report()))


def _restored(settings: Settings, what: str) -> None:
    copied = restore(settings, what)
    print(f"{what}: {copied.objects} objects, {copied.size} bytes")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `offsite` to the command line."""
    parser = commands.add_parser("offsite", help="encrypted copies off the host: dumps, documents, certificates, release, inventory")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help=argparse.SUPPRESS)
    actions = parser.add_subparsers(dest="action", required=True)

    def add(name: str, told: str, call: Callable[[Settings, argparse.Namespace], object]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=told)
        action.set_defaults(call=lambda given: call(Settings.read(given.settings), given))
        return action

    action = actions.add_parser("copy", help="make copies now")
    action.add_argument("what", nargs="+", choices=(*WHAT, FILES), help=f"{FILES} is all but the dumps")
    action.add_argument("--ended", action="store_true", help="only record that it was ended from outside, where it was (ExecStopPost=)")
    action.set_defaults(call=_copy)
    add("check", "prove that the bucket opens", lambda settings, given: _check(settings))
    add("list", "say what the bucket has", lambda settings, given: _list(settings))
    action = add("cat", "print one file of the bucket, as `list` names it", lambda settings, given: _cat(settings, given.path))
    action.add_argument("path")
    action = add("fetch", "bring the newest copy into a folder", lambda settings, given: fetch(settings, given.what, given.folder))
    action.add_argument("what", choices=WHAT)
    action.add_argument("folder", type=Path)
    action = add("restore", "put the newest copy back where it came from", lambda settings, given: _restored(settings, given.what))
    action.add_argument("what", choices=("documents", "certificates", "release"))
