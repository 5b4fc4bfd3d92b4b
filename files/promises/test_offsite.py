"""What the role offsite promises of every host: what pgBackRest does not keep lies off the host, encrypted, and comes back."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

SETTINGS = "/etc/holdfast-offsite.json"
METRICS = "/var/lib/prometheus/node-exporter"
UNITS = ("holdfast-offsite@dumps", "holdfast-offsite@files")


@pytest.mark.parametrize("unit", UNITS)
def test_timers(host: Host, unit: str) -> None:
    """Copies are made by timers that survive a reboot, and catch up on what was missed while the host was off."""
    timer = host.service(f"{unit}.timer")
    assert timer.is_running and timer.is_enabled
    shown = host.check_output(f"systemctl show --property Persistent,RandomizedDelayUSec,NextElapseUSecRealtime {unit}.timer")
    found = dict(line.split("=", 1) for line in shown.splitlines())
    assert found["Persistent"] == "yes"
    assert found["RandomizedDelayUSec"] != "0"
    assert found["NextElapseUSecRealtime"]


def test_copies_can_be_made(host: Host) -> None:
    """A copy that is asked for now succeeds, and its metrics say so."""
    begun = float(host.check_output("date +%s"))
    host.check_output("timeout 600 systemctl start holdfast-offsite@files.service")
    for what in ("certificates", "release", "inventory"):
        text = host.check_output(f"cat {METRICS}/holdfast_offsite_{what}.prom")
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(found[f'holdfast_offsite_success{{what="{what}"}}']) == 1
        assert float(found[f'holdfast_offsite_last_success_timestamp_seconds{{what="{what}"}}']) >= begun


def test_gentle(host: Host) -> None:
    """A copy gives way to the database: its processor and disk priorities are low."""
    shown = host.check_output("systemctl show --property Nice,IOSchedulingPriority,CPUWeight holdfast-offsite@dumps.service").splitlines()
    assert sorted(shown) == ["CPUWeight=20", "IOSchedulingPriority=7", "Nice=10"]


def test_secrets(host: Host) -> None:
    """Only root reads the keys and the inventory, and the inventory's vault is encrypted by a key that is not on the host."""
    assert (host.file(SETTINGS).user, host.file(SETTINGS).mode) == ("root", 0o600)
    path = json.loads(host.check_output(f"cat {SETTINGS}"))["inventory_path"]
    assert (host.file(path).user, host.file(path).mode) == ("root", 0o600)
    names = host.check_output(f"tar --list --file {path}").splitlines()
    assert any(name.startswith("hosts") or name.endswith(".yml") for name in names)
    for name in names:
        if name.endswith("vault.yml"):
            assert host.check_output(f"tar --extract --to-stdout --file {path} {name} | head -c 14") == "$ANSIBLE_VAULT"


def test_bucket_opens(host: Host) -> None:
    """What was copied opens with the host's own settings, over verified TLS, and the bucket's provider reads no name of it."""
    settings = json.loads(host.check_output(f"cat {SETTINGS}"))
    said = host.run("timeout 60 holdfast offsite list")
    assert said.rc == 0 or "is empty: nothing was ever copied there" in said.stderr, said.stderr
    assert "http://" not in settings["bucket"]["endpoint"]
