"""What the role integrity promises of every host."""

from __future__ import annotations

import json
import time

import pytest
from testinfra.host import Host

METRICS = "/var/lib/prometheus/node-exporter/holdfast_integrity.prom"
FOLDER = "/var/lib/holdfast/integrity"
# A check an hour, its random delay, and one that was missed.
AGE_SECONDS = 3 * 3600
SENSITIVE = ("/etc/passwd", "/etc/shadow", "/etc/ssh/sshd_config", "/etc/sudoers", "/usr/bin/sudo", "/usr/lib/systemd/systemd", "/bin")


@pytest.fixture(scope="module", name="metrics")
def _metrics(host: Host) -> dict[str, float]:
    """Read what the last check measured."""
    lines = [line.rsplit(" ", 1) for line in host.file(METRICS).content_string.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, value in lines}


@pytest.mark.control("HF-INTEGRITY-01")
def test_nobody_changed_what_matters(host: Host, metrics: dict[str, float]) -> None:
    """Every watched file is what it should be: every byte was compared in the last hours, and none has changed since."""
    assert host.check_output("holdfast integrity report") == "Every watched file is what it should be."
    assert metrics["holdfast_integrity_intact"] == 1
    assert metrics["holdfast_integrity_last_check_timestamp_seconds"] > time.time() - AGE_SECONDS


def test_timer(host: Host) -> None:
    """The files are compared with their baseline every hour, from boot on."""
    timer = host.service("holdfast-integrity.timer")
    assert timer.is_enabled and timer.is_running


def test_what_is_watched(host: Host) -> None:
    """Accounts, the way in, rights, programs and units are in the baseline, and so is each file that gives its caller more rights."""
    paths = set(json.loads(host.check_output(f"cat {FOLDER}/baseline.json"))["paths"])
    units = host.check_output("find /etc/systemd/system /usr/lib/systemd/system -name '*.service' -type f").split()
    privileged = host.check_output("find / -xdev -path /var/lib/docker -prune -o -type f -perm /6000 -print").split()
    assert privileged
    assert {*SENSITIVE, *units, *privileged} <= paths


def test_baseline_is_root_s(host: Host) -> None:
    """Only root reads or writes the baseline."""
    folder, baseline = host.file(FOLDER), host.file(f"{FOLDER}/baseline.json")
    assert (folder.user, folder.mode) == ("root", 0o700)
    assert (baseline.user, baseline.mode) == ("root", 0o400)


def test_bounded(host: Host) -> None:
    """A check yields processor and disk to everybody, and has a bound of memory."""
    shown = host.check_output("systemctl show --property=MemoryMax,IOSchedulingClass,Nice holdfast-integrity.service").splitlines()
    found = dict(line.split("=", 1) for line in shown)
    assert found["MemoryMax"] != "infinity"
    assert (found["IOSchedulingClass"], found["Nice"]) == ("3", "19")
