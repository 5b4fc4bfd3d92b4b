"""A client that commits numbered rows one after the other, and notes off the host each that the server acknowledged."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.shell import Failure, run

DATABASE = "smart_audit"
PSQL = ("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1", "--dbname", DATABASE)
TABLE = "DROP TABLE IF EXISTS written; CREATE TABLE written (id int PRIMARY KEY, body text);"
# Two kilobytes that no compression makes less of.
ROW = "INSERT INTO written SELECT {}, string_agg(md5(random()::text), '') FROM generate_series(1, 64) RETURNING id;\n"
PAUSE_SECONDS = 0.01
AGAIN_SECONDS = 0.3
PATIENCE_SECONDS = 120.0
# Whatever happens to the controller, nothing writes for ever.
SESSION_SECONDS = "900"


class Writer:
    """About a hundred rows a second, from entering to leaving; where the server or its host is gone, it tries again with the next row."""

    def __init__(self, host: str | Sequence[str | Path]) -> None:
        """Name the container that carries the host, or give the beginning of a command line that runs something on it as root."""
        way = ("docker", "exec", "--interactive", host) if isinstance(host, str) else host
        self._as_postgres = (*way, "timeout", SESSION_SECONDS, "runuser", "-u", "postgres", "--")
        self._numbers = itertools.count(1)
        self._noted: dict[int, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        """Make the table, and write."""
        run([*self._as_postgres, *PSQL], stdin=TABLE)
        self._thread.start()
        self.wait(100)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write no more, once what is on its way is answered."""
        self.stop()

    def stop(self) -> None:
        """Write no more."""
        self._stopped.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._stopped.is_set():
            session = subprocess.Popen(
                [*self._as_postgres, "stdbuf", "--output=L", *PSQL],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
            )  # fmt: skip
            reader = threading.Thread(target=self._note, args=(session,), daemon=True)
            reader.start()
            self._feed(session)
            reader.join()
            session.wait()
            self._stopped.wait(AGAIN_SECONDS)

    def _feed(self, session: subprocess.Popen[str]) -> None:
        try:
            with session.stdin as pipe:  # type: ignore[union-attr]  # it was asked for
                while not self._stopped.is_set() and session.poll() is None:
                    pipe.write(ROW.format(next(self._numbers)))
                    time.sleep(PAUSE_SECONDS)
        except BrokenPipeError:
            pass

    def _note(self, session: subprocess.Popen[str]) -> None:
        for line in session.stdout or ():
            if line.strip().isdigit():
                self._noted[int(line)] = time.time()

    def acknowledged(self) -> dict[int, float]:
        """Return when each row was acknowledged, by its number, in the order of time."""
        return dict(self._noted)

    def silent_seconds(self) -> float:
        """Return how long ago the last row was acknowledged."""
        return time.time() - max(self.acknowledged().values(), default=0)

    def wait(self, rows: int, seconds: float = PATIENCE_SECONDS) -> float:
        """Wait until so many more rows are acknowledged, and return the seconds that it took.

        Raises:
            Failure: they were not.
        """
        wanted, begun = len(self._noted) + rows, time.monotonic()
        while len(self._noted) < wanted:
            if time.monotonic() - begun > seconds:
                raise Failure(f"The server did not acknowledge {rows} rows in {seconds:.0f} s.")
            time.sleep(0.1)
        return time.monotonic() - begun

    def missing(self, held: str) -> dict[int, float]:
        """Return the rows that were acknowledged and are not held, with when they were.

        Args:
            held: answer to `SELECT id FROM written`.
        """
        numbers = set(map(int, held.split()))
        return {number: at for number, at in self.acknowledged().items() if number not in numbers}

    def loss(self, held: str) -> tuple[int, float]:
        """Return how many acknowledged rows are not held, and of how many seconds of writes, back from the last row that was acknowledged.

        Args:
            held: answer to `SELECT id FROM written`.
        """
        missing = self.missing(held)
        last = max(self.acknowledged().values())
        return len(missing), last - min(missing.values(), default=last)
