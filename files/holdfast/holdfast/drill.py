"""`holdfast drill`: restore the newest backup beside the live database, and prove that what was written last is in it."""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast import backup, durable, fingerprint, lock, metrics, postgres, proof, recovery, scratch
from holdfast.failure import Failure
from holdfast.fingerprint import Fingerprint
from holdfast.metrics import Gauge
from holdfast.recovery import ARCHIVED_SECONDS, Choice, Target
from holdfast.unit import ended_from_outside

TOPIC = "drill"
SETTINGS = Path("/etc/pgbackrest/drill.json")
FOLDER = Path("/var/lib/postgresql/drill")
SCRATCH = FOLDER / "scratch"
REPORT = FOLDER / "report.json"
DAY_SECONDS = 86400
# The row says when it was written; the segment, what has to reach the repository for it. The empty transaction has that one end, even if
# archive_timeout ended the row's own one before it was named.
BEAT = """
CREATE TABLE IF NOT EXISTS public.holdfast_heartbeat (id integer PRIMARY KEY CHECK (id = 1), at timestamptz NOT NULL);
INSERT INTO public.holdfast_heartbeat VALUES (1, clock_timestamp()) ON CONFLICT (id) DO UPDATE SET at = excluded.at;
SELECT json_build_object('at', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00'), 'epoch', extract(epoch FROM at),
                         'segment', pg_walfile_name(pg_current_wal_insert_lsn()))
FROM public.holdfast_heartbeat;
DO $$ BEGIN PERFORM pg_current_xact_id(); END $$;
"""
FOUND = "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00') FROM public.holdfast_heartbeat"
# The smallest first, as many as fit: each day every small table, and never the whole disk.
SAMPLE = """
SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM (
    SELECT format('%I.%I', n.nspname, c.relname) AS name, sum(pg_table_size(c.oid)) OVER (ORDER BY pg_table_size(c.oid), c.oid) AS total
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema') sized
WHERE total <= :limit::bigint * 1048576
"""

log = logging.getLogger("holdfast.drill")


