"""A server of our own on a data directory: it rolls forward, and nobody but us reaches it."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from holdfast import postgres
from holdfast.failure import Failure
from holdfast.recovery import BIN, UNREADABLE

RECOVERY_SECONDS = 24 * 3600
STOP_SECONDS = 300
PAUSE_SECONDS = 0.2
# What it says to us while we ask whether it is ready.
EARLY = re.compile(r"not yet accepting|not accepting connections|starting up|shutting down|Hot standby mode|Consistent recovery state")
SERIOUS = re.compile(r"\b(FATAL|PANIC|ERROR):\s+(.*)")


class Server:
    """One server, from start to stop.

    Attributes:
        socket: folder of its socket, which only the system user postgres may enter.
    """

    def __init__(self, data: Path, folder: Path, settings: Mapping[str, str]) -> None:
        """Take a data directory, a folder for the socket and the log, and settings that win over all others."""
        self.socket = folder
        self._log = folder / "log"
        own = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "port": "5432",
            "log_destination": "stderr",
            "logging_collector": "off",
            "log_line_prefix": "",
            # We read it.
            "lc_messages": "C",
            # What the old host could hold must not keep it from rolling forward.
            "hot_standby": "off",
        }
        options = [word for name, value in {**own, **settings}.items() for word in ("-c", f"{name}={value}")]
        self._words = [str(BIN / "postgres"), "-D", str(data), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.socket.mkdir(mode=0o700, parents=True, exist_ok=True)
        postgres.give(self.socket)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd="/", umask=0o077, **postgres.identity()
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(STOP_SECONDS)

    def wait_writable(self) -> None:
        """Wait until it has rolled forward as far as it was told, and is a server like any other.

        Raises:
            Failure: it ended before.
        """
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise Failure(self._reason())
            try:
                if postgres.psql("SELECT pg_is_in_recovery()", socket=str(self.socket)) == "f":
                    return
            except Failure:
                pass
            time.sleep(PAUSE_SECONDS)
        raise Failure(f"The database had not rolled forward after {RECOVERY_SECONDS} s.")

    def ask(self, sql: str, database: str = "postgres") -> str:
        """Ask it as its superuser."""
        return postgres.psql(sql, database=database, socket=str(self.socket), timeout_seconds=RECOVERY_SECONDS)

    def said(self) -> str:
        """Return its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _reason(self) -> str:
        """Say why it ended, and the way out where that is known."""
        log = self.said()
        lines = [found[2] for line in log.splitlines() if not EARLY.search(line) and (found := SERIOUS.search(line))]
        why = lines[-1].strip() if lines else "it gave no reason"
        if "recovery ended before configured recovery target was reached" in log:
            return (
                "The archive ends before the target, or has a gap there: what was written later, if anything, is in the database of before "
                "only. After a restore `holdfast restore undo` brings that back; get archiving going (`holdfast archive` says why it "
                "stands still), then ask for the target again."
            )
        if f"exit code {UNREADABLE}" in why:
            return f"A repository can't be read, so nobody knows where the archive ends ({why}): `holdfast archive` says why."
        return f"The server ended while it rolled forward: {why}."
