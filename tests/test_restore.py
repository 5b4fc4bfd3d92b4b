"""What a restore decides before it touches anything: what a target means, and which backup and timeline reach it."""

from __future__ import annotations

import argparse
import errno
import json
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import backup as backups
from holdfast import drill, durable, extract, fingerprint, lock, metrics, postgres, recovery, restore, scratch, server
from holdfast.drill import Report
from holdfast.failure import Failure
from holdfast.fingerprint import Fingerprint
from holdfast.proof import Proof
from holdfast.recovery import Archive, Backup, Choice, Target

NO_BACKUP = restore._no_backup
NOW = 1_795_600_000.0  # 2026-11-25 09:46:40+00


def backup(label: str, ended: float, timeline: int, lsn: int) -> Backup:
    wal = f"{timeline:08X}{0:08X}{lsn:08X}"
    return Backup(label, 1, ended, wal, wal, lsn, 1 << 20)


@pytest.fixture
def archive() -> Archive:
    """Timeline 1 until 100 hours ago; restored to position 20 then, which was taken back 50 hours ago."""
    backups = [
        backup("first", NOW - 200 * 3600, 1, 10),
        backup("abandoned", NOW - 120 * 3600, 1, 30),
        backup("second", NOW - 90 * 3600, 2, 25),
        backup("third", NOW - 40 * 3600, 3, 60),
    ]
    return Archive(1, 7, backups, {2: NOW - 100 * 3600, 3: NOW - 50 * 3600}, {2: [(1, 20)], 3: [(1, 40)]})


def test_a_time_is_read_with_its_zone() -> None:
    target = Target.parse(" 2026-11-23 10:15:00+01 ", NOW)
    assert (target.kind, target.value) == ("time", "2026-11-23 09:15:00.000000+00")
    assert str(target) == "2026-11-23 09:15:00+00"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("latest", "latest", ""),
        ("20261123-010003F", "label", "20261123-010003F"),
        ("20261123-010003F_20261124-010003I", "label", "20261123-010003F_20261124-010003I"),
        ("xid:1234", "xid", "1234"),
        ("until-gap", "until-gap", ""),
        ("2026-11-23T10:15:00Z", "time", "2026-11-23 10:15:00.000000+00"),
    ],
)
def test_targets(text: str, kind: str, value: str) -> None:
    target = Target.parse(text, NOW)
    assert (target.kind, target.value) == (kind, value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-23 10:15:00", "has no time zone"),
        ("2026-11-23", "write '2026-11-23 00:00:00"),
        ("2026-11-23 25:15:00+00", "is no time"),
        ("2026-11-25 09:46:41+00", "is in the future"),
        ("xid:x", "is none"),
        ("", "is none"),
        ("--all", "is none"),
        ("name:x", "is none that `holdfast restore point` made here"),
    ],
)
def test_what_is_no_target(text: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recovery, "POINTS", tmp_path / "points.json")
    with pytest.raises(Failure, match=said):
        Target.parse(text, NOW)


def test_restore_point_is_known_by_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recovery, "POINTS", tmp_path / "points.json")
    (tmp_path / "points.json").write_text(json.dumps({"before_migration": NOW - 5}))
    assert Target.parse("name:before_migration", NOW) == Target("name", "before_migration", NOW - 5)


