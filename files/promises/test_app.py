"""What the role app promises of every host: the live release answers, and its containers can do no harm."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

LIVE = "/srv/app/live"
# Whoever changes or reads them has the host.
SENSITIVE = {"/", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/run", "/sys", "/usr", "/var", "/var/lib", "/var/run"}
ENGINE_SOCKETS = ("docker.sock", "containerd.sock")


@pytest.fixture(scope="module")
def release(host: Host) -> dict[str, Any]:
    """Read the live release, as the host records it."""
    content: dict[str, Any] = json.loads(host.check_output(f"cat {LIVE}/release.json"))
    return content


@pytest.fixture(scope="module")
def containers(host: Host, release: dict[str, Any]) -> list[dict[str, Any]]:
    """Inspect the containers of the live colour."""
    label = f"label=com.docker.compose.project=app-{release['colour']}"
    names = host.check_output(f"docker ps --all --quiet --filter {label}").split()
    assert names, "the live colour has no containers"
    content: list[dict[str, Any]] = json.loads(host.check_output(f"docker inspect {' '.join(names)}"))
    return content


def test_unit(host: Host, release: dict[str, Any]) -> None:
    """systemd runs the live colour, and starts it at boot."""
    unit = host.service(f"app@{release['colour']}.service")
    assert unit.is_running
    assert unit.is_enabled


@pytest.mark.control("HF-CONTAINER-03")
def test_healthy(containers: list[dict[str, Any]]) -> None:
    """Every container of the live release runs, has a check of its health, and passes it."""
    for container in containers:
        state = container["State"]
        assert state["Status"] == "running", container["Name"]
        assert state["Health"]["Status"] == "healthy", container["Name"]


def test_ready(host: Host, release: dict[str, Any]) -> None:
    """Every service that listens answers on its health path."""
    for service, path in release["health"].items():
        asked = f"curl --silent --max-time 5 --output /dev/null --write-out %{{http_code}} --unix-socket {LIVE}/sockets/{service}.sock"
        assert host.check_output(f"{asked} http://localhost{path}") == "200", service


def test_images_by_digest(host: Host, containers: list[dict[str, Any]], release: dict[str, Any]) -> None:
    """Containers run exactly the images that the release records, by digest."""
    wanted = set(release["images"].values())
    assert all("@sha256:" in image for image in wanted)
    for container in containers:
        assert container["Config"]["Image"] in wanted, container["Name"]


@pytest.mark.control("HF-CONTAINER-01")
def test_contained(containers: list[dict[str, Any]]) -> None:
    """A container has no root, no capability, no writable root, no new privileges, no device, no port and no namespace of the host."""
    for container in containers:
        config, limits = container["Config"], container["HostConfig"]
        assert int(config["User"].split(":")[0]) >= 1000, container["Name"]
        assert limits["ReadonlyRootfs"], container["Name"]
        assert limits["CapDrop"] == ["ALL"] and not limits["CapAdd"], container["Name"]
        assert "no-new-privileges:true" in limits["SecurityOpt"], container["Name"]
        assert not any("unconfined" in option for option in limits["SecurityOpt"]), container["Name"]
        assert not limits["Privileged"] and not limits["PortBindings"], container["Name"]
        assert not limits["Devices"] and not limits["DeviceRequests"], container["Name"]
        assert limits["NetworkMode"] not in ("host", "bridge", "default"), container["Name"]
        assert [limits[f"{kind}Mode"] for kind in ("Pid", "Ipc", "UTS", "Userns")] == ["", "private", "", ""], container["Name"]


@pytest.mark.control("HF-CONTAINER-04")
def test_mounts(containers: list[dict[str, Any]]) -> None:
    """A container sees nothing of the host but its sockets, its secrets and what the inventory mounts; it changes its sockets only."""
    for container in containers:
        for mount in container["Mounts"]:
            source = mount["Source"]
            assert mount["Type"] == "bind" and mount["Propagation"] == "rprivate", (container["Name"], source)
            assert source not in SENSITIVE and not source.endswith(ENGINE_SOCKETS), (container["Name"], source)
            assert not mount["RW"] or source.startswith("/srv/app/"), (container["Name"], source)


@pytest.mark.control("HF-CONTAINER-02")
def test_bounded(host: Host, containers: list[dict[str, Any]]) -> None:
    """A container has bounds for memory, processor, processes, open files and core dumps, and systemd alone decides when it starts."""
    controllers = host.check_output("cat /sys/fs/cgroup/cgroup.controllers").split()
    for container in containers:
        limits = container["HostConfig"]
        # The engine discards a bound that the kernel does not offer, as in test hosts that are containers themselves.
        assert ("memory" not in controllers) or limits["Memory"] > 0, container["Name"]
        assert ("cpu" not in controllers) or limits["CpuQuota"] > 0, container["Name"]
        assert ("pids" not in controllers) or 0 < limits["PidsLimit"] <= 4096, container["Name"]
        assert limits["CgroupParent"] == "" and limits["RestartPolicy"]["Name"] in ("no", ""), container["Name"]
        shown = host.check_output(f"cat /proc/{container['State']['Pid']}/limits")
        hard = dict(re.findall(r"^Max ([a-z ]+?) {2,}\S+ +(\S+) ", shown, re.MULTILINE))
        assert hard["core file size"] == "0" and int(hard["open files"]) <= 65536, container["Name"]


def test_secrets(host: Host, containers: list[dict[str, Any]]) -> None:
    """Secrets lie in memory only, are read by the containers' user alone, and show in no inspection."""
    folder = "/run/app/secrets"
    assert host.check_output(f"findmnt --noheadings --output FSTYPE --target {folder}") == "tmpfs"
    shown = json.dumps(containers)
    user = containers[0]["Config"]["User"].split(":")[0]
    for name in host.check_output(f"ls {folder}").split():
        secret = host.file(f"{folder}/{name}")
        assert secret.mode == 0o400 and str(secret.uid) == user, name
        assert secret.content_string and secret.content_string not in shown, name
    assert host.file("/etc/tmpfiles.d/app.conf").mode == 0o600


def test_frontend(host: Host, release: dict[str, Any]) -> None:
    """The static frontend of the release lies in its release folder, and nobody but root can change it."""
    if release["frontend_image"]:
        assert host.file(f"{LIVE}/frontend.image").content_string == release["frontend_image"]
        assert host.file(f"{LIVE}/frontend/index.html").size > 0
        assert host.check_output(f"find {LIVE}/frontend/ -not -user root -o -perm /022 -not -type l") == ""
