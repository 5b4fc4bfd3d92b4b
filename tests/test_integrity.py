"""What `holdfast integrity` finds in a tree, what it takes as legitimate, and what it does not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast import integrity, metrics
from holdfast.failure import Failure
from holdfast.integrity import Watch


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a small host, whose etc is watched, with a baseline."""
    host = tmp_path / "host"
    for name in ("etc/cache", "var"):
        (host / name).mkdir(parents=True)
    for name in ("etc/sshd_config", "etc/passwd", "etc/cache/x", "var/data"):
        (host / name).write_text(name)
    (host / "etc/link").symlink_to("passwd")
    for name in ("FOLDER", "BRACKETS"):
        monkeypatch.setattr(integrity, name, tmp_path / name)
    monkeypatch.setattr(metrics, "FOLDER", tmp_path)
    monkeypatch.setattr(integrity, "_tell", lambda text: None)
    watch = Watch([f"{host}/etc"], [f"{host}/etc/cache"], str(host))
    monkeypatch.setattr(Watch, "configured", lambda: watch)
    taken, found = integrity.end("site")
    assert not found
    assert [path.removeprefix(str(host)) for path in taken] == ["/etc", "/etc/link", "/etc/passwd", "/etc/sshd_config"]
    return host


def relink(tree: Path) -> None:
    """Let a link lead elsewhere."""
    (tree / "etc/link").unlink()
    (tree / "etc/link").symlink_to("/var/data")


def same_size_and_time(tree: Path) -> None:
    """Change a file's content so that its size and its time of modification stay."""
    path = tree / "etc/sshd_config"
    said = path.stat()
    path.write_text("etc/sshd_confiG")
    os.utime(path, ns=(said.st_atime_ns, said.st_mtime_ns))


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda tree: (tree / "etc/sshd_config").write_text("other"), "/etc/sshd_config has other content."),
    "content with the old time": (same_size_and_time, "/etc/sshd_config has other content."),
    "mode": (lambda tree: (tree / "etc/passwd").chmod(0o666), "/etc/passwd has the mode 0666 and had 0644."),
    "setuid": (lambda tree: (tree / "etc/passwd").chmod(0o4755), "/etc/passwd has the mode 4755 and had 0644."),
    "new": (lambda tree: (tree / "etc/evil.service").write_text("x"), "/etc/evil.service is new: a file."),
    "gone": (lambda tree: (tree / "etc/passwd").unlink(), "/etc/passwd is gone: a file."),
    "link": (relink, "/etc/link leads to /var/data and led to passwd."),
    "folder": (lambda tree: (tree / "etc").chmod(0o777), "/etc has the mode 0777 and had 0755."),
    "setuid elsewhere": (
        lambda tree: (tree / "var/data").chmod(0o4755),
        "/var/data is new: a file that gives its caller more rights.",
    ),
}


