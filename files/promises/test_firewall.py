"""What the role firewall promises of every host."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

FILE = "/etc/holdfast/firewall.nft"
CLOSED = "/etc/holdfast/firewall-closed.nft"
LIST = "nft --stateless --terse list table inet holdfast"


@pytest.fixture(scope="module")
def chain(host: Host) -> dict[str, Any]:
    """Ask the kernel for the chain that judges what comes from outside."""
    listed = json.loads(host.check_output("nft --json list chain inet holdfast outside"))["nftables"]
    found: dict[str, Any] = next(item["chain"] for item in listed if "chain" in item)
    return found


def golden(host: Host, file: str) -> str:
    """Return what a file loads; it is loaded into a network namespace of its own, which ends with the command."""
    return str(host.check_output(f"unshare --net sh -c 'nft --file {file} && {LIST}'"))


def test_in_force(host: Host) -> None:
    """The kernel holds the ruleset of the host's file to the letter: nothing was added, and nothing is missing."""
    loaded = golden(host, FILE)
    assert "chain outside" in loaded
    assert host.check_output(LIST) == loaded


def test_fails_closed(host: Host) -> None:
    """Should the ruleset fail to load at boot, another is loaded in its place, which drops what this one drops."""
    closed = golden(host, CLOSED).splitlines()
    assert "\t\ttype filter hook prerouting priority mangle; policy drop;" in closed
    assert set(closed) <= set(golden(host, FILE).splitlines())
    assert CLOSED in host.check_output("systemctl show --property ExecStopPost --value holdfast-firewall.service")


@pytest.mark.control("HF-FIREWALL-01")
def test_drops_before_docker(chain: dict[str, Any]) -> None:
    """What no rule accepts is dropped, after conntrack and before Docker can give it another address."""
    assert (chain["hook"], chain["policy"]) == ("prerouting", "drop")
    assert -200 < chain["prio"] < -100


@pytest.mark.control("HF-FIREWALL-02")
def test_from_boot_on(host: Host, chain: dict[str, Any]) -> None:
    """The ruleset is loaded at every boot before there is a network, and no start of Debian's own unit can flush it."""
    assert chain["table"] == "holdfast"
    unit = host.service("holdfast-firewall.service")
    assert unit.is_enabled
    assert unit.is_running
    assert "network-pre.target" in host.check_output("systemctl show --property Before --value holdfast-firewall.service").split()
    assert host.service("nftables.service").is_masked


def test_no_change_is_pending(host: Host) -> None:
    """No change of the firewall waits to be taken back."""
    assert host.file("/var/lib/holdfast/guard").is_directory
    assert not host.file("/var/lib/holdfast/guard/firewall.json").exists
