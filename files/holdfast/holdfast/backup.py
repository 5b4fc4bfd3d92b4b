"""`holdfast backup TYPE`: a backup to every repository, after which what retention no longer asks for goes; or a proof of all they hold."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast import lock, metrics, postgres
from holdfast.failure import Failure
from holdfast.metrics import Gauge
from holdfast.unit import ended_from_outside

TYPES = ("full", "diff", "incr")
SETTINGS = Path("/etc/pgbackrest/holdfast.json")
LOCK = Path("/run/pgbackrest")
# A restore locks it, from before it waits for a backup.
RESTORE = Path("/var/lib/holdfast-restore")
BACKUP_SECONDS = 24 * 3600
DAY_SECONDS = 86400
# A push to a bucket that does not answer ends before.
STANZA_SECONDS = 120
LOCKED = "unable to acquire lock"
# What `pgbackrest verify` says of a backup, and of the segments of one archive.
VERIFIED = {
    "files of the backup": re.compile(r"backup: (\S+), .*total files checked: (\d+), total valid files: (\d+)"),
    "segments of the archive": re.compile(r"archiveId: (\S+), .*total WAL checked: (\d+), total valid WAL: (\d+)"),
}

log = logging.getLogger("holdfast.backup")


@dataclass(frozen=True)
class Repository:
    """One repository, as the inventory has it.

    Attributes:
        key: pgBackRest's number of it.
        min_full_backups: full backups that are kept at least.
        retention_days: days back to which the database can be recovered at least.
    """

    key: int
    min_full_backups: int
    retention_days: int


def repositories() -> list[Repository]:
    """Return the repositories.

    Raises:
        Failure: the role pgbackrest has not configured this host.
    """
    try:
        content: dict[str, Any] = json.loads(SETTINGS.read_text(encoding="utf-8"))
        return [Repository(**each) for each in content["repositories"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Failure(f"{SETTINGS} can't be read ({error}): run `ansible-playbook site.yml --tags pgbackrest`.") from error


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other backup runs, and keep others waiting meanwhile.

    Raises:
        Failure: the server has never been started.
    """
    try:
        # The folder itself: root and postgres can both open it, whoever came first.
        folder = os.open(LOCK, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Failure(f"{LOCK} is missing, which the server's start makes: start PostgreSQL.") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("a backup or a proof of them is running (`systemctl list-units 'holdfast-backup@*'`): this waits until it has ended")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def fulls(found: dict[str, Any], key: int) -> list[tuple[int, bool]]:
    """Return when each full backup of a repository had ended, oldest first, and whether it is a good one."""
    return sorted(
        (int(each["timestamp"]["stop"]), not each["error"])
        for each in found["backup"]
        if each["type"] == "full" and each["database"]["repo-key"] == key
    )


def kept_fulls(repository: Repository, made: list[tuple[int, bool]], now: float) -> int:
    """Say how many full backups are kept: a number of good ones at least, and as many as reach back the days at least."""
    begin = now - repository.retention_days * DAY_SECONDS
    good = [place for place, (_, sound) in enumerate(reversed(made), 1) if sound]
    within = sum(1 for ended, sound in made if sound and ended > begin)
    # Only the newest full backup that had ended before the first of these days can be rolled forward to any moment of it.
    wanted = max(repository.min_full_backups, min(within + 1, len(good)), 1)
    # pgBackRest counts those with damaged pages too, and none of them may stand in for a good one.
    return good[wanted - 1] if wanted <= len(good) else max(wanted, len(made))


def refuse_damaged(found: dict[str, Any], key: int) -> None:
    """Refuse a newest backup that pgBackRest made though pages of it are damaged; what is older is kept.

    Raises:
        Failure: it is one, or there is no backup.
    """
    made = [each for each in found["backup"] if each["database"]["repo-key"] == key]
    if not made:
        raise Failure("it lists no backup: `holdfast archive` says why.")
    newest = max(made, key=lambda each: int(each["timestamp"]["stop"]))
    if newest["error"]:
        raise Failure(
            f"the backup {newest['label']} was made of pages whose checksums are wrong, so an older one has to be restored "
            "(docs/recovery.md, A page is damaged)."
        )


def _expire(repository: Repository, found: dict[str, Any]) -> None:
    if lock.held(RESTORE):
        log.info("a restore waits, and may need what is old: the next backup lets it go")
        return
    count = kept_fulls(repository, fulls(found, repository.key), time.time())
    option = f"--repo{repository.key}-retention-full"
    postgres.pgbackrest("expire", f"--repo={repository.key}", f"{option}-type=count", f"{option}={count}")


def _back_up(kind: str, repository: Repository) -> None:
    postgres.pgbackrest("backup", f"--repo={repository.key}", f"--type={kind}", "--no-expire-auto", timeout_seconds=BACKUP_SECONDS)
    found = postgres.info()
    refuse_damaged(found, repository.key)
    _expire(repository, found)


def run(kind: str, keys: Collection[int] = ()) -> None:
    """Back up to each repository, or to some; a repository that fails does not keep the next from its backup.

    Raises:
        Failure: a repository failed; metrics say so too.
    """
    with alone():
        begun = time.time()
        faults = []
        for repository in repositories():
            if keys and repository.key not in keys:
                continue
            try:
                _back_up(kind, repository)
            except Failure as failure:
                faults.append(f"repository {repository.key}: {failure}")
            except (OSError, ValueError, KeyError) as error:
                log.exception("the backup to repository %s ended early", repository.key)
                faults.append(f"repository {repository.key}: {error!r}.")
        _record(kind, begun, success=not faults)
    if faults:
        raise Failure(
            f"The {kind} backup failed; {'; '.join(faults)} Where a bucket refuses, docs/bucket.md says why; then `holdfast backup {kind}`."
        )
    log.info("The %s backup took %.0f s", kind, time.time() - begun)


def _record(kind: str, begun: float, *, success: bool) -> None:
    labels = (("type", kind),)
    topic = f"backup_{kind}"
    name = "holdfast_backup_last_success_timestamp_seconds"
    now = time.time()
    last = now if success else metrics.read(topic).get(f'{name}{{type="{kind}"}}')
    metrics.write(
        topic,
        [
            Gauge(name, "When the last backup of this type ended that succeeded.", labelled={} if last is None else {labels: last}),
            Gauge("holdfast_backup_last_run_timestamp_seconds", "When the last backup of this type ended.", labelled={labels: now}),
            Gauge("holdfast_backup_duration_seconds", "How long the last backup of this type took.", labelled={labels: now - begun}),
            Gauge("holdfast_backup_success", "Whether the last backup of this type succeeded.", labelled={labels: float(success)}),
        ],
    )


def ended(kind: str) -> None:
    """Record a backup that was ended from outside, as systemd tells after each one; a proof of the backups comes to nothing then."""
    if kind in TYPES and (result := ended_from_outside()):
        _record(kind, time.time(), success=False)
        log.error(
            "The %s backup was ended from outside (%s): `journalctl --unit holdfast-backup@%s.service` says by what.", kind, result, kind
        )


def damages(said: str) -> list[str]:
    """Return what `pgbackrest verify --output=text` found to be damaged or gone; it says nothing of what is good."""
    found = [
        f"{int(checked) - int(valid)} of {checked} {what} {name} are damaged or gone"
        for what, pattern in VERIFIED.items()
        for name, checked, valid in pattern.findall(said)
        if checked != valid
    ]
    return found or (["pgBackRest says: " + " ".join(said.split())] if "status: error" in said else [])


def _verify(repository: Repository) -> list[str]:
    try:
        said = postgres.pgbackrest("verify", f"--repo={repository.key}", "--output=text", timeout_seconds=BACKUP_SECONDS)
    except Failure as failure:
        return [str(failure).rstrip(".")]
    found = damages(said)
    # A page that was damaged on the host is in the repository as it was sent, so its checksum there is right.
    try:
        refuse_damaged(postgres.info(), repository.key)
    except Failure as failure:
        found.append(str(failure).rstrip("."))
    return found


def verify() -> None:
    """Read every file of every repository, older backups too, and compare it with its checksum.

    Raises:
        Failure: something is damaged or gone, or a repository can't be read; metrics say so too.
    """
    with alone():
        faults = {repository.key: _verify(repository) for repository in repositories()}
    name = "holdfast_repository_verified_timestamp_seconds"
    before, now = metrics.read("verify"), time.time()
    last = {key: before.get(f'{name}{{repository="{key}"}}') if found else now for key, found in faults.items()}
    metrics.write(
        "verify",
        [
            Gauge(
                name,
                "When every file of a repository was last found to be what was written.",
                labelled={(("repository", str(key)),): at for key, at in last.items() if at is not None},
            ),
            Gauge(
                "holdfast_repository_sound",
                "Whether every file of a repository was what was written, when it was last looked at.",
                labelled={(("repository", str(key)),): float(not found) for key, found in faults.items()},
            ),
        ],
    )
    if said := [f"repository {key}: {fault}" for key, found in faults.items() for fault in found]:
        raise Failure(
            f"Not all that the repositories hold is sound; {'; '.join(said)}. Where files or segments are damaged or gone, "
            "`holdfast backup full` makes a backup that needs none of them; then look after the storage."
        )


def first(*, check: bool = False) -> bool:
    """Make the stanza and a first full backup where a repository has none; say whether anything was, or would be, made.

    Raises:
        Failure: a repository refused.
    """
    found = postgres.info()
    wanted = [each.key for each in repositories()]
    ready = {each["key"] for each in found["repo"] if each["status"]["code"] in (0, 2)}
    if stanza := not set(wanted) <= ready:
        if check:
            return True
        _create_stanza()
        found = postgres.info()
    without = [key for key in wanted if not any(sound for _, sound in fulls(found, key))]
    if without and not check:
        postgres.pgbackrest("check")
        run("full", without)
    return stanza or bool(without)


def _create_stanza() -> None:
    """Make the stanza, between two pushes of the archiver, which hold the lock that this takes, too."""
    deadline = time.monotonic() + STANZA_SECONDS
    while True:
        try:
            postgres.pgbackrest("stanza-create")
        except Failure as failure:
            if LOCKED not in str(failure) or time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return


def _call(given: argparse.Namespace) -> None:
    if given.ended:
        ended(given.type)
    elif given.type == "first":
        print("changed" if first(check=given.check) else "unchanged")
    elif given.type == "verify":
        verify()
    else:
        run(given.type)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `backup` to the command line."""
    parser = commands.add_parser("backup", help="back the database up to every repository")
    parser.add_argument(
        "type",
        choices=(*TYPES, "first", "verify"),
        help="full, differential or incremental; what a new host lacks: its stanza and its first backup; or a proof of all that is held",
    )
    parser.add_argument("--check", action="store_true", help="with first: only say whether anything is missing")
    parser.add_argument("--ended", action="store_true", help="only record that it was ended from outside, where it was (ExecStopPost=)")
    parser.set_defaults(call=_call)
