"""A copy of the database's past beside the live one, which it can't touch, on a server that only we reach."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast import lock, postgres
from holdfast.failure import Failure
from holdfast.recovery import BIN, Choice
from holdfast.server import Server

RESTORE_SECONDS = 24 * 3600
MB = 1 << 20
# It is thrown away, so nothing of it has to outlive a crash; and what is archived is the live server's alone.
SETTINGS = {
    "archive_mode": "off",
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_connections": "20",
    "shared_preload_libraries": "",
    "synchronous_commit": "off",
}


@dataclass(frozen=True)
class Copy:
    """A copy that runs.

    Attributes:
        server: its server.
        restore_seconds: how long it took to fetch the backup.
        recovery_seconds: how long it took to roll forward.
    """

    server: Server
    restore_seconds: float
    recovery_seconds: float


def _own(folder: Path, *names: str) -> None:
    for path in (folder, *(folder / name for name in names)):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        postgres.give(path)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse to run beside what holds another copy in the same folder: each would remove the other's.

    Raises:
        Failure: one is there.
    """
    with lock.alone(folder.parent, f"Another copy is in use in {folder}: wait until it has ended, then run this again."):
        yield


def remove(folder: Path) -> None:
    """Stop what runs on a copy and remove it, whoever left it behind."""
    if (folder / "data" / "postmaster.pid").exists():
        postgres.as_postgres([str(BIN / "pg_ctl"), "--pgdata", str(folder / "data"), "--mode=immediate", "stop"], timeout_seconds=120)
    shutil.rmtree(folder, ignore_errors=True)


def refuse_disk(folder: Path, choice: Choice, spare_mb: int) -> None:
    """Refuse where a copy does not fit.

    Raises:
        Failure: it does not.
    """
    needed = choice.backup.size // MB + spare_mb
    free = shutil.disk_usage(folder.parent).free // MB
    if needed > free:
        raise Failure(
            f"A copy of the database needs {needed} MB on the disk of {folder.parent}, and {free} MB are free: make room, or a larger disk."
        )


@contextmanager
def copy(folder: Path, choice: Choice, *, spare_mb: int, settings: Mapping[str, str] | None = None) -> Iterator[Copy]:
    """Restore into a folder, roll forward, and remove all of it at the end.

    Args:
        folder: it is removed before and after.
        choice: what is restored.
        spare_mb: what has to stay free on the disk.
        settings: settings of the server besides those of every copy.

    Raises:
        Failure: it does not fit, a file of the backup is damaged, or it does not roll forward.
    """
    remove(folder)
    refuse_disk(folder, choice, spare_mb)
    _own(folder, "data", "lock", "spool", "tablespaces")
    config = folder / "postgresql.conf"
    config.write_text(f"hba_file = '{folder / 'pg_hba.conf'}'\nident_file = '{folder / 'pg_ident.conf'}'\n", encoding="utf-8")
    (folder / "pg_hba.conf").write_text("local all postgres peer\n", encoding="utf-8")
    (folder / "pg_ident.conf").write_text("", encoding="utf-8")
    data = folder / "data"
    own, spool = (f"--pg1-path={data}", f"--lock-path={folder / 'lock'}"), f"--spool-path={folder / 'spool'}"
    begun = time.monotonic()
    try:
        postgres.pgbackrest(
            "restore", "--archive-mode=off", *own, spool, f"--tablespace-map-all={folder / 'tablespaces'}", *choice.options(),
            *choice.fetching(*own, ahead=spool), timeout_seconds=RESTORE_SECONDS,
        )  # fmt: skip
        restored = time.monotonic()
        with Server(data, folder / "socket", {**SETTINGS, "config_file": str(config), **(settings or {})}) as server:
            server.wait_writable()
            yield Copy(server, restored - begun, time.monotonic() - restored)
    finally:
        remove(folder)
