"""`holdfast integrity`: tell which files that decide what the host does were changed by nobody who may.

The baseline holds what each watched file is: kind, mode, owner and content. It agrees with legitimate change by brackets. What may
change the host (a run of a playbook, apt) calls `begin`, which remembers what differs from the baseline by then, and in the end `end`,
which takes into the baseline what has changed since, and only that: what differed before stays a finding. `check`, on a timer, reads
every byte. All the others trust the kernel's time of change, which nobody can set back, and so take a second.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import re
import stat
import syslog
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast import durable, metrics
from holdfast.failure import Failure
from holdfast.metrics import Gauge

TOPIC = "integrity"
CONFIGURATION = Path("/etc/holdfast/integrity.json")
FOLDER = Path("/var/lib/holdfast/integrity")
BRACKETS = Path("/run/holdfast-integrity")
# So long a run may take, and so long the next may carry on one that failed.
BRACKET_SECONDS = 3600
TOLD = 20
MEASURED = {
    "holdfast_integrity_last_check_timestamp_seconds": "When every byte of them was read last.",
    "holdfast_integrity_check_seconds": "How long that took.",
    "holdfast_integrity_paths": "Paths that are watched.",
}
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}

log = logging.getLogger("holdfast.integrity")


@dataclass(frozen=True)
class Entry:
    """What a path is.

    Attributes:
        kind: file, folder, link or other.
        mode: permissions, in octal.
        owner: user and group, as numbers.
        content: digest of a file and its capabilities, or where a link leads; nothing for a folder.
    """

    kind: str
    mode: str
    owner: str
    content: str


Stamp = tuple[int, ...]
Found = dict[str, Entry]


def _matcher(paths: Collection[str]) -> Callable[[str], bool]:
    """Make a test of whether a path is one of some, of which a few have an asterisk; it is asked for every file of the host."""
    fixed, patterns = set(paths), [path for path in paths if set(path) & set("*?[")]
    pattern = re.compile("|".join(map(fnmatch.translate, patterns)))
    return (lambda path: path in fixed or pattern.match(path) is not None) if patterns else fixed.__contains__


class Watch:
    """What is watched: trees, but for what is left out of them, and files with setuid, setgid or capabilities wherever they lie."""

    def __init__(self, trees: Iterable[str], left_out: Iterable[str], root: str = "/") -> None:
        """Take patterns of paths, in which * stands for anything."""
        self.trees, self.left_out, self.root = sorted(trees), sorted(left_out), root

    @classmethod
    def configured(cls) -> Watch:
        """Read what the host's inventory says.

        Raises:
            Failure: nothing is configured.
        """
        try:
            content: dict[str, Any] = json.loads(CONFIGURATION.read_text(encoding="utf-8"))
            return cls(content["trees"], content["left_out"])
        except (OSError, ValueError, KeyError) as error:
            raise Failure(f"{CONFIGURATION} can't be read ({error}): run `ansible-playbook site.yml --tags integrity`.") from error

    def said(self) -> dict[str, Any]:
        """Say what is watched, for the baseline."""
        return {"root": self.root, "trees": self.trees, "left_out": self.left_out}

    def walk(self) -> Iterator[tuple[str, os.stat_result]]:
        """Give each path that is watched."""
        in_trees, in_left_out = _matcher(self.trees), _matcher(self.left_out)
        waiting = [(self.root, False)]
        while waiting:
            folder, watched = waiting.pop()
            try:
                children = list(os.scandir(folder))
            except (FileNotFoundError, PermissionError):
                # Root may read everything but what a user has mounted by FUSE.
                continue
            for child in children:
                if in_left_out(child.path):
                    continue
                inside = watched or in_trees(child.path)
                try:
                    said = child.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(said.st_mode):
                    waiting.append((child.path, inside))
                if inside or (stat.S_ISREG(said.st_mode) and gives_rights(child.path, said.st_mode)):
                    yield child.path, said

    def scan(self, known: Baseline | None = None) -> Baseline:
        """Say what each path is; what the kernel says is unchanged since it was known is not read again."""
        entries: Found = {}
        stamps: dict[str, Stamp] = {}
        for path, said in self.walk():
            kind = KINDS.get(stat.S_IFMT(said.st_mode), "other")
            content = ""
            try:
                if kind == "link":
                    content = os.readlink(path)  # noqa: PTH115  # a Path a file costs as much as all the rest
                elif kind == "file":
                    stamps[path] = (said.st_ino, said.st_size, said.st_mtime_ns, said.st_ctime_ns)
                    same = known is not None and known.stamps.get(path) == stamps[path]
                    content = known.entries[path].content if known is not None and same else digest(path)
            except FileNotFoundError:
                stamps.pop(path, None)
                continue
            entries[path] = Entry(kind, f"{stat.S_IMODE(said.st_mode):04o}", f"{said.st_uid}:{said.st_gid}", content)
        return Baseline(entries, stamps, self)


@dataclass(frozen=True)
class Baseline:
    """What every path should be.

    Attributes:
        entries: by path.
        stamps: for files, what the kernel said of them when their content was read; while it says the same, the content is the same.
        watch: what was watched when it was made. Whoever rewrites the configuration changes a watched file, and not what is watched.
    """

    entries: Found
    stamps: dict[str, Stamp]
    watch: Watch

    def scan(self) -> Baseline:
        """Say what each path is now, trusting the kernel's time of change."""
        return self.watch.scan(self)

    @classmethod
    def load(cls) -> Baseline:
        """Read the baseline.

        Raises:
            Failure: there is none, it is damaged, or it is gone from a host that had one.
        """
        path = FOLDER / "baseline.json"
        if not cls.known():
            raise Failure("this host has no baseline: run `ansible-playbook site.yml`, which ends with making it.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                {name: Entry(*fields[:4]) for name, fields in content["paths"].items()},
                {name: tuple(fields[4]) for name, fields in content["paths"].items() if fields[4]},
                Watch(content["trees"], content["left_out"], content["root"]),
            )
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            raise Failure(
                f"{path} can't be read ({error}), and this host had a baseline: find out who took it; then remove {FOLDER}, and run "
                "`ansible-playbook site.yml`."
            ) from error

    @staticmethod
    def known() -> bool:
        """Whether the host has, or had, a baseline."""
        return FOLDER.exists()

    def save(self) -> None:
        """Replace the baseline at once, and have the journal, which is sealed, keep its digest."""
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = {
            name: [entry.kind, entry.mode, entry.owner, entry.content, self.stamps.get(name)]
            for name, entry in sorted(self.entries.items())
        }
        text = json.dumps({**self.watch.said(), "paths": paths}).encode()
        durable.write(FOLDER / "baseline.json", text, 0o400)
        _tell(f"the baseline has {len(paths)} paths, and the SHA-256 {hashlib.sha256(text).hexdigest()}")


