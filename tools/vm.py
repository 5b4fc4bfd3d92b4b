"""A real virtual machine: a Debian 13 disk of its own kernel under QEMU, reached over ssh as an unprivileged user who may sudo."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tools import admin, bucket, engine, host, playbook, registry
from tools.shell import CACHE, ROOT, Failure, run, say, step

NAME = "holdfast-test-vm"
FOLDER = CACHE / "vm"
STATE, CONSOLE, RUNNING_DISK = FOLDER / "machine.json", FOLDER / "console.log", FOLDER / "running.qcow2"
INVENTORY, SSH_CONFIG = FOLDER / "inventory", FOLDER / "ssh_config"
# A socket's path may have 107 characters: this one is relative to the repository.
MONITOR = FOLDER.relative_to(ROOT) / "monitor"
QEMU = "qemu-system-x86_64"
# The emulation of older ones panics the guest's kernel.
QEMU_MAJOR = 10
QEMU_PACKAGES = ("qemu-system-x86", "qemu-utils", "seabios", "ipxe-qemu")
BACKPORTS = Path("/etc/apt/sources.list.d/holdfast-backports.sources")
DISK_SIZE = "16G"
MEMORY_MB = 6144
CORES = 2
PACKAGES = (
    *host.HOST_PACKAGES,
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "systemd-resolved",
    "udev",
    "libpam-systemd",
    "apparmor",
)
# The tap interface here, and what the machine does with the card at its other end: bring it up once it is found, and let it go.
CABLE = "holdfast-vm"
CABLE_UP = """
until ip link set eth1 up; do sleep 1; done
until ip -6 address show dev eth1 scope link -tentative | grep -q fe80; do sleep 1; done
"""
CABLE_GONE = "while [ -e /sys/class/net/eth1 ]; do sleep 1; done"
CABLE_SECONDS = 120
NETWORK = "[Match]\nName=eth0\n[Network]\nDHCP=yes\n"
OPEN_PORTS = (22, 80, 443)
EMULATION = ("-accel", "tcg,thread=multi", "-cpu", "Haswell-noTSX")
COMMAND_LINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0"
# An emulated processor speculates on nothing, and pays for each defence with every system call.
EMULATED_COMMAND_LINE = f"{COMMAND_LINE} mitigations=off"
KVM_SECONDS = 10
BOOT_SECONDS = 400
# An emulated processor that is busy lets half a minute pass before sshd says who it is.
CONNECT_SECONDS = 90
END_SECONDS = 400
# The machine is new each time, and reached over loopback only.
SSH_TEMPLATE = """Host {name}
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile "{key}"
  IdentitiesOnly yes
  BatchMode yes
  ConnectTimeout {seconds}
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ControlPath {folder}/ssh-%C
"""


def install() -> None:
    """Install QEMU where it is missing or too old; on a Debian whose own is, from its backports."""
    if _qemu_major() >= QEMU_MAJOR:
        return
    if not shutil.which("apt-get"):
        raise Failure(f"Install QEMU {QEMU_MAJOR} or newer: this machine has no apt-get, so it can't be done for you.")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with step("Install QEMU"):
        run(["apt-get", "update", "-qq"], root=True, env=quiet)
        release: list[str] = []
        if _candidate_major() < QEMU_MAJOR and (source := _backports()):
            run(["tee", BACKPORTS], root=True, stdin=source[1])
            run(["apt-get", "update", "-qq"], root=True, env=quiet)
            release = ["--target-release", source[0]]
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *release, *QEMU_PACKAGES], root=True, env=quiet)


def _qemu_major() -> int:
    if not shutil.which(QEMU) or not shutil.which("qemu-img"):
        return 0
    found = re.search(r"version (\d+)", run([QEMU, "--version"]).stdout)
    return int(found[1]) if found else 0


def _candidate_major() -> int:
    found = re.search(r"Candidate: (?:\d+:)?(\d+)", run(["apt-cache", "policy", QEMU_PACKAGES[0]]).stdout)
    return int(found[1]) if found else 0


def _backports() -> tuple[str, str] | None:
    """Return the suite of Debian's backports and its source, on the mirror that this machine uses already."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    if release.get("ID") != "debian":
        return None
    suite = release["VERSION_CODENAME"]
    listed = run(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]).stdout.splitlines()
    mirrors = [line.split()[1] for line in listed if line.split()[0] == suite]
    if not mirrors:
        raise Failure(f"No source of this machine has {suite}: add Debian's own, or install QEMU {QEMU_MAJOR} by hand.")
    name = f"{suite}-backports"
    text = f"Types: deb\nURIs: {mirrors[0]}\nSuites: {name}\nComponents: main\nSigned-By: {engine.KEYRING}\n"
    return name, text


