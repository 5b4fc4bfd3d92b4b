"""`holdfast guard`: change what can lock the owner out, and take it back by itself unless a new connection gets in.

A change is the whole of a few files and the command that puts them in force. `apply` compares them with the host; where they differ it
remembers what is there, starts a timer, and only then writes and applies. `confirm`, which the controller calls over a connection
made after that, ends the timer; else the timer calls `restore`, again and again until all of it is as it was. What is remembered lies
on disk, and a unit that exists only meanwhile restores it at boot, before the network: a reboot does not make a change good that nobody
has confirmed.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.failure import Failure

STATE = Path("/var/lib/holdfast/guard")
UNITS = Path("/etc/systemd/system")
PROGRAM = "/usr/local/bin/holdfast"
COMMAND_SECONDS = 60
RETRY_SECONDS = 30
# systemd has read its units when a boot takes a change back; what they start again has to be started by the same boot.
AT_BOOT = [["systemctl", "daemon-reload"], ["systemctl", "--no-block", "start", "sysinit.target"]]

log = logging.getLogger("holdfast.guard")


@dataclass(frozen=True)
class File:
    """A file as it should be.

    Attributes:
        path: where it lies.
        content: the whole of it.
        mode: permissions, in octal.
        validate: command that refuses a bad copy of it; `%s` stands for the copy.
        link: where it is a symlink, its target.
    """

    path: str
    content: str = ""
    mode: str = "0644"
    validate: list[str] = field(default_factory=list)
    link: str = ""

    def known(self) -> Known:
        """Return it as it will be found."""
        return Known(None, link=self.link) if self.link else Known.text(self.content, int(self.mode, 8))


@dataclass(frozen=True)
class Request:
    """What `apply` reads on standard input.

    Attributes:
        seconds: time to confirm the change.
        files: the files that belong to it.
        folders: folders in which nothing else may lie.
        apply: commands that put the files in force.
        retire: commands that undo the first change ever, before which none of the files existed but for symlinks; `apply` where empty.
        check: command that fails when something else is in force than the files say; none where empty.
    """

    seconds: int
    files: list[File]
    folders: list[str]
    apply: list[list[str]]
    retire: list[list[str]]
    check: list[str]

    @classmethod
    def read(cls, text: str) -> Request:
        """Read a request.

        Raises:
            Failure: it is none.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            files = [File(**each) for each in content.pop("files")]
            return cls(files=files, **content)
        except (ValueError, TypeError, KeyError) as error:
            raise Failure(f"the request on standard input can't be read: {error}") from error


@dataclass(frozen=True)
class Known:
    """A file as it is: its content in base64, its mode, user and group, or the target of a symlink; nothing where it is missing."""

    content: str | None
    mode: int = 0
    link: str = ""
    user: int = 0
    group: int = 0

    @classmethod
    def text(cls, text: str, mode: int) -> Known:
        """Describe a file."""
        return cls(base64.b64encode(text.encode()).decode(), mode)

    @classmethod
    def of(cls, path: Path) -> Known:
        """Read a file, which may be missing.

        Raises:
            Failure: it is a folder, or lies in what is none.
        """
        try:
            if path.is_symlink():
                return cls(None, link=str(path.readlink()))
            status = path.stat()
            return cls(base64.b64encode(path.read_bytes()).decode(), status.st_mode & 0o7777, "", status.st_uid, status.st_gid)
        except FileNotFoundError:
            return cls(None)
        except IsADirectoryError as error:
            raise Failure(f"{path} is a folder, where only files may lie: move it elsewhere, then run this again") from error
        except NotADirectoryError as error:
            raise Failure(f"{path.parent} is a file, where a folder has to be: move it elsewhere, then run this again") from error

    def shown(self) -> str:
        """Return the content for a person."""
        return f"symlink to {self.link}\n" if self.link else base64.b64decode(self.content or "").decode("utf-8", "replace")

    def write(self, path: Path) -> None:
        """Make the file so, at once and as a whole."""
        if self.content is None and not self.link:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Neither sshd nor sudo reads a file of such a name.
        fresh = path.with_name(f".{path.name}.holdfast~")
        fresh.unlink(missing_ok=True)
        if self.content is None:
            fresh.symlink_to(self.link)
        else:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(base64.b64decode(self.content))
                os.fchmod(file.fileno(), self.mode)
                os.fchown(file.fileno(), self.user, self.group)
                os.fsync(file.fileno())
        fresh.replace(path)


