"""`holdfast restore`: bring the database back to a moment of its past.

What is replaced is renamed first and copied back for pgBackRest to compare with, so the original lies untouched from the first step on. The
server rolls forward and is checked where nobody can reach it; only then does anything start. The state on disk says what has been stopped
and kept, so a restore that ended halfway is run again, or taken back.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import socket as network
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from holdfast import backup, drill, durable, extract, lock, postgres, proof, recovery
from holdfast.failure import Failure
from holdfast.recovery import Archive, Choice, Target
from holdfast.server import Server

UNIT = "postgresql@17-main.service"
POOLER = "pgbouncer.service"
VERIFY = "holdfast-backup@verify.service"
DRILL = "holdfast-drill.service"
CONFIG = Path("/etc/postgresql/17/main/postgresql.conf")
FOLDER = backup.RESTORE
STATE = FOLDER / "state.json"
PRIVATE = Path("/run/holdfast-restore")
KEPT = ".replaced-"
# For WAL that is fetched while it rolls forward, and what the server writes at once.
SPARE_MB = 1024
LEFT_BEHIND = (
    "restore_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
)
RESTORE_SECONDS = 24 * 3600
UNIT_SECONDS = 3700
# Exit code of `pg_ctl status` where no server runs.
NO_SERVER = 3
MB = 1 << 20

log = logging.getLogger("holdfast.restore")


@dataclass
class State:
    """What a restore has done so far.

    Attributes:
        target: the target, as it was written.
        step: what is being done.
        stopped: units that ran before.
        kept: folder of the data directory that is replaced; empty before it is.
        missing: whether there was no data directory to keep, or an empty one.
        complete: whether the data directory is the restored one; who started the server on it may have written to it since.
        finished: whether all of it was done.
        new_host: whether the server was a new host's.
    """

    target: str
    step: str = "begin"
    stopped: list[str] = field(default_factory=list)
    kept: str = ""
    missing: bool = False
    complete: bool = False
    finished: bool = False
    new_host: bool = False

    @classmethod
    def read(cls) -> State | None:
        """Return the state of the last restore; nothing where there was none."""
        try:
            return cls(**json.loads(STATE.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise Failure(f"{STATE} can't be read ({error}): look at {postgres.DATA.parent}, then remove it.") from error

    def write(self, step: str = "") -> None:
        """Keep it, on the disk itself."""
        self.step = step or self.step
        if step:
            log.info("%s", step)
        _make_folder()
        durable.write(STATE, json.dumps(asdict(self)).encode())


@dataclass(frozen=True)
class Plan:
    """What a restore will do.

    Attributes:
        choice: backup and timeline.
        units: units that run and will be stopped.
        running: whether the server answers.
        busy: whether a backup runs, or a proof of them.
        drilling: whether a restore drill is held, which is ended.
        needed: bytes that it needs on the disk.
        free: bytes that are free.
        unfinished: the restore that ended halfway; without what it kept where this one begins anew; nothing where there is none.
        awaited: the repository that has to hold all that was written before the server stops; 0 where none has to.
    """

    choice: Choice
    units: list[str]
    running: bool
    busy: bool
    drilling: bool
    needed: int
    free: int
    unfinished: State | None
    awaited: int

    def lines(self) -> list[str]:
        """Say it to a person."""
        target, chosen = self.choice.target, self.choice.backup
        ended = datetime.fromtimestamp(chosen.ended, UTC).strftime("%Y-%m-%d %H:%M:%S+00")
        names = ", ".join(self.choice.databases) or "none but the server's own"
        stops = ", ".join([*self.units, *([UNIT] if self.running else [])]) or "nothing, none of it runs"
        forward = "as it is" if target.kind == "label" else f"and roll forward from it on timeline {self.choice.timeline}"
        return [
            f"Bring the server of {network.gethostname()} back to {target}. Databases: {names}.",
            f"Take the backup {chosen.label} of repository {chosen.repository}, which ended at {ended}, {forward}.",
            f"LOST: {self._lost()}",
            "Not touched: documents in buckets, the cache and the queue. They may know of rows that are gone.",
            f"Stopped meanwhile: {stops}.",
            f"Disk: {self.needed // MB} MB of {self.free // MB} MB that are free. What is replaced is kept until `holdfast restore clean`.",
            *(["A backup runs, and is waited for; a proof of the backups is ended instead."] if self.busy else []),
            *(["A restore drill is held, and is ended: the next one comes by itself."] if self.drilling else []),
            *self._before(),
        ]  # fmt: skip

    def _before(self) -> list[str]:
        if self.unfinished is None:
            return []
        onward = "goes on from there" if self.unfinished.kept or self.unfinished.missing else "begins anew, and keeps what is here now"
        return [f"A restore to {self.unfinished.target} ended halfway at '{self.unfinished.step}': this one {onward}."]

    def _lost(self) -> str:
        target = self.choice.target
        since = {"label": self.choice.backup.ended}.get(target.kind, target.moment)
        if target.kind == recovery.LATEST:
            return (
                "nothing, as what is written until the server stops is archived first."
                if self.running
                else "what the server had written and not archived when it stopped, if anything."
            )
        if since is None:
            return f"everything that was committed after {target}, in every database of the server."
        minutes, seconds = divmod(int(time.time() - since), 60)
        hours, minutes = divmod(minutes, 60)
        return f"everything that was written in the last {hours} h {minutes} min {seconds} s, in every database of the server."


def _make_folder() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    # A backup asks as the system user postgres whether it is locked.
    FOLDER.chmod(0o755)


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemctl", *words], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=UNIT_SECONDS
    )


def _start(unit: str) -> None:
    if _systemctl("start", unit).returncode:
        raise Failure(
            f"{unit} did not start: `journalctl --unit {unit}` says why; then `holdfast restore run` again, or `holdfast restore undo`."
        )


def _stop(unit: str) -> None:
    done = _systemctl("stop", unit)
    if done.returncode:
        raise Failure(f"{unit} could not be stopped ({done.stderr.strip()}): stop it, then run this again.")


def _running_units() -> list[str]:
    """Name what has to be down: the application first, then the pooler."""
    listed = _systemctl("list-units", "--plain", "--no-legend", "--state=active,activating,reloading", "app@*.service", POOLER)
    names = [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]
    return sorted(names, key=lambda name: name == POOLER)


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        total += status.st_blocks * 512
    return total


def _system_id(data: Path) -> int | None:
    """Return the identifier of the cluster in a data directory; nothing where there is none.

    Raises:
        Failure: there is one, and it can't be told.
    """
    done = postgres.as_postgres([str(recovery.BIN / "pg_controldata"), str(data)], timeout_seconds=60)
    for line in done.stdout.splitlines():
        if line.startswith("Database system identifier:"):
            return int(line.rpartition(" ")[2])
    control = data / "global" / "pg_control"
    if control.exists():
        why = (done.stderr.strip().splitlines() or ["it names none"])[-1]
        raise Failure(
            f"{control} does not say which database this is ({why}), so nobody knows whether the repositories hold its past: "
            "where you do, move that file elsewhere, then run this again."
        )
    return None


def _answers() -> bool:
    try:
        return postgres.psql("SELECT 1") == "1"
    except Failure:
        return False


def refuse_data() -> None:
    """Refuse a host whose server holds somebody's rows."""
    if not _answers():
        if (postgres.DATA / "PG_VERSION").exists():
            raise Failure(f"{postgres.DATA} holds a server that does not run, so nobody can tell what is in it: start {UNIT}.")
        return
    for name, tables in proof.count(lambda sql, database: postgres.psql(sql, database=database)).items():
        if tables:
            raise Failure(
                f"The database {name} of this host has {len(tables)} tables, so the host is not new: "
                "playbooks/restore.yml brings an older state of it back."
            )