@pytest.mark.parametrize("content", ["", "[]", '{"before": null}', "\0"])
def test_damaged_names_are_told_and_kept(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    """A file of names that can't be read is nobody's "none": it is named, with what to write instead, and never written over."""
    monkeypatch.setattr(recovery, "POINTS", tmp_path / "points.json")
    monkeypatch.setattr(postgres, "psql", lambda sql: pytest.fail("a point was made that nobody can find"))
    recovery.POINTS.write_text(content)
    for call in (restore.point, lambda name: Target.parse(f"name:{name}", NOW)):
        with pytest.raises(Failure, match=r"points\.json can't be read .*write the time at which it was made instead; .*or remove it"):
            call("before")
    assert "points.json can't be read" in restore._list() and recovery.POINTS.read_text() == content


def test_names_outlive_a_power_cut(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name is on the disk itself before it is told, with all those before it."""
    written: list[bytes] = []

    def write(path: Path, content: bytes) -> None:
        written.append(content)
        path.write_bytes(content)

    monkeypatch.setattr(recovery, "POINTS", tmp_path / "points.json")
    monkeypatch.setattr(postgres, "psql", lambda sql: "")
    monkeypatch.setattr(durable, "write", write)
    restore.point("first")
    restore.point("second")
    assert list(recovery.points()) == ["first", "second"] and len(written) == 2


@pytest.mark.parametrize(("hours", "timeline"), [(1, 3), (51, 2), (99, 2), (101, 1)])
def test_timeline_of_a_moment(archive: Archive, hours: int, timeline: int) -> None:
    """What a restore wrote before it was taken back is looked for on its own timeline, though nothing followed from it."""
    assert archive.timeline_at(NOW - hours * 3600) == timeline


def test_backups_on_the_way(archive: Archive) -> None:
    """Only backups of before the position at which a timeline was left lead on."""
    assert [each.label for each in archive.on_the_way(1)] == ["first", "abandoned"]
    assert [each.label for each in archive.on_the_way(2)] == ["first", "second"]
    assert [each.label for each in archive.on_the_way(3)] == ["first", "abandoned", "third"]


def test_choice(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    about = [{"backup": [{"database-ref": [{"name": "postgres"}, {"name": "shop"}]}]}]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: json.dumps(about))
    choice = recovery.choose(Target("time", "then", NOW - 60 * 3600), archive)
    assert (choice.backup.label, choice.timeline, choice.databases) == ("second", 2, ["shop"])
    assert choice.options() == [
        "--repo=1", "--set=second", "--type=time", "--target-action=promote", "--target-timeline=2", "--target=then"
    ]  # fmt: skip
    assert recovery.choose(Target("latest"), archive).options() == ["--repo=1", "--set=third", "--type=default", "--target-timeline=3"]
    with pytest.raises(Failure, match="the oldest backup that leads to it ended at"):
        recovery.choose(Target("time", "then", NOW - 300 * 3600), archive)
    with pytest.raises(Failure, match="There is no backup 'x'"):
        recovery.choose(Target("label", "x"), archive)


@pytest.mark.parametrize(
    ("xid", "said"),
    [
        ("150", "first"),
        ("250", "may have been given to two transactions"),
        ("650", "may have been given to two transactions"),
        ("50", "can't be reached"),
    ],
)
def test_transaction_is_one(archive: Archive, monkeypatch: pytest.MonkeyPatch, xid: str, said: str) -> None:
    """A number that a timeline of before a restore may have used too is refused; one of before the first restore means one transaction."""
    about: list[Any] = [{"backup": [{"database-ref": []}]}]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: json.dumps(about))
    monkeypatch.setattr(recovery, "_next_xid", lambda each: each.lsn * 10)
    archive.backups.insert(1, backup("before", NOW - 150 * 3600, 1, 20))
    try:
        found = recovery.choose(Target("xid", xid), archive).backup.label
    except Failure as failure:
        found = str(failure)
    assert said in found


def test_transaction_where_no_backup_leads_elsewhere(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the backups of before the last restore have expired, a number means one transaction again."""
    about: list[Any] = [{"backup": [{"database-ref": []}]}]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: json.dumps(about))
    monkeypatch.setattr(recovery, "_next_xid", lambda each: each.lsn * 10)
    del archive.backups[:-1]
    assert recovery.choose(Target("xid", "650"), archive).backup.label == "third"


def test_label_follows_no_timeline(archive: Archive) -> None:
    words = Choice(Target("label", "second"), archive.backups[2], 2, []).options()
    assert words == ["--repo=1", "--set=second", "--type=immediate", "--target-action=promote"]


def test_the_second_repository_is_asked(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    about: list[Any] = [{"backup": [{"database-ref": []}]}]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: json.dumps(about))
    assert recovery.find(Target("latest"), [Archive(2, 7, []), archive]).backup.label == "third"


def test_the_repository_that_goes_furthest_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that was away while the last was written is not restored from, and gives what the other one lacks."""
    about: list[Any] = [{"backup": [{"database-ref": []}]}]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: json.dumps(about))
    made = backup("good", NOW, 1, 10)
    stale = Archive(1, 7, [made], last="0000000200000000000000FF")
    ahead = Archive(2, 7, [replace(made, repository=2)], last="000000030000000000000001")
    found = recovery.find(Target("latest"), [stale, ahead])
    assert "--repo=2" in found.options()
    assert found.others == [1]
    level = replace(stale, last=ahead.last)
    assert "--repo=1" in recovery.find(Target("latest"), [level, ahead]).options()


@pytest.mark.parametrize(
    ("first", "again", "second", "code"),
    [
        pytest.param(0, 1, 1, 0, id="there"),
        pytest.param(1, 0, 1, 0, id="late"),
        pytest.param(1, 1, 0, 0, id="elsewhere"),
        pytest.param(82, 103, 0, 0, id="elsewhere while one is away"),
        pytest.param(1, 1, 1, 1, id="nowhere"),
        pytest.param(1, 1, 103, 200, id="perhaps where nobody can look"),
        pytest.param(103, 1, 1, 200, id="an error once"),
    ],
)
def test_wal_is_fetched_or_known_to_be_missing(tmp_path: Path, first: int, again: int, second: int, code: int) -> None:
    """The end of the archive is what every repository says; one that can't be read never ends a restore early."""
    choice = Choice(Target("latest"), backup("good", NOW, 1, 10), 1, [], [2])
    program = tmp_path / "pgbackrest"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in\n*--spool-path=*--no-archive-async*|*--no-archive-async*--spool-path=*) exit 31;;\n'
        f"*--repo=2*--no-archive-async*) exit {second};;\n"
        f"*--no-archive-async*) exit {again};;\n*--repo=1*--spool-path=/elsewhere*) exit {first};;\nesac\nexit 99\n"
    )
    program.chmod(0o755)
    (option,) = choice.fetching("--pg1-path=/elsewhere", ahead="--spool-path=/elsewhere")
    assert option.count("pgbackrest --pg1-path=/elsewhere ") == 1
    command = option.removeprefix("--recovery-option=restore_command=")
    assert subprocess.run(["sh", "-c", command], check=False, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}).returncode == code


WAY = [f"00000001{0:08X}{number:08X}" for number in range(2, 6)] + [f"00000003{0:08X}{number:08X}" for number in range(5, 8)]
LEFT = [f"00000001{0:08X}{number:08X}" for number in (6, 7, 8)] + [f"00000002{0:08X}{number:08X}" for number in range(6, 99)]


@pytest.mark.parametrize(
    ("gone", "elsewhere", "waiting", "kind", "missing"),
    [
        pytest.param((), (), (), "latest", "", id="whole"),
        pytest.param(WAY[:1], (), (), "latest", WAY[0], id="the backup's first"),
        pytest.param(WAY[2:4], (), (), "latest", WAY[2], id="of before a restore"),
        pytest.param(WAY[5:6], (), (), "latest", WAY[5], id="that a timeline of before has too"),
        pytest.param(WAY[5:6], WAY[5:6], (), "latest", "", id="in another repository"),
        pytest.param(WAY[5:6], (), WAY[5:6], "latest", "", id="on its way"),
        pytest.param(WAY[5:6], (), (), "until-gap", "", id="accepted"),
        pytest.param(WAY[4:], (), (), "latest", "", id="nothing of a timeline that has just begun"),
        pytest.param([WAY[2], *WAY[4:]], (), (), "latest", WAY[2], id="before a timeline that has just begun"),
    ],
)
def test_missing_segment_is_not_the_end(
    monkeypatch: pytest.MonkeyPatch, gone: list[str], elsewhere: list[str], waiting: list[str], kind: str, missing: str
) -> None:
    """On the way from the backup to the last segment, past a restore that was taken back, each segment is in a repository or on its way."""
    made = Backup("good", 1, NOW, WAY[0], WAY[0], (2 << 24) + 100, 1 << 20)
    held = {1: [each for each in (*WAY, *LEFT) if each not in gone], 2: list(elsewhere)}
    found = [
        Archive(
            key, 7, [made], {2: 1, 3: 2}, {2: [(1, (6 << 24) + 9)], 3: [(1, (5 << 24) + 9)]}, max(names, default=""), "archive/main/17-1"
        )
        for key, names in held.items()
    ]

    def listed(action: str, folder: str, repository: str) -> str:
        assert action == "repo-ls" and folder.startswith("archive/main/17-1/")
        names = held[int(repository.removeprefix("--repo="))]
        # A part of a segment is none.
        return "\n".join([f"{WAY[3]}.partial-0a.zst", *(f"{each}-0a.zst" for each in names if each[:16] == folder[-16:])])

    monkeypatch.setattr(postgres, "pgbackrest", listed)
    choice = Choice(Target(kind), made, 3, [], [2])
    with pytest.raises(Failure, match=f"The segment {missing} of WAL .*write until-gap instead") if missing else nullcontext():
        recovery.refuse_gap(choice, found, waiting)


