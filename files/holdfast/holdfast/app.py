"""`holdfast app run COLOUR`: bring one colour of the application up, and keep it up, for systemd.

systemd owns the application's start, stop, order and boot, so containers have no restart policy of their own: Docker would start
them at boot before the databases, and would not bring back one that was killed by hand. This program is the main process of
app@COLOUR.service; it starts the compose project, tells systemd when every service is healthy, then listens to Docker's events and
brings back what dies or turns unhealthy.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.failure import Failure

BASE = Path("/srv/app")
COLOURS = ("blue", "green")
START_SECONDS = 180
STOP_SECONDS = 60
# A container that dies again and again is brought back after 1, 2, 4 … seconds, at most this many.
LONGEST_PAUSE_SECONDS = 30
# Without an event the state is compared all the same this often: an event can be lost while Docker restarts.
SWEEP_SECONDS = 60

log = logging.getLogger("holdfast.app")


@dataclass(frozen=True)
class Release:
    """What /srv/app/COLOUR/release.json says.

    Attributes:
        colour: blue or green.
        images: name → reference by digest.
        frontend_image: the image that carries the static files; empty where there are none.
        frontend_path: folder of the static files in it.
        migration: name of the compose service that migrates the database; empty where there is none.
        health: compose service → path that answers 200 on its socket when it is ready.
    """

    colour: str
    images: dict[str, str]
    frontend_image: str
    frontend_path: str
    migration: str
    health: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, colour: str) -> Release:
        """Read the release of a colour.

        Raises:
            Failure: there is none, or it can't be read.
        """
        path = BASE / colour / "release.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**content)
        except FileNotFoundError as error:
            raise Failure(f"{path} is missing: deploy a release to {colour} first.") from error
        except (ValueError, TypeError) as error:
            raise Failure(f"{path} can't be read ({error}): run the playbook again.") from error


def notify(state: str) -> None:
    """Tell systemd a state (sd_notify(3)); does nothing where systemd did not ask."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())