def _refuse_other_cluster(archives: list[Archive]) -> None:
    """Refuse repositories that hold the past of another cluster than the one that is here."""
    own = _system_id(postgres.DATA)
    for archive in archives:
        if own is not None and own != archive.system_id:
            raise Failure(
                f"Repository {archive.key} holds the past of another database (system identifier {archive.system_id}, this one has {own}): "
                "playbooks/rebuild.yml brings that database to a new host; else write this one's own path in pgbackrest_repositories."
            )


def _refuse_tied() -> None:
    """Refuse a data directory that can't be kept by renaming it, with all its WAL."""
    for path in (postgres.DATA, postgres.DATA / "pg_wal"):
        what = "a symbolic link" if path.is_symlink() else "a mount point" if path.is_mount() else ""
        if what:
            raise Failure(
                f"{path} is {what}, and a restore keeps the data directory as a whole by renaming it: stop {UNIT}, make {path} a plain "
                f"folder with the same content (a disk of its own can be mounted at {postgres.DATA.parent}), then run this again."
            )


def _refuse_extract() -> None:
    """Refuse while an extract fills the same disk: somebody waits for it, so it is not ended as a drill is."""
    if lock.held(extract.FOLDER):
        raise Failure(
            f"An extract is under way, whose copy in {extract.FOLDER} takes room that the restore may need: wait until it has ended, or "
            "end it (`systemctl stop holdfast-extract.service` where a playbook began it), then run this again."
        )


