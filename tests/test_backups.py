"""What the programs of the backups decide: retention, segments, metrics, and what turns the archive red."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from holdfast import archive, backup, metrics, postgres
from holdfast.archive import Seen, Server
from holdfast.backup import DAY_SECONDS, Repository, kept_fulls
from holdfast.failure import Failure
from holdfast.metrics import Gauge

NOW = 1_800_000_000.0


def ended(*days_ago: float) -> list[int]:
    """Return when full backups ended, oldest first."""
    return sorted(int(NOW - days * DAY_SECONDS) for days in days_ago)


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
    ],
)
def test_recoverable_for_days(minimum: int, days: int, fulls: list[int], kept: int) -> None:
    """Kept are a number of full backups, and one that ended before the first of the days."""
    assert min(kept_fulls(Repository(1, minimum, days), fulls, NOW), len(fulls)) == kept


def test_segments_cross_a_log() -> None:
    """After the last segment of a log comes the first of the next, on the same timeline."""
    found = list(archive.segments("0000000200000000000000FE", "000000020000000100000001", 16 * 2**20))
    assert found == ["0000000200000000000000FF", "000000020000000100000000", "000000020000000100000001"]


def test_segments_of_another_size() -> None:
    """A server whose segments are larger has fewer of them in a log."""
    assert list(archive.segments("00000001000000000000003F", "000000010000000100000000", 64 * 2**20)) == ["000000010000000100000000"]


SERVER = Server(0, 0, "000000010000000000000005", NOW, 0, 0, 0, 16 * 2**20)
GOOD = {1: Seen(backups={"full": NOW})}


@pytest.mark.parametrize(
    ("server", "seen", "gap", "words"),
    [
        (Server(7, 61, None, 0, 0, 0, 0, 1), GOOD, False, "7 segments of WAL wait"),
        (SERVER, {1: Seen(fault="unable to open")}, False, "Repository 1 can't be asked: unable to open"),
        (SERVER, {**GOOD, 2: Seen()}, False, "Repository 2 has no backup"),
        (SERVER, GOOD, True, "WAL is missing"),
    ],
)
def test_red(server: Server, seen: dict[int, Seen], gap: bool, words: str) -> None:  # noqa: FBT001  # pytest gives it by name
    """Each fault turns the archive red, and is one sentence."""
    (sentence,) = archive.faults(server, seen, gap=gap)
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


@pytest.mark.parametrize(("said", "last"), [("", NOW), (BACKUP, NOW - 7 * DAY_SECONDS)])
def test_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, last: float) -> None:
    """A proof that fails leaves the time of the last one that did not."""
    name = 'holdfast_repository_verified_timestamp_seconds{repository="1"}'
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words, **_: said)
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
    made = {"label": "new", "error": error, "type": "full", "timestamp": {"stop": 5}, "database": {"repo-key": 1}}
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


def test_green() -> None:
    """Where nothing waits and every repository has a backup there is nothing to say."""
    assert archive.faults(SERVER, GOOD, gap=False) == []


def test_metrics_are_read_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is read again, labels and infinity too, and what others read is never half a file."""
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    gauge = Gauge("holdfast_a_seconds", "How long it took.", math.inf)
    metrics.write("sample", [gauge, Gauge("holdfast_b", "Whether.", labelled={(("type", 'a"b'),): 1})])
    assert metrics.read("sample") == {"holdfast_a_seconds": math.inf, 'holdfast_b{type="a\\"b"}': 1}
    assert "# TYPE holdfast_a_seconds gauge" in metrics.path_of("sample").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["holdfast_sample.prom"]
