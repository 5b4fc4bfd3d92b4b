"""The container engine that carries test hosts: found, or installed and started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tools import packages
from tools.shell import CACHE, Failure, run, step

PID_FILE = CACHE / "dockerd.pid"
LOG_FILE = CACHE / "dockerd.log"
SOCKET = Path("/var/run/docker.sock")
ENGINE_PID_FILE = Path("/var/run/docker.pid")
SYSTEM_PATH = ":/usr/sbin:/sbin"
PACKAGES = {"ssh-keygen": "openssh-client", "docker": "docker.io", "dockerd": "docker.io", "mmdebstrap": "mmdebstrap", "setfacl": "acl"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
START_SECONDS = 60


def answers() -> bool:
    """Say whether an engine answers this user."""
    try:
        return run(["docker", "version", "--format", "{{.Server.Version}}"], timeout_seconds=20, check=False).returncode == 0
    except Failure:
        return False


def _installed(program: str) -> bool:
    return shutil.which(program, path=os.environ.get("PATH", "") + SYSTEM_PATH) is not None


def install() -> None:
    """Install the engine and the image builder from the distribution where they are missing."""
    missing = {package for program, package in PACKAGES.items() if not _installed(program)}
    if answers():
        missing.discard("docker.io")
    if not KEYRING.exists():
        missing.add("debian-archive-keyring")
    if "docker.io" in missing:
        missing.add("iptables")
    if missing:
        packages.install(*sorted(missing))


def start() -> None:
    """Make an engine answer: the service where there is an init system, else a daemon of our own."""
    if answers():
        return
    with step("Start the container engine"):
        if Path("/run/systemd/system").is_dir():
            run(["systemctl", "start", "docker"], root=True, timeout_seconds=120)
        elif not SOCKET.exists() or run(["docker", "version"], root=True, timeout_seconds=20, check=False).returncode:
            CACHE.mkdir(exist_ok=True)
            _forget_dead_daemon()
            words = [] if os.geteuid() == 0 else ["sudo"]
            with LOG_FILE.open("ab") as log:
                daemon = subprocess.Popen([*words, "dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            PID_FILE.write_text(f"{daemon.pid}\n")
        for _ in range(START_SECONDS):
            if os.geteuid() != 0 and SOCKET.exists():
                run(["setfacl", "-m", f"u:{os.getuid()}:rw", SOCKET], root=True, check=False)
            if answers():
                return
            time.sleep(1)
        raise Failure(f"The container engine did not answer within {START_SECONDS} s; see {LOG_FILE}.")


def _forget_dead_daemon() -> None:
    """Remove what a daemon that was killed left behind: it would not start where another process has its number by now."""
    if not ENGINE_PID_FILE.exists():
        return
    comm = Path(f"/proc/{ENGINE_PID_FILE.read_text().strip()}/comm")
    if not (comm.exists() and comm.read_text().strip() == "dockerd"):
        run(["rm", "--force", ENGINE_PID_FILE], root=True)


def ensure() -> None:
    """Install and start what is missing."""
    install()
    start()


def woken() -> bool:
    """Start an engine that is installed and stands still, and say whether one answers now."""
    if not answers() and _installed("dockerd"):
        start()
    return answers()


def stop() -> None:
    """End the daemon that `start` left running; an engine that was there before stays."""
    if not PID_FILE.exists():
        return
    pid = int(PID_FILE.read_text())
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        name = ""
    if name in ("dockerd", "sudo"):
        run(["kill", f"-{signal.SIGTERM.value}", str(pid)], root=True, check=False)
        for _ in range(30):
            if not Path(f"/proc/{pid}").exists():
                break
            time.sleep(1)
    PID_FILE.unlink()