def _refuse_drill() -> None:
    """Refuse while a drill is held all the same."""
    if lock.held(drill.FOLDER):
        raise Failure(
            f"A restore drill is held that {DRILL} did not begin, or that it can't end, and its copy in {drill.FOLDER} takes room that the "
            "restore may need: wait until it has ended, then run this again."
        )


def _need(target: Target) -> str:
    return "latest would lose it" if target.kind == recovery.LATEST else f"{target} may lie in it"


def _awaited(target: Target, repository: int) -> int:
    """Refuse to go back to what was acknowledged and does not get into the archive.

    Returns:
        The repository that has to hold all that was written before the server stops; 0 where the target needs nothing of the last.

    Raises:
        Failure: archiving stands still, and the target is not known to lie before that.
    """
    if target.kind in ("label", recovery.UNTIL_GAP):
        return 0
    segments, seconds = recovery.waiting(repository)
    until = recovery.archived_until(seconds)
    if seconds > recovery.ARCHIVED_SECONDS and (target.moment is None or target.moment >= until):
        raise Failure(
            f"What was written in the last {seconds:.0f} s, {segments} segments of WAL, is not in repository {repository}, and "
            f"{_need(target)}: `holdfast archive` says why; or write a time of before that."
        )
    # What is archived just now may have waited for long, and only a transaction that follows a moment ends a restore to it.
    settled = min(until, time.time() - seconds) - recovery.ARCHIVED_SECONDS
    return repository if target.moment is None or target.moment >= settled else 0


