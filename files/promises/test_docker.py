"""What the role docker promises of every host."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
from testinfra.host import Host

# The compose projects that the role app makes, one a colour.
PROJECTS = ("app-blue", "app-green")


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


@pytest.mark.control("HF-DOCKER-08")
def test_logs_in_journal(daemon: dict[str, Any]) -> None:
    """Containers log to the journal, which bounds them."""
    assert daemon["LoggingDriver"] == "journald"


@pytest.mark.control("HF-DOCKER-07")
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


@pytest.mark.control("HF-DOCKER-05")
def test_networks_are_filtered(host: Host) -> None:
    """Docker filters the traffic of its networks, and containers on its default network do not reach each other."""
    options = json.loads(host.check_output("timeout 20 docker network inspect bridge"))[0]["Options"]
    assert options["com.docker.network.bridge.enable_icc"] == "false"
    assert "-i docker0 -o docker0 -j DROP" in host.check_output("iptables --list-rules")


@pytest.mark.control("HF-DOCKER-06")
def test_daemon_is_plain(daemon: dict[str, Any]) -> None:
    """The daemon trusts no registry without TLS, debugs nothing, joins no swarm, and has no experimental or outdated part."""
    registries = daemon["RegistryConfig"]
    # Docker never asks its own loopback for TLS, and that can't be switched off.
    assert set(registries["InsecureRegistryCIDRs"]) <= {"127.0.0.0/8", "::1/128"}
    assert all(registry["Secure"] for registry in registries["IndexConfigs"].values())
    assert not daemon["Debug"] and not daemon["ExperimentalBuild"]
    assert daemon["Swarm"]["LocalNodeState"] == "inactive"
    assert daemon["Driver"] == "overlay2"


@pytest.mark.control("HF-DOCKER-04")
def test_files_belong_to_root(host: Host) -> None:
    """Only root changes what the daemon reads when it starts."""
    units = host.check_output("systemctl show --value --property=FragmentPath --property=DropInPaths docker.service docker.socket").split()
    assert len(units) >= 3
    found = host.check_output(f"find /etc/docker /etc/containerd /etc/default/docker {' '.join(units)} -printf '%U:%G %m %p\\n'")
    for line in found.splitlines():
        owner, mode, path = line.split(maxsplit=2)
        assert owner == "0:0" and int(mode, 8) & 0o022 == 0, line
        assert not path.endswith(".crt") or mode == "444", line


def test_addresses(host: Host, daemon: dict[str, Any], written: dict[str, Any]) -> None:
    """The bridge docker0, the application's networks and the ranges that Docker cuts networks from are those of the inventory."""
    bridge = ipaddress.IPv4Interface(written["bip"])
    pools = [ipaddress.IPv4Network(pool["base"]) for pool in written["default-address-pools"]]
    assert f"inet {bridge} " in host.check_output("ip -4 -oneline address show dev docker0")
    running = [(pool["Base"], pool["Size"]) for pool in daemon["DefaultAddressPools"]]
    assert running == [(pool["base"], pool["size"]) for pool in written["default-address-pools"]]
    # Docker doesn't tell whether it chose a network's addresses or was given them. For the application's networks it always chooses.
    for project in PROJECTS:
        for name in host.check_output(f"timeout 20 docker network ls --quiet --filter label=com.docker.compose.project={project}").split():
            network = json.loads(host.check_output(f"timeout 20 docker network inspect {name}"))[0]
            for subnet in (ipaddress.ip_network(config["Subnet"]) for config in network["IPAM"]["Config"]):
                known = not isinstance(subnet, ipaddress.IPv4Network) or any(subnet.subnet_of(pool) for pool in pools)
                assert known, f"{network['Name']} has {subnet}"


@pytest.mark.control("HF-DOCKER-02")
def test_nobody_is_root_by_group(host: Host) -> None:
    """Nobody is in the docker group, because its members are root."""
    _, _, number, members = host.check_output("getent group docker").split(":")
    assert members == ""
    assert number not in [line.split(":")[3] for line in host.check_output("getent passwd").splitlines()]


@pytest.mark.control("HF-DOCKER-03")
def test_socket_only(host: Host) -> None:
    """The daemon and containerd listen on unix sockets for root, and on no port."""
    for path in ("/run/docker.sock", "/run/containerd/containerd.sock"):
        socket = host.file(path)
        assert socket.is_socket and socket.user == "root" and socket.mode == 0o660, path
    assert host.run("timeout 5 curl --silent --max-time 3 --unix-socket /run/docker.sock http://localhost/_ping").stdout == "OK"
    assert not re.search('"(dockerd|containerd)"', host.check_output("ss --listening --tcp --udp --numeric --processes"))


def test_build_cache_is_bounded(host: Host, daemon: dict[str, Any], written: dict[str, Any]) -> None:
    """The builder's cache can't fill the disk."""
    assert daemon["DockerRootDir"]
    bound = int(written["builder"]["gc"]["defaultKeepStorage"].removesuffix("MB"))
    sizes = host.check_output("timeout 60 docker system df --format '{{.Type}} {{.Size}}'")
    found = re.search(r"^Build Cache ([\d.]+)([kMGT]?)B$", sizes, re.MULTILINE)
    assert found, sizes
    # The collector comes by now and then, so the cache is over the bound for a while.
    assert float(found[1]) * {"": 1e-6, "k": 1e-3, "M": 1, "G": 1e3, "T": 1e6}[found[2]] < 2 * bound