@dataclass(frozen=True)
class Settings:
    """What the inventory says of the drill.

    Attributes:
        database: the application's database.
        migration_query: what tells which migrations its schema has; empty where nothing does.
        sample_mb: size of the tables whose rows are compared one by one.
        spare_mb: what has to stay free on the disk.
        shared_buffers_mb: memory of the copy's own cache.
    """

    database: str
    migration_query: str
    sample_mb: int
    spare_mb: int
    shared_buffers_mb: int

    @classmethod
    def read(cls) -> Settings:
        """Read them.

        Raises:
            Failure: the role restore_drill has not configured this host.
        """
        try:
            return cls(**json.loads(SETTINGS.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise Failure(f"{SETTINGS} can't be read ({error}): run `ansible-playbook site.yml --tags restore_drill`.") from error


@dataclass
class Report:
    """One drill.

    Attributes:
        begun: when it began, in seconds since 1970.
        fault: what is wrong and what to do; empty where all is proven.
        backup: label of the backup.
        backup_ended: when it had ended.
        size: bytes of the database.
        heartbeat: when the row was written that had to be there.
        rpo_seconds: how long that row was on this host only.
        restore_seconds: how long the backup took to fetch.
        recovery_seconds: how long the WAL took.
        seconds: how long all of it took.
        said: what was proven, in sentences.
    """

    begun: float
    fault: str = ""
    backup: str = ""
    backup_ended: float = 0
    size: int = 0
    heartbeat: str = ""
    rpo_seconds: float | None = None
    restore_seconds: float | None = None
    recovery_seconds: float | None = None
    seconds: float = 0
    said: list[str] = field(default_factory=list)

    @property
    def rto_seconds(self) -> float | None:
        """Return how long it took until the copy took writes."""
        if self.restore_seconds is None or self.recovery_seconds is None:
            return None
        return self.restore_seconds + self.recovery_seconds

    def lines(self) -> list[str]:
        """Say it to a person."""
        lines = [f"Restore drill of {_utc(self.begun)}: {'FAILED' if self.fault else 'passed'}, after {self.seconds:.0f} s."]
        if self.fault:
            lines.append(self.fault)
        if self.backup:
            lines.append(f"Backup {self.backup}, which ended at {_utc(self.backup_ended)}: {self.size / scratch.MB:.0f} MB.")
        if self.rpo_seconds is not None:
            lines.append(f"Loss (RPO): a row written at {self.heartbeat} was off the host after {self.rpo_seconds:.1f} s.")
        if self.rto_seconds is not None:
            parts = f"{self.restore_seconds:.1f} s for the backup and {self.recovery_seconds:.1f} s for WAL"
            lines.append(f"Time (RTO): {self.rto_seconds:.1f} s, of which {parts}.")
        return lines + [f"Proven: {sentence}." for sentence in self.said]


@dataclass(frozen=True)
class Before:
    """What the live database says before the drill.

    Attributes:
        at: the heartbeat.
        epoch: the same in seconds since 1970.
        segment: the segment of WAL that holds it.
        migrations: which migrations its schema has.
        samples: by database, the fingerprints of the sample.
    """

    at: str
    epoch: float
    segment: str
    migrations: str
    samples: dict[str, Fingerprint]


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S+00")


def _observe(settings: Settings) -> Before:
    """Take the sample, then write the heartbeat, so that whatever holds the heartbeat holds the sample."""
    migrations = postgres.psql(settings.migration_query, database=settings.database) if settings.migration_query else ""
    samples = {}
    for name in fingerprint.databases():
        tables = json.loads(postgres.psql(postgres.variables(limit=str(settings.sample_mb)) + SAMPLE, database=name))
        samples[name] = fingerprint.take(name, tables=tables)
    beat: dict[str, Any] = json.loads(postgres.psql(BEAT))
    return Before(beat["at"], beat["epoch"], beat["segment"], migrations, samples)


def _wait_archived(before: Before) -> float:
    """Wait until the heartbeat is off the host, and return how long that took.

    Raises:
        Failure: it did not get there.
    """
    if not recovery.wait_archived(before.segment, ARCHIVED_SECONDS):
        raise Failure(
            f"A row written {ARCHIVED_SECONDS} s ago is on this host only, and would be lost with it: `holdfast archive` says why."
        )
    return time.time() - before.epoch


def _newest(now: float) -> Choice:
    """Choose the newest backup of the repository whose turn it is today.

    Raises:
        Failure: there is none, or it holds damaged pages: an older one would prove nothing of what is backed up now.
    """
    found = recovery.archives(every=True)
    archive = found[int(now // DAY_SECONDS) % len(found)]
    try:
        backup.refuse_damaged(postgres.info(), archive.key)
    except Failure as failure:
        raise Failure(f"Repository {archive.key}: {failure}") from failure
    return recovery.choose(Target(recovery.LATEST), archive)


def _compare(before: Before, copy: scratch.Copy, settings: Settings, report: Report) -> list[str]:
    """Compare the copy with the live database, and return what is wrong."""
    try:
        found = copy.server.ask(FOUND)
    except Failure:
        found = "nothing"
    if found != before.at:
        gap = f"The heartbeat of {before.at} is not in the restored database, whose newest is {found}: WAL is missing in the repository."
        return [f"{gap} `holdfast backup full` makes a backup that does not need it; `holdfast archive` says where the gap is."]
    report.said.append(f"the heartbeat of {before.at} is there, to the microsecond")
    faults: list[str] = []
    if settings.migration_query:
        migrations = copy.server.ask(settings.migration_query, settings.database)
        if migrations != before.migrations:
            faults.append(
                f"The migrations are at '{migrations}', and the live database's at '{before.migrations}': `holdfast backup full`."
            )
        report.said.append(f"the migrations are at {', '.join(migrations.split()) or 'none'}, as in the live database")
    rows = 0
    for name, sample in before.samples.items():
        again = fingerprint.again(name, sample, str(copy.server.socket))
        rows += again.rows
        faults += [
            f"Rows of {each} in {name} are not what they are in the live database: `holdfast backup full`, then look into the old one."
            for each in fingerprint.faults(sample, again)
        ]
        faults += [
            f"Rows of {each} in {name} are missing, and the live database has them: `holdfast backup full`, then look into the old one."
            for each in fingerprint.lost(again, fingerprint.again(name, sample))
        ]
    report.said.append(f"{rows} rows of the sample have the checksums that they have in the live database")
    checked = proof.prove(copy.server.ask)
    report.said += checked.said
    return faults + checked.faults


def _explain(error: Exception, report: Report) -> str:
    """Say what a damaged repository means, and what to do."""
    said = str(error)
    if not isinstance(error, Failure):
        return f"The drill ended early ({type(error).__name__}: {said}): `journalctl --unit holdfast-drill.service` says where."
    if report.backup and said.startswith("pgBackRest refused:"):
        why = said.removeprefix("pgBackRest refused: ").rstrip(".")
        return (
            f"The backup {report.backup} can't be restored ({why}): a file of it is damaged or gone. "
            "`holdfast backup full` makes one that does not need it; then look after the repository's storage."
        )
    if report.backup and "while it rolled forward" in said:
        return f"{said} WAL is missing or damaged in the repository: `holdfast backup full` makes a backup that does not need it."
    return said


def run() -> Report:
    """Hold one drill; metrics and the report say how it went.

    Raises:
        Failure: something is not as it has to be, or another drill is held, which will say how it went.
    """
    with scratch.alone(SCRATCH):
        return _run()


def _run() -> Report:
    report = Report(time.time())
    try:
        settings = Settings.read()
        choice = _newest(report.begun)
        report.backup, report.backup_ended, report.size = choice.backup.label, choice.backup.ended, choice.backup.size
        scratch.refuse_disk(SCRATCH, choice, settings.spare_mb)
        before = _observe(settings)
        report.heartbeat = before.at
        report.rpo_seconds = _wait_archived(before)
        own = {"shared_buffers": f"{settings.shared_buffers_mb}MB"}
        with scratch.copy(SCRATCH, choice, spare_mb=settings.spare_mb, settings=own) as copy:
            report.restore_seconds, report.recovery_seconds = copy.restore_seconds, copy.recovery_seconds
            report.fault = " ".join(_compare(before, copy, settings, report))
    except (Failure, OSError, ValueError, KeyError) as error:
        if not isinstance(error, Failure):
            log.exception("the drill ended early")
        report.fault = _explain(error, report)
    report.seconds = time.time() - report.begun
    _record(report)
    if report.fault:
        raise Failure(report.fault)
    return report


def clean() -> None:
    """Remove what a drill left behind that was killed, and record that it was, as systemd tells after each one.

    Where a restore ended it nothing is wrong: the last report stays, and the next drill comes by itself.
    """
    with scratch.alone(SCRATCH):
        scratch.remove(SCRATCH)
    result = ended_from_outside()
    if result and lock.held(backup.RESTORE):
        log.info("The drill gave way to a restore of the database.")
    elif result:
        _record(
            Report(time.time(), f"The drill was ended from outside ({result}): `journalctl --unit holdfast-drill.service` says by what.")
        )


def _record(report: Report) -> None:
    """Keep the report and the metrics, which tell also of a report that can't be kept.

    Raises:
        Failure: the metrics can't be written; what is wrong besides is told first.
    """
    try:
        durable.write(REPORT, json.dumps(asdict(report)).encode(), 0o644)
    except OSError as error:
        report.fault = f"{report.fault} The report can't be written to {REPORT} ({error.strerror}): make room there.".lstrip()
    name = "holdfast_drill_last_success_timestamp_seconds"
    now = time.time()
    try:
        metrics.write(
            TOPIC,
            [
                Gauge(
                    name,
                    "When the last restore drill ended that proved everything.",
                    metrics.read(TOPIC).get(name) if report.fault else now,
                ),
                Gauge("holdfast_drill_last_run_timestamp_seconds", "When the last restore drill ended.", now),
                Gauge("holdfast_drill_success", "Whether the last restore drill proved everything.", float(not report.fault)),
                Gauge("holdfast_drill_duration_seconds", "How long the last restore drill took.", report.seconds),
                Gauge("holdfast_drill_rpo_seconds", "How long the drill's row was on this host only.", report.rpo_seconds),
                Gauge("holdfast_drill_rto_seconds", "How long the restored copy took until it took writes.", report.rto_seconds),
                Gauge("holdfast_drill_restored_bytes", "Size of the database that was restored.", report.size or None),
            ],
        )
    except Failure as failure:
        raise Failure(f"{report.fault} {failure}".lstrip()) from failure


def _report() -> str:
    try:
        return "\n".join(Report(**json.loads(REPORT.read_text(encoding="utf-8"))).lines())
    except FileNotFoundError:
        return "No restore drill has been held yet: `systemctl start holdfast-drill.service` holds one."
    except (OSError, ValueError, TypeError) as error:
        raise Failure(f"{REPORT} can't be read ({error}): `systemctl start holdfast-drill.service` writes it anew.") from error


def _call(_: argparse.Namespace) -> None:
    # The server is down meanwhile, which is no fault of the backups.
    if lock.held(backup.RESTORE):
        print("The database is being restored, so no drill is held: the next one comes by itself.")
    else:
        print("\n".join(run().lines()))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `drill` to the command line."""
    parser = commands.add_parser("drill", help="prove that the newest backup brings everything back")
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="hold a drill (what holdfast-drill.service does)")
    action.set_defaults(call=_call)
    action = actions.add_parser("report", help="say how the last drill went")
    action.set_defaults(call=lambda _: print(_report()))
    action = actions.add_parser("clean", help="remove what a drill left behind that was killed")
    action.set_defaults(call=lambda _: clean())
