"""What the programs of the backups decide: retention, segments, metrics, and what turns the archive red."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from holdfast import __main__, archive, backup, lock, metrics, postgres, restore
from holdfast.archive import Seen, Server
from holdfast.backup import DAY_SECONDS, Repository, kept_fulls
from holdfast.failure import Failure
from holdfast.metrics import Gauge

NOW = 1_800_000_000.0


def ended(*days_ago: float, damaged: tuple[float, ...] = ()) -> list[tuple[int, bool]]:
    """Return when full backups ended, oldest first, and whether each is good."""
    return sorted((int(NOW - days * DAY_SECONDS), days not in damaged) for days in (*days_ago, *damaged))


@pytest.mark.parametrize(
    ("minimum", "days", "fulls", "kept"),
    [
        (2, 14, ended(1), 1),
        (1, 14, ended(3, 10, 17), 3),
        (1, 14, ended(3, 10, 17, 24), 3),
        (1, 14, ended(30, 37), 1),
        (2, 14, ended(30, 37), 2),
        (4, 7, ended(1, 8, 15, 22, 29), 4),
        (1, 1, ended(0.1, 0.2, 0.3), 3),
        (2, 1, ended(1, 15, damaged=(8,)), 3),
        (2, 1, ended(8, 15, 22, damaged=(1,)), 3),
        (1, 14, ended(3, 20, 27, damaged=(10, 17)), 4),
        (2, 14, ended(3, damaged=(10, 17)), 3),
        (2, 1, ended(damaged=(3, 10, 17)), 3),
    ],
)
def test_recoverable_for_days(minimum: int, days: int, fulls: list[tuple[int, bool]], kept: int) -> None:
    """Kept are a number of good full backups, and one that ended before the first of the days; a damaged one takes no good one's place."""
    assert min(kept_fulls(Repository(1, minimum, days), fulls, NOW), len(fulls)) == kept


def test_segments_cross_a_log() -> None:
    """After the last segment of a log comes the first of the next, on the same timeline."""
    found = list(archive.segments("0000000200000000000000FE", "000000020000000100000001", 16 * 2**20))
    assert found == ["0000000200000000000000FF", "000000020000000100000000", "000000020000000100000001"]


def test_segments_of_another_size() -> None:
    """A server whose segments are larger has fewer of them in a log."""
    assert list(archive.segments("00000001000000000000003F", "000000010000000100000000", 64 * 2**20)) == ["000000010000000100000000"]


SERVER = Server(0, 0, "000000010000000000000005", NOW, 0, 0, 0, 16 * 2**20, "on", "000000010000000000000006", 800, NOW - 60)
GOOD = {1: Seen(backups={"full": NOW})}


@pytest.mark.parametrize(
    ("server", "seen", "gaps", "words"),
    [
        (replace(SERVER, ready=7, oldest_ready_seconds=61), GOOD, [], "7 segments of WAL wait"),
        (replace(SERVER, archive_mode="off"), GOOD, [], "archive_mode is off, so nothing that is written leaves the host"),
        (SERVER, {1: Seen(fault="unable to open")}, [], "Repository 1 can't be asked: unable to open"),
        (SERVER, {**GOOD, 2: Seen()}, [], "Repository 2 has no backup"),
        (SERVER, GOOD, ["1"], "WAL is missing in repository 1"),
    ],
)
def test_red(server: Server, seen: dict[int, Seen], gaps: list[str], words: str) -> None:
    """Each fault turns the archive red, and is one sentence."""
    (sentence,) = archive.faults(server, seen, gaps)
    assert words in sentence


def test_refusal_is_told_in_the_bucket_s_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long answer, the object store's code and reason are what a person reads."""
    answer = "HTTP request failed with 403: *** <Error><Code>RequestTimeTooSkewed</Code><Message>Too large.</Message></Error>"
    stanza = {"status": {"code": 99, "message": "other"}, "repo": [{"status": {"code": 99, "message": f"[ProtocolError]\n{answer}"}}]}
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words, timeout_seconds: json.dumps([stanza]))
    assert archive.look(1, []).fault == "RequestTimeTooSkewed, Too large"