def _tell(text: str) -> None:
    syslog.openlog("holdfast-integrity", facility=syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_NOTICE, text)


def digest(path: str) -> str:
    """Return the digest of a file's content, and its capabilities where it has some."""
    with Path(path).open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{content} {capabilities(file.fileno())}".rstrip()


def capabilities(file: int | str) -> str:
    """Return a file's capabilities as the kernel keeps them, in hexadecimal; nothing where it has none."""
    try:
        return os.getxattr(file, "security.capability").hex()
    except OSError:
        return ""


def gives_rights(path: str, mode: int) -> bool:
    """Say whether who runs a file gains rights by it."""
    return bool(mode & 0o6000 or (mode & 0o111 and capabilities(path)))


def differences(baseline: Found, now: Found) -> list[str]:
    """Return the paths that are not what they should be."""
    return sorted(path for path in baseline.keys() | now.keys() if baseline.get(path) != now.get(path))


def kept(baseline: Found, before: Mapping[str, Entry | None], now: Found) -> list[str]:
    """Return the differences that were there before, and that nobody has made good or replaced since.

    Args:
        baseline: what should be.
        before: the differences when the bracket began; nothing for a path that was gone.
        now: what is.
    """
    return [path for path in differences(baseline, now) if path in before and _stands(baseline.get(path), before[path], now.get(path))]


def _stands(should: Entry | None, was: Entry | None, now: Entry | None) -> bool:
    if was is None or now is None:
        return was is now
    if should is None:
        # Who made it is in its content: another mode or owner alone doesn't make it the run's.
        return (was.kind, was.content) == (now.kind, now.content)
    changed = [name for name in ("kind", "mode", "owner", "content") if getattr(was, name) != getattr(should, name)]
    return any(getattr(was, name) == getattr(now, name) for name in changed)


