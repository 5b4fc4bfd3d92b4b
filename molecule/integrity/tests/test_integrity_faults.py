"""What an intruder would change on a host, and what those who may change it do; each test leaves the host as it was."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tools import host as test_host
from tools.playbook import play_on

METRICS = "/var/lib/prometheus/node-exporter/holdfast_integrity.prom"
INTACT = "Every watched file is what it should be."
BOUND_SECONDS = 60
POKE = "printf X | dd bs=1 seek=9000 conv=notrunc status=none of=/usr/bin/env"
# cap_setuid, permitted and effective, as the kernel keeps it (capability.h, VFS_CAP_REVISION_2).
CAPABLE = "import os, struct; os.setxattr('/srv/python', 'security.capability', struct.pack('<5I', 0x02000001, 0x80, 0, 0, 0))"
# Where an account is written.
ACCOUNTS = "/etc/passwd /etc/shadow /etc/group /etc/gshadow /etc/subuid /etc/subgid"
# Name → what an intruder does, how it is undone, and what has to be said.
TAMPERING = {
    "setuid where nobody looks": (
        "cp /usr/bin/true /srv/true && chmod 4755 /srv/true",
        "rm /srv/true",
        "/srv/true is new: a file that gives its caller more rights.",
    ),
    "capabilities where nobody looks": (
        f"cp --dereference /usr/bin/python3 /srv/python && /usr/bin/python3 -c {CAPABLE!r}",
        "rm /srv/python",
        "/srv/python is new: a file that gives its caller more rights.",
    ),
    "setuid of a program": ("chmod u+s /usr/bin/find", "chmod u-s /usr/bin/find", "/usr/bin/find has the mode 4755 and had 0755."),
    "sshd": (
        "cp --archive /etc/ssh/sshd_config /srv/ && echo PermitRootLogin yes >> /etc/ssh/sshd_config",
        "mv /srv/sshd_config /etc/ssh/",
        "/etc/ssh/sshd_config has other content.",
    ),
    "unit": (
        "printf '[Service]\\nExecStart=/bin/true\\n' > /etc/systemd/system/helper.service",
        "rm /etc/systemd/system/helper.service",
        "/etc/systemd/system/helper.service is new: a file.",
    ),
    "user": (
        f"tar --create --file /srv/accounts.tar {ACCOUNTS} 2>/dev/null && useradd --uid 0 --non-unique toor",
        "tar --extract --file /srv/accounts.tar --directory / && rm /srv/accounts.tar",
        "/etc/passwd has other content.",
    ),
    "program with its old size and date": (
        f"cp --archive /usr/bin/env /srv/env && {POKE} && touch --reference=/srv/env /usr/bin/env",
        "mv /srv/env /usr/bin/env",
        "/usr/bin/env has other content.",
    ),
    "key": (
        "mkdir --parents /root/.ssh && echo ssh-ed25519 AAAA >> /root/.ssh/authorized_keys",
        "rm /root/.ssh/authorized_keys",
        "/root/.ssh/authorized_keys is new: a file.",
    ),
    "removed file": (
        "mv /etc/apt/apt.conf.d/90holdfast-integrity /srv/",
        "mv /srv/90holdfast-integrity /etc/apt/apt.conf.d/",
        "/etc/apt/apt.conf.d/90holdfast-integrity is gone: a file.",
    ),
}  # fmt: skip


def check(host: Host) -> tuple[float, str]:
    """Have the timer's unit compare everything; return the metric and what the journal says."""
    # A comparison of the timer's may be under way, which began before the change.
    host.check_output("timeout 120 systemctl restart holdfast-integrity.service && journalctl --sync")
    said = host.check_output("journalctl --unit holdfast-integrity.service --invocation 0 --output cat")
    return measured(host)["holdfast_integrity_intact"], said


def measured(host: Host) -> dict[str, float]:
    """Return the metrics."""
    lines = [line.rsplit(" ", 1) for line in host.file(METRICS).content_string.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines}


def report(host: Host) -> str:
    """Return what a person is told."""
    done = host.run("holdfast integrity report")
    assert done.rc == 0, done.stderr
    return done.stdout + done.stderr


def converge(host: Host, *words: str, tags: str = "base:configure,integrity", **inputs: Any) -> tuple[int, str]:
    """Run a part of the scenario's playbook; return the exit code and what it said."""
    done = play_on(str(host.backend.name), "molecule/integrity/converge.yml", f"--tags={tags}", *words, **inputs)
    return done.returncode, done.stdout


@pytest.fixture(autouse=True)
def intact(host: Host) -> Iterator[None]:
    """Begin and end with a host that is what it should be."""
    assert report(host).strip() == INTACT
    yield
    assert report(host).strip() == INTACT


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_red(host: Host, case: str) -> None:
    """What an intruder changes turns the metric red, and is named in a sentence."""
    tamper, undo, sentence = TAMPERING[case]
    host.check_output(tamper)
    try:
        intact, said = check(host)
        assert intact == 0
        assert sentence in said
        assert sentence in report(host)
    finally:
        host.check_output(undo)


