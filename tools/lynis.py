"""Lynis on the virtual machine: its hardening index, and an answer to each of its suggestions; docs/lynis.md keeps both."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

from tools.shell import ROOT, Failure
from tools.vm import Machine

REPORT = ROOT / "docs" / "lynis.md"
LEAST, GOAL = 85, 90
SCAN_SECONDS = 3600
# The host has slept one night first, so that security's upgrades are in.
# Lynis is there for the scan only, and takes nothing along that was there before.
# It brings e2fsprogs, which Debian calls essential and a minimal disk does not have.
SCAN = """
set -eu
export DEBIAN_FRONTEND=noninteractive
systemctl start apt-daily.service
# An upgrade of systemd cuts off whoever waits for it; its job may begin a moment later.
systemctl start --no-block apt-daily-upgrade.service
until sleep 5; systemctl show --property=ActiveState apt-daily-upgrade.service | grep -Eq 'inactive|failed'; do :; done
installed() { dpkg-query --show --showformat='${Package}\\n' | sort; }
installed > /run/packages.before
apt-get install --yes --quiet=2 --no-install-recommends lynis </dev/null >/dev/null
lynis audit system --quick --quiet --no-colors --cronjob </dev/null >/dev/null
cat /var/log/lynis-report.dat
new=$(installed | comm -13 /run/packages.before -)
apt-get purge --yes --quiet=2 --allow-remove-essential $new </dev/null >/dev/null
rm -f /var/log/lynis.log /var/log/lynis-report.dat /run/packages.before
"""
# Test of Lynis → why what it suggests is not done here.
ANSWERS = {
    "ACCT-9622": "sudo logs who ran what as root; counting every process of every user costs more than it tells.",
    "ACCT-9626": "sysstat keeps figures; the host's figures are the business of its observability.",
    "AUTH-9284": "They are services' accounts, which nobody logs in to.",
    "AUTH-9286": "Nobody has a password: an admin's key is the way in, and a password that expires would close it.",
    "BOOT-5180": "systemd starts the services and has no runlevels; each service of ours has the promise that it starts at boot.",
    "BOOT-5264": "Each unit of ours is at 3.0 at most, or says why not, which is a promise; others are as Debian confines them.",
    "CONT-8104": "They are what the machine's kernel can't do; what can be said of the daemon is in the promises of role docker.",
    "DBS-1828": "Each user's psql fails without them; no secret is in them. What is ours is in conf.d and pg_hba.conf, both 0640.",
    "DEB-0280": "Services have folders of their own in /tmp by systemd; a variable that sudo carries to other users breaks theirs.",
    "DEB-0810": "Upgrades install themselves at night, and only security's: nobody would read its question.",
    "DEB-0811": "Upgrades install themselves at night: nobody would read it.",
    "DEB-0880": "sshd itself holds off addresses that guess (PerSourcePenalties), the firewall those that connect too often.",
    "FILE-6310": "The provider divides the disk; what could fill it (journal, images, archive, audit) is bounded, each by a promise.",
    "FINT-4350": "Role integrity is one, with a baseline that each run and each upgrade renews; Lynis does not know it.",
    "FIRE-4513": "Docker wrote them; ours is an nftables table of its own, which a promise compares with a golden file.",
    "HRDN-7230": "Programs come from signed packages and from images named by digest; what users upload is read, never run.",
    "KRNL-5788": "The test's machine is started by its kernel's own file, so no boot loader and no link to it are there.",
    "KRNL-6000": "Docker forwards between its networks, and the firewall loads modules when it needs them.",
    "LOGG-2154": "One machine has nobody to send it to; the journal is sealed, so that what was changed shows.",
    "LOGG-2190": "PostgreSQL's shared memory has a name in the file system that is removed at once.",
    "LYNIS": "It is Debian's package, whose security updates reach it.",
    "MACF-6208": "They are Debian's profiles of programs that are not installed.",
    "NAME-4028": "The machine of the test has no domain.",
    "PKGS-7370": "Role integrity compares what packages brought with its baseline, each hour; debsums would do so again.",
    "PKGS-7394": "apt itself lists what can be upgraded, and security's upgrades install themselves.",
    "SSH-7408": "Another port than 22 hides sshd from nobody who scans.",
    "TOOL-5002": "Ansible works over ssh from its owner's machine, and leaves no agent on the host that Lynis could find.",
}


@dataclass(frozen=True)
class Finding:
    """One warning or suggestion: the test that has it, and what it says."""

    test: str
    text: str


@dataclass(frozen=True)
class Scan:
    """What Lynis says of a host."""

    version: str
    index: int
    tests: int
    warnings: list[Finding]
    suggestions: list[Finding]


def parse(report: str) -> Scan:
    """Read Lynis' report.

    Raises:
        Failure: it has no index, so the scan did not come to its end.
    """
    values = dict(re.findall(r"^(\w+)=(.*)$", report, re.MULTILINE))
    if "hardening_index" not in values:
        raise Failure(f"Lynis gave no hardening index; its report ends with\n{report[-500:]}")

    def findings(kind: str) -> list[Finding]:
        lines = re.findall(rf"^{kind}\[\]=(.*)$", report, re.MULTILINE)
        rows = [line.split("|") for line in lines]
        return [Finding(row[0], row[1] if row[2] in ("", "-") else f"{row[1]} ({row[2]})") for row in rows]

    tests = len([name for name in values.get("tests_executed", "").split("|") if name])
    return Scan(values["lynis_version"], int(values["hardening_index"]), tests, findings("warning"), findings("suggestion"))


def scan(machine: Machine) -> Scan:
    """Install Lynis on the machine, let it look at everything, and take it away again."""
    return parse(machine.ssh(SCAN, timeout_seconds=SCAN_SECONDS).stdout)


def unanswered(found: Scan) -> list[Finding]:
    """Return what Lynis says and we have no answer to."""
    return [each for each in found.warnings + found.suggestions if each.test not in ANSWERS]


def page(found: Scan) -> str:
    """Return docs/lynis.md."""
    kinds = [("warning", each) for each in found.warnings] + [("suggestion", each) for each in found.suggestions]
    lines = [
        "# Lynis",
        "",
        "Written by `make test-vm`, which boots a bare Debian 13, runs `site.yml` over ssh, and has Lynis look",
        "at the machine. Nothing is left out of its scan.",
        "",
        f"- date: {dt.datetime.now(dt.UTC):%Y-%m-%d}",
        f"- Lynis: {found.version}, Debian's package; {found.tests} tests",
        f"- **hardening index: {found.index}** (at least {LEAST}, or the test fails; the goal is {GOAL})",
        f"- warnings: {len(found.warnings)}, suggestions: {len(found.suggestions)}; each has an answer below, or the test fails",
        "",
        "| test | kind | what Lynis says | our answer |",
        "|---|---|---|---|",
    ]
    for kind, each in kinds:
        lines.append(f"| {each.test} | {kind} | {each.text.replace('|', ' ')} | {ANSWERS.get(each.test, '')} |")
    return "\n".join(lines) + "\n"


def write(found: Scan) -> None:
    """Write docs/lynis.md."""
    REPORT.write_text(page(found), encoding="utf-8")