def test_missing_segment_at_the_end_of_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are counted on over the end of a log, in their own size."""
    large = Backup("good", 1, NOW, "00000001000000000000003E", "00000001000000000000003F", (0x3F << 26) + 100, 1 << 20)
    assert large.segment_bytes == 1 << 26 and backup("good", NOW, 1, 10).segment_bytes == 1 << 24
    held = ["00000001000000000000003E", "00000001000000000000003F", "000000010000000100000001"]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: "\n".join(f"{each}-0a.zst" for each in held if each[:16] in words[1]))
    choice, found = Choice(Target("latest"), large, 1, []), [Archive(1, 7, [large], last=held[-1])]
    with pytest.raises(Failure, match="The segment 000000010000000100000000 of WAL is missing"):
        recovery.refuse_gap(choice, found)
    held.insert(2, "000000010000000100000000")
    recovery.refuse_gap(choice, found)


@pytest.mark.parametrize(("kind", "ended"), [("lost", 9), ("lost", 10), ("runs", 9)])
def test_segment_that_a_lost_host_had_not_sent(monkeypatch: pytest.MonkeyPatch, kind: str, ended: int) -> None:
    """One that later ones overtook as the host went keeps no rebuild from going on; an older one does, and any where the host is there."""
    monkeypatch.setattr(postgres, "pgbackrest", lambda *_: "\n".join(f"{1:08X}{0:08X}{each:08X}-0a.zst" for each in (1, 3)))
    made = backup("good", NOW, 1, 1)
    found = [Archive(1, 7, [made], last=f"{1:08X}{0:08X}{ended:08X}")]
    goes_on = (kind, ended) == ("lost", 9)
    with nullcontext() if goes_on else pytest.raises(Failure, match="The segment 000000010000000000000002 of WAL is missing"):
        recovery.refuse_gap(Choice(Target("latest"), made, 1, []), found, lost=kind == "lost")


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        (Target("latest"), "refused"),
        (Target("time", "then", NOW), "waits"),
        (Target("time", "then", NOW - 600), "goes on"),
        (Target("xid", "7"), "waits"),
        (Target("label", "good"), "goes on"),
    ],
)
def test_extract_needs_only_what_its_target_needs(monkeypatch: pytest.MonkeyPatch, target: Target, outcome: str) -> None:
    """While archiving stands still, only the last moment is refused: the past is there."""
    waited: list[str] = []
    monkeypatch.setattr(recovery, "flush", lambda: "segment")
    monkeypatch.setattr(recovery, "waiting", lambda repository: (3, 600.0))
    monkeypatch.setattr(recovery, "archived_until", lambda seconds: NOW)
    monkeypatch.setattr(recovery, "wait_archived", lambda segment, seconds: waited.append(segment))
    with pytest.raises(Failure, match="is not in the archive") if outcome == "refused" else nullcontext():
        recovery.reach(Choice(target, backup("good", NOW, 1, 10), 1, []))
    assert bool(waited) == (outcome != "goes on")


@pytest.mark.parametrize(("said", "until"), [("1795599999.5", NOW - 0.5), ("0", NOW - 60)])
def test_archived_until(monkeypatch: pytest.MonkeyPatch, said: str, until: float) -> None:
    """Where a crash took the server's statistics, what waits says how far the archive goes."""
    monkeypatch.setattr(postgres, "psql", lambda sql: said)
    monkeypatch.setattr(time, "time", lambda: NOW)
    assert recovery.archived_until(60) == until


def test_last_segment_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the repository's own and newest cluster, and nothing where none was archived."""

    def entry(number: int, key: int, last: str | None) -> dict[str, Any]:
        return {"database": {"id": number, "repo-key": key}, "id": f"17-{number}", "min": last, "max": last}

    database = [{"id": number, "repo-key": key, "system-id": 7, "version": "17"} for number, key in ((1, 1), (2, 1), (1, 2))]
    archived = [entry(1, 1, "000000010000000000000009"), entry(2, 1, "000000010000000000000005"), entry(1, 2, None)]
    repositories = [{"key": key, "status": {"code": recovery.OK}} for key in (1, 2)]
    monkeypatch.setattr(postgres, "info", lambda *_: {"repo": repositories, "db": database, "archive": archived, "backup": []})
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: "{}")
    assert [each.last for each in recovery.archives()] == ["000000010000000000000005", ""]
    monkeypatch.setattr(postgres, "psql", lambda sql: "[3, 1.5]" if sql.startswith("\\set last '000000010000000000000005'\n") else "")
    assert recovery.waiting(1) == (3, 1.5)


def test_variables_of_psql_are_quoted() -> None:
    assert postgres.variables(a="it's", b="c\\d") == "\\set a 'it''s'\n\\set b 'c\\\\d'\n"


def test_fingerprint_tells_changed_rows_from_damaged_ones() -> None:
    before = Fingerprint("9", {"t": {"0": (2, "5"), "1": (1, "7")}})
    assert list(fingerprint.faults(before, Fingerprint("9", {"t": {"0": (1, "3"), "1": (1, "7")}}))) == []
    assert list(fingerprint.faults(before, Fingerprint("9", {"t": {"0": (2, "6"), "1": (1, "7")}}))) == ["t (1 of 64 buckets of rows)"]
    assert list(fingerprint.faults(before, Fingerprint("9", {"t": {"0": (3, "5")}}))) == ["t (1 of 64 buckets of rows)"]


def test_fingerprint_tells_rows_that_only_the_live_database_has() -> None:
    copy = Fingerprint("9", {"t": {"0": (2, "5"), "1": (1, "7")}})
    assert list(fingerprint.lost(copy, Fingerprint("9", {"t": {"0": (1, "3"), "3": (2, "1")}}))) == []
    assert list(fingerprint.lost(copy, Fingerprint("9", {"t": {"0": (3, "5"), "1": (1, "7")}, "u": {}}))) == ["t (1 rows)"]
    assert list(fingerprint.lost(Fingerprint("9", {}), copy)) == ["t (3 rows)"]


def test_drill_report() -> None:
    said = "\n".join(Report(NOW, "", "label", NOW - 60, 1 << 20, "then", 1.25, 2.0, 3.0, 9.0, ["all is there"]).lines())
    assert "passed, after 9 s" in said and "after 1.2 s" in said and "5.0 s, of which 2.0 s for the backup and 3.0 s for WAL" in said
    assert "FAILED" in "\n".join(Report(NOW, "Something is wrong.").lines())