BACKUP = "stanza: main\nstatus: error\n  backup: 20261126-012332F, status: invalid, total files checked: 1265, total valid files: 1264"
ARCHIVE = "stanza: main\nstatus: error\n  archiveId: 17-1, total WAL checked: 13, total valid WAL: 12\n    other: 1"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", []),
        (BACKUP, ["1 of 1265 files of the backup 20261126-012332F are damaged or gone"]),
        (ARCHIVE, ["1 of 13 segments of the archive 17-1 are damaged or gone"]),
        ("stanza: main\nstatus: error\n  no archives exist", ["pgBackRest says: stanza: main status: error no archives exist"]),
    ],
)
def test_what_is_damaged(said: str, found: list[str]) -> None:
    """What pgBackRest finds in a repository is told as a sentence; what it says in other words is handed on."""
    assert backup.damages(said) == found


MADE = {"label": "new", "error": False, "type": "full", "timestamp": {"stop": 5}, "database": {"repo-key": 1}}


@pytest.mark.parametrize(("said", "last"), [("", NOW), (BACKUP, NOW - 7 * DAY_SECONDS)])
def test_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, last: float) -> None:
    """A proof that fails leaves the time of the last one that did not."""
    name = 'holdfast_repository_verified_timestamp_seconds{repository="1"}'
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words, **_: said)
    monkeypatch.setattr(postgres, "info", lambda: {"backup": [MADE]})
    monkeypatch.setattr(backup, "repositories", lambda: [Repository(1, 1, 1)])
    monkeypatch.setattr(backup, "LOCK", tmp_path)
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    (tmp_path / "holdfast_verify.prom").write_text(f"{name} {NOW - 7 * DAY_SECONDS}\n")
    monkeypatch.setattr(time, "time", lambda: NOW)
    if said:
        with pytest.raises(Failure, match="repository 1: 1 of 1265 files"):
            backup.verify()
    else:
        backup.verify()
    assert metrics.read("verify") == {name: last, 'holdfast_repository_sound{repository="1"}': float(not said)}


@pytest.mark.parametrize("error", [False, True])
def test_backup_of_damaged_pages_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: bool) -> None:  # noqa: FBT001
    """A backup in which pgBackRest met a wrong checksum has failed, and nothing older expires."""
    called: list[str] = []
    made = {**MADE, "error": error}
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words, **_: called.append(words[0]))
    monkeypatch.setattr(postgres, "info", lambda: {"backup": [made]})
    monkeypatch.setattr(backup, "repositories", lambda: [Repository(1, 1, 1)])
    monkeypatch.setattr(backup, "LOCK", tmp_path)
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    if error:
        with pytest.raises(Failure, match="pages whose checksums are wrong"):
            backup.run("full")
    else:
        backup.run("full")
    assert called == (["backup"] if error else ["backup", "expire"])


def test_proof_finds_a_damaged_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was damaged before it was backed up has the right checksum in the repository; once a good backup follows, all is well."""
    made = [{**MADE, "error": True}]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words, **_: "")
    monkeypatch.setattr(postgres, "info", lambda: {"backup": made})
    (said,) = backup._verify(Repository(1, 1, 1))
    assert "the backup new was made of pages whose checksums are wrong" in said
    made.append({**MADE, "label": "newer", "timestamp": {"stop": 6}})
    assert backup._verify(Repository(1, 1, 1)) == []


def test_nothing_expires_while_a_restore_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backup that a restore waits for lets no older one go, which may be the one that the restore wants; the next backup does."""
    called: list[str] = []
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words, **_: called.append(words[0]))
    monkeypatch.setattr(postgres, "info", lambda: {"backup": [MADE]})
    monkeypatch.setattr(backup, "RESTORE", tmp_path)
    with lock.alone(tmp_path, "Another restore is running."):
        backup._back_up("full", Repository(1, 1, 1))
    assert called == ["backup"]
    backup._back_up("full", Repository(1, 1, 1))
    assert called == ["backup", "backup", "expire"]


@pytest.mark.parametrize("listed", [{"backup": []}, {"backup": [{}]}])
def test_error_in_one_repository_leaves_the_next_its_backup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: dict[str, list[dict[str, object]]]
) -> None:
    """Whatever one repository answers, the next one gets its backup, and the metrics say that not all went well."""
    called: list[str] = []
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words, **_: called.append(words[1]))
    monkeypatch.setattr(postgres, "info", lambda: listed)
    monkeypatch.setattr(backup, "repositories", lambda: [Repository(1, 1, 1), Repository(2, 1, 1)])
    monkeypatch.setattr(backup, "LOCK", tmp_path)
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    with pytest.raises(Failure, match=r"repository 1: .*; repository 2: "):
        backup.run("full")
    assert called == ["--repo=1", "--repo=2"]
    assert metrics.read("backup_full")['holdfast_backup_success{type="full"}'] == 0


