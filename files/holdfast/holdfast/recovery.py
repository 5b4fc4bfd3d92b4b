"""Which backup, timeline and options of pgBackRest bring the database back to a moment that a person wrote down.

Every restore begins a timeline, and a moment can lie on an older one: whoever restored to 10:15 and wants 10:17 after all means the 10:17
of before that restore. So the timeline is the one that the server wrote on at that moment, and the backup lies on the way to it.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast import postgres
from holdfast.failure import Failure

BIN = Path("/usr/lib/postgresql/17/bin")
POINTS = Path("/var/lib/holdfast-restore/points.json")
FORMS = "write a time with its zone such as '2026-11-23 10:15:00+00', latest, a backup's label, xid:NUMBER or name:RESTORE_POINT"
LABEL = re.compile(r"^\d{8}-\d{6}F(_\d{8}-\d{6}[DI])?$")
POINT = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$")
DATE = re.compile(r"^\d{4}-\d\d-\d\d")
XID = re.compile(r"^xid:(\d{1,10})$")
SEEN_XID = re.compile(r"\btx: +([1-9]\d*)|\bnextXid (\d+)")
OK = 0
ARCHIVED_SECONDS = 120
PAUSE_SECONDS = 0.3
# The stanza, its data or a backup are missing.
NOTHING = (1, 2, 3)


@dataclass(frozen=True)
class Target:
    """What a person asks for.

    Attributes:
        kind: latest, time, label, xid or name.
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
        if text == "latest":
            return cls("latest")
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
            raise Failure(f"The target '{text}' has no time zone, so it may mean any hour: write '{text}+00' for UTC.")
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
            "latest": "the last archived moment",
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


@dataclass(frozen=True)
class Archive:
    """One repository: its backups, oldest first, and its timelines.

    Attributes:
        key: pgBackRest's number of it.
        system_id: identifier of the cluster whose past it is.
        backups: good backups, oldest first.
        begun: when each timeline but the first began.
        ancestors: for each of these, the timelines before it and where each was left.
    """

    key: int
    system_id: int
    backups: list[Backup]
    begun: dict[int, float] = field(default_factory=dict)
    ancestors: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

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
    """

    target: Target
    backup: Backup
    timeline: int
    databases: list[str]

    def options(self) -> list[str]:
        """Return the options of `pgbackrest restore`."""
        kind = {"latest": "default", "label": "immediate"}.get(self.target.kind, self.target.kind)
        words = [f"--repo={self.backup.repository}", f"--set={self.backup.label}", f"--type={kind}"]
        if kind != "default":
            words.append("--target-action=promote")
        if kind != "immediate":
            words.append(f"--target-timeline={self.timeline}")
        if kind not in ("default", "immediate"):
            words.append(f"--target={self.target.value}")
        return words


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S+00")


def lsn(text: str) -> int:
    """Return a position in WAL as a number."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def points() -> dict[str, float]:
    """Return when each restore point was made, by name."""
    try:
        content: dict[str, float] = json.loads(POINTS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def flush() -> str:
    """Write one transaction more, since a target is reached only where something follows it; return the segment that ends with it."""
    return postgres.psql("BEGIN; SELECT pg_current_xact_id(); COMMIT; SELECT pg_walfile_name(pg_switch_wal());").splitlines()[-1]


def wait_archived(segment: str, seconds: float) -> bool:
    """Wait until the server has archived a segment, and say whether it has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        last = postgres.psql("SELECT last_archived_wal FROM pg_stat_archiver")
        if last[:8] == segment[:8] and last[:24] >= segment:
            return True
        time.sleep(PAUSE_SECONDS)
    return False


def reach(target: Target) -> None:
    """Have what a copy needs to reach a target archived, where the live server runs.

    Raises:
        Failure: it is not archived.
    """
    try:
        segment = flush()
    except Failure:
        return
    if target.kind != "label" and not wait_archived(segment, ARCHIVED_SECONDS):
        raise Failure(f"What was written just now is not in the archive after {ARCHIVED_SECONDS} s: `holdfast archive` says why.")


def archives() -> list[Archive]:
    """Read every repository.

    Raises:
        Failure: none can be read, or none holds a backup.
    """
    found = postgres.info()
    faults, read = [], []
    for repo in found["repo"]:
        if repo["status"]["code"] == OK:
            read.append(_archive(found, repo["key"]))
        else:
            faults.append(f"repository {repo['key']}: {_fault(repo['status'])}.")
    if not read:
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
    archive = Archive(key, int(own["system-id"]), sorted(backups, key=lambda each: each.ended))
    folder = f"archive/{postgres.STANZA}/{own['version']}-{own['id']}"
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
            chosen = next(([each] for each in reversed(candidates) if _next_xid(each) <= int(target.value)), [])
        if not chosen:
            _refuse_early(target, candidates)
    backup = chosen[-1]
    about = json.loads(postgres.pgbackrest("info", f"--set={backup.label}", f"--repo={backup.repository}", "--output=json"))
    names = [each["name"] for each in about[0]["backup"][0].get("database-ref") or []]
    return Choice(target, backup, timeline, [name for name in names if name != "postgres"])


def find(target: Target, found: list[Archive]) -> Choice:
    """Find how a target is reached, looking into one repository after the other.

    Raises:
        Failure: no repository reaches it; the first says why.
    """
    faults = []
    for archive in found:
        try:
            return choose(target, archive)
        except Failure as failure:
            faults.append(failure)
    raise faults[0]
