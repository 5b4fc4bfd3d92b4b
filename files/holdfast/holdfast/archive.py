"""`holdfast archive`: measure whether what the server writes reaches every repository, and have a gap closed by a new backup.

It also sees to it that a segment ends in time where archive_timeout alone would not. The checkpointer looks at that when it is woken, or
after checkpoint_timeout; one that has just started was not woken, and one whose clock was set back waits until that is where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast import durable, metrics, postgres
from holdfast.backup import repositories
from holdfast.failure import Failure
from holdfast.metrics import Gauge

TOPIC = "archive"
STATE = Path("/var/lib/holdfast-archive/state.json")
# A unit watches it, and makes a backup when it is written.
WANTED = Path("/var/lib/holdfast-archive/backup-wanted")
# The first may fail: what it needs archived can still wait in the queue.
WANTED_AGAIN_SECONDS = 120
# Two runs of the timer later it is known, and two minutes have not passed.
LATE_SECONDS = 45
ANSWER_SECONDS = 15
SEGMENT = re.compile(r"^[0-9A-F]{24}$")
REFUSAL = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<]*)<")
QUESTION = """
    SELECT json_build_object(
        'ready', (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}\\.ready$'),
        'oldest_ready_seconds', (SELECT coalesce(extract(epoch FROM now() - min(modification)), 0)
                                 FROM pg_ls_archive_statusdir() WHERE name ~ '\\.ready$'),
        'last_archived', archived.last_archived_wal,
        'last_archived_at', coalesce(extract(epoch FROM archived.last_archived_time), 0),
        'last_failed_at', coalesce(extract(epoch FROM archived.last_failed_time), 0),
        'written_bytes', pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0'),
        'wal_bytes', (SELECT sum(size) FROM pg_ls_waldir()),
        'segment_bytes', pg_size_bytes(current_setting('wal_segment_size')),
        'archive_mode', current_setting('archive_mode'),
        'segment', pg_walfile_name(pg_current_wal_insert_lsn()),
        'next_transaction', pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
        'checkpointer_at', (SELECT coalesce(max(extract(epoch FROM backend_start)), 0) FROM pg_stat_activity
                            WHERE backend_type = 'checkpointer'))
    FROM pg_stat_archiver archived
