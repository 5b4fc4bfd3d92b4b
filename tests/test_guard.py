"""The guard of changes that could lock the owner out: what it takes back, and that it does not give up; the commands are made up."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from holdfast import guard
from holdfast.failure import Failure
from holdfast.guard import File, Guard, Known, Request


@dataclass
class Commands:
    """What was run, and which programs fail."""

    failing: set[str] = field(default_factory=set)
    run: list[str] = field(default_factory=list)

    def __call__(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.run.append(" ".join(command))
        return subprocess.CompletedProcess(command, int(command[0] in self.failing), "it broke")

    def timers(self) -> list[str]:
        """Return how timers were started and stopped."""
        return [each for each in self.run if each.startswith("systemd-run") or each.endswith(".timer")]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Put the guard's files into a folder, and a record in the place of its commands."""
    found = Commands()
    monkeypatch.setattr(guard, "STATE", tmp_path / "state")
    monkeypatch.setattr(guard, "UNITS", tmp_path / "units")
    monkeypatch.setattr(guard, "_run", found)
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    real = Known.of

    def of(path: Path) -> Known:
        """Take the files of whoever runs the tests for root's."""
        known = real(path)
        return replace(known, user=known.user - os.getuid(), group=known.group - os.getgid()) if known.content else known

    monkeypatch.setattr(Known, "of", of)
    return found


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    """Make a request for two files, `one`, which is there and holds `old`, and `two`, which is not."""
    (tmp_path / "one").write_text("old")
    (tmp_path / "one").chmod(0o644)
    files = [File(str(tmp_path / name), "new") for name in ("one", "two")]

    def make(**parts: Any) -> Request:
        given: dict[str, Any] = {"files": files, "folders": [], "apply": [["load"], ["start"]], "retire": [["unload"]], "check": []}
        return Request(seconds=60, **(given | parts))

    return make


def content(path: Path) -> str:
    return path.read_text() if path.exists() else "missing"