def wanted(request: Request) -> dict[str, Known]:
    """Return every file as it should be, those that should go too."""
    found = {each.path: each.known() for each in request.files}
    for folder in request.folders:
        for path in sorted(Path(folder).glob("*")):
            found.setdefault(str(path), Known(None))
    return found


class Guard:
    """The guard of one change at a time, by the change's name."""

    def __init__(self, name: str) -> None:
        """Take the guard of a name."""
        self.name = name
        self.state = STATE / f"{name}.json"
        self.timer = f"holdfast-guard-{name}"
        self.boot = UNITS / f"holdfast-guard-{name}-boot.service"
        self.wanted_by = UNITS / "sysinit.target.wants" / self.boot.name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep confirm and restore from each other."""
        STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (STATE / f"{self.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def plan(self, request: Request) -> dict[str, Known]:
        """Return the files that differ from what they should be, as they should be."""
        return {path: known for path, known in wanted(request).items() if Known.of(Path(path)) != known}

    def in_force(self, request: Request) -> bool:
        """Say whether what runs is what the files say."""
        return not request.check or _run(request.check).returncode == 0

    def apply(self, request: Request, *, only_check: bool = False) -> dict[str, Any]:
        """Put the files in force, guarded, and return what was done.

        Raises:
            Failure: a file is refused, or what it says can't be put in force; then the host is as it was.
        """
        with self.lock():
            if not only_check and self.state.exists():
                log.warning("the last change of %s was never confirmed; taking it back first", self.name)
                if faults := self._restore():
                    raise Failure(f"the last change of {self.name} can't be taken back: {'; '.join(faults)}. Put that right and run again.")
            changes = self.plan(request)
            difference = [
                {"before_header": path, "after_header": path, "before": Known.of(Path(path)).shown(), "after": known.shown()}
                for path, known in changes.items()
            ]
            if not changes and self.in_force(request):
                return {"state": "unchanged", "difference": []}
            if only_check:
                return {"state": "differs", "difference": difference}
            self._validate(request, changes)
            token = self._arm(request, changes)
            try:
                for path, known in changes.items():
                    known.write(Path(path))
                _all(request.apply)
            except (Failure, OSError) as error:
                if faults := self._restore():
                    raise Failure(
                        f"{error}; the change of {self.name} can't be taken back yet: {'; '.join(faults)}. The host tries again in "
                        f"{request.seconds} s, and then every {RETRY_SECONDS} s."
                    ) from error
                raise Failure(f"{error}; the change of {self.name} was taken back at once.") from error
            return {"state": "armed", "token": token, "difference": difference}

    def confirm(self, token: str) -> dict[str, Any]:
        """Make the change with this token good, unless it was taken back already."""
        with self.lock():
            held = json.loads(self.state.read_text())["token"] if self.state.exists() else None
            if held == "":
                return {"state": "restoring"}
            if held != token:
                return {"state": "restored"}
            self._disarm()
            log.info("a new connection confirmed the change of %s", self.name)
            return {"state": "confirmed"}

    def restore(self, *, at_boot: bool = False) -> None:
        """Take the change back, if there is one that waits to be confirmed.

        Raises:
            Failure: a part of it can't be taken back; the host tries again.
        """
        with self.lock():
            if not self.state.exists():
                return
            log.warning("nobody confirmed the change of %s over a new connection: taking it back", self.name)
            if faults := self._restore(at_boot=at_boot):
                if at_boot:
                    self._start_timer(RETRY_SECONDS)
                raise Failure(f"the change of {self.name} can't be taken back yet: {'; '.join(faults)}; trying again in {RETRY_SECONDS} s.")

    def _validate(self, request: Request, changes: dict[str, Known]) -> None:
        with tempfile.TemporaryDirectory(dir="/run", prefix="holdfast-guard-") as folder:
            for each in request.files:
                if each.validate and each.path in changes:
                    copy = Path(folder) / Path(each.path).name
                    copy.write_text(each.content, encoding="utf-8")
                    copy.chmod(int(each.mode, 8))
                    done = _run([word.replace("%s", str(copy)) for word in each.validate])
                    if done.returncode:
                        checker = " ".join(each.validate)
                        raise Failure(f"{each.path} was not changed, because `{checker}` refuses its new content: {_said(done)}")

    def _arm(self, request: Request, changes: dict[str, Known]) -> str:
        token = secrets.token_hex(16)
        before = {path: Known.of(Path(path)) for path in changes}
        first = bool(request.retire) and all(Known.of(Path(each.path)).content is None for each in request.files if not each.link)
        content = {
            "token": token,
            "files": {path: asdict(known) for path, known in before.items()},
            "apply": request.retire if first else request.apply,
        }
        Known.text(json.dumps(content), 0o600).write(self.state)
        unit = (
            f"[Unit]\nDescription=Take back a change of {self.name} that nobody confirmed before the reboot\n"
            "DefaultDependencies=no\nRequiresMountsFor=/var/lib/holdfast /usr/local\nAfter=local-fs.target\n"
            "Before=network-pre.target holdfast-firewall.service ssh.service\n"
            f"[Service]\nType=oneshot\nExecStart={PROGRAM} guard restore {self.name} --at-boot\n"
        )
        Known.text(unit, 0o644).write(self.boot)
        Known(None, link=str(self.boot)).write(self.wanted_by)
        try:
            self._start_timer(request.seconds)
        except Failure:
            self._disarm()
            raise
        return token

    def _start_timer(self, seconds: int) -> None:
        _all([
            ["systemd-run", "--quiet", "--collect", f"--unit={self.timer}", f"--on-active={seconds}s",
             f"--on-unit-inactive={RETRY_SECONDS}s", "--timer-property=AccuracySec=200ms", PROGRAM, "guard", "restore", self.name]
        ])  # fmt: skip

    def _restore(self, *, at_boot: bool = False) -> list[str]:
        """Do all that can be done, and return what failed; where nothing has, the guard ends."""
        content = json.loads(self.state.read_text())
        faults = self._write({path: Known(**each) for path, each in content["files"].items()})
        faults += _faults(AT_BOOT if at_boot else content["apply"])
        if faults:
            # What is half taken back can't be confirmed any more.
            return faults + self._write({str(self.state): Known.text(json.dumps(content | {"token": ""}), 0o600)})
        self._disarm()
        return []

    @staticmethod
    def _write(files: dict[str, Known]) -> list[str]:
        """Write all files that can be written, and return why others can't."""
        faults = []
        for path, known in files.items():
            try:
                known.write(Path(path))
            except OSError as error:
                faults.append(f"{path} can't be written: {error}")
        return faults

    def _disarm(self) -> None:
        self.state.unlink(missing_ok=True)
        self.wanted_by.unlink(missing_ok=True)
        self.boot.unlink(missing_ok=True)
        # None is there after a boot, and one that called us would call again.
        _run(["systemctl", "stop", f"{self.timer}.timer"])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=COMMAND_SECONDS,
        )  # fmt: skip
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, str(error))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, f"it had not ended after {COMMAND_SECONDS} s")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stdout.split())[-1000:]


