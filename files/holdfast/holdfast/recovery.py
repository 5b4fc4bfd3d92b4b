"""Which backup, timeline and options of pgBackRest bring the database back to a moment that a person wrote down.

Every restore begins a timeline, and a moment can lie on an older one: whoever restored to 10:15 and wants 10:17 after all means the 10:17
of before that restore. So the timeline is the one that the server wrote on at that moment, and the backup lies on the way to it.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast import postgres
from holdfast.failure import Failure

BIN = Path("/usr/lib/postgresql/17/bin")
POINTS = Path("/var/lib/holdfast-restore/points.json")
LATEST = "latest"
# Takes the loss of what was written after a segment that is missing.
UNTIL_GAP = "until-gap"
FORMS = "write a time with its zone such as '2026-11-23 10:15:00+00', latest, a backup's label, xid:NUMBER or name:RESTORE_POINT"
LABEL = re.compile(r"^\d{8}-\d{6}F(_\d{8}-\d{6}[DI])?$")
POINT = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")
DATE = re.compile(r"^\d{4}-\d\d-\d\d")
XID = re.compile(r"^xid:(\d{1,10})$")
SEEN_XID = re.compile(r"\btx: +([1-9]\d*)|\bnextXid (\d+)")
OK = 0
ARCHIVED_SECONDS = 120
PAUSE_SECONDS = 0.3
# Exit codes: of `pgbackrest archive-get` where there is no such file, and one at which PostgreSQL gives up instead of going on; of those
# above 125 it has names of its own for 126 and 127, and takes 128 and a signal's number for the signal.
MISSING, UNREADABLE = 1, 200
LOG_BYTES, SEGMENT_BYTES = 1 << 32, 1 << 24
# Twice what role pgbackrest has sent at once at most: so far a segment may be overtaken.
OVERTAKEN = 8
# The stanza, its data or a backup are missing.
NOTHING = (1, 2, 3)
WAITING = """
SELECT json_build_array(count(*), coalesce(extract(epoch FROM now() - min(modification)), 0))
FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}\\.ready$' AND left(name, 24) > :'last'
"""
ARCHIVED_AT = "SELECT coalesce(extract(epoch FROM last_archived_time), 0) FROM pg_stat_archiver"
UNARCHIVED = "SELECT coalesce(json_agg(left(name, 24)), '[]') FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}\\.ready$'"
# How the archive calls a segment that is whole; of the last one before a restore it may have a part.
HELD = re.compile(r"^([0-9A-F]{24})-", re.MULTILINE)

log = logging.getLogger("holdfast.recovery")


@dataclass(frozen=True)
class Target:
    """What a person asks for.

    Attributes:
        kind: latest, until-gap, time, label, xid or name.
        value: the label, the number or the name; the time as the server writes it.
        moment: seconds since 1970, where that is known.
    """

    kind: str
    value: str = ""
    moment: float | None = None

    @classmethod
    def parse(cls, text: str, now: float) -> Target:
        """Read a target.

        Raises:
            Failure: it is none, or it has not been yet.
        """
        text = text.strip()
        if text in (LATEST, UNTIL_GAP):
            return cls(text)
        if LABEL.match(text):
            return cls("label", text)
        if found := XID.match(text):
            return cls("xid", found[1])
        if text.startswith("name:"):
            return cls._point(text.removeprefix("name:"))
        if DATE.match(text):
            return cls._time(text, now)
        raise Failure(f"The target '{text}' is none: {FORMS}.")

    @classmethod
    def _time(cls, text: str, now: float) -> Target:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise Failure(f"The target '{text}' is no time: {FORMS}.") from error
        if moment.tzinfo is None:
            whole = text if len(text) > len("2026-11-23") else f"{text} 00:00:00"
            raise Failure(f"The target '{text}' has no time zone, so it may mean any hour: write '{whole}+00' for UTC.")
        if moment.timestamp() > now:
            raise Failure(f"The target '{text}' is in the future, and it is {_utc(now)} now: write an earlier time, or latest.")
        return cls("time", moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00"), moment.timestamp())

    @classmethod
    def _point(cls, name: str) -> Target:
        known = points()
        if name not in known:
            raise Failure(
                f"The restore point '{name}' is none that `holdfast restore point` made here (it knows {', '.join(known) or 'none'}): "
                "write one of these, or the time at which it was made."
            )
        return cls("name", name, known[name])

    def __str__(self) -> str:
        """Say it in words."""
        return {
            LATEST: "the last archived moment",
            UNTIL_GAP: "the last moment before WAL is missing",
            "time": f"{self.value.replace('.000000', '')}",
            "label": f"the end of the backup {self.value}",
            "xid": f"the end of the transaction {self.value}",
            "name": f"the restore point {self.value}",
        }[self.kind]


@dataclass(frozen=True)
class Backup:
    """One good backup of a repository.

    Attributes:
        label: pgBackRest's name of it.
        repository: pgBackRest's number of its repository.
        ended: when it had ended.
        began_wal: the first segment that it needs.
        wal: the segment that makes it consistent.
        lsn: the position at which it is.
        size: bytes of the data directory.
    """

    label: str
    repository: int
    ended: float
    began_wal: str
    wal: str
    lsn: int
    size: int

    @property
    def timeline(self) -> int:
        """Return the timeline that it was made on."""
        return int(self.wal[:8], 16)

    @property
    def segment_bytes(self) -> int:
        """Return the size of a segment: the one at which the position lies in that segment, most often 16 MB."""
        number = int(self.wal[16:], 16)
        return next(
            (size for size in (SEGMENT_BYTES, *(1 << power for power in range(20, 31))) if _segment(self.lsn, size) == number),
            SEGMENT_BYTES,
        )


@dataclass(frozen=True)
class Archive:
    """One repository: its backups, oldest first, and its timelines.

    Attributes:
        key: pgBackRest's number of it.
        system_id: identifier of the cluster whose past it is.
        backups: good backups, oldest first.
        begun: when each timeline but the first began.
        ancestors: for each of these, the timelines before it and where each was left.
        last: the last segment that it holds; a newer timeline's is later.
        folder: where its segments lie.
    """

    key: int
    system_id: int
    backups: list[Backup]
    begun: dict[int, float] = field(default_factory=dict)
    ancestors: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    last: str = ""
    folder: str = ""

    def newest_timeline(self) -> int:
        """Return the timeline that is written on."""
        return max([*self.begun, *(each.timeline for each in self.backups)], default=1)

    def timeline_at(self, moment: float) -> int:
        """Return the timeline that was written on at a moment."""
        # A restore that was taken back had a timeline of its own as long as it lasted.
        begun = dict.fromkeys((each.timeline for each in self.backups), 0.0) | self.begun
        return max((timeline for timeline, since in begun.items() if since <= moment), default=min(begun, default=1))

    def on_the_way(self, timeline: int) -> list[Backup]:
        """Return the backups from which WAL leads to a timeline."""
        ends = dict(self.ancestors.get(timeline, []))
        return [each for each in self.backups if each.timeline == timeline or each.lsn <= ends.get(each.timeline, -1)]


@dataclass(frozen=True)
class Choice:
    """How a target is reached.

    Attributes:
        target: the target.
        backup: the backup that is restored.
        timeline: the timeline that is followed.
        databases: names of the databases in it.
        others: the other repositories that can be read; they may have WAL that the backup's own one lacks.
    """

    target: Target
    backup: Backup
    timeline: int
    databases: list[str]
    others: list[int] = field(default_factory=list)

    def options(self) -> list[str]:
        """Return the options of `pgbackrest restore`."""
        kind = {LATEST: "default", UNTIL_GAP: "default", "label": "immediate"}.get(self.target.kind, self.target.kind)
        words = [f"--repo={self.backup.repository}", f"--set={self.backup.label}", f"--type={kind}"]
        if kind != "default":
            words.append("--target-action=promote")
        if kind != "immediate":
            words.append(f"--target-timeline={self.timeline}")
        if kind not in ("default", "immediate"):
            words.append(f"--target={self.target.value}")
        return words

    def fetching(self, *own: str, ahead: str = "") -> list[str]:
        """Return the option that says how WAL is fetched.

        Args:
            own: options of pgBackRest for a copy that lies elsewhere than the server's data.
            ahead: one that it takes only while it fetches ahead.

        PostgreSQL takes every failure for the end of the archive, and begins to write there, unless the exit code is above 125. The command
        that pgBackRest makes asks one repository; its errors are below that, and to be late is to be missing.
        """
        # Only the first fetches ahead: what was missed in the spool would be taken for the answer of all of them.
        asked = [
            f"{self.backup.repository} {ahead}".rstrip(),
            *(f"{key} --no-archive-async" for key in (self.backup.repository, *self.others)),
        ]
        each = " ".join(f'"{repository}"' for repository in asked)
        words = " ".join(["pgbackrest", *own, f"--stanza={postgres.STANZA}"])
        get = f'{words} --repo=$repository archive-get %f "%p"'
        command = (
            f"said={MISSING}; for repository in {each}; do {get} && exit 0; test $? -eq {MISSING} || said={UNREADABLE}; done; exit $said"
        )
        return [f"--recovery-option=restore_command={command}"]


def _segment(position: int, size: int) -> int:
    """Return the number that the segment has in its log which ends at a position or holds it."""
    return (position - 1) % LOG_BYTES // size


def _number(segment: str, size: int) -> int:
    """Return the number of a segment since the cluster began, on any timeline."""
    return int(segment[8:16], 16) * (LOG_BYTES // size) + int(segment[16:], 16)


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S+00")


def lsn(text: str) -> int:
    """Return a position in WAL as a number."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def points() -> dict[str, float]:
    """Return when each restore point was made, by name.

    Raises:
        Failure: there were some, and their file can't be read.
    """
    try:
        content = json.loads(POINTS.read_text(encoding="utf-8"))
        return {name: float(at) for name, at in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Failure(
            f"{POINTS} can't be read ({error}), so no restore point is known by its name: write the time at which it was made instead; "
            "bring that file back, or remove it to begin anew."
        ) from error


def flush() -> str:
    """Write one transaction more, since a target is reached only where something follows it; return the segment that ends with it."""
    # Where archive_timeout's own switch comes first, the answer is the boundary; from 17 on that is named as the segment that begins there.
    return postgres.psql("BEGIN; SELECT pg_current_xact_id(); COMMIT; SELECT pg_walfile_name(pg_switch_wal() - 1);").splitlines()[-1]


def wait_archived(segment: str, seconds: float) -> bool:
    """Wait until the server has archived a segment, and say whether it has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        last = postgres.psql("SELECT last_archived_wal FROM pg_stat_archiver")
        if last[:8] == segment[:8] and last[:24] >= segment:
            return True
        time.sleep(PAUSE_SECONDS)
    return False


def last_archived(repository: int) -> str:
    """Return the last segment that a repository holds."""
    return _last(postgres.info(f"--repo={repository}"), repository)


def waiting(repository: int) -> tuple[int, float]:
    """Return how many segments wait to be archived that a repository does not hold yet, and for how many seconds the oldest has."""
    segments, seconds = json.loads(postgres.psql(postgres.variables(last=last_archived(repository)) + WAITING))
    return int(segments), float(seconds)


def archived_until(waited: float) -> float:
    """Return when something was archived last, in seconds since 1970.

    Args:
        waited: for how many seconds the oldest segment that is not has waited; a crash takes the server's own statistics away.
    """
    return float(postgres.psql(ARCHIVED_AT)) or time.time() - waited


def unarchived() -> set[str]:
    """Return the segments that the server has yet to see archived; nothing where it does not run."""
    try:
        return set(json.loads(postgres.psql(UNARCHIVED)))
    except Failure:
        return set()


def reach(choice: Choice) -> None:
    """Have what a copy needs to reach a target archived, where the live server runs.

    Raises:
        Failure: it is not archived, and the target is the end of all that was written.
    """
    target = choice.target
    try:
        segment = flush()
        _, waited = waiting(choice.backup.repository)
        there = target.kind == "label" or (target.moment is not None and target.moment + ARCHIVED_SECONDS < archived_until(waited))
    except Failure:
        return
    # Where a moment needs more than is archived, the copy's server says so.
    if not there and not wait_archived(segment, ARCHIVED_SECONDS) and target.kind == LATEST:
        raise Failure(f"What was written just now is not in the archive after {ARCHIVED_SECONDS} s: `holdfast archive` says why.")


def archives(*, every: bool = False) -> list[Archive]:
    """Read every repository.

    Args:
        every: take none for granted; else those that can't be read are left out as long as another one can.

    Raises:
        Failure: none can be read, or none holds a backup; with `every`, also where that is true of one of them.
    """
    found = postgres.info()
    faults, read = [], []
    for repo in found["repo"]:
        if repo["status"]["code"] == OK:
            read.append(_archive(found, repo["key"]))
        else:
            faults.append(f"repository {repo['key']}: {_fault(repo['status'])}.")
    if not read or (every and faults):
        raise Failure(f"There is nothing to restore from; {' '.join(faults) or 'no repository is configured.'}")
    return read


def _fault(status: dict[str, Any]) -> str:
    """Say what a repository's status means, and the way out."""
    said = " ".join(status["message"].split())
    if status["code"] in NOTHING:
        return f"it holds no backup ({said}): `holdfast backup full` makes one; where it should hold some, its path or bucket is wrong"
    if "FormatError" in said or "CryptoError" in said:
        return "it does not open: write the pgbackrest_cipher_passphrase with which it was begun, and run the role pgbackrest"
    return postgres.reason(said)


def _last(found: dict[str, Any], key: int) -> str:
    """Return the last segment that a repository holds of the cluster that is its newest."""
    own = [each["id"] for each in found["db"] if each["repo-key"] == key][-1:]
    held: list[str | None] = [
        each["max"] for each in found["archive"] if each["database"]["repo-key"] == key and each["database"]["id"] in own
    ]
    return max(filter(None, held), default="")


def _archive(found: dict[str, Any], key: int) -> Archive:
    own = [each for each in found["db"] if each["repo-key"] == key][-1]
    backups = [
        Backup(
            each["label"],
            key,
            float(each["timestamp"]["stop"]),
            each["archive"]["start"],
            each["archive"]["stop"],
            lsn(each["lsn"]["stop"]),
            int(each["info"]["size"]),
        )
        for each in found["backup"]
        if not each["error"] and each["archive"]["stop"] and each["database"]["repo-key"] == key and each["database"]["id"] == own["id"]
    ]
    folder = f"archive/{postgres.STANZA}/{own['version']}-{own['id']}"
    archive = Archive(key, int(own["system-id"]), sorted(backups, key=lambda each: each.ended), last=_last(found, key), folder=folder)
    listed: dict[str, dict[str, Any]] = json.loads(
        postgres.pgbackrest("repo-ls", folder, f"--repo={key}", r"--filter=\.history$", "--output=json")
    )
    for name, about in listed.items():
        if name.endswith(".history"):
            timeline = int(name[:8], 16)
            lines = postgres.pgbackrest("repo-get", f"{folder}/{name}", f"--repo={key}").splitlines()
            words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
            archive.begun[timeline] = float(about["time"])
            archive.ancestors[timeline] = [(int(each[0]), lsn(each[1])) for each in words]
    return archive


def _next_xid(backup: Backup) -> int:
    """Return a transaction that had not ended when a backup was consistent, nor had any after it; WAL says which."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        for wal in (backup.wal, backup.began_wal):
            segment = folder / wal
            postgres.pgbackrest("archive-get", "--no-archive-async", f"--repo={backup.repository}", wal, str(segment))
            done = subprocess.run(
                [BIN / "pg_waldump", segment], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
            )
            seen = [int(used) + 1 if used else int(following) for used, following in SEEN_XID.findall(done.stdout)]
            if seen:
                return max(seen)
    raise Failure(f"WAL does not say at which transaction the backup {backup.label} is: write a time instead.")


def _refuse_early(target: Target, backups: list[Backup]) -> None:
    oldest = f"the oldest backup that leads to it ended at {_utc(backups[0].ended)}" if backups else "no backup leads to it"
    raise Failure(f"The target '{target}' can't be reached, {oldest}: write a later target.")


def _refuse_ambiguous(target: Target, archive: Archive, later: list[Backup]) -> None:
    """Refuse a transaction whose number a restore may have given away again, while there are backups that lead to both.

    Args:
        target: the transaction.
        archive: the repository.
        later: backups on the way to the newest timeline that were made after it had ended.
    """
    known = {each.timeline for each in archive.backups}
    left = [at for ways in archive.ancestors.values() for timeline, at in ways if timeline in known]
    if left and not any(each.lsn <= min(left) for each in later):
        raise Failure(
            f"The number {target.value} may have been given to two transactions, as a restore counts on from the moment it went back to: "
            "write a time instead."
        )


def choose(target: Target, archive: Archive) -> Choice:
    """Find the backup and the timeline of a repository that reach a target.

    Raises:
        Failure: none does.
    """
    if target.kind == "label":
        chosen = [each for each in archive.backups if each.label == target.value]
        if not chosen:
            known = ", ".join(each.label for each in archive.backups[-5:])
            raise Failure(f"There is no backup '{target.value}': the newest are {known}; `holdfast restore list` shows all.")
        timeline = chosen[0].timeline
    else:
        timeline = archive.newest_timeline() if target.moment is None else archive.timeline_at(target.moment)
        chosen = candidates = archive.on_the_way(timeline)
        # pgBackRest knows the end to the second.
        if target.moment is not None:
            chosen = [each for each in candidates if each.ended + 1 <= target.moment]
        elif target.kind == "xid":
            chosen = next(
                (candidates[:place] for place in range(len(candidates), 0, -1) if _next_xid(candidates[place - 1]) <= int(target.value)), []
            )
        if not chosen:
            _refuse_early(target, candidates)
        if target.kind == "xid":
            _refuse_ambiguous(target, archive, candidates[len(chosen) :])
    backup = chosen[-1]
    about = json.loads(postgres.pgbackrest("info", f"--set={backup.label}", f"--repo={backup.repository}", "--output=json"))
    names = [each["name"] for each in about[0]["backup"][0].get("database-ref") or []]
    return Choice(target, backup, timeline, [name for name in names if name != "postgres"])


def find(target: Target, found: list[Archive]) -> Choice:
    """Find how a target is reached, looking into one repository after the other.

    The one that goes furthest comes first: another one may have been away while the last was written.

    Raises:
        Failure: no repository reaches it; the first says why.
    """
    faults = []
    for archive in sorted(found, key=lambda each: each.last, reverse=True):
        try:
            return replace(choose(target, archive), others=[each.key for each in found if each.key != archive.key])
        except Failure as failure:
            faults.append(failure)
    raise faults[0]


def _gap(choice: Choice, found: list[Archive], waiting: Collection[str]) -> tuple[str, str]:
    """Return the first segment on a way that no repository holds, nothing where all are there, and the last one at all."""
    own = next(each for each in found if each.key == choice.backup.repository)
    # The past of another cluster closes no gap of this one.
    same = [each for each in found if each.system_id == own.system_id]
    size, timeline, last = choice.backup.segment_bytes, choice.timeline, max(each.last for each in same)
    # A timeline that was left counts up to there: what it has beyond was given up, or is another past.
    ends = {left: (at - 1) // size for left, at in own.ancestors.get(timeline, [])}
    # Of a timeline that has only begun nothing may be archived yet, and the segment in which it did is whole on none.
    end = _number(last, size) if int(last[:8] or "0", 16) >= timeline else max(ends.values(), default=0) - 1
    each_log = LOG_BYTES // size
    wanted = [
        [
            f"{each:08X}{number // each_log:08X}{number % each_log:08X}"
            for each in sorted({timeline, *ends}, reverse=True)
            if number <= ends.get(each, number)
        ]
        for number in range(_number(choice.backup.began_wal, size), end + 1)
    ]
    held = set(waiting)
    for folder in sorted({name[:16] for names in wanted for name in names}):
        for archive in same:
            held.update(HELD.findall(postgres.pgbackrest("repo-ls", f"{archive.folder}/{folder}", f"--repo={archive.key}")))
    return next((names[-1] for names in wanted if held.isdisjoint(names)), ""), last


def refuse_gap(choice: Choice, found: list[Archive], waiting: Collection[str] = (), *, lost: bool = False) -> None:
    """Refuse a way to the last archived moment on which WAL is missing: PostgreSQL would take that for the end, and say nothing.

    Args:
        choice: the way.
        found: the repositories.
        waiting: segments that the server here is about to archive; one after them may be there already.
        lost: whether the host is lost that sent them; it sent several at once, so one of the last may have been on its way.

    Raises:
        Failure: WAL is missing.
    """
    if choice.target.kind != LATEST:
        return
    missing, last = _gap(choice, found, waiting)
    size = choice.backup.segment_bytes
    if missing and lost and _number(last, size) - _number(missing, size) < OVERTAKEN:
        log.warning("the lost host had not sent the segment %s yet, so what it sent of later ones, up to %s, ends before it", missing, last)
    elif missing:
        raise Failure(
            f"The segment {missing} of WAL is missing in every repository that can be read, so all that was written from there on, up to "
            f"the last segment {last}, can't be rolled forward: bring it back into the repository; where "
            f"nobody can, as a lost host had not sent it yet, write {UNTIL_GAP} instead of latest (in a rebuild "
            f"-e disaster_recovery_target={UNTIL_GAP}), which loses that."
        )
