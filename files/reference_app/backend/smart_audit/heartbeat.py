"""How a container says that it is alive: two small files in its own /tmp, read by `smart-audit healthcheck`."""

import os
import socket
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

_DIRECTORY = Path(os.environ.get("TMPDIR") or "/tmp")
ROLE_FILE = _DIRECTORY / "smart-audit.role"
HEARTBEAT_FILE = _DIRECTORY / "smart-audit.heartbeat"
# The worker beats several times a second; calls to a dead bucket or database hold it up for at most half of this.
HEARTBEAT_LIMIT_SECONDS = 60
_TIMEOUT_SECONDS = 4


def announce(role: str) -> None:
    """Note which role (`serve` or `worker`) this container plays, so that one health check fits both.

    A worker may have `UDS_PATH` set and the backend's socket mounted; asking that socket would tell about the backend.
    """
    ROLE_FILE.write_text(role, encoding="utf-8")


def beat() -> None:
    """Note that the worker is going round."""
    HEARTBEAT_FILE.touch()


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def check(uds_path: str, ready: bool) -> str | None:
    """Return None if this container is alive (or, with `ready`, its backend can answer), else what is wrong in a sentence."""
    try:
        role = ROLE_FILE.read_text(encoding="utf-8")
    except OSError:
        return "neither `smart-audit serve` nor `smart-audit worker` has started here."
    if role == "worker":
        try:
            age = time.time() - HEARTBEAT_FILE.stat().st_mtime
        except OSError:
            return "the worker has not gone round once."
        return f"the worker's last sign of life is {age:.0f} s old." if age > HEARTBEAT_LIMIT_SECONDS else None
    path = "/readyz" if ready else "/healthz"
    connection = _UnixConnection(uds_path)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"{uds_path} does not answer: {error}."
    finally:
        connection.close()
    return None if status == 200 else f"{path} on {uds_path} answers with {status}."