def sentence(path: str, should: Entry | None, now: Entry | None) -> str:
    """Say what is wrong with a path."""
    path = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in path)
    if should is None or now is None:
        what = now or should
        # A file's capabilities follow its digest.
        gains = now and now.kind == "file" and (int(now.mode, 8) & 0o6000 or " " in now.content)
        privileged = " that gives its caller more rights" if gains else ""
        return f"{path} is {'new' if now else 'gone'}: a {what.kind if what else 'file'}{privileged}."
    faults = []
    if now.kind != should.kind:
        faults.append(f"is a {now.kind} and was a {should.kind}")
    elif now.content != should.content:
        faults.append(f"leads to {now.content} and led to {should.content}" if now.kind == "link" else "has other content")
    if now.mode != should.mode:
        faults.append(f"has the mode {now.mode} and had {should.mode}")
    if now.owner != should.owner:
        faults.append(f"belongs to {now.owner} and belonged to {should.owner}")
    return f"{path} {', '.join(faults)}."


class Bracket:
    """A change by somebody who may, from its beginning to its end."""

    def __init__(self, name: str) -> None:
        """Take the bracket of a name."""
        if not re.fullmatch(r"[a-z]+", name):
            raise Failure(f"'{name}' is no name of a bracket: write a word of small letters.")
        self.path = BRACKETS / f"{name}.json"

    @classmethod
    def open_ones(cls) -> list[Bracket]:
        """Return those that have begun and not ended, but not so long ago that nobody will end them."""
        return [bracket for path in sorted(BRACKETS.glob("*.json")) if (bracket := cls(path.stem)).young]

    @property
    def young(self) -> bool:
        """Whether it has begun, not longer ago than a run may take."""
        try:
            return time.time() - self.path.stat().st_mtime < BRACKET_SECONDS
        except FileNotFoundError:
            return False

    def begin(self, before: Mapping[str, Entry | None]) -> None:
        """Remember what differed."""
        BRACKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {path: entry and [entry.kind, entry.mode, entry.owner, entry.content] for path, entry in before.items()}
        durable.write(self.path, json.dumps(content).encode(), 0o400)

    def before(self) -> dict[str, Entry | None] | None:
        """Return what differed when it began; nothing where it has not."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return {path: Entry(*fields) if fields else None for path, fields in content.items()}


@contextmanager
def _locked() -> Iterator[None]:
    """Keep two that write the baseline from each other."""
    BRACKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (BRACKETS / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _gauges(findings: int, *, known: bool, measured: Mapping[str, float] | None = None) -> list[Gauge]:
    """Say what is found now, and what the last check measured."""
    last = metrics.read(TOPIC) if measured is None else measured
    return [
        Gauge("holdfast_integrity_intact", "Whether every watched file is what it should be.", float(known and not findings)),
        Gauge("holdfast_integrity_findings", "Watched paths that are not what they should be.", findings),
        *(Gauge(name, told, last.get(name)) for name, told in MEASURED.items()),
    ]


def _checked(findings: int, paths: int, begun: float) -> list[Gauge]:
    """Say what is found after every byte was read."""
    now = time.time()
    return _gauges(findings, known=True, measured=dict(zip(MEASURED, (now, now - begun, paths), strict=True)))


def check() -> list[str]:
    """Compare every byte, write the metrics, and return one sentence for each finding.

    Raises:
        Failure: there is no baseline; the metrics say so too.
    """
    begun = time.time()
    try:
        read = Baseline.load().watch.scan()
        with _locked():
            # Somebody who may has perhaps changed the host while it was read: the baseline is another one then, and the files are too.
            baseline = Baseline.load()
            now = baseline.watch.scan(read)
            found = _findings(baseline.entries, now.entries)
            metrics.write(TOPIC, _checked(len(found), len(now.entries), begun))
    except Failure:
        metrics.write(TOPIC, _gauges(0, known=False))
        raise
    return [sentence(path, baseline.entries.get(path), now.entries.get(path)) for path in found]


def _findings(baseline: Found, now: Found) -> list[str]:
    """Return the differences, without those of a change that is under way."""
    found = differences(baseline, now)
    for bracket in Bracket.open_ones():
        before = bracket.before() or {}
        standing = set(kept(baseline, before, now))
        found = [path for path in found if path in standing]
    return found


def begin(name: str) -> None:
    """Remember what differs before somebody who may changes the host; one that failed not long ago is carried on."""
    with _locked():
        bracket = Bracket(name)
        if not Baseline.known() or bracket.young:
            return
        baseline = Baseline.load()
        now = baseline.scan()
        bracket.begin({path: now.entries.get(path) for path in differences(baseline.entries, now.entries)})


def end(name: str) -> tuple[list[str], list[str]]:
    """Take into the baseline what has changed since the bracket began; make the first baseline where there is none.

    Returns:
        The paths that were taken, and a sentence for each that was not.
    """
    begun = time.time()
    with _locked():
        watch, bracket = Watch.configured(), Bracket(name)
        if not Baseline.known():
            made = watch.scan()
            made.save()
            metrics.write(TOPIC, _checked(0, len(made.entries), begun))
            return sorted(made.entries), []
        baseline = Baseline.load()
        now = watch.scan(baseline)
        before = bracket.before()
        # Where nobody has said what differed before, nothing is taken.
        standing = differences(baseline.entries, now.entries) if before is None else kept(baseline.entries, before, now.entries)
        taken = _take(baseline, now, standing, by=name)
        bracket.path.unlink(missing_ok=True)
        metrics.write(TOPIC, _gauges(len(standing), known=True))
        return taken, [sentence(path, baseline.entries.get(path), now.entries.get(path)) for path in standing]


def accept(patterns: list[str]) -> list[str]:
    """Take what a person has looked at into the baseline, and return the paths.

    Raises:
        Failure: a pattern names no finding.
    """
    with _locked():
        baseline = Baseline.load()
        now = baseline.scan()
        found = differences(baseline.entries, now.entries)
        if strange := [pattern for pattern in patterns if not fnmatch.filter(found, pattern)]:
            raise Failure(f"{', '.join(strange)} is what it should be, or is not watched: `holdfast integrity report` says what is not.")
        wanted = _matcher(patterns)
        standing = [path for path in found if not wanted(path)]
        taken = _take(baseline, now, standing, by="a person")
        metrics.write(TOPIC, _gauges(len(standing), known=True))
        return taken


def _take(baseline: Baseline, now: Baseline, standing: list[str], *, by: str) -> list[str]:
    """Make what is the baseline, but for what stands, and return what was taken."""
    taken = sorted(set(differences(baseline.entries, now.entries)) - set(standing))
    entries, stamps = dict(now.entries), dict(now.stamps)
    for path in standing:
        entries.pop(path, None)
        stamps.pop(path, None)
        if path in baseline.entries:
            entries[path] = baseline.entries[path]
    if taken or stamps != baseline.stamps or now.watch.said() != baseline.watch.said():
        Baseline(entries, stamps, now.watch).save()
    for path in taken:
        _tell(f"taken from {by}: {sentence(path, baseline.entries.get(path), now.entries.get(path))}")
    return taken


def report() -> list[str]:
    """Return one sentence for each finding, trusting the kernel's time of change."""
    baseline = Baseline.load()
    now = baseline.scan()
    return [sentence(path, baseline.entries.get(path), now.entries.get(path)) for path in _findings(baseline.entries, now.entries)]


