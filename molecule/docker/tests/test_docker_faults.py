"""The role docker with real containers, and under faults."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import promises
import pytest
from testinfra.host import Host

IMAGE = "molecule/busybox"
PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def image(host: Host) -> str:
    """Make an image out of Debian's static busybox, for none can be pulled here."""
    host.check_output(
        "mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin/ && ln -sf busybox /tmp/image/bin/sh "
        f"&& tar -C /tmp/image -c . | docker import - {IMAGE}"
    )
    return IMAGE


@pytest.fixture
def container(host: Host, image: str) -> Iterator[str]:
    """Run a container that writes a line each second."""
    name = "molecule-steady"
    loop = "while true; do echo a line of the container; busybox sleep 1; done"
    host.check_output(f"docker run --detach --name {name} {image} sh -c '{loop}'")
    yield name
    host.check_output(f"docker rm --force {name}")


def _state(host: Host, name: str) -> tuple[str, int]:
    found = json.loads(host.check_output(f"timeout 20 docker inspect {name}"))[0]["State"]
    return found["StartedAt"], found["Pid"]


def test_restart_keeps_containers(host: Host, container: str) -> None:
    """A restart of the daemon, and of containerd below it, leaves a running container alone."""
    before = _state(host, container)
    host.check_output("timeout 60 systemctl restart containerd.service docker.service")
    assert _state(host, container) == before


def test_killed_daemon_comes_back(host: Host, container: str) -> None:
    """A daemon that is killed comes back, and its container has not noticed."""
    before = _state(host, container)
    host.check_output("systemctl kill --kill-whom=main --signal=KILL docker.service")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while host.run("timeout 10 docker info").rc:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert _state(host, container) == before


def test_log_lines_arrive_in_journal(host: Host, container: str) -> None:
    """What a container writes is in the journal under the container's name."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "a line of the container" not in host.check_output(f"journalctl --output cat CONTAINER_TAG={container}"):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_no_new_privileges_inside(host: Host, container: str) -> None:
    """The kernel refuses new privileges to a process in a container."""
    assert "NoNewPrivs:\t1" in host.check_output(f"docker exec {container} busybox cat /proc/1/status")


def test_bounds_inside(host: Host, container: str) -> None:
    """A process in a container leaves no core dump, and has a bound for its open files, though nobody asked for either."""
    said = host.check_output(f"docker exec {container} sh -c 'ulimit -H -c; ulimit -H -n'")
    assert said.split() == ["0", "16384"]


def test_authority_is_closed(host: Host) -> None:
    """Nobody changes a registry's authority by accident."""
    assert host.file("/etc/docker/certs.d/registry.test:5000/ca.crt").mode == 0o444


def test_compose_network_is_from_pool(host: Host, image: str) -> None:
    """A compose project runs, in a network out of the pool."""
    project = f"services: {{one: {{image: {image}, command: [sh, -c, busybox sleep 60], stop_grace_period: 0s}}}}"
    host.check_output(f"mkdir -p /tmp/project && echo '{project}' > /tmp/project/compose.yml")
    try:
        host.check_output("cd /tmp/project && timeout 60 docker compose up --detach --wait")
        subnet = json.loads(host.check_output("docker network inspect project_default"))[0]["IPAM"]["Config"][0]["Subnet"]
        assert subnet.startswith("172.30.")
        assert int(subnet.split(".")[2]) >= 128
    finally:
        host.check_output("cd /tmp/project && timeout 60 docker compose down")


@pytest.fixture
def networks(host: Host) -> Iterator[list[str]]:
    """Make networks with addresses that Docker did not choose, as another application's compose project asks for them."""
    made = {"molecule-own": "--subnet 10.99.7.0/24", "molecule-six": "--ipv6 --subnet fd00:5eed::/64"}
    for name, addresses in made.items():
        host.check_output(f"timeout 20 docker network create --label com.docker.compose.project=other {addresses} {name}")
    yield [*made]
    host.check_output(f"timeout 20 docker network rm {' '.join(made)}")


def test_addresses_of_others_are_theirs(host: Host, networks: list[str]) -> None:
    """The promise about addresses leaves other applications' networks alone, and is broken by one of the application's outside the pool."""
    assert len(networks) == 2
    assert promises.broken(host, "docker", "test_addresses") == ""
    host.check_output("timeout 20 docker network create --label com.docker.compose.project=app-blue --subnet 10.99.8.0/24 molecule-blue")
    try:
        assert promises.broken(host, "docker", "test_addresses")
    finally:
        host.check_output("timeout 20 docker network rm molecule-blue")


def test_member_of_docker_group_was_removed(host: Host) -> None:
    """Somebody who was in the docker group before is not any more."""
    assert "docker" not in host.user("intruder").groups


def test_registry_authority(host: Host) -> None:
    """A private registry's authority lies where Docker looks for it."""
    assert host.file("/etc/docker/certs.d/registry.test:5000/ca.crt").contains("BEGIN CERTIFICATE")


def test_bad_configuration_never_lands(host: Host) -> None:
    """The check that the role runs before it writes the configuration refuses a bad one."""
    assert host.run("""echo '{"bip": 5}' > /tmp/bad.json; dockerd --validate --config-file=/tmp/bad.json""").rc != 0