@pytest.mark.parametrize(
    ("kind", "result", "success"),
    [("full", "oom-kill", 0), ("incr", "timeout", 0), ("diff", "signal", 0), ("full", "exit-code", 1), ("full", "success", 1)],
)
def test_backup_that_was_ended_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, result: str, success: float) -> None:
    """A backup that was killed has failed, and the last one that succeeded is still known; the rest has recorded itself."""
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    monkeypatch.setenv("SERVICE_RESULT", result)
    backup._record(kind, NOW, success=True)
    name = f'holdfast_backup_last_success_timestamp_seconds{{type="{kind}"}}'
    last = metrics.read(f"backup_{kind}")[name]
    backup.ended(kind)
    after = metrics.read(f"backup_{kind}")
    assert after[f'holdfast_backup_success{{type="{kind}"}}'] == success and after[name] == last


@pytest.mark.parametrize(("said", "tried"), [("[050]: unable to acquire lock on file", 3), ("[040]: unable to read", 1)])
def test_stanza_waits_for_the_archiver(monkeypatch: pytest.MonkeyPatch, said: str, tried: int) -> None:
    """A stanza is made between two pushes of the archiver; any other reason fails at once."""
    calls: list[str] = []

    def refuse(word: str) -> str:
        calls.append(word)
        if len(calls) < 3:
            raise Failure(f"pgBackRest refused: {said}")
        return ""

    monkeypatch.setattr(postgres, "pgbackrest", refuse)
    with nullcontext() if tried == 3 else pytest.raises(Failure, match="unable to read"):
        backup._create_stanza()
    assert calls == ["stanza-create"] * tried


def test_proof_that_was_ended_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A restore ends a proof of the backups, and no metric of it changes."""
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    monkeypatch.setenv("SERVICE_RESULT", "signal")
    backup.ended("verify")
    assert not list(tmp_path.iterdir())


def test_green() -> None:
    """Where nothing waits and every repository has a backup there is nothing to say."""
    assert archive.faults(SERVER, GOOD) == []


def test_metrics_are_read_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is read again, labels and infinity too, and what others read is never half a file."""
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    gauge = Gauge("holdfast_a_seconds", "How long it took.", math.inf)
    metrics.write("sample", [gauge, Gauge("holdfast_b", "Whether.", labelled={(("type", 'a"b'),): 1})])
    assert metrics.read("sample") == {"holdfast_a_seconds": math.inf, 'holdfast_b{type="a\\"b"}': 1}
    assert "# TYPE holdfast_a_seconds gauge" in metrics.path_of("sample").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["holdfast_sample.prom"]