def test_undone_is_green(host: Host) -> None:
    """Every byte of what is watched is read in less than a minute, on the bounds that the unit has, and is right again."""
    intact, said = check(host)
    assert intact == 1 and INTACT in said
    assert measured(host)["holdfast_integrity_check_seconds"] < BOUND_SECONDS
    assert measured(host)["holdfast_integrity_paths"] > 5_000


def test_packages_are_taken(host: Host) -> None:
    """What apt installs and removes is right, and is in the journal; what was changed before is not covered by it."""
    host.check_output(TAMPERING["unit"][0])
    try:
        host.check_output("DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install --yes --no-install-recommends tree")
        assert report(host).strip() == TAMPERING["unit"][2]
        host.check_output("journalctl --sync")
        taken = host.check_output("journalctl --identifier holdfast-integrity --output cat --since -5min")
        assert "taken from apt: /usr/bin/tree is new: a file." in taken
        host.check_output("DEBIAN_FRONTEND=noninteractive timeout 300 apt-get purge --yes tree")
    finally:
        host.check_output(TAMPERING["unit"][1])


def test_unattended_upgrade_is_taken(host: Host) -> None:
    """What an upgrade that installs itself changes is right."""
    # Any package that the archive has in an older and a newer version would do, and none is for sure: so one is installed again.
    program = "import apt; cache = apt.Cache(); cache._depcache.set_reinstall(cache['hostname']._pkg, True); cache.commit()"
    before = host.check_output("stat --format %i,%Z /usr/bin/hostname")
    host.check_output(f"DEBIAN_FRONTEND=noninteractive timeout 300 python3 -c {shlex.quote(program)}")
    assert host.check_output("stat --format %i,%Z /usr/bin/hostname") != before
    assert check(host)[0] == 1


def test_run_is_taken(host: Host) -> None:
    """What a run of the playbook changes is right, a run of one other role too; what comes after it is not."""
    code, said = converge(host, tags="base:configure", base_journal_max_mb=77)
    assert code == 0, said
    assert "77M" in host.file("/etc/systemd/journald.conf.d/holdfast.conf").content_string
    assert check(host)[0] == 1
    # A check opens nothing that would cover what comes after it.
    code, said = converge(host, "--check")
    assert code == 0, said
    host.check_output(TAMPERING["unit"][0])
    assert report(host).strip() == TAMPERING["unit"][2]
    host.check_output(TAMPERING["unit"][1])
    code, said = converge(host)
    assert code == 0, said


def test_run_does_not_whitewash(host: Host) -> None:
    """A run makes nothing right that somebody had changed before it, but what it writes anew; it fails, and says what."""
    host.check_output("echo SystemMaxUse=1G >> /etc/systemd/journald.conf.d/holdfast.conf")
    host.check_output(TAMPERING["unit"][0])
    sentence = TAMPERING["unit"][2]
    try:
        code, said = converge(host, base_journal_max_mb=77)
        assert code != 0
        assert f"Changed before this run began, and not by it: {sentence} Find out" in said, said
        assert "Traceback" not in said and "from_json" not in said
        assert "77M" in host.file("/etc/systemd/journald.conf.d/holdfast.conf").content_string
        intact, told = check(host)
        assert intact == 0 and sentence in told and "journald" not in told
        code, said = converge(host, integrity_strict=False)
        assert code == 0, said
        assert report(host).strip() == sentence
    finally:
        host.check_output(TAMPERING["unit"][1])


def test_stopped_timer_is_noticed(host: Host) -> None:
    """Who stops the timer is named, the age of the last check grows, and the next run starts it again."""
    host.check_output("systemctl disable --now holdfast-integrity.timer && systemctl stop holdfast-integrity.service")
    assert "/etc/systemd/system/timers.target.wants/holdfast-integrity.timer is gone: a link." in report(host)
    before = measured(host)["holdfast_integrity_last_check_timestamp_seconds"]
    time.sleep(2)
    assert measured(host)["holdfast_integrity_last_check_timestamp_seconds"] == before
    code, said = converge(host)
    assert code == 0, said
    assert host.service("holdfast-integrity.timer").is_running


def test_lost_baseline_is_red(host: Host) -> None:
    """Who takes the baseline away does not get a new one from the next run."""
    host.check_output("mv /var/lib/holdfast/integrity/baseline.json /srv/")
    try:
        host.run("timeout 120 systemctl restart holdfast-integrity.service")
        assert measured(host)["holdfast_integrity_intact"] == 0
        code, said = converge(host)
        assert code != 0
        assert "find out who took it" in said
    finally:
        host.check_output("mv /srv/baseline.json /var/lib/holdfast/integrity/")
        assert check(host)[0] == 1


def test_reboot_is_no_finding(host: Host, host_name: str) -> None:
    """After a reboot every watched file is what it was."""
    test_host.reboot(host_name)
    assert check(host)[0] == 1