@dataclass(frozen=True)
class Disk:
    """A disk that was made from a recipe, with the kernel that boots it."""

    folder: Path

    @property
    def image(self) -> Path:
        """The file system, which nothing writes to: a machine has an overlay of it."""
        return self.folder / "disk.img"

    @property
    def kept(self) -> Path:
        """What a machine wrote onto it until it was kept: where later ones begin."""
        return self.folder / "kept.qcow2"

    @property
    def kept_bucket(self) -> Path:
        """What its bucket held then: a disk and a bucket of different times contradict each other."""
        return self.folder / "bucket.tar"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its first file system."""
        return self.folder / "initrd.img"


def make_disk() -> Disk:
    """Make the disk of a bare Debian 13 where it is missing; its folder's name is a digest of the recipe."""
    admin.ensure()
    key = admin.KEY.with_suffix(".pub").read_text()
    certificates = sorted(host.LOCAL_CERTIFICATES.glob("*.crt"))
    # What a provider's image has: a user with a key, who may become root without a password.
    lines = (
        f'echo {NAME} > "$1/etc/hostname"; printf "127.0.0.1 localhost\\n127.0.1.1 {NAME}\\n" > "$1/etc/hosts"',
        'echo "LABEL=root / ext4 errors=remount-ro 0 1" > "$1/etc/fstab"',
        f'printf "{NETWORK}" > "$1/etc/systemd/network/80-dhcp.network"; chroot "$1" systemctl enable systemd-networkd',
        f'chroot "$1" useradd --create-home --shell /bin/bash {admin.NAME}',
        f'install -d -m 0700 "$1/home/{admin.NAME}/.ssh"; echo "{key.strip()}" > "$1/home/{admin.NAME}/.ssh/authorized_keys"',
        f'chroot "$1" chown -R {admin.NAME}: /home/{admin.NAME}/.ssh',
        f'umask 227; echo "{admin.NAME} ALL=(ALL) NOPASSWD: ALL" > "$1/etc/sudoers.d/provider"',
    )
    recipe = json.dumps([PACKAGES, lines, DISK_SIZE, [path.read_text() for path in certificates]])
    disk = Disk(FOLDER / hashlib.sha256(recipe.encode()).hexdigest()[:12])
    if disk.image.exists():
        return disk
    hooks = [f"--customize-hook={line}" for line in lines] + host.certificate_hooks(certificates)
    disk.folder.mkdir(parents=True, exist_ok=True)
    with step("Make a Debian 13 disk"), tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        tree, image = Path(folder) / "tree", Path(folder) / "disk.img"
        try:
            run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", *hooks, "trixie", tree], root=True)
            run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, image, DISK_SIZE], root=True)
            run(["cp", "--dereference", tree / "vmlinuz", disk.kernel], root=True)
            run(["cp", "--dereference", tree / "initrd.img", disk.initrd], root=True)
            run(["chown", f"{os.getuid()}:{os.getgid()}", image, disk.kernel, disk.initrd], root=True)
        finally:
            run(["rm", "-rf", tree], root=True)
        image.rename(disk.image)
    return disk


@functools.cache
def accelerator(disk: Disk) -> tuple[str, ...]:
    """Return QEMU's options for KVM where it boots this very kernel until it misses its disk, and else for emulation.

    A device that is there says little: nested inside another hypervisor it may be unable to run an ordinary kernel.
    """
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        words: list[str | Path] = [
            QEMU, "-accel", "kvm", "-cpu", "max", "-m", "512", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", disk.kernel, "-append", "console=ttyS0 panic=-1",
        ]  # fmt: skip
        try:
            done = run(words, timeout_seconds=KVM_SECONDS, check=False)
            if done.returncode == 0 and "Unable to mount root fs" in done.stdout:
                say("KVM works here: the machine runs on it.")
                return ("-accel", "kvm", "-cpu", "max")
        except Failure:
            pass
    say("KVM does not work here: the machine is emulated.")
    return EMULATION