def test_confirmed_change_stays(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    answer = Guard("x").apply(ask())
    assert "--on-active=60s --on-unit-inactive=30s" in commands.timers()[0]
    assert Guard("x").confirm(answer["token"]) == {"state": "confirmed"}
    assert [content(tmp_path / name) for name in ("one", "two")] == ["new", "new"]
    assert commands.timers()[1:] == ["systemctl stop holdfast-guard-x.timer"]
    assert list((tmp_path / "units").rglob("*.service")) == []
    assert Guard("x").confirm(answer["token"]) == {"state": "restored"}


def test_change_is_taken_back(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    answer = Guard("x").apply(ask())
    commands.run.clear()
    Guard("x").restore()
    assert [content(tmp_path / name) for name in ("one", "two")] == ["old", "missing"]
    assert commands.run == ["load", "start", "systemctl stop holdfast-guard-x.timer"]
    assert Guard("x").confirm(answer["token"]) == {"state": "restored"}


def test_all_is_tried_and_the_guard_stays(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    """A command that fails keeps no other one from being tried, and the guard goes on until none fails; meanwhile nobody can confirm."""
    answer = Guard("x").apply(ask())
    commands.run.clear()
    commands.failing = {"load"}
    for _ in range(2):
        with pytest.raises(Failure, match=r"can't be taken back yet: `load` failed: it broke; trying again in 30 s"):
            Guard("x").restore()
        assert Guard("x").confirm(answer["token"]) == {"state": "restoring"}
    assert commands.run == ["load", "start"] * 2
    assert content(tmp_path / "one") == "old"
    commands.failing = set()
    Guard("x").restore()
    assert commands.timers() == ["systemctl stop holdfast-guard-x.timer"]
    assert Guard("x").confirm(answer["token"]) == {"state": "restored"}


def test_file_that_can_not_be_written(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    """The other files are written, the commands are run, and the guard stays."""
    Guard("x").apply(ask())
    commands.run.clear()
    (tmp_path / "one").unlink()
    (tmp_path / "one").mkdir()
    with pytest.raises(Failure, match=r"one can't be written: .*; trying again"):
        Guard("x").restore()
    assert content(tmp_path / "two") == "missing"
    assert commands.run == ["load", "start"]
    (tmp_path / "one").rmdir()
    Guard("x").restore()
    assert content(tmp_path / "one") == "old"


def test_boot_that_can_not_take_it_back_tries_again(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    """After a boot there is no timer, so the guard starts one."""
    Guard("x").apply(ask())
    commands.run.clear()
    (tmp_path / "one").unlink()
    (tmp_path / "one").mkdir()
    with pytest.raises(Failure, match="can't be taken back yet"):
        Guard("x").restore(at_boot=True)
    assert "--on-active=30s --on-unit-inactive=30s" in commands.timers()[0]


def test_bad_change_is_taken_back_at_once(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    commands.failing = {"begin"}
    with pytest.raises(Failure, match=r"`begin` failed: it broke; the change of x can't be taken back yet: `begin` failed"):
        Guard("x").apply(ask(apply=[["begin"], ["start"]]))
    with pytest.raises(Failure, match=r"the last change of x can't be taken back: `begin` failed: it broke\. Put that right and run again"):
        Guard("x").apply(ask())
    assert [content(tmp_path / name) for name in ("one", "two")] == ["old", "missing"]
    commands.failing = set()
    assert Guard("x").apply(ask())["state"] == "armed"


def test_first_change_is_retired(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    (tmp_path / "one").unlink()
    Guard("x").apply(ask())
    commands.run.clear()
    Guard("x").restore()
    assert [content(tmp_path / name) for name in ("one", "two")] == ["missing", "missing"]
    assert commands.run[0] == "unload"


def test_file_that_is_refused(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    commands.failing = {"checker"}
    files = [File(str(tmp_path / "one"), "new", validate=["checker", "--file", "%s"])]
    with pytest.raises(Failure, match="one was not changed, because `checker --file %s` refuses its new content: it broke"):
        Guard("x").apply(ask(files=files))
    assert content(tmp_path / "one") == "old"


def test_program_that_is_missing() -> None:
    done = guard._run(["/nowhere/program"])
    assert done.returncode
    assert "No such file" in done.stdout


def test_link_is_taken_back(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    """A symlink in the place of a file, of nothing and of another symlink: each is what it was."""
    (tmp_path / "mine").symlink_to("/etc/mine")
    (tmp_path / "same").symlink_to("/dev/null")
    links = [File(str(tmp_path / name), link="/dev/null") for name in ("one", "none", "mine", "same")]
    answer = Guard("x").apply(ask(files=links, check=["true"]))
    assert [each["after"] for each in answer["difference"]] == ["symlink to /dev/null\n"] * 3
    assert {str(Path(each.path).readlink()) for each in links} == {"/dev/null"}
    Guard("x").restore()
    assert content(tmp_path / "one") == "old"
    assert not (tmp_path / "one").is_symlink()
    assert not (tmp_path / "none").is_symlink()
    assert [str((tmp_path / name).readlink()) for name in ("mine", "same")] == ["/etc/mine", "/dev/null"]


def test_links_that_are_there_change_nothing(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    request = ask(files=[File(str(tmp_path / "link"), link="/dev/null"), File(str(tmp_path / "one"), "old")])
    assert Guard("x").apply(request)["state"] == "unchanged"


def test_link_in_the_place_of_a_file_is_a_change(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    (tmp_path / "one").rename(tmp_path / "other")
    (tmp_path / "one").symlink_to(tmp_path / "other")
    request = ask(files=[File(str(tmp_path / "one"), "old")])
    assert Guard("x").apply(request)["state"] == "armed"
    assert not (tmp_path / "one").is_symlink()
    Guard("x").restore()
    assert (tmp_path / "one").is_symlink()


def test_host_that_had_the_links_is_new_all_the_same(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    (tmp_path / "masked").symlink_to("/dev/null")
    Guard("x").apply(ask(files=[File(str(tmp_path / "masked"), link="/dev/null"), File(str(tmp_path / "two"), "new")]))
    commands.run.clear()
    Guard("x").restore()
    assert commands.run[0] == "unload"
    assert (tmp_path / "masked").is_symlink()


def test_boot_starts_what_was_masked(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    """By then systemd has read the units of the change; the rest of the boot is to be that of before."""
    Guard("x").apply(ask())
    commands.run.clear()
    Guard("x").restore(at_boot=True)
    assert content(tmp_path / "one") == "old"
    assert commands.run[:2] == ["systemctl daemon-reload", "systemctl --no-block start sysinit.target"]
    assert list((tmp_path / "units").rglob("*.service")) == []


def test_state_of_an_earlier_version_is_taken_back(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    (tmp_path / "state").mkdir()
    files = {str(tmp_path / "one"): {"content": None, "mode": 0}}
    (tmp_path / "state" / "x.json").write_text(json.dumps({"token": "a", "files": files, "apply": [["load"]]}))
    Guard("x").restore()
    assert content(tmp_path / "one") == "missing"


def test_file_of_somebody_else_is_written_anew(
    tmp_path: Path, commands: Commands, ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    Guard("x").confirm(Guard("x").apply(ask())["token"])
    assert Guard("x").apply(ask(), only_check=True)["state"] == "unchanged"
    owners = []
    monkeypatch.setattr(os, "fchown", lambda _, user, group: owners.append((user, group)))
    root = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: root - 1000)
    assert Guard("x").apply(ask())["state"] == "armed"
    assert set(owners) == {(0, 0)}
    assert json.loads((tmp_path / "state" / "x.json").read_text())["files"][str(tmp_path / "one")]["user"] == 1000


def test_folder_in_the_place_of_a_file_is_told(tmp_path: Path, commands: Commands, ask: Callable[..., Request]) -> None:
    (tmp_path / "folder" / "disabled").mkdir(parents=True)
    with pytest.raises(Failure, match="disabled is a folder, where only files may lie: move it elsewhere"):
        Guard("x").apply(ask(folders=[str(tmp_path / "folder")]))
    with pytest.raises(Failure, match="one is a file, where a folder has to be"):
        Guard("x").apply(ask(files=[File(str(tmp_path / "one" / "below"), "new")]))
    assert commands.timers() == []