def test_full_disk_leaves_no_half_of_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk has no room the metrics stay what they were, and nothing piles up beside them."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    metrics.write("sample", [Gauge("holdfast_a", "Whether.", 1)])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failure, match="No space left"):
        metrics.write("sample", [Gauge("holdfast_a", "Whether.", 0)])
    assert metrics.read("sample") == {"holdfast_a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["holdfast_sample.prom"]


def test_gap_that_root_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guard that root ran has left is replaced, not written to: its unit runs as another user."""
    monkeypatch.setattr(archive, "WANTED", tmp_path / "backup-wanted")
    archive.WANTED.write_text("of root")
    before = archive.WANTED.stat().st_ino
    archive._ask_for_backup("1", "000000010000000000000005")
    assert archive.WANTED.read_text() == "1 000000010000000000000005\n"
    assert archive.WANTED.stat().st_ino != before


def test_gap_is_closed_while_another_repository_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that lacks WAL gets its backup though another one can't be asked; that one is looked through once it is back."""
    monkeypatch.setattr(archive, "WANTED", tmp_path / "backup-wanted")
    old, lost, new = (f"00000001000000000000000{number}" for number in (3, 4, 5))
    away, sound = Seen(fault="away"), Seen(backups={"full": NOW - 10})

    def ask(state: archive.State, first: Seen, second: Seen, now: float) -> archive.State:
        wanted = {key: archive._wanted(state, SERVER, key) for key in (1, 2)}
        return archive._next(state, SERVER, {1: first, 2: second}, wanted, now)

    found = ask(archive.State(complete={"1": old, "2": old}), replace(sound, missing=[lost]), away, NOW)
    assert (found.complete, found.gap_at) == ({"1": new, "2": old}, {"1": NOW})
    assert archive.WANTED.read_text() == f"1 {new}\n"
    closed = ask(found, Seen(backups={"incr": NOW + 5}), away, NOW + 60)
    assert closed.gap_at == {}
    assert archive.WANTED.read_text() == f"1 {new}\n", "to take it away would be to ask for another one"
    assert archive._wanted(closed, SERVER, 1) == [] and archive._wanted(closed, SERVER, 2) == [lost, new]
    back = ask(closed, sound, replace(sound, missing=[lost]), NOW + 120)
    assert (back.complete["2"], back.gap_at) == (new, {"2": NOW + 120})
    assert archive.WANTED.read_text() == f"2 {new}\n"
    archive.WANTED.unlink()
    assert ask(back, sound, away, NOW + 180).gap_at == back.gap_at
    assert not archive.WANTED.exists(), "nobody can back up to what is away"


def _guard(monkeypatch: pytest.MonkeyPatch, state: archive.State, *servers: Server) -> tuple[archive.State, list[str]]:
    """Have a guard run find a server; return what it leaves to the next run, and what it told the server."""
    told: list[str] = []
    answers = iter(servers)

    def psql(said: str) -> str:
        if said == archive.QUESTION:
            return json.dumps(asdict(next(answers)))
        told.append(said)
        return "t"

    monkeypatch.setattr(postgres, "psql", psql)
    return archive._next(state, archive.ask(state), {}, {}, NOW), told


def test_checkpointer_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpointer that has started since the last run is woken once, as it would sleep for minutes."""
    after, told = _guard(monkeypatch, archive.State(), SERVER)
    assert told == ["SELECT pg_reload_conf()"]
    after, told = _guard(monkeypatch, after, SERVER)
    assert told == []
    assert _guard(monkeypatch, after, replace(SERVER, checkpointer_at=NOW))[1] == ["SELECT pg_reload_conf()"]


def test_segment_that_time_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard ends a segment that has had a transaction since the last run, and no other one."""
    state = _guard(monkeypatch, archive.State(), SERVER)[0]
    for _ in range(2):
        state, told = _guard(monkeypatch, state, SERVER)
        assert told == [], "nothing was written"
    written = replace(SERVER, next_transaction=801)
    state, told = _guard(monkeypatch, state, written)
    assert told == [], "that may have been a moment ago"
    following = replace(written, segment="000000010000000000000007")
    assert _guard(monkeypatch, state, following)[1] == [], "time has ended it"
    state, told = _guard(monkeypatch, state, written, following)
    assert told == ["SELECT pg_switch_wal()"]
    assert _guard(monkeypatch, state, following)[1] == []


def test_guard_that_root_ran_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guard leaves that root ran with a narrow umask is read by its unit; what can't be read all the same is told, not forgotten."""
    (tmp_path / "pg_wal").mkdir()
    monkeypatch.setattr(archive, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(archive, "WANTED", tmp_path / "backup-wanted")
    monkeypatch.setattr(archive, "repositories", lambda: [Repository(1, 1, 1)])
    monkeypatch.setattr(archive, "look", lambda key, wanted: GOOD[1])
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    monkeypatch.setattr(postgres, "DATA", tmp_path)
    monkeypatch.setattr(postgres, "psql", lambda _: json.dumps(asdict(SERVER)))
    before = os.umask(0o077)
    try:
        assert archive.run() == []
    finally:
        os.umask(before)
    assert archive.STATE.stat().st_mode & 0o777 == 0o644

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(Failure, match=r"can't be read \(Permission denied\), and a gap may be noted in it: `chown postgres: "):
        archive._load()


@pytest.mark.parametrize("content", [None, "{", '{"unknown": 1}', '{"complete": "000000010000000000000005"}'])
def test_guard_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    """A state that is not there or is damaged is none."""
    monkeypatch.setattr(archive, "STATE", tmp_path / "state.json")
    if content is not None:
        archive.STATE.write_text(content)
    assert archive._load() == archive.State()


def test_umask_of_whoever_calls_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator's umask must not hide from the server what a program writes for it."""
    monkeypatch.setattr("sys.argv", ["holdfast", "restore", "status"])
    monkeypatch.setattr(restore, "FOLDER", tmp_path)
    monkeypatch.setattr(restore, "STATE", tmp_path / "state.json")
    before = os.umask(0o027)
    try:
        assert __main__.main() == 0
    finally:
        now = os.umask(before)
    assert now == 0o022
