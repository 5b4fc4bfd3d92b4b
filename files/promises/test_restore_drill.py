"""What the role restore_drill promises of every host."""

from __future__ import annotations

import time

import pytest
from testinfra.host import Host

UNIT = "holdfast-drill.service"
FOLDER = "/var/lib/postgresql/drill"
METRICS = "/var/lib/prometheus/node-exporter/holdfast_drill.prom"
# A drill a day, its random delay, and time to hold it.
AGE_SECONDS = 36 * 3600
LOSS_SECONDS = 60


@pytest.fixture(scope="module", name="metrics")
def _metrics(host: Host) -> dict[str, float]:
    """Read what the last drill measured; hold one where there was none yet."""
    if not host.file(METRICS).exists:
        host.run(f"timeout 900 systemctl start {UNIT}")
    lines = [line.rsplit(" ", 1) for line in host.file(METRICS).content_string.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, value in lines}


def test_timer(host: Host) -> None:
    """A drill is held every day, also when the host was off at its hour."""
    assert host.service("holdfast-drill.timer").is_enabled and host.service("holdfast-drill.timer").is_running
    assert host.check_output("systemctl show --property=Persistent --value holdfast-drill.timer") == "yes"


def test_last_drill_proved_everything(host: Host, metrics: dict[str, float]) -> None:
    """The last drill restored the newest backup and proved it, not longer than a day and a half ago."""
    assert metrics["holdfast_drill_success"] == 1, host.check_output("holdfast drill report")
    assert metrics["holdfast_drill_last_success_timestamp_seconds"] > time.time() - AGE_SECONDS


def test_loss_and_time_are_measured(metrics: dict[str, float]) -> None:
    """The drill measured how much would be lost, less than a minute, and how long a restore takes."""
    assert 0 < metrics["holdfast_drill_rpo_seconds"] < LOSS_SECONDS
    assert metrics["holdfast_drill_rto_seconds"] > 0


def test_report(host: Host, metrics: dict[str, float]) -> None:
    """A person is told in words what was proven."""
    said = host.check_output("holdfast drill report")
    assert "Loss (RPO)" in said and "Time (RTO)" in said and "amcheck" in said and "the migrations are at" in said


def test_nothing_is_left(host: Host, metrics: dict[str, float]) -> None:
    """Between drills no copy lies on the disk and no second server runs."""
    if host.run(f"systemctl is-active --quiet {UNIT}").rc != 0:
        assert not host.file(f"{FOLDER}/scratch").exists
        assert host.check_output("pgrep --count --full '[p]ostgres -D /var/lib/postgresql/drill' || true") == "0"


def test_bounded(host: Host) -> None:
    """A drill has bounds of memory, processor and tasks, and yields the disk to everybody."""
    shown = host.check_output(f"systemctl show --property=MemoryMax,CPUQuotaPerSecUSec,TasksMax,IOSchedulingClass {UNIT}").splitlines()
    found = dict(line.split("=", 1) for line in shown)
    assert found["IOSchedulingClass"] == "3"
    assert "infinity" not in (found["MemoryMax"], found["CPUQuotaPerSecUSec"], found["TasksMax"])
