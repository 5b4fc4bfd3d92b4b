"""What the role base promises of every host."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host


def test_suites(host: Host) -> None:
    """Security upgrades, updates and backports of Debian 13 can be installed."""
    policy = host.check_output("apt-cache policy")
    for suite in ("trixie", "trixie-updates", "trixie-security", "trixie-backports"):
        assert re.search(rf"\bn={suite}\b", policy), f"{suite} is not among the package sources"


def test_backports_are_named(host: Host) -> None:
    """Nothing comes from backports unless the inventory names it."""
    listed = host.check_output("apt-cache policy caddy systemd")
    caddy, systemd = listed.split("systemd:\n")
    assert re.search(r"Candidate: \S+~bpo13", caddy)
    assert not re.search(r"Candidate: \S+~bpo13", systemd)


@pytest.mark.control("HF-PATCH-02")
def test_security_upgrades(host: Host) -> None:
    """Security upgrades install themselves every night, and only they do."""
    assert host.service("apt-daily-upgrade.timer").is_running
    assert host.service("apt-daily-upgrade.timer").is_enabled
    origins = host.check_output("apt-config dump Unattended-Upgrade::Origins-Pattern")
    assert "Debian-Security" in origins
    assert "label=Debian," not in origins


@pytest.mark.control("HF-PATCH-03")
def test_backups_are_not_interrupted(host: Host) -> None:
    """Neither the nightly upgrades nor the reboot that they ask for begin while a backup runs."""
    upgrade = host.check_output("systemctl show --property ExecStartPre --value apt-daily-upgrade.service")
    reboot = host.check_output("systemctl show --property ExecStart --value holdfast-reboot.service")
    assert "holdfast idle" in upgrade and "holdfast-backup@*.service" in upgrade
    assert reboot.index("holdfast-backup@*.service") < reboot.index("systemctl --no-block reboot")
    assert "false" in host.check_output("apt-config dump Unattended-Upgrade::Automatic-Reboot")
    timer = host.service("holdfast-reboot.timer")
    assert timer.is_enabled == timer.is_running


def test_clock(host: Host) -> None:
    """The clock is kept in time from every boot on."""
    assert host.service("systemd-timesyncd.service").is_enabled
    if host.run("systemd-detect-virt --container").rc != 0:  # a container has its machine's clock
        assert host.service("systemd-timesyncd.service").is_running


def test_journal(host: Host) -> None:
    """The journal survives a reboot and is bounded on disk."""
    assert host.run("journalctl --sync").rc == 0
    machine = host.check_output("cat /etc/machine-id")
    assert host.file(f"/var/log/journal/{machine}/system.journal").exists
    assert re.search(r"^SystemMaxUse=\d+M$", host.check_output("systemd-analyze cat-config systemd/journald.conf"), re.MULTILINE)


def test_name_and_locale(host: Host) -> None:
    """The host has its name, a UTF-8 locale and a time zone."""
    assert host.check_output("hostname") == host.check_output("cat /etc/hostname")
    assert re.match(r"LANG=\S+\.UTF-8", host.check_output("grep --no-messages ^LANG= /etc/default/locale"))
    assert "UTF-8" in host.check_output("localectl status")
    assert host.check_output("timedatectl show --property Timezone --value")
