"""`make test-vm`: the site on a real virtual machine, from a bare disk to a power cut; docs/vm.md keeps the figures."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from tools import readme, vm
from tools.playbook import play
from tools.shell import ROOT, VENV_BIN, Failure, run, say, step

REPORT = ROOT / "docs" / "vm.md"
PROMISES = ROOT / "files" / "promises"
TESTS = "molecule/vm/tests"
# What a user of the host would miss first.
ESSENTIAL = ("app", "caddy", "docker", "firewall", "pgbackrest", "pgbouncer", "postgresql", "valkey")
# Emulated, on two cores that others used as well, three quarters of a first run took 68 minutes.
PLAY_SECONDS = 10800
TEST_SECONDS = 7200
DISKS = {"bare": "made anew", "kept": "kept after an earlier first run"}
# A waiver of the inventory is the only reason for which a promise need not hold; files/promises/conftest.py writes it.
WAIVED = re.compile(r"^HF-[A-Z]+-\d+ is waived: ")


@dataclass
class Outcome:
    """What pytest said: names of tests that passed, why others were skipped, those that failed, and figures they noted."""

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """The phases with their seconds, and the figures, in the order in which they came about; the disk says where it began."""

    disk: str
    phases: dict[str, float] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def outcome(report: Path) -> Outcome:
    """Read pytest's report."""
    found = Outcome()
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  # pytest on this machine has written it
        name = case.attrib["name"]
        for each in case.iter("property"):
            found.figures[each.attrib["name"]] = each.attrib["value"]
        if (skipped := case.find("skipped")) is not None:
            found.skipped[name] = skipped.attrib.get("message", "")
        elif case.find("failure") is not None or case.find("error") is not None:
            found.failed.append(name)
        else:
            found.passed.append(name)
    return found


def faults(found: Outcome, promised: set[str]) -> list[str]:
    """Say what is wrong with a run of the promises: one that failed, one that was left out, one that nobody asked for."""
    wrong = [f"the promise {name} does not hold" for name in found.failed]
    wrong += [f"the promise {name} was left out: {why}" for name, why in found.skipped.items() if not WAIVED.match(why)]
    asked = {name.split("[")[0] for name in [*found.passed, *found.skipped, *found.failed]}
    return wrong + [f"the promise {name} was not asked for" for name in sorted(promised - asked)]


def _pytest(name: str, *tests: str | Path) -> Outcome:
    """Run tests over ssh, as root by sudo."""
    report = vm.FOLDER / f"{name}.xml"
    report.unlink(missing_ok=True)
    host = f"ssh://{vm.NAME}?sudo=true&timeout=60&ssh_config={vm.SSH_CONFIG}"
    # pytest writes a test's figures into the older kind of report only.
    options = ["--verbose", f"--hosts={host}", f"--junitxml={report}", "--override-ini=junit_family=xunit1"]
    words: list[str | Path] = [VENV_BIN / "pytest", *options, *tests]
    run(words, show=True, check=False, timeout_seconds=TEST_SECONDS, env={"NO_COLOR": "1"})
    if not report.exists():
        raise Failure("pytest ended without a report; what it said is above.")
    return outcome(report)


def _site(report: Report, name: str, *, changes: bool) -> None:
    begun = time.monotonic()
    log = vm.FOLDER / f"{name.replace(' ', '-')}.log"
    with step(f"{name} ({log.relative_to(ROOT)} says how far it is)"):
        done = play(vm.INVENTORY, "site.yml", timeout_seconds=PLAY_SECONDS, log=log)
    report.phases[name] = time.monotonic() - begun
    recap = re.search(r"ok=(\d+)\s+changed=(\d+)", done.stdout)
    if done.returncode or not recap:
        raise Failure(f"{name}: the playbook failed.\n{done.stdout[-4000:]}")
    report.figures[f"{name}: tasks, changed"] = f"{recap[1]}, {recap[2]}"
    if not changes and recap[2] != "0":
        report.faults.append(f"{name}: {recap[2]} tasks changed something")


def _promises(report: Report, name: str, roles: Sequence[str]) -> None:
    promised = {promise.function for role in roles for promise in readme.promises(ROOT, role)}
    begun = time.monotonic()
    with step(name):
        found = _pytest(name.replace(" ", "-"), *(path for role in roles if (path := PROMISES / f"test_{role}.py").exists()))
    report.phases[name] = time.monotonic() - begun
    report.figures[f"{name}: held, waived"] = f"{len(found.passed)}, {len(found.skipped)}"
    report.faults += [f"{name}: {fault}" for fault in faults(found, promised)]


def main(disk: str) -> int:
    """Make the machine, bring it to what the inventory says, and break it; return the exit code.

    Args:
        disk: `bare`, or `kept`: the machine that runs, or else the disk of `vm-keep`, which spares the first run.

    Raises:
        Failure: there is no such disk, the machine did not boot, or a playbook failed.
    """
    if disk not in DISKS:
        raise Failure(f"There is no disk '{disk}': write one of {', '.join(DISKS)}.")
    report = Report(disk)
    begun = time.monotonic()
    if disk == "bare":
        vm.forget()
    elif not (vm.running() or vm.make_disk().kept.exists()):
        raise Failure("No disk was kept: bring the machine up, run site.yml, and call `python3 -m tools vm-keep`.")
    vm.up()
    report.phases["disk, power on, first login"] = time.monotonic() - begun
    if disk == "bare":
        _site(report, "first run", changes=True)
    _site(report, "run that changes nothing", changes=False)
    _promises(report, "promises", readme.roles(ROOT))
    began = time.monotonic()
    with step("accidents, scans and figures"):
        found = _pytest("tests", TESTS)
    report.phases["accidents, scans and figures"] = time.monotonic() - began
    report.figures |= found.figures
    report.faults += [f"the test {name} failed" for name in [*found.failed, *found.skipped]]
    _promises(report, "essential promises after the power cut", ESSENTIAL)
    report.phases["all"] = time.monotonic() - begun
    for fault in report.faults:
        say(fault)
    if not report.faults:
        REPORT.write_text(page(report), encoding="utf-8")
        vm.down()
    say(f"{len(report.faults)} faults{', and the machine runs on: ssh -F .cache/vm/ssh_config ' + vm.NAME if report.faults else ''}")
    return 1 if report.faults else 0


def page(report: Report) -> str:
    """Return docs/vm.md."""
    way = "emulated" if vm.accelerator(vm.make_disk()) == vm.EMULATION else "on KVM"
    lines = [
        "# The virtual machine",
        "",
        "Written by `make test-vm`: a Debian 13 disk is made, booted under QEMU, and reached over ssh as a user who may use sudo.",
        "`site.yml` brings it to what the demo's inventory says; then come every promise, and what only a machine of its own kernel shows.",
        "",
        f"- date: {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        f"- disk: {DISKS[report.disk]}",
        f"- machine: {vm.CORES} cores {way}, {vm.MEMORY_MB} MB of memory; around it {os.cpu_count()} cores, Linux {platform.release()}",
        f"- commit: {run(['git', 'rev-parse', '--short', 'HEAD']).stdout.strip()}",
        "",
        "| phase | seconds |",
        "|---|---|",
        *(f"| {name} | {seconds:.0f} |" for name, seconds in report.phases.items()),
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in report.figures.items()),
        "",
        "[lynis.md](lynis.md) has what Lynis said of this machine.",
        "",
    ]
    return "\n".join(lines)