def _say(found: list[str]) -> None:
    for each in found:
        log.warning(each)
    if not found:
        print("Every watched file is what it should be.")


def _end(name: str, *, strict: bool) -> None:
    taken, found = end(name)
    if found and strict:
        more = f" And {len(found) - TOLD} more." if len(found) > TOLD else ""
        raise Failure(
            f"Changed before this run began, and not by it: {' '.join(found[:TOLD])}{more} Find out who did it; put it right, or, where it "
            "may stay, run `holdfast integrity accept PATH`."
        )
    print(json.dumps({"taken": taken[:TOLD], "count": len(taken), "findings": found}))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `integrity` to the command line."""
    parser = commands.add_parser("integrity", help="tell which files were changed by nobody who may")
    actions = parser.add_subparsers(dest="action", required=True)

    action = actions.add_parser("check", help="read every byte, write the metrics and say what is wrong")
    action.set_defaults(call=lambda given: _say(check()))

    action = actions.add_parser("report", help="say what is wrong")
    action.set_defaults(call=lambda given: _say(report()))

    action = actions.add_parser("begin", help="say that a change begins that may be")
    action.add_argument("name")
    action.set_defaults(call=lambda given: begin(given.name))

    action = actions.add_parser("end", help="say that it has ended: what has changed since is right")
    action.add_argument("name")
    action.add_argument("--strict", action="store_true", help="fail where something had changed before it began")
    action.set_defaults(call=lambda given: _end(given.name, strict=given.strict))

    action = actions.add_parser("accept", help="say that what you looked at is right")
    action.add_argument("paths", nargs="+", metavar="PATH", help="path of a finding; * stands for anything")
    action.set_defaults(call=lambda given: print("\n".join(accept(given.paths))))
