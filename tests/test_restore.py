"""What a restore decides before it touches anything: what a target means, and which backup and timeline reach it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast import fingerprint, metrics, postgres, recovery
from holdfast.drill import Report
from holdfast.failure import Failure
from holdfast.fingerprint import Fingerprint
from holdfast.recovery import Archive, Backup, Choice, Target

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


def test_label_follows_no_timeline(archive: Archive) -> None:
    words = Choice(Target("label", "second"), archive.backups[2], 2, []).options()
    assert words == ["--repo=1", "--set=second", "--type=immediate", "--target-action=promote"]


def test_the_second_repository_is_asked(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    about: list[Any] = [{"backup": [{"database-ref": []}]}]
    monkeypatch.setattr(postgres, "pgbackrest", lambda *words: json.dumps(about))
    assert recovery.find(Target("latest"), [Archive(2, 7, []), archive]).backup.label == "third"


def test_variables_of_psql_are_quoted() -> None:
    assert postgres.variables(a="it's", b="c\\d") == "\\set a 'it''s'\n\\set b 'c\\\\d'\n"


def test_fingerprint_tells_changed_rows_from_damaged_ones() -> None:
    before = Fingerprint("9", {"t": {"0": (2, "5"), "1": (1, "7")}})
    assert list(fingerprint.faults(before, Fingerprint("9", {"t": {"0": (1, "3"), "1": (1, "7")}}))) == []
    assert list(fingerprint.faults(before, Fingerprint("9", {"t": {"0": (2, "6"), "1": (1, "7")}}))) == ["t (1 of 64 buckets of rows)"]
    assert list(fingerprint.faults(before, Fingerprint("9", {"t": {"0": (3, "5")}}))) == ["t (1 of 64 buckets of rows)"]


def test_drill_report() -> None:
    said = "\n".join(Report(NOW, "", "label", NOW - 60, 1 << 20, "then", 1.25, 2.0, 3.0, 9.0, ["all is there"]).lines())
    assert "passed, after 9 s" in said and "after 1.2 s" in said and "5.0 s, of which 2.0 s for the backup and 3.0 s for WAL" in said
    assert "FAILED" in "\n".join(Report(NOW, "Something is wrong.").lines())


def test_metric_without_a_value_is_left_out() -> None:
    assert list(metrics.Gauge("name", "help").samples()) == []