@dataclass
class Machine:
    """A virtual machine: the disk that it was made from, its ports on loopback, and the process that carries it while it runs."""

    folder: str
    ports: dict[int, int]
    pid: int = 0

    @property
    def disk(self) -> Disk:
        """The disk that it was made from."""
        return Disk(Path(self.folder))

    def power_on(self) -> None:
        """Start the machine from the disk that it had; where it has none, from the one that was kept, or else from a bare one."""
        disk = self.disk
        if not RUNNING_DISK.exists():
            base, kind = (disk.kept, "qcow2") if disk.kept.exists() else (disk.image, "raw")
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", kind, RUNNING_DISK])
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{outside}-:{inside}" for inside, outside in self.ports.items())
        # With cache=writeback a flush of the guest is a flush of the file; what the guest has not written is gone with QEMU's process.
        options = accelerator(disk)
        words: list[str | Path] = [
            QEMU, *options, "-m", str(MEMORY_MB), "-smp", str(CORES), "-display", "none",
            "-monitor", f"unix:{MONITOR},server=on,wait=off",
            "-chardev", f"file,id=console,path={CONSOLE},append=on", "-serial", "chardev:console",
            "-kernel", disk.kernel, "-initrd", disk.initrd, "-append", EMULATED_COMMAND_LINE if options == EMULATION else COMMAND_LINE,
            "-drive", f"file={RUNNING_DISK},if=virtio,format=qcow2,cache=writeback,discard=unmap",
            "-netdev", f"user,id=net{forwards}", "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci",
        ]  # fmt: skip
        with CONSOLE.open("ab") as log:
            process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.pid = process.pid
        STATE.write_text(json.dumps(asdict(self)))
        SSH_CONFIG.write_text(
            SSH_TEMPLATE.format(
                name=NAME, port=self.ports[22], user=admin.NAME, key=admin.KEY, folder=FOLDER.relative_to(ROOT), seconds=CONNECT_SECONDS
            )
        )

    def power_off(self) -> None:
        """Shut the machine down as a person does, so that all of it is on its disk.

        Raises:
            Failure: its process did not end.
        """
        self.ssh("systemctl poweroff", check=False)
        self._wait_end()

    def cut_power(self) -> None:
        """End the machine between two instructions: nothing in its memory reaches the disk.

        Raises:
            Failure: its process did not end.
        """
        if self.runs():
            os.kill(self.pid, signal.SIGKILL)
        self._wait_end()

    def _wait_end(self) -> None:
        deadline = time.monotonic() + END_SECONDS
        while self.runs():
            if time.monotonic() > deadline:
                raise Failure(f"The process {self.pid} of the machine did not end; see {CONSOLE}.")
            time.sleep(0.1)

    def runs(self) -> bool:
        """Say whether its process is there, and is not another one that has its number by now."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            return Path(f"/proc/{self.pid}/comm").read_text().startswith("qemu-system") and state != "Z"
        except OSError:
            return False

    def forward(self, port: int) -> int:
        """Return the port on loopback that leads to one of the machine's; it is there until the machine is switched off."""
        if port not in self.ports:
            outside = _free_port()
            self._tell(f"hostfwd_add tcp:127.0.0.1:{outside}-:{port}")
            self.ports[port] = outside
        return self.ports[port]

    def _tell(self, command: str) -> None:
        """Have QEMU do something.

        Raises:
            Failure: it refused.
        """
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(os.path.relpath(ROOT / MONITOR))
            # It greets with a prompt, and answers each command with its echo, what it has to say, and another prompt.
            _read_prompt(monitor)
            monitor.sendall(f"{command}\n".encode())
            said = _read_prompt(monitor).splitlines()[1:-1]
        if said:
            raise Failure(f"QEMU refused `{command}`: {' '.join(said)}")

    @contextmanager
    def cable(self) -> Iterator[str]:
        """Plug a cable into a second network card, and yield the card's address at its end here; QEMU's own network forwards no IPv6.

        Raises:
            Failure: this machine makes no such interface, or the card did not come up.
        """
        # The address follows from the card's (RFC 4291, appendix A).
        address, card = f"fe80::5054:ff:fe48:4601%{CABLE}", "52:54:00:48:46:01"
        run(["ip", "tuntap", "add", "dev", CABLE, "mode", "tap", "user", str(os.geteuid())], root=True)
        run(["ip", "link", "set", CABLE, "up"], root=True)
        self._tell(f"netdev_add tap,id=cable,ifname={CABLE},script=no,downscript=no")
        self._tell(f"device_add virtio-net-pci,netdev=cable,id=card,mac={card}")
        try:
            self.ssh(CABLE_UP, timeout_seconds=CABLE_SECONDS)
            yield address
        finally:
            # QEMU ends when a card that is still there loses its interface, so each end goes after the one before.
            self._tell("device_del card")
            self.ssh(CABLE_GONE, timeout_seconds=CABLE_SECONDS)
            self._tell("netdev_del cable")
            run(["ip", "link", "delete", CABLE], root=True)

    def ssh_words(self) -> list[str | Path]:
        """Return the beginning of a command line that speaks to the machine over a connection of its own."""
        return ["ssh", "-F", SSH_CONFIG, "-o", "ControlPath=none", NAME]

    def ssh(self, script: str, *, timeout_seconds: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run lines of shell as root."""
        words = [*self.ssh_words(), "sudo", "--non-interactive", "sh", "-s"]
        return run(words, stdin=script, timeout_seconds=timeout_seconds, check=check)

    def boot_id(self) -> str:
        """Return the identity of the boot that answers, or nothing."""
        try:
            done = run([*self.ssh_words(), "cat", "/proc/sys/kernel/random/boot_id"], timeout_seconds=60, check=False)
        except Failure:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def wait(self, *, not_boot: str = "") -> None:
        """Wait until the machine lets its admin in.

        Args:
            not_boot: identity of a boot that is on its way down, and does not count.

        Raises:
            Failure: it did not in time, or its process ended.
        """
        deadline = time.monotonic() + BOOT_SECONDS
        while self.boot_id() in ("", not_boot):
            if not self.runs():
                raise Failure(f"The machine ended while it booted; see {CONSOLE}.")
            if time.monotonic() > deadline:
                raise Failure(f"The machine let nobody in within {BOOT_SECONDS} s; see {CONSOLE}.")
            # The firewall lets one address open a connection every two seconds.
            time.sleep(2)


def _read_prompt(monitor: socket.socket) -> str:
    said = b""
    while not said.endswith(b"(qemu) "):
        said += monitor.recv(4096)
    return said.decode(errors="replace")


def name_neighbours(machine: Machine) -> None:
    """Tell the machine the addresses of the containers that it knows by name; the engine's own names end at its network."""
    lines = "\n".join(f"{host.address(name)} {name}" for name in (registry.NAME, bucket.name_of(NAME)))
    machine.ssh(f"grep ^127 /etc/hosts > /run/hosts; echo '{lines}' >> /run/hosts; cat /run/hosts > /etc/hosts")


def running() -> Machine | None:
    """Return the machine that runs, if one does."""
    if not STATE.exists():
        return None
    found = json.loads(STATE.read_text())
    machine = Machine(found["folder"], {int(inside): outside for inside, outside in found["ports"].items()}, found["pid"])
    return machine if machine.runs() else None


def up() -> bool:
    """Bring the machine up; one that has a disk is started from it.

    Returns:
        Whether anything had to be done.
    """
    if running():
        return False
    engine.ensure()
    install()
    registry.ensure()
    bucket.up(NAME)
    FOLDER.mkdir(parents=True, exist_ok=True)
    disk = make_disk()
    if disk.kept.exists() and not RUNNING_DISK.exists():
        bucket.load(NAME, disk.kept_bucket)
    accelerator(disk)
    machine = Machine(str(disk.folder), {port: _free_port() for port in OPEN_PORTS})
    begun = time.monotonic()
    machine.power_on()
    machine.wait()
    say(f"The machine let its admin in {time.monotonic() - begun:.0f} s after power-on: {' '.join(map(str, machine.ssh_words()))}")
    ansible = {"ansible_become": True, "ansible_ssh_common_args": f"-F {SSH_CONFIG}", "ansible_timeout": CONNECT_SECONDS}
    playbook.inventory(INVENTORY, {NAME: ansible})
    name_neighbours(machine)
    return True


def keep() -> None:
    """Switch the machine off, and begin from its disk and its bucket from now on, until it is forgotten."""
    if machine := running():
        machine.power_off()
        bucket.save(NAME, machine.disk.kept_bucket)
        kept = machine.disk.kept
        if kept.exists():
            run(["qemu-img", "commit", "-q", RUNNING_DISK])
            RUNNING_DISK.unlink()
        else:
            RUNNING_DISK.rename(kept)


def down() -> bool:
    """End the machine, and say whether there was one. The next one begins from the disk that was kept, or from a bare one."""
    there = RUNNING_DISK.exists()
    if machine := running():
        machine.cut_power()
    for path in (STATE, CONSOLE, RUNNING_DISK):
        path.unlink(missing_ok=True)
    return there


def forget() -> None:
    """End the machine, and forget what was kept of it, on its disk and in its bucket."""
    down()
    bucket.down(NAME)
    for path in [*FOLDER.glob("*/kept.qcow2"), *FOLDER.glob("*/bucket.tar")]:
        path.unlink()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