def test_drill_of_a_damaged_page_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the newest backup holds damaged pages, no older one stands in for it."""
    good = {"label": "old", "error": False, "timestamp": {"stop": 4}, "database": {"repo-key": 1}}
    made = {"label": "new", "error": True, "timestamp": {"stop": 5}, "database": {"repo-key": 1}}
    monkeypatch.setattr(recovery, "archives", lambda *, every: [Archive(1, 7, [backup("old", NOW, 1, 10)])])
    choice = Choice(Target("latest"), backup("new", NOW, 1, 10), 1, [])
    monkeypatch.setattr(recovery, "choose", lambda target, archive: choice)
    monkeypatch.setattr(postgres, "info", lambda: {"backup": [made, good]})
    with pytest.raises(Failure, match="Repository 1: the backup new was made of pages whose checksums are wrong"):
        drill._newest(NOW)
    made["error"] = False
    assert drill._newest(NOW) is choice


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("report.json", r"ended early \(OSError: .*No space"),
        ("nowhere/report.json", r"nothing to restore from\. The report can't be written to .*: make room there"),
    ],
)
def test_drill_on_a_full_disk_is_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: str, said: str) -> None:
    """A drill that finds no room, for its copy or for its report only, has failed, and the metrics say so."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def newest(_: float) -> Choice:
        raise Failure("There is nothing to restore from.")

    monkeypatch.setattr(drill, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(drill, "REPORT", tmp_path / report)
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    monkeypatch.setattr(drill.Settings, "read", full if "early" in said else lambda: None)
    monkeypatch.setattr(drill, "_newest", newest)
    metrics.write("drill", [metrics.Gauge("holdfast_drill_success", "Whether.", 1)])
    with pytest.raises(Failure, match=said):
        drill.run()
    assert metrics.read("drill")["holdfast_drill_success"] == 0


def test_one_copy_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second drill is refused while one is held, and neither it nor the end of its unit touches the copy of the first."""
    rows = tmp_path / "scratch" / "rows"
    monkeypatch.setattr(drill, "SCRATCH", rows.parent)
    monkeypatch.setattr(drill, "REPORT", tmp_path / "report.json")
    with scratch.alone(rows.parent):
        rows.parent.mkdir()
        rows.touch()
        for call in (drill.run, drill.clean):
            with pytest.raises(Failure, match="Another copy is in use"):
                call()
    assert rows.exists() and not drill.REPORT.exists()
    drill.clean()
    assert not rows.parent.exists()


def test_copy_of_a_killed_extract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The end of an extract's unit removes its copy, is silent where there is none, and never takes that of another one."""
    rows = tmp_path / "extract" / "scratch" / "rows"
    monkeypatch.setattr(extract, "FOLDER", rows.parent.parent)
    monkeypatch.setattr(extract, "SCRATCH", rows.parent)
    extract.clean()
    rows.parent.mkdir(parents=True)
    rows.touch()
    with scratch.alone(rows.parent), pytest.raises(Failure, match="Another copy is in use"):
        extract.clean()
    assert rows.exists()
    extract.clean()
    assert list(extract.FOLDER.iterdir()) == []


@pytest.mark.parametrize(("words", "accepted"), [("shop --table rows", True), ("--clean", True), ("", False), ("shop --clean", False)])
def test_words_of_an_extract(words: str, accepted: bool) -> None:  # noqa: FBT001  # a case of a table
    """An extract is told its database, or only to clean up."""
    parser = argparse.ArgumentParser()
    extract.add_parser(parser.add_subparsers())
    with nullcontext() if accepted else pytest.raises(SystemExit):
        assert parser.parse_args(["extract", *words.split()]).clean == (words == "--clean")


def test_metric_without_a_value_is_left_out() -> None:
    assert list(metrics.Gauge("name", "help").samples()) == []


class Host:
    """A host whose units and server are only noted: what is restored is a file of its data directory.

    Attributes:
        data: the data directory.
        broken: a unit that does not start.
        answers: whether the server does.
        asked: what pgBackRest was asked for last.
        exposed: whether a server would have started on what it found then.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder / "main"
        self.data.mkdir()
        self.hold("first")
        self.broken = ""
        self.answers = True
        self.asked: tuple[str, ...] = ()
        self.exposed = False

    def hold(self, rows: str) -> None:
        """Have the database hold rows."""
        (self.data / "global").mkdir(exist_ok=True)
        for name, content in (("PG_VERSION", "17"), ("rows", rows), ("global/pg_control", "")):
            (self.data / name).write_text(content)

    def rows(self) -> str:
        """Return what the database holds."""
        return (self.data / "rows").read_text()

    def pgbackrest(self, *words: str, **_: float) -> None:
        """Restore the backup."""
        self.asked, self.exposed = words, self.starts()
        self.hold("restored")

    def starts(self) -> bool:
        """Say whether a server would start on the data directory."""
        return (self.data / "global" / "pg_control").exists()

    def start(self, unit: str) -> None:
        """Start a unit."""
        if unit == self.broken:
            raise Failure(f"{unit} did not start.")
        self.answers = self.answers or unit == restore.UNIT

    def stop(self, unit: str) -> None:
        """Stop a unit."""
        self.answers = self.answers and unit != restore.UNIT


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    host = Host(tmp_path)
    made = backup("good", NOW, 1, 10)
    names = (tmp_path / f"main{restore.KEPT}{number}" for number in range(9))
    for module, name, value in (
        (postgres, "DATA", host.data),
        (postgres, "pgbackrest", host.pgbackrest),
        (postgres, "identity", dict),
        (recovery, "archives", list),
        (recovery, "find", lambda target, found: Choice(target, made, 1, ["shop"])),
        (recovery, "flush", lambda: "000000010000000000000009"),
        (recovery, "wait_archived", lambda segment, seconds: True),
        (recovery, "waiting", lambda repository: (1, 0.5)),
        (recovery, "archived_until", lambda waited: NOW),
        (recovery, "unarchived", set),
        (recovery, "refuse_gap", lambda choice, found, waiting, *, lost: None),
        (backups, "run", lambda kind: None),
        (restore, "FOLDER", tmp_path / "state"),
        (restore, "STATE", tmp_path / "state" / "state.json"),
        (restore, "_fresh_name", lambda: next(names)),
        (restore, "_answers", lambda: host.answers),
        (restore, "_running_units", lambda: ["app@blue.service"] if host.answers else []),
        (restore, "_systemctl", lambda *words: None),
        (restore, "_start", host.start),
        (restore, "_stop", host.stop),
        (restore, "_no_backup", nullcontext),
        (restore, "_roll_forward", lambda state: Proof()),
        (restore, "_new_timeline", lambda: None),
        (restore, "_refuse_other_cluster", lambda archives: None),
    ):
        monkeypatch.setattr(module, name, value)
    return host


def test_restore_fetches_from_every_repository(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself rolls forward over a gap of one repository with what another one has."""
    made = Choice(Target("latest"), backup("good", NOW, 1, 10), 1, ["shop"], [2])
    monkeypatch.setattr(recovery, "find", lambda target, found: made)
    restore.run("latest", spare_mb=0)
    assert host.asked == ("restore", "--delta", *made.options(), *made.fetching()) and len(made.fetching()) == 1


def test_latest_is_refused_while_archiving_stands_still(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for long would be lost; an earlier moment is reached all the same, and a server that is down can't archive anything."""
    monkeypatch.setattr(recovery, "waiting", lambda repository: (3, 600.0))
    monkeypatch.setattr(time, "time", lambda: NOW + 3600)
    with pytest.raises(Failure, match=r"in the last 600 s, 3 segments of WAL, is not in repository 1"):
        restore.run("latest", spare_mb=0)
    assert host.rows() == "first" and restore.State.read() is None
    assert "LOST: everything that was written" in "\n".join(restore.plan("2026-01-01 00:00:00+00", spare_mb=0).lines())
    with pytest.raises(Failure, match=r"3 segments of WAL, is not in repository 1, and 2026-11-25 09:46:41\+00 may lie in it"):
        restore.run("2026-11-25 09:46:41+00", spare_mb=0)
    assert host.answers and restore.State.read() is None
    restore.plan("until-gap", spare_mb=0)
    host.answers = False
    assert "LOST: what the server had written" in "\n".join(restore.plan("latest", spare_mb=0).lines())


def test_latest_waits_for_what_was_just_written(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is not stopped before its last segment is in the repository, whichever else is away; a moment of before needs none."""
    monkeypatch.setattr(recovery, "wait_archived", lambda segment, seconds: False)
    monkeypatch.setattr(recovery, "last_archived", lambda repository: "000000010000000000000008")
    with pytest.raises(Failure, match=r"latest would lose it.*It ended at 'archive what was written'\. Nothing is replaced"):
        restore.run("latest", spare_mb=0)
    assert host.answers and host.rows() == "first" and restore._kept() == []
    restore.undo()
    assert host.rows() == "first"
    monkeypatch.setattr(recovery, "last_archived", lambda repository: "000000010000000000000009")
    restore.run("latest", spare_mb=0)
    monkeypatch.setattr(recovery, "last_archived", lambda repository: "")
    restore.run("2026-01-01 00:00:00+00", spare_mb=0)
    assert host.rows() == "restored"


@pytest.mark.parametrize(
    ("text", "until", "seconds", "awaited"),
    [
        pytest.param("2026-11-25 09:40:00+00", NOW, 0.5, 0, id="archived long ago"),
        pytest.param("2026-11-25 09:46:00+00", NOW, 0.5, 1, id="perhaps in the last segment"),
        pytest.param("2026-11-25 09:47:00+00", NOW, 0.5, 1, id="later"),
        pytest.param("2026-11-25 09:40:00+00", NOW + 3600, 7200, 1, id="what was written then drains now"),
        pytest.param("20261123-010003F", NOW, 0.5, 0, id="the end of a backup"),
    ],
)
def test_moment_waits_for_its_own_segment(
    host: Host, monkeypatch: pytest.MonkeyPatch, text: str, until: float, seconds: float, awaited: int
) -> None:
    """A moment that may be in no repository yet is waited for before the server stops; where it gets nowhere, nothing is replaced."""
    monkeypatch.setattr(time, "time", lambda: NOW + 3600)
    monkeypatch.setattr(recovery, "archived_until", lambda waited: until)
    monkeypatch.setattr(recovery, "waiting", lambda repository: (1, seconds))
    monkeypatch.setattr(recovery, "wait_archived", lambda segment, seconds: False)
    monkeypatch.setattr(recovery, "last_archived", lambda repository: "000000010000000000000008")
    monkeypatch.setattr(recovery, "find", lambda target, found: Choice(target, backup("good", NOW, 1, 10), 1, ["shop"]))
    assert restore.plan(text, spare_mb=0).awaited == awaited
    with pytest.raises(Failure, match=r"may lie in it: .*Nothing is replaced") if awaited else nullcontext():
        restore.run(text, spare_mb=0)
    assert host.rows() == ("first" if awaited else "restored")


@pytest.mark.parametrize("waiting", [{"on its way"}, ()], ids=["runs", "is down"])
def test_gap_is_refused_before_anything_stops(host: Host, monkeypatch: pytest.MonkeyPatch, waiting: Collection[str]) -> None:
    """Where WAL is missing nothing is touched; only a server that runs can still archive what it has."""

    def refuse(choice: Choice, found: list[Archive], given: Collection[str], *, lost: bool) -> None:
        assert given == waiting and not lost
        raise Failure("A segment is missing.")

    host.answers = bool(waiting)
    monkeypatch.setattr(recovery, "unarchived", lambda: {"on its way"})
    monkeypatch.setattr(recovery, "refuse_gap", refuse)
    with pytest.raises(Failure, match="A segment is missing"):
        restore.run("latest", spare_mb=0)
    assert host.answers == bool(waiting) and host.rows() == "first" and restore.State.read() is None


def test_transaction_is_refused_while_archiving_stands_still(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows when a transaction was, so it may be among what waits."""
    monkeypatch.setattr(recovery, "waiting", lambda repository: (3, 600.0))
    monkeypatch.setattr(postgres, "psql", lambda sql: "2000")
    with pytest.raises(Failure, match=r"the end of the transaction 1000 may lie in it: .*write a time of before that"):
        restore.run("xid:1000", spare_mb=0)
    assert host.answers and restore.State.read() is None


def test_end_of_the_archive_is_no_advice_to_lose_more(tmp_path: Path) -> None:
    """Whose moment the archive does not reach is told to take the restore back, not to restore to what is even older."""
    (tmp_path / "log").write_text("FATAL:  recovery ended before configured recovery target was reached\n")
    said = server.Server(tmp_path, tmp_path, {})._reason()
    assert "`holdfast restore undo` brings that back; get archiving going" in said and "latest" not in said


def test_log_that_is_read_is_not_translated(tmp_path: Path) -> None:
    """The server that rolls forward speaks English to us, whatever the host's language is."""
    assert "lc_messages=C" in server.Server(tmp_path, tmp_path, {})._words


def test_restore_goes_on_where_it_ended(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half restored is worth nothing: the next restore goes on over it, and what was replaced first is what is taken back."""

    def unsound(_: restore.State) -> Proof:
        raise Failure("What was restored is not sound.")

    with monkeypatch.context() as changed:
        changed.setattr(restore, "_roll_forward", unsound)
        with pytest.raises(Failure, match="not sound"):
            restore.run("latest", spare_mb=0)
    assert "goes on from there" in "\n".join(restore.plan("latest", spare_mb=0).lines())
    restore.run("latest", spare_mb=0)
    assert [each.name for each in restore._kept()] == ["main.replaced-0"]
    restore.undo()
    assert host.rows() == "first"


@pytest.mark.parametrize("name", ["main", "main/pg_wal"])
@pytest.mark.parametrize(("kind", "what"), [("is_symlink", "a symbolic link"), ("is_mount", "a mount point")])
def test_data_that_can_not_be_kept_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, what: str) -> None:
    """A data directory that can't be renamed with all its WAL is refused before anything is stopped, with the way out."""
    path = host.data.parent / name
    monkeypatch.setattr(Path, kind, lambda self: self == path)
    with pytest.raises(Failure, match=f"{path} is {what}.*make {path} a plain folder with the same content"):
        restore.run("latest", spare_mb=0)
    assert restore.State.read() is None


@pytest.mark.parametrize("error", [OSError("No space left on device"), subprocess.TimeoutExpired("systemctl", 3700)])
def test_every_error_is_told_with_the_ways_out(host: Host, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whatever ends a restore or its undoing, the last line says how things stand and what to type."""

    def fail(_: restore.State) -> None:
        raise error

    with monkeypatch.context() as changed:
        changed.setattr(restore, "_start_all", fail)
        with pytest.raises(Failure, match=r"lies in .*main\.replaced-0: .* or `holdfast restore undo` puts it back"):
            restore.run("latest", spare_mb=0)
        with pytest.raises(Failure, match=r"It ended at 'begin a timeline'\. Nothing is replaced: .*`holdfast restore undo`"):
            restore.undo()
    restore.undo()
    assert host.rows() == "first"


def test_power_cut_leaves_no_server_that_starts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that died halfway is nothing that a server would start on at boot; from there the restore goes on, or is taken back."""

    class Cut(BaseException):
        """The power went."""

    def die(words: list[str], **_: object) -> None:
        half = Path(words[-1])
        (half / "global").mkdir(parents=True)
        (half / "global" / "pg_control").touch()
        (half / "PG_VERSION").touch()
        raise Cut

    def cut() -> None:
        with monkeypatch.context() as changed:
            changed.setattr(subprocess, "run", die)
            with pytest.raises(Cut):
                restore.run("latest", spare_mb=0)
        host.answers = False
        assert not host.starts() and (host.data.parent / "main.copy").is_dir()

    cut()
    assert "goes on from there" in "\n".join(restore.plan("latest", spare_mb=0).lines())
    restore.run("latest", spare_mb=0)
    assert host.rows() == "restored" and "--delta" in host.asked and not host.exposed
    assert not (host.data.parent / "main.copy").exists()
    assert [(each / "rows").read_text() for each in restore._kept()] == ["first"]
    restore.undo()
    assert host.rows() == "first" and host.starts()
    cut()
    restore.undo()
    assert host.rows() == "first" and host.starts()
    assert "main.copy" in restore.clean() and not (host.data.parent / "main.copy").exists()


def test_what_does_not_fit_is_fetched(host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the data directory can't be copied, nothing of the copy is left in the way, and all of it is fetched."""
    monkeypatch.setattr(subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 1, "", "No space left on device"))
    restore.run("latest", spare_mb=0)
    assert host.rows() == "restored" and "--delta" not in host.asked and "No space left" in caplog.text


def test_disk_that_a_restore_needs(host: Host) -> None:
    """What is kept is copied once, so a restore that goes on over the copy needs only what the backup has more."""
    kept = host.data.with_name("kept")
    whole = restore._needed(0, "", copies=True)
    assert whole == restore._bytes(host.data) > 0 and restore._needed(whole + 7, "", copies=True) == whole + 7
    assert restore._needed(whole + 7, str(kept), copies=True) == whole + 7
    host.data.rename(kept)
    assert restore._needed(0, str(kept), copies=True) == whole
    host.data.mkdir()
    host.hold("half restored")
    assert restore._needed(restore._bytes(host.data) + 7, str(kept), copies=True) == 7


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "the name of one that is gone"])
def test_data_directory_that_is_gone(host: Host, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    """Where the data directory is gone nothing is kept, and a restore brings it back, also after one that failed; there is no undo."""

    def unsound(_: restore.State) -> Proof:
        raise Failure("What was restored is not sound.")

    shutil.rmtree(host.data)
    host.answers = False
    if left == "an empty folder":
        host.data.mkdir()
    if left == "the name of one that is gone":
        restore.State("latest", "keep the data directory", ["app@blue.service"], str(host.data.with_name("main.replaced-gone"))).write()
    with monkeypatch.context() as changed:
        changed.setattr(restore, "_roll_forward", unsound)
        with pytest.raises(Failure, match=r"there was no data directory to keep: `holdfast restore run` again, [^,]+\.$"):
            restore.run("latest", spare_mb=0)
    assert "--delta" not in host.asked
    # What is half restored is no past of anybody's: it is not kept, and needs no room of its own.
    with pytest.raises(Failure, match=r"nothing to put back, .*: restore to another moment instead"):
        restore.undo()
    found = restore.plan("latest", spare_mb=0)
    assert found.needed == max((1 << 20) - restore._bytes(host.data), 0) and "goes on from there" in "\n".join(found.lines())
    restore.run("latest", spare_mb=0)
    assert host.rows() == "restored" and host.answers and "--delta" in host.asked and restore._kept() == []
    with pytest.raises(Failure, match="nothing to put back"):
        restore.undo()
    assert host.rows() == "restored"
    host.hold("written since")
    restore.run("latest", spare_mb=0)
    restore.undo()
    assert host.rows() == "written since"


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("clean", "was removed, or put back, already: restore to an earlier moment instead"),
        ("undo", "was removed, or put back, already: restore to an earlier moment instead"),
        ("rm", "is there no more: restore to an earlier moment instead"),
        ("new", "as it was a new host's: restore to another moment instead"),
    ],
)
def test_undo_says_why_there_is_none(host: Host, after: str, said: str) -> None:
    """Who cleaned up, took it back before or rebuilt the host is told which of it was, and nothing is stopped."""
    restore.run("latest", spare_mb=0)
    if after == "rm":
        shutil.rmtree(restore._kept()[0])
    elif after == "new":
        restore.State("latest", "done", finished=True, new_host=True).write()
    else:
        {"clean": restore.clean, "undo": restore.undo}[after]()
    with pytest.raises(Failure, match=said):
        restore.undo()
    assert host.answers


def test_undo_without_a_new_backup(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who took a restore back while no backup can be made is told first that the database is back."""

    def fail(_: str) -> None:
        raise Failure("The incr backup failed.")

    restore.run("latest", spare_mb=0)
    monkeypatch.setattr(backups, "run", fail)
    with pytest.raises(Failure, match=r"^The database is back and everything runs, but it has no new backup yet\. The incr backup failed"):
        restore.undo()
    assert host.rows() == "first" and "is done" in restore._status()


def test_undo_where_nothing_is_left(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who took both directories away is told to restore, and nothing is stopped."""
    restore.run("latest", spare_mb=0)
    for each in (host.data, *restore._kept()):
        shutil.rmtree(each)
    with pytest.raises(Failure, match=r"nothing to put back, .*`holdfast restore run latest` brings the database back"):
        restore.undo()
    assert host.answers and "is done" in restore._status()


@pytest.mark.parametrize("server", ["restored", "half restored"])
def test_what_was_written_after_half_a_restore_is_kept(host: Host, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """The application did not start, or somebody started the server too early, and worked on: the next restore keeps what was written."""

    def unsound(_: restore.State) -> Proof:
        raise Failure("What was restored is not sound.")

    with monkeypatch.context() as changed:
        if server == "half restored":
            changed.setattr(restore, "_roll_forward", unsound)
        host.broken = "app@blue.service"
        with pytest.raises(Failure, match=r"not sound|did not start"):
            restore.run("latest", spare_mb=0)
    host.broken = ""
    host.start(restore.UNIT)
    host.hold("written since")
    assert "begins anew, and keeps what is here now" in "\n".join(restore.plan("latest", spare_mb=0).lines())
    # A reboot stops what the state knows to be live.
    host.answers = server == "half restored"
    restore.run("latest", spare_mb=0)
    assert host.rows() == "restored" and host.answers
    assert [(each / "rows").read_text() for each in restore._kept()] == ["first", "written since"]
    restore.undo()
    assert host.rows() == "written since"


@pytest.mark.parametrize("status", [restore.NO_SERVER, 0])
def test_restore_that_was_killed_is_run_again(host: Host, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """What a killed server left behind keeps pgBackRest from nothing; the file of one that could not be stopped stays."""
    asked: list[str] = []

    def pg_ctl(words: list[str], **_: float) -> subprocess.CompletedProcess[str]:
        asked.append(words[-1])
        return subprocess.CompletedProcess(words, 1 if words[-1] == "stop" else status, "", "")

    monkeypatch.setattr(postgres, "as_postgres", pg_ctl)
    (host.data / "postmaster.pid").write_text("4194304\n")
    restore._stop_all(restore.State("latest"))
    assert asked == ["stop", "status"] and (host.data / "postmaster.pid").exists() == (status == 0)


def test_identifier_that_can_not_be_read_is_no_permission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cluster is there and does not say which: nothing is restored over it; where none is, there is nothing to refuse."""
    said = ["Database system identifier:           7577"]
    monkeypatch.setattr(postgres, "as_postgres", lambda words, **_: subprocess.CompletedProcess(words, 0, said[0], ""))
    assert restore._system_id(tmp_path) == 7577
    said[0] = "Datenbanksystemidentifikation:        7577"
    assert restore._system_id(tmp_path) is None
    (tmp_path / "global").mkdir()
    (tmp_path / "global" / "pg_control").touch()
    with pytest.raises(Failure, match=r"does not say which database this is .*move that file elsewhere"):
        restore._system_id(tmp_path)


def test_programs_speak_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of a program's words is in the language that it was written for, whatever the host's is."""
    monkeypatch.setattr(postgres, "identity", dict)
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert postgres.as_postgres(["sh", "-c", "echo $LC_ALL"], timeout_seconds=9).stdout == "C.UTF-8\n"


def test_restore_says_what_it_waits_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A backup that runs is told by the plan, and by the status while it is waited for; a proof of the backups is ended."""
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(backups, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(restore, "_systemctl", lambda *words: called.append(words))
    monkeypatch.setattr(restore, "_no_backup", NO_BACKUP)
    backups.LOCK.mkdir()
    assert "A backup runs" not in "\n".join(restore.plan("latest", spare_mb=0).lines())
    with ThreadPoolExecutor() as pool:
        with backups.alone(), caplog.at_level("INFO"):
            assert "A backup runs, and is waited for" in "\n".join(restore.plan("latest", spare_mb=0).lines())
            waits = pool.submit(restore.run, "latest", spare_mb=0)
            while "this waits until it has ended" not in caplog.text:
                time.sleep(0.01)
            assert "waits until a backup has ended" in restore._status()
            assert host.rows() == "first" and called == [("stop", "holdfast-backup@verify.service", "holdfast-drill.service")]
        waits.result(60)
    assert host.rows() == "restored" and "is done" in restore._status()


@pytest.mark.parametrize("expired", [False, True], ids=["there", "expired"])
def test_restore_is_planned_with_what_is_there_after_the_wait(
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    expired: bool,  # noqa: FBT001  # a case of a table
) -> None:
    """What changes while a backup is waited for is seen before anything stops: a newer backup is taken, and a past that is gone refused."""
    fresh = Choice(Target("latest"), backup("made meanwhile", NOW, 1, 20), 1, ["shop"])

    def find(target: Target, found: list[Archive]) -> Choice:
        if expired:
            raise Failure("The target can't be reached.")
        return fresh

    @contextmanager
    def wait() -> Iterator[None]:
        assert (restore.FOLDER.stat().st_mode & 0o777) == 0o755 and lock.held(restore.FOLDER), "a backup can't see that a restore waits"
        monkeypatch.setattr(recovery, "find", find)
        yield

    monkeypatch.setattr(restore, "_no_backup", wait)
    with pytest.raises(Failure, match=r"can't be reached\. Nothing was stopped or replaced\.") if expired else nullcontext():
        restore.run("latest", spare_mb=0)
    assert host.rows() == ("first" if expired else "restored") and host.answers
    assert "--set=made meanwhile" in host.asked or (expired and restore.State.read() is None)


@pytest.mark.parametrize("by_hand", [False, True], ids=["unit", "by hand"])
def test_drill_gives_way_to_a_restore(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_hand: bool) -> None:  # noqa: FBT001
    """A drill's copy is gone before a restore looks at the disk for the last time; one that can't be ended is no room to build on."""
    whole = restore.plan("latest", spare_mb=0).needed
    monkeypatch.setattr(backups, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(drill, "FOLDER", tmp_path / "drill")
    monkeypatch.setattr(drill, "SCRATCH", drill.FOLDER / "scratch")
    monkeypatch.setattr(restore, "_no_backup", NO_BACKUP)
    for folder in (backups.LOCK, drill.FOLDER, drill.SCRATCH):
        folder.mkdir()
    (drill.SCRATCH / "rows").write_bytes(b"x" * whole)
    left = whole - restore._bytes(drill.SCRATCH)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=left if drill.SCRATCH.exists() else whole))
    with ExitStack() as held:
        held.enter_context(scratch.alone(drill.SCRATCH))

        def systemctl(*words: str) -> None:
            if words[0] == "stop" and restore.DRILL in words and not by_hand:
                shutil.rmtree(drill.SCRATCH)
                held.close()

        monkeypatch.setattr(restore, "_systemctl", systemctl)
        assert "A restore drill is held, and is ended" in "\n".join(restore.plan("latest", spare_mb=0).lines())
        said = r"did not begin, .*: wait until it has ended, then run this again\. Nothing was stopped"
        with pytest.raises(Failure, match=said) if by_hand else nullcontext():
            restore.run("latest", spare_mb=0)
    assert host.rows() == ("first" if by_hand else "restored") and host.answers


def test_restore_is_refused_during_an_extract(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both would take the same room, and somebody waits for what is extracted."""
    monkeypatch.setattr(extract, "FOLDER", tmp_path)
    with scratch.alone(tmp_path / "scratch"):
        for call in (restore.plan, restore.run):
            with pytest.raises(Failure, match=r"An extract is under way, .*holdfast-extract\.service"):
                call("latest", spare_mb=0)
        assert host.answers and restore.State.read() is None
    restore.run("latest", spare_mb=0)


def test_drill_that_a_restore_ended_is_not_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the last drill proved stays said where a restore ended the next one; whatever else ended it is recorded."""
    monkeypatch.setattr(drill, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(drill, "REPORT", tmp_path / "report.json")
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    monkeypatch.setattr(backups, "RESTORE", tmp_path / "restore")
    monkeypatch.setenv("SERVICE_RESULT", "signal")
    backups.RESTORE.mkdir()
    with lock.alone(backups.RESTORE, "Another restore is running."):
        drill.clean()
    assert not drill.REPORT.exists() and metrics.read("drill") == {}
    drill.clean()
    assert "was ended from outside (signal)" in drill._report() and metrics.read("drill")["holdfast_drill_success"] == 0


def test_no_drill_is_held_during_a_restore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drill whose time comes while the server is down for a restore leaves that to the next one, and is not red."""
    monkeypatch.setattr(backups, "RESTORE", tmp_path)
    monkeypatch.setattr(drill, "run", lambda: drill.Report(0))
    with lock.alone(tmp_path, "Another restore is running."):
        drill._call(argparse.Namespace())
    assert "no drill is held" in capsys.readouterr().out
    drill._call(argparse.Namespace())
    assert "no drill is held" not in capsys.readouterr().out


def test_undo_starts_only_what_ran(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody stopped since a restore stays down when it is taken back; what one that ended halfway had stopped comes up."""
    started: list[str] = []

    def start(unit: str) -> None:
        started.append(unit)
        host.start(unit)

    monkeypatch.setattr(restore, "_start", start)
    restore.run("latest", spare_mb=0)
    assert started == [restore.UNIT, "app@blue.service"]
    with monkeypatch.context() as changed:
        changed.setattr(restore, "_running_units", list)
        restore.undo()
    assert started[2:] == [restore.UNIT]
    host.broken = restore.UNIT
    with pytest.raises(Failure, match="did not start"):
        restore.run("latest", spare_mb=0)
    host.broken = ""
    restore.undo()
    assert started[-2:] == [restore.UNIT, "app@blue.service"]


def _histories(data: Path) -> dict[str, str]:
    return {str(each.relative_to(data / "pg_wal")): each.read_text() for each in (data / "pg_wal").rglob("*.history*")}


@pytest.mark.parametrize("failed", [False, True], ids=["once", "after one that failed"])
def test_timeline_is_given_out_once(host: Host, monkeypatch: pytest.MonkeyPatch, failed: bool) -> None:  # noqa: FBT001  # a case of a table
    """What a restore takes back knows every timeline that was begun since, without asking the archive, and archives what is not there."""
    begun = iter(range(2, 9))

    def begin(_: restore.State) -> Proof:
        """Begin a timeline as the server does; pgBackRest has emptied the folder before."""
        shutil.rmtree(host.data / "pg_wal", ignore_errors=True)
        (host.data / "pg_wal" / "archive_status").mkdir(parents=True)
        number = next(begun)
        (host.data / "pg_wal" / f"{number:08X}.history").write_text(f"as of {number}")
        (host.data / "pg_wal" / "archive_status" / f"{number:08X}.history.{'done' if number == 2 else 'ready'}").touch()
        if failed and number == 2:
            raise Failure("What was restored is not sound.")
        return Proof()

    (host.data / "pg_wal" / "archive_status").mkdir(parents=True)
    (host.data / "pg_wal" / "00000001.history").write_text("its own")
    monkeypatch.setattr(restore, "_roll_forward", begin)
    if failed:
        with pytest.raises(Failure, match="not sound"):
            restore.run("latest", spare_mb=0)
    restore.run("latest", spare_mb=0)
    restore.undo()
    assert host.rows() == "first"
    known = {"00000001.history": "its own", "00000002.history": "as of 2", "archive_status/00000002.history.done": ""}
    second = {"00000003.history": "as of 3", "archive_status/00000003.history.ready": ""}
    assert _histories(host.data) == known | (second if failed else {})


def test_undo_that_ends_halfway_keeps_what_is_live(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore after an undo that was cut short before it moved anything keeps what was live until then."""
    restore.run("latest", spare_mb=0)
    host.hold("written since")

    def cut(_: restore.State) -> None:
        host.answers = False
        restore.State.write(_, "stop the server")
        raise Failure("The power went.")

    with monkeypatch.context() as changed:
        changed.setattr(restore, "_stop_all", cut)
        with pytest.raises(Failure, match="The power went"):
            restore.undo()
    restore.run("latest", spare_mb=0)
    assert [(each / "rows").read_text() for each in restore._kept()] == ["first", "written since"]
