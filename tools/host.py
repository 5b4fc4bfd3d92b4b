"""Test hosts: a Debian 13 that systemd boots inside a container (shared/TESTBED.md has the measurements)."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path

from tools.shell import Failure, run, step

NETWORK = "holdfast"
HOST_IMAGE = "holdfast/host"
LABEL = "holdfast.test-host"
BOOT_SECONDS = 60
# python3-apt serves Ansible's apt module, procps and openssh-server the roles.
HOST_PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-apt",
    "sudo",
    "iproute2",
    "procps",
    "openssh-server",
    "ca-certificates",
)
# /sys has to be writable and cgroup v2 mounted before systemd starts; an engine on cgroup v1 gives neither.
BOOT = (
    "ssh-keygen -A >/dev/null; mount -o remount,rw /sys; umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec /sbin/init"
)
# Some kernels that carry test hosts take no modules, which would leave the host "degraded".
CUSTOMIZE = (
    'ln -sf /dev/null "$1/etc/systemd/system/systemd-modules-load.service"',
    'rm -f "$1"/etc/ssh/ssh_host_*',
)
LOCAL_CERTIFICATES = Path("/usr/local/share/ca-certificates")
# The engine refuses --privileged where it lacks CAP_SYS_RESOURCE itself, and only the command line knows `systempaths`.
RUN_OPTIONS = (
    "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE",
    "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined", "--security-opt", "apparmor=unconfined",
    "--cgroupns=private", "--tmpfs", "/run:exec", "--tmpfs", "/tmp:exec", "--shm-size", "1g",
    "--stop-signal", "SIGRTMIN+3",
)  # fmt: skip


def certificate_hooks(certificates: list[Path]) -> list[str]:
    """Return mmdebstrap's options that trust this machine's own authorities: one may stand between it and the registries."""
    if not certificates:
        return []
    return [
        f"--customize-hook=copy-in {' '.join(map(str, certificates))} /usr/local/share/ca-certificates",
        '--customize-hook=chroot "$1" update-ca-certificates',
    ]


def make_image(name: str, packages: tuple[str, ...], customize: tuple[str, ...] = (), unpack: tuple[Path, ...] = ()) -> str:
    """Make a Debian 13 image with mmdebstrap where it is missing.

    Args:
        name: repository part of the tag.
        packages: added to the minimal system.
        customize: shell lines that get the tree's path as $1.
        unpack: packages of ours whose files are put into it; a name stands for one content.

    Returns:
        The image's reference; its tag is a digest of the recipe, so that another recipe makes another image.
    """
    certificates = sorted(LOCAL_CERTIFICATES.glob("*.crt"))
    parts: list[object] = [packages, customize, [path.read_text() for path in certificates]]
    recipe = json.dumps(parts + [path.name for path in unpack])
    reference = f"{name}:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if run(["docker", "image", "inspect", reference], check=False).returncode == 0:
        return reference
    hooks = [f"--customize-hook={line}" for line in customize] + certificate_hooks(certificates)
    hooks += [f'--customize-hook=dpkg-deb --extract {path} "$1"' for path in unpack]
    with step(f"Make the image {reference}"), tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "image.tar"
        run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *hooks, "trixie", tree],
            root=True,
            env={"SOURCE_DATE_EPOCH": "0"},
        )
        run(["docker", "import", tree, reference])
        run(["rm", "-f", tree], root=True)
    return reference


def make_host_image() -> str:
    """Make the image of a bare host, and return its reference."""
    return make_image(HOST_IMAGE, HOST_PACKAGES, CUSTOMIZE)


def ensure_network() -> None:
    """Make the network on which test hosts reach each other by name."""
    if run(["docker", "network", "inspect", NETWORK], check=False).returncode:
        # Two runs side by side may both try; the loser finds the network there.
        run(["docker", "network", "create", NETWORK], check=False)


def exists(name: str) -> bool:
    """Say whether a container of this name exists, running or not."""
    return run(["docker", "container", "inspect", name], check=False).returncode == 0


def running(name: str) -> bool:
    """Say whether a container of this name runs."""
    found = run(["docker", "container", "inspect", "--format", "{{.State.Running}}", name], check=False)
    return found.returncode == 0 and found.stdout.strip() == "true"


def address(name: str) -> str:
    """Return a host's address on the network of test hosts."""
    template = f'{{{{(index .NetworkSettings.Networks "{NETWORK}").IPAddress}}}}'
    return run(["docker", "inspect", "--format", template, name]).stdout.strip()


def wait_booted(name: str) -> None:
    """Wait until systemd says that the host is up.

    Raises:
        Failure: it was not up in time, or a unit failed.
    """
    state = ""
    for _ in range(BOOT_SECONDS * 2):
        state = run(["docker", "exec", name, "systemctl", "is-system-running"], timeout_seconds=20, check=False).stdout.strip()
        if state == "running":
            return
        if state == "degraded":
            failed = run(["docker", "exec", name, "systemctl", "--failed", "--plain", "--no-legend"], check=False).stdout
            raise Failure(
                f"{name} booted with failed units:\n{failed}\n"
                f"`docker exec {name} journalctl -b -p warning` shows why; a demo begins anew with `make demo-down demo`."
            )
        time.sleep(0.5)
    raise Failure(f"{name} was not up after {BOOT_SECONDS} s; systemd says {state or 'nothing'}.")


def up(name: str, *, publish: tuple[str, ...] = (), volumes: tuple[str, ...] = ()) -> bool:
    """Bring a host up; one that is there is started, not replaced.

    Args:
        name: container and host name.
        publish: port mappings in the engine's notation.
        volumes: mounts in the engine's notation.

    Returns:
        Whether anything had to be done.
    """
    if running(name):
        return False
    if exists(name):
        run(["docker", "start", name])
    else:
        image = make_host_image()
        ensure_network()
        ports = [word for mapping in publish for word in ("--publish", mapping)]
        mounts = [word for mount in volumes for word in ("--volume", mount)]
        run(
            ["docker", "run", "--detach", "--name", name, "--hostname", name, "--network", NETWORK, "--label", LABEL,
             *RUN_OPTIONS, "--volume", "/var/lib/docker", *ports, *mounts, "--entrypoint", "/bin/bash", image, "-c", BOOT]
        )  # fmt: skip
    wait_booted(name)
    return True


def down(name: str) -> bool:
    """Remove a host with all that it stored, and say whether it was there."""
    if not exists(name):
        return False
    run(["docker", "rm", "--force", "--volumes", name], timeout_seconds=120)
    return True


def remove_images_and_network() -> None:
    """Remove every image that the tools made, and the network; while other test hosts are there, those keep what they stand on."""
    others = bool(run(["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}"]).stdout.strip())
    listed = run(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).stdout.split()
    ours = [name for name in listed if name.startswith("holdfast/") or "/smart-audit/" in name]
    if gone := [name for name in ours if not (others and name.startswith(f"{HOST_IMAGE}:"))]:
        run(["docker", "image", "rm", "--force", *gone])
    run(["docker", "image", "prune", "--force"], check=False)
    if not others:
        run(["docker", "network", "rm", NETWORK], check=False)


def reboot(name: str) -> None:
    """Restart a host as a power button would: systemd stops everything, and boots again."""
    run(["docker", "restart", "--time", "90", name], timeout_seconds=180)
    wait_booted(name)