"""

log = logging.getLogger("holdfast.archive")


@dataclass(frozen=True)
class Server:
    """What the server says of its WAL.

    Attributes:
        ready: segments that wait to be archived.
        oldest_ready_seconds: how long the oldest file has waited.
        last_archived: file that was archived last; nothing where none was since the statistics began.
        last_archived_at: when, in seconds since 1970.
        last_failed_at: when archiving failed last; 0 where it never did.
        written_bytes: position that it writes at.
        wal_bytes: what pg_wal holds.
        segment_bytes: size of a segment.
        archive_mode: `on` where it archives what it writes.
        segment: the one that it writes into.
        next_transaction: number that the next transaction gets which writes.
        checkpointer_at: when its checkpointer started, in seconds since 1970.
    """

    ready: int
    oldest_ready_seconds: float
    last_archived: str | None
    last_archived_at: float
    last_failed_at: float
    written_bytes: int
    wal_bytes: int
    segment_bytes: int
    archive_mode: str
    segment: str
    next_transaction: int
    checkpointer_at: float


@dataclass(frozen=True)
class State:
    """What one run leaves to the next.

    Attributes:
        at: when it ran.
        written_bytes: the position that the server wrote at.
        complete: for each repository that has answered, the segment up to which it was looked through.
        gap_at: for each repository with a gap that no backup has made good yet, when that was found.
        asked_at: when a backup was asked for that closes one; 0 where there is none.
        segment: the one that the server wrote into.
        first_transaction: number of the next transaction when that segment was seen first.
        next_transaction: the same when it was seen last.
        checkpointer_at: the checkpointer that was woken.
    """

    at: float = 0
    written_bytes: int = 0
    complete: dict[str, str] = field(default_factory=dict)
    gap_at: dict[str, float] = field(default_factory=dict)
    asked_at: float = 0
    segment: str = ""
    first_transaction: int = 0
    next_transaction: int = 0
    checkpointer_at: float = 0

    @property
    def overdue(self) -> bool:
        """Whether a transaction may lie in the segment, if that is still the one, since longer than the last run."""
        return self.next_transaction > self.first_transaction


@dataclass(frozen=True)
class Seen:
    """What a repository holds.

    Attributes:
        backups: when the newest good backup of each type had begun.
        missing: segments that are not in it though the server was told so.
        fault: why it can't be asked; nothing where it can.
    """

    backups: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    fault: str = ""


def segments(after: str, last: str, segment_bytes: int) -> Iterator[str]:
    """Name the segments of a timeline that follow one, to the last."""
    each_log = 2**32 // segment_bytes
    first, end = (int(name[8:16], 16) * each_log + int(name[16:], 16) for name in (after, last))
    for number in range(first + 1, end + 1):
        yield f"{last[:8]}{number // each_log:08X}{number % each_log:08X}"


def _wanted(state: State, server: Server, key: int) -> list[str]:
    """Name the segments that the server was told are archived, and nobody has looked for in a repository yet."""
    last, complete = server.last_archived or "", state.complete.get(str(key), "")
    if not SEGMENT.match(last):
        return []
    # A restore begins a timeline, and makes a backup of its own.
    if complete[:8] != last[:8]:
        return [last]
    return list(segments(complete, last, server.segment_bytes))


def _fault(stanza: dict[str, Any]) -> str:
    """Return why a repository can't be asked, in the object store's own words where it gave some."""
    own = [each["status"]["message"] for each in stanza.get("repo", []) if each["status"]["code"]]
    said = " ".join((own or [stanza["status"]["message"]])[0].split())
    found = REFUSAL.search(said)
    return f"{found[1]}, {found[2].rstrip('.')}" if found else postgres.reason(said).rstrip(".")


def look(key: int, wanted: list[str]) -> Seen:
    """Ask one repository for its backups, and for segments."""
    options = (f"--repo={key}", f"--io-timeout={ANSWER_SECONDS}")
    try:
        said = postgres.pgbackrest("info", "--output=json", *options, timeout_seconds=ANSWER_SECONDS * 2)
        stanzas: list[dict[str, Any]] = json.loads(said, strict=False)
        stanza: dict[str, Any] = stanzas[0] if stanzas else {"status": {"code": 1, "message": "it holds no stanza"}}
        if stanza["status"]["code"] not in (0, 2):
            return Seen(fault=_fault(stanza))
        backups: dict[str, float] = {}
        for each in stanza["backup"]:
            if not each["error"]:
                backups[each["type"]] = max(backups.get(each["type"], 0), float(each["timestamp"]["start"]))
        return Seen(backups=backups, missing=_missing(stanza["archive"], wanted, options))
    except (Failure, ValueError, KeyError) as error:
        # What quotes it ends the sentence.
        return Seen(fault=str(error).rstrip("."))


def _missing(archives: list[dict[str, Any]], wanted: list[str], options: tuple[str, ...]) -> list[str]:
    """Name the segments that a repository lacks, of those that no expiry can have taken."""
    newest = archives[-1] if archives else {}
    if not newest.get("min"):
        return wanted
    wanted = [name for name in wanted if name >= newest["min"]]
    held: set[str] = set()
    for folder in sorted({name[:16] for name in wanted}):
        path = f"archive/{postgres.STANZA}/{newest['id']}/{folder}"
        held |= {name[:24] for name in postgres.pgbackrest("repo-ls", path, *options, timeout_seconds=ANSWER_SECONDS * 2).split()}
    return [name for name in wanted if name not in held]


def _load() -> State:
    """Return what the last run left; nothing where there was none, or it is damaged.

    Raises:
        Failure: it is there and can't be read.
    """
    try:
        content: dict[str, Any] = json.loads(STATE.read_text(encoding="utf-8"))
        # An older guard noted one segment for all repositories.
        return State(**content) if all(isinstance(content.get(name, {}), dict) for name in ("complete", "gap_at")) else State()
    except (FileNotFoundError, ValueError, TypeError):
        return State()
    except OSError as error:
        raise Failure(f"{STATE} can't be read ({error.strerror}), and a gap may be noted in it: `chown postgres: {STATE}`.") from error


def _ask_for_backup(key: str, segment: str) -> None:
    log.error(
        "WAL up to the segment %s is missing in repository %s: nothing can be rolled forward over that, so a backup begins now.",
        segment,
        key,
    )
    # Replaced, as it may be root's: a person ran the guard, and now its unit does.
    durable.write(WANTED, f"{key} {segment}\n".encode(), 0o644)


def _next(state: State, server: Server, seen: dict[int, Seen], wanted: dict[int, list[str]], now: float) -> State:
    """Decide what the next run has to know, and ask for a backup where a repository with a gap can take one.

    Each repository stands for itself: while one is away too much waits for it, so WAL is let go that another one lacks, too.
    """
    keys = set(map(str, seen))
    complete = {key: segment for key, segment in state.complete.items() if key in keys}
    gap_at = {key: at for key, at in state.gap_at.items() if key in keys}
    answering = {str(key): each for key, each in seen.items() if not each.fault}
    for key, each in answering.items():
        complete[key] = (wanted[int(key)] or [complete.get(key, "")])[-1]
        if each.missing:
            gap_at[key] = now
        elif key in gap_at and any(begun > gap_at[key] for begun in each.backups.values()):
            del gap_at[key]
            log.info("A backup after the gap is in repository %s: from it on everything can be rolled forward", key)
    # The wish stays where it is: taking it away would be one more.
    asked_at = state.asked_at if gap_at else 0
    if (key := next(filter(answering.__contains__, gap_at), "")) and abs(now - asked_at) >= WANTED_AGAIN_SECONDS:
        _ask_for_backup(key, complete[key])
        asked_at = now
    return State(now, server.written_bytes, complete, gap_at, asked_at, **_written(state, server))


def _written(state: State, server: Server) -> dict[str, Any]:
    """Say for the next run what is written into which segment."""
    same = server.segment == state.segment and not state.overdue
    return {
        "segment": server.segment,
        "first_transaction": state.first_transaction if same else server.next_transaction,
        "next_transaction": server.next_transaction,
        "checkpointer_at": server.checkpointer_at,
    }


def ask(state: State) -> Server:
    """Ask the server, and see to it that what it has written leaves it.

    Raises:
        Failure: the server does not answer.
    """
    server = Server(**json.loads(postgres.psql(QUESTION)))
    if server.checkpointer_at != state.checkpointer_at:
        postgres.psql("SELECT pg_reload_conf()")
    if server.segment == state.segment and state.overdue:
        log.warning(
            "The segment %s had transactions of half a minute ago, and archive_timeout had not ended it, so it is ended now: if the clock "
            "was set back, `systemctl restart postgresql` has PostgreSQL count from now on.",
            server.segment,
        )
        postgres.psql("SELECT pg_switch_wal()")
        return Server(**json.loads(postgres.psql(QUESTION)))
    return server


def faults(server: Server, seen: dict[int, Seen], gaps: Iterable[str] = ()) -> list[str]:
    """Say in sentences what is wrong; nothing where all that was written a minute ago is off the host."""
    found = []
    if server.archive_mode != "on":
        found.append(
            f"The server's archive_mode is {server.archive_mode}, so nothing that is written leaves the host: "
            "`ALTER SYSTEM RESET archive_mode`, `ansible-playbook site.yml --tags pgbackrest`, and restart PostgreSQL."
        )
    if server.oldest_ready_seconds > LATE_SECONDS:
        found.append(f"{server.ready} segments of WAL wait to be archived, the oldest for {server.oldest_ready_seconds:.0f} s.")
    found += [f"Repository {key} can't be asked: {each.fault}." for key, each in seen.items() if each.fault]
    found += [f"Repository {key} has no backup." for key, each in seen.items() if not each.fault and not each.backups]
    found += [f"WAL is missing in repository {key}, and no backup after the gap is there yet." for key in sorted(gaps)]
    return found


def _by_repository(values: dict[int, float]) -> dict[tuple[tuple[str, str], ...], float]:
    return {(("repository", str(key)),): value for key, value in values.items()}


def _gauges(server: Server, before: State, after: State, seen: dict[int, Seen], *, healthy: bool) -> list[Gauge]:
    rate = (server.written_bytes - before.written_bytes) / max(after.at - before.at, 1) if before.at else 0.0
    disk = os.statvfs(postgres.DATA / "pg_wal")
    free = disk.f_bavail * disk.f_frsize
    newest: dict[tuple[tuple[str, str], ...], float] = {
        (("repository", str(key)), ("type", kind)): begun for key, each in seen.items() for kind, begun in sorted(each.backups.items())
    }
    return [
        Gauge("holdfast_archive_healthy", "Whether what was written a minute ago is in every repository.", float(healthy)),
        Gauge("holdfast_archive_ready_segments", "Segments of WAL that wait to be archived.", server.ready),
        Gauge("holdfast_archive_oldest_ready_seconds", "How long the oldest of them has waited.", server.oldest_ready_seconds),
        Gauge("holdfast_archive_last_archived_timestamp_seconds", "When WAL was archived last.", server.last_archived_at),
        Gauge("holdfast_archive_last_failed_timestamp_seconds", "When archiving failed last.", server.last_failed_at),
        Gauge("holdfast_archive_gap", "Whether WAL is missing and no backup has made that good.", float(bool(after.gap_at))),
        Gauge("holdfast_wal_size_bytes", "What pg_wal holds.", server.wal_bytes),
        Gauge("holdfast_wal_written_bytes_per_second", "WAL that the server writes.", rate),
        Gauge(
            "holdfast_wal_fills_disk_seconds",
            "When the disk of pg_wal would be full at that rate if nothing were archived.",
            free / rate if rate > 0 else float("inf"),
        ),
        Gauge(
            "holdfast_repository_answers",
            "Whether the repository can be asked.",
            labelled=_by_repository({key: float(not each.fault) for key, each in seen.items()}),
        ),
        Gauge("holdfast_repository_newest_backup_timestamp_seconds", "When the newest good backup in it began.", labelled=newest),
    ]


def _heartbeat(now: float, *, success: bool) -> list[Gauge]:
    name = "holdfast_archive_guard_last_success_timestamp_seconds"
    last = now if success else metrics.read(TOPIC).get(name)
    return [
        Gauge(name, "When the archive was measured last.", last),
        Gauge("holdfast_archive_guard_last_run_timestamp_seconds", "When that was tried last.", now),
        Gauge("holdfast_archive_guard_success", "Whether it could be measured.", float(success)),
    ]


def run() -> list[str]:
    """Measure once, and return what is wrong.

    Raises:
        Failure: the server does not answer; the metrics say so too.
    """
    now = time.time()
    try:
        before = _load()
        server = ask(before)
        wanted = {each.key: _wanted(before, server, each.key) for each in repositories()}
        with ThreadPoolExecutor(len(wanted)) as pool:
            seen = dict(zip(wanted, pool.map(look, wanted, wanted.values()), strict=True))
        after = _next(before, server, seen, wanted, now)
        # As the wish for a backup, it may be root's, and then its unit reads it.
        durable.write(STATE, json.dumps(asdict(after)).encode(), 0o644)
        found = faults(server, seen, after.gap_at)
        for sentence in found:
            log.warning(sentence)
        metrics.write(TOPIC, [*_heartbeat(now, success=True), *_gauges(server, before, after, seen, healthy=not found)])
    except Failure:
        metrics.write(
            TOPIC, [*_heartbeat(now, success=False), Gauge("holdfast_archive_healthy", "Whether what was written is archived.", 0)]
        )
        raise
    return found


def _call(_: argparse.Namespace) -> None:
    if not run():
        print("All that was written a minute ago is in every repository.")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `archive` to the command line."""
    parser = commands.add_parser("archive", help="measure whether what is written reaches every repository")
    parser.set_defaults(call=_call)