def _docker(*words: str, timeout_seconds: float = 120) -> str:
    try:
        done = subprocess.run(
            ["docker", *words], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_seconds
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"`docker {' '.join(words)}` had not ended after {timeout_seconds:.0f} s.") from error
    if done.returncode != 0:
        raise Failure(f"`docker {' '.join(words)}` failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


class Project:
    """The compose project of one colour."""

    def __init__(self, colour: str) -> None:
        """Take the project of a colour."""
        self.colour = colour
        self.name = f"app-{colour}"
        self.folder = BASE / colour

    def compose(self, *words: str, timeout_seconds: float = 120) -> str:
        """Run `docker compose` on the project, and return what it printed."""
        return _docker(
            "compose", "--project-name", self.name, "--file", str(self.folder / "compose.yml"), *words, timeout_seconds=timeout_seconds
        )  # fmt: skip

    def up(self) -> None:
        """Start what does not run, and wait until all of it is healthy."""
        self.compose(
            "up", "--detach", "--wait", "--wait-timeout", str(START_SECONDS), "--remove-orphans", timeout_seconds=START_SECONDS + 60
        )  # fmt: skip

    def stop(self) -> None:
        """Stop all containers, each with its own grace period, and remove them."""
        self.compose("down", "--timeout", str(STOP_SECONDS), timeout_seconds=STOP_SECONDS + 60)

    def containers(self) -> list[dict[str, Any]]:
        """List the project's containers with State and Health."""
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def cure(self) -> list[str]:
        """Restart what runs and is unhealthy, and return the names."""
        sick = [item["Name"] for item in self.containers() if item["State"] == "running" and item.get("Health") == "unhealthy"]
        for name in sick:
            _docker("restart", "--time", "10", name)
        return sick

    def mend(self) -> list[str]:
        """Restart what is unhealthy, start what does not run, and return the names of what was mended."""
        sick = self.cure()
        found = self.containers()
        gone = [item["Name"] for item in found if item["State"] not in ("running", "restarting")]
        if gone or not found:
            self.compose("up", "--detach", "--remove-orphans")
        return sick + gone + ([] if found else [self.name])


def place_frontend(release: Release) -> None:
    """Take the static files out of their image into /srv/app/COLOUR/frontend, unless they lie there already."""
    folder = BASE / release.colour
    mark = folder / "frontend.image"
    if not release.frontend_image or (mark.exists() and mark.read_text() == release.frontend_image and (folder / "frontend").is_dir()):
        return
    fresh = folder / "frontend.new"
    shutil.rmtree(fresh, ignore_errors=True)
    container = _docker("create", release.frontend_image, "none", timeout_seconds=600).strip()
    try:
        _docker("cp", f"{container}:{release.frontend_path}", str(fresh))
    finally:
        _docker("rm", container)
    for path in (fresh, *fresh.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    mark.unlink(missing_ok=True)
    shutil.rmtree(folder / "frontend", ignore_errors=True)
    fresh.rename(folder / "frontend")
    mark.write_text(release.frontend_image)
    log.info("placed the frontend of %s", release.frontend_image)


def ask(path: Path, route: str, timeout_seconds: float = 5) -> int:
    """Ask a service on its unix socket, and return the HTTP status."""
    connection = http.client.HTTPConnection("localhost", timeout=timeout_seconds)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout_seconds)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", route)
        return connection.getresponse().status
    finally:
        connection.close()


def wait_healthy(release: Release) -> None:
    """Wait until every listening service answers 200 on its health path.

    Raises:
        Failure: one did not within START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    for service, route in release.health.items():
        path = BASE / release.colour / "sockets" / f"{service}.sock"
        answer: object = "nothing"
        while answer != 200:
            try:
                answer = ask(path, route)
            except OSError as error:
                answer = error
            if answer != 200 and time.monotonic() > deadline:
                raise Failure(f"{service} did not get ready: {route} on {path} says {answer}; see `journalctl CONTAINER_TAG={service}`.")
            if answer != 200:
                time.sleep(0.3)


def _events(name: str, wake: threading.Event, stopping: threading.Event) -> None:
    """Wake the main thread whenever a container of the project dies or turns unhealthy; outlive restarts of Docker."""
    since = time.time()
    while not stopping.is_set():
        # What happens while nobody listens is told later.
        with subprocess.Popen(
            ["docker", "events", "--since", f"{since:.3f}", "--filter", f"label=com.docker.compose.project={name}",
             "--filter", "event=die", "--filter", "event=oom", "--filter", "event=health_status", "--filter", "event=destroy",
             "--format", "{{.Status}}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        ) as stream:  # fmt: skip
            for line in stream.stdout or ():
                if line.strip() != "health_status: healthy":
                    wake.set()
        since = time.time()
        wake.set()
        stopping.wait(2)


def run(colour: str) -> None:
    """Bring a colour up, tell systemd, and keep it up until SIGTERM.

    Raises:
        Failure: it did not come up; systemd tries again.
    """
    stopping, wake = threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    release = Release.read(colour)
    project = Project(colour)
    place_frontend(release)
    if release.migration:
        project.compose("--profile", "migration", "run", "--rm", "--no-TTY", release.migration, timeout_seconds=1800)
    if not stopping.is_set():
        project.cure()  # found so when this program itself was killed; waiting for it would fail at once
        project.up()
        wait_healthy(release)
        notify("READY=1")
        log.info("%s is up: %s", project.name, ", ".join(sorted(release.images.values())))
    threading.Thread(target=_events, args=(project.name, wake, stopping), daemon=True).start()
    pause = 1.0
    while not stopping.is_set():
        woken = wake.wait(SWEEP_SECONDS)
        wake.clear()
        if stopping.is_set():
            break
        try:
            mended = project.mend()
        except Failure as failure:
            log.warning("could not look after %s: %s", project.name, failure)
            mended = [project.name]
        if mended:
            log.warning("brought back %s", ", ".join(mended))
            stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            wake.set()  # look again: what was started may have died meanwhile
        elif not woken:
            pause = 1.0
    notify("STOPPING=1")
    project.stop()


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `app` to the command line."""
    parser = commands.add_parser("app", help="the application's containers")
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="bring one colour up and keep it up (the main process of app@COLOUR.service)")
    action.add_argument("colour", choices=COLOURS)
    action.set_defaults(call=lambda given: run(given.colour))