def plan(text: str, *, new_host: bool = False, spare_mb: int = SPARE_MB) -> Plan:
    """Decide how a target is reached, and refuse what can't be done; nothing is changed.

    Raises:
        Failure: it can't be done.
    """
    target = Target.parse(text, time.time())
    state = State.read()
    unfinished = state if state and not state.finished else None
    _refuse_tied()
    _refuse_extract()
    archives = recovery.archives()
    data, running = postgres.DATA, _answers()
    if unfinished and (unfinished.complete or running) and (data / "PG_VERSION").exists():
        # Somebody may have worked on what that one restored: it is kept like any data.
        unfinished = replace(unfinished, kept="", missing=False)
    if not new_host:
        _refuse_other_cluster(archives)
    elif not (unfinished and unfinished.new_host):
        refuse_data()
    if target.kind == "xid" and not new_host and running:
        following = postgres.psql("SELECT pg_snapshot_xmax(pg_current_snapshot())::xid")
        if int(target.value) >= int(following):
            raise Failure(f"The transaction {target.value} has not been yet, the next one is {following}: write an earlier one, or latest.")
    choice = recovery.find(target, archives)
    spaces = data / "pg_tblspc"
    if spaces.is_dir() and any(spaces.iterdir()):
        raise Failure(
            f"The server has tablespaces outside of {data}, which a restore would not keep: move their tables back, and drop them."
        )
    kept, copies = (unfinished.kept, not unfinished.missing) if unfinished else ("", True)
    needed = _needed(choice.backup.size, kept, copies=copies and not new_host) + spare_mb * MB
    # What an unfinished copy took goes first, and so does a drill's.
    drilling = lock.held(drill.FOLDER)
    free = shutil.disk_usage(data.parent).free + _bytes(_copy_folder()) + (_bytes(drill.SCRATCH) if drilling else 0)
    if needed > free:
        raise Failure(
            f"The restore needs {needed // MB} MB on the disk of {data}, and {free // MB} MB are free: make room there"
            f"{', or `holdfast restore clean`' if _kept() else ''}."
        )
    live = running and not new_host
    awaited = _awaited(target, choice.backup.repository) if live else 0
    recovery.refuse_gap(choice, archives, recovery.unarchived() if live else (), lost=new_host)
    return Plan(choice, _running_units(), running, lock.held(backup.LOCK), drilling, needed, free, unfinished, awaited)


def _needed(size: int, kept: str, *, copies: bool) -> int:
    """Return the bytes that a backup needs on the disk, and what is copied for it to be compared with."""
    copied = Path(kept) if kept and Path(kept).is_dir() else postgres.DATA
    if not copies or (copied != postgres.DATA and (postgres.DATA / "PG_VERSION").exists()):
        return max(size - _bytes(postgres.DATA), 0)
    return max(size, _bytes(copied))


def _copy_folder() -> Path:
    """Return where the copy of what is kept is made, beside the data directory."""
    return postgres.DATA.with_name(f"{postgres.DATA.name}.copy")