def test_capabilities_elsewhere_are_found(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with capabilities is found wherever it lies; without a right to run it they give nobody anything."""
    monkeypatch.setattr(integrity, "capabilities", lambda file: "0100000280" if file == str(tree / "var/data") else "")
    assert integrity.report() == []
    (tree / "var/data").chmod(0o755)
    assert tampered(tree, integrity.report()) == ["/var/data is new: a file."]


def tampered(tree: Path, found: list[str]) -> list[str]:
    """Return sentences as if the tree were the whole host."""
    return [text.replace(str(tree), "") for text in found]


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_found(tree: Path, case: str) -> None:
    """Each change is one sentence that names the file, to a person and to the timer, and turns the metric red."""
    change, words = TAMPERING[case]
    change(tree)
    assert tampered(tree, integrity.report()) == [words]
    assert tampered(tree, integrity.check()) == [words]
    assert metrics.read("integrity")["holdfast_integrity_intact"] == 0


@pytest.mark.parametrize("case", TAMPERING)
def test_change_in_a_bracket_is_taken(tree: Path, case: str) -> None:
    """What changes between begin and end is right from then on, and is no finding meanwhile."""
    integrity.begin("site")
    TAMPERING[case][0](tree)
    assert integrity.check() == []
    taken, found = integrity.end("site")
    assert len(taken) == 1
    assert not found
    assert integrity.check() == integrity.report() == []
    assert metrics.read("integrity")["holdfast_integrity_intact"] == 1


@pytest.mark.parametrize("case", TAMPERING)
def test_change_before_a_bracket_stays_a_finding(tree: Path, case: str) -> None:
    """A run takes what it changed itself, and not what somebody had changed before it."""
    change, words = TAMPERING[case]
    change(tree)
    integrity.begin("site")
    (tree / "etc/ours").write_text("by the run")
    assert tampered(tree, integrity.check()) == [words]
    taken, found = integrity.end("site")
    assert [path.removeprefix(str(tree)) for path in taken] == ["/etc/ours"]
    assert tampered(tree, found) == [words]
    assert tampered(tree, integrity.check()) == [words]


def test_change_while_it_is_compared(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change by who may that begins and ends while every byte is read is no finding, and one by somebody else is."""
    scan = Watch.scan

    def meanwhile(watch: Watch, known: integrity.Baseline | None = None) -> integrity.Baseline:
        found = scan(watch, known)
        if known is None:
            integrity.begin("apt")
            (tree / "etc/sshd_config").write_text("another version")
            integrity.end("apt")
            (tree / "etc/passwd").write_text("toor")
        return found

    monkeypatch.setattr(Watch, "scan", meanwhile)
    assert tampered(tree, integrity.check()) == ["/etc/passwd has other content."]


def test_touching_is_no_excuse(tree: Path) -> None:
    """A run that only sets the mode of a file that somebody rewrote before does not make the content right."""
    (tree / "etc/sshd_config").write_text("evil")
    integrity.begin("site")
    (tree / "etc/sshd_config").chmod(0o600)
    assert tampered(tree, integrity.end("site")[1]) == ["/etc/sshd_config has other content, has the mode 0600 and had 0644."]


def test_rewriting_makes_good(tree: Path) -> None:
    """A run that writes the whole file anew makes it right, with the old content and with new one."""
    for content in ("etc/sshd_config", "new"):
        (tree / "etc/sshd_config").write_text("evil")
        integrity.begin("site")
        (tree / "etc/sshd_config").write_text(content)
        assert integrity.end("site")[1] == []
        assert integrity.check() == []


def test_brackets_may_lie_in_each_other(tree: Path) -> None:
    """What apt does within a run is taken by apt's bracket, what the run did before by its own, what was there before by neither."""
    (tree / "etc/evil").write_text("x")
    integrity.begin("site")
    (tree / "etc/ours").write_text("x")
    integrity.begin("apt")
    (tree / "etc/package").write_text("x")
    assert [Path(path).name for path in integrity.end("apt")[0]] == ["package"]
    assert tampered(tree, integrity.check()) == ["/etc/evil is new: a file."]
    taken, found = integrity.end("site")
    assert [Path(path).name for path in taken] == ["ours"]
    assert tampered(tree, found) == ["/etc/evil is new: a file."]


def test_failed_run_is_carried_on(tree: Path) -> None:
    """The run after one that failed takes what both changed, unless an hour lies between."""
    integrity.begin("site")
    (tree / "etc/half").write_text("x")
    integrity.begin("site")
    assert len(integrity.end("site")[0]) == 1
    integrity.begin("site")
    (tree / "etc/late").write_text("x")
    long_ago = time.time() - integrity.BRACKET_SECONDS - 1
    os.utime(integrity.BRACKETS / "site.json", (long_ago, long_ago))
    assert tampered(tree, integrity.check()) == ["/etc/late is new: a file."]
    integrity.begin("site")
    assert tampered(tree, integrity.end("site")[1]) == ["/etc/late is new: a file."]


def test_end_without_begin_takes_nothing(tree: Path) -> None:
    """Where nobody said what differed before, every difference stays a finding."""
    (tree / "etc/evil").write_text("x")
    assert integrity.end("site") == ([], [f"{tree}/etc/evil is new: a file."])


def test_what_is_watched_is_the_baseline_s(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the configuration leave a file out does not hide the change of it from the next run."""
    (tree / "etc/evil").write_text("x")
    good = Watch.configured()
    monkeypatch.setattr(Watch, "configured", lambda: Watch([], [], str(tree)))
    integrity.begin("site")
    monkeypatch.setattr(Watch, "configured", lambda: good)
    assert tampered(tree, integrity.end("site")[1]) == ["/etc/evil is new: a file."]


def test_configured_change_of_what_is_watched(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose inventory watches more, or less, takes that into the baseline."""
    for watch in (Watch([f"{tree}/*"], [], str(tree)), Watch([f"{tree}/var"], [], str(tree))):
        integrity.begin("site")
        monkeypatch.setattr(Watch, "configured", lambda watch=watch: watch)
        taken, found = integrity.end("site")
        assert taken
        assert not found
        assert integrity.check() == []


def test_person_accepts(tree: Path) -> None:
    """A person takes what a pattern names; a pattern that names nothing is refused."""
    for name in ("etc/one", "etc/two"):
        (tree / name).write_text("x")
    with pytest.raises(Failure, match="three is what it should be, or is not watched"):
        integrity.accept([f"{tree}/etc/three"])
    assert integrity.accept([f"{tree}/etc/o*"]) == [f"{tree}/etc/one"]
    assert tampered(tree, integrity.check()) == ["/etc/two is new: a file."]


def test_lost_baseline_is_red(tree: Path) -> None:
    """A baseline that was taken away is no reason to make a new one."""
    (integrity.FOLDER / "baseline.json").unlink()
    for call in (integrity.check, integrity.report, lambda: integrity.end("site"), lambda: integrity.begin("site")):
        with pytest.raises(Failure, match="find out who took it"):
            call()
    assert metrics.read("integrity")["holdfast_integrity_intact"] == 0


def test_unchanged_files_are_not_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the check on the timer trust the kernel's time of change; the check reads everything."""
    read: list[str] = []
    digest = integrity.digest

    def counted(path: str) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(integrity, "digest", counted)
    integrity.begin("site")
    integrity.end("site")
    assert not read
    integrity.check()
    assert len(read) == 2


def test_names_are_told_harmlessly(tree: Path) -> None:
    """A name that holds a line's end or no text at all is one line of plain text."""
    (tree / "etc/a\nb").write_text("x")
    Path(os.fsdecode(os.fsencode(tree / "etc") + b"/\xff")).write_text("x")
    found = tampered(tree, integrity.check())
    assert found == ["/etc/a\\nb is new: a file.", "/etc/\\udcff is new: a file."]
    json.dumps(found).encode()


def test_strict_end_fails_with_the_sentences(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run ends with failure where somebody had changed something before, and says what; or, where it need not, with the answer."""
    (tree / "etc/evil").write_text("x")
    integrity.begin("site")
    with pytest.raises(Failure, match=r"Changed before this run began.*/etc/evil is new"):
        integrity._end("site", strict=True)
    assert capsys.readouterr().out == ""
    integrity._end("site", strict=False)
    assert json.loads(capsys.readouterr().out) == {"taken": [], "count": 0, "findings": [f"{tree}/etc/evil is new: a file."]}