def _faults(commands: list[list[str]]) -> Iterator[str]:
    for command in commands:
        done = _run(command)
        if done.returncode:
            yield f"`{' '.join(command)}` failed: {_said(done)}"


def _all(commands: list[list[str]]) -> None:
    """Run one command after the other, up to the first that fails."""
    for fault in _faults(commands):
        raise Failure(fault)


def _print(result: dict[str, Any]) -> None:
    print(json.dumps(result))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `guard` to the command line."""
    parser = commands.add_parser("guard", help="changes that could lock the owner out")
    actions = parser.add_subparsers(dest="action", required=True)

    action = actions.add_parser("apply", help="make a change (JSON on standard input) that is taken back unless it is confirmed")
    action.add_argument("name")
    action.add_argument("--check", action="store_true", help="only say whether something would change")
    action.set_defaults(call=lambda given: _print(Guard(given.name).apply(Request.read(sys.stdin.read()), only_check=given.check)))

    action = actions.add_parser("confirm", help="make a change good; call it over a connection made after the change")
    action.add_argument("name")
    action.add_argument("token")
    action.set_defaults(call=lambda given: _print(Guard(given.name).confirm(given.token)))

    action = actions.add_parser("restore", help="take a change back that was not confirmed")
    action.add_argument("name")
    action.add_argument("--at-boot", action="store_true", help="the files and systemd's units: what reads the files starts later")
    action.set_defaults(call=lambda given: Guard(given.name).restore(at_boot=given.at_boot))
