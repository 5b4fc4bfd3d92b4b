"""What the role docker promises of every host."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
from testinfra.host import Host


@pytest.fixture(scope="module")
def daemon(host: Host) -> dict[str, Any]:
    """Ask the running daemon about itself."""
    content: dict[str, Any] = json.loads(host.check_output("timeout 20 docker info --format '{{json .}}'"))
    assert not content.get("ServerErrors"), content["ServerErrors"]
    return content


@pytest.fixture(scope="module")
def written(host: Host) -> dict[str, Any]:
    """Read the daemon's configuration."""
    content: dict[str, Any] = json.loads(host.check_output("cat /etc/docker/daemon.json"))
    return content


def test_running(host: Host, daemon: dict[str, Any]) -> None:
    """Docker answers, and starts at boot."""
    assert daemon["ServerVersion"]
    assert host.service("docker.service").is_enabled


def test_from_debian(host: Host) -> None:
    """Docker and compose are Debian's own, so Debian's security upgrades reach them."""
    assert re.search(r"\+dfsg\d*-\d", host.package("docker.io").version)
    assert host.run("timeout 20 docker compose version").rc == 0


def test_configuration_is_valid(host: Host) -> None:
    """The daemon would start with the configuration that is written."""
    host.check_output("dockerd --validate --config-file=/etc/docker/daemon.json")


def test_logs_in_journal(daemon: dict[str, Any]) -> None:
    """Containers log to the journal, which bounds them."""
    assert daemon["LoggingDriver"] == "journald"


def test_live_restore(daemon: dict[str, Any]) -> None:
    """Containers go on while the daemon restarts."""
    assert daemon["LiveRestoreEnabled"]


@pytest.mark.control("HF-DOCKER-01")
def test_no_new_privileges(daemon: dict[str, Any]) -> None:
    """No process in a container gains privileges, and the default seccomp profile holds."""
    assert "no-new-privileges" in " ".join(daemon["SecurityOptions"])
    assert any(option.startswith("name=seccomp,profile=builtin") for option in daemon["SecurityOptions"])


def test_no_userland_proxy(host: Host, daemon: dict[str, Any]) -> None:
    """No process of Docker stands between a client and a container."""
    assert daemon["ID"]
    assert host.run("pgrep --exact docker-proxy").rc == 1


def test_addresses(host: Host, written: dict[str, Any]) -> None:
    """The bridge docker0 and every network of containers have the addresses that the inventory gives them."""
    bridge = ipaddress.IPv4Interface(written["bip"])
    pools = [ipaddress.IPv4Network(pool["base"]) for pool in written["default-address-pools"]]
    assert f"inet {bridge} " in host.check_output("ip -4 -oneline address show dev docker0")
    networks = host.check_output("timeout 20 docker network ls --quiet --filter driver=bridge").split()
    for network in json.loads(host.check_output(f"timeout 20 docker network inspect {' '.join(networks)}")):
        for config in network["IPAM"]["Config"]:
            subnet = ipaddress.IPv4Network(config["Subnet"])
            known = subnet == bridge.network or any(subnet.subnet_of(pool) for pool in pools)
            assert known, f"{network['Name']} has {subnet}"


@pytest.mark.control("HF-DOCKER-02")
def test_nobody_is_root_by_group(host: Host) -> None:
    """Nobody is in the docker group, because its members are root."""
    _, _, number, members = host.check_output("getent group docker").split(":")
    assert members == ""
    assert number not in [line.split(":")[3] for line in host.check_output("getent passwd").splitlines()]


def test_socket_only(host: Host) -> None:
    """The daemon listens on its unix socket, for root alone, and on no port."""
    socket = host.file("/run/docker.sock")
    assert socket.is_socket
    assert socket.user == "root"
    assert socket.mode == 0o660
    assert host.run("timeout 5 curl --silent --max-time 3 --unix-socket /run/docker.sock http://localhost/_ping").stdout == "OK"
    assert '"dockerd"' not in host.check_output("ss --listening --tcp --udp --numeric --processes")


def test_build_cache_is_bounded(host: Host, daemon: dict[str, Any], written: dict[str, Any]) -> None:
    """The builder's cache can't fill the disk."""
    assert daemon["DockerRootDir"]
    bound = int(written["builder"]["gc"]["defaultKeepStorage"].removesuffix("MB"))
    sizes = host.check_output("timeout 60 docker system df --format '{{.Type}} {{.Size}}'")
    found = re.search(r"^Build Cache ([\d.]+)([kMGT]?)B$", sizes, re.MULTILINE)
    assert found, sizes
    # The collector comes by now and then, so the cache is over the bound for a while.
    assert float(found[1]) * {"": 1e-6, "k": 1e-3, "M": 1, "G": 1e3, "T": 1e6}[found[2]] < 2 * bound