def _kept() -> list[Path]:
    """Return the data directories that were replaced, oldest first."""
    return sorted(postgres.DATA.parent.glob(f"{postgres.DATA.name}{KEPT}*"))


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse to run beside another restore."""
    _make_folder()
    with lock.alone(FOLDER, "Another restore is running: `holdfast restore status` says where it is."):
        yield


def _archive_all(target: Target, repository: int) -> None:
    """Have all that was written archived, in one repository at least where that is wanted.

    Args:
        target: what it is wanted for.
        repository: the one that has to hold it; 0 where something earlier is wanted.

    Raises:
        Failure: it does not get there, and would be lost.
    """
    segment = recovery.flush()
    if not repository or recovery.wait_archived(segment, recovery.ARCHIVED_SECONDS):
        return
    # Another repository may be away, and the server waits for all of them.
    if recovery.last_archived(repository) < segment:
        raise Failure(
            f"What was written until now is not in repository {repository} after {recovery.ARCHIVED_SECONDS} s, and {_need(target)}: "
            "`holdfast archive` says why."
        )


def _stop_all(state: State, chosen: Plan | None = None) -> None:
    """Stop all that uses the database, and the server; for a plan, what it needs of the last that was written is archived before."""
    for unit in _running_units():
        if unit not in state.stopped:
            state.stopped.append(unit)
    state.write("stop what uses the database: " + (", ".join(state.stopped) or "nothing runs"))
    for unit in state.stopped:
        _stop(unit)
    if chosen and _answers():
        state.write("archive what was written")
        _archive_all(chosen.choice.target, chosen.awaited)
    state.write("stop the server")
    _stop(UNIT)
    # One that a restore before this one left behind.
    if (postgres.DATA / "postmaster.pid").exists():
        postgres.as_postgres(
            [str(recovery.BIN / "pg_ctl"), "--pgdata", str(postgres.DATA), "--mode=fast", "--wait", "stop"], timeout_seconds=UNIT_SECONDS
        )
        # Of one that was killed the file stays, and pgBackRest takes it for a server that runs.
        asked = postgres.as_postgres([str(recovery.BIN / "pg_ctl"), "--pgdata", str(postgres.DATA), "status"], timeout_seconds=60)
        if asked.returncode == NO_SERVER:
            (postgres.DATA / "postmaster.pid").unlink(missing_ok=True)
    _systemctl("reset-failed", UNIT)


def _fresh_name() -> Path:
    return postgres.DATA.with_name(f"{postgres.DATA.name}{KEPT}{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}")


def _set_aside(state: State) -> None:
    """Keep the data directory under another name, and leave a copy that pgBackRest compares with."""
    kept = Path(state.kept) if state.kept else _fresh_name()
    if not kept.is_dir() and (state.missing or not _any_data()):
        state.kept, state.missing = "", True
        state.write("begin without a data directory, as there is none to keep")
        if not (postgres.DATA / "PG_VERSION").exists():
            _empty()
        return
    state.kept = str(kept)
    state.write(f"keep the data directory as {kept}")
    if kept.exists():
        _hand_on_timelines(postgres.DATA, kept)
    else:
        postgres.DATA.rename(kept)
    copy = _copy_folder()
    shutil.rmtree(copy, ignore_errors=True)
    if not (postgres.DATA / "PG_VERSION").exists():
        shutil.rmtree(postgres.DATA, ignore_errors=True)
        # Where the disk can share blocks, the copy costs nothing.
        done = subprocess.run(["cp", "--archive", "--reflink=auto", str(kept), str(copy)], check=False, capture_output=True, text=True)
        if done.returncode:
            log.warning("The data directory can't be copied, so all of it is fetched: %s", done.stderr.strip().splitlines()[-1:])
            shutil.rmtree(copy, ignore_errors=True)
            _empty()
        else:
            # After a power cut no server may start at boot on half a copy, nor on a whole one; pgBackRest writes this file last.
            (copy / "global" / "pg_control").unlink(missing_ok=True)
            copy.rename(postgres.DATA)


def _hand_on_timelines(source: Path, kept: Path) -> None:
    """Have the kept data directory know the timelines that were begun since, and archive what the restored one did not.

    A server takes the first number of which it finds no history, in the archive or, while that is away, in its own pg_wal. Of one that is
    given out twice the segments have the same names, so archiving would stand still.
    """
    for history in sorted((source / "pg_wal").glob("*.history")):
        for path in (history, *(source / "pg_wal" / "archive_status").glob(f"{history.name}.*")):
            copied = kept / path.relative_to(source)
            if not copied.exists():
                durable.write(copied, path.read_bytes())
            postgres.give(copied)


def _any_data() -> bool:
    return postgres.DATA.is_dir() and any(postgres.DATA.iterdir())


def _empty() -> None:
    """Leave an empty data directory."""
    shutil.rmtree(postgres.DATA, ignore_errors=True)
    postgres.DATA.mkdir(mode=0o700, parents=True)
    postgres.give(postgres.DATA)


def _settings() -> dict[str, str]:
    # The server's own settings, but its log comes to us.
    return {"config_file": str(CONFIG)}


def _start_all(state: State) -> None:
    state.write("start the server")
    _start(UNIT)
    deadline = time.monotonic() + UNIT_SECONDS
    while not _answers():
        if time.monotonic() > deadline:
            raise Failure(f"{UNIT} does not answer: `journalctl --unit {UNIT}` says why; then run this again.")
        time.sleep(0.3)
    for unit in reversed(state.stopped):
        state.write(f"start {unit}")
        _start(unit)


def _roll_forward(state: State) -> proof.Proof:
    with Server(postgres.DATA, PRIVATE, _settings()) as server:
        server.wait_writable()
        _forget_target(server)
        state.write("check what was restored")
        found = proof.prove(server.ask)
    if found.faults:
        raise Failure(f"What was restored is not sound. {' '.join(found.faults)}")
    return found


def _forget_target(server: Server) -> None:
    """Take out of the settings what led to the target: it has no meaning for the next start."""
    for name in LEFT_BEHIND:
        server.ask(f"ALTER SYSTEM RESET {name}")


def _ways_out(state: State) -> str:
    again = "`holdfast restore run` again, with this or another target"
    if state.missing:
        return f"The application is down and there was no data directory to keep: {again}."
    if state.kept and Path(state.kept).is_dir():
        return (
            f"The application is down and the data directory of before lies in {state.kept}: {again}, or `holdfast restore undo` puts it "
            "back."
        )
    return "Nothing is replaced: run this again, or `holdfast restore undo` starts everything as it was."


@contextmanager
def _told(state: State) -> Iterator[None]:
    """Add to whatever goes wrong at what it did, and the ways out.

    Raises:
        Failure: something went wrong.
    """
    try:
        yield
    except (Failure, OSError, subprocess.SubprocessError) as error:
        said = f"{str(error).rstrip('.')}. It ended at '{state.step}'."
        raise Failure(said if state.new_host else f"{said} {_ways_out(state)}") from error


def run(text: str, *, new_host: bool = False, spare_mb: int = SPARE_MB) -> proof.Proof:
    """Restore, check, start everything, and make a new backup.

    Args:
        text: the target.
        new_host: the server here is empty: nothing of it is kept, and the backup is left to who has more to bring back.
        spare_mb: what has to stay free on the disk.

    Raises:
        Failure: it says in which state everything is, and the ways out.
    """
    with _alone(), _no_backup():
        # What was planned before may be gone: a backup that was waited for has taken room, and may have let old ones go.
        chosen = _plan_again(text, new_host=new_host, spare_mb=spare_mb)
        before = chosen.unfinished or State(text)
        state = State(text, stopped=before.stopped, kept=before.kept, missing=before.missing, new_host=new_host)
        with _told(state):
            # What an empty server writes is no part of this past.
            _stop_all(state, None if new_host else chosen)
            if new_host:
                _empty()
            else:
                _set_aside(state)
            state.write(f"restore the backup {chosen.choice.backup.label}")
            delta = ["--delta"] if (postgres.DATA / "PG_VERSION").exists() else []
            options = [*delta, *chosen.choice.options(), *chosen.choice.fetching()]
            postgres.pgbackrest("restore", *options, timeout_seconds=RESTORE_SECONDS)
            state.write(f"roll forward to {chosen.choice.target}")
            found = _roll_forward(state)
            state.complete = True
            _start_all(state)
        state.finished = True
        state.write("done" if new_host else "make a backup of it")
    if not new_host:
        _back_up()
    return found


def _back_up() -> None:
    """Make a backup of what was brought back.

    Raises:
        Failure: there is none; the database is back all the same, which is said first.
    """
    try:
        backup.run("incr")
    except Failure as failure:
        raise Failure(f"The database is back and everything runs, but it has no new backup yet. {failure}") from failure


def _plan_again(text: str, *, new_host: bool, spare_mb: int) -> Plan:
    try:
        _refuse_drill()
        return plan(text, new_host=new_host, spare_mb=spare_mb)
    except Failure as failure:
        raise Failure(f"{failure} Nothing was stopped or replaced.") from failure


@contextmanager
def _no_backup() -> Iterator[None]:
    """Keep backups waiting, where there can be any, and end what only proves them."""
    if backup.LOCK.is_dir():
        # Each takes long, only reads, and comes again; a drill's copy takes the room that is needed here.
        _systemctl("stop", VERIFY, DRILL)
        with backup.alone():
            yield
    else:
        yield


def _refuse_undo(state: State) -> None:
    """Refuse to take a restore back of which no data directory is kept; one that replaced nothing yet is taken back by starting all.

    Raises:
        Failure: there is nothing to put back.
    """
    if state.missing:
        raise Failure("There is nothing to put back, as there was no data directory to keep: restore to another moment instead.")
    if not _any_data():
        raise Failure(f"There is nothing to put back, and {postgres.DATA} is gone: `holdfast restore run latest` brings the database back.")
    if state.finished and state.kept:
        raise Failure(f"{state.kept} is there no more: restore to an earlier moment instead.")
    if state.new_host:
        raise Failure("The last restore kept no data directory, as it was a new host's: restore to another moment instead.")
    if state.finished:
        raise Failure("What the last restore replaced was removed, or put back, already: restore to an earlier moment instead.")


def undo() -> str:
    """Put the data directory back that the last restore replaced.

    The server goes on a timeline of its own, so that what is archived from now on is told from what the restored one archived.

    Raises:
        Failure: there is none.
    """
    with _alone():
        state = State.read()
        if state is None:
            raise Failure("There was no restore here, so there is nothing to take back.")
        kept = Path(state.kept) if state.kept else None
        if not (kept and kept.is_dir()):
            _refuse_undo(state)
        if state.finished:
            # What that restore had stopped it has started again, and somebody may have stopped it since.
            state.stopped.clear()
        state.finished = False
        with _told(state), _no_backup():
            _stop_all(state)
            if kept and kept.is_dir():
                state.write(f"put {kept} back")
                _hand_on_timelines(postgres.DATA, kept)
                if (postgres.DATA / "PG_VERSION").exists():
                    postgres.DATA.rename(_fresh_name())
                else:
                    shutil.rmtree(postgres.DATA, ignore_errors=True)
                kept.rename(postgres.DATA)
            state.kept = ""
            state.write("begin a timeline")
            _new_timeline()
            _start_all(state)
        state.finished = True
        state.write("make a backup of it")
    _back_up()
    return "The database is as it was before the restore."


def _new_timeline() -> None:
    signal = postgres.DATA / "recovery.signal"
    signal.touch(mode=0o600)
    postgres.give(signal)
    own = dict.fromkeys((name for name in LEFT_BEHIND if name.startswith("recovery_target_")), "") | {
        "restore_command": f"pgbackrest --stanza={postgres.STANZA} --no-archive-async archive-get %f %p",
        "recovery_target_action": "promote",
        "recovery_target_inclusive": "on",
        "recovery_target_timeline": "current",
    }
    with Server(postgres.DATA, PRIVATE, {**_settings(), **own}) as server:
        server.wait_writable()
        _forget_target(server)


def clean() -> str:
    """Remove the data directories that were replaced, and a copy that was cut short.

    Raises:
        Failure: a restore is under way that needs one.
    """
    with _alone():
        state = State.read()
        if state and not state.finished:
            raise Failure(f"The restore to {state.target} is not finished, and may need it: run it again, or `holdfast restore undo`.")
        found = [*_kept(), *([copy] if (copy := _copy_folder()).exists() else [])]
        size = sum(_bytes(each) for each in found)
        for each in found:
            shutil.rmtree(each)
        if state:
            state.kept = ""
            state.write()
    return f"Removed {', '.join(map(str, found))}: {size // MB} MB are free again." if found else "No replaced data directory is kept."


def point(name: str) -> str:
    """Name this moment, so that a restore can go back to it.

    Raises:
        Failure: the name is none or is taken, those that are known can't be read, or the server refused.
    """
    known = recovery.points()
    if not recovery.POINT.match(name):
        raise Failure(f"'{name}' is no name of a restore point: write letters, digits, dots, hyphens and underscores, 63 at most.")
    if name in known:
        raise Failure(
            f"The restore point '{name}' exists, of {datetime.fromtimestamp(known[name], UTC):%Y-%m-%d %H:%M:%S+00}: take another name."
        )
    postgres.psql(f"SELECT pg_create_restore_point('{name}')")
    now = time.time()
    recovery.flush()
    _make_folder()
    durable.write(recovery.POINTS, json.dumps({**known, name: now}).encode())
    return f"The restore point is made: `-e restore_target=name:{name}` goes back to it."


def _list() -> str:
    lines = []
    for archive in recovery.archives():
        lines.append(f"Repository {archive.key}, timeline {archive.newest_timeline()}:")
        lines += [
            f"  {each.label}  ended {datetime.fromtimestamp(each.ended, UTC):%Y-%m-%d %H:%M:%S+00}  {each.size // MB} MB"
            for each in archive.backups
        ]
    try:
        lines += [f"Restore point {name}  {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S+00}" for name, at in recovery.points().items()]
    except Failure as failure:
        lines.append(str(failure))
    return "\n".join(lines)


def _status() -> str:
    state = State.read()
    if lock.held(FOLDER) and (state is None or state.finished):
        return "A restore is under way and has changed nothing yet: it reads the repositories, or waits until a backup has ended."
    if state is None:
        return "There was no restore here."
    kept = "".join(f" {each} is kept." for each in _kept())
    if state.finished:
        return f"The restore to {state.target} is done.{kept}"
    return f"The restore to {state.target} is not finished: it is, or ended, at '{state.step}'. {_ways_out(state)}{kept}"


def _confirm(names: list[str], given: str | None) -> None:
    """Have the database's name typed.

    Raises:
        Failure: it was not.
    """
    if given is None and sys.stdin.isatty():
        given = input("Type the name of the database to go on: ").strip()
    if not given or given not in names:
        raise Failure(
            f"Nothing was changed. The confirmation is '{given or ''}' and what is replaced is {', '.join(names)}: "
            "type that name, or write -e restore_confirm=NAME."
        )


def _call_run(given: argparse.Namespace) -> None:
    chosen = plan(given.target, new_host=given.new_host, spare_mb=given.spare_mb)
    print("\n".join(chosen.lines()), flush=True)
    if not given.new_host:
        _confirm(chosen.choice.databases or ["postgres"], given.confirm)
    begun = time.monotonic()
    found = run(given.target, new_host=given.new_host, spare_mb=given.spare_mb)
    for database, tables in found.rows.items():
        for table, rows in tables.items():
            print(f"{database} {table}: {rows} rows")
    print(f"The database is back at {chosen.choice.target} after {time.monotonic() - begun:.0f} s: {'; '.join(found.said)}.")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `restore` to the command line."""
    parser = commands.add_parser("restore", help="bring the database back to a moment of its past")
    actions = parser.add_subparsers(dest="action", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text)

    def add_with_target(name: str, text: str) -> argparse.ArgumentParser:
        action = add(name, text)
        action.add_argument("target", help=recovery.FORMS)
        action.add_argument(
            "--spare-mb", type=int, default=SPARE_MB, metavar="MB", help="what has to stay free on the disk (default %(default)s)"
        )
        return action

    action = add_with_target("plan", "say what a restore would do and what would be lost")
    action.set_defaults(call=lambda given: print("\n".join(plan(given.target, spare_mb=given.spare_mb).lines())))
    action = add_with_target("run", "restore, check, start everything again, and make a new backup")
    action.add_argument("--confirm", metavar="NAME", help="name of the database, instead of typing it")
    action.add_argument("--new-host", action="store_true", help="into the empty server of a new host: keeps nothing, asks nothing")
    action.set_defaults(call=_call_run)
    action = add("point", "name this moment")
    action.add_argument("name")
    action.set_defaults(call=lambda given: print(point(given.name)))
    for name, text, call in (
        ("list", "show what can be restored", _list),
        ("status", "say where the last restore is", _status),
        ("undo", "put the data directory back that the last restore replaced", undo),
        ("clean", "remove replaced data directories", clean),
    ):
        add(name, text).set_defaults(call=lambda _, call=call: print(call()))
